//! What became of each delivery is on record: every end, every attempt, and nothing missing after
//! a kill.

use std::time::{Duration, Instant};

use event::{
    DeliveryId, EventId, SubscriptionId, Tenant,
    reason::{DeadReason, DeliveryState as State},
    subscription::View,
};
use serde_json::json;
use store::{Sight, Store, log::DeliveryRecord};

use crate::support::{
    receiver::Answer,
    world::{Fate, Kind, Sub, TENANT, World},
};

/// Each scenario on both brokers, everything remembered.
macro_rules! remembered {
    ($($name:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::world(super::Kind::Embedded).await).await;
            })+
        }
        mod rabbitmq {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::world(super::Kind::Rabbit).await).await;
            })+
        }
    };
}

remembered!(
    every_end_and_every_attempt_is_on_record,
    what_is_held_is_on_record_until_it_is_delivered,
    a_killed_deliverer_leaves_no_gap,
);

async fn world(kind: Kind) -> World {
    World::with(kind, 1, &[("recorder.archive", "full".to_owned())]).await
}

/// The store of a running world, as another process sees it.
async fn store(world: &World) -> Store {
    let url = match world.kind {
        Kind::Rabbit => world.setting("store.url").to_owned(),
        Kind::Embedded => {
            let folder = world.setting("broker.url").replace("embedded://", "");
            format!("sqlite://{folder}/postrider.db")
        }
    };
    let settings = store::Settings {
        url,
        ..store::Settings::default()
    };
    Store::open(&settings).await.expect("the store opens")
}

fn delivery(event: &str, sub: &Sub) -> DeliveryId {
    DeliveryId::of(
        &Tenant::parse(TENANT).expect("a tenant"),
        &EventId::parse(event).expect("an id"),
        &SubscriptionId::parse(&sub.id).expect("an id"),
    )
}

/// Waits until a delivery is on record in this state.
async fn recorded(store: &Store, event: &str, sub: &Sub, state: State) -> DeliveryRecord {
    let id = delivery(event, sub);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = store
            .delivery(&Sight::All, &id)
            .await
            .expect("the store answers");
        match found {
            Some(found) if found.delivery.state == state => return found,
            found => assert!(
                Instant::now() < deadline,
                "{event} never {state}: {found:#?}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn every_end_and_every_attempt_is_on_record(mut world: World) {
    world.receiver.plan(
        "/late",
        [Answer::status(503), Answer::status(200).saying("thanks")],
    );
    world.receiver.plan("/gone", [Answer::status(410)]);
    let all = &["*"];
    let retry = json!({
        "delivery": {"retry": {"delays": ["1s"]}}, "headers": {"x-api-key": "hunter2"},
    });
    let late = world.subscribe("/late", all, retry).await;
    let gone = world.subscribe("/gone", all, json!({})).await;
    let other = json!({"filter": {"actions": ["updated"]}});
    let filtered = world.subscribe("/filtered", all, other).await;
    let id = world.publish(json!({"type": "appointment.created"})).await;
    world.expect(&late, &id, Fate::Delivered);
    world.expect(&gone, &id, Fate::Dead);
    world.expect(&filtered, &id, Fate::Filtered);

    let store = store(&world).await;
    let delivered = recorded(&store, &id, &late, State::Delivered).await;
    let made: Vec<_> = delivered
        .history
        .iter()
        .map(|made| (made.attempt.number, made.attempt.status))
        .collect();
    assert_eq!(made, [(1, Some(503)), (2, Some(200))]);
    let last = &delivered.history[1].attempt;
    let request = world.receiver.requests("/late").remove(1);
    assert_eq!(
        last.body_hash,
        blake3::hash(&request.body).to_hex().as_str()
    );
    assert_eq!(
        (last.view, last.response.as_deref()),
        (View::Full, Some("thanks"))
    );
    assert!(last.timing.first_byte.is_some());
    let header = |name: &str| {
        let found = last.request_headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_default()
    };
    assert_eq!(header("x-api-key"), "***");
    assert_eq!(
        header("webhook-signature"),
        request.header("webhook-signature")
    );
    let dead = recorded(&store, &id, &gone, State::Dead).await;
    assert_eq!(dead.delivery.reason, Some(DeadReason::Gone));
    assert_eq!(dead.history.len(), 1);
    let stopped = recorded(&store, &id, &filtered, State::Filtered).await;
    assert_eq!(stopped.delivery.clause.as_deref(), Some("actions"));
    assert_eq!(stopped.history.len(), 0);

    assert!(!world.deliverer().log().contains("hunter2"));
    world.finish().await;
}

async fn what_is_held_is_on_record_until_it_is_delivered(world: World) {
    let sub = world.subscribe("/held", &["*"], json!({})).await;
    let pause = format!("/v1/subscriptions/{}/pause", sub.id);
    let paused = world.call("POST", &pause, None).await.expect(200);
    world.known(&paused).await;
    let id = world.publish(json!({"type": "appointment.created"})).await;
    let store = store(&world).await;
    let held = recorded(&store, &id, &sub, State::Held).await;
    assert_eq!(
        held.delivery.detail.as_deref(),
        Some("the subscription is paused")
    );
    assert_eq!((held.delivery.attempts, held.history.len()), (0, 0));
    let resume = format!("/v1/subscriptions/{}/resume", sub.id);
    world.call("POST", &resume, None).await.expect(200);
    recorded(&store, &id, &sub, State::Delivered).await;
    world.expect(&sub, &id, Fate::Delivered);
    world.finish().await;
}

async fn a_killed_deliverer_leaves_no_gap(mut world: World) {
    const EVENTS: usize = 400;
    let answer = Answer::status(200).after(Duration::from_millis(3));
    world.receiver.plan("/stream", [answer]);
    let sub = world.subscribe("/stream", &["*"], json!({})).await;
    let event = |n: usize| json!({"id": format!("k-{n}"), "tenant": TENANT, "type": "appointment.created", "data": n});
    let events: Vec<_> = (0..EVENTS).map(event).collect();
    world
        .call("POST", "/v1/events", Some(json!(events)))
        .await
        .expect(202);
    world.receiver.wait_for("/stream", EVENTS / 4).await;
    world.deliverer().kill9();
    world.deliverer().start_again().await;
    let store = store(&world).await;
    for n in 0..EVENTS {
        let id = format!("k-{n}");
        world.expect(&sub, &id, Fate::Delivered);
        let record = recorded(&store, &id, &sub, State::Delivered).await;
        assert_eq!(record.delivery.attempts, 1, "{record:#?}");
        assert!(!record.history.is_empty(), "{id} has no attempt on record");
    }
    world.settle().await;
}
