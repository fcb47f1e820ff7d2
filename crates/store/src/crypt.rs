//! How secrets lie in the database: XChaCha20-Poly1305, a random nonce before each box, and the
//! row they belong to as associated data, so that a box copied to another row does not open.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use secrecy::{ExposeSecret, SecretString};

use crate::Error;

const NONCE_BYTES: usize = 24;

/// People paste keys with and without the padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An encryption key and its public fingerprint.
#[derive(Clone)]
pub(crate) struct Key {
    cipher: XChaCha20Poly1305,
    text: SecretString,
    id: String,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

impl Key {
    /// A fresh key.
    pub(crate) fn random() -> Result<Self, Error> {
        Ok(Self::from_bytes(&random()?))
    }

    /// Reads 32 bytes of base64, from a setting, a file or the database.
    pub(crate) fn parse(text: &SecretString) -> Option<Self> {
        let bytes = LENIENT.decode(text.expose_secret().trim()).ok()?;
        Some(Self::from_bytes(&<[u8; 32]>::try_from(bytes).ok()?))
    }

    fn from_bytes(bytes: &[u8; 32]) -> Self {
        let id = blake3::derive_key("postrider store: fingerprint of an encryption key", bytes);
        Self {
            cipher: XChaCha20Poly1305::new(bytes.into()),
            text: STANDARD.encode(bytes).into(),
            id: blake3::Hash::from_bytes(id).to_hex()[..16].to_owned(),
        }
    }

    /// Tells keys apart without revealing them.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The key itself, for the one place that keeps it.
    pub(crate) fn expose_text(&self) -> &str {
        self.text.expose_secret()
    }

    /// Encrypts what belongs to `owner`.
    pub(crate) fn seal(&self, owner: &Owner<'_>, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let nonce: [u8; NONCE_BYTES] = random()?;
        let payload = Payload {
            msg: plain,
            aad: &owner.bytes(),
        };
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| Error::Fatal("encryption failed".into()))?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Decrypts what belongs to `owner`; `None` when it is anything else.
    pub(crate) fn open(&self, owner: &Owner<'_>, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        let payload = Payload {
            msg: sealed,
            aad: &owner.bytes(),
        };
        self.cipher.decrypt(&XNonce::from(*nonce), payload).ok()
    }
}

/// Whose secret a box holds.
pub(crate) enum Owner<'a> {
    /// A subscription's header values and signing keys.
    Subscription { tenant: &'a str, id: &'a str },
    /// The key of the token hashes.
    Tokens,
}

impl Owner<'_> {
    /// No tenant and no id of ours holds a zero byte, so no two owners are the same bytes.
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Subscription { tenant, id } => format!("subscription\0{tenant}\0{id}").into(),
            Self::Tokens => b"tokens".to_vec(),
        }
    }
}

/// Bytes from the system's generator.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::Fatal(format!("the system gave no random bytes: {error}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner<'_> = Owner::Subscription {
        tenant: "a",
        id: "sub_1",
    };

    #[test]
    fn a_box_opens_only_for_its_owner_and_its_key() {
        let key = Key::random().unwrap();
        let sealed = key.seal(&OWNER, b"secret").unwrap();
        assert_eq!(key.open(&OWNER, &sealed).unwrap(), b"secret");
        for other in [
            Owner::Subscription {
                tenant: "b",
                id: "sub_1",
            },
            Owner::Subscription {
                tenant: "a",
                id: "sub_2",
            },
            Owner::Tokens,
        ] {
            assert!(key.open(&other, &sealed).is_none());
        }
        assert!(Key::random().unwrap().open(&OWNER, &sealed).is_none());
        let mut bent = sealed.clone();
        *bent.last_mut().unwrap() ^= 1;
        assert!(key.open(&OWNER, &bent).is_none());
        assert!(key.open(&OWNER, &sealed[..10]).is_none());
    }

    #[test]
    fn the_same_plaintext_never_looks_the_same_twice() {
        let key = Key::random().unwrap();
        assert_ne!(
            key.seal(&OWNER, b"secret").unwrap(),
            key.seal(&OWNER, b"secret").unwrap()
        );
    }

    #[test]
    fn a_key_is_read_back_from_its_text_with_or_without_padding() {
        let key = Key::random().unwrap();
        for text in [key.expose_text(), key.expose_text().trim_end_matches('=')] {
            assert_eq!(Key::parse(&text.into()).unwrap().id(), key.id());
        }
        for wrong in [
            "",
            "short",
            &STANDARD.encode([0; 31]),
            &STANDARD.encode([0; 33]),
        ] {
            assert!(Key::parse(&wrong.into()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_key_does_not_print_itself() {
        let key = Key::random().unwrap();
        assert!(!format!("{key:?}").contains(key.expose_text()));
    }
}
