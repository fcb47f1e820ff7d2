//! How often a client may ask: failed guesses by address, everything by token.
//!
//! The rooms behind know whose token it is; here it is a number without a meaning. A token that was
//! good a moment ago is not held up by what strangers at the same address guess, and a guess from
//! an address that has guessed too often is not even looked up.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use http::{HeaderMap, StatusCode};
use ipnet::IpNet;
use prometheus::{IntCounterVec, Opts, Registry};
use serde::{Deserialize, Serialize};

use super::{Problem, bearer, serve::Peer};

/// How many tokens and addresses are remembered; beyond them nothing new is.
const KEPT_MAX: usize = 16 * 1024;
/// How long a good token is taken for good before the next look-up may be refused.
const GOOD_FOR: Duration = Duration::from_secs(600);
/// What a proxy tells of whom it speaks for.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// `[api.rate_limit]` of the settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimit {
    /// Requests without a valid token, from one address and minute, as many of them at once;
    /// default 60, `0` for no limit. In IPv6 an address is its /64.
    pub failures_per_minute: u32,
    /// Requests with one token and second, as many of them at once; default 5000, `0` for no
    /// limit. Requests without a token, on a server that needs none, have no limit.
    pub requests_per_second: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            failures_per_minute: 600,
            requests_per_second: 5000,
        }
    }
}

/// The limits of one listener. Cheap to clone.
#[derive(Clone)]
pub struct Limiter(Arc<Inner>);

struct Inner {
    failures: Option<DefaultKeyedRateLimiter<IpAddr>>,
    requests: Option<DefaultKeyedRateLimiter<u64>>,
    proxies: Vec<IpNet>,
    limited: IntCounterVec,
    /// A token is known by this alone; it does not outlive the process.
    hasher: RandomState,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Tokens that were good, and when that was last so.
    good: HashMap<u64, Instant>,
    /// Addresses whose guesses are not looked up until then.
    shut: HashMap<IpAddr, Instant>,
}

impl Limiter {
    /// Registers `postrider_api_limited_total{cause}`.
    pub fn register(
        settings: &super::Settings,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let help = "Requests refused with 429: `failures` by address, `requests` by token.";
        let limited =
            IntCounterVec::new(Opts::new("postrider_api_limited_total", help), &["cause"])?;
        registry.register(Box::new(limited.clone()))?;
        for cause in ["failures", "requests"] {
            limited.with_label_values(&[cause]).inc_by(0);
        }
        let RateLimit {
            failures_per_minute,
            requests_per_second,
        } = settings.rate_limit;
        let failures = NonZeroU32::new(failures_per_minute).map(Quota::per_minute);
        let requests = NonZeroU32::new(requests_per_second).map(Quota::per_second);
        Ok(Self(Arc::new(Inner {
            failures: failures.map(RateLimiter::keyed),
            requests: requests.map(RateLimiter::keyed),
            proxies: settings.trusted_proxies.clone(),
            limited,
            hasher: RandomState::new(),
            kept: Mutex::default(),
        })))
    }

    /// Puts the limits around every route there is in `app`, and around nothing that is none.
    pub fn around(&self, app: Router) -> Router {
        let limiter = self.clone();
        app.route_layer(middleware::from_fn(move |request, next| {
            limited(limiter.clone(), request, next)
        }))
    }

