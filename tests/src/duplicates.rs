//! The same tenant and id is routed once, however it comes in and whoever takes it; another event
//! with a taken id is refused, and without the store everything goes on.

use std::time::Duration;

use broker::{Broker, Parcel, Route};
use serde_json::{Value, json};

use crate::{
    delivers::on_both,
    support::{
        node::Node,
        postgres::Postgres,
        rabbit,
        world::{Fate, Kind, TENANT, World, client},
    },
};

on_both!(
    the_same_event_over_http_is_taken_once,
    from_both_sides_at_once_each_event_arrives_once,
);

async fn the_same_event_over_http_is_taken_once(world: World) {
    let sub = world.subscribe("/once", &["*"], json!({})).await;
    let event =
        |id: &str, n: u32| json!({"id": id, "tenant": TENANT, "type": "a.b", "data": {"n": n}});
    let post = async |body: Value| world.call("POST", "/v1/events", Some(body)).await;
    let taken = post(event("e1", 1)).await.expect(202);
    assert_eq!(taken, json!({"accepted": 1, "ids": ["e1"]}));
    let again = post(event("e1", 1)).await.expect(200);
    assert_eq!(
        again,
        json!({"accepted": 0, "ids": ["e1"], "duplicate": true})
    );
    let other = post(event("e1", 2)).await;
    assert_eq!(
        (other.status, &other.json["code"]),
        (409, &json!("id_conflict"))
    );
    assert_eq!(other.headers["content-type"], "application/problem+json");
    // After the router made the claim its own, nothing is different.
    world.receiver.wait_for("/once", 1).await;
    post(event("e1", 1)).await.expect(200);
    let mixed = post(json!([event("e1", 1), event("e2", 1)]))
        .await
        .expect(202);
    assert_eq!(
        mixed,
        json!({"accepted": 1, "ids": ["e1", "e2"], "duplicates": ["e1"]})
    );
    let refused = post(json!([event("e3", 1), event("e2", 2)])).await;
    assert_eq!(
        (refused.status, &refused.json["errors"][0]["pointer"]),
        (409, &json!("/1/id"))
    );
    post(event("e3", 1)).await.expect(202);
    let elsewhere = json!({"id": "e1", "tenant": "salon-18", "type": "a.b", "data": {"n": 9}});
    post(elsewhere).await.expect(202);
    for id in ["e1", "e2", "e3"] {
        world.expect(&sub, id, Fate::Delivered);
    }
    assert_eq!(
        world.metric("postrider_events_duplicate_total", "").await,
        3.0
    );
    assert_eq!(world.metric("postrider_quarantined_total", "").await, 0.0);
    world.finish().await;
}

/// Two intakes and two routers on RabbitMQ, one process embedded: each event is posted twice to
/// each intake.
async fn from_both_sides_at_once_each_event_arrives_once(mut world: World) {
    const EVENTS: usize = 500;
    let settings = world.settings.clone();
    if world.kind == Kind::Rabbit {
        for role in ["producer", "router"] {
            world.nodes.push(Node::start(role, &settings).await);
        }
    }
    let more = json!({"delivery": {"max_in_flight": 64}});
    let sub = world.subscribe("/once", &["*"], more).await;
    let first = world.nodes[0].api();
    let second = match world.kind {
        Kind::Rabbit => world.nodes[3].api(),
        Kind::Embedded => first.clone(),
    };
    let posters = [first, second]
        .into_iter()
        .flat_map(|api| [api.clone(), api]);
    let posters = posters.map(|api| tokio::spawn(post_all(api, EVENTS)));
    let mut published = 0;
    for poster in posters.collect::<Vec<_>>() {
        published += poster.await.expect("every post is taken");
    }
    for n in 0..EVENTS {
        world.expect(&sub, &format!("e-{n}"), Fate::Delivered);
    }
    assert!(published >= EVENTS, "{published} were taken as new");
    let repeated = 4 * EVENTS - EVENTS;
    let metric = "postrider_events_duplicate_total";
    world.wait_for_metric(metric, "", repeated as f64).await;
    assert_eq!(world.metric(metric, "").await, repeated as f64);
    world.finish().await;
}

