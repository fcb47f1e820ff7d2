use std::{future::ready, sync::Mutex};

use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use broker::{Parcel, PublishError, Route};
use event::{
    DeadLetterId, DeliveryId, EventId, SubscriptionId, Tenant,
    access::Scope,
    admission::{Envelope, admit},
    delivery::{Bundle, DeadLetter},
    reason::{DeadReason, QuarantineReason},
};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use store::{Quarantined, feed::Snapshot};
use tempfile::TempDir;
use tower::ServiceExt;

use super::*;

mod description;
mod dialects;
mod jobs;
mod remembered;
mod subjects;
mod vcita;

/// A broker that takes everything, or nothing.
#[derive(Debug, Default)]
struct Taker {
    taken: Mutex<Vec<Parcel>>,
    away: std::sync::atomic::AtomicBool,
}

impl Publish for Taker {
    fn publish(&self, parcel: Parcel) -> BoxFuture<'_, Result<(), PublishError>> {
        if self.away.load(std::sync::atomic::Ordering::Relaxed) {
            return Box::pin(ready(Err(PublishError::Unavailable)));
        }
        self.taken.lock().unwrap().push(parcel);
        Box::pin(ready(Ok(())))
    }
}

const ADMIN: &str = "the-admin-token-of-this-test";

struct Api {
    app: Router,
    store: Store,
    taker: Arc<Taker>,
    _folder: TempDir,
}

async fn api() -> Api {
    api_with(Some(ADMIN)).await
}

async fn api_with(admin: Option<&str>) -> Api {
    let folder = TempDir::new().unwrap();
    let url = format!("sqlite://{}/postrider.db", folder.path().display());
    let store = Store::open(&store::Settings {
        url,
        ..Default::default()
    })
    .await
    .unwrap();
    let taker = Arc::new(Taker::default());
    let admin = admin.map(Into::into);
    let app = router(State {
        store: store.clone(),
        feed: Feed::fixed(Snapshot::default()),
        publisher: taker.clone(),
        access: Arc::new(Access::new(admin, store.clone(), true)),
        rules: TargetRules {
            allow: vec!["127.0.0.0/8".parse().unwrap()],
            require_https: true,
            ..TargetRules::default()
        },
        dialects: Arc::new(Dialects::builtin()),
        archive: event::log::Archive::Full,
        stop: tokio_util::sync::CancellationToken::new(),
    });
    Api {
        app,
        store,
        taker,
        _folder: folder,
    }
}

#[derive(Debug)]
struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Vec<u8>,
}

