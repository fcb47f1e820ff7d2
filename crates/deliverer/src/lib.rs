//! It goes out: the life of a delivery.
//!
//! take -> filter -> view and render -> sign -> attempt -> verdict -> settle.
//!
//! A bundle is acknowledged only when each of its deliveries is settled: it arrived, it was not
//! wanted, or what was made from it (a retry on the ladder, a dead letter) is confirmed, and so is
//! what the log says of it. Bounds
//! come first: so many deliveries in the process, so many attempts under way, so many of them to
//! one endpoint; what cannot go now is parked on the ladder, where it holds nothing up.
//!
//! The rooms: `take` and `settle` (the two ends), `bundle` (who may ack), `lane` (what is known of
//! a subscription), `endpoint` (what it can take now), `views` (what events lack), `client` (the
//! only way out), `journal` (the delivery log), and the pure ones: `verdict`, `park`,
//! `outcome`, `record` and `delivery`.

mod bundle;
pub mod client;
mod delivery;
mod endpoint;
mod journal;
mod lane;
pub mod metrics;
mod outcome;
mod park;
mod record;
pub mod settings;
mod settle;
#[cfg(feature = "sim")]
pub mod sim;
mod take;
mod verdict;
mod views;
mod way;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use broker::{Broker, Publish, Queue, clock};
use dialect::{Dialects, Rendered, Writing};
use event::{
    Subscription, SubscriptionId,
    delivery::Purpose,
    event::DEPTH_MAX,
    filter::Stopped,
    log::{Archive, Attempt},
    reason::{AttemptError, DeadReason},
    subscription::{Ordering, SubscriptionState},
};
use futures_util::FutureExt;
use http::HeaderMap;
use jiff::Timestamp;
use prometheus::IntGauge;
use store::{
    feed::{Feed, Snapshot},
    gate::{Gate, Pass},
    versions::{Newer, Sending},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use bundle::Share;
use client::{Client, Keep, Post};
use delivery::Delivery;
use endpoint::{Bounds, Refused, Slot};
use journal::Journal;
use lane::{Lane, Lanes};
pub use metrics::Metrics;
use outcome::Outcome;
use park::Cause;
use record::Sent;
pub use settings::{Egress, Loaders, Settings};
use verdict::{Case, Verdict};
pub use views::BadLoader;
use views::{Loaded, Miss, Views};
use way::Way;

/// What a deliverer needs.
#[derive(Debug)]
pub struct Parts {
    /// Where bundles come from, and retries and dead letters go.
    pub broker: Broker,
    /// The subscriptions.
    pub feed: Feed,
    /// How deliveries are written.
    pub dialects: Arc<Dialects>,
    /// Bounds.
    pub settings: Settings,
    /// Where deliveries may go.
    pub egress: Egress,
    /// Where the views are fetched that events lack.
    pub loaders: Loaders,
    /// How much the log says.
    pub archive: Archive,
    /// Counters.
    pub metrics: Metrics,
    /// Knows which versions were sent; without it, deliveries that must know wait.
    pub gate: Option<Gate>,
    /// Takes the subscriptions whose endpoint answered 410, with the reason to disable them for.
    pub disable: mpsc::Sender<(SubscriptionId, String)>,
}

/// Why a deliverer could not begin, or ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client to endpoints cannot be built.
    #[error(transparent)]
    Client(#[from] client::BuildError),
    /// A loader cannot be used.
    #[error(transparent)]
    Loader(#[from] BadLoader),
    /// A metric cannot be made.
    #[error("a metric cannot be made")]
    Metrics(#[source] prometheus::Error),
    /// The consumer is over.
    #[error("the deliverer's consumer ended although nobody stopped it")]
    QueueEnded,
}

/// So many deliveries are in the process for each attempt that may be under way: they wait for
/// their turn, or for the confirm of what was made from them.
const ROOM_PER_ATTEMPT: usize = 4;
/// While more than half of that room is taken, a delivery's patience is this part of `wait_max`.
const CROWDED_PATIENCE: u32 = 4;
/// A lane that nobody used for so long is forgotten.
const IDLE_LANE: Duration = Duration::from_secs(600);
/// How soon a process that does not know a subscription yet looks again.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(1);
/// How soon what waits for the store looks again.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// A subscription that is unknown after so many pauses in a row, more than a quarter of an hour, ...
const UNKNOWN_MAX: u32 = 60;
/// ... while the store answers, is not known to anybody.
const SNAPSHOT_FRESH: Duration = Duration::from_secs(10);

/// Delivers until `stop`, then finishes and settles what is under way, within the grace period.
/// What merely waits goes back to the queue.
pub async fn run(parts: Parts, stop: CancellationToken) -> Result<(), Error> {
    run_by(parts, stop, Deliverer::new).await
}

async fn run_by(
    parts: Parts,
    stop: CancellationToken,
    deliverer: impl FnOnce(Parts) -> Result<Deliverer, Error>,
) -> Result<(), Error> {
    // Without subscriptions every delivery would look like one to a deleted subscription.
    if !first_snapshot(&parts.feed, &stop).await {
        return Ok(());
    }
    let prefetch = parts.settings.max_in_flight.clamp(16, 1000);
    let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
    let grace = parts.settings.grace;
    let broker = parts.broker.clone();
    let deliverer = Arc::new(deliverer(parts)?);
    let mut consumer = broker.consume(Queue::Deliver, prefetch).await;
    let mut under_way = JoinSet::new();
    let ended = deliverer
        .take_all(consumer.as_mut(), &mut under_way, &stop)
        .await;
    if timeout_at(
        Instant::now() + grace,
        deliverer.drain(consumer.as_mut(), &mut under_way),
    )
    .await
    .is_err()
    {
        // Their bundles go back; what was delivered of them is delivered again.
        warn!(
            unsettled = under_way.len(),
            "the grace period is over, deliveries are cut off"
        );
        under_way.shutdown().await;
    }
    ended
}

async fn first_snapshot(feed: &Feed, stop: &CancellationToken) -> bool {
    let mut watch = feed.watch();
    loop {
        if watch.borrow_and_update().is_some() {
            return true;
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            changed = watch.changed() => if changed.is_err() { return false },
        }
    }
}

struct Deliverer {
    publisher: Arc<dyn Publish>,
    feed: Feed,
    way: Way,
    lanes: Lanes,
    views: Views,
    journal: Journal,
    /// A permit for each delivery in the process.
    room: Arc<Semaphore>,
    room_max: usize,
    /// A permit for each attempt under way. Closed when the process stops.
    in_flight: Semaphore,
    wait_max: Duration,
    gate: Option<Gate>,
    metrics: Metrics,
    disable: mpsc::Sender<(SubscriptionId, String)>,
}

/// A delivery that was taken, with what its taking must give back.
struct Taken {
    delivery: Delivery,
    share: Share,
    /// Given back after the share, with the struct.
    _room: Option<OwnedSemaphorePermit>,
}

/// What came of a delivery in this process.
struct Turn {
    end: End,
    /// The attempt that was made, for the log.
    attempt: Option<Box<Attempt>>,
}

impl From<End> for Turn {
    fn from(end: End) -> Self {
        Self { end, attempt: None }
    }
}

/// How a delivery leaves the process.
enum End {
    Delivered,
    Filtered(Stopped),
    /// A newer version of its subject was sent before.
    Superseded(Newer),
    Retry(Timestamp),
    /// Its subscription is paused or disabled, in words.
    Held(String),
    Parked(Refused),
    Dead(DeadReason, String),
    /// The broker hands it out again: nothing is made of this copy.
    Void,
}

/// What one attempt may take up: a slot of its endpoint and one of the process.
struct Place<'a> {
    slot: Slot,
    in_flight: InFlight<'a>,
}

struct InFlight<'a> {
    gauge: &'a IntGauge,
    _permit: SemaphorePermit<'a>,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Deliverer {
    fn new(parts: Parts) -> Result<Self, Error> {
        let publisher = parts.broker.publisher();
        Self::publishing_by(publisher, parts)
    }

    fn publishing_by(publisher: Arc<dyn Publish>, parts: Parts) -> Result<Self, Error> {
        let client = Client::new(&parts.settings, &parts.egress)?;
        Self::going_by(publisher, parts, Way::Guarded(Box::new(client)))
    }

    fn going_by(publisher: Arc<dyn Publish>, parts: Parts, way: Way) -> Result<Self, Error> {
        let Parts {
            broker: _,
            feed,
            dialects,
            settings,
            egress,
            loaders,
            archive,
            metrics,
            gate,
            disable,
        } = parts;
        let room_max = settings.max_in_flight * ROOM_PER_ATTEMPT;
        let bounds = Bounds {
            window_max: 1,
            failures_max: settings.breaker_failures,
            pause_max: settings.breaker_pause_max,
        };
        let counters = journal::Counters {
            entries: metrics.log_entries.clone(),
            batches: metrics.log_batches.clone(),
        };
        Ok(Self {
            feed,
            way,
            lanes: Lanes::new(dialects, egress.rules(), bounds, metrics.endpoints.clone()),
            views: Views::new(&loaders, &settings, &egress, metrics.loads.clone())?,
            journal: Journal::new(archive, publisher.clone(), counters),
            publisher,
            room: Arc::new(Semaphore::new(room_max)),
            room_max,
            in_flight: Semaphore::new(settings.max_in_flight),
            wait_max: settings.wait_max,
            gate,
            metrics,
            disable,
        })
    }
}

impl Deliverer {
    /// Carries a delivery from its taking to its settlement.
    async fn carry(self: Arc<Self>, taken: Taken) {
        let Taken {
            mut delivery,
            share,
            _room,
        } = taken;
        let life = AssertUnwindSafe(self.live(&mut delivery, &share))
            .catch_unwind()
            .await;
        let turn = life.unwrap_or_else(|_panic| {
            error!(
                event_id = %delivery.event.id, subscription_id = %delivery.to.subscription,
                "a delivery panicked; it counts as a failed attempt, please report it"
            );
            self.broken_off(&mut delivery)
        });
        let Turn { end, attempt } = turn;
        if self.settle(&mut delivery, &share, &end, attempt).await {
            self.tell(&delivery, &end);
            share.settle();
        }
    }

    async fn live(&self, delivery: &mut Delivery, share: &Share) -> Turn {
        loop {
            if share.is_void() {
                return End::Void.into();
            }
            let Some(snapshot) = self.feed.snapshot() else {
                return End::Parked((Cause::Snapshot, SNAPSHOT_PAUSE)).into();
            };
            let lane = match self.look_up(delivery, &snapshot) {
                Ok(lane) => lane,
                Err(end) => return end.into(),
            };
            if let Err(end) = wanted(delivery, &lane) {
                if matches!(end, End::Held(_)) && self.catch_up(delivery, &snapshot).await {
                    continue;
                }
                return end.into();
            }
            let loaded = match self.load(delivery, &lane).await {
                Ok(loaded) => loaded,
                Err(Miss::Refused(refused)) => return End::Parked(refused).into(),
                Err(Miss::Failed(outcome)) => return self.not_written(delivery, &lane, &outcome),
            };
            let place = match self.place(&lane, delivery.to.purpose).await {
                Ok(place) => place,
                Err(refused) => return End::Parked(refused).into(),
            };
            if let Err(end) = self.pass(delivery, &lane).await {
                return end.into();
            }
            // It may have waited: a subscription is judged as it is when the attempt is made, and
            // what the broker hands out again is attempted only then.
            if self.is_current(&lane) && !share.is_void() {
                return self.attempt(delivery, &lane, &loaded, place).await;
            }
        }
    }

    /// Whoever sent this delivery had seen changes that `snapshot` lacks: waits for those, and says
    /// whether they have come. Without it, what a resume sends would be held again by a deliverer
    /// that has not heard of the resume, and would come behind what was younger.
    async fn catch_up(&self, delivery: &Delivery, snapshot: &Snapshot) -> bool {
        if snapshot.revision >= delivery.revision {
            return false;
        }
        let seen = |snapshot: &Snapshot| snapshot.revision >= delivery.revision;
        self.feed.shows(self.patience(), seen).await;
        self.feed.snapshot().is_some_and(|snapshot| seen(&snapshot))
    }

    fn look_up(&self, delivery: &Delivery, snapshot: &Snapshot) -> Result<Arc<Lane>, End> {
        let Some(stored) = snapshot.subscriptions.get(&delivery.to.subscription) else {
            let is_known = snapshot.revision >= delivery.revision;
            #[cfg(feature = "sim")]
            let is_known =
                is_known || broker::sim::planted("unknown subscription taken for deleted");
            if is_known {
                let detail = "the subscription was deleted before the delivery was made";
                return Err(End::Dead(DeadReason::SubscriptionDeleted, detail.into()));
            }
            if delivery.to.parked >= UNKNOWN_MAX && self.feed.age() < SNAPSHOT_FRESH {
                let detail = "the store knows neither the subscription nor the change that made \
                              it: an older copy of the store may have been restored";
                return Err(End::Dead(DeadReason::SubscriptionDeleted, detail.into()));
            }
            // The router has seen changes that this process has not.
            self.feed.nudge();
            return Err(End::Parked((Cause::Snapshot, SNAPSHOT_PAUSE)));
        };
        self.lanes
            .to(stored)
            .map_err(|detail| End::Dead(DeadReason::RenderError, detail))
    }

    fn is_current(&self, lane: &Lane) -> bool {
        let known = lane.subscription();
        self.feed.snapshot().is_some_and(|snapshot| {
            snapshot
                .subscriptions
                .get(&known.id)
                .is_some_and(|stored| stored.subscription.revision <= known.revision)
        })
    }

    /// The view that the subscription wants and the event lacks, where there is a loader of it.
    /// Asked for before there is a place, so that nobody waits for a loader with a permit in hand.
    async fn load(&self, delivery: &Delivery, lane: &Lane) -> Result<Loaded, Miss> {
        let Some(view) = lane.speaker.missing_view(&delivery.event) else {
            return Ok(Loaded::default());
        };
        // What cannot be attempted now needs no view now.
        if delivery.to.purpose != Purpose::Test {
            lane.endpoint.admit().map_err(Miss::Refused)?;
        }
        let patience = self.patience();
        self.views.load(&delivery.event, view, patience).await
    }

    /// Waits for room at the endpoint first and in the process second, so that who waits for a
    /// slow endpoint takes nothing from anybody else.
    async fn place(&self, lane: &Lane, purpose: Purpose) -> Result<Place<'_>, Refused> {
        let patience = self.patience();
        let slot = match purpose {
            Purpose::Test => lane.endpoint.enter_anyway(patience).await?,
            Purpose::Live | Purpose::Replay => lane.endpoint.enter(patience).await?,
        };
        lane.keep_rate(patience).await?;
        let permit = self
            .in_flight
            .acquire()
            .await
            .map_err(|_closed| (Cause::Stopping, Duration::ZERO))?;
        let gauge = &self.metrics.in_flight;
        gauge.inc();
        Ok(Place {
            slot,
            in_flight: InFlight {
                gauge,
                _permit: permit,
            },
        })
    }

    /// Whether it may still be sent, where its subscription wants only what is newest. Asked last,
    /// with a place in hand: between the answer and the attempt nothing is waited for.
    async fn pass(&self, delivery: &Delivery, lane: &Lane) -> Result<(), End> {
        let subscription = lane.subscription();
        // A test is no version of anything.
        if subscription.delivery.ordering == Ordering::None || delivery.to.purpose == Purpose::Test
        {
            return Ok(());
        }
        let Some(sending) = Sending::of(&delivery.event, &subscription.id) else {
            return Ok(());
        };
        let pass = match &self.gate {
            Some(gate) => gate.pass(sending).await,
            None => Pass::Unknown,
        };
        match pass {
            Pass::Go => Ok(()),
            Pass::Overtaken(newer) => Err(End::Superseded(newer)),
            Pass::Unknown => Err(End::Parked((Cause::Store, STORE_PAUSE))),
        }
    }

    /// How long a delivery may wait here: less once the room for waiting is half taken, because
    /// then it keeps others out.
    fn patience(&self) -> Duration {
        if self.room.available_permits() * 2 > self.room_max {
            self.wait_max
        } else {
            self.wait_max / CROWDED_PATIENCE
        }
    }

    async fn attempt(
        &self,
        delivery: &mut Delivery,
        lane: &Lane,
        loaded: &Loaded,
        place: Place<'_>,
    ) -> Turn {
        let now = clock::now();
        let subscription = lane.subscription();
        let (headers, rendered) = match self.write(delivery, lane, loaded, now) {
            Ok(written) => written,
            Err(detail) => return End::Dead(DeadReason::RenderError, detail).into(),
        };
        let archive = self.journal.archive();
        let view = rendered.view_sent;
        let sent = (archive != Archive::Off)
            .then(|| Sent::request(&headers, &rendered.body, view, loaded.note.clone()));
        self.observe_lateness(delivery, now);
        let outcome = match lane.target.clone() {
            Some(url) => {
                self.way
                    .post(Post {
                        url,
                        headers,
                        body: rendered.body,
                        timeout: subscription.delivery.timeout,
                        keep: match archive {
                            Archive::Full => Keep::All,
                            Archive::Headers => Keep::Headers,
                            Archive::Off => Keep::Nothing,
                        },
                    })
                    .await
            }
            None => Ok(client::not_allowed()),
        };
        drop(place.in_flight);
        let Ok(outcome) = outcome else {
            return End::Parked((Cause::Crowded, Duration::ZERO)).into();
        };
        debug!(
            event_id = %delivery.event.id, subscription_id = %subscription.id,
            delivery_id = %delivery.id(), tenant = %subscription.tenant,
            attempt = delivery.to.attempts + 1, view = ?view,
            status = outcome.status, error = outcome.error.map(AttemptError::word),
            duration_ms = outcome.took.as_secs_f64() * 1000.0, "attempt made"
        );
        self.count_attempt(&outcome);
        let not_retried = &lane.speaker.policy().not_retried;
        let end = judge(delivery, &outcome, subscription, not_retried, now);
        let pause = verdict::asked_pause(&outcome, clock::now());
        place.slot.leave(&outcome, pause, || jitter(delivery));
        if matches!(end, End::Dead(DeadReason::Gone, _)) && delivery.to.purpose != Purpose::Test {
            self.ask_to_disable(&subscription.id);
        }
        let number = delivery.to.attempts;
        Turn {
            end,
            attempt: sent.map(|sent| record::attempt(number, now, sent, &outcome, archive)),
        }
    }

    /// An attempt that failed before there was anything to send: the loader of a view that the
    /// event lacks failed.
    fn not_written(&self, delivery: &mut Delivery, lane: &Lane, outcome: &Outcome) -> Turn {
        let now = clock::now();
        let subscription = lane.subscription();
        debug!(
            event_id = %delivery.event.id, subscription_id = %subscription.id,
            delivery_id = %delivery.id(), attempt = delivery.to.attempts + 1,
            error = outcome.error.map(AttemptError::word), detail = outcome.detail,
            "attempt failed for want of its view"
        );
        self.count_attempt(outcome);
        let begun = now.saturating_sub(outcome.took).unwrap_or(now);
        let end = judge(delivery, outcome, subscription, &[], begun);
        let archive = self.journal.archive();
        let sent = Sent::nothing(subscription.view);
        let attempt = record::attempt(delivery.to.attempts, begun, sent, outcome, archive);
        Turn {
            end,
            attempt: Some(attempt),
        }
    }

    /// The request's body and headers, signed as of `now`.
    fn write(
        &self,
        delivery: &Delivery,
        lane: &Lane,
        loaded: &Loaded,
        now: Timestamp,
    ) -> Result<(HeaderMap, Rendered), String> {
        let writing = Writing {
            subscription: lane.subscription(),
            speaker: &lane.speaker,
            signer: &lane.signer,
            headers: &lane.headers,
            event: &delivery.event,
            loaded: loaded.view.as_ref().map(|(view, text)| (*view, &**text)),
            purpose: delivery.to.purpose,
        };
        writing.sign(now)
    }

    /// A panic of ours, wherever it was: the attempt it broke off may have arrived.
    fn broken_off(&self, delivery: &mut Delivery) -> Turn {
        let outcome = Outcome::failed(AttemptError::Reset, "our own handling broke off");
        let snapshot = self.feed.snapshot();
        let stored = snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.subscriptions.get(&delivery.to.subscription));
        let Some(stored) = stored else {
            return End::Parked((Cause::Snapshot, SNAPSHOT_PAUSE)).into();
        };
        let now = clock::now();
        let end = judge(delivery, &outcome, &stored.subscription, &[], now);
        let sent = Sent::nothing(stored.subscription.view);
        let archive = self.journal.archive();
        let attempt = record::attempt(delivery.to.attempts, now, sent, &outcome, archive);
        Turn {
            end,
            attempt: Some(attempt),
        }
    }

    fn ask_to_disable(&self, id: &SubscriptionId) {
        let reason = "the endpoint answered 410 Gone";
        // Never waited for: while nobody listens, the next 410 asks again.
        if self.disable.try_send((id.clone(), reason.into())).is_err() {
            warn!(subscription_id = %id, "nobody takes the request to disable the subscription");
        }
    }
}

