//! What a seed decides beforehand: subscriptions, events, how endpoints behave and when, what
//! breaks. What happens then is up to the stages.

use std::time::Duration;

use event::log::Archive;

use crate::chance::Chance;

/// One run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) archive: Archive,
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) events: Vec<Event>,
    pub(crate) script: Vec<(Duration, Step)>,
    /// From here on nothing breaks any more.
    pub(crate) heals: Duration,
    pub(crate) routers: usize,
    pub(crate) deliverers: usize,
    /// An event that the store will never take.
    pub(crate) poison: Option<usize>,
    pub(crate) bundle_max: usize,
    pub(crate) router_prefetch: u16,
    pub(crate) bundles_in_flight: usize,
    pub(crate) max_in_flight: usize,
    pub(crate) breaker_failures: u32,
    pub(crate) breaker_pause_max: Duration,
}

#[derive(Debug)]
pub(crate) struct Subscription {
    /// What it listens to.
    pub(crate) events: &'static str,
    /// Its filter lets through only this status.
    pub(crate) status: Option<&'static str>,
    /// After each failed attempt, in seconds.
    pub(crate) delays: Vec<u64>,
    pub(crate) timeout_s: u64,
    pub(crate) max_in_flight: u32,
    /// How its endpoint behaves until then, in order; afterwards `last`.
    pub(crate) phases: Vec<(Duration, Behaviour)>,
    pub(crate) last: Behaviour,
    /// When it is made; zero is before everything.
    pub(crate) made: Duration,
}

/// How an endpoint takes an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// 200 within so many milliseconds.
    Well(u64),
    /// This status.
    Status(u16),
    /// This status with `Retry-After`, in seconds.
    Later(u16, u64),
    /// No connection.
    Refuses,
    /// It takes the request whole, and the connection breaks.
    Swallows,
    /// It never answers.
    Hangs,
}

#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) at: Duration,
    pub(crate) kind: &'static str,
    pub(crate) status: &'static str,
    /// Worthless so long after it happened.
    pub(crate) expires: Option<Duration>,
}

/// What is done to the stages, the broker and the subscriptions.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// An event is published, by its number.
    Publish(usize),
    /// `kill -9` of the process in this place.
    Kill(usize),
    /// SIGTERM to the process in this place; another takes its place.
    Restart(usize),
    /// A process loses its connections; the outcome of what was under way is unknown to it.
    Cut(usize),
    /// A memory alarm, for so long.
    Alarm(Duration),
    /// Queues are full: everything is nacked, for so long.
    Full(Duration),
    /// The bindings of our exchanges are gone, for so long: everything is returned.
    Unbound(Duration),
    /// The store does not answer, for so long.
    StoreAway(Duration),
    Pause(usize),
    Resume(usize),
    Delete(usize),
    Make(usize),
}

const KINDS: [&str; 3] = ["appointment.created", "appointment.updated", "payment.paid"];
const STATUSES: [&str; 2] = ["confirmed", "canceled"];

impl Plan {
    /// What this seed decides.
    pub(crate) fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let heals = Duration::from_secs(chance.between(20, 90));
        let count = chance.between(2, 5);
        let subscriptions: Vec<_> = (0..count)
            .map(|_| subscription(&mut chance, heals))
            .collect();
        let events: Vec<_> = (0..chance.between(5, 19))
            .map(|_| event(&mut chance, heals))
            .collect();
        let routers = if chance.percent(20) { 2 } else { 1 };
        let deliverers = if chance.percent(40) { 2 } else { 1 };
        // And the recorder.
        let processes = routers + deliverers + 1;
        let mut script: Vec<_> = events
            .iter()
            .enumerate()
            .map(|(number, event)| (event.at, Step::Publish(number)))
            .collect();
        changes(&mut chance, &subscriptions, heals, &mut script);
        // One seed in four is without a fault of ours: then nothing may arrive twice.
        if !chance.percent(25) {
            faults(&mut chance, processes, heals, &mut script);
        }
        if chance.percent(50) {
            let place = chance.between(0, processes as u64 - 1);
            let at = during(&mut chance, heals);
            script.push((at, Step::Restart(usize::try_from(place).expect("small"))));
        }
        script.sort_by_key(|(at, _)| *at);
        Self {
            archive: *chance.pick(&[Archive::Full, Archive::Full, Archive::Headers, Archive::Off]),
            subscriptions,
            events,
            script,
            heals,
            routers,
            deliverers,
            bundle_max: *chance.pick(&[1, 3, 32]),
            router_prefetch: *chance.pick(&[1, 4, 500]),
            bundles_in_flight: *chance.pick(&[1, 2, 8]),
            max_in_flight: *chance.pick(&[1, 4, 256]),
            breaker_failures: *chance.pick(&[1, 2, 4]),
            poison: chance.percent(10).then_some(0),
            breaker_pause_max: Duration::from_secs(chance.between(1, 60)),
        }
    }
}

