//! The server: hyper over a bounded number of guarded connections, drained when asked to stop.

use std::{
    collections::HashMap,
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

use super::{
    Limits, Problem,
    guard::{Guarded, Phases},
    limit::plain,
};

/// Names a request in our answer and in our log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// After a failed accept (usually no file descriptors left): long enough for one to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end of a request's connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// An extension of an answer that has no end: its connection lasts for as long as the client goes
/// on taking something of it within the idle time. Whoever makes such an answer writes something
/// more often than that, and ends it when the process stops.
#[derive(Debug, Clone, Copy)]
pub struct Endless;

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot listen on {address}: {source}")]
pub struct BindError {
    /// The settings' key that names the address.
    pub key: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// Opens a listener for the address that `key` of the settings names.
pub async fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| BindError {
            key,
            address,
            source,
        })
}

/// Serves until `stop`, then takes no more connections, finishes the requests under way and
/// returns. Bound the wait from outside if need be; no request takes longer than its timeout.
pub async fn serve(listener: TcpListener, app: Router, limits: Limits, stop: CancellationToken) {
    let app = shell(app, limits.request_timeout);
    let room = Arc::new(Semaphore::new(limits.connections_max.max(1)));
    let graceful = GracefulShutdown::new();
    let crowd = Crowd::default();
    loop {
        let next = async {
            // Room first: what we cannot serve waits in the kernel's queue, not in our memory.
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else { break };
        match accepted {
            Ok((stream, peer)) => match crowd.enter(peer.ip(), &limits) {
                Some(place) => {
                    let held = (permit, place);
                    connect((stream, peer), held, app.clone(), &limits, &graceful);
                }
                None => tracing::debug!(%peer, "too many connections from one address"),
            },
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    graceful.shutdown().await;
}

/// How many connections each address has.
#[derive(Debug, Clone, Default)]
struct Crowd(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address, while this lives.
struct Place(Crowd, IpAddr);

impl Crowd {
    /// A place for one more, where there is one.
    fn enter(&self, peer: IpAddr, limits: &Limits) -> Option<Place> {
        let peer = plain(peer);
        let is_proxy = limits.trusted_proxies.iter().any(|net| net.contains(&peer));
        let mut crowd = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = crowd.entry(peer).or_default();
        if *count >= limits.connections_per_client_max.max(1) && !is_proxy {
            return None;
        }
        *count += 1;
        Some(Place(self.clone(), peer))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Self(crowd, peer) = self;
        let mut crowd = crowd.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = crowd.get_mut(peer) {
            *count -= 1;
            if *count == 0 {
                crowd.remove(peer);
            }
        }
    }
}

fn connect(
    (stream, peer): (TcpStream, SocketAddr),
    held: (OwnedSemaphorePermit, Place),
    app: Router,
    limits: &Limits,
    graceful: &GracefulShutdown,
) {
    // Answers are small and whole: waiting to fill a segment only costs latency.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was not set");
    }
    let phases = Phases::opened();
    let io = TokioIo::new(Guarded::new(stream, phases.clone()));
    let watched = (phases.clone(), limits.clone());
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let under_way = phases.begin();
        let answer = app.call(request.map(Body::new));
        let phases = phases.clone();
        async move {
            let answer: Result<Response, Infallible> = answer.await;
            drop(under_way);
            let endless = |answer: &Response| answer.extensions().get::<Endless>().is_some();
            if answer.as_ref().is_ok_and(endless) {
                phases.stream();
            }
            answer
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new());
    // The guard has both timeouts.
    server.header_read_timeout(None);
    server.max_buf_size(limits.header_bytes_max.max(8192));
    let connection = graceful.watch(server.serve_connection(io, service));
    tokio::spawn(async move {
        let (phases, limits) = watched;
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended early");
            },
            () = phases.dawdled(&limits) => tracing::debug!("a connection was too slow"),
        }
        drop(held);
    });
}

/// What every API of ours has around its routes: 404 and 405 as problems, a request id, a
/// timeout. [`serve`] puts it on.
pub fn shell(app: Router, request_timeout: Duration) -> Router {
    let ids = Arc::new(RequestIds::default());
    app.fallback(|| async { Problem::not_found() })
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this route does not have that method; `Allow` names those it has",
            )
        })
        .layer(middleware::from_fn(move |request, next| {
            around(Arc::clone(&ids), request_timeout, request, next)
        }))
}

async fn around(ids: Arc<RequestIds>, timeout: Duration, request: Request, next: Next) -> Response {
    let id = ids.of(&request);
    let started = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = tokio::time::timeout(timeout, next.run(request))
        .await
        .unwrap_or_else(|_| {
            Problem::unavailable(
                "timeout",
                format!("no answer within {} s", timeout.as_secs()),
            )
            .into_response()
        });
    let status = response.status().as_u16();
    let ms = started.elapsed().as_millis();
    if response.status().is_server_error() {
        tracing::warn!(request_id = ?id, %method, path, status, ms, "a request failed");
    } else {
        tracing::debug!(request_id = ?id, %method, path, status, ms, "answered");
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// Ids for requests that came without one: random for the process, counted within it.
#[derive(Debug)]
struct RequestIds {
    process: u64,
    count: AtomicU64,
}

impl Default for RequestIds {
    fn default() -> Self {
        // The standard library seeds its hasher from the system: unique enough for a log.
        Self {
            process: RandomState::new().hash_one(std::process::id()),
            count: AtomicU64::new(0),
        }
    }
}

impl RequestIds {
    /// The client's own id, where it is one that can be logged, or a fresh one.
    fn of(&self, request: &Request) -> HeaderValue {
        let given = request.headers().get(REQUEST_ID).filter(|given| {
            let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
            (1..=64).contains(&given.len()) && given.as_bytes().iter().all(fits)
        });
        given.cloned().unwrap_or_else(|| {
            let n = self.count.fetch_add(1, Ordering::Relaxed);
            let fresh = format!("{:016x}-{n:x}", self.process);
            HeaderValue::try_from(fresh).unwrap_or(HeaderValue::from_static("unknown"))
        })
    }
}
