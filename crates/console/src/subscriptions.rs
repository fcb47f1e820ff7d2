//! `/v1/subscriptions`: who wants what, written how, sent where.

mod example;
mod shown;
mod vcita;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use event::{
    Subscription, SubscriptionId, Tenant,
    access::Scope,
    secret::{LiveKey, SigningKey, SigningKeys, SigningKind},
    subscription::{Rules, SigningChoice, SubscriptionState, parse_new, parse_patch},
};
use jiff::{SignedDuration, Timestamp};
use service::http::Problem;
use store::{Stored, feed::Snapshot};

use crate::{
    App,
    answer::{Answer, conflict, list, nothing, refused, store_failed},
    caller::{Caller, Id},
    form::{self, Form},
};
pub(crate) use shown::Shown;

/// How often a change is tried again when another one came between.
const TRIES_MAX: usize = 5;
/// How long an answer waits until this process follows the change that it tells of.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);
/// How long a replaced key signs on beside the new one, where nobody says.
const OVERLAP_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest it may.
const OVERLAP_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

const STATES: &[SubscriptionState] = &[
    SubscriptionState::Active,
    SubscriptionState::Paused,
    SubscriptionState::Disabled,
];

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/subscriptions", post(create).get(index))
        .route(
            "/v1/subscriptions/{id}",
            get(show).patch(patch).delete(remove),
        )
        .route("/v1/subscriptions/{id}/pause", post(pause))
        .route("/v1/subscriptions/{id}/resume", post(resume))
        .route("/v1/subscriptions/{id}/rotate-secret", post(rotate))
        .route("/v1/subscriptions/{id}/test", post(example::test))
        .merge(vcita::routes())
}

async fn create(
    caller: Caller,
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    caller.must(Scope::Manage)?;
    let body = form::body(&headers, body).await?;
    let (subscription, signing, given) = with_rules(&app, &caller, |rules| {
        parse_new(&body, rules, Timestamp::now()).map_err(refused)
    })?;
    let keys = fresh_keys(signing, given)?;
    let stored = Stored { subscription, keys };
    let stored = app
        .store
        .insert_subscription(stored)
        .await
        .map_err(store_failed)?;
    let revision = stored.subscription.revision;
    let known = |snapshot: &Snapshot| snapshot.revision >= revision;
    app.feed.shows(PATIENCE, known).await;
    tracing::info!(
        subscription_id = %stored.subscription.id, tenant = %stored.subscription.tenant,
        "subscription created"
    );
    let location = format!("/v1/subscriptions/{}", stored.subscription.id);
    let answer = (
        StatusCode::CREATED,
        shown(&Shown::with_secret(&stored).answering(&body)),
    );
    let mut answer = answer.into_response();
    if let Ok(location) = HeaderValue::try_from(location) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    Ok(answer)
}

async fn index(caller: Caller, State(app): State<Arc<App>>, uri: Uri) -> Answer {
    caller.must(Scope::Read)?;
    let mut query = Form::of_query(&uri)?;
    let tenant = query.parsed("tenant", Tenant::parse);
    let state = query.word("state", STATES, state_word);
    let paging = query.paging();
    query.finish()?;
    let Some(sight) = caller.sight_of(tenant) else {
        return Ok(list(&nothing(), Shown::of));
    };
    let page = app
        .store
        .subscriptions(&sight, state, &paging)
        .await
        .map_err(store_failed)?;
    Ok(list(&page, Shown::of))
}

async fn show(caller: Caller, State(app): State<Arc<App>>, id: Id) -> Answer {
    caller.must(Scope::Read)?;
    let stored = find(&app, &caller, &id.parse(SubscriptionId::parse)?).await?;
    Ok(shown(&Shown::of(&stored)))
}