impl Answered {
    #[track_caller]
    fn expect(self, status: u16) -> Self {
        let text = String::from_utf8_lossy(&self.bytes);
        assert_eq!(self.status.as_u16(), status, "{text}");
        self
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    #[track_caller]
    fn problem(self, status: u16, code: &str) -> Value {
        let json = self.expect(status).json();
        assert_eq!(json["code"], code, "{json}");
        json
    }
}

impl Api {
    async fn call(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> Answered {
        self.call_with(token, method, path, body, &[]).await
    }

    async fn call_with(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Answered {
        let mut request = Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        let response = self
            .app
            .clone()
            .oneshot(request.body(body).unwrap())
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Answered {
            status: parts.status,
            headers: parts.headers,
            bytes,
        }
    }

    async fn admin(&self, method: &str, path: &str, body: Option<Value>) -> Answered {
        self.call(ADMIN, method, path, body).await
    }

    async fn token(&self, tenant: Option<&str>, scopes: &[Scope]) -> String {
        let tenant = tenant.map(|tenant| Tenant::parse(tenant).unwrap());
        let now = Timestamp::now();
        let made = self
            .store
            .create_token("t", tenant, scopes.to_vec(), None, now)
            .await;
        made.unwrap().1.expose_secret().to_owned()
    }

    async fn subscribe(&self, tenant: &str) -> Value {
        let body = json!({
            "tenant": tenant, "target_url": "https://example.com/hooks", "events": ["*"],
            "headers": {"x-api-key": "canary"},
        });
        self.admin("POST", "/v1/subscriptions", Some(body))
            .await
            .expect(201)
            .json()
    }

    async fn bury(
        &self,
        subscription: &str,
        tenant: &str,
        event: &str,
        expires: Option<&str>,
    ) -> DeadLetter {
        let letter = dead_letter(subscription, tenant, event, expires);
        self.store
            .record_dead(std::slice::from_ref(&letter))
            .await
            .unwrap();
        letter
    }

    fn bundles(&self) -> Vec<Bundle> {
        let taken = self.taker.taken.lock().unwrap();
        taken
            .iter()
            .map(|parcel| {
                assert_eq!(parcel.route, Route::Deliver);
                serde_json::from_slice(&parcel.body).unwrap()
            })
            .collect()
    }
}

fn dead_letter(subscription: &str, tenant: &str, event: &str, expires: Option<&str>) -> DeadLetter {
    let mut body = json!({"id": event, "tenant": tenant, "type": "payment.paid", "data": {"n": 1}});
    if let Some(expires) = expires {
        body["expires_at"] = expires.into();
    }
    let now = Timestamp::now();
    let envelope = Envelope {
        now,
        message_id: None,
        tenant: None,
        fresh_id: None,
    };
    let event = admit(body.to_string().as_bytes(), &envelope).unwrap();
    let subscription_id = SubscriptionId::parse(subscription).unwrap();
    let delivery_id = DeliveryId::of(&event.tenant, &event.id, &subscription_id);
    DeadLetter {
        id: DeadLetterId::of(&delivery_id, 0),
        delivery_id,
        event_id: event.id.clone(),
        subscription_id,
        tenant: event.tenant.clone(),
        kind: event.kind.clone(),
        reason: DeadReason::Exhausted,
        detail: "16 attempts failed".into(),
        attempts: 16,
        run: 0,
        died_at: now,
        accepted_at: now,
        history: Vec::new(),
        event: Arc::new(event),
        expunged_at: None,
    }
}

#[tokio::test]
async fn a_secret_is_shown_once_and_a_header_value_never() {
    let api = api().await;
    let created = api.subscribe("a").await;
    assert!(created["secret"].as_str().unwrap().starts_with("whsec_"));
    let path = format!("/v1/subscriptions/{}", created["id"].as_str().unwrap());
    let mut answers = vec![created.clone()];
    answers.push(api.admin("GET", &path, None).await.expect(200).json());
    answers.push(
        api.admin("GET", "/v1/subscriptions", None)
            .await
            .expect(200)
            .json(),
    );
    let patch = json!({"name": "x", "headers": {"x-api-key": "***"}});
    answers.push(
        api.admin("PATCH", &path, Some(patch))
            .await
            .expect(200)
            .json(),
    );
    for (index, answer) in answers.iter().enumerate() {
        assert!(!answer.to_string().contains("canary"), "{answer}");
        assert_eq!(
            answer.to_string().contains("whsec_"),
            index == 0,
            "{answer}"
        );
    }
    let id = SubscriptionId::parse(created["id"].as_str().unwrap()).unwrap();
    let kept = api
        .store
        .subscription(&store::Sight::All, &id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(kept.subscription.headers["x-api-key"], "canary");
}

#[tokio::test]
async fn an_ed25519_subscription_shows_its_public_key_and_no_private_one() {
    let api = api().await;
    let body = json!({
        "tenant": "a", "target_url": "https://example.com/", "events": ["*"], "signing": ["v1a"],
    });
    let created = api
        .admin("POST", "/v1/subscriptions", Some(body))
        .await
        .expect(201)
        .json();
    let public = created["public_key"].as_str().unwrap();
    assert!(
        public.starts_with("whpk_") && public.len() == 5 + 44,
        "{public}"
    );
    assert_eq!(created.get("secret"), None);
    assert!(!created.to_string().contains("whsk_"));
    let path = format!("/v1/subscriptions/{}", created["id"].as_str().unwrap());
    assert_eq!(
        api.admin("GET", &path, None).await.json()["public_key"],
        public
    );
    // Rotating it without a word rotates the only kind there is.
    let rotated = api
        .admin("POST", &format!("{path}/rotate-secret"), None)
        .await
        .expect(200)
        .json();
    assert_ne!(rotated["public_key"], public);
    assert_eq!(rotated.get("secret"), None);
}

#[tokio::test]
async fn another_tenants_id_is_the_404_of_none() {
    let api = api().await;
    let subscription = api.subscribe("a").await["id"].as_str().unwrap().to_owned();
    let letter = api
        .bury(&subscription, "a", "e1", None)
        .await
        .id
        .to_string();
    let stranger = api.token(Some("b"), &[Scope::Manage, Scope::Publish]).await;
    let routes = [
        ("GET", "/v1/subscriptions/ID", None),
        ("PATCH", "/v1/subscriptions/ID", Some(json!({"name": "x"}))),
        ("POST", "/v1/subscriptions/ID/pause", None),
        ("POST", "/v1/subscriptions/ID/resume", None),
        ("POST", "/v1/subscriptions/ID/rotate-secret", None),
        ("DELETE", "/v1/subscriptions/ID", None),
        ("GET", "/v1/dead-letters/ID", None),
        ("POST", "/v1/dead-letters/ID/redrive", None),
        ("DELETE", "/v1/dead-letters/ID", None),
        (
            "POST",
            "/v1/subscriptions/ID/replay",
            Some(json!({"since": "2026-01-01T00:00:00Z"})),
        ),
    ];
    for (method, route, body) in routes {
        let foreign = if route.contains("dead") {
            &letter
        } else {
            &subscription
        };
        let mut answers = Vec::new();
        for id in [foreign, "sub_0", "%ff", "a.b"] {
            let path = route.replace("ID", id);
            let answer = api
                .call(&stranger, method, &path, body.clone())
                .await
                .expect(404);
            assert!(answer.headers["content-type"] == "application/problem+json");
            answers.push(answer.bytes);
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{method} {route}");
    }
    for list in [
        "/v1/subscriptions",
        "/v1/dead-letters",
        "/v1/subscriptions?tenant=a",
    ] {
        let answer = api.call(&stranger, "GET", list, None).await.expect(200);
        assert_eq!(
            answer.json(),
            json!({"items": [], "cursor": null}),
            "{list}"
        );
    }
    let bulk = api
        .call(
            &stranger,
            "POST",
            "/v1/dead-letters/redrive",
            Some(json!({})),
        )
        .await;
    assert_eq!(bulk.expect(200).json()["redriven"], 0);
    assert!(api.bundles().is_empty());
    api.admin("GET", &format!("/v1/subscriptions/{subscription}"), None)
        .await
        .expect(200);
    api.admin("GET", &format!("/v1/dead-letters/{letter}"), None)
        .await
        .expect(200);
}

#[tokio::test]
async fn every_route_asks_for_its_scope() {
    let api = api().await;
    let read = api.token(None, &[Scope::Read]).await;
    let publish = api.token(None, &[Scope::Publish]).await;
    let manage = api.token(None, &[Scope::Manage]).await;
    let bound = api.token(Some("a"), &[Scope::Admin]).await;
    let table = [
        ("GET", "/v1/subscriptions", "read"),
        ("GET", "/v1/subscriptions/x", "read"),
        ("GET", "/v1/dead-letters", "read"),
        ("GET", "/v1/dead-letters/x", "read"),
        ("GET", "/v1/quarantine", "read"),
        ("GET", "/v1/quarantine/x", "read"),
        ("POST", "/v1/subscriptions", "manage"),
        ("PATCH", "/v1/subscriptions/x", "manage"),
        ("DELETE", "/v1/subscriptions/x", "manage"),
        ("POST", "/v1/subscriptions/x/pause", "manage"),
        ("POST", "/v1/subscriptions/x/resume", "manage"),
        ("POST", "/v1/subscriptions/x/rotate-secret", "manage"),
        ("POST", "/v1/dead-letters/redrive", "manage"),
        ("GET", "/v1/jobs", "read"),
        ("GET", "/v1/jobs/x", "read"),
        ("POST", "/v1/jobs/x/cancel", "manage"),
        ("POST", "/v1/subscriptions/x/replay", "manage"),
        ("POST", "/v1/dead-letters/x/redrive", "manage"),
        ("DELETE", "/v1/dead-letters/x", "manage"),
        ("DELETE", "/v1/subjects/client/x?tenant=a", "manage"),
        ("POST", "/v1/quarantine/x/release", "manage"),
        ("GET", "/v1/tokens", "admin"),
        ("POST", "/v1/tokens", "admin"),
        ("DELETE", "/v1/tokens/x", "admin"),
    ];
    for (method, path, scope) in table {
        let none = api.call("", method, path, None).await.expect(401);
        let wrong = api.call("pr_no_no", method, path, None).await.expect(401);
        assert_eq!(none.bytes, wrong.bytes, "{method} {path}");
        for (token, has) in [(&publish, ""), (&read, "read"), (&manage, "read manage")] {
            let answer = api.call(token, method, path, None).await;
            if has.contains(scope) {
                assert_ne!(answer.status, 403, "{method} {path}");
            } else {
                let problem = answer.problem(403, "missing_scope");
                assert!(
                    problem["detail"].as_str().unwrap().contains(scope),
                    "{problem}"
                );
            }
        }
        if path.contains("tokens") || path.contains("quarantine") {
            api.call(&bound, method, path, None)
                .await
                .problem(403, "tenant_bound");
        }
    }
}

#[tokio::test]
async fn a_list_refuses_what_it_does_not_know() {
    let api = api().await;
    let table = [
        ("/v1/subscriptions?limit=0", "bad_query", "?limit"),
        ("/v1/subscriptions?limit=501", "bad_query", "?limit"),
        ("/v1/subscriptions?cursor=nope", "bad_cursor", "?cursor"),
        ("/v1/subscriptions?stat=active", "bad_query", "?stat"),
        ("/v1/subscriptions?state=gone", "bad_query", "?state"),
        ("/v1/dead-letters?reason=nope", "bad_query", "?reason"),
        ("/v1/dead-letters?since=monday", "bad_query", "?since"),
        ("/v1/dead-letters?limit=1&limit=2", "bad_query", "?limit"),
        ("/v1/quarantine?reason=nope", "bad_query", "?reason"),
        ("/v1/tokens?tenant=a", "bad_query", "?tenant"),
        ("/v1/jobs?state=gone", "bad_query", "?state"),
    ];
    for (path, code, pointer) in table {
        let problem = api.admin("GET", path, None).await.problem(400, code);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
}

#[tokio::test]
async fn pages_follow_their_cursor() {
    let api = api().await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(api.subscribe("a").await["id"].clone());
    }
    let first = api
        .admin("GET", "/v1/subscriptions?limit=2", None)
        .await
        .expect(200)
        .json();
    let cursor = first["cursor"].as_str().unwrap();
    let next = format!("/v1/subscriptions?limit=2&cursor={cursor}");
    let second = api.admin("GET", &next, None).await.expect(200).json();
    assert_eq!(second["cursor"], Value::Null);
    let ids = [&first, &second]
        .map(|page| page["items"].as_array().unwrap().clone())
        .concat();
    let ids: Vec<_> = ids.iter().map(|item| item["id"].clone()).collect();
    assert_eq!(ids, made);
}

#[tokio::test]
async fn a_change_of_an_older_revision_is_refused() {
    let api = api().await;
    let created = api.subscribe("a").await;
    let path = format!("/v1/subscriptions/{}", created["id"].as_str().unwrap());
    let shown = api.admin("GET", &path, None).await;
    let tag = shown.headers["etag"].to_str().unwrap().to_owned();
    let name = |name: &str| Some(json!({ "name": name }));
    let matching = [("if-match", &*tag)];
    let changed = api
        .call_with(ADMIN, "PATCH", &path, name("one"), &matching)
        .await
        .expect(200);
    assert_ne!(changed.headers["etag"], *tag);
    let stale = api
        .call_with(ADMIN, "PATCH", &path, name("two"), &matching)
        .await;
    stale.problem(412, "revision_mismatch");
    api.call_with(ADMIN, "DELETE", &path, None, &matching)
        .await
        .problem(412, "revision_mismatch");
    assert_eq!(api.admin("GET", &path, None).await.json()["name"], "one");
    api.call_with(ADMIN, "PATCH", &path, name("three"), &[("if-match", "*")])
        .await
        .expect(200);
}

#[tokio::test]
async fn concurrent_changes_all_happen() {
    let api = api().await;
    let created = api.subscribe("a").await;
    let path = format!("/v1/subscriptions/{}", created["id"].as_str().unwrap());
    let set = |key: &'static str| {
        let (api, path) = (&api, &path);
        async move {
            let patch = json!({"attributes": {key: "x"}});
            api.admin("PATCH", path, Some(patch)).await.expect(200);
        }
    };
    tokio::join!(set("a"), set("b"), set("c"));
    let shown = api.admin("GET", &path, None).await.json();
    assert_eq!(shown["attributes"], json!({"a": "x", "b": "x", "c": "x"}));
}

#[tokio::test]
async fn resuming_clears_why_we_disabled_it() {
    let api = api().await;
    let created = api.subscribe("a").await;
    let id = SubscriptionId::parse(created["id"].as_str().unwrap()).unwrap();
    api.store
        .disable_subscription(&id, "410 gone", Timestamp::now())
        .await
        .unwrap();
    let path = format!("/v1/subscriptions/{id}");
    let disabled = api.admin("GET", &path, None).await.json();
    assert_eq!(
        (&disabled["state"], &disabled["disabled_reason"]),
        (&json!("disabled"), &json!("410 gone"))
    );
    let resumed = api
        .admin("POST", &format!("{path}/resume"), None)
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&resumed["state"], resumed.get("disabled_reason")),
        (&json!("active"), None)
    );
    let paused = api
        .admin("POST", &format!("{path}/pause"), None)
        .await
        .expect(200)
        .json();
    assert_eq!(paused["state"], "paused");
}

#[tokio::test]
async fn rotating_keeps_the_old_key_for_as_long_as_was_asked() {
    let api = api().await;
    let created = api.subscribe("a").await;
    let id = SubscriptionId::parse(created["id"].as_str().unwrap()).unwrap();
    let path = format!("/v1/subscriptions/{id}/rotate-secret");
    let rotated = api
        .admin("POST", &path, Some(json!({"expire_old_after": "1h"})))
        .await;
    let rotated = rotated.expect(200).json();
    assert_ne!(rotated["secret"], created["secret"]);
    let until: Timestamp = rotated["previous_expires_at"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let kept = api
        .store
        .subscription(&store::Sight::All, &id)
        .await
        .unwrap()
        .unwrap();
    let live = |at: Timestamp| {
        kept.keys
            .live(at)
            .map(|key| Value::from(key.expose_text()))
            .collect::<Vec<_>>()
    };
    let just_before = until - jiff::SignedDuration::from_secs(1);
    assert_eq!(
        live(just_before),
        [rotated["secret"].clone(), created["secret"].clone()]
    );
    assert_eq!(live(until), [rotated["secret"].clone()]);
    let bad = json!({"kind": "v2", "expire_old_after": "8d", "x": 1});
    let problem = api
        .admin("POST", &path, Some(bad))
        .await
        .problem(422, "invalid_request");
    assert_eq!(problem["errors"].as_array().unwrap().len(), 3, "{problem}");
}

#[tokio::test]
async fn a_redrive_begins_the_next_run_and_ends_the_letter() {
    let api = api().await;
    let subscription = api.subscribe("a").await;
    let letter = api
        .bury(subscription["id"].as_str().unwrap(), "a", "e1", None)
        .await;
    let path = format!("/v1/dead-letters/{}", letter.id);
    let shown = api.admin("GET", &path, None).await.expect(200).json();
    assert_eq!(
        (&shown["state"], &shown["reason"]),
        (&json!("dead"), &json!("exhausted"))
    );
    assert_eq!(shown["event"]["data"], json!({"n": 1}));
    let listed = api
        .admin("GET", "/v1/dead-letters", None)
        .await
        .expect(200)
        .json();
    assert_eq!(listed["items"][0].get("event"), None);

    let redriven = api
        .admin("POST", &format!("{path}/redrive"), None)
        .await
        .expect(202)
        .json();
    assert_eq!(redriven["run"], 1);
    let [bundle] = &api.bundles()[..] else {
        panic!("one bundle")
    };
    let [item] = &bundle.items[..] else {
        panic!("one item")
    };
    assert_eq!(item.event.id, EventId::parse("e1").unwrap());
    assert_eq!(item.revision, subscription["revision"].as_u64().unwrap());
    assert_eq!(
        (item.to[0].run, item.to[0].attempts, item.to.len()),
        (1, 0, 1)
    );
    api.admin("GET", &path, None).await.expect(404);
    api.admin("POST", &format!("{path}/redrive"), None)
        .await
        .expect(404);
}

#[tokio::test]
async fn two_redrives_at_once_are_one_delivery() {
    let api = api().await;
    let subscription = api.subscribe("a").await;
    let letter = api
        .bury(subscription["id"].as_str().unwrap(), "a", "e1", None)
        .await;
    let path = format!("/v1/dead-letters/{}/redrive", letter.id);
    let bulk = || api.admin("POST", "/v1/dead-letters/redrive", Some(json!({})));
    tokio::join!(
        api.admin("POST", &path, None),
        api.admin("POST", &path, None),
        bulk(),
        bulk()
    );
    assert_eq!(api.bundles().len(), 1);
}

#[tokio::test]
async fn a_letter_stays_while_the_broker_is_away() {
    let api = api().await;
    let subscription = api.subscribe("a").await;
    let letter = api
        .bury(subscription["id"].as_str().unwrap(), "a", "e1", None)
        .await;
    api.taker
        .away
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let path = format!("/v1/dead-letters/{}", letter.id);
    let answer = api.admin("POST", &format!("{path}/redrive"), None).await;
    assert_eq!(answer.headers["retry-after"], "1");
    answer.problem(503, "broker_unavailable");
    api.admin("GET", &path, None).await.expect(200);
}

#[tokio::test]
async fn what_cannot_be_delivered_is_not_redriven() {
    let api = api().await;
    let subscription = api.subscribe("a").await;
    let id = subscription["id"].as_str().unwrap();
    let expired = api.bury(id, "a", "e1", Some("2026-01-01T00:00:00Z")).await;
    let path = format!("/v1/dead-letters/{}/redrive", expired.id);
    api.admin("POST", &path, None).await.problem(409, "expired");
    let orphan = api.bury("sub_gone", "a", "e2", None).await;
    let path = format!("/v1/dead-letters/{}/redrive", orphan.id);
    api.admin("POST", &path, None)
        .await
        .problem(409, "subscription_deleted");
    assert!(api.bundles().is_empty());
}

#[tokio::test]
async fn a_bulk_redrive_filters_pages_and_says_whether_there_is_more() {
    let api = api().await;
    let subscription = api.subscribe("a").await;
    let id = subscription["id"].as_str().unwrap();
    for n in 0..3 {
        api.bury(id, "a", &format!("e{n}"), None).await;
    }
    api.bury("sub_gone", "a", "orphan", None).await;
    let redrive = |body: Value| api.admin("POST", "/v1/dead-letters/redrive", Some(body));
    let none = redrive(json!({"type": "other.kind"}))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&none["redriven"], &none["more"]),
        (&json!(0), &json!(false))
    );
    let filter = json!({"subscription_id": id, "reason": "exhausted", "limit": 2});
    let first = redrive(filter.clone()).await.expect(200).json();
    assert_eq!(
        (&first["redriven"], &first["more"]),
        (&json!(2), &json!(true))
    );
    let second = redrive(filter).await.expect(200).json();
    assert_eq!(
        (&second["redriven"], &second["more"]),
        (&json!(1), &json!(false))
    );
    // What stays behind must not make a caller loop.
    let rest = redrive(json!({"limit": 1})).await.expect(200).json();
    assert_eq!(
        rest,
        json!({"redriven": 0, "skipped": 1, "more": false, "cursor": null})
    );
    assert_eq!(api.bundles().len(), 3);
    redrive(json!({"subscription": id}))
        .await
        .problem(422, "invalid_request");
    let forgotten = api.admin("POST", "/v1/dead-letters/redrive", None).await;
    forgotten.problem(400, "bad_json");
}

#[tokio::test]
async fn a_release_republishes_the_bytes_where_they_are_an_event() {
    let api = api().await;
    let quarantined = |id: &str, body: &str| Quarantined {
        id: id.into(),
        reason: QuarantineReason::HandlerFailed,
        detail: "panicked".into(),
        first_seen: Timestamp::now(),
        source: "postrider.events/payment.paid".into(),
        message_id: Some("m1".into()),
        content_type: None,
        size: body.len(),
        body: body.into(),
    };
    let body = r#"{ "tenant":"a", "type":"payment.paid", "data": 1 }"#;
    let messages = [quarantined("q_good", body), quarantined("q_bad", "{\u{0}")];
    api.store.record_quarantined(&messages).await.unwrap();
    let shown = api
        .admin("GET", "/v1/quarantine/q_good", None)
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&shown["body"], &shown["size"]),
        (&json!(body), &json!(body.len()))
    );

    let bad = api
        .admin("POST", "/v1/quarantine/q_bad/release", None)
        .await;
    bad.problem(422, "still_unfit");
    api.admin("POST", "/v1/quarantine/q_good/release", None)
        .await
        .expect(202);
    let [parcel] = &api.taker.taken.lock().unwrap().clone()[..] else {
        panic!("one parcel")
    };
    assert_eq!(
        parcel.route,
        Route::Events {
            routing_key: "payment.paid".into()
        }
    );
    assert_eq!(
        (&*parcel.message_id, &parcel.body[..]),
        ("m1", body.as_bytes())
    );
    api.admin("GET", "/v1/quarantine/q_good", None)
        .await
        .expect(404);
    api.admin("GET", "/v1/quarantine/q_bad", None)
        .await
        .expect(200);
}

