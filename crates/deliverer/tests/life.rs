//! The deliverer from the queue to the endpoint and back, on the embedded broker, against a real
//! endpoint on loopback.

#[path = "life/house.rs"]
mod house;
#[path = "life/log.rs"]
mod log;
#[path = "life/receiver.rs"]
mod receiver;
#[path = "life/views.rs"]
mod views;

use std::{collections::BTreeSet, time::Duration};

use broker::Queue;
use event::{
    SubscriptionId,
    reason::{AttemptError, DeadReason},
};
use house::{House, SECRET, event, item, subscription};
use receiver::{Receiver, Reply, Request};
use serde_json::json;

async fn well() -> Receiver {
    Receiver::start(|_, _| Reply::Status(200)).await
}

fn delivered(request: &[Request]) -> BTreeSet<String> {
    request
        .iter()
        .map(|request| format!("{} {}", request.path, request.header("webhook-id")))
        .collect()
}

#[tokio::test]
async fn each_delivery_of_a_bundle_reaches_its_endpoint_once_and_the_bundle_is_acked() {
    let receiver = well().await;
    let mut house = House::with([
        subscription("a", &receiver.url("/a"), json!({})),
        subscription("b", &receiver.url("/b"), json!({})),
    ])
    .await;
    house
        .publish(vec![
            item(event("e1"), &["a", "b"]),
            item(event("e2"), &["b"]),
        ])
        .await;
    let running = house.start();
    house
        .until("postrider_deliveries_total", "delivered", 3)
        .await;
    running.stop().await;
    let requests = receiver.requests();
    assert_eq!(requests.len(), 3);
    let expected = ["/a e1", "/b e1", "/b e2"].map(String::from);
    assert_eq!(delivered(&requests), BTreeSet::from(expected));
    assert_eq!(house.left().await, 0);
    assert_eq!(house.count("postrider_attempts_total", "success"), 3);
    assert_eq!(
        house.count("postrider_event_to_first_attempt_seconds", ""),
        3
    );
    assert_eq!(house.count("postrider_in_flight", ""), 0);
}

#[tokio::test]
async fn a_request_is_standard_webhooks_and_custom_headers_do_not_override_it() {
    let receiver = well().await;
    let headers = json!({"headers": {
        "x-api-key": "k", "webhook-id": "forged", "content-type": "text/plain",
    }});
    let house = House::with([subscription("a", &receiver.url("/a?x=1"), headers)]).await;
    house.publish(vec![item(event("e1"), &["a"])]).await;
    let running = house.start();
    let requests = receiver.until(1).await;
    running.stop().await;
    let request = &requests[0];
    assert_eq!(request.path, "/a?x=1");
    assert_eq!(request.header("content-type"), "application/json");
    assert_eq!(request.header("webhook-id"), "e1");
    assert_eq!(request.header("x-api-key"), "k");
    assert_eq!(
        request.body,
        r#"{"type":"appointment.created","timestamp":"2026-03-01T10:00:00Z","data":{"n":"e1"}}"#
    );
    let at: i64 = request
        .header("webhook-timestamp")
        .parse()
        .expect("seconds");
    assert!((jiff::Timestamp::now().as_second() - at).abs() < 60);
    let key = event::secret::SigningKey::parse(SECRET).expect("a key");
    let signed = format!("e1.{at}.{}", request.body);
    assert_eq!(
        request.header("webhook-signature"),
        hmac_v1(key.expose_bytes(), &signed)
    );
}

