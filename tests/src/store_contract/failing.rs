//! Endpoints that only fail: warned of, disabled once, told of as events; a change is a new start.

use event::{
    SubscriptionId,
    log::{Archived, LogEntry},
    reason::DeliveryState,
    subscription::{DisableAfter, SubscriptionState},
};
use jiff::{Timestamp, ToSpan};
use store::{Judged, Sight, Store, Stored};

use super::{
    Place,
    log::{archived, start, tried},
    promises, subscription,
};

promises!(
    a_run_of_failures_is_warned_of_and_then_disables_its_subscription_once,
    recorders_side_by_side_disable_a_subscription_once,
    one_delivery_that_is_tried_again_and_again_is_one_failure,
    a_success_ends_the_run_and_is_told_where_a_warning_was,
    a_time_of_failures_disables_too,
    a_change_begins_the_count_anew,
    a_limit_that_is_never_reached_disables_nothing,
    notices_and_tests_are_no_failures,
    a_notice_waits_until_it_is_forgotten,
    a_dead_letter_is_told_of_once_and_a_dead_notice_never,
);

async fn insert(store: &Store, limit: DisableAfter) -> Stored {
    let mut stored = subscription("a", "failing");
    stored.subscription.delivery.disable_after = limit;
    store.insert_subscription(stored).await.unwrap()
}

fn failures(n: u32) -> DisableAfter {
    DisableAfter {
        failures: Some(n),
        span: None,
    }
}

/// Event `n` fails on its first attempt, or succeeds.
fn turn(id: &SubscriptionId, n: i64, status: u16) -> (Archived, LogEntry) {
    let event = archived("a", n, &[]);
    let entry = tried(&event, id, DeliveryState::Retrying, 1, status);
    (event, entry)
}

/// Records turns and judges what fails, as a recorder does.
async fn after(store: &Store, entries: &[LogEntry]) -> Judged {
    let recorded = store.record(&[], entries).await.unwrap();
    store.judge_failing(&recorded.failing, now()).await.unwrap()
}

fn now() -> Timestamp {
    start() + 24.hours()
}

async fn state(store: &Store, id: &SubscriptionId) -> (SubscriptionState, Option<String>) {
    let stored = store.subscription(&Sight::All, id).await.unwrap().unwrap();
    (
        stored.subscription.state,
        stored.subscription.disabled_reason,
    )
}

async fn told(store: &Store) -> Vec<String> {
    let notices = store.notices(100).await.unwrap();
    notices.iter().map(|notice| notice.kind.clone()).collect()
}

