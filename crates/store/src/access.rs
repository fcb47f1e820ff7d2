//! What the HTTP sides authenticate callers with: the bootstrap token, the tokens in the store,
//! or, with neither of them and on loopback only, nothing.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use event::access::Principal;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use crate::{Error, Store};

/// How long an answer of the store is good for. Revoking is at once, so this stays below a second.
const FRESH: Duration = Duration::from_millis(500);
/// How many tokens' answers are kept.
const KEPT_MAX: usize = 1024;

/// Why a caller is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No token was given, and one is needed.
    #[error("a token is needed: `Authorization: Bearer …`")]
    Missing,
    /// The token is not one of ours, has expired or was revoked.
    #[error("the token is not valid")]
    Invalid,
    /// The store cannot say.
    #[error("tokens cannot be checked because the store is not available")]
    StoreAway,
}

/// Who may call. Shared by everything that listens.
#[derive(Debug)]
pub struct Access {
    admin: Option<SecretString>,
    store: Store,
    loopback_only: bool,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// By hash, so that no token stays in memory longer than its request.
    principals: HashMap<[u8; 32], (Instant, Principal)>,
    has_tokens: Option<(Instant, bool)>,
    /// How often it was forgotten: an answer asked for before that is not kept after it.
    forgotten: u64,
}

impl Access {
    /// `admin` is `auth.admin_token`; `loopback_only` says whether the API listens on loopback
    /// alone.
    pub fn new(admin: Option<SecretString>, store: Store, loopback_only: bool) -> Self {
        // An empty setting is none; an empty bearer must not match it.
        let admin = admin.filter(|admin| !admin.expose_secret().is_empty());
        Self {
            admin,
            store,
            loopback_only,
            kept: Mutex::default(),
        }
    }

    /// Whether calls need no token just now: none is configured, none is in the store, and the
    /// API listens on loopback only.
    pub async fn is_open(&self) -> Result<bool, Denied> {
        if self.admin.is_some() || !self.loopback_only {
            return Ok(false);
        }
        let asked = Instant::now();
        if let Some((at, has_tokens)) = self.lock().has_tokens
            && asked.duration_since(at) < FRESH
        {
            return Ok(!has_tokens);
        }
        let forgotten = self.lock().forgotten;
        let has_tokens = self.store.has_tokens().await.map_err(away)?;
        let mut kept = self.lock();
        if kept.forgotten == forgotten {
            kept.has_tokens = Some((asked, has_tokens));
        }
        Ok(!has_tokens)
    }

    /// Who is calling with this bearer token.
    pub async fn authenticate(
        &self,
        bearer: Option<&str>,
        now: Timestamp,
    ) -> Result<Principal, Denied> {
        if let Some(bearer) = bearer {
            let hash = *blake3::hash(bearer.as_bytes()).as_bytes();
            if self.is_admin(&hash) {
                return Ok(Principal::administrator());
            }
            if let Some(principal) = self.of_token(bearer, hash, now).await? {
                return Ok(principal);
            }
        }
        if self.is_open().await? {
            return Ok(Principal::administrator());
        }
        Err(if bearer.is_some() {
            Denied::Invalid
        } else {
            Denied::Missing
        })
    }

    /// Forgets what is kept, so that a token made or revoked in this process counts with the very
    /// next call; the other processes follow within a second.
    pub fn forget(&self) {
        let mut kept = self.lock();
        *kept = Kept {
            forgotten: kept.forgotten + 1,
            ..Kept::default()
        };
    }

    /// Hashes are compared, so that not even the length shows in the time.
    fn is_admin(&self, given: &[u8; 32]) -> bool {
        self.admin.as_ref().is_some_and(|admin| {
            let wanted = blake3::hash(admin.expose_secret().as_bytes());
            bool::from(given.ct_eq(wanted.as_bytes()))
        })
    }

    async fn of_token(
        &self,
        bearer: &str,
        hash: [u8; 32],
        now: Timestamp,
    ) -> Result<Option<Principal>, Denied> {
        let asked = Instant::now();
        let fresh = |at: &Instant| asked.duration_since(*at) < FRESH;
        let (known, forgotten) = {
            let kept = self.lock();
            let known = kept.principals.get(&hash).filter(|(at, _)| fresh(at));
            (known.cloned(), kept.forgotten)
        };
        if let Some((_, principal)) = known {
            return Ok(Some(principal));
        }
        let principal = self.store.authenticate(bearer, now).await.map_err(away)?;
        // Only valid tokens are kept: strangers must not be able to fill this.
        if let Some(principal) = &principal {
            let mut kept = self.lock();
            if kept.principals.len() >= KEPT_MAX {
                kept.principals.retain(|_, (at, _)| fresh(at));
            }
            if kept.principals.len() < KEPT_MAX && kept.forgotten == forgotten {
                kept.principals.insert(hash, (asked, principal.clone()));
            }
        }
        Ok(principal)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn away(error: Error) -> Denied {
    if matches!(error, Error::Fatal(_)) {
        tracing::error!(%error, "tokens cannot be checked");
    }
    Denied::StoreAway
}
