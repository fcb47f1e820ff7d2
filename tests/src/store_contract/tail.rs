//! What was recorded is told by steps: once, in their order, whoever recorded it and however late;
//! and what waits for listeners ends with them.

use std::collections::BTreeMap;

use event::{
    SubscriptionId,
    delivery::{Item, Recipient},
    log::{Archived, HeldDelivery, LogEntry},
    reason::DeliveryState,
};
use jiff::{SignedDuration, Timestamp, ToSpan};
use store::{DeliveryFilter, Error, Paging, Sight, Store, Stored, Told};

use super::{
    Place,
    log::{archived, entry, sub},
    only, promises, subscription,
};

promises!(
    recorders_side_by_side_are_told_once_and_in_order,
    what_comes_again_is_told_no_second_time,
    who_was_away_for_too_long_is_told_of_the_gap,
    nothing_is_written_down_while_nobody_follows,
    a_listener_lasts_for_as_long_as_it_is_extended,
    what_waits_for_a_listener_that_ended_is_canceled,
);

async fn follow(store: &Store) -> u64 {
    let now = Timestamp::now();
    store.follow(now, now + 1.hour()).await.unwrap()
}

/// A name for what was told, and how often it was.
fn add(told: &mut BTreeMap<String, usize>, what: &Told) {
    let name = match what {
        Told::Event(row) => format!("{} {}", row.event.tenant, row.event.id),
        Told::Delivery(row) => format!("{} {} {}", row.tenant, row.event_id, row.state.word()),
    };
    *told.entry(name).or_default() += 1;
}

/// Everything after a step, and whether anything is missing.
async fn read(store: &Store, sight: &Sight, mut after: u64) -> (BTreeMap<String, usize>, bool) {
    let (mut told, mut gap) = (BTreeMap::new(), false);
    while let Some(step) = store.next_step(sight, after, 0).await.unwrap() {
        gap |= step.gap;
        step.told.iter().for_each(|(_, what)| add(&mut told, what));
        after = step.number;
    }
    (told, gap)
}

/// As a recorder does, who waits out a database that is busy.
async fn record(store: &Store, events: &[Archived], entries: &[LogEntry]) {
    while let Err(error) = store.record(events, entries).await {
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
    }
}

/// Several recorders write at once while a reader follows step by step: had a step become visible
/// before an earlier one, the reader would have seen a gap.
async fn recorders_side_by_side_are_told_once_and_in_order(place: Place) {
    const EACH: i64 = 60;
    let reader = place.open().await;
    let begun = follow(&reader).await;
    let mut writers = tokio::task::JoinSet::new();
    for (writer, of) in ["a", "b", "c"].into_iter().enumerate() {
        let store = place.open().await;
        writers.spawn(async move {
            for n in 0..EACH {
                let event = archived(of, n + 1000 * writer as i64, &[sub(writer)]);
                let ended = entry(&event, &sub(writer), DeliveryState::Delivered, 1);
                record(&store, &[event], &[]).await;
                record(&store, &[], &[ended]).await;
            }
        });
    }
    let (mut told, mut after) = (BTreeMap::new(), begun);
    loop {
        let written = writers.is_empty();
        while let Some(step) = reader.next_step(&Sight::All, after, 0).await.unwrap() {
            assert!(!step.gap, "a step before {} is missing", step.number);
            step.told.iter().for_each(|(_, what)| add(&mut told, what));
            after = step.number;
        }
        if written {
            break;
        }
        while let Some(ended) = writers.try_join_next() {
            ended.unwrap();
        }
        tokio::task::yield_now().await;
    }
    told.retain(|name, _| !name.ends_with("pending"));
    assert_eq!(told.len(), 3 * 2 * EACH as usize);
    told.retain(|_, times| *times != 1);
    assert_eq!(told, BTreeMap::new(), "not once");
    let (ours, _) = read(&reader, &only("b"), begun).await;
    assert!(ours.keys().all(|name| name.starts_with("b ")), "{ours:?}");
}

async fn what_comes_again_is_told_no_second_time(place: Place) {
    let store = place.open().await;
    let begun = follow(&store).await;
    let event = archived("a", 1, &[sub(1)]);
    let retrying = entry(&event, &sub(1), DeliveryState::Retrying, 1);
    for _ in 0..2 {
        store
            .record(
                std::slice::from_ref(&event),
                std::slice::from_ref(&retrying),
            )
            .await
            .unwrap();
    }
    let (told, gap) = read(&store, &Sight::All, begun).await;
    assert_eq!(told.values().collect::<Vec<_>>(), [&1, &1], "{told:?}");
    assert!(!gap);
    // In the middle of a step.
    let step = store
        .next_step(&Sight::All, begun, 0)
        .await
        .unwrap()
        .unwrap();
    let places: Vec<_> = step.told.iter().map(|(place, _)| *place).collect();
    assert_eq!(places, [1, 2]);
    let rest = store
        .next_step(&Sight::All, begun, 1)
        .await
        .unwrap()
        .unwrap();
    assert!(
        matches!(rest.told.as_slice(), [(2, Told::Delivery(_))]),
        "{rest:?}"
    );
    // Once it has moved on, the earlier step leaves it to the later one.
    let ended = entry(&event, &sub(1), DeliveryState::Delivered, 2);
    store.record(&[], &[ended]).await.unwrap();
    let (told, _) = read(&store, &Sight::All, begun).await;
    assert_eq!(
        told.into_keys().collect::<Vec<_>>(),
        ["a evt-1", "a evt-1 delivered"]
    );
}

