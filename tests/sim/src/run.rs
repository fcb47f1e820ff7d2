//! One seed from its first event to the end: the stages are started, killed and stopped as the
//! plan says, and held against the law.

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use broker::{Broker, Parcel, Route, clock, sim};
use dialect::Dialects;
use event::{SubscriptionId, delivery::Bundle, secret::SigningKeys};
use futures_util::FutureExt;
use jiff::Timestamp;
use prometheus::Registry;
use serde_json::json;
use store::{
    Stored,
    feed::{Feed, Snapshot},
};
use tokio::{
    runtime,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    book::{Book, Counts},
    chance::Chance,
    link::Wire,
    memory::Simulated,
    plan::{Plan, Step},
    plants::Plant,
    receivers::Endpoints,
    world::World,
};

/// What came of a seed.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) breaches: Vec<String>,
    pub(crate) counts: Counts,
    /// Differs where anything went differently.
    pub(crate) sum: u64,
    pub(crate) trace: Vec<String>,
}

/// Everything has come to rest so long after the last fault, or never will.
const DRAINS: Duration = Duration::from_secs(20 * 60);
/// A process ends within this time after it was asked to.
const ENDS: Duration = Duration::from_secs(60);
/// How often a process looks for changes of the subscriptions.
const POLLS: Duration = Duration::from_secs(1);

/// Runs a seed. Everything in it follows from the seed alone.
pub(crate) fn run(
    seed: u64,
    plant: Option<Plant>,
    dialects: &Arc<Dialects>,
    traces: bool,
) -> Report {
    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let begins = "2026-03-01T12:00:00Z".parse().expect("a time");
        let _entered = sim::enter(sim::Setting {
            begins,
            seed,
            planted: plant.and_then(Plant::inside),
        });
        let running = Running::new(seed, begins, plant, dialects.clone(), traces);
        Box::pin(running.finish()).await
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Router,
    Deliverer,
    Recorder,
}

struct Process {
    role: Role,
    link: usize,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

struct Running {
    world: World,
    plant: Option<Plant>,
    dialects: Arc<Dialects>,
    subscriptions: Arc<std::sync::Mutex<Snapshot>>,
    /// All that were ever made, as they are now.
    known: Vec<Arc<Stored>>,
    disable: mpsc::Sender<(SubscriptionId, String)>,
    disabled: mpsc::Receiver<(SubscriptionId, String)>,
    store_away_until: Arc<std::sync::Mutex<Instant>>,
    processes: Vec<Process>,
    endings: Vec<JoinHandle<()>>,
    begun: Instant,
    had_faults: bool,
    /// Whether a person resumes everything in the end.
    resumes: bool,
}

impl Running {
    fn new(
        seed: u64,
        begins: Timestamp,
        plant: Option<Plant>,
        dialects: Arc<Dialects>,
        traces: bool,
    ) -> Self {
        let plan = Plan::of(seed);
        let known: Vec<_> = (0..plan.subscriptions.len())
            .map(|place| stored(&plan, place, "active", 1))
            .collect();
        let mut chance = Chance::new(!seed);
        let resumes = chance.percent(60);
        let world = World::new(Book::new(plan, begins), chance, traces);
        let (disable, disabled) = mpsc::channel(16);
        Self {
            world,
            plant,
            dialects,
            subscriptions: Arc::default(),
            known,
            disable,
            disabled,
            store_away_until: Arc::new(std::sync::Mutex::new(Instant::now())),
            processes: Vec::new(),
            endings: Vec::new(),
            begun: Instant::now(),
            had_faults: false,
            resumes,
        }
    }

    async fn finish(mut self) -> Report {
        let _happens = AbortOnDropHandle::new(tokio::spawn(self.world.clone().run()));
        self.show(1);
        let (routers, deliverers, mut script, heals) = {
            let state = &mut self.world.lock();
            let plan = &mut state.book.plan;
            let script = std::mem::take(&mut plan.script);
            (plan.routers, plan.deliverers, script, plan.heals)
        };
        for place in 0..=routers + deliverers {
            let role = match place {
                place if place < routers => Role::Router,
                place if place < routers + deliverers => Role::Deliverer,
                _ => Role::Recorder,
            };
            let process = self.start(role, place, Duration::ZERO);
            self.processes.push(process);
        }
        let last = script.last().map_or(heals, |(at, _)| heals.max(*at));
        for (at, step) in script.drain(..) {
            self.wait_until(self.begun + at).await;
            if !self.world.lock().goes_on() {
                break;
            }
            self.step(step);
        }
        self.wait_until(self.begun + last + Duration::from_secs(9))
            .await;
        if self.resumes {
            for place in 0..self.known.len() {
                self.turn(place, false);
            }
        }
        let until = Instant::now() + DRAINS;
        while !self.is_at_rest() {
            if Instant::now() > until {
                let standing = self.world.lock().book.standing();
                let breach = format!("not at rest long after the last fault: {standing}");
                self.world.lock().book.breach(breach);
            }
            if !self.world.lock().goes_on() {
                break;
            }
            self.wait_until(Instant::now() + Duration::from_secs(1))
                .await;
        }
        if self.world.lock().book.faults.is_empty() {
            self.end().await;
        }
        self.report()
    }

