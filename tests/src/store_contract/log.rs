//! The log: rows that end the same whatever came first and however often, found by any filter.

use std::{collections::BTreeMap, sync::Arc};

use event::{
    DeliveryId, Event, EventId, SubscriptionId,
    delivery::Purpose,
    log::{Archived, Attempt, LogEntry, Timing},
    reason::{AttemptError, DeadReason, DeliveryState},
    selector::Selector,
    subscription::View,
};
use jiff::{Timestamp, ToSpan};
use store::{
    DeliveryFilter, DeliveryRow, EventFilter, Page, Paging, Period, PeriodCount, Sight, Store,
};

use super::{Place, only, promises, read_pages, tenant};

promises!(
    a_delivery_ends_the_same_in_whatever_order_its_records_come,
    a_batch_that_comes_again_changes_nothing,
    a_delivery_that_arrived_stays_delivered,
    the_next_run_of_a_delivery_goes_on_from_its_last,
    an_end_without_an_attempt_keeps_the_last_status,
    an_event_comes_back_with_its_bytes_and_its_deliveries,
    an_event_archived_without_payload_says_what_it_can,
    another_tenants_log_does_not_exist,
    every_filter_finds_its_deliveries,
    every_filter_finds_its_events,
    paging_deliveries_neither_skips_nor_repeats_while_they_move,
    paging_events_neither_skips_nor_repeats_while_more_come,
    recorders_side_by_side_record_everything_once,
    a_log_reads_by_day_week_and_month,
    a_walk_through_events_brings_what_a_subscription_wants_oldest_first,
    a_day_long_past_and_a_day_to_come_have_their_place,
);

/// Lost by anything that parses.
const DATA: &str = r#"{ "price" : 1.50,  "big":1e400, "name":"\u00e9\u0000", "a":[ ] }"#;

/// A Monday.
pub(super) fn start() -> Timestamp {
    "2026-03-02T10:00:00.000000001Z".parse().unwrap()
}

pub(super) fn sub(n: usize) -> SubscriptionId {
    SubscriptionId::parse(&format!("sub_{n}")).unwrap()
}

/// Event `n` of a tenant, accepted `n` minutes after the start.
pub(super) fn archived(of: &str, n: i64, matched: &[SubscriptionId]) -> Archived {
    let json = format!(
        r#"{{"id":"evt-{n}","tenant":"{of}","type":"appointment.created","time":"2026-01-01T00:00:00Z","data":{DATA}}}"#
    );
    Archived {
        event: Arc::new(serde_json::from_str(&json).unwrap()),
        accepted_at: start() + n.minutes(),
        revision: 7,
        bytes: json.len() as u64,
        matched: matched.to_vec(),
    }
}

fn with(archived: &Archived, change: impl FnOnce(&mut Event)) -> Archived {
    let mut event = (*archived.event).clone();
    change(&mut event);
    Archived {
        event: Arc::new(event),
        ..archived.clone()
    }
}

pub(super) fn delivery_of(archived: &Archived, subscription: &SubscriptionId) -> DeliveryId {
    DeliveryId::of(&archived.event.tenant, &archived.event.id, subscription)
}

/// What a deliverer logs of an event's delivery after `attempts` attempts.
pub(super) fn entry(
    archived: &Archived,
    subscription: &SubscriptionId,
    state: DeliveryState,
    attempts: u32,
) -> LogEntry {
    let event = &archived.event;
    LogEntry {
        delivery_id: delivery_of(archived, subscription),
        event_id: event.id.clone(),
        subscription_id: subscription.clone(),
        tenant: event.tenant.clone(),
        kind: event.kind.clone(),
        accepted_at: archived.accepted_at,
        at: archived.accepted_at + i64::from(attempts + 1).seconds(),
        purpose: Purpose::Live,
        run: 0,
        attempts,
        state,
        reason: None,
        detail: None,
        clause: None,
        due: None,
        attempt: None,
    }
}

