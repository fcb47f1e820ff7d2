//! T14: a token is as good as it says, everywhere, until it is not; and guessing gets nowhere.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::{ADMIN, call, guarded, token};
use crate::support::{
    node::Node,
    world::{Kind, World, client},
};

const LIST: &str = "/v1/subscriptions";

/// The status of a list, asked of this node with this token.
async fn status(node: &Node, token: &str) -> u16 {
    let request = client().get(format!("{}{LIST}", node.api()));
    let request = request.header("authorization", format!("Bearer {token}"));
    request.send().await.expect("an answer").status().as_u16()
}

async fn until_refused(node: &Node, token: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match status(node, token).await {
            401 => return,
            200 => assert!(Instant::now() < deadline, "the token still opens"),
            other => panic!("{other} for a token"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn t14_a_revoked_token_opens_nothing_in_any_process() {
    let world = guarded(Kind::Rabbit).await;
    let other = Node::start("console", &world.settings).await;
    let (read, id) = token(&world, Some("a"), &["read"]).await;
    assert_eq!(status(&other, &read).await, 200);
    assert_eq!(status(&world.nodes[0], &read).await, 200);
    // While somebody goes on asking, so that an answer of before is on its way when it ends.
    let asking = stream::iter(0..400).map(|_| status(&world.nodes[0], &read));
    let asking = asking.buffer_unordered(4).collect::<Vec<u16>>();
    let revoking = async {
        let path = format!("/v1/tokens/{id}");
        call(&world, ADMIN, "DELETE", &path, None).await.expect(204);
        status(&world.nodes[0], &read).await
    };
    let (statuses, after) = tokio::join!(asking, revoking);
    assert_eq!(after, 401, "the very next request");
    let strange = statuses
        .iter()
        .find(|status| ![200, 401, 429].contains(*status));
    assert_eq!(strange, None);
    until_refused(&other, &read).await;
}

#[tokio::test]
async fn t14_a_token_ends_when_it_says() {
    let world = guarded(Kind::Embedded).await;
    let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(5);
    let body = json!({"name": "short", "scopes": ["read"], "expires_at": end.to_string()});
    let made = call(&world, ADMIN, "POST", "/v1/tokens", Some(body)).await;
    let made = made.expect(201);
    let text = made["token"].as_str().expect("the token, once");
    assert_eq!(status(&world.nodes[0], text).await, 200);
    until_refused(&world.nodes[0], text).await;
    let past = json!({"name": "x", "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"});
    let refused = call(&world, ADMIN, "POST", "/v1/tokens", Some(past)).await;
    assert_eq!(refused.expect(422)["errors"][0]["pointer"], "/expires_at");
}

/// An answer without what no two share.
fn told(response: &reqwest::Response) -> BTreeMap<String, String> {
    let headers = response.headers().iter();
    headers
        .filter(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), format!("{value:?}")))
        .collect()
}

#[tokio::test]
async fn t14_every_token_that_opens_nothing_is_refused_alike() {
    let world = World::with(
        Kind::Embedded,
        1,
        &[
            ("auth.admin_token", ADMIN.to_owned()),
            ("api.rate_limit.failures_per_minute", "0".to_owned()),
        ],
    )
    .await;
    let (real, id) = token(&world, Some("a"), &["read"]).await;
    let (revoked, gone) = token(&world, Some("a"), &["read"]).await;
    let path = format!("/v1/tokens/{gone}");
    call(&world, ADMIN, "DELETE", &path, None).await.expect(204);
    let last = if real.ends_with('0') { "1" } else { "0" };
    let almost = format!("{}{last}", &real[..real.len() - 1]);
    let unknown = format!("pr_{}_{}", "0".repeat(32), "a".repeat(64));
    let mut answers = Vec::new();
    for header in [
        None,
        Some("Bearer".to_owned()),
        Some("Bearer x".into()),
        Some(format!("Bearer pr_{id}_")),
        Some(format!("Bearer {almost}")),
        Some(format!("Bearer {revoked}")),
        Some(format!("Bearer {unknown}")),
        Some(format!("Bearer {}", &ADMIN[1..])),
        Some(format!("Basic {real}")),
        Some(format!("Bearer {}", "x".repeat(8000))),
    ] {
        let mut request = client().get(format!("{}{LIST}", world.nodes[0].api()));
        if let Some(header) = &header {
            request = request.header("authorization", header);
        }
        let response = request.send().await.expect("an answer");
        let (status, told) = (response.status(), told(&response));
        answers.push((status, told, response.text().await.expect("a text")));
    }
    assert_eq!(answers[0].0, 401);
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:#?}"
    );
}

