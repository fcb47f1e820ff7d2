//! The one thread that owns the file: gathers what came, commits it as a group, tells everybody.
//!
//! A post is never kept waiting for company: the first one is committed with whatever is there,
//! and what comes during the commit makes the next group. Settlements ride along, or go by
//! themselves after a moment.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{oneshot, watch};

use crate::{
    embedded::{
        file::{self, File, Key, Message, Table},
        lock::Lock,
        shelf::{self, Settled, Shelves},
    },
    parcel::{DUE_HEADER, Parcel, PublishError, Queue, Route},
    seam::Status,
    topology,
};

/// Posts and their bytes in one group.
const GROUP_POSTS: usize = 512;
const GROUP_BYTES: usize = 4 << 20;
/// Settlements in a group without posts: a post that comes meanwhile waits for about a millisecond.
const GROUP_SETTLED: usize = 256;
/// Settlements that ride along with a post: enough to keep up, and few enough not to delay it.
const SETTLED_PER_POST: usize = 4;
const SETTLED_ALONG: usize = 64;
/// How long settlements wait for a group to ride with.
const SETTLED_MAX: Duration = Duration::from_millis(4);
/// Between two tries when the file cannot be written or read.
const RETRY: Duration = Duration::from_millis(500);
/// How often the clock is read while something waits: it may be set meanwhile.
const CLOCK: Duration = Duration::from_secs(1);
/// Rows and bytes of bodies read at once.
const PAGE_ROWS: usize = 512;
const PAGE_BYTES: usize = 8 << 20;

/// A publish on its way.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) parcel: Parcel,
    pub(super) answer: oneshot::Sender<Result<(), PublishError>>,
}

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Publish(Box<Post>),
    /// There are settlements, …
    Settled,
    /// … and a consumer waits for them.
    Hurry,
    /// A shelf runs low.
    Refill(Queue),
    Close(oneshot::Sender<()>),
}

pub(super) struct Writer {
    file: File,
    shelves: Arc<Shelves>,
    status: watch::Sender<Status>,
    /// Due time and id of everything that waits.
    later: BinaryHeap<Reverse<(i64, i64)>>,
    last_ids: HashMap<Table, i64>,
    /// Up to these ids a crash left it open whether they had been handed out.
    old: HashMap<Table, i64>,
    marks: HashMap<Table, i64>,
    posts: Vec<Post>,
    post_bytes: usize,
    settled: Vec<Settled>,
    /// When settlements must be committed, with or without posts.
    settle_at: Option<Instant>,
    /// When to try again after a failure.
    retry_at: Option<Instant>,
    refills: Vec<Queue>,
    closed: Option<oneshot::Sender<()>>,
    _lock: Lock,
}

impl Writer {
    /// Reads what is there.
    pub(super) fn load(
        file: File,
        shelves: Arc<Shelves>,
        status: watch::Sender<Status>,
        lock: Lock,
    ) -> rusqlite::Result<Self> {
        let clean = file.state("clean")?.unwrap_or(1) == 1;
        let (mut last_ids, mut old, mut marks) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut rows = HashMap::new();
        file.begin()?;
        for table in Table::ALL {
            let mark = file
                .state(&File::state_name(table, "mark"))?
                .unwrap_or_default();
            // Whatever was handed out and is still there comes back now.
            file.count_returns(table, mark)?;
            let (count, last) = file.extent(table)?;
            // Below the mark no id may be used again, or it would count as handed out.
            let used = if table == Table::Later {
                last
            } else {
                last.max(mark)
            };
            last_ids.insert(table, used);
            old.insert(table, if clean { 0 } else { last });
            marks.insert(table, mark);
            rows.insert(table, count);
        }
        file.set_state("clean", 0)?;
        file.commit()?;
        for shelf in shelves.all() {
            let own = own_table(shelf.queue());
            shelf.load(rows[&own], marks[&own], marks[&Table::Later]);
        }
        let later: BinaryHeap<_> = file.waiting()?.into_iter().map(Reverse).collect();
        shelves.delay(later.len() as u64);
        Ok(Self {
            file,
            shelves,
            status,
            later,
            last_ids,
            old,
            marks,
            posts: Vec::new(),
            post_bytes: 0,
            settled: Vec::new(),
            settle_at: None,
            retry_at: None,
            refills: Queue::ALL.to_vec(),
            closed: None,
            _lock: lock,
        })
    }