/// The same with the attempt that led there.
pub(super) fn tried(
    archived: &Archived,
    subscription: &SubscriptionId,
    state: DeliveryState,
    number: u32,
    status: u16,
) -> LogEntry {
    let mut entry = entry(archived, subscription, state, number);
    let failed = !(200..300).contains(&status);
    entry.due = (state == DeliveryState::Retrying).then(|| entry.at + 30.seconds());
    entry.attempt = Some(Box::new(Attempt {
        number,
        at: archived.accepted_at + i64::from(number).seconds(),
        timing: Timing {
            connect: Some(300),
            total: 1200,
            ..Timing::default()
        },
        view: View::Full,
        request_headers: vec![("x-api-key".into(), "***".into())],
        body_hash: "00".repeat(32),
        body_bytes: 17,
        status: Some(status),
        response_headers: vec![("server".into(), "x".into())],
        response: Some("busy \u{0} \\".into()),
        error: failed.then_some(AttemptError::Status),
        detail: failed.then(|| "503 \u{0}".into()),
    }));
    entry
}

async fn record(store: &Store, archived: &[Archived], entries: &[LogEntry]) {
    store.record(archived, entries).await.unwrap();
}

async fn one(store: &Store, id: &DeliveryId) -> (DeliveryRow, Vec<(u32, u32)>) {
    let record = store.delivery(&Sight::All, id).await.unwrap().unwrap();
    let history = record.history.iter().map(|a| (a.run, a.attempt.number));
    (record.delivery, history.collect())
}

async fn listed(store: &Store, sight: &Sight, filter: &DeliveryFilter) -> Vec<String> {
    let page = store.deliveries(sight, filter, &Paging::default()).await;
    let name = |row: DeliveryRow| format!("{}/{}", row.event_id, row.subscription_id);
    page.unwrap().items.into_iter().map(name).collect()
}

async fn a_delivery_ends_the_same_in_whatever_order_its_records_come(place: Place) {
    let store = place.open().await;
    let mut ends = Vec::new();
    let mut n = 0;
    // Four records in every order, in batches of one, of two, and all together.
    for order in permutations(4) {
        for size in [1, 2, 4] {
            n += 1;
            let event = archived("a", n, &[sub(1)]);
            let entries = [
                tried(&event, &sub(1), DeliveryState::Retrying, 1, 503),
                entry(&event, &sub(1), DeliveryState::Held, 1),
                tried(&event, &sub(1), DeliveryState::Delivered, 2, 204),
            ];
            for batch in order.chunks(size) {
                let events: Vec<_> = batch
                    .iter()
                    .filter(|part| **part == 3)
                    .map(|_| event.clone())
                    .collect();
                let entries: Vec<_> = batch
                    .iter()
                    .filter_map(|part| entries.get(*part).cloned())
                    .collect();
                record(&store, &events, &entries).await;
            }
            let (row, history) = one(&store, &delivery_of(&event, &sub(1))).await;
            assert_eq!(history, [(0, 1), (0, 2)], "{order:?} {size}");
            let since = row.updated_at - event.accepted_at;
            ends.push((
                row.state,
                row.attempts,
                row.last_status,
                row.due,
                since.total(jiff::Unit::Second).unwrap(),
            ));
        }
    }
    let wanted = (DeliveryState::Delivered, 2, Some(204), None, 3.0);
    assert_eq!(ends, vec![wanted; 72]);
}

/// Every order of the numbers below `n`.
fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(n - 1);
    let into = |order: &Vec<usize>| {
        let order = order.clone();
        (0..n).map(move |at| {
            let mut longer = order.clone();
            longer.insert(at, n - 1);
            longer
        })
    };
    shorter.iter().flat_map(into).collect()
}

