//! One event, every dialect: subscribed to in a platform's own words, each endpoint gets that
//! platform's request, once.

mod commands;
mod refusals;
mod routes;

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    delivers::on_both,
    signatures::verifies,
    support::{
        node::Node,
        process::Process,
        receiver::{Answer, Request},
        world::{Fate, Kind, Sub, World},
    },
};

on_both!(
    one_event_reaches_every_dialect_in_its_own_words,
    vikappointments_listens_by_type_status_and_loading_mode,
    ssa_says_a_cancellation_once,
    a_test_is_one_attempt_past_filter_and_pause,
);

/// Subscribes with the dialect's fields instead of `events`.
async fn subscribe(world: &World, path: &str, mut fields: Value) -> Sub {
    if fields.get("events").is_none() {
        fields["events"] = Value::Null;
    }
    world.subscribe(path, &[], fields).await
}

#[track_caller]
fn text(request: &Request) -> &str {
    std::str::from_utf8(&request.body).expect("a body is text")
}

/// An appointment as every platform's subscribers could want it: the dates are those of Simply
/// Schedule Appointments.
fn appointment() -> Value {
    json!({
        "type": "appointment.created", "subject": 8812, "status": "booked",
        "time": "2026-09-20T16:00:00.250Z",
        "data": {
            "id": 8812, "start_date": "2026-09-20 16:15:00", "end_date": "2026-09-20T18:15:00Z",
            "timezone": "America/Los_Angeles", "price_full": 100.5,
        },
        "changes": {"price_full": 100.5},
        "details": {"id": 8812, "customer": {"id": 71}},
    })
}

