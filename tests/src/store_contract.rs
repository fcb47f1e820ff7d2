//! What the store promises, each promise once, kept on SQLite and on PostgreSQL.
#![allow(
    clippy::unwrap_used,
    reason = "a promise is a test's body, though not by its attribute"
)]

mod access;
mod away;
mod claims;
mod dead_letters;
mod expunge;
mod failing;
mod feed;
mod jobs;
mod keys;
mod log;
mod plans;
mod quarantine;
mod retention;
mod runs;
mod subscriptions;
mod tail;
mod tokens;
mod versions;

use std::collections::BTreeMap;

use event::{
    Subscription, SubscriptionId, Tenant,
    secret::{LiveKey, SigningKey, SigningKeys, SigningKind},
};
use sqlx::{AnyConnection, Connection, Row};
use store::{Page, Paging, Settings, Sight, Store, Stored};

use crate::support::postgres;

/// Runs each promise on both databases.
macro_rules! promises {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(crate::store_contract::Place::sqlite()).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(crate::store_contract::Place::postgres().await).await;
            })+
        }
    };
}
use promises;

/// An empty database of a test's own.
pub(crate) struct Place {
    pub(crate) settings: Settings,
    /// The folder of a SQLite database.
    folder: Option<tempfile::TempDir>,
}

impl Place {
    fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = format!("sqlite://{}/", folder.path().display());
        Self {
            settings: Settings {
                url,
                encryption_key: None,
            },
            folder: Some(folder),
        }
    }

    async fn postgres() -> Self {
        let url = postgres::fresh_database_url().await;
        Self {
            settings: Settings {
                url,
                encryption_key: None,
            },
            folder: None,
        }
    }

    /// As another process would: it waits for a server that is busy with others.
    async fn open(&self) -> Store {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            match Store::open(&self.settings).await {
                Ok(store) => return store,
                Err(store::Error::Unavailable(_)) if std::time::Instant::now() < deadline => {}
                Err(error) => panic!("the store opens: {error}"),
            }
        }
    }

    /// Why it does not open with this key.
    async fn refuses(&self, encryption_key: Option<&str>) -> String {
        let settings = self.with_key(encryption_key);
        Store::open(&settings)
            .await
            .expect_err("the store must not open")
            .to_string()
    }

    fn with_key(&self, encryption_key: Option<&str>) -> Settings {
        let encryption_key = encryption_key.map(Into::into);
        Settings {
            url: self.settings.url.clone(),
            encryption_key,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder
            .as_ref()
            .expect("a SQLite database")
            .path()
            .join(name)
    }

    /// A connection past the store.
    async fn raw(&self) -> AnyConnection {
        sqlx::any::install_default_drivers();
        let url = match &self.folder {
            Some(_) => format!("sqlite://{}", self.path("postrider.db").display()),
            None => self.settings.url.clone(),
        };
        AnyConnection::connect(&url)
            .await
            .expect("the database answers")
    }

    async fn execute(&self, sql: &'static str) {
        sqlx::raw_sql(sql)
            .execute(&mut self.raw().await)
            .await
            .expect("the statement runs");
    }

    /// As [`Self::loot`], but without what SQLite has already overwritten and not yet cleaned up.
    async fn loot_after_checkpoint(&self) -> Loot {
        if self.folder.is_some() {
            self.execute("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")
                .await;
        }
        self.loot().await
    }

    /// Everything that a thief of the database would hold: every file of SQLite but the key file,
    /// every row of PostgreSQL.
    async fn loot(&self) -> Loot {
        if let Some(folder) = &self.folder {
            let files = std::fs::read_dir(folder.path()).expect("the folder can be read");
            let paths = files.map(|file| file.expect("a file").path());
            let read = |path: std::path::PathBuf| std::fs::read(path).expect("a readable file");
            return Loot(
                paths
                    .filter(|path| path.extension() != Some("key".as_ref()))
                    .flat_map(read)
                    .collect(),
            );
        }
        let mut connection = self.raw().await;
        let mut all = String::new();
        for table in [
            "head",
            "subscriptions",
            "tokens",
            "dead_letters",
            "quarantine",
        ] {
            let sql = sqlx::AssertSqlSafe(format!("SELECT t::text FROM {table} t"));
            for row in sqlx::query(sql)
                .fetch_all(&mut connection)
                .await
                .expect("rows")
            {
                all.push_str(row.get(0));
            }
        }
        Loot(all.into_bytes())
    }
}

