//! Versions: once a newer one of a subject was let go, no older one is, whoever asks and from
//! wherever.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use event::{Event, EventId, SubscriptionId};
use jiff::{SignedDuration, Timestamp};
use store::{
    Kept, Settings, Store,
    gate::{Gate, Pass},
    versions::{Newer, Sending},
};

use super::{Place, insert, promises};
use crate::support::postgres::Postgres;

promises!(
    an_older_version_is_overtaken_and_the_same_one_goes_again,
    of_several_subjects_each_counts,
    what_is_let_go_at_once_is_judged_together,
    every_version_there_can_be_keeps_its_place,
    a_version_is_one_subscriptions_and_one_entitys,
    of_many_deliverers_none_sends_an_older_one_after_a_newer,
    versions_are_forgotten_but_those_of_who_may_still_hold_something,
    a_look_changes_nothing,
);

fn sub(text: &str) -> SubscriptionId {
    SubscriptionId::parse(text).unwrap()
}

fn event(id: &str, kind: &str, subject: &str, version: u64) -> Event {
    let text = format!(
        r#"{{"id":"{id}","tenant":"t","type":"{kind}","time":"2026-01-01T00:00:00Z",
        "subject":{subject},"version":{version}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn sending(id: &str, subject: &str, version: u64) -> Sending {
    Sending::of(&event(id, "a.b", subject, version), &sub("sub_1")).unwrap()
}

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

async fn go(store: &Store, sending: Sending) -> Option<Newer> {
    let told = store.let_go(&[sending], now()).await.unwrap();
    told.into_iter().next().unwrap()
}

fn newer(event_id: &str, version: u64) -> Option<Newer> {
    let event_id = EventId::parse(event_id).unwrap();
    Some(Newer { version, event_id })
}

async fn an_older_version_is_overtaken_and_the_same_one_goes_again(place: Place) {
    let store = place.open().await;
    assert_eq!(go(&store, sending("e1", "\"x\"", 1)).await, None);
    assert_eq!(go(&store, sending("e1", "\"x\"", 1)).await, None, "a retry");
    assert_eq!(go(&store, sending("\\\"'$3", "\"x\"", 3)).await, None);
    let by = newer("\"'$3", 3);
    assert_eq!(go(&store, sending("e1", "\"x\"", 1)).await, by);
    assert_eq!(go(&store, sending("e2", "\"x\"", 2)).await, by);
    assert_eq!(
        go(&store, sending("other", "\"x\"", 3)).await,
        None,
        "equal"
    );
    assert_eq!(go(&store, sending("e2", "\"x\"", 2)).await, by, "the first");
    // As after a restart, and as from another process.
    let again = place.open().await;
    assert_eq!(go(&again, sending("e2", "\"x\"", 2)).await, by);
    assert_eq!(go(&again, sending("e4", "\"x\"", 4)).await, None);
    assert_eq!(go(&store, sending("e2", "\"x\"", 2)).await, newer("e4", 4));
}

async fn of_several_subjects_each_counts(place: Place) {
    let store = place.open().await;
    assert_eq!(go(&store, sending("all", "[1, \"2\", 3]", 5)).await, None);
    for subject in ["1", "\"1\"", "2", "\"3\"", "[9, 3]"] {
        let told = go(&store, sending("one", subject, 4)).await;
        assert_eq!(told, newer("all", 5), "{subject}");
    }
    assert_eq!(go(&store, sending("two", "2", 6)).await, None);
    // One of the three is enough: the rest could not be sent without it.
    assert_eq!(
        go(&store, sending("all", "[1, \"2\", 3]", 5)).await,
        newer("two", 6)
    );
    assert_eq!(go(&store, sending("twice", "[7, 7]", 1)).await, None);
    let many: Vec<_> = (100..1100).collect();
    let many = format!("{many:?}");
    assert_eq!(go(&store, sending("many", &many, 2)).await, None);
    assert_eq!(
        go(&store, sending("last", "1099", 1)).await,
        newer("many", 2)
    );
}

async fn what_is_let_go_at_once_is_judged_together(place: Place) {
    let store = place.open().await;
    let at_once = [
        sending("e2", "1", 2),
        sending("e3", "1", 3),
        sending("f1", "2", 1),
        sending("e3", "1", 3),
    ];
    let told = store.let_go(&at_once, now()).await.unwrap();
    assert_eq!(told, [newer("e3", 3), None, None, None]);
    assert!(store.let_go(&[], now()).await.unwrap().is_empty());
}

async fn every_version_there_can_be_keeps_its_place(place: Place) {
    let store = place.open().await;
    let half = i64::MAX as u64;
    let mut before = None;
    for version in [0, 1, half, half + 1, half + 2, u64::MAX] {
        assert_eq!(go(&store, sending("up", "1", version)).await, None);
        if let Some(before) = before {
            let told = go(&store, sending("down", "1", before)).await;
            assert_eq!(told, newer("up", version));
        }
        before = Some(version);
    }
}

async fn a_version_is_one_subscriptions_and_one_entitys(place: Place) {
    let store = place.open().await;
    let of = |kind, to| Sending::of(&event("e", kind, "1", 1), &sub(to)).unwrap();
    let gone = Sending::of(&event("d", "a.deleted", "1", 9), &sub("sub_1")).unwrap();
    assert_eq!(go(&store, gone).await, None);
    assert_eq!(go(&store, of("a.b", "sub_1")).await, newer("d", 9));
    assert_eq!(go(&store, of("a.b", "sub_2")).await, None);
    assert_eq!(go(&store, of("other.b", "sub_1")).await, None);
}

/// Many tasks in three processes ask in all orders. Whoever was told to go is noted at once; who
/// asks afterwards for less is told no.
async fn of_many_deliverers_none_sends_an_older_one_after_a_newer(place: Place) {
    const SUBJECTS: u64 = 5;
    const TASKS: u64 = 12;
    let gates = [
        Gate::start(place.open().await),
        Gate::start(place.open().await),
        Gate::start(place.open().await),
    ];
    let gone: Arc<Vec<AtomicU64>> = Arc::new((0..SUBJECTS).map(|_| AtomicU64::new(0)).collect());
    let tasks = (0..TASKS).map(|task| {
        let (gate, gone) = (gates[task as usize % 3].clone(), gone.clone());
        tokio::spawn(async move {
            let mut refused = 0;
            for round in 0..40_u64 {
                // Each task counts up, down and across in an order of its own.
                let version = 1 + (round * (2 * task + 1) + 7 * task) % 40;
                // Two subjects, in either order: a circle of locks, were there no order.
                let (a, b) = ((task + round) % SUBJECTS, (task * round + 1) % SUBJECTS);
                let before = [a, b].map(|s| gone[s as usize].load(Ordering::SeqCst));
                let pass = gate
                    .pass(sending("e", &format!("[{a}, {b}]"), version))
                    .await;
                match pass {
                    Pass::Go => {
                        assert!(before.iter().all(|before| *before <= version), "{before:?}");
                        for subject in [a, b] {
                            gone[subject as usize].fetch_max(version, Ordering::SeqCst);
                        }
                    }
                    Pass::Overtaken(newer) => {
                        assert!(newer.version > version);
                        refused += 1;
                    }
                    Pass::Unknown => panic!("the store is there"),
                }
            }
            refused
        })
    });
    let refused = futures_util::future::join_all(tasks).await;
    let refused: u32 = refused.into_iter().map(|task| task.unwrap()).sum();
    assert!(refused > 0, "the test never came to its point");
}

async fn versions_are_forgotten_but_those_of_who_may_still_hold_something(place: Place) {
    let store = place.open().await;
    let paused = insert(&store, "t", "paused").await.subscription.id;
    let active = insert(&store, "t", "active").await.subscription.id;
    let mut stored = store
        .subscription(&store::Sight::All, &paused)
        .await
        .unwrap()
        .unwrap();
    stored.subscription.state = event::subscription::SubscriptionState::Paused;
    store.replace_subscription(stored).await.unwrap();
    let one = event("e9", "a.b", "1", 9);
    for to in [&paused, &active, &sub("sub_gone")] {
        assert_eq!(go(&store, Sending::of(&one, to).unwrap()).await, None);
    }
    // More than one step forgets.
    let many: Vec<_> = (1000..2000).collect();
    let many = event("m", "a.b", &format!("{many:?}"), 9);
    go(&store, Sending::of(&many, &sub("sub_many")).unwrap()).await;
    let day = SignedDuration::from_hours(24);
    assert_eq!(
        store.forget(Kept::Versions, now()).await.unwrap(),
        0,
        "of today"
    );
    // What was asked about since is young again.
    let young = Sending::of(&one, &sub("sub_gone")).unwrap();
    store.let_go(&[young], now() + day * 3).await.unwrap();
    let before = now() + day * 2;
    while store.forget(Kept::Versions, before).await.unwrap() > 0 {}
    let older = event("e8", "a.b", "1", 8);
    let told = async |to: &SubscriptionId| go(&store, Sending::of(&older, to).unwrap()).await;
    assert_eq!(told(&paused).await, newer("e9", 9));
    assert_eq!(told(&sub("sub_gone")).await, newer("e9", 9));
    assert_eq!(told(&active).await, None, "forgotten");
}

async fn a_look_changes_nothing(place: Place) {
    let store = place.open().await;
    assert_eq!(
        store.overtaken(&sending("e1", "[1, 2]", 1)).await.unwrap(),
        None
    );
    assert_eq!(
        store.overtaken(&sending("e5", "[1, 2]", 5)).await.unwrap(),
        None
    );
    assert_eq!(go(&store, sending("e3", "2", 3)).await, None);
    let told = store.overtaken(&sending("e1", "[1, 2]", 1)).await.unwrap();
    assert_eq!(told, newer("e3", 3));
    assert_eq!(store.overtaken(&sending("e3", "2", 3)).await.unwrap(), None);
}

async fn until(gate: &Gate, off: bool) {
    let said = async {
        while gate.is_off() != off {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let said = tokio::time::timeout(Duration::from_secs(60), said).await;
    assert!(said.is_ok(), "off was never {off}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_passes_while_the_server_is_gone_and_it_remembers_after_a_crash() {
    let postgres = Postgres::start().await;
    let settings = Settings {
        url: postgres.url(),
        encryption_key: None,
    };
    let gate = Gate::start(Store::open(&settings).await.unwrap());
    assert_eq!(gate.pass(sending("e2", "1", 2)).await, Pass::Go);
    postgres.stop().await;
    assert_eq!(gate.pass(sending("e3", "1", 3)).await, Pass::Unknown);
    assert!(gate.is_off());
    // Nobody waits for it again: a thousand would wait for half an hour.
    let at_once = async {
        for _ in 0..1000 {
            assert_eq!(gate.pass(sending("e3", "1", 3)).await, Pass::Unknown);
        }
    };
    let at_once = tokio::time::timeout(Duration::from_secs(60), at_once).await;
    assert!(at_once.is_ok(), "each was waited for");
    postgres.start_again().await;
    until(&gate, false).await;
    let by = newer("e2", 2).unwrap();
    assert_eq!(gate.pass(sending("e1", "1", 1)).await, Pass::Overtaken(by));
}