async fn one_event_reaches_every_dialect_in_its_own_words(world: World) {
    let event = appointment();
    let data = event["data"].to_string();
    let who = json!({
        "token": "t-1", "site_name": "Salon 17", "site_url": "https://salon.example",
        "verification_token": "vt-1",
    });
    let wishes = [
        ("/standard", json!({"events": ["appointment.created"]})),
        (
            "/cloudevents",
            json!({"dialect": "cloudevents", "events": ["appointment.*"]}),
        ),
        (
            "/cloudevents-binary",
            json!({"dialect": "cloudevents", "events": ["appointment.*"], "mode": "binary"}),
        ),
        (
            "/vikappointments",
            json!({"dialect": "vikappointments", "events": ["appointments.save"], "type": "created"}),
        ),
        (
            "/vikappointments-basic",
            json!({
                "dialect": "vikappointments", "events": ["appointments.save"],
                "loading_mode": "basic",
            }),
        ),
        (
            "/vikappointments-extended",
            json!({
                "dialect": "vikappointments", "events": ["appointments.save"],
                "loading_mode": "extended", "status": ["booked"],
            }),
        ),
        (
            "/vcita",
            json!({"dialect": "vcita", "events": ["appointment/create"]}),
        ),
        (
            "/vagaro",
            json!({
                "dialect": "vagaro", "type": "appointment", "actions": ["created"],
                "attributes": who,
            }),
        ),
        (
            "/ssa",
            json!({"dialect": "ssa", "events": ["appointment_booked"], "attributes": who}),
        ),
    ];
    let mut subs = Vec::new();
    for (path, fields) in wishes {
        subs.push(subscribe(&world, path, fields).await);
    }
    // Zaui has no word for an appointment; what it has for a booking comes by itself.
    let zaui = json!({
        "dialect": "zaui", "name": "Tours", "events": ["Bookings/*"],
        "attributes": {"company_name": "Harbour Tours", "timezone": "Europe/Berlin"},
    });
    let zaui = subscribe(&world, "/zaui", zaui).await;
    let id = world.publish(event.clone()).await;
    for sub in &subs {
        world.expect(sub, &id, Fate::Delivered);
    }
    let booking =
        json!({"type": "booking.created", "time": "2026-07-01T22:30:00Z", "data": {"id": 1}});
    let booking = world.publish(booking).await;
    world.expect(&zaui, &booking, Fate::Delivered);

    let (changes, details) = (&event["changes"], &event["details"]);
    let ssa = r#"{"action":"appointment_booked","action_noun":"appointment","action_verb":"booked","signature":{"token":"t-1","site_name":"Salon 17","site_url":"https://salon.example","network_site_url":"https://salon.example"},"appointment":{"end_date":"2026-09-20 18:15:00","id":8812,"price_full":100.5,"start_date":"2026-09-20 16:15:00","status":"booked","local_time_for":{"appointment_type":{"raw":{"start_date":"2026-09-20 09:15:00","end_date":"2026-09-20 11:15:00"},"formatted":{"start_date":"September 20, 2026 9:15 am PDT","end_date":"September 20, 2026 11:15 am PDT"}}}},"team_members":[]}"#;
    let bodies = [
        format!(
            r#"{{"type":"appointment.created","timestamp":"2026-09-20T16:00:00.25Z","data":{data}}}"#
        ),
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/postrider/salon-17","type":"appointment.created","subject":"8812","time":"2026-09-20T16:00:00.25Z","datacontenttype":"application/json","tenant":"salon-17","status":"booked","data":{data}}}"#
        ),
        data.clone(),
        data.clone(),
        changes.to_string(),
        details.to_string(),
        format!(
            r#"{{"event":"appointment/created","event_uid":"{id}","occurred_at":"2026-09-20T16:00:00.25Z","data":{data}}}"#
        ),
        format!(
            r#"{{"id":"{id}","createdDate":"2026-09-20T16:00:00.250Z","type":"appointment","action":"created","payload":{data}}}"#
        ),
        ssa.to_owned(),
    ];
    let mut requests = Vec::new();
    for (sub, body) in subs.iter().zip(&bodies) {
        let request = world.receiver.wait_for(&sub.path, 1).await.remove(0);
        assert_eq!(text(&request), body, "{}", sub.path);
        assert!(
            verifies(&request, &sub.secret),
            "{} is not signed",
            sub.path
        );
        assert_eq!(request.event_id(), id, "{}", sub.path);
        requests.push(request);
    }
    for (request, kind) in requests.iter().zip([
        "application/json",
        "application/cloudevents+json",
        "application/json",
    ]) {
        assert_eq!(request.header("content-type"), kind, "{}", request.path);
    }
    let binary = &requests[2];
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", &*id),
        ("ce-type", "appointment.created"),
        ("ce-tenant", "salon-17"),
        ("ce-subject", "8812"),
    ] {
        assert_eq!(binary.header(name), value, "{name}");
    }
    let vagaro = &requests[7];
    assert_eq!(vagaro.header("x-vagaro-signature"), "vt-1");
    let request = world.receiver.wait_for("/zaui", 1).await.remove(0);
    assert!(verifies(&request, &zaui.secret));
    let envelope = request.json();
    for (name, value) in [
        ("eventNotificationUniqueId", json!(booking)),
        ("eventNotificationCompanyName", json!("Harbour Tours")),
        ("eventNotificationGroupId", json!(100)),
        ("eventNotificationType", json!("Booking Creation")),
        ("eventNotificationTypeV2", json!("booking.creation")),
        (
            "eventNotificationDateTime",
            json!("2026-07-02T00:30:00+02:00"),
        ),
        ("eventNotificationName", json!("Tours")),
        ("eventData", json!({"id": 1})),
    ] {
        assert_eq!(envelope[name], value, "{name}");
    }
    world.finish().await;
}

/// A path, a subscription's fields, what becomes of each of six events, and the bodies that come.
type Listener = (
    &'static str,
    Value,
    [Option<Fate>; 6],
    &'static [&'static str],
);

