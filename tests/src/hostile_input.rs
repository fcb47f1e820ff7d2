//! Hostile input (rows I01 to I55 of the corpus): what cannot be an event is refused in words that
//! an integrator can act on, or quarantined as it came; it loses nothing and holds up nobody. What
//! only looks dangerous arrives unchanged.

mod messages;
mod requests;
mod rows;
mod work;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::world::{Answer, Fate, Kind, Sub, World};
use rows::{Http, Row};

#[tokio::test]
async fn every_body_of_the_corpus_is_judged_over_http_by_the_embedded_process() {
    over_http(World::start(Kind::Embedded).await).await;
}

#[tokio::test]
async fn every_body_of_the_corpus_is_judged_over_http_with_rabbitmq() {
    over_http(World::start(Kind::Rabbit).await).await;
}

/// All rows of bodies, each on its own request; then a good event still flows.
async fn over_http(world: World) {
    let sub = world.subscribe("/http", &["*"], json!({})).await;
    let (mut wrong, mut sent) = (Vec::new(), BTreeMap::new());
    for row in rows::all() {
        let id = format!("h-{}", row.name);
        let kind = Some(("application/json", row.bytes(&id)));
        let answer = world.send("POST", "/v1/events", kind, None).await;
        match &row.http {
            Http::Refused { .. } => wrong.extend(misjudged(&row, &answer)),
            _ if answer.status != 202 => wrong.push(told(&row, "was not taken", &answer.json)),
            Http::Taken(data) => {
                world.expect(&sub, &id, Fate::Delivered);
                sent.insert(id, data.clone());
            }
            Http::Unwanted => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    unchanged(&world, &sub, &sent).await;
    a_good_event_flows(&world, &sub).await;
    world.finish().await;
}

/// In what the answer to a row is not the answer that it must be.
fn misjudged(row: &Row, answer: &Answer) -> Option<String> {
    let Http::Refused {
        status,
        code,
        pointer,
        says,
    } = &row.http
    else {
        return None;
    };
    let got = &answer.json;
    let text = got.to_string();
    let kind = answer.headers.get("content-type");
    let errors = got["errors"].as_array().cloned().unwrap_or_default();
    let judged = if kind.is_none_or(|kind| kind != "application/problem+json") {
        "is not answered with a problem"
    } else if (answer.status, &got["status"]) != (*status, &json!(status)) {
        "has another status"
    } else if got["code"] != *code {
        "has another code"
    } else if got["detail"].as_str().is_none_or(str::is_empty) {
        "has no detail"
    } else if pointer.is_some_and(|wanted| !errors.iter().any(|e| e["pointer"] == wanted)) {
        "has no error at that place"
    } else if says
        .iter()
        .any(|word| !text.contains(&json!(word).to_string().replace('"', "")))
    {
        "does not say what it must"
    } else if text.len() > 64 * 1024 {
        "is answered at length"
    } else if *code == "bad_json" && !(got["line"].is_u64() && got["column"].is_u64()) {
        "has no line and column"
    } else if *code == "bad_utf8" && !got["byte"].is_u64() {
        "has no byte offset"
    } else {
        return None;
    };
    Some(told(row, judged, got))
}

fn told(row: &Row, what: &str, got: &Value) -> String {
    let got: String = got.to_string().chars().take(600).collect();
    format!("{} {what}: wanted {:?}, got {got}", row.name, row.http)
}

/// What arrived is what was sent, byte for byte.
async fn unchanged(world: &World, sub: &Sub, sent: &BTreeMap<String, String>) {
    let receiver = &world.receiver;
    let arrived = receiver
        .wait_until("what was taken", || {
            let seen = receiver.successes(&sub.path);
            let missing = sent.keys().any(|id| !seen.contains_key(id));
            (!missing).then(|| receiver.requests(&sub.path))
        })
        .await;
    for request in arrived {
        let body = String::from_utf8_lossy(&request.body);
        if let Some(data) = sent.get(request.event_id()) {
            let whole = format!("\"data\":{data}}}");
            assert!(
                body.ends_with(&whole),
                "{}: {body:.400}",
                request.event_id()
            );
        }
    }
}

async fn a_good_event_flows(world: &World, sub: &Sub) {
    let id = world
        .publish(json!({"type": "appointment.created", "data": {"good": true}}))
        .await;
    world.expect(sub, &id, Fate::Delivered);
    let receiver = &world.receiver;
    receiver
        .wait_until("a good event after all of them", || {
            receiver
                .successes(&sub.path)
                .contains_key(&id)
                .then_some(())
        })
        .await;
}
