//! What the log says, and what a person's own wishes (a test, a replay) change.

use broker::Queue;
use event::{
    delivery::Purpose,
    log::{Archive, LogBatch, LogEntry},
    reason::{AttemptError, DeadReason, DeliveryState as State},
    subscription::{SubscriptionState, View},
};
use serde_json::{Value, json};
use store::{Store, feed::Feed};
use tokio_util::sync::CancellationToken;

use crate::{
    house::{House, LONG, event, item, subscription, with_keys},
    receiver::{Receiver, Reply},
    well,
};

fn states(entries: &[LogEntry]) -> Vec<(&str, State, u32)> {
    let state = |entry: &LogEntry| entry.state;
    entries
        .iter()
        .map(|entry| (entry.subscription_id.as_str(), state(entry), entry.attempts))
        .collect()
}

/// An item to one subscription, with a purpose.
fn asked(id: &str, to: &str, purpose: &str) -> Value {
    let mut item = item(event(id), &[to]);
    item["to"][0]["purpose"] = json!(purpose);
    item
}

#[tokio::test]
async fn the_log_says_what_became_of_each_delivery() {
    let receiver = Receiver::start(|_, request| match request.path.as_str() {
        "/gone" => Reply::Status(410),
        "/late" if request.header("webhook-id") == "e1" => Reply::Status(500),
        _ => Reply::Status(200),
    })
    .await;
    let late = json!({"delivery": {"retry": {"delays": ["1s"]}}});
    let mut house = House::with([
        subscription("a", &receiver.url("/well"), json!({})),
        subscription("b", &receiver.url("/gone"), json!({})),
        subscription(
            "c",
            &receiver.url("/well"),
            json!({"filter": {"actions": ["updated"]}}),
        ),
        subscription("d", &receiver.url("/well"), json!({"state": "paused"})),
        subscription("e", &receiver.url("/late"), late),
    ])
    .await;
    house.archive = Archive::Headers;
    house
        .publish(vec![item(event("e1"), &["a", "b", "c", "d", "e"])])
        .await;
    let running = house.start();
    let entries = house.log(6).await;
    running.stop().await;
    assert_eq!(
        states(&entries),
        [
            ("sub_a", State::Delivered, 1),
            ("sub_b", State::Dead, 1),
            ("sub_c", State::Filtered, 0),
            ("sub_d", State::Held, 0),
            ("sub_e", State::Retrying, 1),
            ("sub_e", State::Dead, 2),
        ]
    );
    assert_eq!(entries[1].reason, Some(DeadReason::Gone));
    assert_eq!(entries[2].clause.as_deref(), Some("actions"));
    assert!(entries[2].detail.is_some() && entries[2].attempt.is_none());
    assert_eq!(
        entries[3].detail.as_deref(),
        Some("the subscription is paused")
    );
    let due = entries[4].due.expect("due");
    assert!(due > entries[4].at && entries[5].at >= due);
    let attempt = entries[5].attempt.as_deref().expect("an attempt");
    assert_eq!((attempt.number, attempt.status), (2, Some(500)));
    assert_eq!(attempt.error, Some(AttemptError::Status));
    assert_eq!(house.count("postrider_log_entries_total", ""), 6);
    // Two dead letters and the held one.
    assert_eq!(house.left().await, 3);
}

