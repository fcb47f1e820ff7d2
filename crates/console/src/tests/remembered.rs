//! Events, deliveries, retries and explanations, over rows as a recorder writes them.

use event::{
    delivery::Purpose,
    log::{Archived, Attempt, LogEntry, Timing},
    reason::{AttemptError, DeliveryState},
    subscription::View,
};

use super::*;

/// A tenant with one subscription to everything, and an event for it.
struct Scene {
    api: Api,
    subscription: SubscriptionId,
}

async fn scene() -> Scene {
    let api = api().await;
    let subscription = id_of(&api.subscribe("a").await);
    Scene { api, subscription }
}

fn id_of(subscription: &Value) -> SubscriptionId {
    SubscriptionId::parse(subscription["id"].as_str().unwrap()).unwrap()
}

fn archived(body: Value, matched: &[&SubscriptionId]) -> Archived {
    let envelope = Envelope {
        now: Timestamp::now(),
        message_id: None,
        tenant: None,
        fresh_id: None,
    };
    let event = admit(body.to_string().as_bytes(), &envelope).unwrap();
    Archived {
        bytes: serde_json::to_vec(&event).unwrap().len() as u64,
        event: Arc::new(event),
        accepted_at: Timestamp::now(),
        revision: 1_000_000,
        matched: matched.iter().map(|id| (*id).clone()).collect(),
    }
}

fn paid(id: &str, tenant: &str) -> Value {
    json!({"id": id, "tenant": tenant, "type": "payment.paid", "data": {"price": 12.10}})
}

fn entry(archived: &Archived, subscription: &SubscriptionId, state: DeliveryState) -> LogEntry {
    let event = &archived.event;
    LogEntry {
        delivery_id: DeliveryId::of(&event.tenant, &event.id, subscription),
        event_id: event.id.clone(),
        subscription_id: subscription.clone(),
        tenant: event.tenant.clone(),
        kind: event.kind.clone(),
        accepted_at: archived.accepted_at,
        at: Timestamp::now(),
        purpose: Purpose::Live,
        run: 0,
        attempts: 0,
        state,
        reason: None,
        detail: None,
        clause: None,
        due: None,
        attempt: None,
    }
}

fn attempt(number: u32, status: u16, body: &[u8]) -> Box<Attempt> {
    Box::new(Attempt {
        number,
        at: Timestamp::now(),
        timing: Timing::default(),
        view: View::Full,
        request_headers: vec![("x-api-key".into(), "***".into())],
        body_hash: blake3::hash(body).to_hex().to_string(),
        body_bytes: body.len() as u64,
        status: Some(status),
        response_headers: Vec::new(),
        response: Some("thanks".into()),
        error: (status >= 300).then_some(AttemptError::Status),
        detail: None,
    })
}

impl Scene {
    async fn record(&self, archived: &Archived, entries: &[LogEntry]) {
        let archived = std::slice::from_ref(archived);
        self.api.store.record(archived, entries).await.unwrap();
    }

    /// An event with one delivery that stands so.
    async fn delivery(&self, event: Value, state: DeliveryState) -> (Archived, String) {
        let archived = archived(event, &[&self.subscription]);
        let entry = entry(&archived, &self.subscription, state);
        let path = format!("/v1/deliveries/{}", entry.delivery_id);
        self.record(&archived, &[entry]).await;
        (archived, path)
    }

    async fn retry(&self, path: &str) -> Answered {
        let path = format!("{path}/retry");
        self.api.admin("POST", &path, None).await
    }

    async fn get(&self, path: &str) -> Value {
        self.api.admin("GET", path, None).await.expect(200).json()
    }
}

