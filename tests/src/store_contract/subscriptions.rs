//! Subscriptions come back as they were given, change only for who knows their revision, and stay
//! out of other tenants' sight.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use event::subscription::SubscriptionState;
use store::{Change, Error, Paging, Sight};

use super::{Place, all_changes, delete, insert, only, promises, read_pages, shown, subscription};

promises!(
    a_subscription_comes_back_as_it_was_given,
    replacing_needs_the_revision_that_was_read,
    deleting_leaves_only_a_tombstone_in_the_changes,
    another_tenants_subscription_does_not_exist,
    lists_go_by_age_and_neither_skip_nor_repeat_while_rows_come_and_go,
    only_an_active_subscription_is_disabled_and_only_once,
    a_reader_beside_four_writers_misses_nothing,
    a_call_that_is_dropped_halfway_leaves_nothing_half_done,
    revisions_grow_by_one_over_all_subscriptions,
    a_cursor_of_another_list_is_refused,
    a_subscription_id_is_taken_once,
    what_is_decided_about_a_target_is_decided_once,
);

async fn a_subscription_comes_back_as_it_was_given(place: Place) {
    let store = place.open().await;
    let given = subscription("a", "first");
    let inserted = store.insert_subscription(given.clone()).await.unwrap();
    assert_eq!(inserted.subscription.revision, 1);
    let mut expected = given;
    expected.subscription.revision = 1;
    let id = &expected.subscription.id;
    for store in [&store, &place.open().await] {
        let read = store.subscription(&Sight::All, id).await.unwrap().unwrap();
        assert_eq!(shown(&read), shown(&expected));
        let listed = store
            .subscriptions(&only("a"), None, &Paging::default())
            .await
            .unwrap();
        assert_eq!(
            listed.items.iter().map(shown).collect::<Vec<_>>(),
            [shown(&expected)]
        );
        assert_eq!(listed.cursor, None);
    }
}

async fn replacing_needs_the_revision_that_was_read(place: Place) {
    let store = place.open().await;
    let mut first = insert(&store, "a", "first").await;
    let stale = first.clone();
    first.subscription.name = "renamed".into();
    first.subscription.headers = BTreeMap::from([("x-new".into(), "n".into())]);
    let second = store.replace_subscription(first).await.unwrap().unwrap();
    assert_eq!(second.subscription.revision, 2);
    assert!(store.replace_subscription(stale).await.unwrap().is_none());
    // What did not happen took no revision.
    assert_eq!(store.changes(2).await.unwrap().revision, 2);

    let id = second.subscription.id.clone();
    let read = store.subscription(&Sight::All, &id).await.unwrap().unwrap();
    assert_eq!(shown(&read), shown(&second));

    let mut moved = second.clone();
    moved.subscription.tenant = super::tenant("b");
    assert!(store.replace_subscription(moved).await.unwrap().is_none());
    delete(&store, &second).await;
    assert!(store.replace_subscription(second).await.unwrap().is_none());
}

async fn deleting_leaves_only_a_tombstone_in_the_changes(place: Place) {
    let store = place.open().await;
    let (gone, stays) = (
        insert(&store, "a", "gone").await,
        insert(&store, "a", "stays").await,
    );
    delete(&store, &gone).await;
    let id = &gone.subscription.id;
    assert!(!store.delete_subscription(&Sight::All, id).await.unwrap());
    assert!(store.subscription(&Sight::All, id).await.unwrap().is_none());
    let listed = store
        .subscriptions(&Sight::All, None, &Paging::default())
        .await
        .unwrap();
    assert_eq!(listed.items.len(), 1);
    assert_eq!(listed.items[0].subscription.id, stays.subscription.id);
    let changes = store.changes(2).await.unwrap();
    assert_eq!((changes.revision, changes.stored.len()), (3, 0));
    assert_eq!(changes.deleted, std::slice::from_ref(id));
    let row: (String, Vec<u8>) =
        sqlx::query_as("SELECT document, secrets FROM subscriptions WHERE state = 'deleted'")
            .fetch_one(&mut place.raw().await)
            .await
            .unwrap();
    assert_eq!(row, (String::new(), Vec::new()));
}

async fn another_tenants_subscription_does_not_exist(place: Place) {
    let store = place.open().await;
    let stored = insert(&store, "a", "mine").await;
    let id = &stored.subscription.id;
    let b = only("b");
    assert!(store.subscription(&b, id).await.unwrap().is_none());
    assert!(!store.delete_subscription(&b, id).await.unwrap());
    let page = store
        .subscriptions(&b, None, &Paging::default())
        .await
        .unwrap();
    assert!(page.items.is_empty() && page.cursor.is_none());
    assert!(store.subscription(&only("a"), id).await.unwrap().is_some());
    assert!(store.delete_subscription(&only("a"), id).await.unwrap());
}

