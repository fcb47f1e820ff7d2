//! Deliveries that are kept while their subscription is paused or disabled. Recorded once, sent by
//! a job when the subscription is resumed, oldest first.
//!
//! Who resumes is found by looking at what is held, not by being told: so it does not matter how
//! late a deliverer learns that a subscription was resumed, and what it holds in the meantime is
//! found the next time.

use event::{
    DeliveryId, SubscriptionId, Tenant, delivery::Item, log::HeldDelivery, reason::DeliveryState,
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    Error, Paging, Store,
    cursor::{Cursor, Wanted},
    database::{Statement, within},
    jobs::{COUNT_MAX, Candidate, Sending, Standing, Walked},
    rows::Insert,
    time,
};

/// The list that places among held deliveries belong to.
const LIST: &str = "held";
/// How many of them one transaction records, and of how many bytes together.
const TRANSACTION_MAX: usize = 64;
/// A tombstone is needed for as long as a copy of the same record may still be under way.
const TOMBSTONES: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How many tombstones go at once.
const STEP: i64 = 500;

/// A row, keyed.
struct Row<'a> {
    delivery_id: DeliveryId,
    held: &'a HeldDelivery,
    run: i64,
    subscription_id: &'a SubscriptionId,
    document: String,
}

impl Store {
    /// Records held deliveries, each run once however often it is given; one that was sent since
    /// stays sent. On an error some may be recorded already; giving all of them again is right.
    pub async fn record_held(&self, held: &[HeldDelivery]) -> Result<(), Error> {
        let mut rows = Vec::with_capacity(held.len());
        for held in held {
            rows.extend(Row::all(held)?);
        }
        // In one order, so that two recorders never wait for each other in a circle; each once,
        // because a statement may not meet a row twice.
        let key = |row: &Row<'_>| (row.delivery_id.clone(), row.held.item.accepted_at, row.run);
        rows.sort_by_key(key);
        rows.dedup_by_key(|row| key(row));
        for rows in rows.chunks(TRANSACTION_MAX) {
            within(self.record_some_held(rows)).await?;
        }
        Ok(())
    }

