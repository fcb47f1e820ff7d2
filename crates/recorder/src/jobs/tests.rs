//! A runner on the embedded broker and SQLite, killed wherever it may be, beside a deliverer that
//! is made up: it notes what arrives and tells the log, as the real one does.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use broker::Queue;
use event::{
    DeadLetterId, DeliveryId, Event, EventId, Tenant,
    delivery::{DeadLetter, Purpose},
    log::{Archived, HeldDelivery, LogEntry},
    reason::{DeadReason, DeliveryState},
    secret::SigningKeys,
};
use futures_util::future::BoxFuture;
use serde_json::json;
use store::{DeadFilter, Paging, Stored};
use tempfile::TempDir;
use tokio::{sync::Notify, task::JoinHandle};

use super::*;

/// Ends the runner at the nth time that it comes to a point.
#[derive(Debug)]
pub(crate) struct Points {
    at: Point,
    left: AtomicUsize,
    reached: Notify,
}

impl Points {
    fn at(at: Point, nth: usize) -> Arc<Self> {
        Arc::new(Self {
            at,
            left: AtomicUsize::new(nth),
            reached: Notify::new(),
        })
    }

    pub(super) async fn reach(&self, point: Point) {
        if point == self.at && self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// What arrived: event and run, how often.
type Arrived = Arc<Mutex<BTreeMap<(String, u32), usize>>>;

struct House {
    broker: Broker,
    store: Store,
    subscription: SubscriptionId,
    metrics: Metrics,
    archive: Archive,
    arrived: Arrived,
    _folder: TempDir,
}

const TENANT: &str = "salon-17";

fn tenant() -> Tenant {
    Tenant::parse(TENANT).unwrap()
}

fn event(id: &str) -> Arc<Event> {
    let event = json!({
        "id": id, "tenant": TENANT, "type": "appointment.created",
        "time": "2026-03-01T10:00:00Z", "data": {"n": id},
    });
    Arc::new(serde_json::from_value(event).unwrap())
}

impl House {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let broker = broker::Settings {
            url: format!("embedded://{}", folder.path().display()),
            ..Default::default()
        };
        let broker = Broker::open(&broker).await.unwrap();
        let store = store::Settings {
            url: format!("sqlite://{}/", folder.path().display()),
            ..Default::default()
        };
        let store = Store::open(&store).await.unwrap();
        let subscription = serde_json::from_value(json!({
            "id": SubscriptionId::fresh(), "tenant": TENANT, "name": "",
            "target_url": "https://example.com/", "dialect": "standard", "events": ["*"],
            "filter": {}, "view": "full", "headers": {}, "attributes": {}, "delivery": {},
            "state": "active", "created_at": now(), "updated_at": now(), "revision": 0,
        }));
        let stored = Stored {
            subscription: subscription.unwrap(),
            keys: SigningKeys::default(),
        };
        let stored = store.insert_subscription(stored).await.unwrap();
        Self {
            broker,
            store,
            subscription: stored.subscription.id,
            metrics: Metrics::register(&prometheus::Registry::new()).unwrap(),
            archive: Archive::Full,
            arrived: Arrived::default(),
            _folder: folder,
        }
    }

    fn parts(&self, points: Option<Arc<Points>>) -> Parts {
        Parts {
            broker: self.broker.clone(),
            store: self.store.clone(),
            archive: self.archive,
            metrics: self.metrics.clone(),
            pace: Pace {
                look: Duration::from_millis(20),
                lease: Duration::from_secs(1),
                settle: Duration::from_millis(50),
                patience: Duration::from_secs(2),
            },
            points,
        }
    }

    /// A recorder, until it is dropped: that is a kill.
    fn recorder(&self, points: Option<Arc<Points>>) -> Running {
        let stop = CancellationToken::new();
        Running {
            task: tokio::spawn(run(self.parts(points), stop.clone())),
            stop,
        }
    }

    /// A deliverer whose endpoint takes everything.
    async fn deliverer(&self) -> Running {
        self.deliverer_of(false).await
    }

    async fn deliverer_of(&self, resumes: bool) -> Running {
        let stop = CancellationToken::new();
        let mut consumer = self.broker.consume(Queue::Deliver, 8).await;
        let (store, arrived) = (self.store.clone(), self.arrived.clone());
        let logs = self.archive != Archive::Off;
        let task = tokio::spawn(async move {
            while let Some(message) = consumer.next().await {
                let bundle: Bundle = serde_json::from_slice(&message.body).unwrap();
                let mut entries = Vec::new();
                for item in bundle.items {
                    let to = &item.to[0];
                    let live = to.purpose == Purpose::Live;
                    assert_eq!(live, resumes, "what is resumed is no replay");
                    assert!(item.event.data.is_some());
                    let key = (item.event.id.to_string(), to.run);
                    *arrived.lock().unwrap().entry(key).or_default() += 1;
                    entries.push(entry(
                        &item.event,
                        item.accepted_at,
                        &to.subscription,
                        to.run,
                    ));
                }
                if logs {
                    store.record(&[], &entries).await.unwrap();
                }
                message.ticket.ack();
            }
        });
        Running { task, stop }
    }

    /// `count` events that were delivered.
    async fn delivered(&self, count: usize) {
        let (mut archived, mut entries) = (Vec::new(), Vec::new());
        for n in 0..count {
            let event = event(&format!("e{n:03}"));
            let accepted_at = now();
            entries.push(entry(&event, accepted_at, &self.subscription, 0));
            archived.push(Archived {
                event,
                accepted_at,
                revision: 1,
                bytes: 100,
                matched: vec![self.subscription.clone()],
            });
        }
        self.store.record(&archived, &entries).await.unwrap();
    }

    async fn set(&self, state: SubscriptionState) {
        let id = &self.subscription;
        let stored = self.store.subscription(&Sight::All, id).await.unwrap();
        let mut stored = stored.unwrap();
        stored.subscription.state = state;
        self.store.replace_subscription(stored).await.unwrap();
    }

    /// What a deliverer handed over while the subscription was paused.
    async fn held(&self, numbers: std::ops::Range<usize>) {
        let held = |n: usize| HeldDelivery {
            at: now(),
            item: Item {
                event: event(&format!("e{n:03}")),
                accepted_at: now(),
                revision: 1,
                to: vec![Recipient::first(self.subscription.clone())],
            },
        };
        let held: Vec<_> = numbers.map(held).collect();
        self.store.record_held(&held).await.unwrap();
    }

    async fn dead(&self, count: usize) -> Vec<DeadLetter> {
        let letter = |n: usize| {
            let event = event(&format!("e{n:03}"));
            let delivery_id = DeliveryId::of(&tenant(), &event.id, &self.subscription);
            DeadLetter {
                id: DeadLetterId::of(&delivery_id, 0),
                delivery_id,
                event_id: event.id.clone(),
                subscription_id: self.subscription.clone(),
                tenant: tenant(),
                kind: event.kind.clone(),
                reason: DeadReason::Exhausted,
                detail: String::new(),
                attempts: 1,
                run: 0,
                died_at: now(),
                accepted_at: now(),
                history: Vec::new(),
                event,
                expunged_at: None,
            }
        };
        let letters: Vec<_> = (0..count).map(letter).collect();
        self.store.record_dead(&letters).await.unwrap();
        letters
    }

    async fn listed(&self) -> usize {
        let (filter, paging) = (DeadFilter::default(), Paging::default());
        let page = self.store.dead_letters(&Sight::All, &filter, &paging).await;
        page.unwrap().items.len()
    }

    async fn job(&self, kind: JobKind, rate: u32) -> JobId {
        let to = Some(self.subscription.clone());
        self.job_to(to, kind, rate).await
    }

    async fn job_to(&self, to: Option<SubscriptionId>, kind: JobKind, rate: u32) -> JobId {
        let job = Job {
            id: JobId::fresh(),
            tenant: Some(tenant()),
            kind,
            subscription_id: to,
            filter: JobFilter {
                until: Some(now()),
                ..Default::default()
            },
            state: JobState::Running,
            total: 0,
            done: 0,
            skipped: 0,
            rate,
            detail: None,
            created_at: now(),
            updated_at: now(),
        };
        match self.store.create_job(job).await.unwrap() {
            Created::New(job) => job.id,
            Created::Running(job) => panic!("{job:?} runs already"),
        }
    }

    async fn shown(&self, id: &JobId) -> Job {
        self.store.job(&Sight::All, id).await.unwrap().unwrap()
    }

    /// Waits until a job is as wanted.
    async fn until(&self, id: &JobId, wanted: impl Fn(&Job) -> bool) -> Job {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let job = self.shown(id).await;
            if wanted(&job) {
                return job;
            }
            assert!(Instant::now() < deadline, "{job:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn done(&self, id: &JobId) -> Job {
        self.until(id, |job| job.state == JobState::Done).await
    }

    /// Everything arrived once in `run`, and nothing else did.
    async fn each_once(&self, count: usize, run: u32) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.arrived.lock().unwrap().len() < count {
            assert!(Instant::now() < deadline, "{:?}", self.arrived);
            sleep(Duration::from_millis(20)).await;
        }
        let wanted = (0..count).map(|n| ((format!("e{n:03}"), run), 1)).collect();
        assert_eq!(*self.arrived.lock().unwrap(), wanted);
    }
}

fn entry(event: &Event, accepted_at: Timestamp, to: &SubscriptionId, run: u32) -> LogEntry {
    LogEntry {
        delivery_id: DeliveryId::of(&event.tenant, &event.id, to),
        event_id: event.id.clone(),
        subscription_id: to.clone(),
        tenant: event.tenant.clone(),
        kind: event.kind.clone(),
        accepted_at,
        at: now(),
        purpose: Purpose::Replay,
        run,
        attempts: 1,
        state: DeliveryState::Delivered,
        reason: None,
        detail: None,
        clause: None,
        due: None,
        attempt: None,
    }
}

struct Running {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Running {
    /// As SIGTERM does.
    async fn stop(mut self) {
        self.stop.cancel();
        (&mut self.task).await.unwrap();
    }

