//! A hostile world: the corpora of URLs (U), names (D) and receivers (R), each row with its id and
//! its verdict, held to by the product's own processes. `docs/security.md` lists them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::world::{Kind, World};

mod crowds;
mod names;
mod receivers;
mod urls;

/// What is to become of a delivery, by the words of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Delivered by the first attempt.
    Delivered,
    /// No connection is made: `target_not_allowed` in each of at most three attempts, then dead.
    Refused,
    /// Each attempt fails with this word, until the policy is exhausted.
    Retried(&'static str),
}

/// A Postrider that is strict about addresses and speaks plain http, with both of the public ports.
async fn strict(more: &[(&'static str, String)]) -> World {
    let mut settings = vec![
        ("egress.allow", String::new()),
        ("egress.require_https", "false".to_owned()),
        // How busy the machine is must not decide.
        ("delivery.connect_timeout", "30s".to_owned()),
    ];
    settings.extend_from_slice(more);
    World::with(Kind::Embedded, 1, &settings).await
}

/// Four attempts, a second apart: one more than a target that is not allowed gets.
fn tries() -> Value {
    json!({"timeout": "30s", "retry": {"delays": ["1s", "1s", "1s"]}})
}

/// A delivery with its attempts, once it is in a state that will do.
async fn became(world: &World, sub: &str, event: &str, done: impl Fn(&Value) -> bool) -> Value {
    let list = format!("/v1/deliveries?subscription_id={sub}&event_id={event}");
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let found = world.items(&list).await;
        if let Some(row) = found.first() {
            let path = format!("/v1/deliveries/{}", row["id"].as_str().expect("an id"));
            let whole = world.call("GET", &path, None).await.expect(200);
            if done(&whole) {
                return whole;
            }
            assert!(Instant::now() < deadline, "never done: {whole:#}");
        }
        assert!(Instant::now() < deadline, "no delivery of {event} to {sub}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn is_over(delivery: &Value) -> bool {
    matches!(delivery["state"].as_str(), Some("delivered" | "dead"))
}

/// What the attempts of a delivery ended with: the error's word, or `ok`.
fn errors(delivery: &Value) -> Vec<&str> {
    let history = delivery["history"].as_array().expect("attempts");
    history
        .iter()
        .map(|attempt| attempt["error"].as_str().unwrap_or("ok"))
        .collect()
}

#[track_caller]
fn holds(row: &str, delivery: &Value, verdict: Verdict) {
    let told = (
        delivery["state"].as_str().unwrap_or_default(),
        delivery["reason"].as_str().unwrap_or_default(),
        errors(delivery),
    );
    let wanted = match verdict {
        Verdict::Delivered => ("delivered", "", vec!["ok"]),
        Verdict::Refused => ("dead", "target_not_allowed", vec!["target_not_allowed"; 3]),
        Verdict::Retried(error) => ("dead", "exhausted", vec![error; 4]),
    };
    assert_eq!(told, wanted, "{row}: {delivery:#}");
    // Nobody learns what a name resolves to inside.
    if verdict == Verdict::Refused {
        let shown = delivery["history"].to_string();
        for inside in ["127.0.0.1", "10.0.0.1", "169.254", "::1", "fd00"] {
            assert!(!shown.contains(inside), "{row} shows {inside}: {shown}");
        }
    }
}
