//! What is told of deliveries, as events of the tenant: written in the transaction that gave the
//! occasion, deleted once the broker has it. The id is made of the occasion, so that a notice that
//! is published twice is one event.

use event::{Event, SubscriptionId, Tenant, delivery::DeadLetter};
use jiff::Timestamp;
use serde_json::json;
use sqlx::AnyConnection;

use crate::{
    Error, Store,
    database::{Statement, within},
    log::health::Health,
    time,
};

/// An event that is still to be published.
#[derive(Debug, Clone)]
pub struct Notice {
    /// The event's id.
    pub id: String,
    /// Whose it is.
    pub tenant: Tenant,
    /// The event's type.
    pub kind: String,
    /// The event, as published.
    pub body: String,
}

/// What there is to tell of a subscription.
#[derive(Debug)]
pub(crate) enum Occasion<'a> {
    /// Half of its limit is used up.
    Failing { health: &'a Health, now: i64 },
    /// It was disabled, at a revision.
    Disabled {
        reason: &'a str,
        revision: u64,
        now: i64,
    },
    /// It succeeds again, after a warning.
    Recovered { at: i64 },
    /// Its deliveries go to another host from now on.
    Moved {
        from: &'a str,
        to: &'a str,
        revision: u64,
        now: i64,
    },
}

/// The notice of what happened to a subscription.
pub(crate) fn subscription(
    occasion: &Occasion<'_>,
    tenant: &Tenant,
    id: &SubscriptionId,
) -> Notice {
    let at = |at: Option<i64>| at.map(time::read);
    let (kind, mark, now, data) = match occasion {
        Occasion::Failing { health, now } => (
            "postrider.subscription_failing",
            health.failing_since.unwrap_or(0).to_string(),
            *now,
            json!({
                "subscription_id": id,
                "failures": health.failures,
                "failing_since": at(health.failing_since),
                "last_failure_at": at(health.last_failure_at),
                "last_success_at": at(health.last_success_at),
            }),
        ),
        Occasion::Disabled {
            reason,
            revision,
            now,
        } => (
            "postrider.subscription_disabled",
            revision.to_string(),
            *now,
            json!({ "subscription_id": id, "reason": reason }),
        ),
        Occasion::Recovered { at } => (
            "postrider.subscription_recovered",
            at.to_string(),
            *at,
            json!({ "subscription_id": id }),
        ),
        Occasion::Moved {
            from,
            to,
            revision,
            now,
        } => (
            "postrider.subscription_moved",
            revision.to_string(),
            *now,
            json!({ "subscription_id": id, "from": from, "to": to }),
        ),
    };
    notice(tenant, kind, &[id.as_str(), &mark], now, id.as_str(), &data)
}

/// The notice of a dead letter.
fn dead(letter: &DeadLetter) -> Notice {
    let data = json!({
        "id": letter.id,
        "delivery_id": letter.delivery_id,
        "event_id": letter.event_id,
        "subscription_id": letter.subscription_id,
        "type": letter.kind,
        "reason": letter.reason,
        "detail": letter.detail,
        "attempts": letter.attempts,
        "run": letter.run,
        "accepted_at": letter.accepted_at,
        "died_at": letter.died_at,
    });
    let at = time::write(letter.died_at);
    let id = letter.id.as_str();
    notice(
        &letter.tenant,
        "delivery.dead_lettered",
        &[id],
        at,
        id,
        &data,
    )
}

fn notice(
    tenant: &Tenant,
    kind: &str,
    parts: &[&str],
    at: i64,
    subject: &str,
    data: &serde_json::Value,
) -> Notice {
    let mut hasher = blake3::Hasher::new();
    for part in [tenant.as_str(), kind].iter().chain(parts) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let id = format!("ntc_{}", &hasher.finalize().to_hex()[..32]);
    let body = json!({
        "id": id,
        "tenant": tenant,
        "type": kind,
        "time": time::read(at),
        "subject": subject,
        "data": data,
    });
    Notice {
        id,
        tenant: tenant.clone(),
        kind: kind.to_owned(),
        body: body.to_string(),
    }
}

impl Notice {
    /// The notice as the event it will be, for matching.
    pub fn event(&self) -> Result<Event, Error> {
        serde_json::from_str(&self.body)
            .map_err(|error| Error::Fatal(format!("notice {} cannot be read: {error}", self.id)))
    }
}

/// Keeps a notice until it is published.
pub(crate) async fn insert(connection: &mut AnyConnection, notice: &Notice) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO notices (id, tenant, kind, created_at, document) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(&notice.id)
    .bind(notice.tenant.as_str())
    .bind(&notice.kind)
    .bind(time::write(Timestamp::now()))
    .bind(&notice.body)
    .execute(connection)
    .await?;
    Ok(())
}

/// Keeps the notice of a dead letter.
pub(crate) async fn insert_dead(
    connection: &mut AnyConnection,
    letter: &DeadLetter,
) -> Result<(), Error> {
    insert(connection, &dead(letter)).await
}

impl Store {
    /// The oldest notices that are still to be published.
    pub async fn notices(&self, limit: u32) -> Result<Vec<Notice>, Error> {
        within(async {
            let mut statement = Statement::new(
                "SELECT id, tenant, kind, document FROM notices ORDER BY created_at, id LIMIT ",
            );
            statement.value(i64::from(limit))?;
            let rows: Vec<(String, String, String, String)> =
                self.database().rows(statement).await?;
            let read = |(id, tenant, kind, body): (String, String, String, String)| {
                let tenant = Tenant::parse(&tenant).map_err(|error| {
                    Error::Fatal(format!("notice {id} cannot be read: {error}"))
                })?;
                Ok(Notice {
                    id,
                    tenant,
                    kind,
                    body,
                })
            };
            rows.into_iter().map(read).collect()
        })
        .await
    }

    /// Forgets notices that the broker has, or that nobody listens to.
    pub async fn forget_notices(&self, ids: &[&str]) -> Result<(), Error> {
        for ids in ids.chunks(200) {
            within(async {
                let mut statement = Statement::new("DELETE FROM notices WHERE id IN (");
                statement.list(ids)?.text(")");
                let (sql, arguments) = statement.parts();
                let mut lease = self.database().write().await?;
                sqlx::query_with(sql, arguments)
                    .execute(&mut *lease)
                    .await?;
                lease.commit().await
            })
            .await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_an_event_whose_id_is_made_of_its_occasion() {
        let (tenant, id) = (
            Tenant::parse("a").unwrap(),
            SubscriptionId::parse("sub_1").unwrap(),
        );
        let at = |at| subscription(&Occasion::Recovered { at }, &tenant, &id);
        assert_eq!(at(5).id, at(5).id);
        assert_eq!(at(5).body, at(5).body);
        assert_ne!(at(5).id, at(6).id);
        let event = at(5).event().unwrap();
        assert_eq!(event.kind.as_str(), "postrider.subscription_recovered");
        assert_eq!(event.tenant, tenant);
    }
}
