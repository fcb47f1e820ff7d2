//! The guarded client: the only place of the workspace that opens connections to endpoints.
//!
//! It dials only what [`TargetRules`] permit: a literal address is judged before dialling, a name
//! is resolved once and refused if any of its addresses is not permitted, and what was judged is
//! what is dialled. No redirect is followed, no proxy is taken from the environment, nothing is
//! decompressed, no cookie is kept; one deadline covers connecting, TLS, headers and body. There is
//! no way to build an unguarded one.

use std::{fs, io, net::IpAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use event::{reason::AttemptError, target::TargetRules};
use http::{HeaderMap, HeaderValue, Method, header};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};
use url::{Host, Url};

use crate::{
    outcome::{self, Outcome, RETRY_AFTER_BYTES_MAX},
    settings::{Egress, Settings},
};

mod fault;
mod timing;

pub(crate) use fault::not_allowed;
#[cfg(feature = "sim")]
pub(crate) use fault::no_answer;
pub(crate) use timing::micros;
use timing::{Marks, Sessions, Timed, looked_up};

/// At most so many of a name's addresses are tried.
const ADDRESSES_MAX: usize = 16;
/// More response headers than that are refused.
const HEADERS_MAX: usize = 64;
/// A larger header block is refused.
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
    /// The HTTP client refused its options.
    #[error("the http client cannot be set up")]
    Http(#[from] reqwest::Error),
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
    http: reqwest::Client,
    rules: Arc<TargetRules>,
    response_bytes_max: usize,
    response_timeout: Duration,
}

