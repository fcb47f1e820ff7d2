//! Dead letters and quarantine: one queue, one table each.

use std::time::Instant;

use broker::{Consume, Queue, Received, Ticket, clock};
use event::delivery::DeadLetter;
use futures_util::FutureExt;
use jiff::Timestamp;
use store::Quarantined;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    RETRY_AFTER, give_back,
    memory::{Memory, Recording},
    metrics::Table,
    notices::Listeners,
    read,
};

/// The most messages recorded in one transaction.
const BATCH_MAX: usize = 200;

pub(crate) struct Drain<'a> {
    pub(crate) queue: Queue,
    pub(crate) parts: &'a Recording<'a>,
    pub(crate) listeners: &'a Listeners,
    pub(crate) stop: &'a CancellationToken,
}

impl Drain<'_> {
    pub(crate) async fn run(&self) {
        let prefetch = u16::try_from(BATCH_MAX).unwrap_or(u16::MAX);
        let mut consumer = self.parts.broker.consume(self.queue, prefetch).await;
        loop {
            let first = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                first = consumer.next() => first,
            };
            let Some(first) = first else { break };
            let batch = take_ready(first, &mut *consumer);
            if !self.record(batch).await {
                break;
            }
        }
        give_back(consumer).await;
    }

    /// Records a batch, waiting out a store that is away; false when stopped before it was.
    async fn record(&self, batch: Vec<Received>) -> bool {
        let mut batch = Batch::read(self.queue, batch, clock::now());
        let mut away = false;
        loop {
            let begun = Instant::now();
            match batch.write(&self.parts.store, self.listeners).await {
                Ok(()) => {
                    if away {
                        info!(queue = ?self.queue, "the store is back, recording again");
                    }
                    let metrics = &self.parts.metrics;
                    metrics.batch_seconds.observe(begun.elapsed().as_secs_f64());
                    metrics.wrote(Table::DeadLetters, batch.letters.len() as u64);
                    metrics.wrote(Table::Quarantine, batch.quarantined.len() as u64);
                    batch.tickets.drain(..).for_each(Ticket::ack);
                    return true;
                }
                Err(error) => {
                    if !away {
                        warn!(queue = ?self.queue, %error, "the store did not take a batch, waiting");
                        away = true;
                    }
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = tokio::time::sleep(RETRY_AFTER) => {}
            }
        }
    }
}

fn take_ready(first: Received, consumer: &mut dyn Consume) -> Vec<Received> {
    let mut batch = vec![first];
    while batch.len() < BATCH_MAX {
        match consumer.next().now_or_never() {
            Some(Some(message)) => batch.push(message),
            Some(None) | None => break,
        }
    }
    batch
}

/// A batch read once, written as often as it takes.
struct Batch {
    letters: Vec<DeadLetter>,
    quarantined: Vec<Quarantined>,
    tickets: Vec<Ticket>,
}

impl Batch {
    fn read(queue: Queue, messages: Vec<Received>, now: Timestamp) -> Self {
        let mut batch = Self {
            letters: Vec::new(),
            quarantined: Vec::new(),
            tickets: Vec::new(),
        };
        for message in messages {
            match queue {
                Queue::Dead => match read::dead_letter(&message) {
                    Ok(letter) => batch.letters.push(letter),
                    // Somebody else's message on our queue: kept where a person can see it.
                    Err(detail) => {
                        batch
                            .quarantined
                            .push(read::unreadable(&message, detail, now));
                    }
                },
                _ => batch.quarantined.push(read::quarantined(&message, now)),
            }
            batch.tickets.push(message.ticket);
        }
        batch
    }

    async fn write(&self, store: &Memory, listeners: &Listeners) -> Result<(), store::Error> {
        if !self.letters.is_empty() {
            let tells = |letter: &DeadLetter| listeners.listen_to_the_dead(&letter.tenant);
            store.record_dead_and_tell(&self.letters, tells).await?;
        }
        if !self.quarantined.is_empty() {
            store.record_quarantined(&self.quarantined).await?;
        }
        Ok(())
    }
}
