//! vCita's own two routes, to the letter: subscribing by event and URL, unsubscribing by URL.
//!
//! One subscription of a tenant holds all events of one URL; it is an ordinary one, which the other
//! routes show and change too. Whoever subscribes twice, here or in two processes at once, is
//! subscribed once: the store decides about all subscriptions of a target as a whole.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::post,
};
use event::{
    Refusal, Subscription, Tenant,
    access::Scope,
    subscription::{FilterSpec, SubscriptionState, parse_new, parse_patch},
    target,
};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use service::http::Problem;
use store::{Change, Stored};

use super::{fresh_keys, with_rules};
use crate::{
    App,
    answer::{Answer, refused, store_failed},
    caller::Caller,
    form::{self, Form},
};

/// The dialect of what these routes subscribe.
const DIALECT: &str = "vcita";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/subscriptions/standard/subscribe", post(subscribe))
        .route("/v1/subscriptions/standard/unsubscribe", post(unsubscribe))
}

/// What vCita's clients wait for.
#[derive(Serialize)]
struct Done {
    response: &'static str,
}

async fn subscribe(
    caller: Caller,
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    caller.must(Scope::Manage)?;
    let mut form = read(&headers, body).await?;
    let mut written = Map::from_iter([("dialect".to_owned(), DIALECT.into())]);
    let event = form.take("event");
    if event.is_none() {
        form.find("event", "is required, such as `client/created`");
    }
    written.insert("events".into(), event.into_iter().collect());
    for name in ["target_url", "tenant"] {
        written.extend(form.take(name).map(|value| (name.to_owned(), value)));
    }
    let parsed = with_rules(&app, &caller, |rules| {
        let body = Value::Object(written).to_string();
        parse_new(body.as_bytes(), rules, Timestamp::now())
    });
    let (subscription, signing, _) = match parsed {
        Ok(parsed) => {
            form.finish()?;
            parsed
        }
        Err(refusal) => {
            tell(&mut form, &refusal);
            form.finish()?;
            return Err(refused(refusal));
        }
    };
    let keys = fresh_keys(signing, None)?;
    let (tenant, target) = (subscription.tenant.clone(), subscription.target_url.clone());
    let fresh = Stored { subscription, keys };
    let decide = |found: Vec<Stored>| {
        let found = found.into_iter().filter(is_vcitas).collect();
        take_in(found, fresh, |events, current| {
            let patch = json!({ "events": events }).to_string();
            let patched = with_rules(&app, &caller, |rules| {
                parse_patch(patch.as_bytes(), current, rules, Timestamp::now())
            });
            patched.ok()
        })
    };
    let settled = app.store.settle_target(&tenant, &target, decide).await;
    if settled.map_err(store_failed)? {
        app.feed.nudge();
        tracing::info!(%tenant, dialect = DIALECT, "subscribed by event and url");
    }
    Ok(Json(Done {
        response: "Subscribed",
    })
    .into_response())
}

async fn unsubscribe(
    caller: Caller,
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    caller.must(Scope::Manage)?;
    let mut form = read(&headers, body).await?;
    let target = form.required("target_url");
    let tenant = tenant(&mut form, &caller);
    form.finish()?;
    let (Some(target), Some(tenant)) = (target, tenant) else {
        return Err(Problem::internal());
    };
    // What could be no target has no subscription, and is left as it should be: without one.
    if let Some(url) = target::normalised(&target) {
        let delete = |stored: &Stored| Change::Delete(stored.subscription.id.clone());
        let decide = |found: Vec<Stored>| {
            let found = found.iter().filter(|stored| is_vcitas(stored));
            found.map(delete).collect()
        };
        let settled = app.store.settle_target(&tenant, url.as_str(), decide);
        if settled.await.map_err(store_failed)? {
            app.feed.nudge();
            tracing::info!(%tenant, dialect = DIALECT, "unsubscribed by url");
        }
    }
    Ok(Json(Done {
        response: "Unsubscribed",
    })
    .into_response())
}

/// The body's fields. Whatever is wrong with what vCita's clients send is a 422, text that is no
/// JSON too.
async fn read(headers: &HeaderMap, body: Body) -> Result<Form, Problem> {
    let body = form::body(headers, body).await?;
    Form::of_body(&body).map_err(|problem| problem.with_status(StatusCode::UNPROCESSABLE_ENTITY))
}

/// Whose subscriptions are meant: a caller without a tenant has to say it.
fn tenant(form: &mut Form, caller: &Caller) -> Option<Tenant> {
    let given = form.parsed("tenant", Tenant::parse);
    match (&caller.0.tenant, given) {
        (Some(own), Some(given)) if *own != given => {
            form.find("tenant", "is not the tenant that the caller may manage");
            None
        }
        (Some(own), _) => Some(own.clone()),
        (None, None) => {
            form.find("tenant", "is required: the token is bound to none");
            None
        }
        (None, given) => given,
    }
}

/// Says what is wrong with a subscription in the words of this route's body.
fn tell(form: &mut Form, refusal: &Refusal) {
    let missing = form.has_fault("event");
    for fault in &refusal.faults {
        match fault.pointer.trim_start_matches('/') {
            // An empty list stood for the event that is missing.
            "events" if missing => {}
            "events" | "events/0" => form.find("event", &*fault.message),
            pointer => form.find(pointer, &*fault.message),
        }
    }
}

fn is_vcitas(stored: &Stored) -> bool {
    stored.subscription.dialect == DIALECT
}

/// What has to change so that the fresh subscription's events are subscribed: nothing, the oldest
/// subscription to everything of its words, or a subscription more. One that we disabled begins
/// anew, as somebody asks for it; one that a person paused stays so.
fn take_in(
    found: Vec<Stored>,
    fresh: Stored,
    with_events: impl Fn(Vec<String>, &Subscription) -> Option<Subscription>,
) -> Vec<Change> {
    let wanted = &fresh.subscription.events;
    let has = |stored: &&Stored| {
        let events = &stored.subscription.events;
        wanted.iter().all(|word| events.contains(word))
    };
    if let Some(has) = found.iter().find(has) {
        let begun = begun(has.subscription.clone());
        return Vec::from_iter(begun.map(|subscription| {
            Change::Replace(Stored {
                subscription,
                keys: has.keys.clone(),
            })
        }));
    }
    // What filters or is written for something else stays as its owner made it.
    let plain = |stored: &&Stored| stored.subscription.filter == FilterSpec::default();
    if let Some(open) = found.iter().find(plain) {
        let mut events = open.subscription.events.clone();
        events.extend(wanted.iter().cloned());
        if let Some(subscription) = with_events(events, &open.subscription) {
            let begun = begun(subscription.clone());
            return vec![Change::Replace(Stored {
                subscription: begun.unwrap_or(subscription),
                keys: open.keys.clone(),
            })];
        }
    }
    vec![Change::Insert(fresh)]
}

/// The subscription in action again, where it was disabled.
fn begun(mut subscription: Subscription) -> Option<Subscription> {
    (subscription.state == SubscriptionState::Disabled).then(|| {
        subscription.state = SubscriptionState::Active;
        subscription.disabled_reason = None;
        subscription.updated_at = Timestamp::now();
        subscription
    })
}
