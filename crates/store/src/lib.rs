//! What is remembered: subscriptions and their feed of changes, events, deliveries and attempts,
//! tokens, dead letters, quarantine.
//!
//! One face over SQLite and PostgreSQL. The store is never on a delivery's path: router and
//! deliverer live on the [`feed`], which goes on with what it has while the store is away.
//!
//! A call that cannot reach the database fails with [`Error::Unavailable`] within a few seconds
//! and the next one tries again; nothing has to be reopened.
#![warn(missing_docs)]

pub mod access;
pub mod claims;
mod crypt;
mod cursor;
mod database;
mod dead_letters;
pub mod dedup;
mod error;
mod expunge;
mod failing;
pub mod feed;
pub mod gate;
mod held;
pub mod jobs;
mod keyring;
mod listeners;
mod location;
pub mod log;
mod notices;
mod outage;
mod quarantine;
mod retention;
mod rows;
mod runs;
mod subscriptions;
mod tail;
mod time;
mod tokens;
pub mod versions;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use event::{
    Subscription, SubscriptionId, Tenant, TokenId,
    access::{Principal, Scope},
    reason::{DeadReason, QuarantineReason},
    secret::SigningKeys,
};
use jiff::Timestamp;
use secrecy::SecretString;

use crate::{
    database::{Database, within},
    keyring::{Keys, Source},
    location::Location,
    subscriptions::Head,
};
pub use crate::{
    error::Error,
    expunge::{Expunged, Resource},
    failing::Judged,
    listeners::{Waiting, WaitingKey},
    log::{
        DeliveryFilter, DeliveryRecord, DeliveryRow, EventFilter, EventRecord, EventRow,
        LoggedAttempt, Period, PeriodCount, Recorded,
    },
    notices::Notice,
    retention::Kept,
    tail::{Step, Told},
};

/// How long opening may take: it may change tables, encrypt everything anew, or wait for another
/// process that does.
const OPEN_MAX: Duration = Duration::from_secs(300);

/// An open store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    source: Source,
    keys: ArcSwap<Keys>,
}

impl Store {
    /// Opens the database, makes or migrates its tables, checks the encryption key. A server that
    /// is away is [`Error::Unavailable`]: the caller may try again.
    pub async fn open(settings: &Settings) -> Result<Self, Error> {
        let location = Location::parse(&settings.url)?;
        let source = Source::new(settings, location.clone())?;
        let opening = async {
            let database = Database::connect(&location).await?;
            let mut lease = database.open().await?;
            let keys = source.settle(&mut lease).await?;
            lease.commit().await?;
            Ok((database, keys))
        };
        let timed_out = |_| Err(Error::Unavailable(format!("not open within {OPEN_MAX:?}")));
        let opened = tokio::time::timeout(OPEN_MAX, opening)
            .await
            .unwrap_or_else(timed_out);
        let (database, keys) = opened.map_err(|error| location.name_in(error))?;
        source.tidy(&keys);
        Ok(Self {
            inner: Arc::new(Inner {
                database,
                source,
                keys: ArcSwap::from_pointee(keys),
            }),
        })
    }

    /// Whether the database answers (readiness).
    pub async fn ping(&self) -> Result<(), Error> {
        self.head().await.map(drop)
    }

    fn database(&self) -> &Database {
        &self.inner.database
    }

    fn keys(&self) -> Arc<Keys> {
        self.inner.keys.load_full()
    }

    /// Takes the keys of a database that replaced the one this process opened.
    async fn keep_up_with(&self, head: &Head) -> Result<(), Error> {
        let keys = self.keys();
        if head.identity == keys.identity && head.key_id == keys.key.id() {
            return Ok(());
        }
        let keys = within(async {
            let mut lease = self.database().read().await?;
            let keys = self.inner.source.read_again(&mut lease).await?;
            lease.release();
            Ok(keys)
        })
        .await?;
        self.inner.keys.store(Arc::new(keys));
        Ok(())
    }
}

/// `[store]` of the settings.
#[derive(Clone, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `sqlite://PATH` (a file, or a folder in which `postrider.db` is made) or `postgres://…`.
    /// A secret. Empty: the caller fills in the broker's folder.
    pub url: String,
    /// 32 bytes in base64 that encrypt signing keys and header values at rest.
    pub encryption_key: Option<SecretString>,
}

impl std::fmt::Debug for Settings {
    /// The URL holds a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

/// Whose rows a call may see. Every query takes it; another tenant's row is `None`, like a row
/// that does not exist.
#[derive(Debug, Clone)]
pub enum Sight {
    /// Everything: administrators and our own stages.
    All,
    /// One tenant's.
    Only(Tenant),
}

impl From<&Principal> for Sight {
    fn from(principal: &Principal) -> Self {
        principal.tenant.clone().map_or(Self::All, Self::Only)
    }
}

/// A subscription with what it must keep secret.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The subscription; its header values are real here.
    pub subscription: Subscription,
    /// Its signing keys.
    pub keys: SigningKeys,
}

/// One page of a list, oldest first unless said otherwise. A cursor stays valid while rows come
/// and go: nothing is skipped, nothing repeated.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Where the next page begins; `None` at the end.
    pub cursor: Option<String>,
}

/// How much of a list is wanted.
#[derive(Debug, Clone, Default)]
pub struct Paging {
    /// From an earlier page; any other is [`Error::BadCursor`].
    pub cursor: Option<String>,
    /// 1 to 500; 0 means 50.
    pub limit: u32,
}

/// A wish of [`Store::settle_target`]'s caller.
#[derive(Debug, Clone)]
pub enum Change {
    /// A new subscription.
    Insert(Stored),
    /// Another form of one that was shown.
    Replace(Stored),
    /// An end of one that was shown.
    Delete(SubscriptionId),
}

/// What changed since a revision.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// The revision that these changes lead to.
    pub revision: u64,
    /// New and changed subscriptions, as they are now.
    pub stored: Vec<Stored>,
    /// Deleted subscriptions.
    pub deleted: Vec<SubscriptionId>,
}

/// A token as lists show it; its secret is not kept.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Token {
    /// The public part.
    pub id: TokenId,
    /// For people.
    pub name: String,
    /// The only tenant it may see; `None` sees all.
    pub tenant: Option<Tenant>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
}

/// Filters of the dead-letter list; all given must hold.
#[derive(Debug, Clone, Default)]
pub struct DeadFilter {
    /// By reason.
    pub reason: Option<DeadReason>,
    /// By subscription.
    pub subscription: Option<SubscriptionId>,
    /// By event type, exactly.
    pub kind: Option<String>,
    /// Died at or after.
    pub since: Option<Timestamp>,
    /// Died before.
    pub until: Option<Timestamp>,
}

/// A message that could never be processed.
#[derive(Debug, Clone)]
pub struct Quarantined {
    /// `q_` and 32 hex digits, see [`Self::id_for`].
    pub id: String,
    /// Why.
    pub reason: QuarantineReason,
    /// The refusal in words.
    pub detail: String,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// `exchange/routing-key` it came in by.
    pub source: String,
    /// AMQP `message_id`, where it had one.
    pub message_id: Option<String>,
    /// AMQP `content_type`, where it had one.
    pub content_type: Option<String>,
    /// How many bytes it had.
    pub size: usize,
    /// The bytes, unchanged; of a message that no event can be, the first of them.
    pub body: Vec<u8>,
}
