//! Events, deliveries and attempts written. One transaction; each row once, in the order of its
//! key, so that recorders side by side never wait for each other in a circle.

use std::collections::BTreeMap;

use event::{
    Event,
    delivery::Purpose,
    log::{Archived, LogEntry},
    reason::DeliveryState,
};
use jiff::Timestamp;
use sqlx::{AnyConnection, Row};

use super::{
    Recorded, day_of,
    health::{self, Turn},
};
use crate::{
    Error, Store,
    database::within,
    rows::{Insert, Values},
    tail, time,
};

/// How many resources of one event are found by [`super::EventFilter::subject`].
const SUBJECTS_MAX: usize = 1000;

/// Moves a delivery that is known forward. An end without an attempt of its own keeps the status of
/// the attempt before it.
macro_rules! upsert {
    () => {
        " ON CONFLICT (id, day) DO UPDATE SET state = excluded.state, \
                   reason = excluded.reason, attempts = excluded.attempts, run = excluded.run, \
                   progress = excluded.progress, purpose = excluded.purpose, \
                   detail = excluded.detail, clause = excluded.clause, due = excluded.due, \
                   updated_at = excluded.updated_at, \
                   last_status = CASE WHEN excluded.attempts = deliveries.attempts \
                   AND excluded.run = deliveries.run AND excluded.last_status IS NULL \
                   THEN deliveries.last_status ELSE excluded.last_status END \
                   WHERE (excluded.progress, excluded.updated_at) > \
                   (deliveries.progress, deliveries.updated_at)"
    };
}

impl Store {
    /// Records events that were routed and what became of deliveries, in one transaction. Either
    /// may be given again, and in any order: a delivery's row only moves forward, an attempt that
    /// is known changes nothing. At most a few thousand at once, or they may take longer than a
    /// call may.
    pub async fn record(
        &self,
        archived: &[Archived],
        entries: &[LogEntry],
    ) -> Result<Recorded, Error> {
        let batch = Batch::of(archived, entries)?;
        if batch.is_empty() {
            return Ok(Recorded::default());
        }
        self.database().make_days(batch.days()).await?;
        let recorded = within(async {
            let mut lease = self.database().write().await?;
            let recorded = batch.write(&mut lease, Timestamp::now()).await?;
            lease.commit().await?;
            Ok(recorded)
        })
        .await;
        if recorded.is_err() {
            // Perhaps a day was forgotten in the meantime.
            self.database().forget_days();
        }
        recorded
    }
}

/// The rows to write, each once.
#[derive(Default)]
struct Batch<'a> {
    /// By id, tenant and day.
    events: BTreeMap<(&'a str, &'a str, i64), EventRow<'a>>,
    subjects: BTreeMap<(String, i64, &'a str, &'a str), &'a str>,
    /// By id and day.
    deliveries: BTreeMap<(String, i64), DeliveryRow<'a>>,
    /// By delivery, run, number, begin and day.
    attempts: BTreeMap<(&'a str, i64, i64, i64, i64), AttemptRow<'a>>,
}

struct EventRow<'a> {
    archived: &'a Archived,
    accepted_at: i64,
    matched: String,
    document: String,
    payload: Option<String>,
}

struct DeliveryRow<'a> {
    event_id: &'a str,
    subscription_id: &'a str,
    tenant: &'a str,
    kind: &'a str,
    accepted_at: i64,
    updated_at: i64,
    progress: i64,
    purpose: Purpose,
    /// `None` of one that is pending because its event was archived.
    entry: Option<&'a LogEntry>,
}

struct AttemptRow<'a> {
    entry: &'a LogEntry,
    failed: bool,
    document: String,
}

impl<'a> Batch<'a> {
    fn of(archived: &'a [Archived], entries: &'a [LogEntry]) -> Result<Self, Error> {
        let mut batch = Self::default();
        for archived in archived {
            batch.add_event(archived)?;
        }
        for entry in entries {
            batch.add_entry(entry)?;
        }
        Ok(batch)
    }

