//! What is ready, per queue: in memory as far as a bound allows, and known by id beyond it.
//!
//! The writer fills the shelves after each commit, consumers take from them; nothing here touches
//! the file.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::sync::{Notify, futures::Notified};

use crate::{
    embedded::file::{Key, Message, Table},
    parcel::Queue,
    topology,
};

/// Bodies kept in memory per queue.
const READY_MAX_BYTES: usize = 32 << 20;
/// Below this many ready messages, more are read from the file.
const READY_LOW: usize = 256;

/// A consumer's places. A message keeps its place until its settlement is on disk: otherwise a
/// crash could bring back more messages than the prefetch allows in flight.
#[derive(Debug)]
pub(super) struct Places {
    all: usize,
    taken: AtomicUsize,
    /// Of these, settled and not on disk yet.
    settling: AtomicUsize,
    /// The consumer waits for a place.
    wanted: AtomicBool,
    freed: Notify,
}

impl Places {
    pub(super) fn new(all: u16) -> Self {
        Self {
            all: usize::from(all),
            taken: AtomicUsize::new(0),
            settling: AtomicUsize::new(0),
            wanted: AtomicBool::new(false),
            freed: Notify::new(),
        }
    }

    /// Whether a place is free. If not, it is noted that one is wanted.
    pub(super) fn any(&self) -> bool {
        let free = || self.taken.load(Ordering::SeqCst) < self.all;
        if free() {
            return true;
        }
        self.wanted.store(true, Ordering::SeqCst);
        free()
    }

    pub(super) fn take(&self) {
        self.taken.fetch_add(1, Ordering::SeqCst);
    }

    fn settling(&self) {
        self.settling.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether the writer must not wait: a place is wanted, and a good part of all would be free.
    /// True once for each time.
    pub(super) fn hurry(&self) -> bool {
        let settling = self.settling.load(Ordering::SeqCst);
        settling > 0 && settling * 4 >= self.all && self.wanted.swap(false, Ordering::SeqCst)
    }

    fn free(&self, count: usize) {
        self.settling.fetch_sub(count, Ordering::SeqCst);
        self.taken.fetch_sub(count, Ordering::SeqCst);
        self.freed.notify_one();
    }

    /// Resolves when places became free since it was called (polled once).
    pub(super) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }
}

/// A message's end or return, on its way to the writer.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) key: Key,
    /// It goes back to its queue; otherwise it is done with.
    pub(super) back: bool,
    pub(super) places: Arc<Places>,
}

/// The settlements are on disk: their places are free.
pub(super) fn free_places(settled: &[Settled]) {
    for of_one in settled.chunk_by(|one, other| Arc::ptr_eq(&one.places, &other.places)) {
        if let Some(Settled { places, .. }) = of_one.first() {
            places.free(of_one.len());
        }
    }
}

/// All queues of one broker.
#[derive(Debug)]
pub(super) struct Shelves {
    shelves: [Shelf; 6],
    settled: Mutex<Vec<Settled>>,
    delayed: AtomicU64,
    queue_max: u64,
}

/// One queue.
#[derive(Debug)]
pub(super) struct Shelf {
    queue: Queue,
    inner: Mutex<Inner>,
    /// Something came, or the broker closed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    ready: VecDeque<Message>,
    ready_bytes: usize,
    /// Due or given back: their bodies are in the file.
    known: VecDeque<Key>,
    /// Of those, the ones that the writer is reading.
    reading: usize,
    /// Rows of the queue's own table from this id on are in the file only, …
    tail: Option<i64>,
    /// … and this many.
    tail_rows: u64,
    /// The writer was asked to read more.
    refilling: bool,
    /// The highest id, and the latest due time, handed out: what is left up to there after a
    /// crash had been seen.
    mark: i64,
    mark_later: i64,
    closed: bool,
}

