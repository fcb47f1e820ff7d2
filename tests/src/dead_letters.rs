//! What cannot be delivered is kept with its history, and a redrive delivers it.

use serde_json::json;

use crate::{
    delivers::on_both,
    support::{
        receiver::Answer,
        world::{Fate, World},
    },
};

on_both!(
    the_exhausted_dies_with_its_history_and_a_redrive_delivers_it,
    gone_dies_at_once_and_disables,
    what_expired_is_not_sent,
    a_deleted_subscription_ends_its_deliveries,
    many_are_redriven_by_filter,
);

async fn the_exhausted_dies_with_its_history_and_a_redrive_delivers_it(world: World) {
    world.receiver.plan("/down", [Answer::status(500)]);
    let more = json!({"delivery": {"retry": {"delays": ["1s", "1s"]}}});
    let sub = world.subscribe("/down", &["*"], more).await;
    let event = r#"{"id":"e1","tenant":"salon-17","type":"payment.paid","data":{"amount": 12.10}}"#;
    let body = Some(("application/json", event.as_bytes().to_vec()));
    world
        .send("POST", "/v1/events", body, None)
        .await
        .expect(202);
    let id = "e1".to_owned();
    let letter = world.wait_for_dead(1).await.remove(0);
    assert_eq!(letter["reason"], "exhausted", "{letter:#}");
    assert_eq!(letter["state"], "dead");
    assert_eq!(letter["attempts"], 3);
    assert_eq!(letter["event_id"], json!(id));
    assert_eq!(letter["subscription_id"], json!(sub.id));
    assert_eq!(letter["tenant"], "salon-17");
    assert_eq!(letter["type"], "payment.paid");

    let path = format!("/v1/dead-letters/{}", letter["id"].as_str().expect("an id"));
    let shown = world.call("GET", &path, None).await.expect(200);
    let history = shown["history"].as_array().expect("a history");
    assert_eq!(history.len(), 3);
    for (n, attempt) in history.iter().enumerate() {
        assert_eq!(attempt["number"], n + 1);
        assert_eq!(attempt["status"], 500);
        assert_eq!(attempt["error"], "status");
    }
    assert_eq!(shown["event"]["data"].to_string(), r#"{"amount":12.1}"#);

    world.receiver.plan("/down", [Answer::status(200)]);
    let redriven = world.call("POST", &format!("{path}/redrive"), None).await;
    assert!((200..300).contains(&redriven.status), "{redriven:?}");
    let requests = world.receiver.wait_for("/down", 4).await;
    assert!(
        String::from_utf8_lossy(&requests[3].body).contains(r#"{"amount": 12.10}"#),
        "bytes kept"
    );
    world.expect(&sub, &id, Fate::Delivered);
    world.call("GET", &path, None).await.expect(404);
    assert!(world.dead_letters().await.is_empty());
    world.finish().await;
}

async fn gone_dies_at_once_and_disables(world: World) {
    world.receiver.plan("/gone", [Answer::status(410)]);
    let sub = world.subscribe("/gone", &["*"], json!({})).await;
    let id = world.publish(json!({"type": "payment.paid"})).await;
    world.expect(&sub, &id, Fate::Dead);
    let letter = world.wait_for_dead(1).await.remove(0);
    assert_eq!(letter["reason"], "gone");
    assert_eq!(letter["attempts"], 1);
    let path = format!("/v1/subscriptions/{}", sub.id);
    let disabled = loop {
        let shown = world.call("GET", &path, None).await.expect(200);
        if shown["state"] == "disabled" {
            break shown;
        }
        tokio::task::yield_now().await;
    };
    assert!(
        disabled["disabled_reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("410"))
    );
    world.known(&disabled).await;

    // What matches meanwhile is held, and resuming delivers it.
    let held = world.publish(json!({"type": "payment.paid"})).await;
    world.expect(&sub, &held, Fate::Delivered);
    world
        .wait_for_metric("postrider_parked_total", "", 1.0)
        .await;
    assert_eq!(world.receiver.requests("/gone").len(), 1);
    world.receiver.plan("/gone", [Answer::status(200)]);
    world
        .call("POST", &format!("{path}/resume"), None)
        .await
        .expect(200);
    world.receiver.wait_for("/gone", 2).await;
    world.finish().await;
}

async fn what_expired_is_not_sent(world: World) {
    world.receiver.plan("/late", [Answer::status(500)]);
    let more = json!({"delivery": {"retry": {"delays": ["5s", "5s", "5s"]}}});
    let sub = world.subscribe("/late", &["*"], more).await;
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2);
    let id = world
        .publish(json!({"type": "payment.paid", "expires_at": soon.to_string()}))
        .await;
    let past = world
        .publish(json!({"type": "payment.paid", "expires_at": "2026-01-01T00:00:00Z"}))
        .await;
    world.expect(&sub, &id, Fate::Dead);
    world.expect(&sub, &past, Fate::Dead);
    let letters = world.wait_for_dead(2).await;
    for letter in &letters {
        assert_eq!(letter["reason"], "expired", "{letter:#}");
    }
    let requests = world.receiver.requests("/late");
    assert!(
        requests.iter().all(|request| request.event_id() == id),
        "expired before it was sent"
    );
    world.finish().await;
}

async fn a_deleted_subscription_ends_its_deliveries(world: World) {
    world.receiver.plan("/left", [Answer::status(500)]);
    let more = json!({"delivery": {"retry": {"delays": ["3s", "3s", "3s"]}}});
    let sub = world.subscribe("/left", &["*"], more).await;
    let id = world.publish(json!({"type": "payment.paid"})).await;
    world.receiver.wait_for("/left", 1).await;
    world
        .call("DELETE", &format!("/v1/subscriptions/{}", sub.id), None)
        .await
        .expect(204);
    world.wait_for_gone().await;
    let seen = world.receiver.requests("/left").len();
    let letter = world.wait_for_dead(1).await.remove(0);
    assert_eq!(letter["reason"], "subscription_deleted");
    assert_eq!(letter["event_id"], json!(id));
    assert_eq!(
        world.receiver.requests("/left").len(),
        seen,
        "sent after the subscription was gone"
    );
    let path = format!(
        "/v1/dead-letters/{}/redrive",
        letter["id"].as_str().expect("an id")
    );
    world.call("POST", &path, None).await.expect(409);
    world.finish().await;
}

async fn many_are_redriven_by_filter(world: World) {
    for path in ["/a", "/b"] {
        world.receiver.plan(path, [Answer::status(400)]);
    }
    let more = json!({"delivery": {"retry": "none"}});
    let a = world.subscribe("/a", &["*"], more.clone()).await;
    let b = world.subscribe("/b", &["*"], more).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(world.publish(json!({"type": "payment.paid"})).await);
    }
    world.wait_for_dead(40).await;
    for path in ["/a", "/b"] {
        world.receiver.plan(path, [Answer::status(200)]);
    }
    let filter = json!({"subscription_id": a.id, "reason": "exhausted"});
    let answer = world
        .call("POST", "/v1/dead-letters/redrive", Some(filter))
        .await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    assert_eq!(answer.json["redriven"], 20);
    for id in &ids {
        world.expect(&a, id, Fate::Delivered);
        world.expect(&b, id, Fate::Dead);
    }
    world.receiver.wait_for("/a", 40).await;
    assert_eq!(world.dead_letters().await.len(), 20);
    world.finish().await;
}
