//! Real Prometheus, scraping what a test points it at.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::folder::Folder;
use super::http;
use super::process::{Process, free_port, program};

/// A Prometheus of Debian's package with a given configuration, ended when dropped.
#[derive(Debug)]
pub(crate) struct Prometheus {
    process: Process,
    port: u16,
    _folder: Folder,
}

impl Prometheus {
    /// Starts it with `config`, the text of a `prometheus.yml`, and waits until it is ready.
    pub(crate) async fn start(config: &str) -> Self {
        let folder = Folder::new("prometheus");
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("a private folder is writable");
        let port = free_port();
        let mut command = Command::new(program("prometheus", "prometheus"));
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .current_dir(folder.path());
        let mut process = Process::spawn(command);
        folder.note("prometheus", process.pid());
        let start = Instant::now();
        while !matches!(http::ask(port, "GET", "/-/ready", &[]).await, Ok(a) if a.status == 200) {
            assert!(
                process.status().is_none(),
                "prometheus ended: {}",
                process.stderr()
            );
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "prometheus is not ready"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Self {
            process,
            port,
            _folder: folder,
        }
    }

    /// The samples of an instant query: the `result` array, each with `metric` and `value`.
    pub(crate) async fn query(&self, expression: &str) -> Vec<Value> {
        let path = format!("/api/v1/query?query={}", http::encoded(expression));
        let answer = http::ask(self.port, "GET", &path, &[])
            .await
            .unwrap_or_else(|error| panic!("prometheus: {error}: {}", self.process.stderr()));
        let json: Value = serde_json::from_str(&answer.body)
            .unwrap_or_else(|error| panic!("{expression}: {error} in {}", answer.body));
        assert_eq!(json["status"], "success", "{expression}: {json}");
        json["data"]["result"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }
}

#[tokio::test]
async fn what_it_scrapes_can_be_queried() {
    let port = free_port();
    let config = format!(
        "scrape_configs:\n  - job_name: absent\n    scrape_interval: 200ms\n    \
         scrape_timeout: 200ms\n    static_configs:\n      - targets: ['127.0.0.1:{port}']\n"
    );
    let prometheus = Prometheus::start(&config).await;
    let start = Instant::now();
    loop {
        let samples = prometheus.query("up{job=\"absent\"}").await;
        if let [sample] = samples.as_slice() {
            assert_eq!(sample["value"][1], "0", "nothing listens on {port}");
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "no scrape: {samples:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
