//! How much one endpoint can take now, so that a bad one delays nobody else.
//!
//! [`health::Health`] decides (a window of attempts that grows with success and shrinks with
//! failure; a breaker on timeouts and connection errors); [`Endpoint`] holds the slots that follow
//! from it. A delivery that cannot have a slot soon is not kept waiting here: it is parked.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use event::reason::AttemptError;
use jiff::SignedDuration;
use prometheus::IntGaugeVec;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use crate::{outcome::Outcome, park::Cause};

mod health;

pub(crate) use health::{Bounds, Breaker};
use health::{Health, Sign};

/// One endpoint, as this process knows it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    inner: Mutex<Inner>,
    /// As many permits as the window is wide.
    slots: Arc<Semaphore>,
    /// How many deliveries wait for a slot in the process.
    waiting: AtomicUsize,
    gauge: IntGaugeVec,
}

#[derive(Debug)]
struct Inner {
    health: Health,
    /// How many slots there are now, those in use included.
    slots: usize,
    /// Slots in use that the window has shrunk away from: each vanishes when it is left.
    surplus: usize,
}

/// The permission to make one attempt. Left with what came of it; dropped, it only makes room.
#[derive(Debug)]
pub(crate) struct Slot {
    endpoint: Arc<Endpoint>,
    permit: Option<OwnedSemaphorePermit>,
}

/// Why there is no slot, and the least to wait.
pub(crate) type Refused = (Cause, Duration);

impl Endpoint {
    pub(crate) fn new(bounds: Bounds, gauge: IntGaugeVec) -> Self {
        let health = Health::new(bounds);
        let slots = health.window();
        gauge.with_label_values(&[health.breaker().word()]).inc();
        Self {
            inner: Mutex::new(Inner {
                health,
                slots,
                surplus: 0,
            }),
            slots: Arc::new(Semaphore::new(slots)),
            waiting: AtomicUsize::new(0),
            gauge,
        }
    }

    /// The subscription allows another number of attempts at once.
    pub(crate) fn set_window_max(&self, window_max: u32) {
        let mut inner = self.lock();
        inner.health.set_window_max(window_max);
        self.resize(&mut inner);
    }

    /// Whether nothing is known about it that is worth remembering.
    pub(crate) fn is_forgettable(&self) -> bool {
        let inner = self.lock();
        inner.health.breaker() == Breaker::Closed && self.slots.available_permits() == inner.slots
    }

    /// No more slots: what waits for one is refused. For a stop.
    pub(crate) fn close(&self) {
        self.slots.close();
    }

    /// A slot, at once or within `patience`; or why not. Waits only where the wait is likely to
    /// be worth it.
    pub(crate) async fn enter(self: &Arc<Self>, patience: Duration) -> Result<Slot, Refused> {
        self.admit()?;
        let slot = match self.enter_at_once() {
            Some(slot) => slot,
            None => self.wait(patience).await?,
        };
        // The breaker may have opened while this one waited.
        self.change(|health| health.pass(Instant::now()))?;
        Ok(slot)
    }

    /// [`Self::enter`] for what a person is waiting for: neither the breaker nor a pause that the
    /// endpoint asked for keeps it out, because how the endpoint is now is what is asked.
    pub(crate) async fn enter_anyway(
        self: &Arc<Self>,
        patience: Duration,
    ) -> Result<Slot, Refused> {
        match self.enter_at_once() {
            Some(slot) => Ok(slot),
            None => self.wait(patience).await,
        }
    }

    fn enter_at_once(self: &Arc<Self>) -> Option<Slot> {
        let permit = self.slots.clone().try_acquire_owned().ok()?;
        Some(self.slot(permit))
    }

    async fn wait(self: &Arc<Self>, patience: Duration) -> Result<Slot, Refused> {
        let queue = Waiting::join(&self.waiting);
        if self.lock().health.expected_wait(queue.ahead) > patience {
            return Err((Cause::Busy, Duration::ZERO));
        }
        match timeout(patience, self.slots.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(self.slot(permit)),
            Ok(Err(_closed)) => Err((Cause::Stopping, Duration::ZERO)),
            Err(_elapsed) => {
                self.lock().health.waited_in_vain(Instant::now(), patience);
                Err((Cause::Busy, Duration::ZERO))
            }
        }
    }

    /// Whether an attempt may be made now, or why not and the least to wait.
    pub(crate) fn admit(&self) -> Result<(), Refused> {
        self.change(|health| health.admit(Instant::now()))
    }

    fn slot(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Slot {
        Slot {
            endpoint: self.clone(),
            permit: Some(permit),
        }
    }

    /// Changes the health, and the slots and the gauge with it.
    fn change<T>(&self, how: impl FnOnce(&mut Health) -> T) -> T {
        let mut inner = self.lock();
        let before = inner.health.breaker();
        let result = how(&mut inner.health);
        let after = inner.health.breaker();
        if before != after {
            self.gauge.with_label_values(&[before.word()]).dec();
            self.gauge.with_label_values(&[after.word()]).inc();
        }
        self.resize(&mut inner);
        result
    }

    fn resize(&self, inner: &mut Inner) {
        let wanted = inner.health.window();
        if wanted > inner.slots {
            let more = wanted - inner.slots;
            let kept = more.min(inner.surplus);
            inner.surplus -= kept;
            self.slots.add_permits(more - kept);
        } else {
            let fewer = inner.slots - wanted;
            inner.surplus += fewer - self.slots.forget_permits(fewer);
        }
        inner.slots = wanted;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Counters stay usable even if a holder panicked between two of them.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let breaker = self.lock().health.breaker();
        self.gauge.with_label_values(&[breaker.word()]).dec();
    }
}

impl Slot {
    /// The attempt is over: the endpoint's health learns from it. `pause` is what the endpoint
    /// itself asked for.
    pub(crate) fn leave(
        self,
        outcome: &Outcome,
        pause: Option<SignedDuration>,
        jitter: impl FnOnce() -> f64,
    ) {
        let sign = match (pause, outcome.error, outcome.status) {
            (Some(pause), ..) => Sign::AskedPause(pause.unsigned_abs()),
            (_, None, _) => Sign::Well,
            (_, Some(AttemptError::TargetNotAllowed), _) => return,
            (_, Some(AttemptError::Status), Some(429 | 500..)) => Sign::Failing,
            (_, Some(_), Some(_)) => Sign::Answering,
            (_, Some(_), None) => Sign::Unreachable,
        };
        // Drawing costs two hashes, and success has no use for it.
        let jitter = if sign == Sign::Well { 0.0 } else { jitter() };
        let took = outcome.took;
        self.endpoint
            .change(|health| health.record(Instant::now(), sign, took, jitter));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        let mut inner = self.endpoint.lock();
        if inner.surplus > 0 {
            inner.surplus -= 1;
            permit.forget();
        }
    }
}

/// Counts a waiting delivery for as long as it waits, also when it is cut off.
struct Waiting<'a> {
    count: &'a AtomicUsize,
    ahead: usize,
}

impl<'a> Waiting<'a> {
    fn join(count: &'a AtomicUsize) -> Self {
        let ahead = count.fetch_add(1, Ordering::Relaxed);
        Self { count, ahead }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
