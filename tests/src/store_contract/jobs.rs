//! Jobs: one recorder a job, one step at a time, and what they walk over, oldest first.

use std::sync::Arc;

use event::{
    DeadLetterId, DeliveryId, Event, JobId, SubscriptionId,
    delivery::{DeadLetter, Item, Purpose, Recipient},
    log::{Archived, HeldDelivery, LogEntry},
    reason::{DeadReason, DeliveryState},
    selector::Selector,
    subscription::SubscriptionState,
};
use jiff::{Timestamp, ToSpan};
use store::{
    Paging, Sight, Store,
    jobs::{
        Created, Intent, Job, JobFilter, JobKind, JobState, JobsWanted, Note, Sending, Task, Walked,
    },
};

use super::{Place, delete, insert, only, promises, read_pages, tenant};

promises!(
    one_job_at_a_time_sends_to_a_subscription,
    a_job_is_one_recorders_until_its_lease_ends,
    who_lost_a_job_can_change_nothing,
    a_step_is_found_by_whoever_takes_the_job_over,
    a_settled_step_ends_its_letters_at_the_same_moment,
    a_canceled_job_is_taken_only_for_its_last_step,
    another_tenants_job_does_not_exist,
    paging_over_jobs_neither_skips_nor_repeats,
    a_walk_over_events_goes_on_anywhere_and_knows_how_deliveries_stand,
    a_walk_over_letters_is_oldest_first_and_keeps_to_its_filter,
    what_arrived_is_told_by_the_log_or_by_a_letter,
    counts_are_those_of_the_walk,
    a_held_delivery_is_kept_once_and_stays_sent,
    what_is_held_is_resumed_once_nobody_holds_it_back,
);

fn at(n: i64) -> Timestamp {
    "2026-03-01T10:00:00.000000001Z"
        .parse::<Timestamp>()
        .unwrap()
        + n.minutes()
}

fn sub(n: u32) -> SubscriptionId {
    SubscriptionId::parse(&format!("sub_{n}")).unwrap()
}

fn event(of: &str, n: i64, kind: &str) -> Arc<Event> {
    let event = serde_json::json!({
        "id": format!("e{n:03}"), "tenant": of, "type": kind, "time": at(0), "data": {"n": n},
    });
    Arc::new(serde_json::from_value(event).unwrap())
}

fn archived(of: &str, n: i64, kind: &str) -> Archived {
    Archived {
        event: event(of, n, kind),
        accepted_at: at(n),
        revision: 1,
        bytes: 100,
        matched: Vec::new(),
    }
}

fn entry(of: &str, n: i64, run: u32, state: DeliveryState) -> LogEntry {
    let event = event(of, n, "payment.paid");
    LogEntry {
        delivery_id: DeliveryId::of(&event.tenant, &event.id, &sub(1)),
        event_id: event.id.clone(),
        subscription_id: sub(1),
        tenant: event.tenant.clone(),
        kind: event.kind.clone(),
        accepted_at: at(n),
        at: at(n) + 1.second(),
        purpose: Purpose::Live,
        run,
        attempts: 1,
        state,
        reason: None,
        detail: None,
        clause: None,
        due: None,
        attempt: None,
    }
}

fn letter(of: &str, n: i64, to: u32) -> DeadLetter {
    let event = event(
        of,
        n,
        if n % 2 == 0 {
            "payment.paid"
        } else {
            "a_b.created"
        },
    );
    let delivery_id = DeliveryId::of(&event.tenant, &event.id, &sub(to));
    DeadLetter {
        id: DeadLetterId::of(&delivery_id, 0),
        delivery_id,
        event_id: event.id.clone(),
        subscription_id: sub(to),
        tenant: event.tenant.clone(),
        kind: event.kind.clone(),
        reason: if n % 3 == 0 {
            DeadReason::Gone
        } else {
            DeadReason::Exhausted
        },
        detail: String::new(),
        attempts: 1,
        run: 0,
        died_at: at(n),
        accepted_at: at(n) - 1.hour(),
        history: Vec::new(),
        event,
        expunged_at: None,
    }
}

fn job(kind: JobKind, of: Option<&str>, to: Option<u32>, n: i64) -> Job {
    Job {
        id: JobId::fresh(),
        tenant: of.map(tenant),
        kind,
        subscription_id: to.map(sub),
        filter: JobFilter {
            since: Some(at(0)),
            types: vec![Selector::parse("appointment.saved").unwrap()],
            ..Default::default()
        },
        state: JobState::Running,
        total: 7,
        done: 0,
        skipped: 0,
        rate: 50,
        detail: None,
        created_at: at(n),
        updated_at: at(n),
    }
}

