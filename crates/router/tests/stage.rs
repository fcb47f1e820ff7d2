//! A router on the embedded broker with a store of its own: what is routed once, what twice, and
//! what the archive gets.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use broker::{BATCH_KEY, Broker, Parcel, Queue, Received, Route};
use event::{
    Event, EventId, SubscriptionId, Tenant,
    delivery::Bundle,
    log::{Archive, ArchiveBatch},
};
use jiff::Timestamp;
use postrider_router::{Error, Parts, Settings, metrics::Metrics};
use prometheus::Registry;
use serde_json::{Value, json};
use store::{
    Store, Stored,
    claims::{Claim, Hash, Held},
    dedup::Dedup,
    feed::{Feed, Snapshot},
};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes, shorter than a person's patience.
const LONG: Duration = Duration::from_secs(30);

/// When what was claimed long ago was.
fn yesterday() -> Timestamp {
    // Within the window, and on most days on another one.
    Timestamp::now() - jiff::SignedDuration::from_hours(23)
}

struct House {
    broker: Broker,
    dedup: Option<Dedup>,
    archive: Archive,
    stop: CancellationToken,
    routers: Vec<(JoinHandle<Result<(), Error>>, Registry)>,
    _folder: TempDir,
}

impl House {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let broker = broker::Settings {
            url: format!("embedded://{}", folder.path().join("broker").display()),
            ..broker::Settings::default()
        };
        let store = store::Settings {
            url: format!("sqlite://{}/postrider.db", folder.path().display()),
            ..store::Settings::default()
        };
        let store = Store::open(&store).await.expect("the store opens");
        Self {
            broker: Broker::open(&broker).await.expect("the broker opens"),
            dedup: Dedup::start(store, &store::dedup::Settings::default()),
            archive: Archive::Full,
            stop: CancellationToken::new(),
            routers: Vec::new(),
            _folder: folder,
        }
    }

    fn dedup(&self) -> &Dedup {
        self.dedup.as_ref().expect("a window")
    }

    /// Starts a router that knows one subscription of tenant `t`, to `a.*`.
    fn start(&mut self) {
        let registry = Registry::new();
        let parts = Parts {
            broker: self.broker.clone(),
            feed: Feed::fixed(snapshot()),
            archive: self.archive,
            dedup: self.dedup.clone(),
            settings: Settings::default(),
            metrics: Metrics::register(&registry).expect("registers"),
        };
        let task = tokio::spawn(postrider_router::run(parts, self.stop.clone()));
        self.routers.push((task, registry));
    }

    async fn publish(&self, event: &Value) {
        self.publish_with(event, &[]).await;
    }

    async fn publish_with(&self, event: &Value, headers: &[(&str, &str)]) {
        let routing_key = event["type"].as_str().unwrap_or(BATCH_KEY).to_owned();
        let id = event["id"].as_str().unwrap_or("batch").to_owned();
        let mut parcel = Parcel::json(Route::Events { routing_key }, id, event.to_string());
        let headers = headers.iter();
        parcel.headers = headers
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let published = self.broker.publisher().publish(parcel).await;
        published.expect("published");
    }

    /// Claims an event as a router or producer would have, long ago.
    async fn claim(&self, event: &Value, token: Option<&str>) {
        self.claim_at(event, token, yesterday()).await;
    }

    async fn claim_at(&self, event: &Value, token: Option<&str>, at: Timestamp) {
        let event: Event = serde_json::from_value(event.clone()).expect("an event");
        let held = Held {
            hash: Hash::of(&event, Timestamp::now()),
            token: token.map(str::to_owned),
            at,
        };
        let key = (event.tenant.clone(), event.id.clone());
        let made = self.dedup().claim(vec![Claim { key, held }]).await;
        assert_eq!(made, Some(vec![None]));
    }

    /// The next messages of a queue, until one `is_last`.
    async fn drain(&self, queue: Queue, mut is_last: impl FnMut(&Received) -> bool) {
        let mut consumer = self.broker.consume(queue, 1000).await;
        loop {
            let message = timeout(LONG, consumer.next()).await.expect("in time");
            let message = message.expect("a message");
            let last = is_last(&message);
            message.ticket.ack();
            if last {
                break;
            }
        }
        consumer.stop().await;
    }

    /// How often each id came in bundles, until those named had come.
    async fn delivered(&self, awaited: &[&str]) -> BTreeMap<String, usize> {
        let mut seen = BTreeMap::new();
        self.drain(Queue::Deliver, |message| {
            let bundle: Bundle = serde_json::from_slice(&message.body).expect("a bundle");
            for item in &bundle.items {
                *seen.entry(item.event.id.to_string()).or_insert(0) += 1;
            }
            awaited.iter().all(|id| seen.contains_key(*id))
        })
        .await;
        seen
    }

    /// Waits until so many duplicates were dropped.
    async fn dropped(&self, count: u64) {
        let counted = async {
            while self.dedup().duplicates() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let counted = timeout(LONG, counted).await;
        assert!(counted.is_ok(), "{} duplicates", self.dedup().duplicates());
        assert_eq!(self.dedup().duplicates(), count);
    }

    /// What was archived, by id, until the one named came.
    async fn archived(&self, last: &str) -> BTreeMap<String, Vec<event::log::Archived>> {
        let mut seen: BTreeMap<String, Vec<_>> = BTreeMap::new();
        self.drain(Queue::Archive, |message| {
            let batch: ArchiveBatch = serde_json::from_slice(&message.body).expect("a batch");
            for archived in batch.events {
                seen.entry(archived.event.id.to_string())
                    .or_default()
                    .push(archived);
            }
            seen.contains_key(last)
        })
        .await;
        seen
    }

    async fn quarantined(&self) -> (Vec<u8>, Vec<(String, String)>) {
        let mut got = None;
        self.drain(Queue::Quarantine, |message| {
            got = Some((message.body.to_vec(), message.headers.clone()));
            true
        })
        .await;
        got.expect("a message")
    }

    /// Ends the routers; what they leave in each queue, unacknowledged messages included, must be
    /// nothing.
    async fn finish(self) {
        self.stop.cancel();
        for (task, _) in self.routers {
            task.await.expect("no panic").expect("it ends when asked");
        }
        let left: Vec<_> = self.broker.depths().await;
        let left: Vec<_> = left.iter().filter(|(_, depth)| *depth > 0).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

fn snapshot() -> Snapshot {
    let subscription = json!({
        "id": "sub_1", "tenant": "t", "name": "", "target_url": "https://example.com/",
        "dialect": "standard", "events": ["a.*"], "filter": {}, "view": "full", "headers": {},
        "attributes": {}, "delivery": {}, "state": "active",
        "created_at": "2026-03-01T10:00:00Z", "updated_at": "2026-03-01T10:00:00Z", "revision": 7,
    });
    let stored = Arc::new(Stored {
        subscription: serde_json::from_value(subscription).expect("a subscription"),
        keys: Default::default(),
    });
    let id = stored.subscription.id.clone();
    Snapshot {
        revision: 7,
        subscriptions: [(id, stored)].into(),
    }
}

fn event(id: &str, data: u32) -> Value {
    json!({
        "id": id, "tenant": "t", "type": "a.b", "time": "2026-03-01T10:00:00Z", "data": {"n": data},
    })
}

fn once(ids: &[&str]) -> BTreeMap<String, usize> {
    ids.iter().map(|id| ((*id).to_owned(), 1)).collect()
}

#[tokio::test]
async fn an_event_published_twice_is_routed_and_archived_once() {
    let mut house = House::new().await;
    house.start();
    // At once, so that one statement may be asked about both; and later.
    let twice = event("e", 1);
    tokio::join!(house.publish(&twice), house.publish(&twice));
    house.publish(&event("f", 1)).await;
    house.publish(&event("e", 1)).await;
    house.publish(&event("last", 1)).await;
    let awaited = ["e", "f", "last"];
    assert_eq!(house.delivered(&awaited).await, once(&awaited));
    house.dropped(2).await;
    let archived = house.archived("last").await;
    assert!(
        archived.values().all(|times| times.len() == 1),
        "{archived:?}"
    );
    let registry = house.routers[0].1.clone();
    house.finish().await;
    let families = registry.gather();
    let routed = families
        .iter()
        .find(|family| family.name() == "postrider_events_routed_total")
        .expect("a counter");
    assert_eq!(routed.get_metric()[0].get_counter().get_value(), 3.0);
}

#[tokio::test]
async fn another_event_with_a_taken_id_is_quarantined_as_it_came() {
    let mut house = House::new().await;
    house.start();
    house.publish(&event("e", 1)).await;
    house.publish(&event("e", 2)).await;
    let (body, headers) = house.quarantined().await;
    assert_eq!(body, event("e", 2).to_string().into_bytes());
    let header = |name: &str| {
        let found = headers.iter().find(|(have, _)| have == name);
        found.map(|(_, value)| value.clone()).expect("the header")
    };
    assert_eq!(header("x-postrider-reason"), "id_conflict");
    for data in [1, 2] {
        let said: Event = serde_json::from_value(event("e", data)).expect("an event");
        let hash = Hash::of(&said, Timestamp::now()).to_string();
        assert!(
            header("x-postrider-detail").contains(&hash),
            "no hash of body {data}"
        );
    }
    assert_eq!(house.delivered(&["e"]).await, once(&["e"]));
    house.archived("e").await;
    house.finish().await;
}

/// A router that claimed and died before its bundle was confirmed.
#[tokio::test]
async fn what_died_after_its_claim_is_routed_when_it_comes_again() {
    let mut house = House::new().await;
    house.publish(&event("e", 1)).await;
    let mut dying = house.broker.consume(Queue::Inbox, 10).await;
    let taken = dying.next().await.expect("a message");
    house.claim(&event("e", 1), None).await;
    taken.ticket.give_back();
    dying.stop().await;
    house.start();
    assert_eq!(house.delivered(&["e"]).await, once(&["e"]));
    // Not handed out before: somebody else's.
    house.publish(&event("e", 1)).await;
    house.dropped(1).await;
    house.archived("e").await;
    house.finish().await;
}

/// Deliveries lie by the day on which their event was accepted: routed again on the next one, it
/// would have two of each.
#[tokio::test]
async fn what_is_routed_again_keeps_the_time_it_was_accepted_at() {
    let mut house = House::new().await;
    let (accepted, token) = (yesterday(), [("x-postrider-token", "k1")]);
    house.claim_at(&event("sent", 1), None, accepted).await;
    house
        .claim_at(&event("posted", 1), Some("k1"), accepted)
        .await;
    house.publish(&event("sent", 1)).await;
    house.publish_with(&event("posted", 1), &token).await;
    let mut dying = house.broker.consume(Queue::Inbox, 10).await;
    let taken = [dying.next().await, dying.next().await];
    for message in taken {
        message.expect("a message").ticket.give_back();
    }
    dying.stop().await;
    house.start();
    house.publish(&event("new", 1)).await;
    let mut times = BTreeMap::new();
    house
        .drain(Queue::Deliver, |message| {
            let bundle: Bundle = serde_json::from_slice(&message.body).expect("a bundle");
            let items = bundle.items.iter();
            times.extend(items.map(|item| (item.event.id.to_string(), item.accepted_at)));
            times.len() == 3
        })
        .await;
    assert_eq!((times["sent"], times["posted"]), (accepted, accepted));
    assert!(times["new"] > accepted);
    let mut archived = BTreeMap::new();
    house
        .drain(Queue::Archive, |message| {
            let batch: ArchiveBatch = serde_json::from_slice(&message.body).expect("a batch");
            let events = batch.events.iter();
            archived.extend(events.map(|one| (one.event.id.to_string(), one.accepted_at)));
            archived.len() == 3
        })
        .await;
    assert_eq!(archived, times, "the archive says the same");
    house.finish().await;
}

#[tokio::test]
async fn a_producers_own_claim_is_no_duplicate_and_anothers_is() {
    let mut house = House::new().await;
    let token = |token| [("x-postrider-token", token)];
    house.claim(&event("mine", 1), Some("k1")).await;
    house.claim(&event("other", 1), Some("k2")).await;
    house.publish_with(&event("mine", 1), &token("k1")).await;
    house.publish_with(&event("other", 1), &token("k1")).await;
    // Handed out again, it is still known whose the claim is.
    let mut dying = house.broker.consume(Queue::Inbox, 10).await;
    let mut taken = Vec::new();
    while taken.len() < 2 {
        taken.push(dying.next().await.expect("a message"));
    }
    for message in taken {
        message.ticket.give_back();
    }
    dying.stop().await;
    house.start();
    assert_eq!(house.delivered(&["mine"]).await, once(&["mine"]));
    house.dropped(1).await;
    house.archived("mine").await;
    house.finish().await;
}

#[tokio::test]
async fn a_time_that_the_intake_filled_in_tells_no_events_apart() {
    let mut house = House::new().await;
    house.start();
    for time in ["2026-03-01T10:00:00.123456789Z", "2026-03-01T10:00:09Z"] {
        let mut event = event("e", 1);
        event["time"] = json!(time);
        let headers = [("x-postrider-accepted", time)];
        house.publish_with(&event, &headers).await;
    }
    house.dropped(1).await;
    assert_eq!(house.delivered(&["e"]).await, once(&["e"]));
    house.archived("e").await;
    house.finish().await;
}

#[tokio::test]
async fn of_a_batch_the_new_ones_are_routed_and_conflicts_go_alone() {
    let mut house = House::new().await;
    house.claim(&event("old", 1), None).await;
    house.claim(&event("clash", 1), None).await;
    house.start();
    let batch = json!([
        event("old", 1),
        event("new", 1),
        event("clash", 2),
        event("last", 1)
    ]);
    house.publish(&batch).await;
    assert_eq!(
        house.delivered(&["last", "new"]).await,
        once(&["last", "new"])
    );
    let (body, _) = house.quarantined().await;
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(body, event("clash", 2));
    house.archived("last").await;
    house.finish().await;
}

#[tokio::test]
async fn what_a_person_released_is_routed_although_it_claimed_its_id_before() {
    let mut house = House::new().await;
    house.claim(&event("e", 1), Some("k1")).await;
    house.start();
    let released = [("x-postrider-released", "true")];
    house.publish_with(&event("e", 1), &released).await;
    assert_eq!(house.delivered(&["e"]).await, once(&["e"]));
    house.archived("e").await;
    house.finish().await;
}

#[tokio::test]
async fn two_routers_route_each_event_once() {
    let mut house = House::new().await;
    house.start();
    house.start();
    let publishing = (0..200).flat_map(|n| [n, n]).map(|n| {
        let event = event(&format!("e{n}"), n);
        let house = &house;
        async move { house.publish(&event).await }
    });
    futures_util::future::join_all(publishing).await;
    let mut seen = BTreeMap::new();
    house
        .drain(Queue::Deliver, |message| {
            let bundle: Bundle = serde_json::from_slice(&message.body).expect("a bundle");
            for item in &bundle.items {
                *seen.entry(item.event.id.to_string()).or_insert(0) += 1;
            }
            seen.len() == 200
        })
        .await;
    house.dropped(200).await;
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    let mut archived = 0;
    house
        .drain(Queue::Archive, |message| {
            let batch: ArchiveBatch = serde_json::from_slice(&message.body).expect("a batch");
            archived += batch.events.len();
            archived >= 200
        })
        .await;
    assert_eq!(archived, 200);
    house.finish().await;
}

#[tokio::test]
async fn the_archive_has_who_matched_and_what_nobody_wanted() {
    for (mode, data) in [
        (Archive::Full, Some(r#"{"n":1}"#)),
        (Archive::Headers, None),
    ] {
        let mut house = House::new().await;
        house.archive = mode;
        house.start();
        let mut unwanted = event("unwanted", 1);
        unwanted["type"] = json!("nobody.cares");
        let before = Timestamp::now();
        house.publish(&event("wanted", 1)).await;
        house.publish(&unwanted).await;
        let archived = house.archived("unwanted").await;
        let (wanted, unwanted) = (&archived["wanted"][0], &archived["unwanted"][0]);
        assert_eq!(
            wanted.matched,
            [SubscriptionId::parse("sub_1").expect("an id")]
        );
        assert!(unwanted.matched.is_empty());
        for archived in [wanted, unwanted] {
            assert_eq!(archived.revision, 7);
            assert!(archived.accepted_at >= before && archived.accepted_at <= Timestamp::now());
            assert_eq!(archived.event.data.as_ref().map(|data| data.get()), data);
        }
        assert_eq!(wanted.event.id, EventId::parse("wanted").expect("an id"));
        assert_eq!(wanted.event.tenant, Tenant::parse("t").expect("a tenant"));
        house.delivered(&["wanted"]).await;
        house.finish().await;
    }
}

#[tokio::test]
async fn without_an_archive_and_a_window_everything_is_routed_and_nothing_kept() {
    let mut house = House::new().await;
    house.archive = Archive::Off;
    house.dedup = None;
    house.start();
    house.publish(&event("e", 1)).await;
    house.publish(&event("e", 2)).await;
    house.publish(&event("last", 1)).await;
    let seen = house.delivered(&["last"]).await;
    assert_eq!((seen["e"], seen["last"]), (2, 1));
    house.finish().await;
}
