//! `POST /v1/events`: one event, an array, NDJSON, or CloudEvents; 202 after the broker's confirm.
//!
//! Whoever calls, what they sent and how large it is are judged in that order, and nothing of the
//! body is read before its head is.

use std::{borrow::Cow, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::State as Shared,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use broker::Publish;
use bytesize::ByteSize;
use event::{
    EventId, Refusal,
    access::{Principal, Scope},
    admission::{
        self, Envelope,
        cloud_events::{self, Attributes},
    },
    event::DEPTH_HEADER,
    reason::QuarantineReason,
};
use jiff::Timestamp;
use serde::Serialize;
use service::http::{Problem, bearer, discard, read_body};
use store::{
    access::{Access, Denied},
    dedup::Dedup,
};

use crate::{
    Error, Producer,
    metrics::{Metrics, Reason},
    repeat::{self, Conflict, Failed, Published},
};

/// What the intake works with. Cheap to clone.
#[derive(Debug, Clone)]
pub struct State {
    producer: Producer,
    access: Arc<Access>,
    metrics: Metrics,
    body_bytes_max: usize,
    dedup: Option<Dedup>,
}

impl State {
    /// An intake that publishes with `publisher` and takes bodies up to `body_max` (`api.body_max`).
    pub fn new(
        publisher: Arc<dyn Publish>,
        access: Arc<Access>,
        metrics: Metrics,
        body_max: ByteSize,
    ) -> Self {
        let body_bytes_max = usize::try_from(body_max.as_u64()).unwrap_or(usize::MAX);
        Self {
            producer: Producer::over(publisher).via("http"),
            access,
            metrics,
            body_bytes_max,
            dedup: None,
        }
    }

    /// Tells callers what they published before.
    pub fn recognizing(self, dedup: Option<Dedup>) -> Self {
        Self { dedup, ..self }
    }
}

/// The intake's route.
pub fn router(state: State) -> Router {
    Router::new()
        .route("/v1/events", post(take))
        .with_state(state)
}

#[derive(Serialize)]
struct Taken {
    /// How many are published now.
    accepted: usize,
    /// Of all events of the request, in order.
    ids: Vec<EventId>,
    /// Whether all of them had been published before.
    #[serde(skip_serializing_if = "is_false")]
    duplicate: bool,
    /// Those that had been, where others had not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    duplicates: Vec<EventId>,
}

fn is_false(it: &bool) -> bool {
    !it
}

async fn take(Shared(state): Shared<State>, headers: HeaderMap, body: Body) -> Response {
    match accept(&state, &headers, body).await {
        Ok(published) => {
            let accepted = published.events.len();
            state.metrics.accepted.inc_by(accepted as u64);
            let duplicate = accepted == 0;
            let (status, duplicates) = if duplicate {
                (StatusCode::OK, Vec::new())
            } else {
                (StatusCode::ACCEPTED, published.duplicates)
            };
            let ids = published.ids;
            let taken = Taken {
                accepted,
                ids,
                duplicate,
                duplicates,
            };
            (status, Json(taken)).into_response()
        }
        Err((reason, problem)) => {
            state.metrics.refuse(reason);
            problem.into_response()
        }
    }
}

/// Why nothing was taken: for the counter, and for the caller.
type Refused = (Reason, Problem);

async fn accept(state: &State, headers: &HeaderMap, body: Body) -> Result<Published, Refused> {
    let now = Timestamp::now();
    let principal = authenticate(state, headers, now).await?;
    let form = match form(headers) {
        Ok(form) => form,
        Err(refused) => {
            discard(headers, body).await;
            return Err(refused);
        }
    };
    let body = read_body(headers, body, state.body_bytes_max)
        .await
        .map_err(|problem| {
            let too_large = problem.status() == StatusCode::PAYLOAD_TOO_LARGE;
            (
                if too_large {
                    Reason::TooLarge
                } else {
                    Reason::Malformed
                },
                problem,
            )
        })?;
    let envelope = Envelope {
        now,
        message_id: None,
        tenant: principal.tenant.as_ref(),
        fresh_id: Some(EventId::fresh),
    };
    let events = match form {
        Form::Json => admission::admit_many(&body, false, &envelope),
        Form::Ndjson => admission::admit_many(&body, true, &envelope),
        Form::CloudEvents(mode, attributes) => {
            cloud_events::admit(mode, content_type(headers), &attributes, &body, &envelope)
        }
    };
    let mut events = events.map_err(refused)?;
    let depth = headers
        .get(DEPTH_HEADER)
        .and_then(|value| value.to_str().ok());
    let depth = depth.map_or(0, event::event::depth);
    for event in &mut events {
        event.depth = depth;
    }
    let is_list = body.trim_ascii_start().starts_with(b"[") || events.len() > 1;
    let published = repeat::publish(&state.producer, state.dedup.as_ref(), events, now)
        .await
        .map_err(|failed| match failed {
            Failed::Conflicts(conflicts) => id_conflict(&conflicts, is_list),
            Failed::Publish(error) => not_taken(error),
        })?;
    for event in &published.events {
        tracing::debug!(event_id = %event.id, tenant = %event.tenant, kind = %event.kind, "event accepted");
    }
    Ok(published)
}

async fn authenticate(
    state: &State,
    headers: &HeaderMap,
    now: Timestamp,
) -> Result<Principal, Refused> {
    match state.access.authenticate(bearer(headers), now).await {
        Ok(principal) if principal.may(Scope::Publish) => Ok(principal),
        Ok(_) => Err((
            Reason::Unauthorized,
            Problem::missing_scope(Scope::Publish.word()),
        )),
        Err(Denied::Missing | Denied::Invalid) => {
            Err((Reason::Unauthorized, Problem::unauthorized()))
        }
        Err(Denied::StoreAway) => Err((
            Reason::Unavailable,
            Problem::unavailable("store_unavailable", "tokens cannot be checked just now"),
        )),
    }
}

/// What the head says of the body.
enum Form<'h> {
    Json,
    Ndjson,
    CloudEvents(cloud_events::Mode, Attributes<'h>),
}

/// What the body is by its head; what we cannot read is not read.
fn form(headers: &HeaderMap) -> Result<Form<'_>, Refused> {
    let encodings = headers.get_all(header::CONTENT_ENCODING);
    if encodings
        .iter()
        .any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return Err(unsupported(
            "a content encoding is not accepted; send the body as it is",
        ));
    }
    let given = content_type(headers);
    if cloud_events::is_foreign(given) {
        return Err(unsupported(
            "of CloudEvents, `application/cloudevents+json`, `application/cloudevents-batch+json` \
             and `ce-` headers beside JSON are read",
        ));
    }
    let attributes = attributes(headers);
    let mode = cloud_events::mode(given, &attributes);
    let mut parts = given.unwrap_or_default().split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
    let foreign = |parameter: &str| {
        let charset = parameter
            .split_once('=')
            .filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
        charset
            .is_some_and(|(_, value)| !value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8"))
    };
    // In binary mode the content type is an attribute, told of with the others.
    if mode != Some(cloud_events::Mode::Binary) && parts.any(foreign) {
        return Err(unsupported("the only charset is utf-8"));
    }
    if let Some(mode) = mode {
        return Ok(Form::CloudEvents(mode, attributes));
    }
    match kind.as_str() {
        "application/json" => Ok(Form::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Form::Ndjson),
        _ => Err(unsupported(
            "the content type must be `application/json` or `application/x-ndjson`; \
             `application/cloudevents+json` or `application/cloudevents-batch+json`; or JSON \
             beside `ce-` headers",
        )),
    }
}

