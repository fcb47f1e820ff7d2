//! The law: what is held against everything the stages do, at every step and at the end.
//!
//! accepted x matching = delivered + dead + held + filtered + canceled + waiting; nothing is lost;
//! nothing is acknowledged before what was made of it is confirmed; nothing arrives twice but for
//! what was in flight at a fault; attempts are counted; no retry is early; nobody asks in a loop.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    time::Duration,
};

use broker::{Route, clock};
use event::{
    log::Archive,
    reason::{DeadReason, DeliveryState},
};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::{
    content::{Content, Copy, Key},
    memory::Remembered,
    plan::Plan,
};

/// A copy is handed out at most so often within a second of the simulation.
const STORM: usize = 8;
/// How far a retry is allowed to be early: as far as a time in milliseconds is rounded.
const ROUNDED: SignedDuration = SignedDuration::from_millis(1);

/// What is known of one delivery.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// How many copies the broker holds.
    pub(crate) copies: i64,
    /// How often an endpoint took it and said so.
    pub(crate) receipts: u64,
    pub(crate) attempts: u64,
    pub(crate) dead: Vec<DeadReason>,
    /// How many messages to the recorder the broker holds that hand it over.
    pub(crate) kept: i64,
    /// How many copies more there may be, by what was in flight at a fault.
    allowed: u64,
    /// Its endpoint answered 410.
    gone: bool,
    /// When it was handed out, lately.
    handed: VecDeque<Instant>,
    /// What the endpoint asked for last.
    asked: SignedDuration,
    /// The step at which its first copy was last confirmed to a router.
    routed_confirmed: u64,
    /// What each process has done with it, by its link.
    hands: BTreeMap<usize, Hand>,
}

/// The step at which something last happened; 0 is never.
#[derive(Debug, Default)]
struct Hand {
    copy_confirmed: u64,
    dead_confirmed: u64,
    held_confirmed: u64,
    log_confirmed: u64,
    received: u64,
    attempted: u64,
}

/// A subscription as a person left it.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) made: Option<Duration>,
    pub(crate) is_paused: bool,
    pub(crate) was_paused: bool,
    pub(crate) is_disabled: bool,
    pub(crate) was_disabled: bool,
    pub(crate) is_deleted: bool,
}

/// What counts for the report.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) published: u64,
    pub(crate) stored: u64,
    pub(crate) handed_out: u64,
    pub(crate) attempts: u64,
    pub(crate) deliveries: u64,
    pub(crate) duplicates: u64,
    pub(crate) dead: u64,
    pub(crate) held: u64,
    pub(crate) faults: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.published += other.published;
        self.stored += other.stored;
        self.handed_out += other.handed_out;
        self.attempts += other.attempts;
        self.deliveries += other.deliveries;
        self.duplicates += other.duplicates;
        self.dead += other.dead;
        self.held += other.held;
        self.faults += other.faults;
    }
}

#[derive(Debug)]
pub(crate) struct Book {
    pub(crate) plan: Plan,
    pub(crate) begins: Timestamp,
    pub(crate) lives: BTreeMap<Key, Life>,
    pub(crate) states: Vec<State>,
    /// The events that were published, and when.
    pub(crate) published: BTreeMap<usize, Duration>,
    archived_confirmed: BTreeMap<usize, u64>,
    pub(crate) step: u64,
    pub(crate) counts: Counts,
    pub(crate) remembered: Remembered,
    pub(crate) faults: Vec<String>,
    /// When the store last did not answer: until then a process may not know of a change.
    pub(crate) store_away_until: Duration,
}

impl Book {
    pub(crate) fn new(plan: Plan, begins: Timestamp) -> Self {
        let made = |subscription: &crate::plan::Subscription| State {
            made: (subscription.made == Duration::ZERO).then_some(Duration::ZERO),
            ..State::default()
        };
        let states = plan.subscriptions.iter().map(made).collect();
        Self {
            plan,
            begins,
            lives: BTreeMap::new(),
            states,
            published: BTreeMap::new(),
            archived_confirmed: BTreeMap::new(),
            step: 1,
            counts: Counts::default(),
            remembered: Remembered::default(),
            faults: Vec::new(),
            store_away_until: Duration::ZERO,
        }
    }

