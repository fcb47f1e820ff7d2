//! Any event in any dialect: the body is JSON, and holds nothing of the views that are not sent.

use super::*;
use crate::RenderError;

const BASIC: &str = "marker-basic";
const FULL: &str = "marker-full";
const EXTENDED: &str = "marker-extended";

fn planted(marker: &'static str) -> impl Strategy<Value = Value> {
    (any_json(), "[a-z_]{1,12}").prop_map(move |(value, key)| json!({marker: marker, key: value}))
}

fn kinds() -> impl Strategy<Value = String> {
    let known: Vec<String> = dialects()
        .event_types()
        .into_iter()
        .map(|kind| kind.kind)
        .collect();
    prop_oneof![
        4 => prop::sample::select(known),
        1 => "[a-z]{1,8}\\.[a-z]{1,8}",
        1 => "custom\\.[a-zA-Z]{1,8}",
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{0,8}", "\\PC{0,12}", Just("canceled".to_owned())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_event_in_any_dialect_is_json_of_the_one_view(
        kind in kinds(),
        data in prop::option::of(prop_oneof![planted(FULL), any_json()]),
        changes in prop::option::of(planted(BASIC)),
        details in prop::option::of(planted(EXTENDED)),
        subject in prop::option::of(prop_oneof![Just(json!(10)), Just(json!(["a", 1]))]),
        status in prop::option::of(text()),
        previous in prop::option::of(text()),
        version in prop::option::of(any::<u64>()),
        attribute in text(),
        view in prop::sample::select(vec![View::Basic, View::Full, View::Extended]),
    ) {
        let mut fields = json!({"type": kind});
        let optional = [
            ("data", data), ("changes", changes), ("details", details), ("subject", subject),
            ("status", status.map(Value::from)), ("previous_status", previous.map(Value::from)),
            ("version", version.map(Value::from)),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                fields[name] = value;
            }
        }
        let event = event(fields);
        for dialect in dialects().names() {
            let mut subscription = subscription_in(dialect, view);
            let used = dialects().catalogue(dialect).expect("a dialect").attributes;
            subscription.attributes = used.into_keys().map(|name| (name, attribute.clone())).collect();
            subscription.attributes.remove("timezone");
            for mode in ["structured", "binary"] {
                subscription.parameters.insert("mode".into(), mode.into());
                let speaker = dialects().speaker(&subscription).expect("a speaker");
                let judged = speaker.judge(&event);
                let rendered = speaker.render(&event, None, &subscription);
                prop_assert_eq!(judged.is_err(), matches!(&rendered, Err(RenderError::NotSaid(_))));
                let Ok(rendered) = rendered else { continue };
                let body: Result<Value, _> = serde_json::from_slice(&rendered.body);
                prop_assert!(body.is_ok(), "{}: {:?}", dialect, rendered.body);
                let all = format!("{:?}{:?}", rendered.body, rendered.headers);
                for (marker, own) in [(BASIC, View::Basic), (FULL, View::Full), (EXTENDED, View::Extended)] {
                    prop_assert!(
                        own == rendered.view_sent || !all.contains(marker),
                        "{} sends {:?} and leaks {}: {}", dialect, rendered.view_sent, marker, all
                    );
                }
            }
        }
    }
}
