//! What is carried: a parcel on its way out, a message handed in, and the ticket that settles it.
//!
//! Nothing here knows which broker carries it.

use std::{fmt, time::SystemTime};

use bytes::Bytes;

/// Where a parcel goes. The only addresses a stage can name; the topology maps them to exchanges
/// and queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The exchange services publish to, with the event's type as routing key.
    Events {
        /// The event's type, or [`BATCH_KEY`] for several events in one parcel.
        routing_key: String,
    },
    /// Bundles for the deliverers, at once.
    Deliver,
    /// A bundle for the deliverers, not before this time. The broker keeps it durably and a
    /// consumer of [`Queue::Deliver`] never sees it early; it may be late by 1 s or 1 % of the
    /// wait, whichever is more.
    DeliverAt(SystemTime),
    /// Deliveries that will not be tried again.
    Dead,
    /// Messages that can never be processed.
    Quarantine,
    /// Events that were routed, for the recorder.
    Archive,
    /// What became of deliveries, for the recorder.
    Log,
}

/// The routing key of a parcel that holds several events (a JSON array of events), published by
/// the HTTP intake so that a batch is taken whole or not at all.
pub const BATCH_KEY: &str = "postrider.batch";

/// The header that says when a delayed parcel is due, in milliseconds since 1970. Set by the
/// broker from [`Route::DeliverAt`], never by a stage; a stage may read it to see how late it is.
pub const DUE_HEADER: &str = "x-postrider-due";

/// What a stage may consume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Queue {
    /// Everything published to the events exchange.
    Inbox,
    /// Bundles that are due.
    Deliver,
    /// Dead letters.
    Dead,
    /// Quarantined messages.
    Quarantine,
    /// Routed events.
    Archive,
    /// Outcomes of deliveries.
    Log,
}

impl Queue {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Inbox,
        Self::Deliver,
        Self::Dead,
        Self::Quarantine,
        Self::Archive,
        Self::Log,
    ];
}

/// A message on its way out of a stage.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// Where it goes.
    pub route: Route,
    /// Unique enough to match a returned message with its publish; for [`Route::Events`] the
    /// event's id. At most 255 bytes travel.
    pub message_id: String,
    /// `application/json` unless the body is somebody else's.
    pub content_type: Option<String>,
    /// Content encoding, copied only for quarantined messages.
    pub content_encoding: Option<String>,
    /// Our own headers (`x-postrider-…`), text only; of a quarantined message also those of a
    /// CloudEvent.
    pub headers: Vec<(String, String)>,
    /// The bytes.
    pub body: Bytes,
}

impl Parcel {
    /// A JSON parcel without headers.
    pub fn json(route: Route, message_id: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            route,
            message_id: message_id.into(),
            content_type: Some("application/json".into()),
            content_encoding: None,
            headers: Vec::new(),
            body: body.into(),
        }
    }
}

/// Why a parcel was not taken. It may have been, nevertheless, where the connection broke between
/// storing and confirming: publishing again can make a duplicate, never a loss.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No connection to the broker now.
    #[error("the broker is not connected")]
    Unavailable,
    /// The broker has an alarm (memory, disk) and takes nothing.
    #[error("the broker is blocked: {0}")]
    Blocked(String),
    /// The queue is full, or its node could not store it.
    #[error("the broker refused the message (queue full or not available)")]
    Rejected,
    /// No queue is bound where it should go.
    #[error("the message could not be routed: {0}")]
    Unroutable(String),
    /// This process is closing its broker.
    #[error("the broker connection is closed")]
    Closed,
}

/// A message handed to a stage. It stays the broker's until its [`Ticket`] is settled.
#[derive(Debug)]
pub struct Received {
    /// The bytes as published.
    pub body: Bytes,
    /// AMQP `message_id`.
    pub message_id: Option<String>,
    /// AMQP `content_type`.
    pub content_type: Option<String>,
    /// AMQP `content_encoding`.
    pub content_encoding: Option<String>,
    /// AMQP `user_id`, validated by the broker.
    pub user_id: Option<String>,
    /// `x-postrider-…` headers with text values, and those of a CloudEvent (`cloudEvents:…`,
    /// `cloudEvents_…`, `ce-…`) as text; no other: the rest is forgeable noise.
    pub headers: Vec<(String, String)>,
    /// `exchange/routing-key` it came in by, for people.
    pub source: String,
    /// Whether it was handed out before and came back. After a crash it may also be set on
    /// messages that nobody had seen: nobody can know.
    pub redelivered: bool,
    /// How often it came back, where the broker counts.
    pub returns: u32,
    /// Settles it.
    pub ticket: Ticket,
}

/// Must be settled exactly once: `ack` when everything made from the message is confirmed.
/// Dropping it unsettled leaves the message the broker's: it is redelivered when the consumer or
/// the connection ends, so dropping is for shutting down; use [`Ticket::give_back`] otherwise.
#[derive(Debug)]
pub struct Ticket {
    settle: Option<Box<dyn Settle>>,
}

/// How a broker settles a message; implemented by each broker, called by [`Ticket`]. Both calls
/// return at once: the broker settles in the background, in batches.
pub trait Settle: Send + Sync + fmt::Debug {
    /// The message is done with.
    fn ack(self: Box<Self>);
    /// The message goes back to its queue and is redelivered.
    fn give_back(self: Box<Self>);
    /// Whether settling would change nothing any more; see [`Ticket::is_void`].
    fn is_void(&self) -> bool {
        false
    }
}

impl Ticket {
    /// A ticket that settles by `settle`.
    pub fn new(settle: Box<dyn Settle>) -> Self {
        Self {
            settle: Some(settle),
        }
    }

    /// The message is done with: everything made from it is confirmed.
    pub fn ack(mut self) {
        if let Some(settle) = self.settle.take() {
            settle.ack();
        }
    }

    /// Whether the broker has taken the message back already, because the channel it came by is
    /// gone: it is handed out again, so that whatever is made from this copy is made twice.
    pub fn is_void(&self) -> bool {
        self.settle.as_ref().is_none_or(|settle| settle.is_void())
    }

    /// The message goes back and is handed out again (to anybody). Never in a hot loop.
    pub fn give_back(mut self) {
        if let Some(settle) = self.settle.take() {
            settle.give_back();
        }
    }
}
