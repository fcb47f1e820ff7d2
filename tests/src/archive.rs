//! Everything that was routed is on its way to the recorder: exactly once without faults, and
//! nothing missing after a kill.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use broker::{Broker, Parcel, Queue, Route};
use event::log::{ArchiveBatch, Archived};
use serde_json::{Value, json};

use crate::support::world::{Kind, World};

/// Makes each scenario a test on the embedded broker and one on RabbitMQ with PostgreSQL.
macro_rules! without_recorder {
    ($($name:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::support::world::Kind::Embedded).await;
            })+
        }
        mod rabbitmq {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::support::world::Kind::Rabbit).await;
            })+
        }
    };
}

without_recorder!(
    every_routed_event_is_archived_once,
    headers_have_no_payload_and_off_has_nothing,
    a_killed_router_leaves_nothing_out,
);

fn archive(mode: &str) -> [(&'static str, String); 1] {
    [("recorder.archive", mode.to_owned())]
}

fn batch(prefix: &str, from: usize) -> Value {
    let events = (from..from + 50).map(|n| {
        // Every third has nobody who wants it.
        let kind = ["appointment.created", "payment.paid", "nobody.cares"][n % 3];
        json!({"id": format!("{prefix}-{n}"), "tenant": "salon-17", "type": kind, "data": {"n": n}})
    });
    events.collect()
}

/// What is left when every process has ended.
struct Left {
    /// What waits for the recorder, by event id.
    archived: BTreeMap<String, Vec<Archived>>,
    /// The ids of what was not routed yet.
    inbox: BTreeSet<String>,
}

async fn left(mut world: World) -> Left {
    for node in world.nodes.iter_mut().filter(|node| node.is_running()) {
        node.drain().await;
    }
    let settings = broker::Settings {
        url: world.setting("broker.url").to_owned(),
        ..broker::Settings::default()
    };
    let broker = Broker::open(&settings).await.expect("the broker opens");
    let mut status = broker.status();
    let connected = status.wait_for(|now| now.connected);
    connected.await.expect("the broker is there");
    let mut archived: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for body in bodies(&broker, Queue::Archive, Route::Archive).await {
        let batch: ArchiveBatch = serde_json::from_slice(&body).expect("an archive batch");
        for one in batch.events {
            archived
                .entry(one.event.id.to_string())
                .or_default()
                .push(one);
        }
    }
    let routing_key = "the.last".to_owned();
    let mut inbox = BTreeSet::new();
    for body in bodies(&broker, Queue::Inbox, Route::Events { routing_key }).await {
        let events: Value = serde_json::from_slice(&body).expect("JSON");
        let events = events.as_array().cloned().unwrap_or(vec![events]);
        let ids = events.iter().filter_map(|event| event["id"].as_str());
        inbox.extend(ids.map(str::to_owned));
    }
    broker.close().await;
    Left { archived, inbox }
}

/// Everything that a queue holds, told by a last message that is put behind it.
async fn bodies(broker: &Broker, queue: Queue, route: Route) -> Vec<Vec<u8>> {
    let last = Parcel::json(route, "last", "\"the last\"");
    let published = broker.publisher().publish(last).await;
    published.expect("the broker takes it");
    let mut consumer = broker.consume(queue, 1000).await;
    let mut bodies = Vec::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(60), consumer.next());
        let message = next.await.expect("in time").expect("a message");
        let is_last = message.body == "\"the last\"";
        if !is_last {
            bodies.push(message.body.to_vec());
        }
        message.ticket.ack();
        if is_last {
            return bodies;
        }
    }
}

async fn every_routed_event_is_archived_once(kind: Kind) {
    let world = World::without_recorder(kind, &archive("full")).await;
    let sub = world.subscribe("/in", &["appointment.*"], json!({})).await;
    for from in (0..500).step_by(50) {
        let accepted = world
            .call("POST", "/v1/events", Some(batch("e", from)))
            .await;
        accepted.expect(202);
    }
    for n in 500..520 {
        let id = format!("e-{n}");
        let event = json!({"id": id, "type": "appointment.created", "data": {"n": n}});
        assert_eq!(world.publish(event).await, id);
    }
    world
        .wait_for_metric("postrider_events_routed_total", "", 520.0)
        .await;
    assert_eq!(
        world.metric("postrider_archived_events_total", "").await,
        520.0
    );
    let seen = left(world).await.archived;
    assert_eq!(seen.len(), 520);
    for (id, archived) in seen {
        let [one] = &archived[..] else {
            panic!("{id} came {} times", archived.len())
        };
        let n: usize = id
            .strip_prefix("e-")
            .and_then(|n| n.parse().ok())
            .expect("a number");
        let wanted = n >= 500 || n.is_multiple_of(3);
        let matched: Vec<_> = one.matched.iter().map(|id| id.as_str()).collect();
        let want = if wanted {
            vec![sub.id.as_str()]
        } else {
            Vec::new()
        };
        assert_eq!(matched, want, "{id}");
        assert_eq!(
            one.event.data.as_ref().expect("data").get(),
            format!("{{\"n\":{n}}}")
        );
    }
}

async fn headers_have_no_payload_and_off_has_nothing(kind: Kind) {
    for mode in ["headers", "off"] {
        let world = World::without_recorder(kind, &archive(mode)).await;
        world.subscribe("/in", &["*"], json!({})).await;
        let id = world
            .publish(json!({"type": "appointment.created", "subject": 7}))
            .await;
        world.receiver.wait_for("/in", 1).await;
        let seen = left(world).await.archived;
        if mode == "off" {
            assert!(seen.is_empty(), "{seen:?}");
            continue;
        }
        let event = &seen[&id][0].event;
        assert!(event.data.is_none() && event.subject.is_some());
        assert!(seen[&id][0].bytes > 100);
    }
}

async fn a_killed_router_leaves_nothing_out(kind: Kind) {
    const EVENTS: usize = 3000;
    let mut world = World::without_recorder(kind, &archive("full")).await;
    world.subscribe("/in", &["appointment.*"], json!({})).await;
    let api = world.nodes[0].api();
    let stream = tokio::spawn(async move {
        let client = crate::support::world::client();
        for from in (0..EVENTS).step_by(50) {
            loop {
                let request = client
                    .post(format!("{api}/v1/events"))
                    .header("content-type", "application/json")
                    .body(batch("k", from).to_string());
                match request.send().await {
                    Ok(answer) if answer.status().is_success() => break,
                    _ => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        }
    });
    for kill in 1..=3 {
        // Counted from the start of each process.
        let routed = async {
            while world.metric("postrider_events_routed_total", "").await < 300.0
                && !stream.is_finished()
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let routed = tokio::time::timeout(Duration::from_secs(60), routed).await;
        assert!(routed.is_ok(), "nothing is routed before kill {kill}");
        world.router().kill9();
        world.router().start_again().await;
    }
    stream.await.expect("the stream ends by itself");
    world.receiver.wait_for("/in", EVENTS / 3).await;
    let left = left(world).await;
    let missing: Vec<_> = (0..EVENTS)
        .map(|n| format!("k-{n}"))
        .filter(|id| !left.archived.contains_key(id) && !left.inbox.contains(id))
        .collect();
    assert!(
        missing.is_empty(),
        "{} are missing: {missing:?}",
        missing.len()
    );
    assert!(left.archived.len() >= EVENTS / 3);
}
