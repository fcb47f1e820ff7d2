//! One resource's payloads expunged from everything that is remembered, in small steps: whoever
//! writes meanwhile waits for milliseconds. Each step is right alone and changes nothing the second
//! time, so that a call that broke off is simply made again.
//!
//! Events are found by walking the tenant's archive, because few name their subject and an index of
//! what is in their data would cost every event for what is asked for once in a year. The walk
//! leaves the resource in `event_subjects`, so that what is logged later of the same events is
//! found by the next call.

use std::collections::HashSet;

use event::{
    Event, Tenant,
    delivery::{DeadLetter, Item},
    log::Attempt,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    Error, Store,
    database::{Statement, within},
    log::day_of,
    time,
};

/// How many rows one step walks over.
const STEP: i64 = 500;
/// How many deliveries' attempts one step looks at: each may have many, of 16 KiB and more.
const DELIVERIES: i64 = 50;
/// How many rows one transaction changes.
const TRANSACTION_MAX: usize = 100;
/// An index row has its bounds.
const SUBJECT_BYTES_MAX: usize = 512;
/// What is said of a delivery that was held.
const DETAIL: &str = "its payload was expunged";

/// One resource of a tenant.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Whose it is.
    pub tenant: Tenant,
    /// The part of an event's type before the dot.
    pub entity: String,
    /// Its id; a number as its digits.
    pub id: String,
}

/// What a call of [`Store::expunge`] changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Expunged {
    /// Archived events that lost their payloads.
    pub events: u64,
    /// Deliveries that lost what endpoints answered, or were held and are not sent any more.
    pub deliveries: u64,
    /// Dead letters that lost their event's payloads, or what endpoints answered.
    pub dead_letters: u64,
}

/// id, day, accepted_at, kind, payload where it may be wanted.
type EventRow = (String, i64, i64, String, Option<String>);
/// delivery_id, accepted_at, run, document where it may be wanted.
type HeldRow = (String, i64, i64, Option<String>);

impl Store {
    /// Expunges every payload of a resource: events of its entity that name it as their subject or,
    /// where they name none, as their data's `id`. What is still in queues is not reached.
    pub async fn expunge(&self, resource: &Resource, now: Timestamp) -> Result<Expunged, Error> {
        let mut deliveries = HashSet::new();
        // What is held first: it could still be sent.
        self.expunge_held(resource, now, &mut deliveries).await?;
        let events = self.expunge_archive(resource, now).await?;
        let dead_letters = self.expunge_dead(resource, now).await?;
        self.expunge_answers(resource, &mut deliveries).await?;
        Ok(Expunged {
            events,
            deliveries: deliveries.len() as u64,
            dead_letters,
        })
    }

    async fn expunge_archive(&self, resource: &Resource, now: Timestamp) -> Result<u64, Error> {
        let mut expunged = 0;
        let mut after: Option<(i64, String)> = None;
        loop {
            let mut statement =
                Statement::new("SELECT id, day, accepted_at, kind, CASE WHEN kind LIKE ");
            resource.may_be("payload", &mut statement)?;
            statement.text(" THEN payload END FROM events");
            if self.database().is_sqlite() {
                // Its planner may think that another index has less to walk over.
                statement.text(" INDEXED BY events_of_tenant");
            }
            statement
                .text(" WHERE tenant = ")
                .value(resource.tenant.as_str())?;
            if let Some((at, id)) = &after {
                statement
                    .text(" AND day >= ")
                    .value(day_of(*at))?
                    .text(" AND (accepted_at, id) > (")
                    .value(*at)?
                    .text(", ")
                    .value(id.as_str())?
                    .text(")");
            }
            statement
                .text(" ORDER BY accepted_at, id LIMIT ")
                .value(STEP)?;
            let rows: Vec<EventRow> = within(self.database().rows(statement)).await?;
            let Some(last) = rows.last() else {
                return Ok(expunged);
            };
            after = Some((last.2, last.0.clone()));
            let mut found = Vec::new();
            for row in &rows {
                let Some(payload) = &row.4 else { continue };
                let event: Event = read("event", &row.0, payload)?;
                if resource.is_of(&event) {
                    found.push(row);
                }
            }
            for rows in found.chunks(TRANSACTION_MAX) {
                expunged += within(self.expunge_events(resource, rows, now)).await?;
            }
        }
    }

