//! A fault run: a paced load on a whole Postrider, what is done to it meanwhile, and at the end the
//! history in a file, the checker's judgement and a line for the table of `make chaos`.
//!
//! The short form is for every `make test`, the long one (`POSTRIDER_CHAOS=long`) for `make chaos`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    io::Write as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    checker::{
        self, Bar, Counted, History, Letter, Mark, Process, Published, Receipt, Report, Row,
    },
    process::profile_folder,
    receiver::Answer,
    world::{Kind, World, client},
};
use crate::signatures::verifies;

/// How much is published.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) tenants: usize,
    /// Subscriptions of each tenant; each wants every event of its tenant.
    pub(crate) subscriptions: usize,
    /// Events a second.
    pub(crate) rate: usize,
    pub(crate) seconds: usize,
}

/// Is this `make chaos`?
pub(crate) fn is_long() -> bool {
    std::env::var("POSTRIDER_CHAOS").is_ok_and(|form| form == "long")
}

impl Size {
    /// So many seconds in the short form, so many in the long one.
    pub(crate) fn of(short: usize, long: usize) -> Self {
        if is_long() {
            Self {
                tenants: 20,
                subscriptions: 5,
                rate: number("POSTRIDER_CHAOS_RATE", 200),
                seconds: long,
            }
        } else {
            Self {
                tenants: 4,
                subscriptions: 2,
                rate: 40,
                seconds: short,
            }
        }
    }

    pub(crate) fn events(self) -> usize {
        self.rate * self.seconds
    }
}

fn number(name: &str, default: usize) -> usize {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}: {text} is no number"))
    })
}

/// Milliseconds of the machine's clock.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.expect("after 1970").as_millis()).expect("before the year 500 million")
}

/// What the publishers know.
#[derive(Debug, Default)]
struct Log {
    published: Vec<Published>,
    /// When which status came; 0 is no answer at all.
    answers: Vec<(u64, u16)>,
    marks: Vec<Mark>,
}

/// A subscription of the run.
#[derive(Debug, Clone)]
pub(crate) struct Wanting {
    pub(crate) subscribed: checker::Subscribed,
    pub(crate) path: String,
    pub(crate) secrets: Vec<String>,
}

