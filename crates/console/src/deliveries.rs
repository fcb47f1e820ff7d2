//! `/v1/deliveries`: what became of each event for each subscription, attempt by attempt.

mod body;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::Uri,
    response::IntoResponse,
    routing::{get, post},
};
use event::{
    DeliveryId, Event, EventId, SubscriptionId, Tenant,
    access::Scope,
    reason::{DeadReason, DeliveryState},
};
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use serde::Serialize;
use service::http::Problem;
use store::{DeliveryFilter, DeliveryRecord, Page, Period, PeriodCount, Sight};

use crate::{
    App,
    answer::{Answer, list, nothing, store_failed},
    caller::{Caller, Id},
    events::is_archived,
    form::Form,
    retry,
};
use body::RequestBody;

/// How many days are counted where nobody says since when.
const DAYS_DEFAULT: i64 = 31;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/deliveries", get(index))
        .route("/v1/deliveries/periods", get(periods))
        .route("/v1/deliveries/{id}", get(show))
        .route("/v1/deliveries/{id}/retry", post(retry::retry))
}

async fn index(caller: Caller, State(app): State<Arc<App>>, uri: Uri) -> Answer {
    caller.must(Scope::Read)?;
    let mut query = Form::of_query(&uri)?;
    let filter = filter(&mut query);
    let tenant = query.parsed("tenant", Tenant::parse);
    let paging = query.paging();
    query.finish()?;
    let Some(sight) = caller.sight_of(tenant) else {
        return Ok(list(&nothing(), |row: &()| *row));
    };
    let page = app
        .store
        .deliveries(&sight, &filter, &paging)
        .await
        .map_err(store_failed)?;
    Ok(list(&page, |row| row))
}

fn filter(form: &mut Form) -> DeliveryFilter {
    DeliveryFilter {
        subscription: form.parsed("subscription_id", SubscriptionId::parse),
        event: form.parsed("event_id", EventId::parse),
        state: form.word("state", DeliveryState::ALL, DeliveryState::word),
        reason: form.word("reason", DeadReason::ALL, DeadReason::word),
        kind: form.text("type"),
        since: form.time("since"),
        until: form.time("until"),
    }
}

/// One day, week or month of the log. `since` and `until` are what the list takes to show it.
#[derive(Debug, Serialize)]
struct Counted<'a> {
    since: Timestamp,
    until: Timestamp,
    #[serde(flatten)]
    count: &'a PeriodCount,
}

async fn periods(caller: Caller, State(app): State<Arc<App>>, uri: Uri) -> Answer {
    caller.must(Scope::Read)?;
    let mut query = Form::of_query(&uri)?;
    let period = query
        .word("by", &[Period::Day, Period::Week, Period::Month], word)
        .unwrap_or(Period::Day);
    let mut filter = filter(&mut query);
    let tenant = query.parsed("tenant", Tenant::parse);
    query.finish()?;
    let Some(sight) = caller.sight_of(tenant) else {
        return Ok(list(&nothing(), |row: &()| *row));
    };
    if filter.since.is_none() && filter.event.is_none() {
        let until = filter.until.unwrap_or_else(Timestamp::now);
        filter.since = Some(some_days_before(until, period));
    }
    let mut items = app
        .store
        .delivery_periods(&sight, &filter, period)
        .await
        .map_err(store_failed)?;
    items.reverse();
    let page = Page {
        items,
        cursor: None,
    };
    Ok(list(&page, |count| {
        let (since, until) = span(count.start, period);
        Counted {
            since: filter.since.map_or(since, |least| least.max(since)),
            until: filter.until.map_or(until, |most| most.min(until)),
            count,
        }
    }))
}

fn word(period: Period) -> &'static str {
    match period {
        Period::Day => "day",
        Period::Week => "week",
        Period::Month => "month",
    }
}

/// Midnight some days before, so that counting has a bound; a year for months.
fn some_days_before(until: Timestamp, period: Period) -> Timestamp {
    let days = match period {
        Period::Day => DAYS_DEFAULT,
        Period::Week => 12 * 7,
        Period::Month => 366,
    };
    let date = until.to_zoned(TimeZone::UTC).date();
    midnight(date.saturating_sub(days.days()))
}

/// When a period begins and when the next one does.
fn span(start: Date, period: Period) -> (Timestamp, Timestamp) {
    let next = match period {
        Period::Day => start.saturating_add(1.day()),
        Period::Week => start.saturating_add(1.week()),
        Period::Month => start.saturating_add(1.month()),
    };
    (midnight(start), midnight(next))
}

fn midnight(date: Date) -> Timestamp {
    // Only a day that no clock shows has no midnight in UTC.
    date.to_zoned(TimeZone::UTC)
        .map_or(Timestamp::MAX, |midnight| midnight.timestamp())
}

/// A delivery with every attempt, its event, and what was sent.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    record: &'a DeliveryRecord,
    /// The event, with its payload where that is in the archive.
    event: Option<&'a Event>,
    #[serde(flatten)]
    body: RequestBody,
}

async fn show(caller: Caller, State(app): State<Arc<App>>, id: Id, uri: Uri) -> Answer {
    caller.must(Scope::Read)?;
    Form::of_query(&uri)?.finish()?;
    let id = id.parse(DeliveryId::parse)?;
    let record = app
        .store
        .delivery(&caller.sight(), &id)
        .await
        .map_err(store_failed)?;
    let record = record.ok_or_else(Problem::not_found)?;
    let delivery = &record.delivery;
    let sight = Sight::Only(delivery.tenant.clone());
    let events = app
        .store
        .event(&sight, &delivery.event_id)
        .await
        .map_err(store_failed)?;
    let event = events
        .iter()
        .find(|event| event.accepted_at == delivery.accepted_at);
    let subscription = app
        .store
        .subscription(&sight, &delivery.subscription_id)
        .await
        .map_err(store_failed)?;
    let whole = Whole {
        event: event.map(|event| &event.event),
        body: RequestBody::of(
            &record,
            event.filter(|event| is_archived(event)),
            subscription.as_ref().map(|stored| &stored.subscription),
            &app.dialects,
        ),
        record: &record,
    };
    Ok(Json(whole).into_response())
}