    pub(crate) fn breach(&mut self, what: String) {
        self.faults.push(what);
    }

    fn life(&mut self, key: Key) -> &mut Life {
        self.lives.entry(key).or_default()
    }

    fn hand(&mut self, key: Key, link: usize) -> &mut Hand {
        self.life(key).hands.entry(link).or_default()
    }

    /// Whether the event is of a type that the subscription listens to.
    fn listens(&self, (event, subscription): Key) -> bool {
        let kind = self.plan.events[event].kind;
        match self.plan.subscriptions[subscription].events {
            "*" => true,
            "appointment.*" => kind.starts_with("appointment."),
            one => kind == one,
        }
    }

    /// Whether the router must have sent the event there: the subscription was known to everybody
    /// before the event was published, and was never deleted.
    pub(crate) fn must(&self, key: Key) -> bool {
        let state = &self.states[key.1];
        let (Some(made), Some(at)) = (state.made, self.published.get(&key.0)) else {
            return false;
        };
        let known = made == Duration::ZERO
            || (*at > made + Duration::from_secs(3)
                && *at > self.store_away_until + Duration::from_secs(3));
        self.listens(key) && known && !state.is_deleted
    }

    pub(crate) fn is_filtered(&self, (event, subscription): Key) -> bool {
        let wanted = self.plan.subscriptions[subscription].status;
        wanted.is_some_and(|wanted| wanted != self.plan.events[event].status)
    }

    fn has_ended(&self, key: Key) -> bool {
        if self.remembered.held.contains_key(&key) {
            return true;
        }
        let Some(life) = self.lives.get(&key) else {
            return self.is_filtered(key);
        };
        life.receipts > 0 || !life.dead.is_empty() || life.kept > 0 || self.is_filtered(key)
    }

    /// A stage publishes this, having these in its hands.
    pub(crate) fn publishes(&mut self, route: &Route, content: &Content, in_hand: &[Copy]) {
        match (route, content) {
            (Route::Deliver, Content::Bundle(copies)) => {
                for copy in copies {
                    let routed = copy.attempts == 0 && copy.parked == 0;
                    let back = in_hand.iter().any(|own| same_turn(own, copy));
                    if !routed && !back {
                        self.breach(format!("{} is no copy of what was in hand", named(copy)));
                    }
                    if !self.listens(copy.key) {
                        self.breach(format!("{} was sent to who does not listen", named(copy)));
                    }
                }
            }
            (Route::DeliverAt(due), Content::Bundle(copies)) => {
                for copy in copies {
                    self.waits(copy, Timestamp::try_from(*due).ok(), in_hand);
                }
            }
            (
                _,
                Content::Dead {
                    key,
                    reason,
                    attempts,
                    history,
                },
            ) => {
                self.dies(*key, *reason, *attempts);
                let rises = history.windows(2).all(|two| two[0].number < two[1].number);
                if !rises {
                    self.breach(format!("the attempts of {} do not rise", shown(*key)));
                }
            }
            (_, Content::Log { entries, held }) => {
                for (key, state, _) in entries {
                    if *state == DeliveryState::Filtered && !self.is_filtered(*key) {
                        self.breach(format!("{} was filtered for no reason", shown(*key)));
                    }
                }
                for (key, _) in held {
                    let state = &self.states[key.1];
                    if !state.was_paused && !state.was_disabled {
                        self.breach(format!("{} is held for no reason", shown(*key)));
                    }
                }
            }
            _ => {}
        }
    }

