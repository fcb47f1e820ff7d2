//! What is remembered: subscriptions and their feed of changes, tokens, dead letters, quarantine.
//!
//! One face over SQLite and PostgreSQL. The store is never on a delivery's path: router and
//! deliverer live on the [`feed`], which goes on with what it has while the store is away.
#![warn(missing_docs)]

use std::sync::Arc;

use event::{
    DeadLetterId, Subscription, SubscriptionId, Tenant, TokenId,
    access::{Principal, Scope},
    delivery::DeadLetter,
    reason::{DeadReason, QuarantineReason},
    secret::SigningKeys,
    subscription::SubscriptionState,
};
use jiff::Timestamp;
use secrecy::SecretString;

/// An open store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    _inner: Arc<()>,
}

/// `[store]` of the settings.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `sqlite://PATH` (a file, or a folder in which `postrider.db` is made) or `postgres://…`.
    /// A secret. Empty: the caller fills in the broker's folder.
    pub url: String,
    /// 32 bytes in base64 that encrypt signing keys and header values at rest.
    pub encryption_key: Option<SecretString>,
}

/// Why a store call failed: our own house, or the network between.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be reached or is locked; trying again later may help.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// Something a person must mend.
    #[error("{0}")]
    Fatal(String),
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
    /// From an earlier page. A cursor we did not make is `Err(BadCursor)` at the API's edge.
    pub cursor: Option<String>,
    /// 1 to 500; 0 means 50.
    pub limit: u32,
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
    /// `q_` and 32 hex digits, derived from body, reason and first-seen time.
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
    /// The bytes, unchanged.
    pub body: Vec<u8>,
}

// The face. Bodies are the store's own work.
#[expect(unused_variables, reason = "signatures first")]
impl Store {
    /// Opens the database, makes or migrates its tables, checks the encryption key.
    pub async fn open(settings: &Settings) -> Result<Self, Error> {
        todo!()
    }
    /// Whether the database answers (readiness).
    pub async fn ping(&self) -> Result<(), Error> {
        todo!()
    }

    /// Inserts a new subscription; returns it with its revision set.
    pub async fn insert_subscription(&self, stored: Stored) -> Result<Stored, Error> {
        todo!()
    }
    /// One subscription.
    pub async fn subscription(
        &self,
        sight: &Sight,
        id: &SubscriptionId,
    ) -> Result<Option<Stored>, Error> {
        todo!()
    }
    /// A page of subscriptions, optionally of one tenant (for callers that see all) or state.
    pub async fn subscriptions(
        &self,
        sight: &Sight,
        state: Option<SubscriptionState>,
        paging: &Paging,
    ) -> Result<Page<Stored>, Error> {
        todo!()
    }
    /// Replaces a subscription if its stored revision still is `stored.subscription.revision`;
    /// returns it with its new revision, or `None` when it changed or went meanwhile.
    pub async fn replace_subscription(&self, stored: Stored) -> Result<Option<Stored>, Error> {
        todo!()
    }
    /// Deletes a subscription; false when there was none in sight.
    pub async fn delete_subscription(
        &self,
        sight: &Sight,
        id: &SubscriptionId,
    ) -> Result<bool, Error> {
        todo!()
    }
    /// Disables an active subscription with a reason (410, failures); idempotent.
    pub async fn disable_subscription(
        &self,
        id: &SubscriptionId,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        todo!()
    }
    /// Everything that changed after `since`, in at most a few thousand rows a call: call again
    /// from the returned revision until it no longer grows.
    pub async fn changes(&self, since: u64) -> Result<Changes, Error> {
        todo!()
    }