#[tokio::test]
async fn a_delivery_is_shown_with_every_attempt_and_the_body_that_was_sent() {
    let scene = scene().await;
    let archived = archived(paid("e1", "a"), &[&scene.subscription]);
    let event = &archived.event;
    let (time, data) = (event.time, event.data.as_ref().unwrap());
    let body = format!(r#"{{"type":"payment.paid","timestamp":"{time}","data":{data}}}"#);
    let body = body.as_bytes();
    let mut first = entry(&archived, &scene.subscription, DeliveryState::Retrying);
    first.attempts = 1;
    first.attempt = Some(attempt(1, 500, body));
    let mut second = entry(&archived, &scene.subscription, DeliveryState::Delivered);
    second.attempts = 2;
    second.attempt = Some(attempt(2, 200, body));
    let path = format!("/v1/deliveries/{}", first.delivery_id);
    scene.record(&archived, &[first, second]).await;

    let shown = scene.get(&path).await;
    assert_eq!(
        (&shown["state"], &shown["attempts"], &shown["last_status"]),
        (&json!("delivered"), &json!(2), &json!(200))
    );
    let statuses: Vec<_> = shown["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| attempt["status"].as_u64().unwrap())
        .collect();
    assert_eq!(statuses, [500, 200]);
    assert_eq!(shown["request_body"].as_str().unwrap().as_bytes(), body);
    assert_eq!(shown["event"]["data"], json!({"price": 12.1}));
    let list = scene.get("/v1/deliveries?event_id=e1").await;
    assert_eq!(list["items"][0]["id"], shown["id"]);
    assert_eq!(list["items"][0]["type"], "payment.paid");
}

#[tokio::test]
async fn a_body_is_not_shown_where_it_is_not_certain() {
    let scene = scene().await;
    let cases: [(&str, &[u8], &str); 2] = [
        ("e1", b"what a view that was fetched held", "written again"),
        ("e2", b"", "nothing was sent"),
    ];
    for (id, body, why) in cases {
        let archived = archived(paid(id, "a"), &[&scene.subscription]);
        let mut dead = entry(&archived, &scene.subscription, DeliveryState::Dead);
        dead.reason = Some(DeadReason::Exhausted);
        dead.attempts = 1;
        let mut attempt = attempt(1, 500, body);
        if body.is_empty() {
            attempt.body_hash = String::new();
        }
        dead.attempt = Some(attempt);
        let path = format!("/v1/deliveries/{}", dead.delivery_id);
        scene.record(&archived, &[dead]).await;
        let shown = scene.get(&path).await;
        assert_eq!(shown["request_body"], Value::Null, "{shown:#}");
        let said = shown["request_body_unknown"].as_str().unwrap();
        assert!(said.starts_with(why), "{said}");
    }
}

#[tokio::test]
async fn deliveries_are_found_by_each_filter_and_by_no_other_word() {
    let scene = scene().await;
    let other = id_of(&scene.api.subscribe("a").await);
    let archived = archived(paid("e1", "a"), &[&scene.subscription, &other]);
    let mut dead = entry(&archived, &other, DeliveryState::Dead);
    dead.reason = Some(DeadReason::Gone);
    scene.record(&archived, &[dead]).await;
    for (query, count) in [
        (String::new(), 2),
        (format!("subscription_id={other}"), 1),
        ("event_id=e1".into(), 2),
        ("event_id=e2".into(), 0),
        ("state=pending".into(), 1),
        ("state=dead".into(), 1),
        ("reason=gone".into(), 1),
        ("reason=exhausted".into(), 0),
        ("type=payment.paid".into(), 2),
        ("type=payment".into(), 0),
        ("tenant=a".into(), 2),
        ("tenant=b".into(), 0),
        ("since=2020-01-01T00:00:00Z".into(), 2),
        ("until=2020-01-01T00:00:00Z".into(), 0),
    ] {
        let list = scene.get(&format!("/v1/deliveries?{query}")).await;
        assert_eq!(list["items"].as_array().unwrap().len(), count, "{query}");
    }
    for (query, pointer, says) in [
        ("subscription=x", "?subscription", "did you mean"),
        ("state=lost", "?state", "must be one of `pending`"),
        ("since=monday", "?since", "RFC 3339"),
        ("limit=0", "?limit", "1 to 500"),
    ] {
        let path = format!("/v1/deliveries?{query}");
        let problem = scene.api.admin("GET", &path, None).await;
        let problem = problem.problem(400, "bad_query");
        assert_eq!(problem["errors"][0]["pointer"], pointer);
        let message = problem["errors"][0]["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    }
}

#[tokio::test]
async fn the_log_reads_by_day_week_and_month() {
    let scene = scene().await;
    let times = [
        "2026-02-27T10:00:00Z",
        "2026-03-01T10:00:00Z",
        "2026-03-01T11:00:00Z",
        "2026-03-02T10:00:00Z",
    ];
    for (n, time) in times.iter().enumerate() {
        let mut archived = archived(paid(&format!("e{n}"), "a"), &[&scene.subscription]);
        archived.accepted_at = time.parse().unwrap();
        let state = if n == 2 {
            DeliveryState::Filtered
        } else {
            DeliveryState::Delivered
        };
        let entry = entry(&archived, &scene.subscription, state);
        scene.record(&archived, &[entry]).await;
    }
    let span = "since=2026-02-27T00:00:00Z&until=2026-03-08T00:00:00Z";
    for (by, expected) in [
        (
            "",
            vec![("2026-03-02", 1), ("2026-03-01", 2), ("2026-02-27", 1)],
        ),
        ("&by=week", vec![("2026-03-02", 1), ("2026-02-23", 3)]),
        ("&by=month", vec![("2026-03-01", 3), ("2026-02-01", 1)]),
    ] {
        let answer = scene
            .get(&format!("/v1/deliveries/periods?{span}{by}"))
            .await;
        let items = answer["items"].as_array().unwrap();
        let read: Vec<_> = items
            .iter()
            .map(|item| {
                (
                    item["start"].as_str().unwrap(),
                    item["total"].as_u64().unwrap(),
                )
            })
            .collect();
        assert_eq!(read, expected, "{by}");
        for item in items {
            let (since, until) = (item["since"].as_str(), item["until"].as_str());
            let path = format!(
                "/v1/deliveries?since={}&until={}",
                since.unwrap(),
                until.unwrap()
            );
            let rows = scene.get(&path).await;
            assert_eq!(
                rows["items"].as_array().unwrap().len() as u64,
                item["total"].as_u64().unwrap(),
                "its span finds what it counts"
            );
        }
    }
    let day = scene
        .get("/v1/deliveries/periods?since=2026-03-01T00:00:00Z&until=2026-03-02T00:00:00Z")
        .await;
    assert_eq!(
        day["items"][0]["states"],
        json!({"delivered": 1, "filtered": 1})
    );
    let problem = scene
        .api
        .admin("GET", "/v1/deliveries/periods?by=year", None)
        .await;
    problem.problem(400, "bad_query");
}

#[tokio::test]
async fn what_has_ended_is_sent_again_under_the_same_id() {
    let scene = scene().await;
    let (archived, path) = scene
        .delivery(paid("e1", "a"), DeliveryState::Delivered)
        .await;
    let retry = format!("{path}/retry");
    let again = scene.api.admin("POST", &retry, None).await.expect(202);
    assert_eq!(again.json()["run"], 1);
    let bundles = scene.api.bundles();
    assert_eq!(bundles.len(), 1);
    let item = &bundles[0].items[0];
    assert_eq!(item.event.id, archived.event.id);
    assert_eq!(
        item.event.data.as_ref().unwrap().get(),
        archived.event.data.as_ref().unwrap().get(),
        "byte for byte"
    );
    let to = &item.to[0];
    assert_eq!((to.run, to.purpose, to.attempts), (1, Purpose::Replay, 0));
    assert_eq!(
        item.accepted_at.as_nanosecond(),
        archived.accepted_at.as_nanosecond()
    );

    let shown = scene.get(&path).await;
    assert_eq!(
        (&shown["state"], &shown["run"], &shown["purpose"]),
        (&json!("pending"), &json!(1), &json!("replay"))
    );
    let second = scene.api.admin("POST", &retry, None).await;
    second.problem(409, "under_way");
    assert_eq!(scene.api.bundles().len(), 1);
}

#[tokio::test]
async fn two_retries_at_once_are_one_delivery() {
    let scene = scene().await;
    let (_, path) = scene
        .delivery(paid("e1", "a"), DeliveryState::Filtered)
        .await;
    let retry = format!("{path}/retry");
    let call = || scene.api.admin("POST", &retry, None);
    let (one, two) = tokio::join!(call(), call());
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [202, 409]);
    assert_eq!(scene.api.bundles().len(), 1);
}

/// Another process on the same store and broker.
fn beside(api: &Api) -> Api {
    let app = router(State {
        store: api.store.clone(),
        feed: Feed::fixed(Snapshot::default()),
        publisher: api.taker.clone(),
        access: Arc::new(Access::new(Some(ADMIN.into()), api.store.clone(), true)),
        rules: TargetRules::default(),
        dialects: Arc::new(Dialects::builtin()),
        archive: event::log::Archive::Full,
        stop: tokio_util::sync::CancellationToken::new(),
    });
    Api {
        app,
        store: api.store.clone(),
        taker: api.taker.clone(),
        _folder: TempDir::new().unwrap(),
    }
}

#[tokio::test]
async fn two_processes_that_are_asked_at_once_send_it_once() {
    let scene = scene().await;
    let other = beside(&scene.api);
    for n in 0..20 {
        let event = paid(&format!("e{n}"), "a");
        let (_, path) = scene.delivery(event, DeliveryState::Delivered).await;
        let retry = format!("{path}/retry");
        let (one, two) = tokio::join!(
            scene.api.admin("POST", &retry, None),
            other.admin("POST", &retry, None)
        );
        let (won, lost) = match one.status.as_u16() {
            202 => (one, two),
            _ => (two, one),
        };
        won.expect(202);
        lost.problem(409, "under_way");
        assert_eq!(scene.api.bundles().len(), n + 1);
    }
}

#[tokio::test]
async fn what_has_not_ended_or_cannot_arrive_is_not_sent_again() {
    let scene = scene().await;
    for (id, state, code) in [
        ("e1", DeliveryState::Pending, "under_way"),
        ("e2", DeliveryState::Retrying, "under_way"),
        ("e3", DeliveryState::Held, "held"),
    ] {
        let (_, path) = scene.delivery(paid(id, "a"), state).await;
        let answer = scene.retry(&path).await;
        answer.problem(409, code);
    }
    let mut expired = paid("e4", "a");
    expired["expires_at"] = json!("2026-03-01T10:00:00Z");
    let (_, path) = scene.delivery(expired, DeliveryState::Delivered).await;
    let answer = scene.retry(&path).await;
    answer.problem(409, "expired");

    // Archived with `recorder.archive = "headers"`: what was published is not here any more.
    let mut headers = archived(paid("e5", "a"), &[&scene.subscription]);
    let mut bare = (*headers.event).clone();
    bare.data = None;
    headers.event = Arc::new(bare);
    let delivered = entry(&headers, &scene.subscription, DeliveryState::Delivered);
    let path = format!("/v1/deliveries/{}", delivered.delivery_id);
    scene.record(&headers, &[delivered]).await;
    let answer = scene.retry(&path).await;
    answer.problem(409, "not_archived");
    assert_eq!(scene.get("/v1/events/e5").await["archived"], false);

    let (_, path) = scene
        .delivery(paid("e6", "a"), DeliveryState::Delivered)
        .await;
    let subscription = format!("/v1/subscriptions/{}", scene.subscription);
    scene
        .api
        .admin("DELETE", &subscription, None)
        .await
        .expect(204);
    let answer = scene.retry(&path).await;
    answer.problem(409, "subscription_deleted");
    assert!(scene.api.bundles().is_empty());
}

#[tokio::test]
async fn a_deletion_that_had_only_its_subject_is_archived_whole() {
    let scene = scene().await;
    let deleted = json!({"id": "e1", "tenant": "a", "type": "customer.deleted", "subject": 10});
    let (_, path) = scene.delivery(deleted, DeliveryState::Delivered).await;
    assert_eq!(scene.get("/v1/events/e1").await["archived"], true);
    let answer = scene.retry(&path).await;
    answer.expect(202);
}

#[tokio::test]
async fn a_dead_delivery_is_redriven_with_its_letter() {
    let scene = scene().await;
    let subscription = scene.subscription.as_str().to_owned();
    let letter = scene.api.bury(&subscription, "a", "e1", None).await;
    let mut archived = archived(paid("e1", "a"), &[&scene.subscription]);
    archived.accepted_at = letter.accepted_at;
    let mut dead = entry(&archived, &scene.subscription, DeliveryState::Dead);
    dead.reason = Some(DeadReason::Exhausted);
    scene.record(&archived, &[dead]).await;
    let path = format!("/v1/deliveries/{}", letter.delivery_id);
    let again = scene.retry(&path).await;
    assert_eq!(again.expect(202).json()["run"], 1);
    let path = format!("/v1/dead-letters/{}", letter.id);
    scene.api.admin("GET", &path, None).await.expect(404);
    let bundles = scene.api.bundles();
    assert_eq!(bundles.len(), 1);
    assert_eq!(bundles[0].items[0].to[0].purpose, Purpose::Replay);
    let path = format!("/v1/deliveries/{}", letter.delivery_id);
    assert_eq!(scene.get(&path).await["state"], "pending");
}

#[tokio::test]
async fn a_retry_that_the_broker_did_not_take_leaves_the_delivery_as_it_is() {
    let scene = scene().await;
    let (_, path) = scene
        .delivery(paid("e1", "a"), DeliveryState::Delivered)
        .await;
    let away = &scene.api.taker.away;
    away.store(true, std::sync::atomic::Ordering::Relaxed);
    let answer = scene.retry(&path).await;
    answer.problem(503, "broker_unavailable");
    assert_eq!(scene.get(&path).await["state"], "delivered");
}

#[tokio::test]
async fn an_event_says_why_for_every_subscription_of_its_tenant() {
    let scene = scene().await;
    let other = json!({
        "tenant": "a", "target_url": "https://example.com/", "events": ["appointment.*"],
    });
    let made = scene.api.admin("POST", "/v1/subscriptions", Some(other));
    let other = id_of(&made.await.expect(201).json());
    let stranger = scene.api.subscribe("b").await;
    let archived = archived(paid("e1", "a"), &[&scene.subscription]);
    let mut filtered = entry(&archived, &scene.subscription, DeliveryState::Filtered);
    filtered.clause = Some("where".into());
    filtered.detail = Some("does not hold".into());
    scene.record(&archived, &[filtered]).await;
    let later = id_of(&scene.api.subscribe("a").await);

    let shown = scene.get("/v1/events/e1").await;
    assert_eq!(
        (&shown["archived"], &shown["more"]),
        (&json!(true), &json!(false))
    );
    let told = shown["subscriptions"].as_array().unwrap();
    assert_eq!(told.len(), 3);
    let of = |id: &SubscriptionId| {
        let found = told
            .iter()
            .find(|why| why["subscription_id"] == id.as_str());
        found.unwrap().clone()
    };
    let why = of(&scene.subscription);
    assert_eq!(why["matched"], true);
    assert_eq!(
        (&why["state"], &why["clause"], &why["detail"]),
        (&json!("filtered"), &json!("where"), &json!("does not hold"))
    );
    let why = of(&other);
    assert_eq!(
        (&why["matched"], &why["clause"]),
        (&json!(false), &json!("events"))
    );
    assert_eq!(
        why["detail"],
        "it listens to `appointment.*`, got `payment.paid`"
    );
    let why = of(&later);
    assert_eq!(
        (&why["matched"], &why["clause"]),
        (&json!(false), &json!("created_at"))
    );
    assert!(!shown.to_string().contains(stranger["id"].as_str().unwrap()));
}

#[tokio::test]
async fn what_is_said_of_a_subscription_that_changed_or_went_says_so() {
    let scene = scene().await;
    let other = id_of(&scene.api.subscribe("a").await);
    let mut archived = archived(paid("e1", "a"), &[&scene.subscription]);
    archived.revision = 2;
    let delivered = entry(&archived, &scene.subscription, DeliveryState::Delivered);
    scene.record(&archived, &[delivered]).await;
    let gone = format!("/v1/subscriptions/{}", scene.subscription);
    scene.api.admin("DELETE", &gone, None).await.expect(204);
    let path = format!("/v1/subscriptions/{other}");
    let patch = json!({"events": ["appointment.*"]});
    scene
        .api
        .admin("PATCH", &path, Some(patch))
        .await
        .expect(200);
    let shown = scene.get("/v1/events/e1").await;
    let told = shown["subscriptions"].as_array().unwrap();
    assert_eq!(
        (&told[0]["deleted"], &told[0]["state"], &told[0]["name"]),
        (&json!(true), &json!("delivered"), &Value::Null)
    );
    assert_eq!(
        (&told[1]["changed_since"], &told[1]["matched"]),
        (&json!(true), &json!(false))
    );
}

#[tokio::test]
async fn an_id_that_several_tenants_have_asks_for_the_tenant() {
    let scene = scene().await;
    for tenant in ["a", "b"] {
        scene.record(&archived(paid("e1", tenant), &[]), &[]).await;
    }
    let problem = scene.api.admin("GET", "/v1/events/e1", None).await;
    let problem = problem.problem(409, "several_tenants");
    assert_eq!(problem["errors"][0]["pointer"], "?tenant");
    assert!(problem["detail"].as_str().unwrap().ends_with("a, b"));
    let own = scene.get("/v1/events/e1?tenant=b").await;
    assert_eq!(own["tenant"], "b");
    let bound = scene.api.token(Some("a"), &[Scope::Read]).await;
    let own = scene.api.call(&bound, "GET", "/v1/events/e1", None).await;
    assert_eq!(own.expect(200).json()["tenant"], "a");
}

#[tokio::test]
async fn events_are_found_by_type_subject_and_time_without_payloads() {
    let scene = scene().await;
    let mut event = paid("e1", "a");
    event["subject"] = json!([10, "x"]);
    scene.record(&archived(event, &[]), &[]).await;
    for (query, count) in [
        ("", 1),
        ("type=payment.paid", 1),
        ("type=payment.refunded", 0),
        ("subject=10", 1),
        ("subject=x", 1),
        ("subject=y", 0),
        ("tenant=b", 0),
        ("until=2020-01-01T00:00:00Z", 0),
    ] {
        let list = scene.get(&format!("/v1/events?{query}")).await;
        let items = list["items"].as_array().unwrap();
        assert_eq!(items.len(), count, "{query}");
        assert!(items.iter().all(|item| item.get("data").is_none()));
    }
    let problem = scene.api.admin("GET", "/v1/events?state=dead", None).await;
    problem.problem(400, "bad_query");
}

#[tokio::test]
async fn a_list_that_moves_is_neither_skipped_nor_repeated() {
    let scene = scene().await;
    let mut first = Vec::new();
    for n in 0..6 {
        let event = paid(&format!("e{n}"), "a");
        first.push(scene.delivery(event, DeliveryState::Pending).await.0);
    }
    for path in ["/v1/deliveries", "/v1/events"] {
        let key = if path == "/v1/events" {
            "id"
        } else {
            "event_id"
        };
        let mut seen = Vec::new();
        let mut cursor = String::new();
        for page in 0.. {
            let answer = scene.get(&format!("{path}?limit=2&cursor={cursor}")).await;
            for item in answer["items"].as_array().unwrap() {
                seen.push(item[key].as_str().unwrap().to_owned());
            }
            // New ones come at the head, and old ones change while the list is read.
            let new = format!("new{page}{key}");
            scene
                .delivery(paid(&new, "a"), DeliveryState::Pending)
                .await;
            for archived in &first {
                let mut moved = entry(archived, &scene.subscription, DeliveryState::Retrying);
                moved.attempts = page + 1;
                scene.record(archived, &[moved]).await;
            }
            match answer["cursor"].as_str() {
                Some(next) => next.clone_into(&mut cursor),
                None => break,
            }
        }
        let mut old: Vec<_> = seen.iter().filter(|id| id.starts_with('e')).collect();
        let count = old.len();
        old.sort();
        old.dedup();
        assert_eq!(old.len(), count, "{path}: nothing twice in {seen:?}");
        assert!(seen.len() >= 6 && old.len() == 6, "{path}: {seen:?}");
        let foreign = if path == "/v1/events" {
            "deliveries"
        } else {
            "events"
        };
        let path = format!("/v1/{foreign}?cursor={cursor}");
        scene
            .api
            .admin("GET", &path, None)
            .await
            .problem(400, "bad_cursor");
    }
}

#[tokio::test]
async fn another_tenants_event_or_delivery_is_the_404_of_none() {
    let scene = scene().await;
    let (_, path) = scene.delivery(paid("e1", "a"), DeliveryState::Dead).await;
    let delivery = path.rsplit('/').next().unwrap().to_owned();
    let stranger = scene.api.token(Some("b"), &[Scope::Manage]).await;
    let event = json!({"tenant": "a", "type": "payment.paid", "data": 1});
    let routes = [
        ("GET", "/v1/deliveries/ID", &*delivery, None),
        ("POST", "/v1/deliveries/ID/retry", &delivery, None),
        ("GET", "/v1/events/ID", "e1", None),
        ("GET", "/v1/events/ID?tenant=a", "e1", None),
        (
            "POST",
            "/v1/subscriptions/ID/explain",
            scene.subscription.as_str(),
            Some(event),
        ),
    ];
    for (method, route, foreign, body) in routes {
        let mut answers = Vec::new();
        for id in [foreign, "dlv_0", "%ff", "a.b"] {
            let path = route.replace("ID", id);
            let answer = scene.api.call(&stranger, method, &path, body.clone());
            answers.push(answer.await.expect(404).bytes);
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{method} {route}");
    }
    for list in [
        "/v1/deliveries",
        "/v1/deliveries?tenant=a",
        "/v1/deliveries?event_id=e1",
        "/v1/deliveries/periods",
        "/v1/events",
        "/v1/events?tenant=a",
    ] {
        let answer = scene.api.call(&stranger, "GET", list, None).await;
        let empty = json!({"items": [], "cursor": null});
        assert_eq!(answer.expect(200).json(), empty, "{list}");
    }
    assert!(scene.api.bundles().is_empty());
    scene.get(&path).await;
}

#[tokio::test]
async fn what_is_remembered_asks_for_its_scope() {
    let scene = scene().await;
    let publish = scene.api.token(None, &[Scope::Publish]).await;
    let read = scene.api.token(None, &[Scope::Read]).await;
    for (method, path, read_suffices) in [
        ("GET", "/v1/events", true),
        ("GET", "/v1/events/x", true),
        ("GET", "/v1/deliveries", true),
        ("GET", "/v1/deliveries/periods", true),
        ("GET", "/v1/deliveries/x", true),
        ("POST", "/v1/deliveries/x/retry", false),
        ("POST", "/v1/subscriptions/x/explain", true),
    ] {
        scene.api.call("", method, path, None).await.expect(401);
        let refused = scene.api.call(&publish, method, path, None).await;
        refused.problem(403, "missing_scope");
        let answer = scene.api.call(&read, method, path, None).await;
        assert_eq!(answer.status != 403, read_suffices, "{method} {path}");
    }
}

#[tokio::test]
async fn explaining_names_every_clause_and_the_first_that_stops_an_event() {
    let scene = scene().await;
    let body = json!({
        "tenant": "a", "target_url": "https://example.com/hooks", "events": ["payment.*"],
        "filter": {"statuses": ["settled"], "where": "event.data.price > 100"},
        "headers": {"X-Api-Key": "canary"},
    });
    let made = scene.api.admin("POST", "/v1/subscriptions", Some(body));
    let id = id_of(&made.await.expect(201).json());
    let path = format!("/v1/subscriptions/{id}");
    let explain = |event: Value| {
        let path = format!("{path}/explain");
        let api = &scene.api;
        async move {
            api.admin("POST", &path, Some(event))
                .await
                .expect(200)
                .json()
        }
    };
    let clauses = |answer: &Value| -> Vec<(String, bool)> {
        let checks = answer["checks"].as_array().unwrap().iter();
        let read = |c: &Value| (c["clause"].as_str().unwrap().to_owned(), c["ok"] == true);
        checks.map(read).collect()
    };
    let all = |oks: [bool; 6]| -> Vec<(String, bool)> {
        let words = [
            "events",
            "dialect",
            "statuses",
            "where",
            "state",
            "target_url",
        ];
        words.map(str::to_owned).into_iter().zip(oks).collect()
    };

    let event = json!({"type": "payment.paid", "status": "open", "data": {"price": 12}});
    let answer = explain(event).await;
    assert_eq!(
        clauses(&answer),
        all([true, true, false, false, true, true])
    );
    assert_eq!(
        (
            &answer["matched"],
            &answer["deliverable"],
            &answer["state"],
            &answer["clause"]
        ),
        (
            &json!(true),
            &json!(false),
            &json!("filtered"),
            &json!("statuses")
        )
    );
    assert_eq!(answer["detail"], "wanted `settled`, got `open`");
    assert_eq!(answer["rendered"], Value::Null);

    let wanted =
        json!({"id": "e9", "type": "payment.paid", "status": "settled", "data": {"price": 120}});
    let answer = explain(wanted.clone()).await;
    assert_eq!(clauses(&answer), all([true; 6]));
    assert_eq!(
        (&answer["deliverable"], &answer["state"], &answer["clause"]),
        (&json!(true), &json!("pending"), &Value::Null)
    );
    let rendered = &answer["rendered"];
    let body = rendered["body"].as_str().unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        (&body["type"], &body["data"]),
        (&json!("payment.paid"), &json!({"price": 120}))
    );
    assert_eq!(rendered["view_sent"], "full");
    let headers = rendered["headers"].as_array().unwrap();
    for pair in [["x-api-key", "***"], ["webhook-id", "e9"]] {
        assert!(headers.contains(&json!(pair)), "{rendered}");
    }
    assert!(!answer.to_string().contains("canary"));

    let answer = explain(json!({"type": "appointment.created", "data": {}})).await;
    assert_eq!(
        (&answer["matched"], &answer["state"], &answer["clause"]),
        (&json!(false), &Value::Null, &json!("events"))
    );

    let mut late = wanted.clone();
    late["expires_at"] = json!("2026-03-01T10:00:00Z");
    let answer = explain(late).await;
    assert_eq!(
        (&answer["state"], &answer["reason"], &answer["clause"]),
        (&json!("dead"), &json!("expired"), &json!("expires_at"))
    );

    scene
        .api
        .admin("POST", &format!("{path}/pause"), None)
        .await
        .expect(200);
    let answer = explain(wanted).await;
    assert_eq!(
        (&answer["state"], &answer["clause"], &answer["deliverable"]),
        (&json!("held"), &json!("state"), &json!(false))
    );
    assert!(
        answer["rendered"].is_object(),
        "what will be sent when it is resumed"
    );
    assert!(
        scene.api.taker.taken.lock().unwrap().is_empty(),
        "nothing is sent"
    );
}

#[tokio::test]
async fn only_an_event_of_the_subscriptions_tenant_is_explained() {
    let scene = scene().await;
    let path = format!("/v1/subscriptions/{}/explain", scene.subscription);
    let post = |body: Value| scene.api.admin("POST", &path, Some(body));
    let foreign = json!({"tenant": "b", "type": "payment.paid", "data": 1});
    post(foreign).await.problem(403, "tenant_mismatch");
    post(json!({"type": "payment.paid"}))
        .await
        .problem(422, "invalid_event");
    post(json!([])).await.expect(422);
    scene
        .api
        .admin("POST", &path, None)
        .await
        .problem(400, "empty_body");
}
