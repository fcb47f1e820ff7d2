//! Every metric of the recorder, registered once on the registry it is given.

use prometheus::{Histogram, HistogramOpts, Registry};

/// The recorder's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) batch_seconds: Histogram,
}

impl Metrics {
    /// Registers them; fails only where a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let batch_seconds = Histogram::with_opts(HistogramOpts::new(
            "postrider_recorder_batch_seconds",
            "Time to record one batch in the store.",
        ))?;
        registry.register(Box::new(batch_seconds.clone()))?;
        Ok(Self { batch_seconds })
    }
}
