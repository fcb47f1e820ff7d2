//! The command line: the demo's summary, exit codes, and the API's lists as tables and JSON.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    process::{Process, postrider},
    receiver::Answer,
    world::{Kind, World},
};

pub(crate) async fn run(arguments: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    run_for(Duration::from_secs(120), arguments, env).await
}

async fn run_for(
    patience: Duration,
    arguments: &[&str],
    env: &[(&str, &str)],
) -> (i32, String, String) {
    let mut command = Command::new(postrider());
    command
        .args(arguments)
        .envs(env.iter().copied())
        .current_dir(std::env::temp_dir());
    let mut process = Process::spawn(command);
    let status = process.ended(patience).await;
    (
        status.code().unwrap_or(-1),
        process.stdout(),
        process.stderr(),
    )
}

#[tokio::test]
async fn the_demo_ends_with_its_summary_and_loses_nothing() {
    // More than the demo's own patience: it has to say itself what it waits for.
    let patience = Duration::from_secs(240);
    let (code, out, err) = run_for(patience, &["demo", "--once"], &[]).await;
    assert_eq!(code, 0, "{out}\n{err}");
    let summary = out.lines().last().unwrap_or_default();
    assert_eq!(
        summary, "demo: 9 events, 23 webhooks delivered, 4 retries, 1 dead-lettered, 0 lost",
        "{out}"
    );
}

#[tokio::test]
async fn exit_codes_say_what_kind_of_failure_it_was() {
    let (code, _, err) = run(&["serve"], &[("POSTRIDER__ROUTER__BUNDEL_MAX", "3")]).await;
    assert_eq!(code, 64, "{err}");
    assert!(
        err.contains("router.bundel_max") && err.contains("router.bundle_max"),
        "{err}"
    );
    let (code, _, err) = run(
        &["config", "check"],
        &[("POSTRIDER__BROKER__URL", "kafka://x")],
    )
    .await;
    assert_eq!(code, 64, "{err}");
    let (code, _, _) = run(&["no-such-command"], &[]).await;
    assert_eq!(code, 2);
    let (code, _, err) = run(
        &["subscriptions", "list", "--api", "http://127.0.0.1:9"],
        &[],
    )
    .await;
    assert_eq!(code, 1, "{err}");
    let (code, out, _) = run(&["--version"], &[]).await;
    assert_eq!((code, out.trim()), (0, "postrider 0.1.0"));
}

#[tokio::test]
async fn a_reader_who_has_seen_enough_is_no_fault() {
    for arguments in [
        &["completions", "bash"][..],
        &["topology", "show", "--output", "json"],
    ] {
        let (code, err, _) = run_unread(arguments);
        assert_eq!((code, &*err), (Some(0), ""), "{arguments:?}");
    }
    let (code, err, pid) = run_unread(&["demo", "--once"]);
    assert_eq!((code, &*err), (Some(0), ""));
    let folder = std::env::temp_dir().join(format!("postrider-demo-{pid}"));
    assert!(!folder.exists(), "the demo left its folder behind");
}

/// Runs a command whose output nobody reads; its exit code, standard error and pid.
fn run_unread(arguments: &[&str]) -> (Option<i32>, String, u32) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let child = Command::new(postrider())
        .args(arguments)
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let pid = child.id();
    let ended = child.wait_with_output().expect("it ran");
    let err = String::from_utf8_lossy(&ended.stderr).into_owned();
    (ended.status.code(), err, pid)
}

#[tokio::test]
async fn config_show_masks_secrets_and_says_where_values_came_from() {
    let env = [
        (
            "POSTRIDER__BROKER__URL",
            "amqp://user:hunter2@rabbit:5672/prod",
        ),
        ("POSTRIDER__AUTH__ADMIN_TOKEN", "a-very-secret-token"),
    ];
    let (code, out, err) = run(&["config", "show", "--output", "json"], &env).await;
    assert_eq!(code, 0, "{err}");
    assert!(
        !out.contains("hunter2") && !out.contains("a-very-secret-token"),
        "{out}"
    );
    let lines: Vec<Value> = serde_json::from_str(&out).expect("JSON");
    let line = |key: &str| {
        lines
            .iter()
            .find(|line| line["key"] == key)
            .expect("the key")
    };
    assert_eq!(
        line("broker.url")["value"],
        "amqp://user:***@rabbit:5672/prod"
    );
    assert_eq!(line("broker.url")["origin"], "env POSTRIDER__BROKER__URL");
    assert_eq!(line("router.bundle_max")["origin"], "default");
}