async fn vikappointments_listens_by_type_status_and_loading_mode(world: World) {
    let save = |more: Value| {
        let mut fields = json!({"dialect": "vikappointments", "events": ["appointments.save"]});
        for (name, value) in more.as_object().into_iter().flatten() {
            fields[name] = value.clone();
        }
        fields
    };
    let change = json!({
        "dialect": "vikappointments", "events": ["appointments.status_change"],
        "status": ["CONFIRMED"], "loading_mode": "basic",
    });
    let delete = json!({
        "dialect": "vikappointments", "events": ["appointments.delete", "coupon.delete"],
    });
    let custom = json!({"dialect": "vikappointments", "events": ["custom:onAddItemCart"]});
    let created = json!({"type": "appointment.created", "status": "PENDING",
        "data": {"id": 1}, "changes": {"c": 1}, "details": {"d": 1}});
    let confirmed = json!({"type": "appointment.updated", "status": "CONFIRMED",
        "previous_status": "PENDING", "data": {"id": 2}, "changes": {"c": 2}, "details": {"d": 2}});
    let moved = json!({"type": "appointment.updated", "status": "PENDING",
        "previous_status": "PENDING", "data": {"id": 3}, "changes": {"c": 3}, "details": {"d": 3}});
    let deleted = json!({"type": "appointment.deleted", "subject": [10, "11", 12]});
    let coupon = json!({"type": "coupon.deleted", "subject": 10});
    let cart = json!({"type": "custom.onAddItemCart", "data": [{"n": 1}, {}, ""]});
    // What each of them gets of these six events, and what only its words keep from it.
    let d = Fate::Delivered;
    let f = Fate::Filtered;
    let rows: [Listener; 8] = [
        (
            "/created",
            save(json!({"type": "created"})),
            [Some(d), None, None, None, None, None],
            &[r#"{"id":1}"#],
        ),
        (
            "/updated",
            save(json!({"type": "updated", "loading_mode": "basic"})),
            [None, Some(d), Some(d), None, None, None],
            &[r#"{"c":2}"#, r#"{"c":3}"#],
        ),
        (
            "/both",
            save(json!({"type": "both", "status": [], "loading_mode": "extended"})),
            [Some(d), Some(d), Some(d), None, None, None],
            &[r#"{"d":1}"#, r#"{"d":2}"#, r#"{"d":3}"#],
        ),
        (
            "/confirmed",
            save(json!({"status": ["CONFIRMED"], "loading_mode": "full"})),
            [Some(f), Some(d), Some(f), None, None, None],
            &[r#"{"id":2}"#],
        ),
        (
            "/pending",
            save(json!({"status": ["PENDING", "REMOVED"]})),
            [Some(d), Some(f), Some(d), None, None, None],
            &[r#"{"id":1}"#, r#"{"id":3}"#],
        ),
        (
            "/change",
            change,
            [None, Some(d), None, None, None, None],
            &[r#"{"c":2}"#],
        ),
        (
            "/deleted",
            delete,
            [None, None, None, Some(d), Some(d), None],
            &[r#"{"id":[10,"11",12]}"#, r#"{"id":10}"#],
        ),
        (
            "/cart",
            custom,
            [None, None, None, None, None, Some(d)],
            &[r#"{"arg1":{"n":1},"arg2":{},"arg3":""}"#],
        ),
    ];
    let mut subs = Vec::new();
    for (path, fields, fates, bodies) in rows {
        subs.push((subscribe(&world, path, fields).await, fates, bodies));
    }
    for (n, event) in [created, confirmed, moved, deleted, coupon, cart]
        .into_iter()
        .enumerate()
    {
        let id = world.publish(event).await;
        for (sub, fates, _) in &subs {
            if let Some(fate) = fates[n] {
                world.expect(sub, &id, fate);
            }
        }
    }
    for (sub, _, bodies) in &subs {
        let mut got: Vec<String> = world
            .receiver
            .wait_for(&sub.path, bodies.len())
            .await
            .iter()
            .map(|request| text(request).to_owned())
            .collect();
        got.sort();
        let mut wanted = bodies.to_vec();
        wanted.sort_unstable();
        assert_eq!(got, wanted, "{}", sub.path);
    }
    // What `type` keeps back is stopped in the router or in the deliverer: `settle` does not mind.
    assert_eq!(
        world.settle().await,
        0,
        "duplicates in a run without faults"
    );
}

async fn ssa_says_a_cancellation_once(world: World) {
    let all = json!({
        "dialect": "ssa",
        "events": ["appointment_booked", "appointment_edited", "appointment_canceled"],
    });
    let all = subscribe(&world, "/all", all).await;
    let edited = json!({"dialect": "ssa", "events": ["appointment_edited"]});
    let edited = subscribe(&world, "/edited", edited).await;
    let data = json!({"id": "123", "start_date": "2026-09-20 16:15:00"});
    for (event, action, is_edit) in [
        (
            json!({"type": "appointment.canceled", "status": "canceled", "previous_status": "booked"}),
            "appointment_canceled",
            false,
        ),
        (
            json!({"type": "appointment.updated", "status": "canceled", "previous_status": "booked"}),
            "appointment_canceled",
            false,
        ),
        (
            json!({"type": "appointment.status_changed", "status": "canceled"}),
            "appointment_canceled",
            false,
        ),
        (
            json!({"type": "appointment.status_changed", "status": "booked"}),
            "appointment_edited",
            true,
        ),
        (
            json!({"type": "appointment.updated"}),
            "appointment_edited",
            true,
        ),
    ] {
        let mut event = event;
        event["data"] = data.clone();
        let before = world.receiver.requests("/all").len();
        let id = world.publish(event.clone()).await;
        world.expect(&all, &id, Fate::Delivered);
        if is_edit {
            world.expect(&edited, &id, Fate::Delivered);
        }
        let requests = world.receiver.wait_for("/all", before + 1).await;
        let got = requests[before].json();
        assert_eq!(got["action"], action, "{event}");
        let status = if is_edit { "booked" } else { "canceled" };
        assert_eq!(got["appointment"]["status"], status, "{event}");
    }
    assert_eq!(world.settle().await, 0, "said more than once");
}

async fn a_test_is_one_attempt_past_filter_and_pause(world: World) {
    world.receiver.plan("/tested", [Answer::status(500)]);
    let fields = json!({
        "dialect": "vikappointments", "events": ["appointments.save", "appointments.status_change"],
        "status": ["CONFIRMED"], "filter": {"where": "false"},
    });
    let sub = subscribe(&world, "/tested", fields).await;
    let neighbour = json!({"events": ["*"]});
    let neighbour = subscribe(&world, "/neighbour", neighbour).await;
    let path = format!("/v1/subscriptions/{}", sub.id);
    let paused = world.call("POST", &format!("{path}/pause"), None).await;
    world.known(&paused.expect(200)).await;
    let sent = world.call("POST", &format!("{path}/test"), None).await;
    let sent = sent.expect(202);
    let items = sent["items"].as_array().expect("items");
    assert_eq!(items.len(), 2, "{sent}");
    let requests = world.receiver.wait_for("/tested", 2).await;
    for request in &requests {
        let of = |item: &&Value| item["event_id"] == request.event_id();
        assert!(items.iter().any(|item| of(&item)), "{request:?}");
        assert!(verifies(request, &sub.secret));
    }
    // What comes later shows that nothing more comes of the test: no second attempt, no letter,
    // nothing for anybody else.
    let id = world.publish(json!({"type": "payment.paid"})).await;
    world.expect(&neighbour, &id, Fate::Delivered);
    world.receiver.wait_for("/neighbour", 1).await;
    let some = json!({"events": ["appointments.status_change"]});
    let some = world
        .call("POST", &format!("{path}/test"), Some(some))
        .await;
    assert_eq!(some.expect(202)["items"].as_array().map(Vec::len), Some(1));
    world.receiver.wait_for("/tested", 3).await;
    assert!(world.dead_letters().await.is_empty());
    let receiver = world.receiver.clone();
    assert_eq!(world.settle().await, 0);
    assert_eq!(receiver.requests("/tested").len(), 3);
    assert_eq!(receiver.requests("/neighbour").len(), 1);
}

/// A platform of the operator's own.
const ACME: &str = r#"
name = "acme"
title = "Acme"

[delivery]
timeout = "7s"

[headers]
X-Acme-Event = "{{ word }}"

[bodies.default]
template = '{"what":{{ word }},"record":{{ view }}}'

[[events]]
word = "Visit booked"
types = ["appointment.created"]

[[examples]]
name = "a visit"
subscription = { events = ["Visit booked"] }
event = '''{"type":"appointment.created","data":{"id": 1}}'''
body = '''{"what":"Visit booked","record":{"id": 1}}'''
headers = { X-Acme-Event = "Visit booked" }
"#;

#[tokio::test]
async fn a_dialect_of_ones_own_is_a_file() {
    for kind in [Kind::Embedded, Kind::Rabbit] {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("acme.toml"), ACME).expect("written");
        std::fs::write(folder.path().join(".swap.toml"), "no dialect").expect("written");
        let path = folder.path().display().to_string();
        let world = World::with(kind, 1, &[("dialects.path", path)]).await;
        let near = json!({"dialect": "acme", "events": ["Visit boked"]});
        let sub = json!({
            "tenant": "salon-17", "target_url": world.receiver.url("/acme"),
            "dialect": near["dialect"], "events": near["events"],
        });
        let refused = world.call("POST", "/v1/subscriptions", Some(sub)).await;
        let told = refused.expect(422)["errors"][0]["message"].to_string();
        assert!(told.contains("did you mean `Visit booked`?"), "{told}");
        let fields = json!({"dialect": "acme", "events": ["Visit booked"]});
        let sub = subscribe(&world, "/acme", fields).await;
        let shown = world
            .call("GET", &format!("/v1/subscriptions/{}", sub.id), None)
            .await;
        let shown = shown.expect(200);
        assert_eq!(shown["delivery"]["timeout"], "7s");
        let id = world
            .publish(json!({"type": "appointment.created", "data": {"id": 7}}))
            .await;
        world.expect(&sub, &id, Fate::Delivered);
        let request = world.receiver.wait_for("/acme", 1).await.remove(0);
        assert_eq!(
            text(&request),
            r#"{"what":"Visit booked","record":{"id":7}}"#
        );
        assert_eq!(request.header("x-acme-event"), "Visit booked");
        assert!(verifies(&request, &sub.secret));
        let listed = world
            .call("GET", "/v1/dialects/acme", None)
            .await
            .expect(200);
        assert_eq!(listed["title"], "Acme");
        world.finish().await;
    }
}

#[tokio::test]
async fn a_broken_dialect_refuses_to_start_with_file_line_and_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = ACME.replace(
        "types = [\"appointment.created\"]",
        "typs = [\"appointment.created\"]",
    );
    let line = 1 + broken
        .lines()
        .position(|line| line.starts_with("typs"))
        .expect("there");
    std::fs::write(folder.path().join("acme.toml"), &broken).expect("written");
    std::fs::write(
        folder.path().join("fine.toml"),
        ACME.replace("\"acme\"", "\"fine\""),
    )
    .expect("written");
    let err = refuses_to_start(folder.path()).await;
    assert!(err.contains(&format!("acme.toml:{line}:")), "{err}");
    assert!(err.contains("typs"), "{err}");
    let err = refuses_to_start(&folder.path().join("nowhere")).await;
    assert!(
        err.contains("dialects.path") && err.contains("nowhere"),
        "{err}"
    );
    // One that is built in is replaced only by who says so.
    let own = ACME.replace("name = \"acme\"", "name = \"vcita\"");
    std::fs::write(folder.path().join("acme.toml"), &own).expect("written");
    let err = refuses_to_start(folder.path()).await;
    assert!(
        err.contains("acme.toml") && err.contains("replaces = true"),
        "{err}"
    );
}

/// What `serve` with this folder says before it ends with 64.
async fn refuses_to_start(dialects: &Path) -> String {
    let data = tempfile::tempdir().expect("a folder");
    let mut settings = crate::support::node::embedded(data.path());
    settings.push(("dialects.path", dialects.display().to_string()));
    let mut node = Node::stopped("", &settings);
    node.launch();
    let process: &mut Process = node.process();
    let status = process.ended(std::time::Duration::from_secs(60)).await;
    assert_eq!(status.code(), Some(64), "{}", node.log());
    assert!(
        std::fs::read_dir(data.path())
            .expect("a folder")
            .next()
            .is_none(),
        "it wrote something before it refused"
    );
    node.log()
}