    fn report(self) -> Report {
        let mut state = self.world.lock();
        if state.book.faults.is_empty() {
            let had_faults = self.had_faults;
            state.book.close(had_faults);
        }
        state.book.counts.published = state.book.published.len() as u64;
        Report {
            breaches: state.book.faults.clone(),
            counts: state.book.counts,
            sum: state.sum,
            trace: state.trace.take().unwrap_or_default(),
        }
    }

    /// Every process is asked to end, and does.
    async fn end(&mut self) {
        for process in self.processes.drain(..) {
            process.stop.cancel();
            let ended = timeout(ENDS, process.task).await;
            if ended.is_err() {
                let breach = "a process does not end".to_owned();
                self.world.lock().book.breach(breach);
            }
            self.world.with(|state| state.leave(process.link));
        }
        for ending in self.endings.drain(..) {
            ending.await.expect("an ending has no errors");
        }
    }

    /// What the recorder and the store do meanwhile.
    async fn wait_until(&mut self, until: Instant) {
        loop {
            self.resend();
            let next = until.min(Instant::now() + Duration::from_secs(1));
            tokio::select! {
                biased;
                Some((id, _)) = self.disabled.recv() => {
                    let place = crate::content::number(id.as_str());
                    self.disable(place);
                }
                () = sleep_until(next) => if next == until { return },
            }
        }
    }

    /// The endpoint answered 410.
    fn disable(&mut self, place: usize) {
        let mut state = self.world.lock();
        let of = &mut state.book.states[place];
        if of.is_deleted {
            return;
        }
        of.is_disabled = true;
        of.was_disabled = true;
        drop(state);
        self.change(place);
    }

    /// Sends what was handed over to subscriptions that are active.
    fn resend(&self) {
        let is_away = Instant::now() < *self.store_away_until.lock().expect("not poisoned");
        let due: Vec<_> = {
            let state = self.world.lock();
            let held = state.book.remembered.held.iter();
            held.filter(|(key, _)| !is_away && is_sendable(&state.book, key.1))
                .map(|(key, (item, _))| (*key, item.clone()))
                .collect()
        };
        let revision = self.revision();
        for (key, mut item) in due {
            item.revision = revision;
            let body = serde_json::to_vec(&Bundle { items: vec![item] }).expect("JSON");
            let parcel = Parcel::json(Route::Deliver, "resumed", body);
            self.world.with(|state| state.send_again(key, parcel));
        }
    }

    fn is_at_rest(&self) -> bool {
        let state = self.world.lock();
        let mut held = state.book.remembered.held.keys();
        let sendable = held.any(|key| is_sendable(&state.book, key.1));
        !sendable && state.is_at_rest() && self.endings.iter().all(JoinHandle::is_finished)
    }