#[tokio::test]
async fn an_attempt_is_logged_in_full_and_without_secrets() {
    let receiver = Receiver::start(|_, _| Reply::With(200, "set-cookie: s=1\r\n")).await;
    let headers = json!({"headers": {"x-api-key": "hunter2"}});
    for (archive, response) in [(Archive::Full, Some("noted")), (Archive::Headers, None)] {
        let mut house = House::with([subscription("a", &receiver.url("/"), headers.clone())]).await;
        house.archive = archive;
        house.publish(vec![item(event("e1"), &["a"])]).await;
        let running = house.start();
        let entries = house.log(1).await;
        running.stop().await;
        let requests = receiver.requests();
        let request = requests.last().expect("a request");
        let attempt = entries[0].attempt.as_deref().expect("an attempt");
        // As it came, but for the target and the secret.
        let came = request.headers.iter().filter(|(name, _)| name != "host");
        let mut came: Vec<_> = came
            .map(|(name, value)| match name.as_str() {
                "x-api-key" => (name.clone(), "***".into()),
                _ => (name.clone(), value.clone()),
            })
            .collect();
        let mut logged = attempt.request_headers.clone();
        came.sort();
        logged.sort();
        assert_eq!(logged, came);
        let hash = blake3::hash(request.body.as_bytes()).to_hex();
        assert_eq!(attempt.body_hash, hash.as_str());
        assert_eq!(attempt.body_bytes, request.body.len() as u64);
        assert_eq!((attempt.view, attempt.status), (View::Full, Some(200)));
        assert_eq!(attempt.response.as_deref(), response);
        let answered = [("set-cookie", "***"), ("content-length", "5")];
        let answered = answered.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(attempt.response_headers, answered);
        assert!(attempt.timing.connect.is_some() && attempt.timing.first_byte.is_some());
        assert_eq!(attempt.timing.dns, None, "a literal address");
        let text = serde_json::to_string(&entries).expect("json");
        assert!(
            !text.contains("hunter2") && !text.contains("127.0.0.1"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_held_delivery_is_handed_over_whole_and_waits_nowhere_else() {
    let paused = subscription("a", "http://127.0.0.1:1/", json!({"state": "paused"}));
    let mut house = House::with([paused]).await;
    house.archive = Archive::Full;
    let mut again = item(event("e1"), &["a"]);
    again["to"][0]["run"] = json!(4);
    house.publish(vec![again.clone()]).await;
    let running = house.start();
    let (mut held, mut entries) = (Vec::new(), Vec::new());
    while held.is_empty() || entries.is_empty() {
        let received = house.next(Queue::Log).await;
        let batch: LogBatch = serde_json::from_slice(&received.body).expect("a batch");
        held.extend(batch.held);
        entries.extend(batch.entries);
        received.ticket.ack();
    }
    running.stop().await;
    assert_eq!(states(&entries), [("sub_a", State::Held, 0)]);
    assert_eq!(held.len(), 1);
    let kept = serde_json::to_value(&held[0].item).expect("an item");
    assert_eq!(kept, again, "everything that sending it takes");
    assert_eq!(house.count("postrider_parked_total", "held"), 1);
    assert_eq!(
        house.left().await,
        0,
        "not parked too, or it would arrive twice"
    );
}

#[tokio::test]
async fn without_payloads_a_held_delivery_is_parked_and_logged_once() {
    let mut house = House::with([
        subscription("a", "http://127.0.0.1:1/", json!({"state": "paused"})),
        subscription(
            "b",
            "http://127.0.0.1:1/",
            json!({"filter": {"actions": ["updated"]}}),
        ),
    ])
    .await;
    house.archive = Archive::Headers;
    house.publish(vec![item(event("e1"), &["a"])]).await;
    let running = house.start();
    house.until("postrider_parked_total", "held", 2).await;
    // Whatever was to be logged of the first is logged before this.
    house.publish(vec![item(event("e2"), &["b"])]).await;
    let entries = house.log(2).await;
    running.stop().await;
    assert_eq!(
        states(&entries),
        [("sub_a", State::Held, 0), ("sub_b", State::Filtered, 0)]
    );
}

#[tokio::test]
async fn a_test_is_sent_whatever_stands_in_a_deliverys_way_and_marked_as_one() {
    let receiver = well().await;
    let stopped = json!({"state": "paused", "filter": {"actions": ["updated"]}});
    let mut house = House::with([subscription("a", &receiver.url("/"), stopped)]).await;
    house.archive = Archive::Full;
    house.publish(vec![asked("e1", "a", "test")]).await;
    let running = house.start();
    let entries = house.log(1).await;
    running.stop().await;
    let requests = receiver.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].header("x-postrider-purpose"), "test");
    assert_eq!(requests[0].header("webhook-id"), "e1");
    assert_eq!(entries[0].purpose, Purpose::Test);
    assert_eq!(entries[0].state, State::Delivered);
    assert_eq!(house.count("postrider_attempts_total", "success"), 1);
    assert_eq!(house.count("postrider_deliveries_total", "delivered"), 0);
    assert_eq!(house.left().await, 0);
}

#[tokio::test]
async fn a_test_that_fails_is_not_tried_again_and_leaves_no_dead_letter() {
    for status in [503, 410] {
        let receiver = Receiver::start(move |_, _| Reply::Status(status)).await;
        let mut house = House::with([subscription("a", &receiver.url("/"), json!({}))]).await;
        house.archive = Archive::Full;
        house.publish(vec![asked("e1", "a", "test")]).await;
        let running = house.start();
        let entries = house.log(1).await;
        running.stop().await;
        assert_eq!(states(&entries), [("sub_a", State::Dead, 1)]);
        assert_eq!(
            entries[0].attempt.as_ref().and_then(|made| made.status),
            Some(status)
        );
        assert_eq!(receiver.requests().len(), 1);
        assert_eq!(house.count("postrider_deliveries_total", "dead"), 0);
        assert!(
            house.disabled.try_recv().is_err(),
            "a test disables nothing"
        );
        assert_eq!(house.left().await, 0);
    }
}

#[tokio::test]
async fn a_replay_is_filtered_and_retried_like_any_other_and_marked_as_one() {
    let receiver = Receiver::start(|n, _| Reply::Status(if n == 0 { 500 } else { 200 })).await;
    let other = json!({"filter": {"actions": ["updated"]}});
    let mut house = House::with([
        subscription("a", &receiver.url("/"), json!({})),
        subscription("b", &receiver.url("/"), other),
    ])
    .await;
    house
        .publish(vec![asked("e1", "a", "replay"), asked("e2", "b", "replay")])
        .await;
    let running = house.start();
    house
        .until("postrider_deliveries_total", "delivered", 1)
        .await;
    house
        .until("postrider_deliveries_total", "filtered", 1)
        .await;
    running.stop().await;
    let requests = receiver.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert_eq!(request.header("x-postrider-purpose"), "replay");
        assert_eq!(request.header("webhook-id"), "e1");
    }
    assert_eq!(house.left().await, 0);
}

/// A resume sends what is held, and may reach a deliverer before the news of the resume does.
#[tokio::test]
async fn what_a_resume_sends_is_not_held_again_by_who_has_not_heard_of_it() {
    let receiver = well().await;
    let mut house = House::with([]).await;
    house.archive = Archive::Full;
    let url = format!("sqlite://{}/store.db", house.folder.path().display());
    let settings = store::Settings {
        url,
        encryption_key: None,
    };
    let store = Store::open(&settings).await.expect("opens");
    let paused = subscription("a", &receiver.url("/"), json!({"state": "paused"}));
    let inserted = store.insert_subscription(with_keys(paused)).await;
    let mut stored = inserted.expect("stored");
    let stop = CancellationToken::new();
    // It looks when it starts, and by itself not again.
    let feed = Feed::follow(store.clone(), LONG * 100, stop.clone());
    let knows = |snapshot: &store::feed::Snapshot| !snapshot.subscriptions.is_empty();
    feed.shows(LONG, knows).await;
    stored.subscription.state = SubscriptionState::Active;
    let resumed = store.replace_subscription(stored).await.expect("stored");
    let revision = resumed.expect("resumed").subscription.revision;
    house.feed = Some(feed);
    let mut held = item(event("e1"), &["a"]);
    held["revision"] = json!(revision);
    house.publish(vec![held]).await;
    let running = house.start();
    let entries = house.log(1).await;
    running.stop().await;
    assert_eq!(states(&entries), [("sub_a", State::Delivered, 1)]);
    assert_eq!(receiver.requests().len(), 1);
    stop.cancel();
}