    /// A delivery goes to the ladder.
    fn waits(&mut self, copy: &Copy, due: Option<Timestamp>, in_hand: &[Copy]) {
        let mine = || in_hand.iter().filter(|own| own.key == copy.key);
        let is_retry = copy.parked == 0;
        let follows = mine().any(|own| match is_retry {
            true => copy.attempts == own.attempts + 1,
            false => copy.attempts == own.attempts && copy.parked == own.parked + 1,
        });
        if !follows {
            self.breach(format!("{} does not follow what was in hand", named(copy)));
        }
        let (Some(due), Some(last), true) = (due, &copy.last, is_retry) else {
            return;
        };
        let broke_off = last
            .detail
            .as_deref()
            .is_some_and(|text| text.contains("broke off"));
        if broke_off {
            self.breach(format!("{} panicked", named(copy)));
        }
        let delays = &self.plan.subscriptions[copy.key.1].delays;
        let place = usize::try_from(copy.attempts).expect("few") - 1;
        let Some(delay) = delays.get(place) else {
            let breach = format!("{} is tried more often than its policy says", named(copy));
            return self.breach(breach);
        };
        let delay = SignedDuration::from_secs(i64::try_from(*delay).expect("seconds"));
        let took = i64::try_from(last.duration_ms).expect("seconds");
        let ended = last.at + SignedDuration::from_millis(took);
        let asked = self
            .lives
            .get(&copy.key)
            .map_or(SignedDuration::ZERO, |life| life.asked);
        let least = delay.max(asked);
        let waits = due.duration_since(ended);
        if waits + ROUNDED < least {
            self.breach(format!(
                "{} is tried again after {waits:?}, and not before {least:?} was right",
                named(copy)
            ));
        }
        // A tenth of jitter, the time until it is published, and a second for rounding.
        if waits > least + least / 10 + SignedDuration::from_secs(1) {
            self.breach(format!(
                "{} waits for {waits:?} instead of {least:?}",
                named(copy)
            ));
        }
    }

    fn dies(&mut self, key: Key, reason: DeadReason, attempts: u32) {
        let state = &self.states[key.1];
        let event = &self.plan.events[key.0];
        let all = self.plan.subscriptions[key.1].delays.len() + 1;
        let right = match reason {
            DeadReason::Exhausted => usize::try_from(attempts) == Ok(all),
            DeadReason::Gone => self.lives.get(&key).is_some_and(|life| life.gone),
            DeadReason::SubscriptionDeleted => state.is_deleted,
            DeadReason::Expired => event.expires.is_some(),
            // 413 is given up after three attempts.
            DeadReason::Refused => attempts >= 3,
            DeadReason::RenderError | DeadReason::TargetNotAllowed => false,
        };
        if !right {
            self.breach(format!(
                "{} died as {} after {attempts} attempts, which it is not",
                shown(key),
                reason.word()
            ));
        }
    }

    /// The broker has stored this.
    pub(crate) fn stored(&mut self, content: &Content) {
        self.counts.stored += 1;
        match content {
            Content::Bundle(copies) => {
                for copy in copies {
                    self.life(copy.key).copies += 1;
                }
            }
            Content::Dead { key, reason, .. } => self.life(*key).dead.push(*reason),
            Content::Log { held, .. } => {
                for (key, _) in held {
                    self.life(*key).kept += 1;
                }
            }
            _ => {}
        }
    }

    /// A stage has been told that this is stored.
    pub(crate) fn confirmed(&mut self, link: usize, content: &Content) {
        self.step += 1;
        let step = self.step;
        match content {
            Content::Bundle(copies) => {
                for copy in copies {
                    let life = self.life(copy.key);
                    life.hands.entry(link).or_default().copy_confirmed = step;
                    if copy.attempts == 0 && copy.parked == 0 {
                        life.routed_confirmed = step;
                    }
                }
            }
            Content::Dead { key, .. } => self.hand(*key, link).dead_confirmed = step,
            Content::Log { entries, held } => {
                for (key, ..) in entries {
                    self.hand(*key, link).log_confirmed = step;
                }
                for (key, _) in held {
                    self.hand(*key, link).held_confirmed = step;
                }
            }
            Content::Archive(events) => {
                for event in events {
                    self.archived_confirmed.insert(*event, step);
                }
            }
            Content::Event(_) | Content::Quarantine => {}
        }
    }