async fn create(store: &Store, job: Job) -> JobId {
    match store.create_job(job).await.unwrap() {
        Created::New(job) => job.id,
        Created::Running(job) => panic!("{job:?} runs already"),
    }
}

async fn take(store: &Store, owner: &str, now: i64) -> Option<Task> {
    store.take_job(owner, at(now), at(now + 10)).await.unwrap()
}

async fn shown(store: &Store, id: &JobId) -> Job {
    store.job(&Sight::All, id).await.unwrap().unwrap()
}

fn sending(n: i64, run: u32) -> Sending {
    let event = event("a", n, "payment.paid");
    Sending {
        delivery_id: DeliveryId::of(&event.tenant, &event.id, &sub(1)),
        accepted_at: at(n),
        run,
        letter: None,
        held: false,
    }
}

fn intent(place: &str, sends: Vec<Sending>) -> Intent {
    Intent {
        place: place.into(),
        sends,
        skipped: 1,
        tries: 1,
    }
}

async fn one_job_at_a_time_sends_to_a_subscription(place: Place) {
    let store = place.open().await;
    let wanted = job(JobKind::Replay, Some("a"), Some(1), 0);
    let id = create(&store, wanted.clone()).await;
    assert_eq!(shown(&store, &id).await, wanted);
    for other in [
        job(JobKind::Replay, Some("a"), Some(1), 1),
        job(JobKind::Redrive, Some("a"), Some(1), 1),
    ] {
        match store.create_job(other).await.unwrap() {
            Created::Running(running) => assert_eq!(running.id, id),
            Created::New(job) => panic!("{job:?} would send the same"),
        }
    }
    create(&store, job(JobKind::Resume, Some("a"), Some(1), 2)).await;
    create(&store, job(JobKind::Replay, Some("a"), Some(2), 2)).await;
    create(&store, job(JobKind::Redrive, Some("a"), None, 2)).await;
    create(&store, job(JobKind::Redrive, None, None, 2)).await;
    store.cancel_job(&Sight::All, &id, at(3)).await.unwrap();
    create(&store, job(JobKind::Redrive, Some("a"), Some(1), 4)).await;
}

async fn a_job_is_one_recorders_until_its_lease_ends(place: Place) {
    let (one, other) = (place.open().await, place.open().await);
    assert!(take(&one, "one", 0).await.is_none());
    let id = create(&one, job(JobKind::Replay, Some("a"), Some(1), 0)).await;
    let mut tries = Vec::new();
    for n in 0..8 {
        let store = if n % 2 == 0 {
            one.clone()
        } else {
            other.clone()
        };
        tries.push(tokio::spawn(async move {
            take(&store, &n.to_string(), 0).await.is_some()
        }));
    }
    let mut taken = 0;
    for one in tries {
        taken += usize::from(one.await.unwrap());
    }
    assert_eq!(taken, 1, "one of many that ask at once");
    assert!(take(&other, "late", 9).await.is_none());
    let task = take(&other, "late", 11).await.expect("the lease is over");
    assert_eq!(
        (task.job.id.clone(), task.place, task.intent),
        (id.clone(), None, None)
    );
    other.release_job("late", &id, at(12)).await.unwrap();
    assert!(take(&one, "early", 12).await.is_none());
    assert!(take(&one, "next", 13).await.is_some());
}

fn note(now: i64) -> Note<'static> {
    Note {
        state: JobState::Running,
        now: at(now),
        until: at(now + 10),
        place: Some("p"),
        skipped: 2,
        total: Some(9),
        detail: Some("waits"),
    }
}