async fn a_batch_that_comes_again_changes_nothing(place: Place) {
    let store = place.open().await;
    let events: Vec<_> = (0..300)
        .map(|n| archived("a", n, &[sub(1), sub(2)]))
        .collect();
    let mut entries: Vec<_> = events
        .iter()
        .map(|event| tried(event, &sub(1), DeliveryState::Retrying, 1, 500))
        .collect();
    entries.push(entries[0].clone());
    let first = store.record(&events, &entries).await.unwrap();
    assert_eq!(
        (
            first.events,
            first.deliveries,
            first.attempts,
            &first.failing
        ),
        (300, 600, 300, &vec![sub(1)])
    );
    for (events, entries) in [(&events[..], &entries[..]), (&events, &[]), (&[], &entries)] {
        let again = store.record(events, entries).await.unwrap();
        assert_eq!(
            (
                again.events,
                again.deliveries,
                again.attempts,
                again.failing.len()
            ),
            (0, 0, 0, 0)
        );
    }
    assert_eq!(store.record(&[], &[]).await.unwrap().events, 0);
}

async fn a_delivery_that_arrived_stays_delivered(place: Place) {
    let store = place.open().await;
    let event = archived("a", 1, &[sub(1)]);
    let arrived = tried(&event, &sub(1), DeliveryState::Delivered, 1, 200);
    record(&store, &[], &[arrived]).await;
    // A second copy of its parcel, after a fault, does worse.
    let mut again = tried(&event, &sub(1), DeliveryState::Retrying, 1, 503);
    again.attempt.as_mut().unwrap().at = event.accepted_at + 1.hour();
    again.at = event.accepted_at + 1.hour();
    let worse = tried(&event, &sub(1), DeliveryState::Dead, 2, 503);
    record(&store, std::slice::from_ref(&event), &[again, worse]).await;
    let (row, history) = one(&store, &delivery_of(&event, &sub(1))).await;
    assert_eq!((row.state, row.attempts), (DeliveryState::Delivered, 1));
    assert_eq!(
        history,
        [(0, 1), (0, 1), (0, 2)],
        "what was really done stays on record"
    );
}

async fn the_next_run_of_a_delivery_goes_on_from_its_last(place: Place) {
    let store = place.open().await;
    let event = archived("a", 1, &[sub(1)]);
    let mut dead = tried(&event, &sub(1), DeliveryState::Dead, 16, 503);
    dead.reason = Some(DeadReason::Exhausted);
    dead.detail = Some("the last with \u{0} 503".into());
    let mut next = tried(&event, &sub(1), DeliveryState::Delivered, 1, 200);
    (next.run, next.purpose) = (1, Purpose::Replay);
    record(&store, &[], &[next]).await;
    record(&store, std::slice::from_ref(&event), &[dead]).await;
    let (row, history) = one(&store, &delivery_of(&event, &sub(1))).await;
    assert_eq!(
        (row.state, row.run, row.attempts),
        (DeliveryState::Delivered, 1, 1)
    );
    assert_eq!((row.reason, row.purpose), (None, Purpose::Replay));
    assert_eq!(history, [(0, 16), (1, 1)]);
}

async fn an_end_without_an_attempt_keeps_the_last_status(place: Place) {
    let store = place.open().await;
    let event = archived("a", 1, &[sub(1)]);
    let retrying = tried(&event, &sub(1), DeliveryState::Retrying, 1, 503);
    let mut dead = entry(&event, &sub(1), DeliveryState::Dead, 1);
    dead.reason = Some(DeadReason::Expired);
    record(&store, &[], &[retrying]).await;
    record(&store, &[], &[dead]).await;
    let (row, _) = one(&store, &delivery_of(&event, &sub(1))).await;
    assert_eq!(
        (row.state, row.last_status),
        (DeliveryState::Dead, Some(503))
    );
    assert_eq!((row.reason, row.due), (Some(DeadReason::Expired), None));
}

