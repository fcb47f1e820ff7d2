//! Runs: of all who are asked to send a delivery again at once, one does.

use event::DeliveryId;
use jiff::{SignedDuration, Timestamp};
use store::jobs::Sending;

use super::{Place, promises};

promises!(
    a_run_is_one_owners_until_its_time_is_over,
    of_many_who_are_asked_at_once_one_sends_each_run,
    runs_are_forgotten_after_their_time,
);

const MINUTE: SignedDuration = SignedDuration::from_secs(60);

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn run(delivery: u32, run: u32) -> Sending {
    Sending {
        delivery_id: DeliveryId::parse(&format!("dlv_{delivery:032x}")).unwrap(),
        accepted_at: now(),
        run,
        letter: None,
        held: false,
    }
}

async fn a_run_is_one_owners_until_its_time_is_over(place: Place) {
    let store = place.open().await;
    let take = async |owner: &str, runs: &[Sending], now: Timestamp| {
        store
            .take_runs(owner, runs, now, now + MINUTE)
            .await
            .unwrap()
    };
    let (a, b) = (run(1, 1), run(2, 1));
    assert_eq!(
        take("one", &[b.clone(), a.clone(), b.clone()], now()).await,
        [true; 3]
    );
    let asked = [run(3, 1), a.clone(), run(1, 2)];
    assert_eq!(take("two", &asked, now()).await, [true, false, true]);
    let mut earlier = a.clone();
    earlier.accepted_at = now() - MINUTE;
    assert_eq!(
        take("two", &[earlier], now()).await,
        [true],
        "another event"
    );
    assert_eq!(
        take("one", std::slice::from_ref(&a), now()).await,
        [true],
        "its own"
    );
    let later = now() + MINUTE;
    assert_eq!(
        take("two", std::slice::from_ref(&a), later).await,
        [false],
        "to the end"
    );
    let later = later + SignedDuration::from_nanos(1);
    assert_eq!(take("two", std::slice::from_ref(&a), later).await, [true]);
    store.give_back_run("one", &a.delivery_id, 1).await.unwrap();
    assert_eq!(
        take("one", std::slice::from_ref(&a), later).await,
        [false],
        "not its own"
    );
    store.give_back_run("two", &a.delivery_id, 1).await.unwrap();
    assert_eq!(take("one", &[a], later).await, [true]);
    assert!(take("one", &[], later).await.is_empty());
}

async fn of_many_who_are_asked_at_once_one_sends_each_run(place: Place) {
    let stores = [place.open().await, place.open().await];
    let all: Vec<_> = (0..40).map(|n| run(n, 1)).collect();
    let takers = (0..8).map(|taker| {
        let (store, mut all) = (stores[taker % 2].clone(), all.clone());
        // Each in an order of its own: a circle of locks, were they taken as they come.
        all.rotate_left(taker * 5);
        tokio::spawn(async move {
            let owner = format!("taker-{taker}");
            let until = now() + MINUTE;
            let mut won = 0;
            for runs in all.chunks(10) {
                let taken = store.take_runs(&owner, runs, now(), until).await.unwrap();
                won += taken.iter().filter(|taken| **taken).count();
            }
            won
        })
    });
    let won = futures_util::future::join_all(takers).await;
    let won: usize = won.into_iter().map(|won| won.unwrap()).sum();
    assert_eq!(won, 40, "each once");
}

async fn runs_are_forgotten_after_their_time(place: Place) {
    let store = place.open().await;
    let many: Vec<_> = (0..700).map(|n| run(n, 1)).collect();
    store
        .take_runs("one", &many, now(), now() + MINUTE)
        .await
        .unwrap();
    assert_eq!(store.forget_runs(now() + MINUTE).await.unwrap(), 0);
    let later = now() + MINUTE * 2;
    let mut steps = Vec::new();
    while steps.last() != Some(&0) {
        steps.push(store.forget_runs(later).await.unwrap());
    }
    assert_eq!(steps, [500, 200, 0]);
}
