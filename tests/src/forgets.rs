//! A person is forgotten: what events said of them is nowhere any more.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    command::run,
    delivers::on_both,
    support::{
        receiver,
        world::{TENANT, World},
    },
};

on_both!(a_person_is_forgotten_everywhere);

/// In every payload, and in what the endpoints say.
const MARK: &str = "canary-7f3a";

/// Everything that the API tells of events, deliveries and dead letters.
async fn told(world: &World) -> String {
    let mut told = String::new();
    for list in ["events", "deliveries", "dead-letters"] {
        for row in world.items(&format!("/v1/{list}?limit=500")).await {
            let id = row["id"].as_str().expect("each has an id");
            let path = format!("/v1/{list}/{id}");
            let whole = world.call("GET", &path, None).await.expect(200);
            told += &format!("{path} {row} {whole}\n");
        }
    }
    told
}

async fn wait_for(world: &World, state: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let path = format!("/v1/deliveries?state={state}");
    while world.items(&path).await.is_empty() {
        assert!(Instant::now() < deadline, "never {state}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn a_person_is_forgotten_everywhere(world: World) {
    let says = |status| receiver::Answer::status(status).saying(MARK);
    world.receiver.plan("/taken", [says(200)]);
    world.receiver.plan("/refused", [says(410)]);
    world.subscribe("/taken", &["client.*"], json!({})).await;
    world.subscribe("/refused", &["client.*"], json!({})).await;
    let held = world.subscribe("/held", &["client.*"], json!({})).await;
    let path = format!("/v1/subscriptions/{}/pause", held.id);
    let paused = world.call("POST", &path, None).await.expect(200);
    world.known(&paused).await;

    let of = |id: Value| {
        json!({
            "type": "client.updated",
            "data": {"id": id, "name": MARK}, "changes": {"name": MARK}, "details": {"x": [MARK]},
        })
    };
    world.publish(of(json!(10))).await;
    for state in ["delivered", "dead", "held"] {
        wait_for(&world, state).await;
    }
    let letter = world.wait_for_dead(1).await.remove(0);
    assert!(told(&world).await.matches(MARK).count() > 3);

    let api = world.nodes[0].api();
    let args = ["subjects", "forget", "client", "10", "--tenant", TENANT];
    let args = [&args[..], &["--api", &api, "--output", "json"]].concat();
    let (code, out, err) = run(&args, &[]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        serde_json::from_str::<Value>(&out).expect("JSON"),
        json!({"events": 1, "deliveries": 3, "dead_letters": 1})
    );
    let told = told(&world).await;
    let left: Vec<_> = told.lines().filter(|line| line.contains(MARK)).collect();
    assert!(left.is_empty(), "{left:#?}");

    let id = letter["id"].as_str().expect("an id");
    let path = format!("/v1/dead-letters/{id}/redrive");
    let answer = world.call("POST", &path, None).await.expect(409);
    assert_eq!(answer["code"], "expunged");
    let path = format!("/v1/subscriptions/{}/resume", held.id);
    world.call("POST", &path, None).await.expect(200);
    // Another person's event is delivered where the forgotten one's was held.
    world.publish(of(json!(11))).await;
    let requests = world.receiver.wait_for("/held", 1).await;
    assert!(
        requests
            .iter()
            .all(|request| { request.json()["data"]["id"] == 11 })
    );
}
