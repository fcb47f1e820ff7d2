//! HTTP as all our listeners speak it: problem answers, bodies with a bound, a server that a slow
//! or huge client cannot hold.

mod guard;
mod limit;
mod problem;
mod serve;

use std::{
    future::poll_fn,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    time::Duration,
};

use axum::body::{self, Body};
use bytes::Bytes;
use bytesize::ByteSize;
use http::{HeaderMap, StatusCode, header};
use hyper::body::Body as _;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use limit::{Limiter, RateLimit};
pub use problem::{FieldError, Problem};
pub use serve::{BindError, Endless, bind, serve, shell};

/// `[api]` of the settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the API answers; default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// The largest body of a request, for batches of events; default `4MiB`, 256 KiB to 64 MiB.
    pub body_max: ByteSize,
    /// How many connections may be open at once; default 1024, 1 to 65 536. One more waits.
    pub connections_max: usize,
    /// How many of them one address may have; default 512. One more is closed at once.
    pub connections_per_client_max: usize,
    /// How often a client may ask.
    pub rate_limit: RateLimit,
    /// The proxies in front: whom they speak for is read from `X-Forwarded-For`; default none.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            body_max: ByteSize::mib(4),
            connections_max: 1024,
            connections_per_client_max: 512,
            rate_limit: RateLimit::default(),
            trusted_proxies: Vec::new(),
        }
    }
}

impl Settings {
    /// Every value out of its bounds: its key and what it must be.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if !(ByteSize::kib(256)..=ByteSize::mib(64)).contains(&self.body_max) {
            faults.push(("api.body_max", "must be 256KiB to 64MiB".to_owned()));
        }
        if !(1..=65_536).contains(&self.connections_max) {
            faults.push(("api.connections_max", "must be 1 to 65536".to_owned()));
        }
        if !(1..=65_536).contains(&self.connections_per_client_max) {
            let must = "must be 1 to 65536".to_owned();
            faults.push(("api.connections_per_client_max", must));
        }
        faults
    }
}

/// What a listener allows a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// From the first byte of a request (or the connection's opening) to the end of its headers.
    pub header_timeout: Duration,
    /// How long a connection may lie between two requests.
    pub idle_timeout: Duration,
    /// From the end of the headers to the answer.
    pub request_timeout: Duration,
    /// How many connections may be open at once; one more waits.
    pub connections_max: usize,
    /// How many of them one address may have; one more is closed at once.
    pub connections_per_client_max: usize,
    /// Proxies, whose connections are those of many.
    pub trusted_proxies: Vec<IpNet>,
    /// The largest header block, in bytes.
    pub header_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(30),
            connections_max: 1024,
            connections_per_client_max: 1024,
            trusted_proxies: Vec::new(),
            header_bytes_max: 32 * 1024,
        }
    }
}

impl From<&Settings> for Limits {
    fn from(settings: &Settings) -> Self {
        Self {
            connections_max: settings.connections_max,
            connections_per_client_max: settings.connections_per_client_max,
            trusted_proxies: settings.trusted_proxies.clone(),
            ..Self::default()
        }
    }
}

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// How much of a body that is too large is read away, and for how long.
const DRAIN_BYTES_MAX: usize = 16 * 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Reads a body of at most `max` bytes. A larger one is 413 without being kept, where it says its
/// length; a slow one is 408.
pub async fn read_body(headers: &HeaderMap, body: Body, max: usize) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = format!("the body may have at most {max} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    };
    let told = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok());
    if told
        .and_then(|length| length.parse().ok())
        .is_some_and(|length: u64| length > max as u64)
    {
        discard(headers, body).await;
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, body::to_bytes(body, max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if over_limit(&error) => Err(too_large()),
        Ok(Err(_)) => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "body_broken",
            "the body ended before its end",
        )),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            format!(
                "the body did not arrive within {} s",
                BODY_TIMEOUT.as_secs()
            ),
        )),
    }
}

/// Reads away a body that is refused for its head, within bounds: a client that is still sending
/// when the connection closes sees a reset, and never the answer.
pub async fn discard(headers: &HeaderMap, body: Body) {
    // A client that asked first waits for our word, and sends nothing.
    if !headers.contains_key(header::EXPECT) {
        drain(body).await;
    }
}

async fn drain(mut body: Body) {
    let read = async {
        let mut left = DRAIN_BYTES_MAX;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    if tokio::time::timeout(DRAIN_TIME, read).await.is_err() {
        tracing::debug!("a refused body was not read to its end");
    }
}

/// Whether the limit was what ended the reading. Its error type is not ours to name without one
/// more dependency; its text is fixed.
fn over_limit(error: &axum::Error) -> bool {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if error.to_string() == "length limit exceeded" {
            return true;
        }
        source = error.source();
    }
    false
}

/// The token of `Authorization: Bearer TOKEN`, where there is exactly one such header.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (first, None) = (given.next()?, given.next()) else {
        return None;
    };
    let (scheme, token) = first.to_str().ok()?.split_once(' ')?;
    let token = token.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests;
