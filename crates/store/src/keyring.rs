//! Which key encrypts, where it is kept, and what happens when it changes.
//!
//! In order: `store.encryption_key`; else, for SQLite, a key file beside the database; else, for
//! PostgreSQL, a key kept in the database itself, with a warning. The last two are *kept* keys:
//! ours to replace when a key is set, which encrypts every secret anew in one transaction.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use secrecy::{ExposeSecret, SecretSlice, SecretString};
use sqlx::AnyConnection;
use tracing::{info, warn};

use crate::{
    Error, Settings,
    crypt::{Key, Owner, random},
    location::Location,
};

/// The keys of an open store.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    /// Which database they belong to.
    pub(crate) identity: String,
    /// Encrypts what is secret.
    pub(crate) key: Key,
    /// Hashes tokens. Drawn once and kept encrypted, so that tokens outlive a change of `key`.
    token_key: SecretSlice<u8>,
}

impl Keys {
    /// The key of the token hashes.
    pub(crate) fn token_key(&self) -> Result<&[u8; 32], Error> {
        self.token_key
            .expose_secret()
            .try_into()
            .map_err(|_| unreadable("the token key"))
    }
}

/// Where keys may come from.
#[derive(Debug)]
pub(crate) struct Source {
    set: Option<Key>,
    location: Location,
}

/// The row `head`: identity, key id, kept key, token key.
type Head = (String, String, Option<String>, Vec<u8>);

enum Choice {
    Use(Key),
    Replace { old: Key, new: Key },
}

impl Source {
    /// Checks the setting.
    pub(crate) fn new(settings: &Settings, location: Location) -> Result<Self, Error> {
        let parse = |text: &SecretString| {
            Key::parse(text).ok_or_else(|| {
                Error::Fatal("store.encryption_key must be 32 bytes written in base64".into())
            })
        };
        let set = settings.encryption_key.as_ref().map(parse).transpose()?;
        Ok(Self { set, location })
    }

    /// Finds the store's key, or makes it for a new store, or replaces a kept key by the one that
    /// is set. Runs inside the opening transaction; call [`Self::tidy`] once that is committed.
    pub(crate) async fn settle(&self, connection: &mut AnyConnection) -> Result<Keys, Error> {
        let Some(head) = head(connection).await? else {
            return self.begin(connection).await;
        };
        match self.choose(&head)? {
            Choice::Use(key) => {
                if self.set.is_some() && head.2.is_some() {
                    // The key that was kept here is now given from outside.
                    sqlx::query("UPDATE head SET kept_key = NULL")
                        .execute(connection)
                        .await?;
                } else if head.2.is_some() {
                    warn_kept();
                }
                keys(head, key)
            }
            Choice::Replace { old, new } => self.replace(connection, head, &old, new).await,
        }
    }

    /// The keys as the database has them now, after it was replaced under a running process.
    pub(crate) async fn read_again(&self, connection: &mut AnyConnection) -> Result<Keys, Error> {
        let head = head(connection).await?.ok_or_else(|| {
            Error::Fatal("the store's database was emptied; restart this process".into())
        })?;
        match self.choose(&head)? {
            Choice::Use(key) => keys(head, key),
            Choice::Replace { .. } => Err(Error::Fatal(
                "the store's database was replaced by one with another encryption key; restart \
                 this process"
                    .into(),
            )),
        }
    }

    /// Removes a key file that the key in use has replaced.
    pub(crate) fn tidy(&self, keys: &Keys) {
        let Some(path) = self.location.key_file().filter(|_| self.set.is_some()) else {
            return;
        };
        let stale =
            read_key_file(&path).is_ok_and(|kept| kept.is_some_and(|k| k.id() != keys.key.id()));
        if stale {
            match fs::remove_file(&path) {
                Ok(()) => info!(path = %path.display(), "removed the replaced key file"),
                Err(error) => {
                    warn!(path = %path.display(), %error, "the replaced key file stays; remove it");
                }
            }
        }
    }

    /// The first opening of a new database.
    async fn begin(&self, connection: &mut AnyConnection) -> Result<Keys, Error> {
        let mut kept = None;
        let key = match (&self.set, self.location.key_file()) {
            (Some(set), _) => set.clone(),
            (None, Some(path)) => match read_key_file(&path)? {
                Some(key) => key,
                None => make_key_file(&path)?,
            },
            (None, None) => {
                let key = Key::random()?;
                kept = Some(key.expose_text().to_owned());
                warn_kept();
                key
            }
        };
        let token_key = random::<32>()?;
        let identity = uuid::Uuid::now_v7().simple().to_string();
        let sealed = key.seal(&Owner::Tokens, &token_key)?;
        sqlx::query(
            "INSERT INTO head (one, identity, revision, key_id, kept_key, token_key) \
             VALUES (1, $1, 0, $2, $3, $4)",
        )
        .bind(&identity)
        .bind(key.id())
        .bind(kept)
        .bind(sealed)
        .execute(connection)
        .await?;
        Ok(Keys {
            identity,
            key,
            token_key: token_key.to_vec().into(),
        })
    }

