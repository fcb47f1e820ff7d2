//! What each view of an event becomes in each dialect.

mod catalogue;
mod files;
mod leaks;
mod rows;
mod subscribing;

use std::sync::LazyLock;

use event::{Event, Subscription, subscription::View};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{Dialects, RenderError};

/// Loaded once: it takes a while without optimisation.
fn dialects() -> &'static Dialects {
    static DIALECTS: LazyLock<Dialects> = LazyLock::new(Dialects::builtin);
    &DIALECTS
}

fn event(fields: Value) -> Event {
    let mut whole = json!({
        "id": "e1", "tenant": "t", "type": "appointment.updated", "time": "2026-03-01T10:00:00Z",
    });
    let (Some(whole_map), Some(fields)) = (whole.as_object_mut(), fields.as_object()) else {
        panic!("fields are an object");
    };
    whole_map.extend(fields.clone());
    serde_json::from_str(&whole.to_string()).expect("an event")
}

fn subscription_in(dialect: &str, view: View) -> Subscription {
    Subscription {
        dialect: dialect.into(),
        view,
        ..subscription()
    }
}

fn subscription() -> Subscription {
    serde_json::from_value(json!({
        "id": "sub_1", "tenant": "t", "name": "", "target_url": "https://example.com/",
        "dialect": "standard", "events": ["*"], "filter": {}, "view": "full", "headers": {},
        "attributes": {}, "delivery": {"retry": {"delays": ["1s"]}}, "state": "active",
        "created_at": "2026-03-01T10:00:00Z", "updated_at": "2026-03-01T10:00:00Z", "revision": 1,
    }))
    .expect("a subscription")
}

#[track_caller]
fn check(event: &Event, wanted: View, body: &str, view_sent: View) {
    let rendered = dialects()
        .speaker(&subscription_in("standard", wanted))
        .and_then(|speaker| speaker.render(event, None, &subscription()))
        .expect("it renders");
    assert_eq!(std::str::from_utf8(&rendered.body), Ok(body));
    assert_eq!(rendered.view_sent, view_sent);
    assert_eq!(rendered.content_type, "application/json");
    assert_eq!(rendered.headers, []);
}

#[test]
fn each_view_leaves_as_it_was_published() {
    let text = r#"{"id":"e1","tenant":"t","type":"appointment.updated","time":"2026-03-01T10:00:00.125Z",
        "data": {"z": 1.10, "a" : 9007199254740993, "u":"é\u00e9"}, "changes":{"b":[ ]}, "details":{"deep":{}}}"#;
    let event: Event = serde_json::from_str(text).expect("an event");
    let frame = r#"{"type":"appointment.updated","timestamp":"2026-03-01T10:00:00.125Z","data":"#;
    let full = r#"{"z": 1.10, "a" : 9007199254740993, "u":"é\u00e9"}"#;
    check(&event, View::Full, &format!("{frame}{full}}}"), View::Full);
    check(
        &event,
        View::Basic,
        &format!(r#"{frame}{{"b":[ ]}}}}"#),
        View::Basic,
    );
    check(
        &event,
        View::Extended,
        &format!(r#"{frame}{{"deep":{{}}}}}}"#),
        View::Extended,
    );
}

#[test]
fn a_missing_view_falls_back_to_data_and_says_so() {
    let event = event(json!({"data": 7}));
    let body = r#"{"type":"appointment.updated","timestamp":"2026-03-01T10:00:00Z","data":7}"#;
    check(&event, View::Basic, body, View::Full);
    check(&event, View::Extended, body, View::Full);
}

#[test]
fn a_deletion_without_data_names_its_subject_as_published() {
    for subject in [json!(10), json!("10"), json!([10, "11", 12])] {
        let event = event(json!({"type": "appointment.deleted", "subject": subject}));
        let body = format!(
            r#"{{"type":"appointment.deleted","timestamp":"2026-03-01T10:00:00Z","data":{{"id":{subject}}}}}"#
        );
        check(&event, View::Full, &body, View::Full);
        check(&event, View::Basic, &body, View::Full);
    }
}

#[test]
fn what_cannot_be_said_is_named() {
    let dialects = dialects();
    let bare = event(json!({}));
    assert_eq!(
        dialects
            .speaker(&subscription_in("standard", View::Full))
            .and_then(|speaker| speaker.render(&bare, None, &subscription()))
            .unwrap_err(),
        RenderError::NothingToSend
    );
    assert_eq!(
        dialects
            .speaker(&subscription_in("klingon", View::Full))
            .and_then(|speaker| speaker.render(&bare, None, &subscription()))
            .unwrap_err(),
        RenderError::UnknownDialect("klingon".into())
    );
}

#[test]
fn every_example_of_every_file_comes_out_as_it_says() {
    let dialects = dialects();
    let mut failures = Vec::new();
    for name in dialects.names() {
        let report = dialects.check(name).expect("a dialect");
        if !report.without_example.is_empty() {
            failures.push(format!("{name} lacks {:?}", report.without_example));
        }
        for example in report.examples.iter().filter(|one| !one.diff.is_empty()) {
            failures.push(format!(
                "{name}: {}\n{}",
                example.name,
                example.diff.join("\n")
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Bool(true)),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(any::<String>(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_body_is_json_and_holds_the_view_and_nothing_else(
        data in any_json(), changes in prop::option::of(any_json()), basic in any::<bool>(),
    ) {
        // A view is an object; what stands in it is anything.
        let mut fields = json!({"data": data});
        if let Some(changes) = &changes {
            fields["changes"] = json!({"c": changes});
        }
        let wanted = if basic { View::Basic } else { View::Full };
        let rendered = dialects()
            .speaker(&subscription_in("standard", wanted)).and_then(|speaker| speaker.render(&event(fields.clone()), None, &subscription()))
            .expect("it renders");
        let body: Value = serde_json::from_slice(&rendered.body).expect("json");
        let said = if rendered.view_sent == View::Basic { &fields["changes"] } else { &data };
        prop_assert_eq!(&body["data"], said);
        prop_assert_eq!(body.as_object().map(serde_json::Map::len), Some(3));
        prop_assert_eq!(rendered.view_sent == View::Basic, basic && changes.is_some());
    }
}