    fn add_event(&mut self, archived: &'a Archived) -> Result<(), Error> {
        let event = &*archived.event;
        let accepted_at = time::write(archived.accepted_at);
        let day = day_of(accepted_at);
        let (id, tenant) = (event.id.as_str(), event.tenant.as_str());
        for subscription in &archived.matched {
            let row = DeliveryRow {
                event_id: id,
                subscription_id: subscription.as_str(),
                tenant,
                kind: event.kind.as_str(),
                accepted_at,
                updated_at: accepted_at,
                progress: progress(DeliveryState::Pending, 0, 0),
                purpose: Purpose::Live,
                entry: None,
            };
            let delivery = event::DeliveryId::of(&event.tenant, &event.id, subscription);
            self.add_delivery(delivery.as_str().to_owned(), day, row);
        }
        for subject in subjects(event) {
            self.subjects
                .insert((subject, accepted_at, id, tenant), event.kind.as_str());
        }
        let broken = |error| Error::Fatal(format!("event {id} cannot be written: {error}"));
        let payload = event
            .has_payload()
            .then(|| serde_json::to_string(event))
            .transpose()
            .map_err(broken)?;
        let row = EventRow {
            archived,
            accepted_at,
            matched: serde_json::to_string(&archived.matched).map_err(broken)?,
            document: serde_json::to_string(&event.bare()).map_err(broken)?,
            payload,
        };
        self.events.entry((id, tenant, day)).or_insert(row);
        Ok(())
    }

    fn add_entry(&mut self, entry: &'a LogEntry) -> Result<(), Error> {
        let accepted_at = time::write(entry.accepted_at);
        let day = day_of(accepted_at);
        let row = DeliveryRow {
            event_id: entry.event_id.as_str(),
            subscription_id: entry.subscription_id.as_str(),
            tenant: entry.tenant.as_str(),
            kind: entry.kind.as_str(),
            accepted_at,
            updated_at: time::write(entry.at),
            progress: progress(entry.state, entry.run, entry.attempts),
            purpose: entry.purpose,
            entry: Some(entry),
        };
        self.add_delivery(entry.delivery_id.as_str().to_owned(), day, row);
        if let Some(attempt) = &entry.attempt {
            let key = (
                entry.delivery_id.as_str(),
                i64::from(entry.run),
                i64::from(attempt.number),
                time::write(attempt.at),
                day,
            );
            let document = serde_json::to_string(attempt).map_err(|error| {
                let id = &entry.delivery_id;
                Error::Fatal(format!("an attempt of {id} cannot be written: {error}"))
            })?;
            let row = AttemptRow {
                entry,
                failed: attempt.error.is_some(),
                document,
            };
            self.attempts.insert(key, row);
        }
        Ok(())
    }

