//! Kill anything at any time: nothing is lost, and duplicates stay within what was in flight.
//!
//! A stream of 5 000 events flows while a process or the broker is killed; afterwards every event
//! has reached the endpoint. The receiver answers after a few milliseconds, so that the kill finds
//! deliveries under way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;

use crate::support::{
    node::Node,
    postgres,
    rabbit::Rabbit,
    receiver::Answer,
    world::{Fate, Kind, Sub, World, client},
};

const EVENTS: usize = 5_000;

/// Publishes a numbered stream over HTTP and keeps at each event until it is accepted, as a
/// service would. What was accepted is in `accepted` afterwards.
struct Stream {
    task: tokio::task::JoinHandle<()>,
    sent: Arc<AtomicUsize>,
}

impl Stream {
    fn start(api: String, prefix: &'static str) -> Self {
        let sent = Arc::new(AtomicUsize::new(0));
        let sent_by = sent.clone();
        let task = tokio::spawn(async move {
            let client = client();
            for batch in 0..EVENTS / 50 {
                let events: Vec<_> = (0..50)
                    .map(|n| {
                        json!({
                            "id": format!("{prefix}-{}", batch * 50 + n), "tenant": "salon-17",
                            "type": "appointment.created", "data": {"n": batch * 50 + n},
                        })
                    })
                    .collect();
                let body = json!(events).to_string();
                loop {
                    let request = client
                        .post(format!("{api}/v1/events"))
                        .header("content-type", "application/json")
                        .body(body.clone());
                    match request.send().await {
                        // 200: the batch had been taken, and the answer was lost.
                        Ok(answer) if answer.status().is_success() => break,
                        // Away or blocked: the same batch again, as `Retry-After` asks.
                        _ => tokio::time::sleep(Duration::from_millis(100)).await,
                    }
                }
                sent_by.fetch_add(50, Ordering::Relaxed);
            }
        });
        Self { task, sent }
    }

