//! The bench's endpoint: accepts every POST, counts it, and reads from the body when its event was
//! published. The same cost per request as the bare pipeline's sink.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::body::Body;
use http::{Method, Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{commands::Failure, output::say};

/// What precedes the time of publication in a bench event's data.
pub(super) const STAMP: &str = "\"at\":";

/// Delays by their size: 8 buckets for each doubling of microseconds.
pub(super) struct Tally {
    count: u64,
    buckets: Vec<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            count: 0,
            buckets: vec![0; 8 * 40],
        }
    }
}

impl Tally {
    pub(super) fn note(&mut self, body: &[u8]) {
        self.count += 1;
        let Some(at) = stamp(body) else { return };
        let delay = now_us().saturating_sub(at).max(1) as f64;
        let bucket = ((delay.log2() * 8.0) as usize).min(self.buckets.len() - 1);
        self.buckets[bucket] += 1;
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn quantile_ms(&self, q: f64) -> Value {
        let total: u64 = self.buckets.iter().sum();
        let mut left = (total as f64 * q).ceil();
        for (bucket, count) in self.buckets.iter().enumerate() {
            left -= *count as f64;
            if left <= 0.0 && total > 0 {
                let ms = 2_f64.powf((bucket as f64 + 0.5) / 8.0) / 1000.0;
                return json!((ms * 100.0).round() / 100.0);
            }
        }
        Value::Null
    }
}

fn stamp(body: &[u8]) -> Option<u64> {
    let key = STAMP.as_bytes();
    let found = body.windows(key.len()).position(|window| window == key)?;
    let digits = body[found + key.len()..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |n, digit| n * 10 + u64::from(digit - b'0')))
}

/// Microseconds since the epoch.
pub(super) fn now_us() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Serves until it is killed; prints its address first.
pub(super) async fn serve() -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("the sink: {error}"));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    say!("{}", listener.local_addr().map_err(failed)?);
    let tally = Rc::new(RefCell::new(Tally::default()));
    tokio::task::LocalSet::new()
        .run_until(accept(listener, move |request| {
            answer(request, tally.clone())
        }))
        .await
        .map_err(failed)
}

/// Accepts connections and answers on them, all on this thread. Dropped, it ends them.
pub(super) async fn accept<A, F, E>(listener: TcpListener, answer: A) -> std::io::Result<()>
where
    A: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Result<Response<Body>, E>> + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        // Who has gone again by now is no concern of an endpoint's.
        stream.set_nodelay(true).ok();
        while connections.try_join_next().is_some() {}
        let service = service_fn(answer.clone());
        connections.spawn_local(async move {
            // Nor is who goes later.
            http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await
                .ok();
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    tally: Rc<RefCell<Tally>>,
) -> Result<Response<Body>, axum::Error> {
    if request.method() == Method::POST {
        let body = axum::body::to_bytes(Body::new(request.into_body()), usize::MAX).await?;
        tally.borrow_mut().note(&body);
        return Ok(Response::new(Body::empty()));
    }
    if request.uri().path() == "/reset" {
        *tally.borrow_mut() = Tally::default();
    }
    let tally = tally.borrow();
    let report = json!({
        "count": tally.count, "p50_ms": tally.quantile_ms(0.5), "p99_ms": tally.quantile_ms(0.99),
    });
    Ok(Response::new(Body::from(report.to_string())))
}

/// Asks the sink at `address`.
pub(super) async fn ask(address: &str, path: &str) -> Result<Value, Failure> {
    let failed = |error: reqwest::Error| Failure::failed(format!("the sink: {error}"));
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(crate::serve::tls_client_config()?)
        .build()
        .map_err(failed)?;
    let answer = client
        .get(format!("http://{address}{path}"))
        .send()
        .await
        .map_err(failed)?;
    let body = answer.bytes().await.map_err(failed)?;
    serde_json::from_slice(&body).map_err(|error| Failure::failed(format!("the sink: {error}")))
}
