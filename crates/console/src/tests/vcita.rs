//! vCita's routes: what their clients send, and what must come of it.

use super::*;

const SUBSCRIBE: &str = "/v1/subscriptions/standard/subscribe";
const UNSUBSCRIBE: &str = "/v1/subscriptions/standard/unsubscribe";
const URL: &str = "https://example.com/hook_100%25?a=1";

/// An integration with the token of its tenant.
struct Client<'a> {
    api: &'a Api,
    token: String,
}

impl Client<'_> {
    async fn post(&self, path: &str, body: Value) -> Answered {
        self.api.call(&self.token, "POST", path, Some(body)).await
    }

    async fn subscribe(&self, event: &str, url: &str) {
        let body = json!({"event": event, "target_url": url});
        let answer = self.post(SUBSCRIBE, body).await.expect(200);
        assert_eq!(answer.bytes, br#"{"response":"Subscribed"}"#);
    }

    async fn unsubscribe(&self, url: &str) {
        let answer = self.post(UNSUBSCRIBE, json!({"target_url": url})).await;
        assert_eq!(answer.expect(200).bytes, br#"{"response":"Unsubscribed"}"#);
    }

    /// Dialect, events and target of each of its subscriptions, oldest first.
    async fn all(&self) -> Vec<Value> {
        let list = self.api.call(&self.token, "GET", "/v1/subscriptions", None);
        let items = list.await.expect(200).json()["items"].clone();
        items.as_array().unwrap().clone()
    }

    async fn events(&self) -> Vec<Value> {
        let all = self.all().await;
        all.iter().map(|shown| shown["events"].clone()).collect()
    }
}

async fn client<'a>(api: &'a Api, tenant: &str) -> Client<'a> {
    let token = api.token(Some(tenant), &[Scope::Manage]).await;
    Client { api, token }
}

#[tokio::test]
async fn the_same_event_and_url_is_one_subscription_however_often_it_is_asked_for() {
    let api = api().await;
    let client = client(&api, "a").await;
    let asked = (0..8).map(|_| client.subscribe("client/created", URL));
    futures_util::future::join_all(asked).await;
    // As vCita's own example has it, and another spelling of the same target.
    client.subscribe("client/create", URL).await;
    client
        .subscribe("client/created", "https://EXAMPLE.com.:443/hook_100%25?a=1")
        .await;
    let all = client.all().await;
    assert_eq!(all.len(), 1, "{all:#?}");
    assert_eq!(all[0]["dialect"], "vcita");
    assert_eq!(all[0]["events"], json!(["client/created"]));
    assert_eq!(all[0]["tenant"], "a");
    let revision = all[0]["revision"].clone();
    client.subscribe("client/created", URL).await;
    assert_eq!(
        client.all().await[0]["revision"],
        revision,
        "nothing changed"
    );
}

#[tokio::test]
async fn a_url_holds_several_events_and_loses_them_all_at_once() {
    let api = api().await;
    let (a, b) = (client(&api, "a").await, client(&api, "b").await);
    let other = "https://example.com/hookx100%25?a=1";
    for event in ["client/created", "payment/paid", "pivot/event"] {
        a.subscribe(event, URL).await;
    }
    let asked =
        ["appointment/created", "appointment/updated"].map(|event| a.subscribe(event, other));
    futures_util::future::join_all(asked).await;
    b.subscribe("client/created", URL).await;
    let plain = json!({"target_url": URL, "events": ["*"]});
    a.post("/v1/subscriptions", plain).await.expect(201);
    let by_hand = json!({"target_url": URL, "dialect": "vcita", "events": ["client/deleted"],
        "filter": {"where": "event.data.vip"}});
    a.post("/v1/subscriptions", by_hand).await.expect(201);
    let events = a.events().await;
    assert_eq!(
        events[0],
        json!(["client/created", "payment/paid", "pivot/event"])
    );
    assert_eq!(events[1].as_array().unwrap().len(), 2);
    assert_eq!(events.len(), 4);

    a.unsubscribe("https://example.com:443/hook_100%25?a=1")
        .await;
    let left: Vec<_> = a.all().await;
    let left: Vec<_> = left
        .iter()
        .map(|shown| (&shown["dialect"], &shown["target_url"]))
        .collect();
    let (vcita, standard) = (json!("vcita"), json!("standard"));
    let (other, url) = (json!(other), json!(URL));
    assert_eq!(left, [(&vcita, &other), (&standard, &url)]);
    assert_eq!(b.events().await.len(), 1, "another tenant's stays");
    // There is nothing any more, and nothing ever was.
    a.unsubscribe(URL).await;
    for never in ["https://example.com/never", "no url", "http://10.0.0.1/"] {
        a.unsubscribe(never).await;
    }
    a.subscribe("client/created", URL).await;
    assert_eq!(a.events().await.len(), 3, "and begins anew");
}

