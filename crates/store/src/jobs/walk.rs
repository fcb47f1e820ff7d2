//! What jobs walk over, oldest first: archived events with how their deliveries stand, and dead
//! letters. Each candidate knows the place behind it, so that a walk goes on anywhere.

use std::{collections::HashMap, sync::Arc};

use event::{
    DeadLetterId, DeliveryId, Event, SubscriptionId, Tenant,
    delivery::{DeadLetter, Purpose},
    reason::DeliveryState,
    selector::Selector,
};
use jiff::Timestamp;

use super::{COUNT_MAX, JobFilter, Sending, number};
use crate::{
    Error, Paging, Sight, Store,
    cursor::{Cursor, Wanted},
    database::{Statement, within},
    log::{Whole, day_of, listens},
    time,
};

/// The list that places among events belong to.
const EVENTS: &str = "events_since";
/// The list that places among dead letters belong to.
const LETTERS: &str = "dead_letters_since";
/// How many of a subscription's unfinished deliveries are looked at, to count those of a job.
const LOOKED_AT_MAX: i64 = 10_000;

/// Something that a job may send.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Behind it.
    pub place: String,
    /// The event, with its payloads where there are any.
    pub event: Arc<Event>,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// About how large it is.
    pub bytes: u64,
    /// To whom it would be sent.
    pub subscription_id: SubscriptionId,
    /// How its delivery stands, where there is one.
    pub standing: Option<Standing>,
    /// The dead letter that it comes from.
    pub letter: Option<DeadLetterId>,
    /// Of one that is held: why it was made.
    pub held: Option<Purpose>,
    /// Whether its payloads were expunged: it cannot be sent.
    pub expunged: bool,
}

/// How a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its last run.
    pub run: u32,
    /// Its state.
    pub state: DeliveryState,
    /// Since when.
    pub updated_at: Timestamp,
    /// Of a retrying one: when the next attempt is due.
    pub due: Option<Timestamp>,
}

/// One step of a walk.
#[derive(Debug, Clone)]
pub struct Walked {
    /// What was found, oldest first; may be nothing although there is more.
    pub candidates: Vec<Candidate>,
    /// Where the next step begins; `None` at the end.
    pub place: Option<String>,
}

/// How many there are, at most [`COUNT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// All that match.
    pub total: u64,
    /// Those of them that can be sent: archived with their payload.
    pub whole: u64,
}

impl Store {
    /// How many archived events of a tenant a replay would find. `entity.status_changed` counts
    /// every event of the entity: that is at most too many.
    pub async fn count_events(
        &self,
        tenant: &Tenant,
        selectors: &[Selector],
        filter: &JobFilter,
    ) -> Result<Counted, Error> {
        within(async {
            let mut statement = Statement::new(
                "SELECT COUNT(*), COUNT(whole) FROM (SELECT CASE WHEN payload IS NOT NULL \
                 OR (expunged_at IS NULL AND kind LIKE '%.deleted' AND LENGTH(document) >= bytes) THEN 1 END AS whole FROM events WHERE tenant = ",
            );
            statement.value(tenant.as_str())?;
            listens(&mut statement, selectors)?;
            wants(&mut statement, filter)?;
            span(&mut statement, "accepted_at", filter)?;
            if let Some(since) = filter.since {
                statement
                    .text(" AND day >= ")
                    .value(day_of(time::write(since)))?;
            }
            statement
                .text(" LIMIT ")
                .value(number(COUNT_MAX))?
                .text(") AS found");
            let row: Option<(i64, i64)> = self.database().row(statement).await?;
            let (total, whole) = row.unwrap_or_default();
            Ok(Counted {
                total: total.unsigned_abs(),
                whole: whole.unsigned_abs(),
            })
        })
        .await
    }

    /// How many dead letters a redrive would find.
    pub async fn count_dead(
        &self,
        sight: &Sight,
        subscription: Option<&SubscriptionId>,
        filter: &JobFilter,
    ) -> Result<u64, Error> {
        within(async {
            let mut statement = Statement::new(
                "SELECT COUNT(*) FROM (SELECT id FROM dead_letters WHERE document IS NOT NULL",
            );
            of_letters(&mut statement, sight, subscription, filter)?;
            statement
                .text(" LIMIT ")
                .value(number(COUNT_MAX))?
                .text(") AS found");
            let row: Option<(i64,)> = self.database().row(statement).await?;
            Ok(row.map_or(0, |(count,)| count.unsigned_abs()))
        })
        .await
    }

