//! `/v1/dead-letters`: deliveries that will not be tried again, unless a person says so.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::IntoResponse,
    routing::{get, post},
};
use event::{
    DeadLetterId, DeliveryId, Event, EventId, SubscriptionId, Tenant,
    access::Scope,
    delivery::{AttemptRecord, DeadLetter},
    event::EventType,
    reason::{DeadReason, DeliveryState},
};
use jiff::Timestamp;
use serde::Serialize;
use service::http::Problem;
use store::{DeadFilter, Paging};

use crate::{
    App,
    answer::{Answer, list, nothing, store_failed},
    caller::{Caller, Id},
    form::{self, Form},
    jobs,
    redrive::Redriven,
};

/// How many letters a bulk redrive takes, where nobody says.
const BULK_DEFAULT: u32 = 100;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/dead-letters", get(index))
        .route("/v1/dead-letters/redrive", post(redrive_many))
        .route("/v1/dead-letters/{id}", get(show).delete(remove))
        .route("/v1/dead-letters/{id}/redrive", post(redrive))
}

/// A dead letter for a caller.
#[derive(Serialize)]
struct Shown<'a> {
    id: &'a DeadLetterId,
    delivery_id: &'a DeliveryId,
    event_id: &'a EventId,
    subscription_id: &'a SubscriptionId,
    tenant: &'a Tenant,
    r#type: &'a EventType,
    state: DeliveryState,
    reason: DeadReason,
    detail: &'a str,
    attempts: u32,
    run: u32,
    accepted_at: Timestamp,
    died_at: Timestamp,
    history: &'a [AttemptRecord],
    /// When its event's payloads were expunged: it cannot be redriven.
    #[serde(skip_serializing_if = "Option::is_none")]
    expunged_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a Event>,
}

impl<'a> Shown<'a> {
    fn in_list(letter: &'a DeadLetter) -> Self {
        Self {
            id: &letter.id,
            delivery_id: &letter.delivery_id,
            event_id: &letter.event_id,
            subscription_id: &letter.subscription_id,
            tenant: &letter.tenant,
            r#type: &letter.kind,
            state: DeliveryState::Dead,
            reason: letter.reason,
            detail: &letter.detail,
            attempts: letter.attempts,
            run: letter.run,
            accepted_at: letter.accepted_at,
            died_at: letter.died_at,
            history: &letter.history,
            expunged_at: letter.expunged_at,
            event: None,
        }
    }

    fn whole(letter: &'a DeadLetter) -> Self {
        Self {
            event: Some(&letter.event),
            ..Self::in_list(letter)
        }
    }
}

async fn index(caller: Caller, State(app): State<Arc<App>>, uri: Uri) -> Answer {
    caller.must(Scope::Read)?;
    let mut query = Form::of_query(&uri)?;
    let filter = filter(&mut query);
    let tenant = query.parsed("tenant", Tenant::parse);
    let paging = query.paging();
    query.finish()?;
    let Some(sight) = caller.sight_of(tenant) else {
        return Ok(list(&nothing(), Shown::in_list));
    };
    let page = app
        .store
        .dead_letters(&sight, &filter, &paging)
        .await
        .map_err(store_failed)?;
    Ok(list(&page, Shown::in_list))
}

async fn show(caller: Caller, State(app): State<Arc<App>>, id: Id) -> Answer {
    caller.must(Scope::Read)?;
    let id = id.parse(DeadLetterId::parse)?;
    let letter = app
        .store
        .dead_letter(&caller.sight(), &id)
        .await
        .map_err(store_failed)?;
    let letter = letter.ok_or_else(Problem::not_found)?;
    Ok(Json(Shown::whole(&letter)).into_response())
}

async fn remove(caller: Caller, State(app): State<Arc<App>>, id: Id) -> Answer<StatusCode> {
    caller.must(Scope::Manage)?;
    let id = id.parse(DeadLetterId::parse)?;
    let gone = app
        .store
        .delete_dead_letter(&caller.sight(), &id)
        .await
        .map_err(store_failed)?;
    if gone {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::not_found())
    }
}

async fn redrive(caller: Caller, State(app): State<Arc<App>>, id: Id) -> Answer {
    caller.must(Scope::Manage)?;
    let id = id.parse(DeadLetterId::parse)?;
    let redriven = app.redrives.one(&caller.sight(), &id).await?;
    Ok((StatusCode::ACCEPTED, Json(redriven)).into_response())
}

/// What a bulk redrive did.
#[derive(Serialize)]
struct Bulk {
    redriven: usize,
    /// Letters that cannot be redriven (their subscription is gone, their event has expired) and
    /// stay where they are.
    skipped: usize,
    /// Whether the same call would find more to redrive.
    more: bool,
    /// Where to go on behind those that were skipped.
    cursor: Option<String>,
}

async fn redrive_many(
    caller: Caller,
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    caller.must(Scope::Manage)?;
    let body = form::body(&headers, body).await?;
    if body.is_empty() {
        // Everything is redriven by `{}`, said aloud, and not by a forgotten body.
        let detail = "the body must be a JSON object of filters; `{}` is all dead letters";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_json", detail));
    }
    let mut form = Form::of_body(&body)?;
    let filter = filter(&mut form);
    let tenant = form.parsed("tenant", Tenant::parse);
    if jobs::flag(&mut form, "job") {
        return redrive_by_a_job(&app, &caller, form, filter, tenant).await;
    }
    let paging = form.paging();
    form.finish()?;
    let limit = if paging.limit == 0 {
        BULK_DEFAULT
    } else {
        paging.limit
    };
    let paging = Paging { limit, ..paging };
    let (sight, page) = match caller.sight_of(tenant) {
        Some(sight) => {
            let page = app.store.dead_letters(&sight, &filter, &paging).await;
            (sight, page.map_err(store_failed)?)
        }
        None => (caller.sight(), nothing()),
    };
    let outcome = app.redrives.many(&sight, &page.items).await?;
    let redriven = outcome
        .iter()
        .filter(|one| matches!(one, Redriven::Sent(_)))
        .count();
    let bulk = Bulk {
        redriven,
        skipped: outcome.len() - redriven,
        // With nothing redriven the same call would find the same letters again.
        more: redriven > 0 && page.cursor.is_some(),
        cursor: page.cursor,
    };
    Ok(Json(bulk).into_response())
}

/// All of them, however many there are, at a rate.
async fn redrive_by_a_job(
    app: &App,
    caller: &Caller,
    mut form: Form,
    filter: DeadFilter,
    tenant: Option<Tenant>,
) -> Answer {
    let kind = filter.kind.as_deref().map(EventType::parse);
    if let Some(Err(error)) = &kind {
        form.find("type", error.to_string());
    }
    let pace = jobs::pace(&mut form);
    form.finish()?;
    let sight = caller.sight_of(tenant).ok_or_else(Problem::not_found)?;
    jobs::redrive(app, &sight, filter, kind.and_then(Result::ok), pace).await
}

fn filter(form: &mut Form) -> DeadFilter {
    DeadFilter {
        reason: form.word("reason", DeadReason::ALL, DeadReason::word),
        subscription: form.parsed("subscription_id", SubscriptionId::parse),
        kind: form.text("type"),
        since: form.time("since"),
        until: form.time("until"),
    }
}
