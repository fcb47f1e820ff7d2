//! What people asked to be sent again: jobs, the leases on them, and what they walk over.
//!
//! A job goes forward in steps, and each step is written down before it is sent ([`Store::intend`])
//! and settled after ([`Store::settle`]). Who finds a step that was intended and not settled knows
//! that it may have been sent, and finds out ([`Store::any_arrived`]) before sending it again.

mod walk;

use event::{
    DeadLetterId, DeliveryId, EventType, JobId, SubscriptionId, Tenant, reason::DeadReason,
    selector::Selector,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, Row, any::AnyRow};

use crate::{
    Error, Page, Paging, Sight, Store,
    cursor::{Cursor, Wanted},
    database::{Lease, Statement, within},
    held, time,
};
pub use walk::{Candidate, Counted, Standing, Walked};

/// What is counted at most before a job begins; more is "at least".
pub const COUNT_MAX: u64 = 1_000_000;
/// Jobs that ended so long ago are forgotten.
const KEPT: jiff::SignedDuration = jiff::SignedDuration::from_hours(90 * 24);

/// What a job sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Archived events that match a subscription.
    Replay,
    /// Dead letters.
    Redrive,
    /// What was held while a subscription was paused or disabled.
    Resume,
}

impl JobKind {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Replay, Self::Redrive, Self::Resume];

    /// The word in the API.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Redrive => "redrive",
            Self::Resume => "resume",
        }
    }
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It is being worked on, or waits for a recorder.
    Running,
    /// All of it was sent or skipped.
    Done,
    /// A person ended it.
    Canceled,
    /// It cannot go on; `detail` says why.
    Failed,
}

impl JobState {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Running, Self::Done, Self::Canceled, Self::Failed];

    /// The word in the API.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Canceled => "canceled",
            Self::Failed => "failed",
        }
    }
}

/// Which of them; all given must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobFilter {
    /// Accepted (of dead letters: died) at or after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Accepted (of dead letters: died) before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// One of these matches; empty is all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<Selector>,
    /// Of dead letters: the event's type, exactly.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<EventType>,
    /// Of dead letters: by reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<DeadReason>,
}

/// A job as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Job {
    /// `job_…`
    pub id: JobId,
    /// Whose deliveries it sends; `None` is everybody's.
    pub tenant: Option<Tenant>,
    /// What it sends.
    pub kind: JobKind,
    /// To whom; `None` is to whomever the dead letters were for.
    pub subscription_id: Option<SubscriptionId>,
    /// Which of them.
    pub filter: JobFilter,
    /// How it stands.
    pub state: JobState,
    /// What was found before it began, at most [`COUNT_MAX`]; of a finished one, what there was.
    pub total: u64,
    /// How many were sent.
    pub done: u64,
    /// How many cannot be sent, or are on their way already.
    pub skipped: u64,
    /// How many are sent per second at most.
    pub rate: u32,
    /// Why it waits, or why it failed.
    pub detail: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it last went forward.
    pub updated_at: Timestamp,
}

/// What [`Store::create_job`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// A new job.
    New(Box<Job>),
    /// One that sends the same is running.
    Running(Box<Job>),
}

/// Filters of the list of jobs; all given must hold.
#[derive(Debug, Clone, Default)]
pub struct JobsWanted {
    /// By state.
    pub state: Option<JobState>,
    /// By kind.
    pub kind: Option<JobKind>,
    /// By subscription.
    pub subscription: Option<SubscriptionId>,
}

/// A job in the hands of a recorder.
#[derive(Debug, Clone)]
pub struct Task {
    /// The job.
    pub job: Job,
    /// Behind this place nothing was sent; `None` is the beginning.
    pub place: Option<String>,
    /// A step that somebody else was about to send.
    pub intent: Option<Intent>,
}

/// One step of a job: what is sent as one parcel, all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Where the next step begins.
    pub place: String,
    /// What is sent.
    pub sends: Vec<Sending>,
    /// What was passed over on the way.
    pub skipped: u64,
    /// How often it was about to be sent.
    pub tries: u32,
}

