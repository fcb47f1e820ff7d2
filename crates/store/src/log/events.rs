//! Events read: the list, one with what became of it, and the scan that a replay makes.

use event::{Event, EventId, SubscriptionId, Tenant, log::Archived, selector::Selector};
use jiff::Timestamp;

use super::{
    EVENT_DELIVERIES_MAX, EventFilter, EventRecord, EventRow, day_of,
    deliveries::{between, of_event},
};
use crate::{
    Error, Page, Paging, Sight, Store,
    cursor::{Cursor, Wanted},
    database::{Statement, within},
    time,
};

/// Without payload: a list must not fetch what it does not show.
const ROWS: &str =
    "SELECT id, tenant, accepted_at, revision, bytes, matched, document, expunged_at FROM events";
/// With payload, where there is one.
const WHOLE: &str = "SELECT id, tenant, accepted_at, revision, bytes, matched, \
    COALESCE(payload, document), expunged_at FROM events";
const NEWEST_FIRST: &str = " ORDER BY accepted_at DESC, id DESC, tenant DESC";

/// As [`ROWS`] and [`WHOLE`] select.
type Row = (String, String, i64, i64, i64, String, String, Option<i64>);

impl Store {
    /// A page of events without their payloads, newest first.
    pub async fn events(
        &self,
        sight: &Sight,
        filter: &EventFilter,
        paging: &Paging,
    ) -> Result<Page<EventRow>, Error> {
        let wanted = Wanted::new("events", paging)?;
        within(async {
            let statement = list(self.database().is_sqlite(), sight, filter, &wanted)?;
            let rows: Vec<Row> = self.database().rows(statement).await?;
            wanted.page(rows, place, bare)
        })
        .await
    }

    /// How the database would find that page, a line for each step.
    pub async fn plan_of_events(
        &self,
        sight: &Sight,
        filter: &EventFilter,
        paging: &Paging,
    ) -> Result<Vec<String>, Error> {
        let wanted = Wanted::new("events", paging)?;
        within(async {
            self.database()
                .plan(list(self.database().is_sqlite(), sight, filter, &wanted)?)
                .await
        })
        .await
    }

    /// The events in sight with this id, newest first: one for each tenant that has one, and one
    /// more where an id came again after it was forgotten.
    pub async fn event(&self, sight: &Sight, id: &EventId) -> Result<Vec<EventRecord>, Error> {
        within(async {
            let mut statement = Statement::new(WHOLE);
            statement
                .text(" WHERE id = ")
                .value(id.as_str())?
                .sight(sight)?
                .text(" LIMIT 20");
            let mut rows: Vec<Row> = self.database().rows(statement).await?;
            // Not in SQL: a planner that knows no better would walk through all events in order.
            rows.sort_by_key(|row| std::cmp::Reverse(row.2));
            let mut records = Vec::with_capacity(rows.len());
            for row in rows {
                let day = day_of(row.2);
                let Whole {
                    event,
                    accepted_at,
                    revision,
                    bytes,
                    matched,
                    expunged_at,
                } = read(row)?;
                let deliveries =
                    of_event(self, &event.tenant, &event.id, day, EVENT_DELIVERIES_MAX).await?;
                records.push(EventRecord {
                    event,
                    accepted_at,
                    revision,
                    bytes,
                    matched,
                    expunged_at,
                    deliveries,
                });
            }
            Ok(records)
        })
        .await
    }

    /// One step of a walk through a tenant's events from `since` to `until`, oldest first, with
    /// payloads where they were archived; only those that one of `selectors` matches. A step may
    /// bring fewer than the limit, even none, and still have a cursor.
    pub async fn events_since(
        &self,
        tenant: &Tenant,
        selectors: &[Selector],
        since: Timestamp,
        until: Option<Timestamp>,
        paging: &Paging,
    ) -> Result<Page<Archived>, Error> {
        let page = self
            .walk_archive(tenant, selectors, (since, until), paging)
            .await?;
        Ok(Page {
            items: page.items.into_iter().map(Whole::archived).collect(),
            cursor: page.cursor,
        })
    }

    /// The same, telling of those that were expunged.
    pub(crate) async fn walk_archive(
        &self,
        tenant: &Tenant,
        selectors: &[Selector],
        (since, until): (Timestamp, Option<Timestamp>),
        paging: &Paging,
    ) -> Result<Page<Whole>, Error> {
        let wanted = Wanted::new("events_since", paging)?;
        within(async {
            let mut statement = Statement::new(WHOLE);
            if self.database().is_sqlite() {
                statement.text(" INDEXED BY events_of_tenant");
            }
            statement.text(" WHERE tenant = ").value(tenant.as_str())?;
            listens(&mut statement, selectors)?;
            between(&mut statement, Some(since), until)?;
            if let Some(after) = &wanted.after {
                statement
                    .text(" AND day >= ")
                    .value(day_of(after.at))?
                    .text(" AND (accepted_at, id) > (")
                    .value(after.at)?
                    .text(", ")
                    .value(after.id.as_str())?
                    .text(")");
            }
            statement
                .text(" ORDER BY accepted_at, id LIMIT ")
                .value(wanted.fetch())?;
            let rows: Vec<Row> = self.database().rows(statement).await?;
            let place = |row: &Row| Cursor {
                at: row.2,
                id: row.0.clone(),
            };
            let page = wanted.page(rows, place, read)?;
            let matches = |whole: &Whole| selectors.iter().any(|s| s.matches(&whole.event));
            let items = page.items.into_iter().filter(matches);
            Ok(Page {
                items: items.collect(),
                cursor: page.cursor,
            })
        })
        .await
    }
}