async fn who_lost_a_job_can_change_nothing(place: Place) {
    let store = place.open().await;
    let id = create(&store, job(JobKind::Replay, Some("a"), Some(1), 0)).await;
    take(&store, "old", 0).await.unwrap();
    assert!(store.keep_job("old", &id, &note(1)).await.unwrap());
    let kept = shown(&store, &id).await;
    assert_eq!(
        (kept.skipped, kept.total, kept.detail.as_deref()),
        (2, 9, Some("waits"))
    );
    take(&store, "new", 20).await.unwrap();
    let step = intent("q", vec![sending(1, 1)]);
    let before = shown(&store, &id).await;
    assert!(!store.keep_job("old", &id, &note(21)).await.unwrap());
    assert!(!store.intend("old", &id, &step, at(31)).await.unwrap());
    assert!(
        !store
            .settle("old", &id, &step, at(21), at(31))
            .await
            .unwrap()
    );
    assert!(!store.drop_intent("old", &id, at(31)).await.unwrap());
    let ended = store
        .end_job("old", &id, JobState::Done, None, at(21))
        .await;
    assert!(!ended.unwrap());
    store.release_job("old", &id, at(21)).await.unwrap();
    assert_eq!(shown(&store, &id).await, before);
    assert!(
        take(&store, "third", 25).await.is_none(),
        "it is still the new one's"
    );
}

async fn a_step_is_found_by_whoever_takes_the_job_over(place: Place) {
    let store = place.open().await;
    let id = create(&store, job(JobKind::Replay, Some("a"), Some(1), 0)).await;
    take(&store, "old", 0).await.unwrap();
    let step = intent("q", vec![sending(1, 1), sending(2, 4)]);
    assert!(store.intend("old", &id, &step, at(10)).await.unwrap());
    let task = take(&store, "new", 20).await.unwrap();
    assert_eq!((task.intent.as_ref(), task.place), (Some(&step), None));
    assert!(
        store
            .settle("new", &id, &step, at(21), at(31))
            .await
            .unwrap()
    );
    let task = take(&store, "third", 40).await.unwrap();
    assert_eq!((task.intent, task.place.as_deref()), (None, Some("q")));
    assert_eq!((task.job.done, task.job.skipped), (2, 1));
    assert!(
        store
            .end_job("third", &id, JobState::Done, None, at(41))
            .await
            .unwrap()
    );
    let job = shown(&store, &id).await;
    assert_eq!(
        (job.state, job.total),
        (JobState::Done, 3),
        "what there really was"
    );
    assert!(take(&store, "fourth", 80).await.is_none());
}

async fn a_settled_step_ends_its_letters_at_the_same_moment(place: Place) {
    let store = place.open().await;
    let letters: Vec<_> = (0..3).map(|n| letter("a", n, 1)).collect();
    store.record_dead(&letters).await.unwrap();
    let id = create(&store, job(JobKind::Redrive, Some("a"), Some(1), 0)).await;
    take(&store, "one", 0).await.unwrap();
    let sends = letters[..2]
        .iter()
        .map(|letter| Sending {
            letter: Some(letter.id.clone()),
            ..sending(0, 1)
        })
        .collect();
    let step = intent("q", sends);
    assert!(!store.settle("two", &id, &step, at(1), at(9)).await.unwrap());
    let listed = async || {
        store
            .count_dead(&Sight::All, None, &JobFilter::default())
            .await
            .unwrap()
    };
    assert_eq!(listed().await, 3);
    assert!(store.settle("one", &id, &step, at(1), at(9)).await.unwrap());
    assert_eq!(listed().await, 1);
    store.record_dead(&letters).await.unwrap();
    assert_eq!(listed().await, 1, "and they do not come back");
}

async fn a_canceled_job_is_taken_only_for_its_last_step(place: Place) {
    let store = place.open().await;
    let id = create(&store, job(JobKind::Replay, Some("a"), Some(1), 0)).await;
    take(&store, "one", 0).await.unwrap();
    let step = intent("q", vec![sending(1, 1)]);
    assert!(store.intend("one", &id, &step, at(10)).await.unwrap());
    let canceled = store
        .cancel_job(&only("a"), &id, at(1))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(canceled.state, JobState::Canceled);
    assert!(!store.keep_job("one", &id, &note(2)).await.unwrap());
    assert!(!store.intend("one", &id, &step, at(10)).await.unwrap());
    let task = take(&store, "two", 20).await.unwrap();
    assert_eq!(
        (task.job.state, task.intent.as_ref()),
        (JobState::Canceled, Some(&step))
    );
    assert!(
        store
            .settle("two", &id, &step, at(21), at(22))
            .await
            .unwrap()
    );
    assert!(take(&store, "three", 40).await.is_none());
    let job = shown(&store, &id).await;
    assert_eq!((job.state, job.done), (JobState::Canceled, 1));
}

