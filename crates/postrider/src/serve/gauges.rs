//! What only the whole process can tell: how the broker is, how old the subscriptions are, and
//! whether the process is ready.

use std::time::Duration;

use broker::Broker;
use prometheus::{
    Gauge, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use service::ops::Checks;
use store::{dedup::Dedup, feed::Feed};
use tokio_util::sync::CancellationToken;

/// How often the gauges are read anew.
const EVERY: Duration = Duration::from_secs(1);
/// How often the queues are counted: a question to the broker for each of them.
const DEPTHS_EVERY: u32 = 5;

/// The gauges of a process, whatever roles it runs.
pub(crate) struct Gauges {
    connected: IntGauge,
    blocked: IntGauge,
    reconnects: prometheus::IntCounter,
    queue_messages: IntGaugeVec,
    subscriptions: IntGauge,
    revision: IntGauge,
    age: Gauge,
}

impl Gauges {
    /// Registers the gauges; fails only where a name is taken.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let gauges = Self {
            connected: gauge(
                "postrider_broker_connected",
                "1 while the broker is connected.",
            )?,
            blocked: gauge(
                "postrider_broker_blocked",
                "1 while the broker has an alarm and takes nothing.",
            )?,
            reconnects: prometheus::IntCounter::new(
                "postrider_broker_reconnects_total",
                "How often the broker was connected anew.",
            )?,
            queue_messages: IntGaugeVec::new(
                Opts::new("postrider_queue_messages", "Messages ready in each queue."),
                &["queue"],
            )?,
            subscriptions: gauge(
                "postrider_subscriptions",
                "Subscriptions known to this process.",
            )?,
            revision: gauge(
                "postrider_subscription_revision",
                "The store's revision that this process works with.",
            )?,
            age: Gauge::new(
                "postrider_subscription_snapshot_age_seconds",
                "How long ago the store last confirmed the subscriptions.",
            )?,
        };
        registry.register(Box::new(gauges.reconnects.clone()))?;
        registry.register(Box::new(gauges.queue_messages.clone()))?;
        registry.register(Box::new(gauges.age.clone()))?;
        for queue in broker::topology::queues() {
            gauges.queue_messages.with_label_values(&[&queue.name]);
        }
        Ok(gauges)
    }

    /// Reads the gauges anew each second, and when the subscriptions change, until `stop`.
    pub(super) async fn keep_fresh(self, broker: Broker, feed: Feed, stop: CancellationToken) {
        let gauges = self;
        let status = broker.status();
        let mut watch = feed.watch();
        let mut tick = tokio::time::interval(EVERY);
        let mut ticks: u32 = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
                Ok(()) = watch.changed() => {
                    watch.borrow_and_update();
                }
            }
            let now = status.borrow().clone();
            gauges.connected.set(i64::from(now.connected));
            gauges.blocked.set(i64::from(now.blocked.is_some()));
            gauges
                .reconnects
                .inc_by(now.reconnects.saturating_sub(gauges.reconnects.get()));
            if let Some(snapshot) = feed.snapshot() {
                gauges
                    .subscriptions
                    .set(number(snapshot.subscriptions.len() as u64));
                gauges.revision.set(number(snapshot.revision));
            }
            gauges.age.set(feed.age().as_secs_f64());
            if ticks.is_multiple_of(DEPTHS_EVERY) && now.connected {
                for (queue, messages) in broker.depths().await {
                    gauges
                        .queue_messages
                        .with_label_values(&[&queue])
                        .set(number(messages));
                }
            }
            ticks = ticks.wrapping_add(1);
        }
    }
}

/// What routers and intake of a process have in common: read when somebody looks.
pub(crate) struct Duplicates {
    dedup: Option<Dedup>,
    total: prometheus::IntCounter,
    off: IntGauge,
}

impl Duplicates {
    /// Registers the metrics; fails only where a name is taken.
    pub(crate) fn register(registry: &Registry, dedup: Option<Dedup>) -> prometheus::Result<()> {
        let total = prometheus::IntCounter::new(
            "postrider_events_duplicate_total",
            "Events that were published before, within `dedup.window`, and dropped.",
        )?;
        let off = IntGauge::new(
            "postrider_dedup_off",
            "1 while the store does not answer and events that are published twice are routed twice.",
        )?;
        registry.register(Box::new(Self { dedup, total, off }))
    }
}

impl Collector for Duplicates {
    fn desc(&self) -> Vec<&Desc> {
        [self.total.desc(), self.off.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some(dedup) = &self.dedup {
            let more = dedup.duplicates().saturating_sub(self.total.get());
            self.total.inc_by(more);
            self.off.set(i64::from(dedup.is_off()));
        }
        [self.total.collect(), self.off.collect()].concat()
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What has to hold before traffic is sent here.
pub(super) fn checks(broker: &Broker, feed: &Feed) -> Checks {
    let (status, feed) = (broker.status(), feed.clone());
    let checks = Checks::default();
    checks.add("broker", move || {
        let now = status.borrow().clone();
        match (now.connected, now.blocked) {
            (false, _) => Err(now.fault.unwrap_or_else(|| "not connected yet".to_owned())),
            (true, Some(reason)) => Err(format!("blocked: {reason}")),
            (true, None) => Ok(()),
        }
    });
    checks.add("subscriptions", move || match feed.snapshot() {
        Some(_) => Ok(()),
        None => Err("the first snapshot has not been loaded".to_owned()),
    });
    checks
}
