//! `POST /v1/subscriptions/{id}/explain`: whether a subscription wants an event, clause by clause,
//! and what it would be sent. Nothing is.
//!
//! The clauses stand in the order in which a deliverer judges them, so that the first that does not
//! hold is the one that would stop the event.

use std::sync::Arc;

use axum::{
    Json, Router, body::Body, extract::State, http::HeaderMap, response::IntoResponse,
    routing::post,
};
use dialect::{Dialects, RenderError, Speaker};
use event::{
    Event, EventId, Fault, Subscription, SubscriptionId,
    access::Scope,
    admission::{self, Envelope},
    filter::{Filter, Stopped},
    reason::{DeadReason, DeliveryState},
    subscription::{Ordering, SubscriptionState, View},
    target::TargetRules,
};
use jiff::Timestamp;
use serde::Serialize;
use store::versions::Sending;

use crate::{
    App,
    answer::{Answer, refused, store_failed},
    caller::{Caller, Id},
    form,
    subscriptions::find,
};

/// A value that nobody is shown.
const MASK: &str = "***";
/// How many of a subscription's words a sentence names.
const WORDS_TOLD_MAX: usize = 5;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/subscriptions/{id}/explain", post(explain))
}

/// What would become of an event.
#[derive(Debug, Serialize)]
struct Explained {
    /// Whether the router would make a delivery of it.
    matched: bool,
    /// Whether it would be sent now.
    deliverable: bool,
    /// What the delivery would be: `pending` where it would be sent; none where none would be made.
    state: Option<DeliveryState>,
    /// Of a dead one: why.
    reason: Option<DeadReason>,
    /// The first clause that does not hold.
    clause: Option<String>,
    /// Why it does not.
    detail: Option<String>,
    /// Every clause, in order.
    checks: Vec<Check>,
    /// What would be sent, also where it would be held first.
    rendered: Option<Rendered>,
}

/// One clause, judged.
#[derive(Debug, Serialize)]
struct Check {
    clause: String,
    ok: bool,
    detail: Option<String>,
    /// What becomes of the delivery where it does not hold.
    #[serde(skip)]
    end: End,
}

/// What a clause that does not hold makes of a delivery.
#[derive(Debug, Clone, Copy)]
enum End {
    Unmatched,
    Filtered,
    Held,
    Superseded,
    Dead(DeadReason),
}

/// The request that would be made, without what only the moment of sending knows: its time and
/// its signature.
#[derive(Debug, Serialize)]
struct Rendered {
    headers: Vec<(String, String)>,
    body: String,
    view_sent: View,
    /// A view that the event lacks: sent in its place where there is a loader of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    view_missing: Option<View>,
}

async fn explain(
    caller: Caller,
    State(app): State<Arc<App>>,
    id: Id,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    caller.must(Scope::Read)?;
    let id = id.parse(SubscriptionId::parse)?;
    let subscription = find(&app, &caller, &id).await?.subscription;
    let body = form::body(&headers, body).await?;
    let now = Timestamp::now();
    let envelope = Envelope {
        now,
        message_id: None,
        // No other tenant's event could ever come to it.
        tenant: Some(&subscription.tenant),
        fresh_id: Some(EventId::fresh),
    };
    let event = admission::admit(&body, &envelope).map_err(refused)?;
    let mut explained = Explained::of(&event, &subscription, &app.dialects, &app.rules, now);
    if let Some(judged) = in_order(&app, &event, &subscription).await? {
        let Explained {
            mut checks,
            rendered,
            ..
        } = explained;
        checks.push(Check::of("ordering", judged, End::Superseded));
        explained = Explained::sum(checks, rendered);
    }
    Ok(Json(explained).into_response())
}

impl Explained {
    fn of(
        event: &Event,
        subscription: &Subscription,
        dialects: &Dialects,
        rules: &TargetRules,
        now: Timestamp,
    ) -> Self {
        let speaker = dialects.speaker(subscription);
        let mut checks = vec![Check::of(
            "events",
            listens(subscription, event),
            End::Unmatched,
        )];
        checks.push(said(&speaker, event));
        checks.extend(filtered(subscription, event));
        if let Some(end) = event.expires_at {
            let lives = if end > now {
                Ok(())
            } else {
                Err(format!("the event expired at {end}"))
            };
            checks.push(Check::of(
                "expires_at",
                lives,
                End::Dead(DeadReason::Expired),
            ));
        }
        let wanted = checks.iter().all(|check| check.ok);
        checks.push(Check::of("state", is_active(subscription), End::Held));
        let mut rendered = None;
        if let (true, Ok(speaker)) = (wanted, &speaker) {
            match write(speaker, event, subscription) {
                Ok(written) => rendered = Some(written),
                Err(error) => {
                    let end = End::Dead(DeadReason::RenderError);
                    checks.push(Check::of("render", Err(error.to_string()), end));
                }
            }
        }
        let allowed = match rules.check_url(&subscription.target_url) {
            Ok(_) => Ok(()),
            Err(faults) => Err(sentence(&faults)),
        };
        let end = End::Dead(DeadReason::TargetNotAllowed);
        checks.push(Check::of("target_url", allowed, end));
        Self::sum(checks, rendered)
    }