/// The events of one day with these ids, without their payloads.
pub(crate) async fn changed_events(
    store: &Store,
    day: i64,
    ids: &[&str],
) -> Result<Vec<EventRow>, Error> {
    let mut statement = Statement::new(ROWS);
    statement
        .text(" WHERE day = ")
        .value(day)?
        .text(" AND id IN (");
    statement.list(ids)?.text(")");
    let rows: Vec<Row> = store.database().rows(statement).await?;
    rows.into_iter().map(bare).collect()
}

/// A row of a list.
fn bare(row: Row) -> Result<EventRow, Error> {
    let event = read(row)?;
    Ok(EventRow {
        accepted_at: event.accepted_at,
        revision: event.revision,
        bytes: event.bytes,
        matched: event.matched,
        expunged_at: event.expunged_at,
        event: event.event,
    })
}

/// The statement of the list.
fn list(
    sqlite: bool,
    sight: &Sight,
    filter: &EventFilter,
    wanted: &Wanted,
) -> Result<Statement, Error> {
    let mut statement = Statement::new(ROWS);
    if let Some(subject) = &filter.subject {
        // The page is cut inside, where the index is; what is left to sort is the page.
        statement
            .text(
                " WHERE (id, tenant, day) IN (SELECT id, tenant, day FROM event_subjects \
                 WHERE subject = ",
            )
            .value(clean(subject))?;
        narrow(&mut statement, sight, filter, wanted)?;
        statement.text(NEWEST_FIRST).text(" LIMIT ");
        statement
            .value(wanted.fetch())?
            .text(")")
            .text(NEWEST_FIRST);
        return Ok(statement);
    }
    if sqlite {
        // It has no statistics to choose by.
        statement.text(match (&filter.kind, sight) {
            (Some(_), _) => " INDEXED BY events_of_kind",
            (None, Sight::Only(_)) => " INDEXED BY events_of_tenant",
            (None, Sight::All) => " INDEXED BY events_by_time",
        });
    }
    statement.text(" WHERE 1 = 1");
    narrow(&mut statement, sight, filter, wanted)?;
    statement.text(NEWEST_FIRST).text(" LIMIT ");
    statement.value(wanted.fetch())?;
    Ok(statement)
}

/// Adds the conditions that hold for events and for their subjects alike.
fn narrow(
    statement: &mut Statement,
    sight: &Sight,
    filter: &EventFilter,
    wanted: &Wanted,
) -> Result<(), Error> {
    statement.sight(sight)?;
    if let Some(kind) = &filter.kind {
        statement.text(" AND kind = ").value(clean(kind))?;
    }
    between(statement, filter.since, filter.until)?;
    if let Some(after) = &wanted.after {
        // Event ids have no dot, tenants neither.
        let (id, tenant) = after.id.split_once('.').ok_or(Error::BadCursor)?;
        statement
            .text(" AND day <= ")
            .value(day_of(after.at))?
            .text(" AND (accepted_at, id, tenant) < (")
            .value(after.at)?
            .text(", ")
            .value(id)?
            .text(", ")
            .value(tenant)?
            .text(")");
    }
    Ok(())
}

/// The types that selectors listen to, as far as a type can tell.
pub(crate) fn listens(statement: &mut Statement, selectors: &[Selector]) -> Result<(), Error> {
    if selectors.contains(&Selector::All) {
        return Ok(());
    }
    statement.text(" AND (1 = 0");
    for selector in selectors {
        match selector {
            Selector::All => {}
            Selector::Exact(kind) => {
                statement.text(" OR kind = ").value(kind.as_str())?;
            }
            Selector::Saved(entity) => {
                let kinds = ["created", "updated", "saved"].map(|word| format!("{entity}.{word}"));
                statement
                    .text(" OR kind IN (")
                    .list(&kinds.each_ref().map(String::as_str))?
                    .text(")");
            }
            Selector::Entity(entity) | Selector::StatusChanged(entity) => {
                // Not by a range: dead letters are kept in the order of the database's language.
                statement
                    .text(" OR kind LIKE ")
                    .value(format!("{}.%", entity.replace('_', "!_")))?
                    .text(" ESCAPE '!'");
            }
        }
    }
    statement.text(")");
    Ok(())
}

fn place(row: &Row) -> Cursor {
    Cursor {
        at: row.2,
        id: format!("{}.{}", row.0, row.1),
    }
}

/// A row, read.
pub(crate) struct Whole {
    pub(crate) event: Event,
    pub(crate) accepted_at: Timestamp,
    revision: u64,
    pub(crate) bytes: u64,
    matched: Vec<SubscriptionId>,
    pub(crate) expunged_at: Option<Timestamp>,
}

impl Whole {
    fn archived(self) -> Archived {
        Archived {
            event: self.event.into(),
            accepted_at: self.accepted_at,
            revision: self.revision,
            bytes: self.bytes,
            matched: self.matched,
        }
    }
}

fn read(
    (id, _, accepted_at, revision, bytes, matched, document, expunged_at): Row,
) -> Result<Whole, Error> {
    let broken = |error| Error::Fatal(format!("event {id} cannot be read: {error}"));
    Ok(Whole {
        event: serde_json::from_str(&document).map_err(broken)?,
        accepted_at: time::read(accepted_at),
        revision: u64::try_from(revision).unwrap_or(0),
        bytes: u64::try_from(bytes).unwrap_or(0),
        matched: serde_json::from_str(&matched).map_err(broken)?,
        expunged_at: expunged_at.map(time::read),
    })
}

/// PostgreSQL has no text with a zero byte.
fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
