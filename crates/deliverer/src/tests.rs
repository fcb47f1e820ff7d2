//! What a fault of our own costs: never a delivery, and never more than its bundle again.

use std::{collections::HashMap, sync::Mutex};

use broker::{Parcel, PublishError, Route, Settle, Ticket};
use event::secret::SigningKeys;
use futures_util::future::BoxFuture;
use serde_json::json;
use store::Stored;

use super::{bundle::share, *};

#[derive(Debug, Clone, Default)]
struct Seen(Arc<Mutex<Vec<&'static str>>>);

/// The ticket of a message whose channel is gone.
#[derive(Debug)]
struct Void(Seen);

impl Settle for Void {
    fn ack(self: Box<Self>) {
        Box::new(self.0).ack();
    }

    fn give_back(self: Box<Self>) {
        Box::new(self.0).give_back();
    }

    fn is_void(&self) -> bool {
        true
    }
}

impl Settle for Seen {
    fn ack(self: Box<Self>) {
        self.0.lock().expect("not poisoned").push("ack");
    }

    fn give_back(self: Box<Self>) {
        self.0.lock().expect("not poisoned").push("give back");
    }
}

/// A broker whose handle fails in the way told.
#[derive(Debug)]
enum Broken {
    Panics,
    Closed,
    /// Takes everything but the log.
    NoLog,
    /// Takes nothing but the log.
    LogAlone,
    Works,
}

impl Publish for Broken {
    fn publish(&self, parcel: Parcel) -> BoxFuture<'_, Result<(), PublishError>> {
        let is_log = parcel.route == Route::Log;
        let takes = match self {
            Self::Panics => panic!("the publisher broke, as the test wants"),
            Self::Closed => false,
            Self::NoLog => !is_log,
            Self::LogAlone => is_log,
            Self::Works => true,
        };
        let answer = if takes {
            Ok(())
        } else {
            Err(PublishError::Closed)
        };
        Box::pin(async { answer })
    }
}

/// A deliverer with one paused subscription, whose deliveries are all parked.
async fn deliverer(publisher: Broken) -> (Arc<Deliverer>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("embedded://{}", folder.path().display());
    let settings = broker::Settings {
        url,
        ..broker::Settings::default()
    };
    let subscription = serde_json::from_value(json!({
        "id": "sub_a", "tenant": "t", "name": "", "target_url": "https://example.com/",
        "dialect": "standard", "events": ["*"], "filter": {}, "view": "full", "headers": {},
        "attributes": {}, "delivery": {"retry": {"delays": ["5s"]}}, "state": "paused",
        "created_at": "2026-03-01T10:00:00Z", "updated_at": "2026-03-01T10:00:00Z", "revision": 1,
    }));
    let stored = Stored {
        subscription: subscription.expect("a subscription"),
        keys: SigningKeys::default(),
    };
    let subscriptions = HashMap::from([(stored.subscription.id.clone(), Arc::new(stored))]);
    let parts = Parts {
        broker: Broker::open(&settings).await.expect("opens"),
        feed: Feed::fixed(Snapshot {
            revision: 1,
            subscriptions,
        }),
        dialects: Arc::new(Dialects::builtin()),
        settings: Settings::default(),
        egress: Egress::default(),
        loaders: Loaders::new(),
        // In full they would be handed over, not parked.
        archive: Archive::Headers,
        metrics: Metrics::register(&prometheus::Registry::new()).expect("registers"),
        gate: None,
        disable: mpsc::channel(1).0,
    };
    let deliverer = Deliverer::publishing_by(Arc::new(publisher), parts).expect("a deliverer");
    (Arc::new(deliverer), folder)
}

fn delivery() -> Delivery {
    let bundle = json!({"items": [{
        "event": {
            "id": "e1", "tenant": "t", "type": "a.b", "time": "2026-03-01T10:00:00Z", "data": 1,
        },
        "accepted_at": "2026-03-01T10:00:00Z", "revision": 1, "to": [{"sub": "sub_a"}],
    }]});
    let bundle = serde_json::from_value(bundle).expect("a bundle");
    Delivery::all(bundle).next().expect("a delivery")
}

