//! One event on its way to one subscription, as it stands in our queues.
//!
//! The hop from router to deliverer carries bundles: several events, several recipients each. A
//! retry is a bundle of one event and one recipient, and carries the event itself, so that no
//! look-up can fail.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    event::Event,
    id::{DeadLetterId, DeliveryId, EventId, SubscriptionId, Tenant},
    reason::{AttemptError, DeadReason},
};

/// What one parcel on the deliver queue holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bundle {
    /// The events, in the order they were routed.
    pub items: Vec<Item>,
}

/// One event and whom it goes to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Item {
    /// The event.
    pub event: Arc<Event>,
    /// When it was accepted by the router; the start of `postrider_event_to_first_attempt_seconds`.
    pub accepted_at: Timestamp,
    /// The revision of the subscriptions that the router matched against. A deliverer that knows
    /// an older one cannot tell a new subscription from a deleted one, and must catch up first.
    pub revision: u64,
    /// The subscriptions that matched, each at most once.
    pub to: Vec<Recipient>,
}

/// One delivery: where it goes and what has happened to it so far.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recipient {
    /// The subscription. Its URL and secrets never enter a queue.
    #[serde(rename = "sub")]
    pub subscription: SubscriptionId,
    /// Attempts made so far in this run. Parking is not an attempt.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts: u32,
    /// Why it is made.
    #[serde(default, skip_serializing_if = "Purpose::is_live")]
    pub purpose: Purpose,
    /// How often the delivery has been redriven or replayed by a person.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub run: u32,
    /// How often in a row it was parked: the endpoint could not take it, or is paused.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parked: u32,
    /// Whether it was last recorded as held, so that each of many looks at a paused subscription
    /// is not recorded again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub held: bool,
    /// When the next attempt is due by the schedule; `None` is at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Timestamp>,
    /// The latest attempts, oldest first, at most [`HISTORY_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<AttemptRecord>,
}

/// Why a delivery is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The event happened.
    #[default]
    Live,
    /// A person asked for an example (`POST /v1/subscriptions/{id}/test`): no filter applies, one
    /// attempt is made, and no dead letter remains.
    Test,
    /// A person asked for it again: a redrive, a retry, a replay or a backfill.
    Replay,
}

impl Purpose {
    /// Whether nobody asked for it.
    pub fn is_live(&self) -> bool {
        *self == Self::Live
    }

    /// The word in headers, records and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Test => "test",
            Self::Replay => "replay",
        }
    }
}

/// How many attempts a delivery remembers in its parcel.
pub const HISTORY_MAX: usize = 32;

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn is_false(yes: &bool) -> bool {
    !*yes
}

impl Recipient {
    /// A first delivery to `subscription`.
    pub fn first(subscription: SubscriptionId) -> Self {
        Self {
            subscription,
            attempts: 0,
            purpose: Purpose::Live,
            run: 0,
            parked: 0,
            held: false,
            due: None,
            history: Vec::new(),
        }
    }
}

/// One attempt, in brief: small enough to travel with the delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// 1 for the first.
    pub number: u32,
    /// When it began.
    pub at: Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// The response's status, where one came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What went wrong; `None` is success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<AttemptError>,
    /// A short explanation for people, without payload or secret, at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The first bytes of the response's body as text, escaped, at most 1 KiB; only the last
    /// attempt keeps it while the delivery travels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
}

/// A delivery that will not be tried again, as it stands on `postrider.dead` and in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Derived from delivery and run.
    pub id: DeadLetterId,
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// The event's id.
    pub event_id: EventId,
    /// Whom it was for.
    pub subscription_id: SubscriptionId,
    /// Whose it is.
    pub tenant: Tenant,
    /// The event's type.
    #[serde(rename = "type")]
    pub kind: crate::event::EventType,
    /// Why it died.
    pub reason: DeadReason,
    /// One sentence for people.
    pub detail: String,
    /// Attempts made in the last run.
    pub attempts: u32,
    /// Which run died: 0 the first, one more for each redrive.
    pub run: u32,
    /// When it died.
    pub died_at: Timestamp,
    /// When the event was accepted.
    pub accepted_at: Timestamp,
    /// The attempts, oldest first, the last with the response's first bytes.
    pub history: Vec<AttemptRecord>,
    /// The event itself, so that a redrive needs nothing else.
    pub event: Arc<Event>,
    /// When its event's payloads were expunged: it cannot be redriven any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expunged_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{Envelope, admit};

    fn event() -> Arc<Event> {
        let body = br#"{"id":"e-1","tenant":"t","type":"customer.deleted","subject":[ 1.50,"a" ],
            "data":{ "price" : 12.10,"n":-0, "s":"\u00e9/\/"},"changes":{"a" :1E2}}"#;
        let now = "2026-03-01T12:00:00Z".parse().unwrap();
        let envelope = Envelope {
            now,
            message_id: None,
            tenant: None,
            fresh_id: None,
        };
        Arc::new(admit(body, &envelope).unwrap())
    }

    #[test]
    fn a_bundle_carries_data_byte_for_byte() {
        let event = event();
        let recipient = Recipient::first(SubscriptionId::parse("sub_1").unwrap());
        let item = Item {
            accepted_at: event.time,
            revision: 7,
            to: vec![
                recipient.clone(),
                Recipient {
                    attempts: 2,
                    due: Some(event.time),
                    ..recipient
                },
            ],
            event: Arc::clone(&event),
        };
        let wire = serde_json::to_vec(&Bundle {
            items: vec![item.clone(), item],
        })
        .unwrap();
        let back: Bundle = serde_json::from_slice(&wire).unwrap();
        for item in &back.items {
            let raw = |part: &Option<Box<serde_json::value::RawValue>>| {
                part.as_ref().map(|part| part.get().to_owned())
            };
            assert_eq!(raw(&item.event.data), raw(&event.data));
            assert_eq!(
                raw(&item.event.data).unwrap(),
                r#"{ "price" : 12.10,"n":-0, "s":"\u00e9/\/"}"#
            );
            assert_eq!(raw(&item.event.changes).unwrap(), r#"{"a" :1E2}"#);
            assert_eq!(
                item.event.subject.as_ref().unwrap().0.get(),
                r#"[ 1.50,"a" ]"#
            );
            assert_eq!(item.to[1].attempts, 2);
            assert_eq!(item.to[1].due, Some(event.time));
        }
        assert_eq!(
            serde_json::to_vec(&back).unwrap(),
            wire,
            "and says it the same way again"
        );
    }

    #[test]
    fn a_first_recipient_is_only_its_subscription() {
        let first = Recipient::first(SubscriptionId::parse("sub_1").unwrap());
        assert_eq!(serde_json::to_string(&first).unwrap(), r#"{"sub":"sub_1"}"#);
    }
}