async fn an_event_comes_back_with_its_bytes_and_its_deliveries(place: Place) {
    let store = place.open().await;
    let event = archived("a", 1, &[sub(1), sub(2)]);
    let mut filtered = entry(&event, &sub(2), DeliveryState::Filtered, 0);
    filtered.clause = Some("where".into());
    filtered.detail = Some("price is 1.50".into());
    record(&store, std::slice::from_ref(&event), &[filtered]).await;
    let record = store.event(&only("a"), &event.event.id).await.unwrap();
    let [record] = &record[..] else {
        panic!("{record:?}")
    };
    assert_eq!(record.event.data.as_ref().unwrap().get(), DATA);
    assert_eq!(
        serde_json::to_string(&record.event).unwrap(),
        serde_json::to_string(&*event.event).unwrap()
    );
    assert_eq!(
        (
            record.accepted_at,
            record.revision,
            record.bytes,
            &record.matched
        ),
        (event.accepted_at, 7, event.bytes, &event.matched)
    );
    let [first, second] = &record.deliveries[..] else {
        panic!("{record:?}")
    };
    assert_eq!(
        (first.state, &first.clause),
        (DeliveryState::Pending, &None)
    );
    assert_eq!(
        (second.state, second.clause.as_deref()),
        (DeliveryState::Filtered, Some("where"))
    );
    assert_eq!(second.detail.as_deref(), Some("price is 1.50"));
    let page = store
        .events(&only("a"), &EventFilter::default(), &Paging::default())
        .await
        .unwrap();
    assert!(
        page.items[0].event.data.is_none(),
        "a list shows no payload"
    );
    assert_eq!(page.items[0].matched, event.matched);
}

async fn an_event_archived_without_payload_says_what_it_can(place: Place) {
    let store = place.open().await;
    let event = with(&archived("a", 1, &[]), |event| event.data = None);
    let null = with(&archived("a", 2, &[]), |event| {
        event.data = Some(serde_json::from_str("null").unwrap());
    });
    record(&store, &[event.clone(), null.clone()], &[]).await;
    for given in [event, null] {
        let read = store.event(&Sight::All, &given.event.id).await.unwrap();
        assert_eq!(
            serde_json::to_string(&read[0].event).unwrap(),
            serde_json::to_string(&*given.event).unwrap()
        );
    }
    let unknown = EventId::parse("evt-9").unwrap();
    assert!(store.event(&Sight::All, &unknown).await.unwrap().is_empty());
}

async fn another_tenants_log_does_not_exist(place: Place) {
    let store = place.open().await;
    let (mine, theirs) = (archived("a", 1, &[sub(1)]), archived("b", 1, &[sub(2)]));
    let entries = [tried(&mine, &sub(1), DeliveryState::Delivered, 1, 200)];
    record(&store, &[mine.clone(), theirs.clone()], &entries).await;
    let (b, id) = (only("b"), delivery_of(&mine, &sub(1)));
    assert!(store.delivery(&b, &id).await.unwrap().is_none());
    assert!(store.delivery(&only("a"), &id).await.unwrap().is_some());
    for (sight, wanted) in [(&b, "evt-1/sub_2"), (&only("a"), "evt-1/sub_1")] {
        assert_eq!(
            listed(&store, sight, &DeliveryFilter::default()).await,
            [wanted]
        );
        let by_event = DeliveryFilter {
            event: Some(mine.event.id.clone()),
            ..DeliveryFilter::default()
        };
        assert_eq!(listed(&store, sight, &by_event).await, [wanted]);
        let periods = store
            .delivery_periods(sight, &DeliveryFilter::default(), Period::Day)
            .await;
        assert_eq!(periods.unwrap()[0].total, 1);
        let events = store.event(sight, &mine.event.id).await.unwrap();
        assert_eq!((events.len(), events[0].deliveries.len()), (1, 1));
        let page = store
            .events(sight, &EventFilter::default(), &Paging::default())
            .await
            .unwrap();
        assert_eq!(page.items.len(), 1);
    }
    let of_mine = DeliveryFilter {
        subscription: Some(sub(1)),
        ..DeliveryFilter::default()
    };
    assert_eq!(listed(&store, &b, &of_mine).await, [""; 0]);
    assert_eq!(
        store
            .event(&Sight::All, &mine.event.id)
            .await
            .unwrap()
            .len(),
        2
    );
}

