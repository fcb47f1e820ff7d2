use std::sync::Mutex;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode, header},
};
use broker::{BATCH_KEY, Parcel, Route};
use bytesize::ByteSize;
use event::{access::Scope, event::EVENT_BYTES_MAX};
use futures_util::future::BoxFuture;
use prometheus::Registry;
use serde_json::{Value, json};
use store::{Store, access::Access, dedup::Dedup};
use tempfile::TempDir;
use tower::ServiceExt;

use super::*;

/// A broker that takes everything, or nothing for one reason, or never says.
#[derive(Debug, Default)]
struct Taker {
    taken: Mutex<Vec<Parcel>>,
    refuses: Option<PublishError>,
    silent: bool,
}

impl Publish for Taker {
    fn publish(&self, parcel: Parcel) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(async move {
            if self.silent {
                std::future::pending::<()>().await;
            }
            if let Some(error) = &self.refuses {
                return Err(error.clone());
            }
            self.taken.lock().unwrap().push(parcel);
            Ok(())
        })
    }
}

const ADMIN: &str = "the-admin-token-of-this-test";
const BODY_MAX: usize = 6 * 1024 * 1024;

struct Intake {
    app: Router,
    taker: Arc<Taker>,
    registry: Registry,
    store: Store,
    dedup: Option<Dedup>,
    _folder: TempDir,
}

async fn intake(taker: Taker) -> Intake {
    intake_with(taker, false).await
}

/// As `intake`, that tells what was published before where it `recognizes`.
async fn intake_with(taker: Taker, recognizes: bool) -> Intake {
    let folder = TempDir::new().unwrap();
    let url = format!("sqlite://{}/postrider.db", folder.path().display());
    let settings = store::Settings {
        url,
        ..store::Settings::default()
    };
    let store = Store::open(&settings).await.unwrap();
    let access = Arc::new(Access::new(Some(ADMIN.into()), store.clone(), true));
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let taker = Arc::new(taker);
    let max = ByteSize::b(BODY_MAX as u64);
    let dedup = recognizes.then(|| Dedup::start(store.clone(), &store::dedup::Settings::default()));
    let dedup = dedup.flatten();
    let state = State::new(taker.clone(), access, metrics, max);
    let app = router(state.recognizing(dedup.clone()));
    Intake {
        app,
        taker,
        registry,
        store,
        dedup,
        _folder: folder,
    }
}

struct Answered {
    status: StatusCode,
    retry_after: Option<String>,
    json: Value,
}

impl Intake {
    async fn send(&self, headers: &[(&str, &str)], body: impl Into<Body>) -> Answered {
        let mut request = Request::post("/v1/events");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into()).unwrap();
        let response = self.app.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.map(|value| value.to_str().unwrap().to_owned());
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        Answered {
            status,
            retry_after,
            json: serde_json::from_slice(&body).unwrap(),
        }
    }

    async fn json(&self, token: &str, body: impl Into<Body>) -> Answered {
        let bearer = format!("Bearer {token}");
        self.send(
            &[
                ("authorization", &bearer),
                ("content-type", "application/json"),
            ],
            body,
        )
        .await
    }

    async fn token(&self, tenant: Option<&str>, scopes: &[Scope]) -> String {
        use secrecy::ExposeSecret;
        let tenant = tenant.map(|tenant| Tenant::parse(tenant).unwrap());
        let now = Timestamp::now();
        let made = self
            .store
            .create_token("t", tenant, scopes.to_vec(), None, now)
            .await;
        made.unwrap().1.expose_secret().to_owned()
    }

    fn parcels(&self) -> Vec<Parcel> {
        self.taker.taken.lock().unwrap().clone()
    }

    #[track_caller]
    fn counted(&self, line: &str) {
        let text = prometheus::TextEncoder::new().encode_to_string(&self.registry.gather());
        let text = text.unwrap();
        assert!(text.lines().any(|have| have == line), "{line} in {text}");
    }
}

fn event(data: &str) -> String {
    format!(
        r#"{{"id":"e1","tenant":"a","type":"payment.paid","time":"2026-01-01T00:00:00Z","data":{data}}}"#
    )
}

#[tokio::test]
async fn one_event_goes_by_its_type_with_its_data_untouched() {
    let intake = intake(Taker::default()).await;
    let data = r#"{ "n":12.10,"big":18446744073709551616, "x":"\u00e9" }"#;
    let answer = intake.json(ADMIN, event(data)).await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.json, json!({"accepted": 1, "ids": ["e1"]}));
    let [parcel] = &intake.parcels()[..] else {
        panic!("one parcel")
    };
    assert_eq!(
        parcel.route,
        Route::Events {
            routing_key: "payment.paid".into()
        }
    );
    assert_eq!(parcel.message_id, "e1");
    let names: Vec<_> = parcel.headers.iter().map(|(name, _)| &**name).collect();
    let wanted = [
        "x-postrider-token",
        "x-postrider-accepted",
        "x-postrider-via",
    ];
    assert_eq!(names, wanted);
    assert_eq!(parcel.headers[2].1, "http");
    assert!(std::str::from_utf8(&parcel.body).unwrap().contains(data));
    intake.counted("postrider_events_accepted_total{via=\"http\"} 1");
}