async fn remove(
    caller: Caller,
    State(app): State<Arc<App>>,
    id: Id,
    headers: HeaderMap,
) -> Answer<StatusCode> {
    caller.must(Scope::Manage)?;
    let id = id.parse(SubscriptionId::parse)?;
    if headers.contains_key(header::IF_MATCH) {
        match_revision(&headers, &find(&app, &caller, &id).await?.subscription)?;
    }
    let gone = app
        .store
        .delete_subscription(&caller.sight(), &id)
        .await
        .map_err(store_failed)?;
    if !gone {
        return Err(Problem::not_found());
    }
    let gone = |snapshot: &Snapshot| !snapshot.subscriptions.contains_key(&id);
    app.feed.shows(PATIENCE, gone).await;
    tracing::info!(subscription_id = %id, "subscription deleted");
    Ok(StatusCode::NO_CONTENT)
}

async fn patch(
    caller: Caller,
    State(app): State<Arc<App>>,
    id: Id,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    caller.must(Scope::Manage)?;
    let id = id.parse(SubscriptionId::parse)?;
    let body = form::body(&headers, body).await?;
    let changed = change(&app, &caller, &id, &headers, |stored| {
        stored.subscription = with_rules(&app, &caller, |rules| {
            parse_patch(&body, &stored.subscription, rules, Timestamp::now()).map_err(refused)
        })?;
        Ok(())
    });
    Ok(shown(&Shown::of(&changed.await?).answering(&body)))
}

async fn pause(caller: Caller, app: State<Arc<App>>, id: Id, headers: HeaderMap) -> Answer {
    set_state(caller, app, id, headers, SubscriptionState::Paused).await
}

async fn resume(caller: Caller, app: State<Arc<App>>, id: Id, headers: HeaderMap) -> Answer {
    set_state(caller, app, id, headers, SubscriptionState::Active).await
}

async fn set_state(
    caller: Caller,
    State(app): State<Arc<App>>,
    id: Id,
    headers: HeaderMap,
    state: SubscriptionState,
) -> Answer {
    caller.must(Scope::Manage)?;
    let id = id.parse(SubscriptionId::parse)?;
    let changed = change(&app, &caller, &id, &headers, |stored| {
        let subscription = &mut stored.subscription;
        not_a_listener(&subscription.id)?;
        subscription.state = state;
        if state == SubscriptionState::Active {
            subscription.disabled_reason = None;
        }
        subscription.updated_at = Timestamp::now();
        Ok(())
    });
    Ok(shown(&Shown::of(&changed.await?)))
}

async fn rotate(
    caller: Caller,
    State(app): State<Arc<App>>,
    id: Id,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    caller.must(Scope::Manage)?;
    let id = id.parse(SubscriptionId::parse)?;
    let mut form = Form::of_body(&form::body(&headers, body).await?)?;
    let kind = form.word(
        "kind",
        &[SigningKind::Hmac, SigningKind::Ed25519],
        kind_word,
    );
    let overlap = form
        .parsed("expire_old_after", overlap)
        .unwrap_or(OVERLAP_DEFAULT);
    form.finish()?;
    let now = Timestamp::now();
    let old_until = SignedDuration::try_from(overlap)
        .ok()
        .and_then(|overlap| now.checked_add(overlap).ok())
        .ok_or_else(Problem::internal)?;
    let mut rotated = SigningKind::Hmac;
    let changed = change(&app, &caller, &id, &headers, |stored| {
        rotated = kind.unwrap_or_else(|| main_kind(&stored.keys));
        stored.keys.rotate(fresh_key(rotated)?, now, old_until);
        stored.subscription.updated_at = now;
        Ok(())
    });
    let changed = changed.await?;
    tracing::info!(subscription_id = %id, "signing key rotated");
    Ok(shown(&Shown::rotated(&changed, rotated, old_until)))
}

/// Refuses what makes no sense for a listener's subscription, which is sent to nobody.
pub(crate) fn not_a_listener(id: &SubscriptionId) -> Answer<()> {
    if id.is_listener() {
        let detail = "it is a listener's: what it gets waits until its listener takes it";
        return Err(conflict("listener", detail));
    }
    Ok(())
}

/// The kind that is rotated where nobody says: the secret one, where there is one.
fn main_kind(keys: &SigningKeys) -> SigningKind {
    let hmac = keys
        .0
        .iter()
        .any(|live| live.key.kind() == SigningKind::Hmac);
    if hmac || keys.0.is_empty() {
        SigningKind::Hmac
    } else {
        SigningKind::Ed25519
    }
}

