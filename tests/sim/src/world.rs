//! The simulated broker, with RabbitMQ's rules: a confirm comes after the message is stored and
//! may never arrive; what is not confirmed may be stored all the same; an unroutable message comes
//! back; what was handed out and not acknowledged goes back to its place, marked, when its channel
//! ends; what came back too often goes to quarantine; what waits climbs down the retry ladder.
//!
//! Everything that happens by itself is an action at a time, and actions happen one by one.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use broker::{
    Parcel, PublishError, Queue, Route, clock,
    ladder::{self, Step},
    topology,
};
use bytes::Bytes;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until},
};

use crate::{
    book::Book,
    chance::Chance,
    content::{Content, Copy, Key},
    plan::Behaviour,
};

pub(crate) type Confirm = oneshot::Sender<Result<(), PublishError>>;
type Action = Box<dyn FnOnce(&mut State) + Send>;

/// The world: shared by all stages.
#[derive(Clone)]
pub(crate) struct World {
    state: Arc<Mutex<State>>,
    /// An action was added that may be the next.
    added: Arc<Notify>,
    /// Something may be taken that could not before.
    changed: Arc<Notify>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

/// A message in a queue.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its place in its queue.
    place: u64,
    pub(crate) parcel: Parcel,
    pub(crate) content: Arc<Content>,
    pub(crate) redelivered: bool,
    pub(crate) returns: u32,
}

/// A message in a stage's hands.
#[derive(Debug)]
struct Out {
    queue: Queue,
    entry: Entry,
    /// The step at which it was handed out.
    since: u64,
    settled: bool,
}

/// One process's connections to the broker: one to publish, one to consume.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) name: String,
    is_alive: bool,
    publishes: bool,
    publishing: u32,
    consumes: bool,
    pub(crate) consuming: u32,
    out: BTreeMap<u64, Out>,
    last_arrival: Instant,
}

pub(crate) struct State {
    pub(crate) book: Book,
    pub(crate) chance: Chance,
    queues: BTreeMap<&'static str, BTreeMap<u64, Entry>>,
    waiting: BTreeMap<u64, Entry>,
    pub(crate) links: Vec<Link>,
    actions: BTreeMap<(Instant, u64), Action>,
    /// What was read before, by where its bytes are.
    read: BTreeMap<(usize, usize), (Bytes, Arc<Content>)>,
    next: u64,
    on_their_way: usize,
    pub(crate) alarm_until: Option<Instant>,
    pub(crate) full_until: Option<Instant>,
    pub(crate) unbound_until: Option<Instant>,
    /// Until then things break.
    pub(crate) breaks_until: Option<Instant>,
    /// What happened, where somebody wants to read it.
    pub(crate) trace: Option<Vec<String>>,
    /// How many breaches the trace has.
    told: usize,
    /// A number that differs where two runs differ.
    pub(crate) sum: u64,
    changed: Arc<Notify>,
    steps: u64,
}

