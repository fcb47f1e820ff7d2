//! Jobs as people ask for them; what becomes of them is the recorder's.

use event::log::Archived;
use store::jobs::JobKind;

use super::*;

const SINCE: &str = "2026-01-01T00:00:00Z";

async fn archive(api: &Api, tenant: &str, id: &str, kind: &str, payload: bool) {
    let envelope = Envelope {
        now: Timestamp::now(),
        message_id: None,
        tenant: None,
        fresh_id: None,
    };
    let body = json!({"id": id, "tenant": tenant, "type": kind, "data": {"price": 12.10}});
    let mut event = admit(body.to_string().as_bytes(), &envelope).unwrap();
    event.data = event.data.filter(|_| payload);
    let archived = Archived {
        event: Arc::new(event),
        accepted_at: Timestamp::now(),
        revision: 1,
        bytes: 100,
        matched: Vec::new(),
    };
    api.store.record(&[archived], &[]).await.unwrap();
}

async fn subscribed(api: &Api, tenant: &str) -> (String, String) {
    let id = api.subscribe(tenant).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/v1/subscriptions/{id}/replay");
    (id, path)
}

#[tokio::test]
async fn a_replay_is_a_job_with_a_count_and_runs_once_at_a_time() {
    let api = api().await;
    let (id, path) = subscribed(&api, "a").await;
    for (event, payload) in [("e1", true), ("e2", true), ("e3", false)] {
        archive(&api, "a", event, "payment.paid", payload).await;
    }
    archive(&api, "b", "e4", "payment.paid", true).await;
    let body = json!({"since": SINCE, "rate": 7});
    let answer = api
        .admin("POST", &path, Some(body.clone()))
        .await
        .expect(202);
    let job = answer.json();
    assert_eq!(
        answer.headers["location"].to_str().unwrap(),
        format!("/v1/jobs/{}", job["id"].as_str().unwrap())
    );
    for (field, value) in [
        ("kind", json!("replay")),
        ("state", json!("running")),
        ("tenant", json!("a")),
        ("subscription_id", json!(id)),
        ("total", json!(3)),
        ("done", json!(0)),
        ("rate", json!(7)),
    ] {
        assert_eq!(job[field], value, "{job:#}");
    }
    assert_eq!(job["filter"]["since"], SINCE);
    assert!(job["filter"]["until"].is_string(), "it has an end");
    let problem = api
        .admin("POST", &path, Some(body.clone()))
        .await
        .problem(409, "job_running");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains(job["id"].as_str().unwrap())
    );

    let shown = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let canceled = api.admin("POST", &format!("{shown}/cancel"), None).await;
    assert_eq!(canceled.expect(200).json()["state"], "canceled");
    let again = api.admin("POST", &format!("{shown}/cancel"), None).await;
    assert_eq!(again.expect(200).json()["state"], "canceled");
    api.admin("POST", &path, Some(body)).await.expect(202);
    let list = api
        .admin("GET", "/v1/jobs?state=canceled", None)
        .await
        .expect(200);
    assert_eq!(list.json()["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_dry_run_counts_and_makes_nothing() {
    let api = api().await;
    let (_, path) = subscribed(&api, "a").await;
    archive(&api, "a", "e1", "payment.paid", true).await;
    archive(&api, "a", "e2", "payment.paid", false).await;
    archive(&api, "a", "e3", "customer.created", true).await;
    for (types, total, sendable) in [
        (json!(null), 3, 2),
        (json!(["payment.*"]), 2, 1),
        (json!(["customer.saved", "payment.refunded"]), 1, 1),
    ] {
        let body = json!({"since": SINCE, "types": types, "dry_run": true});
        let preview = api
            .admin("POST", &path, Some(body))
            .await
            .expect(200)
            .json();
        assert_eq!(
            (&preview["total"], &preview["sendable"]),
            (&json!(total), &json!(sendable)),
            "{preview}"
        );
    }
    let list = api.admin("GET", "/v1/jobs", None).await.expect(200).json();
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_with_its_reason() {
    let api = api().await;
    let (_, path) = subscribed(&api, "a").await;
    let body = json!({"since": SINCE});
    let ask = async |body: Value| api.admin("POST", &path, Some(body)).await;
    ask(body.clone()).await.problem(409, "nothing_to_send");
    ask(json!({"since": SINCE, "only": "dead"}))
        .await
        .problem(409, "nothing_to_send");
    archive(&api, "a", "e1", "payment.paid", false).await;
    let problem = ask(body).await.problem(409, "not_archived");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("recorder.archive")
    );
    for (body, pointer) in [
        (json!({}), "/since"),
        (json!({"since": "monday"}), "/since"),
        (json!({"since": "2999-01-01T00:00:00Z"}), "/since"),
        (json!({"since": SINCE, "until": SINCE}), "/since"),
        (json!({"since": SINCE, "only": "live"}), "/only"),
        (json!({"since": SINCE, "types": ["a.b", "x"]}), "/types/1"),
        (json!({"since": SINCE, "rate": 0}), "/rate"),
        (json!({"since": SINCE, "rate": 1001}), "/rate"),
        (json!({"since": SINCE, "dry_run": 1}), "/dry_run"),
        (json!({"since": SINCE, "sinc": 1}), "/sinc"),
    ] {
        let problem = ask(body).await.problem(422, "invalid_request");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
}

#[tokio::test]
async fn the_dead_are_redriven_by_a_job_where_it_is_asked_for() {
    let api = api().await;
    let (id, path) = subscribed(&api, "a").await;
    let (other, _) = subscribed(&api, "b").await;
    for event in ["e1", "e2"] {
        api.bury(&id, "a", event, None).await;
    }
    api.bury(&other, "b", "e3", None).await;
    let body = json!({"since": SINCE, "only": "dead", "dry_run": true});
    let preview = api
        .admin("POST", &path, Some(body))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&preview["kind"], &preview["total"]),
        (&json!("redrive"), &json!(2))
    );

    let all = "/v1/dead-letters/redrive";
    let count = async |token: &str, body: Value| {
        let answer = api.call(token, "POST", all, Some(body)).await.expect(200);
        answer.json()["total"].clone()
    };
    let (job, bound) = (
        json!({"job": true, "dry_run": true}),
        api.token(Some("b"), &[Scope::Manage]).await,
    );
    assert_eq!(count(ADMIN, job.clone()).await, 3);
    assert_eq!(count(&bound, job).await, 1);
    let by_type = json!({"job": true, "dry_run": true, "type": "nothing.such"});
    assert_eq!(count(ADMIN, by_type).await, 0);
    let refused = api.admin("POST", all, Some(json!({"rate": 5}))).await;
    refused.problem(422, "invalid_request");
    let made = api
        .call(&bound, "POST", all, Some(json!({"job": true})))
        .await
        .expect(202)
        .json();
    assert_eq!((&made["tenant"], &made["total"]), (&json!("b"), &json!(1)));
    assert_eq!(made["kind"], JobKind::Redrive.word());
}

