//! Signing keys as Standard Webhooks has them. Never printed, never serialized by accident.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretSlice};

/// A key that signs deliveries. Its text form (`whsec_…`, `whsk_…`) is a secret.
#[derive(Clone)]
pub struct SigningKey {
    kind: SigningKind,
    bytes: SecretSlice<u8>,
}

/// Which signature a key makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningKind {
    /// `v1`: HMAC-SHA256, `whsec_` and base64 of 24 to 64 bytes.
    Hmac,
    /// `v1a`: ed25519, `whsk_` and base64 of the 32-byte seed.
    Ed25519,
}

impl SigningKind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Hmac => "whsec_",
            Self::Ed25519 => "whsk_",
        }
    }
}

impl SigningKey {
    /// A key from random bytes (32 of them) that the caller drew.
    pub fn from_random(kind: SigningKind, random: [u8; 32]) -> Self {
        Self {
            kind,
            bytes: random.to_vec().into(),
        }
    }

    /// Parses the text form, or says which form it should have.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (kind, rest) = if let Some(rest) = text.strip_prefix("whsec_") {
            (SigningKind::Hmac, rest)
        } else if let Some(rest) = text.strip_prefix("whsk_") {
            (SigningKind::Ed25519, rest)
        } else {
            return Err("a signing key begins with `whsec_` or `whsk_`");
        };
        let bytes = STANDARD
            .decode(rest)
            .map_err(|_| "a signing key is base64 after its prefix")?;
        let fits = match kind {
            SigningKind::Hmac => (24..=64).contains(&bytes.len()),
            SigningKind::Ed25519 => bytes.len() == 32,
        };
        if !fits {
            return Err("a `whsec_` key has 24 to 64 bytes, a `whsk_` key 32");
        }
        Ok(Self {
            kind,
            bytes: bytes.into(),
        })
    }

    /// Which signature it makes.
    pub fn kind(&self) -> SigningKind {
        self.kind
    }

    /// The raw bytes, for the signer alone.
    pub fn expose_bytes(&self) -> &[u8] {
        self.bytes.expose_secret()
    }

    /// The text form, for the one answer that shows it and for the store to encrypt.
    pub fn expose_text(&self) -> String {
        format!(
            "{}{}",
            self.kind.prefix(),
            STANDARD.encode(self.bytes.expose_secret())
        )
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}***", self.kind.prefix())
    }
}

/// The keys of one subscription, newest first. More than one of a kind while a rotation lasts.
#[derive(Debug, Clone, Default)]
pub struct SigningKeys(pub Vec<LiveKey>);

/// A key and how long it signs.
#[derive(Debug, Clone)]
pub struct LiveKey {
    /// The key.
    pub key: SigningKey,
    /// After this it signs no more; `None` for the current key.
    pub expires_at: Option<Timestamp>,
}

impl SigningKeys {
    /// The keys that sign at `now`.
    pub fn live(&self, now: Timestamp) -> impl Iterator<Item = &SigningKey> {
        self.0
            .iter()
            .filter(move |live| live.expires_at.is_none_or(|end| now < end))
            .map(|live| &live.key)
    }

    /// Puts `fresh` in the place of the current key of its kind, which signs on until
    /// `old_until`. Keys already past at `now` are dropped, and at most one old key of the kind
    /// stays: two live secrets, no more.
    pub fn rotate(&mut self, fresh: SigningKey, now: Timestamp, old_until: Timestamp) {
        let kind = fresh.kind();
        self.0
            .retain(|live| live.expires_at.is_none_or(|end| now < end));
        self.0
            .retain(|live| live.key.kind() != kind || live.expires_at.is_none());
        for live in self.0.iter_mut().filter(|live| live.key.kind() == kind) {
            live.expires_at = Some(old_until);
        }
        self.0.insert(
            0,
            LiveKey {
                key: fresh,
                expires_at: None,
            },
        );
    }
}
