//! Views that events lack, and their loaders.

use std::time::Duration;

use event::{
    log::Archive,
    reason::{AttemptError, DeliveryState as State},
    subscription::View,
};
use serde_json::{Value, json};

use crate::{
    house::{House, event, item, subscription},
    receiver::{Receiver, Reply},
    well,
};

/// An appointment that only its data names.
fn appointment(id: &str) -> Value {
    let mut event = event(id);
    event["data"] = json!({"id": format!("a {id}"), "n": 1});
    event
}

fn extended(name: &str, receiver: &Receiver) -> event::Subscription {
    subscription(
        name,
        &receiver.url(&format!("/{name}")),
        json!({"view": "extended"}),
    )
}

fn sent(body: &str) -> Value {
    let body: Value = serde_json::from_str(body).expect("json");
    body["data"].clone()
}

#[tokio::test]
async fn a_view_is_fetched_once_for_all_who_want_it() {
    let receiver = well().await;
    let loader = Receiver::start(|_, _| Reply::Says(200, r#" {"all" : 1.50} "#.into())).await;
    let mut house = House::with([
        extended("a", &receiver),
        extended("b", &receiver),
        extended("c", &receiver),
        subscription("d", &receiver.url("/d"), json!({})),
    ])
    .await;
    house.archive = Archive::Full;
    house.load_appointments_from(&loader.url("/{tenant}/{id}?view={view}"));
    house
        .publish(vec![item(appointment("e1"), &["a", "b", "c", "d"])])
        .await;
    let running = house.start();
    let entries = house.log(4).await;
    running.stop().await;
    let asked = loader.requests();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].path, "/t/a%20e1?view=extended");
    assert_eq!(asked[0].header("authorization"), "Bearer loader-token");
    assert_eq!(asked[0].header("accept"), "application/json");
    assert_eq!(asked[0].header("x-postrider-tenant"), "t");
    for request in receiver.requests() {
        let wanted = match request.path.as_str() {
            "/d" => r#"{"id":"a e1","n":1}"#,
            _ => r#"{"all" : 1.50}"#,
        };
        assert!(
            request.body.ends_with(&format!(r#""data":{wanted}}}"#)),
            "{}",
            request.body
        );
    }
    let views: Vec<_> = entries
        .iter()
        .filter_map(|entry| Some(entry.attempt.as_ref()?.view))
        .collect();
    let [all, full] = [View::Extended, View::Full];
    assert_eq!(views, [all, all, all, full]);
    assert_eq!(house.count("postrider_loads_total", "fetched"), 1);
    assert_eq!(house.count("postrider_loads_total", "cached"), 2);
    assert_eq!(house.left().await, 0);
}

#[tokio::test]
async fn a_loader_that_fails_is_a_failed_attempt_and_the_endpoint_hears_nothing_of_it() {
    let receiver = well().await;
    let loader = Receiver::start(|n, _| match n {
        0 => Reply::Status(503),
        1 => Reply::Says(200, "<html>".into()),
        _ => Reply::Says(200, "[1]".into()),
    })
    .await;
    let mut house = House::with([extended("a", &receiver)]).await;
    house.archive = Archive::Full;
    house.load_appointments_from(&loader.url("/{id}"));
    house.publish(vec![item(appointment("e1"), &["a"])]).await;
    let running = house.start();
    let entries = house.log(3).await;
    running.stop().await;
    let made: Vec<_> = entries
        .iter()
        .map(|entry| {
            let attempt = entry.attempt.as_deref().expect("an attempt");
            (entry.state, attempt.number, attempt.status, attempt.error)
        })
        .collect();
    assert_eq!(
        made,
        [
            (State::Retrying, 1, None, Some(AttemptError::Status)),
            (State::Retrying, 2, None, Some(AttemptError::NotHttp)),
            (State::Delivered, 3, Some(200), None),
        ]
    );
    let first = entries[0].attempt.as_deref().expect("an attempt");
    assert_eq!(
        first.detail.as_deref(),
        Some("loader for appointment: status 503")
    );
    assert_eq!((first.body_bytes, first.request_headers.len()), (0, 0));
    let requests = receiver.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(sent(&requests[0].body), json!([1]));
    assert_eq!(house.count("postrider_loads_total", "failed"), 2);
}

#[tokio::test]
async fn what_no_loader_has_falls_back_to_data_and_the_attempt_says_so() {
    let receiver = well().await;
    let gone = Receiver::start(|_, _| Reply::Status(404)).await;
    let mut many = appointment("e2");
    many["data"] = json!([1, 2]);
    let mut other = appointment("e3");
    other["type"] = json!("coupon.created");
    let mut house = House::with([extended("a", &receiver), extended("b", &receiver)]).await;
    house.archive = Archive::Full;
    house.load_appointments_from(&gone.url("/{id}"));
    house
        .publish(vec![
            item(appointment("e1"), &["a", "b"]),
            item(many, &["a"]),
            item(other, &["a"]),
        ])
        .await;
    let running = house.start();
    let entries = house.log(4).await;
    running.stop().await;
    let said: Vec<_> = entries
        .iter()
        .map(|entry| {
            let attempt = entry.attempt.as_deref().expect("an attempt");
            assert_eq!((attempt.view, attempt.error), (View::Full, None));
            attempt.detail.as_deref()
        })
        .collect();
    let absent = Some("loader for appointment: answered 404, the record is gone");
    let nameless = Some(
        "loader for appointment: the event names no record: it has no subject, and its data no id",
    );
    assert_eq!(said, [absent, absent, nameless, None]);
    assert_eq!(
        gone.requests().len(),
        1,
        "that it is gone is remembered, too"
    );
}

#[tokio::test]
async fn a_loader_that_hangs_holds_up_nobody_who_does_not_need_it() {
    let receiver = well().await;
    let hanging = Receiver::start(|_, _| Reply::Never).await;
    let mut house = House::with([
        extended("a", &receiver),
        subscription("b", &receiver.url("/b"), json!({})),
    ])
    .await;
    house.settings.max_in_flight = 8;
    house.settings.wait_max = Duration::from_millis(100);
    house.load_appointments_from(&hanging.url("/{id}"));
    if let Some(loader) = house.loaders.get_mut("appointment") {
        loader.timeout = Duration::from_secs(30);
        loader.max_in_flight = 2;
    }
    // More than the whole process holds at once.
    let waiting = |n: usize| item(appointment(&format!("w{n}")), &["a"]);
    house.publish((0..100).map(waiting).collect()).await;
    let running = house.start();
    let parked = "postrider_parked_total";
    house.until_at_least(parked, "loader", 90).await;
    house.publish(vec![item(event("good"), &["b"])]).await;
    receiver.until(1).await;
    assert_eq!(receiver.requests()[0].path, "/b");
    assert!(
        hanging.most_under_way() <= 2,
        "{}",
        hanging.most_under_way()
    );
    assert_eq!(house.count("postrider_attempts_total", "timeout"), 0);
    running.abort().await;
}

#[tokio::test]
async fn a_loader_is_dialled_only_where_the_guard_permits() {
    let receiver = well().await;
    let once = json!({"view": "extended", "delivery": {"retry": "none"}});
    let mut house = House::with([subscription("a", &receiver.url("/"), once)]).await;
    house.archive = Archive::Full;
    house.load_appointments_from("http://10.0.0.1/{id}");
    house.publish(vec![item(appointment("e1"), &["a"])]).await;
    let running = house.start();
    let entries = house.log(1).await;
    running.stop().await;
    let attempt = entries[0].attempt.as_deref().expect("an attempt");
    assert_eq!(attempt.error, Some(AttemptError::Connect));
    let said = attempt.detail.as_deref().expect("a detail");
    assert!(
        said.contains("egress.allow") && !said.contains("10.0.0.1"),
        "{said}"
    );
    assert_eq!(receiver.requests().len(), 0);
}