    /// Handed out to a stage; the step at which it was.
    pub(crate) fn handed_out(&mut self, content: &Content, now: Instant) -> u64 {
        self.step += 1;
        self.counts.handed_out += 1;
        let mut storms = Vec::new();
        for copy in content.copies() {
            let life = self.lives.entry(copy.key).or_default();
            life.handed.push_back(now);
            while life
                .handed
                .front()
                .is_some_and(|at| now.duration_since(*at) > Duration::from_secs(1))
            {
                life.handed.pop_front();
            }
            if life.handed.len() > STORM {
                storms.push(copy.key);
            }
        }
        for key in storms {
            self.breach(format!("{} is handed out in a loop", shown(key)));
        }
        self.step
    }

    /// A stage says that it is done with what it was handed out at `since`.
    /// What it still has in hand is `others`.
    pub(crate) fn acks(&mut self, link: usize, content: &Content, since: u64, others: &[Copy]) {
        match content {
            Content::Event(event) => self.acks_event(*event, since),
            Content::Bundle(copies) => {
                for copy in copies {
                    let alone = others.iter().all(|other| other.key != copy.key);
                    self.acks_copy(link, copy, since, alone);
                }
            }
            _ => self.acks_record(content),
        }
    }

    fn acks_event(&mut self, event: usize, since: u64) {
        for subscription in 0..self.states.len() {
            let key = (event, subscription);
            let confirmed = self.lives.get(&key).map_or(0, |life| life.routed_confirmed);
            if self.must(key) && confirmed < since {
                self.breach(format!(
                    "e{event} was acknowledged before its bundle to s{subscription} was confirmed"
                ));
            }
        }
        let archived = self.archived_confirmed.get(&event).copied().unwrap_or(0);
        if self.plan.archive != Archive::Off && archived < since {
            self.breach(format!(
                "e{event} was acknowledged before its archive parcel was confirmed"
            ));
        }
    }

    fn acks_copy(&mut self, link: usize, copy: &Copy, since: u64, alone: bool) {
        let is_filtered = self.is_filtered(copy.key);
        // With another copy of the same in hand, nobody can tell which of them was logged.
        let logs = self.plan.archive != Archive::Off && alone;
        let hand = self.hand(copy.key, link);
        let made = hand
            .copy_confirmed
            .max(hand.dead_confirmed)
            .max(hand.held_confirmed)
            .max(hand.received);
        let is_logged = hand.log_confirmed > since;
        let needs_log = hand.attempted > since || hand.dead_confirmed > since;
        if made <= since && !is_filtered {
            self.breach(format!(
                "{} was acknowledged before what was made of it was confirmed",
                named(copy)
            ));
        } else if logs && (needs_log || made <= since) && !is_logged {
            self.breach(format!(
                "{} was acknowledged before its log entry was confirmed",
                named(copy)
            ));
        }
    }

    /// The broker has forgotten this.
    pub(crate) fn removed(&mut self, content: &Content) {
        match content {
            Content::Event(event) => {
                for subscription in 0..self.states.len() {
                    let key = (*event, subscription);
                    let copies = self.lives.get(&key).map_or(0, |life| life.copies);
                    if self.must(key) && copies == 0 && !self.has_ended(key) {
                        self.breach(format!("{} is lost: it was never sent", shown(key)));
                    }
                }
            }
            Content::Log { held, .. } => {
                for (key, _) in held {
                    self.life(*key).kept -= 1;
                    self.not_lost(*key);
                }
            }
            Content::Bundle(copies) => {
                for copy in copies {
                    let life = self.life(copy.key);
                    life.copies -= 1;
                    if life.copies == 0 && !self.has_ended(copy.key) {
                        let named = named(copy);
                        self.breach(format!("{named} is lost: nobody has it any more"));
                    }
                }
            }
            _ => {}
        }
    }

