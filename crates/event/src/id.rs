//! Identifiers, each its own type, parsed at the edge and never a bare `String` inside.

use std::{borrow::Borrow, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadId(pub String);

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses the text, or says what is wrong with it.
            pub fn parse(text: &str) -> Result<Self, BadId> {
                $check(text)?;
                Ok(Self(text.into()))
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                parsed(deserializer, Self::parse)
            }
        }
    };
}

text_id!(
    /// Unique per tenant; the dedup key and the `webhook-id`. 1 to 128 visible ASCII, no `.`, because
    /// the signature scheme joins id, timestamp and body with dots.
    EventId,
    check_event_id
);
text_id!(
    /// Whose event or subscription it is: 1 to 128 of `A-Za-z0-9_-:`.
    Tenant,
    check_tenant
);
text_id!(
    /// `sub_` and 32 hex digits (a UUIDv7), made by us.
    SubscriptionId,
    check_own_id
);
text_id!(
    /// `dlv_` and 32 hex digits, derived from tenant, event and subscription: the same on every
    /// attempt, every redelivery and every process.
    DeliveryId,
    check_own_id
);
text_id!(
    /// `dl_` and 32 hex digits, derived from a delivery and its run: recording one twice is one.
    DeadLetterId,
    check_own_id
);
text_id!(
    /// The public part of an API token, `pr_<id>_<secret>`.
    TokenId,
    check_own_id
);

text_id!(
    /// `job_` and 32 hex digits (a UUIDv7), made by us: a replay, a redrive or a resume.
    JobId,
    check_own_id
);

/// Reads a text and parses it where it stands. (`Cow` would copy it first: it always owns what it
/// deserializes.) Every id of every delivery passes here.
pub(crate) fn parsed<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: fn(&str) -> Result<T, BadId>,
) -> Result<T, D::Error> {
    struct Text<T>(fn(&str) -> Result<T, BadId>);
    impl<T> de::Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            self.0(text).map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Text(parse))
}

fn check_event_id(text: &str) -> Result<(), BadId> {
    if text.is_empty() || text.len() > 128 {
        return Err(BadId(format!(
            "must be 1 to 128 characters, got {}",
            text.chars().count()
        )));
    }
    if text.contains('.') {
        return Err(BadId(
            "must not contain `.` (the signature scheme joins with dots)".into(),
        ));
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(BadId("must be visible ASCII without spaces".into()));
    }
    Ok(())
}

fn check_tenant(text: &str) -> Result<(), BadId> {
    if text.is_empty() || text.len() > 128 {
        return Err(BadId(format!(
            "must be 1 to 128 characters, got {}",
            text.chars().count()
        )));
    }
    if !text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b':'))
    {
        return Err(BadId("must be of `A-Za-z0-9_-:`".into()));
    }
    Ok(())
}

fn check_own_id(text: &str) -> Result<(), BadId> {
    let fits = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if fits {
        Ok(())
    } else {
        Err(BadId("not an identifier of ours".into()))
    }
}

impl SubscriptionId {
    /// A fresh identifier, growing with time.
    pub fn fresh() -> Self {
        Self(format!("sub_{}", uuid::Uuid::now_v7().simple()).into())
    }

    /// A fresh identifier for a listener's subscription: one for the time being, whose deliveries
    /// are held until its listener takes them.
    pub fn fresh_listener() -> Self {
        Self(format!("{LISTENER}{}", uuid::Uuid::now_v7().simple()).into())
    }

    /// Whether it is a listener's. The id tells, so that everybody knows it without asking, also
    /// of one that is no more.
    pub fn is_listener(&self) -> bool {
        self.0.starts_with(LISTENER)
    }
}

/// How the ids of listeners' subscriptions begin.
const LISTENER: &str = "sub_listen_";

impl JobId {
    /// A fresh identifier, growing with time.
    pub fn fresh() -> Self {
        Self(format!("job_{}", uuid::Uuid::now_v7().simple()).into())
    }
}

impl EventId {
    /// A fresh identifier for an event that came without one: a UUIDv7.
    pub fn fresh() -> Self {
        Self(uuid::Uuid::now_v7().to_string().into())
    }
}

impl DeliveryId {
    /// The delivery of one event to one subscription.
    pub fn of(tenant: &Tenant, event: &EventId, subscription: &SubscriptionId) -> Self {
        let parts = [tenant.as_str(), event.as_str(), subscription.as_str()];
        Self(derived("dlv_", &parts).into())
    }
}

impl DeadLetterId {
    /// The dead letter of one run (0 = the first; each redrive begins another) of a delivery.
    pub fn of(delivery: &DeliveryId, run: u32) -> Self {
        Self(derived("dl_", &[delivery.as_str(), &run.to_string()]).into())
    }
}

/// 128 bits over length-prefixed parts, so that no two lists of parts run together.
fn derived(prefix: &str, parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let hex = hasher.finalize().to_hex();
    format!("{prefix}{}", &hex[..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(tenant: &str, event: &str, subscription: &str) -> DeliveryId {
        let tenant = Tenant::parse(tenant).unwrap();
        let event = EventId::parse(event).unwrap();
        DeliveryId::of(
            &tenant,
            &event,
            &SubscriptionId::parse(subscription).unwrap(),
        )
    }

    #[test]
    fn derived_ids_are_the_same_in_every_process() {
        // Written down: a release that derives others would deliver everything under way twice.
        let id = delivery("salon-17", "e-1", "sub_1");
        assert_eq!(id.as_str(), "dlv_49374cd8f5cf76dd2063378a648dc4de");
        assert_eq!(
            DeadLetterId::of(&id, 0).as_str(),
            "dl_45e668fe145250410163e5513c0993cc"
        );
    }

    #[test]
    fn derived_ids_differ_with_every_part() {
        let all = [
            delivery("a", "b", "c"),
            delivery("ab", "b", "c"),
            delivery("a", "bb", "c"),
            delivery("a", "b", "cc"),
            // The same letters, divided otherwise.
            delivery("ab", "c", "d"),
            delivery("a", "bc", "d"),
        ];
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        let dead = |run| DeadLetterId::of(&all[0], run);
        assert_eq!(dead(1), dead(1));
        assert_ne!(dead(0), dead(1));
    }

    #[test]
    fn fresh_ids_parse_and_differ() {
        let (one, two) = (SubscriptionId::fresh(), SubscriptionId::fresh());
        assert_ne!(one, two);
        assert_eq!(SubscriptionId::parse(one.as_str()).unwrap(), one);
        assert_eq!(
            EventId::parse(EventId::fresh().as_str())
                .unwrap()
                .as_str()
                .len(),
            36
        );
    }

    #[test]
    fn ids_have_their_grammar() {
        for good in ["a", "A_9-:/#", &"x".repeat(128)] {
            assert!(EventId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a.b", "a b", "a\n", "é", "\u{7f}", &"x".repeat(129)] {
            assert!(EventId::parse(bad).is_err(), "{bad:?}");
            assert!(Tenant::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Tenant::parse("salon:17_B-c").is_ok());
        assert!(Tenant::parse("a/b").is_err());
        assert!(SubscriptionId::parse("sub_1'; --").is_err());
        assert!(
            serde_json::from_str::<Tenant>("\"a/b\"").is_err(),
            "also from our own queues"
        );
    }
}
