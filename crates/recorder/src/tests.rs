//! The stage on the embedded broker and a SQLite store.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use broker::{Parcel, Received, Route};
use event::{
    DeliveryId, Event, Subscription, SubscriptionId,
    delivery::{DeadLetter, Purpose},
    log::{ArchiveBatch, Archived, Attempt, LogBatch, LogEntry, Timing},
    reason::{AttemptError, DeadReason, DeliveryState},
    secret::SigningKeys,
    subscription::View,
};
use jiff::{Timestamp, ToSpan};
use serde_json::json;
use store::{DeliveryFilter, Paging, Sight, Stored};

use super::*;

struct Bench {
    broker: Broker,
    store: Store,
    feed: Feed,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let broker = Broker::open(&broker::Settings {
            url: format!("embedded://{}", folder.path().display()),
            ..broker::Settings::default()
        })
        .await
        .expect("the broker opens");
        let store = Store::open(&store::Settings {
            url: format!("sqlite://{}/postrider.db", folder.path().display()),
            encryption_key: None,
        })
        .await
        .expect("the store opens");
        let every = Duration::from_millis(20);
        let feed = Feed::follow(store.clone(), every, CancellationToken::new());
        Self {
            broker,
            store,
            feed,
            _folder: folder,
        }
    }

    fn parts(&self) -> Parts {
        Parts {
            broker: self.broker.clone(),
            store: self.store.clone(),
            feed: self.feed.clone(),
            // What the tests record is of another year.
            retention: Retention {
                events: Duration::ZERO,
                deliveries: Duration::ZERO,
                dead_letters: Duration::ZERO,
                quarantine: Duration::ZERO,
                versions: Duration::ZERO,
            },
            metrics: Metrics::register(&prometheus::Registry::new()).expect("fresh names"),
        }
    }

    async fn publish(&self, route: Route, body: Vec<u8>) {
        let parcel = Parcel::json(route, "m", body);
        self.broker
            .publisher()
            .publish(parcel)
            .await
            .expect("taken");
    }

    async fn archive(&self, events: Vec<Archived>) {
        let batch = ArchiveBatch { events };
        self.publish(Route::Archive, serde_json::to_vec(&batch).unwrap())
            .await;
    }

    async fn log(&self, entries: Vec<LogEntry>) {
        let batch = LogBatch {
            entries,
            ..LogBatch::default()
        };
        self.publish(Route::Log, serde_json::to_vec(&batch).unwrap())
            .await;
    }

    /// Runs recorders until the store holds so many deliveries of each state, then ends them.
    async fn record_until(&self, recorders: usize, wanted: &[(DeliveryState, u64)]) {
        let stop = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..recorders {
            tasks.spawn(run(self.parts(), stop.clone()));
        }
        let wanted = wanted.iter().copied().collect();
        let recorded = async {
            while self.states().await != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), recorded).await;
        assert!(ended.is_ok(), "{:?} is not {wanted:?}", self.states().await);
        stop.cancel();
        while let Some(ended) = tasks.join_next().await {
            ended.expect("the recorder ends by itself");
        }
    }

    /// How many messages wait in one of the queues.
    async fn waiting(&self, queue: &str) -> u64 {
        let depths = self.broker.depths().await;
        let wanted = format!("postrider.{queue}");
        let found = depths.iter().find(|(name, _)| *name == wanted);
        found.map_or(0, |(_, depth)| *depth)
    }

    /// How many deliveries there are in each state.
    async fn states(&self) -> BTreeMap<DeliveryState, u64> {
        let all = DeliveryFilter::default();
        let counts = self
            .store
            .delivery_periods(&Sight::All, &all, store::Period::Month)
            .await
            .unwrap();
        counts.into_iter().flat_map(|count| count.states).collect()
    }

    /// How many attempts there are in all.
    async fn attempts(&self) -> usize {
        let mut attempts = 0;
        let mut paging = Paging {
            cursor: None,
            limit: 500,
        };
        loop {
            let page = self
                .store
                .deliveries(&Sight::All, &DeliveryFilter::default(), &paging)
                .await
                .unwrap();
            for row in &page.items {
                let record = self.store.delivery(&Sight::All, &row.id).await.unwrap();
                attempts += record.unwrap().history.len();
            }
            paging.cursor = page.cursor;
            if paging.cursor.is_none() {
                return attempts;
            }
        }
    }

    async fn subscribe(&self, words: &[&str], disable_after: serde_json::Value) -> SubscriptionId {
        let subscription: Subscription = serde_json::from_value(json!({
            "id": SubscriptionId::fresh(), "tenant": "a", "name": "", "dialect": "standard",
            "target_url": "https://example.com/", "events": words, "filter": {}, "view": "full",
            "headers": {}, "attributes": {}, "state": "active", "revision": 0,
            "delivery": {"disable_after": disable_after},
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        }))
        .unwrap();
        let stored = Stored {
            subscription,
            keys: SigningKeys(Vec::new()),
        };
        let stored = self.store.insert_subscription(stored).await.unwrap();
        let revision = stored.subscription.revision;
        let mut snapshots = self.feed.watch();
        let known = |snapshot: &Option<Arc<store::feed::Snapshot>>| {
            snapshot
                .as_ref()
                .is_some_and(|snapshot| snapshot.revision >= revision)
        };
        snapshots.wait_for(known).await.unwrap();
        stored.subscription.id
    }
}