    /// One step of a replay to a subscription.
    pub async fn walk_events(
        &self,
        (tenant, subscription): (&Tenant, &SubscriptionId),
        selectors: &[Selector],
        filter: &JobFilter,
        place: Option<&str>,
        limit: u32,
    ) -> Result<Walked, Error> {
        let paging = Paging {
            cursor: place.map(str::to_owned),
            limit,
        };
        let since = filter.since.unwrap_or(Timestamp::MIN);
        let page = self
            .walk_archive(tenant, selectors, (since, filter.until), &paging)
            .await?;
        let wanted = |archived: &Whole| is_wanted(filter, &archived.event);
        let found: Vec<Whole> = page.items.into_iter().filter(wanted).collect();
        let ids: Vec<(DeliveryId, Timestamp)> = found
            .iter()
            .map(|archived| {
                let id = DeliveryId::of(tenant, &archived.event.id, subscription);
                (id, archived.accepted_at)
            })
            .collect();
        let standings = self.standings(&ids).await?;
        let candidate = |(archived, (delivery, _)): (Whole, (DeliveryId, Timestamp))| {
            let at = time::write(archived.accepted_at);
            let place = Cursor {
                at,
                id: archived.event.id.as_str().to_owned(),
            };
            Candidate {
                place: place.encode(EVENTS),
                accepted_at: archived.accepted_at,
                bytes: archived.bytes,
                subscription_id: subscription.clone(),
                standing: standings.get(&(delivery, day_of(at))).copied(),
                letter: None,
                held: None,
                expunged: archived.expunged_at.is_some(),
                event: archived.event.into(),
            }
        };
        Ok(Walked {
            candidates: found.into_iter().zip(ids).map(candidate).collect(),
            place: page.cursor,
        })
    }

    /// One step of a redrive.
    pub async fn walk_letters(
        &self,
        sight: &Sight,
        subscription: Option<&SubscriptionId>,
        filter: &JobFilter,
        place: Option<&str>,
        limit: u32,
    ) -> Result<Walked, Error> {
        let paging = Paging {
            cursor: place.map(str::to_owned),
            limit,
        };
        let wanted = Wanted::new(LETTERS, &paging)?;
        let page = within(async {
            let mut statement = Statement::new(
                "SELECT id, died_at, document FROM dead_letters WHERE document IS NOT NULL",
            );
            of_letters(&mut statement, sight, subscription, filter)?;
            if let Some(after) = &wanted.after {
                statement.text(" AND (died_at, id) > (").value(after.at)?;
                statement.text(", ").value(after.id.as_str())?.text(")");
            }
            statement
                .text(" ORDER BY died_at, id LIMIT ")
                .value(wanted.fetch())?;
            let rows: Vec<(String, i64, String)> = self.database().rows(statement).await?;
            let place = |row: &(String, i64, String)| Cursor {
                at: row.1,
                id: row.0.clone(),
            };
            wanted.page(rows, place, |(id, died_at, document)| {
                let letter: DeadLetter = serde_json::from_str(&document).map_err(|error| {
                    Error::Fatal(format!("dead letter {id} cannot be read: {error}"))
                })?;
                Ok(from_letter(letter, died_at, document.len()))
            })
        })
        .await?;
        let mut candidates = page.items;
        candidates.retain(|candidate| is_wanted(filter, &candidate.event));
        Ok(Walked {
            candidates,
            place: page.cursor,
        })
    }

    /// How deliveries stand, by id and day.
    async fn standings(
        &self,
        ids: &[(DeliveryId, Timestamp)],
    ) -> Result<HashMap<(DeliveryId, i64), Standing>, Error> {
        let days = ids.iter().map(|(_, at)| day_of(time::write(*at)));
        let (Some(first), Some(last)) = (days.clone().min(), days.max()) else {
            return Ok(HashMap::new());
        };
        within(async {
            let mut statement = Statement::new(
                "SELECT id, day, run, state, updated_at, due FROM deliveries WHERE day >= ",
            );
            let texts: Vec<&str> = ids.iter().map(|(id, _)| id.as_str()).collect();
            statement
                .value(first)?
                .text(" AND day <= ")
                .value(last)?
                .text(" AND id IN (")
                .list(&texts)?
                .text(")");
            let rows: Vec<(String, i64, i64, String, i64, Option<i64>)> =
                self.database().rows(statement).await?;
            let read = |(id, day, run, state, updated_at, due): (String, _, i64, String, _, _)| {
                let broken = || Error::Fatal(format!("delivery {id} cannot be read"));
                let standing = Standing {
                    run: u32::try_from(run).unwrap_or(0),
                    state: DeliveryState::from_word(&state).ok_or_else(broken)?,
                    updated_at: time::read(updated_at),
                    due: Option::map(due, time::read),
                };
                let id = DeliveryId::parse(&id).map_err(|_| broken())?;
                Ok(((id, day), standing))
            };
            rows.into_iter().map(read).collect()
        })
        .await
    }

