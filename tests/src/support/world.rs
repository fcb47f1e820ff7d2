//! A whole Postrider with an endpoint and a ledger: what should have become of every delivery.
//!
//! At the end of every test the law of the design is checked: accepted × matching = delivered +
//! dead + filtered + superseded + waiting, each delivery by its name, and nothing that nobody asked for; first
//! by what the endpoint saw, then by what the store remembers.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::{Duration, Instant},
};

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{node::Node, postgres, rabbit, receiver::Receiver};

/// Which broker (and which store goes with it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One process, embedded broker and SQLite.
    Embedded,
    /// One process for API and recording, a router and a deliverer, RabbitMQ and PostgreSQL.
    Rabbit,
}

/// What should become of one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Delivered,
    Dead,
    Filtered,
    Superseded,
}

/// A subscription of the test's.
#[derive(Debug, Clone)]
pub(crate) struct Sub {
    pub(crate) id: String,
    pub(crate) path: String,
    pub(crate) secret: String,
}

/// An answer of the API.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) json: Value,
    pub(crate) headers: reqwest::header::HeaderMap,
}

impl Answer {
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "the API answered {:#}", self.json);
        self.json
    }
}

/// The tenant of what a test publishes without saying otherwise.
pub(crate) const TENANT: &str = "salon-17";

/// A running Postrider.
pub(crate) struct World {
    pub(crate) kind: Kind,
    /// API (all roles when embedded), then router and deliverers.
    pub(crate) nodes: Vec<Node>,
    pub(crate) receiver: Receiver,
    pub(crate) settings: Vec<(&'static str, String)>,
    client: Client,
    ledger: Mutex<BTreeMap<(String, String), Fate>>,
    /// The subscription of each entry of the ledger.
    owners: Mutex<BTreeMap<(String, String), String>>,
    _folder: TempDir,
}

impl World {
    pub(crate) async fn start(kind: Kind) -> Self {
        Self::with(kind, 1, &[]).await
    }

    /// With so many deliverers (RabbitMQ only), and settings of the test's own.
    pub(crate) async fn with(
        kind: Kind,
        deliverers: usize,
        more: &[(&'static str, String)],
    ) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let mut settings = match kind {
            Kind::Embedded => super::node::embedded(folder.path()),
            Kind::Rabbit => vec![
                ("broker.url", rabbit::fresh_vhost_url().await),
                ("store.url", postgres::fresh_database_url().await),
            ],
        };
        settings.extend_from_slice(more);
        Self::build(kind, deliverers, settings, folder).await
    }

    /// Without a recorder: what is recorded waits in its queues for the test.
    pub(crate) async fn without_recorder(kind: Kind, more: &[(&'static str, String)]) -> Self {
        let mut world = Self::with(kind, 1, more).await;
        let roles = match kind {
            Kind::Embedded => "producer,router,deliverer,console",
            Kind::Rabbit => "producer,console",
        };
        world.nodes[0].drain().await;
        world.nodes[0] = Node::start(roles, &world.settings).await;
        world
    }

    /// Around servers of the test's own.
    pub(crate) async fn around(kind: Kind, settings: Vec<(&'static str, String)>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self::build(kind, 1, settings, folder).await
    }

    async fn build(
        kind: Kind,
        deliverers: usize,
        settings: Vec<(&'static str, String)>,
        folder: TempDir,
    ) -> Self {
        let roles: Vec<&str> = match kind {
            Kind::Embedded => vec![""],
            Kind::Rabbit => [
                vec!["producer,recorder,console", "router"],
                vec!["deliverer"; deliverers],
            ]
            .concat(),
        };
        let mut nodes = Vec::new();
        for role in roles {
            nodes.push(Node::start(role, &settings).await);
        }
        Self {
            kind,
            nodes,
            receiver: Receiver::start().await,
            settings,
            client: client(),
            ledger: Mutex::default(),
            owners: Mutex::default(),
            _folder: folder,
        }
    }

    pub(crate) fn setting(&self, key: &str) -> &str {
        let found = self.settings.iter().find(|(name, _)| *name == key);
        found
            .map(|(_, value)| value.as_str())
            .expect("the world has that setting")
    }

    /// The node that routes: its own process on RabbitMQ, the only one when embedded.
    pub(crate) fn router(&mut self) -> &mut Node {
        let index = usize::from(self.kind == Kind::Rabbit);
        &mut self.nodes[index]
    }

    /// The (first) node that delivers.
    pub(crate) fn deliverer(&mut self) -> &mut Node {
        let index = if self.kind == Kind::Rabbit { 2 } else { 0 };
        &mut self.nodes[index]
    }

    /// Calls the API.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let body = body.map(|body| ("application/json", body.to_string().into_bytes()));
        self.send(method, path, body, None).await
    }

    /// Calls the API with these bytes and this token.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, Vec<u8>)>,
        token: Option<&str>,
    ) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.nodes[0].api()));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some((kind, body)) = body {
            request = request.header("content-type", kind).body(body);
        }
        let response = request.send().await.expect("the API answers");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await.expect("the API answers whole");
        let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer {
            status,
            json,
            headers,
        }
    }

