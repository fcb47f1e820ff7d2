//! It goes out: the life of a delivery.
//!
//! take -> filter -> view and render -> sign -> attempt -> verdict -> settle.
//!
//! A bundle is acknowledged only when each of its deliveries is settled: it arrived, it was not
//! wanted, or what was made from it (a retry on the ladder, a dead letter) is confirmed. Bounds
//! come first: so many deliveries in the process, so many attempts under way, so many of them to
//! one endpoint; what cannot go now is parked on the ladder, where it holds nothing up.
//!
//! The rooms: `take` and `settle` (the two ends), `bundle` (who may ack), `lane` (what is known of
//! a subscription), `endpoint` (what it can take now), `client` (the only way out), and the pure
//! ones: `sign`, `verdict`, `park`, `outcome` and `delivery`.

mod bundle;
pub mod client;
mod delivery;
mod endpoint;
mod lane;
pub mod metrics;
mod outcome;
mod park;
pub mod settings;
mod settle;
mod sign;
mod take;
mod verdict;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use broker::{Broker, Publish, Queue};
use dialect::{Dialects, Rendered};
use event::{
    SubscriptionId,
    filter::Stopped,
    reason::{AttemptError, DeadReason},
    retry::RetryPolicy,
    subscription::SubscriptionState,
};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use jiff::Timestamp;
use prometheus::IntGauge;
use store::feed::{Feed, Snapshot};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use bundle::Share;
use client::{Client, Post};
use delivery::Delivery;
use endpoint::{Bounds, Refused, Slot};
use lane::{Lane, Lanes};
pub use metrics::Metrics;
use outcome::Outcome;
use park::Cause;
pub use settings::{Egress, Settings};
use verdict::{Case, Verdict};

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
    /// Counters.
    pub metrics: Metrics,
    /// Takes the subscriptions whose endpoint answered 410, with the reason to disable them for.
    pub disable: mpsc::Sender<(SubscriptionId, String)>,
}

