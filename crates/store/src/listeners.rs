//! Listeners: subscriptions for the time being, whose deliveries are held until somebody takes
//! them. What nobody extends any more ends by itself.

use event::{
    DeliveryId, SubscriptionId,
    delivery::{Item, Recipient},
    log::HeldDelivery,
    reason::DeliveryState,
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    Error, Sight, Store, Stored,
    database::{Statement, within},
    subscriptions::{bury, insert, next_revision},
    time,
};

/// How many listeners one look ends.
const END_MAX: i64 = 50;

/// A delivery that is held for a listener.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Which one it is.
    pub key: WaitingKey,
    /// The event.
    pub item: Item,
    /// Its recipient.
    pub to: Recipient,
}

/// Which delivery it is, and which run of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaitingKey {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// When its event was accepted, in nanoseconds since 1970.
    pub accepted_at: i64,
    /// 0 the first.
    pub run: u32,
}

impl std::fmt::Display for WaitingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}", self.delivery_id, self.accepted_at, self.run)
    }
}

impl WaitingKey {
    /// Reads what `Display` wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        Some(Self {
            delivery_id: DeliveryId::parse(parts.next()?).ok()?,
            accepted_at: parts.next()?.parse().ok()?,
            run: parts.next()?.parse().ok()?,
        })
    }
}

/// delivery_id, accepted_at, run, document.
type Row = (String, i64, i64, String);

const COLUMNS: &str = "SELECT delivery_id, accepted_at, run, document FROM held \
                       WHERE document IS NOT NULL AND ";

impl Store {
    /// Inserts a listener's subscription, which lasts for `lease` without a sign of life; returns
    /// it with its revision set, or `None` where the tenant has as many as it may.
    pub async fn insert_listener(
        &self,
        mut stored: Stored,
        lease: SignedDuration,
        (now, most): (Timestamp, u32),
    ) -> Result<Option<Stored>, Error> {
        within(async {
            let keys = self.keys();
            let mut connection = self.database().write().await?;
            stored.subscription.revision = next_revision(&mut connection, &keys).await?;
            let (count,): (i64,) = sqlx::query_as(
                "SELECT COUNT(*) FROM listeners l JOIN subscriptions s \
                 ON s.id = l.subscription_id WHERE s.state <> 'deleted' AND s.tenant = $1",
            )
            .bind(stored.subscription.tenant.as_str())
            .fetch_one(&mut *connection)
            .await?;
            if count >= i64::from(most) {
                connection.rollback().await?;
                return Ok(None);
            }
            insert(&mut connection, &stored, &keys).await?;
            sqlx::query(
                "INSERT INTO listeners (subscription_id, lease, expires_at) VALUES ($1, $2, $3)",
            )
            .bind(stored.subscription.id.as_str())
            .bind(i64::try_from(lease.as_nanos()).unwrap_or(i64::MAX))
            .bind(time::write(now.saturating_add(lease).unwrap_or(now)))
            .execute(&mut *connection)
            .await?;
            connection.commit().await?;
            Ok(Some(stored))
        })
        .await
    }