#[tokio::test]
async fn a_token_is_shown_once_and_revoked_at_once() {
    let api = api().await;
    let body = json!({"name": "ci", "scopes": ["read"], "tenant": "a", "expires_at": null});
    let made = api
        .admin("POST", "/v1/tokens", Some(body))
        .await
        .expect(201)
        .json();
    let token = made["token"].as_str().unwrap();
    assert!(token.starts_with("pr_"));
    api.call(token, "GET", "/v1/subscriptions", None)
        .await
        .expect(200);
    let listed = api
        .admin("GET", "/v1/tokens", None)
        .await
        .expect(200)
        .json();
    assert_eq!(listed["items"][0]["id"], made["id"]);
    assert!(!listed.to_string().contains(token));
    let path = format!("/v1/tokens/{}", made["id"].as_str().unwrap());
    api.admin("DELETE", &path, None).await.expect(204);
    api.admin("DELETE", &path, None).await.expect(404);
    let bad =
        json!({"name": "x\n", "scopes": ["publis", "read"], "expires_at": "2020-01-01T00:00:00Z"});
    let problem = api
        .admin("POST", "/v1/tokens", Some(bad))
        .await
        .problem(422, "invalid_request");
    let pointers: Vec<_> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["pointer"].clone())
        .collect();
    assert_eq!(pointers, ["/name", "/scopes/0", "/expires_at"]);
    api.admin("POST", "/v1/tokens", None)
        .await
        .problem(422, "invalid_request");
}

