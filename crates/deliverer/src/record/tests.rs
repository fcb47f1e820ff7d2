//! What the log says, as tables.

use event::{
    delivery::Bundle, delivery::Purpose, filter::Stopped, reason::AttemptError,
    secret::names_a_secret,
};
use http::{HeaderMap, HeaderValue};
use serde_json::json;

use super::*;

fn delivery(attempts: u32) -> Delivery {
    let bundle: Bundle = serde_json::from_value(json!({"items": [{
        "event": {
            "id": "e1", "tenant": "t", "type": "a.b", "time": "2026-03-01T10:00:00Z",
            "data": {"secret": 1},
        },
        "accepted_at": "2026-03-01T10:00:01Z", "revision": 1,
        "to": [{"sub": "sub_a", "attempts": attempts, "run": 2, "purpose": "replay"}],
    }]}))
    .expect("a bundle");
    Delivery::all(bundle).next().expect("a delivery")
}

fn parked(cause: Cause) -> End {
    End::Parked((cause, std::time::Duration::ZERO))
}

#[test]
fn an_entry_is_made_of_what_changes_a_delivery_and_of_nothing_else() {
    let now = Timestamp::UNIX_EPOCH;
    let held = || End::Held("the subscription is paused".into());
    let dead = End::Dead(DeadReason::Gone, "gone".into());
    let stopped = Stopped {
        clause: "where".into(),
        detail: "does not hold".into(),
    };
    use DeliveryState as State;
    for (attempts, was_held, end, expected) in [
        (1, false, End::Delivered, Some(State::Delivered)),
        (0, false, End::Filtered(stopped), Some(State::Filtered)),
        (1, false, End::Retry(now), Some(State::Retrying)),
        (1, false, dead, Some(State::Dead)),
        (0, false, held(), Some(State::Held)),
        (0, true, held(), None),
        (0, false, parked(Cause::Breaker), None),
        (3, false, parked(Cause::Busy), None),
        (0, true, parked(Cause::Breaker), Some(State::Pending)),
        (3, true, parked(Cause::RateLimit), Some(State::Retrying)),
        (0, true, parked(Cause::Snapshot), None),
        (0, true, parked(Cause::Stopping), None),
        (0, false, End::Void, None),
    ] {
        let entry = entry(&delivery(attempts), was_held, &end, None, now);
        assert_eq!(
            entry.as_ref().map(|entry| entry.state),
            expected,
            "{attempts} {was_held} {entry:?}"
        );
    }
}

#[test]
fn a_run_that_somebody_asked_for_is_told_of_when_it_first_waits() {
    let now = Timestamp::UNIX_EPOCH;
    for (run, attempts, parked_times, cause, expected) in [
        (1, 0, 1, Cause::Breaker, true),
        (1, 0, 1, Cause::Snapshot, true),
        (1, 0, 2, Cause::Breaker, false),
        (1, 1, 1, Cause::Breaker, false),
        (1, 0, 1, Cause::Stopping, false),
        (0, 0, 1, Cause::Breaker, false),
    ] {
        let mut delivery = delivery(attempts);
        (delivery.to.run, delivery.to.parked) = (run, parked_times);
        let entry = entry(&delivery, false, &parked(cause), None, now);
        let state = entry.as_ref().map(|entry| entry.state);
        let expected = expected.then_some(DeliveryState::Pending);
        assert_eq!(state, expected, "{run} {attempts} {parked_times} {cause:?}");
    }
}

