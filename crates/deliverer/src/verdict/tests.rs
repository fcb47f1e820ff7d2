//! The verdict as tables, and its two laws: it never panics, and never retries early.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn policy(written: serde_json::Value) -> RetryPolicy {
    serde_json::from_value(written).expect("a policy")
}

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

const NOW: &str = "2026-03-01T12:00:00Z";

fn answered(status: u16, retry_after: Option<&str>) -> Outcome {
    Outcome {
        retry_after: retry_after.map(Into::into),
        ..Outcome::answered(status)
    }
}

#[track_caller]
fn seconds_until_retry(outcome: &Outcome, attempts: u32, delays: serde_json::Value) -> i64 {
    let policy = policy(json!({ "delays": delays }));
    let case = Case {
        attempts,
        policy: &policy,
        not_retried: &[],
        once: false,
        expires_at: None,
        now: at(NOW),
        jitter: 0.0,
    };
    match decide(outcome, &case) {
        Verdict::RetryAt(due) => due.duration_since(at(NOW)).as_secs(),
        other => panic!("expected a retry, got {other:?}"),
    }
}

#[track_caller]
fn reason(outcome: &Outcome, attempts: u32, expires_at: Option<&str>) -> Option<DeadReason> {
    let policy = policy(json!({ "delays": ["5s", "30s", "2m", "5m"] }));
    let expires_at = expires_at.map(at);
    let case = Case {
        attempts,
        policy: &policy,
        not_retried: &[],
        once: false,
        expires_at,
        now: at(NOW),
        jitter: 0.5,
    };
    match decide(outcome, &case) {
        Verdict::Dead(reason, detail) => {
            assert!(!detail.is_empty());
            Some(reason)
        }
        _ => None,
    }
}

#[test]
fn any_2xx_is_delivered_even_past_the_expiry() {
    let policy = policy(json!("none"));
    let case = Case {
        attempts: 99,
        policy: &policy,
        not_retried: &[],
        once: false,
        expires_at: Some(at("2020-01-01T00:00:00Z")),
        now: at(NOW),
        jitter: 0.0,
    };
    for status in [200, 202, 204, 299] {
        assert_eq!(
            decide(&Outcome::answered(status), &case),
            Verdict::Delivered
        );
    }
}

#[test]
fn what_fails_is_retried_when_the_policy_says() {
    for outcome in [
        Outcome::answered(500),
        Outcome::answered(404),
        Outcome::answered(302),
        Outcome::answered(999),
        Outcome::failed(AttemptError::Timeout, "no answer"),
        Outcome::failed(AttemptError::Dns, "the name did not resolve"),
    ] {
        assert_eq!(seconds_until_retry(&outcome, 1, json!(["5s", "30s"])), 5);
        assert_eq!(seconds_until_retry(&outcome, 2, json!(["5s", "30s"])), 30);
    }
}

#[test]
fn the_policy_ends_as_exhausted() {
    assert_eq!(reason(&Outcome::answered(500), 4, None), None);
    assert_eq!(
        reason(&Outcome::answered(500), 5, None),
        Some(DeadReason::Exhausted)
    );
    let none = policy(json!("none"));
    let case = Case {
        not_retried: &[],
        once: false,
        attempts: 1,
        policy: &none,
        expires_at: None,
        now: at(NOW),
        jitter: 0.0,
    };
    assert_eq!(
        decide(&Outcome::answered(503), &case),
        Verdict::Dead(
            DeadReason::Exhausted,
            "the only attempt failed, the last with status: status 503".into()
        )
    );
}

#[test]
fn r19_a_410_is_final_at_once() {
    assert_eq!(
        reason(&Outcome::answered(410), 1, None),
        Some(DeadReason::Gone)
    );
}

#[test]
fn r18_a_request_that_cannot_change_is_refused_after_three_tries() {
    for status in [413, 415] {
        assert_eq!(reason(&Outcome::answered(status), 2, None), None);
        assert_eq!(
            reason(&Outcome::answered(status), 3, None),
            Some(DeadReason::Refused)
        );
    }
    assert_eq!(reason(&Outcome::answered(422), 3, None), None);
}

#[test]
fn a_target_we_may_not_dial_is_given_up_after_three_tries() {
    let refused = Outcome::failed(AttemptError::TargetNotAllowed, "no");
    assert_eq!(reason(&refused, 2, None), None);
    assert_eq!(
        reason(&refused, 3, None),
        Some(DeadReason::TargetNotAllowed)
    );
}

#[test]
fn a_retry_that_would_come_after_the_expiry_is_dead_now() {
    let expired = |end| reason(&Outcome::answered(500), 1, Some(end));
    assert_eq!(expired("2026-03-01T12:00:04Z"), Some(DeadReason::Expired));
    assert_eq!(expired("2020-01-01T00:00:00Z"), Some(DeadReason::Expired));
    assert_eq!(expired("2026-03-01T12:00:06Z"), None);
}

