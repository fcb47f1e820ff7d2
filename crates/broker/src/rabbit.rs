//! The broker on RabbitMQ: the only room that names lapin.
//!
//! Two connections, one to publish and one to consume, because a blocked connection writes
//! nothing, acks included. One supervisor keeps both up and declares the topology each time;
//! publisher lanes and consumers follow it from one [`link::Link`] to the next.

mod acks;
mod consumer;
pub(crate) mod declare;
mod link;
mod message;
mod publisher;
mod reconnect;
mod returns;
pub(crate) mod target;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    parcel::Queue,
    rabbit::{link::Link, publisher::Publisher, target::Target},
    seam::{Backend, Consume, Publish, Status},
    settings::{OpenError, Settings},
    topology,
};

/// How long closing waits for confirms and acks that are on their way.
const CLOSE_MAX: Duration = Duration::from_secs(10);
/// How long a request to the broker may take before its channel counts as stuck.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// What the tasks of one broker share.
#[derive(Debug)]
struct Shared {
    status: watch::Sender<Status>,
    link: watch::Sender<Option<Arc<Link>>>,
    /// Cancelled when the broker closes: settle what is there and end.
    closing: CancellationToken,
    /// Cancelled when everything is settled: the connections may go.
    closed: CancellationToken,
    tasks: TaskTracker,
    /// What events are published with as `user-id`.
    user: Option<String>,
}

impl Shared {
    /// Tells people what is wrong, or that it is not any more.
    fn fault(&self, fault: Option<String>) {
        self.status.send_if_modified(|status| {
            let changed = status.fault != fault;
            status.fault = fault;
            changed
        });
    }
}

/// Ends the tasks when the last handle (broker, publisher, consumer) is gone without a close.
#[derive(Debug)]
struct Life(Arc<Shared>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.closing.cancel();
        self.0.closed.cancel();
    }
}

#[derive(Debug)]
struct Rabbit {
    life: Arc<Life>,
    publisher: Arc<Publisher>,
}

/// Starts the supervisor and the publisher's lanes; they connect in the background.
pub(crate) fn open(settings: &Settings) -> Result<impl Backend + use<>, OpenError> {
    let targets = Target::all(settings)?;
    let shared = Arc::new(Shared {
        status: watch::Sender::default(),
        link: watch::Sender::default(),
        closing: CancellationToken::new(),
        closed: CancellationToken::new(),
        tasks: TaskTracker::new(),
        user: settings.identify.then(|| settings.user()).flatten(),
    });
    tokio::spawn(reconnect::supervise(targets, shared.clone()));
    let life = Arc::new(Life(shared));
    let publisher = Arc::new(Publisher::start(&life));
    Ok(Rabbit { life, publisher })
}

impl Backend for Rabbit {
    fn publisher(&self) -> Arc<dyn Publish> {
        self.publisher.clone()
    }

    fn consume(&self, queue: Queue, prefetch: u16) -> BoxFuture<'_, Box<dyn Consume>> {
        let consumer = consumer::start(&self.life, self.publisher.clone(), queue, prefetch);
        Box::pin(async move { Box::new(consumer) as Box<dyn Consume> })
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.life.0.status.subscribe()
    }

    fn depths(&self) -> BoxFuture<'_, Vec<(String, u64)>> {
        Box::pin(async move {
            let Some(link) = self.life.0.link.borrow().clone() else {
                return Vec::new();
            };
            let names = topology::queues()
                .into_iter()
                .map(|queue| queue.name)
                .collect();
            // A broker that does not answer has no depths to tell; the next poll asks again.
            tokio::time::timeout(ANSWER_MAX, link.depths(names))
                .await
                .unwrap_or_default()
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let shared = &self.life.0;
            shared.closing.cancel();
            shared.tasks.close();
            if tokio::time::timeout(CLOSE_MAX, shared.tasks.wait())
                .await
                .is_err()
            {
                tracing::warn!(waited = ?CLOSE_MAX, "broker closed before everything was settled");
            }
            shared.closed.cancel();
            let mut link = shared.link.subscribe();
            // The supervisor takes the link away once both connections are closed. An error
            // means it is gone already.
            _ = tokio::time::timeout(CLOSE_MAX, link.wait_for(Option::is_none)).await;
        })
    }
}
