//! The feed: every change arrives, what did not change is shared, and a database that went back is
//! loaded anew.

use std::{sync::Arc, time::Duration};

use event::SubscriptionId;
use store::{
    Store,
    feed::{Feed, Snapshot},
};
use tokio_util::sync::CancellationToken;

use super::{Place, delete, insert, promises};

promises!(
    a_feed_follows_inserts_changes_and_deletions,
    a_nudge_is_looked_at_at_once,
    a_change_holds_once_it_is_shown,
    an_empty_store_has_a_snapshot,
    a_database_that_went_back_is_loaded_anew,
    a_database_that_was_replaced_is_loaded_anew,
);

/// So seldom that a test ends before; what arrives was nudged.
const NEVER: Duration = Duration::from_secs(3600);
const OFTEN: Duration = Duration::from_millis(20);

fn follow(store: &Store, every: Duration) -> Feed {
    Feed::follow(store.clone(), every, CancellationToken::new())
}

/// Waits for a snapshot that is as wanted; the test's time limit ends a wait in vain.
pub(super) async fn until(feed: &Feed, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let mut watch = feed.watch();
    let found = watch
        .wait_for(|snapshot| snapshot.as_ref().is_some_and(|s| wanted(s)))
        .await;
    Arc::clone(found.unwrap().as_ref().unwrap())
}

fn name<'s>(snapshot: &'s Snapshot, id: &SubscriptionId) -> Option<&'s str> {
    snapshot
        .subscriptions
        .get(id)
        .map(|stored| stored.subscription.name.as_str())
}

async fn a_feed_follows_inserts_changes_and_deletions(place: Place) {
    let store = place.open().await;
    let before = insert(&store, "a", "before").await;
    let feed = follow(&store, OFTEN);
    let first = until(&feed, |s| s.revision == 1).await;
    assert_eq!(name(&first, &before.subscription.id), Some("before"));

    let writer = place.open().await;
    let mut after = insert(&writer, "b", "after").await;
    let id = after.subscription.id.clone();
    let second = until(&feed, |s| s.revision == 2).await;
    assert_eq!(name(&second, &id), Some("after"));
    let same = |a: &Snapshot, b: &Snapshot| {
        let of = |s: &Snapshot| Arc::clone(&s.subscriptions[&before.subscription.id]);
        Arc::ptr_eq(&of(a), &of(b))
    };
    assert!(same(&first, &second), "what did not change is shared");

    after.subscription.name = "renamed".into();
    let after = writer.replace_subscription(after).await.unwrap().unwrap();
    let third = until(&feed, |s| s.revision == 3).await;
    assert_eq!(name(&third, &id), Some("renamed"));
    delete(&writer, &after).await;
    let fourth = until(&feed, |s| s.revision == 4).await;
    assert_eq!(name(&fourth, &id), None);
    assert!(same(&first, &fourth));
    assert_eq!(
        name(&second, &id),
        Some("after"),
        "who holds an old snapshot keeps it"
    );
}

async fn a_nudge_is_looked_at_at_once(place: Place) {
    let store = place.open().await;
    let feed = follow(&store, NEVER);
    until(&feed, |s| s.revision == 0).await;
    for revision in 1..4 {
        insert(&store, "a", "n").await;
        feed.nudge();
        let snapshot = until(&feed, |s| s.revision == revision).await;
        assert_eq!(snapshot.subscriptions.len() as u64, revision);
    }
}

async fn a_change_holds_once_it_is_shown(place: Place) {
    let store = place.open().await;
    let feed = follow(&store, NEVER);
    until(&feed, |_| true).await;
    let stored = insert(&store, "a", "new").await;
    let id = &stored.subscription.id;
    let known = |snapshot: &Snapshot| snapshot.subscriptions.contains_key(id);
    feed.shows(NEVER, known).await;
    assert!(known(&feed.snapshot().unwrap()));
    // What does not come is not waited for beyond the patience.
    feed.shows(OFTEN, |_| false).await;
}

async fn an_empty_store_has_a_snapshot(place: Place) {
    let feed = follow(&place.open().await, NEVER);
    assert!(until(&feed, |_| true).await.subscriptions.is_empty());
}

async fn a_database_that_went_back_is_loaded_anew(place: Place) {
    let store = place.open().await;
    let stays = insert(&store, "a", "stays").await;
    let lost = insert(&store, "a", "lost").await;
    let feed = follow(&store, OFTEN);
    until(&feed, |s| s.subscriptions.len() == 2).await;
    // As after restoring yesterday's backup.
    place
        .execute("DELETE FROM subscriptions WHERE revision = 2; UPDATE head SET revision = 1")
        .await;
    let snapshot = until(&feed, |s| s.revision == 1).await;
    assert_eq!(name(&snapshot, &stays.subscription.id), Some("stays"));
    assert_eq!(name(&snapshot, &lost.subscription.id), None);
    // And it goes on from there.
    insert(&store, "a", "next").await;
    assert_eq!(
        until(&feed, |s| s.revision == 2).await.subscriptions.len(),
        2
    );
}

async fn a_database_that_was_replaced_is_loaded_anew(place: Place) {
    let store = place.open().await;
    let lost = insert(&store, "a", "lost").await;
    let feed = follow(&store, OFTEN);
    until(&feed, |s| s.subscriptions.len() == 1).await;
    // Another database that happens to have come as far: revision 1 is another subscription's.
    place
        .execute(
            "BEGIN; \
             UPDATE subscriptions SET state = 'deleted', document = ''; \
             UPDATE head SET identity = 'another'; \
             COMMIT",
        )
        .await;
    let snapshot = until(&feed, |s| s.subscriptions.is_empty()).await;
    assert_eq!(
        (snapshot.revision, name(&snapshot, &lost.subscription.id)),
        (1, None)
    );
}
