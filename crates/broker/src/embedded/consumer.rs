//! Consuming from a shelf: nothing is prefetched, so there is nothing to give back at a stop.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, mpsc::Sender},
};

use futures_util::future::BoxFuture;

use crate::{
    embedded::{
        file::{Key, Message},
        shelf::{Places, Settled, Shelves, Taken},
        writer::Command,
    },
    parcel::{Queue, Received, Settle, Ticket},
    seam::Consume,
};

/// What a consumer shares with its tickets.
struct Held {
    shelves: Arc<Shelves>,
    commands: Sender<Command>,
    places: Arc<Places>,
    /// Messages whose ticket was dropped; `None` once the consumer is gone.
    abandoned: Mutex<Option<Vec<Key>>>,
}

impl Held {
    fn settle(&self, key: Key, back: bool) {
        if self.shelves.settle(Settled {
            key,
            back,
            places: self.places.clone(),
        }) {
            // A writer that is gone has closed the file: the message is there at the next open.
            _ = self.commands.send(Command::Settled);
        }
        self.hurry();
    }

    /// Asks the writer not to wait, if the consumer waits.
    fn hurry(&self) {
        if self.places.hurry() {
            _ = self.commands.send(Command::Hurry);
        }
    }
}

/// The seam in, embedded.
pub(super) struct Consumer {
    held: Arc<Held>,
    queue: Queue,
    stopped: bool,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl Consumer {
    pub(super) fn new(
        shelves: Arc<Shelves>,
        commands: Sender<Command>,
        queue: Queue,
        prefetch: u16,
    ) -> Self {
        let held = Held {
            shelves,
            commands,
            places: Arc::new(Places::new(prefetch)),
            abandoned: Mutex::new(Some(Vec::new())),
        };
        Self {
            held: Arc::new(held),
            queue,
            stopped: false,
        }
    }

    async fn take(&mut self) -> Option<Received> {
        let held = &self.held;
        let shelf = held.shelves.of(self.queue);
        loop {
            if self.stopped {
                return None;
            }
            // Listening starts before looking, so that nothing is missed in between.
            let mut changed = pin!(shelf.changed());
            changed.as_mut().enable();
            let mut freed = pin!(held.places.freed());
            freed.as_mut().enable();
            if !held.places.any() {
                held.hurry();
            } else {
                let (taken, read_more) = shelf.take();
                if read_more {
                    // A writer that is gone has closed the shelf.
                    _ = held.commands.send(Command::Refill(self.queue));
                }
                match taken {
                    Taken::Message(message) => return Some(self.hand_out(message)),
                    Taken::Closed => return None,
                    Taken::Nothing => {}
                }
            }
            tokio::select! {
                () = changed => {}
                () = freed => {}
            }
        }
    }

    fn hand_out(&self, message: Message) -> Received {
        self.held.places.take();
        let key = message.key;
        let ticket = Ticketed {
            held: self.held.clone(),
            key,
            settled: false,
        };
        Received {
            body: message.body,
            message_id: message.message_id,
            content_type: message.content_type,
            content_encoding: message.content_encoding,
            user_id: None,
            headers: message.headers,
            source: message.source,
            redelivered: message.returns > 0 || message.old,
            returns: message.returns,
            ticket: Ticket::new(Box::new(ticket)),
        }
    }
}

impl Consume for Consumer {
    fn next(&mut self) -> BoxFuture<'_, Option<Received>> {
        Box::pin(self.take())
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        self.stopped = true;
        Box::pin(async {})
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let mut abandoned = self
            .held
            .abandoned
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for key in abandoned.take().into_iter().flatten() {
            self.held.settle(key, true);
        }
    }
}

struct Ticketed {
    held: Arc<Held>,
    key: Key,
    settled: bool,
}

impl fmt::Debug for Ticketed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticketed")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Ticketed {
    fn settle(&mut self, back: bool) {
        self.settled = true;
        self.held.settle(self.key, back);
    }
}

impl Settle for Ticketed {
    fn ack(mut self: Box<Self>) {
        self.settle(false);
    }

    fn give_back(mut self: Box<Self>) {
        self.settle(true);
    }
}

impl Drop for Ticketed {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut abandoned = self
            .held
            .abandoned
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match abandoned.as_mut() {
            // It keeps its place in the prefetch, as on RabbitMQ.
            Some(abandoned) => abandoned.push(self.key),
            None => self.held.settle(self.key, true),
        }
    }
}