    fn not_lost(&mut self, key: Key) {
        let copies = self.lives.get(&key).map_or(0, |life| life.copies);
        if copies == 0 && !self.has_ended(key) && !self.states[key.1].is_deleted {
            self.breach(format!("{} is lost: nobody has it any more", shown(key)));
        }
    }

    /// A recorder says that what it took is on record.
    fn acks_record(&mut self, content: &Content) {
        let known = &self.remembered;
        let poison = self.plan.poison;
        let missing: Vec<String> = match content {
            Content::Archive(events) => {
                let lacks =
                    |event: &&usize| !known.events.contains_key(*event) && Some(**event) != poison;
                let missing = events.iter().filter(lacks);
                missing.map(|event| format!("event e{event}")).collect()
            }
            Content::Log { entries, held } => {
                let lacks = |entry: &&(Key, DeliveryState, u32)| {
                    let on_record = known.deliveries.get(&entry.0);
                    let progress = store::log::progress(entry.1, 0, entry.2);
                    on_record.is_none_or(|known| known.progress < progress)
                };
                let entries = entries.iter().filter(lacks);
                let held = held
                    .iter()
                    .filter(|(key, _)| !known.held_once.contains_key(key));
                let entries = entries.map(|(key, ..)| format!("the entry of {}", shown(*key)));
                let held = held.map(|(key, _)| format!("the held {}", shown(*key)));
                entries.chain(held).collect()
            }
            Content::Dead { key, .. } if !known.dead.contains_key(key) => {
                vec![format!("the dead letter of {}", shown(*key))]
            }
            _ => Vec::new(),
        };
        for what in missing {
            self.breach(format!("{what} was acknowledged before it was on record"));
        }
    }

    /// At the end the store tells of every delivery what became of it.
    fn is_told(&self, key: Key, ends: DeliveryState) -> Result<(), String> {
        let told = self
            .remembered
            .deliveries
            .get(&key)
            .map(|known| known.state);
        if told == Some(ends) {
            return Ok(());
        }
        let told = told.map_or("nothing", DeliveryState::word);
        let ends = ends.word();
        Err(format!(
            "{} is {ends}, and the store says {told}",
            shown(key)
        ))
    }

    /// This may come twice: what became of it is unknown to who had it in hand.
    pub(crate) fn allows(&mut self, content: &Content) {
        match content {
            Content::Event(event) => {
                for subscription in 0..self.states.len() {
                    self.life((*event, subscription)).allowed += 1;
                }
            }
            Content::Bundle(copies) => {
                for copy in copies {
                    self.life(copy.key).allowed += 1;
                }
            }
            Content::Log { held, .. } => {
                for (key, _) in held {
                    self.life(*key).allowed += 1;
                }
            }
            Content::Dead { key, .. } => self.life(*key).allowed += 1,
            Content::Archive(_) | Content::Quarantine => {}
        }
    }

    /// An attempt begins.
    pub(crate) fn attempted(&mut self, link: usize, key: Key) {
        self.step += 1;
        let step = self.step;
        self.counts.attempts += 1;
        let life = self.life(key);
        life.attempts += 1;
        life.hands.entry(link).or_default().attempted = step;
        life.asked = SignedDuration::ZERO;
    }

    /// The endpoint answers.
    pub(crate) fn answered(
        &mut self,
        link: usize,
        key: Key,
        status: u16,
        retry_after: Option<u64>,
    ) {
        self.step += 1;
        let step = self.step;
        let life = self.life(key);
        match (status, retry_after) {
            (200..=299, _) => {
                life.receipts += 1;
                life.hands.entry(link).or_default().received = step;
            }
            (410, _) => life.gone = true,
            (_, Some(seconds)) => {
                life.asked = SignedDuration::from_secs(i64::try_from(seconds).expect("seconds"));
            }
            _ => {}
        }
    }

