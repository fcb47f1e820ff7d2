//! `/v1/events`: what was routed, and why each subscription got it or did not.
//!
//! `POST /v1/events` is the producer's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, Uri},
    response::IntoResponse,
    routing::get,
};
use event::{
    DeliveryId, Event, EventId, Subscription, SubscriptionId, Tenant,
    access::Scope,
    delivery::Purpose,
    reason::{DeadReason, DeliveryState},
};
use jiff::Timestamp;
use serde::Serialize;
use service::http::Problem;
use store::{DeliveryRow, EventFilter, EventRecord, Paging, Sight};

use crate::{
    App,
    answer::{Answer, list, nothing, store_failed},
    caller::{Caller, Id},
    explain::listens,
    form::Form,
};

/// How many of a tenant's subscriptions one answer explains.
const SUBSCRIPTIONS_MAX: usize = 1000;
/// How many of them one call of the store brings.
const PAGE: u32 = 500;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/events", get(index))
        .route("/v1/events/{id}", get(show))
}

async fn index(caller: Caller, State(app): State<Arc<App>>, uri: Uri) -> Answer {
    caller.must(Scope::Read)?;
    let mut query = Form::of_query(&uri)?;
    let filter = EventFilter {
        kind: query.text("type"),
        since: query.time("since"),
        until: query.time("until"),
        subject: query.text("subject"),
    };
    let tenant = query.parsed("tenant", Tenant::parse);
    let paging = query.paging();
    query.finish()?;
    let Some(sight) = caller.sight_of(tenant) else {
        return Ok(list(&nothing(), |row: &()| *row));
    };
    let page = app
        .store
        .events(&sight, &filter, &paging)
        .await
        .map_err(store_failed)?;
    Ok(list(&page, |row| row))
}

/// An event and why each subscription of its tenant got it or did not.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    event: &'a Event,
    accepted_at: Timestamp,
    revision: u64,
    bytes: u64,
    /// Whether the payload that was published is still here.
    archived: bool,
    /// When it was expunged, where it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    expunged_at: Option<Timestamp>,
    /// When the same id was accepted before, after the earlier one was forgotten as a duplicate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<Timestamp>,
    subscriptions: Vec<Why>,
    /// Whether there are more subscriptions than are named.
    more: bool,
}

/// What became of the event for one subscription, and why.
#[derive(Debug, Serialize)]
struct Why {
    subscription_id: SubscriptionId,
    /// Its name; none of one that was deleted.
    name: Option<String>,
    matched: bool,
    delivery_id: Option<DeliveryId>,
    state: Option<DeliveryState>,
    reason: Option<DeadReason>,
    clause: Option<String>,
    detail: Option<String>,
    attempts: u32,
    run: u32,
    purpose: Option<Purpose>,
    last_status: Option<u16>,
    due: Option<Timestamp>,
    updated_at: Option<Timestamp>,
    /// The subscription was changed since the event was matched: what is said of it is said of it
    /// as it is now.
    changed_since: bool,
    /// The subscription was deleted since.
    deleted: bool,
}

async fn show(caller: Caller, State(app): State<Arc<App>>, id: Id, uri: Uri) -> Answer {
    caller.must(Scope::Read)?;
    let mut query = Form::of_query(&uri)?;
    let tenant = query.parsed("tenant", Tenant::parse);
    query.finish()?;
    let id = id.parse(EventId::parse)?;
    let sight = caller.sight_of(tenant).ok_or_else(Problem::not_found)?;
    let records = app.store.event(&sight, &id).await.map_err(store_failed)?;
    let (record, earlier) = one_tenant(&records)?;
    let (known, more) = subscriptions(&app, &record.event.tenant).await?;
    let (subscriptions, more_matched) = why(record, known);
    let whole = Whole {
        event: &record.event,
        accepted_at: record.accepted_at,
        revision: record.revision,
        bytes: record.bytes,
        archived: is_archived(record),
        expunged_at: record.expunged_at,
        earlier,
        subscriptions,
        more: more || more_matched,
    };
    Ok(Json(whole).into_response())
}

/// The newest event of the only tenant that has the id, and when there were earlier ones.
fn one_tenant(records: &[EventRecord]) -> Answer<(&EventRecord, Vec<Timestamp>)> {
    let (newest, earlier) = records.split_first().ok_or_else(Problem::not_found)?;
    let tenants: BTreeSet<&str> = records.iter().map(|r| r.event.tenant.as_str()).collect();
    if tenants.len() > 1 {
        let tenants: Vec<_> = tenants.into_iter().collect();
        let detail = format!(
            "events of several tenants have this id: {}",
            tenants.join(", ")
        );
        let say = "say which tenant's is meant".to_owned();
        let problem = Problem::new(StatusCode::CONFLICT, "several_tenants", detail);
        return Err(problem.with_errors([("?tenant".to_owned(), say)]));
    }
    Ok((newest, earlier.iter().map(|r| r.accepted_at).collect()))
}

