//! A subscription as the API shows it: header values as `***`, a secret only when it is new.

use base64::{Engine, engine::general_purpose::STANDARD};
use event::{
    Subscription,
    secret::{SigningKey, SigningKeys, SigningKind},
};
use jiff::Timestamp;
use serde::Serialize;
use store::Stored;

/// In the place of every header's value: it may be a credential of the receiver.
const HIDDEN: &str = "***";

/// A subscription for a caller.
#[derive(Debug, Serialize)]
pub(super) struct Shown<'a> {
    #[serde(flatten)]
    subscription: std::borrow::Cow<'a, Subscription>,
    /// `whsec_…`, at creation and rotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    /// `whpk_…`: what receivers verify `v1a` signatures with. No secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    /// Until when the replaced key signs on beside the new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_expires_at: Option<Timestamp>,
}

impl<'a> Shown<'a> {
    /// As anybody who may read it sees it.
    pub(super) fn of(stored: &'a Stored) -> Self {
        let mut subscription = std::borrow::Cow::Borrowed(&stored.subscription);
        if !subscription.headers.is_empty() {
            for value in subscription.to_mut().headers.values_mut() {
                HIDDEN.clone_into(value);
            }
        }
        let public = current(&stored.keys, SigningKind::Ed25519).map(public_key);
        Self {
            subscription,
            secret: None,
            public_key: public,
            previous_expires_at: None,
        }
    }

    /// As whoever has just created it sees it, once.
    pub(super) fn with_secret(stored: &'a Stored) -> Self {
        let secret = current(&stored.keys, SigningKind::Hmac).map(SigningKey::expose_text);
        Self {
            secret,
            ..Self::of(stored)
        }
    }

    /// As whoever has just rotated a key sees it, once.
    pub(super) fn rotated(stored: &'a Stored, kind: SigningKind, old_until: Timestamp) -> Self {
        let shown = match kind {
            SigningKind::Hmac => Self::with_secret(stored),
            // The private half stays with us; the public one is always shown.
            SigningKind::Ed25519 => Self::of(stored),
        };
        let old = |live: &event::secret::LiveKey| {
            live.key.kind() == kind && live.expires_at == Some(old_until)
        };
        let replaced = stored.keys.0.iter().any(old);
        Self {
            previous_expires_at: replaced.then_some(old_until),
            ..shown
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.subscription.revision
    }
}

fn current(keys: &SigningKeys, kind: SigningKind) -> Option<&SigningKey> {
    let live = keys
        .0
        .iter()
        .find(|live| live.key.kind() == kind && live.expires_at.is_none());
    live.map(|live| &live.key)
}

/// `whpk_` and base64 of the 32 bytes, as Standard Webhooks has it.
fn public_key(key: &SigningKey) -> String {
    let seed: [u8; 32] = key.expose_bytes().try_into().unwrap_or_default();
    let public = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
    format!("whpk_{}", STANDARD.encode(public.as_bytes()))
}
