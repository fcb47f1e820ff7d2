//! Who wants it.
//!
//! take a message -> read its events (or quarantine it) -> match -> bundle -> publish -> ack.
//!
//! A message is acknowledged only after everything made from it is confirmed. This crate judges no
//! filter and knows no URL: it names the subscriptions that listen, and the deliverer does the rest.

mod admit;
mod bundle;
pub mod metrics;
pub mod table;

use std::sync::Arc;

use broker::{
    Broker, Consume, Parcel, Publish, Queue, Received, Route, publish_until_taken, publish_while,
};
use bundle::{Packed, Source, Waiting};
use event::{EventId, delivery::Bundle};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use metrics::Metrics;
use store::feed::{Feed, Snapshot};
use table::MatchTable;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// `[router]` of the settings.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The most deliveries in one parcel to the deliverers; 1 to 1000. More is faster under load
    /// and repeats more after a crash.
    pub bundle_max: usize,
    /// How many unacknowledged messages a router holds; 1 to 10000.
    pub prefetch: u16,
    /// How many bundles wait for their confirm at once; while they do, the next ones fill up.
    pub bundles_in_flight: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bundle_max: 32,
            prefetch: 500,
            bundles_in_flight: 8,
        }
    }
}

impl Settings {
    /// What is out of bounds, with the key's name.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if !(1..=1000).contains(&self.bundle_max) {
            faults.push((
                "router.bundle_max",
                format!("must be 1 to 1000, got {}", self.bundle_max),
            ));
        }
        if !(1..=10_000).contains(&self.prefetch) {
            faults.push((
                "router.prefetch",
                format!("must be 1 to 10000, got {}", self.prefetch),
            ));
        }
        if !(1..=256).contains(&self.bundles_in_flight) {
            let got = self.bundles_in_flight;
            faults.push((
                "router.bundles_in_flight",
                format!("must be 1 to 256, got {got}"),
            ));
        }
        faults
    }
}

/// A bundle carries at most about this many bytes, unless a single event is larger.
const BUNDLE_BYTES_MAX: usize = 256 * 1024;

/// What a router needs.
#[derive(Debug)]
pub struct Parts {
    /// Where messages come from and bundles go.
    pub broker: Broker,
    /// The subscriptions.
    pub feed: Feed,
    /// Bounds.
    pub settings: Settings,
    /// Counters.
    pub metrics: Metrics,
}

/// Why a router ended before it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("the router's consumer ended although nobody stopped it")]
pub struct Error;

/// Routes until `stop`, then finishes what it holds: every message taken is routed and
/// acknowledged, and the rest stays the broker's.
pub async fn run(parts: Parts, stop: CancellationToken) -> Result<(), Error> {
    let Some(snapshot) = first_snapshot(&parts.feed, &stop).await else {
        return Ok(());
    };
    let consumer = parts
        .broker
        .consume(Queue::Inbox, parts.settings.prefetch)
        .await;
    let mut router = Router {
        table: MatchTable::default().advance(snapshot),
        publisher: parts.broker.publisher(),
        waiting: Waiting::new(parts.settings.bundle_max, BUNDLE_BYTES_MAX),
        sending: FuturesUnordered::new(),
        sending_max: parts.settings.bundles_in_flight,
        metrics: parts.metrics,
    };
    router.run(consumer, &parts.feed, stop).await
}

/// Without subscriptions an event would count as unwanted, so nothing is taken before the first
/// snapshot; `None` is a stop while waiting for it.
async fn first_snapshot(feed: &Feed, stop: &CancellationToken) -> Option<Arc<Snapshot>> {
    let mut watch = feed.watch();
    loop {
        if let Some(snapshot) = watch.borrow_and_update().clone() {
            return Some(snapshot);
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            changed = watch.changed() => changed.ok()?,
        }
    }
}

type Watch = tokio::sync::watch::Receiver<Option<Arc<Snapshot>>>;

struct Router {
    table: MatchTable,
    publisher: Arc<dyn Publish>,
    waiting: Waiting,
    sending: FuturesUnordered<BoxFuture<'static, ()>>,
    sending_max: usize,
    metrics: Metrics,
}

