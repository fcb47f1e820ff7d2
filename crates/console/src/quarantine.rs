//! `/v1/quarantine`: messages that could never be processed, apart from customers' dead letters.
//!
//! They belong to no tenant (who would say whose an unreadable message is?), so that only callers
//! who see all may look.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, Uri},
    response::IntoResponse,
    routing::{get, post},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use broker::{BATCH_KEY, Parcel, Route};
use event::{
    Refusal,
    access::Scope,
    admission::{self, Envelope},
    reason::QuarantineReason,
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use service::http::Problem;
use store::Quarantined;

use crate::{
    App,
    answer::{Answer, list, refused, store_failed},
    caller::{Caller, Id},
    form::Form,
};

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/quarantine", get(index))
        .route("/v1/quarantine/{id}", get(show))
        .route("/v1/quarantine/{id}/release", post(release))
}

/// A quarantined message for a caller.
#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    reason: QuarantineReason,
    detail: &'a str,
    first_seen: Timestamp,
    source: &'a str,
    message_id: Option<&'a str>,
    content_type: Option<&'a str>,
    /// How many bytes it had.
    size: usize,
    /// The body (of a message that is too large its beginning), where it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    /// The body, byte for byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl<'a> Shown<'a> {
    fn in_list(message: &'a Quarantined) -> Self {
        Self {
            id: &message.id,
            reason: message.reason,
            detail: &message.detail,
            first_seen: message.first_seen,
            source: &message.source,
            message_id: message.message_id.as_deref(),
            content_type: message.content_type.as_deref(),
            size: message.size,
            body: None,
            body_base64: None,
        }
    }

    fn whole(message: &'a Quarantined) -> Self {
        Self {
            body: std::str::from_utf8(&message.body).ok(),
            body_base64: Some(STANDARD.encode(&message.body)),
            ..Self::in_list(message)
        }
    }
}

async fn index(caller: Caller, State(app): State<Arc<App>>, uri: Uri) -> Answer {
    caller.must_for_all(Scope::Read)?;
    let mut query = Form::of_query(&uri)?;
    let reason = query.word("reason", QuarantineReason::ALL, QuarantineReason::word);
    let paging = query.paging();
    query.finish()?;
    let page = app
        .store
        .quarantined(reason, &paging)
        .await
        .map_err(store_failed)?;
    Ok(list(&page, Shown::in_list))
}

async fn show(caller: Caller, State(app): State<Arc<App>>, id: Id) -> Answer {
    caller.must_for_all(Scope::Read)?;
    let message = find(&app, &id).await?;
    Ok(Json(Shown::whole(&message)).into_response())
}

/// Publishes the bytes again as they came, where they can be read by now: the message was
/// unroutable, or our own handling failed, or a later version understands it.
async fn release(caller: Caller, State(app): State<Arc<App>>, id: Id) -> Answer {
    caller.must_for_all(Scope::Manage)?;
    let message = find(&app, &id).await?;
    if message.body.len() < message.size {
        let detail = "only its beginning is kept: nobody can take a message of that size";
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        return Err(Problem::new(status, "still_unfit", detail));
    }
    let routing_key = read(&message, Timestamp::now()).map_err(still_unfit)?;
    let message_id = message.message_id.as_deref().unwrap_or(&message.id);
    let mut parcel = Parcel::json(
        Route::Events { routing_key },
        message_id,
        message.body.clone(),
    );
    parcel.content_type = message.content_type.clone().or(parcel.content_type);
    // A router may have claimed its id before it came here.
    let released = ("x-postrider-released".to_owned(), "true".to_owned());
    parcel.headers.push(released);
    app.redrives.publish(parcel).await?;
    // Released and still listed would be released again: told, and harmless but for duplicates.
    app.store
        .delete_quarantined(&message.id)
        .await
        .map_err(store_failed)?;
    tracing::info!(quarantine_id = %message.id, "quarantined message released");
    Ok((StatusCode::ACCEPTED, Json(json!({ "id": message.id }))).into_response())
}

async fn find(app: &App, id: &Id) -> Answer<Quarantined> {
    let message = app
        .store
        .quarantined_one(id.as_str())
        .await
        .map_err(store_failed)?;
    message.ok_or_else(Problem::not_found)
}

/// The routing key it goes by, if the router would read it now.
fn read(message: &Quarantined, now: Timestamp) -> Result<String, Refusal> {
    let message_id = message.message_id.as_deref();
    let envelope = Envelope {
        now,
        message_id,
        tenant: None,
        fresh_id: None,
    };
    if message.source.rsplit('/').next() == Some(BATCH_KEY) {
        let envelope = Envelope {
            message_id: None,
            ..envelope
        };
        return admission::admit_many(&message.body, false, &envelope)
            .map(|_| BATCH_KEY.to_owned());
    }
    admission::admit(&message.body, &envelope).map(|event| event.kind.as_str().to_owned())
}

fn still_unfit(refusal: Refusal) -> Problem {
    let detail = format!("it would be quarantined again: {}", refusal.detail);
    refused(Refusal {
        code: "still_unfit",
        status: 422,
        detail,
        ..refusal
    })
}