/// One delivery of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sending {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// When its event was accepted.
    pub accepted_at: Timestamp,
    /// Its new run.
    pub run: u32,
    /// The dead letter that is none any more once it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letter: Option<DeadLetterId>,
    /// Whether it was held in the run before, and is not any more once it is sent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

const COLUMNS: &str = "SELECT id, tenant, kind, subscription_id, filter, state, total, done, \
    skipped, rate, detail, created_at, updated_at, place, intent FROM jobs WHERE 1 = 1";

impl Store {
    /// Keeps a new job that is to run, unless one that sends the same is running.
    pub async fn create_job(&self, job: Job) -> Result<Created, Error> {
        let slot = slot(&job);
        let filter = json(&job.filter)?;
        within(async {
            let mut lease = self.database().write().await?;
            let old = time::write(
                job.created_at
                    .saturating_sub(KEPT)
                    .unwrap_or(job.created_at),
            );
            sqlx::query(
                "DELETE FROM jobs WHERE state <> 'running' AND intent IS NULL AND updated_at < $1",
            )
            .bind(old)
            .execute(&mut *lease)
            .await?;
            let done = sqlx::query(
                "INSERT INTO jobs (id, tenant, kind, subscription_id, filter, state, total, done, \
                 skipped, rate, detail, slot, lease_until, created_at, updated_at) \
                 VALUES ($1, $2, $3, $4, $5, 'running', $6, 0, 0, $7, $8, $9, 0, $10, $10) \
                 ON CONFLICT DO NOTHING",
            )
            .bind(job.id.as_str())
            .bind(job.tenant.as_ref().map(Tenant::as_str))
            .bind(job.kind.word())
            .bind(job.subscription_id.as_ref().map(SubscriptionId::as_str))
            .bind(&filter)
            .bind(number(job.total))
            .bind(i64::from(job.rate))
            .bind(job.detail.as_deref())
            .bind(&slot)
            .bind(time::write(job.created_at))
            .execute(&mut *lease)
            .await?;
            if done.rows_affected() == 1 {
                lease.commit().await?;
                return Ok(Created::New(Box::new(job.clone())));
            }
            let mut statement = Statement::new(COLUMNS);
            statement
                .text(" AND state = 'running' AND slot = ")
                .value(slot.as_str())?;
            let (sql, arguments) = statement.parts();
            let other: Option<Raw> = sqlx::query_as_with(sql, arguments)
                .fetch_optional(&mut *lease)
                .await?;
            lease.rollback().await?;
            match other {
                Some(other) => Ok(Created::Running(Box::new(other.read()?.job))),
                None => Err(Error::Unavailable(
                    "another job like this one ended just now; try again".into(),
                )),
            }
        })
        .await
    }

    /// One job.
    pub async fn job(&self, sight: &Sight, id: &JobId) -> Result<Option<Job>, Error> {
        within(async {
            let mut statement = Statement::new(COLUMNS);
            statement
                .text(" AND id = ")
                .value(id.as_str())?
                .sight(sight)?;
            let row: Option<Raw> = self.database().row(statement).await?;
            row.map(|raw| Ok(raw.read()?.job)).transpose()
        })
        .await
    }

    /// A page of jobs, newest first.
    pub async fn jobs(
        &self,
        sight: &Sight,
        which: &JobsWanted,
        paging: &Paging,
    ) -> Result<Page<Job>, Error> {
        let wanted = Wanted::new("jobs", paging)?;
        within(async {
            let mut statement = Statement::new(COLUMNS);
            statement.sight(sight)?;
            if let Some(state) = which.state {
                statement.text(" AND state = ").value(state.word())?;
            }
            if let Some(kind) = which.kind {
                statement.text(" AND kind = ").value(kind.word())?;
            }
            if let Some(subscription) = &which.subscription {
                statement
                    .text(" AND subscription_id = ")
                    .value(subscription.as_str())?;
            }
            if let Some(after) = &wanted.after {
                statement
                    .text(" AND (created_at, id) < (")
                    .value(after.at)?;
                statement.text(", ").value(after.id.as_str())?.text(")");
            }
            statement
                .text(" ORDER BY created_at DESC, id DESC LIMIT ")
                .value(wanted.fetch())?;
            let rows: Vec<Raw> = self.database().rows(statement).await?;
            let place = |raw: &Raw| Cursor {
                at: raw.created_at,
                id: raw.id.clone(),
            };
            wanted.page(rows, place, |raw| Ok(raw.read()?.job))
        })
        .await
    }

