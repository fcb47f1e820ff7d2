//! Every list finds its page by an index, whatever is asked: no table is read from end to end, and
//! nothing but a page is sorted.

use event::{
    EventId,
    reason::{DeadReason, DeliveryState},
};
use jiff::ToSpan;
use store::{DeliveryFilter, EventFilter, Paging, Sight, Store};

use super::{
    Place,
    log::{archived, entry, start, sub, tried},
    only, promises, tenant,
};

promises!(every_list_is_found_by_an_index);

/// How many events are recorded; each is then multiplied by [`MORE`] in the database itself, to
/// 60 000 of them and 120 000 deliveries. One in ten is not delivered.
const EVENTS: i64 = 2000;
const MORE: [&str; 3] = [
    "WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 29) \
     INSERT INTO deliveries (id, day, event_id, subscription_id, tenant, kind, state, reason, \
     attempts, run, progress, purpose, accepted_at, updated_at) \
     SELECT id || '_' || n, day, event_id || '_' || n, subscription_id, tenant, kind, state, \
     reason, attempts, run, progress, purpose, accepted_at + n * 1000000, updated_at \
     FROM deliveries, g",
    "WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 29) \
     INSERT INTO events (id, tenant, day, accepted_at, kind, revision, bytes, matched, document) \
     SELECT id || '_' || n, tenant, day, accepted_at + n * 1000000, kind, revision, bytes, \
     matched, document FROM events, g",
    "WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 29) \
     INSERT INTO event_subjects (subject, accepted_at, kind, id, tenant, day) \
     SELECT subject, accepted_at + n * 1000000, kind, id || '_' || n, tenant, day \
     FROM event_subjects, g",
];

async fn filled(place: &Place) -> Store {
    let store = place.open().await;
    for from in (0..EVENTS).step_by(1000) {
        let (mut events, mut entries) = (Vec::new(), Vec::new());
        for n in from..from + 1000 {
            let number = usize::try_from(n).unwrap();
            let to = [sub(number % 50), sub(50 + number % 7)];
            let mut archived = archived(["a", "b", "c"][number % 3], n, &to);
            // Four days.
            archived.accepted_at = start() + (n * 170).seconds();
            let mut event = (*archived.event).clone();
            event.data = None;
            event.kind = event::EventType::parse(&format!("entity_{}.created", n % 20)).unwrap();
            event.subject = serde_json::from_str(&(n % 900).to_string()).unwrap();
            archived.event = event.into();
            for to in &to {
                entries.push(match n % 10 {
                    0 => {
                        let mut dead = entry(&archived, to, DeliveryState::Dead, 1);
                        dead.reason = Some(DeadReason::ALL[number / 10 % 7]);
                        dead
                    }
                    _ => tried(&archived, to, DeliveryState::Delivered, 1, 200),
                });
            }
            events.push(archived);
        }
        // The attempts are of no interest here.
        entries.iter_mut().for_each(|entry| entry.attempt = None);
        store.record(&events, &entries).await.unwrap();
    }
    for sql in MORE {
        place.execute(sql).await;
    }
    if !place.settings.url.starts_with("sqlite:") {
        // As PostgreSQL does by itself; nobody does it for SQLite.
        place.execute("ANALYZE").await;
    }
    store
}

/// Says what is wrong with a plan.
#[track_caller]
fn check(case: &str, plan: &[String]) {
    let text = plan.join("\n");
    assert!(
        text.contains("Index") || text.contains("USING"),
        "{case}:\n{text}"
    );
    for line in plan {
        // SQLite: a table read from end to end, or sorted.
        let reads_all = line.starts_with("SCAN ") && !line.contains(" USING ");
        // PostgreSQL the same; a sort of a handful of rows is none.
        let reads_all = reads_all || line.contains("Seq Scan");
        // One page of events, or what one event has, is a handful too.
        let few = text.contains("event_subjects") || text.contains("event_id=?");
        let sorts = line.contains("TEMP B-TREE") && !few;
        let sorts = sorts || (line.contains("Sort  (") && !is_small(line));
        assert!(!reads_all && !sorts, "{case}: {line}\n{text}");
    }
}

/// Whether PostgreSQL expects to find so little that sorting it is nothing.
fn is_small(line: &str) -> bool {
    let rows = line
        .split("rows=")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    rows.and_then(|rows| rows.parse::<u32>().ok())
        .is_some_and(|rows| rows <= 1000)
}

async fn every_list_is_found_by_an_index(place: Place) {
    let store = filled(&place).await;
    deliveries(&store, place.settings.url.starts_with("sqlite:")).await;
    events(&store).await;
}

async fn deliveries(store: &Store, sqlite: bool) {
    let states = [
        None,
        Some(DeliveryState::Dead),
        Some(DeliveryState::Pending),
        Some(DeliveryState::Delivered),
    ];
    let mut cases = 0;
    for bits in 0..64_u32 {
        let has = |bit: u32| bits & (1 << bit) != 0;
        for state in states {
            let filter = DeliveryFilter {
                subscription: has(0).then(|| sub(5)),
                event: has(1).then(|| EventId::parse("evt-55").unwrap()),
                kind: has(2).then(|| "entity_5.created".to_owned()),
                since: has(3).then(|| start() + 24.hours()),
                until: has(4).then(|| start() + 72.hours()),
                reason: has(5).then_some(DeadReason::Gone),
                state,
            };
            if has(5) && !matches!(state, None | Some(DeliveryState::Dead)) {
                // Nothing can be found, and the database is not asked.
                let page = store
                    .deliveries(&Sight::All, &filter, &Paging::default())
                    .await;
                assert!(page.unwrap().items.is_empty());
                continue;
            }
            for sight in [Sight::All, only("a")] {
                let first = Paging::default();
                let mut plans = vec![
                    store
                        .plan_of_deliveries(&sight, &filter, &first)
                        .await
                        .unwrap(),
                ];
                // And further on, where there is more.
                let page = store
                    .deliveries(
                        &sight,
                        &filter,
                        &Paging {
                            cursor: None,
                            limit: 3,
                        },
                    )
                    .await
                    .unwrap();
                let next = Paging {
                    cursor: page.cursor,
                    limit: 50,
                };
                plans.push(
                    store
                        .plan_of_deliveries(&sight, &filter, &next)
                        .await
                        .unwrap(),
                );
                for plan in plans {
                    check(&format!("{filter:?} {sight:?}"), &plan);
                    if sqlite {
                        // It has no statistics: what is rarest must be chosen for it.
                        let rarest = match (&filter.event, &filter.subscription) {
                            (Some(_), _) => "deliveries_of_event",
                            (None, Some(_)) => "_of_subscription",
                            (None, None) => "deliveries_",
                        };
                        assert!(plan[0].contains(rarest), "{filter:?}: {plan:?}");
                    }
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, (32 * 4 + 32 * 2) * 4);
    assert!(
        store
            .events_since(&tenant("a"), &[], start(), None, &Paging::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

async fn events(store: &Store) {
    for bits in 0..16_u32 {
        let has = |bit: u32| bits & (1 << bit) != 0;
        let filter = EventFilter {
            kind: has(0).then(|| "entity_5.created".to_owned()),
            since: has(1).then(|| start() + 24.hours()),
            until: has(2).then(|| start() + 72.hours()),
            subject: has(3).then(|| "77".to_owned()),
        };
        for sight in [Sight::All, only("a")] {
            let plan = store
                .plan_of_events(&sight, &filter, &Paging::default())
                .await
                .unwrap();
            check(&format!("{filter:?} {sight:?}"), &plan);
        }
    }
}