async fn another_tenants_job_does_not_exist(place: Place) {
    let store = place.open().await;
    let id = create(&store, job(JobKind::Replay, Some("a"), Some(1), 0)).await;
    let everybodys = create(&store, job(JobKind::Redrive, None, None, 0)).await;
    for id in [&id, &everybodys] {
        assert!(store.job(&only("b"), id).await.unwrap().is_none());
        assert!(
            store
                .cancel_job(&only("b"), id, at(1))
                .await
                .unwrap()
                .is_none()
        );
        assert_eq!(shown(&store, id).await.state, JobState::Running);
    }
    let count = async |sight: Sight| {
        let (all, paging) = (JobsWanted::default(), Paging::default());
        let list = store.jobs(&sight, &all, &paging).await;
        list.unwrap().items.len()
    };
    assert_eq!((count(only("b")).await, count(only("a")).await), (0, 1));
    assert_eq!(count(Sight::All).await, 2);
}

async fn paging_over_jobs_neither_skips_nor_repeats(place: Place) {
    let store = place.open().await;
    let mut wanted = Vec::new();
    for n in 0..9 {
        // Three of the same moment.
        let to = u32::try_from(n).unwrap();
        wanted.push(create(&store, job(JobKind::Replay, Some("a"), Some(to), n / 3)).await);
    }
    let which = JobsWanted {
        kind: Some(JobKind::Replay),
        state: Some(JobState::Running),
        subscription: None,
    };
    let list = async |paging: Paging| store.jobs(&only("a"), &which, &paging).await;
    let between = async |page: usize| {
        let newer = 100 + u32::try_from(page).unwrap();
        create(&store, job(JobKind::Replay, Some("a"), Some(newer), 50)).await;
    };
    let found = read_pages(2, list, between).await;
    let mut found: Vec<_> = found.into_iter().map(|job| job.id).collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
}

/// Everything that a walk finds, by its pages or from the place behind each candidate.
async fn walk(each: bool, step: impl AsyncFn(Option<&str>) -> Walked) -> Vec<String> {
    let mut all = Vec::new();
    let mut place: Option<String> = None;
    loop {
        let walked = step(place.as_deref()).await;
        let first = walked.candidates.first().cloned();
        match (each, first) {
            (true, Some(first)) => {
                all.push(first.event.id.to_string());
                place = Some(first.place);
            }
            _ => {
                all.extend(walked.candidates.iter().map(|c| c.event.id.to_string()));
                match walked.place {
                    Some(next) => place = Some(next),
                    None => return all,
                }
            }
        }
    }
}

async fn a_walk_over_events_goes_on_anywhere_and_knows_how_deliveries_stand(place: Place) {
    let store = place.open().await;
    let mut all = Vec::new();
    for n in 0..12 {
        let kind = ["payment.paid", "customer.created", "a_b.updated"][(n % 3) as usize];
        all.push(archived("a", n, kind));
        all.push(archived("b", n, kind));
    }
    let entries = [
        entry("a", 3, 2, DeliveryState::Delivered),
        entry("a", 6, 0, DeliveryState::Retrying),
    ];
    store.record(&all, &entries).await.unwrap();
    let selectors = ["payment.*", "a_b.saved"].map(|text| Selector::parse(text).unwrap());
    let filter = JobFilter {
        since: Some(at(2)),
        until: Some(at(11)),
        ..Default::default()
    };
    let step = async |place: Option<&str>| {
        let to = (&tenant("a"), &sub(1));
        let walked = store.walk_events(to, &selectors, &filter, place, 2);
        walked.await.unwrap()
    };
    let wanted = ["e002", "e003", "e005", "e006", "e008", "e009"];
    assert_eq!(walk(false, step).await, wanted);
    assert_eq!(walk(true, step).await, wanted);
    let narrow = JobFilter {
        types: vec![Selector::parse("payment.paid").unwrap()],
        ..filter.clone()
    };
    let to = (&tenant("a"), &sub(1));
    let walked = store
        .walk_events(to, &selectors, &narrow, None, 100)
        .await
        .unwrap();
    let standing: Vec<_> = walked
        .candidates
        .iter()
        .map(|c| (c.event.id.to_string(), c.standing.map(|s| (s.run, s.state))))
        .collect();
    assert_eq!(
        standing,
        [
            ("e003".to_owned(), Some((2, DeliveryState::Delivered))),
            ("e006".to_owned(), Some((0, DeliveryState::Retrying))),
            ("e009".to_owned(), None),
        ]
    );
    assert_eq!(walked.place, None);
}