async fn carried(publisher: Broken) -> Vec<&'static str> {
    let seen = Seen::default();
    carried_by(Ticket::new(Box::new(seen.clone())), publisher).await;
    let seen = seen.0.lock().expect("not poisoned");
    seen.clone()
}

/// Carries one delivery to its end; the ticket is settled then.
async fn carried_by(ticket: Ticket, publisher: Broken) {
    let (deliverer, _folder) = deliverer(publisher).await;
    let mut shares = share(ticket, 1);
    let share = shares.remove(0);
    let taken = Taken {
        delivery: delivery(),
        share,
        _room: None,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(deliverer.carry(taken));
    drop(tasks.join_next().await);
}

#[tokio::test]
async fn of_what_the_broker_hands_out_again_nothing_is_made() {
    let seen = Seen::default();
    let ticket = Ticket::new(Box::new(Void(seen.clone())));
    carried_by(ticket, Broken::Closed).await;
    assert_eq!(*seen.0.lock().expect("not poisoned"), ["give back"]);
    let (deliverer, _folder) = deliverer(Broken::Panics).await;
    let void = share(Ticket::new(Box::new(Void(seen))), 1).remove(0);
    let mut delivery = delivery();
    let end = deliverer.live(&mut delivery, &void).await;
    assert!(matches!(end.end, End::Void));
    // Nor is what an attempt called for: the publisher would panic.
    let end = End::Retry(Timestamp::UNIX_EPOCH);
    assert!(!deliverer.settle(&mut delivery, &void, &end, None).await);
}

#[tokio::test]
async fn a_subscription_that_a_restored_store_never_knew_is_a_dead_letter_in_the_end() {
    let (deliverer, _folder) = deliverer(Broken::Closed).await;
    let snapshot = Snapshot::default();
    let mut delivery = delivery();
    for (parked, is_dead) in [(0, false), (UNKNOWN_MAX - 1, false), (UNKNOWN_MAX, true)] {
        delivery.to.parked = parked;
        let end = deliverer.look_up(&delivery, &snapshot).err();
        let dead = matches!(end, Some(End::Dead(DeadReason::SubscriptionDeleted, _)));
        assert_eq!(dead, is_dead, "after {parked} pauses");
    }
}

#[tokio::test]
async fn what_was_not_confirmed_is_not_acked() {
    assert_eq!(carried(Broken::Closed).await, ["give back"]);
}

#[tokio::test]
async fn a_delivery_is_settled_when_its_parcel_and_its_log_entry_are_confirmed_and_not_before() {
    assert_eq!(carried(Broken::Works).await, ["ack"]);
    assert_eq!(carried(Broken::NoLog).await, ["give back"]);
    assert_eq!(carried(Broken::LogAlone).await, ["give back"]);
}

#[tokio::test]
async fn a_panic_while_settling_sends_the_bundle_back() {
    assert_eq!(carried(Broken::Panics).await, ["give back"]);
}

#[tokio::test]
async fn a_panic_in_the_attempt_counts_as_one_and_is_retried() {
    let (deliverer, _folder) = deliverer(Broken::Closed).await;
    let mut delivery = delivery();
    let turn = deliverer.broken_off(&mut delivery);
    assert!(matches!(turn.end, End::Retry(_)));
    let attempt = turn.attempt.expect("an attempt");
    assert_eq!(
        (attempt.number, attempt.error),
        (1, Some(AttemptError::Reset))
    );
    assert_eq!(delivery.to.attempts, 1);
    assert_eq!(delivery.to.history[0].error, Some(AttemptError::Reset));
    let turn = deliverer.broken_off(&mut delivery);
    assert!(matches!(turn.end, End::Dead(DeadReason::Exhausted, _)));
}
