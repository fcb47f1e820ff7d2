//! How parcels travel: the topology as data, and the two seams behind which RabbitMQ and the
//! embedded broker are alike.
//!
//! A stage sees [`Publish`] and [`Consume`] and nothing of lapin, of SQLite, of channels, tiers or
//! reconnection. Both brokers pass one contract suite (`tests/`): publish, consume, ack,
//! redeliver, delay, dead, limit, shutdown.
#![warn(missing_docs)]

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

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
}

/// The routing key of a parcel that holds several events (a JSON array of events), published by
/// the HTTP intake so that a batch is taken whole or not at all.
pub const BATCH_KEY: &str = "postrider.batch";

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
}

/// A message on its way out of a stage.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// Where it goes.
    pub route: Route,
    /// Unique enough to match a returned message with its publish; for [`Route::Events`] the
    /// event's id.
    pub message_id: String,
    /// `application/json` unless the body is somebody else's.
    pub content_type: Option<String>,
    /// Content encoding, copied only for quarantined messages.
    pub content_encoding: Option<String>,
    /// Our own headers (`x-postrider-…`), text only.
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
#[derive(Debug, Clone, thiserror::Error)]
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

/// The seam out.
///
/// `publish` resolves once the broker has stored the parcel durably (confirm, and not returned),
/// or with the reason it has not. It fails at once while the broker is away or blocked: who must
/// not give up uses [`publish_until_taken`]. Safe to call from many tasks; many publishes in
/// flight at once are what makes it fast.
pub trait Publish: Send + Sync + fmt::Debug {
    /// Stores one parcel.
    fn publish(&self, parcel: Parcel) -> BoxFuture<'_, Result<(), PublishError>>;
}

/// The seam in.
pub trait Consume: Send + Sync + fmt::Debug {
    /// The next message; `None` after `stop`, when no more will come. It survives reconnection
    /// by itself: while the broker is away it waits. Cancel safe.
    fn next(&mut self) -> BoxFuture<'_, Option<Received>>;

    /// Stops taking new messages and gives back those not yet handed out. What was handed out can
    /// still be settled. `next` yields what it already holds, then `None`.
    fn stop(&mut self) -> BoxFuture<'_, ()>;
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
    /// `x-postrider-…` headers with text values, and no other: the rest is forgeable noise.
    pub headers: Vec<(String, String)>,
    /// `exchange/routing-key` it came in by, for people.
    pub source: String,
    /// Whether it was handed out before and came back.
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
}

impl Ticket {
    /// A ticket that settles by `settle`.
    pub fn new(settle: Box<dyn Settle>) -> Self {
        Self { settle: Some(settle) }
    }

    /// The message is done with: everything made from it is confirmed.
    pub fn ack(mut self) {
        if let Some(settle) = self.settle.take() {
            settle.ack();
        }
    }

    /// The message goes back and is handed out again (to anybody). Never in a hot loop.
    pub fn give_back(mut self) {
        if let Some(settle) = self.settle.take() {
            settle.give_back();
        }
    }
}

/// How the broker is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Both connections are up and the topology is declared.
    pub connected: bool,
    /// Why it takes no publishes, where it has an alarm.
    pub blocked: Option<String>,
    /// How often it was connected anew since the start.
    pub reconnects: u64,
}

/// An open broker, whichever it is. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Broker {
    backend: Arc<dyn Backend>,
}

/// What each broker implements.
pub trait Backend: Send + Sync + fmt::Debug {
    /// A handle to publish with.
    fn publisher(&self) -> Arc<dyn Publish>;
    /// A consumer holding at most `prefetch` unsettled messages.
    fn consume(&self, queue: Queue, prefetch: u16) -> BoxFuture<'_, Box<dyn Consume>>;
    /// How it is, now and as it changes.
    fn status(&self) -> watch::Receiver<Status>;
    /// How many messages wait in each queue (`postrider_queue_messages{queue}`), by queue name.
    fn depths(&self) -> BoxFuture<'_, Vec<(String, u64)>>;
    /// Settles what is on its way (acks, confirms), then closes. Publishing after it is `Closed`.
    fn close(&self) -> BoxFuture<'_, ()>;
}

impl Broker {
    /// A handle to publish with.
    pub fn publisher(&self) -> Arc<dyn Publish> {
        self.backend.publisher()
    }

    /// A consumer holding at most `prefetch` unsettled messages.
    pub async fn consume(&self, queue: Queue, prefetch: u16) -> Box<dyn Consume> {
        self.backend.consume(queue, prefetch).await
    }

    /// How it is, now and as it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.backend.status()
    }

    /// How many messages wait in each queue, by queue name.
    pub async fn depths(&self) -> Vec<(String, u64)> {
        self.backend.depths().await
    }

    /// Settles what is on its way, then closes.
    pub async fn close(&self) {
        self.backend.close().await;
    }
}

/// `[broker]` of the settings.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `embedded://PATH` (a folder) or `amqp(s)://user:password@host:port/vhost`. A secret.
    pub url: String,
    /// A PEM file with the authorities to trust for `amqps`, besides the system's.
    pub ca_file: Option<std::path::PathBuf>,
    /// AMQP heartbeat; 5 s to 60 s.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "embedded://./postrider-data".into(),
            ca_file: None,
            heartbeat: Duration::from_secs(10),
        }
    }
}

/// Why a broker could not be opened at all: somebody must act. A RabbitMQ that is merely away is
/// not such a reason; it is waited for.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL cannot be used; never contains the password.
    #[error("broker.url: {0}")]
    Url(String),
    /// Another process has the embedded broker's folder open.
    #[error("the embedded broker in {path} is in use by another process{by}; stop it, choose another folder with broker.url = \"embedded://PATH\", or use RabbitMQ to run several processes")]
    InUse {
        /// The folder.
        path: String,
        /// ` (process 123)` where known.
        by: String,
    },
    /// Files, certificates, declared queues that differ, …
    #[error("{0}")]
    Other(String),
}

impl Broker {
    /// Opens the broker that `settings.url` names. RabbitMQ: returns at once and connects in the
    /// background, again and again; `status` tells. Embedded: opens the folder or says why not.
    pub async fn open(settings: &Settings) -> Result<Self, OpenError> {
        let _ = settings;
        todo!("broker: open")
    }
}

/// Publishes until the broker takes it: waits out reconnects, alarms and full queues with a short
/// pause between tries. Ends with an error only when the broker is closed (the process is
/// stopping), and then the caller must not ack what the parcel was made from.
pub async fn publish_until_taken(
    publisher: &dyn Publish,
    parcel: Parcel,
) -> Result<(), PublishError> {
    let _ = (publisher, parcel);
    todo!("broker: publish_until_taken")
}
