//! How each endpoint's attempts go: failures in a row, and since when.

use std::collections::BTreeMap;

use event::{EventType, SubscriptionId, Tenant, delivery::Purpose, log::LogEntry};
use sqlx::AnyConnection;

use crate::{
    Error,
    notices::{self, Occasion},
    rows::Insert,
};

/// How old the last success on record may grow before another is worth a write.
const STALE: i64 = 60 * 1_000_000_000;

/// One attempt, as far as health is concerned.
pub(super) struct Turn<'a> {
    pub(super) subscription: &'a SubscriptionId,
    pub(super) tenant: &'a Tenant,
    pub(super) at: i64,
    pub(super) failed: bool,
    /// Whether it was the first of its delivery's run.
    pub(super) first: bool,
}

/// Whether an attempt tells of its endpoint's health. A test is somebody trying things out; and if
/// notices counted, a notice that fails would give rise to the next.
pub(super) fn counts(entry: &LogEntry) -> bool {
    entry.purpose != Purpose::Test && !is_notice(&entry.kind)
}

/// Whether an event of this type tells of other deliveries.
pub(crate) fn is_notice(kind: &EventType) -> bool {
    kind.entity() == "postrider" || kind.as_str() == "delivery.dead_lettered"
}

/// A run of failures, or that there is none. Times are as the database has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// Deliveries in a row that failed, each once however often it was tried: what a platform that
    /// tries once counts. At least 1 while anything fails.
    pub(crate) failures: i64,
    /// The first of them.
    pub(crate) failing_since: Option<i64>,
    pub(crate) last_failure_at: Option<i64>,
    pub(crate) last_success_at: Option<i64>,
    /// Attempts up to here no longer count.
    pub(crate) reset_at: Option<i64>,
    /// 1 once the warning of this run was given.
    pub(crate) warned: i64,
}

/// As [`COLUMNS`] says.
pub(crate) type Row = (
    String,
    i64,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    i64,
);

/// What is read of a row.
pub(crate) const COLUMNS: &str =
    "subscription_id, failures, failing_since, last_failure_at, last_success_at, reset_at, warned";

impl From<Row> for Health {
    fn from((_, failures, since, failure, success, reset_at, warned): Row) -> Self {
        Self {
            failures,
            failing_since: since,
            last_failure_at: failure,
            last_success_at: success,
            reset_at,
            warned,
        }
    }
}

impl Health {
    /// Takes one more attempt into account. They come roughly in order; what comes late may cut a
    /// run short, never lengthen one that has ended.
    fn take(&mut self, at: i64, failed: bool, first: bool) {
        if self.reset_at.is_some_and(|reset| at <= reset) {
            return;
        }
        if failed {
            if self.last_success_at.is_none_or(|success| success < at) {
                if first || self.failures == 0 {
                    self.failures += 1;
                }
                self.failing_since = Some(self.failing_since.map_or(at, |since| since.min(at)));
                self.last_failure_at = Some(self.last_failure_at.map_or(at, |last| last.max(at)));
            }
            return;
        }
        self.last_success_at = Some(self.last_success_at.map_or(at, |last| last.max(at)));
        let (Some(since), Some(last)) = (self.failing_since, self.last_failure_at) else {
            return;
        };
        if last <= at {
            self.failures = 0;
            self.failing_since = None;
        } else if since <= at {
            // In the midst of the run: how many failures came after it is not known, but one did.
            self.failures = 1;
            self.failing_since = Some(last);
        }
    }
}

/// The attempts of one subscription, oldest first.
struct Turns<'a> {
    subscription: &'a SubscriptionId,
    tenant: &'a Tenant,
    /// When, whether it failed, and whether it was the first of its run.
    turns: Vec<(i64, bool, bool)>,
}

impl Turns<'_> {
    /// Whether they change anything worth a write: nearly every batch of a healthy endpoint
    /// changes nothing but the time of its last success.
    fn matter_to(&self, health: Option<&Health>) -> bool {
        let Some(health) = health else { return true };
        let last = self.turns.last().map_or(i64::MIN, |(at, ..)| *at);
        health.failures > 0
            || self.turns.iter().any(|(_, failed, _)| *failed)
            || health
                .last_success_at
                .is_none_or(|known| known + STALE < last)
    }
}