fn unsupported(detail: &str) -> Refused {
    let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    let problem = Problem::new(status, "unsupported_media_type", detail);
    (Reason::UnsupportedEncoding, problem)
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_TYPE)?.to_str().ok()
}

/// What the headers say of a CloudEvent.
fn attributes(headers: &HeaderMap) -> Attributes<'_> {
    let attributes = headers.iter().filter_map(|(name, value)| {
        let name = cloud_events::of_http_header(name.as_str())?;
        // A text that no attribute may be stands for one that cannot be read.
        let value = cloud_events::of_http_value(value.as_bytes());
        Some((name, Cow::Owned(value.unwrap_or_else(|| "\0".into()))))
    });
    attributes.collect()
}

fn refused(refusal: Refusal) -> Refused {
    let reason = match admission::quarantine_reason(&refusal) {
        _ if refusal.code == "tenant_mismatch" => Reason::TenantMismatch,
        QuarantineReason::Malformed => Reason::Malformed,
        QuarantineReason::TooLarge => Reason::TooLarge,
        QuarantineReason::UnsupportedEncoding => Reason::UnsupportedEncoding,
        QuarantineReason::IdConflict => Reason::IdConflict,
        QuarantineReason::InvalidEvent | QuarantineReason::HandlerFailed => Reason::InvalidEvent,
    };
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::UNPROCESSABLE_ENTITY);
    let errors = refusal
        .faults
        .into_iter()
        .map(|fault| (fault.pointer, fault.message));
    let problem = Problem::new(status, refusal.code, refusal.detail).with_errors(errors);
    let problem = match refusal.position {
        Some(at) => problem.with_position(at.line, at.column, at.byte),
        None => problem,
    };
    (reason, problem)
}

/// Says every id that another event has.
fn id_conflict(conflicts: &[Conflict], is_list: bool) -> Refused {
    let errors = conflicts.iter().map(|conflict| {
        let pointer = if is_list {
            format!("/{}/id", conflict.index)
        } else {
            "/id".to_owned()
        };
        (pointer, conflict.to_string())
    });
    let detail = conflicts.first().map(Conflict::to_string);
    let problem = Problem::new(
        StatusCode::CONFLICT,
        "id_conflict",
        detail.unwrap_or_default(),
    );
    (Reason::IdConflict, problem.with_errors(errors))
}

fn not_taken(error: Error) -> Refused {
    let detail = error.to_string();
    match error {
        Error::Refused(refusal) => refused(refusal),
        Error::TooLarge(_) => {
            let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail);
            (Reason::TooLarge, problem)
        }
        Error::Broker(error) => {
            tracing::debug!(%error, "events were not taken");
            (
                Reason::Unavailable,
                Problem::unavailable("broker_unavailable", detail),
            )
        }
        Error::Unconfirmed => {
            let detail =
                format!("{detail}; it may have the events nevertheless: repeat with the same ids");
            (
                Reason::Unavailable,
                Problem::unavailable("broker_unconfirmed", detail),
            )
        }
    }
}
