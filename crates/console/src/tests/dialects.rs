//! Subscriptions in a dialect's words, the catalogue, and examples of what they listen to.

use event::delivery::Purpose;

use super::*;

async fn subscribed(api: &Api, fields: Value) -> Value {
    let mut body = json!({"tenant": "a", "target_url": "https://example.com/hooks"});
    body.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    let answer = api.admin("POST", "/v1/subscriptions", Some(body)).await;
    answer.expect(201).json()
}

fn vik() -> Value {
    json!({
        "dialect": "vikappointments",
        "events": ["appointments.save", "appointments.status_change"],
        "status": ["CONFIRMED", "PAID"], "loading_mode": "extended",
    })
}

#[tokio::test]
async fn the_words_are_shown_back_and_can_be_sent_back_whole() {
    let api = api().await;
    let wanted = json!({
        "dialect": "vikappointments", "events": ["appointments.save"],
        "type": "updated", "status": ["CONFIRMED"], "loading_mode": "extended",
    });
    let made = subscribed(&api, wanted.clone()).await;
    let path = format!("/v1/subscriptions/{}", made["id"].as_str().unwrap());
    let shown = api.admin("GET", &path, None).await.expect(200).json();
    for (name, value) in wanted.as_object().unwrap() {
        assert_eq!(shown[name], *value, "{name}");
    }
    assert_eq!(shown["view"], "extended");
    let whole = api.admin("PATCH", &path, Some(shown.clone())).await;
    let mut whole = whole.expect(200).json();
    for ours in ["revision", "updated_at"] {
        whole[ours] = shown[ours].clone();
    }
    assert_eq!(whole, shown);
    let patch = json!({"loading_mode": null, "status": []});
    let patched = api.admin("PATCH", &path, Some(patch)).await.expect(200);
    let patched = patched.json();
    assert_eq!(
        (&patched["view"], &patched["status"]),
        (&json!("full"), &json!([]))
    );
    assert_eq!(patched.get("loading_mode"), None);
    let other = json!({"dialect": "standard"});
    let problem = api.admin("PATCH", &path, Some(other)).await;
    let problem = problem.problem(422, "invalid_subscription");
    assert_eq!(problem["errors"][0]["pointer"], "/events");
    assert_eq!(problem["errors"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_test_sends_examples_to_this_subscription_alone() {
    let api = api().await;
    let made = subscribed(&api, vik()).await;
    subscribed(&api, json!({"events": ["*"]})).await;
    let path = format!("/v1/subscriptions/{}/test", made["id"].as_str().unwrap());
    let sent = api.admin("POST", &path, None).await.expect(202).json();
    let items = sent["items"].as_array().unwrap();
    assert_eq!((items.len(), &sent["cursor"]), (2, &Value::Null), "{sent}");
    let [bundle] = &api.bundles()[..] else {
        panic!("one bundle")
    };
    for (item, told) in bundle.items.iter().zip(items) {
        let [to] = &item.to[..] else {
            panic!("one recipient")
        };
        assert_eq!(to.subscription.as_str(), made["id"]);
        assert_eq!((to.purpose, to.attempts), (Purpose::Test, 0));
        assert_eq!(item.revision, made["revision"].as_u64().unwrap());
        assert_eq!(item.event.tenant.as_str(), "a");
        assert_eq!(item.event.id.as_str(), told["event_id"]);
        assert!(item.event.id.as_str().starts_with("test_"));
        let delivery = DeliveryId::of(&item.event.tenant, &item.event.id, &to.subscription);
        assert_eq!(delivery.as_str(), told["delivery_id"]);
        assert_eq!(item.event.kind.as_str(), told["type"]);
    }
    let kinds: Vec<_> = items.iter().map(|item| item["type"].clone()).collect();
    assert_eq!(kinds, ["appointment.created", "appointment.status_changed"]);
    // An example that the subscription would want.
    let status = bundle.items[0].event.status.as_deref();
    assert!(matches!(status, Some("CONFIRMED" | "PAID")), "{status:?}");

    let again = api.admin("POST", &path, None).await.expect(202).json();
    assert_ne!(again["items"][0]["event_id"], items[0]["event_id"]);
}

#[tokio::test]
async fn a_test_of_some_events_names_what_is_not_among_them() {
    let api = api().await;
    let made = subscribed(&api, vik()).await;
    let path = format!("/v1/subscriptions/{}/test", made["id"].as_str().unwrap());
    let test = |events: Value| api.admin("POST", &path, Some(json!({"events": events})));
    for one in ["appointments.status_change", "appointment.status_changed"] {
        let sent = test(json!([one, one])).await.expect(202).json();
        let kinds: Vec<_> = sent["items"].as_array().unwrap().iter().collect();
        assert_eq!(kinds.len(), 1);
        assert_eq!(kinds[0]["type"], "appointment.status_changed");
    }
    let problem = test(json!(["appointments.save", "appointments.sav", 5])).await;
    let problem = problem.problem(422, "invalid_request");
    let errors = problem["errors"].as_array().unwrap();
    let pointers: Vec<_> = errors
        .iter()
        .map(|error| error["pointer"].clone())
        .collect();
    assert_eq!(pointers, ["/events/1", "/events/2"]);
    let said = errors[0]["message"].as_str().unwrap();
    assert!(
        said.ends_with("did you mean `appointments.save`?"),
        "{said}"
    );
    for bad in [json!([]), json!("appointments.save")] {
        test(bad).await.problem(422, "invalid_request");
    }
    assert_eq!(api.bundles().len(), 2);
}

#[tokio::test]
async fn a_test_is_the_tenants_and_waits_for_the_broker() {
    let api = api().await;
    let made = subscribed(&api, vik()).await;
    let path = format!("/v1/subscriptions/{}/test", made["id"].as_str().unwrap());
    let other = api.token(Some("b"), &[Scope::Manage]).await;
    let answer = api.call(&other, "POST", &path, None).await;
    answer.problem(404, "not_found");
    let reader = api.token(Some("a"), &[Scope::Read]).await;
    let answer = api.call(&reader, "POST", &path, None).await;
    answer.problem(403, "missing_scope");
    let away = &api.taker.away;
    away.store(true, std::sync::atomic::Ordering::Relaxed);
    let answer = api.admin("POST", &path, None).await;
    answer.problem(503, "broker_unavailable");
}

#[tokio::test]
async fn the_catalogue_shows_every_dialect_with_its_words_and_an_example_each() {
    let api = api().await;
    let reader = api.token(Some("a"), &[Scope::Read]).await;
    let get = |path: &'static str| api.call(&reader, "GET", path, None);
    let list = get("/v1/dialects").await.expect(200).json();
    let names: Vec<_> = list["items"].as_array().unwrap().clone();
    let names: Vec<&str> = names
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, Dialects::builtin().names());
    let mut paged = Vec::new();
    let mut path = "/v1/dialects?limit=2".to_owned();
    loop {
        let page = api
            .call(&reader, "GET", &path, None)
            .await
            .expect(200)
            .json();
        paged.extend(page["items"].as_array().unwrap().clone());
        match page["cursor"].as_str() {
            Some(cursor) => path = format!("/v1/dialects?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(Value::from(paged), list["items"]);

    let vik = get("/v1/dialects/vikappointments").await.expect(200).json();
    let words = vik["events"].as_array().unwrap();
    let save = words
        .iter()
        .find(|word| word["word"] == "coupon.save")
        .unwrap();
    assert_eq!(save["types"], json!(["coupon.created", "coupon.updated"]));
    let parameters = save["parameters"].as_array().unwrap();
    let mode = parameters.iter().find(|own| own["name"] == "loading_mode");
    assert_eq!(mode.unwrap()["values"], json!(["basic", "full"]));
    assert!(save["example"]["request"]["body"].is_object(), "{save}");

    let types = get("/v1/event-types?limit=500").await.expect(200).json();
    let types = types["items"].as_array().unwrap();
    let created = types
        .iter()
        .find(|one| one["type"] == "appointment.created");
    let said = created.unwrap()["words"].to_string();
    assert!(said.contains("appointments.save"), "{said}");

    get("/v1/dialects/vikappointment")
        .await
        .problem(404, "not_found");
    get("/v1/dialects?limi=2").await.problem(400, "bad_query");
    let stranger = api.call("", "GET", "/v1/event-types", None).await;
    stranger.problem(401, "unauthorized");
}
