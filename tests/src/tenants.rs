//! Tokens, scopes, and tenants that never learn of each other.

mod matrix;
mod tokens;

use serde_json::{Value, json};

use crate::support::world::{Answer, Kind, World};

const ADMIN: &str = "an-admin-token-for-tests";

async fn guarded(kind: Kind) -> World {
    World::with(kind, 1, &[("auth.admin_token", ADMIN.to_owned())]).await
}

async fn call(world: &World, token: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
    let body = body.map(|body| ("application/json", body.to_string().into_bytes()));
    world.send(method, path, body, Some(token)).await
}

async fn token(world: &World, tenant: Option<&str>, scopes: &[&str]) -> (String, String) {
    let body = json!({"name": "test", "tenant": tenant, "scopes": scopes});
    let made = call(world, ADMIN, "POST", "/v1/tokens", Some(body))
        .await
        .expect(201);
    let text = made["token"].as_str().expect("the token, once").to_owned();
    assert!(text.starts_with("pr_"));
    (text, made["id"].as_str().expect("an id").to_owned())
}

#[tokio::test]
async fn another_tenants_ids_are_not_found_byte_for_byte() {
    for kind in [Kind::Embedded, Kind::Rabbit] {
        let world = guarded(kind).await;
        let (a, _) = token(&world, Some("a"), &["manage", "publish"]).await;
        let (b, _) = token(&world, Some("b"), &["manage", "publish"]).await;
        let body = json!({"target_url": world.receiver.url("/b"), "events": ["*"]});
        let made = call(&world, &b, "POST", "/v1/subscriptions", Some(body))
            .await
            .expect(201);
        assert_eq!(made["tenant"], "b", "the token's tenant");
        let id = made["id"].as_str().expect("an id");
        for (method, action) in [
            ("GET", ""),
            ("DELETE", ""),
            ("PATCH", ""),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("POST", "/rotate-secret"),
        ] {
            let ask = async |id: &str| {
                let path = format!("/v1/subscriptions/{id}{action}");
                call(&world, &a, method, &path, Some(json!({}))).await
            };
            let (theirs, nobodys) = (
                ask(id).await,
                ask("sub_00000000000000000000000000000000").await,
            );
            assert_eq!(theirs.status, 404, "{method} {action}: {:#}", theirs.json);
            assert_eq!(theirs.json, nobodys.json, "{method} {action}");
        }
        let listed = call(&world, &a, "GET", "/v1/subscriptions", None)
            .await
            .expect(200);
        assert_eq!(listed["items"], json!([]));
        let spoof = json!({"tenant": "b", "type": "a.b", "data": 1});
        let spoofed = call(&world, &a, "POST", "/v1/events", Some(spoof)).await;
        assert_eq!(
            (spoofed.status, &spoofed.json["code"]),
            (403, &json!("tenant_mismatch"))
        );
        let own = json!({"type": "a.b", "data": 1});
        call(&world, &a, "POST", "/v1/events", Some(own))
            .await
            .expect(202);
    }
}

#[tokio::test]
async fn a_token_does_what_its_scopes_say_until_it_is_revoked() {
    let world = guarded(Kind::Embedded).await;
    for nobody in [
        "",
        "wrong",
        "pr_x_y",
        "pr_00000000_0000000000000000000000000000000000000000",
    ] {
        let answer = call(&world, nobody, "GET", "/v1/subscriptions", None).await;
        assert_eq!(answer.status, 401, "{nobody:?}");
    }
    world
        .send("GET", "/v1/subscriptions", None, None)
        .await
        .expect(401);
    let (publish, _) = token(&world, Some("a"), &["publish"]).await;
    let (read, id) = token(&world, Some("a"), &["read"]).await;
    let event = || Some(json!({"type": "a.b", "data": 1}));
    call(&world, &publish, "POST", "/v1/events", event())
        .await
        .expect(202);
    call(&world, &publish, "GET", "/v1/subscriptions", None)
        .await
        .expect(403);
    call(&world, &read, "GET", "/v1/subscriptions", None)
        .await
        .expect(200);
    call(&world, &read, "POST", "/v1/events", event())
        .await
        .expect(403);
    call(&world, &read, "POST", "/v1/tokens", Some(json!({})))
        .await
        .expect(403);
    call(&world, ADMIN, "DELETE", &format!("/v1/tokens/{id}"), None)
        .await
        .expect(204);
    call(&world, &read, "GET", "/v1/subscriptions", None)
        .await
        .expect(401);
}