#[test]
fn r20_retry_after_is_honoured_on_429_and_503_and_on_no_other() {
    for status in [429, 503] {
        let wait = |text| seconds_until_retry(&answered(status, Some(text)), 1, json!(["5s"]));
        assert_eq!(wait("120"), 120);
        assert_eq!(wait(" 7 "), 7);
        assert_eq!(wait("Sun, 01 Mar 2026 12:01:00 GMT"), 60);
        assert_eq!(wait("Sunday, 01-Mar-26 12:01:00 GMT"), 60);
        assert_eq!(wait("Sun Mar  1 12:01:00 2026"), 60);
        assert_eq!(wait("2"), 5, "never earlier than the schedule");
        assert_eq!(
            wait("Sun, 01 Mar 2026 11:00:00 GMT"),
            5,
            "a date in the past"
        );
        assert_eq!(wait("90000"), 86_400, "at most a day");
        assert_eq!(wait("Sun, 08 Mar 2026 12:00:00 GMT"), 86_400);
    }
    assert_eq!(
        seconds_until_retry(&answered(500, Some("120")), 1, json!(["5s"])),
        5
    );
}

#[test]
fn r21_an_absurd_retry_after_says_nothing() {
    for text in [
        "-5",
        "NaN",
        "inf",
        "-inf",
        "1e13",
        "1e18",
        "9223372036854775807",
        "99999999999999999999999999",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "",
        " ",
        "0x10",
        "0",
        "1.5",
        "Sun, 01 Mar 2026",
        "soon",
        "12 0",
        "+5",
    ] {
        assert_eq!(
            seconds_until_retry(&answered(503, Some(text)), 1, json!(["5s"])),
            5,
            "{text:?}"
        );
    }
    let endless = "9".repeat(10_000);
    assert_eq!(
        seconds_until_retry(&answered(503, Some(&endless)), 1, json!(["5s"])),
        5
    );
}

#[test]
fn a_retry_after_does_not_prolong_the_policy() {
    assert_eq!(
        reason(&answered(503, Some("60")), 5, None),
        Some(DeadReason::Exhausted)
    );
}

proptest! {
    #[test]
    fn no_outcome_panics_or_is_retried_before_its_schedule(
        status in prop::option::of(any::<u16>()),
        retry_after in prop::option::of(".{0,40}|[0-9]{0,20}"),
        attempts in 0_u32..40,
        jitter in 0.0_f64..1.0,
        delay_ms in 0_u64..100_000_000,
        now_s in -10_000_000_000_i64..200_000_000_000,
        expires_s in prop::option::of(-10_000_000_000_i64..200_000_000_000),
    ) {
        let outcome = match status {
            Some(status) => answered(status, retry_after.as_deref()),
            None => Outcome::failed(AttemptError::Connect, "refused"),
        };
        let delay = format!("{delay_ms}ms");
        let policy = policy(json!({ "delays": [delay.clone(), delay] }));
        let now = Timestamp::from_second(now_s).expect("in range");
        let expires_at = expires_s.map(|s| Timestamp::from_second(s).expect("in range"));
        let case = Case {
            attempts, policy: &policy, not_retried: &[], once: false, expires_at, now, jitter,
        };
        match decide(&outcome, &case) {
            Verdict::Delivered => prop_assert!(matches!(status, Some(200..=299))),
            Verdict::RetryAt(due) => {
                let wait = due.duration_since(now);
                let least = SignedDuration::from_millis(i64::try_from(delay_ms).expect("small"));
                let most = (least.as_secs_f64() * 1.1).max(86_400.0) + 1.0;
                prop_assert!(wait >= least, "{wait:?} is before {least:?}");
                prop_assert!(wait.as_secs_f64() <= most, "{wait:?} is after {most}");
                prop_assert!(expires_at.is_none_or(|end| due < end));
            }
            Verdict::Dead(..) => prop_assert!(!matches!(status, Some(200..=299))),
        }
    }
}

#[test]
fn a_status_that_the_dialect_does_not_retry_is_refused_at_once() {
    let policy = policy(json!({ "delays": ["5s", "30s"] }));
    for (status, reason) in [
        (400, Some(DeadReason::Refused)),
        (406, Some(DeadReason::Refused)),
        (410, Some(DeadReason::Gone)),
        (402, None),
        (500, None),
        (204, None),
    ] {
        let case = Case {
            attempts: 1,
            policy: &policy,
            not_retried: &[400, 406, 410, 204],
            once: false,
            expires_at: None,
            now: at(NOW),
            jitter: 0.0,
        };
        let dead = match decide(&Outcome::answered(status), &case) {
            Verdict::Dead(reason, detail) => {
                assert!(detail.contains(&status.to_string()), "{detail}");
                Some(reason)
            }
            _ => None,
        };
        assert_eq!(dead, reason, "{status}");
    }
}

#[test]
fn a_test_is_tried_once_whatever_the_policy_says() {
    let policy = policy(json!("standard"));
    let case = Case {
        attempts: 1,
        policy: &policy,
        not_retried: &[],
        once: true,
        expires_at: None,
        now: at(NOW),
        jitter: 0.0,
    };
    let failed = decide(&answered(503, Some("60")), &case);
    assert!(
        matches!(failed, Verdict::Dead(DeadReason::Exhausted, _)),
        "{failed:?}"
    );
    assert_eq!(decide(&Outcome::answered(200), &case), Verdict::Delivered);
}
