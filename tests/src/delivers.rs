//! An event reaches each subscription that matches it, once, and no other.

use serde_json::json;

use crate::support::world::{Fate, Sub, World};

/// Makes each scenario a test on the embedded broker and one on RabbitMQ with PostgreSQL.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $name() {
                let kind = $crate::support::world::Kind::Embedded;
                super::$name($crate::support::world::World::start(kind).await).await;
            })+
        }
        mod rabbitmq {
            $(#[tokio::test]
            async fn $name() {
                let kind = $crate::support::world::Kind::Rabbit;
                super::$name($crate::support::world::World::start(kind).await).await;
            })+
        }
    };
}
pub(crate) use on_both;

on_both!(
    each_matching_subscription_and_no_other,
    data_leaves_byte_for_byte,
    many_events_to_many_subscriptions,
    the_views_of_an_event,
    custom_headers_go_along,
    one_event_is_followed_by_its_id,
    changes_take_effect_everywhere,
);

async fn each_matching_subscription_and_no_other(world: World) {
    let subs = [
        ("/exact", &["appointment.created"] as &[&str], true),
        ("/entity", &["appointment.*"], true),
        ("/all", &["*"], true),
        ("/saved", &["appointment.saved"], true),
        (
            "/twice",
            &["appointment.created", "appointment.*", "*"],
            true,
        ),
        ("/other-action", &["appointment.deleted"], false),
        ("/other-entity", &["payment.*"], false),
        ("/status", &["appointment.status_changed"], false),
    ];
    let mut made = Vec::new();
    for (path, events, matches) in subs {
        made.push((world.subscribe(path, events, json!({})).await, matches));
    }
    let elsewhere = json!({"tenant": "salon-18"});
    world.subscribe("/other-tenant", &["*"], elsewhere).await;
    let id = world
        .publish(json!({"type": "appointment.created", "subject": 7}))
        .await;
    for (sub, _) in made.iter().filter(|(_, matches)| *matches) {
        world.expect(sub, &id, Fate::Delivered);
    }
    let nobody = world
        .publish(json!({"type": "coupon.created", "tenant": "salon-19"}))
        .await;
    world
        .wait_for_metric("postrider_events_unmatched_total", "", 1.0)
        .await;
    assert_ne!(nobody, id);
    world.finish().await;
}

async fn data_leaves_byte_for_byte(world: World) {
    let sub = world.subscribe("/raw", &["*"], json!({})).await;
    let data = r#"{ "b" : 12.10, "a":-0, "big":18446744073709551616,"é":"\u00e9\u0000", "k":[ ] }"#;
    let body = format!(
        r#"{{"id":"raw-1","tenant":"salon-17","type":"appointment.created","time":"2026-01-02T03:04:05Z","data":{data}}}"#
    );
    let kind = Some(("application/json", body.into_bytes()));
    world
        .send("POST", "/v1/events", kind, None)
        .await
        .expect(202);
    world.expect(&sub, "raw-1", Fate::Delivered);
    let got = world.receiver.wait_for("/raw", 1).await.remove(0);
    let want = format!(
        r#"{{"type":"appointment.created","timestamp":"2026-01-02T03:04:05Z","data":{data}}}"#
    );
    assert_eq!(String::from_utf8_lossy(&got.body), want);
    assert_eq!(got.header("content-type"), "application/json");
    world.finish().await;
}

async fn many_events_to_many_subscriptions(world: World) {
    let mut subs = Vec::new();
    for n in 0..10 {
        let more = json!({"delivery": {"max_in_flight": 64}});
        subs.push(
            world
                .subscribe(&format!("/{n}"), &["appointment.*"], more)
                .await,
        );
    }
    let events: Vec<_> = (0..200)
        .map(|n| json!({"tenant": "salon-17", "type": "appointment.created", "data": {"n": n}}))
        .collect();
    let answer = world
        .call("POST", "/v1/events", Some(json!(events)))
        .await
        .expect(202);
    assert_eq!(answer["accepted"], 200);
    for id in answer["ids"].as_array().expect("ids") {
        for sub in &subs {
            world.expect(sub, id.as_str().expect("an id"), Fate::Delivered);
        }
    }
    world.finish().await;
}

