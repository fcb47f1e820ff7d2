//! Standard Webhooks signatures: `v1` (HMAC-SHA256) and `v1a` (ed25519) over `id.timestamp.body`.
//!
//! Keys are prepared once per subscription, so that signing a delivery costs one hash of its body.
//! Nothing here is ever printed.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::Signer as _;
use event::secret::{SigningKey, SigningKeys, SigningKind};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::Sha256;

/// The keys of one subscription, made ready.
pub struct Signer {
    keys: Vec<Key>,
}

struct Key {
    expires_at: Option<Timestamp>,
    ready: Ready,
}

enum Ready {
    Hmac(Box<Hmac<Sha256>>),
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// Makes keys ready.
    pub fn new(keys: &SigningKeys) -> Self {
        let keys = keys.0.iter().filter_map(|live| {
            Some(Key {
                expires_at: live.expires_at,
                ready: ready(&live.key)?,
            })
        });
        Self {
            keys: keys.collect(),
        }
    }

    /// The value of `webhook-signature`: one entry per key that signs at `now`, newest first,
    /// separated by spaces. Empty without a live key.
    pub fn sign(&self, id: &str, now: Timestamp, body: &[u8]) -> String {
        let mut header = String::with_capacity(48 * self.keys.len());
        let head = format!("{id}.{}.", now.as_second());
        for key in &self.keys {
            if key.expires_at.is_some_and(|end| end <= now) {
                continue;
            }
            if !header.is_empty() {
                header.push(' ');
            }
            match &key.ready {
                Ready::Hmac(keyed) => {
                    let mut mac = keyed.clone();
                    mac.update(head.as_bytes());
                    mac.update(body);
                    header.push_str("v1,");
                    STANDARD.encode_string(mac.finalize().into_bytes(), &mut header);
                }
                Ready::Ed25519(key) => {
                    let message = [head.as_bytes(), body].concat();
                    header.push_str("v1a,");
                    STANDARD.encode_string(key.sign(&message).to_bytes(), &mut header);
                }
            }
        }
        header
    }
}

/// `None` where the bytes cannot be such a key, which parsing has excluded.
fn ready(key: &SigningKey) -> Option<Ready> {
    match key.kind() {
        SigningKind::Hmac => Some(Ready::Hmac(Box::new(
            Hmac::new_from_slice(key.expose_bytes()).ok()?,
        ))),
        SigningKind::Ed25519 => {
            let seed = <[u8; 32]>::try_from(key.expose_bytes()).ok()?;
            Some(Ready::Ed25519(Box::new(
                ed25519_dalek::SigningKey::from_bytes(&seed),
            )))
        }
    }
}

#[cfg(test)]
mod tests;