    async fn kill(self) {
        self.task.abort();
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Kills the recorder at the nth time that it comes to a point; another one goes on.
async fn killed(kind: JobKind, at: Point, nth: usize) {
    let house = House::new().await;
    match kind {
        JobKind::Replay => house.delivered(12).await,
        _ => drop(house.dead(12).await),
    }
    let _deliverer = house.deliverer().await;
    let id = house.job(kind, 25).await;
    let points = Points::at(at, nth);
    let first = house.recorder(Some(points.clone()));
    points.reached.notified().await;
    first.kill().await;
    let _second = house.recorder(None);
    let job = house.done(&id).await;
    house.each_once(12, 1).await;
    assert_eq!((job.total, job.done, job.skipped), (12, 12, 0));
    assert_eq!(house.listed().await, 0);
}

macro_rules! killed_at {
    ($($name:ident: $kind:ident, $point:ident, $nth:literal;)+) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            killed(JobKind::$kind, Point::$point, $nth).await;
        })+
    };
}

killed_at! {
    killed_before_the_first_step: Replay, Walked, 0;
    killed_before_the_first_step_is_published: Replay, Intended, 0;
    killed_before_a_later_step_is_published: Replay, Intended, 2;
    killed_before_the_first_step_is_settled: Replay, Published, 0;
    killed_before_a_later_step_is_settled: Replay, Published, 1;
    killed_between_two_steps: Replay, Settled, 1;
    killed_after_the_last_step: Replay, Settled, 2;
    killed_after_the_end: Replay, Ended, 0;
    killed_before_a_redrive_is_published: Redrive, Intended, 1;
    killed_before_a_redrive_is_settled: Redrive, Published, 1;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_still_sends_each_once() {
    let house = House::new().await;
    house.delivered(12).await;
    let _deliverer = house.deliverer().await;
    let id = house.job(JobKind::Replay, 25).await;
    for at in [Point::Published, Point::Intended, Point::Intended] {
        let points = Points::at(at, 0);
        let recorder = house.recorder(Some(points.clone()));
        points.reached.notified().await;
        recorder.kill().await;
    }
    let _last = house.recorder(None);
    house.done(&id).await;
    house.each_once(12, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_recorders_send_each_once() {
    let house = House::new().await;
    house.delivered(40).await;
    let _deliverer = house.deliverer().await;
    let id = house.job(JobKind::Replay, 250).await;
    let (_one, _other) = (house.recorder(None), house.recorder(None));
    house.done(&id).await;
    house.each_once(40, 1).await;
}

/// Two jobs that found the same dead letters, in two recorders: one sends each, the other passes
/// it over.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_overlap_send_each_once() {
    let house = House::new().await;
    house.dead(300).await;
    let jobs = [
        house.job(JobKind::Redrive, 1000).await,
        house.job_to(None, JobKind::Redrive, 1000).await,
    ];
    let _deliverer = house.deliverer().await;
    let _recorders = [house.recorder(None), house.recorder(None)];
    let [one, other] = [house.done(&jobs[0]).await, house.done(&jobs[1]).await];
    house.each_once(300, 1).await;
    assert_eq!(one.done + other.done, 300, "{one:?} {other:?}");
    assert_eq!(house.listed().await, 0);
}

/// What a call sends at this moment is passed over by a job.
#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_is_about_to_send_is_skipped() {
    let house = House::new().await;
    let letters = house.dead(3).await;
    let theirs = store::jobs::Sending {
        delivery_id: letters[1].delivery_id.clone(),
        accepted_at: letters[1].accepted_at,
        run: 1,
        letter: None,
        held: false,
    };
    let until = now() + SignedDuration::from_mins(1);
    let theirs = [theirs];
    let taken = house.store.take_runs("a call", &theirs, now(), until);
    assert_eq!(taken.await.unwrap(), [true]);
    let id = house.job(JobKind::Redrive, 1000).await;
    let _deliverer = house.deliverer().await;
    let _recorder = house.recorder(None);
    let job = house.done(&id).await;
    assert_eq!((job.done, job.skipped), (2, 1), "{job:?}");
    assert_eq!(house.listed().await, 1, "that is the call's to end");
    let deadline = Instant::now() + Duration::from_secs(60);
    while house.arrived.lock().unwrap().len() < 2 {
        assert!(Instant::now() < deadline, "{:?}", house.arrived);
        sleep(Duration::from_millis(20)).await;
    }
    let arrived = house.arrived.lock().unwrap().clone();
    let arrived: Vec<_> = arrived.into_keys().map(|(event, _)| event).collect();
    assert_eq!(arrived, ["e000", "e002"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_recorder_gives_its_job_back_at_once() {
    let house = House::new().await;
    house.delivered(12).await;
    let _deliverer = house.deliverer().await;
    let id = house.job(JobKind::Replay, 10).await;
    let first = house.recorder(None);
    house.until(&id, |job| job.done > 0).await;
    first.stop().await;
    let mut parts = house.parts(None);
    // Nobody may wait for this one.
    parts.pace.lease = Duration::from_secs(3600);
    let owner = "another";
    let now = now();
    let taken = house.store.take_job(owner, now, parts.until(now)).await;
    let task = taken.unwrap().expect("nobody has it");
    assert!(task.intent.is_none());
    Runner::new(parts, owner.into(), task, CancellationToken::new())
        .work()
        .await;
    house.done(&id).await;
    house.each_once(12, 1).await;
}

/// A broker whose confirms are lost: the parcel is stored, or it is not.
#[derive(Debug)]
struct Lossy {
    broker: Arc<dyn Publish>,
    stores: [bool; 2],
    calls: AtomicUsize,
}

impl Publish for Lossy {
    fn publish(&self, parcel: Parcel) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(async move {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            match self.stores.get(call) {
                None => self.broker.publish(parcel).await,
                Some(stores) => {
                    if *stores {
                        self.broker.publish(parcel).await?;
                    }
                    Err(PublishError::Unavailable)
                }
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_confirm_is_looked_up_and_not_sent_again() {
    let house = House::new().await;
    house.delivered(12).await;
    let _deliverer = house.deliverer().await;
    let id = house.job(JobKind::Replay, 25).await;
    let (parts, now) = (house.parts(None), now());
    let taken = house.store.take_job("one", now, parts.until(now)).await;
    let task = taken.unwrap().unwrap();
    let mut runner = Runner::new(parts, "one".into(), task, CancellationToken::new());
    runner.publisher = Arc::new(Lossy {
        broker: house.broker.publisher(),
        stores: [true, false],
        calls: AtomicUsize::new(0),
    });
    runner.work().await;
    house.done(&id).await;
    house.each_once(12, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canceled_job_stops_and_settles_what_it_sent() {
    let house = House::new().await;
    house.dead(12).await;
    let _deliverer = house.deliverer().await;
    let id = house.job(JobKind::Redrive, 25).await;
    let points = Points::at(Point::Published, 0);
    let first = house.recorder(Some(points.clone()));
    points.reached.notified().await;
    let canceled = house.store.cancel_job(&Sight::All, &id, now()).await;
    assert_eq!(canceled.unwrap().unwrap().state, JobState::Canceled);
    first.kill().await;
    let _second = house.recorder(None);
    let job = house.until(&id, |job| job.done > 0).await;
    assert_eq!((job.state, job.done), (JobState::Canceled, 5));
    // The letters of what was sent are gone; the others stay.
    assert_eq!(house.listed().await, 7);
    house.each_once(5, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_log_a_step_is_sent_a_second_time_and_no_third() {
    let mut house = House::new().await;
    house.archive = Archive::Off;
    house.dead(7).await;
    let _deliverer = house.deliverer().await;
    let id = house.job(JobKind::Redrive, 25).await;
    for _ in 0..2 {
        let points = Points::at(Point::Published, 0);
        let recorder = house.recorder(Some(points.clone()));
        points.reached.notified().await;
        recorder.kill().await;
    }
    let _third = house.recorder(None);
    let job = house.done(&id).await;
    assert_eq!((job.done, job.skipped), (2, 5));
    assert_eq!(
        house.listed().await,
        5,
        "nothing is lost: a person can see them"
    );
    let arrived = house.arrived.lock().unwrap();
    assert!(arrived.values().all(|times| *times <= 2), "{arrived:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn live_deliveries_come_first() {
    let house = House::new().await;
    house.delivered(3).await;
    let publisher = house.broker.publisher();
    let empty = serde_json::to_vec(&Bundle { items: Vec::new() }).unwrap();
    for n in 0..=DELIVER_MAX {
        let parcel = Parcel::json(Route::Deliver, n.to_string(), empty.clone());
        publisher.publish(parcel).await.unwrap();
    }
    let id = house.job(JobKind::Replay, 50).await;
    let _recorder = house.recorder(None);
    let held = |job: &Job| {
        job.detail
            .as_deref()
            .is_some_and(|detail| detail.starts_with("holding back"))
    };
    assert_eq!(house.until(&id, held).await.done, 0);
    let _deliverer = house.deliverer().await;
    house.done(&id).await;
    house.each_once(3, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_to_a_paused_subscription_waits_and_to_a_deleted_one_fails() {
    let house = House::new().await;
    house.delivered(3).await;
    house.set(SubscriptionState::Paused).await;
    let id = house.job(JobKind::Replay, 50).await;
    let _recorder = house.recorder(None);
    let waits = |job: &Job| job.detail.as_deref() == Some("waiting: the subscription is paused");
    assert_eq!(house.until(&id, waits).await.done, 0);
    let deleted = house
        .store
        .delete_subscription(&Sight::All, &house.subscription);
    assert!(deleted.await.unwrap());
    let failed = house.until(&id, |job| job.state == JobState::Failed).await;
    assert_eq!(
        failed.detail.as_deref(),
        Some("the subscription was deleted")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_counted_as_skipped() {
    let house = House::new().await;
    house.delivered(2).await;
    let mut bare = (*event("bare")).clone();
    bare.data = None;
    let archived = Archived {
        event: Arc::new(bare),
        accepted_at: now(),
        revision: 1,
        bytes: 100,
        matched: Vec::new(),
    };
    house.store.record(&[archived], &[]).await.unwrap();
    let _deliverer = house.deliverer().await;
    let id = house.job(JobKind::Replay, 50).await;
    let _recorder = house.recorder(None);
    let job = house.done(&id).await;
    assert_eq!((job.total, job.done, job.skipped), (3, 2, 1));
    house.each_once(2, 1).await;
    let id = EventId::parse("bare").unwrap();
    assert!(
        !house
            .arrived
            .lock()
            .unwrap()
            .contains_key(&(id.to_string(), 1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_held_goes_once_it_is_resumed_and_what_comes_late_goes_too() {
    let house = House::new().await;
    house.set(SubscriptionState::Paused).await;
    house.held(0..12).await;
    let _deliverer = house.deliverer_of(true).await;
    let points = Points::at(Point::Published, 0);
    let first = house.recorder(Some(points.clone()));
    // It looks many times in that.
    sleep(Duration::from_millis(200)).await;
    assert!(house.arrived.lock().unwrap().is_empty());
    house.set(SubscriptionState::Active).await;
    points.reached.notified().await;
    first.kill().await;
    let _second = house.recorder(None);
    house.each_once(12, 1).await;
    // A deliverer that had not heard of the resume.
    house.held(12..15).await;
    house.each_once(15, 1).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while house.store.count_held(&house.subscription).await.unwrap() > 0 {
        assert!(Instant::now() < deadline, "what was sent is still held");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_for_a_deleted_subscription_goes_to_the_deliverer() {
    let house = House::new().await;
    house.set(SubscriptionState::Paused).await;
    house.held(0..3).await;
    let deleted = house
        .store
        .delete_subscription(&Sight::All, &house.subscription);
    assert!(deleted.await.unwrap());
    let _deliverer = house.deliverer_of(true).await;
    let _recorder = house.recorder(None);
    house.each_once(3, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_lets_others_have_their_turn() {
    let house = House::new().await;
    house.delivered(3).await;
    house.set(SubscriptionState::Paused).await;
    let id = house.job(JobKind::Replay, 50).await;
    let (parts, now) = (house.parts(None), now());
    let taken = house.store.take_job("one", now, parts.until(now)).await;
    let task = taken.unwrap().unwrap();
    let runner = Runner::new(parts.clone(), "one".into(), task, CancellationToken::new());
    runner.work().await;
    let again = Timestamp::now();
    let taken = house.store.take_job("two", again, parts.until(again)).await;
    assert!(taken.unwrap().is_none(), "it waits in nobody's hands");
    assert_eq!(house.shown(&id).await.state, JobState::Running);
}
