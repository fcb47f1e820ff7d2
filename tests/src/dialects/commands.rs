//! The command line's view of dialects: no server is needed, but for subscribing.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::ACME;
use crate::{
    command::run,
    support::world::{Kind, World},
};

/// A file of the test's own.
struct File {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl File {
    fn new(name: &str, text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        Self {
            path,
            _folder: folder,
        }
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("a path")
    }

    fn folder(&self) -> &Path {
        self.path.parent().expect("a folder")
    }
}

#[tokio::test]
async fn dialects_are_listed_and_shown_with_those_of_ones_own() {
    let acme = File::new("acme.toml", ACME);
    let folder = acme.folder().display().to_string();
    let env = [("POSTRIDER__DIALECTS__PATH", folder.as_str())];
    let (code, out, err) = run(&["dialects", "list"], &env).await;
    assert_eq!(code, 0, "{err}");
    for name in [
        "acme",
        "cloudevents",
        "ssa",
        "standard",
        "vagaro",
        "vcita",
        "vikappointments",
        "zaui",
    ] {
        assert!(out.contains(name), "{out}");
    }
    let (_, out, _) = run(&["dialects", "list", "--output", "json"], &env).await;
    let list: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(list["items"][0]["name"], "acme");

    let (code, out, _) = run(&["dialects", "show", "vikappointments"], &[]).await;
    assert_eq!(code, 0);
    let save = out
        .lines()
        .find(|line| line.contains("coupon.save"))
        .expect("the word");
    for says in [
        "coupon.created",
        "loading_mode=basic|full",
        "type=both|created|updated",
    ] {
        assert!(save.contains(says), "{save}");
    }
    assert!(
        !save.contains("extended") && !save.contains("status"),
        "{save}"
    );
    let (_, out, _) = run(&["dialects", "show", "zaui"], &[]).await;
    assert!(
        out.contains("Recent Reservations") && out.contains("refused: "),
        "{out}"
    );
    let (_, out, _) = run(&["dialects", "show", "vagaro", "--output", "json"], &[]).await;
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        shown["delivery"]["not_retried"],
        json!([400, 401, 403, 404, 406])
    );
    let (code, _, err) = run(&["dialects", "show", "vagarro"], &[]).await;
    assert_eq!(code, 1);
    assert!(err.contains("did you mean `vagaro`?"), "{err}");

    let (code, out, _) = run(&["event-types", "list"], &env).await;
    assert_eq!(code, 0);
    let created = out
        .lines()
        .find(|line| line.contains("appointment.created"))
        .expect("the type");
    for says in [
        "acme Visit booked",
        "ssa appointment_booked",
        "vcita appointment/created",
    ] {
        assert!(created.contains(says), "{created}");
    }
}

#[tokio::test]
async fn a_dialects_file_is_checked_example_by_example() {
    let fine = File::new("acme.toml", ACME);
    let (code, out, err) = run(&["dialects", "check", fine.path()], &[]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("ok    a visit"), "{out}");

    let differs = File::new(
        "acme.toml",
        &ACME.replace("{\"id\": 1}}'''\nheaders", "{\"id\": 2}}'''\nheaders"),
    );
    let (code, out, err) = run(&["dialects", "check", differs.path()], &[]).await;
    assert_eq!(code, 1, "{out}");
    let lines: Vec<&str> = out.lines().map(str::trim).collect();
    let (minus, plus) = ("-     \"id\": 2", "+     \"id\": 1");
    assert!(lines.contains(&minus) && lines.contains(&plus), "{out}");
    assert!(err.contains("1 of 1 examples differ"), "{err}");

    let broken = File::new(
        "acme.toml",
        &ACME.replace("[\"appointment.created\"]", "[\"appointment\"]"),
    );
    let (code, _, err) = run(&["dialects", "check", broken.path()], &[]).await;
    assert_eq!(code, 1);
    let line = 1 + ACME
        .lines()
        .position(|line| line.starts_with("types"))
        .expect("there");
    assert!(err.contains(&format!("acme.toml:{line}:")), "{err}");
    let (code, _, err) = run(&["dialects", "check", "/nowhere/acme.toml"], &[]).await;
    assert_eq!(code, 1);
    assert!(err.contains("/nowhere/acme.toml: "), "{err}");

    // As a setting it is one: 64.
    let folder = broken.folder().display().to_string();
    let env = [("POSTRIDER__DIALECTS__PATH", folder.as_str())];
    for command in [&["config", "check"][..], &["dialects", "list"]] {
        let (code, _, err) = run(command, &env).await;
        assert_eq!(code, 64, "{command:?}: {err}");
    }
}

