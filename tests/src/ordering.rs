//! `ordering: latest`: once a newer version of a subject was sent, none older is, whatever failed,
//! waited, was held or killed in between; who does not ask for that gets everything.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    delivers::on_both,
    duplicates::publish,
    support::{
        postgres::Postgres,
        rabbit,
        receiver::Answer,
        world::{Fate, Kind, Sub, TENANT, World},
    },
};

on_both!(
    a_retry_that_was_overtaken_ends_superseded,
    a_version_that_comes_late_is_never_sent,
    what_is_redriven_or_was_held_is_judged_as_well,
);

/// Fails, is tried again each second, and opens no breaker.
const NOT_YET: u16 = 404;

fn latest() -> Value {
    json!({"delivery": {"ordering": "latest", "retry": {"delays": vec!["1s"; 50]}}})
}

fn event(id: &str, subject: &str, version: u64) -> Value {
    json!({"id": id, "type": "appointment.updated", "subject": subject, "version": version})
}

/// The answer of the API for one event and one subscription.
async fn explained(world: &World, event: &str, sub: &Sub) -> Value {
    let whole = world
        .call("GET", &format!("/v1/events/{event}"), None)
        .await
        .expect(200);
    let all = whole["subscriptions"].as_array().expect("an array");
    let found = all.iter().find(|why| why["subscription_id"] == sub.id);
    found.expect("the subscription is named").clone()
}

