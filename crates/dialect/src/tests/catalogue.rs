//! What the catalogue tells, and what a test delivery is made of.

use super::*;
use crate::ExampleEvent;

#[test]
fn every_word_of_every_dialect_has_an_example() {
    for name in dialects().names() {
        let catalogue = dialects().catalogue(name).expect("a dialect");
        for word in &catalogue.events {
            let example = word
                .example
                .as_ref()
                .unwrap_or_else(|| panic!("{name}: {}", word.word));
            let content_type = &example.request.headers["content-type"];
            assert!(content_type.contains("json"), "{name}: {content_type}");
        }
        serde_json::to_string(&catalogue).expect("json");
    }
    assert!(dialects().catalogue("klingon").is_none());
}

#[test]
fn a_word_tells_what_it_takes() {
    let vik = dialects().catalogue("vikappointments").expect("a dialect");
    let word = |name: &str| {
        let word = vik
            .events
            .iter()
            .find(|word| word.word == name)
            .expect("a word");
        let parameters = word
            .parameters
            .iter()
            .map(|one| (one.name.as_str(), one.list, one.values.join(" ")));
        (
            word.types.join(" "),
            parameters.collect::<Vec<_>>(),
            word.views.clone(),
        )
    };
    assert_eq!(
        word("coupon.save"),
        (
            "coupon.created coupon.updated".into(),
            vec![
                ("loading_mode", false, "basic full".into()),
                ("type", false, "both created updated".into())
            ],
            vec![View::Basic, View::Full],
        )
    );
    assert_eq!(
        word("coupon.delete"),
        ("coupon.deleted".into(), vec![], vec![])
    );
    let (_, parameters, views) = word("appointments.save");
    assert_eq!(parameters[1], ("status", true, String::new()));
    assert_eq!(views.len(), 3);
    let vagaro = dialects().catalogue("vagaro").expect("a dialect");
    assert_eq!(vagaro.headers, ["X-Vagaro-Signature"]);
    assert_eq!(
        (vagaro.delivery.timeout.as_str(), vagaro.delivery.https),
        ("20s", true)
    );
    assert_eq!(vagaro.delivery.not_retried, [400, 401, 403, 404, 406]);
    assert_eq!(vagaro.events[1].parameters[0].values, ["updated"]);
    let zaui = dialects().catalogue("zaui").expect("a dialect");
    assert_eq!(zaui.refused[0].word, "Recent Reservations");
    assert_eq!(zaui.refused[0].types, ["reservation.*"]);
    let vcita = dialects().catalogue("vcita").expect("a dialect");
    assert_eq!(vcita.events[0].synonyms, ["client/create"]);
}

#[test]
fn every_documented_type_has_its_words_and_a_body() {
    let types = dialects().event_types();
    let mut documented: Vec<String> = dialects()
        .names()
        .into_iter()
        .filter_map(|name| dialects().catalogue(name))
        .flat_map(|catalogue| catalogue.events)
        .flat_map(|word| word.types)
        .filter(|kind| !kind.ends_with(".*"))
        .collect();
    documented.sort();
    documented.dedup();
    for kind in &documented {
        let known = types.iter().find(|one| one.kind == *kind);
        let known = known.unwrap_or_else(|| panic!("{kind} has no example in any file"));
        assert!(known.body.is_some(), "{kind}");
    }
    let created = types
        .iter()
        .find(|one| one.kind == "appointment.created")
        .expect("known");
    let words: Vec<_> = created
        .words
        .iter()
        .map(|said| (said.dialect.as_str(), said.word.as_str()))
        .collect();
    assert_eq!(
        words,
        [
            ("cloudevents", "appointment.created"),
            ("ssa", "appointment_booked"),
            ("standard", "appointment.created"),
            ("vagaro", "appointment"),
            ("vcita", "appointment/created"),
            ("vikappointments", "appointments.save"),
        ]
    );
}

fn examples(dialect: &str, events: &[&str], parameters: Value) -> Vec<String> {
    let subscription = Subscription {
        dialect: dialect.into(),
        events: events.iter().map(|&word| word.into()).collect(),
        parameters: serde_json::from_value(parameters).expect("parameters"),
        ..subscription()
    };
    let speaker = dialects().speaker(&subscription).expect("a speaker");
    let examples = speaker.examples();
    for example in &examples {
        let example: ExampleEvent = example.clone();
        let subscribed = event(json!({}));
        let event = example.into_event(subscribed.id, subscribed.tenant, subscribed.time);
        speaker.judge(&event).expect("it is wanted");
        speaker
            .render(&event, None, &subscription)
            .expect("it renders");
    }
    examples
        .iter()
        .map(|example| example.kind.to_string())
        .collect()
}

#[test]
fn a_test_delivery_has_an_event_for_each_subscribed_word() {
    let none = || json!({});
    assert_eq!(
        examples("vcita", &["client/created", "payment/paid"], none()),
        ["customer.created", "payment.paid"]
    );
    assert_eq!(
        examples(
            "vikappointments",
            &["appointments.save"],
            json!({"type": "updated"})
        ),
        ["appointment.updated"]
    );
    assert_eq!(
        examples(
            "vikappointments",
            &["appointments.save"],
            json!({"status": ["ODD"]})
        ),
        ["appointment.created"],
        "with the status that is listened to"
    );
    assert_eq!(
        examples("vagaro", &[], json!({"type": "transaction"})),
        ["transaction.created"]
    );
    assert_eq!(
        examples("zaui", &["Bookings/*"], none()),
        ["booking.created", "booking.updated", "booking.canceled"]
    );
    assert_eq!(
        examples("standard", &["payment.paid"], none()),
        ["payment.paid"]
    );
    assert_eq!(
        examples("standard", &["*"], none()).len(),
        dialects().event_types().len()
    );
    assert_eq!(
        examples("ssa", &["appointment_canceled"], none()),
        ["appointment.canceled"]
    );
    assert!(
        examples(
            "cloudevents",
            &["appointment.saved"],
            json!({"mode": "binary"})
        )
        .len()
            == 2
    );
    assert_eq!(
        examples("vikappointments", &["custom:onEmptyCart"], none()),
        ["custom.onEmptyCart"]
    );
}
