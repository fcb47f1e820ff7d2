//! A recorder for a simulation: what it takes off its queues goes to a store that is none. Only
//! there with the feature `sim`, which no binary of ours asks for.

use std::{fmt, sync::Arc};

use broker::Broker;
use event::{
    delivery::DeadLetter,
    log::{Archived, HeldDelivery, LogEntry},
};
use futures_util::future::BoxFuture;
use store::{Error, Quarantined, Recorded, feed::Feed};
use tokio_util::sync::CancellationToken;

use crate::{memory, metrics::Metrics, notices::Listeners};

/// A store, as far as recording is concerned; each call is one transaction.
pub trait Memory: Send + Sync + fmt::Debug {
    /// Routed events and what became of deliveries.
    fn record<'a>(
        &'a self,
        archived: &'a [Archived],
        entries: &'a [LogEntry],
    ) -> BoxFuture<'a, Result<Recorded, Error>>;

    /// Deliveries that are kept until their subscription is resumed.
    fn record_held<'a>(&'a self, held: &'a [HeldDelivery]) -> BoxFuture<'a, Result<(), Error>>;

    /// Messages that can never be processed.
    fn record_quarantined<'a>(
        &'a self,
        messages: &'a [Quarantined],
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// Dead letters.
    fn record_dead<'a>(&'a self, letters: &'a [DeadLetter]) -> BoxFuture<'a, Result<(), Error>>;
}

/// Records until `stop`, then finishes the batch it holds: [`crate::run`] without notices and
/// upkeep, which only the store knows how to do.
pub async fn run(
    broker: Broker,
    feed: Feed,
    memory: Arc<dyn Memory>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let recording = memory::Recording {
        broker: &broker,
        store: memory::Memory::Simulated(memory),
        feed: &feed,
        metrics: &metrics,
    };
    let listeners = Listeners::new(feed.clone());
    crate::record(&recording, &listeners, &stop).await;
}