fn during(chance: &mut Chance, until: Duration) -> Duration {
    let ms = u64::try_from(until.as_millis()).expect("minutes");
    chance.ms(0, ms)
}

fn subscription(chance: &mut Chance, heals: Duration) -> Subscription {
    let mut phases: Vec<_> = (0..chance.between(0, 3))
        .map(|_| (during(chance, heals), behaviour(chance)))
        .collect();
    phases.sort_by_key(|(until, _)| *until);
    let last = match chance.between(0, 19) {
        0 => Behaviour::Status(500),
        1 => Behaviour::Status(410),
        _ => Behaviour::Well(chance.between(1, 400)),
    };
    Subscription {
        events: chance.pick::<&str>(&["*", "*", "appointment.*", "payment.paid"]),
        status: chance.percent(25).then_some("confirmed"),
        delays: match chance.between(0, 3) {
            0 => Vec::new(),
            1 => vec![1, 2, 5],
            2 => vec![1, 5, 10, 30, 60],
            _ => vec![5, 5, 5, 5, 30, 30, 30, 60],
        },
        timeout_s: chance.between(1, 8),
        max_in_flight: *chance.pick(&[1, 2, 16]),
        phases,
        last,
        made: match chance.percent(15) {
            true => during(chance, heals / 2) + Duration::from_secs(1),
            false => Duration::ZERO,
        },
    }
}

fn behaviour(chance: &mut Chance) -> Behaviour {
    match chance.between(0, 9) {
        0 => Behaviour::Well(chance.between(1, 50)),
        1 => Behaviour::Well(chance.between(1_500, 7_000)),
        2 | 3 => Behaviour::Status(*chance.pick(&[500, 502, 404, 429])),
        4 => Behaviour::Later(*chance.pick(&[429, 503]), chance.between(1, 40)),
        5 | 6 => Behaviour::Refuses,
        7 => Behaviour::Swallows,
        8 => Behaviour::Hangs,
        _ => Behaviour::Status(413),
    }
}

fn event(chance: &mut Chance, heals: Duration) -> Event {
    Event {
        at: during(chance, heals),
        kind: chance.pick::<&str>(&KINDS),
        status: chance.pick::<&str>(&STATUSES),
        expires: chance
            .percent(5)
            .then(|| Duration::from_secs(chance.between(1, 60))),
    }
}

fn changes(
    chance: &mut Chance,
    subscriptions: &[Subscription],
    heals: Duration,
    script: &mut Vec<(Duration, Step)>,
) {
    for (place, subscription) in subscriptions.iter().enumerate() {
        if subscription.made > Duration::ZERO {
            script.push((subscription.made, Step::Make(place)));
        }
        if chance.percent(25) {
            let at = subscription.made + during(chance, heals);
            script.push((at, Step::Pause(place)));
            if chance.percent(70) {
                script.push((at + during(chance, heals), Step::Resume(place)));
            }
        }
        if chance.percent(8) {
            let at = subscription.made + during(chance, heals);
            script.push((at, Step::Delete(place)));
        }
    }
}

fn faults(
    chance: &mut Chance,
    processes: usize,
    heals: Duration,
    script: &mut Vec<(Duration, Step)>,
) {
    for _ in 0..chance.between(1, 8) {
        let at = during(chance, heals);
        let last = processes as u64 - 1;
        let place = usize::try_from(chance.between(0, last)).expect("small");
        let lasts = chance.ms(10, 8_000);
        let step = match chance.between(0, 9) {
            0..=2 => Step::Kill(place),
            3..=5 => Step::Cut(place),
            6 => Step::Alarm(lasts),
            7 => Step::Full(lasts),
            8 => Step::Unbound(lasts),
            _ => Step::StoreAway(lasts),
        };
        script.push((at, step));
    }
}