async fn every_filter_finds_its_deliveries(place: Place) {
    let store = place.open().await;
    let mut events: Vec<_> = (1..=4).map(|n| archived("a", n, &[sub(1)])).collect();
    events[3] = with(&events[3], |event| {
        event.kind = event::EventType::parse("payment.paid").unwrap()
    });
    events.push(archived("a", 5, &[sub(2)]));
    events.push(archived("b", 6, &[sub(3)]));
    let mut dead = tried(&events[1], &sub(1), DeliveryState::Dead, 3, 410);
    dead.reason = Some(DeadReason::Gone);
    let entries = [
        dead,
        tried(&events[2], &sub(1), DeliveryState::Delivered, 1, 200),
    ];
    record(&store, &events, &entries).await;
    let none = DeliveryFilter::default;
    let at = |n: i64| Some(start() + n.minutes());
    let cases: [(&str, DeliveryFilter, &[&str]); 13] = [
        (
            "none",
            none(),
            &[
                "evt-5/sub_2",
                "evt-4/sub_1",
                "evt-3/sub_1",
                "evt-2/sub_1",
                "evt-1/sub_1",
            ],
        ),
        (
            "subscription",
            DeliveryFilter {
                subscription: Some(sub(2)),
                ..none()
            },
            &["evt-5/sub_2"],
        ),
        (
            "event",
            DeliveryFilter {
                event: Some(EventId::parse("evt-3").unwrap()),
                ..none()
            },
            &["evt-3/sub_1"],
        ),
        (
            "pending",
            DeliveryFilter {
                state: Some(DeliveryState::Pending),
                ..none()
            },
            &["evt-5/sub_2", "evt-4/sub_1", "evt-1/sub_1"],
        ),
        (
            "delivered",
            DeliveryFilter {
                state: Some(DeliveryState::Delivered),
                ..none()
            },
            &["evt-3/sub_1"],
        ),
        (
            "reason",
            DeliveryFilter {
                reason: Some(DeadReason::Gone),
                ..none()
            },
            &["evt-2/sub_1"],
        ),
        (
            "other reason",
            DeliveryFilter {
                reason: Some(DeadReason::Expired),
                ..none()
            },
            &[],
        ),
        (
            "type",
            DeliveryFilter {
                kind: Some("payment.paid".into()),
                ..none()
            },
            &["evt-4/sub_1"],
        ),
        (
            "odd type",
            DeliveryFilter {
                kind: Some("' OR 1=1 \u{0}".into()),
                ..none()
            },
            &[],
        ),
        (
            "since",
            DeliveryFilter {
                since: at(4),
                ..none()
            },
            &["evt-5/sub_2", "evt-4/sub_1"],
        ),
        (
            "until",
            DeliveryFilter {
                until: at(3),
                ..none()
            },
            &["evt-2/sub_1", "evt-1/sub_1"],
        ),
        (
            "between",
            DeliveryFilter {
                since: at(2),
                until: Some(start() + 2.minutes() + 1.nanosecond()),
                ..none()
            },
            &["evt-2/sub_1"],
        ),
        (
            "together",
            DeliveryFilter {
                subscription: Some(sub(1)),
                state: Some(DeliveryState::Pending),
                kind: Some("payment.paid".into()),
                since: at(1),
                until: at(9),
                ..none()
            },
            &["evt-4/sub_1"],
        ),
    ];
    for (case, filter, expected) in cases {
        assert_eq!(
            listed(&store, &only("a"), &filter).await,
            expected,
            "{case}"
        );
        let all = listed(&store, &Sight::All, &filter).await;
        let mine: Vec<_> = all
            .into_iter()
            .filter(|name| !name.ends_with("sub_3"))
            .collect();
        assert_eq!(mine, expected, "{case}, seen by an administrator");
    }
}