#[tokio::test]
async fn a_refused_subscription_names_everything_wrong() {
    let world = World::start(Kind::Embedded).await;
    let body = json!({
        "tenant": "a", "target_url": "http://10.0.0.1/", "events": ["appointment"],
        "dialect": "standrad", "filter": {"where": "event.data.("}, "headers": {"Host": "x"},
        "delivery": {"timeout": "5 parsecs", "ordering": "strict", "retry": "standart"},
        "evnts": [],
    });
    let answer = world.call("POST", "/v1/subscriptions", Some(body)).await;
    assert_eq!(answer.status, 422, "{:#}", answer.json);
    let errors = answer.json["errors"].as_array().expect("errors").clone();
    let at = |pointer: &str| {
        let found = errors.iter().find(|error| error["pointer"] == pointer);
        found.unwrap_or_else(|| panic!("no {pointer} in {errors:#?}"))["message"].to_string()
    };
    for pointer in ["/target_url", "/events/0", "/filter/where", "/headers/Host"] {
        at(pointer);
    }
    assert!(at("/dialect").contains("standard"), "the nearest name");
    assert!(
        at("/delivery/retry").contains("standard"),
        "the nearest name"
    );
    assert!(at("/evnts").contains("events"), "the nearest name");
    assert!(at("/delivery/ordering").contains("reserved"));
    at("/delivery/timeout");
    world.finish().await;
}

/// T22: who has stolen a token and turns a subscription to a host of their own does not get the
/// headers that were meant for the old one; and the tenant is told.
async fn t22_another_host_gets_no_header_that_was_not_sent_for_it(kind: Kind) {
    let world = World::start(kind).await;
    let told = world.subscribe("/told", &["postrider.*"], json!({})).await;
    let headers = json!({"headers": {"authorization": "Bearer old", "x-key": "old"}});
    let sub = world.subscribe("/a", &["a.b"], headers).await;
    let path = format!("/v1/subscriptions/{}", sub.id);
    let patch = async |body: Value| {
        let changed = world.call("PATCH", &path, Some(body)).await.expect(200);
        world.known(&changed).await;
        changed
    };
    // Another path of the same host keeps them, and is nothing to tell.
    let same = patch(json!({"target_url": world.receiver.url("/b")})).await;
    assert_eq!(
        same["headers"],
        json!({"authorization": "***", "x-key": "***"})
    );
    let first = world.publish(json!({"type": "a.b"})).await;
    let got = world.receiver.wait_for("/b", 1).await;
    assert_eq!(got[0].event_id(), first);
    assert_eq!(got[0].header("authorization"), "Bearer old");
    // Another host of the same machine.
    let url = world.receiver.url("/c").replace("127.0.0.1", "localhost");
    // What is shown in the place of a value is no value.
    let hidden = json!({"target_url": url, "headers": {"authorization": "***"}});
    let refused = world.call("PATCH", &path, Some(hidden)).await.expect(422);
    assert_eq!(refused["errors"][0]["pointer"], "/headers/authorization");
    let moved = patch(json!({"target_url": url, "headers": {"x-key": "new"}})).await;
    assert_eq!(moved["headers"], json!({"x-key": "***"}));
    let second = world.publish(json!({"type": "a.b"})).await;
    let got = world.receiver.wait_for("/c", 1).await;
    assert_eq!(got[0].event_id(), second);
    assert_eq!(got[0].header("authorization"), "");
    assert_eq!(got[0].header("x-key"), "new");
    let notices = world.receiver.wait_for("/told", 1).await;
    let notice = notices[0].json();
    assert_eq!(notice["type"], "postrider.subscription_moved");
    let data = json!({"subscription_id": sub.id, "from": "127.0.0.1", "to": "localhost"});
    assert_eq!(notice["data"], data);
    let log = world.nodes[0].log();
    assert!(log.contains("a subscription goes to another host"), "{log}");
    drop(told);
}

mod embedded {
    #[tokio::test]
    async fn t22_another_host_gets_no_header_that_was_not_sent_for_it() {
        super::t22_another_host_gets_no_header_that_was_not_sent_for_it(super::Kind::Embedded)
            .await;
    }
}

mod rabbitmq {
    #[tokio::test]
    async fn t22_another_host_gets_no_header_that_was_not_sent_for_it() {
        super::t22_another_host_gets_no_header_that_was_not_sent_for_it(super::Kind::Rabbit).await;
    }
}
