//! Who sends a delivery again: of all who are asked to at once, in whichever process, one.
//!
//! A run is taken before it is published, for a short time. By the end of that the log tells of it,
//! and whoever comes then sees that the delivery is under way.

use std::collections::{BTreeSet, HashSet};

use event::DeliveryId;
use jiff::Timestamp;

use crate::{Error, Store, database::within, jobs::Sending, time};

/// How many rows are forgotten at once.
const STEP: i64 = 500;

/// delivery_id, accepted_at, run.
type Key<'a> = (&'a str, i64, i64);
type Row = (String, i64, i64);

/// The statement that takes runs which nobody else has.
macro_rules! take_from {
    ($array:literal) => {
        concat!(
            "INSERT INTO runs (delivery_id, accepted_at, run, owner, until) \
             SELECT value ->> 0, CAST(value ->> 1 AS BIGINT), CAST(value ->> 2 AS BIGINT), $2, $3 \
             FROM ",
            $array,
            " WHERE true ON CONFLICT (delivery_id, accepted_at, run) DO UPDATE \
             SET owner = excluded.owner, until = excluded.until \
             WHERE runs.until < $4 OR runs.owner = excluded.owner \
             RETURNING delivery_id, accepted_at, run"
        )
    };
}

impl Store {
    /// Takes these runs for `owner` until then, but for those that another has; whether each is
    /// the owner's, in the order given. What is not must not be sent.
    pub async fn take_runs(
        &self,
        owner: &str,
        runs: &[Sending],
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<bool>, Error> {
        // In one order, so that nobody waits for another in a circle; each once, because a
        // statement may not meet a row twice.
        let keys: BTreeSet<Key<'_>> = runs.iter().map(key).collect();
        let keys = serde_json::to_string(&keys)
            .map_err(|error| Error::Fatal(format!("runs cannot be written: {error}")))?;
        let taken: Vec<Row> = within(async {
            let mut lease = self.database().write().await?;
            let taken = sqlx::query_as(if self.database().is_sqlite() {
                take_from!("json_each($1)")
            } else {
                take_from!("json_array_elements($1::json)")
            })
            .bind(keys)
            .bind(owner)
            .bind(time::write(until))
            .bind(time::write(now))
            .fetch_all(&mut *lease)
            .await?;
            lease.commit().await?;
            Ok(taken)
        })
        .await?;
        let taken: HashSet<Key<'_>> = taken
            .iter()
            .map(|(id, accepted_at, run)| (id.as_str(), *accepted_at, *run))
            .collect();
        Ok(runs.iter().map(|run| taken.contains(&key(run))).collect())
    }

    /// Gives back a run that was certainly not sent.
    pub async fn give_back_run(
        &self,
        owner: &str,
        delivery_id: &DeliveryId,
        run: u32,
    ) -> Result<(), Error> {
        within(async {
            let mut lease = self.database().write().await?;
            sqlx::query("DELETE FROM runs WHERE delivery_id = $1 AND run = $2 AND owner = $3")
                .bind(delivery_id.as_str())
                .bind(i64::from(run))
                .bind(owner)
                .execute(&mut *lease)
                .await?;
            lease.commit().await
        })
        .await
    }

    /// Forgets some of the runs whose time is over; how many.
    pub async fn forget_runs(&self, now: Timestamp) -> Result<u64, Error> {
        within(async {
            let mut lease = self.database().write().await?;
            let done = sqlx::query(
                "DELETE FROM runs WHERE (delivery_id, accepted_at, run) IN (\
                 SELECT delivery_id, accepted_at, run FROM runs \
                 WHERE until < $1 ORDER BY until LIMIT $2) AND until < $1",
            )
            .bind(time::write(now))
            .bind(STEP)
            .execute(&mut *lease)
            .await?;
            lease.commit().await?;
            Ok(done.rows_affected())
        })
        .await
    }
}

fn key(run: &Sending) -> Key<'_> {
    (
        run.delivery_id.as_str(),
        time::write(run.accepted_at),
        i64::from(run.run),
    )
}