fn start() -> Timestamp {
    "2026-03-02T10:00:00Z".parse().unwrap()
}

fn archived(n: i64, matched: &[SubscriptionId]) -> Archived {
    let json = json!({
        "id": format!("evt-{n}"), "tenant": "a", "type": "appointment.created",
        "time": "2026-03-02T10:00:00Z", "data": {"n": n},
    });
    Archived {
        event: Arc::new(serde_json::from_value(json).unwrap()),
        accepted_at: start() + n.seconds(),
        revision: 1,
        bytes: 100,
        matched: matched.to_vec(),
    }
}

fn tried(archived: &Archived, to: &SubscriptionId, number: u32, good: bool) -> LogEntry {
    let event = &archived.event;
    let at = archived.accepted_at + i64::from(number).milliseconds();
    LogEntry {
        delivery_id: DeliveryId::of(&event.tenant, &event.id, to),
        event_id: event.id.clone(),
        subscription_id: to.clone(),
        tenant: event.tenant.clone(),
        kind: event.kind.clone(),
        accepted_at: archived.accepted_at,
        at,
        purpose: Purpose::Live,
        run: 0,
        attempts: number,
        state: if good {
            DeliveryState::Delivered
        } else {
            DeliveryState::Retrying
        },
        reason: None,
        detail: None,
        clause: None,
        due: None,
        attempt: Some(Box::new(Attempt {
            number,
            at,
            timing: Timing::default(),
            view: View::Full,
            request_headers: Vec::new(),
            body_hash: String::new(),
            body_bytes: 0,
            status: Some(if good { 200 } else { 503 }),
            response_headers: Vec::new(),
            response: None,
            error: (!good).then_some(AttemptError::Status),
            detail: None,
        })),
    }
}

/// A future that is dropped when it has been polled so often: a kill between two steps.
struct Killed<F> {
    future: Pin<Box<F>>,
    polls: usize,
}