#[tokio::test]
async fn several_events_are_one_parcel_in_their_order() {
    for ndjson in [
        None,
        Some("application/x-ndjson"),
        Some("application/jsonl"),
    ] {
        let intake = intake(Taker::default()).await;
        let events = [r#"{"tenant":"a","type":"a.b","data":1}"#, &event("2")];
        let (kind, body) = if let Some(kind) = ndjson {
            (kind, events.join("\n"))
        } else {
            (
                "application/json; charset=utf-8",
                format!("[{}]", events.join(",")),
            )
        };
        let bearer = format!("Bearer {ADMIN}");
        let answer = intake
            .send(&[("authorization", &bearer), ("content-type", kind)], body)
            .await;
        assert_eq!(
            (answer.status, &answer.json["accepted"]),
            (StatusCode::ACCEPTED, &json!(2))
        );
        let [parcel] = &intake.parcels()[..] else {
            panic!("one parcel")
        };
        assert_eq!(
            parcel.route,
            Route::Events {
                routing_key: BATCH_KEY.into()
            }
        );
        // What the router reads of it is what was answered: every id and time is filled in.
        let now = Timestamp::now();
        let envelope = Envelope {
            now,
            message_id: None,
            tenant: None,
            fresh_id: None,
        };
        let read = admission::admit_many(&parcel.body, false, &envelope).unwrap();
        let ids: Vec<_> = read.iter().map(|event| event.id.as_str()).collect();
        assert_eq!(answer.json["ids"], json!(ids));
        assert_eq!(ids[1], "e1");
    }
}

#[tokio::test]
async fn one_bad_event_and_nothing_is_taken() {
    let intake = intake(Taker::default()).await;
    let body = format!(
        r#"[{},{{"tenant":"a","type":"nope","data":1}}]"#,
        event("1")
    );
    let answer = intake.json(ADMIN, body).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.json["errors"][0]["pointer"], "/1/type");
    assert!(intake.parcels().is_empty());
    intake.counted("postrider_events_refused_total{reason=\"invalid_event\",via=\"http\"} 1");
    let broken = intake.json(ADMIN, "{").await;
    assert_eq!(
        (broken.status, &broken.json["code"]),
        (StatusCode::BAD_REQUEST, &json!("bad_json"))
    );
    intake.counted("postrider_events_refused_total{reason=\"malformed\",via=\"http\"} 1");
}

#[tokio::test]
async fn only_json_in_its_forms_is_read() {
    let intake = intake(Taker::default()).await;
    let bearer = format!("Bearer {ADMIN}");
    let refused: [&[(&str, &str)]; 7] = [
        &[],
        &[("content-type", "text/plain")],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[("content-type", "multipart/form-data; boundary=x")],
        &[("content-type", "application/json; charset=latin-1")],
        &[
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
        ],
        &[
            ("content-type", "application/cloudevents+avro"),
            ("ce-id", "1"),
        ],
    ];
    for headers in refused {
        let headers: Vec<_> = [("authorization", &*bearer)]
            .into_iter()
            .chain(headers.iter().copied())
            .collect();
        let answer = intake.send(&headers, event("1")).await;
        assert_eq!(answer.status, 415, "{headers:?}");
    }
    assert!(intake.parcels().is_empty());
}