/// Brings the health of every subscription that had turns up to date, and tells of those that
/// recovered; the ones that fail.
pub(super) async fn advance(
    connection: &mut AnyConnection,
    turns: Vec<Turn<'_>>,
) -> Result<Vec<SubscriptionId>, Error> {
    let mut all: BTreeMap<&str, Turns<'_>> = BTreeMap::new();
    for turn in turns {
        let of_one = all.entry(turn.subscription.as_str()).or_insert(Turns {
            subscription: turn.subscription,
            tenant: turn.tenant,
            turns: Vec::new(),
        });
        of_one.turns.push((turn.at, turn.failed, turn.first));
    }
    for of_one in all.values_mut() {
        of_one.turns.sort_unstable();
    }
    let known = known(connection, all.keys().copied().collect()).await?;
    let changing: Vec<&Turns<'_>> = all
        .values()
        .filter(|of_one| of_one.matter_to(known.get(of_one.subscription.as_str())))
        .collect();
    let mut healths = lock(connection, &changing).await?;
    let mut recovered = Vec::new();
    let mut failing = Vec::new();
    for of_one in &changing {
        let health = healths
            .entry(of_one.subscription.as_str().to_owned())
            .or_default();
        for (at, failed, first) in &of_one.turns {
            health.take(*at, *failed, *first);
        }
        if health.failures == 0 && health.warned != 0 {
            health.warned = 0;
            recovered.push((*of_one, health.last_success_at.unwrap_or(0)));
        }
        if health.failures > 0 && of_one.turns.iter().any(|(_, failed, _)| *failed) {
            failing.push(of_one.subscription.clone());
        }
    }
    save(connection, &healths).await?;
    for (of_one, at) in recovered {
        let notice = notices::subscription(
            &Occasion::Recovered { at },
            of_one.tenant,
            of_one.subscription,
        );
        notices::insert(connection, &notice).await?;
    }
    Ok(failing)
}

/// What is on record of these subscriptions.
async fn known(
    connection: &mut AnyConnection,
    ids: Vec<&str>,
) -> Result<BTreeMap<String, Health>, Error> {
    let mut healths = BTreeMap::new();
    for ids in ids.chunks(200) {
        let mut statement = crate::database::Statement::new("SELECT ");
        statement
            .text(COLUMNS)
            .text(" FROM subscription_health WHERE subscription_id IN (")
            .list(ids)?
            .text(")");
        let (sql, arguments) = statement.parts();
        let rows: Vec<Row> = sqlx::query_as_with(sql, arguments)
            .fetch_all(&mut *connection)
            .await?;
        healths.extend(rows.into_iter().map(|row| (row.0.clone(), row.into())));
    }
    Ok(healths)
}

