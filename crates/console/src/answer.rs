//! From the insides' refusals and failures to answers.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use broker::PublishError;
use event::Refusal;
use serde::Serialize;
use service::http::Problem;
use store::{Error, Page};

/// What handlers answer with.
pub(crate) type Answer<T = Response> = Result<T, Problem>;

/// A list as contract 3 has it.
#[derive(Debug, Serialize)]
pub(crate) struct List<'c, T> {
    pub(crate) items: Vec<T>,
    pub(crate) cursor: Option<&'c str>,
}

impl<T> List<'_, T> {
    /// All there is.
    pub(crate) fn whole(items: Vec<T>) -> Self {
        let cursor = None;
        Self { items, cursor }
    }
}

/// One page, each item as `show` has it.
pub(crate) fn list<'a, T, S: Serialize>(page: &'a Page<T>, show: impl Fn(&'a T) -> S) -> Response {
    let items = page.items.iter().map(show).collect();
    Json(List {
        items,
        cursor: page.cursor.as_deref(),
    })
    .into_response()
}

/// A page with nothing on it.
pub(crate) fn nothing<T>() -> Page<T> {
    Page {
        items: Vec::new(),
        cursor: None,
    }
}

/// A call of the store failed.
pub(crate) fn store_failed(error: Error) -> Problem {
    match error {
        Error::Unavailable(_) => {
            tracing::warn!(%error, "a request found the store away");
            Problem::unavailable("store_unavailable", "the store cannot be reached just now")
        }
        Error::Fatal(_) => {
            tracing::error!(%error, "a call of the store failed");
            Problem::internal()
        }
        Error::BadCursor => Problem::new(StatusCode::BAD_REQUEST, "bad_cursor", error.to_string())
            .with_errors([("?cursor".into(), error.to_string())]),
    }
}

/// Somebody's input was refused.
pub(crate) fn refused(refusal: Refusal) -> Problem {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::UNPROCESSABLE_ENTITY);
    let errors = refusal
        .faults
        .into_iter()
        .map(|fault| (fault.pointer, fault.message));
    let problem = Problem::new(status, refusal.code, refusal.detail).with_errors(errors);
    match refusal.position {
        Some(at) => problem.with_position(at.line, at.column, at.byte),
        None => problem,
    }
}

/// The broker did not take a parcel; `None` is no answer in time.
pub(crate) fn not_published(error: Option<&PublishError>) -> Problem {
    let detail = match error {
        Some(error) => error.to_string(),
        None => "the broker has not confirmed in time".into(),
    };
    Problem::unavailable("broker_unavailable", detail)
}

/// The state of something forbids this.
pub(crate) fn conflict(code: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::CONFLICT, code, detail)
}
