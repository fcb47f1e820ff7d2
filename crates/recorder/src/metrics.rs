//! Every metric of the recorder, registered once on the registry it is given.

use jiff::Timestamp;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounterVec, Opts, Registry};

/// The recorder's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) batch_seconds: Histogram,
    pub(crate) lag_seconds: Gauge,
    rows: IntCounterVec,
}

/// What rows are written to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Table {
    Events,
    Deliveries,
    Attempts,
    Held,
    DeadLetters,
    Quarantine,
}

impl Table {
    const ALL: [Self; 6] = [
        Self::Events,
        Self::Deliveries,
        Self::Attempts,
        Self::Held,
        Self::DeadLetters,
        Self::Quarantine,
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Deliveries => "deliveries",
            Self::Attempts => "attempts",
            Self::Held => "held",
            Self::DeadLetters => "dead_letters",
            Self::Quarantine => "quarantine",
        }
    }
}

impl Metrics {
    /// Registers them; fails only where a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let batch_seconds = Histogram::with_opts(HistogramOpts::new(
            "postrider_recorder_batch_seconds",
            "Time to record one batch in the store.",
        ))?;
        let lag_seconds = Gauge::with_opts(Opts::new(
            "postrider_recorder_lag_seconds",
            "Age of the oldest record of the archive and the log that was last recorded or is waiting for the store; 0 when none comes.",
        ))?;
        let rows = IntCounterVec::new(
            Opts::new(
                "postrider_recorder_rows_total",
                "Rows recorded, by table. A delivery counts each time it moves forward; what comes again counts once for events, deliveries and attempts.",
            ),
            &["table"],
        )?;
        registry.register(Box::new(batch_seconds.clone()))?;
        registry.register(Box::new(lag_seconds.clone()))?;
        registry.register(Box::new(rows.clone()))?;
        for table in Table::ALL {
            rows.with_label_values(&[table.word()]);
        }
        Ok(Self {
            batch_seconds,
            lag_seconds,
            rows,
        })
    }

    /// Counts rows.
    pub(crate) fn wrote(&self, table: Table, rows: u64) {
        self.rows.with_label_values(&[table.word()]).inc_by(rows);
    }

    /// Says how far recording is behind.
    pub(crate) fn lag_since(&self, oldest: Option<Timestamp>, now: Timestamp) {
        if let Some(oldest) = oldest {
            let lag = now.duration_since(oldest).as_secs_f64();
            self.lag_seconds.set(lag.max(0.0));
        }
    }
}
