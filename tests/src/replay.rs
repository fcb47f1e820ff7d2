//! Sent again: replays, redrives, backfills and what was held, each once, whoever is killed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    delivers::on_both,
    support::{
        node::Node,
        receiver::Answer,
        world::{Fate, Kind, Sub, World},
    },
};

on_both!(
    a_replay_sends_everything_again_under_the_same_id,
    a_new_subscription_is_filled_from_the_archive,
    the_dead_are_replayed_and_leave_the_list,
    a_canceled_replay_stops,
    what_was_held_comes_oldest_first,
);

const SINCE: &str = "2020-01-01T00:00:00Z";

async fn replay(world: &World, sub: &Sub, more: Value) -> String {
    let mut body = json!({"since": SINCE});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    let path = format!("/v1/subscriptions/{}/replay", sub.id);
    let job = world.call("POST", &path, Some(body)).await.expect(202);
    job["id"].as_str().expect("an id").to_owned()
}

/// Waits until a job is as wanted.
async fn job_until(world: &World, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(150);
    loop {
        let job = world
            .call("GET", &format!("/v1/jobs/{id}"), None)
            .await
            .expect(200);
        if wanted(&job) {
            return job;
        }
        assert!(Instant::now() < deadline, "{job:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn done(world: &World, id: &str) -> Value {
    job_until(world, id, |job| job["state"] == "done").await
}

/// Publishes so many, numbered, and waits until the log has each as `state`.
async fn publish(world: &World, count: usize, subs: &[(&Sub, Fate)], state: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for n in 0..count {
        let id = world
            .publish(
                json!({"id": format!("e{n:03}"), "type": "appointment.created", "data": {"n": n}}),
            )
            .await;
        for (sub, fate) in subs {
            world.expect(sub, &id, *fate);
        }
        ids.push(id);
    }
    logged(world, count * subs.len(), state).await;
    ids
}

async fn logged(world: &World, count: usize, state: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let path = format!("/v1/deliveries?state={state}&limit=500");
    loop {
        let found = world.items(&path).await.len();
        if found >= count {
            return;
        }
        assert!(Instant::now() < deadline, "{found} of {count} {state}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How often each event came to a path, by `x-postrider-purpose`.
fn came(world: &World, path: &str, purpose: &str) -> std::collections::BTreeMap<String, usize> {
    let mut came = std::collections::BTreeMap::new();
    for request in world.receiver.requests(path) {
        if request.header("x-postrider-purpose") == purpose {
            *came.entry(request.event_id().to_owned()).or_default() += 1;
        }
    }
    came
}

fn once(ids: &[String]) -> std::collections::BTreeMap<String, usize> {
    ids.iter().map(|id| (id.clone(), 1)).collect()
}

async fn a_replay_sends_everything_again_under_the_same_id(world: World) {
    let sub = world.subscribe("/a", &["appointment.*"], json!({})).await;
    let ids = publish(&world, 12, &[(&sub, Fate::Delivered)], "delivered").await;
    let other = world.publish(json!({"type": "payment.paid"})).await;
    let id = replay(&world, &sub, json!({"rate": 1000})).await;
    let job = done(&world, &id).await;
    assert_eq!(
        (&job["total"], &job["done"], &job["skipped"]),
        (&json!(12), &json!(12), &json!(0))
    );
    world.receiver.wait_for("/a", 24).await;
    assert_eq!(came(&world, "/a", ""), once(&ids));
    assert_eq!(came(&world, "/a", "replay"), once(&ids));
    assert!(!ids.contains(&other));
    let (first, again) = {
        let requests = world.receiver.requests("/a");
        let of = |purpose: &str| {
            let mut found = requests.iter().filter(|request| {
                request.event_id() == ids[3] && request.header("x-postrider-purpose") == purpose
            });
            found.next().expect("a request").body.clone()
        };
        (of(""), of("replay"))
    };
    assert_eq!(first, again, "byte for byte");
    assert_eq!(world.settle().await, 12, "each twice, and no third time");
}

async fn a_new_subscription_is_filled_from_the_archive(world: World) {
    let old = world.subscribe("/old", &["*"], json!({})).await;
    let ids = publish(&world, 8, &[(&old, Fate::Delivered)], "delivered").await;
    let filter = json!({"filter": {"where": "event.data.n >= 3"}});
    let new = world
        .subscribe("/new", &["appointment.saved"], filter)
        .await;
    let id = replay(&world, &new, json!({})).await;
    assert_eq!(done(&world, &id).await["done"], 8);
    logged(&world, 13, "delivered").await;
    logged(&world, 3, "filtered").await;
    assert_eq!(came(&world, "/new", "replay"), once(&ids[3..]));
    for (n, id) in ids.iter().enumerate() {
        let fate = if n < 3 {
            Fate::Filtered
        } else {
            Fate::Delivered
        };
        world.expect(&new, id, fate);
    }
    world.finish().await;
}

async fn the_dead_are_replayed_and_leave_the_list(world: World) {
    world.receiver.plan("/a", [Answer::status(500)]);
    let more = json!({"delivery": {"retry": "none"}});
    let sub = world.subscribe("/a", &["*"], more).await;
    let ids = publish(&world, 6, &[(&sub, Fate::Delivered)], "dead").await;
    world.wait_for_dead(6).await;
    world.receiver.plan("/a", [Answer::status(200)]);
    let dry = json!({"since": SINCE, "only": "dead", "dry_run": true});
    let path = format!("/v1/subscriptions/{}/replay", sub.id);
    let preview = world.call("POST", &path, Some(dry)).await.expect(200);
    assert_eq!(preview["total"], 6);
    let id = replay(&world, &sub, json!({"only": "dead"})).await;
    let job = done(&world, &id).await;
    assert_eq!((&job["kind"], &job["done"]), (&json!("redrive"), &json!(6)));
    assert!(world.dead_letters().await.is_empty());
    world.receiver.wait_for("/a", 12).await;
    assert_eq!(came(&world, "/a", "replay"), once(&ids));
    world.finish().await;
}

async fn a_canceled_replay_stops(world: World) {
    let sub = world.subscribe("/a", &["*"], json!({})).await;
    publish(&world, 40, &[(&sub, Fate::Delivered)], "delivered").await;
    // So slow that it is never done before it is canceled.
    let id = replay(&world, &sub, json!({"rate": 1})).await;
    job_until(&world, &id, |job| job["done"].as_u64() > Some(0)).await;
    let canceled = world
        .call("POST", &format!("/v1/jobs/{id}/cancel"), None)
        .await
        .expect(200);
    assert_eq!(canceled["state"], "canceled");
    // The next one may begin at once, and does not wait for a lease.
    let next = json!({"since": SINCE, "dry_run": true});
    let path = format!("/v1/subscriptions/{}/replay", sub.id);
    world.call("POST", &path, Some(next)).await.expect(200);
    let idle = Instant::now() + Duration::from_secs(60);
    while world.metric("postrider_jobs_running", "").await > 0.0 {
        assert!(Instant::now() < idle, "a canceled job is still worked on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let job = world
        .call("GET", &format!("/v1/jobs/{id}"), None)
        .await
        .expect(200);
    let sent = job["done"].as_u64().expect("a count") as usize;
    assert!(sent < 40, "{job:#}");
    assert_eq!(
        world.settle().await,
        sent,
        "what it says it sent, and no more"
    );
}

async fn set(world: &World, sub: &Sub, action: &str) {
    let path = format!("/v1/subscriptions/{}/{action}", sub.id);
    let changed = world.call("POST", &path, None).await.expect(200);
    world.known(&changed).await;
}

async fn what_was_held_comes_oldest_first(world: World) {
    let more = json!({"delivery": {"max_in_flight": 1}});
    let sub = world.subscribe("/a", &["*"], more).await;
    set(&world, &sub, "pause").await;
    let ids = publish(&world, 30, &[(&sub, Fate::Delivered)], "held").await;
    assert!(world.receiver.requests("/a").is_empty());
    set(&world, &sub, "resume").await;
    let requests = world.receiver.wait_for("/a", 30).await;
    assert_eq!(
        came(&world, "/a", ""),
        once(&ids),
        "what was held is no replay"
    );
    // A delivery may arrive before the step that sent it is settled.
    let deadline = Instant::now() + Duration::from_secs(60);
    let resumed = loop {
        let resumed = world.items("/v1/jobs?kind=resume").await;
        let done: u64 = resumed.iter().filter_map(|job| job["done"].as_u64()).sum();
        if done >= 30 {
            break resumed;
        }
        assert!(Instant::now() < deadline, "{resumed:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let order: Vec<_> = requests
        .iter()
        .map(|request| request.event_id().to_owned())
        .collect();
    // Deliveries of one step go side by side; steps go one after the other.
    for (place, id) in order.iter().enumerate() {
        let wanted = ids
            .iter()
            .position(|other| other == id)
            .expect("one of ours");
        assert!(
            place.abs_diff(wanted) < 20,
            "{id} came as number {place}: {order:?} {resumed:#?}"
        );
    }
    world.finish().await;
}

/// The recorder is killed again and again in the middle of a replay, and another beside it goes on.
#[tokio::test]
async fn a_killed_recorder_sends_nothing_a_third_time_and_leaves_nothing_out() {
    let mut world = World::start(Kind::Rabbit).await;
    let sub = world.subscribe("/a", &["*"], json!({})).await;
    let ids = publish(&world, 200, &[(&sub, Fate::Delivered)], "delivered").await;
    // Two beside the one that the API lives in: any of the three may have the job.
    let settings = world.settings.clone();
    let mut killed = [
        Node::start("recorder", &settings).await,
        Node::start("recorder", &settings).await,
    ];
    let id = replay(&world, &sub, json!({"rate": 20})).await;
    for round in 0..4 {
        let before = 20 * (round + 1);
        job_until(&world, &id, |job| job["done"].as_u64() >= Some(before)).await;
        // Whichever has it dies.
        for node in &mut killed {
            node.kill9();
        }
        world.nodes[0].kill9();
        world.nodes[0].start_again().await;
        for node in &mut killed {
            node.start_again().await;
        }
    }
    let job = done(&world, &id).await;
    assert_eq!(
        (&job["done"], &job["skipped"]),
        (&json!(200), &json!(0)),
        "{job:#}"
    );
    world.receiver.wait_for("/a", 400).await;
    assert_eq!(
        came(&world, "/a", "replay"),
        once(&ids),
        "each once more, and no third time"
    );
    for node in &mut killed {
        node.drain().await;
    }
    assert_eq!(world.settle().await, 200);
}

/// In one process everything dies at once: nothing is left out, and what comes twice is at most
/// what was under way.
#[tokio::test]
async fn a_killed_process_leaves_nothing_out_of_a_replay() {
    let mut world = World::start(Kind::Embedded).await;
    let sub = world.subscribe("/a", &["*"], json!({})).await;
    let ids = publish(&world, 60, &[(&sub, Fate::Delivered)], "delivered").await;
    let id = replay(&world, &sub, json!({"rate": 25})).await;
    for least in [5, 20] {
        job_until(&world, &id, |job| job["done"].as_u64() >= Some(least)).await;
        world.nodes[0].kill9();
        world.nodes[0].start_again().await;
    }
    let job = done(&world, &id).await;
    assert_eq!(
        (&job["done"], &job["skipped"]),
        (&json!(60), &json!(0)),
        "{job:#}"
    );
    world.receiver.wait_for("/a", 120).await;
    let replayed = came(&world, "/a", "replay");
    assert_eq!(replayed.len(), ids.len(), "none is missing");
    // A step of five for each kill.
    let more: usize = replayed.values().map(|times| times - 1).sum();
    assert!(more <= 2 * 5, "{replayed:?}");
    world.settle().await;
}
