//! The commands that need no running Postrider: `topology …` and `config …`.

use broker::topology::{self, Finding, State};

use super::{Failure, block_on};
use crate::{
    cli::{Config, Format, Global, Topology, TopologyFormat},
    output::{self, say},
};

pub(super) fn config(global: &Global, command: &Config) -> Result<(), Failure> {
    let loaded = crate::settings::load(global)?;
    match command {
        Config::Check => {
            drop(crate::dialects::load(&loaded.settings)?);
            say!("the settings hold");
        }
        Config::Show {
            output: Format::Json,
        } => {
            let lines = crate::settings::effective(&loaded);
            let text = serde_json::to_string_pretty(lines)
                .map_err(|error| Failure::failed(error.to_string()))?;
            say!("{text}");
        }
        Config::Show {
            output: Format::Table,
        } => {
            let mut table = output::plain_table();
            table.set_header(["key", "value", "from"]);
            for line in crate::settings::effective(&loaded) {
                let value = match &line.value {
                    serde_json::Value::Null => "-".to_owned(),
                    serde_json::Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                table.add_row([line.key.clone(), value, line.origin.clone()]);
            }
            say!("{table}");
        }
    }
    Ok(())
}

pub(super) fn topology(global: &Global, command: &Topology) -> Result<(), Failure> {
    match command {
        Topology::Show {
            format: TopologyFormat::Text,
        } => {
            say!("{}", topology::text().trim_end());
            Ok(())
        }
        Topology::Show {
            format: TopologyFormat::Json,
        } => {
            say!("{:#}", topology::json());
            Ok(())
        }
        Topology::Show {
            format: TopologyFormat::Definitions,
        } => {
            say!("{:#}", topology::definitions("/"));
            Ok(())
        }
        Topology::Declare { repair } => {
            let broker = rabbitmq(global)?;
            report(&block_on(async {
                topology::declare(&broker, *repair).await.map_err(failed)
            })?)
        }
        Topology::Check => {
            let broker = rabbitmq(global)?;
            report(&block_on(async {
                topology::check(&broker).await.map_err(failed)
            })?)
        }
    }
}

/// The broker of the settings, which has to be a RabbitMQ: the embedded one makes its own tables.
fn rabbitmq(global: &Global) -> Result<broker::Settings, Failure> {
    let settings = super::settings(global)?;
    if settings.broker.url.starts_with("embedded://") {
        return Err(Failure::settings(
            "broker.url is the embedded broker, which has no topology to declare; set it to amqp(s)://…",
        ));
    }
    Ok(settings.broker)
}

/// Prints what was found; fails when something is not as it should be.
fn report(findings: &[Finding]) -> Result<(), Failure> {
    for finding in findings {
        say!("{finding}");
    }
    let wrong = |finding: &&Finding| !matches!(finding.state, State::Fine | State::Repaired);
    match findings.iter().filter(wrong).count() {
        0 => Ok(()),
        wrong => Err(Failure::failed(format!(
            "{wrong} of {} are not as they should be",
            findings.len()
        ))),
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(error.to_string())
}