    /// Whether the log, or a dead letter, tells of any of these runs. Sent as one parcel, they all
    /// went out if one did.
    pub async fn any_arrived(&self, sends: &[Sending]) -> Result<bool, Error> {
        let ids: Vec<_> = sends
            .iter()
            .map(|sending| (sending.delivery_id.clone(), sending.accepted_at))
            .collect();
        let standings = self.standings(&ids).await?;
        let logged = |sending: &Sending| {
            let day = day_of(time::write(sending.accepted_at));
            standings
                .get(&(sending.delivery_id.clone(), day))
                .is_some_and(|standing| standing.run >= sending.run)
        };
        if sends.iter().any(logged) {
            return Ok(true);
        }
        let letters: Vec<DeadLetterId> = sends
            .iter()
            .map(|sending| DeadLetterId::of(&sending.delivery_id, sending.run))
            .collect();
        let letters: Vec<&str> = letters.iter().map(DeadLetterId::as_str).collect();
        if letters.is_empty() {
            return Ok(false);
        }
        within(async {
            let mut statement = Statement::new("SELECT id FROM dead_letters WHERE id IN (");
            statement.list(&letters)?.text(") LIMIT 1");
            let row: Option<(String,)> = self.database().row(statement).await?;
            Ok(row.is_some())
        })
        .await
    }

    /// How many deliveries to a subscription that were asked for again, or resumed, have not ended
    /// yet, at most `most`.
    pub async fn replays_under_way(
        &self,
        subscription: &SubscriptionId,
        most: u32,
    ) -> Result<u64, Error> {
        within(async {
            let mut statement = Statement::new(
                "SELECT COUNT(*) FROM (SELECT run FROM (SELECT run FROM deliveries \
                 WHERE subscription_id = ",
            );
            statement
                .value(subscription.as_str())?
                .text(
                    " AND state IN ('pending', 'retrying') AND state <> 'delivered' \
                     ORDER BY accepted_at DESC LIMIT ",
                )
                .value(LOOKED_AT_MAX)?
                .text(") AS looked_at WHERE run > 0 LIMIT ")
                .value(i64::from(most))?
                .text(") AS found");
            let row: Option<(i64,)> = self.database().row(statement).await?;
            Ok(row.map_or(0, |(count,)| count.unsigned_abs()))
        })
        .await
    }
}

fn from_letter(letter: DeadLetter, died_at: i64, bytes: usize) -> Candidate {
    let place = Cursor {
        at: died_at,
        id: letter.id.as_str().to_owned(),
    };
    Candidate {
        place: place.encode(LETTERS),
        accepted_at: letter.accepted_at,
        bytes: bytes as u64,
        subscription_id: letter.subscription_id,
        standing: Some(Standing {
            run: letter.run,
            state: DeliveryState::Dead,
            updated_at: letter.died_at,
            due: None,
        }),
        letter: Some(letter.id),
        held: None,
        expunged: letter.expunged_at.is_some(),
        event: letter.event,
    }
}

/// What SQL cannot tell of a filter.
fn is_wanted(filter: &JobFilter, event: &Event) -> bool {
    filter.types.is_empty() || filter.types.iter().any(|selector| selector.matches(event))
}

fn of_letters(
    statement: &mut Statement,
    sight: &Sight,
    subscription: Option<&SubscriptionId>,
    filter: &JobFilter,
) -> Result<(), Error> {
    statement.sight(sight)?;
    if let Some(subscription) = subscription {
        statement
            .text(" AND subscription_id = ")
            .value(subscription.as_str())?;
    }
    if let Some(reason) = filter.reason {
        statement.text(" AND reason = ").value(reason.word())?;
    }
    wants(statement, filter)?;
    span(statement, "died_at", filter)
}

/// The types that a filter wants.
fn wants(statement: &mut Statement, filter: &JobFilter) -> Result<(), Error> {
    if let Some(kind) = &filter.kind {
        statement.text(" AND kind = ").value(kind.as_str())?;
    }
    if filter.types.is_empty() {
        return Ok(());
    }
    listens(statement, &filter.types)
}

fn span(statement: &mut Statement, column: &'static str, filter: &JobFilter) -> Result<(), Error> {
    if let Some(since) = filter.since {
        statement.text(" AND ").text(column);
        statement.text(" >= ").value(time::write(since))?;
    }
    if let Some(until) = filter.until {
        statement.text(" AND ").text(column);
        statement.text(" < ").value(time::write(until))?;
    }
    Ok(())
}
