//! Every metric of jobs, registered once on the registry it is given.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use store::jobs::JobKind;

/// The metrics of jobs.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(super) running: IntGauge,
    deliveries: IntCounterVec,
}

impl Metrics {
    /// Registers them; fails only where a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let running = IntGauge::new(
            "postrider_jobs_running",
            "Jobs (replay, redrive, resume) that this process works on.",
        )?;
        let deliveries = IntCounterVec::new(
            Opts::new(
                "postrider_job_deliveries_total",
                "Deliveries that jobs sent again, or passed over because they cannot be sent or are on their way.",
            ),
            &["kind", "outcome"],
        )?;
        registry.register(Box::new(running.clone()))?;
        registry.register(Box::new(deliveries.clone()))?;
        for kind in JobKind::ALL {
            for outcome in ["sent", "skipped"] {
                deliveries.with_label_values(&[kind.word(), outcome]);
            }
        }
        Ok(Self {
            running,
            deliveries,
        })
    }

    /// Counts a step.
    pub(super) fn sent(&self, kind: JobKind, sent: u64, skipped: u64) {
        let count = |outcome, by| {
            self.deliveries
                .with_label_values(&[kind.word(), outcome])
                .inc_by(by);
        };
        count("sent", sent);
        count("skipped", skipped);
    }
}
