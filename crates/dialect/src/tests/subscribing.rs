//! What a subscription may say in each dialect: stored and listed back in the same words, matched
//! by the canonical ones, and refused with what would be accepted.

use event::{Tenant, subscription::DisableAfter};
use serde_json::Map;

use super::*;
use crate::check::subscription_of;

fn subscribed(written: Value) -> Result<Subscription, Vec<String>> {
    let Value::Object(written) = written else {
        panic!("an object");
    };
    let tenant = Tenant::parse("t").expect("a tenant");
    subscription_of(dialects(), &written, &tenant).map_err(|refusal| {
        let faults = refusal.faults.iter();
        faults
            .map(|fault| format!("{} {}", fault.pointer, fault.message))
            .collect()
    })
}

#[track_caller]
fn kept(written: Value, events: Value, matches: Value) -> Subscription {
    let subscription = subscribed(written.clone()).expect("accepted");
    let shown = serde_json::to_value(&subscription).expect("json");
    assert_eq!(shown["events"], events, "{written}");
    let selectors: Vec<String> = subscription
        .selectors()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(json!(selectors), matches, "{written}");
    for (name, value) in written.as_object().into_iter().flatten() {
        if !event::subscription::words::is_field(name) {
            assert_eq!(&shown[name], value, "{name} is shown back");
        }
    }
    subscription
}

#[track_caller]
fn refused(written: Value, wanted: &[&str]) {
    let told = subscribed(written.clone()).expect_err("refused");
    assert_eq!(told, wanted, "{written}");
}

#[test]
fn each_dialects_words_are_kept_and_mean_canonical_events() {
    kept(
        json!({"dialect": "vikappointments", "events": ["appointments.save", "custom:onAddItemCart"]}),
        json!(["appointments.save", "custom:onAddItemCart"]),
        json!([
            "appointment.created",
            "appointment.updated",
            "custom.onAddItemCart"
        ]),
    );
    let basic = kept(
        json!({"dialect": "vikappointments", "events": ["appointments.status_change"], "status": ["CONFIRMED"], "loading_mode": "basic"}),
        json!(["appointments.status_change"]),
        json!(["appointment.status_changed"]),
    );
    assert_eq!(basic.view, View::Basic);
    assert_eq!(
        basic.delivery.disable_after,
        DisableAfter {
            failures: Some(10),
            span: None
        }
    );
    // Both spellings in, the documented one out.
    kept(
        json!({"dialect": "vcita", "events": ["client/create", "client/created", "pivot/event"]}),
        json!(["client/created", "pivot/event"]),
        json!([
            "customer.created",
            "pivot.promotional_muted",
            "pivot.marked_as_spammer"
        ]),
    );
    let vagaro = kept(
        json!({"dialect": "vagaro", "type": "customer", "actions": ["updated"]}),
        json!([]),
        json!(["customer.updated", "customer.attached", "customer.removed"]),
    );
    let delays: Vec<u64> = (1..6)
        .filter_map(|n| vagaro.delivery.retry.delay_after(n))
        .map(|d| d.as_secs())
        .collect();
    assert_eq!(delays, [29, 58, 116, 232, 464]);
    assert_eq!(vagaro.delivery.timeout.as_secs(), 20);
    kept(
        json!({"dialect": "zaui", "events": ["Bookings/*", "Check-In/On Check-in"]}),
        json!(["Bookings/*", "Check-In/On Check-in"]),
        json!([
            "booking.created",
            "booking.updated",
            "booking.canceled",
            "check_in.created",
            "check_in.checked_in"
        ]),
    );
    kept(
        json!({"dialect": "ssa", "events": ["appointment_canceled"]}),
        json!(["appointment_canceled"]),
        json!(["appointment.canceled", "appointment.status_changed"]),
    );
    kept(
        json!({"dialect": "cloudevents", "events": ["payment.*"], "mode": "binary"}),
        json!(["payment.*"]),
        json!(["payment.*"]),
    );
    // Canonical selectors, in every dialect that can say them.
    for (dialect, events) in [
        (
            "vikappointments",
            json!(["appointment.*", "coupon.saved", "customer.deleted"]),
        ),
        ("vcita", json!(["*"])),
        ("vagaro", json!(["appointment.status_changed"])),
        ("zaui", json!(["*", "booking.created"])),
        ("ssa", json!(["appointment.*"])),
    ] {
        kept(
            json!({"dialect": dialect, "events": events}),
            events.clone(),
            events.clone(),
        );
    }
    kept(
        json!({"dialect": "vcita", "events": ["client.*"]}),
        json!(["customer.*"]),
        json!(["customer.*"]),
    );
}