    fn choose(&self, head: &Head) -> Result<Choice, Error> {
        let (_, wanted, kept_here, _) = head;
        let kept = match (kept_here, self.location.key_file()) {
            (Some(text), _) => Key::parse(&text.as_str().into()),
            (None, Some(path)) => read_key_file(&path)?,
            (None, None) => None,
        };
        let kept = kept.filter(|key| key.id() == wanted);
        match (&self.set, kept) {
            (Some(set), _) if set.id() == wanted => Ok(Choice::Use(set.clone())),
            (Some(set), Some(old)) => Ok(Choice::Replace {
                old,
                new: set.clone(),
            }),
            (Some(set), None) => Err(Error::Fatal(format!(
                "store.encryption_key is not the key that this store was encrypted with (its \
                 fingerprint is {}, the store's {wanted}); set the store's own key",
                set.id(),
            ))),
            (None, Some(key)) => Ok(Choice::Use(key)),
            (None, None) => Err(Error::Fatal(match self.location.key_file() {
                Some(path) => format!(
                    "this store is encrypted with a key (fingerprint {wanted}) that is neither in \
                     {} nor set as store.encryption_key; set it",
                    path.display()
                ),
                None => format!(
                    "this store is encrypted with a key (fingerprint {wanted}) that is not set \
                     here; set store.encryption_key"
                ),
            })),
        }
    }

    /// Encrypts every secret anew and forgets the kept key.
    async fn replace(
        &self,
        connection: &mut AnyConnection,
        mut head: Head,
        old: &Key,
        new: Key,
    ) -> Result<Keys, Error> {
        let token_key = old
            .open(&Owner::Tokens, &head.3)
            .ok_or_else(|| unreadable("the token key"))?;
        head.3 = new.seal(&Owner::Tokens, &token_key)?;
        // Every writer of subscriptions takes this row's lock first, so from here on nobody adds
        // a row under the old key.
        sqlx::query("UPDATE head SET key_id = $1, kept_key = NULL, token_key = $2")
            .bind(new.id())
            .bind(&head.3)
            .execute(&mut *connection)
            .await?;
        let mut rows = 0_u64;
        loop {
            let page: Vec<(String, String, Vec<u8>)> = sqlx::query_as(
                "SELECT id, tenant, secrets FROM subscriptions \
                 WHERE state <> 'deleted' AND key_id = $1 LIMIT 1000",
            )
            .bind(old.id())
            .fetch_all(&mut *connection)
            .await?;
            if page.is_empty() {
                break;
            }
            for (id, tenant, sealed) in page {
                let owner = Owner::Subscription {
                    tenant: &tenant,
                    id: &id,
                };
                let plain = old.open(&owner, &sealed).ok_or_else(|| unreadable(&id))?;
                sqlx::query("UPDATE subscriptions SET secrets = $1, key_id = $2 WHERE id = $3")
                    .bind(new.seal(&owner, &plain)?)
                    .bind(new.id())
                    .bind(&id)
                    .execute(&mut *connection)
                    .await?;
                rows += 1;
            }
        }
        info!(
            subscriptions = rows,
            "encrypted the store's secrets with store.encryption_key"
        );
        head.1 = new.id().to_owned();
        keys(head, new)
    }
}

async fn head(connection: &mut AnyConnection) -> Result<Option<Head>, Error> {
    Ok(
        sqlx::query_as("SELECT identity, key_id, kept_key, token_key FROM head")
            .fetch_optional(connection)
            .await?,
    )
}

fn keys((identity, _, _, sealed): Head, key: Key) -> Result<Keys, Error> {
    let token_key = key
        .open(&Owner::Tokens, &sealed)
        .ok_or_else(|| unreadable("the token key"))?;
    Ok(Keys {
        identity,
        key,
        token_key: token_key.into(),
    })
}

/// A box that does not open although its key is the right one.
pub(crate) fn unreadable(what: &str) -> Error {
    Error::Fatal(format!(
        "the store's secrets of {what} cannot be decrypted: the row is damaged"
    ))
}

fn warn_kept() {
    warn!("the encryption key is kept in the database that it protects; set store.encryption_key");
}

fn read_key_file(path: &Path) -> Result<Option<Key>, Error> {
    let text = match fs::read_to_string(path) {
        Ok(text) => SecretString::from(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Error::Fatal(format!(
                "cannot read the key file {}: {error}",
                path.display()
            )));
        }
    };
    let key = Key::parse(&text).ok_or_else(|| {
        Error::Fatal(format!(
            "the key file {} does not hold 32 bytes in base64",
            path.display()
        ))
    })?;
    Ok(Some(key))
}

/// Only one process at a time is here, because the caller holds the database's write lock. The
/// file appears whole or not at all.
fn make_key_file(path: &Path) -> Result<Key, Error> {
    let key = Key::random()?;
    let write = || -> io::Result<()> {
        let unfinished = path.with_extension("key.unfinished");
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)?;
        writeln!(file, "{}", key.expose_text())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        match path.parent() {
            Some(folder) => fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|error| {
        Error::Fatal(format!(
            "cannot make the key file {}: {error}",
            path.display()
        ))
    })?;
    info!(path = %path.display(), "made a key file; without it the store's secrets are lost");
    Ok(key)
}
