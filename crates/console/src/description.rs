//! `/openapi.json`: what the API is, for programs, and `/docs`: the same for people.
//!
//! The document is kept by hand (decision record 0011) and covers intake as well: every route of
//! the API stands in it, and nothing else does, which the tests hold. It tells nobody anything of
//! this installation, so that both are open to everybody.

pub(crate) mod page;

use std::sync::{Arc, LazyLock};

use axum::{
    Router,
    http::{HeaderName, header},
    response::{Html, IntoResponse},
    routing::get,
};

use crate::App;

/// The API as OpenAPI 3.1 has it.
pub(crate) const DOCUMENT: &str = include_str!("description/openapi.json");

/// The page loads nothing, runs nothing and stands in no other page.
pub(crate) const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

static PAGE: LazyLock<String> = LazyLock::new(|| {
    let document = serde_json::from_str(DOCUMENT).unwrap_or_default();
    page::write(&document)
});

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/openapi.json", get(document))
        .route("/docs", get(docs))
}

async fn document() -> impl IntoResponse {
    let headers = [(header::CONTENT_TYPE, "application/json"), NO_SNIFFING];
    (headers, DOCUMENT)
}

async fn docs() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        NO_SNIFFING,
    ];
    (headers, Html(PAGE.as_str()))
}

const NO_SNIFFING: (HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");