    async fn reaches(&self, count: usize) {
        while self.sent.load(Ordering::Relaxed) < count {
            assert!(!self.task.is_finished(), "the stream ended early");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn finish(self) {
        self.task.await.expect("the stream ends by itself");
        assert_eq!(self.sent.load(Ordering::Relaxed), EVENTS);
    }
}

async fn subscribed(world: &World, prefix: &str) -> Sub {
    let answer = Answer::status(200).after(Duration::from_millis(3));
    world.receiver.plan("/stream", [answer]);
    let more = json!({"delivery": {"max_in_flight": 64}});
    let sub = world.subscribe("/stream", &["appointment.*"], more).await;
    for n in 0..EVENTS {
        world.expect(&sub, &format!("{prefix}-{n}"), Fate::Delivered);
    }
    sub
}

/// What one process may have under way: the deliveries of the bundles it holds unacknowledged.
/// The deliverer bounds them by a small multiple of `delivery.max_in_flight` (256).
const IN_FLIGHT: usize = 1024;
/// A router holds this many unacknowledged messages, of 50 events each in this stream, but only
/// those whose bundles were confirmed and not yet acknowledged come twice.
const ROUTED_IN_FLIGHT: usize = 8 * 32 + 50 * 8;

#[tokio::test]
async fn a_killed_router_loses_nothing() {
    let mut world = World::start(Kind::Rabbit).await;
    subscribed(&world, "r").await;
    let stream = Stream::start(world.nodes[0].api(), "r");
    for at in [1_000, 2_000, 3_000] {
        stream.reaches(at).await;
        world.router().kill9();
        world.router().start_again().await;
    }
    stream.finish().await;
    let duplicates = world.settle().await;
    assert!(
        duplicates <= 3 * ROUTED_IN_FLIGHT,
        "{duplicates} duplicates after 3 kills"
    );
}

#[tokio::test]
async fn a_deliverer_killed_mid_post_loses_nothing() {
    let mut world = World::start(Kind::Rabbit).await;
    subscribed(&world, "d").await;
    let stream = Stream::start(world.nodes[0].api(), "d");
    for at in [1_000, 2_000, 3_000] {
        stream.reaches(at).await;
        let receiver = world.receiver.clone();
        receiver
            .wait_until("a request under way", || {
                receiver.is_answering().then_some(())
            })
            .await;
        world.deliverer().kill9();
        world.deliverer().start_again().await;
    }
    stream.finish().await;
    let duplicates = world.settle().await;
    assert!(
        duplicates <= 3 * IN_FLIGHT,
        "{duplicates} duplicates after 3 kills"
    );
}

#[tokio::test]
async fn the_embedded_process_killed_loses_nothing() {
    let mut world = World::start(Kind::Embedded).await;
    subscribed(&world, "e").await;
    let stream = Stream::start(world.nodes[0].api(), "e");
    for at in [1_000, 2_000, 3_000] {
        stream.reaches(at).await;
        world.nodes[0].kill9();
        world.nodes[0].start_again().await;
    }
    stream.finish().await;
    let duplicates = world.settle().await;
    // The router may publish again what it had not acknowledged, and an HTTP batch whose answer
    // was cut off is published again by its sender.
    let bound = 3 * (IN_FLIGHT + ROUTED_IN_FLIGHT + 50);
    assert!(duplicates <= bound, "{duplicates} duplicates after 3 kills");
}

#[tokio::test]
async fn a_killed_broker_loses_nothing() {
    let rabbit = Rabbit::start().await;
    let settings = [
        ("broker.url", rabbit.url()),
        ("store.url", postgres::fresh_database_url().await),
    ];
    let mut world = World::around(Kind::Rabbit, settings.to_vec()).await;
    subscribed(&world, "b").await;
    // Killed earlier, the server brings its queues back unusable: not what is tested here.
    rabbit.queue_names_are_on_disk().await;
    let stream = Stream::start(world.nodes[0].api(), "b");
    stream.reaches(2_000).await;
    rabbit.kill9().await;
    assert_eq!(
        ready(&world.nodes[0]).await,
        503,
        "readiness is red while the broker is away"
    );
    rabbit.start_again().await;
    for node in &mut world.nodes {
        node.ready().await;
    }
    stream.finish().await;
    // Every process reconnects by itself.
    world
        .wait_for_metric("postrider_broker_reconnects_total", "", 3.0)
        .await;
    let duplicates = world.settle().await;
    let bound = IN_FLIGHT + ROUTED_IN_FLIGHT + 50;
    assert!(
        duplicates <= bound,
        "{duplicates} duplicates after the broker was killed"
    );
}

#[tokio::test]
async fn a_process_that_drains_is_not_ready_and_finishes_what_it_has() {
    let mut world = World::start(Kind::Embedded).await;
    let sub = world.subscribe("/slow", &["*"], json!({})).await;
    let slow = Answer::status(200).after(Duration::from_secs(8));
    world.receiver.plan("/slow", [slow]);
    let event = world.publish(json!({"type": "payment.paid"})).await;
    world.receiver.wait_for("/slow", 1).await;
    world.nodes[0].process().signal("TERM");
    assert_eq!(ready(&world.nodes[0]).await, 503);
    let ended = world.nodes[0]
        .process()
        .ended(Duration::from_secs(60))
        .await;
    assert!(ended.success(), "{ended}");
    world.nodes[0].start_again().await;
    world.expect(&sub, &event, Fate::Delivered);
    world.finish().await;
}

async fn ready(node: &Node) -> u16 {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let answer = crate::support::http::ask(node.ops(), "GET", "/readyz", &[]).await;
        let status = answer.expect("the ops port answers").status;
        if status != 200 || std::time::Instant::now() > deadline {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn two_deliverers_share_the_work() {
    let mut world = World::with(Kind::Rabbit, 2, &[]).await;
    subscribed(&world, "s").await;
    let stream = Stream::start(world.nodes[0].api(), "s");
    stream.finish().await;
    world
        .wait_for_metric(
            "postrider_deliveries_total",
            "outcome=\"delivered\"",
            EVENTS as f64,
        )
        .await;
    let delivered = "outcome=\"delivered\"";
    for node in &mut world.nodes[2..] {
        let share = node.metric("postrider_deliveries_total", delivered).await;
        assert!(
            share >= EVENTS as f64 / 10.0,
            "one of two deliverers did {share} of {EVENTS}"
        );
    }
    world.finish().await;
}

#[tokio::test]
async fn a_drained_deliverer_leaves_no_duplicate_and_no_loss() {
    let mut world = World::with(Kind::Rabbit, 2, &[]).await;
    subscribed(&world, "t").await;
    let stream = Stream::start(world.nodes[0].api(), "t");
    stream.reaches(1_000).await;
    world.deliverer().drain().await;
    stream.reaches(2_000).await;
    world.deliverer().start_again().await;
    world.router().drain().await;
    stream.reaches(3_000).await;
    world.router().start_again().await;
    stream.finish().await;
    world.finish().await;
}

#[tokio::test]
async fn the_embedded_process_drains_without_duplicate_or_loss() {
    let mut world = World::start(Kind::Embedded).await;
    subscribed(&world, "u").await;
    let stream = Stream::start(world.nodes[0].api(), "u");
    stream.reaches(1_500).await;
    world.nodes[0].drain().await;
    world.nodes[0].start_again().await;
    stream.finish().await;
    // A batch whose answer the drain cut off would be published again by its sender; a drain
    // answers what it took, so there is none.
    world.finish().await;
}
