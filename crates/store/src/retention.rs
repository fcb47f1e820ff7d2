//! Forgetting: each kind of record after its time, in steps that hold nobody up. PostgreSQL drops
//! the partition of a day; everything else goes a few hundred rows at a time.

use jiff::Timestamp;
use sqlx::AssertSqlSafe;

use crate::{
    Error, Store,
    database::within,
    log::{
        DAY, day_of,
        days::{LOCK, day_in, part},
    },
    time,
};

/// How many rows one step deletes.
const STEP: i64 = 500;

/// How many days have their partitions made ahead: more than a recorder may be away.
const DAYS_AHEAD: i64 = 3;

/// What is kept for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kept {
    /// Events and their payloads.
    Events,
    /// Deliveries and their attempts.
    Deliveries,
    /// Dead letters.
    DeadLetters,
    /// Quarantined messages.
    Quarantine,
    /// Which versions were let go to subscriptions whose `ordering` is `latest`.
    Versions,
}

impl Kept {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Events,
        Self::Deliveries,
        Self::DeadLetters,
        Self::Quarantine,
        Self::Versions,
    ];

    /// The word in the settings and in logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Deliveries => "deliveries",
            Self::DeadLetters => "dead_letters",
            Self::Quarantine => "quarantine",
            Self::Versions => "versions",
        }
    }

    /// The tables that are divided by day, the first of them the one that says how old it is.
    const fn tables(self) -> &'static [&'static str] {
        match self {
            Self::Events => &["events", "event_subjects"],
            Self::Deliveries => &["deliveries", "attempts"],
            Self::DeadLetters | Self::Quarantine | Self::Versions => &[],
        }
    }
}

/// Statements that each delete the oldest rows from before `$1`, at most `$2`.
fn steps(kept: Kept) -> &'static [&'static str] {
    match kept {
        Kept::Events => &[
            "DELETE FROM event_subjects WHERE (id, tenant, day) IN (SELECT id, tenant, day \
             FROM events WHERE accepted_at < $1 ORDER BY accepted_at, id, tenant LIMIT $2)",
            "DELETE FROM events WHERE (id, tenant, day) IN (SELECT id, tenant, day \
             FROM events WHERE accepted_at < $1 ORDER BY accepted_at, id, tenant LIMIT $2)",
        ],
        Kept::Deliveries => &[
            "DELETE FROM attempts WHERE (delivery_id, day) IN (SELECT id, day \
             FROM deliveries WHERE accepted_at < $1 ORDER BY accepted_at, id LIMIT $2)",
            "DELETE FROM deliveries WHERE (id, day) IN (SELECT id, day \
             FROM deliveries WHERE accepted_at < $1 ORDER BY accepted_at, id LIMIT $2)",
        ],
        // Each of the two has an index of its own.
        Kept::DeadLetters => &[
            "DELETE FROM dead_letters WHERE id IN (SELECT id FROM dead_letters \
             WHERE document IS NOT NULL AND died_at < $1 ORDER BY died_at, id LIMIT $2)",
            "DELETE FROM dead_letters WHERE id IN (SELECT id FROM dead_letters \
             WHERE document IS NULL AND died_at < $1 ORDER BY died_at, id LIMIT $2)",
        ],
        Kept::Quarantine => &["DELETE FROM quarantine WHERE id IN (SELECT id \
             FROM quarantine WHERE first_seen < $1 ORDER BY first_seen, id LIMIT $2)"],
        // What is held, or parked for as long as a pause lasts, may be older than all of them.
        Kept::Versions => &["DELETE FROM versions WHERE (subscription_id, subject) IN \
             (SELECT subscription_id, subject FROM versions v WHERE at < $1 \
             AND NOT EXISTS (SELECT 1 FROM subscriptions s WHERE s.id = v.subscription_id \
             AND s.state IN ('paused', 'disabled')) \
             AND NOT EXISTS (SELECT 1 FROM held h WHERE h.subscription_id = v.subscription_id \
             AND h.document IS NOT NULL) ORDER BY at LIMIT $2) AND at < $1"],
    }
}

impl Store {
    /// Makes the partitions of today and the next days, where the database has partitions.
    pub async fn prepare_days(&self, now: Timestamp) -> Result<(), Error> {
        let today = day_of(time::write(now));
        // What this process believes may have been made undone by another.
        self.database().forget_days();
        self.database()
            .make_days((today..=today + DAYS_AHEAD).collect())
            .await
    }

    /// Forgets a little of what is from before the day of `before`: one day's partition, or some
    /// hundred rows. How much that was; 0 when nothing is left. Harmless beside other recorders.
    pub async fn forget(&self, kept: Kept, before: Timestamp) -> Result<u64, Error> {
        let before = day_of(time::write(before));
        if !self.database().is_sqlite() && !kept.tables().is_empty() {
            return within(self.drop_day(kept, before)).await;
        }
        within(async {
            let mut lease = self.database().write().await?;
            let mut done = 0;
            for sql in steps(kept) {
                done += sqlx::query(*sql)
                    .bind(before.saturating_mul(DAY))
                    .bind(STEP)
                    .execute(&mut *lease)
                    .await?
                    .rows_affected();
            }
            lease.commit().await?;
            Ok(done)
        })
        .await
    }

    /// Drops the oldest day's partitions, if it is before `before`.
    async fn drop_day(&self, kept: Kept, before: i64) -> Result<u64, Error> {
        let mut lease = self.database().write().await?;
        sqlx::raw_sql(LOCK).execute(&mut *lease).await?;
        let mut oldest: Option<i64> = None;
        for table in kept.tables() {
            let names: Vec<(String,)> = sqlx::query_as(
                "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
                 WHERE i.inhparent = to_regclass($1)",
            )
            .bind(*table)
            .fetch_all(&mut *lease)
            .await?;
            let days = names.iter().filter_map(|(name,)| day_in(table, name));
            oldest = days.chain(oldest).min();
        }
        let Some(day) = oldest.filter(|day| *day < before) else {
            lease.rollback().await?;
            return Ok(0);
        };
        for table in kept.tables() {
            let sql = format!("DROP TABLE IF EXISTS {}", part(table, day));
            sqlx::raw_sql(AssertSqlSafe(sql))
                .execute(&mut *lease)
                .await?;
        }
        lease.commit().await?;
        self.database().forget_days();
        Ok(1)
    }

    /// Forgets how the endpoints of subscriptions went that are no more.
    pub async fn forget_health(&self) -> Result<(), Error> {
        within(async {
            let mut lease = self.database().write().await?;
            sqlx::query(
                "DELETE FROM subscription_health WHERE NOT EXISTS (SELECT 1 FROM subscriptions s \
                 WHERE s.id = subscription_health.subscription_id AND s.state <> 'deleted')",
            )
            .execute(&mut *lease)
            .await?;
            lease.commit().await
        })
        .await
    }
}