#[tokio::test]
async fn a_cloud_event_travels_on_as_any_event() {
    let intake = intake(Taker::default()).await;
    let bearer = format!("Bearer {ADMIN}");
    let head = |kind| [("authorization", &*bearer), ("content-type", kind)];
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "b"),
        ("ce-source", "/salon"),
        ("ce-type", "a.b"),
        ("ce-tenant", "t"),
        ("ce-status", "caf%C3%A9"),
    ];
    let headers = [&head("application/json")[..], &binary].concat();
    let answer = intake.send(&headers, "{ \"n\": 1.0 }").await;
    assert_eq!(answer.status, 202, "{:?}", answer.json);
    let whole = |id: &str| {
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"s","type":"a.b","tenant":"t","data":1}}"#
        )
    };
    let answer = intake
        .send(&head("application/cloudevents+json"), whole("s"))
        .await;
    assert_eq!(answer.json, json!({"accepted": 1, "ids": ["s"]}));
    let batch = format!("[{},{}]", whole("x"), whole("y"));
    let kind = "application/cloudevents-batch+json; charset=UTF-8";
    let answer = intake.send(&head(kind), batch).await;
    assert_eq!(answer.json, json!({"accepted": 2, "ids": ["x", "y"]}));
    let parcels = intake.parcels();
    let kinds: Vec<_> = parcels
        .iter()
        .map(|parcel| parcel.content_type.as_deref().unwrap_or_default())
        .collect();
    assert_eq!(kinds, ["application/json"; 3]);
    let text = String::from_utf8_lossy(&parcels[0].body).into_owned();
    assert!(
        text.contains(r#""status":"café","data":{ "n": 1.0 }"#),
        "{text}"
    );
    let wrong = [&head("text/plain")[..], &binary[1..]].concat();
    let answer = intake.send(&wrong, "hello").await;
    let errors = answer.json["errors"].as_array().unwrap();
    let pointers: Vec<_> = errors.iter().map(|error| &error["pointer"]).collect();
    assert_eq!(
        (answer.status.as_u16(), pointers),
        (
            422,
            vec![&json!("/specversion"), &json!("/datacontenttype")]
        )
    );
}