/// Why a deliverer could not begin, or ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client to endpoints cannot be built.
    #[error(transparent)]
    Client(#[from] client::BuildError),
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
/// The three headers of Standard Webhooks.
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
/// How soon a process that does not know a subscription yet looks again.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(1);
/// A subscription that is unknown after so many pauses in a row, more than a quarter of an hour, ...
const UNKNOWN_MAX: u32 = 60;
/// ... while the store answers, is not known to anybody.
const SNAPSHOT_FRESH: Duration = Duration::from_secs(10);

/// Delivers until `stop`, then finishes and settles what is under way, within the grace period.
/// What merely waits goes back to the queue.
pub async fn run(parts: Parts, stop: CancellationToken) -> Result<(), Error> {
    // Without subscriptions every delivery would look like one to a deleted subscription.
    if !first_snapshot(&parts.feed, &stop).await {
        return Ok(());
    }
    let prefetch = parts.settings.max_in_flight.clamp(16, 1000);
    let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
    let grace = parts.settings.grace;
    let broker = parts.broker.clone();
    let deliverer = Arc::new(Deliverer::new(parts)?);
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
    dialects: Arc<Dialects>,
    client: Client,
    lanes: Lanes,
    /// A permit for each delivery in the process.
    room: Arc<Semaphore>,
    room_max: usize,
    /// A permit for each attempt under way. Closed when the process stops.
    in_flight: Semaphore,
    wait_max: Duration,
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

/// How a delivery leaves the process.
enum End {
    Delivered,
    Filtered(Stopped),
    Retry(Timestamp),
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
        let Parts {
            broker,
            feed,
            dialects,
            settings,
            egress,
            metrics,
            disable,
        } = parts;
        let room_max = settings.max_in_flight * ROOM_PER_ATTEMPT;
        let bounds = Bounds {
            window_max: 1,
            failures_max: settings.breaker_failures,
            pause_max: settings.breaker_pause_max,
        };
        Ok(Self {
            publisher: broker.publisher(),
            feed,
            dialects,
            client: Client::new(&settings, &egress)?,
            lanes: Lanes::new(egress.rules(), bounds, metrics.endpoints.clone()),
            room: Arc::new(Semaphore::new(room_max)),
            room_max,
            in_flight: Semaphore::new(settings.max_in_flight),
            wait_max: settings.wait_max,
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
        let end = life.unwrap_or_else(|_panic| {
            error!(
                event_id = %delivery.event.id, subscription_id = %delivery.to.subscription,
                "a delivery panicked; it counts as a failed attempt, please report it"
            );
            self.broken_off(&mut delivery)
        });
        if self.settle(&mut delivery, &share, &end).await {
            self.tell(&delivery, &end);
            share.settle();
        }
    }

    async fn live(&self, delivery: &mut Delivery, share: &Share) -> End {
        loop {
            if share.is_void() {
                return End::Void;
            }
            let Some(snapshot) = self.feed.snapshot() else {
                return End::Parked((Cause::Snapshot, SNAPSHOT_PAUSE));
            };
            let lane = match self.look_up(delivery, &snapshot) {
                Ok(lane) => lane,
                Err(end) => return end,
            };
            if let Err(end) = wanted(delivery, &lane) {
                return end;
            }
            let place = match self.place(&lane).await {
                Ok(place) => place,
                Err(refused) => return End::Parked(refused),
            };
            // It may have waited: a subscription is judged as it is when the attempt is made, and
            // what the broker hands out again is attempted only then.
            if self.is_current(&lane) && !share.is_void() {
                return self.attempt(delivery, &lane, place).await;
            }
        }
    }

    fn look_up(&self, delivery: &Delivery, snapshot: &Snapshot) -> Result<Arc<Lane>, End> {
        let Some(stored) = snapshot.subscriptions.get(&delivery.to.subscription) else {
            if snapshot.revision >= delivery.revision {
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

    /// Waits for room at the endpoint first and in the process second, so that who waits for a
    /// slow endpoint takes nothing from anybody else.
    async fn place(&self, lane: &Lane) -> Result<Place<'_>, Refused> {
        let patience = self.patience();
        let slot = lane.endpoint.enter(patience).await?;
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

    /// How long a delivery may wait here: less once the room for waiting is half taken, because
    /// then it keeps others out.
    fn patience(&self) -> Duration {
        if self.room.available_permits() * 2 > self.room_max {
            self.wait_max
        } else {
            self.wait_max / CROWDED_PATIENCE
        }
    }

    async fn attempt(&self, delivery: &mut Delivery, lane: &Lane, place: Place<'_>) -> End {
        let now = Timestamp::now();
        let subscription = lane.subscription();
        let (headers, rendered) = match self.write(delivery, lane, now) {
            Ok(written) => written,
            Err(detail) => return End::Dead(DeadReason::RenderError, detail),
        };
        self.observe_lateness(delivery, now);
        let timeout = subscription.delivery.timeout;
        let outcome = match lane.target.clone() {
            Some(url) => {
                self.client
                    .post(Post {
                        url,
                        headers,
                        body: rendered.body,
                        timeout,
                    })
                    .await
            }
            None => client::not_allowed(),
        };
        drop(place.in_flight);
        debug!(
            event_id = %delivery.event.id, subscription_id = %subscription.id,
            delivery_id = %delivery.id(), tenant = %subscription.tenant,
            attempt = delivery.to.attempts + 1, view = ?rendered.view_sent,
            status = outcome.status, error = outcome.error.map(AttemptError::word),
            duration_ms = outcome.took.as_secs_f64() * 1000.0, "attempt made"
        );
        self.count_attempt(&outcome);
        let end = judge(delivery, &outcome, &subscription.delivery.retry, now);
        let pause = verdict::asked_pause(&outcome, Timestamp::now());
        place.slot.leave(&outcome, pause, || jitter(delivery));
        if matches!(end, End::Dead(DeadReason::Gone, _)) {
            self.ask_to_disable(&subscription.id);
        }
        end
    }

    /// The request's body and headers, signed as of `now`.
    fn write(
        &self,
        delivery: &Delivery,
        lane: &Lane,
        now: Timestamp,
    ) -> Result<(HeaderMap, Rendered), String> {
        let subscription = lane.subscription();
        let rendered = self
            .dialects
            .speaker(subscription)
            .and_then(|speaker| speaker.render(&delivery.event, None, subscription))
            .map_err(|error| error.to_string())?;
        let id = delivery.event.id.as_str();
        let signature = lane.signer.sign(id, now, &rendered.body);
        // The subscription's own headers first: ours take the place of any of the same name.
        let mut headers = lane.headers.clone();
        let mut set = |name: HeaderName, value: &str| {
            let value = HeaderValue::from_str(value)
                .map_err(|_| format!("the value of header {name} cannot be sent"))?;
            headers.insert(name, value);
            Ok::<_, String>(())
        };
        for (name, value) in &rendered.headers {
            let name = HeaderName::try_from(name).map_err(|_| format!("{name:?} is no header"))?;
            set(name, value)?;
        }
        set(header::CONTENT_TYPE, &rendered.content_type)?;
        set(WEBHOOK_ID, id)?;
        set(WEBHOOK_TIMESTAMP, &now.as_second().to_string())?;
        if !signature.is_empty() {
            set(WEBHOOK_SIGNATURE, &signature)?;
        }
        Ok((headers, rendered))
    }

    /// A panic of ours, wherever it was: the attempt it broke off may have arrived.
    fn broken_off(&self, delivery: &mut Delivery) -> End {
        let outcome = Outcome::failed(AttemptError::Reset, "our own handling broke off");
        let snapshot = self.feed.snapshot();
        let stored = snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.subscriptions.get(&delivery.to.subscription));
        match stored {
            Some(stored) => {
                let policy = &stored.subscription.delivery.retry;
                judge(delivery, &outcome, policy, Timestamp::now())
            }
            None => End::Parked((Cause::Snapshot, SNAPSHOT_PAUSE)),
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

/// Whether a delivery is to be made now at all, by what its subscription says at this moment.
fn wanted(delivery: &Delivery, lane: &Lane) -> Result<(), End> {
    lane.filter.judge(&delivery.event).map_err(End::Filtered)?;
    if let Some(end) = delivery.event.expires_at
        && end <= Timestamp::now()
    {
        return Err(End::Dead(
            DeadReason::Expired,
            format!("the event expired at {end}"),
        ));
    }
    match lane.subscription().state {
        SubscriptionState::Active => Ok(()),
        SubscriptionState::Paused | SubscriptionState::Disabled => {
            Err(End::Parked((Cause::Held, Duration::ZERO)))
        }
    }
}

/// Remembers an attempt that began at `begun`, and says what follows from it.
fn judge(
    delivery: &mut Delivery,
    outcome: &Outcome,
    policy: &RetryPolicy,
    begun: Timestamp,
) -> End {
    let attempts = delivery.to.attempts.saturating_add(1);
    if outcome.error.is_none() {
        return End::Delivered;
    }
    delivery.remember(outcome.record(attempts, begun));
    let case = Case {
        attempts,
        policy,
        expires_at: delivery.event.expires_at,
        now: Timestamp::now(),
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