async fn a_run_of_failures_is_warned_of_and_then_disables_its_subscription_once(place: Place) {
    let store = place.open().await;
    let id = insert(&store, failures(10)).await.subscription.id;
    let entries: Vec<_> = (1..=12).map(|n| turn(&id, n, 503).1).collect();
    let nothing = Judged::default();
    assert_eq!(after(&store, &entries[..4]).await, nothing);
    let warned = after(&store, &entries[4..5]).await;
    assert_eq!(
        (&warned.warned, warned.disabled.len()),
        (&vec![id.clone()], 0)
    );
    assert_eq!(
        after(&store, &entries[5..9]).await,
        nothing,
        "warned of once"
    );
    // What comes again counts nothing.
    assert_eq!(after(&store, &entries[..9]).await, nothing);
    assert_eq!(state(&store, &id).await.0, SubscriptionState::Active);
    let disabled = after(&store, &entries[9..10]).await;
    assert_eq!(
        (disabled.warned.len(), &disabled.disabled),
        (0, &vec![id.clone()])
    );
    let (state, reason) = state(&store, &id).await;
    assert_eq!(state, SubscriptionState::Disabled);
    let reason = reason.unwrap();
    assert!(
        reason.starts_with("10 deliveries in a row failed since 2026-03-02T10:01:01Z"),
        "{reason}"
    );
    assert!(reason.ends_with(r#"{"failures":10}"#), "{reason}");
    assert_eq!(after(&store, &entries[10..]).await, nothing);
    assert_eq!(
        told(&store).await,
        [
            "postrider.subscription_failing",
            "postrider.subscription_disabled"
        ]
    );
    let notices = store.notices(1).await.unwrap();
    let event = notices[0].event().unwrap();
    let data: serde_json::Value = serde_json::from_str(event.data.unwrap().get()).unwrap();
    assert_eq!(data["subscription_id"], id.as_str());
    assert_eq!(data["failures"], 5);
    assert_eq!(event.tenant.as_str(), "a");
}

async fn recorders_side_by_side_disable_a_subscription_once(place: Place) {
    let store = place.open().await;
    let id = insert(&store, failures(10)).await.subscription.id;
    let entries: Vec<_> = (0..40).map(|n| turn(&id, n, 503).1).collect();
    let mut recorders = tokio::task::JoinSet::new();
    for recorder in 0..4 {
        let store = place.open().await;
        let mut entries = entries.clone();
        entries.rotate_left(recorder * 10);
        recorders.spawn(async move {
            let mut disabled = 0;
            for entries in entries.chunks(5) {
                disabled += after(&store, entries).await.disabled.len();
            }
            disabled
        });
    }
    let mut disabled = 0;
    while let Some(ended) = recorders.join_next().await {
        disabled += ended.unwrap();
    }
    assert_eq!(disabled, 1);
    let told = told(&store).await;
    let count = |wanted: &str| told.iter().filter(|kind| *kind == wanted).count();
    assert_eq!(count("postrider.subscription_disabled"), 1, "{told:?}");
    assert!(count("postrider.subscription_failing") <= 1, "{told:?}");
}

/// As a platform counts that tries each webhook once; by time it still counts.
async fn one_delivery_that_is_tried_again_and_again_is_one_failure(place: Place) {
    let store = place.open().await;
    let count = insert(&store, failures(3)).await.subscription.id;
    let tried_again = |id: &SubscriptionId, n: i64, attempts: u32| {
        let event = archived("a", n, &[]);
        tried(&event, id, DeliveryState::Retrying, attempts, 503)
    };
    let again: Vec<_> = (1..=16).map(|n| tried_again(&count, 1, n)).collect();
    assert_eq!(after(&store, &again).await, Judged::default());
    assert_eq!(store.failures_in_a_row(&count).await.unwrap(), 1);
    after(
        &store,
        &[tried_again(&count, 2, 1), tried_again(&count, 2, 2)],
    )
    .await;
    assert_eq!(store.failures_in_a_row(&count).await.unwrap(), 2);
    let third = after(&store, &[tried_again(&count, 3, 1)]).await;
    assert_eq!(third.disabled, [count]);
}

async fn a_success_ends_the_run_and_is_told_where_a_warning_was(place: Place) {
    let store = place.open().await;
    let id = insert(&store, failures(6)).await.subscription.id;
    let entries: Vec<_> = (1..=2).map(|n| turn(&id, n, 503).1).collect();
    after(&store, &entries).await;
    after(&store, &[turn(&id, 3, 200).1]).await;
    assert_eq!(told(&store).await, [""; 0], "nobody knew that it failed");
    let entries: Vec<_> = (4..=8).map(|n| turn(&id, n, 503).1).collect();
    assert_eq!(
        after(&store, &entries).await.warned,
        std::slice::from_ref(&id)
    );
    after(&store, &[turn(&id, 9, 200).1]).await;
    assert_eq!(
        told(&store).await,
        [
            "postrider.subscription_failing",
            "postrider.subscription_recovered"
        ]
    );
    assert!(store.failing(None, 10).await.unwrap().is_empty());
    let entries: Vec<_> = (10..=14).map(|n| turn(&id, n, 503).1).collect();
    after(&store, &entries).await;
    assert_eq!(state(&store, &id).await.0, SubscriptionState::Active);
    assert_eq!(
        store.failing(None, 10).await.unwrap(),
        std::slice::from_ref(&id)
    );
    assert!(store.failing(Some(&id), 10).await.unwrap().is_empty());
}

async fn a_time_of_failures_disables_too(place: Place) {
    let store = place.open().await;
    let hour = std::time::Duration::from_secs(3600);
    let limit = DisableAfter {
        failures: None,
        span: Some(hour),
    };
    let id = insert(&store, limit).await.subscription.id;
    let at = |n| turn(&id, n, 503).1;
    assert_eq!(after(&store, &[at(0), at(29)]).await, Judged::default());
    assert_eq!(after(&store, &[at(59)]).await.warned.len(), 1);
    assert_eq!(after(&store, &[at(60)]).await.disabled.len(), 1);
}

async fn a_change_begins_the_count_anew(place: Place) {
    let store = place.open().await;
    let mut stored = insert(&store, failures(4)).await;
    let id = stored.subscription.id.clone();
    let entries: Vec<_> = (0..20).map(|n| turn(&id, n, 503).1).collect();
    let recorded = store.record(&[], &entries[..4]).await.unwrap();
    // Before it is judged, somebody mends it.
    stored.subscription.updated_at = start() + 4.minutes();
    store.replace_subscription(stored).await.unwrap().unwrap();
    let judged = store.judge_failing(&recorded.failing, now()).await.unwrap();
    assert_eq!(judged, Judged::default());
    // Attempts from before the change that come late do not count, the others do.
    let late: Vec<_> = (0..3)
        .map(|n| tried(&archived("a", n, &[]), &id, DeliveryState::Retrying, 2, 503))
        .collect();
    assert_eq!(after(&store, &late).await, Judged::default());
    assert_eq!(after(&store, &entries[4..7]).await.disabled.len(), 0);
    assert_eq!(
        after(&store, &entries[7..8]).await.disabled,
        std::slice::from_ref(&id)
    );
    // Resumed, it has a new start too.
    stored = store.subscription(&Sight::All, &id).await.unwrap().unwrap();
    stored.subscription.state = SubscriptionState::Active;
    stored.subscription.disabled_reason = None;
    stored.subscription.updated_at = start() + 570.seconds();
    store.replace_subscription(stored).await.unwrap().unwrap();
    assert_eq!(after(&store, &entries[8..13]).await.disabled.len(), 0);
    assert_eq!(after(&store, &entries[13..14]).await.disabled.len(), 1);
}

async fn a_limit_that_is_never_reached_disables_nothing(place: Place) {
    let store = place.open().await;
    let id = insert(&store, DisableAfter::NEVER).await.subscription.id;
    let entries: Vec<_> = (0..500).map(|n| turn(&id, n * 60, 503).1).collect();
    assert_eq!(after(&store, &entries).await, Judged::default());
    // One that is gone, and one that is paused already, are left alone.
    let gone = SubscriptionId::parse("sub_gone").unwrap();
    assert_eq!(
        after(&store, &[turn(&gone, 1, 503).1]).await,
        Judged::default()
    );
    let mut paused = insert(&store, failures(1)).await;
    let id = paused.subscription.id.clone();
    paused.subscription.state = SubscriptionState::Paused;
    store.replace_subscription(paused).await.unwrap().unwrap();
    assert_eq!(
        after(&store, &[turn(&id, 600_000, 503).1]).await,
        Judged::default()
    );
    store.forget_health().await.unwrap();
    assert!(!store.failing(None, 10).await.unwrap().contains(&gone));
}

async fn notices_and_tests_are_no_failures(place: Place) {
    let store = place.open().await;
    let id = insert(&store, failures(1)).await.subscription.id;
    for kind in ["postrider.subscription_failing", "delivery.dead_lettered"] {
        let mut entry = turn(&id, 1, 503).1;
        entry.kind = event::EventType::parse(kind).unwrap();
        entry.run = u32::try_from(kind.len()).unwrap();
        assert_eq!(after(&store, &[entry]).await, Judged::default());
    }
    let mut entry = turn(&id, 2, 503).1;
    entry.purpose = event::delivery::Purpose::Test;
    assert_eq!(after(&store, &[entry]).await, Judged::default());
    assert_eq!(
        after(&store, &[turn(&id, 3, 503).1]).await.disabled.len(),
        1
    );
}

async fn a_notice_waits_until_it_is_forgotten(place: Place) {
    let store = place.open().await;
    let id = insert(&store, failures(1)).await.subscription.id;
    store
        .disable_subscription(&id, "410 gone", now())
        .await
        .unwrap();
    store
        .disable_subscription(&id, "410 gone", now())
        .await
        .unwrap();
    let notices = store.notices(10).await.unwrap();
    assert_eq!(notices.len(), 1);
    assert!(notices[0].body.contains("410 gone"));
    store
        .forget_notices(&[&notices[0].id, "ntc_other"])
        .await
        .unwrap();
    store.forget_notices(&[]).await.unwrap();
    assert!(store.notices(10).await.unwrap().is_empty());
}

async fn a_dead_letter_is_told_of_once_and_a_dead_notice_never(place: Place) {
    let store = place.open().await;
    let letters = [
        super::dead_letters::letter("a", 1),
        super::dead_letters::letter("b", 2),
    ];
    let of_a = |letter: &event::delivery::DeadLetter| letter.tenant.as_str() == "a";
    store.record_dead_and_tell(&letters, of_a).await.unwrap();
    store.record_dead_and_tell(&letters, of_a).await.unwrap();
    assert_eq!(told(&store).await, ["delivery.dead_lettered"]);
    let notice = &store.notices(1).await.unwrap()[0];
    let event = notice.event().unwrap();
    let data: serde_json::Value = serde_json::from_str(event.data.unwrap().get()).unwrap();
    assert_eq!(data["event_id"], "evt-1");
    assert_eq!(data["reason"], "exhausted");
    store.forget_notices(&[&notice.id]).await.unwrap();
    let mut letter = super::dead_letters::letter("a", 3);
    letter.kind = event::EventType::parse(&notice.kind).unwrap();
    store
        .record_dead_and_tell(&[letter], |_| true)
        .await
        .unwrap();
    assert!(store.notices(1).await.unwrap().is_empty());
}