#[test]
fn an_entry_says_whose_it_is_and_why() {
    let stopped = Stopped {
        clause: "where".into(),
        detail: "does not hold".into(),
    };
    let now: Timestamp = "2026-03-01T10:00:09Z".parse().expect("a time");
    let filtered = entry(&delivery(0), false, &End::Filtered(stopped), None, now);
    let filtered = filtered.expect("an entry");
    assert_eq!(filtered.clause.as_deref(), Some("where"));
    assert_eq!(filtered.detail.as_deref(), Some("does not hold"));
    assert_eq!(filtered.event_id.as_str(), "e1");
    assert_eq!((filtered.run, filtered.purpose), (2, Purpose::Replay));
    assert_eq!(filtered.at, now);
    assert_eq!(filtered.accepted_at.to_string(), "2026-03-01T10:00:01Z");
    let end = End::Dead(DeadReason::Exhausted, "all failed".into());
    let dead = entry(&delivery(4), false, &end, None, now).expect("an entry");
    assert_eq!(dead.reason, Some(DeadReason::Exhausted));
    assert_eq!(
        (dead.detail.as_deref(), dead.attempts),
        (Some("all failed"), 4)
    );
    let due = "2026-03-01T11:00:00Z".parse().expect("a time");
    let retrying = entry(&delivery(1), false, &End::Retry(due), None, now);
    assert_eq!(retrying.expect("an entry").due, Some(due));
}

#[test]
fn an_attempt_shows_its_request_without_its_secrets_and_its_body_by_its_hash_alone() {
    let mut headers = HeaderMap::new();
    let mut secret = HeaderValue::from_static("hunter2");
    secret.set_sensitive(true);
    headers.insert("x-api-key", secret);
    headers.insert("webhook-signature", HeaderValue::from_static("v1,abc"));
    headers.insert("user-agent", HeaderValue::from_static("mine/1"));
    let body = bytes::Bytes::from_static(b"{\"private\":true}");
    let sent = Sent::request(&headers, &body, View::Basic, Some("a note".into()));
    let mut outcome = Outcome::answered(200);
    outcome.seen.body = Some("thanks".into());
    outcome.seen.headers = vec![("server".into(), "x".into())];
    let attempt = attempt(3, Timestamp::UNIX_EPOCH, sent, &outcome, Archive::Full);
    let shown: Vec<(&str, &str)> = attempt
        .request_headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(
        shown,
        [
            ("x-api-key", "***"),
            ("webhook-signature", "v1,abc"),
            ("user-agent", "mine/1"),
            ("accept", "*/*"),
            ("content-length", "16"),
        ]
    );
    assert_eq!(attempt.body_hash, blake3::hash(&body).to_hex().as_str());
    assert_eq!(
        (attempt.number, attempt.body_bytes, attempt.view),
        (3, 16, View::Basic)
    );
    assert_eq!(
        attempt.detail.as_deref(),
        Some("a note"),
        "also of a success"
    );
    assert_eq!((attempt.status, attempt.error), (Some(200), None));
    assert_eq!(attempt.response.as_deref(), Some("thanks"));
    let text = serde_json::to_string(&attempt).expect("json");
    assert!(
        !text.contains("private") && !text.contains("hunter2"),
        "{text}"
    );
}

#[test]
fn where_only_headers_are_remembered_no_response_body_is() {
    let sent = || Sent::nothing(View::Full);
    let mut outcome = Outcome::failed(AttemptError::Timeout, "loader for appointment: late");
    outcome.seen.body = Some("thanks".into());
    outcome.response = Some("thanks".into());
    let full = attempt(1, Timestamp::UNIX_EPOCH, sent(), &outcome, Archive::Full);
    assert_eq!(full.response.as_deref(), Some("thanks"));
    let brief = attempt(1, Timestamp::UNIX_EPOCH, sent(), &outcome, Archive::Headers);
    assert_eq!(brief.response, None);
    assert_eq!(
        brief.detail.as_deref(),
        Some("loader for appointment: late")
    );
    assert_eq!(brief.body_hash, "", "nothing was sent");
}

#[test]
fn a_header_that_carries_a_credential_by_custom_is_known_by_its_name() {
    for name in [
        "authorization",
        "Proxy-Authorization",
        "x-api-key",
        "X-Vagaro-Signature",
        "x-auth",
        "cookie",
        "x-access-token",
        "client-secret",
        "x-password",
    ] {
        assert!(names_a_secret(name), "{name}");
    }
    for name in [
        "webhook-signature",
        "webhook-id",
        "webhook-timestamp",
        "content-type",
        "ce-type",
        "x-postrider-purpose",
        "ce-id",
        "user-agent",
    ] {
        assert!(!names_a_secret(name), "{name}");
    }
}