    async fn expunge_events(
        &self,
        resource: &Resource,
        rows: &[&EventRow],
        now: Timestamp,
    ) -> Result<u64, Error> {
        let mut expunged = 0;
        let mut lease = self.database().write().await?;
        for (id, day, accepted_at, kind, _) in rows {
            expunged += sqlx::query(
                "UPDATE events SET payload = NULL, expunged_at = $1 \
                 WHERE id = $2 AND tenant = $3 AND day = $4 AND payload IS NOT NULL",
            )
            .bind(time::write(now))
            .bind(id.as_str())
            .bind(resource.tenant.as_str())
            .bind(*day)
            .execute(&mut *lease)
            .await?
            .rows_affected();
            if resource.id.len() > SUBJECT_BYTES_MAX {
                continue;
            }
            sqlx::query(
                "INSERT INTO event_subjects (subject, accepted_at, id, tenant, day, kind) \
                 VALUES ($1, $2, $3, $4, $5, $6) \
                 ON CONFLICT (subject, accepted_at, id, tenant, day) DO NOTHING",
            )
            .bind(resource.id.as_str())
            .bind(*accepted_at)
            .bind(id.as_str())
            .bind(resource.tenant.as_str())
            .bind(*day)
            .bind(kind.as_str())
            .execute(&mut *lease)
            .await?;
        }
        lease.commit().await?;
        Ok(expunged)
    }

    /// Clears what endpoints answered to deliveries of the resource's events.
    async fn expunge_answers(
        &self,
        resource: &Resource,
        deliveries: &mut HashSet<(String, i64)>,
    ) -> Result<(), Error> {
        let mut after: Option<(i64, String)> = None;
        loop {
            let mut statement =
                Statement::new("SELECT id, accepted_at FROM event_subjects WHERE subject = ");
            statement
                .value(resource.id.replace('\0', "\u{fffd}"))?
                .text(" AND tenant = ")
                .value(resource.tenant.as_str())?
                .text(" AND kind LIKE ")
                .value(resource.kinds())?
                .text(" ESCAPE '!'");
            if let Some((at, id)) = &after {
                statement.text(" AND (accepted_at, id) > (").value(*at)?;
                statement.text(", ").value(id.as_str())?.text(")");
            }
            statement
                .text(" ORDER BY accepted_at, id LIMIT ")
                .value(STEP)?;
            let rows: Vec<(String, i64)> = within(self.database().rows(statement)).await?;
            let Some((id, at)) = rows.last() else {
                return Ok(());
            };
            after = Some((*at, id.clone()));
            for (event, accepted_at) in &rows {
                self.expunge_answers_to(&resource.tenant, event, *accepted_at, deliveries)
                    .await?;
            }
        }
    }

