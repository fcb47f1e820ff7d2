//! `/v1/jobs`, and what begins one: a replay to a subscription, a redrive of many dead letters. The
//! recorders do the work.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::IntoResponse,
    routing::{get, post},
};
use event::{EventType, JobId, SubscriptionId, Tenant, access::Scope, selector::Selector};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use service::http::Problem;
use store::{
    DeadFilter, Sight,
    jobs::{Created, Job, JobFilter, JobKind, JobState, JobsWanted},
};

use crate::{
    App,
    answer::{Answer, conflict, list, nothing, store_failed},
    caller::{Caller, Id},
    form::{self, Form},
    subscriptions::find,
};

/// Deliveries per second where nobody says.
const RATE_DEFAULT: u32 = 50;
/// The most that may be asked for.
const RATE_MAX: u32 = 1000;
/// How many types one replay names.
const TYPES_MAX: usize = 100;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/subscriptions/{id}/replay", post(replay))
        .route("/v1/jobs", get(index))
        .route("/v1/jobs/{id}", get(show))
        .route("/v1/jobs/{id}/cancel", post(cancel))
}

/// What is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Only {
    All,
    Dead,
}

impl Only {
    const fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Dead => "dead",
        }
    }
}

/// What a job would find.
#[derive(Debug, Serialize)]
struct Preview<'a> {
    dry_run: bool,
    tenant: Option<&'a Tenant>,
    kind: JobKind,
    subscription_id: Option<&'a SubscriptionId>,
    filter: &'a JobFilter,
    total: u64,
    /// How many of them were archived with their payload.
    sendable: u64,
    rate: u32,
}

/// A job that is asked for.
struct Wish {
    job: Job,
    sendable: u64,
    dry_run: bool,
}

async fn replay(
    caller: Caller,
    State(app): State<Arc<App>>,
    id: Id,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    caller.must(Scope::Manage)?;
    let id = id.parse(SubscriptionId::parse)?;
    let subscription = find(&app, &caller, &id).await?.subscription;
    let now = Timestamp::now();
    let mut form = Form::of_body(&form::body(&headers, body).await?)?;
    let since = form.time("since");
    if since.is_none() && !form.has_fault("since") {
        form.find("since", "is required");
    }
    // What comes later is live, and a job must have an end.
    let until = form.time("until").unwrap_or(now).min(now);
    if since.is_some_and(|since| since >= until) {
        form.find("since", "must be before `until`, and in the past");
    }
    let types = types(&mut form);
    let only = form.word("only", &[Only::All, Only::Dead], Only::word);
    let (rate, dry_run) = pace(&mut form);
    form.finish()?;
    let kind = match only.unwrap_or(Only::All) {
        Only::All => JobKind::Replay,
        Only::Dead => JobKind::Redrive,
    };
    let filter = JobFilter {
        since,
        until: Some(until),
        types,
        ..JobFilter::default()
    };
    let mut wish = Wish {
        job: fresh(Some(subscription.tenant.clone()), kind, rate, now),
        sendable: 0,
        dry_run,
    };
    wish.job.filter = filter;
    wish.job.subscription_id = Some(id.clone());
    (wish.job.total, wish.sendable) = match kind {
        JobKind::Replay => {
            let selectors = subscription.selectors();
            let filter = &wish.job.filter;
            let counted = app
                .store
                .count_events(&subscription.tenant, &selectors, filter);
            let counted = counted.await.map_err(store_failed)?;
            (counted.total, counted.whole)
        }
        _ => {
            let (sight, filter) = (caller.sight(), &wish.job.filter);
            let counted = app.store.count_dead(&sight, Some(&id), filter).await;
            counted.map(|count| (count, count)).map_err(store_failed)?
        }
    };
    begin(&app, wish).await
}

/// Redrives all dead letters that a filter finds, however many there are.
pub(crate) async fn redrive(
    app: &App,
    sight: &Sight,
    filter: DeadFilter,
    kind: Option<EventType>,
    (rate, dry_run): (u32, bool),
) -> Answer {
    let now = Timestamp::now();
    let tenant = match sight {
        Sight::All => None,
        Sight::Only(tenant) => Some(tenant.clone()),
    };
    let mut job = fresh(tenant, JobKind::Redrive, rate, now);
    job.subscription_id = filter.subscription;
    job.filter = JobFilter {
        since: filter.since,
        // What dies again is not redriven again.
        until: Some(filter.until.unwrap_or(now).min(now)),
        kind,
        reason: filter.reason,
        ..JobFilter::default()
    };
    let to = job.subscription_id.as_ref();
    let counted = app.store.count_dead(sight, to, &job.filter).await;
    job.total = counted.map_err(store_failed)?;
    let sendable = job.total;
    let wish = Wish {
        job,
        sendable,
        dry_run,
    };
    begin(app, wish).await
}

fn fresh(tenant: Option<Tenant>, kind: JobKind, rate: u32, now: Timestamp) -> Job {
    Job {
        id: JobId::fresh(),
        tenant,
        kind,
        subscription_id: None,
        filter: JobFilter::default(),
        state: JobState::Running,
        total: 0,
        done: 0,
        skipped: 0,
        rate,
        detail: None,
        created_at: now,
        updated_at: now,
    }
}