async fn who_was_away_for_too_long_is_told_of_the_gap(place: Place) {
    let store = place.open().await;
    let now = Timestamp::now();
    let begun = follow(&store).await;
    store.record(&[archived("a", 1, &[])], &[]).await.unwrap();
    store.record(&[archived("a", 2, &[])], &[]).await.unwrap();
    assert_eq!(store.forget_steps(now - 1.hour()).await.unwrap(), 0);
    assert!(!read(&store, &Sight::All, begun).await.1);
    assert_eq!(store.forget_steps(now + 1.hour()).await.unwrap(), 2);
    store.record(&[archived("a", 3, &[])], &[]).await.unwrap();
    assert!(
        read(&store, &Sight::All, begun).await.1,
        "steps were forgotten"
    );
    // Nobody followed for a while, and nothing was recorded that anybody could have missed.
    let last = store.last_step().await.unwrap();
    let later = now + 2.hours();
    let again = store.follow(later, later + 1.hour()).await.unwrap();
    assert!(again > last);
    store.record(&[archived("a", 4, &[])], &[]).await.unwrap();
    assert!(read(&store, &Sight::All, last).await.1);
    assert!(
        !read(&store, &Sight::All, again).await.1,
        "whoever begins has missed nothing"
    );
}

async fn nothing_is_written_down_while_nobody_follows(place: Place) {
    let store = place.open().await;
    store.record(&[archived("a", 1, &[])], &[]).await.unwrap();
    assert_eq!(store.last_step().await.unwrap(), 0);
    let long_ago = Timestamp::now() - 1.hour();
    store.follow(long_ago, long_ago + 1.minute()).await.unwrap();
    store.record(&[archived("a", 2, &[])], &[]).await.unwrap();
    assert!(read(&store, &Sight::All, 0).await.0.is_empty());
}

/// A listener's subscription of a tenant.
async fn listener(store: &Store, of: &str, now: Timestamp, most: u32) -> Option<SubscriptionId> {
    let mut stored: Stored = subscription(of, "listener");
    stored.subscription.id = SubscriptionId::fresh_listener();
    let id = stored.subscription.id.clone();
    let lease = SignedDuration::from_mins(1);
    let made = store.insert_listener(stored, lease, (now, most)).await;
    made.unwrap().map(|_| id)
}

async fn a_listener_lasts_for_as_long_as_it_is_extended(place: Place) {
    let store = place.open().await;
    let now = Timestamp::now();
    let id = listener(&store, "a", now, 1).await.expect("room for one");
    assert_eq!(listener(&store, "a", now, 1).await, None, "and no more");
    assert!(
        listener(&store, "b", now, 1).await.is_some(),
        "of each tenant"
    );
    let until = store
        .extend_listener(&id, now + 50.seconds())
        .await
        .unwrap();
    assert_eq!(until, Some(now + 110.seconds()));
    let ended = store.end_listeners(now + 100.seconds()).await.unwrap();
    assert!(!ended.contains(&id));
    assert_eq!(ended.len(), 1, "the other one");
    let ended = store.end_listeners(now + 111.seconds()).await.unwrap();
    assert_eq!(ended, std::slice::from_ref(&id));
    assert!(
        store
            .subscription(&Sight::All, &id)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(store.extend_listener(&id, now).await.unwrap(), None);
}

fn held(event: &Archived, id: &SubscriptionId) -> HeldDelivery {
    HeldDelivery {
        at: event.accepted_at,
        item: Item {
            event: event.event.clone(),
            accepted_at: event.accepted_at,
            revision: 1,
            to: vec![Recipient::first(id.clone())],
        },
    }
}

async fn what_waits_for_a_listener_that_ended_is_canceled(place: Place) {
    let store = place.open().await;
    let now = Timestamp::now();
    let id = listener(&store, "a", now, 9).await.unwrap();
    let events: Vec<_> = (0..4)
        .map(|n| archived("a", n, std::slice::from_ref(&id)))
        .collect();
    store.record(&events, &[]).await.unwrap();
    let all: Vec<_> = events.iter().map(|event| held(event, &id)).collect();
    store.record_held(&all[..3]).await.unwrap();
    let waiting = store.waiting(&id, 2).await.unwrap();
    let order: Vec<_> = waiting
        .iter()
        .map(|one| one.item.event.id.as_str())
        .collect();
    assert_eq!(order, ["evt-0", "evt-1"], "oldest first");
    store.taken(&[waiting[0].key.clone()]).await.unwrap();
    assert_eq!(
        store.cancel_for_nobody(now, 10).await.unwrap(),
        0,
        "it is alive"
    );
    assert!(store.subscriptions_to_resume(10).await.unwrap().is_empty());
    assert!(store.delete_subscription(&Sight::All, &id).await.unwrap());
    // Nobody resumes what was held for it, and one comes late.
    store.record_held(&all).await.unwrap();
    assert!(store.subscriptions_to_resume(10).await.unwrap().is_empty());
    assert_eq!(store.cancel_for_nobody(now, 10).await.unwrap(), 3);
    assert_eq!(store.cancel_for_nobody(now, 10).await.unwrap(), 0);
    let filter = DeliveryFilter {
        state: Some(DeliveryState::Canceled),
        ..DeliveryFilter::default()
    };
    let found = store
        .deliveries(&Sight::All, &filter, &Paging::default())
        .await
        .unwrap();
    assert_eq!(found.items.len(), 3);
}
