//! Claims: the primary key decides who takes an id, whoever asks at once and from wherever.

use std::time::Duration;

use event::{EventId, Tenant};
use jiff::{SignedDuration, Timestamp};
use store::{
    Settings, Store,
    claims::{Claim, Hash, Held, Key},
    dedup::{self, Dedup},
};

use super::{Place, promises};
use crate::support::postgres::Postgres;

promises!(
    an_id_is_claimed_once_and_what_is_on_record_is_told,
    what_is_noted_takes_nothing_from_anybody,
    of_many_claimants_at_once_one_wins_each_id,
    a_claim_outside_of_the_window_is_none,
    old_claims_are_forgotten_in_steps,
    a_look_up_uses_the_key,
);

fn key(tenant: &str, id: &str) -> Key {
    (Tenant::parse(tenant).unwrap(), EventId::parse(id).unwrap())
}

fn hash(data: &str) -> Hash {
    let text = format!(
        r#"{{"id":"e","tenant":"t","type":"a.b","time":"2026-01-01T00:00:00Z","data":"{data}"}}"#
    );
    Hash::of(&serde_json::from_str(&text).unwrap(), Timestamp::UNIX_EPOCH)
}

fn claim(key: Key, data: &str, token: Option<&str>) -> Claim {
    let held = Held {
        hash: hash(data),
        token: token.map(str::to_owned),
        at: now(),
    };
    Claim { key, held }
}

/// A claim of this moment, for who goes by the clock.
fn fresh(key: Key, data: &str, token: Option<&str>) -> Claim {
    let mut claim = claim(key, data, token);
    claim.held.at = Timestamp::now();
    claim
}

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

async fn an_id_is_claimed_once_and_what_is_on_record_is_told(place: Place) {
    let store = place.open().await;
    // Out of order, and with what a quoted text could break on.
    let first = [
        claim(key("t", "e2"), "a", None),
        claim(key("t", "e1"), "b", Some("k\"\\'1")),
        claim(key("u", "e2"), "c", None),
        claim(key("t", "\"quoted\\'$1"), "d", None),
    ];
    let since = now() - DAY;
    let made = store.claim(&first, since).await.unwrap();
    assert_eq!(made, [None, None, None, None]);
    let second = [
        claim(key("t", "e3"), "x", None),
        claim(key("t", "e2"), "x", Some("k2")),
        claim(key("t", "e1"), "b", None),
        claim(key("t", "\"quoted\\'$1"), "x", None),
    ];
    let made = store.claim(&second, since).await.unwrap();
    let held = |n: usize| Some(first[n].held.clone());
    assert_eq!(made, [None, held(0), held(1), held(3)]);
    let keys = [key("u", "e2"), key("u", "e1"), key("t", "e2")];
    let other = place.open().await;
    let found = other.claimed(&keys, since).await.unwrap();
    assert_eq!(found, [held(2), None, held(0)]);
    assert_eq!(store.claimed(&[], since).await.unwrap(), []);
    assert_eq!(store.claim(&[], since).await.unwrap(), []);
}

async fn what_is_noted_takes_nothing_from_anybody(place: Place) {
    let store = place.open().await;
    let since = now() - DAY;
    let taken = claim(key("t", "taken"), "a", None);
    store
        .claim(std::slice::from_ref(&taken), since)
        .await
        .unwrap();
    let free = claim(key("t", "free"), "b", Some("k"));
    let noted = [claim(key("t", "taken"), "x", Some("k")), free.clone()];
    store.note_claims(&noted, since).await.unwrap();
    store.note_claims(&noted, since).await.unwrap();
    let found = store.claimed(&[taken.key, free.key], since).await.unwrap();
    assert_eq!(found, [Some(taken.held), Some(free.held)]);
}

