//! Deliveries read: the list, one with its attempts.

use event::{
    DeliveryId, EventId, EventType, SubscriptionId, Tenant,
    delivery::Purpose,
    reason::{DeadReason, DeliveryState},
};
use sqlx::{FromRow, Row, any::AnyRow};

use super::{DeliveryFilter, DeliveryRecord, DeliveryRow, LoggedAttempt, day_of, record::progress};
use crate::{
    Error, Page, Paging, Sight, Store,
    cursor::{Cursor, Wanted},
    database::{Statement, within},
    time,
};

const COLUMNS: &str = "SELECT id, event_id, subscription_id, tenant, kind, state, reason, \
    attempts, run, purpose, detail, clause, due, accepted_at, updated_at, last_status \
    FROM deliveries";

impl Store {
    /// A page of deliveries, newest first.
    pub async fn deliveries(
        &self,
        sight: &Sight,
        filter: &DeliveryFilter,
        paging: &Paging,
    ) -> Result<Page<DeliveryRow>, Error> {
        let wanted = Wanted::new("deliveries", paging)?;
        if filter.contradicts_itself() {
            return wanted.page(Vec::<Raw>::new(), Raw::place, Raw::read);
        }
        within(async {
            let statement = list(self.database().is_sqlite(), sight, filter, &wanted)?;
            let rows: Vec<Raw> = self.database().rows(statement).await?;
            wanted.page(rows, Raw::place, Raw::read)
        })
        .await
    }

    /// How the database would find that page, a line for each step: for tests, and for who
    /// wonders why a list is slow.
    pub async fn plan_of_deliveries(
        &self,
        sight: &Sight,
        filter: &DeliveryFilter,
        paging: &Paging,
    ) -> Result<Vec<String>, Error> {
        let wanted = Wanted::new("deliveries", paging)?;
        within(async {
            let statement = list(self.database().is_sqlite(), sight, filter, &wanted)?;
            self.database().plan(statement).await
        })
        .await
    }

    /// One delivery with every attempt on record.
    pub async fn delivery(
        &self,
        sight: &Sight,
        id: &DeliveryId,
    ) -> Result<Option<DeliveryRecord>, Error> {
        within(async {
            let mut statement = Statement::new(COLUMNS);
            statement
                .text(" WHERE id = ")
                .value(id.as_str())?
                .sight(sight)?
                // The same id accepted again long after is another delivery: the newest is meant.
                .text(" ORDER BY accepted_at DESC LIMIT 1");
            let Some(raw) = self.database().row::<Raw>(statement).await? else {
                return Ok(None);
            };
            let delivery = raw.read()?;
            let mut statement =
                Statement::new("SELECT run, document FROM attempts WHERE delivery_id = ");
            statement
                .value(id.as_str())?
                .text(" AND day = ")
                .value(day_of(time::write(delivery.accepted_at)))?
                .text(" ORDER BY run, number, at");
            let rows: Vec<(i64, String)> = self.database().rows(statement).await?;
            let read = |(run, document): (i64, String)| {
                let attempt = serde_json::from_str(&document).map_err(|error| {
                    Error::Fatal(format!("an attempt of {id} cannot be read: {error}"))
                })?;
                let run = small(run);
                Ok(LoggedAttempt { run, attempt })
            };
            let history = rows.into_iter().map(read).collect::<Result<_, Error>>()?;
            Ok(Some(DeliveryRecord { delivery, history }))
        })
        .await
    }
}

impl DeliveryFilter {
    /// Whether nothing can ever be found: only what died has a reason.
    pub(super) fn contradicts_itself(&self) -> bool {
        self.reason.is_some() && self.state.is_some_and(|state| state != DeliveryState::Dead)
    }

    /// The state asked for. Only what died has a reason; saying so lets the dead be found by their
    /// index.
    fn standing(&self) -> Option<DeliveryState> {
        self.state
            .or_else(|| self.reason.map(|_| DeliveryState::Dead))
    }

