//! Dead letters: each once, gone for good once deleted, found by any filter.

use std::sync::Arc;

use event::{
    DeadLetterId, DeliveryId, Event, EventId, EventType, SubscriptionId,
    delivery::{AttemptRecord, DeadLetter},
    reason::{AttemptError, DeadReason},
};
use jiff::{Timestamp, ToSpan};
use store::{DeadFilter, Paging, Sight, Store};

use super::{Place, only, promises, read_pages, tenant};

promises!(
    a_dead_letter_comes_back_whole_with_its_events_bytes,
    a_letter_is_recorded_once_however_often_it_is_given,
    a_deleted_letter_does_not_come_back,
    another_tenants_letter_does_not_exist,
    every_filter_finds_its_letters,
    paging_neither_skips_nor_repeats_while_letters_come_and_go,
    recorders_side_by_side_record_each_letter_once,
);

/// Spaces, an exponent, a trailing zero and an escaped zero byte: lost by anything that parses.
const DATA: &str = r#"{ "price" : 1.50,  "big":1e400, "name":"\u00e9\u0000", "a":[ ] }"#;

fn died(n: i32) -> Timestamp {
    "2025-06-01T00:00:00.000000001Z"
        .parse::<Timestamp>()
        .unwrap()
        + n.minutes()
}

pub(super) fn letter(of: &str, n: i32) -> DeadLetter {
    let event_id = EventId::parse(&format!("evt-{n}")).unwrap();
    let subscription_id = SubscriptionId::parse("sub_1").unwrap();
    let delivery_id = DeliveryId::of(&tenant(of), &event_id, &subscription_id);
    let event: Event = serde_json::from_str(&format!(
        r#"{{"id":"{event_id}","tenant":"{of}","type":"appointment.created","time":"2025-01-01T00:00:00Z","data":{DATA}}}"#
    ))
    .unwrap();
    DeadLetter {
        id: DeadLetterId::of(&delivery_id, 0),
        delivery_id,
        event_id,
        subscription_id,
        tenant: tenant(of),
        kind: event.kind.clone(),
        reason: DeadReason::Exhausted,
        detail: "16 attempts failed, the last with \u{0} 503".into(),
        attempts: 16,
        run: 0,
        died_at: died(n),
        accepted_at: died(n) - 1.hour(),
        history: vec![AttemptRecord {
            number: 16,
            at: died(n) - 1.second(),
            duration_ms: 12,
            status: Some(503),
            error: Some(AttemptError::Status),
            detail: Some("503 Service Unavailable".into()),
            response: Some("busy \\x00".into()),
        }],
        event: Arc::new(event),
        expunged_at: None,
    }
}

fn ids(letters: &[DeadLetter]) -> Vec<String> {
    letters
        .iter()
        .map(|letter| letter.event_id.to_string())
        .collect()
}

async fn listed(store: &Store, sight: &Sight, filter: &DeadFilter) -> Vec<String> {
    ids(&store
        .dead_letters(sight, filter, &Paging::default())
        .await
        .unwrap()
        .items)
}

