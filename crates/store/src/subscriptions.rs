//! Subscriptions, their revision, and what changed since one.
//!
//! The revision is one counter for all: a change takes the next number under the lock of the row
//! that holds it and keeps the lock until it commits. So numbers become visible in their order,
//! and whoever has seen one has missed none before it.

use std::collections::BTreeMap;

use event::{
    Subscription, SubscriptionId, Tenant,
    secret::{LiveKey, SigningKey, SigningKeys},
    subscription::SubscriptionState,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::AnyConnection;

use crate::{
    Change, Changes, Error, Page, Paging, Sight, Store, Stored,
    crypt::Owner,
    cursor::{Cursor, Wanted},
    database::{Statement, within},
    failing,
    keyring::{Keys, unreadable},
    log::health,
    notices::{self, Occasion},
    time,
};

/// How many changes one call brings.
const CHANGES_MAX: i64 = 2000;

const COLUMNS: &str = "SELECT id, tenant, state, revision, created, document, secrets, key_id \
                       FROM subscriptions WHERE state <> 'deleted'";

/// As [`COLUMNS`] selects.
type Row = (String, String, String, i64, i64, String, Vec<u8>, String);

/// What is encrypted.
#[derive(Serialize, Deserialize)]
struct Secrets {
    headers: BTreeMap<String, String>,
    keys: Vec<SecretKey>,
}

#[derive(Serialize, Deserialize)]
struct SecretKey {
    text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

/// Which database it is and how far it has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) identity: String,
    pub(crate) revision: u64,
    pub(crate) key_id: String,
}

/// Where a subscription's deliveries go to another host, its tenant is told, and so is the log:
/// whoever did not mean that has lost a token.
async fn tell_moved(
    connection: &mut AnyConnection,
    before: &Subscription,
    after: &Subscription,
) -> Result<(), Error> {
    let (Some(from), Some(to)) = (before.target_host(), after.target_host()) else {
        return Ok(());
    };
    if from == to {
        return Ok(());
    }
    tracing::info!(
        subscription_id = %after.id, tenant = %after.tenant, revision = after.revision, from, to,
        "a subscription goes to another host"
    );
    let occasion = Occasion::Moved {
        from: &from,
        to: &to,
        revision: after.revision,
        now: time::write(after.updated_at),
    };
    let notice = notices::subscription(&occasion, &after.tenant, &after.id);
    notices::insert(connection, &notice).await
}

impl Store {
    /// Inserts a new subscription; returns it with its revision set.
    pub async fn insert_subscription(&self, mut stored: Stored) -> Result<Stored, Error> {
        within(async {
            let keys = self.keys();
            let mut lease = self.database().write().await?;
            stored.subscription.revision = next_revision(&mut lease, &keys).await?;
            insert(&mut lease, &stored, &keys).await?;
            lease.commit().await?;
            Ok(stored)
        })
        .await
    }

    /// Decides about all of a tenant's subscriptions with one target at once: between what `decide`
    /// is shown and what becomes of its wishes nobody changes any subscription, in no process.
    /// Returns whether anything changed. `decide` must be quick: it holds up every other change.
    pub async fn settle_target(
        &self,
        tenant: &Tenant,
        target_url: &str,
        decide: impl FnOnce(Vec<Stored>) -> Vec<Change>,
    ) -> Result<bool, Error> {
        within(async {
            let keys = self.keys();
            let sight = Sight::Only(tenant.clone());
            let mut lease = self.database().write().await?;
            // The counter's row stays locked from here on; each change takes a number of its own.
            let mut revision = next_revision(&mut lease, &keys).await?;
            let found = with_target(&mut lease, &sight, target_url, &keys).await?;
            let changes = decide(found);
            let changed = !changes.is_empty();
            for (n, change) in changes.into_iter().enumerate() {
                if n > 0 {
                    revision = next_revision(&mut lease, &keys).await?;
                }
                match change {
                    Change::Insert(mut stored) => {
                        stored.subscription.revision = revision;
                        insert(&mut lease, &stored, &keys).await?;
                    }
                    Change::Replace(mut stored) => {
                        let known = stored.subscription.revision;
                        stored.subscription.revision = revision;
                        update(&mut lease, &stored, known, &keys).await?;
                    }
                    Change::Delete(id) => {
                        bury(&mut lease, &sight, &id, revision).await?;
                    }
                }
            }
            if changed {
                lease.commit().await?;
            } else {
                lease.rollback().await?;
            }
            Ok(changed)
        })
        .await
    }

    /// One subscription.
    pub async fn subscription(
        &self,
        sight: &Sight,
        id: &SubscriptionId,
    ) -> Result<Option<Stored>, Error> {
        within(async {
            let mut lease = self.database().read().await?;
            let row = one(&mut lease, sight, id).await?;
            lease.release();
            row.map(|row| read(row, &self.keys())).transpose()
        })
        .await
    }

    /// A page of subscriptions, optionally of one tenant (for callers that see all) or state.
    pub async fn subscriptions(
        &self,
        sight: &Sight,
        state: Option<SubscriptionState>,
        paging: &Paging,
    ) -> Result<Page<Stored>, Error> {
        let wanted = Wanted::new("subscriptions", paging)?;
        within(async {
            let mut statement = Statement::new(COLUMNS);
            statement.sight(sight)?;
            if let Some(state) = state {
                statement.text(" AND state = ").value(state_word(state))?;
            }
            if let Some(after) = &wanted.after {
                statement.text(" AND created > ").value(after.at)?;
            }
            statement
                .text(" ORDER BY created LIMIT ")
                .value(wanted.fetch())?;
            let rows: Vec<Row> = self.database().rows(statement).await?;
            let keys = self.keys();
            let place = |row: &Row| Cursor {
                at: row.4,
                id: String::new(),
            };
            wanted.page(rows, place, |row| read(row, &keys))
        })
        .await
    }

    /// Replaces a subscription if its stored revision still is `stored.subscription.revision`;
    /// returns it with its new revision, or `None` when it changed or went meanwhile.
    pub async fn replace_subscription(&self, mut stored: Stored) -> Result<Option<Stored>, Error> {
        within(async {
            let keys = self.keys();
            let known = stored.subscription.revision;
            let mut lease = self.database().write().await?;
            stored.subscription.revision = next_revision(&mut lease, &keys).await?;
            let before = find(&mut lease, &stored.subscription.id, &keys).await?;
            if !update(&mut lease, &stored, known, &keys).await? {
                lease.rollback().await?;
                return Ok(None);
            }
            if let Some(before) = before {
                tell_moved(&mut lease, &before.subscription, &stored.subscription).await?;
            }
            lease.commit().await?;
            Ok(Some(stored))
        })
        .await
    }

    /// Deletes a subscription; false when there was none in sight. What is left is a tombstone
    /// without document and secrets, which tells the feed.
    pub async fn delete_subscription(
        &self,
        sight: &Sight,
        id: &SubscriptionId,
    ) -> Result<bool, Error> {
        within(async {
            let mut lease = self.database().write().await?;
            let revision = next_revision(&mut lease, &self.keys()).await?;
            if !bury(&mut lease, sight, id, revision).await? {
                lease.rollback().await?;
                return Ok(false);
            }
            lease.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Disables an active subscription with a reason (410, failures); idempotent.
    pub async fn disable_subscription(
        &self,
        id: &SubscriptionId,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        within(async {
            let keys = self.keys();
            let mut lease = self.database().write().await?;
            let revision = next_revision(&mut lease, &keys).await?;
            let stored = find(&mut lease, id, &keys).await?;
            let active = stored.filter(|s| s.subscription.state == SubscriptionState::Active);
            let Some(mut stored) = active else {
                return lease.rollback().await;
            };
            let known = stored.subscription.revision;
            failing::disable(&mut stored.subscription, reason, revision, now);
            update(&mut lease, &stored, known, &keys).await?;
            failing::tell_disabled(&mut lease, &stored.subscription).await?;
            lease.commit().await
        })
        .await
    }

    /// Everything that changed after `since`, in at most a few thousand rows a call: call again
    /// from the returned revision until it no longer grows.
    pub async fn changes(&self, since: u64) -> Result<Changes, Error> {
        let rows: Vec<Row> = within(async {
            let mut lease = self.database().read().await?;
            let rows = sqlx::query_as(
                "SELECT id, tenant, state, revision, created, document, secrets, key_id \
                 FROM subscriptions WHERE revision > $1 ORDER BY revision LIMIT $2",
            )
            .bind(signed(since))
            .bind(CHANGES_MAX)
            .fetch_all(&mut *lease)
            .await?;
            lease.release();
            Ok(rows)
        })
        .await?;
        // Outside the database's time limit: a busy machine must not look like a store away.
        let keys = self.keys();
        let mut changes = Changes {
            revision: since,
            ..Changes::default()
        };
        for row in rows {
            changes.revision = unsigned(row.3);
            if row.2 == "deleted" {
                changes.deleted.push(id(&row.0)?);
            } else {
                changes.stored.push(read(row, &keys)?);
            }
            // Reading a full page takes a while, and others want this thread too.
            if changes.stored.len().is_multiple_of(64) {
                tokio::task::yield_now().await;
            }
        }
        Ok(changes)
    }

    /// Which database it is and how far it has changed: one row, read every second by everyone.
    pub(crate) async fn head(&self) -> Result<Head, Error> {
        within(async {
            let mut lease = self.database().read().await?;
            let row: Option<(String, i64, String)> =
                sqlx::query_as("SELECT identity, revision, key_id FROM head")
                    .fetch_optional(&mut *lease)
                    .await?;
            lease.release();
            let (identity, revision, key_id) =
                row.ok_or_else(|| Error::Fatal("the store's database was emptied".into()))?;
            Ok(Head {
                identity,
                revision: unsigned(revision),
                key_id,
            })
        })
        .await
    }
}

/// Takes the counter's lock until the transaction ends. Fails when the store was encrypted anew
/// since this process opened it: what it would write, nobody else could read.
pub(crate) async fn next_revision(
    connection: &mut AnyConnection,
    keys: &Keys,
) -> Result<u64, Error> {
    let row: Option<(i64,)> = sqlx::query_as(
        "UPDATE head SET revision = revision + 1 WHERE one = 1 AND key_id = $1 RETURNING revision",
    )
    .bind(keys.key.id())
    .fetch_optional(connection)
    .await?;
    row.map(|(revision,)| unsigned(revision))
        .ok_or_else(other_key)
}

/// One subscription, whoever's it is.
pub(crate) async fn find(
    connection: &mut AnyConnection,
    id: &SubscriptionId,
    keys: &Keys,
) -> Result<Option<Stored>, Error> {
    let row = one(connection, &Sight::All, id).await?;
    row.map(|row| read(row, keys)).transpose()
}

async fn one(
    connection: &mut AnyConnection,
    sight: &Sight,
    id: &SubscriptionId,
) -> Result<Option<Row>, Error> {
    let mut statement = Statement::new(COLUMNS);
    statement
        .text(" AND id = ")
        .value(id.as_str())?
        .sight(sight)?;
    let (sql, arguments) = statement.parts();
    Ok(sqlx::query_as_with(sql, arguments)
        .fetch_optional(connection)
        .await?)
}

/// Everything in sight with this target.
async fn with_target(
    connection: &mut AnyConnection,
    sight: &Sight,
    target_url: &str,
    keys: &Keys,
) -> Result<Vec<Stored>, Error> {
    let mut statement = Statement::new(COLUMNS);
    statement.sight(sight)?;
    // The document is ours and says it so; whose pattern is too wide is sorted out below.
    let named = format!("\"target_url\":{}", serde_json::Value::from(target_url));
    let named = named
        .replace('\\', r"\\")
        .replace('%', r"\%")
        .replace('_', r"\_");
    statement
        .text(" AND document LIKE ")
        .value(format!("%{named}%").as_str())?
        .text(r" ESCAPE '\' ORDER BY created");
    let (sql, arguments) = statement.parts();
    let rows: Vec<Row> = sqlx::query_as_with(sql, arguments)
        .fetch_all(connection)
        .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let stored = read(row, keys)?;
        if stored.subscription.target_url == target_url {
            found.push(stored);
        }
    }
    Ok(found)
}

pub(crate) async fn insert(
    connection: &mut AnyConnection,
    stored: &Stored,
    keys: &Keys,
) -> Result<(), Error> {
    let (document, secrets) = write(stored, keys)?;
    let subscription = &stored.subscription;
    sqlx::query(
        "INSERT INTO subscriptions \
         (id, tenant, state, revision, created, document, secrets, key_id) \
         VALUES ($1, $2, $3, $4, $4, $5, $6, $7)",
    )
    .bind(subscription.id.as_str())
    .bind(subscription.tenant.as_str())
    .bind(state_word(subscription.state))
    .bind(signed(subscription.revision))
    .bind(document)
    .bind(secrets)
    .bind(keys.key.id())
    .execute(connection)
    .await?;
    Ok(())
}

/// Leaves a tombstone; false when there was nothing in sight.
pub(crate) async fn bury(
    connection: &mut AnyConnection,
    sight: &Sight,
    id: &SubscriptionId,
    revision: u64,
) -> Result<bool, Error> {
    let mut statement = Statement::new("UPDATE subscriptions SET revision = ");
    statement
        .value(signed(revision))?
        .text(", secrets = ")
        .value(Vec::new())?
        .text(", state = 'deleted', document = '' WHERE state <> 'deleted' AND id = ")
        .value(id.as_str())?
        .sight(sight)?;
    let (sql, arguments) = statement.parts();
    let done = sqlx::query_with(sql, arguments).execute(connection).await?;
    Ok(done.rows_affected() > 0)
}

/// Replaces a subscription of this revision; false where it has another by now. Whatever changed,
/// its endpoint gets a new start.
pub(crate) async fn update(
    connection: &mut AnyConnection,
    stored: &Stored,
    known: u64,
    keys: &Keys,
) -> Result<bool, Error> {
    let (document, secrets) = write(stored, keys)?;
    let subscription = &stored.subscription;
    let done = sqlx::query(
        "UPDATE subscriptions SET state = $1, revision = $2, document = $3, secrets = $4, \
         key_id = $5 WHERE id = $6 AND tenant = $7 AND revision = $8 AND state <> 'deleted'",
    )
    .bind(state_word(subscription.state))
    .bind(signed(subscription.revision))
    .bind(document)
    .bind(secrets)
    .bind(keys.key.id())
    .bind(subscription.id.as_str())
    .bind(subscription.tenant.as_str())
    .bind(signed(known))
    .execute(&mut *connection)
    .await?;
    if done.rows_affected() != 1 {
        return Ok(false);
    }
    health::reset(
        connection,
        &subscription.id,
        time::write(subscription.updated_at),
    )
    .await?;
    Ok(true)
}

/// The document and the encrypted rest.
fn write(stored: &Stored, keys: &Keys) -> Result<(String, Vec<u8>), Error> {
    let mut bare = stored.subscription.clone();
    let headers = std::mem::take(&mut bare.headers);
    let key = |live: &LiveKey| SecretKey {
        text: live.key.expose_text(),
        expires_at: live.expires_at,
    };
    let secrets = Secrets {
        headers,
        keys: stored.keys.0.iter().map(key).collect(),
    };
    let broken = |error| Error::Fatal(format!("a subscription cannot be written: {error}"));
    let document = serde_json::to_string(&bare).map_err(broken)?;
    let plain = serde_json::to_vec(&secrets).map_err(broken)?;
    let owner = Owner::Subscription {
        tenant: bare.tenant.as_str(),
        id: bare.id.as_str(),
    };
    Ok((document, keys.key.seal(&owner, &plain)?))
}

fn read(row: Row, keys: &Keys) -> Result<Stored, Error> {
    let (id, tenant, _, revision, _, document, sealed, key_id) = row;
    if key_id != keys.key.id() {
        return Err(other_key());
    }
    let broken = |error| Error::Fatal(format!("subscription {id} cannot be read: {error}"));
    let owner = Owner::Subscription {
        tenant: &tenant,
        id: &id,
    };
    let plain = keys
        .key
        .open(&owner, &sealed)
        .ok_or_else(|| unreadable(&id))?;
    let secrets: Secrets = serde_json::from_slice(&plain).map_err(broken)?;
    let mut subscription: Subscription = serde_json::from_str(&document).map_err(broken)?;
    // The columns decide; the document could only lag behind them.
    subscription.tenant = Tenant::parse(&tenant)
        .map_err(|error| Error::Fatal(format!("subscription {id} cannot be read: {error}")))?;
    subscription.revision = unsigned(revision);
    subscription.headers = secrets.headers;
    let keys = secrets.keys.into_iter().map(|kept| {
        let key = SigningKey::parse(&kept.text)
            .map_err(|error| Error::Fatal(format!("subscription {id} cannot be read: {error}")))?;
        Ok(LiveKey {
            key,
            expires_at: kept.expires_at,
        })
    });
    let keys = SigningKeys(keys.collect::<Result<_, Error>>()?);
    Ok(Stored { subscription, keys })
}

fn id(text: &str) -> Result<SubscriptionId, Error> {
    SubscriptionId::parse(text)
        .map_err(|error| Error::Fatal(format!("subscription {text} cannot be read: {error}")))
}

fn other_key() -> Error {
    Error::Fatal(
        "the store was encrypted with another key since this process opened it; set \
         store.encryption_key and restart"
            .into(),
    )
}

const fn state_word(state: SubscriptionState) -> &'static str {
    match state {
        SubscriptionState::Active => "active",
        SubscriptionState::Paused => "paused",
        SubscriptionState::Disabled => "disabled",
    }
}

/// SQL has no unsigned numbers; a counter will not reach the difference.
fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}