#[tokio::test]
async fn t14_ten_thousand_guesses_are_429_and_disturb_nobody_else() {
    let world = guarded(Kind::Embedded).await;
    let (real, id) = token(&world, Some("a"), &["read"]).await;
    assert_eq!(status(&world.nodes[0], &real).await, 200);
    let url = format!("{}{LIST}", world.nodes[0].api());
    let guesser = client();
    let guesses = stream::iter(0..10_000).map(|n: u32| {
        let guess = format!("Bearer pr_{id}_{n:064x}");
        let request = guesser.get(&url).header("authorization", guess);
        async { request.send().await.expect("an answer").status().as_u16() }
    });
    let statuses: Vec<u16> = guesses.buffer_unordered(16).collect().await;
    let count = |status: u16| statuses.iter().filter(|is| **is == status).count();
    // Sixty at once and one a second after them; the machine may be slow.
    let (refused, late) = (count(401), count(429));
    assert_eq!(refused + late, 10_000);
    assert!((60..2_000).contains(&refused), "{refused} were looked up");

    // One guess a second is looked up; of many, each as if from elsewhere, some are not. Nobody is
    // somebody else by saying so.
    let mut n = 0;
    let response = loop {
        n += 1;
        let request = guesser.get(&url).header("authorization", "Bearer guess");
        let request = request.header("x-forwarded-for", format!("198.51.100.{}", n % 256));
        let response = request.send().await.expect("an answer");
        if response.status() == 429 {
            break response;
        }
        assert!(n < 1_000, "{n} guesses were looked up");
    };
    assert!(response.headers().contains_key("retry-after"));
    let kind = &response.headers()["content-type"];
    assert_eq!(kind, "application/problem+json");
    let problem: Value =
        serde_json::from_str(&response.text().await.expect("a body")).expect("json");
    assert_eq!(problem["code"], "rate_limited");
    // Who was let in before still is; and another address has its own count.
    assert_eq!(status(&world.nodes[0], &real).await, 200);
    let elsewhere = reqwest::Client::builder()
        .no_proxy()
        .local_address("127.0.0.2".parse::<IpAddr>().expect("an address"))
        .build()
        .expect("a client");
    let request = elsewhere.get(&url).header("authorization", "Bearer guess");
    assert_eq!(request.send().await.expect("an answer").status(), 401);
    let limited = world
        .metric("postrider_api_limited_total", "cause=\"failures\"")
        .await;
    assert!(limited >= late as f64, "{limited} of {late} are counted");
}

#[tokio::test]
async fn t14_a_token_that_asks_too_often_waits_and_the_others_do_not() {
    let world = World::with(
        Kind::Embedded,
        1,
        &[
            ("auth.admin_token", ADMIN.to_owned()),
            ("api.rate_limit.requests_per_second", "5".to_owned()),
        ],
    )
    .await;
    let (busy, _) = token(&world, Some("a"), &["publish", "read"]).await;
    let (calm, _) = token(&world, Some("b"), &["read"]).await;
    let asked = stream::iter(0..200).map(|_| status(&world.nodes[0], &busy));
    let statuses: Vec<u16> = asked.buffer_unordered(8).collect().await;
    assert!(
        statuses.contains(&200) && statuses.contains(&429),
        "{statuses:?}"
    );
    assert_eq!(status(&world.nodes[0], &calm).await, 200);
}

#[tokio::test]
async fn t14_without_any_token_the_trial_has_no_limit() {
    let world = World::with(
        Kind::Embedded,
        1,
        &[
            ("api.rate_limit.requests_per_second", "1".to_owned()),
            ("api.rate_limit.failures_per_minute", "1".to_owned()),
        ],
    )
    .await;
    for _ in 0..50 {
        world.call("GET", LIST, None).await.expect(200);
    }
}