async fn a_walk_over_letters_is_oldest_first_and_keeps_to_its_filter(place: Place) {
    let store = place.open().await;
    let mut letters: Vec<_> = (0..8).map(|n| letter("a", n, 1)).collect();
    letters.extend([letter("a", 20, 2), letter("b", 21, 1)]);
    store.record_dead(&letters).await.unwrap();
    let of = async |sight: Sight, to: Option<u32>, filter: JobFilter, each: bool| {
        let to = to.map(sub);
        let found = walk(each, async |place| {
            let walked = store.walk_letters(&sight, to.as_ref(), &filter, place, 3);
            walked.await.unwrap()
        });
        let found = found.await;
        let counted = store
            .count_dead(&sight, to.as_ref(), &filter)
            .await
            .unwrap();
        assert_eq!(counted, found.len() as u64, "{filter:?}");
        found
    };
    let all = JobFilter::default();
    for each in [false, true] {
        let found = of(only("a"), Some(1), all.clone(), each).await;
        let wanted: Vec<_> = (0..8).map(|n| format!("e{n:03}")).collect();
        assert_eq!(found, wanted);
    }
    assert_eq!(of(Sight::All, None, all.clone(), false).await.len(), 10);
    assert_eq!(of(only("b"), None, all.clone(), false).await, ["e021"]);
    let types = |text: &str| JobFilter {
        types: vec![Selector::parse(text).unwrap()],
        ..all.clone()
    };
    let odd = ["e001", "e003", "e005", "e007"];
    assert_eq!(of(only("a"), Some(1), types("a_b.*"), false).await, odd);
    assert_eq!(of(only("a"), Some(1), types("a_b.saved"), false).await, odd);
    assert!(
        of(only("a"), Some(1), types("axb.*"), false)
            .await
            .is_empty()
    );
    let window = JobFilter {
        since: Some(at(3)),
        until: Some(at(7)),
        reason: Some(DeadReason::Gone),
        ..all
    };
    assert_eq!(
        of(only("a"), Some(1), window, false).await,
        ["e003", "e006"]
    );
}

async fn what_arrived_is_told_by_the_log_or_by_a_letter(place: Place) {
    let store = place.open().await;
    let arrived = async |sends: &[Sending]| store.any_arrived(sends).await.unwrap();
    assert!(!arrived(&[]).await);
    let step = [sending(1, 1), sending(2, 1)];
    store
        .record(&[], &[entry("a", 1, 0, DeliveryState::Delivered)])
        .await
        .unwrap();
    assert!(!arrived(&step).await, "that was the run before");
    // The same delivery of another day.
    let elsewhere = Sending {
        accepted_at: at(1) + 48.hours(),
        ..sending(1, 0)
    };
    assert!(!arrived(&[elsewhere]).await);
    store
        .record(&[], &[entry("a", 2, 1, DeliveryState::Pending)])
        .await
        .unwrap();
    assert!(arrived(&step).await);
    let mut dead = letter("a", 4, 1);
    dead.run = 3;
    dead.id = DeadLetterId::of(&dead.delivery_id, 3);
    store.record_dead(&[dead]).await.unwrap();
    assert!(!arrived(&[sending(4, 2)]).await);
    assert!(arrived(&[sending(4, 3)]).await);
}

async fn counts_are_those_of_the_walk(place: Place) {
    let store = place.open().await;
    let mut bare = archived("a", 5, "payment.refunded");
    Arc::get_mut(&mut bare.event).unwrap().data = None;
    let mut gone = archived("a", 6, "payment.deleted");
    Arc::get_mut(&mut gone.event).unwrap().data = None;
    gone.bytes = 50;
    let all = [
        archived("a", 1, "payment.paid"),
        archived("a", 2, "customer.created"),
        archived("b", 3, "payment.paid"),
        bare,
        gone,
    ];
    let entries = [
        entry("a", 1, 1, DeliveryState::Retrying),
        entry("a", 2, 1, DeliveryState::Pending),
        entry("a", 5, 0, DeliveryState::Pending),
        entry("a", 6, 2, DeliveryState::Delivered),
    ];
    store.record(&all, &entries).await.unwrap();
    let selectors = [Selector::parse("payment.*").unwrap()];
    let filter = JobFilter {
        since: Some(at(0)),
        ..Default::default()
    };
    let counted = store
        .count_events(&tenant("a"), &selectors, &filter)
        .await
        .unwrap();
    assert_eq!(
        (counted.total, counted.whole),
        (3, 2),
        "a deleted one never had a payload"
    );
    assert_eq!(store.replays_under_way(&sub(1), 10).await.unwrap(), 2);
    assert_eq!(store.replays_under_way(&sub(1), 1).await.unwrap(), 1);
    assert_eq!(store.replays_under_way(&sub(2), 10).await.unwrap(), 0);
}