    async fn record_some_held(&self, rows: &[Row<'_>]) -> Result<(), Error> {
        let insert = Insert {
            head: "INSERT INTO held (delivery_id, accepted_at, run, subscription_id, tenant, \
                   held_at, document) VALUES ",
            columns: 7,
            tail: " ON CONFLICT (delivery_id, accepted_at, run) DO NOTHING",
        };
        let mut lease = self.database().write().await?;
        insert
            .run(&mut lease, rows, |row, values| {
                values.add(row.delivery_id.as_str())?;
                values.add(time::write(row.held.item.accepted_at))?;
                values.add(row.run)?;
                values.add(row.subscription_id.as_str())?;
                values.add(row.held.item.event.tenant.as_str())?;
                values.add(time::write(row.held.at))?;
                values.add(row.document.as_str())
            })
            .await?;
        lease.commit().await
    }

    /// Subscriptions that are neither paused nor disabled and have deliveries held all the same: at
    /// most `limit`. Deleted ones are among them; listeners' are not, whose deliveries nobody sends.
    pub async fn subscriptions_to_resume(
        &self,
        limit: u32,
    ) -> Result<Vec<(Tenant, SubscriptionId)>, Error> {
        within(async {
            // One look into the index for each subscription, however much is held for it.
            let mut statement = Statement::new(
                "WITH RECURSIVE kept(id) AS (\
                 SELECT MIN(subscription_id) FROM held WHERE document IS NOT NULL \
                 UNION ALL \
                 SELECT (SELECT MIN(h.subscription_id) FROM held h \
                 WHERE h.document IS NOT NULL AND h.subscription_id > kept.id) \
                 FROM kept WHERE kept.id IS NOT NULL) \
                 SELECT s.tenant, s.id FROM kept JOIN subscriptions s ON s.id = kept.id \
                 WHERE s.state NOT IN ('paused', 'disabled') \
                 AND s.id NOT LIKE 'sub_listen_%' LIMIT ",
            );
            statement.value(i64::from(limit))?;
            let rows: Vec<(String, String)> = self.database().rows(statement).await?;
            let read = |(tenant, id): (String, String)| {
                let broken = |_| Error::Fatal(format!("subscription {id} cannot be read"));
                let tenant = Tenant::parse(&tenant).map_err(broken)?;
                Ok((tenant, SubscriptionId::parse(&id).map_err(broken)?))
            };
            rows.into_iter().map(read).collect()
        })
        .await
    }

    /// How many deliveries are held for a subscription, at most [`COUNT_MAX`].
    pub async fn count_held(&self, subscription: &SubscriptionId) -> Result<u64, Error> {
        within(async {
            let mut statement = Statement::new(
                "SELECT COUNT(*) FROM (SELECT run FROM held WHERE document IS NOT NULL \
                 AND subscription_id = ",
            );
            statement
                .value(subscription.as_str())?
                .text(" LIMIT ")
                .value(i64::try_from(COUNT_MAX).unwrap_or(i64::MAX))?
                .text(") AS found");
            let row: Option<(i64,)> = self.database().row(statement).await?;
            Ok(row.map_or(0, |(count,)| count.unsigned_abs()))
        })
        .await
    }

    /// One step of a resume.
    pub async fn walk_held(
        &self,
        subscription: &SubscriptionId,
        place: Option<&str>,
        limit: u32,
    ) -> Result<Walked, Error> {
        let paging = Paging {
            cursor: place.map(str::to_owned),
            limit,
        };
        let wanted = Wanted::new(LIST, &paging)?;
        within(async {
            let mut statement = Statement::new(
                "SELECT delivery_id, accepted_at, held_at, document FROM held \
                 WHERE document IS NOT NULL AND subscription_id = ",
            );
            statement.value(subscription.as_str())?;
            if let Some(after) = &wanted.after {
                statement
                    .text(" AND (accepted_at, delivery_id) > (")
                    .value(after.at)?
                    .text(", ")
                    .value(after.id.as_str())?
                    .text(")");
            }
            statement
                .text(" ORDER BY accepted_at, delivery_id LIMIT ")
                .value(wanted.fetch())?;
            let rows: Vec<(String, i64, i64, String)> = self.database().rows(statement).await?;
            let place = |row: &(String, i64, i64, String)| Cursor {
                at: row.1,
                id: row.0.clone(),
            };
            let page = wanted.page(rows, place, |row| {
                let place = place(&row).encode(LIST);
                candidate(row, place)
            })?;
            Ok(Walked {
                candidates: page.items,
                place: page.cursor,
            })
        })
        .await
    }

    /// Forgets some tombstones that nobody needs any more; how many.
    pub async fn forget_resumed(&self, now: Timestamp) -> Result<u64, Error> {
        let before = time::write(now.saturating_sub(TOMBSTONES).unwrap_or(now));
        within(async {
            let mut lease = self.database().write().await?;
            let done = sqlx::query(
                "DELETE FROM held WHERE (delivery_id, accepted_at, run) IN (\
                 SELECT delivery_id, accepted_at, run FROM held \
                 WHERE document IS NULL AND held_at < $1 ORDER BY held_at LIMIT $2)",
            )
            .bind(before)
            .bind(STEP)
            .execute(&mut *lease)
            .await?;
            lease.commit().await?;
            Ok(done.rows_affected())
        })
        .await
    }
}

/// Ends what a step has sent, in its transaction.
pub(crate) async fn end(
    connection: &mut sqlx::AnyConnection,
    sends: &[Sending],
) -> Result<(), Error> {
    for sending in sends.iter().filter(|sending| sending.held) {
        sqlx::query(
            "UPDATE held SET document = NULL \
             WHERE delivery_id = $1 AND accepted_at = $2 AND run = $3",
        )
        .bind(sending.delivery_id.as_str())
        .bind(time::write(sending.accepted_at))
        .bind(i64::from(sending.run) - 1)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

impl<'a> Row<'a> {
    /// One row for each recipient, of which there is one.
    fn all(held: &'a HeldDelivery) -> Result<Vec<Self>, Error> {
        let item = &held.item;
        let document = serde_json::to_string(item).map_err(|error| {
            let id = &item.event.id;
            Error::Fatal(format!(
                "a held delivery of {id} cannot be written: {error}"
            ))
        })?;
        let row = |to: &'a event::delivery::Recipient| Self {
            delivery_id: DeliveryId::of(&item.event.tenant, &item.event.id, &to.subscription),
            held,
            run: i64::from(to.run),
            subscription_id: &to.subscription,
            document: document.clone(),
        };
        Ok(item.to.iter().take(1).map(row).collect())
    }
}

fn candidate(
    (id, _, held_at, document): (String, i64, i64, String),
    place: String,
) -> Result<Candidate, Error> {
    let broken = || Error::Fatal(format!("held delivery {id} cannot be read"));
    let item: Item = serde_json::from_str(&document).map_err(|_| broken())?;
    let to = item.to.into_iter().next().ok_or_else(broken)?;
    Ok(Candidate {
        place,
        accepted_at: item.accepted_at,
        bytes: document.len() as u64,
        subscription_id: to.subscription,
        standing: Some(Standing {
            run: to.run,
            state: DeliveryState::Held,
            updated_at: time::read(held_at),
            due: None,
        }),
        letter: None,
        held: Some(to.purpose),
        expunged: false,
        event: item.event,
    })
}
