//! The guarded client: the only place of the workspace that opens connections to endpoints.
//!
//! It dials only what the rules for targets permit (`dial`): a literal address is judged, a name is
//! resolved once and refused if any of its addresses is not permitted, and what was judged is what
//! is dialled. No redirect is followed, no proxy is asked, nothing is decompressed, no cookie is
//! kept; one deadline covers connecting, TLS, headers and body. There is no way to build an
//! unguarded one.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use event::reason::AttemptError;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::time::{Instant, timeout_at};
use tracing::warn;
use url::Url;

use crate::{
    outcome::{self, Outcome, RETRY_AFTER_BYTES_MAX},
    settings::{Egress, Settings},
};

mod crowd;
mod dial;
mod fault;
mod timing;

use dial::{DialError, Dialler};
#[cfg(feature = "sim")]
pub(crate) use fault::no_answer;
pub(crate) use fault::not_allowed;
use timing::Marks;
pub(crate) use timing::micros;

/// More response headers than that are refused.
const HEADERS_MAX: usize = 64;
/// A larger header block is refused: by the HTTP stack as soon as so much of one has been buffered
/// (which can be one read more), or by us when it is whole.
const HEADER_BYTES_MAX: usize = 32 * 1024;
/// Idle connections kept to one host.
const IDLE_PER_HOST_MAX: usize = 256;
/// Names whose TLS sessions are remembered, to be resumed.
const SESSIONS_MAX: usize = 256;

pub(crate) const USER_AGENT: &str = concat!("postrider/", env!("CARGO_PKG_VERSION"));

/// Why the client could not be built: the settings or the system are wrong.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// `egress.ca_file` cannot be used.
    #[error("egress.ca_file {path}: {detail}")]
    Authorities {
        /// The file.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The TLS library refused its own defaults.
    #[error("tls cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// One request to make.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Over everything, from resolving the name to the last byte read.
    pub(crate) timeout: Duration,
    /// Whether the response's headers and the beginning of its body are wanted for the log, also
    /// of a success.
    pub(crate) keep: Keep,
}

/// What of a response is kept for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Headers and the beginning of the body.
    All,
    /// Headers only.
    Headers,
    /// What the delivery itself carries along, and no more.
    Nothing,
}

/// A question to a service of the operator's.
#[derive(Debug)]
pub(crate) struct Get {
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    /// Over everything.
    pub(crate) timeout: Duration,
    /// A longer answer is none.
    pub(crate) bytes_max: usize,
}

/// Sends requests. Keeps idle connections for the next delivery.
#[derive(Debug)]
pub(crate) struct Client {
    http: legacy::Client<Dialler, Full<Bytes>>,
    response_bytes_max: usize,
    response_timeout: Duration,
}

/// Nothing was attempted: as many attempts as may be are under way to the target's address.
#[derive(Debug)]
pub(crate) struct Crowded;

impl Client {
    pub(crate) fn new(settings: &Settings, egress: &Egress) -> Result<Self, BuildError> {
        let dialler = Dialler::new(
            egress.rules(),
            tls(egress.ca_file.as_deref())?,
            settings.connect_timeout,
            egress.address_max,
        );
        let http = legacy::Client::builder(TokioExecutor::new())
            .http1_max_buf_size(HEADER_BYTES_MAX)
            .http1_max_headers(HEADERS_MAX)
            .pool_idle_timeout(settings.idle_timeout)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .pool_timer(TokioTimer::new())
            .build(dialler);
        Ok(Self {
            http,
            response_bytes_max: usize::try_from(settings.response_max.as_u64())
                .unwrap_or(usize::MAX),
            response_timeout: settings.response_timeout,
        })
    }

    /// Makes one attempt. Every way it can end is an [`Outcome`].
    pub(crate) async fn post(&self, post: Post) -> Result<Outcome, Crowded> {
        let begun = Instant::now();
        let deadline = begun + post.timeout;
        let marks = Marks::default();
        let said = Said::of(&post.headers);
        let request = request(Method::POST, &post.url, post.headers, post.body);
        let (mut outcome, answered) = match self.send(request, deadline, post.timeout, &marks).await
        {
            Ok(response) => {
                let answered = Instant::now();
                let outcome = self.read(response, deadline, post.keep, &said).await;
                (outcome, Some(answered))
            }
            Err(Failed::Crowded) => return Err(Crowded),
            Err(Failed::So(outcome)) => (*outcome, None),
        };
        outcome.took = begun.elapsed();
        outcome.seen.timing = marks.timing(begun, answered);
        outcome.seen.timing.total = micros(outcome.took);
        Ok(outcome)
    }

