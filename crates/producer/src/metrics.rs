//! Every metric of the intake, registered once on the registry it is given.
//!
//! The router counts what comes in by AMQP under the same two names, so that `via` is a constant
//! label of each stage's own counter.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// The intake's counters.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) accepted: IntCounter,
    refused: IntCounterVec,
}

/// Why a request's events were not taken; the `reason` of `postrider_events_refused_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Malformed,
    InvalidEvent,
    TooLarge,
    UnsupportedEncoding,
    IdConflict,
    TenantMismatch,
    Unauthorized,
    Unavailable,
}

impl Reason {
    const ALL: [Self; 8] = [
        Self::Malformed,
        Self::InvalidEvent,
        Self::TooLarge,
        Self::UnsupportedEncoding,
        Self::IdConflict,
        Self::TenantMismatch,
        Self::Unauthorized,
        Self::Unavailable,
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::InvalidEvent => "invalid_event",
            Self::TooLarge => "too_large",
            Self::UnsupportedEncoding => "unsupported_encoding",
            Self::IdConflict => "id_conflict",
            Self::TenantMismatch => "tenant_mismatch",
            Self::Unauthorized => "unauthorized",
            Self::Unavailable => "unavailable",
        }
    }
}

impl Metrics {
    /// Registers the counters; fails only where a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let accepted = IntCounter::with_opts(
            Opts::new(
                "postrider_events_accepted_total",
                "Events taken in, by way in.",
            )
            .const_label("via", "http"),
        )?;
        let refused = IntCounterVec::new(
            Opts::new(
                "postrider_events_refused_total",
                "Events not taken, by way in and reason.",
            )
            .const_label("via", "http"),
            &["reason"],
        )?;
        registry.register(Box::new(accepted.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        let metrics = Self { accepted, refused };
        // Present from the start: a rate over a series that begins at its first fault misses it.
        for reason in Reason::ALL {
            metrics.refused.with_label_values(&[reason.word()]);
        }
        Ok(metrics)
    }

    /// A request of which nothing was taken.
    pub(crate) fn refuse(&self, reason: Reason) {
        self.refused.with_label_values(&[reason.word()]).inc();
    }
}