#[tokio::test]
async fn the_first_token_of_an_open_api_must_be_able_to_make_the_next() {
    let api = api_with(None).await;
    let locked_out = [
        json!({"scopes": ["publish"]}),
        json!({"scopes": ["admin"], "tenant": "a"}),
        json!({"scopes": ["admin"], "expires_at": "2090-01-01T00:00:00Z"}),
    ];
    for body in locked_out {
        let answer = api.call("", "POST", "/v1/tokens", Some(body)).await;
        answer.problem(409, "first_token_must_be_admin");
    }
    let admin = json!({"scopes": ["admin"]});
    api.call("", "POST", "/v1/tokens", Some(admin))
        .await
        .expect(201);
}

#[tokio::test]
async fn a_body_that_is_not_json_is_415() {
    let api = api().await;
    let request = Request::post("/v1/subscriptions")
        .header("authorization", format!("Bearer {ADMIN}"))
        .header("content-type", "text/plain")
        .body(Body::from("{}"))
        .unwrap();
    let response = api.app.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 415);
}

#[tokio::test]
async fn a_secret_that_the_receiver_has_already_is_kept_and_shown_once() {
    let api = api().await;
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let body = json!({
        "tenant": "a", "target_url": "https://example.com/hooks", "events": ["*"],
        "secret": secret, "filter": null,
    });
    let made = api.admin("POST", "/v1/subscriptions", Some(body)).await;
    let made = made.expect(201).json();
    assert_eq!(made["secret"], secret);
    let path = format!("/v1/subscriptions/{}", made["id"].as_str().unwrap());
    let shown = api.admin("GET", &path, None).await.expect(200).json();
    assert_eq!(shown.get("secret"), None);
    let whole = api.admin("PATCH", &path, Some(shown)).await;
    whole.expect(200);
    let rotated = format!("{path}/rotate-secret");
    let rotated = api.admin("POST", &rotated, None).await.expect(200);
    assert_ne!(rotated.json()["secret"], secret);
}