    fn step(&mut self, step: Step) {
        let now = Instant::now();
        self.world.lock().tell(|| format!("-- {step:?}"));
        let is_fault = !matches!(
            step,
            Step::Publish(_)
                | Step::Restart(_)
                | Step::Pause(_)
                | Step::Resume(_)
                | Step::Delete(_)
                | Step::Make(_)
                | Step::StoreAway(_)
        );
        self.had_faults |= is_fault;
        if is_fault {
            self.world.lock().breaks_until = Some(now + Duration::from_secs(5));
        }
        self.world.lock().book.counts.faults += u64::from(is_fault);
        match step {
            Step::Publish(number) => self.publish(number),
            Step::Kill(place) => {
                let link = self.processes[place].link;
                self.world.with(|state| state.cut(link, false));
                self.processes[place].task.abort();
                let away = self.world.lock().chance.ms(10, 3_000);
                let role = self.processes[place].role;
                self.processes[place] = self.start(role, place, away);
            }
            Step::Restart(place) => {
                let role = self.processes[place].role;
                let next = self.start(role, place, Duration::ZERO);
                let old = std::mem::replace(&mut self.processes[place], next);
                old.stop.cancel();
                let world = self.world.clone();
                self.endings.push(tokio::spawn(async move {
                    if timeout(ENDS, old.task).await.is_err() {
                        world.lock().book.breach("a process does not end".into());
                    }
                    world.with(|state| state.leave(old.link));
                }));
            }
            Step::Cut(place) => {
                let link = self.processes[place].link;
                self.world.with(|state| state.cut(link, true));
            }
            Step::Alarm(lasts) => self.world.lock().alarm_until = Some(now + lasts),
            Step::Full(lasts) => self.world.lock().full_until = Some(now + lasts),
            Step::Unbound(lasts) => self.world.lock().unbound_until = Some(now + lasts),
            Step::StoreAway(lasts) => {
                *self.store_away_until.lock().expect("not poisoned") = now + lasts;
                let mut state = self.world.lock();
                state.book.store_away_until = state.book.passed() + lasts;
            }
            Step::Pause(place) => self.turn(place, true),
            Step::Resume(place) => self.turn(place, false),
            Step::Delete(place) => {
                self.world.lock().book.states[place].is_deleted = true;
                self.change(place);
            }
            Step::Make(place) => {
                let mut state = self.world.lock();
                let passed = state.book.passed();
                state.book.states[place].made = Some(passed);
                drop(state);
                self.change(place);
            }
        }
    }

    fn publish(&self, number: usize) {
        let mut state = self.world.lock();
        let passed = state.book.passed();
        state.book.published.insert(number, passed);
        let planned = &state.book.plan.events[number];
        let now = clock::now();
        let mut event = json!({
            "id": format!("e{number}"), "tenant": "t", "type": planned.kind,
            "time": now, "status": planned.status, "subject": number, "data": {"n": number},
        });
        if let Some(expires) = planned.expires {
            event["expires_at"] = json!(now + expires);
        }
        let route = Route::Events {
            routing_key: planned.kind.into(),
        };
        let parcel = Parcel::json(route, format!("e{number}"), event.to_string());
        state.take_in(number, parcel);
    }

    /// A person pauses or resumes a subscription.
    fn turn(&mut self, place: usize, is_paused: bool) {
        let mut state = self.world.lock();
        let of = &mut state.book.states[place];
        if of.made.is_none() || of.is_deleted {
            return;
        }
        of.is_paused = is_paused;
        of.is_disabled = false;
        of.was_paused |= is_paused;
        drop(state);
        self.change(place);
    }

    fn revision(&self) -> u64 {
        self.subscriptions.lock().expect("not poisoned").revision
    }

    /// Writes down a subscription as it is now.
    fn change(&mut self, place: usize) {
        let revision = self.revision() + 1;
        let state = self.world.lock();
        let of = &state.book.states[place];
        let word = match (of.is_paused, of.is_disabled) {
            (true, _) => "paused",
            (false, true) => "disabled",
            (false, false) => "active",
        };
        self.known[place] = stored(&state.book.plan, place, word, revision);
        drop(state);
        self.show(revision);
    }

    /// What a process reads from the store from now on.
    fn show(&self, revision: u64) {
        let state = self.world.lock();
        let there = self.known.iter().zip(&state.book.states);
        let subscriptions: HashMap<_, _> = there
            .filter(|(_, state)| state.made.is_some() && !state.is_deleted)
            .map(|(stored, _)| (stored.subscription.id.clone(), stored.clone()))
            .collect();
        *self.subscriptions.lock().expect("not poisoned") = Snapshot {
            revision,
            subscriptions,
        };
    }