#[tokio::test]
async fn a_dialect_may_leave_the_headers_of_standard_webhooks_out() {
    let receiver = well().await;
    let to = |name: &str| {
        let url = receiver.url(&format!("/{name}"));
        subscription(name, &url, json!({"dialect": name}))
    };
    let mut house = House::with([to("acme"), to("standard")]).await;
    let file = r#"
        name = "acme"
        title = "Acme"
        delivery = { signature_headers = false }
        headers = { x-about = "{{ event.id }}" }
        bodies = { default = { of = "view" } }
        events = [{ word = "Any", types = ["*"] }]
    "#;
    let files = [("acme.toml".to_owned(), file.to_owned())];
    house.dialects = dialect::Dialects::load(files).expect("a dialect").into();
    house
        .publish(vec![item(event("e1"), &["acme", "standard"])])
        .await;
    let running = house.start();
    let requests = receiver.until(2).await;
    running.stop().await;
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    for request in &requests {
        let sent = |wanted: &str| request.headers.iter().any(|(name, _)| name == wanted);
        let signed = names.map(sent);
        assert_eq!(signed, [request.path == "/standard"; 3], "{}", request.path);
    }
    let acme = requests.iter().find(|request| request.path == "/acme");
    let acme = acme.expect("it was sent");
    assert_eq!(
        (acme.header("x-about"), &*acme.body),
        ("e1", r#"{"n":"e1"}"#)
    );
}

/// HMAC by its definition, so that the signer is not checked by itself.
fn hmac_v1(key: &[u8], message: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use sha2::{Digest, Sha256};
    let mut pad = [0; 64];
    pad[..key.len()].copy_from_slice(key);
    let inner = Sha256::new()
        .chain_update(pad.map(|byte| byte ^ 0x36))
        .chain_update(message.as_bytes())
        .finalize();
    let outer = Sha256::new()
        .chain_update(pad.map(|byte| byte ^ 0x5c))
        .chain_update(inner);
    format!("v1,{}", STANDARD.encode(outer.finalize()))
}

#[tokio::test]
async fn what_a_filter_stops_is_counted_and_not_attempted() {
    let receiver = well().await;
    let filter = json!({"filter": {"actions": ["updated"]}});
    let mut house = House::with([subscription("a", &receiver.url("/"), filter)]).await;
    house.publish(vec![item(event("e1"), &["a"])]).await;
    let running = house.start();
    house
        .until("postrider_deliveries_total", "filtered", 1)
        .await;
    running.stop().await;
    assert_eq!(receiver.requests().len(), 0);
    assert_eq!(house.left().await, 0);
}

#[tokio::test]
async fn a_failing_endpoint_is_retried_on_schedule_with_the_same_id() {
    let receiver = Receiver::start(|n, _| Reply::Status(if n < 2 { 500 } else { 200 })).await;
    let mut house = House::with([subscription("a", &receiver.url("/"), json!({}))]).await;
    house.publish(vec![item(event("e1"), &["a"])]).await;
    let running = house.start();
    house
        .until("postrider_deliveries_total", "delivered", 1)
        .await;
    running.stop().await;
    let requests = receiver.requests();
    assert_eq!(requests.len(), 3);
    let at = |n: usize| {
        requests[n]
            .header("webhook-timestamp")
            .parse::<i64>()
            .expect("seconds")
    };
    assert!(
        at(0) < at(1) && at(1) < at(2),
        "each attempt is signed anew, a second apart"
    );
    assert!(
        requests
            .iter()
            .all(|request| request.header("webhook-id") == "e1")
    );
    assert_eq!(house.count("postrider_attempts_total", "status"), 2);
    assert_eq!(house.count("postrider_retry_due_lag_seconds", ""), 2);
    assert_eq!(
        house.count("postrider_event_to_first_attempt_seconds", ""),
        1
    );
    assert_eq!(house.left().await, 0);
}

#[tokio::test]
async fn an_exhausted_delivery_is_a_dead_letter_with_its_history_and_its_event() {
    let receiver = Receiver::start(|_, _| Reply::Status(503)).await;
    let once = json!({"delivery": {"retry": {"delays": ["1s"]}}});
    let house = House::with([subscription("a", &receiver.url("/"), once)]).await;
    house.publish(vec![item(event("e1"), &["a"])]).await;
    let running = house.start();
    let (letter, headers) = house.dead_letter().await;
    running.stop().await;
    assert_eq!(letter.reason, DeadReason::Exhausted);
    assert_eq!(
        letter.detail,
        "all 2 attempts failed, the last with status: status 503"
    );
    assert_eq!((letter.attempts, letter.run), (2, 0));
    assert_eq!(letter.event_id.as_str(), "e1");
    assert_eq!(
        letter.event.data.as_ref().map(|data| data.get()),
        Some(r#"{"n":"e1"}"#)
    );
    let history: Vec<_> = letter
        .history
        .iter()
        .map(|attempt| {
            (
                attempt.number,
                attempt.status,
                attempt.error,
                attempt.response.as_deref(),
            )
        })
        .collect();
    let status = Some(AttemptError::Status);
    assert_eq!(
        history,
        [
            (1, Some(503), status, None),
            (2, Some(503), status, Some("noted"))
        ]
    );
    let reason = headers
        .iter()
        .find(|(name, _)| name == "x-postrider-reason");
    assert_eq!(reason.map(|(_, value)| value.as_str()), Some("exhausted"));
    assert_eq!(house.count("postrider_dead_letters_total", "exhausted"), 1);
    assert_eq!(house.count("postrider_deliveries_total", "dead"), 1);
}

#[tokio::test]
async fn a_410_is_a_dead_letter_at_once_and_asks_to_disable_the_subscription() {
    let receiver = Receiver::start(|_, _| Reply::Status(410)).await;
    let mut house = House::with([subscription("a", &receiver.url("/"), json!({}))]).await;
    house.publish(vec![item(event("e1"), &["a"])]).await;
    let running = house.start();
    let (letter, _) = house.dead_letter().await;
    assert_eq!((letter.reason, letter.attempts), (DeadReason::Gone, 1));
    let (id, reason) = house.disabled.recv().await.expect("asked");
    assert_eq!(id, SubscriptionId::parse("sub_a").expect("an id"));
    assert!(reason.contains("410"), "{reason}");
    running.stop().await;
}

#[tokio::test]
async fn a_retry_after_puts_the_retry_off_and_the_endpoint_is_left_alone() {
    let receiver = Receiver::start(|n, _| match n {
        0 => Reply::With(429, "retry-after: 2\r\n"),
        _ => Reply::Status(200),
    })
    .await;
    let house = House::with([subscription("a", &receiver.url("/"), json!({}))]).await;
    house.publish(vec![item(event("e1"), &["a"])]).await;
    let running = house.start();
    house.until("postrider_attempts_total", "status", 1).await;
    house.publish(vec![item(event("e2"), &["a"])]).await;
    house.until("postrider_parked_total", "throttled", 1).await;
    assert_eq!(receiver.requests().len(), 1);
    house
        .until("postrider_deliveries_total", "delivered", 2)
        .await;
    running.stop().await;
    let at = |n: usize| -> i64 {
        receiver.requests()[n]
            .header("webhook-timestamp")
            .parse()
            .expect("seconds")
    };
    assert!(at(1) - at(0) >= 2 && at(2) - at(0) >= 2);
}

#[tokio::test]
async fn a_paused_or_disabled_subscription_holds_its_deliveries_on_the_ladder() {
    for state in ["paused", "disabled"] {
        let receiver = well().await;
        let paused = subscription("a", &receiver.url("/"), json!({ "state": state }));
        let house = House::with([paused]).await;
        house.publish(vec![item(event("e1"), &["a"])]).await;
        let running = house.start();
        house.until("postrider_parked_total", "held", 1).await;
        running.stop().await;
        let bundle = house.bundle().await;
        let recipient = &bundle.items[0].to[0];
        assert_eq!(
            (recipient.attempts, recipient.parked),
            (0, 1),
            "parking is no attempt"
        );
        assert_eq!(bundle.items[0].event.id.as_str(), "e1");
        assert_eq!(receiver.requests().len(), 0);
    }
}

#[tokio::test]
async fn a_delivery_to_a_deleted_subscription_is_dead_and_one_to_an_unknown_one_waits() {
    let house = House::with([]).await;
    let mut newer = item(event("e2"), &["new"]);
    newer["revision"] = json!(2);
    house
        .publish(vec![item(event("e1"), &["gone"]), newer])
        .await;
    let running = house.start();
    let (letter, _) = house.dead_letter().await;
    assert_eq!(letter.reason, DeadReason::SubscriptionDeleted);
    assert_eq!(letter.event_id.as_str(), "e1");
    house.until("postrider_parked_total", "snapshot", 1).await;
    running.stop().await;
    assert_eq!(house.bundle().await.items[0].event.id.as_str(), "e2");
}

#[tokio::test]
async fn an_expired_event_is_not_attempted_unless_nobody_wants_it() {
    let receiver = well().await;
    let filter = json!({"filter": {"actions": ["updated"]}, "state": "paused"});
    let house = House::with([
        subscription("a", &receiver.url("/"), json!({"state": "paused"})),
        subscription("b", &receiver.url("/"), filter),
    ])
    .await;
    let mut late = event("e1");
    late["expires_at"] = json!("2026-03-01T10:00:00Z");
    house.publish(vec![item(late, &["a", "b"])]).await;
    let running = house.start();
    let (letter, _) = house.dead_letter().await;
    assert_eq!((letter.reason, letter.attempts), (DeadReason::Expired, 0));
    assert_eq!(letter.subscription_id.as_str(), "sub_a");
    house
        .until("postrider_deliveries_total", "filtered", 1)
        .await;
    running.stop().await;
    assert_eq!(receiver.requests().len(), 0);
}

#[tokio::test]
async fn what_cannot_be_written_is_a_dead_letter() {
    let receiver = well().await;
    let klingon = json!({"dialect": "klingon"});
    let house = House::with([subscription("a", &receiver.url("/"), klingon)]).await;
    house.publish(vec![item(event("e1"), &["a"])]).await;
    let running = house.start();
    let (letter, _) = house.dead_letter().await;
    running.stop().await;
    assert_eq!(letter.reason, DeadReason::RenderError);
    assert_eq!(letter.detail, "no dialect is named \"klingon\"");
}

#[tokio::test]
async fn a_target_we_may_not_dial_is_given_up_after_three_tries() {
    let retry = json!({"delivery": {"retry": {"delays": ["10ms", "10ms", "10ms", "10ms"]}}});
    let inside = subscription("a", "http://10.0.0.1/", retry);
    let house = House::with([inside]).await;
    house.publish(vec![item(event("e1"), &["a"])]).await;
    let running = house.start();
    let (letter, _) = house.dead_letter().await;
    running.stop().await;
    assert_eq!(
        (letter.reason, letter.attempts),
        (DeadReason::TargetNotAllowed, 3)
    );
    let said = serde_json::to_string(&letter.history).expect("json");
    assert!(!said.contains("10.0.0.1"), "{said}");
}

#[tokio::test]
async fn a_parcel_that_is_no_bundle_goes_to_quarantine_and_the_next_is_delivered() {
    let receiver = well().await;
    let mut house = House::with([subscription("a", &receiver.url("/"), json!({}))]).await;
    house.publish_bytes(b"{\"items\": [1]}".to_vec()).await;
    house.publish(vec![item(event("e1"), &["a"])]).await;
    let running = house.start();
    let bad = house.next(Queue::Quarantine).await;
    assert_eq!(bad.body.as_ref(), b"{\"items\": [1]}");
    let reason = bad
        .headers
        .iter()
        .find(|(name, _)| name == "x-postrider-reason");
    assert_eq!(reason.map(|(_, value)| value.as_str()), Some("malformed"));
    bad.ticket.ack();
    receiver.until(1).await;
    running.stop().await;
    assert_eq!(house.left().await, 0);
}

#[tokio::test]
async fn no_more_attempts_are_under_way_than_the_endpoint_and_the_process_allow() {
    let pause = Duration::from_millis(20);
    let narrow = Receiver::start(move |_, _| Reply::Late(pause)).await;
    let wide = Receiver::start(move |_, _| Reply::Late(pause)).await;
    let two = json!({"delivery": {"max_in_flight": 2}});
    let mut house = House::with([
        subscription("narrow", &narrow.url("/"), two),
        subscription(
            "wide",
            &wide.url("/"),
            json!({"delivery": {"max_in_flight": 256}}),
        ),
    ])
    .await;
    house.settings.max_in_flight = 8;
    let items = (0..30)
        .map(|n| item(event(&format!("e{n}")), &["narrow", "wide"]))
        .collect();
    house.publish(items).await;
    let running = house.start();
    house
        .until("postrider_deliveries_total", "delivered", 60)
        .await;
    running.stop().await;
    assert_eq!(narrow.most_under_way(), 2);
    assert!(
        (3..=8).contains(&wide.most_under_way()),
        "{}",
        wide.most_under_way()
    );
    assert_eq!(delivered(&narrow.requests()).len(), 30);
}

#[tokio::test]
async fn t7_an_endpoint_that_hangs_delays_no_other() {
    let hanging = Receiver::start(|_, _| Reply::Never).await;
    let good = well().await;
    let house = House::with([
        subscription(
            "hanging",
            &hanging.url("/"),
            json!({"delivery": {"timeout": "30s"}}),
        ),
        subscription("good", &good.url("/"), json!({})),
    ])
    .await;
    // More for the hanging endpoint than the whole process holds at once.
    for bundle in 0..80 {
        let id = |n| format!("e{bundle}-{n}");
        let items = (0..20).map(|n| item(event(&id(n)), &["hanging"])).collect();
        house.publish(items).await;
        house
            .publish(vec![item(event(&format!("good-{bundle}")), &["good"])])
            .await;
    }
    let running = house.start();
    // All of them, while not one attempt at the other has come to its end.
    good.until(80).await;
    assert_eq!(house.count("postrider_attempts_total", "timeout"), 0);
    assert!(hanging.requests().len() <= 16);
    assert!(house.count("postrider_parked_total", "busy") > 0);
    drop(running);
}

#[tokio::test]
async fn a_stop_finishes_what_is_under_way_and_sends_back_what_waits() {
    let slow = Receiver::start(|_, _| Reply::Late(Duration::from_millis(300))).await;
    let one = json!({"delivery": {"max_in_flight": 1}});
    let mut house = House::with([subscription("a", &slow.url("/"), one)]).await;
    let items = (0..5)
        .map(|n| item(event(&format!("e{n}")), &["a"]))
        .collect();
    house.publish(items).await;
    let running = house.start();
    slow.until(1).await;
    running.stop().await;
    assert_eq!(slow.requests().len(), 1);
    assert_eq!(house.count("postrider_deliveries_total", "delivered"), 1);
    assert_eq!(
        house.left().await,
        4,
        "the other four are parcels of their own now"
    );
    // Another process takes over: each arrives once.
    let running = house.start();
    house
        .until("postrider_deliveries_total", "delivered", 5)
        .await;
    running.stop().await;
    assert_eq!(slow.requests().len(), 5);
    assert_eq!(delivered(&slow.requests()).len(), 5);
    assert_eq!(house.count("postrider_deliveries_redelivered_total", ""), 0);
    assert_eq!(house.left().await, 0);
}

#[tokio::test]
async fn what_outlasts_the_grace_goes_back_and_is_counted_when_it_comes_again() {
    let receiver = Receiver::start(|n, _| match n {
        0 => Reply::Never,
        _ => Reply::Status(200),
    })
    .await;
    let mut house = House::with([subscription("a", &receiver.url("/"), json!({}))]).await;
    house.settings.grace = Duration::from_millis(100);
    house.publish(vec![item(event("e1"), &["a"])]).await;
    let running = house.start();
    receiver.until(1).await;
    running.stop().await;
    assert_eq!(house.left().await, 1);
    assert_eq!(house.count("postrider_in_flight", ""), 0);
    let running = house.start();
    house
        .until("postrider_deliveries_total", "delivered", 1)
        .await;
    running.stop().await;
    assert_eq!(house.count("postrider_deliveries_redelivered_total", ""), 1);
    assert_eq!(house.left().await, 0);
}

#[tokio::test]
async fn a_rate_limit_holds_and_loses_nothing() {
    let receiver = well().await;
    let rate = json!({"delivery": {"rate_limit": "10/s"}});
    let house = House::with([subscription("a", &receiver.url("/"), rate)]).await;
    let items = (0..30)
        .map(|n| item(event(&format!("e{n}")), &["a"]))
        .collect();
    house.publish(items).await;
    let running = house.start();
    house
        .until("postrider_deliveries_total", "delivered", 30)
        .await;
    running.stop().await;
    let mut seconds = std::collections::BTreeMap::new();
    for request in receiver.requests() {
        *seconds
            .entry(request.header("webhook-timestamp").to_owned())
            .or_insert(0) += 1;
    }
    // A burst of ten, and ten more within the second it began in.
    assert!(seconds.values().all(|count| *count <= 21), "{seconds:?}");
    assert!(seconds.len() >= 2, "{seconds:?}");
    assert_eq!(delivered(&receiver.requests()).len(), 30);
}

#[tokio::test]
async fn an_empty_bundle_is_done_with() {
    let mut house = House::with([]).await;
    house.publish(vec![]).await;
    let running = house.start();
    // What comes after it is not held up by it either.
    house.publish(vec![item(event("e1"), &["gone"])]).await;
    house.dead_letter().await;
    running.stop().await;
    assert_eq!(house.left().await, 0);
}
