//! `/v1/listeners`: subscriptions for the time being, for developers who have no address that we
//! could reach.
//!
//! A listener's subscription is paused for good: what matches is filtered by a deliverer and held in
//! the store, and the listener takes it from here, as the very request that would be made of its
//! endpoint. What it has not said it took is told again. Who is silent for longer than the lease
//! has ended, and so has the subscription.

mod requests;
mod taken;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::IntoResponse,
    routing::{delete, get, post},
};
use event::{
    SubscriptionId, access::Scope, log::Archive, subscription::SubscriptionState,
    subscription::parse_new,
};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value};
use service::http::Problem;
use store::{Stored, feed::Snapshot};

use crate::{
    App,
    answer::{Answer, conflict, refused, store_failed},
    caller::{Caller, Id},
    form,
    subscriptions::{PATIENCE, Shown, find, fresh_keys, with_rules},
};

/// How long a listener lasts without a sign of life, where nobody says.
const LEASE_DEFAULT: Duration = Duration::from_secs(600);
/// The shortest and the longest.
const LEASE_MIN: Duration = Duration::from_secs(5);
const LEASE_MAX: Duration = Duration::from_secs(3600);
/// How many listeners a tenant may have at once.
const LISTENERS_MAX: u32 = 32;
/// Where deliveries would go if anybody sent them: a name that never is one.
const NOWHERE: &str = "https://listener.invalid/";

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/listeners", post(create))
        .route("/v1/listeners/{id}", delete(remove))
        .route("/v1/listeners/{id}/requests", get(requests::requests))
        .route("/v1/listeners/{id}/taken", post(taken::taken))
}

/// A listener as its maker sees it, once.
#[derive(Serialize)]
struct Made<'a> {
    #[serde(flatten)]
    subscription: Shown<'a>,
    #[serde(with = "humantime_text")]
    lease: Duration,
    expires_at: Timestamp,
}

mod humantime_text {
    use std::time::Duration;

    use serde::Serializer;

    pub(super) fn serialize<S: Serializer>(lease: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*lease))
    }
}

async fn create(
    caller: Caller,
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    caller.must(Scope::Manage)?;
    let body = form::body(&headers, body).await?;
    let (body, lease) = read(&body)?;
    if app.archive != Archive::Full {
        let detail = "what is for a listener is kept with its payload until it is taken: set \
                      recorder.archive to `full`";
        return Err(conflict("not_archived", detail));
    }
    let now = Timestamp::now();
    let (mut subscription, signing, given) = with_rules(&app, &caller, |rules| {
        parse_new(&body, rules, now).map_err(refused)
    })?;
    subscription.id = SubscriptionId::fresh_listener();
    subscription.state = SubscriptionState::Paused;
    let keys = fresh_keys(signing, given)?;
    let stored = Stored { subscription, keys };
    let until = SignedDuration::try_from(lease).map_err(|_| Problem::internal())?;
    let stored = app
        .store
        .insert_listener(stored, until, (now, LISTENERS_MAX))
        .await
        .map_err(store_failed)?;
    let Some(stored) = stored else {
        let detail = format!(
            "the tenant has {LISTENERS_MAX} listeners already: end one of them, or wait until one \
             that was left behind ends by itself"
        );
        let status = StatusCode::TOO_MANY_REQUESTS;
        return Err(Problem::new(status, "too_many_listeners", detail));
    };
    let revision = stored.subscription.revision;
    let known = |snapshot: &Snapshot| snapshot.revision >= revision;
    app.feed.shows(PATIENCE, known).await;
    let id = &stored.subscription.id;
    tracing::info!(subscription_id = %id, tenant = %stored.subscription.tenant, "listener made");
    let location = format!("/v1/listeners/{id}");
    let made = Made {
        subscription: Shown::with_secret(&stored),
        lease,
        expires_at: now.saturating_add(until).unwrap_or(now),
    };
    let mut answer = (StatusCode::CREATED, Json(made)).into_response();
    if let Ok(location) = HeaderValue::try_from(location) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    Ok(answer)
}

/// The body as one of a subscription that goes nowhere, and the lease.
fn read(body: &[u8]) -> Answer<(Vec<u8>, Duration)> {
    let bad = |detail| Problem::new(StatusCode::BAD_REQUEST, "bad_json", detail);
    let mut fields: Map<String, Value> = match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => return Err(bad("the body must be a JSON object".into())),
        Err(error) => return Err(bad(format!("the body is not JSON: {error}"))),
    };
    let mut faults = Vec::new();
    let mut lease = LEASE_DEFAULT;
    match fields.remove("lease") {
        None | Some(Value::Null) => {}
        Some(given) => match given.as_str().map(humantime::parse_duration) {
            Some(Ok(given)) if (LEASE_MIN..=LEASE_MAX).contains(&given) => lease = given,
            _ => {
                let message = "must be a duration from `5s` to `1h`".to_owned();
                faults.push(("/lease".to_owned(), message));
            }
        },
    }
    if fields.insert("target_url".into(), NOWHERE.into()).is_some() {
        let message = "has no place here: a listener takes what it gets by itself".to_owned();
        faults.push(("/target_url".to_owned(), message));
    }
    if !faults.is_empty() {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let problem = Problem::new(status, "invalid_request", "the body has a fault");
        return Err(problem.with_errors(faults));
    }
    let body = serde_json::to_vec(&fields).map_err(|_| Problem::internal())?;
    Ok((body, lease))
}

async fn remove(caller: Caller, State(app): State<Arc<App>>, id: Id) -> Answer<StatusCode> {
    caller.must(Scope::Manage)?;
    let id = listener(&id)?;
    let gone = app
        .store
        .delete_subscription(&caller.sight(), &id)
        .await
        .map_err(store_failed)?;
    if !gone {
        return Err(Problem::not_found());
    }
    app.feed.nudge();
    tracing::info!(subscription_id = %id, "listener ended");
    Ok(StatusCode::NO_CONTENT)
}

/// The id of a listener, which no other subscription's is.
fn listener(id: &Id) -> Answer<SubscriptionId> {
    let id = id.parse(SubscriptionId::parse)?;
    if id.is_listener() {
        Ok(id)
    } else {
        Err(Problem::not_found())
    }
}

/// A listener in the caller's sight, with a sign of life.
async fn alive(app: &App, caller: &Caller, id: &Id) -> Answer<Stored> {
    let id = listener(id)?;
    let stored = find(app, caller, &id).await?;
    let until = app
        .store
        .extend_listener(&id, Timestamp::now())
        .await
        .map_err(store_failed)?;
    until.map(|_| stored).ok_or_else(Problem::not_found)
}