#[test]
fn what_a_dialect_cannot_say_is_refused_with_what_it_can() {
    let vagaro = "(there are `appointment`, `customer`, `formResponse`, `transaction`)";
    refused(
        json!({"dialect": "vagaro", "events": ["formresponse", "payment.paid", "a b"]}),
        &[
            &format!(
                "/events/0 `formresponse` is no event of `vagaro`; did you mean `formResponse`? {vagaro}"
            ),
            &format!("/events/1 `payment.paid` is no event of `vagaro` {vagaro}"),
            &format!("/events/2 `a b` is no event of `vagaro` {vagaro}"),
        ],
    );
    refused(
        json!({"dialect": "vikappointments", "events": ["custom:", "custom:a-b"]}),
        &[
            "/events/0 `custom:` does not name an event: after `custom:` stands its name, such as `custom:onAddItemCart`, of letters, digits and `_`",
            "/events/1 `custom:a-b` does not name an event: after `custom:` stands its name, such as `custom:onAddItemCart`, of letters, digits and `_`",
        ],
    );
    refused(
        json!({"dialect": "ssa", "events": []}),
        &["/events must have 1 to 100 entries, got 0"],
    );
    refused(
        json!({"dialect": "vagaro", "type": 7}),
        &["/type must be a string, got a number"],
    );
    let standard =
        subscribed(json!({"dialect": "standard", "events": ["appointment"]})).expect_err("refused");
    assert!(
        standard[0].starts_with("/events/0 must be `*`, `entity.*`"),
        "{standard:?}"
    );
    refused(
        json!({"dialect": "vcitta"}),
        &["/dialect unknown dialect `vcitta`; did you mean `vcita`?"],
    );
}

#[test]
fn a_parameter_is_taken_by_each_word_it_stands_beside() {
    refused(
        json!({"dialect": "vikappointments", "events": ["appointments.save", "coupon.save", "service.delete"], "status": ["CONFIRMED"]}),
        &[
            "/status `coupon.save` takes no `status`; it takes `loading_mode` (`basic` or `full`) and `type` (`both`, `created` or `updated`)",
            "/status `service.delete` takes no `status`; it takes no parameters",
        ],
    );
    refused(
        json!({"dialect": "vikappointments", "events": ["coupon.save"], "type": "create", "loading_mode": "ful"}),
        &[
            "/loading_mode must be `basic` or `full` with `coupon.save`, got `ful`; did you mean `full`?",
            "/type must be `both`, `created` or `updated` with `coupon.save`, got `create`; did you mean `created`?",
        ],
    );
    refused(
        json!({"dialect": "vikappointments", "events": ["appointments.save"], "status": "CONFIRMED", "type": ["created"]}),
        &[
            "/status must be an array of strings, got a string",
            "/type must be a string, got an array",
        ],
    );
    refused(
        json!({"dialect": "vikappointments", "events": ["appointments.save"], "status": ["", 7]}),
        &[
            "/status/0 must be 1 to 256 bytes, got 0",
            "/status/1 must be a string, got a number",
        ],
    );
    refused(
        json!({"dialect": "vikappointments", "events": ["appointments.save"], "status": vec!["x"; 101]}),
        &["/status must have at most 100 entries, got 101"],
    );
    refused(
        json!({"dialect": "vikappointments", "events": ["customer.deleted"], "type": "both"}),
        &["/type `customer.deleted` takes no `type`; it takes no parameters"],
    );
    // A selector of many words takes what any of them does.
    kept(
        json!({"dialect": "vikappointments", "events": ["*"], "status": ["CONFIRMED"], "loading_mode": "extended"}),
        json!(["*"]),
        json!(["*"]),
    );
    refused(
        json!({"dialect": "vikappointments", "events": ["appointments.save"], "loading_mod": "full"}),
        &["/loading_mod unknown field `loading_mod`; did you mean `loading_mode`?"],
    );
    refused(
        json!({"dialect": "vcita", "events": ["client/created"], "loading_mode": "full"}),
        &[
            "/loading_mode the dialect `vcita` takes no parameter `loading_mode`; it is one of `vikappointments`",
        ],
    );
}

