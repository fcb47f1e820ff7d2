//! An endpoint's health as a state machine: times come in, decisions go out. Pure.
//!
//! The window of attempts under way starts small, doubles per round while all is well, and halves
//! with failure. Timeouts and connection errors in a row open the breaker: nothing is attempted
//! for a pause that doubles each time, then one attempt at a time until one succeeds.

use std::time::Duration;

use tokio::time::Instant;

use crate::park::Cause;

mod recovery;

use recovery::{Bookings, Recovery, Usual};

/// The numbers an endpoint is held to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The subscription's `max_in_flight`.
    pub(crate) window_max: u32,
    /// Timeouts and connection errors in a row that open the breaker.
    pub(crate) failures_max: u32,
    /// The longest the breaker stays open at a time.
    pub(crate) pause_max: Duration,
}

/// Whether attempts are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Breaker {
    /// As many as the window allows.
    Closed,
    /// None.
    Open,
    /// One at a time, to see.
    HalfOpen,
}

impl Breaker {
    pub(crate) const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// The word in `postrider_endpoints{breaker}`.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// What an attempt says about the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// It took the delivery.
    Well,
    /// It answered, and what it did not like was the request.
    Answering,
    /// It answered that it is in trouble (429, 5xx).
    Failing,
    /// It did not answer: a timeout, no connection, or a broken one.
    Unreachable,
    /// It asked to be left alone for so long.
    AskedPause(Duration),
}

#[derive(Debug)]
pub(crate) struct Health {
    bounds: Bounds,
    /// Between 1 and the bound; its whole part is how many attempts may be under way.
    window: f64,
    /// Nothing has failed yet, so the window doubles per round instead of growing by one.
    doubling: bool,
    /// Attempts finished since the window last shrank: what was under way together counts once.
    since_cut: usize,
    /// A moving average of how long attempts take, in seconds; 0 while nothing is known.
    latency: f64,
    /// When an attempt last finished.
    finished: Option<Instant>,
    /// Nothing finished while somebody waited in vain, and nothing has since.
    stalled: bool,
    /// Unreachable in a row.
    failures: u32,
    /// How often the breaker opened in a row.
    opened: u32,
    breaker: Breaker,
    /// No attempt before this, by the breaker.
    open_until: Option<Instant>,
    /// No attempt before this, by the endpoint's own wish.
    quiet_until: Option<Instant>,
    /// When the breaker opened, since when no answer has come.
    away_since: Option<Instant>,
    usual: Usual,
    bookings: Bookings,
    /// It was away for long, and what waits for it is let through by and by.
    recovery: Option<Recovery>,
}

/// A new endpoint gets so many attempts at once.
const WINDOW_FIRST: u32 = 4;
/// An endpoint that answers, but slower than this, does not get a wider window: its attempts would
/// hold the process's own slots.
const SLOW: Duration = Duration::from_secs(2);
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// A pause grows by at most this share, so that endpoints do not come back in step.
const PAUSE_JITTER: f64 = 0.25;
/// An endpoint's own wish quiets it for at most so long; each delivery's own retry heeds the rest.
const QUIET_MAX: Duration = Duration::from_secs(300);
/// Who was away for less has no backlog that could be a flood.
const AWAY_LONG: Duration = Duration::from_secs(5);
/// The weight of the newest attempt in the average.
const NEWEST: f64 = 0.2;

