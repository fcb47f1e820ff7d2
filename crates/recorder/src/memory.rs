//! What records are written to: the store, or in a simulation something that is none.

#[cfg(feature = "sim")]
use std::sync::Arc;

use event::{
    SubscriptionId,
    delivery::DeadLetter,
    log::{Archived, HeldDelivery, LogEntry},
};
use jiff::Timestamp;
use store::{Error, Judged, Quarantined, Recorded, Store};

use crate::{Parts, metrics::Metrics};

/// What recording needs.
#[derive(Debug)]
pub(crate) struct Recording<'a> {
    pub(crate) broker: &'a broker::Broker,
    pub(crate) store: Memory,
    pub(crate) feed: &'a store::feed::Feed,
    pub(crate) metrics: &'a Metrics,
}

impl<'a> From<&'a Parts> for Recording<'a> {
    fn from(parts: &'a Parts) -> Self {
        Self {
            broker: &parts.broker,
            store: Memory::Store(parts.store.clone()),
            feed: &parts.feed,
            metrics: &parts.metrics,
        }
    }
}

/// Takes records. What each call promises stands at the store's method of the same name.
#[derive(Debug)]
pub(crate) enum Memory {
    /// The store.
    Store(Store),
    #[cfg(feature = "sim")]
    Simulated(Arc<dyn crate::sim::Memory>),
}

impl Memory {
    pub(crate) async fn record(
        &self,
        archived: &[Archived],
        entries: &[LogEntry],
    ) -> Result<Recorded, Error> {
        match self {
            Self::Store(store) => store.record(archived, entries).await,
            #[cfg(feature = "sim")]
            Self::Simulated(memory) => memory.record(archived, entries).await,
        }
    }

    pub(crate) async fn record_held(&self, held: &[HeldDelivery]) -> Result<(), Error> {
        match self {
            Self::Store(store) => store.record_held(held).await,
            #[cfg(feature = "sim")]
            Self::Simulated(memory) => memory.record_held(held).await,
        }
    }

    pub(crate) async fn record_quarantined(&self, messages: &[Quarantined]) -> Result<(), Error> {
        match self {
            Self::Store(store) => store.record_quarantined(messages).await,
            #[cfg(feature = "sim")]
            Self::Simulated(memory) => memory.record_quarantined(messages).await,
        }
    }

    pub(crate) async fn record_dead_and_tell(
        &self,
        letters: &[DeadLetter],
        tells: impl Fn(&DeadLetter) -> bool,
    ) -> Result<(), Error> {
        match self {
            Self::Store(store) => store.record_dead_and_tell(letters, tells).await,
            #[cfg(feature = "sim")]
            Self::Simulated(memory) => memory.record_dead(letters).await,
        }
    }

    pub(crate) async fn judge_failing(
        &self,
        ids: &[SubscriptionId],
        now: Timestamp,
    ) -> Result<Judged, Error> {
        match self {
            Self::Store(store) => store.judge_failing(ids, now).await,
            #[cfg(feature = "sim")]
            Self::Simulated(_) => Ok(Judged::default()),
        }
    }
}
