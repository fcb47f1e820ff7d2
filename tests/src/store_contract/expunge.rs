//! Forgetting one resource: nothing of its payloads is left, everything else stays, and what was
//! expunged is not sent any more.

use std::sync::Arc;

use event::{
    DeadLetterId, DeliveryId,
    delivery::{AttemptRecord, DeadLetter, Item, Recipient},
    log::{Archived, HeldDelivery, LogEntry},
    reason::{DeadReason, DeliveryState},
    selector::Selector,
};
use jiff::{Timestamp, ToSpan};
use sqlx::Row;
use store::{
    DeadFilter, DeliveryFilter, EventFilter, Expunged, Paging, Resource, Sight, Store,
    jobs::{Counted, JobFilter},
};

use super::{
    Place,
    log::{entry, start, sub, tried},
    promises, tenant,
};

promises!(
    nothing_of_a_resource_is_left_anywhere,
    other_resources_and_other_tenants_stay,
    what_is_expunged_is_not_sent_any_more,
    a_deletion_without_data_is_still_told_of,
    what_is_logged_later_goes_with_the_next_call,
    a_resource_of_many_events_goes_in_steps,
);

/// Written into every payload and every answer of the resource.
const MARK: &str = "canary-7f3a";

fn now() -> Timestamp {
    start() + 40.hours()
}

fn event(n: i64, of: &str, kind: &str, rest: &str) -> Archived {
    let json = format!(
        r#"{{"id":"evt-{n}","tenant":"{of}","type":"{kind}","time":"2026-01-01T00:00:00Z",{rest}}}"#
    );
    Archived {
        event: Arc::new(serde_json::from_str(&json).unwrap()),
        accepted_at: start() + n.minutes(),
        revision: 7,
        bytes: json.len() as u64,
        matched: vec![sub(1)],
    }
}

