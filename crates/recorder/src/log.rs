//! The archive and the log: routed events and what became of their deliveries, in one transaction
//! where they come together. A delivery that was routed and delivered within a moment is one row
//! written once.

use std::time::{Duration, Instant};

use broker::{Consume, Queue, Received, Ticket, clock};
use event::{
    SubscriptionId,
    log::{Archived, HeldDelivery, LogEntry},
};
use jiff::Timestamp;
use store::{Error, Quarantined};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    RETRY_AFTER, give_back,
    memory::{Memory, Recording},
    metrics::Table,
    read,
};

/// Unsettled messages held from each queue; each has many records under load.
const PREFETCH: u16 = 256;
/// The most records written in one transaction, and the most bytes; one message may exceed them.
const RECORDS_MAX: usize = 2000;
const BYTES_MAX: usize = 4 << 20;
/// How long a batch is kept open for more: nearly every delivery ends within it, and a transaction
/// for each would cost the store more than its rows. The tests of this crate kill many batches.
const LINGER: Duration = Duration::from_millis(if cfg!(test) { 5 } else { 200 });
/// Without a message for so long the recorder is level.
const QUIET: Duration = Duration::from_secs(2);

pub(crate) async fn run(parts: &Recording<'_>, stop: &CancellationToken) {
    let mut sources = Sources {
        archive: parts.broker.consume(Queue::Archive, PREFETCH).await,
        log: parts.broker.consume(Queue::Log, PREFETCH).await,
        log_first: false,
    };
    'batches: loop {
        let mut batch = Batch::default();
        let quiet = tokio::time::sleep(QUIET);
        tokio::pin!(quiet);
        let mut level = false;
        while batch.tickets.is_empty() {
            tokio::select! {
                biased;
                () = stop.cancelled() => break 'batches,
                (queue, message) = sources.next() => match message {
                    Some(message) => batch.add(queue, message),
                    None => break 'batches,
                },
                () = &mut quiet, if !level => {
                    level = true;
                    parts.metrics.lag_seconds.set(0.0);
                }
            }
        }
        let linger = tokio::time::sleep(LINGER);
        tokio::pin!(linger);
        while batch.has_room() {
            let (queue, message) = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = &mut linger => break,
                next = sources.next() => next,
            };
            match message {
                Some(message) => batch.add(queue, message),
                None => break,
            }
        }
        if !batch.record(parts, stop).await {
            break;
        }
    }
    give_back(sources.archive).await;
    give_back(sources.log).await;
}

/// The two queues that a batch is made from.
struct Sources {
    archive: Box<dyn Consume>,
    log: Box<dyn Consume>,
    /// They take turns, so that neither keeps the other waiting.
    log_first: bool,
}

impl Sources {
    async fn next(&mut self) -> (Queue, Option<Received>) {
        self.log_first = !self.log_first;
        if self.log_first {
            tokio::select! {
                biased;
                message = self.log.next() => (Queue::Log, message),
                message = self.archive.next() => (Queue::Archive, message),
            }
        } else {
            tokio::select! {
                biased;
                message = self.archive.next() => (Queue::Archive, message),
                message = self.log.next() => (Queue::Log, message),
            }
        }
    }
}

/// A batch read once, written as often as it takes.
#[derive(Default)]
struct Batch {
    archived: Vec<Archived>,
    entries: Vec<LogEntry>,
    held: Vec<HeldDelivery>,
    quarantined: Vec<Quarantined>,
    tickets: Vec<Ticket>,
    bytes: usize,
    /// How many of `archived`, then of `entries`, are written already.
    done: usize,
    /// Subscriptions that were seen to fail.
    failing: Vec<SubscriptionId>,
}

impl Batch {
    fn add(&mut self, queue: Queue, message: Received) {
        self.bytes += message.body.len();
        let unreadable = match queue {
            Queue::Archive => read::archived(&message)
                .map(|mut events| self.archived.append(&mut events))
                .err(),
            _ => read::logged(&message)
                .map(|mut batch| {
                    self.entries.append(&mut batch.entries);
                    self.held.append(&mut batch.held);
                })
                .err(),
        };
        if let Some(detail) = unreadable {
            self.quarantined
                .push(read::unreadable(&message, detail, clock::now()));
        }
        self.tickets.push(message.ticket);
    }

    fn len(&self) -> usize {
        self.archived.len() + self.entries.len()
    }

    fn has_room(&self) -> bool {
        self.len() + self.held.len() < RECORDS_MAX
            && self.bytes < BYTES_MAX
            && self.quarantined.len() < 64
    }

