//! A deliverer on the embedded broker, with subscriptions made up, and eyes on every queue.

use std::{collections::HashMap, sync::Arc, time::Duration};

use broker::{Broker, Parcel, Queue, Received, Route};
use dialect::Dialects;
use event::{
    Subscription, SubscriptionId,
    delivery::{Bundle, DeadLetter},
    log::{Archive, LogBatch, LogEntry},
    secret::{LiveKey, SigningKey, SigningKeys},
};
use postrider_deliverer::{Egress, Error, Loaders, Metrics, Parts, Settings, settings::Loader};
use prometheus::Registry;
use serde_json::{Value, json};
use store::{
    Stored,
    feed::{Feed, Snapshot},
    gate::Gate,
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Longer than anything here takes, shorter than a person's patience.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) struct House {
    pub(crate) broker: Broker,
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) dialects: Arc<Dialects>,
    pub(crate) settings: Settings,
    pub(crate) loaders: Loaders,
    pub(crate) archive: Archive,
    pub(crate) disabled: mpsc::Receiver<(SubscriptionId, String)>,
    disable: mpsc::Sender<(SubscriptionId, String)>,
    subscriptions: HashMap<SubscriptionId, Arc<Stored>>,
    revision: u64,
    /// What the deliverer follows instead of the subscriptions above.
    pub(crate) feed: Option<Feed>,
    /// Which versions were sent; `None` is a store that never answers.
    pub(crate) gate: Option<Gate>,
    pub(crate) folder: TempDir,
}

pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

/// A subscription `sub_NAME` to everything; `more` takes the place of any field.
pub(crate) fn subscription(name: &str, target_url: &str, more: Value) -> Subscription {
    let mut fields = json!({
        "id": format!("sub_{name}"), "tenant": "t", "name": name, "target_url": target_url,
        "dialect": "standard", "events": ["*"], "filter": {}, "view": "full", "headers": {},
        "attributes": {}, "delivery": {"retry": {"delays": ["1s", "1s"]}}, "state": "active",
        "created_at": "2026-03-01T10:00:00Z", "updated_at": "2026-03-01T10:00:00Z", "revision": 1,
    });
    let map = fields.as_object_mut().expect("an object");
    map.extend(more.as_object().cloned().unwrap_or_default());
    serde_json::from_value(fields).expect("a subscription")
}

/// A subscription as the store has it.
pub(crate) fn with_keys(subscription: Subscription) -> Stored {
    let key = SigningKey::parse(SECRET).expect("a key");
    let keys = SigningKeys(vec![LiveKey {
        key,
        expires_at: None,
    }]);
    Stored { subscription, keys }
}

/// An event `ID` whose data is `{"n": ID}`.
pub(crate) fn event(id: &str) -> Value {
    json!({
        "id": id, "tenant": "t", "type": "appointment.created", "time": "2026-03-01T10:00:00Z",
        "data": {"n": id},
    })
}

/// One item of a bundle: an event and whom it goes to.
pub(crate) fn item(event: Value, to: &[&str]) -> Value {
    let to: Vec<_> = to
        .iter()
        .map(|name| json!({"sub": format!("sub_{name}")}))
        .collect();
    json!({"event": event, "accepted_at": jiff::Timestamp::now(), "revision": 1, "to": to})
}