    fn sum(checks: Vec<Check>, rendered: Option<Rendered>) -> Self {
        let stop = checks.iter().find(|check| !check.ok);
        let (state, reason) = match stop.map(|check| check.end) {
            None => (Some(DeliveryState::Pending), None),
            Some(End::Unmatched) => (None, None),
            Some(End::Filtered) => (Some(DeliveryState::Filtered), None),
            Some(End::Held) => (Some(DeliveryState::Held), None),
            Some(End::Superseded) => (Some(DeliveryState::Superseded), None),
            Some(End::Dead(reason)) => (Some(DeliveryState::Dead), Some(reason)),
        };
        Self {
            matched: state.is_some(),
            deliverable: stop.is_none(),
            state,
            reason,
            clause: stop.map(|check| check.clause.clone()),
            detail: stop.and_then(|check| check.detail.clone()),
            checks,
            rendered,
        }
    }
}

impl Check {
    fn of(clause: &str, judged: Result<(), String>, end: End) -> Self {
        Self {
            clause: clause.to_owned(),
            ok: judged.is_ok(),
            detail: judged.err(),
            end,
        }
    }

    fn filter(word: &str, judged: Result<(), Stopped>) -> Self {
        match judged {
            Ok(()) => Self::of(word, Ok(()), End::Filtered),
            Err(stopped) => Self::of(&stopped.clause, Err(stopped.detail), End::Filtered),
        }
    }
}

/// Whether the router would match the event with this subscription, or why not.
pub(crate) fn listens(subscription: &Subscription, event: &Event) -> Result<(), String> {
    if subscription.selectors().iter().any(|s| s.matches(event)) {
        return Ok(());
    }
    let events = subscription.events.iter();
    let told: Vec<String> = events
        .clone()
        .take(WORDS_TOLD_MAX)
        .map(|word| format!("`{word}`"))
        .collect();
    let more = if events.len() > WORDS_TOLD_MAX {
        ", …"
    } else {
        ""
    };
    Err(format!(
        "it listens to {}{more}, got `{}`",
        told.join(", "),
        event.kind
    ))
}

/// Whether the subscription's words, with the dialect's parameters, want the event.
fn said(speaker: &Result<Speaker, RenderError>, event: &Event) -> Check {
    match speaker {
        Ok(speaker) => Check::filter("dialect", speaker.judge(event)),
        Err(error) => {
            let end = End::Dead(DeadReason::RenderError);
            Check::of("dialect", Err(error.to_string()), end)
        }
    }
}

fn filtered(subscription: &Subscription, event: &Event) -> Vec<Check> {
    match Filter::compile(&subscription.filter) {
        Ok(filter) => filter
            .clauses()
            .map(|clause| Check::filter(clause.word(), clause.judge(event)))
            .collect(),
        Err(faults) => {
            let detail = format!("it cannot be used: {}", sentence(&faults));
            let end = End::Dead(DeadReason::RenderError);
            vec![Check::of("filter", Err(detail), end)]
        }
    }
}

fn sentence(faults: &[Fault]) -> String {
    let faults: Vec<String> = faults
        .iter()
        .map(|fault| {
            format!("{} {}", fault.pointer, fault.message)
                .trim()
                .to_owned()
        })
        .collect();
    faults.join("; ")
}

/// Whether no newer version was sent, where the subscription asks for that.
async fn in_order(
    app: &App,
    event: &Event,
    subscription: &Subscription,
) -> Answer<Option<Result<(), String>>> {
    if subscription.delivery.ordering == Ordering::None {
        return Ok(None);
    }
    let Some(sending) = Sending::of(event, &subscription.id) else {
        return Ok(Some(Ok(())));
    };
    let newer = app.store.overtaken(&sending).await.map_err(store_failed)?;
    Ok(Some(newer.map_or(Ok(()), |newer| Err(newer.to_string()))))
}

fn is_active(subscription: &Subscription) -> Result<(), String> {
    match subscription.state {
        SubscriptionState::Active => Ok(()),
        SubscriptionState::Paused => Err("the subscription is paused".into()),
        SubscriptionState::Disabled => {
            let why = subscription.disabled_reason.as_deref();
            let why = why.map_or(String::new(), |why| format!(": {why}"));
            Err(format!("the subscription is disabled{why}"))
        }
    }
}

fn write(
    speaker: &Speaker,
    event: &Event,
    subscription: &Subscription,
) -> Result<Rendered, RenderError> {
    let written = speaker.render(event, None, subscription)?;
    let mut headers: Vec<(String, String)> = subscription
        .headers
        .keys()
        .map(|name| (name.to_ascii_lowercase(), MASK.to_owned()))
        .collect();
    let ours = [
        ("content-type".to_owned(), written.content_type.to_string()),
        ("webhook-id".to_owned(), event.id.as_str().to_owned()),
    ];
    for (name, value) in written.headers.iter().cloned().chain(ours) {
        let name = name.to_ascii_lowercase();
        let value = if written.is_secret(&name) {
            MASK.to_owned()
        } else {
            value
        };
        // Ours take the place of the subscription's own of the same name.
        headers.retain(|(known, _)| *known != name);
        headers.push((name, value));
    }
    Ok(Rendered {
        headers,
        body: String::from_utf8_lossy(&written.body).into_owned(),
        view_sent: written.view_sent,
        view_missing: speaker.missing_view(event),
    })
}