    async fn expunge_answers_to(
        &self,
        tenant: &Tenant,
        event: &str,
        accepted_at: i64,
        deliveries: &mut HashSet<(String, i64)>,
    ) -> Result<(), Error> {
        let day = day_of(accepted_at);
        let mut after = String::new();
        loop {
            let mut statement = Statement::new("SELECT id FROM deliveries WHERE event_id = ");
            statement
                .value(event)?
                .text(" AND accepted_at = ")
                .value(accepted_at)?
                .text(" AND day = ")
                .value(day)?
                .text(" AND tenant = ")
                .value(tenant.as_str())?
                .text(" AND id > ")
                .value(after.as_str())?
                .text(" ORDER BY id LIMIT ")
                .value(DELIVERIES)?;
            let ids: Vec<(String,)> = within(self.database().rows(statement)).await?;
            let Some((last,)) = ids.last() else {
                return Ok(());
            };
            after.clone_from(last);
            let ids: Vec<&str> = ids.iter().map(|(id,)| id.as_str()).collect();
            let mut statement = Statement::new(
                "SELECT delivery_id, run, number, at, document FROM attempts WHERE day = ",
            );
            statement
                .value(day)?
                .text(" AND delivery_id IN (")
                .list(&ids)?
                .text(") AND document LIKE '%\"response\":%'");
            let rows: Vec<(String, i64, i64, i64, String)> =
                within(self.database().rows(statement)).await?;
            let mut cleared = Vec::new();
            for (id, run, number, at, document) in rows {
                let mut attempt: Attempt = read("attempt of", &id, &document)?;
                if attempt.response.take().is_some() {
                    let document = write("attempt of", &id, &attempt)?;
                    cleared.push((id, run, number, at, document));
                }
            }
            for rows in cleared.chunks(TRANSACTION_MAX) {
                within(async {
                    let mut lease = self.database().write().await?;
                    for (id, run, number, at, document) in rows {
                        sqlx::query(
                            "UPDATE attempts SET document = $1 WHERE delivery_id = $2 \
                             AND run = $3 AND number = $4 AND at = $5 AND day = $6",
                        )
                        .bind(document.as_str())
                        .bind(id.as_str())
                        .bind(*run)
                        .bind(*number)
                        .bind(*at)
                        .bind(day)
                        .execute(&mut *lease)
                        .await?;
                    }
                    lease.commit().await
                })
                .await?;
            }
            deliveries.extend(cleared.into_iter().map(|(id, ..)| (id, day)));
        }
    }

    /// Ends what is held; a delivery without its payload cannot be sent.
    async fn expunge_held(
        &self,
        resource: &Resource,
        now: Timestamp,
        deliveries: &mut HashSet<(String, i64)>,
    ) -> Result<(), Error> {
        let mut after: Option<(String, i64, i64)> = None;
        loop {
            let mut statement =
                Statement::new("SELECT delivery_id, accepted_at, run, CASE WHEN document LIKE ");
            resource.names_it("document", &mut statement)?;
            statement
                .text(" THEN document END FROM held WHERE document IS NOT NULL AND tenant = ")
                .value(resource.tenant.as_str())?;
            if let Some((id, at, run)) = &after {
                statement
                    .text(" AND (delivery_id, accepted_at, run) > (")
                    .value(id.as_str())?
                    .text(", ")
                    .value(*at)?
                    .text(", ")
                    .value(*run)?
                    .text(")");
            }
            statement
                .text(" ORDER BY delivery_id, accepted_at, run LIMIT ")
                .value(STEP)?;
            let rows: Vec<HeldRow> = within(self.database().rows(statement)).await?;
            let Some((id, at, run, _)) = rows.last() else {
                return Ok(());
            };
            after = Some((id.clone(), *at, *run));
            let mut found = Vec::new();
            for (id, at, run, document) in rows {
                let Some(document) = document else { continue };
                let item: Item = read("held delivery", &id, &document)?;
                // A deletion may have nothing but its subject, and is still to be told of.
                if resource.is_of(&item.event) && item.event.has_payload() {
                    found.push((id, at, run));
                }
            }
            for rows in found.chunks(TRANSACTION_MAX) {
                within(self.cancel_held(rows, now)).await?;
            }
            deliveries.extend(found.into_iter().map(|(id, at, _)| (id, day_of(at))));
        }
    }