/// Waits until the log says so.
async fn logged(world: &World, event: &str, sub: &Sub, state: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let path = format!(
            "/v1/deliveries?event_id={event}&subscription_id={}&state={state}",
            sub.id
        );
        if let Some(row) = world.items(&path).await.into_iter().next() {
            return row;
        }
        assert!(Instant::now() < deadline, "{event} was never {state}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How often an event came to a path.
fn came(world: &World, path: &str, event: &str) -> usize {
    let requests = world.receiver.requests(path);
    let ours = requests
        .iter()
        .filter(|request| request.event_id() == event);
    ours.count()
}

async fn came_at_least_once(world: &World, path: &str, event: &str) {
    world
        .receiver
        .wait_until(&format!("{event} at {path}"), || {
            (came(world, path, event) > 0).then_some(())
        })
        .await;
}

async fn a_retry_that_was_overtaken_ends_superseded(world: World) {
    world.receiver.plan("/new", [Answer::status(NOT_YET)]);
    world.receiver.plan("/all", [Answer::status(NOT_YET)]);
    let new = world.subscribe("/new", &["*"], latest()).await;
    let mut more = latest();
    more["delivery"]["ordering"] = json!("none");
    let all = world.subscribe("/all", &["*"], more).await;
    world.publish(event("e1", "a", 1)).await;
    came_at_least_once(&world, "/new", "e1").await;
    world.publish(event("e2", "a", 2)).await;
    // Not yet taken, but on its way: the first must not come behind it.
    came_at_least_once(&world, "/new", "e2").await;
    let row = logged(&world, "e1", &new, "superseded").await;
    world.receiver.plan("/new", [Answer::status(200)]);
    world.receiver.plan("/all", [Answer::status(200)]);

    assert_eq!(row["clause"], "ordering");
    let why = explained(&world, "e1", &new).await;
    assert_eq!(
        (&why["state"], &why["clause"]),
        (&json!("superseded"), &json!("ordering"))
    );
    let told = "overtaken by version 2 of the same subject, in event e2";
    assert_eq!(why["detail"], told);
    let path = format!("/v1/subscriptions/{}/explain", new.id);
    for (version, state) in [(1, "superseded"), (2, "pending")] {
        let mut asked = event("asked", "a", version);
        asked["data"] = json!({});
        let explained = world.call("POST", &path, Some(asked)).await.expect(200);
        assert_eq!(explained["state"], state, "{explained:#}");
        assert_eq!(explained["clause"] == "ordering", version == 1);
    }
    let deliveries = "postrider_deliveries_total";
    let superseded = r#"outcome="superseded""#;
    assert_eq!(world.metric(deliveries, superseded).await, 1.0);

    world.expect(&new, "e1", Fate::Superseded);
    world.expect(&new, "e2", Fate::Delivered);
    world.expect(&all, "e1", Fate::Delivered);
    world.expect(&all, "e2", Fate::Delivered);
    world.finish().await;
}

async fn a_version_that_comes_late_is_never_sent(world: World) {
    let new = world.subscribe("/new", &["*"], latest()).await;
    let all = world.subscribe("/all", &["*"], json!({})).await;
    let send = async |event: Value, fate: Fate| {
        let id = world.publish(event).await;
        world.expect(&new, &id, fate);
        world.expect(&all, &id, Fate::Delivered);
        let state = match fate {
            Fate::Superseded => "superseded",
            _ => "delivered",
        };
        logged(&world, &id, &new, state).await;
    };
    send(event("a2", "a", 2), Fate::Delivered).await;
    send(event("a1", "a", 1), Fate::Superseded).await;
    send(event("a2-again", "a", 2), Fate::Delivered).await;
    send(event("b1", "b", 1), Fate::Delivered).await;
    let mut other_entity = event("p1", "a", 1);
    other_entity["type"] = json!("payment.updated");
    send(other_entity, Fate::Delivered).await;
    // Who has no version overtakes nothing, and nothing overtakes it.
    let mut without = event("none", "a", 0);
    without["version"].take();
    let without = without.as_object().expect("an object").clone();
    let without: Value = without.into_iter().filter(|(_, v)| !v.is_null()).collect();
    send(without, Fate::Delivered).await;
    send(event("a2-third", "a", 2), Fate::Delivered).await;
    // A deletion of several is the newest of each of them.
    let gone = json!({
        "id": "gone", "type": "appointment.deleted", "subject": ["a", "b", "c"], "version": 5,
    });
    send(gone, Fate::Delivered).await;
    for subject in ["a", "b", "c"] {
        let late = event(&format!("{subject}4"), subject, 4);
        send(late, Fate::Superseded).await;
    }
    send(event("b6", "b", 6), Fate::Delivered).await;
    assert_eq!(came(&world, "/new", "a1"), 0);
    world.finish().await;
}

async fn what_is_redriven_or_was_held_is_judged_as_well(world: World) {
    let more = json!({"delivery": {"ordering": "latest", "retry": "none"}});
    let sub = world.subscribe("/a", &["*"], more).await;
    world.receiver.plan("/a", [Answer::status(NOT_YET)]);
    world.publish(event("dead1", "a", 1)).await;
    let letters = world.wait_for_dead(1).await;
    world.receiver.plan("/a", [Answer::status(200)]);
    world.publish(event("a3", "a", 3)).await;
    logged(&world, "a3", &sub, "delivered").await;

    let letter = letters[0]["id"].as_str().expect("an id").to_owned();
    let path = format!("/v1/dead-letters/{letter}/redrive");
    world.call("POST", &path, None).await.expect(202);
    logged(&world, "dead1", &sub, "superseded").await;

    let set = async |action: &str| {
        let path = format!("/v1/subscriptions/{}/{action}", sub.id);
        let changed = world.call("POST", &path, None).await.expect(200);
        world.known(&changed).await;
    };
    set("pause").await;
    world.publish(event("a2", "a", 2)).await;
    logged(&world, "a2", &sub, "held").await;
    set("resume").await;
    logged(&world, "a2", &sub, "superseded").await;

    // A person may still look at what was sent last.
    let delivered = logged(&world, "a3", &sub, "delivered").await;
    let id = delivered["id"].as_str().expect("an id");
    let path = format!("/v1/deliveries/{id}/retry");
    world.call("POST", &path, None).await.expect(202);
    world
        .receiver
        .wait_until("the same again", || {
            (came(&world, "/a", "a3") == 2).then_some(())
        })
        .await;
    assert_eq!(
        (came(&world, "/a", "dead1"), came(&world, "/a", "a2")),
        (1, 0)
    );
    world.expect(&sub, "dead1", Fate::Superseded);
    world.expect(&sub, "a2", Fate::Superseded);
    world.expect(&sub, "a3", Fate::Delivered);
    assert_eq!(world.settle().await, 1, "what was asked for");
}

/// The first versions fail, the second ones are sent, and whoever sends them is killed meanwhile.
async fn killed(mut world: World) {
    const SUBJECTS: usize = 20;
    world.receiver.plan("/a", [Answer::status(NOT_YET)]);
    let sub = world.subscribe("/a", &["*"], latest()).await;
    for n in 0..SUBJECTS {
        let first = event(&format!("one-{n}"), &n.to_string(), 1);
        let id = world.publish(first).await;
        world.expect(&sub, &id, Fate::Superseded);
    }
    for n in 0..SUBJECTS {
        came_at_least_once(&world, "/a", &format!("one-{n}")).await;
    }
    for n in 0..SUBJECTS {
        let second = event(&format!("two-{n}"), &n.to_string(), 2);
        let id = world.publish(second).await;
        world.expect(&sub, &id, Fate::Delivered);
        if n == SUBJECTS / 2 {
            came_at_least_once(&world, "/a", "two-0").await;
            world.deliverer().kill9();
            world.deliverer().start_again().await;
        }
    }
    for n in 0..SUBJECTS {
        came_at_least_once(&world, "/a", &format!("two-{n}")).await;
    }
    world.deliverer().kill9();
    world.deliverer().start_again().await;
    world.receiver.plan("/a", [Answer::status(200)]);
    for n in 0..SUBJECTS {
        logged(&world, &format!("one-{n}"), &sub, "superseded").await;
    }
    let requests = world.receiver.requests("/a");
    for n in 0..SUBJECTS {
        let (one, two) = (format!("one-{n}"), format!("two-{n}"));
        let newer = requests.iter().position(|r| r.event_id() == two);
        let behind = &requests[newer.expect("it came")..];
        let older = behind.iter().filter(|r| r.event_id() == one).count();
        // An attempt that was under way may be told of behind the newer one's.
        assert!(older <= 1, "{one} came {older} times behind {two}");
    }
    // What was under way when its deliverer died may come again.
    world.settle().await;
}

#[tokio::test]
async fn two_deliverers_and_a_kill_send_nothing_older_behind_what_is_newer() {
    killed(World::with(Kind::Rabbit, 2, &[]).await).await;
}

#[tokio::test]
async fn a_killed_process_sends_nothing_older_behind_what_is_newer() {
    killed(World::start(Kind::Embedded).await).await;
}

#[tokio::test]
async fn while_the_store_is_away_only_what_is_ordered_waits() {
    let postgres = Postgres::start().await;
    let settings = vec![
        ("broker.url", rabbit::fresh_vhost_url().await),
        ("store.url", postgres.fresh_database_url().await),
    ];
    let world = World::around(Kind::Rabbit, settings).await;
    let new = world.subscribe("/new", &["*"], latest()).await;
    let all = world.subscribe("/all", &["*"], json!({})).await;
    world.publish(event("a2", "a", 2)).await;
    logged(&world, "a2", &new, "delivered").await;

    postgres.stop().await;
    // The intake needs the store to know who is calling.
    let events = [event("a1", "a", 1), event("a3", "a", 3)].map(|mut event| {
        event["tenant"] = json!(TENANT);
        event["data"] = json!({});
        event
    });
    publish(world.setting("broker.url"), &events).await;
    came_at_least_once(&world, "/all", "a1").await;
    came_at_least_once(&world, "/all", "a3").await;
    let waits = r#"cause="store""#;
    world
        .wait_for_metric("postrider_parked_total", waits, 2.0)
        .await;
    assert_eq!(world.receiver.requests("/new").len(), 1);

    postgres.start_again().await;
    for id in ["a1", "a2", "a3"] {
        world.expect(&all, id, Fate::Delivered);
    }
    world.expect(&new, "a1", Fate::Superseded);
    world.expect(&new, "a2", Fate::Delivered);
    world.expect(&new, "a3", Fate::Delivered);
    world.finish().await;
}