/// What a consumer got.
#[derive(Debug)]
pub(super) enum Taken {
    Message(Message),
    Nothing,
    Closed,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shelves {
    pub(super) fn new(queue_max: u64) -> Self {
        let shelf = |queue| Shelf {
            queue,
            inner: Mutex::default(),
            changed: Notify::new(),
        };
        Self {
            shelves: Queue::ALL.map(shelf),
            settled: Mutex::default(),
            delayed: AtomicU64::new(0),
            queue_max,
        }
    }

    pub(super) fn of(&self, queue: Queue) -> &Shelf {
        &self.shelves[match queue {
            Queue::Inbox => 0,
            Queue::Deliver => 1,
            Queue::Dead => 2,
            Queue::Quarantine => 3,
            Queue::Archive => 4,
            Queue::Log => 5,
        }]
    }

    pub(super) fn all(&self) -> &[Shelf] {
        &self.shelves
    }

    /// Notes a settlement; true when the writer must be told that there are some.
    pub(super) fn settle(&self, settled: Settled) -> bool {
        settled.places.settling();
        let mut waiting = locked(&self.settled);
        waiting.push(settled);
        waiting.len() == 1
    }

    pub(super) fn take_settled(&self) -> Vec<Settled> {
        std::mem::take(&mut *locked(&self.settled))
    }

    pub(super) fn delay(&self, count: u64) {
        self.delayed.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn undelay(&self, count: u64) {
        self.delayed.fetch_sub(count, Ordering::Relaxed);
    }

    /// How many more messages this table takes.
    pub(super) fn room(&self, table: Table) -> u64 {
        let held = match table {
            Table::Later => self.delayed.load(Ordering::Relaxed),
            table => self.of(table.queue()).depth(),
        };
        self.queue_max.saturating_sub(held)
    }

    pub(super) fn depths(&self) -> Vec<(String, u64)> {
        let mut depths: Vec<_> = self
            .shelves
            .iter()
            .map(|shelf| (topology::queue_name(shelf.queue).to_owned(), shelf.depth()))
            .collect();
        depths.push((
            topology::RETRY.to_owned(),
            self.delayed.load(Ordering::Relaxed),
        ));
        depths
    }
}

impl Shelf {
    pub(super) fn queue(&self) -> Queue {
        self.queue
    }

    fn depth(&self) -> u64 {
        let inner = locked(&self.inner);
        inner.tail_rows + (inner.ready.len() + inner.known.len() + inner.reading) as u64
    }

    /// At open: all rows are in the file.
    pub(super) fn load(&self, rows: u64, mark: i64, mark_later: i64) {
        let mut inner = locked(&self.inner);
        inner.tail = (rows > 0).then_some(0);
        inner.tail_rows = rows;
        (inner.mark, inner.mark_later) = (mark, mark_later);
    }

    /// Takes in what was just stored, in order.
    pub(super) fn put(&self, messages: Vec<Message>) {
        let mut inner = locked(&self.inner);
        for message in messages {
            if inner.tail.is_none() && inner.ready_bytes < READY_MAX_BYTES {
                inner.push(message);
            } else {
                inner.tail.get_or_insert(message.key.id);
                inner.tail_rows += 1;
            }
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// These are to be handed out and their bodies are in the file. Only the writer calls this,
    /// and looks afterwards whether it must read.
    pub(super) fn know(&self, keys: impl IntoIterator<Item = Key>) {
        locked(&self.inner).known.extend(keys);
    }

    /// What to read now, if anything: known rows, and the id to read on from.
    pub(super) fn wanted(&self, count: usize) -> Option<(Vec<Key>, Option<i64>)> {
        let mut inner = locked(&self.inner);
        if !inner.low() {
            inner.refilling = false;
            return None;
        }
        inner.refilling = true;
        let count = count.min(inner.known.len());
        let known: Vec<_> = inner.known.drain(..count).collect();
        // They are left in the queue until they are ready: who adds up depths must not miss them.
        inner.reading = known.len();
        Some((known, inner.tail))
    }

    /// Puts back what could not be read.
    pub(super) fn unwanted(&self, known: Vec<Key>) {
        let mut inner = locked(&self.inner);
        known
            .into_iter()
            .rev()
            .for_each(|key| inner.known.push_front(key));
        inner.reading = 0;
        inner.refilling = false;
    }

    /// Takes in what was read; `tail` is where to read on from, `None` if that was all.
    pub(super) fn refill(&self, known: Vec<Message>, page: Vec<Message>, tail: Option<i64>) {
        let mut inner = locked(&self.inner);
        inner.tail_rows = inner.tail_rows.saturating_sub(page.len() as u64);
        inner.tail = tail;
        if tail.is_none() {
            inner.tail_rows = 0;
        }
        known
            .into_iter()
            .chain(page)
            .for_each(|message| inner.push(message));
        inner.reading = 0;
        inner.refilling = false;
        drop(inner);
        self.changed.notify_waiters();
    }

    /// The next message, and whether the writer must be asked to read more.
    pub(super) fn take(&self) -> (Taken, bool) {
        let mut inner = locked(&self.inner);
        if inner.closed {
            return (Taken::Closed, false);
        }
        let taken = match inner.ready.pop_front() {
            Some(message) => {
                inner.ready_bytes -= message.body.len();
                if message.key.table == Table::Later {
                    inner.mark_later = inner.mark_later.max(message.due);
                } else {
                    inner.mark = inner.mark.max(message.key.id);
                }
                Taken::Message(message)
            }
            None => Taken::Nothing,
        };
        let ask = inner.low() && !inner.refilling;
        inner.refilling |= ask;
        (taken, ask)
    }

    /// Resolves when something came since it was called (polled once).
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub(super) fn marks(&self) -> (i64, i64) {
        let inner = locked(&self.inner);
        (inner.mark, inner.mark_later)
    }

    pub(super) fn close(&self) {
        locked(&self.inner).closed = true;
        self.changed.notify_waiters();
    }
}

impl Inner {
    fn push(&mut self, message: Message) {
        self.ready_bytes += message.body.len();
        self.ready.push_back(message);
    }

    fn low(&self) -> bool {
        self.ready.len() < READY_LOW && (self.tail.is_some() || !self.known.is_empty())
    }
}
