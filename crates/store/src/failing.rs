//! Endpoints that only fail: warned of, then left alone. Any number of recorders may judge the
//! same subscription at once; one of them acts.

use event::{
    Subscription, SubscriptionId,
    subscription::{
        SubscriptionState,
        disable::{DisableAfter, Run},
    },
};
use jiff::{SignedDuration, Timestamp};
use sqlx::AnyConnection;

use crate::{
    Error, Store,
    database::{Statement, within},
    log::health::{COLUMNS, Health, Row},
    notices::{self, Occasion},
    subscriptions, time,
};

/// What came of judging subscriptions that fail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// These are about to be disabled, which was not known before.
    pub warned: Vec<SubscriptionId>,
    /// These were disabled by this call.
    pub disabled: Vec<SubscriptionId>,
}

impl Store {
    /// Holds the runs of failures of these subscriptions against their `delivery.disable_after`:
    /// warns of those that have used up half of it, disables those that have used up all of it.
    pub async fn judge_failing(
        &self,
        ids: &[SubscriptionId],
        now: Timestamp,
    ) -> Result<Judged, Error> {
        let mut judged = Judged::default();
        for ids in ids.chunks(200) {
            let suspects = within(self.suspects(ids)).await?;
            for (id, run) in suspects {
                let done = within(self.act_on(&id, run, now)).await?;
                match (done, run) {
                    (true, Run::TooLong) => judged.disabled.push(id),
                    (true, _) => judged.warned.push(id),
                    (false, _) => {}
                }
            }
        }
        Ok(judged)
    }

    /// The subscriptions that fail at the moment, after `after`, in the order of their ids.
    pub async fn failing(
        &self,
        after: Option<&SubscriptionId>,
        limit: u32,
    ) -> Result<Vec<SubscriptionId>, Error> {
        within(async {
            let mut statement = Statement::new(
                "SELECT subscription_id, failures FROM subscription_health WHERE failures > 0",
            );
            if let Some(after) = after {
                statement
                    .text(" AND subscription_id > ")
                    .value(after.as_str())?;
            }
            statement
                .text(" ORDER BY subscription_id LIMIT ")
                .value(i64::from(limit))?;
            let rows: Vec<(String, i64)> = self.database().rows(statement).await?;
            rows.iter().map(|(id, _)| parsed(id)).collect()
        })
        .await
    }

    /// How many deliveries in a row have failed for a subscription, each counted once however
    /// often it was tried.
    pub async fn failures_in_a_row(&self, id: &SubscriptionId) -> Result<u64, Error> {
        within(async {
            let mut statement =
                Statement::new("SELECT failures FROM subscription_health WHERE subscription_id = ");
            statement.value(id.as_str())?;
            let row: Option<(i64,)> = self.database().row(statement).await?;
            Ok(row.map_or(0, |(failures,)| u64::try_from(failures).unwrap_or(0)))
        })
        .await
    }

    /// Of these, the ones to act on, by a look without a lock.
    async fn suspects(&self, ids: &[SubscriptionId]) -> Result<Vec<(SubscriptionId, Run)>, Error> {
        let texts: Vec<&str> = ids.iter().map(SubscriptionId::as_str).collect();
        let mut statement = Statement::new("SELECT ");
        statement
            .text(COLUMNS)
            .text(
                ", (SELECT document FROM subscriptions s WHERE s.id = subscription_id \
                 AND s.state = 'active') FROM subscription_health \
                 WHERE failures > 0 AND subscription_id IN (",
            )
            .list(&texts)?
            .text(")");
        type Suspect = (
            String,
            i64,
            Option<i64>,
            Option<i64>,
            Option<i64>,
            Option<i64>,
            i64,
            Option<String>,
        );
        let rows: Vec<Suspect> = self.database().rows(statement).await?;
        let mut suspects = Vec::new();
        for (id, a, b, c, d, e, f, document) in rows {
            let Some(document) = document else { continue };
            let health = Health::from((String::new(), a, b, c, d, e, f));
            let run = judge(&limit(&id, &document)?, &health);
            if run == Run::TooLong || (run == Run::Long && health.warned == 0) {
                suspects.push((parsed(&id)?, run));
            }
        }
        Ok(suspects)
    }