#[tokio::test]
async fn every_size_has_its_limit() {
    let intake = intake(Taker::default()).await;
    let padded = |bytes: usize| {
        let room = bytes - event("\"\"").len();
        event(&format!("\"{}\"", "x".repeat(room)))
    };
    assert_eq!(
        intake.json(ADMIN, padded(EVENT_BYTES_MAX)).await.status,
        202
    );
    assert_eq!(
        intake.json(ADMIN, padded(EVENT_BYTES_MAX + 1)).await.status,
        413
    );
    assert_eq!(
        intake.json(ADMIN, vec![b' '; BODY_MAX + 1]).await.status,
        413
    );
    // What we fill in is not the publisher's to count.
    let bare = padded(EVENT_BYTES_MAX + 10).replacen(r#""id":"e1","#, "", 1);
    let grown = intake.json(ADMIN, bare).await;
    assert_eq!(grown.status, 202, "{:?}", grown.json);
    let one = padded(EVENT_BYTES_MAX - 64);
    let many: Vec<_> = (0..17)
        .map(|n| one.replacen("e1", &format!("e{n}"), 1))
        .collect();
    let batch = intake.json(ADMIN, format!("[{}]", many.join(","))).await;
    assert_eq!(
        (batch.status, &batch.json["code"]),
        (StatusCode::PAYLOAD_TOO_LARGE, &json!("too_large"))
    );
    assert_eq!(intake.parcels().len(), 2);
    intake.counted("postrider_events_refused_total{reason=\"too_large\",via=\"http\"} 3");
}

#[tokio::test]
async fn whatever_the_broker_says_but_yes_is_503() {
    let no = [
        PublishError::Unavailable,
        PublishError::Blocked("memory".into()),
        PublishError::Rejected,
        PublishError::Unroutable("no queue".into()),
        PublishError::Closed,
    ];
    for error in no {
        let intake = intake(Taker {
            refuses: Some(error.clone()),
            ..Taker::default()
        })
        .await;
        let answer = intake.json(ADMIN, event("1")).await;
        assert_eq!(answer.status, 503, "{error}");
        assert_eq!(answer.retry_after.as_deref(), Some("1"));
        intake.counted("postrider_events_refused_total{reason=\"unavailable\",via=\"http\"} 1");
        intake.counted("postrider_events_accepted_total{via=\"http\"} 0");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_never_confirms_is_given_up_within_two_seconds() {
    let producer = Producer::over(Arc::new(Taker {
        silent: true,
        ..Taker::default()
    }));
    let begun = tokio::time::Instant::now();
    let ended = producer.publish_json(event("1").as_bytes(), None).await;
    assert!(matches!(ended, Err(Error::Unconfirmed)), "{ended:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn who_calls_is_asked_before_what_they_sent() {
    let intake = intake(Taker::default()).await;
    let none = intake
        .send(&[("content-type", "text/plain")], event("1"))
        .await;
    assert_eq!(none.status, 401);
    let wrong = intake.json("pr_x_y", event("1")).await;
    assert_eq!(
        (wrong.status, &wrong.json),
        (StatusCode::UNAUTHORIZED, &none.json)
    );
    let reader = intake.token(None, &[Scope::Read, Scope::Manage]).await;
    let refused = intake.json(&reader, event("1")).await;
    assert_eq!(
        (refused.status, &refused.json["code"]),
        (StatusCode::FORBIDDEN, &json!("missing_scope"))
    );
    intake.counted("postrider_events_refused_total{reason=\"unauthorized\",via=\"http\"} 3");
    assert!(intake.parcels().is_empty());
}

#[tokio::test]
async fn a_bound_token_publishes_for_its_tenant_alone() {
    let intake = intake(Taker::default()).await;
    let bound = intake.token(Some("salon-17"), &[Scope::Publish]).await;
    let answer = intake.json(&bound, r#"{"type":"a.b","data":1}"#).await;
    assert_eq!(answer.status, 202);
    let parcel: Value = serde_json::from_slice(&intake.parcels()[0].body).unwrap();
    assert_eq!(parcel["tenant"], "salon-17");
    let spoofed = intake.json(&bound, event("1")).await;
    assert_eq!(spoofed.status, 403);
    assert_eq!(spoofed.json["code"], "tenant_mismatch");
    assert_eq!(intake.parcels().len(), 1);
    intake.counted("postrider_events_refused_total{reason=\"tenant_mismatch\",via=\"http\"} 1");
}

#[tokio::test]
async fn the_same_event_again_is_said_to_be_one_and_not_published() {
    let intake = intake_with(Taker::default(), true).await;
    let untimed = event("1").replacen(r#""time":"2026-01-01T00:00:00Z","#, "", 1);
    let first = intake.json(ADMIN, untimed.clone()).await;
    assert_eq!(first.status, 202);
    assert_eq!(first.json, json!({"accepted": 1, "ids": ["e1"]}));
    // As an array or alone, whenever it was accepted.
    for body in [untimed.clone(), format!("[{untimed}]")] {
        let again = intake.json(ADMIN, body).await;
        assert_eq!(again.status, 200);
        let want = json!({"accepted": 0, "ids": ["e1"], "duplicate": true});
        assert_eq!(again.json, want);
    }
    assert_eq!(intake.parcels().len(), 1);
    intake.counted("postrider_events_accepted_total{via=\"http\"} 1");
    let dedup = intake.dedup.as_ref().unwrap();
    assert_eq!(dedup.duplicates(), 2);
    // Another tenant's event is another event.
    let other = untimed.replacen(r#""tenant":"a""#, r#""tenant":"b""#, 1);
    assert_eq!(intake.json(ADMIN, other).await.status, 202);
}

#[tokio::test]
async fn only_what_is_new_of_a_batch_is_published() {
    let intake = intake_with(Taker::default(), true).await;
    let named = |id: &str| event("1").replacen("e1", id, 1);
    assert_eq!(intake.json(ADMIN, named("b")).await.status, 202);
    let batch = format!("[{},{},{}]", named("a"), named("b"), named("c"));
    let answer = intake.json(ADMIN, batch).await;
    assert_eq!(answer.status, 202);
    let want = json!({"accepted": 2, "ids": ["a", "b", "c"], "duplicates": ["b"]});
    assert_eq!(answer.json, want);
    let parcel: Value = serde_json::from_slice(&intake.parcels()[1].body).unwrap();
    let ids: Vec<_> = parcel
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["id"])
        .collect();
    assert_eq!(ids, ["a", "c"]);
}

#[tokio::test]
async fn another_event_with_a_taken_id_is_refused_with_both_hashes() {
    let intake = intake_with(Taker::default(), true).await;
    assert_eq!(intake.json(ADMIN, event("1")).await.status, 202);
    let hash = |body: &str| {
        let event: Event = serde_json::from_str(body).unwrap();
        store::claims::Hash::of(&event, Timestamp::now()).to_string()
    };
    let fresh = event("3").replacen("e1", "e2", 1);
    for (body, pointer) in [
        (event("2"), "/id"),
        (format!("[{fresh},{}]", event("2")), "/1/id"),
    ] {
        let refused = intake.json(ADMIN, body).await;
        assert_eq!(
            (refused.status, &refused.json["code"]),
            (StatusCode::CONFLICT, &json!("id_conflict"))
        );
        assert_eq!(refused.json["errors"][0]["pointer"], pointer);
        let detail = refused.json["detail"].as_str().unwrap();
        assert!(
            detail.contains(&hash(&event("1"))) && detail.contains(&hash(&event("2"))),
            "{detail}"
        );
    }
    assert_eq!(
        intake.parcels().len(),
        1,
        "nothing of a refused request is taken"
    );
    intake.counted("postrider_events_refused_total{reason=\"id_conflict\",via=\"http\"} 2");
}

#[tokio::test]
async fn what_was_not_confirmed_is_not_claimed() {
    let intake = intake_with(
        Taker {
            refuses: Some(PublishError::Unavailable),
            ..Taker::default()
        },
        true,
    )
    .await;
    assert_eq!(intake.json(ADMIN, event("1")).await.status, 503);
    let key = (Tenant::parse("a").unwrap(), EventId::parse("e1").unwrap());
    let dedup = intake.dedup.as_ref().unwrap();
    assert_eq!(dedup.find(vec![key]).await, Some(vec![None]));
}
