//! The demo's endpoints: they print what they get, and two of them fail.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    routing::post,
};

use super::Voice;
use crate::commands::Failure;

pub(super) struct Receiver {
    address: SocketAddr,
}

struct Endpoints {
    voice: Voice,
    began: Instant,
    flaky: AtomicU32,
}

impl Receiver {
    pub(super) async fn start(voice: Voice) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::failed(format!("no receiver: {error}"));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let endpoints = Arc::new(Endpoints {
            voice,
            began: Instant::now(),
            flaky: AtomicU32::new(0),
        });
        let app = axum::Router::new()
            .route("/{endpoint}", post(receive))
            .with_state(endpoints);
        tokio::spawn(async move {
            service::http::serve(
                listener,
                app,
                service::http::Limits::default(),
                tokio_util::sync::CancellationToken::new(),
            )
            .await;
        });
        Ok(Self { address })
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

async fn receive(
    State(endpoints): State<Arc<Endpoints>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let status = match uri.path() {
        "/broken" => StatusCode::INTERNAL_SERVER_ERROR,
        "/flaky" if endpoints.flaky.fetch_add(1, Ordering::Relaxed) < 2 => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        _ => StatusCode::OK,
    };
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or("-")
    };
    let signature: String = header("webhook-signature").chars().take(14).collect();
    let text = String::from_utf8_lossy(&body);
    let short: String = text.chars().take(110).collect();
    endpoints.voice.say(format_args!(
        "{:>7.3}s {:<16} {} {signature}… {short}{}",
        endpoints.began.elapsed().as_secs_f64(),
        uri.path(),
        status.as_u16(),
        if short.len() < text.len() { "…" } else { "" },
    ));
    status
}