impl House {
    pub(crate) async fn with(subscriptions: impl IntoIterator<Item = Subscription>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let broker = open(&folder).await;
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).expect("registers");
        let (disable, disabled) = mpsc::channel(8);
        let stored = |subscription: Subscription| {
            let id = subscription.id.clone();
            (id, Arc::new(with_keys(subscription)))
        };
        Self {
            broker,
            registry,
            metrics,
            dialects: Arc::new(Dialects::builtin()),
            settings: Settings::default(),
            loaders: Loaders::new(),
            archive: Archive::Off,
            disabled,
            disable,
            subscriptions: subscriptions.into_iter().map(stored).collect(),
            revision: 1,
            feed: None,
            gate: None,
            folder,
        }
    }

    pub(crate) async fn publish(&self, items: Vec<Value>) {
        self.publish_bytes(json!({ "items": items }).to_string().into_bytes())
            .await;
    }

    pub(crate) async fn publish_bytes(&self, body: Vec<u8>) {
        let parcel = Parcel::json(Route::Deliver, "bundle", body);
        self.broker
            .publisher()
            .publish(parcel)
            .await
            .expect("published");
    }

    /// Starts a deliverer that knows the subscriptions.
    pub(crate) fn start(&self) -> Running {
        let fixed = || {
            Feed::fixed(Snapshot {
                revision: self.revision,
                subscriptions: self.subscriptions.clone(),
            })
        };
        let feed = self.feed.clone().unwrap_or_else(fixed);
        let parts = Parts {
            broker: self.broker.clone(),
            feed,
            dialects: self.dialects.clone(),
            settings: self.settings.clone(),
            egress: Egress {
                allow: vec!["127.0.0.0/8".parse().expect("a network")],
                require_https: false,
                ..Egress::default()
            },
            loaders: self.loaders.clone(),
            archive: self.archive,
            metrics: self.metrics.clone(),
            gate: self.gate.clone(),
            disable: self.disable.clone(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(postrider_deliverer::run(parts, stop.clone()));
        Running { stop, task }
    }

    /// The next message of a queue.
    pub(crate) async fn next(&self, queue: Queue) -> Received {
        let mut consumer = self.broker.consume(queue, 1).await;
        let received = timeout(LONG, consumer.next())
            .await
            .expect("in time")
            .expect("a message");
        consumer.stop().await;
        received
    }

    pub(crate) async fn dead_letter(&self) -> (DeadLetter, Vec<(String, String)>) {
        let received = self.next(Queue::Dead).await;
        let letter = serde_json::from_slice(&received.body).expect("a dead letter");
        received.ticket.ack();
        (letter, received.headers)
    }

    /// The next `count` entries of the log, by event, subscription and attempt; there must be no
    /// more in their batches.
    pub(crate) async fn log(&self, count: usize) -> Vec<LogEntry> {
        let mut consumer = self.broker.consume(Queue::Log, 100).await;
        let mut entries = Vec::new();
        while entries.len() < count {
            let received = timeout(LONG, consumer.next()).await;
            let received = received
                .unwrap_or_else(|_| panic!("only {} entries of {count}", entries.len()))
                .expect("a message");
            let batch: LogBatch = serde_json::from_slice(&received.body).expect("a batch");
            entries.extend(batch.entries);
            received.ticket.ack();
        }
        consumer.stop().await;
        assert_eq!(entries.len(), count, "{entries:#?}");
        entries.sort_by_key(|entry| {
            let ids = (
                entry.event_id.to_string(),
                entry.subscription_id.to_string(),
            );
            (ids, entry.at)
        });
        entries
    }

    /// The loader of appointments, at this URL.
    pub(crate) fn load_appointments_from(&mut self, url: &str) {
        let loader = Loader {
            url: url.into(),
            token: Some("loader-token".into()),
            ..Loader::default()
        };
        self.loaders.insert("appointment".into(), loader);
    }

    pub(crate) async fn bundle(&self) -> Bundle {
        let received = self.next(Queue::Deliver).await;
        let bundle = serde_json::from_slice(&received.body).expect("a bundle");
        received.ticket.ack();
        bundle
    }

    /// The value of a series, by its name and its label's value.
    pub(crate) fn count(&self, name: &str, label: &str) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let family = family.unwrap_or_else(|| panic!("no {name}"));
        let metric = family
            .get_metric()
            .iter()
            .find(|metric| metric.get_label().iter().all(|pair| pair.value() == label));
        let metric = metric.unwrap_or_else(|| panic!("no {name} of {label:?}"));
        let value = metric.get_counter().get_value() + metric.get_gauge().get_value();
        value as u64 + metric.get_histogram().get_sample_count()
    }

    /// Waits until a series has this value.
    pub(crate) async fn until(&self, name: &str, label: &str, value: u64) {
        self.until_at_least(name, label, value).await;
        assert_eq!(self.count(name, label), value, "{name} of {label:?}");
    }

    /// Waits until a series has this value or more.
    pub(crate) async fn until_at_least(&self, name: &str, label: &str, value: u64) {
        let reached = async {
            while self.count(name, label) < value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = timeout(LONG, reached).await;
        let now = self.count(name, label);
        assert!(waited.is_ok(), "{name} of {label:?} is {now}, not {value}");
    }

    /// How many messages are left in any queue, unacknowledged ones included: what a process that
    /// opens the broker next will find. Ends every deliverer's connection to it.
    pub(crate) async fn left(&mut self) -> u64 {
        self.broker.close().await;
        self.broker = open(&self.folder).await;
        self.broker
            .depths()
            .await
            .iter()
            .map(|(_, depth)| depth)
            .sum()
    }
}

async fn open(folder: &TempDir) -> Broker {
    let url = format!("embedded://{}", folder.path().join("broker").display());
    let settings = broker::Settings {
        url,
        ..broker::Settings::default()
    };
    Broker::open(&settings).await.expect("opens")
}

impl Running {
    /// Stops the deliverer and waits for its end.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let ended = timeout(LONG, self.task).await.expect("in time");
        ended.expect("no panic").expect("no error");
    }

    /// Ends the deliverer as a crash would.
    pub(crate) async fn abort(self) {
        self.task.abort();
        assert!(self.task.await.expect_err("aborted").is_cancelled());
    }
}
