//! Lanes as subscriptions change under them.

use event::{id::SubscriptionId, secret::SigningKeys};
use prometheus::Opts;
use serde_json::{Value, json};

use super::*;

fn lanes() -> Lanes {
    let gauge = IntGaugeVec::new(Opts::new("endpoints", "-"), &["breaker"]).expect("a gauge");
    let bounds = Bounds {
        window_max: 1,
        failures_max: 4,
        pause_max: Duration::from_secs(60),
    };
    let rules = TargetRules {
        allow: vec!["127.0.0.0/8".parse().expect("a network")],
        require_https: false,
        ..TargetRules::default()
    };
    Lanes::new(Arc::new(Dialects::builtin()), rules, bounds, gauge)
}

fn stored(revision: u64, more: Value) -> Arc<Stored> {
    let mut fields = json!({
        "id": "sub_a", "tenant": "t", "name": "", "target_url": "http://127.0.0.1/a",
        "dialect": "standard", "events": ["*"], "filter": {}, "view": "full", "headers": {},
        "attributes": {}, "delivery": {"rate_limit": "1/s"}, "state": "active",
        "created_at": "2026-03-01T10:00:00Z", "updated_at": "2026-03-01T10:00:00Z",
        "revision": revision,
    });
    let map = fields.as_object_mut().expect("an object");
    map.extend(more.as_object().cloned().unwrap_or_default());
    let subscription = serde_json::from_value(fields).expect("a subscription");
    Arc::new(Stored {
        subscription,
        keys: SigningKeys::default(),
    })
}

fn snapshot(stored: &[Arc<Stored>]) -> Snapshot {
    let subscriptions = stored
        .iter()
        .map(|stored| (stored.subscription.id.clone(), stored.clone()))
        .collect();
    Snapshot {
        revision: 9,
        subscriptions,
    }
}

#[test]
fn a_lane_is_made_once_per_revision_and_never_goes_back() {
    let lanes = lanes();
    let first = lanes.to(&stored(1, json!({}))).expect("a lane");
    assert!(Arc::ptr_eq(
        &first,
        &lanes.to(&stored(1, json!({}))).expect("a lane")
    ));
    let second = lanes
        .to(&stored(2, json!({"name": "new"})))
        .expect("a lane");
    assert_eq!(second.subscription().name, "new");
    let late = lanes.to(&stored(1, json!({}))).expect("a lane");
    assert!(
        Arc::ptr_eq(&second, &late),
        "an older snapshot does not undo a newer one"
    );
}

#[test]
fn what_is_known_of_an_endpoint_stays_while_its_url_does() {
    let lanes = lanes();
    let first = lanes.to(&stored(1, json!({}))).expect("a lane");
    let same = lanes
        .to(&stored(2, json!({"name": "new"})))
        .expect("a lane");
    assert!(Arc::ptr_eq(&first.endpoint, &same.endpoint));
    let moved = json!({"target_url": "http://127.0.0.1/b"});
    let other = lanes.to(&stored(3, moved)).expect("a lane");
    assert!(!Arc::ptr_eq(&first.endpoint, &other.endpoint));
}

#[tokio::test(start_paused = true)]
async fn a_used_up_rate_stays_used_up_until_the_limit_itself_changes() {
    let lanes = lanes();
    let lane = lanes.to(&stored(1, json!({}))).expect("a lane");
    assert!(lane.keep_rate(Duration::ZERO).await.is_ok());
    let renamed = lanes
        .to(&stored(2, json!({"name": "new"})))
        .expect("a lane");
    let (cause, wait) = renamed
        .keep_rate(Duration::ZERO)
        .await
        .expect_err("used up");
    assert_eq!(cause, Cause::RateLimit);
    assert!(
        wait > Duration::ZERO && wait <= Duration::from_secs(1),
        "{wait:?}"
    );
    let wider = json!({"delivery": {"rate_limit": "100/s"}});
    let lane = lanes.to(&stored(3, wider)).expect("a lane");
    assert!(lane.keep_rate(Duration::ZERO).await.is_ok());
    let unlimited = lanes
        .to(&stored(4, json!({"delivery": {}})))
        .expect("a lane");
    for _ in 0..1000 {
        assert!(unlimited.keep_rate(Duration::ZERO).await.is_ok());
    }
}

#[test]
fn a_target_the_rules_refuse_today_has_no_url() {
    let lanes = lanes();
    let inside = json!({"target_url": "http://10.0.0.1/"});
    assert_eq!(lanes.to(&stored(1, inside)).expect("a lane").target, None);
    assert!(
        lanes
            .to(&stored(2, json!({})))
            .expect("a lane")
            .target
            .is_some()
    );
}

#[test]
fn what_cannot_be_used_is_said_without_its_value() {
    let bad = json!({"headers": {"x-key": "secret\n"}});
    let said = lanes().to(&stored(1, bad)).err().expect("refused");
    assert!(said.contains("x-key") && !said.contains("secret"), "{said}");
    let bad = json!({"filter": {"where": "1 +"}});
    let said = lanes().to(&stored(1, bad)).err().expect("refused");
    assert!(said.contains("/where"), "{said}");
}

#[test]
fn lanes_that_are_gone_or_idle_are_forgotten() {
    let lanes = lanes();
    let known = || lanes.read().len();
    let stored = stored(1, json!({}));
    lanes.to(&stored).expect("a lane");
    lanes.forget_idle();
    assert_eq!(known(), 1, "it was used since");
    lanes.forget_idle();
    assert_eq!(known(), 0);
    lanes.to(&stored).expect("a lane");
    lanes.forget_gone(&snapshot(&[stored]));
    assert_eq!(known(), 1);
    lanes.forget_gone(&snapshot(&[]));
    assert_eq!(known(), 0);
}

#[test]
fn a_store_put_back_to_an_older_state_holds() {
    let lanes = lanes();
    lanes
        .to(&stored(2, json!({"name": "new"})))
        .expect("a lane");
    let older = stored(1, json!({}));
    lanes.forget_gone(&snapshot(std::slice::from_ref(&older)));
    let lane = lanes.to(&older).expect("a lane");
    assert_eq!(lane.subscription().revision, 1);
}

#[test]
fn a_secret_header_is_marked_so() {
    let headers = json!({"headers": {"X-Api-Key": "k"}});
    let lane = lanes().to(&stored(1, headers)).expect("a lane");
    let value = lane.headers.get("x-api-key").expect("the header");
    assert!(value.is_sensitive());
    assert_eq!(
        lane.subscription().id,
        SubscriptionId::parse("sub_a").expect("an id")
    );
}