    /// Works until the broker is closed or all its handles are gone.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        while self.closed.is_none() {
            self.wake_up();
            self.refill();
            let received = match self.next_moment() {
                Some(wait) => commands.recv_timeout(wait),
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(command) => self.accept(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while self.closed.is_none()
                && self.posts.len() < GROUP_POSTS
                && self.post_bytes < GROUP_BYTES
                && let Ok(command) = commands.try_recv()
            {
                self.accept(command);
            }
            let now = Instant::now();
            let ripe = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            if !self.posts.is_empty() || ripe(self.settle_at) || ripe(self.retry_at) {
                self.commit();
            }
        }
        self.close();
    }

    fn accept(&mut self, command: Command) {
        match command {
            Command::Publish(post) => {
                self.post_bytes += post.parcel.body.len();
                self.posts.push(*post);
            }
            Command::Settled => {
                self.settle_at
                    .get_or_insert_with(|| Instant::now() + SETTLED_MAX);
            }
            Command::Hurry => self.settle_at = Some(Instant::now()),
            Command::Refill(queue) => self.refills.push(queue),
            Command::Close(closed) => self.closed = Some(closed),
        }
    }

    /// How long nothing needs to be done.
    fn next_moment(&self) -> Option<Duration> {
        let now = Instant::now();
        let until = |at: Instant| at.saturating_duration_since(now);
        let due = self.later.peek().map(|Reverse((due, _))| {
            let left = u64::try_from(due - unix_ms(SystemTime::now())).unwrap_or_default();
            Duration::from_millis(left).min(CLOCK)
        });
        [self.settle_at.map(until), self.retry_at.map(until), due]
            .into_iter()
            .flatten()
            .min()
    }

    /// Makes ready what is due.
    fn wake_up(&mut self) {
        let now = unix_ms(SystemTime::now());
        let mut due = Vec::new();
        while let Some(Reverse((at, id))) = self.later.peek().copied() {
            if at > now {
                break;
            }
            self.later.pop();
            due.push(Key {
                table: Table::Later,
                id,
            });
        }
        if !due.is_empty() {
            let count = due.len() as u64;
            // In this order: counted twice for a moment, and never not at all.
            self.shelves.of(Queue::Deliver).know(due);
            self.shelves.undelay(count);
            self.refills.push(Queue::Deliver);
        }
    }

    /// Reads for the shelves that run low.
    fn refill(&mut self) {
        for queue in std::mem::take(&mut self.refills) {
            let shelf = self.shelves.of(queue);
            let Some((known, tail)) = shelf.wanted(PAGE_ROWS) else {
                continue;
            };
            match self.read(&known, own_table(queue), tail) {
                Ok((messages, page, tail)) => shelf.refill(messages, page, tail),
                Err(error) => {
                    shelf.unwanted(known);
                    self.refills.push(queue);
                    self.trouble(&error);
                }
            }
        }
    }

    fn read(
        &self,
        known: &[Key],
        table: Table,
        tail: Option<i64>,
    ) -> rusqlite::Result<(Vec<Message>, Vec<Message>, Option<i64>)> {
        let mut messages = Vec::with_capacity(known.len());
        for key in known {
            messages.extend(self.file.read(*key)?);
        }
        let (mut page, mut next) = (Vec::new(), None);
        if let Some(tail) = tail {
            page = self.file.page(table, tail, PAGE_ROWS, PAGE_BYTES)?;
            let bytes: usize = page.iter().map(|message| message.body.len()).sum();
            if page.len() >= PAGE_ROWS || bytes >= PAGE_BYTES {
                next = page.last().map(|message| message.key.id + 1);
            }
        }
        for message in messages.iter_mut().chain(&mut page) {
            message.old = message.key.id <= self.old[&message.key.table];
        }
        Ok((messages, page, next))
    }

    fn commit(&mut self) {
        self.settled.extend(self.shelves.take_settled());
        let probe = self.retry_at.is_some();
        if self.posts.is_empty() && self.settled.is_empty() && !probe {
            self.settle_at = None;
            return;
        }
        (self.settle_at, self.retry_at, self.post_bytes) = (None, None, 0);
        let posts = std::mem::take(&mut self.posts);
        let settled_max = match posts.len() {
            0 => GROUP_SETTLED,
            posts => (posts * SETTLED_PER_POST).max(SETTLED_ALONG),
        };
        let count = self.settled.len().min(settled_max);
        let settled: Vec<_> = self.settled.drain(..count).collect();
        let mut group = Group::default();
        let written = self.write(posts, &settled, &mut group, probe);
        match written {
            Ok(()) => {
                self.recovered();
                self.tell(group);
                shelf::free_places(&settled);
            }
            Err(error) => {
                self.file.roll_back();
                // First: who is refused finds the reason in the status.
                self.trouble(&error);
                for (_, answer) in group.stored {
                    // Who does not wait for the answer any more does not need it.
                    _ = answer.send(Err(refusal(&error)));
                }
                for Post { answer, .. } in group.unread {
                    _ = answer.send(Err(refusal(&error)));
                }
                self.settled.splice(0..0, settled);
            }
        }
        if !self.settled.is_empty() {
            self.settle_at.get_or_insert_with(Instant::now);
        }
    }