impl World {
    pub(crate) fn new(book: Book, chance: Chance, traces: bool) -> Self {
        let changed = Arc::new(Notify::new());
        let state = State {
            book,
            chance,
            queues: BTreeMap::new(),
            waiting: BTreeMap::new(),
            links: Vec::new(),
            actions: BTreeMap::new(),
            read: BTreeMap::new(),
            next: 0,
            on_their_way: 0,
            alarm_until: None,
            full_until: None,
            unbound_until: None,
            breaks_until: None,
            trace: traces.then(Vec::new),
            told: 0,
            sum: 0,
            changed: changed.clone(),
            steps: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            added: Arc::new(Notify::new()),
            changed,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    pub(crate) fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Makes happen what is due, until dropped.
    pub(crate) async fn run(self) {
        loop {
            let next = self.lock().actions.keys().next().map(|(at, _)| *at);
            let Some(at) = next else {
                self.added.notified().await;
                continue;
            };
            tokio::select! {
                biased;
                () = sleep_until(at) => {}
                () = self.added.notified() => continue,
            }
            let mut state = self.lock();
            while let Some(first) = state.actions.first_entry() {
                if first.key().0 > Instant::now() {
                    break;
                }
                let action = first.remove();
                action(&mut state);
            }
        }
    }

    /// Changes the world, and lets what follows from it happen.
    pub(crate) fn with<T>(&self, how: impl FnOnce(&mut State) -> T) -> T {
        let result = how(&mut self.lock());
        self.added.notify_one();
        result
    }
}

impl State {
    pub(crate) fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.trace.is_some() {
            for breach in &self.book.faults[self.told..] {
                let trace = self.trace.get_or_insert_default();
                trace.push(format!("        !! {breach}"));
            }
            self.told = self.book.faults.len();
            let line = format!("{:>10.3} {}", self.book.passed().as_secs_f64(), what());
            if let Some(trace) = &mut self.trace {
                trace.push(line);
            }
        }
    }

    /// Remembers that something happened, in a number.
    fn mark(&mut self, what: u64) {
        let at = u64::try_from(self.book.passed().as_millis()).unwrap_or(u64::MAX);
        let sum = self.sum ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ what;
        self.sum = sum.rotate_left(13).wrapping_mul(0x94d0_49bb_1331_11eb);
    }

    fn after(&mut self, wait: Duration, action: impl FnOnce(&mut Self) + Send + 'static) {
        self.at(Instant::now() + wait, action);
    }

    fn at(&mut self, at: Instant, action: impl FnOnce(&mut Self) + Send + 'static) {
        self.next += 1;
        self.actions.insert((at, self.next), Box::new(action));
    }

    /// Whether something may break now.
    pub(crate) fn breaks(&self) -> bool {
        self.is(self.breaks_until)
    }

    fn is(&self, until: Option<Instant>) -> bool {
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether the run goes on: no breach yet, and not endless.
    pub(crate) fn goes_on(&mut self) -> bool {
        self.steps += 1;
        if self.steps == 100_000 {
            let standing = self.book.standing();
            self.book
                .breach(format!("the run does not end; in the broker: {standing}"));
        }
        self.book.faults.is_empty()
    }

    pub(crate) fn join(&mut self, name: String) -> usize {
        self.links.push(Link {
            name,
            is_alive: true,
            publishes: true,
            publishing: 0,
            consumes: true,
            consuming: 0,
            out: BTreeMap::new(),
            last_arrival: Instant::now(),
        });
        self.links.len() - 1
    }

    /// A service publishes an event; it is stored and confirmed.
    pub(crate) fn take_in(&mut self, event: usize, parcel: Parcel) {
        let content = Arc::new(Content::Event(event));
        self.tell(|| format!("service publishes e{event}"));
        self.mark(event as u64);
        self.put(Queue::Inbox, parcel, content);
    }

    /// The recorder publishes what was handed over to it.
    pub(crate) fn send_again(&mut self, key: Key, parcel: Parcel) {
        match Content::of(&parcel) {
            Ok(content) => {
                self.tell(|| format!("resumed: {}", content.shown()));
                self.book.stored(&content);
                self.book.remembered.held.remove(&key);
                self.put(Queue::Deliver, parcel, content);
            }
            Err(error) => self.book.breach(error),
        }
    }

    /// A stage publishes; the answer comes later.
    pub(crate) fn publish(
        &mut self,
        link: usize,
        parcel: Parcel,
        confirm: Confirm,
    ) -> Result<(), PublishError> {
        if !self.goes_on() || !self.links[link].is_alive {
            return Err(PublishError::Closed);
        }
        if !self.links[link].publishes {
            return Err(PublishError::Unavailable);
        }
        if self.is(self.alarm_until) {
            return Err(PublishError::Blocked("an alarm".into()));
        }
        let content = match self.read(&parcel) {
            Ok(content) => content,
            Err(error) => {
                self.book.breach(error);
                return Err(PublishError::Closed);
            }
        };
        let in_hand = self.in_hand(link, None);
        let name = self.links[link].name.clone();
        self.tell(|| {
            let to = match parcel.route {
                Route::DeliverAt(due) => {
                    let wait = due.duration_since(SystemTime::from(clock::now()));
                    format!(
                        "the ladder for {:.3} s",
                        wait.unwrap_or_default().as_secs_f64()
                    )
                }
                ref route => format!("{route:?}"),
            };
            format!("{name} publishes to {to}: {}", content.shown())
        });
        self.book.publishes(&parcel.route, &content, &in_hand);
        self.mark(2 + link as u64);
        let travels = self.chance.ms(0, 4);
        let at = self.links[link].last_arrival.max(Instant::now() + travels);
        self.links[link].last_arrival = at;
        let epoch = self.links[link].publishing;
        self.on_their_way += 1;
        self.at(at, move |state| {
            state.arrive(link, epoch, parcel, content, confirm);
        });
        Ok(())
    }

    /// What a parcel says. A stage that does not give up publishes the same bytes often.
    fn read(&mut self, parcel: &Parcel) -> Result<Arc<Content>, String> {
        let place = (parcel.body.as_ptr() as usize, parcel.body.len());
        if let Some((_, content)) = self.read.get(&place) {
            return Ok(content.clone());
        }
        let content = Content::of(parcel)?;
        // With the bytes themselves, so that no others can take their place.
        self.read
            .insert(place, (parcel.body.clone(), content.clone()));
        Ok(content)
    }

    /// The deliveries a stage has in hand, but for those of one message.
    fn in_hand(&self, link: usize, but: Option<u64>) -> Vec<Copy> {
        let out = self.links[link].out.iter();
        out.filter(|(tag, _)| Some(**tag) != but)
            .flat_map(|(_, out)| out.entry.content.copies().iter().cloned())
            .collect()
    }

    fn arrive(
        &mut self,
        link: usize,
        epoch: u32,
        parcel: Parcel,
        content: Arc<Content>,
        confirm: Confirm,
    ) {
        self.on_their_way -= 1;
        if self.links[link].publishing != epoch {
            // It was on the wire when the connection broke: nobody knows how far it came.
            if self.chance.percent(50) {
                self.tell(|| format!("stored, and nobody is told: {}", content.shown()));
                self.book.allows(&content);
                self.store(parcel, content);
            }
            confirm.send(Err(PublishError::Unavailable)).ok();
            return;
        }
        let refused = if self.is(self.full_until) {
            Some(PublishError::Rejected)
        } else if self.is(self.unbound_until) {
            Some(PublishError::Unroutable("no queue is bound".into()))
        } else {
            None
        };
        let answer = match refused {
            Some(error) => {
                self.tell(|| format!("{error}: {}", content.shown()));
                Err(error)
            }
            None => {
                self.store(parcel, content.clone());
                Ok(())
            }
        };
        let travels = self.chance.ms(0, 4);
        self.on_their_way += 1;
        self.after(travels, move |state| {
            state.answer(link, epoch, &content, confirm, answer);
        });
    }

    fn answer(
        &mut self,
        link: usize,
        epoch: u32,
        content: &Content,
        confirm: Confirm,
        answer: Result<(), PublishError>,
    ) {
        self.on_their_way -= 1;
        if self.links[link].publishing == epoch {
            if answer.is_ok() {
                self.book.confirmed(link, content);
            }
            confirm.send(answer).ok();
            return;
        }
        if answer.is_ok() {
            self.tell(|| format!("a confirm is lost: {}", content.shown()));
            self.book.allows(content);
        }
        confirm.send(Err(PublishError::Unavailable)).ok();
    }

    fn store(&mut self, parcel: Parcel, content: Arc<Content>) {
        self.book.stored(&content);
        match parcel.route {
            Route::DeliverAt(_) => self.climb(None, parcel, content),
            Route::Deliver => self.put(Queue::Deliver, parcel, content),
            Route::Dead => self.put(Queue::Dead, parcel, content),
            Route::Quarantine => self.put(Queue::Quarantine, parcel, content),
            Route::Archive => self.put(Queue::Archive, parcel, content),
            Route::Log => self.put(Queue::Log, parcel, content),
            // Refused where it was read.
            Route::Events { .. } => {}
        }
    }

    /// One step down the ladder, or into the queue.
    fn climb(&mut self, place: Option<u64>, parcel: Parcel, content: Arc<Content>) {
        let Route::DeliverAt(due) = parcel.route else {
            return self.put(Queue::Deliver, parcel, content);
        };
        let now = SystemTime::from(clock::now());
        let Step::Wait(tier) = ladder::step(due.duration_since(now).unwrap_or_default()) else {
            return self.put(Queue::Deliver, parcel, content);
        };
        let place = place.unwrap_or_else(|| self.place());
        self.waiting.insert(
            place,
            Entry {
                place,
                parcel,
                content,
                redelivered: false,
                returns: 0,
            },
        );
        let late = self.chance.ms(0, 5);
        self.after(tier.wait + late, move |state| {
            if let Some(entry) = state.waiting.remove(&place) {
                state.climb(Some(place), entry.parcel, entry.content);
            }
        });
    }

    fn place(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn put(&mut self, queue: Queue, parcel: Parcel, content: Arc<Content>) {
        let place = self.place();
        let entry = Entry {
            place,
            parcel,
            content,
            redelivered: false,
            returns: 0,
        };
        self.queue(queue).insert(place, entry);
        self.changed.notify_waiters();
    }

    fn queue(&mut self, queue: Queue) -> &mut BTreeMap<u64, Entry> {
        self.queues.entry(topology::queue_name(queue)).or_default()
    }

    /// The first message of a queue, for a consumer that holds fewer than `prefetch`.
    pub(crate) fn take(
        &mut self,
        link: usize,
        queue: Queue,
        prefetch: u16,
    ) -> Option<(u64, u32, Entry)> {
        let held = &self.links[link];
        let of_queue = held.out.values().filter(|out| out.queue == queue).count();
        if !held.is_alive || !held.consumes || of_queue >= usize::from(prefetch) {
            return None;
        }
        if !self.goes_on() {
            return None;
        }
        let (_, entry) = self.queue(queue).pop_first()?;
        let since = self.book.handed_out(&entry.content, Instant::now());
        let name = self.links[link].name.clone();
        self.tell(|| {
            let again = if entry.redelivered { " again" } else { "" };
            format!("{name} is handed{again} {}", entry.content.shown())
        });
        self.mark(100 + link as u64);
        let tag = self.place();
        let shown = Entry {
            place: entry.place,
            parcel: entry.parcel.clone(),
            content: entry.content.clone(),
            redelivered: entry.redelivered,
            returns: entry.returns,
        };
        let link = &mut self.links[link];
        link.out.insert(
            tag,
            Out {
                queue,
                entry,
                since,
                settled: false,
            },
        );
        Some((tag, link.consuming, shown))
    }

    pub(crate) fn is_void(&self, link: usize, epoch: u32) -> bool {
        let link = &self.links[link];
        !link.is_alive || link.consuming != epoch
    }

    /// A stage settles what it was handed out.
    pub(crate) fn settle(&mut self, link: usize, epoch: u32, tag: u64, is_done: bool) {
        if self.is_void(link, epoch) {
            return;
        }
        let name = self.links[link].name.clone();
        let Some(out) = self.links[link].out.get_mut(&tag) else {
            return self.book.breach(format!("{name} settled a message twice"));
        };
        if std::mem::replace(&mut out.settled, true) {
            return self.book.breach(format!("{name} settled a message twice"));
        }
        let (content, since) = (out.entry.content.clone(), out.since);
        self.tell(|| {
            let how = if is_done { "acks" } else { "gives back" };
            format!("{name} {how} {}", content.shown())
        });
        self.mark(200 + u64::from(is_done));
        if is_done {
            let others: Vec<Copy> = self.in_hand(link, Some(tag));
            self.book.acks(link, &content, since, &others);
        }
        let travels = self.chance.ms(0, 4);
        self.after(travels, move |state| {
            if state.is_void(link, epoch) {
                return;
            }
            let Some(out) = state.links[link].out.remove(&tag) else {
                return;
            };
            if is_done {
                state.book.removed(&out.entry.content);
            } else {
                state.back(out);
            }
            state.changed.notify_waiters();
        });
    }

    /// A message goes back to its place, or to quarantine where that happened too often.
    fn back(&mut self, out: Out) {
        let Out {
            queue, mut entry, ..
        } = out;
        entry.redelivered = true;
        entry.returns += 1;
        let is_ours = matches!(queue, Queue::Inbox | Queue::Deliver);
        if is_ours && entry.returns > topology::RETURNS_MAX {
            let content = entry.content.shown();
            self.book
                .breach(format!("{content} was handed out too often"));
            return;
        }
        self.queue(queue).insert(entry.place, entry);
    }

    /// A process's connections break; where it is alive, they come back after a while.
    pub(crate) fn cut(&mut self, link: usize, is_alive: bool) {
        let name = self.links[link].name.clone();
        self.tell(|| match is_alive {
            true => format!("{name} loses its connections"),
            false => format!("{name} is killed"),
        });
        let held = &mut self.links[link];
        held.is_alive = is_alive;
        held.publishing += 1;
        held.consuming += 1;
        held.publishes = false;
        held.consumes = false;
        for out in std::mem::take(&mut held.out).into_values() {
            self.book.allows(&out.entry.content);
            self.back(out);
        }
        // What was on its way to a consumer is marked too, though nobody has seen it.
        let marked = usize::try_from(self.chance.between(0, 3)).expect("few");
        for queue in [Queue::Inbox, Queue::Deliver] {
            for entry in self.queue(queue).values_mut().take(marked) {
                entry.redelivered = true;
            }
        }
        self.changed.notify_waiters();
        if !is_alive {
            return;
        }
        for is_publishing in [true, false] {
            let away = self.chance.ms(20, 3_000);
            self.after(away, move |state| {
                let held = &mut state.links[link];
                match is_publishing {
                    true => held.publishes = true,
                    false => held.consumes = true,
                }
                state.changed.notify_waiters();
            });
        }
    }

    /// A process has ended as it should. What it has in hand goes back.
    pub(crate) fn leave(&mut self, link: usize) {
        let name = self.links[link].name.clone();
        self.tell(|| format!("{name} has ended"));
        // Acks that are on their way arrive: closing waits for them.
        let settled: Vec<u64> = self.links[link]
            .out
            .iter()
            .filter(|(_, out)| out.settled)
            .map(|(tag, _)| *tag)
            .collect();
        for tag in settled {
            if let Some(out) = self.links[link].out.remove(&tag) {
                self.book.removed(&out.entry.content);
            }
        }
        let held = &mut self.links[link];
        held.is_alive = false;
        held.consuming += 1;
        held.publishing += 1;
        for out in std::mem::take(&mut held.out).into_values() {
            self.back(out);
        }
        self.changed.notify_waiters();
    }

    /// What the endpoint of a subscription does now.
    pub(crate) fn behaviour(&self, subscription: usize) -> Behaviour {
        let passed = self.book.passed();
        let plan = &self.book.plan.subscriptions[subscription];
        let phase = plan.phases.iter().find(|(until, _)| passed < *until);
        phase.map_or(plan.last, |(_, behaviour)| *behaviour)
    }

    /// Whether nothing moves any more, but for what waits for a person.
    pub(crate) fn is_at_rest(&self) -> bool {
        let is_held = |content: &Content| {
            content.copies().iter().all(|copy| {
                let state = &self.book.states[copy.key.1];
                state.is_paused || state.is_disabled
            })
        };
        let all = |entries: &BTreeMap<u64, Entry>| {
            entries
                .values()
                .all(|entry| is_held(&entry.content) && !entry.content.copies().is_empty())
        };
        self.on_their_way == 0
            && self.queues.values().all(BTreeMap::is_empty)
            && self.links.iter().all(|link| link.out.is_empty())
            && all(&self.waiting)
    }
}