    /// Judges once more, alone with the subscription, and acts; false where nothing is left to do.
    async fn act_on(&self, id: &SubscriptionId, run: Run, now: Timestamp) -> Result<bool, Error> {
        let keys = self.keys();
        let mut lease = self.database().write().await?;
        // Whoever changes a subscription waits here, and so do other recorders.
        let revision = if run == Run::TooLong {
            Some(subscriptions::next_revision(&mut lease, &keys).await?)
        } else {
            None
        };
        let health = health(&mut lease, id).await?;
        let stored = subscriptions::find(&mut lease, id, &keys).await?;
        let stored = stored.filter(|s| s.subscription.state == SubscriptionState::Active);
        let (Some(health), Some(mut stored)) = (health, stored) else {
            lease.rollback().await?;
            return Ok(false);
        };
        let judged = judge(&stored.subscription.delivery.disable_after, &health);
        match (judged, revision) {
            (Run::TooLong, Some(revision)) => {
                let known = stored.subscription.revision;
                let reason = reason(&stored.subscription.delivery.disable_after, &health);
                disable(&mut stored.subscription, &reason, revision, now);
                subscriptions::update(&mut lease, &stored, known, &keys).await?;
                tell_disabled(&mut lease, &stored.subscription).await?;
            }
            (Run::Long | Run::TooLong, None) if health.warned == 0 => {
                sqlx::query("UPDATE subscription_health SET warned = 1 WHERE subscription_id = $1")
                    .bind(id.as_str())
                    .execute(&mut *lease)
                    .await?;
                let occasion = Occasion::Failing {
                    health: &health,
                    now: time::write(now),
                };
                let notice = notices::subscription(&occasion, &stored.subscription.tenant, id);
                notices::insert(&mut lease, &notice).await?;
            }
            _ => {
                lease.rollback().await?;
                return Ok(false);
            }
        }
        lease.commit().await?;
        Ok(true)
    }
}

/// Makes a subscription a disabled one.
pub(crate) fn disable(
    subscription: &mut Subscription,
    reason: &str,
    revision: u64,
    now: Timestamp,
) {
    subscription.state = SubscriptionState::Disabled;
    subscription.disabled_reason = Some(reason.to_owned());
    subscription.updated_at = now;
    subscription.revision = revision;
}

/// Tells of a subscription that has just been disabled.
pub(crate) async fn tell_disabled(
    connection: &mut AnyConnection,
    subscription: &Subscription,
) -> Result<(), Error> {
    let occasion = Occasion::Disabled {
        reason: subscription.disabled_reason.as_deref().unwrap_or_default(),
        revision: subscription.revision,
        now: time::write(subscription.updated_at),
    };
    let notice = notices::subscription(&occasion, &subscription.tenant, &subscription.id);
    notices::insert(connection, &notice).await
}

/// A run's health under the lock of its row.
async fn health(
    connection: &mut AnyConnection,
    id: &SubscriptionId,
) -> Result<Option<Health>, Error> {
    let row: Option<Row> = sqlx::query_as(
        "UPDATE subscription_health SET failures = failures WHERE subscription_id = $1 \
         RETURNING subscription_id, failures, failing_since, last_failure_at, last_success_at, \
         reset_at, warned",
    )
    .bind(id.as_str())
    .fetch_optional(connection)
    .await?;
    Ok(row.map(Health::from))
}

fn judge(limit: &DisableAfter, health: &Health) -> Run {
    let failures = u64::try_from(health.failures).unwrap_or(0);
    limit.judge(failures, lasted(health).unsigned_abs())
}

/// From the first failure of the run to the last.
fn lasted(health: &Health) -> SignedDuration {
    let between = health.last_failure_at.unwrap_or(0) - health.failing_since.unwrap_or(0);
    SignedDuration::from_nanos(between.max(0))
}

/// One sentence for people.
fn reason(limit: &DisableAfter, health: &Health) -> String {
    let since = health.failing_since.map(time::read).unwrap_or_default();
    let limit = serde_json::Value::from(*limit);
    let what = match health.failures {
        1 => "1 delivery, again and again,".to_owned(),
        count => format!("{count} deliveries in a row"),
    };
    format!("{what} failed since {since:.0}: delivery.disable_after is {limit}")
}

/// The limit in a stored document, without reading all of it.
fn limit(id: &str, document: &str) -> Result<DisableAfter, Error> {
    #[derive(serde::Deserialize)]
    struct Document {
        delivery: Delivery,
    }
    #[derive(serde::Deserialize)]
    struct Delivery {
        #[serde(default)]
        disable_after: DisableAfter,
    }
    let document: Document = serde_json::from_str(document)
        .map_err(|error| Error::Fatal(format!("subscription {id} cannot be read: {error}")))?;
    Ok(document.delivery.disable_after)
}

fn parsed(id: &str) -> Result<SubscriptionId, Error> {
    SubscriptionId::parse(id)
        .map_err(|error| Error::Fatal(format!("subscription {id} cannot be read: {error}")))
}