    /// Ends a job, as it is then; `None` where there is none. One that has ended stays as it is.
    /// The step that is being sent at this moment may still go out.
    pub async fn cancel_job(
        &self,
        sight: &Sight,
        id: &JobId,
        now: Timestamp,
    ) -> Result<Option<Job>, Error> {
        within(async {
            let mut statement =
                Statement::new("UPDATE jobs SET state = 'canceled', detail = NULL, updated_at = ");
            statement
                .value(time::write(now))?
                .text(" WHERE state = 'running' AND id = ")
                .value(id.as_str())?
                .sight(sight)?;
            let (sql, arguments) = statement.parts();
            let mut lease = self.database().write().await?;
            sqlx::query_with(sql, arguments)
                .execute(&mut *lease)
                .await?;
            lease.commit().await
        })
        .await?;
        self.job(sight, id).await
    }
}

/// What a recorder does with a job that it has taken. Each call but the first fails with `false`
/// once somebody else has the job; then nothing more must be sent.
impl Store {
    /// Takes the job that has waited longest, and none that another recorder works on, until the
    /// lease ends.
    pub async fn take_job(
        &self,
        owner: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<Task>, Error> {
        const FREE: &str = "(state = 'running' OR intent IS NOT NULL) AND lease_until < ";
        within(async {
            // A look first, because it costs a writer nothing.
            let mut statement = Statement::new("SELECT id FROM jobs WHERE ");
            statement
                .text(FREE)
                .value(time::write(now))?
                .text(" ORDER BY lease_until, created_at, id LIMIT 1");
            let free: Option<(String,)> = self.database().row(statement).await?;
            let Some((id,)) = free else { return Ok(None) };
            let mut statement = Statement::new("UPDATE jobs SET owner = ");
            statement
                .value(owner)?
                .text(", lease_until = ")
                .value(time::write(until))?
                .text(" WHERE id = ")
                .value(id.as_str())?
                .text(" AND ")
                .text(FREE)
                .value(time::write(now))?;
            let mut lease = self.database().write().await?;
            if !changes_one(&mut lease, statement).await? {
                lease.rollback().await?;
                return Ok(None);
            }
            let mut statement = Statement::new(COLUMNS);
            statement.text(" AND id = ").value(id.as_str())?;
            let (sql, arguments) = statement.parts();
            let raw: Raw = sqlx::query_as_with(sql, arguments)
                .fetch_one(&mut *lease)
                .await?;
            lease.commit().await?;
            raw.read().map(Some)
        })
        .await
    }

    /// Keeps the lease and says how far the walk has come where nothing was to be sent.
    pub async fn keep_job(&self, owner: &str, id: &JobId, note: &Note<'_>) -> Result<bool, Error> {
        within(async {
            let mut statement = Statement::new("UPDATE jobs SET lease_until = ");
            statement
                .value(time::write(note.until))?
                .text(", detail = ")
                .value(note.detail)?
                .text(", updated_at = CASE WHEN ")
                .value(number(note.skipped))?
                .text(" > 0 THEN ")
                .value(time::write(note.now))?
                .text(" ELSE updated_at END, skipped = skipped + ")
                .value(number(note.skipped))?;
            if let Some(total) = note.total {
                statement.text(", total = ").value(number(total))?;
            }
            if let Some(place) = note.place {
                statement.text(", place = ").value(place)?;
            }
            owned(&mut statement, owner, id)?
                .text(" AND state = ")
                .value(note.state.word())?;
            self.change(statement).await
        })
        .await
    }

    /// Writes down what is about to be sent.
    pub async fn intend(
        &self,
        owner: &str,
        id: &JobId,
        intent: &Intent,
        until: Timestamp,
    ) -> Result<bool, Error> {
        let intent = json(intent)?;
        within(async {
            let mut statement = Statement::new("UPDATE jobs SET lease_until = ");
            statement
                .value(time::write(until))?
                .text(", intent = ")
                .value(intent.as_str())?;
            owned(&mut statement, owner, id)?.text(" AND state = 'running'");
            self.change(statement).await
        })
        .await
    }

    /// Writes down that it was sent, in one transaction with the end of its dead letters; also of
    /// a job that was canceled in between.
    pub async fn settle(
        &self,
        owner: &str,
        id: &JobId,
        intent: &Intent,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<bool, Error> {
        within(async {
            let mut statement = Statement::new("UPDATE jobs SET intent = NULL, detail = NULL");
            statement
                .text(", done = done + ")
                .value(number(intent.sends.len() as u64))?
                .text(", skipped = skipped + ")
                .value(number(intent.skipped))?
                .text(", place = ")
                .value(intent.place.as_str())?
                .text(", updated_at = ")
                .value(time::write(now))?
                .text(", lease_until = ")
                .value(time::write(until))?;
            owned(&mut statement, owner, id)?;
            let mut lease = self.database().write().await?;
            if !changes_one(&mut lease, statement).await? {
                lease.rollback().await?;
                return Ok(false);
            }
            let letters: Vec<&str> = intent
                .sends
                .iter()
                .filter_map(|sending| sending.letter.as_ref().map(DeadLetterId::as_str))
                .collect();
            if !letters.is_empty() {
                let mut statement =
                    Statement::new("UPDATE dead_letters SET document = NULL WHERE id IN (");
                statement.list(&letters)?.text(")");
                let (sql, arguments) = statement.parts();
                sqlx::query_with(sql, arguments)
                    .execute(&mut *lease)
                    .await?;
            }
            held::end(&mut lease, &intent.sends).await?;
            lease.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Forgets a step that was never sent and will not be.
    pub async fn drop_intent(
        &self,
        owner: &str,
        id: &JobId,
        until: Timestamp,
    ) -> Result<bool, Error> {
        within(async {
            let mut statement = Statement::new("UPDATE jobs SET intent = NULL, lease_until = ");
            statement.value(time::write(until))?;
            owned(&mut statement, owner, id)?;
            self.change(statement).await
        })
        .await
    }

    /// Ends a running job.
    pub async fn end_job(
        &self,
        owner: &str,
        id: &JobId,
        state: JobState,
        detail: Option<&str>,
        now: Timestamp,
    ) -> Result<bool, Error> {
        within(async {
            let mut statement = Statement::new("UPDATE jobs SET state = ");
            statement
                .value(state.word())?
                .text(", detail = ")
                .value(detail)?
                .text(", updated_at = ")
                .value(time::write(now))?;
            if state == JobState::Done {
                statement.text(", total = done + skipped");
            }
            owned(&mut statement, owner, id)?.text(" AND state = 'running'");
            self.change(statement).await
        })
        .await
    }

    /// Gives a job back, for any recorder to go on with after `until`.
    pub async fn release_job(
        &self,
        owner: &str,
        id: &JobId,
        until: Timestamp,
    ) -> Result<(), Error> {
        within(async {
            let mut statement = Statement::new("UPDATE jobs SET lease_until = ");
            statement.value(time::write(until))?;
            owned(&mut statement, owner, id)?;
            self.change(statement).await.map(drop)
        })
        .await
    }

    async fn change(&self, statement: Statement) -> Result<bool, Error> {
        let mut lease = self.database().write().await?;
        let changed = changes_one(&mut lease, statement).await?;
        lease.commit().await?;
        Ok(changed)
    }
}

/// What [`Store::keep_job`] writes.
#[derive(Debug, Clone, Copy)]
pub struct Note<'a> {
    /// How the job stands, as far as its owner knows.
    pub state: JobState,
    /// When it is.
    pub now: Timestamp,
    /// Until when the job is its owner's.
    pub until: Timestamp,
    /// Where the walk has come to; `None` leaves it.
    pub place: Option<&'a str>,
    /// How many were passed over since the last time.
    pub skipped: u64,
    /// A better count; `None` leaves it.
    pub total: Option<u64>,
    /// Why it waits, where it does.
    pub detail: Option<&'a str>,
}

async fn changes_one(lease: &mut Lease, statement: Statement) -> Result<bool, Error> {
    let (sql, arguments) = statement.parts();
    let done = sqlx::query_with(sql, arguments)
        .execute(&mut **lease)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Only of the job that is still ours.
fn owned<'s>(
    statement: &'s mut Statement,
    owner: &str,
    id: &JobId,
) -> Result<&'s mut Statement, Error> {
    statement.text(" WHERE id = ").value(id.as_str())?;
    statement.text(" AND owner = ").value(owner)
}

/// What no two running jobs may have in common: a replay and a redrive to one subscription would
/// send the same deliveries twice.
fn slot(job: &Job) -> String {
    let whose = |tenant: &Option<Tenant>| tenant.as_ref().map_or("*", Tenant::as_str).to_owned();
    match (job.kind, &job.subscription_id) {
        (JobKind::Resume, Some(subscription)) => format!("resume {subscription}"),
        (_, Some(subscription)) => format!("send {subscription}"),
        (_, None) => format!("redrive {}", whose(&job.tenant)),
    }
}

fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value)
        .map_err(|error| Error::Fatal(format!("a job cannot be written: {error}")))
}

/// SQL has no unsigned numbers; no count of ours reaches the difference.
fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// As [`COLUMNS`] selects.
struct Raw {
    id: String,
    tenant: Option<String>,
    kind: String,
    subscription_id: Option<String>,
    filter: String,
    state: String,
    total: i64,
    done: i64,
    skipped: i64,
    rate: i64,
    detail: Option<String>,
    created_at: i64,
    updated_at: i64,
    place: Option<String>,
    intent: Option<String>,
}

impl<'r> FromRow<'r, AnyRow> for Raw {
    fn from_row(row: &'r AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get(0)?,
            tenant: row.try_get(1)?,
            kind: row.try_get(2)?,
            subscription_id: row.try_get(3)?,
            filter: row.try_get(4)?,
            state: row.try_get(5)?,
            total: row.try_get(6)?,
            done: row.try_get(7)?,
            skipped: row.try_get(8)?,
            rate: row.try_get(9)?,
            detail: row.try_get(10)?,
            created_at: row.try_get(11)?,
            updated_at: row.try_get(12)?,
            place: row.try_get(13)?,
            intent: row.try_get(14)?,
        })
    }
}

