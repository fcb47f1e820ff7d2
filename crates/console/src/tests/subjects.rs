//! One resource forgotten, by who may.

use event::log::Archived;

use super::*;

const MARK: &str = "canary-7f3a";

async fn remember(api: &Api, tenant: &str) -> DeadLetter {
    let subscription = api.subscribe(tenant).await["id"].clone();
    let event = json!({
        "id": "e1", "tenant": tenant, "type": "payment.paid",
        "data": {"id": 10, "name": MARK},
    });
    let envelope = Envelope {
        now: Timestamp::now(),
        message_id: None,
        tenant: None,
        fresh_id: None,
    };
    let event = Arc::new(admit(event.to_string().as_bytes(), &envelope).unwrap());
    let subscription = subscription.as_str().unwrap();
    let mut letter = dead_letter(subscription, tenant, "e1", None);
    let archived = Archived {
        event: event.clone(),
        accepted_at: letter.accepted_at,
        revision: 1,
        bytes: 100,
        matched: vec![letter.subscription_id.clone()],
    };
    api.store.record(&[archived], &[]).await.unwrap();
    letter.event = event;
    api.store
        .record_dead(std::slice::from_ref(&letter))
        .await
        .unwrap();
    letter
}

#[tokio::test]
async fn a_forgotten_resource_is_nowhere_and_its_letter_cannot_be_redriven() {
    let api = api().await;
    let letter = remember(&api, "a").await;
    let token = api.token(Some("a"), &[Scope::Manage, Scope::Read]).await;
    let path = format!("/v1/dead-letters/{}", letter.id);
    let before = api.call(&token, "GET", &path, None).await.expect(200);
    assert!(String::from_utf8_lossy(&before.bytes).contains(MARK));

    let forget = || api.call(&token, "DELETE", "/v1/subjects/payment/10", None);
    let done = forget().await.expect(200).json();
    assert_eq!(
        done,
        json!({"events": 1, "deliveries": 0, "dead_letters": 1})
    );
    let done = forget().await.expect(200).json();
    assert_eq!(
        done,
        json!({"events": 0, "deliveries": 0, "dead_letters": 0})
    );

    for path in [&path, "/v1/dead-letters", "/v1/events/e1", "/v1/events"] {
        let answer = api.call(&token, "GET", path, None).await.expect(200);
        let text = String::from_utf8_lossy(&answer.bytes).into_owned();
        assert!(!text.contains(MARK), "{path}: {text}");
        assert!(text.contains("\"expunged_at\":"), "{path}: {text}");
    }
    let event = api.call(&token, "GET", "/v1/events/e1", None).await;
    assert_eq!(event.json()["archived"], false);
    let redrive = format!("{path}/redrive");
    let answer = api.call(&token, "POST", &redrive, None).await;
    answer.problem(409, "expunged");
    let bulk = api
        .call(&token, "POST", "/v1/dead-letters/redrive", Some(json!({})))
        .await;
    assert_eq!(bulk.expect(200).json()["skipped"], 1);
    assert!(api.bundles().is_empty());
}

#[tokio::test]
async fn only_ones_own_tenant_is_forgotten() {
    let api = api().await;
    remember(&api, "a").await;
    let stranger = api.token(Some("b"), &[Scope::Manage]).await;
    let nothing = json!({"events": 0, "deliveries": 0, "dead_letters": 0});
    for path in [
        "/v1/subjects/payment/10",
        "/v1/subjects/payment/10?tenant=a",
        "/v1/subjects/payment/never",
    ] {
        let answer = api.call(&stranger, "DELETE", path, None).await;
        assert_eq!(answer.expect(200).json(), nothing, "{path}");
    }
    let answer = api.admin("DELETE", "/v1/subjects/payment/10", None).await;
    let problem = answer.problem(400, "bad_query");
    assert_eq!(problem["errors"][0]["pointer"], "?tenant");
    let path = "/v1/subjects/payment/10?tenant=a";
    let done = api.admin("DELETE", path, None).await.expect(200).json();
    assert_eq!(done["events"], 1);
}

#[tokio::test]
async fn a_client_is_the_customer_that_admission_makes_of_it() {
    let api = api().await;
    let subscription = api.subscribe("a").await["id"].clone();
    let mut letter = dead_letter(subscription.as_str().unwrap(), "a", "e1", None);
    let event = json!({"id": "e1", "tenant": "a", "type": "client.updated", "data": {"id": "7"}});
    let envelope = Envelope {
        now: Timestamp::now(),
        message_id: None,
        tenant: None,
        fresh_id: None,
    };
    letter.event = Arc::new(admit(event.to_string().as_bytes(), &envelope).unwrap());
    letter.kind = letter.event.kind.clone();
    api.store.record_dead(&[letter]).await.unwrap();
    let path = "/v1/subjects/client/7?tenant=a";
    let done = api.admin("DELETE", path, None).await.expect(200).json();
    assert_eq!(done["dead_letters"], 1);
}

#[tokio::test]
async fn what_cannot_be_a_resource_is_refused() {
    let api = api().await;
    let long = format!("/v1/subjects/payment/{}?tenant=a", "x".repeat(513));
    for path in [
        "/v1/subjects/Payment/10?tenant=a",
        "/v1/subjects/payment.paid/10?tenant=a",
        "/v1/subjects/payment/%00?tenant=a",
        &long,
    ] {
        let answer = api.admin("DELETE", path, None).await;
        answer.problem(422, "bad_subject");
    }
    // An id is whatever the publisher says.
    for path in [
        "/v1/subjects/payment/a%2Fb%20%25_?tenant=a",
        "/v1/subjects/payment/%F0%9F%92%88?tenant=a",
    ] {
        api.admin("DELETE", path, None).await.expect(200);
    }
}
