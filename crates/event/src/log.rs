//! What is remembered: the records that the router and the deliverers send to the recorder.
//!
//! The router archives every event with the subscriptions that it matched; a deliverer logs what
//! became of each delivery. Both go in batches through queues of their own, so that the store is
//! never on the delivery path. A record may arrive twice and in any order: recording is idempotent
//! and a later state of a delivery is told by [`LogEntry::run`], [`LogEntry::attempts`] and
//! [`LogEntry::at`].

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    delivery::{Item, Purpose, Recipient},
    event::{Event, EventType},
    id::{DeliveryId, EventId, SubscriptionId, Tenant},
    reason::{AttemptError, DeadReason, DeliveryState},
    subscription::View,
};

/// How much is remembered: `recorder.archive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Archive {
    /// Every event whole, every delivery and every attempt with its response.
    #[default]
    Full,
    /// The same without payloads: no `data`, `changes`, `details`, no response bodies.
    Headers,
    /// No event, delivery or attempt. Dead letters and quarantine are kept all the same.
    Off,
}

/// What one parcel on the archive queue holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ArchiveBatch {
    /// In the order they were routed.
    pub events: Vec<Archived>,
}

/// One routed event and who matched.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Archived {
    /// The event; without its payloads where `recorder.archive` is `headers`.
    pub event: Arc<Event>,
    /// When the router accepted it.
    pub accepted_at: Timestamp,
    /// The revision of the subscriptions that it was matched against.
    pub revision: u64,
    /// How large the event was as published, in bytes.
    pub bytes: u64,
    /// The subscriptions that matched, each once; each is a delivery, `pending` until logged.
    pub matched: Vec<SubscriptionId>,
}

/// What one parcel on the log queue holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LogBatch {
    /// In the order things happened in one process.
    #[serde(default)]
    pub entries: Vec<LogEntry>,
    /// Deliveries that are kept until their subscription is resumed. Whoever publishes one has
    /// handed it over: it is nowhere else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldDelivery>,
}

/// A delivery that is kept because its subscription is paused or disabled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HeldDelivery {
    /// When it was found to be so.
    pub at: Timestamp,
    /// The event and its one recipient, as it would have been sent.
    pub item: Item,
}

/// What became of a delivery in one turn: an attempt, or an end without one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// The event's id.
    pub event_id: EventId,
    /// Whom it is for.
    pub subscription_id: SubscriptionId,
    /// Whose it is.
    pub tenant: Tenant,
    /// The event's type.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// When the router accepted the event.
    pub accepted_at: Timestamp,
    /// When this was so.
    pub at: Timestamp,
    /// Why the delivery was made.
    #[serde(default, skip_serializing_if = "Purpose::is_live")]
    pub purpose: Purpose,
    /// Which run: 0 the first, one more for each redrive or replay.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub run: u32,
    /// Attempts made in this run so far.
    pub attempts: u32,
    /// Where the delivery stands now.
    pub state: DeliveryState,
    /// Why it died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<DeadReason>,
    /// One sentence for people: of a dead one its end; of a filtered one the clause and what it
    /// found; of a held one why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Of a filtered one: the clause (`actions`, `where`, `type`, …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clause: Option<String>,
    /// Of a retrying one: when the next attempt is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Timestamp>,
    /// The attempt that led here; `None` where none was made in this turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Box<Attempt>>,
}

impl LogEntry {
    /// A run of a delivery that somebody asked for and that has not begun.
    pub fn pending(
        event: &Event,
        subscription_id: &SubscriptionId,
        accepted_at: Timestamp,
        (purpose, run): (Purpose, u32),
        at: Timestamp,
    ) -> Self {
        Self {
            delivery_id: DeliveryId::of(&event.tenant, &event.id, subscription_id),
            event_id: event.id.clone(),
            subscription_id: subscription_id.clone(),
            tenant: event.tenant.clone(),
            kind: event.kind.clone(),
            accepted_at,
            at,
            purpose,
            run,
            attempts: 0,
            state: DeliveryState::Pending,
            reason: None,
            detail: None,
            clause: None,
            due: None,
            attempt: None,
        }
    }
}

impl HeldDelivery {
    /// What the log says when a held delivery ends without having been sent by a deliverer.
    /// `attempts` is how many were made in this run.
    pub fn ended(
        item: &Item,
        to: &Recipient,
        (state, attempts): (DeliveryState, u32),
        at: Timestamp,
    ) -> LogEntry {
        LogEntry {
            attempts,
            state,
            ..LogEntry::pending(
                &item.event,
                &to.subscription,
                item.accepted_at,
                (to.purpose, to.run),
                at,
            )
        }
    }
}

/// One attempt, in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// 1 for the first of its run.
    pub number: u32,
    /// When it began.
    pub at: Timestamp,
    /// How long each part took.
    pub timing: Timing,
    /// Which view was really sent.
    pub view: View,
    /// The request's headers as sent, in order, values that are secret as `***`.
    pub request_headers: Vec<(String, String)>,
    /// BLAKE3 of the request's body, hexadecimal.
    pub body_hash: String,
    /// The length of the request's body, in bytes.
    pub body_bytes: u64,
    /// The response's status, where one came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The response's headers, in order, at most 16 KiB together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<(String, String)>,
    /// The first 16 KiB of the response's body as text, control characters escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// What went wrong; `None` is success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<AttemptError>,
    /// A short explanation for people, without payload or secret, at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// How long the parts of an attempt took, in microseconds; a part that did not happen (a
/// connection used again, an answer that never came) is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Timing {
    /// Resolving the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<u64>,
    /// Connecting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<u64>,
    /// The TLS handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<u64>,
    /// From the request's beginning to the response's first byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte: Option<u64>,
    /// The whole.
    pub total: u64,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}