async fn a_dead_letter_comes_back_whole_with_its_events_bytes(place: Place) {
    let given = letter("a", 1);
    place
        .open()
        .await
        .record_dead(std::slice::from_ref(&given))
        .await
        .unwrap();
    let store = place.open().await;
    let read = store
        .dead_letter(&only("a"), &given.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(read.event.data.as_ref().unwrap().get(), DATA);
    assert_eq!(
        serde_json::to_string(&read).unwrap(),
        serde_json::to_string(&given).unwrap()
    );
    let page = store
        .dead_letters(&Sight::All, &DeadFilter::default(), &Paging::default())
        .await;
    assert_eq!(
        page.unwrap().items[0].event.data.as_ref().unwrap().get(),
        DATA
    );
}

async fn a_letter_is_recorded_once_however_often_it_is_given(place: Place) {
    let store = place.open().await;
    let (first, second) = (letter("a", 1), letter("a", 2));
    store.record_dead(&[]).await.unwrap();
    store
        .record_dead(&[first.clone(), first.clone()])
        .await
        .unwrap();
    store.record_dead(&[second, first]).await.unwrap();
    assert_eq!(
        listed(&store, &Sight::All, &DeadFilter::default()).await,
        ["evt-2", "evt-1"]
    );
}

async fn a_deleted_letter_does_not_come_back(place: Place) {
    let store = place.open().await;
    let given = letter("a", 1);
    store
        .record_dead(std::slice::from_ref(&given))
        .await
        .unwrap();
    assert!(
        store
            .delete_dead_letter(&Sight::All, &given.id)
            .await
            .unwrap()
    );
    assert!(
        !store
            .delete_dead_letter(&Sight::All, &given.id)
            .await
            .unwrap()
    );
    store
        .record_dead(std::slice::from_ref(&given))
        .await
        .unwrap();
    assert!(
        store
            .dead_letter(&Sight::All, &given.id)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(
        listed(&store, &Sight::All, &DeadFilter::default()).await,
        [""; 0]
    );
    assert!(
        !place
            .loot_after_checkpoint()
            .await
            .contains(b"Service Unavailable")
    );
    // The next run of the same delivery is another letter.
    let mut next = given.clone();
    next.id = DeadLetterId::of(&given.delivery_id, 1);
    next.run = 1;
    store.record_dead(&[next]).await.unwrap();
    assert_eq!(
        listed(&store, &Sight::All, &DeadFilter::default()).await,
        ["evt-1"]
    );
}

async fn another_tenants_letter_does_not_exist(place: Place) {
    let store = place.open().await;
    let given = letter("a", 1);
    store
        .record_dead(std::slice::from_ref(&given))
        .await
        .unwrap();
    let b = only("b");
    assert!(store.dead_letter(&b, &given.id).await.unwrap().is_none());
    assert!(!store.delete_dead_letter(&b, &given.id).await.unwrap());
    assert_eq!(listed(&store, &b, &DeadFilter::default()).await, [""; 0]);
    assert_eq!(
        listed(&store, &only("a"), &DeadFilter::default()).await,
        ["evt-1"]
    );
}

async fn every_filter_finds_its_letters(place: Place) {
    let store = place.open().await;
    let mut letters: Vec<_> = (1..=4).map(|n| letter("a", n)).collect();
    letters[1].reason = DeadReason::Gone;
    letters[2].subscription_id = SubscriptionId::parse("sub_2").unwrap();
    letters[3].kind = EventType::parse("payment.paid").unwrap();
    letters.push(letter("b", 5));
    store.record_dead(&letters).await.unwrap();

    let none = DeadFilter::default;
    let cases: [(&str, DeadFilter, &[&str]); 9] = [
        ("none", none(), &["evt-4", "evt-3", "evt-2", "evt-1"]),
        (
            "reason",
            DeadFilter {
                reason: Some(DeadReason::Gone),
                ..none()
            },
            &["evt-2"],
        ),
        (
            "subscription",
            DeadFilter {
                subscription: Some(letters[2].subscription_id.clone()),
                ..none()
            },
            &["evt-3"],
        ),
        (
            "type",
            DeadFilter {
                kind: Some("payment.paid".into()),
                ..none()
            },
            &["evt-4"],
        ),
        (
            "odd type",
            DeadFilter {
                kind: Some("' OR 1=1 \u{0}".into()),
                ..none()
            },
            &[],
        ),
        (
            "since",
            DeadFilter {
                since: Some(died(3)),
                ..none()
            },
            &["evt-4", "evt-3"],
        ),
        (
            "until",
            DeadFilter {
                until: Some(died(3)),
                ..none()
            },
            &["evt-2", "evt-1"],
        ),
        (
            "between",
            DeadFilter {
                since: Some(died(2)),
                until: Some(died(2) + 1.nanosecond()),
                ..none()
            },
            &["evt-2"],
        ),
        (
            "together",
            DeadFilter {
                reason: Some(DeadReason::Gone),
                since: Some(died(3)),
                ..none()
            },
            &[],
        ),
    ];
    for (case, filter, expected) in cases {
        assert_eq!(
            listed(&store, &only("a"), &filter).await,
            expected,
            "{case}"
        );
    }
}

async fn paging_neither_skips_nor_repeats_while_letters_come_and_go(place: Place) {
    let store = place.open().await;
    // Three to each time, so that a page ends among equals.
    let mut letters: Vec<_> = (0..12).map(|n| letter("a", n)).collect();
    for (n, letter) in (0_i32..).zip(&mut letters) {
        letter.died_at = died(n / 3);
    }
    store.record_dead(&letters).await.unwrap();
    let filter = DeadFilter::default();
    let list = async |paging: Paging| store.dead_letters(&only("a"), &filter, &paging).await;
    let expected = read_pages(500, list, async |_| {}).await;
    assert_eq!(expected.len(), 12);
    let between = async |page: usize| {
        // One that was read goes, and one is new at the top.
        let read = &expected[page * 2].id;
        assert!(store.delete_dead_letter(&Sight::All, read).await.unwrap());
        store
            .record_dead(&[letter("a", 100 + i32::try_from(page).unwrap())])
            .await
            .unwrap();
    };
    let paged = read_pages(2, list, between).await;
    assert_eq!(ids(&paged), ids(&expected));
    assert!(paged.is_sorted_by(|a, b| a.died_at >= b.died_at));
}

async fn recorders_side_by_side_record_each_letter_once(place: Place) {
    let letters: Vec<_> = (0..150).map(|n| letter("a", n)).collect();
    let mut recorders = tokio::task::JoinSet::new();
    for recorder in 0..4 {
        let store = place.open().await;
        let mut mine = letters.clone();
        mine.rotate_left(recorder * 11);
        recorders.spawn(async move {
            for batch in mine.chunks(70) {
                store.record_dead(batch).await.unwrap();
            }
        });
    }
    while let Some(ended) = recorders.join_next().await {
        ended.unwrap();
    }
    let store = place.open().await;
    let paging = Paging {
        cursor: None,
        limit: 500,
    };
    let page = store
        .dead_letters(&Sight::All, &DeadFilter::default(), &paging)
        .await
        .unwrap();
    assert_eq!(page.items.len(), 150);
}
