//! Signatures against known answers computed by other implementations.

use event::secret::LiveKey;

use super::*;

/// The example of the Standard Webhooks documents; the answer was recomputed with Python's `hmac`.
const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const BODY: &[u8] = br#"{"test": 2432232314}"#;
const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD_SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
/// The seed 0, 1, … 31; the answer was computed with OpenSSL's ed25519.
const ASYMMETRIC: &str = "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const ASYMMETRIC_SIGNATURE: &str =
    "v1a,yoUrgEkc12aGqm0n4Sydmdz55xJfTz4AsAgieHFjmkR7LJtqVCZOQYzvvHjI5kAey+r4iaBGxTFRrl2iBQxtDQ==";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn now() -> Timestamp {
    at(1_614_265_330)
}

fn signer(keys: &[(&str, Option<Timestamp>)]) -> Signer {
    let live = |(text, expires_at): &(&str, Option<Timestamp>)| LiveKey {
        key: SigningKey::parse(text).expect("a key"),
        expires_at: *expires_at,
    };
    Signer::new(&SigningKeys(keys.iter().map(live).collect()))
}

#[test]
fn the_published_vector_holds() {
    assert_eq!(signer(&[(OLD, None)]).sign(ID, now(), BODY), OLD_SIGNATURE);
}

#[test]
fn an_ed25519_key_signs_as_v1a() {
    assert_eq!(
        signer(&[(ASYMMETRIC, None)]).sign(ID, now(), BODY),
        ASYMMETRIC_SIGNATURE
    );
}

#[test]
fn each_live_key_signs_and_an_expired_one_does_not() {
    let keys = [(ASYMMETRIC, None), (OLD, Some(at(1_614_265_331)))];
    let both = signer(&keys).sign(ID, now(), BODY);
    assert_eq!(both, format!("{ASYMMETRIC_SIGNATURE} {OLD_SIGNATURE}"));
    let keys = [(ASYMMETRIC, None), (OLD, Some(now()))];
    assert_eq!(signer(&keys).sign(ID, now(), BODY), ASYMMETRIC_SIGNATURE);
    assert_eq!(signer(&[]).sign(ID, now(), BODY), "");
}

#[test]
fn id_time_and_body_are_all_signed() {
    let signer = signer(&[(OLD, None)]);
    assert_ne!(signer.sign("msg_other", now(), BODY), OLD_SIGNATURE);
    assert_ne!(signer.sign(ID, at(1_614_265_331), BODY), OLD_SIGNATURE);
    assert_ne!(signer.sign(ID, now(), b"{}"), OLD_SIGNATURE);
}
