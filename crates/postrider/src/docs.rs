//! The documentation that is made from the code: held equal by a test, and written anew by
//! `POSTRIDER_WRITE_DOCS=1 cargo test -p postrider docs`.

use std::{collections::BTreeMap, fmt::Write, path::PathBuf};

use prometheus::{Registry, proto::MetricType};

use crate::settings::KEYS;

const CONFIGURATION_HEAD: &str = "\
# Configuration

Made from the settings themselves; a test keeps it true.

Settings come from `postrider.toml` in the working folder (or `--config FILE`), then from the
environment, then from `--set KEY=VALUE`; the later wins. `broker.url` is
`POSTRIDER__BROKER__URL` in the environment, and in the file:

```toml
[broker]
url = \"amqp://postrider:secret@rabbit:5672/prod\"
```

Durations are written `\"15s\"`, sizes `\"256KiB\"`, lists `[\"127.0.0.0/8\"]` (in the environment
`127.0.0.0/8,::1/128`). An unknown key or a bad value refuses to start, with exit code 64, naming
it, where it came from and the nearest key there is. Secrets and URLs may be read from a file:
`auth.admin_token_file = \"/run/secrets/admin\"`. `postrider config show` prints every value with
where it came from; `postrider config check` only judges.

| key | default | what it is |
|---|---|---|
";

const METRICS_HEAD: &str = "\
# Metrics

Prometheus text on `ops.listen` (default `127.0.0.1:9090`) at `/metrics`, beside `/healthz` and
`/readyz`. Made from the registry of a process with every role; a test keeps it true. A process
shows the metrics of the roles it runs. Labels are closed sets: never a URL, an id or a tenant.

| metric | type | labels | what it is |
|---|---|---|---|
";

fn configuration() -> String {
    let mut text = CONFIGURATION_HEAD.to_owned();
    for key in KEYS {
        let default = if key.default.is_empty() {
            "-".to_owned()
        } else {
            format!("`{}`", key.default)
        };
        writeln!(text, "| `{}` | {default} | {} |", key.path, key.help).expect("a string grows");
    }
    text
}

fn metrics() -> String {
    let registry = Registry::new();
    router::metrics::Metrics::register(&registry).expect("the router's metrics");
    deliverer::Metrics::register(&registry).expect("the deliverer's metrics");
    recorder::metrics::Metrics::register(&registry).expect("the recorder's metrics");
    recorder::jobs::metrics::Metrics::register(&registry).expect("the metrics of jobs");
    producer::Metrics::register(&registry).expect("the producer's metrics");
    service::http::Limiter::register(&service::http::Settings::default(), &registry)
        .expect("the API's metrics");
    crate::serve::gauges::Gauges::register(&registry).expect("the process's metrics");
    crate::serve::gauges::Duplicates::register(&registry, None).expect("the dedup's metrics");
    service::ops::build_info(&registry, "0", "0").expect("the build's metric");
    let mut text = METRICS_HEAD.to_owned();
    for family in registry.gather() {
        let mut labels: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for metric in family.get_metric() {
            for label in metric.get_label() {
                let values = labels.entry(label.name().to_owned()).or_default();
                if !values.iter().any(|value| value == label.value()) {
                    values.push(label.value().to_owned());
                }
            }
        }
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, values)| match name.as_str() {
                "queue" | "version" | "revision" => format!("`{name}`"),
                _ => format!("`{name}`: {}", values.join(", ")),
            })
            .collect();
        let kind = match family.get_field_type() {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::HISTOGRAM => "histogram",
            _ => "other",
        };
        writeln!(
            text,
            "| `{}` | {kind} | {} | {} |",
            family.name(),
            labels.join("; "),
            family.help()
        )
        .expect("a string grows");
    }
    text
}

fn held(file: &str, want: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(file);
    if std::env::var_os("POSTRIDER_WRITE_DOCS").is_some() {
        std::fs::write(&path, want).expect("docs are writable");
    }
    let is = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        is, want,
        "docs/{file} is not what the code says: POSTRIDER_WRITE_DOCS=1 cargo test -p postrider docs"
    );
}

#[test]
fn configuration_is_what_the_settings_are() {
    held("configuration.md", &configuration());
}

#[test]
fn metrics_are_what_the_registry_has() {
    held("metrics.md", &metrics());
}