    /// What the law says at the end, when everything has come to rest.
    pub(crate) fn close(&mut self, had_faults: bool) {
        let mut all = [0_u64; 7];
        let mut breaches = Vec::new();
        for event in self.published.keys().copied() {
            for subscription in 0..self.states.len() {
                let key = (event, subscription);
                let unknown = Life::default();
                let life = self.lives.get(&key).unwrap_or(&unknown);
                let kept = u64::from(self.remembered.held.contains_key(&key));
                let ends = life.receipts
                    + life.dead.len() as u64
                    + kept
                    + u64::try_from(life.copies.max(0)).unwrap_or(0);
                let more = ends.saturating_sub(1);
                self.counts.duplicates += life.receipts.saturating_sub(1);
                if more > life.allowed {
                    breaches.push(format!(
                        "{} has {ends} ends (delivered {}, dead {}, held {}, waiting {}), and {} \
                         were in flight at a fault",
                        shown(key),
                        life.receipts,
                        life.dead.len(),
                        kept,
                        life.copies,
                        life.allowed
                    ));
                }
                if more > 0 && !had_faults {
                    breaches.push(format!("{} ended twice without a fault", shown(key)));
                }
                if !self.listens(key) {
                    continue;
                }
                let logs = self.plan.archive != Archive::Off;
                let told = match () {
                    // With more than one end, which of them came last is nobody's promise.
                    () if !logs || ends > 1 => Ok(()),
                    () if life.receipts > 0 => self.is_told(key, DeliveryState::Delivered),
                    () if !life.dead.is_empty() => self.is_told(key, DeliveryState::Dead),
                    () if kept > 0 => self.is_told(key, DeliveryState::Held),
                    () if life.copies > 0 || !self.must(key) => Ok(()),
                    () => self.is_told(key, DeliveryState::Filtered),
                };
                breaches.extend(told.err());
                if !life.dead.is_empty() && !self.remembered.dead.contains_key(&key) {
                    breaches.push(format!(
                        "the dead letter of {} is not on record",
                        shown(key)
                    ));
                }
                all[match () {
                    () if life.receipts > 0 => 0,
                    () if !life.dead.is_empty() => 1,
                    () if kept > 0 => 2,
                    () if life.copies > 0 => 3,
                    () if self.is_filtered(key) => 4,
                    () if !self.must(key) => 5,
                    () => {
                        breaches.push(format!("{} is lost", shown(key)));
                        6
                    }
                }] += 1;
                let state = &self.states[subscription];
                if life.copies > 0 && !state.is_paused && !state.is_disabled {
                    breaches.push(format!("{} still waits, and nobody holds it", shown(key)));
                }
                if kept > 0 && !state.is_paused && !state.is_disabled && !state.is_deleted {
                    breaches.push(format!("{} is still held after the resume", shown(key)));
                }
            }
        }
        self.counts.deliveries += all.iter().sum::<u64>();
        self.counts.dead += all[1];
        self.counts.held += all[2] + all[3];
        self.faults.append(&mut breaches);
    }

    /// One line: how it stands.
    pub(crate) fn standing(&self) -> String {
        let mut text = String::new();
        for (key, life) in &self.lives {
            if life.copies != 0 {
                write!(text, "{} x{} ", shown(*key), life.copies).expect("a string");
            }
        }
        text
    }

    /// Since when the simulation runs, by its own clock.
    pub(crate) fn passed(&self) -> Duration {
        Duration::try_from(clock::now().duration_since(self.begins)).unwrap_or_default()
    }
}

fn same_turn(own: &Copy, copy: &Copy) -> bool {
    own.key == copy.key && own.attempts == copy.attempts && own.parked == copy.parked
}

pub(crate) fn shown((event, subscription): Key) -> String {
    format!("e{event}>s{subscription}")
}

fn named(copy: &Copy) -> String {
    let key = shown(copy.key);
    format!("{key} (attempts {}, parked {})", copy.attempts, copy.parked)
}
