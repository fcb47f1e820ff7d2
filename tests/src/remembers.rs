//! Where is my webhook: what became of every event, for every subscription, and why; and sent again.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    command::run,
    delivers::on_both,
    support::{
        receiver,
        world::{Answer, Fate, Kind, Sub, World},
    },
};

on_both!(
    every_state_is_shown_with_its_reason_and_no_secret,
    what_ended_is_sent_again,
    what_is_explained_is_what_happens,
    a_list_that_grows_is_neither_skipped_nor_repeated,
);

const SECRET: &str = "canary-of-a-header";
const ADMIN: &str = "an-admin-token-for-tests";

/// Waits until the API shows the delivery of an event to a subscription in this state.
async fn shown(world: &World, event: &str, sub: &Sub, state: &str) -> Value {
    let path = format!("/v1/deliveries?event_id={event}&subscription_id={}", sub.id);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = world.items(&path).await;
        if let [one] = found.as_slice()
            && one["state"] == state
        {
            return one.clone();
        }
        assert!(Instant::now() < deadline, "never {state}: {found:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

async fn every_state_is_shown_with_its_reason_and_no_secret(world: World) {
    let plans = [
        ("/delivered", receiver::Answer::status(200).saying("thanks")),
        ("/retrying", receiver::Answer::status(503).saying("later")),
        ("/dead", receiver::Answer::status(410)),
        (
            "/pending",
            receiver::Answer::status(200).after(Duration::from_secs(28)),
        ),
    ];
    for (path, answer) in plans {
        world.receiver.plan(path, [answer]);
    }
    let more = |filter: Value| {
        json!({
            "headers": {"X-Api-Key": SECRET}, "filter": filter,
            "delivery": {"timeout": "30s", "retry": {"delays": ["1h"]}},
        })
    };
    let mut subs = Vec::new();
    for state in [
        "delivered",
        "retrying",
        "dead",
        "pending",
        "filtered",
        "held",
    ] {
        let filter = match state {
            "filtered" => json!({"statuses": ["confirmed"]}),
            _ => json!({}),
        };
        let path = format!("/{state}");
        let sub = world.subscribe(&path, &["payment.*"], more(filter)).await;
        subs.push((state, sub));
    }
    let other = world
        .subscribe("/other", &["appointment.*"], json!({}))
        .await;
    let pause = format!("/v1/subscriptions/{}/pause", subs[5].1.id);
    let paused = world.call("POST", &pause, None).await.expect(200);
    world.known(&paused).await;
    let id = world
        .publish(json!({"type": "payment.paid", "status": "open", "data": {"price": 7}}))
        .await;

    let mut answers = Vec::new();
    for (state, sub) in &subs {
        let row = shown(&world, &id, sub, state).await;
        let path = format!("/v1/deliveries/{}", text(&row, "id"));
        answers.push((*state, world.call("GET", &path, None).await.expect(200)));
        let list = world.items(&format!("/v1/deliveries?state={state}")).await;
        assert_eq!(list.len(), 1, "{state}: {list:#?}");
    }
    let of = |state: &str| &answers.iter().find(|(of, _)| *of == state).expect("one").1;
    let sent = world.receiver.requests("/delivered").remove(0);
    let delivered = of("delivered");
    assert_eq!(text(delivered, "request_body").as_bytes(), &sent.body[..]);
    assert_eq!(delivered["event"]["data"], json!({"price": 7}));
    let attempt = &delivered["history"][0];
    assert_eq!(
        (&attempt["status"], &attempt["response"]),
        (&json!(200), &json!("thanks"))
    );
    let headers = attempt["request_headers"].to_string();
    assert!(headers.contains(r#"["x-api-key","***"]"#), "{headers}");
    assert!(
        headers.contains(sent.header("webhook-signature")),
        "{headers}"
    );
    assert!(attempt["timing"]["total"].as_u64().is_some_and(|us| us > 0));
    assert_eq!(
        (&of("dead")["reason"], &of("dead")["last_status"]),
        (&json!("gone"), &json!(410))
    );
    let retrying = of("retrying");
    assert_eq!(
        (&retrying["attempts"], &retrying["last_status"]),
        (&json!(1), &json!(503))
    );
    assert!(retrying["due"].is_string(), "{retrying:#}");
    assert_eq!(of("filtered")["clause"], "statuses");
    assert_eq!(of("filtered")["detail"], "wanted `confirmed`, got `open`");
    assert_eq!(of("held")["detail"], "the subscription is paused");
    assert_eq!(of("pending")["history"], json!([]));

    let event = world
        .call("GET", &format!("/v1/events/{id}"), None)
        .await
        .expect(200);
    let told = event["subscriptions"].as_array().expect("a list").clone();
    assert_eq!(told.len(), 7, "{told:#?}");
    for why in &told {
        let sub = subs
            .iter()
            .find(|(_, sub)| sub.id == text(why, "subscription_id"));
        match sub {
            Some((state, _)) => {
                assert_eq!(why["state"], *state);
                assert_eq!(why["clause"], of(state)["clause"]);
            }
            None => {
                assert_eq!(text(why, "subscription_id"), other.id);
                assert_eq!(
                    (&why["matched"], &why["clause"]),
                    (&json!(false), &json!("events"))
                );
            }
        }
    }

    let api = world.nodes[0].api();
    let env = [("POSTRIDER_API", api.as_str())];
    let dead = text(of("dead"), "id");
    let mut said = Vec::new();
    for (arguments, wanted) in [
        (
            vec!["events", "list", "--type", "payment.paid"],
            vec![id.as_str(), "6"],
        ),
        (
            vec!["events", "show", &id],
            vec!["payment.paid", "archived"],
        ),
        (
            vec!["events", "explain", &id],
            vec![
                "delivered",
                "gone",
                "statuses",
                "got `open`",
                "held",
                "it listens to",
            ],
        ),
        (
            vec!["deliveries", "list", "--state", "dead"],
            vec![dead, "gone", "410"],
        ),
        (
            vec!["deliveries", "show", dead],
            vec!["gone", "attempt", "410"],
        ),
        (
            vec!["deliveries", "periods", "--by", "month"],
            vec!["total", "6"],
        ),
    ] {
        let (code, out, err) = run(&arguments, &env).await;
        assert_eq!(code, 0, "{arguments:?}: {err}");
        for word in wanted {
            assert!(out.contains(word), "no {word:?} in\n{out}");
        }
        said.push(out);
        let json = [&arguments[..], &["--output", "json"]].concat();
        let (code, out, _) = run(&json, &env).await;
        assert_eq!(code, 0, "{json:?}");
        let value: Value = serde_json::from_str(&out).expect("JSON");
        assert!(value.is_object(), "{value:#}");
        said.push(out);
    }
    let (code, _, err) = run(&["deliveries", "retry", text(of("pending"), "id")], &env).await;
    assert_eq!(code, 1);
    assert!(err.contains("under_way"), "{err}");

    said.push(event.to_string());
    said.extend(answers.iter().map(|(_, answer)| answer.to_string()));
    for answer in said {
        assert!(!answer.contains(SECRET), "{answer}");
        assert!(!answer.contains("whsec_"), "{answer}");
    }
}

async fn what_ended_is_sent_again(world: World) {
    world
        .receiver
        .plan("/down", [receiver::Answer::status(400)]);
    let up = world.subscribe("/up", &["*"], json!({})).await;
    let none = json!({"delivery": {"retry": "none"}});
    let down = world.subscribe("/down", &["*"], none).await;
    let id = world
        .publish(json!({"type": "payment.paid", "data": {"price": 7.50}}))
        .await;
    world.expect(&up, &id, Fate::Delivered);
    world.expect(&down, &id, Fate::Delivered);
    let delivered = shown(&world, &id, &up, "delivered").await;
    let dead = shown(&world, &id, &down, "dead").await;
    world.wait_for_dead(1).await;
    world
        .receiver
        .plan("/down", [receiver::Answer::status(200)]);
    for row in [&delivered, &dead] {
        let path = format!("/v1/deliveries/{}/retry", text(row, "id"));
        let again = world.call("POST", &path, None).await.expect(202);
        assert_eq!(again["run"], 1, "{again:#}");
    }
    for (sub, delivery) in [(&up, &delivered), (&down, &dead)] {
        let requests = world.receiver.wait_for(&sub.path, 2).await;
        assert_eq!(requests[0].event_id(), requests[1].event_id());
        assert_eq!(requests[0].body, requests[1].body);
        let purposes = requests.iter().map(|r| r.header("x-postrider-purpose"));
        assert_eq!(purposes.collect::<Vec<_>>(), ["", "replay"]);
        let path = format!("/v1/deliveries/{}", text(delivery, "id"));
        shown(&world, &id, sub, "delivered").await;
        let record = world.call("GET", &path, None).await.expect(200);
        let runs = record["history"].as_array().expect("a history").iter();
        let runs: Vec<_> = runs.map(|attempt| attempt["run"].clone()).collect();
        assert_eq!(runs, [0, 1], "{record:#}");
        assert_eq!(record["purpose"], "replay");
    }
    assert!(world.dead_letters().await.is_empty());
    assert_eq!(
        world.settle().await,
        1,
        "only what had been delivered came twice"
    );
}

async fn what_is_explained_is_what_happens(world: World) {
    let filters = [
        json!({}),
        json!({"actions": ["created"]}),
        json!({"statuses": ["confirmed"], "where": "event.data.price > 100"}),
        json!({"changed_fields": ["start_time"]}),
    ];
    let mut subs = Vec::new();
    for (n, filter) in filters.into_iter().enumerate() {
        let more = json!({"filter": filter});
        subs.push(
            world
                .subscribe(&format!("/f{n}"), &["appointment.*"], more)
                .await,
        );
    }
    subs.push(world.subscribe("/not", &["payment.*"], json!({})).await);
    let events = [
        json!({"type": "appointment.created", "status": "confirmed", "data": {"price": 120}}),
        json!({"type": "appointment.updated", "status": "confirmed", "data": {"price": 20}, "changes": {"start_time": 1}}),
        json!({"type": "appointment.updated", "data": {"price": 120}, "changes": {"note": 1}}),
    ];
    for event in events {
        let mut predicted = Vec::new();
        for sub in &subs {
            let path = format!("/v1/subscriptions/{}/explain", sub.id);
            let answer = world.call("POST", &path, Some(event.clone())).await;
            predicted.push(answer.expect(200));
        }
        let id = world.publish(event).await;
        for (sub, predicted) in subs.iter().zip(&predicted) {
            let state = match text(predicted, "state") {
                "pending" => "delivered",
                state => state,
            };
            if state.is_empty() {
                continue;
            }
            let row = shown(&world, &id, sub, state).await;
            assert_eq!(row["clause"], predicted["clause"]);
            assert_eq!(row["detail"], predicted["detail"]);
            let fate = match state {
                "delivered" => Fate::Delivered,
                _ => Fate::Filtered,
            };
            world.expect(sub, &id, fate);
        }
        let not = &predicted[4];
        assert_eq!(
            (&not["matched"], &not["clause"]),
            (&json!(false), &json!("events"))
        );
        let shown = world
            .call("GET", &format!("/v1/events/{id}"), None)
            .await
            .expect(200);
        let told = shown["subscriptions"].as_array().expect("a list").iter();
        let why = told
            .clone()
            .find(|why| why["subscription_id"] == subs[4].id);
        assert_eq!(why.expect("told")["detail"], not["detail"]);
    }
    world.finish().await;
}

async fn a_list_that_grows_is_neither_skipped_nor_repeated(world: World) {
    let sub = world.subscribe("/many", &["*"], json!({})).await;
    let mut first = Vec::new();
    for _ in 0..20 {
        let id = world.publish(json!({"type": "payment.paid"})).await;
        world.expect(&sub, &id, Fate::Delivered);
        first.push(id);
    }
    for id in &first {
        shown(&world, id, &sub, "delivered").await;
    }
    for (list, key) in [("/v1/deliveries", "event_id"), ("/v1/events", "id")] {
        let mut seen = Vec::new();
        let mut path = format!("{list}?limit=3");
        loop {
            let page = world.call("GET", &path, None).await.expect(200);
            let items = page["items"].as_array().expect("items").iter();
            seen.extend(items.map(|item| text(item, key).to_owned()));
            let Some(cursor) = page["cursor"].as_str() else {
                break;
            };
            path = format!("{list}?limit=3&cursor={cursor}");
            let new = world.publish(json!({"type": "payment.paid"})).await;
            world.expect(&sub, &new, Fate::Delivered);
            shown(&world, &new, &sub, "delivered").await;
        }
        for id in &first {
            let times = seen.iter().filter(|seen| *seen == id).count();
            assert_eq!(times, 1, "{list}: {id} in {seen:?}");
        }
    }
    world.finish().await;
}

#[tokio::test]
async fn another_tenants_events_and_deliveries_are_not_found_byte_for_byte() {
    for kind in [Kind::Embedded, Kind::Rabbit] {
        let world = World::with(kind, 1, &[("auth.admin_token", ADMIN.to_owned())]).await;
        let (a, b) = (token(&world, "a").await, token(&world, "b").await);
        let body = json!({"target_url": world.receiver.url("/b"), "events": ["*"]});
        let made = call(&world, &b, "POST", "/v1/subscriptions", Some(body)).await;
        let sub = made.expect(201);
        world.known(&sub).await;
        let event = json!({"id": "theirs", "type": "payment.paid", "data": 1});
        let taken = call(&world, &b, "POST", "/v1/events", Some(event.clone())).await;
        taken.expect(202);
        let deadline = Instant::now() + Duration::from_secs(60);
        let delivery = loop {
            let path = "/v1/deliveries?state=delivered";
            let list = call(&world, &b, "GET", path, None).await.expect(200);
            if let Some(row) = list["items"].as_array().and_then(|items| items.first()) {
                break text(row, "id").to_owned();
            }
            assert!(Instant::now() < deadline, "never delivered: {list:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        for (method, route, theirs, nobodys) in [
            ("GET", "/v1/events/ID", "theirs", "nobodys"),
            ("GET", "/v1/deliveries/ID", &delivery, "dlv_0"),
            ("POST", "/v1/deliveries/ID/retry", &delivery, "dlv_0"),
            (
                "POST",
                "/v1/subscriptions/ID/explain",
                text(&sub, "id"),
                "sub_0",
            ),
        ] {
            let ask = async |id: &str| {
                let body = (method == "POST").then(|| event.clone());
                call(&world, &a, method, &route.replace("ID", id), body).await
            };
            let (theirs, nobodys) = (ask(theirs).await, ask(nobodys).await);
            assert_eq!(theirs.status, 404, "{method} {route}: {:#}", theirs.json);
            assert_eq!(theirs.json, nobodys.json, "{method} {route}");
        }
        for list in ["/v1/events", "/v1/deliveries", "/v1/deliveries/periods"] {
            for query in ["", "?tenant=b"] {
                let answer = call(&world, &a, "GET", &format!("{list}{query}"), None).await;
                assert_eq!(answer.expect(200)["items"], json!([]), "{list}{query}");
            }
        }
        // The same id is another event of theirs.
        let own = json!({"id": "theirs", "type": "payment.refunded", "data": 2});
        call(&world, &a, "POST", "/v1/events", Some(own))
            .await
            .expect(202);
        let deadline = Instant::now() + Duration::from_secs(60);
        let shown = loop {
            let answer = call(&world, &a, "GET", "/v1/events/theirs", None).await;
            if answer.status == 200 {
                break answer.json;
            }
            assert!(
                Instant::now() < deadline,
                "never archived: {:#}",
                answer.json
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(
            (text(&shown, "tenant"), text(&shown, "type")),
            ("a", "payment.refunded")
        );
        assert_eq!(shown["subscriptions"], json!([]));
        assert_eq!(world.receiver.requests("/b").len(), 1);
    }
}

async fn call(world: &World, token: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
    let body = body.map(|body| ("application/json", body.to_string().into_bytes()));
    world.send(method, path, body, Some(token)).await
}

async fn token(world: &World, tenant: &str) -> String {
    let body = json!({"name": "test", "tenant": tenant, "scopes": ["manage", "publish"]});
    let made = call(world, ADMIN, "POST", "/v1/tokens", Some(body)).await;
    text(&made.expect(201), "token").to_owned()
}
