//! It is remembered.
//!
//! take what is ready -> read it -> record it in one transaction -> ack.
//!
//! Recording is idempotent, so a batch that comes again changes nothing. While the store is away
//! the queues hold everything and deliveries go on untouched: this crate is on nobody's path.

pub mod metrics;
mod read;

use std::time::{Duration, Instant};

use broker::{Broker, Consume, Queue, Received, Ticket};
use event::delivery::DeadLetter;
use futures_util::FutureExt;
use jiff::Timestamp;
use metrics::Metrics;
use store::{Quarantined, Store};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The most messages recorded in one transaction.
const BATCH_MAX: usize = 200;

/// How long a batch waits before the store is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a recorder needs.
#[derive(Debug)]
pub struct Parts {
    /// Where dead letters and quarantined messages come from.
    pub broker: Broker,
    /// Where they go.
    pub store: Store,
    /// Counters.
    pub metrics: Metrics,
}

/// Records until `stop`, then finishes the batch it holds.
pub async fn run(parts: Parts, stop: CancellationToken) {
    let dead = Drain {
        queue: Queue::Dead,
        parts: &parts,
        stop: &stop,
    };
    let quarantine = Drain {
        queue: Queue::Quarantine,
        parts: &parts,
        stop: &stop,
    };
    tokio::join!(dead.run(), quarantine.run());
}

struct Drain<'a> {
    queue: Queue,
    parts: &'a Parts,
    stop: &'a CancellationToken,
}

impl Drain<'_> {
    async fn run(&self) {
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
        consumer.stop().await;
        // What it still holds was handed out to nobody; the broker gives it to the next recorder.
        while let Some(Some(message)) = consumer.next().now_or_never() {
            message.ticket.give_back();
        }
    }

    /// Records a batch, waiting out a store that is away; false when stopped before it was.
    async fn record(&self, batch: Vec<Received>) -> bool {
        let mut batch = Batch::read(self.queue, batch, Timestamp::now());
        let mut away = false;
        loop {
            let begun = Instant::now();
            match batch.write(&self.parts.store).await {
                Ok(()) => {
                    if away {
                        info!(queue = ?self.queue, "the store is back, recording again");
                    }
                    self.parts
                        .metrics
                        .batch_seconds
                        .observe(begun.elapsed().as_secs_f64());
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

    async fn write(&self, store: &Store) -> Result<(), store::Error> {
        if !self.letters.is_empty() {
            store.record_dead(&self.letters).await?;
        }
        if !self.quarantined.is_empty() {
            store.record_quarantined(&self.quarantined).await?;
        }
        Ok(())
    }
}