async fn every_filter_finds_its_events(place: Place) {
    let store = place.open().await;
    let of = |n, subject: &str| {
        with(&archived("a", n, &[]), |event| {
            event.subject = serde_json::from_str(subject).unwrap();
        })
    };
    let mut events = vec![
        of(1, "10"),
        of(2, r#"[ 10, "é-7", 11]"#),
        of(3, r#""10""#),
        archived("a", 4, &[]),
        with(&of(5, "12"), |event| {
            event.kind = event::EventType::parse("payment.paid").unwrap()
        }),
    ];
    events.push(with(&archived("b", 6, &[]), |event| {
        event.subject = serde_json::from_str("10").unwrap()
    }));
    record(&store, &events, &[]).await;
    let none = EventFilter::default;
    let subject = |text: &str| Some(text.to_owned());
    let at = |n: i64| Some(start() + n.minutes());
    let cases: [(&str, EventFilter, &[&str]); 9] = [
        (
            "none",
            none(),
            &["evt-5", "evt-4", "evt-3", "evt-2", "evt-1"],
        ),
        (
            "subject",
            EventFilter {
                subject: subject("10"),
                ..none()
            },
            &["evt-3", "evt-2", "evt-1"],
        ),
        (
            "one of many",
            EventFilter {
                subject: subject("é-7"),
                ..none()
            },
            &["evt-2"],
        ),
        (
            "subject and type",
            EventFilter {
                subject: subject("12"),
                kind: Some("payment.paid".into()),
                ..none()
            },
            &["evt-5"],
        ),
        (
            "subject of another type",
            EventFilter {
                subject: subject("10"),
                kind: Some("payment.paid".into()),
                ..none()
            },
            &[],
        ),
        (
            "subject and time",
            EventFilter {
                subject: subject("10"),
                since: at(2),
                until: at(3),
                ..none()
            },
            &["evt-2"],
        ),
        (
            "odd subject",
            EventFilter {
                subject: subject("' OR 1=1 \u{0}"),
                ..none()
            },
            &[],
        ),
        (
            "type",
            EventFilter {
                kind: Some("payment.paid".into()),
                ..none()
            },
            &["evt-5"],
        ),
        (
            "time",
            EventFilter {
                since: at(2),
                until: at(4),
                ..none()
            },
            &["evt-3", "evt-2"],
        ),
    ];
    for (case, filter, expected) in cases {
        let page = store
            .events(&only("a"), &filter, &Paging::default())
            .await
            .unwrap();
        let ids: Vec<_> = page.items.iter().map(|row| row.event.id.as_str()).collect();
        assert_eq!(ids, expected, "{case}");
    }
}

async fn paging_deliveries_neither_skips_nor_repeats_while_they_move(place: Place) {
    let store = place.open().await;
    // Four to each time, so that a page ends among equals.
    let events: Vec<_> = (0..6)
        .map(|n| archived("a", n, &[sub(1), sub(2), sub(3), sub(4)]))
        .collect();
    record(&store, &events, &[]).await;
    let filter = DeliveryFilter::default();
    let list = async |paging: Paging| store.deliveries(&only("a"), &filter, &paging).await;
    let expected = read_pages(500, list, async |_| {}).await;
    assert_eq!(expected.len(), 24);
    let between = async |page: usize| {
        // Some move on, and some are new at the top.
        let event = &events[page % 6];
        let entries = [tried(event, &sub(2), DeliveryState::Delivered, 1, 200)];
        let new = archived("a", 100 + i64::try_from(page).unwrap(), &[sub(1)]);
        record(&store, &[new], &entries).await;
    };
    let paged = read_pages(3, list, between).await;
    let ids = |rows: &[DeliveryRow]| rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&paged), ids(&expected));
    assert!(paged.is_sorted_by(|a, b| a.accepted_at >= b.accepted_at));
}