fn overlap(text: &str) -> Result<Duration, &'static str> {
    let duration = humantime::parse_duration(text).ok();
    duration
        .filter(|d| *d <= OVERLAP_MAX)
        .ok_or("must be a duration from `0s` to `7d`")
}

/// Changes a subscription as it is at that moment: reads it, applies `apply`, writes it unless
/// somebody else did in between, and then begins again.
async fn change(
    app: &App,
    caller: &Caller,
    id: &SubscriptionId,
    headers: &HeaderMap,
    mut apply: impl FnMut(&mut Stored) -> Answer<()>,
) -> Answer<Stored> {
    for _ in 0..TRIES_MAX {
        let mut stored = find(app, caller, id).await?;
        match_revision(headers, &stored.subscription)?;
        apply(&mut stored)?;
        let replaced = app
            .store
            .replace_subscription(stored)
            .await
            .map_err(store_failed)?;
        if let Some(replaced) = replaced {
            let revision = replaced.subscription.revision;
            let known = |snapshot: &Snapshot| snapshot.revision >= revision;
            app.feed.shows(PATIENCE, known).await;
            return Ok(replaced);
        }
    }
    Err(conflict(
        "conflict",
        "the subscription is being changed by others; try again",
    ))
}

pub(crate) async fn find(app: &App, caller: &Caller, id: &SubscriptionId) -> Answer<Stored> {
    let found = app
        .store
        .subscription(&caller.sight(), id)
        .await
        .map_err(store_failed)?;
    found.ok_or_else(Problem::not_found)
}

/// `If-Match`: refuses a change of anything but the revision that the caller has seen.
fn match_revision(headers: &HeaderMap, subscription: &Subscription) -> Answer<()> {
    let current = etag(subscription.revision);
    let wanted: Vec<&str> = headers
        .get_all(header::IF_MATCH)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or_default().split(','))
        .map(str::trim)
        .collect();
    if wanted.is_empty() || wanted.iter().any(|tag| *tag == "*" || *tag == current) {
        return Ok(());
    }
    let detail = format!(
        "the subscription has changed: its revision is {}",
        subscription.revision
    );
    Err(Problem::new(
        StatusCode::PRECONDITION_FAILED,
        "revision_mismatch",
        detail,
    ))
}

fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

fn shown(subscription: &Shown<'_>) -> Response {
    let mut answer = Json(subscription).into_response();
    if let Ok(tag) = HeaderValue::try_from(etag(subscription.revision())) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    answer
}

pub(crate) fn with_rules<T>(app: &App, caller: &Caller, read: impl FnOnce(&Rules<'_>) -> T) -> T {
    let tenant = caller.0.tenant.as_ref();
    read(&Rules {
        target: &app.rules,
        dialects: &*app.dialects,
        tenant,
    })
}

/// The keys of a new subscription; one that the receiver has already stands in a fresh one's place.
pub(crate) fn fresh_keys(
    signing: SigningChoice,
    mut given: Option<SigningKey>,
) -> Answer<SigningKeys> {
    let mut keys = SigningKeys::default();
    let kinds = [
        (signing.v1a, SigningKind::Ed25519),
        (signing.v1, SigningKind::Hmac),
    ];
    for (_, kind) in kinds.into_iter().filter(|(wanted, _)| *wanted) {
        let key = match given.take_if(|key| key.kind() == kind) {
            Some(given) => given,
            None => fresh_key(kind)?,
        };
        let expires_at = None;
        keys.0.insert(0, LiveKey { key, expires_at });
    }
    Ok(keys)
}

fn fresh_key(kind: SigningKind) -> Answer<SigningKey> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| {
        tracing::error!(%error, "the system gives no random bytes");
        Problem::internal()
    })?;
    Ok(SigningKey::from_random(kind, random))
}

fn kind_word(kind: SigningKind) -> &'static str {
    match kind {
        SigningKind::Hmac => "v1",
        SigningKind::Ed25519 => "v1a",
    }
}

fn state_word(state: SubscriptionState) -> &'static str {
    match state {
        SubscriptionState::Active => "active",
        SubscriptionState::Paused => "paused",
        SubscriptionState::Disabled => "disabled",
    }
}
