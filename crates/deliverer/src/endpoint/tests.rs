//! Slots as deliveries meet them, on a paused clock.

use futures_util::{FutureExt, future::join_all};
use prometheus::Opts;

use super::*;

fn gauge() -> IntGaugeVec {
    IntGaugeVec::new(Opts::new("endpoints", "-"), &["breaker"]).expect("a gauge")
}

fn endpoint(window_max: u32) -> Arc<Endpoint> {
    let bounds = Bounds {
        window_max,
        failures_max: 4,
        pause_max: Duration::from_secs(60),
    };
    Arc::new(Endpoint::new(bounds, gauge()))
}

fn well() -> Outcome {
    Outcome {
        took: Duration::from_millis(10),
        ..Outcome::answered(200)
    }
}

fn timed_out() -> Outcome {
    let took = Duration::from_secs(20);
    Outcome {
        took,
        ..Outcome::failed(AttemptError::Timeout, "no answer")
    }
}

const PATIENCE: Duration = Duration::from_secs(2);

/// As many slots as there are at once.
fn fill(endpoint: &Arc<Endpoint>) -> Vec<Slot> {
    let free = endpoint.slots.available_permits();
    (0..free)
        .filter_map(|_| endpoint.enter(PATIENCE).now_or_never()?.ok())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn there_are_as_many_slots_as_the_window_is_wide() {
    let endpoint = endpoint(16);
    let slots = fill(&endpoint);
    assert_eq!(slots.len(), 4);
    for slot in slots {
        slot.leave(&well(), None, || 0.0);
    }
    assert_eq!(fill(&endpoint).len(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_shrunk_window_takes_back_slots_as_they_are_left() {
    let endpoint = endpoint(16);
    let mut slots = fill(&endpoint);
    endpoint.set_window_max(2);
    drop(slots.pop());
    drop(slots.pop());
    assert_eq!(
        fill(&endpoint).len(),
        0,
        "two of four are left, and two is the bound now"
    );
    drop(slots.pop());
    assert_eq!(fill(&endpoint).len(), 1);
    drop(slots);
    assert_eq!(fill(&endpoint).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_window_that_shrinks_and_grows_while_in_use_never_makes_slots_up() {
    let endpoint = endpoint(4);
    let slots = fill(&endpoint);
    assert_eq!(slots.len(), 4);
    endpoint.set_window_max(1);
    endpoint.set_window_max(4);
    for slot in slots {
        slot.leave(&well(), None, || 0.0);
    }
    assert_eq!(fill(&endpoint).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_the_slot_that_is_left() {
    let endpoint = endpoint(1);
    let slot = endpoint.enter(PATIENCE).await.expect("a slot");
    let mut waiting = std::pin::pin!(endpoint.enter(PATIENCE));
    assert!(waiting.as_mut().now_or_never().is_none());
    slot.leave(&well(), None, || 0.0);
    assert!(waiting.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_vain_is_refused_and_the_next_is_refused_at_once() {
    let endpoint = endpoint(1);
    let slot = endpoint.enter(PATIENCE).await.expect("a slot");
    let begun = Instant::now();
    assert_eq!(endpoint.enter(PATIENCE).await.unwrap_err().0, Cause::Busy);
    assert_eq!(begun.elapsed(), PATIENCE);
    assert_eq!(endpoint.enter(PATIENCE).await.unwrap_err().0, Cause::Busy);
    assert_eq!(begun.elapsed(), PATIENCE, "the second did not wait");
    drop(slot);
    assert!(endpoint.enter(PATIENCE).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_keeps_nobody_waiting() {
    let endpoint = endpoint(1);
    let slow = Outcome {
        took: Duration::from_secs(10),
        ..well()
    };
    endpoint
        .enter(PATIENCE)
        .await
        .expect("a slot")
        .leave(&slow, None, || 0.0);
    let _slot = endpoint.enter(PATIENCE).await.expect("a slot");
    let begun = Instant::now();
    let refused = join_all((0..100).map(|_| endpoint.enter(PATIENCE))).await;
    assert!(refused.into_iter().all(|entry| entry.is_err()));
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_opens_refuses_also_those_who_wait() {
    let endpoint = endpoint(4);
    let slots = fill(&endpoint);
    let mut waiting = std::pin::pin!(endpoint.enter(PATIENCE));
    assert!(waiting.as_mut().now_or_never().is_none());
    for slot in slots {
        slot.leave(&timed_out(), None, || 0.0);
    }
    assert_eq!(
        waiting.await.unwrap_err(),
        (Cause::Breaker, Duration::from_secs(1))
    );
}

#[tokio::test(start_paused = true)]
async fn after_the_pause_one_is_let_through_to_see() {
    let endpoint = endpoint(4);
    for slot in fill(&endpoint) {
        slot.leave(&timed_out(), None, || 0.0);
    }
    assert_eq!(fill(&endpoint).len(), 0);
    tokio::time::advance(Duration::from_secs(1)).await;
    let mut probe = fill(&endpoint);
    assert_eq!(probe.len(), 1);
    probe.remove(0).leave(&well(), None, || 0.0);
    assert_eq!(fill(&endpoint).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_throttles_the_whole_endpoint() {
    let endpoint = endpoint(4);
    let slot = endpoint.enter(PATIENCE).await.expect("a slot");
    slot.leave(
        &Outcome::answered(429),
        Some(SignedDuration::from_secs(9)),
        || 0.0,
    );
    let refused = endpoint.enter(PATIENCE).await.unwrap_err();
    assert_eq!(refused, (Cause::Throttled, Duration::from_secs(9)));
}

#[tokio::test(start_paused = true)]
async fn a_refused_target_says_nothing_of_the_endpoint() {
    let endpoint = endpoint(4);
    let refused = Outcome::failed(AttemptError::TargetNotAllowed, "no");
    for _ in 0..20 {
        endpoint
            .enter(PATIENCE)
            .await
            .expect("a slot")
            .leave(&refused, None, || 0.0);
    }
    assert!(endpoint.is_forgettable());
}

#[tokio::test(start_paused = true)]
async fn closing_refuses_those_who_wait() {
    let endpoint = endpoint(1);
    let _slot = endpoint.enter(PATIENCE).await.expect("a slot");
    let mut waiting = std::pin::pin!(endpoint.enter(PATIENCE));
    assert!(waiting.as_mut().now_or_never().is_none());
    endpoint.close();
    assert_eq!(waiting.await.unwrap_err().0, Cause::Stopping);
}

#[tokio::test(start_paused = true)]
async fn the_gauge_follows_the_breaker_and_forgets_what_is_gone() {
    let gauge = gauge();
    let count = |breaker: Breaker| gauge.with_label_values(&[breaker.word()]).get();
    let bounds = Bounds {
        window_max: 4,
        failures_max: 1,
        pause_max: Duration::from_secs(60),
    };
    let endpoint = Arc::new(Endpoint::new(bounds, gauge.clone()));
    assert_eq!(Breaker::ALL.map(count), [1, 0, 0]);
    endpoint
        .enter(PATIENCE)
        .await
        .expect("a slot")
        .leave(&timed_out(), None, || 0.0);
    assert_eq!(Breaker::ALL.map(count), [0, 1, 0]);
    assert!(!endpoint.is_forgettable());
    tokio::time::advance(Duration::from_secs(1)).await;
    let probe = endpoint.enter(PATIENCE).await.expect("a slot");
    assert_eq!(Breaker::ALL.map(count), [0, 0, 1]);
    drop(probe);
    drop(endpoint);
    assert_eq!(Breaker::ALL.map(count), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_test_goes_through_an_open_breaker_and_its_success_closes_it() {
    let endpoint = endpoint(16);
    for _ in 0..4 {
        let slot = endpoint.enter(PATIENCE).await.expect("a slot");
        slot.leave(&timed_out(), None, || 0.0);
    }
    assert_eq!(
        endpoint.enter(PATIENCE).await.unwrap_err().0,
        Cause::Breaker
    );
    let failing = endpoint.enter_anyway(PATIENCE).await.expect("a slot");
    failing.leave(&timed_out(), None, || 0.0);
    assert_eq!(
        endpoint.enter(PATIENCE).await.unwrap_err().0,
        Cause::Breaker
    );
    let slot = endpoint.enter_anyway(PATIENCE).await.expect("a slot");
    let crowded = endpoint.enter_anyway(PATIENCE).await;
    assert_eq!(
        crowded.unwrap_err().0,
        Cause::Busy,
        "within the window, as any"
    );
    slot.leave(&well(), None, || 0.0);
    assert!(endpoint.enter(PATIENCE).await.is_ok());
}