    async fn cancel_held(&self, rows: &[(String, i64, i64)], now: Timestamp) -> Result<(), Error> {
        let mut lease = self.database().write().await?;
        for (id, accepted_at, run) in rows {
            sqlx::query(
                "UPDATE held SET document = NULL \
                 WHERE delivery_id = $1 AND accepted_at = $2 AND run = $3",
            )
            .bind(id.as_str())
            .bind(*accepted_at)
            .bind(*run)
            .execute(&mut *lease)
            .await?;
            // An end is one further than held, so that a late copy of the record changes nothing.
            sqlx::query(
                "UPDATE deliveries SET state = 'canceled', detail = $1, updated_at = $2, \
                 progress = progress + 1 \
                 WHERE id = $3 AND day = $4 AND run = $5 AND state = 'held'",
            )
            .bind(DETAIL)
            .bind(time::write(now))
            .bind(id.as_str())
            .bind(day_of(*accepted_at))
            .bind(*run)
            .execute(&mut *lease)
            .await?;
        }
        lease.commit().await
    }

    async fn expunge_dead(&self, resource: &Resource, now: Timestamp) -> Result<u64, Error> {
        let mut expunged = 0;
        let mut after: Option<(i64, String)> = None;
        loop {
            let mut statement = Statement::new("SELECT id, died_at, CASE WHEN kind LIKE ");
            resource.may_be("document", &mut statement)?;
            statement
                .text(
                    " THEN document END FROM dead_letters WHERE document IS NOT NULL AND tenant = ",
                )
                .value(resource.tenant.as_str())?;
            if let Some((at, id)) = &after {
                statement.text(" AND (died_at, id) > (").value(*at)?;
                statement.text(", ").value(id.as_str())?.text(")");
            }
            statement.text(" ORDER BY died_at, id LIMIT ").value(STEP)?;
            let rows: Vec<(String, i64, Option<String>)> =
                within(self.database().rows(statement)).await?;
            let Some((id, at, _)) = rows.last() else {
                return Ok(expunged);
            };
            after = Some((*at, id.clone()));
            let mut changed = Vec::new();
            for (id, _, document) in rows {
                let Some(document) = document else { continue };
                let mut letter: DeadLetter = read("dead letter", &id, &document)?;
                if resource.is_of(&letter.event) && clear(&mut letter, now) {
                    let document = write("dead letter", &id, &letter)?;
                    changed.push((id, document));
                }
            }
            for rows in changed.chunks(TRANSACTION_MAX) {
                expunged += within(self.replace_letters(rows)).await?;
            }
        }
    }

    async fn replace_letters(&self, rows: &[(String, String)]) -> Result<u64, Error> {
        let mut replaced = 0;
        let mut lease = self.database().write().await?;
        for (id, document) in rows {
            // One that was redriven meanwhile stays a tombstone.
            replaced += sqlx::query(
                "UPDATE dead_letters SET document = $1 WHERE id = $2 AND document IS NOT NULL",
            )
            .bind(document.as_str())
            .bind(id.as_str())
            .execute(&mut *lease)
            .await?
            .rows_affected();
        }
        lease.commit().await?;
        Ok(replaced)
    }
}