    /// Subscribes `path` of the receiver to `events`, with `more` merged in, and waits until every
    /// process knows.
    pub(crate) async fn subscribe(&self, path: &str, events: &[&str], more: Value) -> Sub {
        let mut body = json!({
            "tenant": TENANT, "target_url": self.receiver.url(path), "events": events,
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        let created = self
            .call("POST", "/v1/subscriptions", Some(body))
            .await
            .expect(201);
        self.known(&created).await;
        let text = |key: &str| created[key].as_str().unwrap_or_default().to_owned();
        Sub {
            id: text("id"),
            path: path.to_owned(),
            secret: text("secret"),
        }
    }

    /// Waits until every running process works with this revision of a subscription.
    pub(crate) async fn known(&self, subscription: &Value) {
        let revision = subscription["revision"]
            .as_f64()
            .expect("a subscription has a revision");
        let deadline = Instant::now() + Duration::from_secs(20);
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            while node.metric("postrider_subscription_revision", "").await < revision {
                assert!(
                    Instant::now() < deadline,
                    "a process never learned of {subscription}"
                );
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        }
    }

    /// Waits until every running process works with no subscription at all.
    pub(crate) async fn wait_for_gone(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.metric("postrider_subscriptions", "").await > 0.0 {
            assert!(
                Instant::now() < deadline,
                "a process still works with a deleted subscription"
            );
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Publishes one event over HTTP; returns its id. `tenant`, `id` and `data` are filled in.
    pub(crate) async fn publish(&self, mut event: Value) -> String {
        if event.get("tenant").is_none() {
            event["tenant"] = json!(TENANT);
        }
        let deleted = event["type"]
            .as_str()
            .is_some_and(|kind| kind.ends_with(".deleted"));
        if event.get("data").is_none() && !deleted {
            event["data"] = json!({"n": 1});
        }
        let answer = self
            .call("POST", "/v1/events", Some(event))
            .await
            .expect(202);
        answer["ids"][0].as_str().expect("an id").to_owned()
    }

    /// Notes what should become of an event for a subscription.
    pub(crate) fn expect(&self, sub: &Sub, event_id: &str, fate: Fate) {
        let mut ledger = self.ledger.lock().expect("no test thread panicked");
        let key = (sub.path.clone(), event_id.to_owned());
        let mut owners = self.owners.lock().expect("no test thread panicked");
        owners.insert(key.clone(), sub.id.clone());
        ledger.insert(key, fate);
    }

    /// The dead letters, as the API lists them.
    pub(crate) async fn dead_letters(&self) -> Vec<Value> {
        self.items("/v1/dead-letters?limit=500").await
    }

    pub(crate) async fn items(&self, path: &str) -> Vec<Value> {
        let mut items = Vec::new();
        let mut next = path.to_owned();
        loop {
            let page = self.call("GET", &next, None).await.expect(200);
            items.extend(page["items"].as_array().cloned().unwrap_or_default());
            match page["cursor"].as_str() {
                Some(cursor) => {
                    let glue = if path.contains('?') { '&' } else { '?' };
                    next = format!("{path}{glue}cursor={cursor}");
                }
                None => return items,
            }
        }
    }

    /// Waits until the API lists as many dead letters.
    pub(crate) async fn wait_for_dead(&self, count: usize) -> Vec<Value> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let letters = self.dead_letters().await;
            if letters.len() >= count {
                return letters;
            }
            assert!(
                Instant::now() < deadline,
                "{count} dead letters wanted, got {letters:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The sum of a metric over every running process.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> f64 {
        let mut sum = 0.0;
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            sum += node.metric(name, labels).await;
        }
        sum
    }

    /// Waits until a metric has at least this value.
    pub(crate) async fn wait_for_metric(&self, name: &str, labels: &str, least: f64) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.metric(name, labels).await < least {
            let now = self.metric(name, labels).await;
            assert!(
                Instant::now() < deadline,
                "{name}{{{labels}}} is {now}, never {least}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Checks the law, with no duplicate allowed, and ends everything.
    pub(crate) async fn finish(self) {
        let wanted = self.ledger.lock().expect("no test thread panicked").clone();
        let metric = "postrider_deliveries_total";
        for (fate, word) in [
            (Fate::Filtered, "filtered"),
            (Fate::Superseded, "superseded"),
        ] {
            let wanted = wanted.values().filter(|is| **is == fate).count() as f64;
            let outcome = format!("outcome=\"{word}\"");
            self.wait_for_metric(metric, &outcome, wanted).await;
            let counted = self.metric(metric, &outcome).await;
            assert_eq!(counted, wanted, "deliveries {word}");
        }
        let duplicates = self.settle().await;
        assert_eq!(duplicates, 0, "duplicates in a run without faults");
    }

    /// Waits until every expected delivery has its end, checks that it is the expected one and
    /// that there is no other, drains every process, and returns the number of duplicates.
    pub(crate) async fn settle(mut self) -> usize {
        let ledger = self.ledger.lock().expect("no test thread panicked").clone();
        let paths: Vec<String> = {
            let mut paths: Vec<_> = ledger.keys().map(|(path, _)| path.clone()).collect();
            paths.dedup();
            paths
        };
        let count = |fate: Fate| ledger.values().filter(|is| **is == fate).count();

        let wanted = count(Fate::Delivered);
        self.receiver
            .wait_until(&format!("{wanted} deliveries"), || {
                let missing = ledger
                    .iter()
                    .filter(|(_, fate)| **fate == Fate::Delivered)
                    .count()
                    - paths
                        .iter()
                        .map(|path| {
                            let seen = self.receiver.successes(path);
                            seen.keys()
                                .filter(|id| {
                                    let key = (path.clone(), (*id).clone());
                                    ledger.get(&key) == Some(&Fate::Delivered)
                                })
                                .count()
                        })
                        .sum::<usize>();
                (missing == 0).then_some(())
            })
            .await;
        let dead = self.wait_for_dead(count(Fate::Dead)).await;
        self.check_dead(&dead, &ledger).await;
        self.wait_for_empty_queues().await;
        self.wait_for_record(&ledger).await;

        let mut duplicates = 0;
        for path in all_paths(&self.receiver) {
            for (event, times) in self.receiver.successes(&path) {
                let fate = ledger.get(&(path.clone(), event.clone()));
                assert_eq!(
                    fate,
                    Some(&Fate::Delivered),
                    "{event} came to {path} unasked"
                );
                duplicates += times - 1;
            }
        }
        for node in self.nodes.iter_mut().filter(|node| node.is_running()) {
            node.drain().await;
        }
        duplicates
    }

    async fn check_dead(&self, dead: &[Value], ledger: &BTreeMap<(String, String), Fate>) {
        let mut targets = HashMap::new();
        for subscription in self.items("/v1/subscriptions?limit=500").await {
            let id = subscription["id"].as_str().unwrap_or_default().to_owned();
            let target = subscription["target_url"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            targets.insert(id, target);
        }
        for letter in dead {
            let event = letter["event_id"].as_str().unwrap_or_default();
            let subscription = letter["subscription_id"].as_str().unwrap_or_default();
            // A deleted subscription has no target any more; its test checks the letter itself.
            let Some(target) = targets.get(subscription) else {
                continue;
            };
            let fate = ledger
                .iter()
                .find(|((path, id), _)| id == event && *target == self.receiver.url(path));
            let fate = fate.map(|(_, fate)| *fate);
            assert_eq!(fate, Some(Fate::Dead), "died unasked: {letter:#}");
        }
    }

    /// Waits until the log says of every delivery what became of it, and that none is under way:
    /// the law once more, from the store alone.
    async fn wait_for_record(&self, ledger: &BTreeMap<(String, String), Fate>) {
        let off = |(name, value): &(&str, String)| *name == "recorder.archive" && value == "off";
        if self.settings.iter().any(off) {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            // Counted first: the whole list is read when it is likely to be right.
            let mut wrong = self.under_way().await;
            if wrong.is_empty() {
                wrong = self.wrong_in_record(ledger).await;
            }
            if wrong.is_empty() {
                return;
            }
            wrong.truncate(5);
            assert!(
                Instant::now() < deadline,
                "the log is not what happened: {wrong:#?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the log counts as not ended.
    async fn under_way(&self) -> Vec<String> {
        let periods = self.items("/v1/deliveries/periods?by=month").await;
        let count = |state: &str| -> u64 {
            let counts = periods.iter().map(|period| &period["states"][state]);
            counts.filter_map(Value::as_u64).sum()
        };
        ["pending", "retrying"]
            .into_iter()
            .filter(|state| count(state) > 0)
            .map(|state| format!("{} {state}", count(state)))
            .collect()
    }

    /// Where the log and the ledger differ.
    async fn wrong_in_record(&self, ledger: &BTreeMap<(String, String), Fate>) -> Vec<String> {
        let mut states = HashMap::new();
        for row in self.items("/v1/deliveries?limit=500").await {
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            states.insert((text("subscription_id"), text("event_id")), text("state"));
        }
        let owners = self.owners.lock().expect("no test thread panicked");
        let wrong = ledger.iter().filter_map(|(key, fate)| {
            let wanted = match fate {
                Fate::Delivered => "delivered",
                Fate::Dead => "dead",
                Fate::Filtered => "filtered",
                Fate::Superseded => "superseded",
            };
            let state = states.get(&(owners[key].clone(), key.1.clone()));
            (state.map(String::as_str) != Some(wanted))
                .then(|| format!("{key:?} should be {wanted}, is {state:?}"))
        });
        wrong.collect()
    }

    async fn wait_for_empty_queues(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let (waiting, flying) = (
                self.nodes[0].metric("postrider_queue_messages", "").await,
                self.metric("postrider_in_flight", "").await,
            );
            if waiting == 0.0 && flying == 0.0 {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{waiting} messages still wait and {flying} attempts are under way"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn all_paths(receiver: &Receiver) -> Vec<String> {
    let mut paths: Vec<_> = receiver
        .all()
        .into_iter()
        .map(|request| request.path)
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

/// An HTTP client that reaches loopback and nothing by proxy.
pub(crate) fn client() -> Client {
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(30))
        .build()
        .expect("a client")
}
