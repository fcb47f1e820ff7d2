//! Where a bench runs: its folder, its settings as its processes get them, its subscriptions.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use event::{
    Subscription,
    secret::{SigningKey, SigningKeys, SigningKind},
    subscription::Rules,
};
use jiff::Timestamp;
use serde_json::json;
use store::{Store, Stored};

use super::{crowd, neighbours};
use crate::{cli, commands::Failure, settings::Settings};

/// The tenant of the bench's events.
pub(super) const TENANT: &str = "bench";

pub(super) struct Plan {
    folder: PathBuf,
    pub(super) embedded: bool,
    broker_url: String,
    store_url: String,
}

impl Plan {
    pub(super) async fn lay(settings: &Settings, options: &cli::Bench) -> Result<Self, Failure> {
        if !(1..=1000).contains(&options.fanout) || !(1..=3600).contains(&options.secs) {
            return Err(Failure::usage("--fanout is 1 to 1000, --secs 1 to 3600"));
        }
        let name = format!("postrider-bench-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let embedded = settings.broker.url.starts_with("embedded://");
        // The embedded broker gets a folder of its own: a bench must not touch anybody's data.
        let broker_url = if embedded {
            format!("embedded://{}", folder.display())
        } else {
            settings.broker.url.clone()
        };
        // PostgreSQL only where the recorder is what is measured: it is somebody's data.
        let store_url = if options.recorder && settings.store.url.starts_with("postgres") {
            settings.store.url.clone()
        } else {
            format!("sqlite://{}/postrider.db", folder.display())
        };
        Ok(Self {
            folder,
            embedded,
            broker_url,
            store_url,
        })
    }

    pub(super) fn broker_name(&self) -> &'static str {
        if self.embedded {
            "embedded"
        } else {
            "rabbitmq"
        }
    }

    pub(super) fn program(&self) -> Result<PathBuf, Failure> {
        std::env::current_exe().map_err(failed)
    }

    /// A command of ours with the bench's settings.
    pub(super) fn command(&self) -> Result<Command, Failure> {
        let mut command = Command::new(self.program()?);
        command
            .env("POSTRIDER__BROKER__URL", &self.broker_url)
            .env("POSTRIDER__STORE__URL", &self.store_url)
            .env("POSTRIDER__API__LISTEN", "127.0.0.1:0")
            .env("POSTRIDER__OPS__LISTEN", "127.0.0.1:0")
            .env("POSTRIDER__EGRESS__ALLOW", "127.0.0.0/8")
            .env("POSTRIDER__LOG__LEVEL", "warn")
            .stderr(Stdio::inherit());
        Ok(command)
    }

    pub(super) fn role(&self, role: &str) -> Result<Command, Failure> {
        let mut command = self.command()?;
        command.args(["serve", "--role", role]);
        Ok(command)
    }

    pub(super) fn bench_part(&self, part: &str, options: &cli::Bench) -> Result<Command, Failure> {
        let mut command = self.command()?;
        let number = |value: &dyn std::fmt::Display| value.to_string();
        command.args(["bench", "--part", part]);
        command.args([
            "--rate",
            &number(&options.rate),
            "--size",
            &number(&options.size),
        ]);
        command.args([
            "--window",
            &number(&options.window),
            "--secs",
            &number(&options.secs),
        ]);
        if options.recorder {
            command.arg("--recorder");
        }
        Ok(command)
    }

    /// The bench's settings for stages in this process.
    pub(super) fn settings(&self, settings: &Settings) -> Result<Settings, Failure> {
        let mut settings = settings.clone();
        settings.broker.url = self.broker_url.clone();
        settings.store.url = self.store_url.clone();
        settings.api.listen = "127.0.0.1:0".parse().map_err(failed)?;
        settings.ops.listen = "127.0.0.1:0".parse().map_err(failed)?;
        settings.egress.allow = vec!["127.0.0.0/8".parse().map_err(failed)?];
        Ok(settings)
    }

    /// The subscriptions that match, each with a filter and a key as a real one would have, and
    /// those that do not.
    pub(super) async fn subscribe(&self, sink: &str, options: &cli::Bench) -> Result<(), Failure> {
        let template = template(sink, options.in_flight)?;
        let all = (0..options.fanout + options.subscriptions).map(|n| {
            let mut subscription = template.clone();
            if n >= options.fanout {
                // Others of the same world: other tenants, other types.
                subscription.tenant =
                    event::Tenant::parse(&format!("other-{}", n % 1000)).map_err(failed)?;
            }
            Ok(subscription)
        });
        self.insert(all).await
    }

    /// One subscription of a tenant of its own to each of a crowd's endpoints.
    pub(super) async fn subscribe_each(&self, endpoints: usize, port: u16) -> Result<(), Failure> {
        let all = (0..endpoints).map(|n| {
            let mut subscription = template(&format!("http://{}", crowd::address(n, port)), 64)?;
            subscription.tenant = event::Tenant::parse(&neighbours::tenant(n)).map_err(failed)?;
            subscription.delivery.timeout = neighbours::TIMEOUT;
            Ok(subscription)
        });
        self.insert(all).await
    }

    async fn insert(
        &self,
        subscriptions: impl Iterator<Item = Result<Subscription, Failure>>,
    ) -> Result<(), Failure> {
        let settings = store::Settings {
            url: self.store_url.clone(),
            ..store::Settings::default()
        };
        let store = Store::open(&settings).await.map_err(failed)?;
        for (n, subscription) in subscriptions.enumerate() {
            let mut subscription = subscription?;
            subscription.id = event::SubscriptionId::fresh();
            let mut random = [0; 32];
            random[..8].copy_from_slice(&(n as u64).to_le_bytes());
            let mut keys = SigningKeys::default();
            let now = Timestamp::now();
            keys.rotate(SigningKey::from_random(SigningKind::Hmac, random), now, now);
            store
                .insert_subscription(Stored { subscription, keys })
                .await
                .map_err(failed)?;
        }
        Ok(())
    }
}

fn template(sink: &str, in_flight: u32) -> Result<Subscription, Failure> {
    let body = json!({
        "tenant": TENANT,
        "target_url": format!("{sink}/hook"),
        "events": ["appointment.saved"],
        "filter": {"actions": ["created"], "statuses": ["confirmed", "booked"]},
        "delivery": {"max_in_flight": in_flight},
    });
    let target = event::target::TargetRules {
        allow: vec!["127.0.0.0/8".parse().map_err(failed)?],
        require_https: true,
        ..event::target::TargetRules::default()
    };
    let rules = Rules {
        target: &target,
        dialects: &event::subscription::words::Canonical(&["standard"]),
        tenant: None,
    };
    let now = Timestamp::now();
    event::subscription::parse_new(body.to_string().as_bytes(), &rules, now)
        .map(|(subscription, ..)| subscription)
        .map_err(|refusal| Failure::failed(format!("{refusal}: {:?}", refusal.faults)))
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(error.to_string())
}

impl Drop for Plan {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            eprintln!(
                "postrider: cannot remove {}: {error}",
                self.folder.display()
            );
        }
    }
}