    /// Names the index to go by, for SQLite: it knows nothing of how many rows there are of each,
    /// and would take any. PostgreSQL has its statistics.
    pub(super) fn index(&self, sight: &Sight) -> &'static str {
        let by_state = self
            .standing()
            .is_some_and(|state| state != DeliveryState::Delivered);
        let tenant = matches!(sight, Sight::Only(_));
        if self.event.is_some() {
            " INDEXED BY deliveries_of_event"
        } else if self.subscription.is_some() && by_state {
            " INDEXED BY deliveries_in_state_of_subscription"
        } else if self.subscription.is_some() {
            " INDEXED BY deliveries_of_subscription"
        } else if by_state && tenant {
            " INDEXED BY deliveries_in_state_of_tenant"
        } else if by_state {
            " INDEXED BY deliveries_in_state"
        } else if self.kind.is_some() {
            " INDEXED BY deliveries_of_kind"
        } else if tenant {
            " INDEXED BY deliveries_of_tenant"
        } else {
            " INDEXED BY deliveries_by_time"
        }
    }
}

/// The statement of the list.
fn list(
    sqlite: bool,
    sight: &Sight,
    filter: &DeliveryFilter,
    wanted: &Wanted,
) -> Result<Statement, Error> {
    let mut statement = Statement::new(COLUMNS);
    if sqlite {
        statement.text(filter.index(sight));
    }
    statement.text(" WHERE 1 = 1");
    narrow(&mut statement, sqlite, sight, filter)?;
    if let Some(after) = &wanted.after {
        statement
            .text(" AND day <= ")
            .value(day_of(after.at))?
            .text(" AND (accepted_at, id) < (")
            .value(after.at)?
            .text(", ")
            .value(after.id.as_str())?
            .text(")");
    }
    statement
        .text(" ORDER BY accepted_at DESC, id DESC LIMIT ")
        .value(wanted.fetch())?;
    Ok(statement)
}

/// Adds the conditions of a filter.
pub(super) fn narrow(
    statement: &mut Statement,
    sqlite: bool,
    sight: &Sight,
    filter: &DeliveryFilter,
) -> Result<(), Error> {
    statement.sight(sight)?;
    if let Some(event) = &filter.event {
        statement.text(" AND event_id = ").value(event.as_str())?;
    }
    if let Some(subscription) = &filter.subscription {
        statement
            .text(" AND subscription_id = ")
            .value(subscription.as_str())?;
    }
    if let Some(state) = filter.standing() {
        // In the text, because the indexes by state are partial: a planner must see the word.
        // SQLite wants the very words of the index; PostgreSQL would count them twice.
        statement
            .text(" AND state = '")
            .text(state.word())
            .text("'");
        if sqlite && state != DeliveryState::Delivered {
            statement.text(" AND state <> 'delivered'");
        }
    }
    if let Some(reason) = filter.reason {
        statement.text(" AND reason = ").value(reason.word())?;
    }
    if let Some(kind) = &filter.kind {
        statement
            .text(" AND kind = ")
            .value(kind.replace('\0', "\u{fffd}"))?;
    }
    between(statement, filter.since, filter.until)
}

/// Adds a span of acceptance, and of days, so that other days' partitions are not opened.
pub(super) fn between(
    statement: &mut Statement,
    since: Option<jiff::Timestamp>,
    until: Option<jiff::Timestamp>,
) -> Result<(), Error> {
    if let Some(since) = since.map(time::write) {
        statement
            .text(" AND accepted_at >= ")
            .value(since)?
            .text(" AND day >= ")
            .value(day_of(since))?;
    }
    if let Some(until) = until.map(time::write) {
        statement
            .text(" AND accepted_at < ")
            .value(until)?
            .text(" AND day <= ")
            .value(day_of(until))?;
    }
    Ok(())
}

