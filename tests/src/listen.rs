//! `postrider listen`: the very requests that would be made, forwarded to where only the developer
//! reaches, none lost while the server is away, and nothing left behind.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    delivers::on_both,
    signatures::verifies,
    support::{
        node::Node,
        process::{Process, free_port},
        receiver::Answer,
        world::{Fate, Kind, Sub, TENANT, World, client},
    },
    tail::Stream,
};

on_both!(
    each_event_comes_as_it_would_be_sent,
    what_matches_while_the_server_is_killed_comes_afterwards,
    a_killed_listener_leaves_nothing_behind,
    how_it_went_is_on_record_and_nothing_is_retried,
    what_was_not_taken_is_told_again,
    a_replay_comes_to_a_listener_too,
);

const LIMIT: Duration = Duration::from_secs(60);

/// A running `postrider listen`.
struct Listener {
    process: Process,
    /// What it said it listens as.
    made: Value,
    sub: Sub,
}

impl Listener {
    /// Starts one that forwards to `path` of the receiver, and waits until every process knows it.
    async fn start(world: &World, path: &str, more: &[&str]) -> Self {
        Self::start_at(
            world,
            &world.nodes[0].api(),
            &world.receiver.url(path),
            more,
        )
        .await
    }

    async fn start_at(world: &World, api: &str, forward_to: &str, more: &[&str]) -> Self {
        let fixed = [
            "listen",
            "--output",
            "json",
            "--api",
            api,
            "--forward-to",
            forward_to,
        ];
        let process = Process::postrider([&fixed, more].concat());
        let mut listener = Self {
            process,
            made: Value::Null,
            sub: Sub {
                id: String::new(),
                path: String::new(),
                secret: String::new(),
            },
        };
        listener.made = listener.lines(1).await.remove(0)["listening"].clone();
        let text = |key: &str| listener.made[key].as_str().unwrap_or_default().to_owned();
        let path = url::Url::parse(forward_to)
            .expect("a URL")
            .path()
            .to_owned();
        listener.sub = Sub {
            id: text("id"),
            path,
            secret: text("secret"),
        };
        world.known(&listener.made).await;
        listener
    }