/// Whether a delivery is to be made now at all, by what its subscription says at this moment. A
/// test is a person's own wish: no filter, no pause and no disabling keeps it back.
fn wanted(delivery: &Delivery, lane: &Lane) -> Result<(), End> {
    let is_test = delivery.to.purpose == Purpose::Test;
    if !is_test {
        lane.speaker
            .judge(&delivery.event)
            .and_then(|()| lane.filter.judge(&delivery.event))
            .map_err(End::Filtered)?;
    }
    if let Some(end) = delivery.event.expires_at
        && end <= clock::now()
    {
        return Err(End::Dead(
            DeadReason::Expired,
            format!("the event expired at {end}"),
        ));
    }
    if delivery.event.depth >= DEPTH_MAX {
        let detail = format!(
            "{DEPTH_MAX} webhooks in a row led to this event: its receivers send it round in circles"
        );
        return Err(End::Dead(DeadReason::Refused, detail));
    }
    let subscription = lane.subscription();
    match subscription.state {
        _ if is_test => Ok(()),
        SubscriptionState::Active => Ok(()),
        SubscriptionState::Paused if subscription.id.is_listener() => {
            Err(End::Held("it waits for its listener".into()))
        }
        SubscriptionState::Paused => Err(End::Held("the subscription is paused".into())),
        SubscriptionState::Disabled => {
            let why = subscription.disabled_reason.as_deref();
            let why = why.map_or(String::new(), |why| format!(": {why}"));
            Err(End::Held(format!("the subscription is disabled{why}")))
        }
    }
}

