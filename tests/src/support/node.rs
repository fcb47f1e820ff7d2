//! One process of the product: `postrider serve` with settings from its environment.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use super::{
    http,
    process::{Process, free_port, postrider},
};

/// A running `postrider serve`.
pub(crate) struct Node {
    process: Option<Process>,
    settings: Vec<(String, String)>,
    roles: String,
    api: u16,
    ops: u16,
    /// What earlier processes of this node wrote.
    past: String,
}

impl Node {
    /// Starts the roles (`""` is all of them) and waits until the process is ready.
    pub(crate) async fn start(roles: &str, settings: &[(&str, String)]) -> Self {
        let mut node = Self::stopped(roles, settings);
        node.start_again().await;
        node
    }

    /// A node that is yet to be started.
    pub(crate) fn stopped(roles: &str, settings: &[(&str, String)]) -> Self {
        let settings = settings
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect();
        Self {
            process: None,
            settings,
            roles: roles.to_owned(),
            api: free_port(),
            ops: free_port(),
            past: String::new(),
        }
    }

    /// Starts the process without waiting for it.
    pub(crate) fn launch(&mut self) {
        let mut command = Command::new(postrider());
        command
            .arg("serve")
            .env("POSTRIDER__API__LISTEN", format!("127.0.0.1:{}", self.api))
            .env("POSTRIDER__OPS__LISTEN", format!("127.0.0.1:{}", self.ops))
            .env("POSTRIDER__EGRESS__ALLOW", "127.0.0.0/8")
            .env(
                "POSTRIDER__LOG__LEVEL",
                "info,postrider_deliverer=debug,postrider_router=debug",
            )
            .current_dir(std::env::temp_dir());
        if !self.roles.is_empty() {
            command.args(["--role", &self.roles]);
        }
        for (key, value) in &self.settings {
            // What is not a setting of the product's, such as a library to load.
            if let Some(name) = key.strip_prefix("env:") {
                command.env(name, value);
                continue;
            }
            let name = format!("POSTRIDER__{}", key.replace('.', "__").to_uppercase());
            command.env(name, value);
        }
        self.process = Some(Process::spawn(command));
    }

    /// Starts the process and waits until `/readyz` is green.
    pub(crate) async fn start_again(&mut self) {
        self.launch();
        self.ready().await;
    }

    /// Waits until `/readyz` is green.
    pub(crate) async fn ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(answer) = http::ask(self.ops, "GET", "/readyz", &[]).await.ok()
                && answer.status == 200
            {
                return;
            }
            if let Some(status) = self.process().status() {
                panic!(
                    "postrider ended with {status} before it was ready:\n{}",
                    self.log()
                );
            }
            assert!(
                Instant::now() < deadline,
                "not ready within 60 s:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.api)
    }

    pub(crate) fn ops(&self) -> u16 {
        self.ops
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the node was started")
    }

    /// As a power cut would.
    pub(crate) fn kill9(&mut self) {
        self.process().kill9();
        self.forget();
    }

    /// SIGTERM, then waits for the end; the exit status must be 0.
    pub(crate) async fn drain(&mut self) {
        self.process().signal("TERM");
        let status = self.process().ended(Duration::from_secs(60)).await;
        assert!(status.success(), "drained with {status}:\n{}", self.log());
        self.forget();
    }

    fn forget(&mut self) {
        self.past = self.log();
        self.process = None;
    }

    /// What it and its earlier processes wrote to standard error.
    pub(crate) fn log(&self) -> String {
        let now = self
            .process
            .as_ref()
            .map(Process::stderr)
            .unwrap_or_default();
        format!("{}{now}", self.past)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// The sum of a metric over all label sets that contain `labels` (such as
    /// `outcome="delivered"`); 0 where there is none.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> f64 {
        let Ok(answer) = http::ask(self.ops, "GET", "/metrics", &[]).await else {
            return 0.0;
        };
        answer
            .body
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| series.split('{').next() == Some(name) && series.contains(labels))
            .filter_map(|(_, value)| value.parse::<f64>().ok())
            .sum()
    }
}

/// The settings of a store and a broker in `folder`, and whatever else a test wants.
pub(crate) fn embedded(folder: &Path) -> Vec<(&'static str, String)> {
    vec![("broker.url", format!("embedded://{}", folder.display()))]
}
