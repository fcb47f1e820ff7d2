//! A failing endpoint is tried again on its schedule, and is delivered to when it recovers.

use std::time::Duration;

use serde_json::json;

use crate::{
    delivers::on_both,
    support::{
        receiver::{Answer, Request},
        world::{Fate, World},
    },
};

on_both!(
    a_failing_endpoint_recovers,
    retry_after_is_honoured,
    a_timeout_is_a_failure_and_is_retried,
    a_redirect_is_never_followed,
    a_slow_endpoint_is_invisible_to_its_neighbour,
);

/// Times between attempts must not be earlier than the schedule; how late they are is the
/// machine's affair.
#[track_caller]
fn not_earlier(requests: &[Request], delays_ms: &[u64]) {
    assert_eq!(requests.len(), delays_ms.len() + 1);
    for (pair, delay) in requests.windows(2).zip(delays_ms) {
        let waited = pair[1].began - pair[0].began;
        // 50 ms for the clocks: the schedule runs from the attempt's end, on the wall clock.
        assert!(
            waited + Duration::from_millis(50) >= Duration::from_millis(*delay),
            "waited {waited:?}, the schedule says {delay} ms"
        );
    }
}

async fn a_failing_endpoint_recovers(world: World) {
    let answers = [500, 503, 404, 200].map(Answer::status);
    world.receiver.plan("/flaky", answers);
    let more = json!({"delivery": {"retry": {"delays": ["1s", "2s", "1s", "1s"]}}});
    let sub = world.subscribe("/flaky", &["*"], more).await;
    let id = world.publish(json!({"type": "appointment.created"})).await;
    world.expect(&sub, &id, Fate::Delivered);
    let requests = world.receiver.wait_for("/flaky", 4).await;
    not_earlier(&requests, &[1000, 2000, 1000]);
    for request in &requests {
        assert_eq!(
            request.event_id(),
            id,
            "the same webhook-id on every attempt"
        );
        assert_eq!(request.body, requests[0].body);
    }
    let stamps: Vec<_> = requests
        .iter()
        .map(|r| r.header("webhook-timestamp"))
        .collect();
    assert_ne!(stamps[0], stamps[3], "a fresh timestamp on every attempt");
    world.finish().await;
}

async fn retry_after_is_honoured(world: World) {
    world.receiver.plan(
        "/busy",
        [
            Answer::status(429).with_header("retry-after", "3"),
            Answer::status(200),
        ],
    );
    world.receiver.plan(
        "/absurd",
        [
            Answer::status(503).with_header("retry-after", "1e18"),
            Answer::status(200),
        ],
    );
    let more = json!({"delivery": {"retry": {"delays": ["1s", "1s"]}}});
    let busy = world.subscribe("/busy", &["*"], more.clone()).await;
    let absurd = world.subscribe("/absurd", &["*"], more).await;
    let id = world.publish(json!({"type": "appointment.created"})).await;
    world.expect(&busy, &id, Fate::Delivered);
    world.expect(&absurd, &id, Fate::Delivered);
    not_earlier(&world.receiver.wait_for("/busy", 2).await, &[3000]);
    not_earlier(&world.receiver.wait_for("/absurd", 2).await, &[1000]);
    world.finish().await;
}

async fn a_timeout_is_a_failure_and_is_retried(world: World) {
    let hang = Answer::status(200).after(Duration::from_secs(5));
    world.receiver.plan("/hangs", [hang, Answer::status(200)]);
    let more = json!({"delivery": {"timeout": "1s", "retry": {"delays": ["1s"]}}});
    let sub = world.subscribe("/hangs", &["*"], more).await;
    let id = world.publish(json!({"type": "appointment.created"})).await;
    world.receiver.wait_for("/hangs", 2).await;
    world
        .wait_for_metric("postrider_attempts_total", "result=\"timeout\"", 1.0)
        .await;
    world.expect(&sub, &id, Fate::Delivered);
    // The first request may still be answered to nobody: that is the receiver's affair, and the
    // reason why webhook-id stays the same.
    world.settle().await;
}

async fn a_redirect_is_never_followed(world: World) {
    let target = world.receiver.url("/internal");
    world.receiver.plan(
        "/moved",
        [
            Answer::status(302).with_header("location", &target),
            Answer::status(200),
        ],
    );
    let more = json!({"delivery": {"retry": {"delays": ["1s"]}}});
    let sub = world.subscribe("/moved", &["*"], more).await;
    let id = world.publish(json!({"type": "appointment.created"})).await;
    world.expect(&sub, &id, Fate::Delivered);
    world.receiver.wait_for("/moved", 2).await;
    assert!(world.receiver.requests("/internal").is_empty());
    let result = "result=\"redirect_not_followed\"";
    world
        .wait_for_metric("postrider_attempts_total", result, 1.0)
        .await;
    world.finish().await;
}

async fn a_slow_endpoint_is_invisible_to_its_neighbour(world: World) {
    world.receiver.plan(
        "/hangs",
        [Answer::status(200).after(Duration::from_secs(60))],
    );
    let hanging = json!({"delivery": {"timeout": "30s", "max_in_flight": 4}});
    world.subscribe("/hangs", &["payment.paid"], hanging).await;
    let good = world
        .subscribe("/good", &["appointment.created"], json!({}))
        .await;
    for _ in 0..300 {
        world.publish(json!({"type": "payment.paid"})).await;
    }
    world.receiver.wait_for("/hangs", 4).await;
    for _ in 0..50 {
        let id = world.publish(json!({"type": "appointment.created"})).await;
        world.expect(&good, &id, Fate::Delivered);
    }
    world.receiver.wait_for("/good", 50).await;
    let hanging = world.receiver.requests("/hangs");
    assert!(
        hanging.len() <= 4,
        "{} requests at once, 4 are allowed",
        hanging.len()
    );
    assert!(hanging.iter().all(|request| request.answered.is_none()));
}
