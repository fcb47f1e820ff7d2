//! It is remembered.
//!
//! take what is ready -> read it -> record it in one transaction -> ack.
//!
//! Recording is idempotent, so a batch that comes again changes nothing. While the store is away
//! the queues hold everything and deliveries go on untouched: this crate is on nobody's path.

mod drain;
pub mod jobs;
mod left_behind;
mod log;
mod memory;
pub mod metrics;
mod notices;
mod read;
mod settings;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(test)]
mod tests;
mod upkeep;

use std::time::Duration;

use broker::{Broker, Consume, Queue};
use drain::Drain;
use futures_util::FutureExt;
use memory::Recording;
use metrics::Metrics;
use notices::Listeners;
pub use settings::Retention;
use store::{Store, feed::Feed};
use tokio_util::sync::CancellationToken;

/// How long a batch waits before the store is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a recorder needs.
#[derive(Debug)]
pub struct Parts {
    /// Where the records come from.
    pub broker: Broker,
    /// Where they go.
    pub store: Store,
    /// Who listens to notices.
    pub feed: Feed,
    /// How long what is recorded is kept.
    pub retention: Retention,
    /// Counters.
    pub metrics: Metrics,
}

/// Records until `stop`, then finishes the batch it holds.
pub async fn run(parts: Parts, stop: CancellationToken) {
    // Who wants to know of a dead letter must be known before one is recorded.
    let mut snapshots = parts.feed.watch();
    let first = snapshots.wait_for(Option::is_some);
    if !matches!(stop.run_until_cancelled(first).await, Some(Ok(_))) {
        return;
    }
    let listeners = Listeners::new(parts.feed.clone());
    let recording = Recording::from(&parts);
    tokio::join!(
        record(&recording, &listeners, &stop),
        notices::run(&parts, &listeners, &stop),
        upkeep::run(&parts, &stop),
        left_behind::run(&parts, &stop),
    );
}

/// Takes what is to be remembered from its queues until `stop`.
async fn record(recording: &Recording<'_>, listeners: &Listeners, stop: &CancellationToken) {
    let drain = |queue| Drain {
        queue,
        parts: recording,
        listeners,
        stop,
    };
    let (dead, quarantine) = (drain(Queue::Dead), drain(Queue::Quarantine));
    tokio::join!(dead.run(), quarantine.run(), log::run(recording, stop));
}

/// Stops a consumer. What it still holds was handed out to nobody; the broker gives it to the next
/// recorder.
async fn give_back(mut consumer: Box<dyn Consume>) {
    consumer.stop().await;
    while let Some(Some(message)) = consumer.next().now_or_never() {
        message.ticket.give_back();
    }
}