impl<F: Future> Future for Killed<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.polls == 0 {
            return Poll::Ready(());
        }
        self.polls -= 1;
        match self.future.as_mut().poll(context) {
            Poll::Ready(_) => Poll::Ready(()),
            // At the last poll there is nothing to wait for.
            Poll::Pending if self.polls == 0 => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_any_two_steps_it_leaves_no_gap_and_no_double() {
    let bench = Bench::new().await;
    let id = bench.subscribe(&["payment.*"], json!("never")).await;
    let fine = SubscriptionId::parse("sub_fine").unwrap();
    let mut n = 0;
    // Each round has records of its own, so that every kill finds some under way.
    let mut finished = 0;
    for polls in 1.. {
        let events: Vec<_> = (n..n + 5)
            .map(|n| archived(n, &[id.clone(), fine.clone()]))
            .collect();
        n += 5;
        let log = events.iter().flat_map(|event| {
            [
                tried(event, &id, 1, false),
                tried(event, &fine, 1, false),
                tried(event, &fine, 2, true),
            ]
        });
        bench.log(log.collect()).await;
        bench.archive(events).await;
        let killed = Killed {
            future: Box::pin(run(bench.parts(), CancellationToken::new())),
            polls,
        };
        // One that has done everything has nothing more to be polled for.
        drop(tokio::time::timeout(Duration::from_millis(400), killed).await);
        let waiting = bench.waiting("archive").await;
        let recorded: u64 = bench.states().await.values().sum();
        let all = recorded == 2 * u64::try_from(n).unwrap();
        finished += u32::from(all && waiting == 0);
        if finished == 3 {
            break;
        }
        assert!(polls < 2000, "it never finishes");
    }
    let count = u64::try_from(n).unwrap();
    let wanted = [
        (DeliveryState::Delivered, count),
        (DeliveryState::Retrying, count),
    ];
    bench.record_until(1, &wanted).await;
    assert_eq!(bench.attempts().await as u64, 3 * count);
    let quarantined = bench.store.quarantined(None, &Paging::default()).await;
    assert!(quarantined.unwrap().items.is_empty());
    // A failure counted twice would be a limit reached too soon.
    let failures = bench.store.failures_in_a_row(&id).await.unwrap();
    assert_eq!(failures, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_recorders_share_the_work() {
    let bench = Bench::new().await;
    let to = SubscriptionId::parse("sub_1").unwrap();
    for n in 0..60 {
        let events: Vec<_> = (n * 10..n * 10 + 10)
            .map(|n| archived(n, std::slice::from_ref(&to)))
            .collect();
        let log = events.iter().map(|event| tried(event, &to, 1, true));
        bench.log(log.collect()).await;
        bench.archive(events).await;
    }
    bench
        .record_until(2, &[(DeliveryState::Delivered, 600)])
        .await;
    assert_eq!(bench.attempts().await, 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_of_ours_is_quarantined_and_holds_nothing_up() {
    let bench = Bench::new().await;
    let to = SubscriptionId::parse("sub_1").unwrap();
    // Each queue is read in its order, so that what comes after tells that this was read.
    bench.publish(Route::Log, b"{\"entries\":5}".to_vec()).await;
    bench.publish(Route::Archive, b"\xff\x00".to_vec()).await;
    let events = [1, 2].map(|n| archived(n, std::slice::from_ref(&to)));
    bench.archive(events.to_vec()).await;
    bench.log(vec![tried(&events[0], &to, 1, true)]).await;
    let wanted = [(DeliveryState::Pending, 1), (DeliveryState::Delivered, 1)];
    bench.record_until(1, &wanted).await;
    assert_eq!(bench.attempts().await, 1);
    let quarantined = bench
        .store
        .quarantined(None, &Paging::default())
        .await
        .unwrap();
    let mut bodies = Vec::new();
    for listed in &quarantined.items {
        assert!(listed.body.is_empty(), "lists carry no bodies");
        let whole = bench.store.quarantined_one(&listed.id).await.unwrap();
        bodies.push(whole.expect("it is there").body);
    }
    bodies.sort();
    assert_eq!(bodies, [b"{\"entries\":5}".to_vec(), b"\xff\x00".to_vec()]);
}

fn dead(archived: &Archived, to: &SubscriptionId) -> DeadLetter {
    let entry = tried(archived, to, 1, false);
    DeadLetter {
        id: event::DeadLetterId::of(&entry.delivery_id, 0),
        delivery_id: entry.delivery_id,
        event_id: entry.event_id,
        subscription_id: entry.subscription_id,
        tenant: entry.tenant,
        kind: entry.kind,
        reason: DeadReason::Exhausted,
        detail: "1 attempt failed".into(),
        attempts: 1,
        run: 0,
        died_at: entry.at,
        accepted_at: entry.accepted_at,
        history: Vec::new(),
        event: Arc::clone(&archived.event),
        expunged_at: None,
    }
}

/// What was published for the router.
async fn published(bench: &Bench, count: usize) -> Vec<Event> {
    let mut inbox = bench.broker.consume(Queue::Inbox, 100).await;
    let mut events = Vec::new();
    while events.len() < count {
        let message: Received = inbox.next().await.unwrap();
        events.push(serde_json::from_slice(&message.body).unwrap());
        message.ticket.ack();
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_fails_is_disabled_and_told_to_who_named_it() {
    let bench = Bench::new().await;
    let failing = bench
        .subscribe(&["appointment.*"], json!({"failures": 4}))
        .await;
    bench
        .subscribe(&["postrider.*", "delivery.dead_lettered"], json!("never"))
        .await;
    let stop = CancellationToken::new();
    let recorder = tokio::spawn(run(bench.parts(), stop.clone()));
    let events = [0, 1, 2, 3].map(|n| archived(n, &[]));
    let entries = events.iter().map(|event| tried(event, &failing, 1, false));
    // As one batch: in two, the warning would be told before the end.
    bench.log(entries.collect()).await;
    let letter = dead(&events[3], &failing);
    bench
        .publish(Route::Dead, serde_json::to_vec(&letter).unwrap())
        .await;
    let mut kinds: Vec<_> = published(&bench, 2)
        .await
        .iter()
        .map(|event| event.kind.to_string())
        .collect();
    kinds.sort();
    assert_eq!(
        kinds,
        ["delivery.dead_lettered", "postrider.subscription_disabled"]
    );
    let stored = bench
        .store
        .subscription(&Sight::All, &failing)
        .await
        .unwrap()
        .unwrap();
    let reason = stored.subscription.disabled_reason.unwrap();
    assert!(reason.starts_with("4 deliveries in a row"), "{reason}");
    stop.cancel();
    recorder.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_where_nobody_named_it() {
    let bench = Bench::new().await;
    let failing = bench
        .subscribe(&["*", "delivery.sent"], json!({"failures": 1}))
        .await;
    let event = archived(1, &[]);
    bench.log(vec![tried(&event, &failing, 1, false)]).await;
    let letter = serde_json::to_vec(&dead(&event, &failing)).unwrap();
    bench.publish(Route::Dead, letter).await;
    let stop = CancellationToken::new();
    let recorder = tokio::spawn(run(bench.parts(), stop.clone()));
    let disabled = async || {
        let stored = bench
            .store
            .subscription(&Sight::All, &failing)
            .await
            .unwrap();
        stored.unwrap().subscription.disabled_reason.is_some()
    };
    while !disabled().await || !bench.store.notices(9).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    recorder.await.unwrap();
    let depths = bench.broker.depths().await;
    let inbox = depths.iter().find(|(name, _)| name.ends_with(".inbox"));
    assert_eq!(inbox.map(|(_, depth)| *depth), Some(0), "{depths:?}");
}