    /// Asks for a document. The body is whole, or the outcome is a failure.
    pub(crate) async fn get(&self, get: Get) -> (Outcome, Vec<u8>) {
        let begun = Instant::now();
        let Get {
            url,
            headers,
            timeout,
            bytes_max,
        } = get;
        let deadline = begun + timeout;
        let request = request(Method::GET, &url, headers, Bytes::new());
        let marks = Marks::default();
        let (mut outcome, body) = match self.send(request, deadline, timeout, &marks).await {
            Ok(response) => match timeout_at(deadline, document(response, bytes_max)).await {
                Ok(read) => read,
                Err(_) => (fault::no_answer(timeout), Vec::new()),
            },
            Err(Failed::So(outcome)) => (*outcome, Vec::new()),
            Err(Failed::Crowded) => (fault::outcome(&DialError::Crowded), Vec::new()),
        };
        outcome.took = begun.elapsed();
        (outcome, body)
    }

    /// Sends a request, and hands out the response when its head is there.
    async fn send(
        &self,
        request: Option<Request<Full<Bytes>>>,
        deadline: Instant,
        timeout: Duration,
        marks: &Marks,
    ) -> Result<Response<Incoming>, Failed> {
        // Whatever URL it is that cannot be asked for, nothing is dialled for it.
        let request = request.ok_or_else(|| Failed::So(Box::new(not_allowed())))?;
        let sent = timeout_at(deadline, marks.on(self.http.request(request))).await;
        let failed = match sent {
            Ok(Ok(response)) if header_bytes(response.headers()) <= HEADER_BYTES_MAX => {
                return Ok(response);
            }
            Ok(Ok(_)) => fault::headers_too_large(),
            Ok(Err(error)) => match dial::find::<DialError>(&error) {
                Some(DialError::Crowded) => return Err(Failed::Crowded),
                _ => fault::outcome(&error),
            },
            Err(_) => fault::no_answer(timeout),
        };
        Err(Failed::So(Box::new(failed)))
    }

    async fn read(
        &self,
        response: Response<Incoming>,
        deadline: Instant,
        keep: Keep,
        said: &Said,
    ) -> Outcome {
        let (head, body) = response.into_parts();
        let headers = &head.headers;
        let mut outcome = Outcome::answered(head.status.as_u16());
        if outcome.error.is_some() {
            outcome.retry_after = retry_after(headers);
        }
        if keep != Keep::Nothing {
            outcome.seen.headers = outcome::shown_headers(headers);
            for (_, value) in &mut outcome.seen.headers {
                *value = said.unsaid(value);
            }
        }
        let encoded = headers.contains_key(header::CONTENT_ENCODING);
        // The status has decided. What follows is read so that people can see it, and so that the
        // connection can carry the next delivery; however it ends, the outcome stands.
        let until = deadline.min(Instant::now() + self.response_timeout);
        let failed = outcome.error.is_some();
        let (body, end) = self.body(body, until, failed || keep == Keep::All).await;
        if end == BodyEnd::Broken {
            outcome.seen.note = Some("body_incomplete: the answer broke off after its status");
        }
        if body.is_empty() {
            return outcome;
        }
        let text = (!encoded).then(|| said.unsaid(&String::from_utf8_lossy(&body)));
        let shown = |bytes_max| match &text {
            None => format!("(encoded, {} bytes)", body.len()),
            Some(text) => outcome::shown(text.as_bytes(), bytes_max),
        };
        if failed {
            outcome.response = Some(shown(outcome::TRAVELS_BYTES_MAX));
        }
        if keep == Keep::All {
            outcome.seen.body = Some(shown(outcome::LOGGED_BYTES_MAX));
        }
        outcome
    }

    /// Reads the body to its end or to a bound. Beyond the bound the connection is closed: reading
    /// on would let the endpoint decide how much of us it takes.
    async fn body(&self, mut body: Incoming, until: Instant, keep: bool) -> (Vec<u8>, BodyEnd) {
        let mut kept = Vec::new();
        let mut read = 0;
        loop {
            let chunk = match timeout_at(until, body.frame()).await {
                Ok(None) => return (kept, BodyEnd::Whole),
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Err(_))) | Err(_) => return (kept, BodyEnd::Broken),
            };
            read += chunk.len();
            if keep {
                let room = self.response_bytes_max.saturating_sub(kept.len());
                kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
            }
            if read > self.response_bytes_max {
                return (kept, BodyEnd::Cut);
            }
        }
    }
}

