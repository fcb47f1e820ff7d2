//! RFC 9457: every refusal and failure of the API has one shape.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// One thing wrong with a request, at one place of its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// RFC 6901 pointer into the body; empty for the whole.
    pub pointer: String,
    /// What was expected and what was found.
    pub message: String,
}

/// An answer that says what was wrong: `application/problem+json`.
///
/// It never tells one caller anything of another, and has no field that differs between two equal
/// requests: the request's id is a header, so that the 404 of somebody else's object is, byte for
/// byte, the 404 of one that never was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<FieldError>,
    position: Option<Position>,
    retry_after_s: Option<u32>,
}

/// Where in the body its reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Position {
    line: usize,
    column: usize,
    byte: usize,
}

impl Problem {
    /// A problem with a stable word for programs and a sentence for people.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            errors: Vec::new(),
            position: None,
            retry_after_s: None,
        }
    }

    /// With everything wrong at once, as `(pointer, message)`.
    #[must_use]
    pub fn with_errors(mut self, errors: impl IntoIterator<Item = (String, String)>) -> Self {
        let errors = errors.into_iter();
        self.errors
            .extend(errors.map(|(pointer, message)| FieldError { pointer, message }));
        self
    }

    /// With the place in the body where its reading ended: line and column from 1, byte from 0.
    #[must_use]
    pub fn with_position(self, line: usize, column: usize, byte: usize) -> Self {
        let position = Some(Position { line, column, byte });
        Self { position, ..self }
    }

    /// The same under another status, for a route whose clients wait for that one.
    #[must_use]
    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// Something of ours is away (503); `Retry-After` says when to ask again.
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail);
        Self {
            retry_after_s: Some(1),
            ..problem
        }
    }

    /// Asked too often (429); `Retry-After` says when to ask again.
    pub fn too_many(detail: impl Into<String>, wait: Duration) -> Self {
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail);
        let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self {
            retry_after_s: Some(u32::try_from(whole).unwrap_or(u32::MAX).max(1)),
            ..problem
        }
    }

    /// No valid token. One answer for none, a bad, an expired and a revoked one.
    pub fn unauthorized() -> Self {
        let detail = "a valid `Authorization: Bearer` token is required";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    /// The token is valid and does not allow this.
    pub fn missing_scope(scope: &str) -> Self {
        let detail = format!("the token does not have the scope `{scope}`");
        Self::new(StatusCode::FORBIDDEN, "missing_scope", detail)
    }

    /// Nothing is here that the caller may see.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here")
    }

    /// Our own house is on fire; the log has the reason, the caller does not.
    pub fn internal() -> Self {
        let detail = "this is our fault; the log has more under the request's id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// The status it answers with.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The word for programs.
    pub fn code(&self) -> &'static str {
        self.code
    }
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: &'a str,
    errors: &'a [FieldError],
    #[serde(flatten)]
    position: Option<Position>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            r#type: format!("urn:postrider:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: &self.detail,
            errors: &self.errors,
            position: self.position,
        };
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let kind = (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        let mut response = (self.status, [kind], json).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"postrider\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
