//! The delivery log: what became of each delivery, published in batches for the recorder.
//!
//! A delivery is settled only after its entry is confirmed, so that none can be missing; after a
//! fault one may be there twice. No clock decides when a batch leaves: a lone entry goes at once,
//! and while a batch waits for its confirm the next one fills up.

use std::{collections::VecDeque, sync::Arc};

use broker::{Parcel, Publish, Route, publish_while};
use event::log::{Archive, LogEntry};
use futures_util::{StreamExt, stream::FuturesUnordered};
use prometheus::IntCounter;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

/// The most entries of one batch.
const ENTRIES_MAX: usize = 64;
/// The most bytes of one batch, but for one entry that is larger alone.
const BYTES_MAX: usize = 256 * 1024;
/// The most batches waiting for their confirm.
const BATCHES_IN_FLIGHT_MAX: usize = 8;

/// Where entries are handed in.
#[derive(Debug)]
pub(crate) struct Journal {
    archive: Archive,
    /// Bounded by the deliveries in the process, each of which has at most one line here.
    lines: mpsc::UnboundedSender<Line>,
    _publisher: AbortOnDropHandle<()>,
}

/// Counters of the log.
#[derive(Debug, Clone)]
pub(crate) struct Counters {
    pub(crate) entries: IntCounter,
    pub(crate) batches: IntCounter,
}

/// An entry as it will stand in a batch, and who waits for its confirm.
#[derive(Debug)]
struct Line {
    id: String,
    text: Vec<u8>,
    confirmed: oneshot::Sender<()>,
}

impl Journal {
    pub(crate) fn new(archive: Archive, publisher: Arc<dyn Publish>, counters: Counters) -> Self {
        let (lines, handed_in) = mpsc::unbounded_channel();
        let task = tokio::spawn(publish(handed_in, publisher, counters));
        Self {
            archive,
            lines,
            _publisher: AbortOnDropHandle::new(task),
        }
    }

    /// How much is remembered.
    pub(crate) fn archive(&self) -> Archive {
        self.archive
    }

    /// Hands an entry in and waits until the broker has it; false where it never will.
    pub(crate) async fn write(&self, entry: &LogEntry) -> bool {
        let text = match serde_json::to_vec(entry) {
            Ok(text) => text,
            Err(error) => {
                // Cannot happen: keys are text and numbers finite. It would happen each time.
                warn!(event_id = %entry.event_id, %error, "a log entry cannot be written");
                return true;
            }
        };
        let (confirmed, confirm) = oneshot::channel();
        let line = Line {
            id: format!("log:{}:{}:{}", entry.delivery_id, entry.run, entry.attempts),
            text,
            confirmed,
        };
        self.lines.send(line).is_ok() && confirm.await.is_ok()
    }
}

/// Publishes what is handed in until nobody can hand anything in any more.
async fn publish(
    mut handed_in: mpsc::UnboundedReceiver<Line>,
    publisher: Arc<dyn Publish>,
    counters: Counters,
) {
    let mut waiting = Waiting::default();
    let mut on_their_way = FuturesUnordered::new();
    let mut fresh = Vec::with_capacity(ENTRIES_MAX);
    loop {
        while waiting.is_due(on_their_way.len()) {
            on_their_way.push(carry(waiting.batch(), &*publisher, &counters));
        }
        tokio::select! {
            // Confirms first: they make room, and someone waits for each.
            biased;
            Some(()) = on_their_way.next() => {}
            count = handed_in.recv_many(&mut fresh, ENTRIES_MAX) => {
                if count == 0 {
                    // Who handed these in is gone too.
                    return;
                }
                fresh.drain(..).for_each(|line| waiting.push(line));
            }
        }
    }
}

/// Publishes one batch until the broker has it, and says so to whoever waits.
async fn carry(batch: Vec<Line>, publisher: &dyn Publish, counters: &Counters) {
    let mut body =
        Vec::with_capacity(16 + batch.iter().map(|line| line.text.len() + 1).sum::<usize>());
    body.extend_from_slice(b"{\"entries\":[");
    for (n, line) in batch.iter().enumerate() {
        if n > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&line.text);
    }
    body.extend_from_slice(b"]}");
    let id = batch.first().map_or("log", |line| line.id.as_str());
    let parcel = Parcel::json(Route::Log, id, body);
    // Until nobody waits any more: then each of them is delivered and logged again.
    let is_wanted = || batch.iter().any(|line| !line.confirmed.is_closed());
    if publish_while(publisher, parcel, is_wanted).await.is_err() {
        return;
    }
    counters.batches.inc();
    for line in batch {
        counters.entries.inc();
        // Who does not wait any more was cut off.
        line.confirmed.send(()).ok();
    }
}

/// What has not left yet, in order.
#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Line>,
    bytes: usize,
}

impl Waiting {
    fn push(&mut self, line: Line) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
    }

    /// Whether a batch leaves now, with so many on their way.
    fn is_due(&self, on_their_way: usize) -> bool {
        let is_full = self.lines.len() >= ENTRIES_MAX || self.bytes >= BYTES_MAX;
        match on_their_way {
            0 => !self.lines.is_empty(),
            n => is_full && n < BATCHES_IN_FLIGHT_MAX,
        }
    }

    fn batch(&mut self) -> Vec<Line> {
        let mut batch: Vec<Line> = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.lines.front() {
            bytes += next.text.len();
            if batch.len() == ENTRIES_MAX || (bytes > BYTES_MAX && !batch.is_empty()) {
                break;
            }
            batch.extend(self.lines.pop_front());
        }
        self.bytes -= batch.iter().map(|line| line.text.len()).sum::<usize>();
        batch
    }
}

#[cfg(test)]
mod tests;