    /// Records the batch, waiting out a store that is away; false when stopped before it was.
    async fn record(mut self, parts: &Recording<'_>, stop: &CancellationToken) -> bool {
        let metrics = &parts.metrics;
        let oldest = self.oldest();
        // All of it, unless that proves too much for one call.
        let mut part = self.len().max(1);
        let mut away = false;
        loop {
            let begun = Instant::now();
            match self.write(parts, part).await {
                Ok(finished) => {
                    if away {
                        info!("the store is back, recording the log again");
                        away = false;
                    }
                    metrics.batch_seconds.observe(begun.elapsed().as_secs_f64());
                    metrics.lag_since(oldest, clock::now());
                    if finished {
                        self.tickets.drain(..).for_each(Ticket::ack);
                        if let Err(error) = judge(parts, &self.failing).await {
                            // The next failure brings it up again, or the upkeep does.
                            warn!(%error, "failing subscriptions could not be judged yet");
                        }
                        return true;
                    }
                    continue;
                }
                Err(Error::Unavailable(reason)) => {
                    if !away {
                        warn!(reason, "the store did not take a batch of the log, waiting");
                        away = true;
                    }
                }
                Err(error) if part > 1 => {
                    warn!(%error, "the store refused a batch of the log, trying it in parts");
                }
                Err(error) => {
                    error!(%error, "the store refused a record of the log, which goes to quarantine");
                    self.set_aside(&error);
                    part = self.len();
                    continue;
                }
            }
            part = (part / 2).max(1);
            metrics.lag_since(oldest, clock::now());
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(RETRY_AFTER) => {}
            }
        }
    }

    /// Writes the next part; whether it was the last.
    async fn write(&mut self, parts: &Recording<'_>, part: usize) -> Result<bool, Error> {
        if self.done < self.len() {
            let end = (self.done + part).min(self.len());
            let events = self.archived.len();
            let archived = &self.archived[self.done.min(events)..end.min(events)];
            let entries =
                &self.entries[self.done.saturating_sub(events)..end.saturating_sub(events)];
            let recorded = parts.store.record(archived, entries).await?;
            self.done = end;
            self.failing.extend(recorded.failing);
            let metrics = &parts.metrics;
            metrics.wrote(Table::Events, recorded.events);
            metrics.wrote(Table::Deliveries, recorded.deliveries);
            metrics.wrote(Table::Attempts, recorded.attempts);
        }
        if self.done < self.len() {
            return Ok(false);
        }
        self.write_held(parts).await?;
        self.write_quarantined(&parts.store).await?;
        parts
            .metrics
            .wrote(Table::Quarantine, self.quarantined.len() as u64);
        Ok(true)
    }

    /// Keeps what is held, once the log tells of it. What the store will never take goes where a
    /// person can see it.
    async fn write_held(&mut self, parts: &Recording<'_>) -> Result<(), Error> {
        if self.held.is_empty() {
            return Ok(());
        }
        let mut refused = Vec::new();
        match parts.store.record_held(&self.held).await {
            Ok(()) => {}
            Err(error @ Error::Unavailable(_)) => return Err(error),
            Err(_) => {
                for held in &self.held {
                    match parts.store.record_held(std::slice::from_ref(held)).await {
                        Ok(()) => {}
                        Err(error @ Error::Unavailable(_)) => return Err(error),
                        Err(error) => {
                            error!(%error, "the store refused a held delivery, which goes to quarantine");
                            let detail = format!("the store refused this record: {error}");
                            refused.push(read::refused(held, "log", detail, clock::now()));
                        }
                    }
                }
            }
        }
        let kept = self.held.len() - refused.len();
        parts.metrics.wrote(Table::Held, kept as u64);
        self.quarantined.append(&mut refused);
        self.held.clear();
        Ok(())
    }

    async fn write_quarantined(&self, store: &Memory) -> Result<(), Error> {
        if self.quarantined.is_empty() {
            return Ok(());
        }
        store.record_quarantined(&self.quarantined).await
    }

    /// Puts the next record, which the store will never take, where a person can see it.
    fn set_aside(&mut self, error: &Error) {
        let events = self.archived.len();
        let detail = format!("the store refused this record: {error}");
        let now = clock::now();
        let row = if self.done < events {
            read::refused(&self.archived[self.done], "archive", detail, now)
        } else {
            read::refused(&self.entries[self.done - events], "log", detail, now)
        };
        self.quarantined.push(row);
        self.done += 1;
    }

    /// When the oldest record was made.
    fn oldest(&self) -> Option<Timestamp> {
        let events = self.archived.iter().map(|archived| archived.accepted_at);
        events
            .chain(self.entries.iter().map(|entry| entry.at))
            .min()
    }
}

/// Holds what fails against its limits.
pub(crate) async fn judge(parts: &Recording<'_>, failing: &[SubscriptionId]) -> Result<(), Error> {
    if failing.is_empty() {
        return Ok(());
    }
    let judged = parts.store.judge_failing(failing, clock::now()).await?;
    for id in &judged.warned {
        info!(subscription_id = %id, "half of delivery.disable_after is used up");
    }
    for id in &judged.disabled {
        info!(subscription_id = %id, "subscription disabled, because it only fails");
    }
    if !judged.disabled.is_empty() {
        parts.feed.nudge();
    }
    Ok(())
}