impl Client {
    pub(crate) fn new(settings: &Settings, egress: &Egress) -> Result<Self, BuildError> {
        let rules = Arc::new(egress.rules());
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(egress.ca_file.as_deref())?)
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            // A repeated request could be a duplicate; the retry ladder alone repeats.
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .http1_only()
            .http1_max_headers(HEADERS_MAX)
            .dns_resolver(Guarded(rules.clone()))
            .connector_layer(Timed)
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(settings.idle_timeout)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .build()?;
        Ok(Self {
            http,
            rules,
            response_bytes_max: usize::try_from(settings.response_max.as_u64())
                .unwrap_or(usize::MAX),
            response_timeout: settings.response_timeout,
        })
    }

    /// Makes one attempt. Every way it can end is an [`Outcome`].
    pub(crate) async fn post(&self, post: Post) -> Outcome {
        let begun = Instant::now();
        let deadline = begun + post.timeout;
        let mut request = reqwest::Request::new(Method::POST, post.url);
        *request.headers_mut() = post.headers;
        *request.body_mut() = Some(post.body.into());
        let marks = Marks::default();
        let (mut outcome, answered) = match self.send(request, deadline, post.timeout, &marks).await
        {
            Ok(response) => {
                let answered = Instant::now();
                let outcome = self.read(response, deadline, post.keep).await;
                (outcome, Some(answered))
            }
            Err(outcome) => (outcome, None),
        };
        outcome.took = begun.elapsed();
        outcome.seen.timing = marks.timing(begun, answered);
        outcome.seen.timing.total = micros(outcome.took);
        outcome
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
        let mut request = reqwest::Request::new(Method::GET, url);
        *request.headers_mut() = headers;
        let marks = Marks::default();
        let (mut outcome, body) = match self.send(request, deadline, timeout, &marks).await {
            Ok(response) => match timeout_at(deadline, document(response, bytes_max)).await {
                Ok(read) => read,
                Err(_) => (fault::no_answer(timeout), Vec::new()),
            },
            Err(outcome) => (outcome, Vec::new()),
        };
        outcome.took = begun.elapsed();
        (outcome, body)
    }

    /// Sends a request, and hands out the response when its head is there.
    async fn send(
        &self,
        request: reqwest::Request,
        deadline: Instant,
        timeout: Duration,
        marks: &Marks,
    ) -> Result<reqwest::Response, Outcome> {
        // The connector does not ask the resolver about a literal address, so it is judged here.
        if let Some(address) = literal(request.url())
            && !self.rules.permits(address)
        {
            debug!(%address, "literal target refused");
            return Err(not_allowed());
        }
        let response = match timeout_at(deadline, marks.on(self.http.execute(request))).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(fault::outcome(&error)),
            Err(_) => return Err(fault::no_answer(timeout)),
        };
        if let Some(peer) = response.remote_addr()
            && !self.rules.permits(peer.ip())
        {
            // Cannot happen while the two checks before dialling hold.
            warn!(%peer, "an address was dialled that is not permitted");
            return Err(not_allowed());
        }
        let size: usize = response
            .headers()
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 4)
            .sum();
        if size > HEADER_BYTES_MAX {
            return Err(fault::headers_too_large());
        }
        Ok(response)
    }

    async fn read(&self, response: reqwest::Response, deadline: Instant, keep: Keep) -> Outcome {
        let headers = response.headers();
        let mut outcome = Outcome::answered(response.status().as_u16());
        if outcome.error.is_some() {
            outcome.retry_after = retry_after(headers);
        }
        if keep != Keep::Nothing {
            outcome.seen.headers = outcome::shown_headers(headers);
        }
        let encoded = headers.get(header::CONTENT_ENCODING).is_some();
        // The status has decided. What follows is read so that people can see it, and so that the
        // connection can carry the next delivery; however it ends, the outcome stands.
        let until = deadline.min(Instant::now() + self.response_timeout);
        let failed = outcome.error.is_some();
        let body = self
            .body(response, until, failed || keep == Keep::All)
            .await;
        if body.is_empty() {
            return outcome;
        }
        let shown = |bytes_max| match encoded {
            true => format!("(encoded, {} bytes)", body.len()),
            false => outcome::shown(&body, bytes_max),
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
    async fn body(&self, mut response: reqwest::Response, until: Instant, keep: bool) -> Vec<u8> {
        let mut kept = Vec::new();
        let mut read = 0;
        while let Ok(Ok(Some(chunk))) = timeout_at(until, response.chunk()).await {
            read += chunk.len();
            if keep {
                let room = self.response_bytes_max.saturating_sub(kept.len());
                kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
            }
            if read > self.response_bytes_max {
                break;
            }
        }
        kept
    }
}

/// The whole of a body that is wanted as a document.
async fn document(mut response: reqwest::Response, bytes_max: usize) -> (Outcome, Vec<u8>) {
    let mut outcome = Outcome::answered(response.status().as_u16());
    if outcome.error.is_some() {
        outcome.retry_after = retry_after(response.headers());
        return (outcome, Vec::new());
    }
    let mut body = Vec::new();
    let failed = loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > bytes_max => {
                let detail = format!("the answer is larger than {} KiB", bytes_max / 1024);
                break Outcome::failed(AttemptError::NotHttp, detail);
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return (outcome, body),
            Err(error) => break fault::outcome(&error),
        }
    };
    (failed, Vec::new())
}

fn retry_after(headers: &HeaderMap) -> Option<String> {
    headers
        .get(header::RETRY_AFTER)
        .filter(|value| value.len() <= RETRY_AFTER_BYTES_MAX)
        .and_then(|value: &HeaderValue| value.to_str().ok())
        .map(Into::into)
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

/// Resolves a name once, by the system's resolver, and hands out its addresses only if every one
/// of them may be dialled: one bad answer among good ones is how a rebinding attack looks.
#[derive(Debug)]
struct Guarded(Arc<TargetRules>);

/// A name that resolved to an address we may not dial. The address stays in the operator's log.
#[derive(Debug, thiserror::Error)]
#[error("the name resolves to an address that is not permitted")]
struct NotPermitted;

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = self.0.clone();
        Box::pin(async move {
            let begun = Instant::now();
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            looked_up(begun);
            if let Some(bad) = found.iter().find(|address| !rules.permits(address.ip())) {
                debug!(name = name.as_str(), address = %bad.ip(), "resolved target refused");
                return Err(NotPermitted.into());
            }
            Ok(Box::new(found.into_iter().take(ADDRESSES_MAX)) as Addrs)
        })
    }
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
    config.resumption = Resumption::store(Arc::new(Sessions::new(SESSIONS_MAX)));
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