    fn refuse(&self, cause: &'static str, wait: Duration) -> Response {
        self.0.limited.with_label_values(&[cause]).inc();
        let detail = match cause {
            "failures" => {
                "too many requests without a valid token came from this address \
                           (api.rate_limit.failures_per_minute)"
            }
            _ => {
                "too many requests were made with this token \
                  (api.rate_limit.requests_per_second)"
            }
        };
        Problem::too_many(detail, wait).into_response()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long guesses from here are not looked up.
    fn shut_for(&self, client: IpAddr, now: Instant) -> Option<Duration> {
        let until = *self.lock().shut.get(&client)?;
        until
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
    }

    fn is_good(&self, token: u64, now: Instant) -> bool {
        let kept = self.lock();
        let seen = kept.good.get(&token);
        seen.is_some_and(|at| now.duration_since(*at) < GOOD_FOR)
    }

    /// How long a request with this token must wait.
    fn take(&self, token: u64) -> Option<Duration> {
        let requests = self.0.requests.as_ref()?;
        let refused = requests.check_key(&token).err()?;
        Some(refused.wait_time_from(DefaultClock::default().now()))
    }

    fn good(&self, token: u64, now: Instant) {
        let kept = &mut *self.lock();
        if kept.good.len() >= KEPT_MAX && !kept.good.contains_key(&token) {
            kept.good.retain(|_, at| now.duration_since(*at) < GOOD_FOR);
            if let Some(requests) = &self.0.requests {
                requests.retain_recent();
            }
        }
        if kept.good.len() < KEPT_MAX || kept.good.contains_key(&token) {
            kept.good.insert(token, now);
        }
    }

    /// One more guess from here: how long the next must wait, where there were too many.
    fn bad(&self, token: Option<u64>, client: IpAddr, now: Instant) -> Option<Duration> {
        let failures = self.0.failures.as_ref()?;
        let kept = &mut *self.lock();
        if let Some(token) = token {
            kept.good.remove(&token);
        }
        if failures.len() >= KEPT_MAX {
            failures.retain_recent();
        }
        let refused = failures.check_key(&client).err()?;
        let wait = refused.wait_time_from(DefaultClock::default().now());
        if kept.shut.len() >= KEPT_MAX {
            kept.shut.retain(|_, until| *until > now);
        }
        if kept.shut.len() < KEPT_MAX {
            kept.shut.insert(client, now + wait);
        }
        Some(wait)
    }
}

async fn limited(limiter: Limiter, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().map(|Peer(peer)| *peer);
    let client = client(peer, request.headers(), &limiter.0.proxies);
    let token = bearer(request.headers()).map(|token| limiter.0.hasher.hash_one(token));
    let needs_token = request.uri().path().starts_with("/v1/");
    let now = Instant::now();
    if let Some(token) = token {
        if limiter.is_good(token, now) {
            if let Some(wait) = limiter.take(token) {
                return limiter.refuse("requests", wait);
            }
        } else if let Some(wait) = limiter.shut_for(client, now) {
            return limiter.refuse("failures", wait);
        }
    }
    let response = next.run(request).await;
    match (response.status(), token) {
        (StatusCode::UNAUTHORIZED, token) => {
            if let Some(wait) = limiter.bad(token, client, now) {
                return limiter.refuse("failures", wait);
            }
        }
        // The store may have been away before it could say whose it is.
        (StatusCode::SERVICE_UNAVAILABLE, _) | (_, None) => {}
        (_, Some(token)) if needs_token => limiter.good(token, now),
        _ => {}
    }
    response
}

/// Whose request it is: the peer's, or who a trusted proxy says. What a client writes into the
/// header itself stands to the left of what the proxy adds, and is never reached.
fn client(peer: Option<SocketAddr>, headers: &HeaderMap, proxies: &[IpNet]) -> IpAddr {
    let trusted = |address: &IpAddr| proxies.iter().any(|net| net.contains(address));
    let mut client = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| plain(peer.ip()));
    if trusted(&client) {
        let told: Vec<&str> = headers
            .get_all(FORWARDED_FOR)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .collect();
        for text in told.iter().rev().map(|text| text.trim()) {
            let Some(address) = address(text) else { break };
            client = plain(address);
            if !trusted(&client) {
                break;
            }
        }
    }
    match client {
        // One customer has at least a /64 to pick addresses from.
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

fn address(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<SocketAddr>().ok().map(|both| both.ip());
    text.parse().ok().or_else(with_port)
}

/// An IPv4 address that came in IPv6's clothes is itself.
pub(super) fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::header, routing::get};
    use tower::ServiceExt;

    use super::*;
    use crate::http::Settings;

    fn limiter(failures: u32, requests: u32) -> Limiter {
        let settings = Settings {
            rate_limit: RateLimit {
                failures_per_minute: failures,
                requests_per_second: requests,
            },
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            ..Settings::default()
        };
        Limiter::register(&settings, &Registry::new()).unwrap()
    }

