//! What ops people hold on to: the dashboard shows data, the alerts name metrics that exist, and
//! the files under `deploy/` work with the product and with real servers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    delivers::on_both,
    support::{
        clients::{self, Client},
        folder::run,
        node::Node,
        process::Process,
        prometheus::Prometheus,
        rabbit::{Options, Rabbit},
        receiver::Answer,
        world::{Fate, World},
    },
};

on_both!(every_panel_and_every_alert_finds_its_metrics);

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(path)
}

fn text(path: &str) -> String {
    let path = deploy(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every query of the dashboard with its panel's title; the interval is what Grafana would choose.
fn dashboard() -> Vec<(String, String)> {
    let dashboard: Value =
        serde_json::from_str(&text("grafana/postrider.json")).expect("the dashboard is JSON");
    let panels = dashboard["panels"]
        .as_array()
        .expect("a dashboard has panels");
    let mut queries = Vec::new();
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let title = panel["title"].as_str().unwrap_or_default().to_owned();
            let query = target["expr"].as_str().expect("a target has a query");
            queries.push((title, query.replace("$__rate_interval", "1m")));
        }
    }
    queries
}

/// Every metric that the alert rules name.
fn alerted() -> Vec<String> {
    let text = text("prometheus/alerts.yml");
    let expressions = text.lines().filter(|line| {
        let line = line.trim_start();
        !line.starts_with('#') && !line.starts_with("description:")
    });
    let mut names: Vec<String> = expressions
        .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .filter(|word| word.starts_with("postrider_"))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Waits until a query has a sample that is a number; a quantile of nothing is NaN.
async fn wait_for_data(prometheus: &Prometheus, what: &str, query: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let samples = prometheus.query(query).await;
        if samples.iter().any(|sample| sample["value"][1] != "NaN") {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{what}: no data for {query}: {samples:?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn every_panel_and_every_alert_finds_its_metrics(world: World) {
    let targets: Vec<String> = world
        .nodes
        .iter()
        .map(|node| format!("127.0.0.1:{}", node.ops()))
        .collect();
    let config = format!(
        "global:\n  scrape_interval: 500ms\n  scrape_timeout: 500ms\nscrape_configs:\n  \
         - job_name: postrider\n    static_configs:\n      - targets: {targets:?}\n"
    );
    let prometheus = Prometheus::start(&config).await;
    // Rates need a sample from before the traffic.
    let all_up = format!("sum(up{{job=\"postrider\"}}) == {}", targets.len());
    wait_for_data(&prometheus, "the first scrape", &all_up).await;

    world
        .receiver
        .plan("/flaky", [500, 200].map(Answer::status));
    world.receiver.plan("/gone", [Answer::status(410)]);
    let retry = json!({"delivery": {"retry": {"delays": ["1s"]}}});
    let fine = world.subscribe("/fine", &["*"], json!({})).await;
    let flaky = world.subscribe("/flaky", &["*"], retry).await;
    let gone = world.subscribe("/gone", &["*"], json!({})).await;
    let id = world.publish(json!({"type": "appointment.created"})).await;
    world.expect(&fine, &id, Fate::Delivered);
    world.expect(&flaky, &id, Fate::Delivered);
    world.expect(&gone, &id, Fate::Dead);
    world.receiver.wait_for("/flaky", 2).await;

    let queries = dashboard();
    assert!(queries.len() > 20, "the dashboard was read: {queries:?}");
    for (panel, query) in queries {
        wait_for_data(&prometheus, &panel, &query).await;
    }
    let alerted = alerted();
    assert!(alerted.len() > 10, "the alerts were read: {alerted:?}");
    for metric in alerted {
        wait_for_data(&prometheus, "an alert", &format!("count({metric})")).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn the_files_under_deploy_keep_what_they_promise() {
    let output = run(Command::new(deploy("check"))).await;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn the_example_settings_are_accepted() {
    let file = deploy("postrider.example.toml");
    let arguments = ["config", "check", "--config", &file.display().to_string()];
    let mut check = Process::postrider(arguments);
    let status = check.ended(Duration::from_secs(30)).await;
    assert!(status.success(), "{}{}", check.stdout(), check.stderr());
}

#[tokio::test]
async fn the_recommended_private_broker_carries_events_with_least_privilege() {
    // The alarm for full disks would judge the machine that tests, not the settings.
    let conf: String = text("rabbitmq/rabbitmq.conf")
        .lines()
        .filter(|line| !line.starts_with("disk_free_limit"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let advanced = text("rabbitmq/advanced.config");
    let options = Options {
        extra_conf: conf,
        advanced: Some(advanced),
        ..Options::default()
    };
    let rabbit = Rabbit::start_with(options).await;
    let definitions = deploy("rabbitmq/definitions.example.json");
    rabbit
        .ctl(&["import_definitions", &definitions.display().to_string()])
        .await;
    let url = |user: &str| {
        format!(
            "amqp://{user}:change-me-{user}@127.0.0.1:{}/postrider",
            rabbit.port()
        )
    };

    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let store = format!("sqlite://{}", folder.path().join("postrider.db").display());
    let settings = [("broker.url", url("postrider")), ("store.url", store)];
    let mut node = Node::start("", &settings).await;
    clients::publish(Client::Pika, &url("publisher"), 20, "salon-17", "least").await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while node.metric("postrider_events_routed_total", "").await < 20.0 {
        assert!(
            Instant::now() < deadline,
            "20 events were not routed:\n{}",
            node.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(&url("publisher"), properties).await;
    let connection = connection.expect("the publisher may connect");
    let channel = connection
        .create_channel()
        .await
        .expect("and open a channel");
    let read = channel
        .basic_get("postrider.inbox".into(), Default::default())
        .await;
    let refused = read.expect_err("a publisher must not read what others published");
    assert!(refused.to_string().contains("ACCESS_REFUSED"), "{refused}");
    node.drain().await;
}
