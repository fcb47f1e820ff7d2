//! Recording is on nobody's path: the store may be away and recorders may be killed, deliveries go
//! on, and afterwards the log has neither a gap nor a double.

use std::time::{Duration, Instant};

use broker::{Broker, Parcel, Route, publish_until_taken};
use serde_json::{Value, json};

use crate::{
    delivers::on_both,
    support::{
        node::Node,
        postgres::Postgres,
        rabbit,
        receiver::Answer,
        world::{Fate, Kind, Sub, TENANT, World},
    },
};

on_both!(what_only_fails_is_disabled_and_told_to_who_listens);

async fn publish_many(world: &World, sub: &Sub, prefix: &str, count: usize) {
    for batch in (0..count).collect::<Vec<_>>().chunks(50) {
        let event = |n: &usize| {
            json!({
                "id": format!("{prefix}-{n}"), "tenant": TENANT, "type": "appointment.created",
                "data": {"n": n},
            })
        };
        let events: Vec<_> = batch.iter().map(event).collect();
        let answer = world.call("POST", "/v1/events", Some(json!(events))).await;
        answer.expect(202);
        for n in batch {
            world.expect(sub, &format!("{prefix}-{n}"), Fate::Delivered);
        }
    }
}

#[tokio::test]
async fn while_the_store_is_away_deliveries_go_on_and_the_queues_hold_the_log() {
    let postgres = Postgres::start().await;
    let settings = vec![
        ("broker.url", rabbit::fresh_vhost_url().await),
        ("store.url", postgres.url()),
    ];
    let world = World::around(Kind::Rabbit, settings).await;
    let sub = world.subscribe("/on", &["*"], json!({})).await;
    publish_many(&world, &sub, "before", 50).await;
    world.receiver.wait_for("/on", 50).await;

    postgres.stop().await;
    // Without the store HTTP callers cannot be told apart; services publish to the broker.
    let broker = Broker::open(&broker::Settings {
        url: world.setting("broker.url").to_owned(),
        ..broker::Settings::default()
    })
    .await
    .expect("the broker opens");
    for n in 0..500 {
        let id = format!("away-{n}");
        let event = json!({
            "id": id, "tenant": TENANT, "type": "appointment.created", "data": {"n": n},
        });
        let route = Route::Events {
            routing_key: "appointment.created".into(),
        };
        let parcel = Parcel::json(route, id.clone(), event.to_string());
        publish_until_taken(&*broker.publisher(), parcel)
            .await
            .expect("taken");
        world.expect(&sub, &id, Fate::Delivered);
    }
    broker.close().await;
    world.receiver.wait_for("/on", 550).await;
    world
        .wait_for_metric("postrider_recorder_lag_seconds", "", 0.001)
        .await;

    postgres.start_again().await;
    // The law from the store alone is part of the end.
    world.finish().await;
}

#[tokio::test]
async fn recorders_killed_again_and_again_leave_no_gap_and_no_double() {
    const EVENTS: usize = 3_000;
    let mut world = World::start(Kind::Rabbit).await;
    for _ in 0..2 {
        let node = Node::start("recorder", &world.settings).await;
        world.nodes.push(node);
    }
    // As many failures as there are events; then all is well.
    let answers = std::iter::repeat_n(Answer::status(503), EVENTS).chain([Answer::status(200)]);
    world.receiver.plan("/twice", answers);
    let more = json!({"delivery": {"retry": {"delays": ["1s", "1s", "1s", "1s", "1s", "1s"]}, "disable_after": "never"}});
    let sub = world.subscribe("/twice", &["*"], more).await;
    for part in 0..6 {
        publish_many(&world, &sub, &format!("k{part}"), EVENTS / 6).await;
        let recorder = world.nodes.len() - 1 - part % 2;
        world.nodes[recorder].kill9();
        world.nodes[recorder].start_again().await;
    }
    let deadline = Instant::now() + Duration::from_secs(120);
    while states(&world).await != json!({ "delivered": EVENTS }) {
        assert!(Instant::now() < deadline, "{}", states(&world).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Every attempt that was really made is on record, once.
    let requests = world.receiver.requests("/twice");
    let mut recorded = 0;
    for row in world
        .items("/v1/deliveries?limit=500")
        .await
        .iter()
        .step_by(10)
    {
        let (id, event) = (text(row, "id"), text(row, "event_id"));
        let path = format!("/v1/deliveries/{id}");
        let shown = world.call("GET", &path, None).await.expect(200);
        let attempts = shown["history"].as_array().map_or(0, Vec::len);
        let made = requests.iter().filter(|r| r.event_id() == event).count();
        assert_eq!(attempts, made, "{shown:#}");
        recorded += attempts;
    }
    assert!(recorded >= EVENTS / 10);
    world.finish().await;
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

/// How many deliveries are in each state.
async fn states(world: &World) -> Value {
    let mut counts = serde_json::Map::new();
    for row in world.items("/v1/deliveries?limit=500").await {
        let count = counts.entry(text(&row, "state")).or_insert(json!(0));
        *count = json!(count.as_u64().unwrap_or(0) + 1);
    }
    counts.into()
}

async fn what_only_fails_is_disabled_and_told_to_who_listens(world: World) {
    world.receiver.plan("/down", [Answer::status(500)]);
    let more = json!({"delivery": {"retry": "none", "disable_after": {"failures": 3}}});
    let failing = world.subscribe("/down", &["payment.*"], more).await;
    let words = ["postrider.subscription_disabled", "delivery.dead_lettered"];
    let listener = world.subscribe("/ops", &words, json!({})).await;
    for _ in 0..3 {
        let id = world.publish(json!({"type": "payment.paid"})).await;
        world.expect(&failing, &id, Fate::Dead);
    }
    let told = world.receiver.wait_for("/ops", 4).await;
    let mut kinds: Vec<_> = told.iter().map(|r| r.json()["type"].to_string()).collect();
    kinds.sort();
    let dead = r#""delivery.dead_lettered""#;
    assert_eq!(
        kinds,
        [dead, dead, dead, r#""postrider.subscription_disabled""#]
    );
    for request in &told {
        world.expect(&listener, request.event_id(), Fate::Delivered);
        let body = request.json();
        assert_eq!(body["data"]["subscription_id"], failing.id, "{body:#}");
    }
    let path = format!("/v1/subscriptions/{}", failing.id);
    let shown = world.call("GET", &path, None).await.expect(200);
    assert_eq!(shown["state"], "disabled");
    let reason = text(&shown, "disabled_reason");
    assert!(
        reason.starts_with("3 deliveries in a row failed"),
        "{reason}"
    );
    world.finish().await;
}