    /// Whoever says `good` is let in.
    fn app(limiter: &Limiter) -> Router {
        let judge = |headers: HeaderMap| async move {
            match bearer(&headers) {
                Some("good") => "ok".into_response(),
                _ => Problem::unauthorized().into_response(),
            }
        };
        let open = get(|| async { "open" });
        limiter.around(
            Router::new()
                .route("/v1/x", get(judge))
                .route("/docs", open),
        )
    }

    async fn ask(app: &Router, path: &str, from: &str, token: Option<&str>) -> Response {
        let mut request = Request::get(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let mut request = request.body(Body::empty()).unwrap();
        let peer = SocketAddr::new(from.parse().unwrap(), 4711);
        request.extensions_mut().insert(Peer(peer));
        app.clone().oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn t14_guesses_run_dry_by_address_and_good_tokens_do_not() {
        let app = app(&limiter(3, 0));
        let status = async |from: &str, token: Option<&str>| {
            ask(&app, "/v1/x", from, token).await.status().as_u16()
        };
        assert_eq!(status("192.0.2.1", Some("good")).await, 200);
        for n in 0..3 {
            assert_eq!(status("192.0.2.1", Some(&format!("guess-{n}"))).await, 401);
        }
        let refused = ask(&app, "/v1/x", "192.0.2.1", Some("guess")).await;
        assert_eq!(refused.status(), 429);
        let wait: u32 = refused.headers()[header::RETRY_AFTER]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=20).contains(&wait), "{wait}");
        assert_eq!(status("192.0.2.1", None).await, 429, "without any");
        assert_eq!(status("192.0.2.1", Some("good")).await, 200, "known");
        assert_eq!(status("192.0.2.2", Some("guess")).await, 401, "elsewhere");
        assert_eq!(ask(&app, "/docs", "192.0.2.1", None).await.status(), 200);
    }

    #[tokio::test]
    async fn t14_a_page_that_needs_no_token_makes_none_good() {
        let app = app(&limiter(1, 0));
        assert_eq!(ask(&app, "/v1/x", "192.0.2.1", None).await.status(), 401);
        assert_eq!(ask(&app, "/v1/x", "192.0.2.1", None).await.status(), 429);
        let shut = async |token| ask(&app, "/v1/x", "192.0.2.1", Some(token)).await.status();
        ask(&app, "/docs", "192.0.2.9", Some("good")).await;
        assert_eq!(shut("good").await, 429, "never seen to be good");
    }

    #[tokio::test]
    async fn t14_a_token_has_a_rate_of_its_own() {
        let app = app(&limiter(0, 2));
        let mut statuses = Vec::new();
        for _ in 0..50 {
            statuses.push(ask(&app, "/v1/x", "192.0.2.1", Some("good")).await.status());
        }
        assert!(statuses.contains(&StatusCode::TOO_MANY_REQUESTS));
        assert_eq!(statuses[..2], [StatusCode::OK; 2]);
        assert_eq!(ask(&app, "/v1/x", "192.0.2.1", None).await.status(), 401);
    }

    #[test]
    fn t14_only_a_trusted_proxy_is_believed() {
        let proxies = [
            "10.0.0.0/8".parse().unwrap(),
            "2001:db8::/32".parse().unwrap(),
        ];
        for (peer, told, want) in [
            ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
            ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
            ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
            ("10.0.0.1", "1.1.1.1, 198.51.100.7", "198.51.100.7"),
            ("10.0.0.1", "198.51.100.7, 10.9.9.9", "198.51.100.7"),
            ("10.0.0.1", "198.51.100.7:8080", "198.51.100.7"),
            ("10.0.0.1", "198.51.100.7, nonsense", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("2001:db8::1", "2a00:1:2:3:4:5:6:7", "2a00:1:2:3::"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(FORWARDED_FOR, told.parse().unwrap());
            let peer = SocketAddr::new(peer.parse().unwrap(), 1);
            let is = client(Some(peer), &headers, &proxies);
            assert_eq!(is.to_string(), want, "{peer} says {told}");
        }
    }
}