#[tokio::test]
async fn who_asks_again_after_a_disabling_is_delivered_to_again() {
    let api = api().await;
    let client = client(&api, "a").await;
    client.subscribe("client/created", URL).await;
    let id = client.all().await[0]["id"].as_str().unwrap().to_owned();
    let id = SubscriptionId::parse(&id).unwrap();
    for event in ["client/created", "client/updated"] {
        let disabled = api.store.disable_subscription(&id, "410", Timestamp::now());
        disabled.await.unwrap();
        client.subscribe(event, URL).await;
        let shown = client.all().await.remove(0);
        assert_eq!(shown["state"], "active");
        assert_eq!(shown.get("disabled_reason"), None);
    }
    let path = format!("/v1/subscriptions/{id}/pause");
    client.post(&path, json!({})).await.expect(200);
    client.subscribe("client/created", URL).await;
    assert_eq!(client.all().await[0]["state"], "paused", "a person said so");
}

#[tokio::test]
async fn what_cannot_be_subscribed_is_refused_with_a_pointer_and_the_nearest_name() {
    let api = api().await;
    let client = client(&api, "a").await;
    for (path, body, expected) in [
        (
            SUBSCRIBE,
            json!({}),
            &["/event is required", "/target_url is required"] as &[_],
        ),
        (
            SUBSCRIBE,
            json!({"event": "client/creatd", "target_url": URL}),
            &["/event ", "did you mean `client/created`"],
        ),
        (
            SUBSCRIBE,
            json!({"event": 5, "target_url": 5, "evnt": 1}),
            &[
                "/event must be a string",
                "/target_url must be a string",
                "/evnt is not known; did you mean `event`?",
            ],
        ),
        (
            SUBSCRIBE,
            json!({"event": ["client/created"], "target_url": "http://example.com"}),
            &[
                "/event must be a string, got an array",
                "/target_url must begin with `https://`",
            ],
        ),
        (
            SUBSCRIBE,
            json!({"event": "client/created", "target_url": URL, "tenant": "b"}),
            &["/tenant is not the tenant"],
        ),
        (UNSUBSCRIBE, json!({}), &["/target_url is required"]),
        (
            UNSUBSCRIBE,
            json!({"target_url": URL, "tenant": "b"}),
            &["/tenant is not the tenant"],
        ),
        (
            UNSUBSCRIBE,
            json!({"target_url": URL, "event": "client/created"}),
            &["/event is not known"],
        ),
    ] {
        let problem = client
            .post(path, body.clone())
            .await
            .problem(422, "invalid_request");
        let told: Vec<String> = problem["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|error| {
                format!(
                    "{} {}",
                    error["pointer"].as_str().unwrap(),
                    error["message"].as_str().unwrap()
                )
            })
            .collect();
        let told = told.join("\n");
        for says in expected {
            assert!(told.contains(says), "{body}: {told}");
        }
    }
    assert!(client.all().await.is_empty());
}

#[tokio::test]
async fn the_routes_ask_who_is_calling_and_for_whom() {
    let api = api().await;
    let reader = api.token(Some("a"), &[Scope::Read]).await;
    let body = json!({"event": "client/created", "target_url": URL});
    for path in [SUBSCRIBE, UNSUBSCRIBE] {
        let stranger = api.call("", "POST", path, Some(body.clone())).await;
        stranger.problem(401, "unauthorized");
        let reader = api.call(&reader, "POST", path, Some(body.clone())).await;
        reader.problem(403, "missing_scope");
        let mut body = body.clone();
        if path == UNSUBSCRIBE {
            body.as_object_mut().unwrap().remove("event");
        }
        let unbound = api.admin("POST", path, Some(body.clone())).await;
        let problem = unbound.problem(422, "invalid_request");
        assert_eq!(problem["errors"][0]["pointer"], "/tenant");
        body["tenant"] = "a".into();
        api.admin("POST", path, Some(body)).await.expect(200);
    }
}

#[tokio::test]
async fn a_body_that_is_no_object_is_a_422_as_well() {
    let api = api().await;
    let client = client(&api, "a").await;
    for path in [SUBSCRIBE, UNSUBSCRIBE] {
        let answered = client.post(path, json!(["client/created"])).await;
        answered.problem(422, "bad_json");
    }
}
