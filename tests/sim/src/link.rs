//! One process's way to the simulated broker: the seams of the broker crate, and nothing else.

use std::{fmt, sync::Arc};

use broker::{
    Backend, Consume, Parcel, Publish, PublishError, Queue, Received, Settle, Status, Ticket,
};
use futures_util::future::BoxFuture;
use tokio::sync::{oneshot, watch};

use crate::{plants::Plant, world::World};

/// A process's connections, as the process sees them.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    pub(crate) world: World,
    pub(crate) link: usize,
    /// What is wrong with how it uses them, in this run.
    pub(crate) plant: Option<Plant>,
}

impl Wire {
    async fn send(&self, parcel: Parcel) -> Result<(), PublishError> {
        let (confirm, answer) = oneshot::channel();
        let link = self.link;
        self.world
            .with(|state| state.publish(link, parcel, confirm))?;
        answer.await.unwrap_or(Err(PublishError::Closed))
    }
}

impl Publish for Wire {
    fn publish(&self, parcel: Parcel) -> BoxFuture<'_, Result<(), PublishError>> {
        match self.plant {
            None => Box::pin(self.send(parcel)),
            Some(plant) => Box::pin(async move {
                let own = self.clone();
                let honest = move |parcel| {
                    let own = own.clone();
                    Box::pin(async move { own.send(parcel).await }) as BoxFuture<'static, _>
                };
                plant.publish(parcel, &honest).await
            }),
        }
    }
}

impl Backend for Wire {
    fn publisher(&self) -> Arc<dyn Publish> {
        Arc::new(self.clone())
    }

    fn consume(&self, queue: Queue, prefetch: u16) -> BoxFuture<'_, Box<dyn Consume>> {
        let consumer = Consumer {
            wire: self.clone(),
            queue,
            prefetch,
            is_stopped: false,
        };
        Box::pin(async move { Box::new(consumer) as Box<dyn Consume> })
    }

    fn status(&self) -> watch::Receiver<Status> {
        watch::channel(Status {
            connected: true,
            ..Status::default()
        })
        .1
    }

    fn depths(&self) -> BoxFuture<'_, Vec<(String, u64)>> {
        Box::pin(async { Vec::new() })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

#[derive(Debug)]
struct Consumer {
    wire: Wire,
    queue: Queue,
    prefetch: u16,
    is_stopped: bool,
}

impl Consume for Consumer {
    fn next(&mut self) -> BoxFuture<'_, Option<Received>> {
        Box::pin(async move {
            loop {
                if self.is_stopped {
                    return None;
                }
                let changed = self.wire.world.changed();
                let waits = changed.notified();
                tokio::pin!(waits);
                waits.as_mut().enable();
                let (link, queue, prefetch) = (self.wire.link, self.queue, self.prefetch);
                let taken = self
                    .wire
                    .world
                    .with(|state| state.take(link, queue, prefetch));
                if let Some((tag, epoch, entry)) = taken {
                    let paper = Paper {
                        wire: self.wire.clone(),
                        epoch,
                        tag,
                    };
                    let settle: Box<dyn Settle> = match self.wire.plant {
                        Some(plant) => plant.settle(paper),
                        None => Box::new(paper),
                    };
                    return Some(Received {
                        body: entry.parcel.body,
                        message_id: Some(entry.parcel.message_id),
                        content_type: entry.parcel.content_type,
                        content_encoding: None,
                        user_id: None,
                        headers: entry.parcel.headers,
                        source: "sim/sim".into(),
                        redelivered: entry.redelivered,
                        returns: entry.returns,
                        ticket: Ticket::new(settle),
                    });
                }
                waits.await;
            }
        })
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        self.is_stopped = true;
        Box::pin(async {})
    }
}

/// Settles one message.
#[derive(Clone)]
pub(crate) struct Paper {
    wire: Wire,
    epoch: u32,
    tag: u64,
}

impl fmt::Debug for Paper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Paper({})", self.tag)
    }
}

impl Paper {
    fn settle(&self, is_done: bool) {
        let (link, epoch, tag) = (self.wire.link, self.epoch, self.tag);
        self.wire
            .world
            .with(|state| state.settle(link, epoch, tag, is_done));
    }
}

impl Settle for Paper {
    fn ack(self: Box<Self>) {
        self.settle(true);
    }

    fn give_back(self: Box<Self>) {
        self.settle(false);
    }

    fn is_void(&self) -> bool {
        self.wire.world.lock().is_void(self.wire.link, self.epoch)
    }
}
