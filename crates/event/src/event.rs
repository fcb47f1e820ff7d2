//! The event, as contract section 1 has it, and its type.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::id::{BadId, EventId, Tenant};

/// The largest event, in bytes, as published: 256 KiB.
pub const EVENT_BYTES_MAX: usize = 256 * 1024;

/// What an intake may add to an event in bytes: its id, tenant and time.
pub const FILLED_IN_BYTES_MAX: usize = 512;

/// One thing that happened, as published.
///
/// Built by [`crate::admission`] from untrusted bytes; deserialized directly only from our own
/// queues. `data`, `changes` and `details` are kept byte for byte.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// Unique per tenant.
    pub id: EventId,
    /// Whose event it is.
    pub tenant: Tenant,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// When it happened; the time of acceptance where the publisher gave none.
    pub time: Timestamp,
    /// The resource's own id or ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Subject>,
    /// The resource's status after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The resource's status before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_status: Option<String>,
    /// Grows with each change of the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// After this an undelivered webhook is worthless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The full view: the whole record. `null` is a record too, and is not the same as none.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub data: Option<Box<RawValue>>,
    /// The basic view: only what was saved. A JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Box<RawValue>>,
    /// The extended view: the record with everything around it. A JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<RawValue>>,
    /// How many webhooks in a row led to it, as far as their receivers hand [`DEPTH_HEADER`] on.
    /// Not part of an event as published: it travels beside it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub depth: u8,
}

/// Says in a delivery, and in whatever its receiver publishes because of it, how many webhooks in a
/// row there have been.
pub const DEPTH_HEADER: &str = "webhook-depth";

/// An event that so many webhooks in a row led to goes round in circles.
pub const DEPTH_MAX: u8 = 8;

/// Reads the value of a [`DEPTH_HEADER`]. What is no number is none of ours.
pub fn depth(value: &str) -> u8 {
    match value.parse() {
        Ok(depth) => depth,
        Err(_) if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => u8::MAX,
        Err(_) => 0,
    }
}

fn is_zero(depth: &u8) -> bool {
    *depth == 0
}

/// Reads a field that is there, also when it is `null`, which an `Option` would take for absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

impl Event {
    /// Whether it has any of its views.
    pub fn has_payload(&self) -> bool {
        self.data.is_some() || self.changes.is_some() || self.details.is_some()
    }

    /// The event without its views: who, what and when, for whoever keeps no payloads.
    #[must_use]
    pub fn bare(&self) -> Self {
        Self {
            id: self.id.clone(),
            tenant: self.tenant.clone(),
            kind: self.kind.clone(),
            time: self.time,
            subject: self.subject.clone(),
            status: self.status.clone(),
            previous_status: self.previous_status.clone(),
            version: self.version,
            expires_at: self.expires_at,
            data: None,
            changes: None,
            details: None,
            depth: self.depth,
        }
    }

    /// Whether the status is known to have changed: the action says so, or before and after differ.
    pub fn status_changed(&self) -> bool {
        self.kind.action() == "status_changed"
            || matches!((&self.previous_status, &self.status), (Some(before), Some(after)) if before != after)
    }
}

/// `entity.action`, both lower snake case; after `custom.` the action keeps its own case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventType {
    text: Box<str>,
    dot: usize,
}

/// The longest event type, in bytes.
pub const TYPE_BYTES_MAX: usize = 128;

/// The grammar of an event type, for messages.
pub const TYPE_GRAMMAR: &str = "`entity.action`, both of a-z 0-9 _ and beginning with a letter, such as `appointment.created`, or `custom.anyName`; at most 128 bytes";

impl EventType {
    /// Parses `entity.action`, or says what the grammar is.
    pub fn parse(text: &str) -> Result<Self, BadId> {
        let wrong = || BadId(format!("must be {TYPE_GRAMMAR}"));
        let (entity, action) = text.split_once('.').ok_or_else(wrong)?;
        let snake = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_lowercase())
                && word
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        let own_case = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_alphabetic())
                && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        let action_fits = if entity == "custom" {
            own_case(action)
        } else {
            snake(action)
        };
        if text.len() > TYPE_BYTES_MAX || !snake(entity) || !action_fits {
            return Err(wrong());
        }
        Ok(Self {
            text: text.into(),
            dot: entity.len(),
        })
    }

    /// What it happened to.
    pub fn entity(&self) -> &str {
        &self.text[..self.dot]
    }

    /// What happened to it.
    pub fn action(&self) -> &str {
        &self.text[self.dot + 1..]
    }

    /// The whole, which is also the AMQP routing key.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for EventType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for EventType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::id::parsed(deserializer, Self::parse)
    }
}

/// The resource's own id or ids: a string, a number, or an array of those, as published.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Subject(pub Box<RawValue>);

impl Subject {
    /// The resources that are named, at most `count_max`: texts as they are, numbers as their
    /// digits, so that `"10"` and `10` are the same resource.
    pub fn ids(&self, count_max: usize) -> Vec<String> {
        let all: Vec<Box<RawValue>> =
            serde_json::from_str(self.0.get()).unwrap_or_else(|_| vec![self.0.clone()]);
        let text = |raw: Box<RawValue>| {
            serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned())
        };
        all.into_iter().take(count_max).map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_an_entity_and_an_action() {
        let kind = EventType::parse("package_order.status_changed").unwrap();
        assert_eq!(
            (kind.entity(), kind.action()),
            ("package_order", "status_changed")
        );
        assert_eq!(kind.as_str(), "package_order.status_changed");
        let own = EventType::parse("custom.onAddItemCart2").unwrap();
        assert_eq!((own.entity(), own.action()), ("custom", "onAddItemCart2"));
        let longest = format!("a.{}", "b".repeat(TYPE_BYTES_MAX - 2));
        assert!(EventType::parse(&longest).is_ok());
        for bad in [
            "",
            ".",
            "a",
            "a.",
            ".b",
            "a.b.c",
            "A.b",
            "a.B",
            "1a.b",
            "a.1b",
            "_a.b",
            "a b.c",
            "a.b ",
            "custom.1a",
            "Custom.on",
            "é.a",
            &format!("{longest}b"),
        ] {
            assert!(EventType::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_subject_names_one_resource_or_several() {
        let ids = |json: &str, most| {
            let subject: Subject = serde_json::from_str(json).unwrap();
            subject.ids(most)
        };
        assert_eq!(ids(r#""a\u0062""#, 9), ["ab"]);
        assert_eq!(ids("10", 9), ["10"]);
        assert_eq!(ids(r#"[10, "10", 1.50]"#, 9), ["10", "10", "1.50"]);
        assert_eq!(ids("[1, 2, 3]", 2), ["1", "2"]);
        assert!(ids("[]", 9).is_empty());
    }

    #[test]
    fn data_that_is_null_is_not_data_that_is_absent() {
        let text =
            r#"{"id":"e","tenant":"t","type":"a.b","time":"2026-03-01T12:00:00Z","data":null}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        assert_eq!(event.data.as_ref().map(|data| data.get()), Some("null"));
        assert_eq!(serde_json::to_string(&event).unwrap(), text);
        let without = text.replace(r#","data":null"#, "");
        let event: Event = serde_json::from_str(&without).unwrap();
        assert!(event.data.is_none());
        assert_eq!(serde_json::to_string(&event).unwrap(), without);
    }
}
