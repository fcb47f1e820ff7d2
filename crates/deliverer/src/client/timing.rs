//! How long the parts of a request took: marks that the dialler leaves while it works for it.
//!
//! The HTTP stack hands no times out, and calls the dialler inside the request's own task: the
//! marks are found there. A connection that is finished in the background, because the request got
//! an idle one meanwhile, leaves none.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use event::log::Timing;
use tokio::{task::futures::TaskLocalFuture, time::Instant};

use super::crowd::Place;

tokio::task_local! {
    static MARKS: Marks;
}

/// The marks of one request.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks(Arc<Mutex<Times>>, Arc<Mutex<Option<Place>>>);

#[derive(Debug, Clone, Copy, Default)]
struct Times {
    /// The connector was called: no idle connection was at hand.
    begun: Option<Instant>,
    /// The name's look-up, where there was a name.
    looked_up: Option<(Instant, Instant)>,
    /// The TLS handshake began: the connection stood.
    handshake: Option<Instant>,
    /// The connection is ready for requests.
    connected: Option<Instant>,
}

impl Marks {
    /// Runs a request so that what it does leaves its marks here.
    pub(super) fn on<F: Future>(&self, request: F) -> TaskLocalFuture<Self, F> {
        MARKS.scope(self.clone(), request)
    }

    /// What the marks say. `answered` is when the response's head came.
    pub(super) fn timing(&self, sent: Instant, answered: Option<Instant>) -> Timing {
        let times = *self.lock();
        let mut timing = Timing {
            first_byte: answered.map(|at| micros(at - sent)),
            ..Timing::default()
        };
        // Answered by a connection that was there already: what began beside it is not this
        // request's.
        if answered.is_some() && times.connected.is_none() {
            return timing;
        }
        timing.dns = times.looked_up.map(|(from, to)| micros(to - from));
        let dialled = times.looked_up.map(|(_, to)| to).or(times.begun);
        let stood = times.handshake.or(times.connected);
        let span = |from: Option<Instant>, to: Option<Instant>| {
            Some(micros(to?.saturating_duration_since(from?)))
        };
        timing.connect = span(dialled, stood);
        timing.tls = span(times.handshake, times.connected);
        timing
    }

    fn lock(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Microseconds, as the log has them.
pub(crate) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// What the dialler has come to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mark {
    /// It was called: no idle connection was at hand.
    Begun,
    /// The name is looked up; since when.
    LookedUp(Instant),
    /// The connection stands, and the TLS handshake begins.
    Handshake,
    /// The connection is ready for requests.
    Connected,
}

/// Leaves a mark with the request that is being worked for. Outside of one (a connection finished
/// in the background) there is nobody to tell.
pub(super) fn mark(mark: Mark) {
    let now = Some(Instant::now());
    let leave = |marks: &Marks| {
        let mut times = marks.lock();
        match mark {
            Mark::Begun => {
                *times = Times {
                    begun: now,
                    ..Times::default()
                }
            }
            Mark::LookedUp(from) => times.looked_up = now.map(|to| (from, to)),
            Mark::Handshake => times.handshake = now,
            Mark::Connected => times.connected = now,
        }
    };
    MARKS.try_with(leave).ok();
}

/// Gives a place at an address to the request that is being worked for, until that is over.
pub(super) fn hold(place: Option<Place>) {
    let keep = |marks: &Marks| {
        let mut held = marks.1.lock().unwrap_or_else(PoisonError::into_inner);
        *held = place;
    };
    MARKS.try_with(keep).ok();
}