fn held(of: &str, n: i64, to: &SubscriptionId, run: u32) -> HeldDelivery {
    HeldDelivery {
        at: at(n),
        item: Item {
            event: event(of, n, "payment.paid"),
            accepted_at: at(n),
            revision: 1,
            to: vec![Recipient {
                run,
                ..Recipient::first(to.clone())
            }],
        },
    }
}

async fn a_held_delivery_is_kept_once_and_stays_sent(place: Place) {
    let store = place.open().await;
    let all: Vec<_> = (0..5).map(|n| held("a", n, &sub(1), 0)).collect();
    // Twice in one call, and again in the next.
    store
        .record_held(&[&all[..], &all[..]].concat())
        .await
        .unwrap();
    store.record_held(&all).await.unwrap();
    store
        .record_held(&[held("a", 9, &sub(2), 0)])
        .await
        .unwrap();
    assert_eq!(store.count_held(&sub(1)).await.unwrap(), 5);
    for each in [false, true] {
        let found = walk(each, async |place| {
            store.walk_held(&sub(1), place, 2).await.unwrap()
        });
        assert_eq!(found.await, ["e000", "e001", "e002", "e003", "e004"]);
    }
    let first = &store.walk_held(&sub(1), None, 1).await.unwrap().candidates[0];
    assert_eq!(first.held, Some(Purpose::Live));
    assert_eq!(first.event.data.as_ref().unwrap().get(), r#"{"n":0}"#);

    let id = create(&store, job(JobKind::Resume, Some("a"), Some(1), 0)).await;
    take(&store, "one", 0).await.unwrap();
    let sends = [0, 1]
        .map(|n| Sending {
            held: true,
            ..sending(n, 1)
        })
        .into();
    assert!(
        store
            .settle("one", &id, &intent("q", sends), at(1), at(9))
            .await
            .unwrap()
    );
    assert_eq!(store.count_held(&sub(1)).await.unwrap(), 3);
    store.record_held(&all).await.unwrap();
    assert_eq!(
        store.count_held(&sub(1)).await.unwrap(),
        3,
        "a late copy changes nothing"
    );
    store
        .record_held(&[held("a", 0, &sub(1), 1)])
        .await
        .unwrap();
    assert_eq!(
        store.count_held(&sub(1)).await.unwrap(),
        4,
        "its next run is held anew"
    );
    assert_eq!(store.forget_resumed(at(3)).await.unwrap(), 0);
    assert_eq!(store.forget_resumed(at(0) + 200.hours()).await.unwrap(), 2);
    assert_eq!(store.count_held(&sub(1)).await.unwrap(), 4);
}

async fn what_is_held_is_resumed_once_nobody_holds_it_back(place: Place) {
    let store = place.open().await;
    assert!(store.subscriptions_to_resume(10).await.unwrap().is_empty());
    let mut ids = Vec::new();
    for (n, state) in [
        (0, SubscriptionState::Active),
        (1, SubscriptionState::Paused),
        (2, SubscriptionState::Disabled),
        (3, SubscriptionState::Active),
        (4, SubscriptionState::Active),
    ] {
        let mut stored = insert(&store, "a", "held").await;
        stored.subscription.state = state;
        let stored = store.replace_subscription(stored).await.unwrap().unwrap();
        let id = stored.subscription.id.clone();
        if n != 4 {
            let all: Vec<_> = (0..3).map(|n| held("a", n, &id, 0)).collect();
            store.record_held(&all).await.unwrap();
        }
        if n == 3 {
            delete(&store, &stored).await;
        }
        ids.push(id);
    }
    let mut found = store.subscriptions_to_resume(10).await.unwrap();
    found.sort();
    let mut wanted = vec![(tenant("a"), ids[0].clone()), (tenant("a"), ids[3].clone())];
    wanted.sort();
    assert_eq!(found, wanted, "a deleted one's must become dead letters");
    assert_eq!(store.subscriptions_to_resume(1).await.unwrap().len(), 1);
}
