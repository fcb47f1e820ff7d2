//! Forgetting: a month goes in steps, what is younger stays, and a second recorder does no harm.

use event::{
    log::Archived,
    reason::{DeliveryState, QuarantineReason},
};
use jiff::{Timestamp, ToSpan};
use store::{DeliveryFilter, EventFilter, Kept, Paging, Sight, Store};

use super::{
    Place,
    log::{archived, delivery_of, start, sub, tried},
    promises,
};

promises!(
    a_month_is_forgotten_and_what_is_younger_stays,
    events_and_deliveries_have_their_own_time,
    dead_letters_and_quarantine_are_forgotten_a_little_at_a_time,
    recorders_side_by_side_forget_and_prepare,
    a_day_that_was_forgotten_can_be_written_again,
);

/// An event of each of the days from the start.
fn month(days: i64) -> Vec<Archived> {
    let on = |day: i64| {
        let mut event = archived("a", day, &[sub(1)]);
        event.accepted_at = start() + (day * 24).hours();
        let mut with_subject = (*event.event).clone();
        with_subject.subject = serde_json::from_str("5").unwrap();
        event.event = with_subject.into();
        event
    };
    (0..days).map(on).collect()
}

async fn fill(store: &Store, days: i64) -> Vec<Archived> {
    let events = month(days);
    let entries: Vec<_> = events
        .iter()
        .map(|event| tried(event, &sub(1), DeliveryState::Delivered, 1, 200))
        .collect();
    store.record(&events, &entries).await.unwrap();
    events
}

async fn forget(store: &Store, kept: Kept, before: Timestamp) -> u64 {
    let mut steps = 0;
    while store.forget(kept, before).await.unwrap() > 0 {
        steps += 1;
        assert!(steps < 200, "it never ends");
    }
    steps
}

async fn events(store: &Store) -> usize {
    let paging = Paging {
        cursor: None,
        limit: 500,
    };
    store
        .events(&Sight::All, &EventFilter::default(), &paging)
        .await
        .unwrap()
        .items
        .len()
}

async fn deliveries(store: &Store) -> usize {
    let paging = Paging {
        cursor: None,
        limit: 500,
    };
    store
        .deliveries(&Sight::All, &DeliveryFilter::default(), &paging)
        .await
        .unwrap()
        .items
        .len()
}

/// How many rows a table has.
async fn rows(place: &Place, table: &str) -> i64 {
    use sqlx::Row;
    let sql = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
    let row = sqlx::query(sql)
        .fetch_one(&mut place.raw().await)
        .await
        .unwrap();
    row.get(0)
}

async fn a_month_is_forgotten_and_what_is_younger_stays(place: Place) {
    let store = place.open().await;
    fill(&store, 31).await;
    // Noon of day 30: that day stays, because not all of it is old.
    let before = start() + (30 * 24).hours();
    for kept in [Kept::Events, Kept::Deliveries] {
        assert!(forget(&store, kept, before).await >= 1);
    }
    for table in ["events", "event_subjects", "deliveries", "attempts"] {
        assert_eq!(rows(&place, table).await, 1, "{table}");
    }
    assert_eq!((events(&store).await, deliveries(&store).await), (1, 1));
    assert_eq!(forget(&store, Kept::Events, before).await, 0);
}

async fn events_and_deliveries_have_their_own_time(place: Place) {
    let store = place.open().await;
    let all = fill(&store, 5).await;
    forget(&store, Kept::Events, start() + (4 * 24).hours()).await;
    assert_eq!((events(&store).await, deliveries(&store).await), (1, 5));
    let first = delivery_of(&all[0], &sub(1));
    let record = store.delivery(&Sight::All, &first).await.unwrap().unwrap();
    assert_eq!(record.history.len(), 1);
    forget(&store, Kept::Deliveries, start() + (4 * 24).hours()).await;
    assert!(store.delivery(&Sight::All, &first).await.unwrap().is_none());
}

async fn dead_letters_and_quarantine_are_forgotten_a_little_at_a_time(place: Place) {
    let store = place.open().await;
    let letters: Vec<_> = (0..700)
        .map(|n| super::dead_letters::letter("a", n))
        .collect();
    store.record_dead(&letters).await.unwrap();
    // A tombstone goes too, in its time.
    store
        .delete_dead_letter(&Sight::All, &letters[0].id)
        .await
        .unwrap();
    let messages: Vec<_> = (0..9)
        .map(|n| super::quarantine::message(n, QuarantineReason::Malformed))
        .collect();
    store.record_quarantined(&messages).await.unwrap();
    let last = letters[699].died_at;
    assert_eq!(
        store
            .forget(Kept::DeadLetters, last - 2.hours() * 24)
            .await
            .unwrap(),
        0
    );
    let after = last + 24.hours();
    let steps = [
        store.forget(Kept::DeadLetters, after).await.unwrap(),
        store.forget(Kept::DeadLetters, after).await.unwrap(),
    ];
    assert_eq!(steps, [501, 199], "and the tombstone");
    assert_eq!(rows(&place, "dead_letters").await, 0);
    assert!(forget(&store, Kept::Quarantine, Timestamp::MAX - 48.hours()).await >= 1);
    assert_eq!(rows(&place, "quarantine").await, 0);
}

async fn recorders_side_by_side_forget_and_prepare(place: Place) {
    let store = place.open().await;
    fill(&store, 20).await;
    let mut recorders = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let store = place.open().await;
        recorders.spawn(async move {
            store
                .prepare_days(start() + (19 * 24).hours())
                .await
                .unwrap();
            forget(&store, Kept::Deliveries, start() + (19 * 24).hours()).await;
        });
    }
    while let Some(ended) = recorders.join_next().await {
        ended.unwrap();
    }
    assert_eq!((events(&store).await, deliveries(&store).await), (20, 1));
    store
        .prepare_days(start() + (19 * 24).hours())
        .await
        .unwrap();
}

async fn a_day_that_was_forgotten_can_be_written_again(place: Place) {
    let (store, other) = (place.open().await, place.open().await);
    let all = fill(&store, 2).await;
    // Another process forgets it: this one still believes that it is there.
    forget(&other, Kept::Events, start() + 48.hours()).await;
    let mut tries = 0;
    while store.record(&all, &[]).await.is_err() {
        tries += 1;
        assert!(tries < 3, "it never recovers");
    }
    assert_eq!(events(&store).await, 2);
}
