//! What a dialect does not know is refused at once: status, code, pointer, and the nearest name.

use serde_json::{Value, json};

use crate::support::world::{Kind, World};

/// What a person writes, and of each fault its pointer and what its message says.
type Row = (Value, &'static [(&'static str, &'static str)]);

fn rows() -> Vec<Row> {
    let vik = |events: &str, more: Value| {
        let mut fields = json!({"dialect": "vikappointments", "events": [events]});
        for (name, value) in more.as_object().into_iter().flatten() {
            fields[name] = value.clone();
        }
        fields
    };
    vec![
        (
            json!({"dialect": "vikapointments", "events": ["appointments.save"]}),
            &[("/dialect", "did you mean `vikappointments`?")],
        ),
        (
            json!({"events": ["appointment.created"], "loading_mode": "full"}),
            &[(
                "/loading_mode",
                "the dialect `standard` takes no parameter `loading_mode`; it is one of `vikappointments`",
            )],
        ),
        (
            vik("appointments.sav", json!({})),
            &[("/events/0", "did you mean `appointments.save`?")],
        ),
        (
            vik("appointments.save", json!({"loading_mod": "full"})),
            &[("/loading_mod", "did you mean `loading_mode`?")],
        ),
        (
            vik("appointments.save", json!({"loading_mode": "ful"})),
            &[("/loading_mode", "did you mean `full`?")],
        ),
        (
            vik("appointments.save", json!({"type": "update"})),
            &[("/type", "did you mean `updated`?")],
        ),
        (
            vik("appointments.save", json!({"status": "CONFIRMED"})),
            &[("/status", "must be an array of strings, got a string")],
        ),
        (
            vik("appointments.delete", json!({"loading_mode": "basic"})),
            &[(
                "/loading_mode",
                "`appointments.delete` takes no `loading_mode`; it takes no parameters",
            )],
        ),
        (
            vik("appointments.status_change", json!({"type": "created"})),
            &[(
                "/type",
                "`appointments.status_change` takes no `type`; it takes `loading_mode`",
            )],
        ),
        (
            vik(
                "coupon.save",
                json!({"status": [], "loading_mode": "extended"}),
            ),
            &[
                (
                    "/loading_mode",
                    "must be `basic` or `full` with `coupon.save`, got `extended`",
                ),
                ("/status", "`coupon.save` takes no `status`"),
            ],
        ),
        (
            vik("service.save", json!({"view": "extended"})),
            &[(
                "/view",
                "must be `basic` or `full` with `service.save`, got `extended`",
            )],
        ),
        (
            vik(
                "appointments.save",
                json!({"view": "full", "loading_mode": "basic"}),
            ),
            &[("/view", "`loading_mode` says `basic`")],
        ),
        (
            vik("packages_order.save", json!({"status": ["PAID"]})),
            &[("/status", "`packages_order.save` takes no `status`")],
        ),
        (
            vik("custom:onAddItemCart", json!({"type": "created"})),
            &[("/type", "`custom:onAddItemCart` takes no `type`")],
        ),
        (
            json!({"dialect": "vcita", "events": ["client/creatd"]}),
            &[("/events/0", "did you mean `client/created`?")],
        ),
        (
            json!({"dialect": "vcita", "events": ["payment/paid"], "actions": ["created"]}),
            &[("/actions", "it is one of `vagaro`")],
        ),
        (json!({"dialect": "vagaro"}), &[("/events", "is required")]),
        (
            json!({"dialect": "vagaro", "type": "apointment"}),
            &[("/type", "did you mean `appointment`?")],
        ),
        (
            json!({"dialect": "vagaro", "type": "transaction", "actions": ["created", "updated"]}),
            &[(
                "/actions/1",
                "must be `created` with `transaction`, got `updated`",
            )],
        ),
        (
            json!({"dialect": "vagaro", "type": "customer", "events": ["appointment"]}),
            &[("/type", "stands in the place of `events`")],
        ),
        (
            json!({
                "dialect": "vagaro", "type": "appointment", "target_url": "http://example.com/",
            }),
            &[("/target_url", "must begin with `https://`")],
        ),
        (
            json!({"dialect": "zaui", "events": ["Bookings/Creaton"]}),
            &[("/events/0", "did you mean `Bookings/Creation`?")],
        ),
        (
            json!({"dialect": "zaui", "events": ["Recent Reservations/*"]}),
            &[("/events/0", "no trigger")],
        ),
        (
            json!({"dialect": "ssa", "events": ["appointment_boked"]}),
            &[("/events/0", "did you mean `appointment_booked`?")],
        ),
        (
            json!({"dialect": "cloudevents", "events": ["*"], "mode": "binry"}),
            &[("/mode", "did you mean `binary`?")],
        ),
    ]
}

#[tokio::test]
async fn what_a_dialect_does_not_know_is_refused_with_the_nearest_name() {
    let more = ("egress.require_https", "false".to_owned());
    let world = World::with(Kind::Embedded, 1, &[more]).await;
    for (fields, faults) in rows() {
        let mut body = json!({"tenant": "salon-17", "target_url": "https://example.com/hooks"});
        for (name, value) in fields.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let answer = world.call("POST", "/v1/subscriptions", Some(body)).await;
        assert_eq!(
            (answer.status, &answer.json["code"]),
            (422, &json!("invalid_subscription")),
            "{fields}: {:#}",
            answer.json
        );
        let kind = answer.headers["content-type"].to_str().expect("text");
        assert_eq!(kind, "application/problem+json");
        let told: Vec<(&str, &str)> = answer.json["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|error| Some((error["pointer"].as_str()?, error["message"].as_str()?)))
            .collect();
        assert_eq!(told.len(), faults.len(), "{fields}: {told:#?}");
        for (pointer, says) in faults {
            let found = told
                .iter()
                .any(|(at, message)| at == pointer && message.contains(says));
            assert!(found, "{fields}: {pointer} {says:?} is not in {told:#?}");
        }
    }
    assert!(world.items("/v1/subscriptions").await.is_empty());
    world.finish().await;
}