#[tokio::test]
async fn an_open_api_beyond_loopback_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("embedded://{}", folder.path().display());
    let env = [
        ("POSTRIDER__API__LISTEN", "0.0.0.0:0"),
        ("POSTRIDER__OPS__LISTEN", "127.0.0.1:0"),
        ("POSTRIDER__BROKER__URL", url.as_str()),
    ];
    let (code, _, err) = run(&["serve"], &env).await;
    assert_eq!(code, 64, "{err}");
    assert!(err.contains("auth.admin_token"), "{err}");
}

#[tokio::test]
async fn the_commands_do_what_the_api_does() {
    let world = World::start(Kind::Embedded).await;
    let api = world.nodes[0].api();
    let env = [("POSTRIDER_API", api.as_str())];
    let url = world.receiver.url("/cli");
    world.receiver.plan("/cli", [Answer::status(500)]);
    let (code, out, err) = run(
        &[
            "subscriptions",
            "create",
            "--tenant",
            "salon-17",
            "--url",
            &url,
            "--events",
            "payment.*",
            "--output",
            "json",
        ],
        &env,
    )
    .await;
    assert_eq!(code, 0, "{err}");
    let created: Value = serde_json::from_str(&out).expect("JSON");
    world.known(&created).await;
    let id = created["id"].as_str().expect("an id");
    let file = tempfile::NamedTempFile::new().expect("a file");
    let patch = json!({"delivery": {"retry": "none"}}).to_string();
    std::fs::write(file.path(), patch).expect("written");
    let path = file.path().to_str().expect("a path");
    let (code, out, err) = run(
        &["subscriptions", "update", id, path, "--output", "json"],
        &env,
    )
    .await;
    assert_eq!(code, 0, "{err}");
    world
        .known(&serde_json::from_str(&out).expect("JSON"))
        .await;

    let event = r#"{"id":"cli-1","tenant":"salon-17","type":"payment.paid","data":{}}"#;
    std::fs::write(file.path(), event).expect("written");
    let (code, out, err) = run(&["publish", path], &env).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("cli-1"), "{out}");
    let other = event.replace("payment", "other");
    let lines = ["cli-2", "cli-3"].map(|id| other.replace("cli-1", id));
    std::fs::write(file.path(), lines.join("\n")).expect("written");
    let (code, out, err) = run(&["publish", path], &env).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("cli-2,cli-3"), "{out}");
    let letter = world.wait_for_dead(1).await.remove(0);
    let (_, out, _) = run(&["dead-letters", "list"], &env).await;
    assert!(out.contains("exhausted") && out.contains("cli-1"), "{out}");
    world.receiver.plan("/cli", [Answer::status(200)]);
    let (code, out, err) = run(
        &[
            "dead-letters",
            "redrive",
            letter["id"].as_str().expect("an id"),
        ],
        &env,
    )
    .await;
    assert_eq!(code, 0, "{out}{err}");
    world.receiver.wait_for("/cli", 2).await;
    let (_, out, _) = run(&["subscriptions", "list"], &env).await;
    assert!(out.contains(id) && out.contains("active"), "{out}");
}

#[tokio::test]
async fn the_topology_is_printed_in_three_forms() {
    let (code, text, _) = run(&["topology", "show"], &[]).await;
    assert_eq!(code, 0);
    for name in [
        "postrider.events",
        "postrider.deliver",
        "postrider.quarantine",
        "postrider.dead",
    ] {
        assert!(text.contains(name), "{text}");
    }
    let (_, out, _) = run(&["topology", "show", "--format", "json"], &[]).await;
    serde_json::from_str::<Value>(&out).expect("JSON");
    let (_, out, _) = run(&["topology", "show", "--format", "definitions"], &[]).await;
    let definitions: Value = serde_json::from_str(&out).expect("JSON");
    assert!(
        definitions["queues"]
            .as_array()
            .is_some_and(|queues| queues.len() >= 10)
    );
}
