//! What was recorded, told in the order in which it was: for whoever follows it live.
//!
//! While somebody follows, each transaction of [`Store::record`] also writes down the keys of what
//! it changed, as steps numbered by one counter. The counter's row is taken last and stays locked
//! until the commit, so steps become visible in their order: whoever has seen one has missed none
//! before it, however many recorders there are and however late something is recorded. While
//! nobody follows, it costs one look at one row.
//!
//! Where steps are missing, because nobody followed for a while or because they were forgotten, the
//! numbers have a hole, and the reader is told so.

use std::collections::{BTreeMap, HashMap};

use event::{DeliveryId, EventId, Tenant};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::AnyConnection;

use crate::{
    DeliveryRow, Error, EventRow, Sight, Store,
    database::{Statement, within},
    log::{changed_deliveries, changed_events},
    time,
};

/// How many rows one step names at most.
const STEP_MAX: usize = 500;
/// How many forgotten steps go at once.
const FORGET_MAX: i64 = 500;

/// A change of one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "k")]
pub(crate) enum Key {
    /// An event that was not known.
    #[serde(rename = "e")]
    Event {
        id: String,
        tenant: String,
        day: i64,
    },
    /// A delivery that has moved forward.
    #[serde(rename = "d")]
    Delivery {
        id: String,
        tenant: String,
        day: i64,
        /// How far it has come, and since when.
        progress: i64,
        at: i64,
    },
}

impl Key {
    fn tenant(&self) -> &str {
        match self {
            Self::Event { tenant, .. } | Self::Delivery { tenant, .. } => tenant,
        }
    }
}

/// What was recorded in one step, as far as the caller may see it.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its number.
    pub number: u64,
    /// Whether steps before it are missing.
    pub gap: bool,
    /// What it tells, each with its place in the step.
    pub told: Vec<(u64, Told)>,
}

/// Something that was recorded.
#[derive(Debug, Clone)]
pub enum Told {
    /// An event that was accepted.
    Event(Box<EventRow>),
    /// A delivery, as it came to stand. One that has moved on since is told by a later step.
    Delivery(Box<DeliveryRow>),
}

impl Store {
    /// Has recorders write steps until `until`, and says which is the last there is: everything that
    /// is accepted after this call is told by a later one.
    pub async fn follow(&self, now: Timestamp, until: Timestamp) -> Result<u64, Error> {
        within(async {
            let mut lease = self.database().write().await?;
            // After a time in which nobody followed, a number is left out, for all to see.
            let (seq,): (i64,) = sqlx::query_as(
                "UPDATE tail SET \
                 seq = CASE WHEN followed_until < $1 THEN seq + 1 ELSE seq END, \
                 followed_until = CASE WHEN followed_until < $2 THEN $3 ELSE followed_until END \
                 WHERE one = 1 RETURNING seq",
            )
            .bind(time::write(now))
            .bind(time::write(until))
            .bind(time::write(until))
            .fetch_one(&mut *lease)
            .await?;
            lease.commit().await?;
            Ok(seq.unsigned_abs())
        })
        .await
    }

    /// The number of the last step.
    pub async fn last_step(&self) -> Result<u64, Error> {
        within(async {
            let statement = Statement::new("SELECT seq FROM tail");
            let row: Option<(i64,)> = self.database().row(statement).await?;
            Ok(row.map_or(0, |(seq,)| seq.unsigned_abs()))
        })
        .await
    }

    /// The first step after `after`, where there is one, without its first `skipped` entries if
    /// it is the next in number.
    pub async fn next_step(
        &self,
        sight: &Sight,
        after: u64,
        skipped: u64,
    ) -> Result<Option<Step>, Error> {
        within(async {
            let mut statement = Statement::new("SELECT seq, document FROM recorded WHERE seq > ");
            statement
                .value(i64::try_from(after).unwrap_or(i64::MAX))?
                .text(" ORDER BY seq LIMIT 1");
            let Some((seq, document)) = self.database().row::<(i64, String)>(statement).await?
            else {
                return Ok(None);
            };
            let number = seq.unsigned_abs();
            let gap = number > after.saturating_add(1);
            let keys: Vec<Key> = serde_json::from_str(&document)
                .map_err(|error| Error::Fatal(format!("step {number} cannot be read: {error}")))?;
            let seen = |key: &Key| match sight {
                Sight::All => true,
                Sight::Only(tenant) => key.tenant() == tenant.as_str(),
            };
            let skipped = if gap { 0 } else { skipped };
            let wanted = (1..)
                .zip(keys)
                .filter(|(place, key)| *place > skipped && seen(key));
            let told = self.look_up(wanted.collect()).await?;
            Ok(Some(Step { number, gap, told }))
        })
        .await
    }

