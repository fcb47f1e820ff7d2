//! It is remembered.
//!
//! take what is ready -> read it -> record it in one transaction -> ack.
//!
//! Recording is idempotent, so a batch that comes again changes nothing. While the store is away
//! the queues hold everything and deliveries go on untouched: this crate is on nobody's path.

mod drain;
mod log;
pub mod metrics;
mod read;

use std::time::Duration;

use broker::{Broker, Consume, Queue};
use drain::Drain;
use futures_util::FutureExt;
use metrics::Metrics;
use store::Store;
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
    /// Counters.
    pub metrics: Metrics,
}

/// Records until `stop`, then finishes the batch it holds.
pub async fn run(parts: Parts, stop: CancellationToken) {
    let drain = |queue| Drain {
        queue,
        parts: &parts,
        stop: &stop,
    };
    let (dead, quarantine) = (drain(Queue::Dead), drain(Queue::Quarantine));
    tokio::join!(dead.run(), quarantine.run(), log::run(&parts, &stop));
}

/// Stops a consumer. What it still holds was handed out to nobody; the broker gives it to the next
/// recorder.
async fn give_back(mut consumer: Box<dyn Consume>) {
    consumer.stop().await;
    while let Some(Some(message)) = consumer.next().now_or_never() {
        message.ticket.give_back();
    }
}
