//! When batches leave, and what an entry's confirm waits for.

use std::sync::Mutex;

use broker::PublishError;
use event::{delivery::Bundle, log::LogBatch};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::json;
use tokio::{sync::Notify, task::yield_now};

use super::*;
use crate::{End, delivery::Delivery, record};

/// A broker that shows what it is given and answers when it is told to, in order.
#[derive(Debug, Default)]
struct Held {
    seen: Mutex<Vec<Vec<String>>>,
    answers: Mutex<VecDeque<Result<(), PublishError>>>,
    answered: Notify,
}

impl Held {
    fn answer(&self, answer: Result<(), PublishError>) {
        self.answers.lock().expect("not poisoned").push_back(answer);
        self.answered.notify_waiters();
    }

    fn seen(&self) -> Vec<usize> {
        self.seen
            .lock()
            .expect("not poisoned")
            .iter()
            .map(Vec::len)
            .collect()
    }
}

impl Publish for Held {
    fn publish(&self, parcel: Parcel) -> BoxFuture<'_, Result<(), PublishError>> {
        assert_eq!(parcel.route, Route::Log);
        let batch: LogBatch = serde_json::from_slice(&parcel.body).expect("a batch");
        let ids = batch.entries.iter().map(|entry| entry.event_id.to_string());
        self.seen.lock().expect("not poisoned").push(ids.collect());
        Box::pin(async move {
            loop {
                let answered = self.answered.notified();
                if let Some(answer) = self.answers.lock().expect("not poisoned").pop_front() {
                    return answer;
                }
                answered.await;
            }
        })
    }
}

fn entry(id: &str, bytes: usize) -> LogEntry {
    let bundle: Bundle = serde_json::from_value(json!({"items": [{
        "event": {"id": id, "tenant": "t", "type": "a.b", "time": "2026-03-01T10:00:00Z"},
        "accepted_at": "2026-03-01T10:00:00Z", "revision": 1, "to": [{"sub": "sub_a"}],
    }]}))
    .expect("a bundle");
    let delivery = Delivery::all(bundle).next().expect("a delivery");
    let end = End::Held("x".repeat(bytes));
    record::entry(&delivery, false, &end, None, Timestamp::UNIX_EPOCH).expect("an entry")
}

fn journal(broker: &Arc<Held>) -> Arc<Journal> {
    let counter = || IntCounter::new("n", "n").expect("a counter");
    let counters = Counters {
        entries: counter(),
        batches: counter(),
    };
    Arc::new(Journal::new(Archive::Full, broker.clone(), counters))
}

fn write(
    journal: &Arc<Journal>,
    ids: impl IntoIterator<Item = String>,
    bytes: usize,
) -> Vec<tokio::task::JoinHandle<bool>> {
    ids.into_iter()
        .map(|id| {
            let journal = journal.clone();
            tokio::spawn(async move { journal.write(&entry(&id, bytes)).await })
        })
        .collect()
}

/// Lets every task that can run do so: there is one thread, and nothing here waits for a clock.
async fn settle_down() {
    for _ in 0..500 {
        yield_now().await;
    }
}

fn ids(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|n| format!("e{n}"))
}

#[tokio::test]
async fn a_lone_entry_leaves_at_once_and_what_comes_meanwhile_leaves_together() {
    let broker = Arc::new(Held::default());
    let journal = journal(&broker);
    let first = write(&journal, ids(0..1), 0);
    settle_down().await;
    assert_eq!(broker.seen(), [1]);
    let rest = write(&journal, ids(1..11), 0);
    settle_down().await;
    assert_eq!(broker.seen(), [1], "they fill the next batch");
    assert!(!first[0].is_finished(), "nobody goes on before the confirm");
    broker.answer(Ok(()));
    settle_down().await;
    assert_eq!(broker.seen(), [1, 10]);
    assert!(first[0].is_finished() && rest.iter().all(|writer| !writer.is_finished()));
    broker.answer(Ok(()));
    for writer in first.into_iter().chain(rest) {
        assert!(writer.await.expect("no panic"));
    }
    let order: Vec<_> = broker.seen.lock().expect("not poisoned").concat();
    assert_eq!(order, ids(0..11).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_batch_waits_for_no_other_and_the_batches_on_their_way_are_bounded() {
    let broker = Arc::new(Held::default());
    let journal = journal(&broker);
    let _first = write(&journal, ids(0..1), 0);
    settle_down().await;
    let _rest = write(&journal, ids(1..1 + 20 * ENTRIES_MAX), 0);
    settle_down().await;
    let mut expected = vec![ENTRIES_MAX; BATCHES_IN_FLIGHT_MAX];
    expected[0] = 1;
    assert_eq!(broker.seen(), expected);
}

#[tokio::test]
async fn a_batch_is_bounded_in_bytes_and_one_large_entry_goes_alone() {
    let broker = Arc::new(Held::default());
    let journal = journal(&broker);
    let first = write(&journal, ids(0..1), 2 * BYTES_MAX);
    settle_down().await;
    let rest = write(&journal, ids(1..6), BYTES_MAX / 2 - 1000);
    settle_down().await;
    assert_eq!(broker.seen(), [1, 2, 2], "the last waits for company");
    for _ in 0..4 {
        broker.answer(Ok(()));
        settle_down().await;
    }
    assert_eq!(broker.seen(), [1, 2, 2, 1]);
    for writer in first.into_iter().chain(rest) {
        assert!(writer.await.expect("no panic"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_refuses_is_asked_again_and_a_closed_one_ends_the_wait() {
    let broker = Arc::new(Held::default());
    let journal = journal(&broker);
    broker.answer(Err(PublishError::Rejected));
    broker.answer(Err(PublishError::Blocked("disk".into())));
    broker.answer(Ok(()));
    assert!(journal.write(&entry("e1", 0)).await);
    assert_eq!(broker.seen(), [1, 1, 1]);
    broker.answer(Err(PublishError::Closed));
    assert!(
        !journal.write(&entry("e2", 0)).await,
        "it must not be settled"
    );
    broker.answer(Ok(()));
    assert!(
        journal.write(&entry("e3", 0)).await,
        "and the next is not lost by it"
    );
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_any_more_is_not_published_again() {
    let broker = Arc::new(Held::default());
    let journal = journal(&broker);
    let writers = write(&journal, ids(0..1), 0);
    settle_down().await;
    writers[0].abort();
    settle_down().await;
    broker.answer(Err(PublishError::Rejected));
    let next = write(&journal, ids(1..2), 0);
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(broker.seen(), [1, 1]);
    broker.answer(Ok(()));
    for writer in next {
        assert!(writer.await.expect("no panic"));
    }
}