    /// Of several rows of one delivery the one that has come furthest is written.
    fn add_delivery(&mut self, id: String, day: i64, row: DeliveryRow<'a>) {
        let further = |a: &DeliveryRow<'_>, b: &DeliveryRow<'_>| {
            (a.progress, a.updated_at) > (b.progress, b.updated_at)
        };
        match self.deliveries.entry((id, day)) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(row);
            }
            std::collections::btree_map::Entry::Occupied(mut place) => {
                if further(&row, place.get()) {
                    place.insert(row);
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.deliveries.is_empty()
    }

    fn days(&self) -> Vec<i64> {
        let events = self.events.keys().map(|(_, _, day)| *day);
        let mut days: Vec<i64> = events
            .chain(self.deliveries.keys().map(|(_, day)| *day))
            .collect();
        days.sort_unstable();
        days.dedup();
        days
    }

    async fn write(
        &self,
        connection: &mut AnyConnection,
        now: Timestamp,
    ) -> Result<Recorded, Error> {
        let mut changed = tail::is_followed(connection, now).await?.then(Vec::new);
        let events = self.write_events(connection, &mut changed).await?;
        self.write_subjects(connection).await?;
        let deliveries = self.write_deliveries(connection, &mut changed).await?;
        let (attempts, turns) = self.write_attempts(connection).await?;
        let failing = health::advance(connection, turns).await?;
        tail::tell(connection, &changed.unwrap_or_default(), now).await?;
        Ok(Recorded {
            events,
            deliveries,
            attempts,
            failing,
        })
    }

    async fn write_events(
        &self,
        connection: &mut AnyConnection,
        changed: &mut Option<Vec<tail::Key>>,
    ) -> Result<u64, Error> {
        let insert = Insert {
            head: "INSERT INTO events (id, tenant, day, accepted_at, kind, revision, bytes, \
                   matched, document, payload) VALUES ",
            columns: 10,
            tail: match changed {
                None => " ON CONFLICT (id, tenant, day) DO NOTHING",
                Some(_) => " ON CONFLICT (id, tenant, day) DO NOTHING RETURNING id, tenant, day",
            },
        };
        let rows: Vec<_> = self.events.iter().collect();
        let bind = |((id, tenant, day), row): &(&EventKey<'_>, &EventRow<'_>),
                    values: &mut Values| {
            values.add(*id)?;
            values.add(*tenant)?;
            values.add(*day)?;
            values.add(row.accepted_at)?;
            values.add(row.archived.event.kind.as_str())?;
            values.add(signed(row.archived.revision))?;
            values.add(signed(row.archived.bytes))?;
            values.add(row.matched.as_str())?;
            values.add(row.document.as_str())?;
            values.add(row.payload.as_deref())
        };
        let Some(changed) = changed else {
            return insert.run(connection, &rows, bind).await;
        };
        let new = insert.run_returning(connection, &rows, bind).await?;
        for row in &new {
            changed.push(tail::Key::Event {
                id: row.try_get(0)?,
                tenant: row.try_get(1)?,
                day: row.try_get(2)?,
            });
        }
        Ok(new.len() as u64)
    }

    async fn write_subjects(&self, connection: &mut AnyConnection) -> Result<u64, Error> {
        let insert = Insert {
            head: "INSERT INTO event_subjects (subject, accepted_at, id, tenant, day, kind) VALUES ",
            columns: 6,
            tail: " ON CONFLICT (subject, accepted_at, id, tenant, day) DO NOTHING",
        };
        let rows: Vec<_> = self.subjects.iter().collect();
        insert
            .run(
                connection,
                &rows,
                |((subject, accepted_at, id, tenant), kind), values| {
                    values.add(subject.as_str())?;
                    values.add(*accepted_at)?;
                    values.add(*id)?;
                    values.add(*tenant)?;
                    values.add(day_of(*accepted_at))?;
                    values.add(**kind)
                },
            )
            .await
    }

    async fn write_deliveries(
        &self,
        connection: &mut AnyConnection,
        changed: &mut Option<Vec<tail::Key>>,
    ) -> Result<u64, Error> {
        let insert = Insert {
            head: "INSERT INTO deliveries (id, day, event_id, subscription_id, tenant, kind, \
                   state, reason, attempts, run, progress, purpose, detail, clause, due, \
                   accepted_at, updated_at, last_status) VALUES ",
            columns: 18,
            tail: match changed {
                None => upsert!(),
                Some(_) => concat!(upsert!(), " RETURNING id, day"),
            },
        };
        let rows: Vec<_> = self.deliveries.iter().collect();
        let bind = |((id, day), row): &(&(String, i64), &DeliveryRow<'_>), values: &mut Values| {
            let entry = row.entry;
            let state = entry.map_or(DeliveryState::Pending, |entry| entry.state);
            let attempt = entry.and_then(|entry| entry.attempt.as_ref());
            let text = |text: &Option<String>| text.as_deref().map(clean);
            values.add(id.as_str())?;
            values.add(*day)?;
            values.add(row.event_id)?;
            values.add(row.subscription_id)?;
            values.add(row.tenant)?;
            values.add(row.kind)?;
            values.add(state.word())?;
            values.add(entry.and_then(|entry| entry.reason).map(|r| r.word()))?;
            values.add(entry.map_or(0, |entry| i64::from(entry.attempts)))?;
            values.add(entry.map_or(0, |entry| i64::from(entry.run)))?;
            values.add(row.progress)?;
            values.add(row.purpose.word())?;
            values.add(entry.and_then(|entry| text(&entry.detail)))?;
            values.add(entry.and_then(|entry| text(&entry.clause)))?;
            values.add(entry.and_then(|entry| entry.due).map(time::write))?;
            values.add(row.accepted_at)?;
            values.add(row.updated_at)?;
            values.add(attempt.and_then(|attempt| attempt.status).map(i64::from))
        };
        let Some(changed) = changed else {
            return insert.run(connection, &rows, bind).await;
        };
        let moved = insert.run_returning(connection, &rows, bind).await?;
        for row in &moved {
            let key: (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            let Some(written) = self.deliveries.get(&key) else {
                continue;
            };
            changed.push(tail::Key::Delivery {
                tenant: written.tenant.to_owned(),
                progress: written.progress,
                at: written.updated_at,
                id: key.0,
                day: key.1,
            });
        }
        Ok(moved.len() as u64)
    }

    /// Writes the attempts; of those that were not known, how they went.
    async fn write_attempts(
        &self,
        connection: &mut AnyConnection,
    ) -> Result<(u64, Vec<Turn<'a>>), Error> {
        let insert = Insert {
            head: "INSERT INTO attempts (delivery_id, run, number, at, day, document) VALUES ",
            columns: 6,
            tail: " ON CONFLICT (delivery_id, run, number, at, day) DO NOTHING \
                   RETURNING delivery_id, run, number, at, day",
        };
        let rows: Vec<_> = self.attempts.iter().collect();
        let bind = |((id, run, number, at, day), row): &(&AttemptKey<'_>, &AttemptRow<'_>),
                    values: &mut Values| {
            values.add(*id)?;
            values.add(*run)?;
            values.add(*number)?;
            values.add(*at)?;
            values.add(*day)?;
            values.add(row.document.as_str())
        };
        let new = insert.run_returning(connection, &rows, bind).await?;
        let mut turns = Vec::new();
        for row in &new {
            let id: String = row.try_get(0)?;
            let number: i64 = row.try_get(2)?;
            let at: i64 = row.try_get(3)?;
            let key = (id.as_str(), row.try_get(1)?, number, at, row.try_get(4)?);
            let Some(row) = self.attempts.get(&key) else {
                continue;
            };
            if health::counts(row.entry) {
                turns.push(Turn {
                    subscription: &row.entry.subscription_id,
                    tenant: &row.entry.tenant,
                    at,
                    failed: row.failed,
                    first: number == 1,
                });
            }
        }
        Ok((new.len() as u64, turns))
    }
}

type EventKey<'a> = (&'a str, &'a str, i64);
type AttemptKey<'a> = (&'a str, i64, i64, i64, i64);

/// How far a delivery has come, as a number that grows: a later run, then delivered, then more
/// attempts, then an end. A delivery that arrived has arrived, whatever a second copy of its
/// parcel may still do after a fault. For whoever keeps records as the store does: a simulation.
pub fn progress(state: DeliveryState, run: u32, attempts: u32) -> i64 {
    let stage = match state {
        DeliveryState::Pending => 0,
        DeliveryState::Retrying | DeliveryState::Held => 1,
        DeliveryState::Delivered
        | DeliveryState::Filtered
        | DeliveryState::Superseded
        | DeliveryState::Dead
        | DeliveryState::Canceled => 2,
    };
    let delivered = i64::from(state == DeliveryState::Delivered);
    (i64::from(run.min(1 << 30)) << 32)
        | (delivered << 31)
        | (i64::from(attempts.min(0xff_ffff)) << 2)
        | stage
}

/// The resources an event names.
fn subjects(event: &Event) -> Vec<String> {
    let named = event.subject.as_ref();
    let mut all = named.map_or_else(Vec::new, |subject| subject.ids(SUBJECTS_MAX));
    // An index row has its bounds; what is longer is nobody's id.
    all.retain(|subject| subject.len() <= 512 && !subject.contains('\0'));
    all
}

/// SQL has no unsigned numbers; no count of ours reaches the difference.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// PostgreSQL has no text with a zero byte.
fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