/// In four processes, 1 500 ids each, in different orders and in overlapping parts.
async fn of_many_claimants_at_once_one_wins_each_id(place: Place) {
    const IDS: usize = 1500;
    let mut tasks = Vec::new();
    for claimant in 0..4 {
        let store = place.open().await;
        tasks.push(tokio::spawn(async move {
            let mut claims: Vec<_> = (0..IDS)
                .map(|n| {
                    // With a token it is read first, and without it is not.
                    let token = (n % 2 == 0).then_some("k");
                    claim(key("t", &format!("e{n}")), &claimant.to_string(), token)
                })
                .collect();
            if claimant % 2 == 1 {
                claims.reverse();
            }
            claims.rotate_left(claimant * 300);
            let mut won = 0;
            for claims in claims.chunks(100 + claimant * 77) {
                let made = store.claim(claims, now() - DAY).await.unwrap();
                won += made.iter().filter(|held| held.is_none()).count();
            }
            won
        }));
    }
    let mut won = 0;
    for task in tasks {
        won += task.await.unwrap();
    }
    assert_eq!(won, IDS);
}

async fn a_claim_outside_of_the_window_is_none(place: Place) {
    let store = place.open().await;
    let old = claim(key("t", "e"), "a", Some("k"));
    store
        .claim(std::slice::from_ref(&old), now() - DAY)
        .await
        .unwrap();
    let later = now() + DAY;
    let mut at_its_end = [claim(key("t", "e"), "b", None)];
    at_its_end[0].held.at = later;
    let made = store.claim(&at_its_end, later - DAY).await.unwrap();
    assert_eq!(made, [Some(old.held)]);
    let later = later + SignedDuration::from_nanos(1);
    assert_eq!(
        store.claimed(&[key("t", "e")], later - DAY).await.unwrap(),
        [None]
    );
    let made = store.claim(&at_its_end, later - DAY).await.unwrap();
    assert_eq!(made, [None]);
    let found = store.claimed(&[key("t", "e")], later - DAY).await.unwrap();
    assert_eq!(found, [Some(at_its_end[0].held.clone())]);
}

async fn old_claims_are_forgotten_in_steps(place: Place) {
    let store = place.open().await;
    let many = |prefix: &str| -> Vec<_> {
        (0..25)
            .map(|n| claim(key("t", &format!("{prefix}{n}")), "a", None))
            .collect()
    };
    let since = Timestamp::UNIX_EPOCH;
    store.claim(&many("old"), since).await.unwrap();
    let later = now() + DAY;
    let mut new = many("new");
    for claim in &mut new {
        claim.held.at = later;
    }
    store.claim(&new, since).await.unwrap();
    let mut steps = Vec::new();
    while steps.last() != Some(&0) {
        steps.push(store.prune_claims(later, 10).await.unwrap());
    }
    assert_eq!(steps, [10, 10, 5, 0]);
    let keys = [key("t", "old0"), key("t", "new0")];
    let left = store.claimed(&keys, since).await.unwrap();
    assert_eq!((left[0].is_some(), left[1].is_some()), (false, true));
}

/// However many claims there are, none is looked for by reading them all.
async fn a_look_up_uses_the_key(place: Place) {
    place.open().await;
    let postgres = place.folder.is_none();
    let plan = if postgres {
        // A fresh table has no statistics, as the tables of a fresh installation.
        "EXPLAIN SELECT c.hash FROM json_array_elements('[]'::json) CROSS JOIN LATERAL \
         (SELECT * FROM claims WHERE tenant = value ->> 0 AND event_id = value ->> 1 LIMIT 1) c"
    } else {
        "EXPLAIN QUERY PLAN SELECT hash FROM json_each('[]') CROSS JOIN claims \
         ON tenant = value ->> 0 AND event_id = value ->> 1 WHERE at >= 0"
    };
    let rows = sqlx::raw_sql(plan)
        .fetch_all(&mut place.raw().await)
        .await
        .unwrap();
    let column = if postgres { 0 } else { 3 };
    let plan: Vec<String> = rows.iter().map(|row| sqlx::Row::get(row, column)).collect();
    let plan = plan.join("\n");
    let scans = ["Seq Scan on claims", "SCAN claims"];
    assert!(!scans.iter().any(|scan| plan.contains(scan)), "{plan}");
    assert!(
        plan.contains("claims_pkey") || plan.contains("PRIMARY KEY"),
        "{plan}"
    );
}