    /// The rows of keys; without those that are gone or have moved on since.
    async fn look_up(&self, keys: Vec<(u64, Key)>) -> Result<Vec<(u64, Told)>, Error> {
        let mut events: BTreeMap<i64, Vec<&str>> = BTreeMap::new();
        let mut deliveries: BTreeMap<i64, Vec<&str>> = BTreeMap::new();
        for (_, key) in &keys {
            match key {
                Key::Event { id, day, .. } => events.entry(*day).or_default().push(id),
                Key::Delivery { id, day, .. } => deliveries.entry(*day).or_default().push(id),
            }
        }
        let mut known: HashMap<(EventId, Tenant, i64), EventRow> = HashMap::new();
        for (day, ids) in events {
            for row in changed_events(self, day, &ids).await? {
                known.insert((row.event.id.clone(), row.event.tenant.clone(), day), row);
            }
        }
        let mut stands: HashMap<(DeliveryId, i64), (DeliveryRow, i64)> = HashMap::new();
        for (day, ids) in deliveries {
            for (row, progress) in changed_deliveries(self, day, &ids).await? {
                stands.insert((row.id.clone(), day), (row, progress));
            }
        }
        let told = |(place, key): (u64, Key)| {
            let told = match key {
                Key::Event { id, tenant, day } => {
                    let key = (EventId::parse(&id).ok()?, Tenant::parse(&tenant).ok()?, day);
                    Told::Event(Box::new(known.remove(&key)?))
                }
                Key::Delivery {
                    id,
                    day,
                    progress,
                    at,
                    ..
                } => {
                    let (row, now) = stands.get(&(DeliveryId::parse(&id).ok()?, day))?;
                    let same = *now == progress && time::write(row.updated_at) == at;
                    Told::Delivery(same.then(|| Box::new(row.clone()))?)
                }
            };
            Some((place, told))
        };
        Ok(keys.into_iter().filter_map(told).collect())
    }

    /// Forgets some steps from before `before`; how many.
    pub async fn forget_steps(&self, before: Timestamp) -> Result<u64, Error> {
        within(async {
            let mut lease = self.database().write_lightly().await?;
            let done = sqlx::query(
                "DELETE FROM recorded WHERE seq IN \
                 (SELECT seq FROM recorded WHERE at < $1 ORDER BY at LIMIT $2)",
            )
            .bind(time::write(before))
            .bind(FORGET_MAX)
            .execute(&mut *lease)
            .await?;
            lease.commit().await?;
            Ok(done.rows_affected())
        })
        .await
    }
}

/// Whether anybody follows.
pub(crate) async fn is_followed(
    connection: &mut AnyConnection,
    now: Timestamp,
) -> Result<bool, Error> {
    let row: Option<(i64,)> = sqlx::query_as("SELECT seq FROM tail WHERE followed_until >= $1")
        .bind(time::write(now))
        .fetch_optional(connection)
        .await?;
    Ok(row.is_some())
}

/// Writes steps of what was recorded in this transaction. Comes last in it: from here on every
/// other recorder's last statement waits.
pub(crate) async fn tell(
    connection: &mut AnyConnection,
    keys: &[Key],
    now: Timestamp,
) -> Result<(), Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let steps = keys.chunks(STEP_MAX);
    let (last,): (i64,) =
        sqlx::query_as("UPDATE tail SET seq = seq + $1 WHERE one = 1 RETURNING seq")
            .bind(i64::try_from(steps.len()).unwrap_or(i64::MAX))
            .fetch_one(&mut *connection)
            .await?;
    let first = last - i64::try_from(steps.len()).unwrap_or(0) + 1;
    for (seq, keys) in (first..).zip(steps) {
        let document = serde_json::to_string(keys)
            .map_err(|error| Error::Fatal(format!("a step cannot be written: {error}")))?;
        sqlx::query("INSERT INTO recorded (seq, at, document) VALUES ($1, $2, $3)")
            .bind(seq)
            .bind(time::write(now))
            .bind(document)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