impl Router {
    async fn run(
        &mut self,
        mut consumer: Box<dyn Consume>,
        feed: &Feed,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let mut watch = feed.watch();
        let mut stopping = false;
        loop {
            self.send_what_fits();
            // While bundles wait to be sent no more is taken: the broker keeps it better than we.
            let room = self.waiting.is_empty() || self.sending.len() < self.sending_max;
            tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    consumer.stop().await;
                }
                Ok(()) = watch.changed() => self.follow(&mut watch),
                Some(()) = self.sending.next(), if !self.sending.is_empty() => {}
                message = consumer.next(), if room => match message {
                    Some(message) => self.take_ready(message, &mut *consumer, &mut watch),
                    None if stopping => break,
                    None => return Err(Error),
                },
            }
        }
        while !self.waiting.is_empty() || !self.sending.is_empty() {
            self.send_what_fits();
            self.sending.next().await;
        }
        Ok(())
    }

    fn follow(&mut self, watch: &mut Watch) {
        if let Some(snapshot) = watch.borrow_and_update().clone() {
            self.table = self.table.advance(snapshot);
            debug!(
                revision = self.table.revision(),
                "following the subscriptions"
            );
        }
    }

    /// Takes a message and those that are ready behind it, up to what some bundles can hold.
    fn take_ready(&mut self, first: Received, consumer: &mut dyn Consume, watch: &mut Watch) {
        const READY_MAX: usize = 256;
        self.take(first, watch);
        for _ in 1..READY_MAX {
            match consumer.next().now_or_never() {
                Some(Some(message)) => self.take(message, watch),
                // The end is seen again, and judged, by the next call.
                Some(None) | None => break,
            }
        }
    }

    fn take(&mut self, message: Received, watch: &mut Watch) {
        // With the message in hand, however long this thread stood still before: what was
        // published after a change was seen in this process is matched with that change.
        if watch.has_changed().unwrap_or(false) {
            self.follow(watch);
        }
        let now = Timestamp::now();
        if message.redelivered {
            self.metrics.redelivered.inc();
        }
        match admit::admit(&message, now) {
            Ok(events) => {
                let counted = message
                    .headers
                    .iter()
                    .any(|(name, _)| name == admit::VIA_HEADER);
                if !counted {
                    self.metrics.accepted.inc_by(events.len() as u64);
                }
                let source = Source::new(message.ticket, events.len(), &self.metrics.routed);
                for event in events {
                    self.route(event, now, &source);
                }
                source.release();
            }
            Err(unfit) => self.quarantine(message, &unfit, now),
        }
    }

    fn route(&mut self, event: event::Event, now: Timestamp, source: &Arc<Source>) {
        let to = self.table.matching(&event);
        debug!(
            event_id = %event.id, tenant = %event.tenant, r#type = %event.kind, matched = to.len(),
            "event routed"
        );
        if to.is_empty() {
            self.metrics.unmatched.inc();
        } else {
            self.waiting
                .add(event, to, self.table.revision(), now, source);
        }
    }

    fn quarantine(&mut self, message: Received, unfit: &admit::Unfit, now: Timestamp) {
        let word = unfit.reason.word();
        warn!(
            message_id = message.message_id.as_deref().unwrap_or("-"),
            source = message.source,
            reason = word,
            detail = unfit.detail,
            "message quarantined"
        );
        self.metrics.refused.with_label_values(&[word]).inc();
        self.metrics.quarantined.with_label_values(&[word]).inc();
        let mut parcel = admit::quarantine(&message, unfit, now);
        if parcel.message_id.is_empty() {
            parcel.message_id = EventId::fresh().to_string();
        }
        let publisher = self.publisher.clone();
        self.sending.push(Box::pin(async move {
            if publish_until_taken(&*publisher, parcel).await.is_ok() {
                message.ticket.ack();
            }
        }));
    }

    fn send_what_fits(&mut self) {
        while self.sending.len() < self.sending_max {
            let Some(packed) = self.waiting.pack() else {
                break;
            };
            self.metrics.bundles.inc();
            self.metrics.bundled.inc_by(packed.deliveries as u64);
            self.sending
                .push(Box::pin(send(self.publisher.clone(), packed)));
        }
    }
}

/// Publishes one bundle and releases the messages it was made from. When the broker is closed
/// under it they stay unacknowledged, and the broker hands them to another router. It stops trying
/// once the broker hands them out again in any case.
async fn send(publisher: Arc<dyn Publish>, packed: Packed) {
    let Some(parcel) = parcel(&packed.bundle) else {
        return;
    };
    let wanted = || packed.sources.iter().any(|source| !source.is_void());
    if publish_while(&*publisher, parcel, wanted).await.is_ok() {
        packed.sources.iter().for_each(|source| source.release());
    }
}

fn parcel(bundle: &Bundle) -> Option<Parcel> {
    match serde_json::to_vec(bundle) {
        Ok(body) => Some(Parcel::json(
            Route::Deliver,
            EventId::fresh().as_str(),
            body,
        )),
        Err(error) => {
            // Strings, numbers and checked raw JSON always serialize; if that ever stops being
            // true, the messages stay with the broker rather than being lost.
            tracing::error!(%error, "a bundle could not be written");
            None
        }
    }
}