#[tokio::test]
async fn render_shows_what_would_be_sent() {
    let event = json!({"id": "e-1", "type": "appointment.created", "time": "2026-03-01T10:00:00Z",
        "status": "booked", "data": {"id": 7}});
    let event = File::new("event.json", &event.to_string());
    let render = async |more: &[&str]| {
        let arguments = [&["dialects", "render"], more, &[event.path()]].concat();
        run(&arguments, &[]).await
    };
    let (code, out, err) = render(&["--dialect", "vagaro"]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        out,
        "content-type: application/json\n\n\
         {\"id\":\"e-1\",\"createdDate\":\"2026-03-01T10:00:00Z\",\"type\":\"appointment\",\
         \"action\":\"created\",\"payload\":{\"id\":7}}\n"
    );
    let subscription = json!({
        "dialect": "vikappointments", "events": ["appointments.save"], "loading_mode": "basic",
    });
    let subscription = File::new("subscription.json", &subscription.to_string());
    let (code, out, err) =
        render(&["--subscription", subscription.path(), "--output", "json"]).await;
    assert_eq!(code, 0, "{err}");
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (&shown["body"], &shown["view_sent"]),
        (&json!({"id": 7}), &json!("full"))
    );
    assert!(err.contains("no view `basic`"), "{err}");

    let (code, _, err) = render(&["--dialect", "zaui"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("nothing would be sent"), "{err}");
    let wrong = json!({"dialect": "vcita", "events": ["appointment/creatd"]});
    let wrong = File::new("subscription.json", &wrong.to_string());
    let (code, _, err) = render(&["--subscription", wrong.path()]).await;
    assert_eq!(code, 1);
    assert!(
        err.contains("/events/0") && err.contains("did you mean `appointment/created`?"),
        "{err}"
    );
    let bad = File::new("event.json", r#"{"type": "appointment.created"}"#);
    let arguments = ["dialects", "render", "--dialect", "vcita", bad.path()];
    let (code, _, err) = run(&arguments, &[]).await;
    assert_eq!(code, 1);
    assert!(err.contains("event.json: /data"), "{err}");
}

#[tokio::test]
async fn a_subscription_is_made_and_tested_in_a_dialects_words() {
    let world = World::start(Kind::Embedded).await;
    let api = world.nodes[0].api();
    let env = [("POSTRIDER_API", api.as_str())];
    let url = world.receiver.url("/cli");
    let common = [
        "subscriptions",
        "create",
        "--tenant",
        "salon-17",
        "--url",
        &url,
        "--output",
        "json",
    ];
    let create = async |more: &[&str]| run(&[&common, more].concat(), &env).await;
    let (code, out, err) = create(&[
        "--dialect",
        "vikappointments",
        "--events",
        "appointments.save",
        "--parameter",
        "loading_mode=basic",
        "--parameter",
        "status=CONFIRMED",
    ])
    .await;
    assert_eq!(code, 0, "{err}");
    let made: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (&made["status"], &made["loading_mode"]),
        (&json!(["CONFIRMED"]), &json!("basic"))
    );
    let (code, out, err) = create(&[
        "--dialect",
        "vagaro",
        "--parameter",
        "type=appointment",
        "--parameter",
        "actions=created",
        "--parameter",
        "actions=deleted",
        "--attribute",
        "verification_token=vt=1",
    ])
    .await;
    assert_eq!(code, 0, "{err}");
    let vagaro: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(vagaro["actions"], json!(["created", "deleted"]));
    assert_eq!(vagaro["attributes"]["verification_token"], "vt=1");
    let (code, _, err) = create(&["--dialect", "vagaro", "--parameter", "type=apointment"]).await;
    assert_eq!(code, 1);
    assert!(
        err.contains("/type") && err.contains("did you mean `appointment`?"),
        "{err}"
    );
    let (code, _, err) = create(&["--events", "*", "--parameter", "events=x"]).await;
    assert_eq!(code, 2, "{err}");

    world.known(&vagaro).await;
    let id = made["id"].as_str().expect("an id");
    let (code, out, err) = run(&["subscriptions", "test", id], &env).await;
    assert_eq!(code, 0, "{err}");
    let request = world.receiver.wait_for("/cli", 1).await.remove(0);
    assert!(
        out.contains(request.event_id()) && out.contains("appointment."),
        "{out}"
    );
    let (code, _, err) = run(
        &["subscriptions", "test", id, "--events", "coupon.save"],
        &env,
    )
    .await;
    assert_eq!(code, 1);
    assert!(err.contains("/events/0"), "{err}");
}
