//! The two seams, and the broker that hands them out.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::{
    embedded,
    parcel::{Parcel, PublishError, Queue, Received},
    rabbit,
    settings::{Address, OpenError, Settings},
};

/// The seam out.
///
/// `publish` resolves once the broker has stored the parcel durably (confirm, and not returned),
/// or with the reason it has not. It fails at once while the broker is away or blocked: who must
/// not give up uses [`crate::publish_until_taken`]. Safe to call from many tasks; many publishes
/// in flight at once are what makes it fast.
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

/// How the broker is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Both connections are up and the topology is declared.
    pub connected: bool,
    /// Why it takes no publishes, where it has an alarm.
    pub blocked: Option<String>,
    /// How often it was connected anew since the start.
    pub reconnects: u64,
    /// Why it is not connected, or what is wrong although it is, in a sentence for people; never
    /// contains the password.
    pub fault: Option<String>,
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
    /// Opens the broker that `settings.url` names. RabbitMQ: returns at once and connects in the
    /// background, again and again; `status` tells. Embedded: opens the folder or says why not.
    pub async fn open(settings: &Settings) -> Result<Self, OpenError> {
        let backend: Arc<dyn Backend> = match settings.address()? {
            Address::Embedded(folder) => Arc::new(embedded::open(&folder, settings).await?),
            Address::Rabbit => Arc::new(rabbit::open(settings)?),
        };
        Ok(Self { backend })
    }

    /// A broker of somebody else's making: a simulation's.
    pub fn over(backend: Arc<dyn Backend>) -> Self {
        Self { backend }
    }

    /// A handle to publish with.
    pub fn publisher(&self) -> Arc<dyn Publish> {
        self.backend.publisher()
    }

    /// A consumer holding at most `prefetch` unsettled messages (at least 1).
    pub async fn consume(&self, queue: Queue, prefetch: u16) -> Box<dyn Consume> {
        self.backend.consume(queue, prefetch.max(1)).await
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