/// Posts every event once, in batches of a few; returns how many were said to be new.
async fn post_all(api: String, events: usize) -> usize {
    let client = client();
    let mut new = 0;
    for from in (0..events).step_by(5) {
        let batch: Vec<_> = (from..from + 5)
            .map(|n| json!({"id": format!("e-{n}"), "tenant": TENANT, "type": "a.b", "data": n}))
            .collect();
        let request = client
            .post(format!("{api}/v1/events"))
            .header("content-type", "application/json")
            .body(json!(batch).to_string());
        let answer = request.send().await.expect("the API answers");
        assert!(answer.status().is_success(), "{}", answer.status());
        let body = answer.bytes().await.expect("the API answers whole");
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        new += body["accepted"].as_u64().expect("a number") as usize;
    }
    new
}

/// Publishes as a service would, that knows nothing of claims.
pub(crate) async fn publish(url: &str, events: &[Value]) {
    let settings = broker::Settings {
        url: url.to_owned(),
        ..broker::Settings::default()
    };
    let broker = Broker::open(&settings).await.expect("the broker opens");
    let mut status = broker.status();
    let connected = status.wait_for(|now| now.connected);
    connected.await.expect("the broker is there");
    for event in events {
        let text = |key: &str| event[key].as_str().expect("a text").to_owned();
        let routing_key = text("type");
        let parcel = Parcel::json(Route::Events { routing_key }, text("id"), event.to_string());
        let published = broker.publisher().publish(parcel).await;
        published.expect("the broker takes it");
    }
    broker.close().await;
}

fn event(id: &str, n: u32) -> Value {
    json!({"id": id, "tenant": TENANT, "type": "a.b", "data": {"n": n}})
}

#[tokio::test]
async fn the_same_event_over_amqp_is_routed_once_and_a_conflict_quarantined() {
    let world = World::start(Kind::Rabbit).await;
    let sub = world.subscribe("/once", &["*"], json!({})).await;
    let (same, other, last) = (event("e1", 1), event("e1", 2), event("last", 1));
    let events = [
        same.clone(),
        same.clone(),
        other.clone(),
        same.clone(),
        last,
    ];
    publish(world.setting("broker.url"), &events).await;
    world.expect(&sub, "e1", Fate::Delivered);
    world.expect(&sub, "last", Fate::Delivered);
    world.receiver.wait_for("/once", 2).await;
    assert_eq!(
        world.metric("postrider_events_duplicate_total", "").await,
        2.0
    );
    let conflicts = r#"reason="id_conflict""#;
    assert_eq!(
        world.metric("postrider_quarantined_total", conflicts).await,
        1.0
    );
    let quarantined = loop {
        if let [one] = &world.items("/v1/quarantine").await[..] {
            break one.clone();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let path = format!(
        "/v1/quarantine/{}",
        quarantined["id"].as_str().expect("an id")
    );
    let shown = world.call("GET", &path, None).await.expect(200);
    assert_eq!(shown["reason"], "id_conflict");
    assert_eq!(shown["body"], other.to_string());
    // And by the other way in: the intake knows what came over AMQP.
    world
        .call("POST", "/v1/events", Some(same))
        .await
        .expect(200);
    world
        .call("POST", "/v1/events", Some(other))
        .await
        .expect(409);
    world.finish().await;
}

#[tokio::test]
async fn without_the_store_routing_goes_on_and_says_so() {
    let postgres = Postgres::start().await;
    let settings = vec![
        ("broker.url", rabbit::fresh_vhost_url().await),
        ("store.url", postgres.fresh_database_url().await),
    ];
    let world = World::around(Kind::Rabbit, settings).await;
    let sub = world.subscribe("/on", &["*"], json!({})).await;
    let url = world.setting("broker.url").to_owned();
    publish(&url, &[event("before", 1)]).await;
    world.receiver.wait_for("/on", 1).await;
    assert_eq!(world.metric("postrider_dedup_off", "").await, 0.0);

    postgres.stop().await;
    publish(&url, &[event("during", 1)]).await;
    world.receiver.wait_for("/on", 2).await;
    world.wait_for_metric("postrider_dedup_off", "", 1.0).await;
    publish(&url, &[event("during", 1)]).await;
    world.receiver.wait_for("/on", 3).await;

    postgres.start_again().await;
    let back = async {
        while world.metric("postrider_dedup_off", "").await > 0.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let back = tokio::time::timeout(Duration::from_secs(60), back).await;
    assert!(back.is_ok(), "dedup stays off");
    publish(&url, &[event("after", 1), event("after", 1)]).await;
    world
        .wait_for_metric("postrider_events_duplicate_total", "", 1.0)
        .await;
    for id in ["before", "during", "after"] {
        world.expect(&sub, id, Fate::Delivered);
    }
    let duplicates = world.settle().await;
    assert_eq!(
        duplicates, 1,
        "of the event that was published twice meanwhile"
    );
}