#[test]
fn a_view_is_offered_by_each_word_it_stands_beside() {
    refused(
        json!({"dialect": "vikappointments", "events": ["appointments.save", "customer.save"], "view": "extended"}),
        &["/view must be `basic` or `full` with `customer.save`, got `extended`"],
    );
    refused(
        json!({"dialect": "vikappointments", "events": ["appointments.save"], "view": "full", "loading_mode": "basic"}),
        &["/view is `full`, but `loading_mode` says `basic`; leave one out"],
    );
    let both =
        subscribed(json!({"dialect": "vikappointments", "events": ["*"], "view": "extended"}))
            .expect("accepted");
    let speaker = dialects().speaker(&both).expect("a speaker");
    let whole = |kind: &str| {
        event(json!({"type": kind, "data": 1, "changes": {"b": 1}, "details": {"e": 1}}))
    };
    let sent = |kind: &str| {
        speaker
            .render(&whole(kind), None, &both)
            .expect("it renders")
            .view_sent
    };
    assert_eq!(sent("appointment.created"), View::Extended);
    assert_eq!(
        sent("coupon.created"),
        View::Full,
        "a coupon has no extended view"
    );
}

#[test]
fn a_view_is_fetched_where_the_event_lacks_it_and_has_one() {
    let missing = |written: Value, fields: Value| {
        let subscription = subscribed(written).expect("accepted");
        dialects()
            .speaker(&subscription)
            .expect("a speaker")
            .missing_view(&event(fields))
    };
    let extended = || json!({"events": ["*"], "view": "extended"});
    assert_eq!(
        missing(extended(), json!({"data": 1})),
        Some(View::Extended)
    );
    assert_eq!(
        missing(extended(), json!({"data": 1, "subject": 10})),
        Some(View::Extended)
    );
    assert_eq!(missing(extended(), json!({"data": 1, "details": {}})), None);
    assert_eq!(
        missing(
            extended(),
            json!({"type": "appointment.deleted", "subject": 10})
        ),
        None
    );
    assert_eq!(
        missing(json!({"events": ["*"]}), json!({"data": null})),
        None
    );
    let vik =
        |events: &str| json!({"dialect": "vikappointments", "events": [events], "view": "basic"});
    assert_eq!(
        missing(vik("appointments.save"), json!({"data": 1})),
        Some(View::Basic)
    );
    assert_eq!(
        missing(vik("coupon.save"), json!({"data": 1})),
        None,
        "it is not for this one"
    );
}

#[test]
fn one_event_is_said_by_each_dialect_that_has_a_word_for_it() {
    let said = |dialect: &str, fields: Value| {
        let subscription =
            subscribed(json!({"dialect": dialect, "events": ["*"]})).expect("accepted");
        let speaker = dialects().speaker(&subscription).expect("a speaker");
        let event = event(fields);
        speaker
            .judge(&event)
            .map_err(|stopped| stopped.clause)
            .map(|()| {
                let rendered = speaker
                    .render(&event, None, &subscription)
                    .expect("it renders");
                String::from_utf8(rendered.body.to_vec()).expect("text")
            })
    };
    let created = || json!({"type": "appointment.created", "data": {"id": 1}});
    for dialect in [
        "cloudevents",
        "ssa",
        "standard",
        "vagaro",
        "vcita",
        "vikappointments",
    ] {
        let body = said(dialect, created()).expect("it has a word");
        assert!(body.contains(r#""id":1"#), "{dialect}: {body}");
    }
    assert_eq!(said("zaui", created()), Err("dialect".into()));
    let payment = || json!({"type": "payment.paid", "data": {}});
    for dialect in ["ssa", "vagaro", "vikappointments", "zaui"] {
        assert_eq!(said(dialect, payment()), Err("dialect".into()), "{dialect}");
    }
}

#[test]
fn words_that_a_dialect_no_longer_has_listen_to_nothing() {
    let subscription = Subscription {
        dialect: "vcita".into(),
        events: vec!["client/merged".into(), "client/created".into()],
        ..subscription()
    };
    let speaker = dialects().speaker(&subscription).expect("a speaker");
    let judged = |kind: &str| {
        speaker
            .judge(&event(json!({"type": kind, "data": 1})))
            .is_ok()
    };
    assert!(judged("customer.created"));
    assert!(!judged("customer.merged"));
}

#[test]
fn reading_never_panics_on_what_is_no_subscription() {
    let odd = [
        Value::Null,
        json!(7),
        json!([]),
        json!({}),
        json!([[1]]),
        json!("x"),
        json!(["x"]),
    ];
    for dialect in dialects().names() {
        let parameters = event::subscription::words::Vocabulary::parameters(dialects(), dialect);
        for field in parameters.into_iter().chain(["events", "view"]) {
            for value in &odd {
                let written = Map::from_iter([(field.to_owned(), value.clone())]);
                drop(event::subscription::words::Vocabulary::read(
                    dialects(),
                    dialect,
                    &written,
                ));
            }
        }
    }
}