async fn the_views_of_an_event(world: World) {
    let mut subs = Vec::new();
    for view in ["basic", "full", "extended"] {
        subs.push(
            world
                .subscribe(&format!("/{view}"), &["*"], json!({"view": view}))
                .await,
        );
    }
    let event = json!({
        "type": "appointment.updated",
        "changes": {"start": 2}, "data": {"id": 1, "start": 2}, "details": {"id": 1, "all": true},
    });
    let id = world.publish(event).await;
    let bare = world
        .publish(json!({"type": "appointment.updated", "data": {"only": 1}}))
        .await;
    for sub in &subs {
        world.expect(sub, &id, Fate::Delivered);
        world.expect(sub, &bare, Fate::Delivered);
    }
    let wants = [
        ("/basic", json!({"start": 2})),
        ("/full", json!({"id": 1, "start": 2})),
        ("/extended", json!({"id": 1, "all": true})),
    ];
    for (path, want) in wants {
        for request in world.receiver.wait_for(path, 2).await {
            let want = if request.event_id() == id {
                want.clone()
            } else {
                json!({"only": 1})
            };
            assert_eq!(request.json()["data"], want, "{path}");
        }
    }
    world.finish().await;
}

async fn custom_headers_go_along(world: World) {
    let more = json!({"headers": {"x-api-key": "k-123"}});
    let sub = world.subscribe("/keyed", &["*"], more).await;
    let id = world.publish(json!({"type": "appointment.created"})).await;
    world.expect(&sub, &id, Fate::Delivered);
    let got = world.receiver.wait_for("/keyed", 1).await.remove(0);
    assert_eq!(got.header("x-api-key"), "k-123");
    let shown = world
        .call("GET", &format!("/v1/subscriptions/{}", sub.id), None)
        .await
        .expect(200);
    assert_eq!(shown["headers"]["x-api-key"], "***");
    assert!(shown.get("secret").is_none(), "a secret is shown once");
    world.finish().await;
}

async fn one_event_is_followed_by_its_id(world: World) {
    let sub = world.subscribe("/followed", &["*"], json!({})).await;
    let id = world
        .publish(json!({"type": "appointment.created", "id": "follow-me"}))
        .await;
    world.expect(&sub, &id, Fate::Delivered);
    world.receiver.wait_for("/followed", 1).await;
    world
        .wait_for_metric("postrider_deliveries_total", "outcome=\"delivered\"", 1.0)
        .await;
    let log: String = world.nodes.iter().map(|node| node.log()).collect();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains("follow-me"))
        .collect();
    for stage in ["postrider_router", "postrider_deliverer"] {
        assert!(
            lines.iter().any(|line| line.contains(stage)),
            "no line of {stage} in {lines:#?}"
        );
    }
    assert!(
        lines.iter().any(|line| line.contains(&sub.id)),
        "no subscription in {lines:#?}"
    );
    world.finish().await;
}

async fn changes_take_effect_everywhere(world: World) {
    let sub = world
        .subscribe("/before", &["appointment.*"], json!({}))
        .await;
    let first = world.publish(json!({"type": "appointment.created"})).await;
    world.expect(&sub, &first, Fate::Delivered);
    world.receiver.wait_for("/before", 1).await;

    let path = format!("/v1/subscriptions/{}", sub.id);
    let patch = json!({"target_url": world.receiver.url("/after"), "events": ["payment.*"]});
    let changed = world.call("PATCH", &path, Some(patch)).await.expect(200);
    world.known(&changed).await;
    world.publish(json!({"type": "appointment.created"})).await;
    let second = world.publish(json!({"type": "payment.paid"})).await;
    let moved = Sub {
        path: "/after".into(),
        ..sub.clone()
    };
    world.expect(&moved, &second, Fate::Delivered);
    world.receiver.wait_for("/after", 1).await;

    let paused = world
        .call("POST", &format!("{path}/pause"), None)
        .await
        .expect(200);
    assert_eq!(paused["state"], "paused");
    world.known(&paused).await;
    let held = world.publish(json!({"type": "payment.paid"})).await;
    world.expect(&moved, &held, Fate::Delivered);
    world
        .wait_for_metric("postrider_parked_total", "", 1.0)
        .await;
    assert_eq!(
        world.receiver.requests("/after").len(),
        1,
        "a paused subscription is not sent to"
    );
    world
        .call("POST", &format!("{path}/resume"), None)
        .await
        .expect(200);
    world.receiver.wait_for("/after", 2).await;

    world.call("DELETE", &path, None).await.expect(204);
    world.call("GET", &path, None).await.expect(404);
    world.wait_for_gone().await;
    world.publish(json!({"type": "payment.paid"})).await;
    world
        .wait_for_metric("postrider_events_unmatched_total", "", 2.0)
        .await;
    world.finish().await;
}
