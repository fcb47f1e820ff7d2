//! `POST /v1/subscriptions/{id}/test`: an example of each event that a subscription listens to, sent
//! to it alone.
//!
//! It takes the road of every delivery from the deliverer on, so that what arrives is what will
//! arrive. It passes no router: nobody else's subscription, filter or archive sees it.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use broker::{Parcel, Route};
use dialect::ExampleEvent;
use event::{
    DeliveryId, Event, EventId, EventType, Subscription, SubscriptionId,
    access::Scope,
    delivery::{Bundle, Item, Purpose, Recipient},
    fault::nearest,
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use service::http::Problem;

use crate::{
    App,
    answer::{Answer, List, conflict},
    caller::{Caller, Id},
    form::{self, Form},
};

/// What an example's id begins with.
const PREFIX: &str = "test_";

/// An example on its way.
#[derive(Debug, Serialize)]
struct Sent {
    r#type: EventType,
    event_id: EventId,
    delivery_id: DeliveryId,
}

pub(super) async fn test(
    caller: Caller,
    State(app): State<Arc<App>>,
    id: Id,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    caller.must(Scope::Manage)?;
    let id = id.parse(SubscriptionId::parse)?;
    let mut form = Form::of_body(&form::body(&headers, body).await?)?;
    let chosen = chosen(&mut form);
    let subscription = super::find(&app, &caller, &id).await?.subscription;
    super::not_a_listener(&subscription.id)?;
    let examples = match chosen {
        None => examples(&app, &subscription)?,
        Some(chosen) => some(&mut form, &app, &subscription, &chosen)?,
    };
    form.finish()?;
    if examples.is_empty() {
        let detail = "the dialect has no example of what the subscription listens to";
        return Err(conflict("no_example", detail));
    }
    let now = Timestamp::now();
    let mut events = Vec::with_capacity(examples.len());
    for example in examples {
        let id = EventId::parse(&format!("{PREFIX}{}", EventId::fresh())).map_err(|bad| {
            tracing::error!(%bad, "an example cannot be named");
            Problem::internal()
        })?;
        events.push(Arc::new(example.into_event(
            id,
            subscription.tenant.clone(),
            now,
        )));
    }
    app.redrives
        .publish(parcel(&subscription, &events, now)?)
        .await?;
    tracing::info!(subscription_id = %subscription.id, examples = events.len(), "test sent");
    let sent = |event: &Arc<Event>| Sent {
        r#type: event.kind.clone(),
        event_id: event.id.clone(),
        delivery_id: DeliveryId::of(&event.tenant, &event.id, &subscription.id),
    };
    let items = events.iter().map(sent).collect();
    Ok((StatusCode::ACCEPTED, Json(List::whole(items))).into_response())
}

/// `events`: entries of the subscription, or types of examples.
fn chosen(form: &mut Form) -> Option<Vec<Value>> {
    match form.take("events")? {
        Value::Array(entries) if !entries.is_empty() => Some(entries),
        _ => {
            form.find(
                "events",
                "must be an array of some of the subscription's events",
            );
            None
        }
    }
}

fn examples(app: &App, subscription: &Subscription) -> Answer<Vec<ExampleEvent>> {
    match app.dialects.speaker(subscription) {
        Ok(speaker) => Ok(speaker.examples()),
        // Its file was taken away since.
        Err(error) => Err(conflict("unknown_dialect", error.to_string())),
    }
}

/// The examples of some of the subscription's entries; each type at most once.
fn some(
    form: &mut Form,
    app: &App,
    subscription: &Subscription,
    chosen: &[Value],
) -> Answer<Vec<ExampleEvent>> {
    let all = examples(app, subscription)?;
    let mut wanted: Vec<ExampleEvent> = Vec::new();
    for (n, entry) in chosen.iter().enumerate() {
        let text = entry.as_str().unwrap_or_default();
        let found: Vec<ExampleEvent> = if subscription.events.iter().any(|own| own == text) {
            let mut only = subscription.clone();
            only.events = vec![text.to_owned()];
            examples(app, &only)?
        } else {
            let of_type = all.iter().filter(|example| example.kind.as_str() == text);
            of_type.cloned().collect()
        };
        if found.is_empty() {
            let own = subscription.events.iter().map(String::as_str);
            let types = all.iter().map(|example| example.kind.as_str());
            let near = nearest(text, own.chain(types))
                .map(|near| format!("; did you mean `{near}`?"))
                .unwrap_or_default();
            let message = format!("is nothing that the subscription listens to{near}");
            form.find(&format!("events/{n}"), message);
        }
        for example in found {
            if !wanted.iter().any(|known| known.kind == example.kind) {
                wanted.push(example);
            }
        }
    }
    Ok(wanted)
}

fn parcel(subscription: &Subscription, events: &[Arc<Event>], now: Timestamp) -> Answer<Parcel> {
    let item = |event: &Arc<Event>| Item {
        event: Arc::clone(event),
        accepted_at: now,
        revision: subscription.revision,
        to: vec![Recipient {
            purpose: Purpose::Test,
            ..Recipient::first(subscription.id.clone())
        }],
    };
    let bundle = Bundle {
        items: events.iter().map(item).collect(),
    };
    let body = serde_json::to_vec(&bundle).map_err(|error| {
        tracing::error!(subscription_id = %subscription.id, %error, "examples cannot be written");
        Problem::internal()
    })?;
    let name = events.first().map_or(PREFIX, |event| event.id.as_str());
    Ok(Parcel::json(Route::Deliver, name, body))
}
