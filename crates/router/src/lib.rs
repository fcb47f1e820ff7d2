//! Who wants it.
//!
//! take messages -> read their events (or quarantine them) -> were they published before? ->
//! match -> bundle and archive -> publish -> ack.
//!
//! A message is acknowledged only after everything made from it is confirmed. This crate judges no
//! filter and knows no URL: it names the subscriptions that listen, and the deliverer does the rest.

mod admit;
mod archive;
mod bundle;
pub mod metrics;
mod publishers;
mod repeat;
pub mod table;

use std::sync::Arc;

use archive::{Archive, Routed, Shelf};
use broker::{Broker, Consume, Parcel, Publish, Queue, Received, Route, clock, publish_while};
use bundle::{Bundle, EventJson, Source, Waiting};
use event::{Event, EventId, SubscriptionId};
use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{FuturesOrdered, FuturesUnordered},
};
use jiff::Timestamp;
use metrics::Metrics;
pub use publishers::Publishers;
use repeat::{Judged, Taken, Word};
use store::{
    claims::{Hash, Verdict},
    dedup::Dedup,
    feed::{Feed, Snapshot},
};
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
    /// Who may publish for whom; from `[publishers]`, which stands apart.
    #[serde(skip)]
    pub publishers: Publishers,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bundle_max: 32,
            prefetch: 500,
            bundles_in_flight: 8,
            publishers: Publishers::default(),
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

/// How many archive parcels wait for their confirm at once; while they do, the next one fills up.
const ARCHIVES_IN_FLIGHT: usize = 2;

/// How many events are taken at once: about what some bundles can hold.
const READY_MAX: usize = 256;

/// How many events are asked about at once, whether they were published before, unless one
/// message has more.
const CHECKED_MAX: usize = 512;