async fn paging_events_neither_skips_nor_repeats_while_more_come(place: Place) {
    let store = place.open().await;
    let at = |of: &str, n: i64| {
        let mut event = with(&archived(of, n, &[]), |event| {
            event.subject = serde_json::from_str("5").unwrap()
        });
        event.accepted_at = start() + (n / 3).minutes();
        event
    };
    // The same ids in two tenants, and three ids to each time.
    let events: Vec<_> = (0..12).flat_map(|n| [at("a", n), at("b:x_-", n)]).collect();
    record(&store, &events, &[]).await;
    for subject in [None, Some("5".to_owned())] {
        let filter = EventFilter {
            subject,
            ..EventFilter::default()
        };
        let list = async |paging: Paging| store.events(&Sight::All, &filter, &paging).await;
        let expected: Vec<String> = names(&read_pages(500, list, async |_| {}).await);
        let between = async |page: usize| {
            record(
                &store,
                &[archived("a", 100 + i64::try_from(page).unwrap(), &[])],
                &[],
            )
            .await
        };
        let paged = names(&read_pages(5, list, between).await);
        assert_eq!(paged, expected);
        assert!(expected.len() >= 24);
    }
    let cursor = Some("ZXZlbnRzOjE6eA".into());
    let bad = store
        .events(
            &Sight::All,
            &EventFilter::default(),
            &Paging { cursor, limit: 1 },
        )
        .await;
    assert!(matches!(bad, Err(store::Error::BadCursor)), "{bad:?}");
}

fn names(rows: &[store::EventRow]) -> Vec<String> {
    rows.iter()
        .map(|row| format!("{}/{}", row.event.tenant, row.event.id))
        .collect()
}

async fn recorders_side_by_side_record_everything_once(place: Place) {
    let events: Vec<_> = (0..400)
        .map(|n| archived("a", n, &[sub(1), sub(2), sub(3)]))
        .collect();
    let entries: Vec<_> = events
        .iter()
        .flat_map(|event| [1, 2, 3].map(|n| tried(event, &sub(n), DeliveryState::Retrying, 1, 500)))
        .collect();
    let mut recorders = tokio::task::JoinSet::new();
    for recorder in 0..4 {
        let store = place.open().await;
        let (mut events, mut entries) = (events.clone(), entries.clone());
        events.rotate_left(recorder * 31);
        entries.rotate_left(recorder * 97);
        recorders.spawn(async move {
            let (mut rows, mut attempts) = (0, 0);
            for (events, entries) in events.chunks(80).zip(entries.chunks(240)) {
                let recorded = store.record(events, entries).await.unwrap();
                rows += recorded.events;
                attempts += recorded.attempts;
            }
            (rows, attempts)
        });
    }
    let (mut rows, mut attempts) = (0, 0);
    while let Some(ended) = recorders.join_next().await {
        let (some, more) = ended.unwrap();
        (rows, attempts) = (rows + some, attempts + more);
    }
    assert_eq!((rows, attempts), (400, 1200), "each was new to one of them");
    let store = place.open().await;
    let counts = store
        .delivery_periods(&Sight::All, &DeliveryFilter::default(), Period::Month)
        .await
        .unwrap();
    assert_eq!(
        counts[0].states,
        BTreeMap::from([(DeliveryState::Retrying, 1200)])
    );
}