    fn write(
        &mut self,
        posts: Vec<Post>,
        settled: &[Settled],
        group: &mut Group,
        probe: bool,
    ) -> rusqlite::Result<()> {
        let now = unix_ms(SystemTime::now());
        group.unread = posts;
        self.file.begin()?;
        let mut room: HashMap<Table, u64> = HashMap::new();
        group.unread.reverse();
        while let Some(Post { mut parcel, answer }) = group.unread.pop() {
            let (table, source, due) = address(&mut parcel, now);
            let room = room
                .entry(table)
                .or_insert_with(|| self.shelves.room(table));
            if *room == 0 {
                // Who does not wait for the answer any more does not need it.
                _ = answer.send(Err(PublishError::Rejected));
                continue;
            }
            *room -= 1;
            let message = Message::of(self.next_key(table), parcel, source, due);
            let inserted = self.file.insert(&message);
            group.stored.push((message, answer));
            inserted?;
        }
        for settled in settled {
            let key = settled.key;
            if !settled.back {
                self.file.delete(key)?;
                continue;
            }
            let returns = self.file.count_return(key)?;
            match self.moved(key, returns)? {
                Some(quarantined) => group.quarantined.push(quarantined),
                None => group.back.push(key),
            }
        }
        group.marks = self.write_marks()?;
        if probe {
            // Something must be written, or nobody learns whether it can be.
            self.file.set_state("tried", now)?;
        }
        self.file.commit()
    }

    /// Moves what came back too often to quarantine.
    fn moved(&mut self, key: Key, returns: u32) -> rusqlite::Result<Option<Message>> {
        let limited = matches!(key.table.queue(), Queue::Inbox | Queue::Deliver);
        if !limited || returns < topology::RETURNS_MAX {
            return Ok(None);
        }
        let Some(mut message) = self.file.read(key)? else {
            return Ok(None);
        };
        self.file.delete(key)?;
        message.key = self.next_key(Table::Quarantine);
        (message.returns, message.due) = (0, 0);
        let detail = format!("came back {returns} times");
        let why = [
            ("x-postrider-reason", "handler_failed".to_owned()),
            ("x-postrider-detail", detail),
            ("x-postrider-source", std::mem::take(&mut message.source)),
        ];
        message
            .headers
            .extend(why.map(|(name, value)| (name.to_owned(), value)));
        message.source = format!("{}/", topology::QUARANTINE);
        self.file.insert(&message)?;
        Ok(Some(message))
    }

    fn write_marks(&self) -> rusqlite::Result<Vec<(Table, i64)>> {
        let mut moved = Vec::new();
        for shelf in self.shelves.all() {
            let (own, later) = shelf.marks();
            let mut marks = vec![(own_table(shelf.queue()), own)];
            if shelf.queue() == Queue::Deliver {
                marks.push((Table::Later, later));
            }
            for (table, mark) in marks {
                if self.marks[&table] != mark {
                    self.file
                        .set_state(&File::state_name(table, "mark"), mark)?;
                    moved.push((table, mark));
                }
            }
        }
        Ok(moved)
    }

    /// Everything in the group is on disk: shelves first, then the confirms.
    fn tell(&mut self, group: Group) {
        self.marks.extend(group.marks);
        let mut fresh: HashMap<Table, Vec<Message>> = HashMap::new();
        let mut answers = Vec::with_capacity(group.stored.len());
        for (message, answer) in group.stored {
            answers.push(answer);
            if message.key.table == Table::Later {
                self.shelves.delay(1);
                self.later.push(Reverse((message.due, message.key.id)));
            } else {
                fresh.entry(message.key.table).or_default().push(message);
            }
        }
        if !group.quarantined.is_empty() {
            fresh
                .entry(Table::Quarantine)
                .or_default()
                .extend(group.quarantined);
        }
        for (table, messages) in fresh {
            self.shelves.of(table.queue()).put(messages);
        }
        for key in group.back {
            self.shelves.of(key.table.queue()).know([key]);
            self.refills.push(key.table.queue());
        }
        for answer in answers {
            // Who does not wait for the answer any more does not need it.
            _ = answer.send(Ok(()));
        }
    }