struct Loot(Vec<u8>);

impl Loot {
    fn contains(&self, needle: &[u8]) -> bool {
        // PostgreSQL shows bytes as hex.
        let hex: String = needle.iter().map(|byte| format!("{byte:02x}")).collect();
        let find = |needle: &[u8]| self.0.windows(needle.len()).any(|window| window == needle);
        find(needle) || find(hex.as_bytes())
    }
}

fn tenant(text: &str) -> Tenant {
    Tenant::parse(text).expect("a tenant")
}

fn only(text: &str) -> Sight {
    Sight::Only(tenant(text))
}

/// A new subscription with header values and two signing keys.
pub(crate) fn subscription(of: &str, name: &str) -> Stored {
    let subscription: Subscription = serde_json::from_value(serde_json::json!({
        "id": SubscriptionId::fresh(),
        "tenant": of,
        "name": name,
        "target_url": "https://example.com/hooks",
        "dialect": "standard",
        "events": ["appointment.*", "payment.paid"],
        "filter": { "actions": ["created"], "statuses": [], "changed_fields": [], "where": "true" },
        "view": "full",
        "headers": { "x-api-key": "value-of-the-header", "x-plain": "" },
        "attributes": { "site_name": "Salon \u{0} 17" },
        "delivery": {
            "timeout": "20s", "retry": "standard", "max_in_flight": 16, "rate_limit": "50/s",
            "ordering": "none"
        },
        "state": "active",
        "created_at": "2025-01-02T03:04:05.123456789Z",
        "updated_at": "2025-01-02T03:04:05.123456789Z",
        "revision": 0,
    }))
    .expect("a subscription");
    let end = "2025-02-02T03:04:05.000000001Z".parse().expect("a time");
    let keys = SigningKeys(vec![
        LiveKey {
            key: SigningKey::from_random(SigningKind::Hmac, [7; 32]),
            expires_at: None,
        },
        LiveKey {
            key: SigningKey::from_random(SigningKind::Ed25519, [9; 32]),
            expires_at: Some(end),
        },
    ]);
    Stored { subscription, keys }
}

/// In a form that compares.
fn shown(stored: &Stored) -> (Subscription, Vec<(String, Option<jiff::Timestamp>)>) {
    let key = |live: &LiveKey| (live.key.expose_text(), live.expires_at);
    (
        stored.subscription.clone(),
        stored.keys.0.iter().map(key).collect(),
    )
}

async fn insert(store: &Store, of: &str, name: &str) -> Stored {
    store
        .insert_subscription(subscription(of, name))
        .await
        .expect("inserted")
}

async fn delete(store: &Store, stored: &Stored) {
    let deleted = store
        .delete_subscription(&Sight::All, &stored.subscription.id)
        .await;
    assert!(deleted.expect("deleted"));
}

/// Everything that changes brings since the beginning, by name.
async fn all_changes(store: &Store) -> BTreeMap<SubscriptionId, Stored> {
    let (mut since, mut all) = (0, BTreeMap::new());
    loop {
        let changes = store.changes(since).await.expect("changes");
        if changes.revision == since {
            return all;
        }
        since = changes.revision;
        for id in changes.deleted {
            all.remove(&id);
        }
        all.extend(
            changes
                .stored
                .into_iter()
                .map(|s| (s.subscription.id.clone(), s)),
        );
    }
}

/// Reads a list page by page; `between` runs after each page.
async fn read_pages<T, L, B>(limit: u32, list: L, between: B) -> Vec<T>
where
    L: AsyncFn(Paging) -> Result<Page<T>, store::Error>,
    B: AsyncFn(usize),
{
    let mut all = Vec::new();
    let mut paging = Paging {
        cursor: None,
        limit,
    };
    for page in 0.. {
        let Page { items, cursor } = list(paging.clone()).await.expect("a page");
        assert!(items.len() <= limit as usize);
        all.extend(items);
        paging.cursor = cursor;
        if paging.cursor.is_none() {
            break;
        }
        between(page).await;
    }
    all
}