/// Why there is no response.
enum Failed {
    Crowded,
    So(Box<Outcome>),
}

/// How reading a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyEnd {
    Whole,
    /// We had enough.
    Cut,
    /// It broke off, or did not go on in time.
    Broken,
}

/// A request as it goes out, or `None` where the URL cannot be asked for.
fn request(
    method: Method,
    url: &Url,
    mut headers: HeaderMap,
    body: Bytes,
) -> Option<Request<Full<Bytes>>> {
    for (name, value) in [(header::ACCEPT, "*/*"), (header::USER_AGENT, USER_AGENT)] {
        let ours = HeaderValue::from_static(value);
        headers.entry(name).or_insert(ours);
    }
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = url.as_str().parse().ok()?;
    *request.headers_mut() = headers;
    Some(request)
}

/// What we said in confidence, to be kept out of what is shown of an answer that repeats it.
struct Said(Vec<String>);

/// Shorter ones are words that an answer may use by itself.
const SECRET_BYTES_MIN: usize = 8;

impl Said {
    fn of(headers: &HeaderMap) -> Self {
        let secret = |(name, value): &(&http::HeaderName, &HeaderValue)| {
            value.is_sensitive() || name.as_str() == "webhook-signature"
        };
        let values = headers.iter().filter(secret);
        let mut said: Vec<String> = values
            .filter_map(|(_, value)| value.to_str().ok())
            .flat_map(|value| [value].into_iter().chain(value.split(' ')))
            .filter(|part| part.len() >= SECRET_BYTES_MIN)
            .map(str::to_owned)
            .collect();
        // The whole before its parts.
        said.sort_unstable_by_key(|part| std::cmp::Reverse(part.len()));
        said.dedup();
        Self(said)
    }

    fn unsaid(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| {
            match text.contains(secret.as_str()) {
                true => text.replace(secret.as_str(), outcome::MASK),
                false => text,
            }
        })
    }
}

/// The whole of a body that is wanted as a document.
async fn document(response: Response<Incoming>, bytes_max: usize) -> (Outcome, Vec<u8>) {
    let mut outcome = Outcome::answered(response.status().as_u16());
    if outcome.error.is_some() {
        outcome.retry_after = retry_after(response.headers());
        return (outcome, Vec::new());
    }
    let mut incoming = response.into_body();
    let mut body = Vec::new();
    let failed = loop {
        let chunk = match incoming.frame().await {
            None => return (outcome, body),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => break fault::outcome(&error),
        };
        if body.len() + chunk.len() > bytes_max {
            let detail = format!("the answer is larger than {} KiB", bytes_max / 1024);
            break Outcome::failed(AttemptError::NotHttp, detail);
        }
        body.extend_from_slice(&chunk);
    };
    (failed, Vec::new())
}

/// How large a header block is, as it came over the wire.
fn header_bytes(headers: &HeaderMap) -> usize {
    let bytes = |(name, value): (&http::HeaderName, &HeaderValue)| {
        // A colon, a space, and the end of the line.
        name.as_str().len() + value.len() + 4
    };
    headers.iter().map(bytes).sum()
}

fn retry_after(headers: &HeaderMap) -> Option<String> {
    headers
        .get(header::RETRY_AFTER)
        .filter(|value| value.len() <= RETRY_AFTER_BYTES_MAX)
        .and_then(|value: &HeaderValue| value.to_str().ok())
        .map(Into::into)
}

/// TLS by the system's authorities, for whoever else must speak it (the command line).
pub fn system_tls() -> Result<ClientConfig, BuildError> {
    tls(None)
}

fn tls(ca_file: Option<&Path>) -> Result<ClientConfig, BuildError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        warn!(%error, "some of the system's authorities could not be read");
    }
    let (mut trusted, _) = roots.add_parsable_certificates(system.certs);
    if let Some(path) = ca_file {
        trusted += add_authorities(&mut roots, path).map_err(|detail| BuildError::Authorities {
            path: path.display().to_string(),
            detail,
        })?;
    }
    if trusted == 0 {
        warn!("no certificate authority is known: every https endpoint will fail as tls");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    Ok(config)
}

fn add_authorities(roots: &mut RootCertStore, path: &Path) -> Result<usize, String> {
    let pem = fs::read(path).map_err(|error: io::Error| error.to_string())?;
    let mut added = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
        added += 1;
    }
    if added == 0 {
        Err("no certificate in it".into())
    } else {
        Ok(added)
    }
}

#[cfg(test)]
mod tests;