/// Makes the rows that are missing and takes the lock of each, in the order of their ids; as they
/// are now.
async fn lock(
    connection: &mut AnyConnection,
    changing: &[&Turns<'_>],
) -> Result<BTreeMap<String, Health>, Error> {
    use sqlx::FromRow;
    let insert = Insert {
        head: "INSERT INTO subscription_health (subscription_id, failures, warned) VALUES ",
        columns: 3,
        tail: " ON CONFLICT (subscription_id) DO UPDATE SET failures = subscription_health.failures \
               RETURNING subscription_id, failures, failing_since, last_failure_at, \
               last_success_at, reset_at, warned",
    };
    let rows = insert
        .run_returning(connection, changing, |of_one, values| {
            values.add(of_one.subscription.as_str())?;
            values.add(0_i64)?;
            values.add(0_i64)
        })
        .await?;
    let read = |row: &sqlx::any::AnyRow| {
        let row = Row::from_row(row)?;
        Ok((row.0.clone(), row.into()))
    };
    rows.iter().map(read).collect()
}

async fn save(
    connection: &mut AnyConnection,
    healths: &BTreeMap<String, Health>,
) -> Result<(), Error> {
    let insert = Insert {
        head: "INSERT INTO subscription_health (subscription_id, failures, failing_since, \
               last_failure_at, last_success_at, warned) VALUES ",
        columns: 6,
        tail: " ON CONFLICT (subscription_id) DO UPDATE SET failures = excluded.failures, \
               failing_since = excluded.failing_since, \
               last_failure_at = excluded.last_failure_at, \
               last_success_at = excluded.last_success_at, warned = excluded.warned",
    };
    let rows: Vec<_> = healths.iter().collect();
    insert
        .run(connection, &rows, |(id, health), values| {
            values.add(id.as_str())?;
            values.add(health.failures)?;
            values.add(health.failing_since)?;
            values.add(health.last_failure_at)?;
            values.add(health.last_success_at)?;
            values.add(health.warned)
        })
        .await
        .map(drop)
}

/// Begins every count anew, because somebody changed or resumed the subscription: attempts from
/// before no longer count.
pub(crate) async fn reset(
    connection: &mut AnyConnection,
    id: &SubscriptionId,
    now: i64,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO subscription_health (subscription_id, failures, reset_at, warned) \
         VALUES ($1, 0, $2, 0) ON CONFLICT (subscription_id) DO UPDATE SET failures = 0, \
         failing_since = NULL, reset_at = excluded.reset_at, warned = 0",
    )
    .bind(id.as_str())
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(turns: &[(i64, bool)]) -> Health {
        let mut health = Health::default();
        for (at, failed) in turns {
            health.take(*at, *failed, true);
        }
        health
    }

    fn run(health: Health) -> (i64, Option<i64>) {
        (health.failures, health.failing_since)
    }

    const BAD: bool = true;
    const GOOD: bool = false;

    #[test]
    fn failures_in_a_row_are_counted_from_the_first() {
        assert_eq!(run(after(&[])), (0, None));
        assert_eq!(run(after(&[(5, BAD), (6, BAD), (9, BAD)])), (3, Some(5)));
        assert_eq!(run(after(&[(5, BAD), (6, GOOD)])), (0, None));
        assert_eq!(run(after(&[(5, BAD), (6, GOOD), (7, BAD)])), (1, Some(7)));
    }

    #[test]
    fn what_comes_late_cuts_a_run_short_and_lengthens_none_that_ended() {
        // A failure before the last success.
        assert_eq!(run(after(&[(6, GOOD), (5, BAD)])), (0, None));
        // A success before the run, in its midst, and after it.
        assert_eq!(run(after(&[(5, BAD), (7, BAD), (4, GOOD)])), (2, Some(5)));
        assert_eq!(run(after(&[(5, BAD), (7, BAD), (6, GOOD)])), (1, Some(7)));
        assert_eq!(run(after(&[(5, BAD), (7, BAD), (8, GOOD)])), (0, None));
        // A failure earlier than the first known one.
        assert_eq!(run(after(&[(5, BAD), (4, BAD)])), (2, Some(4)));
    }

    #[test]
    fn a_delivery_counts_once_however_often_it_is_tried() {
        let mut health = after(&[(5, BAD)]);
        for at in 6..16 {
            health.take(at, BAD, false);
        }
        assert_eq!(run(health), (1, Some(5)));
        assert_eq!(health.last_failure_at, Some(15), "but it goes on failing");
        health.take(16, BAD, true);
        assert_eq!(run(health), (2, Some(5)));
        // Of one whose first attempt was before the count began.
        let mut health = Health::default();
        health.take(5, BAD, false);
        assert_eq!(run(health), (1, Some(5)));
    }

    #[test]
    fn attempts_before_a_reset_do_not_count() {
        let mut health = Health {
            reset_at: Some(10),
            ..Health::default()
        };
        health.take(10, BAD, true);
        health.take(9, GOOD, true);
        assert_eq!((run(health), health.last_success_at), ((0, None), None));
        health.take(11, BAD, true);
        assert_eq!(run(health), (1, Some(11)));
    }

    #[test]
    fn notices_are_told_from_everything_else() {
        for (kind, notice) in [
            ("postrider.subscription_failing", true),
            ("delivery.dead_lettered", true),
            ("delivery.sent", false),
            ("appointment.created", false),
        ] {
            assert_eq!(
                is_notice(&EventType::parse(kind).unwrap()),
                notice,
                "{kind}"
            );
        }
    }
}
