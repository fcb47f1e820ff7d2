//! Standard AMQP clients of other languages, from `tests/clients`: proof that a service needs
//! nothing of ours to publish.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::folder::run;
use super::process::{profile_folder, program};

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
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    let mut command = match client {
        Client::Pika => {
            let mut command = Command::new(installed("py/bin/python", "python"));
            command.arg(scripts.join("publish.py"));
            command
        }
        Client::Amqplib => {
            let mut command = Command::new(program("node", "node"));
            command
                .arg(scripts.join("publish.js"))
                .env("NODE_PATH", installed("node/node_modules", "node"));
            command
        }
    };
    command
        .args([url, &count.to_string(), tenant, prefix])
        .stdin(Stdio::null());
    run(command).await
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