impl Raw {
    fn read(self) -> Result<Task, Error> {
        let id = self.id.clone();
        self.parsed()
            .ok_or_else(|| Error::Fatal(format!("job {id} cannot be read")))
    }

    fn parsed(self) -> Option<Task> {
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        let kind = JobKind::ALL.iter().find(|kind| kind.word() == self.kind);
        let state = JobState::ALL
            .iter()
            .find(|state| state.word() == self.state);
        let tenant = self.tenant.map(|tenant| Tenant::parse(&tenant));
        let subscription = self.subscription_id.map(|id| SubscriptionId::parse(&id));
        let intent = self.intent.map(|intent| serde_json::from_str(&intent));
        Some(Task {
            job: Job {
                id: JobId::parse(&self.id).ok()?,
                tenant: tenant.transpose().ok()?,
                kind: *kind?,
                subscription_id: subscription.transpose().ok()?,
                filter: serde_json::from_str(&self.filter).ok()?,
                state: *state?,
                total: count(self.total),
                done: count(self.done),
                skipped: count(self.skipped),
                rate: u32::try_from(self.rate).unwrap_or(1),
                detail: self.detail,
                created_at: time::read(self.created_at),
                updated_at: time::read(self.updated_at),
            },
            place: self.place,
            intent: intent.transpose().ok()?,
        })
    }
}
