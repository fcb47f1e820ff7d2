//! The broker in one folder, without a server: a SQLite file that one writer thread owns.
//!
//! Publishes and acks are committed in groups, so that one sync of the disk confirms hundreds;
//! what is ready is handed out from memory, as far as a bound allows, and read in pages beyond
//! it. Decision record 0002 says why.

mod consumer;
mod file;
mod lock;
mod shelf;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
};

use futures_util::future::BoxFuture;
use tokio::sync::{oneshot, watch};

use crate::{
    embedded::{
        consumer::Consumer,
        file::File,
        shelf::Shelves,
        writer::{Command, Post, Writer},
    },
    parcel::{Parcel, PublishError, Queue},
    seam::{Backend, Consume, Publish, Status},
    settings::{OpenError, Settings},
    topology,
};

/// What the handles of one broker share.
#[derive(Debug, Clone)]
struct Embedded {
    commands: Sender<Command>,
    shelves: Arc<Shelves>,
    status: watch::Receiver<Status>,
}

/// Opens the folder, or says why not.
pub(crate) async fn open(
    folder: &Path,
    settings: &Settings,
) -> Result<impl Backend + use<>, OpenError> {
    let (folder, queue_max) = (
        folder.to_owned(),
        settings.queue_max.unwrap_or(topology::QUEUE_MAX),
    );
    // Opening reads files and may wait for a process that is just ending.
    let opening = tokio::task::spawn_blocking(move || start(&folder, queue_max, None));
    opening
        .await
        .map_err(|error| OpenError::Other(error.to_string()))?
}

/// `pages_max` bounds the file, for tests of a full disk.
fn start(folder: &Path, queue_max: u64, pages_max: Option<u32>) -> Result<Embedded, OpenError> {
    let refuse = |error: &dyn std::fmt::Display| {
        OpenError::Other(format!("embedded broker in {}: {error}", folder.display()))
    };
    std::fs::create_dir_all(folder).map_err(|error| refuse(&error))?;
    let lock = lock::take(folder)?;
    let file = File::open(&folder.join("broker.db"), pages_max).map_err(|error| refuse(&error))?;
    let (commands, received) = channel();
    let shelves = Arc::new(Shelves::new(queue_max));
    let (report, status) = watch::channel(Status {
        connected: true,
        ..Status::default()
    });
    let writer =
        Writer::load(file, shelves.clone(), report, lock).map_err(|error| refuse(&error))?;
    std::thread::Builder::new()
        .name("postrider-broker".into())
        .spawn(move || writer.run(&received))
        .map_err(|error| refuse(&error))?;
    Ok(Embedded {
        commands,
        shelves,
        status,
    })
}

impl Embedded {
    async fn send(&self, parcel: Parcel) -> Result<(), PublishError> {
        if let Some(reason) = &self.status.borrow().blocked {
            return Err(PublishError::Blocked(reason.clone()));
        }
        let (answer, answered) = oneshot::channel();
        let command = Command::Publish(Box::new(Post { parcel, answer }));
        self.commands
            .send(command)
            .map_err(|_| PublishError::Closed)?;
        // The writer answers every post, unless it closes.
        answered.await.unwrap_or(Err(PublishError::Closed))
    }
}

impl Publish for Embedded {
    fn publish(&self, parcel: Parcel) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(self.send(parcel))
    }
}

impl Backend for Embedded {
    fn publisher(&self) -> Arc<dyn Publish> {
        Arc::new(self.clone())
    }

    fn consume(&self, queue: Queue, prefetch: u16) -> BoxFuture<'_, Box<dyn Consume>> {
        let consumer = Consumer::new(self.shelves.clone(), self.commands.clone(), queue, prefetch);
        Box::pin(async move { Box::new(consumer) as Box<dyn Consume> })
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    fn depths(&self) -> BoxFuture<'_, Vec<(String, u64)>> {
        Box::pin(async { self.shelves.depths() })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let (closed, until_closed) = oneshot::channel();
            if self.commands.send(Command::Close(closed)).is_ok() {
                // A writer that is gone has closed the file.
                _ = until_closed.await;
            }
        })
    }
}