/// What a router needs.
#[derive(Debug)]
pub struct Parts {
    /// Where messages come from and bundles go.
    pub broker: Broker,
    /// The subscriptions.
    pub feed: Feed,
    /// How much of what is routed goes to the recorder.
    pub archive: event::log::Archive,
    /// Tells what was published before; without it, everything is routed.
    pub dedup: Option<Dedup>,
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
        dedup: parts.dedup.clone(),
        checking: FuturesOrdered::new(),
        checked: 0,
        waiting: Waiting::new(parts.settings.bundle_max, BUNDLE_BYTES_MAX),
        sending: FuturesUnordered::new(),
        sending_max: parts.settings.bundles_in_flight,
        archive: Archive::new(parts.archive),
        archiving: FuturesUnordered::new(),
        publishers: parts.settings.publishers,
        metrics: parts.metrics,
    };
    let end = CancellationToken::new();
    let _pruned_until_here = end.clone().drop_guard();
    if let Some(dedup) = parts.dedup {
        tokio::spawn(dedup.prune(end));
    }
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
    dedup: Option<Dedup>,
    /// In the order they were taken, and so they are routed.
    checking: FuturesOrdered<BoxFuture<'static, Judged>>,
    /// How many events are being asked about.
    checked: usize,
    waiting: Waiting,
    sending: FuturesUnordered<BoxFuture<'static, ()>>,
    sending_max: usize,
    archive: Archive,
    archiving: FuturesUnordered<BoxFuture<'static, ()>>,
    publishers: Publishers,
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
            let room = self.has_room();
            tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    consumer.stop().await;
                }
                Ok(()) = watch.changed() => self.follow(&mut watch),
                Some(judged) = self.checking.next(), if !self.checking.is_empty() => {
                    self.checked -= count(&judged.taken);
                    self.settle_all(judged, &mut watch);
                }
                Some(()) = self.sending.next(), if !self.sending.is_empty() => {}
                Some(()) = self.archiving.next(), if !self.archiving.is_empty() => {}
                message = consumer.next(), if room => match message {
                    Some(message) => self.take_ready(message, &mut *consumer, &mut watch),
                    None if stopping => break,
                    None => return Err(Error),
                },
            }
        }
        loop {
            self.send_what_fits();
            tokio::select! {
                biased;
                Some(judged) = self.checking.next() => self.settle_all(judged, &mut watch),
                Some(()) = self.sending.next() => {}
                Some(()) = self.archiving.next() => {}
                else => return Ok(()),
            }
        }
    }

    /// While bundles or archive parcels wait to be sent, or answers are waited for, no more is
    /// taken: the broker keeps it better than we.
    fn has_room(&self) -> bool {
        let sends_at_once = self.waiting.is_empty() || self.sending.len() < self.sending_max;
        sends_at_once && !self.archive.is_full() && self.checked < CHECKED_MAX
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
        let mut taken = Vec::new();
        let mut events = self.take(first, &mut taken);
        while events < READY_MAX {
            match consumer.next().now_or_never() {
                Some(Some(message)) => events += self.take(message, &mut taken),
                // The end is seen again, and judged, by the next call.
                Some(None) | None => break,
            }
        }
        let count = count(&taken);
        let dedup = self.dedup.as_ref().filter(|dedup| !dedup.is_off());
        let checking: BoxFuture<'static, Judged> = match dedup {
            Some(dedup) => Box::pin(repeat::check(dedup.clone(), taken)),
            None if self.checking.is_empty() => return self.settle_all(taken.into(), watch),
            // Behind those that are still being asked about.
            None => Box::pin(std::future::ready(taken.into())),
        };
        self.checked += count;
        self.checking.push_back(checking);
    }

    /// Reads a message, or quarantines it; returns how many events it has, at least 1.
    fn take(&mut self, message: Received, taken: &mut Vec<Taken>) -> usize {
        let at = clock::now();
        if message.redelivered {
            self.metrics.redelivered.inc();
        }
        let admitted = admit::admit(&message, at).and_then(|events| {
            self.publishers
                .judge(&message, &events)
                .map_err(|stranger| {
                    let cause = stranger.word();
                    let user = message.user_id.as_deref().unwrap_or("-");
                    warn!(user, cause, "a message is not its publisher's to send");
                    self.metrics.strangers.with_label_values(&[cause]).inc();
                    stranger.unfit()
                })?;
            Ok(events)
        });
        match admitted {
            Ok(events) => {
                let counted = message
                    .headers
                    .iter()
                    .any(|(name, _)| name == admit::VIA_HEADER);
                if !counted {
                    self.metrics.accepted.inc_by(events.len() as u64);
                }
                let count = events.len();
                taken.push(Taken {
                    message,
                    events,
                    at,
                });
                count.max(1)
            }
            Err(unfit) => {
                let parcel = self.quarantined(&message, &unfit, at);
                let source = Source::new(message.ticket, &self.metrics.routed);
                self.quarantine(parcel, &source);
                source.release();
                1
            }
        }
    }

    /// Does with every event what was judged.
    fn settle_all(&mut self, judged: Judged, watch: &mut Watch) {
        // With the messages in hand, however long this thread stood still before: what was
        // published after a change was seen in this process is matched with that change.
        if watch.has_changed().unwrap_or(false) {
            self.follow(watch);
        }
        let mut events = judged.events.into_iter();
        for taken in judged.taken {
            let words: Vec<_> = taken
                .events
                .iter()
                .map(|_| {
                    events.next().unwrap_or(Word {
                        verdict: Verdict::Route,
                        accepted_at: None,
                    })
                })
                .collect();
            self.settle(taken, &words);
        }
    }

    fn settle(&mut self, taken: Taken, words: &[Word]) {
        let judged = || taken.events.iter().zip(words);
        let conflicts: Vec<_> = judged()
            .filter_map(|(event, word)| match &word.verdict {
                Verdict::Conflict(hashes) => Some(self.conflict(&taken, event, hashes)),
                Verdict::Route | Verdict::Duplicate => None,
            })
            .collect();
        let source = Source::new(taken.message.ticket, &self.metrics.routed);
        for parcel in conflicts {
            self.quarantine(parcel, &source);
        }
        let mut duplicates = 0;
        for (event, word) in judged() {
            match &word.verdict {
                Verdict::Route => {
                    let accepted_at = word.accepted_at.unwrap_or(taken.at);
                    self.route(event, accepted_at, &source);
                }
                Verdict::Duplicate => {
                    debug!(event_id = %event.id, tenant = %event.tenant, "event was published before");
                    duplicates += 1;
                }
                Verdict::Conflict(_) => {}
            }
        }
        if let Some(dedup) = &self.dedup {
            dedup.count_duplicates(duplicates);
        }
        source.release();
    }

    fn route(&mut self, event: &Event, accepted_at: Timestamp, source: &Arc<Source>) {
        let to = self.table.matching(event);
        debug!(
            event_id = %event.id, tenant = %event.tenant, r#type = %event.kind, matched = to.len(),
            "event routed"
        );
        source.routes_one();
        if to.is_empty() {
            self.metrics.unmatched.inc();
            if !self.archive.is_on() {
                return;
            }
        }
        if let Err(error) = self.add(event, to, accepted_at, source) {
            // Strings, numbers and checked raw JSON always serialize; if that ever stops being
            // true, the message stays with the broker rather than being lost.
            tracing::error!(event_id = %event.id, %error, "an event could not be written");
            source.hold();
        }
    }

    /// Adds an event to what waits for bundles and for the archive, written once for both.
    fn add(
        &mut self,
        event: &Event,
        to: Vec<SubscriptionId>,
        accepted_at: Timestamp,
        source: &Arc<Source>,
    ) -> serde_json::Result<()> {
        let json: EventJson = Arc::new(serde_json::value::to_raw_value(event)?);
        let revision = self.table.revision();
        let routed = Routed {
            event,
            json: &json,
            accepted_at,
            revision,
            matched: &to,
        };
        self.archive.add(&routed, source)?;
        self.waiting.add(&json, to, revision, accepted_at, source);
        Ok(())
    }

    /// An event whose id another one has, as it goes to quarantine: its message as it came, or
    /// where that has more events, the event alone.
    fn conflict(&self, taken: &Taken, event: &Event, hashes: &(Hash, Hash)) -> Parcel {
        let unfit = repeat::conflict(event, hashes);
        let mut parcel = self.quarantined(&taken.message, &unfit, taken.at);
        if taken.events.len() > 1
            && let Ok(body) = serde_json::to_vec(event)
        {
            parcel.body = body.into();
            parcel.content_type = Some("application/json".into());
            event.id.as_str().clone_into(&mut parcel.message_id);
        }
        parcel
    }

    /// A message as it goes to quarantine, counted.
    fn quarantined(&self, message: &Received, unfit: &admit::Unfit, now: Timestamp) -> Parcel {
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
        let mut parcel = admit::quarantine(message, unfit, now);
        if parcel.message_id.is_empty() {
            parcel.message_id = EventId::fresh().to_string();
        }
        parcel
    }

    fn quarantine(&mut self, parcel: Parcel, source: &Arc<Source>) {
        source.hold();
        let sources = vec![source.clone()];
        let sending = send(self.publisher.clone(), parcel, sources);
        self.sending.push(Box::pin(sending));
    }

    fn send_what_fits(&mut self) {
        while self.sending.len() < self.sending_max {
            let Some(packed) = self.waiting.pack() else {
                break;
            };
            let Some(parcel) = parcel(&packed.bundle) else {
                continue;
            };
            self.metrics.bundles.inc();
            self.metrics.bundled.inc_by(packed.deliveries as u64);
            let sending = send(self.publisher.clone(), parcel, packed.sources);
            self.sending.push(Box::pin(sending));
        }
        while self.archiving.len() < ARCHIVES_IN_FLIGHT {
            let Some(Shelf { body, sources }) = self.archive.pack() else {
                break;
            };
            self.metrics.archived.inc_by(sources.len() as u64);
            let parcel = Parcel::json(Route::Archive, EventId::fresh().as_str(), body);
            let archiving = send(self.publisher.clone(), parcel, sources);
            self.archiving.push(Box::pin(archiving));
        }
    }
}

/// How many events these messages have.
fn count(taken: &[Taken]) -> usize {
    taken.iter().map(|taken| taken.events.len()).sum()
}

/// Publishes one parcel and releases the messages it was made from. When the broker is closed
/// under it they stay unacknowledged, and the broker hands them to another router. It stops trying
/// once the broker hands them out again in any case.
async fn send(publisher: Arc<dyn Publish>, parcel: Parcel, sources: Vec<Arc<Source>>) {
    let wanted = || sources.iter().any(|source| !source.is_void());
    if publish_while(&*publisher, parcel, wanted).await.is_ok() {
        sources.iter().for_each(|source| source.release());
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
            // As with an event that cannot be written: the messages stay with the broker.
            tracing::error!(%error, "a bundle could not be written");
            None
        }
    }
}
