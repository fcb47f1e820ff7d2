//! The ops port: `/metrics`, `/healthz`, `/readyz`. Apart from the API's port, so that what
//! watches a process needs no token and what uses it cannot watch.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};
use prometheus::{IntGaugeVec, Opts, Registry, TextEncoder};
use serde::{Deserialize, Serialize};

/// `[ops]` of the settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where `/metrics`, `/healthz` and `/readyz` answer; default `127.0.0.1:9090`.
    pub listen: SocketAddr,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
        }
    }
}

/// What must hold for the process to be ready. Cheap to clone; checks may be added at any time.
#[derive(Clone, Default)]
pub struct Checks(Arc<Mutex<Vec<Check>>>);

struct Check {
    name: &'static str,
    ask: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// How one check stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// The check.
    pub name: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Checks {
    /// Adds a check. `ask` answers at once, from what is known (a watch value, an age): it is
    /// called on every look at `/readyz` and must not do I/O.
    pub fn add(
        &self,
        name: &'static str,
        ask: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        let mut checks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        checks.push(Check {
            name,
            ask: Box::new(ask),
        });
    }

    /// How each check stands, in the order they were added.
    pub fn ask(&self) -> Vec<Standing> {
        let checks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stand = |check: &Check| {
            let why = (check.ask)().err();
            Standing {
                name: check.name,
                ok: why.is_none(),
                why,
            }
        };
        checks.iter().map(stand).collect()
    }
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ask()).finish()
    }
}

/// Registers `postrider_build_info{version,revision}`, always 1.
pub fn build_info(
    registry: &Registry,
    version: &str,
    revision: &str,
) -> Result<(), prometheus::Error> {
    let opts = Opts::new("postrider_build_info", "Which build this is; always 1.");
    let info = IntGaugeVec::new(opts, &["version", "revision"])?;
    info.with_label_values(&[version, revision]).set(1);
    registry.register(Box::new(info))
}

/// The routes of the ops port, for [`crate::http::serve`].
pub fn router(registry: Registry, checks: Checks) -> Router {
    Router::new()
        .route("/metrics", get(metrics).with_state(registry))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness).with_state(checks))
}

async fn metrics(State(registry): State<Registry>) -> Response {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    checks: Vec<Standing>,
}

async fn readiness(State(checks): State<Checks>) -> Response {
    let checks = checks.ask();
    let ready = checks.iter().all(|check| check.ok);
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(Readiness { ready, checks })).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::body::{Body, to_bytes};
    use http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn get(app: &Router, path: &str) -> (StatusCode, String, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let kind = response.headers()[header::CONTENT_TYPE]
            .to_str()
            .unwrap()
            .to_owned();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn metrics_are_prometheus_text_with_the_build() {
        let registry = Registry::new();
        build_info(&registry, "1.2.3", "abc").unwrap();
        let app = router(registry, Checks::default());
        let (status, kind, body) = get(&app, "/metrics").await;
        assert_eq!(
            (status, kind.as_str()),
            (StatusCode::OK, "text/plain; version=0.0.4")
        );
        let line = "postrider_build_info{revision=\"abc\",version=\"1.2.3\"} 1\n";
        assert!(body.ends_with(line), "{body}");
    }

    #[tokio::test]
    async fn readiness_names_each_check_and_why_it_is_red() {
        let checks = Checks::default();
        let up = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&up);
        checks.add("store", || Ok(()));
        checks.add("broker", move || {
            if seen.load(Ordering::Relaxed) {
                Ok(())
            } else {
                Err("not connected".into())
            }
        });
        let app = router(Registry::new(), checks);
        let (status, _, body) = get(&app, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        let want = r#"{"ready":false,"checks":[{"name":"store","ok":true},{"name":"broker","ok":false,"why":"not connected"}]}"#;
        assert_eq!(body, want);
        up.store(true, Ordering::Relaxed);
        assert_eq!(get(&app, "/readyz").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn healthy_while_not_ready() {
        let checks = Checks::default();
        checks.add("broker", || Err("gone".into()));
        let app = router(Registry::new(), checks);
        assert_eq!(get(&app, "/healthz").await.0, StatusCode::OK);
    }
}
