//! Every metric of the router, registered once on the registry it is given.

use event::reason::QuarantineReason;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use crate::publishers::Stranger;

/// The router's counters.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) accepted: IntCounter,
    pub(crate) refused: IntCounterVec,
    pub(crate) routed: IntCounter,
    pub(crate) unmatched: IntCounter,
    pub(crate) quarantined: IntCounterVec,
    pub(crate) redelivered: IntCounter,
    pub(crate) bundles: IntCounter,
    pub(crate) bundled: IntCounter,
    pub(crate) archived: IntCounter,
    pub(crate) strangers: IntCounterVec,
}

impl Metrics {
    /// Registers the counters; fails only where a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |opts: Opts| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::with_opts(opts)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let by_reason = |opts: Opts| -> prometheus::Result<IntCounterVec> {
            let counters = IntCounterVec::new(opts, &["reason"])?;
            registry.register(Box::new(counters.clone()))?;
            for reason in QuarantineReason::ALL {
                counters.with_label_values(&[reason.word()]);
            }
            Ok(counters)
        };
        let strangers = IntCounterVec::new(
            Opts::new(
                "postrider_publishers_refused_total",
                "Messages quarantined because `[publishers]` does not let their user publish them.",
            ),
            &["cause"],
        )?;
        registry.register(Box::new(strangers.clone()))?;
        for cause in Stranger::ALL {
            strangers.with_label_values(&[cause.word()]);
        }
        Ok(Self {
            strangers,
            accepted: counter(
                Opts::new(
                    "postrider_events_accepted_total",
                    "Events taken in, by way in.",
                )
                .const_label("via", "amqp"),
            )?,
            refused: by_reason(
                Opts::new(
                    "postrider_events_refused_total",
                    "Events not taken, by way in and reason.",
                )
                .const_label("via", "amqp"),
            )?,
            routed: counter(Opts::new(
                "postrider_events_routed_total",
                "Events whose deliveries are all on their way, those nobody wanted included.",
            ))?,
            unmatched: counter(Opts::new(
                "postrider_events_unmatched_total",
                "Events that no subscription of their tenant listens to.",
            ))?,
            quarantined: by_reason(Opts::new(
                "postrider_quarantined_total",
                "Messages that can never be processed, by reason.",
            ))?,
            redelivered: counter(Opts::new(
                "postrider_events_redelivered_total",
                "Messages that came to a router a second time after a fault; each may repeat its deliveries.",
            ))?,
            bundles: counter(Opts::new(
                "postrider_bundles_total",
                "Bundles sent to the deliverers.",
            ))?,
            bundled: counter(Opts::new(
                "postrider_bundled_deliveries_total",
                "Deliveries sent to the deliverers, in bundles.",
            ))?,
            archived: counter(Opts::new(
                "postrider_archived_events_total",
                "Events sent to the recorder's archive.",
            ))?,
        })
    }
}