/// Whether the record still holds all of what was published. A deletion may have had nothing but
/// its subject; its size tells.
pub(crate) fn is_archived(record: &EventRecord) -> bool {
    if record.expunged_at.is_some() {
        return false;
    }
    let event = &record.event;
    if event.data.is_some() || event.changes.is_some() || event.details.is_some() {
        return true;
    }
    serde_json::to_vec(event).is_ok_and(|written| written.len() as u64 >= record.bytes)
}

/// A tenant's subscriptions as they are now, and whether there are more.
async fn subscriptions(
    app: &App,
    tenant: &Tenant,
) -> Answer<(BTreeMap<SubscriptionId, Subscription>, bool)> {
    let sight = Sight::Only(tenant.clone());
    let mut known = BTreeMap::new();
    let mut cursor = None;
    loop {
        let paging = Paging {
            cursor,
            limit: PAGE,
        };
        let page = app
            .store
            .subscriptions(&sight, None, &paging)
            .await
            .map_err(store_failed)?;
        let found = page.items.into_iter().map(|stored| stored.subscription);
        known.extend(found.map(|subscription| (subscription.id.clone(), subscription)));
        cursor = page.cursor;
        if cursor.is_none() || known.len() >= SUBSCRIPTIONS_MAX {
            return Ok((known, cursor.is_some()));
        }
    }
}

/// Why, for each subscription: first those that matched, then those that did not. And whether
/// more matched than are told of.
fn why(
    record: &EventRecord,
    mut known: BTreeMap<SubscriptionId, Subscription>,
) -> (Vec<Why>, bool) {
    let mut deliveries: BTreeMap<&SubscriptionId, &DeliveryRow> = record
        .deliveries
        .iter()
        .map(|delivery| (&delivery.subscription_id, delivery))
        .collect();
    // A replay may have brought it to one that did not match it then.
    let mut got: Vec<&SubscriptionId> = record.matched.iter().collect();
    let matched: BTreeSet<&SubscriptionId> = record.matched.iter().collect();
    let replayed = record.deliveries.iter().map(|row| &row.subscription_id);
    got.extend(replayed.filter(|id| !matched.contains(id)));
    let more = got.len() > SUBSCRIPTIONS_MAX;
    let mut told = Vec::with_capacity(got.len().min(SUBSCRIPTIONS_MAX) + known.len());
    for id in got {
        let subscription = known.remove(id);
        if told.len() < SUBSCRIPTIONS_MAX {
            let matched = matched.contains(id);
            told.push(Why::of(
                record,
                id,
                subscription.as_ref(),
                deliveries.remove(id),
                matched,
            ));
        }
    }
    let rest = known.values();
    told.extend(rest.map(|subscription| Why::not_matched(record, subscription)));
    (told, more)
}

impl Why {
    fn nothing(id: &SubscriptionId) -> Self {
        Self {
            subscription_id: id.clone(),
            name: None,
            matched: false,
            delivery_id: None,
            state: None,
            reason: None,
            clause: None,
            detail: None,
            attempts: 0,
            run: 0,
            purpose: None,
            last_status: None,
            due: None,
            updated_at: None,
            changed_since: false,
            deleted: false,
        }
    }

    /// Of one that matched or got it later.
    fn of(
        record: &EventRecord,
        id: &SubscriptionId,
        subscription: Option<&Subscription>,
        delivery: Option<&DeliveryRow>,
        matched: bool,
    ) -> Self {
        let why = Self {
            name: subscription.map(|subscription| subscription.name.clone()),
            matched,
            changed_since: subscription.is_some_and(|s| s.revision > record.revision),
            deleted: subscription.is_none(),
            ..Self::nothing(id)
        };
        let Some(row) = delivery else {
            return Self {
                detail: Some("what became of it is not on record any more".into()),
                ..why
            };
        };
        Self {
            delivery_id: Some(row.id.clone()),
            state: Some(row.state),
            reason: row.reason,
            clause: row.clause.clone(),
            detail: row.detail.clone(),
            attempts: row.attempts,
            run: row.run,
            purpose: Some(row.purpose),
            last_status: row.last_status,
            due: row.due,
            updated_at: Some(row.updated_at),
            ..why
        }
    }

    /// Of one that did not match: said of it as it is now, because what it was is not kept.
    fn not_matched(record: &EventRecord, subscription: &Subscription) -> Self {
        let changed_since = subscription.revision > record.revision;
        let (clause, detail) = if subscription.created_at > record.accepted_at {
            let made = subscription.created_at;
            let detail = format!("it was made at {made}, after the event; a replay can send it");
            ("created_at", detail)
        } else {
            let detail = match listens(subscription, &record.event) {
                Err(detail) => detail,
                Ok(()) if changed_since => {
                    "it would match now, but has been changed since the event".to_owned()
                }
                Ok(()) => "it would match now, but the router did not know it so".to_owned(),
            };
            ("events", detail)
        };
        Self {
            name: Some(subscription.name.clone()),
            clause: Some(clause.into()),
            detail: Some(detail),
            changed_since,
            ..Self::nothing(&subscription.id)
        }
    }
}
