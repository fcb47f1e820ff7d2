//! How long the parts of a request took: marks that the resolver, the connector and the TLS
//! library leave while they work for it.
//!
//! The HTTP stack hands no times out, and calls what we gave it inside the request's own task: the
//! marks are found there. A connection that is finished in the background, because the request got
//! an idle one meanwhile, leaves none.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use event::log::Timing;
use futures_util::future::BoxFuture;
use rustls::{
    NamedGroup,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue,
        Tls13ClientSessionValue,
    },
    pki_types::ServerName,
};
use tokio::{task::futures::TaskLocalFuture, time::Instant};
use tower::{Layer, Service};

tokio::task_local! {
    static MARKS: Marks;
}

/// The marks of one request.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks(Arc<Mutex<Times>>);

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

fn mark(how: impl FnOnce(&mut Times)) {
    // Outside of a request (a connection finished in the background) there is nobody to tell.
    MARKS.try_with(|marks| how(&mut marks.lock())).ok();
}

/// A name was looked up.
pub(super) fn looked_up(from: Instant) {
    mark(|times| times.looked_up = Some((from, Instant::now())));
}

/// The connector with its beginning and its end marked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timed;

#[derive(Debug, Clone)]
pub(super) struct TimedConnector<S>(S);

impl<S> Layer<S> for Timed {
    type Service = TimedConnector<S>;

    fn layer(&self, connector: S) -> TimedConnector<S> {
        TimedConnector(connector)
    }
}

impl<S, Target> Service<Target> for TimedConnector<S>
where
    S: Service<Target>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, target: Target) -> Self::Future {
        let connecting = self.0.call(target);
        Box::pin(async move {
            mark(|times| {
                *times = Times {
                    begun: Some(Instant::now()),
                    ..Times::default()
                }
            });
            let connection = connecting.await?;
            mark(|times| times.connected = Some(Instant::now()));
            Ok(connection)
        })
    }
}

/// The sessions that TLS resumes, kept in memory as by default. A client asks for one as the first
/// thing in each handshake, which is the one sign of it that the library gives.
#[derive(Debug)]
pub(super) struct Sessions(ClientSessionMemoryCache);

impl Sessions {
    pub(super) fn new(names_max: usize) -> Self {
        Self(ClientSessionMemoryCache::new(names_max))
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(name, value);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(name)
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.0.remove_tls12_session(name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        mark(|times| times.handshake = Some(Instant::now()));
        self.0.take_tls13_ticket(name)
    }
}