impl Health {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            window: f64::from(WINDOW_FIRST.min(bounds.window_max)),
            doubling: true,
            since_cut: usize::MAX,
            latency: 0.0,
            finished: None,
            stalled: false,
            failures: 0,
            opened: 0,
            breaker: Breaker::Closed,
            open_until: None,
            quiet_until: None,
            away_since: None,
            usual: Usual::default(),
            bookings: Bookings::default(),
            recovery: None,
        }
    }

    pub(crate) fn set_window_max(&mut self, window_max: u32) {
        self.bounds.window_max = window_max;
        self.window = self.window.min(f64::from(window_max));
    }

    /// How many attempts may be under way.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and the bound by construction"
    )]
    pub(crate) fn window(&self) -> usize {
        self.window as usize
    }

    pub(crate) fn breaker(&self) -> Breaker {
        self.breaker
    }

    /// Whether an attempt may be made at `now`, or why not and for how long at least.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<(), (Cause, Duration)> {
        #[cfg(feature = "sim")]
        if self.breaker == Breaker::Open && broker::sim::planted("breaker never closes") {
            return Err((Cause::Breaker, PAUSE_FIRST));
        }
        if self.breaker == Breaker::Open {
            match self.open_until.filter(|until| now < *until) {
                Some(until) => return Err((Cause::Breaker, self.look_again(now, until))),
                None => self.breaker = Breaker::HalfOpen,
            }
        }
        if let Some(until) = self.quiet_until
            && now < until
        {
            return Err((Cause::Throttled, self.look_again(now, until)));
        }
        self.recovery.take_if(|known| known.is_over(now));
        match &mut self.recovery {
            Some(recovery) => recovery
                .admit(now, &mut self.bookings)
                .map_err(|wait| (Cause::Recovering, wait)),
            None => Ok(()),
        }
    }

    /// The same for who has a slot and will use it.
    pub(crate) fn pass(&mut self, now: Instant) -> Result<(), (Cause, Duration)> {
        self.admit(now)?;
        match &mut self.recovery {
            Some(recovery) => recovery
                .pass(now, &mut self.bookings)
                .map_err(|wait| (Cause::Recovering, wait)),
            None => Ok(()),
        }
    }

    /// When a delivery may come back for a look, where none may go before `earliest`.
    fn look_again(&mut self, now: Instant, earliest: Instant) -> Duration {
        let usual = self.usual.per_second();
        self.bookings.look_again(now, earliest, usual)
    }

    /// How long a delivery behind `ahead` others will probably wait for a slot.
    pub(crate) fn expected_wait(&self, ahead: usize) -> Duration {
        if self.stalled {
            return Duration::MAX;
        }
        let ahead = f64::from(u32::try_from(ahead).unwrap_or(u32::MAX)) + 1.0;
        Duration::try_from_secs_f64(ahead * self.latency / self.window).unwrap_or(Duration::MAX)
    }

    /// A delivery waited so long for a slot in vain. Where nothing finished meanwhile, the next
    /// need not try before something does.
    pub(crate) fn waited_in_vain(&mut self, now: Instant, waited: Duration) {
        self.stalled = self
            .finished
            .is_none_or(|finished| now - finished >= waited);
    }

    /// Learns from a finished attempt. `jitter` is in `[0, 1)`.
    pub(crate) fn record(&mut self, now: Instant, sign: Sign, took: Duration, jitter: f64) {
        self.stalled = false;
        self.finished = Some(now);
        self.since_cut = self.since_cut.saturating_add(1);
        let took_s = took.as_secs_f64();
        self.latency = match self.latency {
            known if known > 0.0 => known + NEWEST * (took_s - known),
            _ => took_s,
        };
        match sign {
            Sign::Well => {
                self.reachable(now);
                self.usual.count(now);
                self.quiet_until = None;
                self.grow(took);
            }
            Sign::Answering => self.reachable(now),
            Sign::Failing => {
                self.reachable(now);
                // 5xx do not open the breaker: they come quickly, and each delivery has a
                // schedule of its own.
                self.shrink();
            }
            Sign::AskedPause(pause) => {
                self.reachable(now);
                self.shrink();
                let until = now + pause.min(QUIET_MAX);
                self.quiet_until = Some(self.quiet_until.map_or(until, |known| known.max(until)));
            }
            Sign::Unreachable => self.unreachable(now, jitter),
        }
    }

    fn reachable(&mut self, now: Instant) {
        self.failures = 0;
        self.opened = 0;
        self.breaker = Breaker::Closed;
        self.open_until = None;
        let since = self.away_since.take();
        if since.is_some_and(|since| now.saturating_duration_since(since) >= AWAY_LONG) {
            self.recovery = Some(Recovery::begin(now, self.usual.per_second()));
        }
    }

    fn unreachable(&mut self, now: Instant, jitter: f64) {
        self.failures = self.failures.saturating_add(1);
        self.shrink();
        // What was under way when the breaker opened fails after it: that is old news.
        let opens = match self.breaker {
            Breaker::Closed => self.failures >= self.bounds.failures_max,
            Breaker::HalfOpen => true,
            Breaker::Open => false,
        };
        if opens {
            let doubled = PAUSE_FIRST.saturating_mul(2_u32.saturating_pow(self.opened));
            let pause = doubled.min(self.bounds.pause_max);
            self.opened = self.opened.saturating_add(1);
            self.breaker = Breaker::Open;
            self.away_since.get_or_insert(now);
            self.open_until = Some(now + pause.mul_f64(1.0 + PAUSE_JITTER * jitter));
            self.window = 1.0;
        }
    }

    fn grow(&mut self, took: Duration) {
        if took > SLOW {
            self.doubling = false;
            return;
        }
        let step = if self.doubling {
            1.0
        } else {
            1.0 / self.window
        };
        self.window = (self.window + step).min(f64::from(self.bounds.window_max));
    }

    fn shrink(&mut self) {
        self.doubling = false;
        if self.since_cut >= self.window() {
            self.since_cut = 0;
            self.window = (self.window / 2.0).max(1.0);
        }
    }
}

#[cfg(test)]
mod tests;