/// The deliveries of one event, in the order of their subscriptions.
pub(super) async fn of_event(
    store: &Store,
    tenant: &Tenant,
    event: &EventId,
    day: i64,
    most: usize,
) -> Result<Vec<DeliveryRow>, Error> {
    let mut statement = Statement::new(COLUMNS);
    statement
        .text(" WHERE event_id = ")
        .value(event.as_str())?
        .text(" AND tenant = ")
        .value(tenant.as_str())?
        .text(" AND day = ")
        .value(day)?
        .text(" ORDER BY subscription_id LIMIT ")
        .value(i64::try_from(most).unwrap_or(i64::MAX))?;
    let rows: Vec<Raw> = store.database().rows(statement).await?;
    rows.into_iter().map(Raw::read).collect()
}

/// The deliveries of one day with these ids, each with how far it has come.
pub(crate) async fn changed_deliveries(
    store: &Store,
    day: i64,
    ids: &[&str],
) -> Result<Vec<(DeliveryRow, i64)>, Error> {
    let mut statement = Statement::new(COLUMNS);
    statement
        .text(" WHERE day = ")
        .value(day)?
        .text(" AND id IN (");
    statement.list(ids)?.text(")");
    let rows: Vec<Raw> = store.database().rows(statement).await?;
    let read = |raw: Raw| {
        let row = raw.read()?;
        let come = progress(row.state, row.run, row.attempts);
        Ok((row, come))
    };
    rows.into_iter().map(read).collect()
}

/// As [`COLUMNS`] selects.
struct Raw {
    id: String,
    event_id: String,
    subscription_id: String,
    tenant: String,
    kind: String,
    state: String,
    reason: Option<String>,
    attempts: i64,
    run: i64,
    purpose: String,
    detail: Option<String>,
    clause: Option<String>,
    due: Option<i64>,
    accepted_at: i64,
    updated_at: i64,
    last_status: Option<i64>,
}

impl<'r> FromRow<'r, AnyRow> for Raw {
    fn from_row(row: &'r AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get(0)?,
            event_id: row.try_get(1)?,
            subscription_id: row.try_get(2)?,
            tenant: row.try_get(3)?,
            kind: row.try_get(4)?,
            state: row.try_get(5)?,
            reason: row.try_get(6)?,
            attempts: row.try_get(7)?,
            run: row.try_get(8)?,
            purpose: row.try_get(9)?,
            detail: row.try_get(10)?,
            clause: row.try_get(11)?,
            due: row.try_get(12)?,
            accepted_at: row.try_get(13)?,
            updated_at: row.try_get(14)?,
            last_status: row.try_get(15)?,
        })
    }
}

impl Raw {
    fn place(&self) -> Cursor {
        Cursor {
            at: self.accepted_at,
            id: self.id.clone(),
        }
    }

    fn read(self) -> Result<DeliveryRow, Error> {
        let row = self.id.clone();
        self.parsed()
            .ok_or_else(|| Error::Fatal(format!("delivery {row} cannot be read")))
    }

    fn parsed(self) -> Option<DeliveryRow> {
        let reason = match self.reason {
            Some(word) => Some(DeadReason::from_word(&word)?),
            None => None,
        };
        let purposes = [Purpose::Live, Purpose::Test, Purpose::Replay];
        Some(DeliveryRow {
            id: DeliveryId::parse(&self.id).ok()?,
            event_id: EventId::parse(&self.event_id).ok()?,
            subscription_id: SubscriptionId::parse(&self.subscription_id).ok()?,
            tenant: Tenant::parse(&self.tenant).ok()?,
            kind: EventType::parse(&self.kind).ok()?,
            state: DeliveryState::from_word(&self.state)?,
            reason,
            attempts: small(self.attempts),
            run: small(self.run),
            purpose: purposes.into_iter().find(|p| p.word() == self.purpose)?,
            detail: self.detail,
            clause: self.clause,
            due: self.due.map(time::read),
            accepted_at: time::read(self.accepted_at),
            updated_at: time::read(self.updated_at),
            last_status: self.last_status.and_then(|status| status.try_into().ok()),
        })
    }
}

/// A count that was written from a `u32`.
fn small(count: i64) -> u32 {
    u32::try_from(count).unwrap_or(0)
}