    fn start(&self, role: Role, place: usize, after: Duration) -> Process {
        let name = format!("{role:?} {place}").to_lowercase();
        let link = self.world.with(|state| state.join(name));
        let stop = CancellationToken::new();
        let wire = Wire {
            world: self.world.clone(),
            link,
            plant: self.plant.filter(|plant| plant.inside().is_none()),
        };
        let subscriptions = self.subscriptions.clone();
        let away_until = self.store_away_until.clone();
        let follows = !(role == Role::Router && self.plant == Some(Plant::ChangesNotFollowed));
        let life = self.life((role, link), Broker::over(Arc::new(wire)), stop.clone());
        let world = self.world.clone();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            sleep(after).await;
            // Without the store a process does not begin.
            let back = *away_until.lock().expect("not poisoned");
            tokio::select! {
                biased;
                () = stopped.cancelled() => return,
                () = sleep_until(back) => {}
            }
            let seen = || subscriptions.lock().expect("not poisoned").clone();
            let feed = Feed::by_hand(seen());
            let follow = async {
                loop {
                    tokio::select! {
                        biased;
                        () = sleep(POLLS) => {}
                        () = feed.nudged() => {}
                    }
                    let is_away = Instant::now() < *away_until.lock().expect("not poisoned");
                    if follows && !is_away {
                        feed.turn_to(seen());
                    }
                }
            };
            let lives = AssertUnwindSafe(life(feed.clone())).catch_unwind();
            let ended = tokio::select! {
                biased;
                ended = lives => ended,
                () = follow => return,
            };
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => world.lock().book.breach(error),
                Err(_) => world.lock().book.breach("a stage panicked".into()),
            }
        });
        Process {
            role,
            link,
            stop,
            task,
        }
    }

    /// A stage, ready to run with a feed.
    fn life(
        &self,
        (role, link): (Role, usize),
        broker: Broker,
        stop: CancellationToken,
    ) -> impl FnOnce(Feed) -> futures_util::future::BoxFuture<'static, Result<(), String>> + Send + use<>
    {
        let state = self.world.lock();
        let plan = &state.book.plan;
        let archive = plan.archive;
        let routes = router::Settings {
            bundle_max: plan.bundle_max,
            prefetch: plan.router_prefetch,
            bundles_in_flight: plan.bundles_in_flight,
            ..router::Settings::default()
        };
        let delivers = deliverer::Settings {
            max_in_flight: plan.max_in_flight,
            breaker_failures: plan.breaker_failures,
            breaker_pause_max: plan.breaker_pause_max,
            ..deliverer::Settings::default()
        };
        let memory = Arc::new(Simulated {
            world: self.world.clone(),
            away_until: self.store_away_until.clone(),
            plant: self.plant,
        });
        let receivers = Arc::new(Endpoints {
            world: self.world.clone(),
            link,
        });
        let (dialects, disable) = (self.dialects.clone(), self.disable.clone());
        move |feed| match role {
            Role::Router => {
                let parts = router::Parts {
                    broker,
                    feed,
                    archive,
                    dedup: None,
                    settings: routes,
                    metrics: router::metrics::Metrics::register(&Registry::new())
                        .expect("a registry of its own"),
                };
                Box::pin(async move {
                    let ended = router::run(parts, stop).await;
                    ended.map_err(|error| error.to_string())
                })
            }
            Role::Recorder => {
                let metrics = recorder::metrics::Metrics::register(&Registry::new())
                    .expect("a registry of its own");
                Box::pin(async move {
                    recorder::sim::run(broker, feed, memory, metrics, stop).await;
                    Ok(())
                })
            }
            Role::Deliverer => {
                let parts = deliverer::Parts {
                    broker,
                    feed,
                    dialects,
                    settings: delivers,
                    egress: deliverer::Egress::default(),
                    loaders: deliverer::Loaders::new(),
                    archive,
                    gate: None,
                    metrics: deliverer::Metrics::register(&Registry::new())
                        .expect("a registry of its own"),
                    disable,
                };
                Box::pin(async move {
                    let ended = deliverer::sim::run(parts, receivers, stop).await;
                    ended.map_err(|error| error.to_string())
                })
            }
        }
    }
}

/// Whether what is held for a subscription may go.
fn is_sendable(book: &Book, place: usize) -> bool {
    let of = &book.states[place];
    !of.is_paused && !of.is_disabled && !of.is_deleted
}

fn stored(plan: &Plan, place: usize, state: &str, revision: u64) -> Arc<Stored> {
    let planned = &plan.subscriptions[place];
    let delays: Vec<_> = planned.delays.iter().map(|s| format!("{s}s")).collect();
    let retry = match delays.is_empty() {
        true => json!("none"),
        false => json!({"delays": delays}),
    };
    let filter = match planned.status {
        Some(status) => json!({"statuses": [status]}),
        None => json!({}),
    };
    let subscription = json!({
        "id": format!("sub_{place}"), "tenant": "t", "name": "",
        "target_url": format!("https://s{place}.example/"), "dialect": "standard",
        "events": [planned.events], "filter": filter, "view": "full", "headers": {},
        "attributes": {},
        "delivery": {
            "timeout": format!("{}s", planned.timeout_s), "retry": retry,
            "max_in_flight": planned.max_in_flight,
        },
        "state": state, "created_at": "2026-03-01T10:00:00Z",
        "updated_at": "2026-03-01T10:00:00Z", "revision": revision,
    });
    Arc::new(Stored {
        subscription: serde_json::from_value(subscription).expect("a subscription"),
        keys: SigningKeys::default(),
    })
}