/// Remembers an attempt that began at `begun`, and says what follows from it.
fn judge(
    delivery: &mut Delivery,
    outcome: &Outcome,
    subscription: &Subscription,
    not_retried: &[u16],
    begun: Timestamp,
) -> End {
    let attempts = delivery.to.attempts.saturating_add(1);
    if outcome.error.is_none() {
        delivery.to.attempts = attempts;
        return End::Delivered;
    }
    delivery.remember(outcome.record(attempts, begun));
    let case = Case {
        attempts,
        policy: &subscription.delivery.retry,
        not_retried,
        once: delivery.to.purpose == Purpose::Test,
        expires_at: delivery.event.expires_at,
        now: clock::now(),
        jitter: jitter(delivery),
    };
    match verdict::decide(outcome, &case) {
        Verdict::Delivered => End::Delivered,
        Verdict::RetryAt(due) => End::Retry(due),
        Verdict::Dead(reason, detail) => End::Dead(reason, detail),
    }
}

/// A number in `[0, 1)` that differs between deliveries and between their turns.
fn jitter(delivery: &Delivery) -> f64 {
    let turn = delivery.to.attempts.wrapping_add(delivery.to.parked);
    park::jitter(delivery.id().as_str(), turn)
}

#[cfg(test)]
mod tests;