async fn a_log_reads_by_day_week_and_month(place: Place) {
    let store = place.open().await;
    let day = 24 * 60;
    // Monday the 2nd, twice; Sunday the 8th; Monday the 9th; the 1st of April.
    let mut events = Vec::new();
    for (n, minutes) in [0, 1, 6 * day, 7 * day, 30 * day].into_iter().enumerate() {
        let mut event = archived("a", i64::try_from(n).unwrap(), &[sub(1)]);
        event.accepted_at = start() + i64::from(minutes).minutes();
        events.push(event);
    }
    let entries = [tried(&events[1], &sub(1), DeliveryState::Delivered, 1, 200)];
    record(&store, &events, &entries).await;
    let counted = async |period, filter: &DeliveryFilter| {
        let counts = store
            .delivery_periods(&only("a"), filter, period)
            .await
            .unwrap();
        let line = |count: &PeriodCount| format!("{} {}", count.start, count.total);
        counts.iter().map(line).collect::<Vec<_>>().join(", ")
    };
    let all = DeliveryFilter::default();
    assert_eq!(
        counted(Period::Day, &all).await,
        "2026-03-02 2, 2026-03-08 1, 2026-03-09 1, 2026-04-01 1"
    );
    assert_eq!(
        counted(Period::Week, &all).await,
        "2026-03-02 3, 2026-03-09 1, 2026-03-30 1"
    );
    assert_eq!(
        counted(Period::Month, &all).await,
        "2026-03-01 4, 2026-04-01 1"
    );
    let delivered = DeliveryFilter {
        state: Some(DeliveryState::Delivered),
        ..all.clone()
    };
    assert_eq!(counted(Period::Week, &delivered).await, "2026-03-02 1");
    let counts = store
        .delivery_periods(&Sight::All, &all, Period::Day)
        .await
        .unwrap();
    assert_eq!(
        serde_json::to_value(&counts[0]).unwrap(),
        serde_json::json!({"start": "2026-03-02", "total": 2, "states": {"pending": 1, "delivered": 1}})
    );
}

async fn a_walk_through_events_brings_what_a_subscription_wants_oldest_first(place: Place) {
    let store = place.open().await;
    let kinds = [
        "appointment.created",
        "payment.paid",
        "appointments.created",
        "appointment.updated",
        "custom.onX",
    ];
    let events: Vec<_> = (0..40)
        .map(|n| {
            let kind = kinds[usize::try_from(n).unwrap() % kinds.len()];
            with(&archived("a", n, &[sub(1)]), |event| {
                event.kind = event::EventType::parse(kind).unwrap()
            })
        })
        .chain([archived("b", 3, &[])])
        .collect();
    record(&store, &events, &[]).await;
    let walk = async |words: &[&str], since: i64, until: Option<i64>| {
        let selectors: Vec<_> = words
            .iter()
            .map(|word| Selector::parse(word).unwrap())
            .collect();
        let until = until.map(|n| start() + n.minutes());
        let list = async |paging: Paging| -> Result<Page<Archived>, store::Error> {
            store
                .events_since(
                    &tenant("a"),
                    &selectors,
                    start() + since.minutes(),
                    until,
                    &paging,
                )
                .await
        };
        let items = read_pages(3, list, async |_| {}).await;
        assert!(
            items
                .iter()
                .all(|item| item.event.data.as_ref().unwrap().get() == DATA)
        );
        items
            .iter()
            .map(|item| item.event.id.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(walk(&["*"], 0, None).await.len(), 40);
    assert_eq!(
        walk(&["appointment.*"], 30, None).await,
        ["evt-30", "evt-33", "evt-35", "evt-38"]
    );
    assert_eq!(
        walk(&["appointment.saved", "custom.onX"], 0, Some(6)).await,
        ["evt-0", "evt-3", "evt-4", "evt-5"]
    );
    assert_eq!(
        walk(&["payment.paid"], 2, Some(12)).await,
        ["evt-6", "evt-11"]
    );
}

async fn a_day_long_past_and_a_day_to_come_have_their_place(place: Place) {
    let store = place.open().await;
    for (n, at) in [
        "1969-12-31T23:59:59.999999999Z",
        "1970-01-01T00:00:00Z",
        "2200-01-01T00:00:00Z",
    ]
    .into_iter()
    .enumerate()
    {
        let mut event = archived("a", i64::try_from(n).unwrap(), &[sub(1)]);
        event.accepted_at = at.parse().unwrap();
        record(&store, std::slice::from_ref(&event), &[]).await;
        let (row, _) = one(&store, &delivery_of(&event, &sub(1))).await;
        assert_eq!(row.accepted_at, event.accepted_at);
    }
    let names = listed(&store, &Sight::All, &DeliveryFilter::default()).await;
    assert_eq!(names, ["evt-2/sub_1", "evt-1/sub_1", "evt-0/sub_1"]);
}