    /// What it has printed, once it is so many lines.
    async fn lines(&self, least: usize) -> Vec<Value> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let out = self.process.stdout();
            let whole = out.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let lines: Vec<_> = whole.lines().collect();
            if lines.len() >= least {
                let parse = |line: &&str| serde_json::from_str(line).expect("a line of JSON");
                return lines.iter().map(parse).collect();
            }
            let err = self.process.stderr();
            assert!(
                Instant::now() < deadline,
                "{least} lines wanted: {out}\n{err}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// SIGTERM; it must end by itself, and well.
    async fn end(mut self) {
        self.process.signal("TERM");
        let status = self.process.ended(LIMIT).await;
        assert!(status.success(), "{status}: {}", self.process.stderr());
    }
}

async fn listeners(world: &World) -> Vec<Value> {
    let all = world.items("/v1/subscriptions?limit=500").await;
    let is_one = |one: &Value| {
        one["id"]
            .as_str()
            .is_some_and(|id| id.starts_with("sub_listen_"))
    };
    all.into_iter().filter(is_one).collect()
}

/// Waits until the log has a delivery to this subscription in this state.
async fn logged(world: &World, sub: &Sub, state: &str, count: usize) -> Vec<Value> {
    let deadline = Instant::now() + LIMIT;
    let path = format!("/v1/deliveries?subscription_id={}&limit=500", sub.id);
    loop {
        let mut found = world.items(&path).await;
        found.retain(|row| row["state"] == state);
        if found.len() >= count {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "{count} {state} wanted: {found:#?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn each_event_comes_as_it_would_be_sent(world: World) {
    let real = world
        .subscribe("/real", &["appointment.*"], json!({}))
        .await;
    let filter = ["--events", "appointment.*", "--where", "event.data.n > 1"];
    let tenant = ["--tenant", TENANT];
    let listener = Listener::start(
        &world,
        "/hook",
        &[filter, [tenant[0], tenant[1], "--view", "full"]].concat(),
    )
    .await;
    let shown = listeners(&world).await;
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0]["state"], "paused");
    for n in 1..=3 {
        let id = world
            .publish(json!({"type": "appointment.created", "data": {"n": n, "name": "Zoë"}}))
            .await;
        world.expect(&real, &id, Fate::Delivered);
        let fate = if n > 1 {
            Fate::Delivered
        } else {
            Fate::Filtered
        };
        world.expect(&listener.sub, &id, fate);
    }
    let other = world.publish(json!({"type": "payment.paid"})).await;
    let came = world.receiver.wait_for("/hook", 2).await;
    let sent = world.receiver.wait_for("/real", 3).await;
    for request in &came {
        assert_ne!(request.event_id(), other);
        assert!(verifies(request, &listener.sub.secret), "{request:?}");
        assert!(
            !verifies(request, &real.secret),
            "another subscription's secret"
        );
        let same = sent.iter().find(|one| one.event_id() == request.event_id());
        assert_eq!(same.expect("sent").body, request.body, "byte for byte");
        let names = |request: &crate::support::receiver::Request| {
            let mut names: Vec<_> = request
                .headers
                .keys()
                .map(|k| k.as_str().to_owned())
                .collect();
            names.sort();
            names
        };
        assert_eq!(
            names(same.expect("sent")),
            names(request),
            "the same headers"
        );
    }
    let lines = listener.lines(3).await;
    for line in &lines[1..] {
        assert_eq!(line["status"], 200, "{line}");
        assert!(line["duration_ms"].is_number(), "{line}");
    }
    logged(&world, &listener.sub, "delivered", 2).await;
    listener.end().await;
    assert_eq!(listeners(&world).await, Vec::<Value>::new());
    world.finish().await;
}

async fn what_matches_while_the_server_is_killed_comes_afterwards(mut world: World) {
    let listener = Listener::start(&world, "/hook", &["--tenant", TENANT]).await;
    let mut ids = Vec::new();
    for round in 0..3 {
        for n in 0..12 {
            let event = json!({"id": format!("e{round}-{n:02}"), "type": "payment.paid"});
            let id = world.publish(event).await;
            world.expect(&listener.sub, &id, Fate::Delivered);
            ids.push(id);
        }
        if round < 2 {
            // In the middle of it: some of them were forwarded, some were not.
            world.receiver.wait_for("/hook", 12 * round + 1).await;
            world.nodes[0].kill9();
            world.nodes[0].start_again().await;
        }
    }
    world.receiver.wait_for("/hook", ids.len()).await;
    logged(&world, &listener.sub, "delivered", ids.len()).await;
    let mut came: Vec<_> = world.receiver.successes("/hook").into_iter().collect();
    came.sort();
    ids.sort();
    let once: Vec<_> = ids.into_iter().map(|id| (id, 1)).collect();
    assert_eq!(came, once, "each once");
    listener.end().await;
    assert_eq!(world.settle().await, 0);
}

/// What happens while the server that a listener reads from is away, and others are not.
#[tokio::test]
async fn what_others_accept_while_the_listeners_server_is_away_comes_afterwards() {
    let world = World::start(Kind::Rabbit).await;
    let mut console = Node::start("console", &world.settings).await;
    let url = world.receiver.url("/hook");
    let listener = Listener::start_at(&world, &console.api(), &url, &["--tenant", TENANT]).await;
    let publish = async |id: &str| {
        let id = world
            .publish(json!({"id": id, "type": "payment.paid"}))
            .await;
        world.expect(&listener.sub, &id, Fate::Delivered);
    };
    publish("before").await;
    world.receiver.wait_for("/hook", 1).await;
    console.kill9();
    for n in 0..40 {
        publish(&format!("away-{n}")).await;
    }
    logged(&world, &listener.sub, "held", 40).await;
    console.start_again().await;
    publish("after").await;
    world.receiver.wait_for("/hook", 42).await;
    logged(&world, &listener.sub, "delivered", 42).await;
    listener.end().await;
    console.drain().await;
    world.finish().await;
}

async fn a_killed_listener_leaves_nothing_behind(world: World) {
    let more = ["--tenant", TENANT, "--keep-for", "5s"];
    let mut listener = Listener::start(&world, "/hook", &more).await;
    let id = world.publish(json!({"type": "payment.paid"})).await;
    world.expect(&listener.sub, &id, Fate::Delivered);
    logged(&world, &listener.sub, "delivered", 1).await;
    listener.process.kill9();
    world.publish(json!({"type": "payment.paid"})).await;
    // Nobody takes it, and in the end nobody can.
    logged(&world, &listener.sub, "canceled", 1).await;
    let deadline = Instant::now() + LIMIT;
    while !listeners(&world).await.is_empty() {
        assert!(Instant::now() < deadline, "the subscription stays");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.wait_for_gone().await;
    assert_eq!(world.dead_letters().await, Vec::<Value>::new());
    world.finish().await;
}

async fn how_it_went_is_on_record_and_nothing_is_retried(world: World) {
    world
        .receiver
        .plan("/hook", [Answer::status(500), Answer::status(204)]);
    let listener = Listener::start(&world, "/hook", &["--tenant", TENANT]).await;
    let nobody = format!("http://127.0.0.1:{}/hook", free_port());
    let api = world.nodes[0].api();
    let lost = Listener::start_at(&world, &api, &nobody, &["--tenant", TENANT]).await;
    let first = world.publish(json!({"type": "payment.paid"})).await;
    world.receiver.wait_for("/hook", 1).await;
    let second = world.publish(json!({"type": "payment.paid"})).await;
    world.receiver.wait_for("/hook", 2).await;
    let lines = listener.lines(3).await;
    assert_eq!(
        (&lines[1]["event_id"], &lines[1]["status"]),
        (&json!(first), &json!(500))
    );
    assert_eq!(
        (&lines[2]["event_id"], &lines[2]["status"]),
        (&json!(second), &json!(204))
    );
    let dead = logged(&world, &listener.sub, "dead", 1).await.remove(0);
    assert_eq!(
        (&dead["reason"], &dead["last_status"]),
        (&json!("refused"), &json!(500))
    );
    let path = format!("/v1/deliveries/{}", dead["id"].as_str().expect("an id"));
    let whole = world.call("GET", &path, None).await.expect(200);
    assert_eq!(whole["history"][0]["error"], "status", "{whole:#}");
    logged(&world, &listener.sub, "delivered", 1).await;
    assert_eq!(lost.lines(3).await[1]["error"], "connect");
    let dead = logged(&world, &lost.sub, "dead", 2).await.remove(0);
    assert_eq!(dead["attempts"], 1);
    // Neither may anybody send it elsewhere.
    for action in ["resume", "pause", "test"] {
        let path = format!("/v1/subscriptions/{}/{action}", listener.sub.id);
        let answer = world.call("POST", &path, Some(json!({}))).await.expect(409);
        assert_eq!(answer["code"], "listener");
    }
    listener.end().await;
    lost.end().await;
    assert_eq!(world.dead_letters().await, Vec::<Value>::new());
    assert_eq!(
        world.receiver.requests("/hook").len(),
        2,
        "nothing is retried"
    );
}

/// The protocol itself, for whoever writes a listener of their own.
async fn what_was_not_taken_is_told_again(world: World) {
    let body = json!({"tenant": TENANT, "events": ["payment.*"], "lease": "1h"});
    let made = world
        .call("POST", "/v1/listeners", Some(body))
        .await
        .expect(201);
    world.known(&made).await;
    let id = made["id"].as_str().expect("an id");
    let url = format!("{}/v1/listeners/{id}/requests", world.nodes[0].api());
    let mut stream = Stream::open(&url, None, None).await;
    for n in 0..20 {
        world
            .publish(json!({"id": format!("e{n:02}"), "type": "payment.paid"}))
            .await;
    }
    let sub = Sub {
        id: id.to_owned(),
        path: String::new(),
        secret: String::new(),
    };
    logged(&world, &sub, "held", 20).await;
    let mut told = Vec::new();
    while told.len() < 16 {
        told.push(stream.next().await.expect("told").data);
    }
    drop(stream);
    // Half of them were taken, and said so twice.
    let items: Vec<_> = told[..8]
        .iter()
        .map(|request| json!({"id": request["id"], "status": 200}))
        .collect();
    let path = format!("/v1/listeners/{id}/taken");
    for taken in [8, 0] {
        let body = Some(json!({ "items": items }));
        let answer = world.call("POST", &path, body).await.expect(200);
        assert_eq!(answer["taken"], taken);
    }
    let ended = format!("{url}?follow=false");
    let mut rest = Stream::open(&ended, None, None).await;
    let mut again = Vec::new();
    while let Some(message) = rest.next().await {
        again.push(message.data["event_id"].clone());
    }
    let first: Vec<_> = told[..8]
        .iter()
        .map(|request| &request["event_id"])
        .collect();
    assert_eq!(again.len(), 12, "{again:?}");
    assert!(again.iter().all(|id| !first.contains(&id)), "{again:?}");
    logged(&world, &sub, "delivered", 8).await;
    let path = format!("/v1/listeners/{id}");
    world.call("DELETE", &path, None).await.expect(204);
    world.call("DELETE", &path, None).await.expect(404);
    logged(&world, &sub, "canceled", 12).await;
    assert_eq!(Stream::ask(&url, None, None).await.status(), 404);
}

/// What happened before anybody listened.
async fn a_replay_comes_to_a_listener_too(world: World) {
    let old = world.subscribe("/old", &["*"], json!({})).await;
    let mut ids = Vec::new();
    for n in 0..6 {
        let event = json!({"id": format!("e{n}"), "type": "payment.paid"});
        ids.push(world.publish(event).await);
        world.expect(&old, &ids[n], Fate::Delivered);
    }
    logged(&world, &old, "delivered", 6).await;
    let listener = Listener::start(&world, "/hook", &["--tenant", TENANT]).await;
    let path = format!("/v1/subscriptions/{}/replay", listener.sub.id);
    let since = json!({"since": "2020-01-01T00:00:00Z"});
    world.call("POST", &path, Some(since)).await.expect(202);
    let came = world.receiver.wait_for("/hook", 6).await;
    for request in &came {
        assert_eq!(request.header("x-postrider-purpose"), "replay");
        assert!(verifies(request, &listener.sub.secret));
        world.expect(&listener.sub, request.event_id(), Fate::Delivered);
    }
    logged(&world, &listener.sub, "delivered", 6).await;
    listener.end().await;
    world.finish().await;
}

#[tokio::test]
async fn a_listener_is_its_tenants_alone_and_needs_the_archive() {
    const ADMIN: &str = "the-admin-token-of-this-test";
    let world = World::with(Kind::Embedded, 1, &[("auth.admin_token", ADMIN.to_owned())]).await;
    let send = async |token: Option<&str>, method: &str, path: &str, body: Value| {
        let body = Some(("application/json", body.to_string().into_bytes()));
        world.send(method, path, body, token).await
    };
    let mut tokens = Vec::new();
    for (tenant, scope) in [("ours", "manage"), ("theirs", "manage"), ("ours", "read")] {
        let body = json!({"name": "t", "tenant": tenant, "scopes": [scope]});
        let made = send(Some(ADMIN), "POST", "/v1/tokens", body)
            .await
            .expect(201);
        tokens.push(made["token"].as_str().expect("a token").to_owned());
    }
    let [ours, theirs, reader] = tokens.try_into().expect("three");
    let body = json!({"events": ["*"]});
    send(None, "POST", "/v1/listeners", body.clone())
        .await
        .expect(401);
    send(Some(&reader), "POST", "/v1/listeners", body.clone())
        .await
        .expect(403);
    for wrong in [
        json!({"events": ["*"], "lease": "2h"}),
        json!({"events": ["*"], "target_url": "https://example.com/"}),
        json!({"events": ["*"], "filtre": {}}),
    ] {
        send(Some(&ours), "POST", "/v1/listeners", wrong)
            .await
            .expect(422);
    }
    let made = send(Some(&ours), "POST", "/v1/listeners", body.clone())
        .await
        .expect(201);
    let id = made["id"].as_str().expect("an id");
    let requests = format!("{}/v1/listeners/{id}/requests", world.nodes[0].api());
    let taken = json!({"items": []});
    for (token, status) in [(Some(&*theirs), 404), (Some(&*reader), 403), (None, 401)] {
        assert_eq!(Stream::ask(&requests, token, None).await.status(), status);
        let path = format!("/v1/listeners/{id}/taken");
        send(token, "POST", &path, taken.clone())
            .await
            .expect(status);
        let path = format!("/v1/listeners/{id}");
        send(token, "DELETE", &path, json!({})).await.expect(status);
    }
    drop(Stream::open(&requests, Some(&ours), None).await);

    let headers = ("recorder.archive", "headers".to_owned());
    let bare = World::with(Kind::Embedded, 1, &[headers]).await;
    let answer = client()
        .post(format!("{}/v1/listeners", bare.nodes[0].api()))
        .header("content-type", "application/json")
        .body(json!({"tenant": "ours", "events": ["*"]}).to_string())
        .send()
        .await
        .expect("the API answers");
    assert_eq!(answer.status(), 409);
    let problem = answer.text().await.expect("a problem");
    assert!(problem.contains("recorder.archive"), "{problem}");
}