impl Resource {
    /// Whether an event is of this resource.
    fn is_of(&self, event: &Event) -> bool {
        if event.kind.entity() != self.entity {
            return false;
        }
        match &event.subject {
            Some(subject) => match serde_json::from_str::<Vec<&RawValue>>(subject.0.get()) {
                Ok(several) => several.into_iter().any(|one| self.is(one)),
                Err(_) => self.is(&subject.0),
            },
            None => {
                let data = event.data.as_deref().map(RawValue::get);
                // An array would be read as the fields in their order.
                data.filter(|data| data.starts_with('{'))
                    .and_then(|data| serde_json::from_str::<Data<'_>>(data).ok())
                    .and_then(|data| data.id)
                    .is_some_and(|id| self.is(id))
            }
        }
    }

    /// Whether a value is its id: text as it is, a number as its digits.
    fn is(&self, value: &RawValue) -> bool {
        match serde_json::from_str::<String>(value.get()) {
            Ok(text) => text == self.id,
            Err(_) => value.get() == self.id,
        }
    }

    /// The condition, after `kind LIKE`, that a row is of the entity and may be of the resource.
    fn may_be(&self, column: &'static str, statement: &mut Statement) -> Result<(), Error> {
        statement
            .value(self.kinds())?
            .text(" ESCAPE '!' AND (")
            .text(column)
            .text(" LIKE ");
        self.names_it(column, statement)?;
        statement.text(")");
        Ok(())
    }

    /// The condition, after `column LIKE`, that a document may name the id: it has it literally, or
    /// has something written with a backslash, which may be anything.
    fn names_it(&self, column: &'static str, statement: &mut Statement) -> Result<(), Error> {
        let id = self.id.replace('\0', "\u{fffd}");
        statement
            .value(format!("%{}%", literal(&id)))?
            .text(" ESCAPE '!' OR ")
            .text(column)
            .text(" LIKE '%\\%' ESCAPE '!'");
        Ok(())
    }

    /// The pattern of the entity's types.
    fn kinds(&self) -> String {
        format!("{}.%", literal(&self.entity))
    }
}

/// The one field of data that is read.
#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

/// Takes everything out of a letter that came from a payload; whether there was anything.
fn clear(letter: &mut DeadLetter, now: Timestamp) -> bool {
    let mut changed = false;
    if letter.event.has_payload() {
        letter.event = letter.event.bare().into();
        letter.expunged_at = Some(now);
        changed = true;
    }
    for attempt in &mut letter.history {
        changed |= attempt.response.take().is_some();
    }
    changed
}

/// Text as a pattern that means itself, where `!` escapes.
fn literal(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for sign in text.chars() {
        if matches!(sign, '!' | '%' | '_') {
            pattern.push('!');
        }
        pattern.push(sign);
    }
    pattern
}

fn read<'d, T: Deserialize<'d>>(what: &str, id: &str, document: &'d str) -> Result<T, Error> {
    serde_json::from_str(document)
        .map_err(|error| Error::Fatal(format!("{what} {id} cannot be read: {error}")))
}

fn write(what: &str, id: &str, value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value)
        .map_err(|error| Error::Fatal(format!("{what} {id} cannot be written: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_of(kind: &str, rest: &str, id: &str) -> bool {
        let event = format!(
            r#"{{"id":"e","tenant":"a","type":"{kind}","time":"2026-01-01T00:00:00Z",{rest}}}"#
        );
        let resource = Resource {
            tenant: Tenant::parse("a").unwrap(),
            entity: "client".into(),
            id: id.into(),
        };
        resource.is_of(&serde_json::from_str(&event).unwrap())
    }

    #[test]
    fn an_event_is_of_the_resource_that_it_names() {
        for (kind, rest, id, yes) in [
            ("client.created", r#""subject":"10""#, "10", true),
            ("client.created", r#""subject":10"#, "10", true),
            ("client.deleted", r#""subject":[9, "10" ]"#, "10", true),
            (
                "client.created",
                r#""data":{"x":1e400, "id": 10}"#,
                "10",
                true,
            ),
            ("client.created", r#""data":{"id":"10"}"#, "10", true),
            (
                "client.created",
                r#""data":{"id":"\u0031\u0030"}"#,
                "10",
                true,
            ),
            ("client.created", r#""data":{"id":"a%_!"}"#, "a%_!", true),
            // The subject is what counts where there is one.
            (
                "client.created",
                r#""subject":9,"data":{"id":10}"#,
                "10",
                false,
            ),
            ("client.created", r#""data":{"id":100}"#, "10", false),
            (
                "client.created",
                r#""data":{"client":{"id":10}}"#,
                "10",
                false,
            ),
            ("client.created", r#""data":[10]"#, "10", false),
            ("client.created", r#""data":{"id":null}"#, "null", false),
            ("payment.paid", r#""subject":10"#, "10", false),
        ] {
            assert_eq!(is_of(kind, rest, id), yes, "{kind} {rest}");
        }
    }

    #[test]
    fn a_pattern_means_itself() {
        assert_eq!(literal("a_b%c!d\\e"), "a!_b!%c!!d\\e");
    }
}