    /// Extends a listener by its lease; until when it lasts, or `None` when it is no more.
    pub async fn extend_listener(
        &self,
        id: &SubscriptionId,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Error> {
        within(async {
            let mut connection = self.database().write_lightly().await?;
            let row: Option<(i64,)> = sqlx::query_as(
                "UPDATE listeners SET expires_at = $1 + lease WHERE subscription_id = $2 \
                 AND EXISTS (SELECT 1 FROM subscriptions s \
                 WHERE s.id = listeners.subscription_id AND s.state <> 'deleted') \
                 RETURNING expires_at",
            )
            .bind(time::write(now))
            .bind(id.as_str())
            .fetch_optional(&mut *connection)
            .await?;
            connection.commit().await?;
            Ok(row.map(|(end,)| time::read(end)))
        })
        .await
    }

    /// Ends listeners that nobody has extended in time; which.
    pub async fn end_listeners(&self, now: Timestamp) -> Result<Vec<SubscriptionId>, Error> {
        let ended: Vec<(String,)> = within(async {
            let mut statement =
                Statement::new("SELECT subscription_id FROM listeners WHERE expires_at < ");
            statement
                .value(time::write(now))?
                .text(" ORDER BY expires_at LIMIT ")
                .value(END_MAX)?;
            self.database().rows(statement).await
        })
        .await?;
        let mut gone = Vec::new();
        for (id,) in ended {
            let Ok(id) = SubscriptionId::parse(&id) else {
                continue;
            };
            if self.end_listener(&id, now).await? {
                gone.push(id);
            }
        }
        Ok(gone)
    }

    /// Ends a listener that is still over; it may have been extended meanwhile.
    async fn end_listener(&self, id: &SubscriptionId, now: Timestamp) -> Result<bool, Error> {
        within(async {
            let mut connection = self.database().write().await?;
            let revision = next_revision(&mut connection, &self.keys()).await?;
            let done =
                sqlx::query("DELETE FROM listeners WHERE subscription_id = $1 AND expires_at < $2")
                    .bind(id.as_str())
                    .bind(time::write(now))
                    .execute(&mut *connection)
                    .await?;
            if done.rows_affected() == 0 {
                connection.rollback().await?;
                return Ok(false);
            }
            // Gone already where somebody deleted it.
            let buried = bury(&mut connection, &Sight::All, id, revision).await?;
            connection.commit().await?;
            Ok(buried)
        })
        .await
    }

    /// What waits for a listener, oldest first.
    pub async fn waiting(&self, id: &SubscriptionId, limit: u32) -> Result<Vec<Waiting>, Error> {
        within(async {
            let mut statement = Statement::new(COLUMNS);
            statement
                .text("subscription_id = ")
                .value(id.as_str())?
                .text(" ORDER BY accepted_at, delivery_id LIMIT ")
                .value(i64::from(limit))?;
            let rows: Vec<Row> = self.database().rows(statement).await?;
            rows.into_iter().map(read).collect()
        })
        .await
    }

    /// What waits for listeners that are no more.
    async fn waiting_for_nobody(&self, limit: u32) -> Result<Vec<Waiting>, Error> {
        within(async {
            let mut statement = Statement::new(COLUMNS);
            statement
                .text(
                    "subscription_id >= 'sub_listen_' AND subscription_id < 'sub_listen`' \
                     AND NOT EXISTS (SELECT 1 FROM subscriptions s \
                     WHERE s.id = held.subscription_id AND s.state <> 'deleted') LIMIT ",
                )
                .value(i64::from(limit))?;
            let rows: Vec<Row> = self.database().rows(statement).await?;
            rows.into_iter().map(read).collect()
        })
        .await
    }

    /// Ends some of what waits for listeners that are no more; how much.
    pub async fn cancel_for_nobody(&self, now: Timestamp, limit: u32) -> Result<usize, Error> {
        let waiting = self.waiting_for_nobody(limit).await?;
        let canceled = |waiting: &Waiting| {
            let ended = (DeliveryState::Canceled, waiting.to.attempts);
            let mut entry = HeldDelivery::ended(&waiting.item, &waiting.to, ended, now);
            entry.detail = Some("its listener ended before it took it".to_owned());
            entry
        };
        let entries: Vec<_> = waiting.iter().map(canceled).collect();
        self.record(&[], &entries).await?;
        let keys: Vec<_> = waiting.into_iter().map(|waiting| waiting.key).collect();
        self.taken(&keys).await?;
        Ok(keys.len())
    }

    /// Some of what waits for a listener, by its keys; what was taken already is left out.
    pub async fn waiting_of(
        &self,
        id: &SubscriptionId,
        keys: &[WaitingKey],
    ) -> Result<Vec<Waiting>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        within(async {
            let mut statement = Statement::new(COLUMNS);
            statement
                .text("subscription_id = ")
                .value(id.as_str())?
                .text(" AND delivery_id IN (");
            let ids: Vec<&str> = keys.iter().map(|key| key.delivery_id.as_str()).collect();
            statement.list(&ids)?.text(")");
            let rows: Vec<Row> = self.database().rows(statement).await?;
            let found: Vec<Waiting> = rows.into_iter().map(read).collect::<Result<_, _>>()?;
            let asked = |waiting: &Waiting| keys.contains(&waiting.key);
            Ok(found.into_iter().filter(asked).collect())
        })
        .await
    }

    /// Ends what waited: what is left keeps a late copy of the record from bringing it back.
    pub async fn taken(&self, keys: &[WaitingKey]) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        within(async {
            let mut connection = self.database().write().await?;
            for key in keys {
                sqlx::query(
                    "UPDATE held SET document = NULL \
                     WHERE delivery_id = $1 AND accepted_at = $2 AND run = $3",
                )
                .bind(key.delivery_id.as_str())
                .bind(key.accepted_at)
                .bind(i64::from(key.run))
                .execute(&mut *connection)
                .await?;
            }
            connection.commit().await
        })
        .await
    }
}

fn read((id, accepted_at, run, document): Row) -> Result<Waiting, Error> {
    let broken = || Error::Fatal(format!("held delivery {id} cannot be read"));
    let mut item: Item = serde_json::from_str(&document).map_err(|_| broken())?;
    let to = std::mem::take(&mut item.to)
        .into_iter()
        .next()
        .ok_or_else(broken)?;
    Ok(Waiting {
        key: WaitingKey {
            delivery_id: DeliveryId::parse(&id).map_err(|_| broken())?,
            accepted_at,
            run: u32::try_from(run).map_err(|_| broken())?,
        },
        item,
        to,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let key = WaitingKey {
            delivery_id: DeliveryId::parse("dlv_0123").unwrap(),
            accepted_at: 1_763_800_000_123_456_789,
            run: 2,
        };
        assert_eq!(WaitingKey::parse(&key.to_string()), Some(key));
        for text in [
            "",
            "dlv_1",
            "dlv_1-2",
            "dlv_1-2-x",
            "dl v-1-2",
            "dlv_1-2-3-4",
        ] {
            assert_eq!(WaitingKey::parse(text), None, "{text}");
        }
    }
}