/// Waits until it says so.
async fn until(dedup: &Dedup, off: bool) {
    let said = async {
        while dedup.is_off() != off {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let said = tokio::time::timeout(Duration::from_secs(30), said).await;
    assert!(said.is_ok(), "off was never {off}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_of_zero_recognizes_nothing() {
    let place = Place::sqlite();
    let window = Duration::ZERO;
    let dedup = Dedup::start(place.open().await, &dedup::Settings { window });
    assert!(dedup.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_of_two_that_are_asked_about_at_once_wins() {
    let place = Place::sqlite();
    let dedup = Dedup::start(place.open().await, &dedup::Settings::default()).unwrap();
    let (one, two) = (
        fresh(key("t", "e"), "a", None),
        fresh(key("t", "e"), "b", None),
    );
    let made = dedup
        .claim(vec![one.clone(), two.clone(), one.clone()])
        .await;
    assert_eq!(
        made,
        Some(vec![None, Some(one.held.clone()), Some(one.held.clone())])
    );
    // And from many tasks, whatever is grouped with what.
    let claims = (0..500).map(|n| {
        let dedup = dedup.clone();
        let claim = fresh(key("t", &format!("x{}", n % 100)), "a", None);
        tokio::spawn(async move { dedup.claim(vec![claim]).await })
    });
    let made = futures_util::future::join_all(claims).await;
    let won = made.into_iter().map(|made| made.unwrap().unwrap());
    assert_eq!(won.filter(|made| made == &[None]).count(), 100);
    let found = dedup
        .find(vec![key("t", "e"), key("t", "none"), key("t", "e")])
        .await;
    assert_eq!(
        found,
        Some(vec![Some(one.held.clone()), None, Some(one.held)])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_is_waited_for_once_and_asked_again_until_it_answers() {
    let place = Place::sqlite();
    let dedup = Dedup::start(place.open().await, &dedup::Settings::default()).unwrap();
    let mut other = place.raw().await;
    sqlx::raw_sql("BEGIN IMMEDIATE")
        .execute(&mut other)
        .await
        .unwrap();
    let held_up = fresh(key("t", "e"), "a", None);
    assert_eq!(dedup.claim(vec![held_up.clone()]).await, None);
    assert!(dedup.is_off());
    let answered_at_once = async {
        for _ in 0..100 {
            assert_eq!(dedup.claim(vec![held_up.clone()]).await, None);
            assert_eq!(dedup.find(vec![held_up.key.clone()]).await, None);
        }
    };
    // Waiting for the store each time would take minutes.
    let answered = tokio::time::timeout(Duration::from_secs(30), answered_at_once).await;
    assert!(answered.is_ok(), "each was waited for");
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    until(&dedup, false).await;
    assert_eq!(dedup.claim(vec![held_up]).await, Some(vec![None]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_is_asked_again_until_it_is_back() {
    let postgres = Postgres::start().await;
    let settings = Settings {
        url: postgres.url(),
        encryption_key: None,
    };
    let store = Store::open(&settings).await.unwrap();
    let dedup = Dedup::start(store, &dedup::Settings::default()).unwrap();
    let one = fresh(key("t", "e"), "a", None);
    assert_eq!(dedup.claim(vec![one.clone()]).await, Some(vec![None]));
    postgres.stop().await;
    assert_eq!(dedup.find(vec![one.key.clone()]).await, None);
    until(&dedup, true).await;
    postgres.start_again().await;
    until(&dedup, false).await;
    assert!(
        dedup
            .claim(vec![fresh(key("t", "f"), "a", None)])
            .await
            .is_some()
    );
}