#[tokio::test]
async fn another_tenants_job_does_not_exist() {
    let api = api().await;
    let (_, path) = subscribed(&api, "a").await;
    archive(&api, "a", "e1", "payment.paid", true).await;
    let job = api
        .admin("POST", &path, Some(json!({"since": SINCE})))
        .await
        .expect(202)
        .json();
    let shown = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let stranger = api.token(Some("b"), &[Scope::Manage]).await;
    let none = api
        .call(&stranger, "GET", "/v1/jobs/job_0", None)
        .await
        .expect(404);
    let foreign = api.call(&stranger, "GET", &shown, None).await.expect(404);
    assert_eq!(none.bytes, foreign.bytes);
    api.call(&stranger, "POST", &format!("{shown}/cancel"), None)
        .await
        .expect(404);
    for list in ["/v1/jobs", "/v1/jobs?tenant=a"] {
        let answer = api.call(&stranger, "GET", list, None).await.expect(200);
        assert_eq!(answer.json()["items"], json!([]), "{list}");
    }
    let owner = api.token(Some("a"), &[Scope::Read]).await;
    let list = api.call(&owner, "GET", "/v1/jobs", None).await.expect(200);
    assert_eq!(
        list.json()["items"][0]["state"],
        "running",
        "and it was not canceled"
    );
}
