//! `POST /v1/listeners/{id}/taken`: what a listener took, and what its endpoint said to it. From
//! there on it is told no more, and the log has how it went.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use event::{
    access::Scope,
    log::{Attempt, HeldDelivery, LogEntry, Timing},
    reason::{AttemptError, DeadReason, DeliveryState},
    subscription::View,
};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::json;
use service::http::Problem;
use store::{Waiting, WaitingKey};

use super::alive;
use crate::{
    App,
    answer::{Answer, store_failed},
    caller::{Caller, Id},
    form,
};

/// How many one call may tell of.
const ITEMS_MAX: usize = 100;
/// The longest explanation, in characters.
const DETAIL_MAX: usize = 256;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Report {
    items: Vec<Item>,
}

/// How it went with one request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    /// As it was told.
    id: String,
    /// The answer's status, where one came.
    status: Option<u16>,
    /// Why none came.
    error: Option<String>,
    detail: Option<String>,
    #[serde(default)]
    duration_ms: f64,
}

/// The same, read.
struct Outcome {
    key: WaitingKey,
    status: Option<u16>,
    error: Option<AttemptError>,
    detail: Option<String>,
    took: SignedDuration,
}

pub(super) async fn taken(
    caller: Caller,
    State(app): State<Arc<App>>,
    id: Id,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    caller.must(Scope::Manage)?;
    let body = form::body(&headers, body).await?;
    let outcomes = read(&body)?;
    let stored = alive(&app, &caller, &id).await?;
    let (id, view) = (&stored.subscription.id, stored.subscription.view);
    let keys: Vec<_> = outcomes.iter().map(|outcome| outcome.key.clone()).collect();
    let waiting = app
        .store
        .waiting_of(id, &keys)
        .await
        .map_err(store_failed)?;
    let now = Timestamp::now();
    let entries: Vec<LogEntry> = waiting
        .iter()
        .filter_map(|waiting| {
            let outcome = outcomes.iter().find(|outcome| outcome.key == waiting.key)?;
            Some(entry(waiting, outcome, view, now))
        })
        .collect();
    // First what is said of them: cut off in between, they are told again and logged once.
    app.store
        .record(&[], &entries)
        .await
        .map_err(store_failed)?;
    let keys: Vec<_> = waiting.into_iter().map(|waiting| waiting.key).collect();
    app.store.taken(&keys).await.map_err(store_failed)?;
    Ok(Json(json!({ "taken": keys.len() })).into_response())
}

fn read(body: &[u8]) -> Answer<Vec<Outcome>> {
    let invalid = |errors: Vec<(String, String)>, detail: String| {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Problem::new(status, "invalid_request", detail).with_errors(errors)
    };
    let value: serde_json::Value = serde_json::from_slice(body).map_err(|error| {
        let detail = format!("the body is not JSON: {error}");
        Problem::new(StatusCode::BAD_REQUEST, "bad_json", detail)
    })?;
    let report: Report = serde_json::from_value(value)
        .map_err(|error| invalid(Vec::new(), format!("the body has a fault: {error}")))?;
    if report.items.len() > ITEMS_MAX {
        let message = format!("must be at most {ITEMS_MAX}");
        let faults = vec![("/items".to_owned(), message)];
        return Err(invalid(faults, "the body has a fault".to_owned()));
    }
    let mut faults = Vec::new();
    let mut outcomes = Vec::new();
    for (n, item) in report.items.into_iter().enumerate() {
        match item.read() {
            Ok(outcome) => outcomes.push(outcome),
            Err((field, message)) => faults.push((format!("/items/{n}{field}"), message)),
        }
    }
    if faults.is_empty() {
        Ok(outcomes)
    } else {
        let detail = format!("the body has {} faults", faults.len());
        Err(invalid(faults, detail))
    }
}

impl Item {
    fn read(self) -> Result<Outcome, (&'static str, String)> {
        let key = WaitingKey::parse(&self.id)
            .ok_or_else(|| ("/id", "is not the id of a request".to_owned()))?;
        let error = match &self.error {
            None => None,
            Some(word) => {
                let all = AttemptError::ALL;
                let known = form::one_of(word, all, AttemptError::word);
                Some(known.map_err(|message| ("/error", message))?)
            }
        };
        match (self.status, error) {
            (Some(100..=999), _) => {}
            (Some(_), _) => return Err(("/status", "must be from 100 to 999".to_owned())),
            (None, None) => {
                let message = "is required where there is no error".to_owned();
                return Err(("/status", message));
            }
            (None, Some(_)) => {}
        }
        let seconds = self.duration_ms / 1000.0;
        let took = SignedDuration::try_from_secs_f64(seconds)
            .ok()
            .filter(|took| (SignedDuration::ZERO..=SignedDuration::from_hours(1)).contains(took))
            .ok_or_else(|| ("/duration_ms", "must be from 0 to 3600000".to_owned()))?;
        let is_well = matches!(self.status, Some(200..=299)) && error.is_none();
        Ok(Outcome {
            key,
            status: self.status,
            error: error.or_else(|| (!is_well).then_some(AttemptError::Status)),
            detail: self
                .detail
                .map(|detail| detail.chars().take(DETAIL_MAX).collect()),
            took,
        })
    }
}

/// What the log says of it: an attempt, after which nobody makes another.
fn entry(waiting: &Waiting, outcome: &Outcome, view: View, now: Timestamp) -> LogEntry {
    let number = waiting.to.attempts.saturating_add(1);
    let state = match outcome.error {
        None => DeliveryState::Delivered,
        Some(_) => DeliveryState::Dead,
    };
    let mut entry = HeldDelivery::ended(&waiting.item, &waiting.to, (state, number), now);
    let answered = match (outcome.status, outcome.error) {
        (Some(status), _) => format!("its listener's endpoint answered {status}"),
        (None, Some(error)) => format!("its listener got no answer: {}", error.word()),
        (None, None) => "its listener took it".to_owned(),
    };
    entry.reason = outcome.error.map(|_| DeadReason::Refused);
    entry.detail = Some(answered);
    entry.attempt = Some(Box::new(Attempt {
        number,
        at: now.saturating_sub(outcome.took).unwrap_or(now),
        timing: Timing {
            total: u64::try_from(outcome.took.as_micros()).unwrap_or(0),
            ..Timing::default()
        },
        view,
        request_headers: Vec::new(),
        body_hash: String::new(),
        body_bytes: 0,
        status: outcome.status,
        response_headers: Vec::new(),
        response: None,
        error: outcome.error,
        detail: outcome.detail.clone(),
    }));
    entry
}