async fn begin(app: &App, wish: Wish) -> Answer {
    let Wish {
        job,
        sendable,
        dry_run,
    } = wish;
    if dry_run {
        let preview = Preview {
            dry_run,
            tenant: job.tenant.as_ref(),
            kind: job.kind,
            subscription_id: job.subscription_id.as_ref(),
            filter: &job.filter,
            total: job.total,
            sendable,
            rate: job.rate,
        };
        return Ok(Json(preview).into_response());
    }
    match (job.total, sendable, job.kind) {
        (0, _, JobKind::Replay) => {
            let detail = "no event that the subscription listens to is on record for that time; \
                          with `recorder.archive = off` none is";
            return Err(conflict("nothing_to_send", detail));
        }
        (0, ..) => {
            let detail = "there is no such dead letter";
            return Err(conflict("nothing_to_send", detail));
        }
        (total, 0, _) => {
            let detail = format!(
                "{total} events match, and none was archived with its payload \
                 (`recorder.archive = full` keeps it): there is nothing to send"
            );
            return Err(conflict("not_archived", detail));
        }
        _ => {}
    }
    match app.store.create_job(job).await.map_err(store_failed)? {
        Created::New(job) => {
            tracing::info!(
                job_id = %job.id, kind = job.kind.word(), total = job.total, "job created"
            );
            let mut answer = (StatusCode::ACCEPTED, Json(&job)).into_response();
            if let Ok(location) = HeaderValue::try_from(format!("/v1/jobs/{}", job.id)) {
                answer.headers_mut().insert(header::LOCATION, location);
            }
            Ok(answer)
        }
        Created::Running(job) => {
            let detail = format!(
                "{} sends the same and is running: wait for its end, or cancel it",
                job.id
            );
            Err(conflict("job_running", detail))
        }
    }
}

fn types(form: &mut Form) -> Vec<Selector> {
    let Some(value) = form.take("types") else {
        return Vec::new();
    };
    let Value::Array(items) = value else {
        form.find("types", "must be an array of strings");
        return Vec::new();
    };
    if items.len() > TYPES_MAX {
        form.find("types", format!("must have at most {TYPES_MAX} entries"));
    }
    let mut types = Vec::new();
    for (index, item) in items.iter().take(TYPES_MAX).enumerate() {
        let parsed = match item.as_str() {
            Some(text) => Selector::parse(text).map_err(|error| error.to_string()),
            None => Err("must be a string".into()),
        };
        match parsed {
            Ok(selector) => types.push(selector),
            Err(message) => form.find(&format!("types/{index}"), message),
        }
    }
    types
}

/// Takes `rate` and `dry_run`.
pub(crate) fn pace(form: &mut Form) -> (u32, bool) {
    let rate = form.take("rate").map_or(Some(RATE_DEFAULT), |value| {
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        number.filter(|n| (1..=RATE_MAX).contains(n))
    });
    if rate.is_none() {
        let message = format!("must be a whole number from 1 to {RATE_MAX}, deliveries per second");
        form.find("rate", message);
    }
    let dry_run = flag(form, "dry_run");
    (rate.unwrap_or(RATE_DEFAULT), dry_run)
}

/// Takes true or false; none is false.
pub(crate) fn flag(form: &mut Form, name: &'static str) -> bool {
    match form.take(name) {
        None => false,
        Some(Value::Bool(flag)) => flag,
        Some(_) => {
            form.find(name, "must be true or false");
            false
        }
    }
}

async fn index(caller: Caller, State(app): State<Arc<App>>, uri: Uri) -> Answer {
    caller.must(Scope::Read)?;
    let mut query = Form::of_query(&uri)?;
    let wanted = JobsWanted {
        state: query.word("state", JobState::ALL, JobState::word),
        kind: query.word("kind", JobKind::ALL, JobKind::word),
        subscription: query.parsed("subscription_id", SubscriptionId::parse),
    };
    let tenant = query.parsed("tenant", Tenant::parse);
    let paging = query.paging();
    query.finish()?;
    let Some(sight) = caller.sight_of(tenant) else {
        return Ok(list(&nothing(), |job: &Job| job));
    };
    let page = app.store.jobs(&sight, &wanted, &paging).await;
    Ok(list(&page.map_err(store_failed)?, |job| job))
}

async fn show(caller: Caller, State(app): State<Arc<App>>, id: Id) -> Answer {
    caller.must(Scope::Read)?;
    let id = id.parse(JobId::parse)?;
    let job = app.store.job(&caller.sight(), &id).await;
    let job = job.map_err(store_failed)?.ok_or_else(Problem::not_found)?;
    Ok(Json(job).into_response())
}

/// One that has ended already is shown as it ended.
async fn cancel(caller: Caller, State(app): State<Arc<App>>, id: Id) -> Answer {
    caller.must(Scope::Manage)?;
    let id = id.parse(JobId::parse)?;
    let job = app
        .store
        .cancel_job(&caller.sight(), &id, Timestamp::now())
        .await;
    let job = job.map_err(store_failed)?.ok_or_else(Problem::not_found)?;
    Ok(Json(job).into_response())
}