    /// Makes a token; the second is its whole text, `pr_<id>_<secret>`, known only now.
    pub async fn create_token(
        &self,
        name: &str,
        tenant: Option<Tenant>,
        scopes: Vec<Scope>,
        expires_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(Token, SecretString), Error> {
        todo!()
    }
    /// A page of tokens.
    pub async fn tokens(&self, paging: &Paging) -> Result<Page<Token>, Error> {
        todo!()
    }
    /// Revokes a token at once; false when there was none.
    pub async fn delete_token(&self, id: &TokenId) -> Result<bool, Error> {
        todo!()
    }
    /// Whose token a text is; `None` for anything else, in constant time over the secret.
    pub async fn authenticate(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Option<Principal>, Error> {
        todo!()
    }
    /// Whether any token exists.
    pub async fn has_tokens(&self) -> Result<bool, Error> {
        todo!()
    }

    /// Records dead letters, in one transaction, each once however often it is given.
    pub async fn record_dead(&self, letters: &[DeadLetter]) -> Result<(), Error> {
        todo!()
    }
    /// A page of dead letters, newest first.
    pub async fn dead_letters(
        &self,
        sight: &Sight,
        filter: &DeadFilter,
        paging: &Paging,
    ) -> Result<Page<DeadLetter>, Error> {
        todo!()
    }
    /// One dead letter.
    pub async fn dead_letter(
        &self,
        sight: &Sight,
        id: &DeadLetterId,
    ) -> Result<Option<DeadLetter>, Error> {
        todo!()
    }
    /// Deletes a dead letter (dropped by a person, or redriven); false when there was none.
    /// Keeps a tombstone, so that a late redelivery of the same letter does not bring it back.
    pub async fn delete_dead_letter(
        &self,
        sight: &Sight,
        id: &DeadLetterId,
    ) -> Result<bool, Error> {
        todo!()
    }

    /// Records quarantined messages, each once.
    pub async fn record_quarantined(&self, messages: &[Quarantined]) -> Result<(), Error> {
        todo!()
    }
    /// A page of quarantined messages, newest first.
    pub async fn quarantined(
        &self,
        reason: Option<QuarantineReason>,
        paging: &Paging,
    ) -> Result<Page<Quarantined>, Error> {
        todo!()
    }
    /// One quarantined message.
    pub async fn quarantined_one(&self, id: &str) -> Result<Option<Quarantined>, Error> {
        todo!()
    }
    /// Forgets a quarantined message (released or dropped); false when there was none.
    pub async fn delete_quarantined(&self, id: &str) -> Result<bool, Error> {
        todo!()
    }
}

pub mod feed {
    //! The snapshot of all subscriptions that a process lives on, and how it follows the store.

    use std::{collections::HashMap, sync::Arc, time::Duration};

    use event::SubscriptionId;
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use crate::{Changes, Store, Stored};

    /// All subscriptions as of a revision. Swapped whole; readers keep the one they hold.
    #[derive(Debug, Default)]
    pub struct Snapshot {
        /// The store's revision.
        pub revision: u64,
        /// Every subscription, deleted ones gone.
        pub subscriptions: HashMap<SubscriptionId, Arc<Stored>>,
    }

    /// Follows the store: polls its revision, at once after [`Feed::nudge`].
    #[derive(Debug, Clone)]
    pub struct Feed {
        receiver: watch::Receiver<Option<Arc<Snapshot>>>,
    }

    #[expect(unused_variables, reason = "signatures first")]
    impl Feed {
        /// Starts following in the background until `stop`. Before the first snapshot
        /// [`Self::snapshot`] is `None` and the process is not ready.
        pub fn follow(store: Store, every: Duration, stop: CancellationToken) -> Self {
            todo!()
        }
        /// A feed that never changes, for tests.
        pub fn fixed(snapshot: Snapshot) -> Self {
            todo!()
        }
        /// The latest snapshot.
        pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
            self.receiver.borrow().clone()
        }
        /// Resolves when a newer snapshot than the last seen by this receiver is there.
        pub fn watch(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
            self.receiver.clone()
        }
        /// Asks for a look at the store now (after a change of our own).
        pub fn nudge(&self) {
            todo!()
        }
        /// How long ago the store last answered.
        pub fn age(&self) -> Duration {
            todo!()
        }
    }

    const _: fn(&Changes) = |_| {};
}