async fn lists_go_by_age_and_neither_skip_nor_repeat_while_rows_come_and_go(place: Place) {
    let store = place.open().await;
    let mut ours = Vec::new();
    for n in 0..10 {
        ours.push(insert(&store, "a", &format!("{n}")).await);
        insert(&store, "b", "other").await;
    }
    let list = async |paging: Paging| store.subscriptions(&only("a"), None, &paging).await;
    // After each page one that was read goes, one that was not read changes, one is new.
    let between = async |page: usize| {
        if page > 2 {
            return;
        }
        delete(&store, &ours[page * 3]).await;
        let mut later = ours[9 - page].clone();
        later.subscription.attributes.clear();
        assert!(store.replace_subscription(later).await.unwrap().is_some());
        insert(&store, "a", &format!("new {page}")).await;
    };
    let names: Vec<_> = read_pages(3, list, between)
        .await
        .into_iter()
        .map(|s| s.subscription.name)
        .collect();
    assert_eq!(
        names,
        [
            "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "new 0", "new 1", "new 2"
        ]
    );

    let mut paused = ours[1].clone();
    paused.subscription.state = SubscriptionState::Paused;
    store.replace_subscription(paused).await.unwrap().unwrap();
    let by_state = async |state| {
        let page = store
            .subscriptions(&only("a"), Some(state), &Paging::default())
            .await
            .unwrap();
        page.items
            .into_iter()
            .map(|s| s.subscription.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(by_state(SubscriptionState::Paused).await, ["1"]);
    assert_eq!(by_state(SubscriptionState::Disabled).await, [""; 0]);
    assert!(
        !by_state(SubscriptionState::Active)
            .await
            .contains(&"1".to_owned())
    );
}

async fn only_an_active_subscription_is_disabled_and_only_once(place: Place) {
    let store = place.open().await;
    let now = "2025-06-01T00:00:00Z".parse().unwrap();
    let stored = insert(&store, "a", "first").await;
    let id = &stored.subscription.id;
    for reason in ["gone", "again"] {
        store.disable_subscription(id, reason, now).await.unwrap();
        let read = store.subscription(&Sight::All, id).await.unwrap().unwrap();
        let is = &read.subscription;
        assert_eq!(
            (is.state, is.revision, is.updated_at),
            (SubscriptionState::Disabled, 2, now)
        );
        assert_eq!(is.disabled_reason.as_deref(), Some("gone"));
        assert_eq!(shown(&read).1, shown(&stored).1);
        assert_eq!(is.headers, stored.subscription.headers);
    }
    let mut paused = subscription("a", "second");
    paused.subscription.state = SubscriptionState::Paused;
    let paused = store.insert_subscription(paused).await.unwrap();
    store
        .disable_subscription(&paused.subscription.id, "gone", now)
        .await
        .unwrap();
    let read = store
        .subscription(&Sight::All, &paused.subscription.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(read.subscription.state, SubscriptionState::Paused);
    let nobody = event::SubscriptionId::fresh();
    store
        .disable_subscription(&nobody, "gone", now)
        .await
        .unwrap();
}

async fn a_reader_beside_four_writers_misses_nothing(place: Place) {
    let reader = place.open().await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let store = place.open().await;
        writers.spawn(async move {
            for n in 0..40 {
                let mut stored = insert(&store, "a", &format!("{writer}.{n}")).await;
                if n % 2 == 0 {
                    stored.subscription.name.push_str(" changed");
                    stored = store.replace_subscription(stored).await.unwrap().unwrap();
                }
                if n % 4 == 0 {
                    delete(&store, &stored).await;
                }
            }
        });
    }
    let done = Arc::new(AtomicBool::new(false));
    let following = tokio::spawn({
        let done = Arc::clone(&done);
        let reader = reader.clone();
        async move {
            let (mut since, mut seen) = (0, BTreeMap::new());
            loop {
                // Looked at before reading, so that one reading follows the last write.
                let last = done.load(Ordering::SeqCst);
                let changes = reader.changes(since).await.unwrap();
                if last && changes.revision == since {
                    return (since, seen);
                }
                since = changes.revision;
                for id in changes.deleted {
                    seen.remove(&id);
                }
                seen.extend(
                    changes
                        .stored
                        .into_iter()
                        .map(|s| (s.subscription.id.clone(), s)),
                );
            }
        }
    });
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    let (revision, seen) = following.await.unwrap();
    assert_eq!(revision, 4 * (40 + 20 + 10));
    assert_eq!(seen.len(), 4 * 30);
    let names = |all: &BTreeMap<_, store::Stored>| {
        all.values()
            .map(|s| (s.subscription.name.clone(), s.subscription.revision))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&seen), names(&all_changes(&reader).await));
}

async fn a_call_that_is_dropped_halfway_leaves_nothing_half_done(place: Place) {
    let store = place.open().await;
    // Each call is watched a little longer than the one before, then dropped wherever it stands,
    // until one gets to its end.
    let watched = async |steps| {
        let mut call = Box::pin(store.insert_subscription(subscription("a", "dropped")));
        for _ in 0..steps {
            if futures_util::poll!(&mut call).is_ready() {
                return true;
            }
            std::thread::sleep(Duration::from_micros(20));
        }
        false
    };
    // On a busy machine the server is done after few looks: then once more from the first one.
    let mut dropped = 0;
    while dropped < 10 {
        let mut steps = 1;
        while !watched(steps).await {
            steps += 1 + steps / 8;
            dropped += 1;
        }
    }
    let last = insert(&store, "a", "last").await;
    let all = all_changes(&store).await;
    let list = async |paging: Paging| store.subscriptions(&Sight::All, None, &paging).await;
    let listed = read_pages(7, list, async |_| {}).await;
    assert_eq!(listed.len(), all.len());
    // As many revisions as rows: none was taken without its row.
    assert_eq!(last.subscription.revision, all.len() as u64);
}

async fn revisions_grow_by_one_over_all_subscriptions(place: Place) {
    let (one, other) = (place.open().await, place.open().await);
    for n in 0..10 {
        let store = if n % 2 == 0 { &one } else { &other };
        assert_eq!(insert(store, "a", "n").await.subscription.revision, n + 1);
    }
}

async fn a_cursor_of_another_list_is_refused(place: Place) {
    let store = place.open().await;
    for n in 0..2 {
        insert(&store, "a", &format!("{n}")).await;
    }
    let paging = |cursor| Paging { cursor, limit: 1 };
    let page = store
        .subscriptions(&Sight::All, None, &paging(None))
        .await
        .unwrap();
    assert!(page.cursor.is_some());
    let refused = store.tokens(&paging(page.cursor)).await;
    assert!(matches!(refused, Err(Error::BadCursor)), "{refused:?}");
    for cursor in ["", "x", "'; DROP TABLE head; --", "\u{0}"] {
        let refused = store
            .subscriptions(&Sight::All, None, &paging(Some(cursor.into())))
            .await;
        assert!(matches!(refused, Err(Error::BadCursor)), "{cursor:?}");
    }
}

async fn a_subscription_id_is_taken_once(place: Place) {
    let store = place.open().await;
    let stored = insert(&store, "a", "first").await;
    let mut second = stored.clone();
    second.subscription.tenant = super::tenant("b");
    assert!(matches!(
        store.insert_subscription(second).await,
        Err(Error::Fatal(_))
    ));
    // And the failure leaves the store usable, with no revision taken.
    assert_eq!(insert(&store, "a", "second").await.subscription.revision, 2);
    let read = store
        .subscription(&Sight::All, &stored.subscription.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(shown(&read), shown(&stored));
}

async fn what_is_decided_about_a_target_is_decided_once(place: Place) {
    const TARGET: &str = "https://example.com/100%25_a?q=%5C";
    let (one, other) = (place.open().await, place.open().await);
    let aimed = |of: &str, target: &str| {
        let mut stored = subscription(of, target);
        stored.subscription.target_url = target.into();
        stored
    };
    // What a pattern could take for the target, and the target of another tenant.
    for (of, target) in [
        ("a", "https://example.com/100%25xa?q=%5C"),
        ("a", "https://example.com/100%25_A?q=%5C"),
        ("a", "https://example.com/100%25_a?q=%5Cx"),
        ("b", TARGET),
    ] {
        one.insert_subscription(aimed(of, target)).await.unwrap();
    }
    let a = super::tenant("a");
    // Whoever finds none makes one; who finds it puts a mark on it.
    let settle = |store: store::Store, n: usize| {
        let (a, fresh) = (a.clone(), aimed("a", TARGET));
        tokio::spawn(async move {
            let decide = |mut found: Vec<store::Stored>| match found.pop() {
                None => vec![Change::Insert(fresh)],
                Some(mut stored) => {
                    assert!(found.is_empty(), "two of one target");
                    stored
                        .subscription
                        .attributes
                        .insert(format!("n{n}"), "x".into());
                    vec![Change::Replace(stored)]
                }
            };
            store.settle_target(&a, TARGET, decide).await.unwrap()
        })
    };
    let all: Vec<_> = (0..8)
        .map(|n| {
            settle(
                if n % 2 == 0 {
                    one.clone()
                } else {
                    other.clone()
                },
                n,
            )
        })
        .collect();
    for done in all {
        assert!(done.await.unwrap());
    }
    let mut seen = None;
    let look = |found: Vec<store::Stored>| {
        seen = Some(found);
        Vec::new()
    };
    assert!(!one.settle_target(&a, TARGET, look).await.unwrap());
    let mut found = seen.unwrap();
    let stored = found.pop().unwrap();
    assert_eq!(
        (found.len(), stored.subscription.target_url.as_str()),
        (0, TARGET)
    );
    let marks = stored.subscription.attributes.len();
    assert_eq!(marks, 1 + 7, "each of the others found it");
    // Four before, one insert, seven replacements; looking takes none.
    assert_eq!(stored.subscription.revision, 12);
    let wishes = vec![
        Change::Delete(stored.subscription.id.clone()),
        Change::Insert(aimed("a", TARGET)),
    ];
    assert!(one.settle_target(&a, TARGET, |_| wishes).await.unwrap());
    let changes = one.changes(12).await.unwrap();
    assert_eq!((changes.revision, changes.stored.len()), (14, 1));
    assert_eq!(changes.deleted, [stored.subscription.id]);
}
