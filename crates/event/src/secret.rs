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

/// Whether a header of this name carries a credential by custom: its value is shown as `***`. The
/// Standard Webhooks signature is none: it proves one body.
pub fn names_a_secret(header: &str) -> bool {
    const WORDS: [&str; 8] = [
        "auth",
        "token",
        "secret",
        "password",
        "key",
        "cookie",
        "credential",
        "signature",
    ];
    let name = header.to_ascii_lowercase();
    name != "webhook-signature" && WORDS.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SigningKey {
        SigningKey::from_random(SigningKind::Hmac, [byte; 32])
    }

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(hour * 3600).unwrap()
    }

    #[track_caller]
    fn live(keys: &SigningKeys, now: Timestamp) -> Vec<(SigningKind, u8)> {
        keys.live(now)
            .map(|key| (key.kind(), key.expose_bytes()[0]))
            .collect()
    }

    #[test]
    fn rotating_keeps_at_most_two_live_keys_of_a_kind() {
        let hmac = |byte| (SigningKind::Hmac, byte);
        let mut keys = SigningKeys::default();
        keys.rotate(key(1), at(0), at(24));
        assert_eq!(live(&keys, at(0)), [hmac(1)]);
        keys.rotate(key(2), at(10), at(34));
        assert_eq!(live(&keys, at(10)), [hmac(2), hmac(1)], "the newest first");
        assert_eq!(live(&keys, at(33)), [hmac(2), hmac(1)]);
        assert_eq!(
            live(&keys, at(34)),
            [hmac(2)],
            "the old one has had its time"
        );
        keys.rotate(key(3), at(11), at(35));
        assert_eq!(
            live(&keys, at(11)),
            [hmac(3), hmac(2)],
            "the oldest makes room"
        );
        keys.rotate(key(4), at(100), at(124));
        assert_eq!(keys.0.len(), 2, "what is past is dropped");
        // Another kind is not touched.
        let other = SigningKey::from_random(SigningKind::Ed25519, [9; 32]);
        keys.rotate(other, at(101), at(125));
        assert_eq!(
            live(&keys, at(101)),
            [(SigningKind::Ed25519, 9), hmac(4), hmac(3)]
        );
    }

    #[test]
    fn keys_have_one_text_form_and_bounds() {
        for kind in [SigningKind::Hmac, SigningKind::Ed25519] {
            let key = SigningKey::from_random(kind, [7; 32]);
            let parsed = SigningKey::parse(&key.expose_text()).unwrap();
            assert_eq!(
                (parsed.kind(), parsed.expose_bytes()),
                (kind, &[7_u8; 32][..])
            );
        }
        let hmac =
            |bytes: usize| SigningKey::parse(&format!("whsec_{}", STANDARD.encode(vec![1; bytes])));
        assert!(hmac(23).is_err() && hmac(24).is_ok() && hmac(64).is_ok() && hmac(65).is_err());
        for bad in ["", "whsec", "whsec_", "whsec_!", "whsk_AAAA", "sk_AAAA"] {
            assert!(SigningKey::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = key(0x41);
        let printed = format!(
            "{key:?} {:?}",
            SigningKeys(vec![LiveKey {
                key: key.clone(),
                expires_at: None
            }])
        );
        assert!(printed.contains("whsec_***"), "{printed}");
        let secret = key.expose_text();
        assert!(
            !printed.contains(&secret[6..20]) && !printed.contains("AAAA"),
            "{printed}"
        );
    }
}