#[tokio::test]
async fn dead_letters_are_found_and_redriven_by_tenant() {
    let api = api().await;
    for tenant in ["a", "b"] {
        let subscription = api.subscribe(tenant).await;
        let id = subscription["id"].as_str().unwrap();
        api.bury(id, tenant, &format!("of-{tenant}"), None).await;
    }
    let bound = api.token(Some("a"), &[Scope::Manage]).await;
    let list = |token: String, tenant: &'static str| {
        let path = format!("/v1/dead-letters?cursor=&tenant={tenant}");
        let api = &api;
        async move {
            let page = api.call(&token, "GET", &path, None).await;
            let items = page.expect(200).json()["items"].clone();
            let items = items.as_array().unwrap().clone();
            items
                .iter()
                .map(|item| item["event_id"].clone())
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(list(ADMIN.into(), "b").await, ["of-b"]);
    assert_eq!(list(bound.clone(), "a").await, ["of-a"]);
    assert!(list(bound.clone(), "b").await.is_empty());
    let path = "/v1/dead-letters/redrive";
    let foreign = api.call(&bound, "POST", path, Some(json!({"tenant": "b"})));
    assert_eq!(foreign.await.expect(200).json()["redriven"], 0);
    let own = api.admin("POST", path, Some(json!({"tenant": "b"})));
    assert_eq!(own.await.expect(200).json()["redriven"], 1);
    assert_eq!(list(ADMIN.into(), "a").await, ["of-a"]);
}
