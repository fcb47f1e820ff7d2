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
pub(crate) struct Shown<'a> {
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
    /// What was taken and may not be what was meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Warning>,
}

/// One thing that may not be what was meant.
#[derive(Debug, Serialize)]
pub(crate) struct Warning {
    code: &'static str,
    pointer: &'static str,
    message: &'static str,
}

impl Warning {
    /// Of a body as it was written, and taken.
    fn of(body: &[u8]) -> Vec<Self> {
        #[derive(serde::Deserialize)]
        struct Written {
            target_url: Option<String>,
        }
        let written = serde_json::from_slice::<Written>(body).ok();
        let url = written.and_then(|written| written.target_url);
        let idn = Self {
            code: "idn_host",
            pointer: "/target_url",
            message: "the host was mapped from other letters, and may look like another name; \
                      target_url shows what is dialled",
        };
        url.is_some_and(|url| event::target::is_idn(&url))
            .then_some(idn)
            .into_iter()
            .collect()
    }
}

impl<'a> Shown<'a> {
    /// As anybody who may read it sees it.
    pub(crate) fn of(stored: &'a Stored) -> Self {
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
            warnings: Vec::new(),
        }
    }

    /// The same as the answer to this body, with what is worth a warning in it.
    pub(crate) fn answering(self, body: &[u8]) -> Self {
        let warnings = Warning::of(body);
        Self { warnings, ..self }
    }

    /// As whoever has just created it sees it, once.
    pub(crate) fn with_secret(stored: &'a Stored) -> Self {
        let secret = current(&stored.keys, SigningKind::Hmac).map(SigningKey::expose_text);
        Self {
            secret,
            ..Self::of(stored)
        }
    }

    /// As whoever has just rotated a key sees it, once.
    pub(crate) fn rotated(stored: &'a Stored, kind: SigningKind, old_until: Timestamp) -> Self {
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

    pub(crate) fn revision(&self) -> u64 {
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
