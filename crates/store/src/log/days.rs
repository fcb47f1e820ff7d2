//! The partitions of PostgreSQL, one for each day and table: made before they are needed, and on
//! demand, because a redrive may bring a day that is long past. SQLite has none.

use sqlx::AssertSqlSafe;

use crate::{
    Error,
    database::{Database, within},
};

/// The tables that are divided by day.
pub(crate) const TABLES: [&str; 4] = ["events", "event_subjects", "deliveries", "attempts"];

/// One at a time makes and drops partitions: any number that nobody else takes.
pub(crate) const LOCK: &str =
    "SET LOCAL lock_timeout = '3s'; SELECT pg_advisory_xact_lock(5771460110320915);";

impl Database {
    /// Makes sure that each of these days has a place to lie in.
    pub(crate) async fn make_days(&self, mut days: Vec<i64>) -> Result<(), Error> {
        if self.is_sqlite() {
            return Ok(());
        }
        {
            let known = self.days();
            days.retain(|day| !known.contains(day));
        }
        for day in days {
            within(self.make_day(day)).await?;
            self.days().insert(day);
        }
        Ok(())
    }

    async fn make_day(&self, day: i64) -> Result<(), Error> {
        let mut lease = self.write().await?;
        sqlx::raw_sql(LOCK).execute(&mut *lease).await?;
        for table in TABLES {
            let part = part(table, day);
            let known: Option<(i64,)> =
                sqlx::query_as("SELECT 1::bigint FROM pg_class WHERE oid = to_regclass($1)")
                    .bind(&part)
                    .fetch_optional(&mut *lease)
                    .await?;
            if known.is_some() {
                continue;
            }
            // Made beside and then attached: that holds up neither readers nor writers.
            let next = day + 1;
            let sql = format!(
                "CREATE TABLE {part} (LIKE {table} INCLUDING ALL, CHECK (day >= {day} AND day < {next})); \
                 ALTER TABLE {table} ATTACH PARTITION {part} FOR VALUES FROM ({day}) TO ({next}); \
                 ALTER TABLE {part} DROP CONSTRAINT {part}_day_check"
            );
            sqlx::raw_sql(AssertSqlSafe(sql))
                .execute(&mut *lease)
                .await?;
        }
        lease.commit().await
    }

    /// Forgets which days are there, so that they are looked for again.
    pub(crate) fn forget_days(&self) {
        self.days().clear();
    }
}

/// The partition of a table for a day.
pub(crate) fn part(table: &str, day: i64) -> String {
    // A day before 1970 has a name too.
    if day < 0 {
        format!("{table}_m{}", -day)
    } else {
        format!("{table}_d{day}")
    }
}

/// The day that a partition of a table is of, by its name.
pub(crate) fn day_in(table: &str, name: &str) -> Option<i64> {
    let rest = name.strip_prefix(table)?;
    match rest.strip_prefix("_m") {
        Some(day) => day.parse::<i64>().ok().map(|day| -day),
        None => rest.strip_prefix("_d")?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_names_its_day() {
        for day in [0, 20_513, -1, -106_751] {
            assert_eq!(day_in("events", &part("events", day)), Some(day));
        }
        for name in ["events", "events_default", "event_subjects_d1", "events_dx"] {
            assert_eq!(day_in("events", name), None, "{name}");
        }
    }
}