/// A run under way.
pub(crate) struct Run {
    pub(crate) world: World,
    pub(crate) size: Size,
    pub(crate) wanting: Vec<Wanting>,
    name: &'static str,
    log: Arc<Mutex<Log>>,
    confirmed: Arc<AtomicUsize>,
    load: Option<tokio::task::JoinHandle<()>>,
    before: Vec<(String, u32, u64, u64)>,
    /// Compare the product's counters: right where no process and no connection was lost.
    counts: bool,
    figures: Vec<(&'static str, u64, Option<u64>)>,
}

fn of(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The one time all events carry, so that the body to come is known beforehand.
const TIME: &str = "2026-01-02T03:04:05Z";

pub(crate) fn tenant(n: usize) -> String {
    format!("salon-{n:02}")
}

/// An event as it is published, and the body that comes of it.
fn event(tenant: &str, id: &str) -> (String, String) {
    let pad = "0123456789abcdef".repeat(56);
    let data = format!(r#"{{"tenant":"{tenant}","id":"{id}","pad":"{pad}"}}"#);
    let event = format!(
        r#"{{"id":"{id}","tenant":"{tenant}","type":"appointment.updated","time":"{TIME}","data":{data}}}"#
    );
    let body = format!(r#"{{"type":"appointment.updated","timestamp":"{TIME}","data":{data}}}"#);
    (event, hash(body.as_bytes()))
}

fn hash(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text
}

impl Run {
    /// Subscribes everybody. `name` begins with the id of the fault.
    pub(crate) async fn start(name: &'static str, world: World, size: Size) -> Self {
        Self::with(name, world, size, json!({})).await
    }

    /// With these fields in every subscription.
    pub(crate) async fn with(name: &'static str, world: World, size: Size, more: Value) -> Self {
        let mut run = Self {
            world,
            size,
            wanting: Vec::new(),
            name,
            log: Arc::default(),
            confirmed: Arc::default(),
            load: None,
            before: Vec::new(),
            counts: false,
            figures: Vec::new(),
        };
        let mut last = Value::Null;
        for n in 0..size.tenants * size.subscriptions {
            let (of, nth) = (tenant(n / size.subscriptions), n % size.subscriptions);
            last = run.subscribe(&of, &format!("/{of}/{nth}"), &more).await;
        }
        run.world.known(&last).await;
        let known = now();
        for wanting in &mut run.wanting {
            wanting.subscribed.from = known;
        }
        run
    }

    async fn subscribe(&mut self, tenant: &str, path: &str, more: &Value) -> Value {
        let mut body = json!({
            "tenant": tenant, "target_url": self.world.receiver.url(path),
            "events": ["appointment.*"], "delivery": {"max_in_flight": 32},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        // Endpoints take a moment, so that a fault finds deliveries under way.
        let takes = Answer::status(200).after(Duration::from_millis(3));
        self.world.receiver.plan(path, [takes]);
        let created = self.world.call("POST", "/v1/subscriptions", Some(body));
        let created = created.await.expect(201);
        let text = |key: &str| created[key].as_str().unwrap_or_default().to_owned();
        self.wanting.push(Wanting {
            subscribed: checker::Subscribed {
                id: text("id"),
                tenant: tenant.to_owned(),
                from: now(),
                until: None,
            },
            path: path.to_owned(),
            secrets: vec![text("secret")],
        });
        created
    }

    /// With endpoints behind a proxy.
    pub(crate) async fn behind(
        name: &'static str,
        mut world: World,
        size: Size,
        more: Value,
        port: u16,
    ) -> Self {
        world.receiver = world.receiver.clone().behind(port);
        Self::with(name, world, size, more).await
    }

    /// One more subscription, known to every process.
    pub(crate) async fn add(&mut self, tenant: &str, path: &str, more: &Value) {
        let created = self.subscribe(tenant, path, more).await;
        self.world.known(&created).await;
        if let Some(added) = self.wanting.last_mut() {
            added.subscribed.from = now();
        }
    }

    /// A subscription's endpoint has another path from now on; what comes to the old one is still
    /// its own.
    pub(crate) fn moved(&mut self, n: usize, path: &str) {
        let mut again = self.wanting[n].clone();
        path.clone_into(&mut again.path);
        self.wanting.push(again);
    }

    /// How long it took from publishing to an endpoint, at a quantile, of what was published
    /// between two moments; without one tenant.
    pub(crate) fn latency(&self, quantile: f64, from: u64, until: u64, without: &str) -> u64 {
        let log = of(&self.log);
        let sent: HashMap<&str, u64> = log
            .published
            .iter()
            .filter(|event| event.tenant != without && (from..until).contains(&event.sent))
            .map(|event| (event.id.as_str(), event.sent))
            .collect();
        let mut took: Vec<u64> = self
            .world
            .receiver
            .all()
            .iter()
            .filter_map(|request| {
                let sent = sent.get(request.event_id())?;
                Some(wall(request.wall).saturating_sub(*sent))
            })
            .collect();
        took.sort_unstable();
        let at = (took.len() as f64 * quantile) as usize;
        took.get(at.min(took.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }

    /// The product's own counters are to add up at the end: no process is killed and no connection
    /// to the broker cut in this run.
    pub(crate) fn counting(mut self) -> Self {
        self.counts = true;
        self
    }

    /// Notes what is done to it, and when.
    pub(crate) fn mark(&self, what: &str) -> u64 {
        let at = now();
        let what = what.to_owned();
        of(&self.log).marks.push(Mark { at, what });
        at
    }

    /// A figure for the table, in milliseconds, with its target where there is one.
    pub(crate) fn figure(&mut self, what: &'static str, took: u64, target: Option<u64>) {
        self.figures.push((what, took, target));
    }

    /// Starts to publish, one event a request, at the size's rate and until each is accepted.
    pub(crate) async fn load(&mut self) {
        self.before = self.usage();
        let (log, confirmed) = (self.log.clone(), self.confirmed.clone());
        let (api, size) = (self.world.nodes[0].api(), self.size);
        self.load = Some(tokio::spawn(async move {
            let next = Arc::new(AtomicUsize::new(0));
            let began = Instant::now();
            let publishers = (0..32).map(|_| {
                let (log, confirmed) = (log.clone(), confirmed.clone());
                let (api, next) = (api.clone(), next.clone());
                tokio::spawn(async move {
                    let client = client();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= size.events() {
                            return;
                        }
                        let due = began + Duration::from_secs_f64(n as f64 / size.rate as f64);
                        tokio::time::sleep_until(due.into()).await;
                        let tenant = tenant(n % size.tenants);
                        let id = format!("{tenant}-{n:06}");
                        publish(&client, &api, &tenant, &id, &log).await;
                        confirmed.fetch_add(1, Ordering::Relaxed);
                    }
                })
            });
            for publisher in publishers.collect::<Vec<_>>() {
                publisher.await.expect("a publisher ends by itself");
            }
        }));
    }

    /// Waits until so much of the load (0.0 to 1.0) was accepted.
    pub(crate) async fn reaches(&self, part: f64) {
        let count = (self.size.events() as f64 * part) as usize;
        let deadline = Instant::now() + Duration::from_secs(240);
        while self.confirmed.load(Ordering::Relaxed) < count {
            assert!(Instant::now() < deadline, "never {count} events accepted");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many events were accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Waits until a publisher was answered with this status after a moment, and says when.
    pub(crate) async fn answered(&self, status: u16, after: u64) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let found = of(&self.log)
                .answers
                .iter()
                .find(|(at, is)| *at >= after && *is == status)
                .map(|(at, _)| *at);
            if let Some(at) = found {
                return at;
            }
            assert!(Instant::now() < deadline, "no publisher was told {status}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// When the first event after a moment was accepted.
    pub(crate) async fn accepted_after(&self, after: u64) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let log = of(&self.log).published.clone();
            let times = log.iter().filter_map(|event| event.confirmed);
            if let Some(at) = times.filter(|at| *at >= after).min() {
                return at;
            }
            assert!(Instant::now() < deadline, "no event was accepted again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The longest time in which no event was accepted, from a moment on.
    pub(crate) fn longest_silence(&self, from: u64) -> u64 {
        let mut times: Vec<u64> = of(&self.log)
            .published
            .iter()
            .filter_map(|event| event.confirmed)
            .filter(|at| *at >= from)
            .collect();
        times.push(from);
        times.sort_unstable();
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }

    /// When the first request after a moment came to an endpoint.
    pub(crate) async fn first_delivery(&self, after: u64) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let all = self.world.receiver.all();
            let times = all.iter().rev().map(|request| wall(request.wall));
            if let Some(at) = times.take_while(|at| *at >= after).last() {
                return at;
            }
            assert!(Instant::now() < deadline, "no delivery after the fault");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until every event is accepted.
    pub(crate) async fn published(&mut self) {
        if let Some(load) = self.load.take() {
            load.await.expect("the load ends by itself");
        }
    }

    /// Publishes one more event of a tenant by hand.
    pub(crate) async fn publish(&self, tenant: &str, id: &str) {
        let api = self.world.nodes[0].api();
        publish(&client(), &api, tenant, id, &self.log).await;
    }

    /// Waits for the end of the load and of every delivery, writes the history, judges it, and
    /// fails the test unless it passes.
    pub(crate) async fn finish(mut self, bar: &Bar) -> Report {
        self.published().await;
        self.quiet().await;
        let history = self.history().await;
        let report = checker::check(&history, bar);
        let file = folder().join(format!("{}-{}.json", self.name, std::process::id()));
        let text = serde_json::to_vec(&history).expect("a history can be written");
        std::fs::write(&file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.write_result(&report);
        println!("{} {report}history: {}", self.name, file.display());
        assert!(
            report.faults.is_empty(),
            "{}: {report}\n{}\nhistory: {}",
            self.name,
            self.logs(),
            file.display()
        );
        for node in self.world.nodes.iter_mut().filter(|node| node.is_running()) {
            node.drain().await;
        }
        report
    }

    /// What the processes had to say that was more than a debug line.
    fn logs(&self) -> String {
        let mut text = String::new();
        for node in &self.world.nodes {
            let log = node.log();
            let lines = log.lines().filter(|line| !line.contains("DEBUG"));
            let lines: Vec<_> = lines.collect();
            for line in &lines[lines.len().saturating_sub(40)..] {
                text.push_str(line);
                text.push('\n');
            }
            text.push_str("--\n");
        }
        text
    }

    fn write_result(&self, report: &Report) {
        let mut figures = String::new();
        for (what, took, target) in &self.figures {
            let over = target.is_some_and(|target| *took > target);
            let mark = if over { " OVER" } else { "" };
            _ = write!(figures, "{what} {took} ms{mark}; ");
        }
        let failed = if report.faults.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        let line = format!(
            "{}\t{}\t{}\t{}\t{}\t{}\t{failed}\t{}\n",
            self.name,
            report.confirmed,
            report.delivered + report.ended_otherwise,
            report.lost,
            report.duplicates,
            report.unconfirmed,
            figures.trim_end_matches("; ")
        );
        let mut file = std::fs::OpenOptions::new();
        let file = file.create(true).append(true);
        let mut file = file
            .open(folder().join("results.tsv"))
            .expect("the folder of histories is writable");
        file.write_all(line.as_bytes())
            .expect("the folder of histories is writable");
    }

    /// Waits until nothing is under way, or nothing has moved for a while.
    pub(crate) async fn quiet(&self) {
        const STUCK: Duration = Duration::from_secs(45);
        let (mut last, mut moved, mut calm) = (Value::Null, Instant::now(), 0);
        let deadline = Instant::now() + Duration::from_secs(240);
        while calm < 3 && moved.elapsed() < STUCK && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let waiting = self.world.nodes[0]
                .metric("postrider_queue_messages", "")
                .await;
            let flying = self.world.metric("postrider_in_flight", "").await;
            let periods = self.world.items("/v1/deliveries/periods?by=month").await;
            let states: BTreeMap<String, u64> = periods
                .iter()
                .filter_map(|period| period["states"].as_object())
                .flatten()
                .map(|(state, count)| (state.clone(), count.as_u64().unwrap_or_default()))
                .collect();
            let open = ["pending", "retrying"]
                .iter()
                .filter_map(|s| states.get(*s));
            let open: u64 = open.sum();
            let known: u64 = states.values().sum();
            let now = json!([waiting, flying, states, self.world.receiver.count()]);
            if now != last {
                (last, moved) = (now, Instant::now());
            }
            let enough = known >= self.expected();
            let all_done = waiting == 0.0 && flying == 0.0 && open == 0 && enough;
            calm = if all_done { calm + 1 } else { 0 };
        }
    }

    /// How many deliveries the log must know at least.
    fn expected(&self) -> u64 {
        let log = of(&self.log);
        let mut wanted = 0;
        let mut by_tenant = HashMap::<&str, Vec<&checker::Subscribed>>::new();
        let all = self.subscribed();
        for one in &all {
            let those = by_tenant.entry(&one.tenant).or_default();
            those.push(one);
        }
        for event in &log.published {
            let Some(confirmed) = event.confirmed else {
                continue;
            };
            let those = by_tenant.get(event.tenant.as_str());
            let those = those.into_iter().flatten().filter(|one| {
                one.from <= event.sent && one.until.is_none_or(|until| until >= confirmed)
            });
            wanted += those.count() as u64;
        }
        wanted
    }

    async fn history(&self) -> History {
        let mut history = History {
            name: self.name.to_owned(),
            subscriptions: self.subscribed(),
            received: self.received(),
            deliveries: self.rows().await,
            ..History::default()
        };
        for letter in self.world.dead_letters().await {
            let text = |key: &str| letter[key].as_str().unwrap_or_default().to_owned();
            history.dead.push(Letter {
                id: text("event_id"),
                subscription: text("subscription_id"),
            });
        }
        for message in self.world.items("/v1/quarantine?limit=500").await {
            let reason = message["reason"].as_str().unwrap_or_default();
            history.quarantine.push(reason.to_owned());
        }
        history.counted = if self.counts {
            Some(self.counted().await)
        } else {
            None
        };
        for queue in broker::topology::queues() {
            let label = format!("queue=\"{}\"", queue.name);
            let left = self.world.nodes[0].metric("postrider_queue_messages", &label);
            history.left.push((queue.name, left.await as u64));
        }
        let flying = self.world.metric("postrider_in_flight", "").await;
        history.left.push(("in flight".into(), flying as u64));
        history.processes = self.processes().await;
        let log = of(&self.log);
        history.published.clone_from(&log.published);
        history.marks.clone_from(&log.marks);
        history
    }

    /// Each once, also those that have moved.
    fn subscribed(&self) -> Vec<checker::Subscribed> {
        let mut all = BTreeMap::new();
        for one in &self.wanting {
            all.entry(&one.subscribed.id).or_insert(&one.subscribed);
        }
        all.into_values().cloned().collect()
    }

    fn received(&self) -> Vec<Receipt> {
        let paths: HashMap<&str, &Wanting> = self
            .wanting
            .iter()
            .map(|one| (one.path.as_str(), one))
            .collect();
        let requests = self.world.receiver.all().into_iter();
        let receipts = requests.map(|request| {
            let wanting = paths.get(request.path.as_str());
            let id = wanting.map_or(&request.path, |one| &one.subscribed.id);
            let secrets = wanting.map_or(&[] as &[String], |one| &one.secrets);
            let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            Receipt {
                id: request.event_id().to_owned(),
                tenant: body["data"]["tenant"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                subscription: id.clone(),
                at: wall(request.wall),
                timestamp: request.header("webhook-timestamp").parse().unwrap_or(0),
                signed: secrets.iter().any(|secret| verifies(&request, secret)),
                body: hash(&request.body),
                answered: request.answered,
                purpose: request.header("x-postrider-purpose").to_owned(),
            }
        });
        receipts.collect()
    }

    /// The log, with the attempts of some that had several.
    async fn rows(&self) -> Vec<Row> {
        const DETAILS_MAX: usize = 300;
        let (mut rows, mut details) = (Vec::new(), 0);
        for row in self.world.items("/v1/deliveries?limit=500").await {
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            let mut attempts = Vec::new();
            if row["attempts"].as_u64().unwrap_or_default() > 1 && details < DETAILS_MAX {
                details += 1;
                let path = format!("/v1/deliveries/{}", text("id"));
                let whole = self.world.call("GET", &path, None).await.expect(200);
                let history = whole["history"].as_array().cloned().unwrap_or_default();
                for one in history.iter().filter(|one| one["run"] == 0) {
                    let number = one["number"].as_u64().unwrap_or_default();
                    let at: jiff::Timestamp = one["at"]
                        .as_str()
                        .and_then(|at| at.parse().ok())
                        .expect("an attempt has its time");
                    attempts.push((
                        u32::try_from(number).expect("a small number"),
                        u64::try_from(at.as_millisecond()).expect("after 1970"),
                        one["status"].as_u64().and_then(|s| u16::try_from(s).ok()),
                    ));
                }
            }
            rows.push(Row {
                id: text("event_id"),
                tenant: text("tenant"),
                subscription: text("subscription_id"),
                state: text("state"),
                attempts,
            });
        }
        rows
    }

    async fn counted(&self) -> Counted {
        let of = async |outcome: &str| {
            let label = format!("outcome=\"{outcome}\"");
            let count = self.world.metric("postrider_deliveries_total", &label);
            count.await as u64
        };
        let routed = self.world.metric("postrider_bundled_deliveries_total", "");
        Counted {
            routed: routed.await as u64,
            delivered: of("delivered").await,
            dead: of("dead").await,
            filtered: of("filtered").await,
        }
    }

    fn usage(&mut self) -> Vec<(String, u32, u64, u64)> {
        let mut usage = Vec::new();
        for (n, node) in self.world.nodes.iter_mut().enumerate() {
            if !node.is_running() {
                continue;
            }
            let pid = node.process().pid();
            let (files, resident) = used(pid);
            usage.push((format!("process {n}"), pid, files, resident));
        }
        usage
    }

    /// What the processes that are still the same use now, once idle connections are closed.
    async fn processes(&self) -> Vec<Process> {
        let deadline = Instant::now() + Duration::from_secs(8);
        loop {
            let same = self
                .before
                .iter()
                .filter_map(|(name, pid, files, resident)| {
                    let (files_now, resident_now) = used(*pid);
                    (files_now > 0).then(|| Process {
                        name: name.clone(),
                        files: (*files, files_now),
                        resident_kib: (*resident, resident_now),
                    })
                });
            let same: Vec<_> = same.collect();
            let settled = |one: &Process| one.files.1 <= one.files.0 + one.files.0 / 10 + 10;
            if same.iter().all(settled) || Instant::now() > deadline {
                return same;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Open files and resident KiB; zeros when the process is gone.
fn used(pid: u32) -> (u64, u64) {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|text| text.split_whitespace().next()?.parse().ok());
    (files as u64, resident.unwrap_or_default())
}

fn wall(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("before the year 500 million")
}

/// Keeps at one event until it is accepted, as a service would.
async fn publish(client: &reqwest::Client, api: &str, tenant: &str, id: &str, log: &Mutex<Log>) {
    let (event, body) = event(tenant, id);
    let sent = now();
    let give_up = Instant::now() + Duration::from_secs(150);
    let mut confirmed = None;
    while confirmed.is_none() && Instant::now() < give_up {
        let request = client
            .post(format!("{api}/v1/events"))
            .header("content-type", "application/json")
            .body(event.clone());
        let status = request
            .send()
            .await
            .map_or(0, |answer| answer.status().as_u16());
        of(log).answers.push((now(), status));
        match status {
            200..=299 => confirmed = Some(now()),
            // Away or blocked; `Retry-After` says a second or more, a service in a hurry asks sooner.
            0 | 503 => tokio::time::sleep(Duration::from_millis(100)).await,
            status => panic!("{id} was answered {status}"),
        }
    }
    of(log).published.push(Published {
        id: id.to_owned(),
        tenant: tenant.to_owned(),
        sent,
        confirmed,
        body,
    });
}

/// Where histories go: `POSTRIDER_CHAOS_DIR`, or `target/chaos/short`.
fn folder() -> PathBuf {
    let folder = std::env::var_os("POSTRIDER_CHAOS_DIR").map_or_else(
        || {
            let target = profile_folder();
            let target = target.parent().expect("target/PROFILE");
            target.join("chaos").join("short")
        },
        PathBuf::from,
    );
    std::fs::create_dir_all(&folder).expect("the folder of histories can be made");
    folder
}

/// A world whose parts a run may lose: two deliverers on RabbitMQ and PostgreSQL.
pub(crate) async fn two_deliverers(more: &[(&'static str, String)]) -> World {
    World::with(Kind::Rabbit, 2, more).await
}