/// Created, saved and deleted, each written in its own way.
fn history(of: &str) -> Vec<Archived> {
    let saved = format!(r#""data":{{"id": 10,"name":"{MARK}"}},"changes":{{"name":"{MARK}"}}"#);
    let deleted = format!(r#""subject":["9","10"],"details":{{"name":"{MARK}"}}"#);
    vec![
        event(1, of, "client.created", &saved),
        event(
            2,
            of,
            "client.updated",
            &saved.replace("10", r#""\u0031\u0030""#),
        ),
        event(
            3,
            of,
            "client.updated",
            &format!(r#""subject":10,"data":["{MARK}"]"#),
        ),
        event(4, of, "client.deleted", &deleted),
    ]
}

fn answered(archived: &Archived, state: DeliveryState, number: u32) -> LogEntry {
    let mut entry = tried(archived, &sub(1), state, number, 503);
    entry.attempt.as_mut().unwrap().response = Some(format!("not {MARK} again"));
    entry
}

fn dead(archived: &Archived) -> DeadLetter {
    let event = &archived.event;
    let delivery_id = DeliveryId::of(&event.tenant, &event.id, &sub(1));
    DeadLetter {
        id: DeadLetterId::of(&delivery_id, 0),
        delivery_id,
        event_id: event.id.clone(),
        subscription_id: sub(1),
        tenant: event.tenant.clone(),
        kind: event.kind.clone(),
        reason: DeadReason::Exhausted,
        detail: "no".into(),
        attempts: 1,
        run: 0,
        died_at: archived.accepted_at + 1.hour(),
        accepted_at: archived.accepted_at,
        history: vec![AttemptRecord {
            number: 1,
            at: archived.accepted_at,
            duration_ms: 1,
            status: Some(503),
            error: None,
            detail: None,
            response: Some(MARK.into()),
        }],
        event: Arc::clone(event),
        expunged_at: None,
    }
}

fn held(archived: &Archived) -> HeldDelivery {
    HeldDelivery {
        at: archived.accepted_at,
        item: Item {
            event: Arc::clone(&archived.event),
            accepted_at: archived.accepted_at,
            revision: 7,
            to: vec![Recipient::first(sub(2))],
        },
    }
}

/// Everything that can be remembered of a tenant's client 10: one delivery that died, one held.
async fn remember(store: &Store, of: &str) -> Vec<Archived> {
    let events = history(of);
    let mut entries = Vec::new();
    for event in &events {
        entries.push(answered(event, DeliveryState::Retrying, 1));
        entries.push(answered(event, DeliveryState::Dead, 2));
        entries.push(entry(event, &sub(2), DeliveryState::Held, 0));
    }
    store.record(&events, &entries).await.unwrap();
    let letters: Vec<_> = events.iter().map(dead).collect();
    store.record_dead(&letters).await.unwrap();
    let held: Vec<_> = events.iter().map(held).collect();
    store.record_held(&held).await.unwrap();
    events
}

fn client(of: &str, id: &str) -> Resource {
    Resource {
        tenant: tenant(of),
        entity: "client".into(),
        id: id.into(),
    }
}

async fn expunge(store: &Store, resource: &Resource) -> Expunged {
    store.expunge(resource, now()).await.unwrap()
}

/// How many rows of all tables have the mark in them.
async fn marked(place: &Place) -> i64 {
    let mut found = 0;
    for (table, column) in [
        ("events", "document"),
        ("events", "payload"),
        ("deliveries", "detail"),
        ("attempts", "document"),
        ("dead_letters", "document"),
        ("held", "document"),
        ("notices", "document"),
        ("event_subjects", "subject"),
    ] {
        let sql = format!("SELECT COUNT(*) FROM {table} WHERE {column} LIKE '%{MARK}%'");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .fetch_one(&mut place.raw().await)
            .await
            .unwrap();
        found += row.get::<i64, _>(0);
    }
    found
}

async fn letters(store: &Store) -> Vec<DeadLetter> {
    let (filter, paging) = (DeadFilter::default(), Paging::default());
    let page = store.dead_letters(&Sight::All, &filter, &paging).await;
    page.unwrap().items
}

async fn nothing_of_a_resource_is_left_anywhere(place: Place) {
    let store = place.open().await;
    let events = remember(&store, "a").await;
    assert_eq!(marked(&place).await, 4 + 8 + 4 + 4);
    let all = Expunged {
        events: 4,
        deliveries: 8,
        dead_letters: 4,
    };
    assert_eq!(expunge(&store, &client("a", "10")).await, all);
    assert_eq!(marked(&place).await, 0);
    let again = expunge(&store, &client("a", "10")).await;
    assert_eq!(
        again,
        Expunged::default(),
        "the second time nothing is left"
    );

    // The envelopes stay, with a mark, and so does what became of them.
    for archived in &events {
        let found = store.event(&Sight::All, &archived.event.id).await.unwrap();
        assert_eq!(found[0].expunged_at, Some(now()));
        assert!(found[0].event.data.is_none() && found[0].event.details.is_none());
        assert_eq!(found[0].event.kind, archived.event.kind);
        let id = DeliveryId::of(&tenant("a"), &archived.event.id, &sub(1));
        let record = store.delivery(&Sight::All, &id).await.unwrap().unwrap();
        assert_eq!(record.history.len(), 2);
        assert_eq!(record.history[0].attempt.status, Some(503));
    }
    let filter = EventFilter {
        subject: Some("10".into()),
        ..Default::default()
    };
    let page = store.events(&Sight::All, &filter, &Paging::default()).await;
    assert_eq!(page.unwrap().items.len(), 4);
    let letters = letters(&store).await;
    assert_eq!(letters.len(), 4);
    assert!(
        letters
            .iter()
            .all(|letter| letter.expunged_at == Some(now()))
    );

    // A late copy of what was recorded brings nothing back.
    remember(&store, "a").await;
    assert_eq!(marked(&place).await, 0);
}

async fn other_resources_and_other_tenants_stay(place: Place) {
    let store = place.open().await;
    remember(&store, "a").await;
    remember(&store, "b").await;
    let before = marked(&place).await;
    for (entity, id) in [
        ("client", "1"),
        ("client", "100"),
        ("client", "1_"),
        ("client", "%"),
        ("client", "9%"),
        ("clien_", "10"),
        ("payment", "10"),
    ] {
        let resource = Resource {
            entity: entity.into(),
            ..client("a", id)
        };
        let none = expunge(&store, &resource).await;
        assert_eq!(none, Expunged::default(), "{entity} {id}");
    }
    assert_eq!(
        expunge(&store, &client("c", "10")).await,
        Expunged::default()
    );
    assert_eq!(marked(&place).await, before);
    assert_eq!(expunge(&store, &client("a", "10")).await.events, 4);
    assert_eq!(marked(&place).await, before / 2, "the other tenant's stays");
}

async fn what_is_expunged_is_not_sent_any_more(place: Place) {
    let store = place.open().await;
    remember(&store, "a").await;
    assert_eq!(store.count_held(&sub(2)).await.unwrap(), 4);
    expunge(&store, &client("a", "10")).await;
    assert_eq!(store.count_held(&sub(2)).await.unwrap(), 0);
    let filter = DeliveryFilter {
        state: Some(DeliveryState::Canceled),
        ..Default::default()
    };
    let paging = Paging::default();
    let page = store.deliveries(&Sight::All, &filter, &paging).await;
    let canceled = page.unwrap().items;
    assert_eq!(canceled.len(), 4);
    assert!(canceled.iter().all(|row| row.detail.is_some()));

    let (all, tenant) = (JobFilter::default(), tenant("a"));
    let counted = store.count_events(&tenant, &[Selector::All], &all).await;
    assert_eq!(counted.unwrap(), Counted { total: 4, whole: 0 });
    let to = sub(1);
    let events = store.walk_events((&tenant, &to), &[Selector::All], &all, None, 10);
    let letters = store.walk_letters(&Sight::All, None, &all, None, 10);
    for walked in [events.await.unwrap(), letters.await.unwrap()] {
        assert_eq!(walked.candidates.len(), 4);
        assert!(walked.candidates.iter().all(|candidate| candidate.expunged));
    }
}

async fn a_deletion_without_data_is_still_told_of(place: Place) {
    let store = place.open().await;
    let deleted = event(1, "a", "client.deleted", r#""subject":10"#);
    store
        .record(std::slice::from_ref(&deleted), &[])
        .await
        .unwrap();
    store.record_held(&[held(&deleted)]).await.unwrap();
    let mut letter = dead(&deleted);
    store.record_dead(&[letter.clone()]).await.unwrap();
    let done = expunge(&store, &client("a", "10")).await;
    assert_eq!((done.events, done.deliveries), (0, 0));
    assert_eq!(store.count_held(&sub(2)).await.unwrap(), 1);
    let kept = letters(&store).await.remove(0);
    assert_eq!(kept.expunged_at, None);
    // But what an endpoint answered is gone.
    letter.history[0].response = None;
    assert_eq!(kept.history, letter.history);
}

async fn what_is_logged_later_goes_with_the_next_call(place: Place) {
    let store = place.open().await;
    let events = remember(&store, "a").await;
    expunge(&store, &client("a", "10")).await;
    let mut late = answered(&events[0], DeliveryState::Retrying, 1);
    late.run = 1;
    store.record(&[], &[late]).await.unwrap();
    let mut letter = dead(&events[1]);
    letter.run = 1;
    letter.id = DeadLetterId::of(&letter.delivery_id, 1);
    store.record_dead(&[letter]).await.unwrap();
    assert_eq!(marked(&place).await, 2);
    let late = Expunged {
        events: 0,
        deliveries: 1,
        dead_letters: 1,
    };
    assert_eq!(expunge(&store, &client("a", "10")).await, late);
    assert_eq!(marked(&place).await, 0);
}

async fn a_resource_of_many_events_goes_in_steps(place: Place) {
    let store = place.open().await;
    let of = |n: i64| {
        let id = if n % 2 == 0 { 10 } else { 11 };
        let rest = format!(r#""data":{{"id":{id},"name":"{MARK}"}}"#);
        let mut archived = event(n, "a", "client.updated", &rest);
        // Some at the same moment, some on another day.
        archived.accepted_at = start() + (n / 3).minutes();
        archived
    };
    let events: Vec<_> = (0..1300).map(of).collect();
    let entries: Vec<_> = events
        .iter()
        .map(|event| answered(event, DeliveryState::Retrying, 1))
        .collect();
    store.record(&events, &entries).await.unwrap();
    let letters: Vec<_> = events.iter().map(dead).collect();
    store.record_dead(&letters).await.unwrap();
    let done = expunge(&store, &client("a", "10")).await;
    let half = Expunged {
        events: 650,
        deliveries: 650,
        dead_letters: 650,
    };
    assert_eq!(done, half);
    assert_eq!(marked(&place).await, 3 * 650, "the other half stays");
}