    fn next_key(&mut self, table: Table) -> Key {
        let last = self.last_ids.entry(table).or_default();
        *last += 1;
        Key { table, id: *last }
    }

    fn trouble(&mut self, error: &rusqlite::Error) {
        self.retry_at = Some(Instant::now() + RETRY);
        let reason = format!("the embedded broker's file cannot be used: {error}");
        self.status.send_if_modified(|status| {
            if status.blocked.as_ref() == Some(&reason) {
                return false;
            }
            tracing::error!(%error, "embedded broker blocked, trying again until it is not");
            status.blocked = Some(reason);
            true
        });
    }

    fn recovered(&self) {
        self.status.send_if_modified(|status| {
            let blocked = status.blocked.take().is_some();
            if blocked {
                tracing::info!("embedded broker unblocked");
            }
            blocked
        });
    }

    /// Leaves word of what is handed out, and that nothing else happened.
    fn sign_off(&self) -> rusqlite::Result<()> {
        self.file.begin()?;
        self.write_marks()?;
        self.file.set_state("clean", 1)?;
        self.file.commit()
    }

    fn close(mut self) {
        loop {
            self.settle_at = None;
            self.commit();
            if self.retry_at.is_some() || self.settled.is_empty() {
                break;
            }
        }
        if let Err(error) = self.sign_off() {
            self.file.roll_back();
            tracing::warn!(%error, "embedded broker not closed in order");
        }
        self.status.send_modify(|status| status.connected = false);
        self.file.close();
        for shelf in self.shelves.all() {
            shelf.close();
        }
        drop(self._lock);
        if let Some(closed) = self.closed {
            // Who does not wait for it any more does not need it.
            _ = closed.send(());
        }
    }
}

/// One transaction's work.
#[derive(Default)]
struct Group {
    /// Posts that were not looked at before a failure.
    unread: Vec<Post>,
    stored: Vec<(Message, oneshot::Sender<Result<(), PublishError>>)>,
    back: Vec<Key>,
    quarantined: Vec<Message>,
    marks: Vec<(Table, i64)>,
}

fn refusal(error: &rusqlite::Error) -> PublishError {
    if file::is_full(error) {
        PublishError::Rejected
    } else {
        PublishError::Unavailable
    }
}

fn own_table(queue: Queue) -> Table {
    match queue {
        Queue::Inbox => Table::Inbox,
        Queue::Deliver => Table::Deliver,
        Queue::Dead => Table::Dead,
        Queue::Quarantine => Table::Quarantine,
        Queue::Archive => Table::Archive,
        Queue::Log => Table::Log,
    }
}

/// Table, source and due time of a parcel; stamps the due time into its headers.
fn address(parcel: &mut Parcel, now: i64) -> (Table, String, i64) {
    parcel.headers.retain(|(name, _)| name != DUE_HEADER);
    match &parcel.route {
        Route::Events { routing_key } => (
            Table::Inbox,
            format!("{}/{routing_key}", topology::EVENTS),
            0,
        ),
        Route::Deliver => (Table::Deliver, deliver_source(), 0),
        Route::DeliverAt(due) => {
            let due = unix_ms(*due);
            parcel
                .headers
                .push((DUE_HEADER.to_owned(), due.to_string()));
            let table = if due > now {
                Table::Later
            } else {
                Table::Deliver
            };
            (table, deliver_source(), due)
        }
        Route::Dead => (Table::Dead, format!("{}/", topology::DEAD), 0),
        Route::Quarantine => (Table::Quarantine, format!("{}/", topology::QUARANTINE), 0),
        Route::Archive => (Table::Archive, format!("{}/", topology::ARCHIVE), 0),
        Route::Log => (Table::Log, format!("{}/", topology::LOG), 0),
    }
}

fn deliver_source() -> String {
    format!("{0}/{0}", topology::DELIVER)
}

/// Rounded up: a millisecond early is early.
fn unix_ms(time: SystemTime) -> i64 {
    let micros = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_micros();
    i64::try_from(micros.div_ceil(1000)).unwrap_or(i64::MAX)
}
