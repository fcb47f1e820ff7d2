//! What is remembered of events and deliveries: written by the recorder, read by the console.
//!
//! A delivery has one row that only ever moves forward, and one row for each attempt. Records come
//! in any order and more than once; whatever the order, the rows end the same.

pub(crate) mod days;
mod deliveries;
mod events;
pub(crate) mod health;
mod periods;
mod record;

pub(crate) use deliveries::changed_deliveries;
pub(crate) use events::{Whole, changed_events, listens};
pub use record::progress;

use std::collections::BTreeMap;

use event::{
    DeliveryId, Event, EventId, EventType, SubscriptionId, Tenant,
    delivery::Purpose,
    log::Attempt,
    reason::{DeadReason, DeliveryState},
};
use jiff::{Timestamp, civil::Date};
use serde::Serialize;

/// Nanoseconds in a day.
pub(crate) const DAY: i64 = 86_400 * 1_000_000_000;

/// What one call of [`crate::Store::record`] wrote. Records that were known already count nothing.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// Events that were not known.
    pub events: u64,
    /// Deliveries that are new or have moved forward.
    pub deliveries: u64,
    /// Attempts that were not known.
    pub attempts: u64,
    /// Subscriptions of which an attempt failed that was not known, and none has succeeded since.
    pub failing: Vec<SubscriptionId>,
}

/// Filters of the delivery list; all given must hold.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// By subscription.
    pub subscription: Option<SubscriptionId>,
    /// By event.
    pub event: Option<EventId>,
    /// By state.
    pub state: Option<DeliveryState>,
    /// By reason of death.
    pub reason: Option<DeadReason>,
    /// By event type, exactly.
    pub kind: Option<String>,
    /// Accepted at or after.
    pub since: Option<Timestamp>,
    /// Accepted before.
    pub until: Option<Timestamp>,
}

/// One delivery as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeliveryRow {
    /// The same on every attempt and run.
    pub id: DeliveryId,
    /// The event.
    pub event_id: EventId,
    /// Whom it is for.
    pub subscription_id: SubscriptionId,
    /// Whose it is.
    pub tenant: Tenant,
    /// The event's type.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// Where it stands.
    pub state: DeliveryState,
    /// Of a dead one: why.
    pub reason: Option<DeadReason>,
    /// Attempts made in this run.
    pub attempts: u32,
    /// 0 the first, one more for each redrive or replay.
    pub run: u32,
    /// Why it was made.
    pub purpose: Purpose,
    /// One sentence for people, where there is something to say.
    pub detail: Option<String>,
    /// Of a filtered one: the clause that stopped it.
    pub clause: Option<String>,
    /// Of a retrying one: when the next attempt is due.
    pub due: Option<Timestamp>,
    /// When the router accepted the event.
    pub accepted_at: Timestamp,
    /// When it came to stand so.
    pub updated_at: Timestamp,
    /// The status of the last attempt, where one came.
    pub last_status: Option<u16>,
}

/// One delivery with its attempts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeliveryRecord {
    /// As it stands.
    #[serde(flatten)]
    pub delivery: DeliveryRow,
    /// Every attempt that is on record, oldest first.
    pub history: Vec<LoggedAttempt>,
}

/// An attempt and the run it was made in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoggedAttempt {
    /// 0 the first.
    pub run: u32,
    /// The attempt.
    #[serde(flatten)]
    pub attempt: Attempt,
}

/// How a log is divided, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// By day.
    Day,
    /// By week, which begins on Monday.
    Week,
    /// By month.
    Month,
}

/// The deliveries of one period, counted by state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeriodCount {
    /// The period's first day.
    pub start: Date,
    /// How many there are.
    pub total: u64,
    /// How many there are in each state; a state without any is left out.
    pub states: BTreeMap<DeliveryState, u64>,
}

/// Filters of the event list; all given must hold.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// By type, exactly.
    pub kind: Option<String>,
    /// Accepted at or after.
    pub since: Option<Timestamp>,
    /// Accepted before.
    pub until: Option<Timestamp>,
    /// One of the resources it names as its subject; a number as its digits.
    pub subject: Option<String>,
}

/// An event as lists show it: without payloads.
#[derive(Debug, Clone, Serialize)]
pub struct EventRow {
    /// The event; never with payloads.
    #[serde(flatten)]
    pub event: Event,
    /// When the router accepted it.
    pub accepted_at: Timestamp,
    /// The revision of the subscriptions it was matched against.
    pub revision: u64,
    /// How large it was as published, in bytes.
    pub bytes: u64,
    /// The subscriptions that matched.
    pub matched: Vec<SubscriptionId>,
    /// When its payloads were expunged, where they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expunged_at: Option<Timestamp>,
}

/// An event and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct EventRecord {
    /// The event, with its payloads where they were archived.
    #[serde(flatten)]
    pub event: Event,
    /// When the router accepted it.
    pub accepted_at: Timestamp,
    /// The revision of the subscriptions it was matched against.
    pub revision: u64,
    /// How large it was as published, in bytes.
    pub bytes: u64,
    /// The subscriptions that matched.
    pub matched: Vec<SubscriptionId>,
    /// When its payloads were expunged, where they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expunged_at: Option<Timestamp>,
    /// Its deliveries, at most [`EVENT_DELIVERIES_MAX`].
    pub deliveries: Vec<DeliveryRow>,
}

/// How many deliveries an [`EventRecord`] holds at most; the delivery list has all.
pub const EVENT_DELIVERIES_MAX: usize = 1000;

/// The day that a time is of.
pub(crate) fn day_of(nanoseconds: i64) -> i64 {
    nanoseconds.div_euclid(DAY)
}
