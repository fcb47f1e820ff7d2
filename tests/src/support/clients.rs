//! Standard clients of other languages, from `tests/clients`: proof that a service needs nothing
//! of ours to publish, and a receiver nothing of ours to verify.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::folder::run;
use super::process::{profile_folder, program};

/// A language that people use.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Language {
    Python,
    Node,
}

/// A script of `tests/clients` (without its ending), ready for its arguments.
pub(crate) fn script(language: Language, name: &str) -> Command {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    let (mut command, ending) = match language {
        Language::Python => (Command::new(installed("py/bin/python", "python")), "py"),
        Language::Node => {
            let mut command = Command::new(program("node", "node"));
            command.env("NODE_PATH", installed("node/node_modules", "node"));
            (command, "js")
        }
    };
    command
        .arg(scripts.join(format!("{name}.{ending}")))
        .stdin(Stdio::null());
    command
}

/// Publishes CloudEvents as the language's official library writes them, over HTTP and, with the
/// URL of a broker, over AMQP; their ids.
pub(crate) async fn publish_cloud_events(
    language: Language,
    api: &str,
    tenant: &str,
    broker: Option<&str>,
) -> Vec<String> {
    let mut command = script(language, "cloud_events");
    command.args([api, tenant]).args(broker);
    let output = run(command).await;
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{language:?}: {out}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    out.lines().map(str::to_owned).collect()
}

/// A client that people use.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Client {
    /// pika, in Python.
    Pika,
    /// amqplib, in Node.js.
    Amqplib,
}

/// Publishes `count` events `PREFIX-0`, `PREFIX-1`, … of type `appointment.created` and tenant
/// `tenant` to `postrider.events`, each confirmed; panics when the client does not succeed.
pub(crate) async fn publish(client: Client, url: &str, count: usize, tenant: &str, prefix: &str) {
    let output = attempt(client, url, count, tenant, prefix).await;
    assert!(
        output.status.success(),
        "{client:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The same, for a test in which the client is expected to fail.
pub(crate) async fn attempt(
    client: Client,
    url: &str,
    count: usize,
    tenant: &str,
    prefix: &str,
) -> Output {
    let language = match client {
        Client::Pika => Language::Python,
        Client::Amqplib => Language::Node,
    };
    let mut command = script(language, "publish");
    command.args([url, &count.to_string(), tenant, prefix]);
    run(command).await
}

/// Calls an API as its own OpenAPI document describes it.
pub(crate) fn schemathesis() -> Command {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    let mut command = Command::new(installed("py/bin/schemathesis", "python"));
    command
        .env("PYTHONPATH", clients)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SCHEMATHESIS_HOOKS", "openapi_hooks")
        .stdin(Stdio::null());
    command
}

/// A path in `target/tools`, where `deploy/install` puts what the tests need.
fn installed(path: &str, part: &str) -> PathBuf {
    let profile = profile_folder();
    let path = profile
        .parent()
        .expect("target/PROFILE")
        .join("tools")
        .join(path);
    assert!(
        path.exists(),
        "{} is missing: run deploy/install {part}",
        path.display()
    );
    path
}
