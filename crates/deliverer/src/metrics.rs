//! Every metric of the deliverer, registered once on the registry it is given. Labels are closed
//! sets, and every value of them is there from the start, as 0.

use event::reason::{AttemptError, DeadReason};
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Where a delivery ended, for `postrider_deliveries_total{outcome}`.
pub(crate) const OUTCOMES: [&str; 4] = ["delivered", "filtered", "superseded", "dead"];

/// `postrider_attempts_total{result}` for an attempt that succeeded; the others are the words of
/// [`AttemptError`].
pub(crate) const SUCCESS: &str = "success";

/// The deliverer's metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) deliveries: IntCounterVec,
    pub(crate) delivered: IntCounter,
    pub(crate) filtered: IntCounter,
    pub(crate) superseded: IntCounter,
    pub(crate) dead: IntCounterVec,
    pub(crate) attempts: IntCounterVec,
    pub(crate) succeeded: IntCounter,
    pub(crate) attempt_seconds: Histogram,
    pub(crate) first_attempt_seconds: Histogram,
    pub(crate) retry_lag_seconds: Histogram,
    pub(crate) in_flight: IntGauge,
    pub(crate) parked: IntCounterVec,
    pub(crate) endpoints: IntGaugeVec,
    pub(crate) redelivered: IntCounter,
    pub(crate) quarantined: IntCounter,
    pub(crate) loads: IntCounterVec,
    pub(crate) log_entries: IntCounter,
    pub(crate) log_batches: IntCounter,
}

impl Metrics {
    /// Registers the metrics; fails only where a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let to = To(registry);
        let deliveries = to.counters(
            "postrider_deliveries_total",
            "Deliveries that came to their end, by outcome.",
            "outcome",
            OUTCOMES,
        )?;
        let attempts = to.counters(
            "postrider_attempts_total",
            "Attempts made, by result.",
            "result",
            std::iter::once(SUCCESS).chain(AttemptError::ALL.iter().map(|error| error.word())),
        )?;
        let endpoints = IntGaugeVec::new(
            Opts::new(
                "postrider_endpoints",
                "Endpoints this process knows the health of, by the state of their breaker.",
            ),
            &["breaker"],
        )?;
        registry.register(Box::new(endpoints.clone()))?;
        for breaker in crate::endpoint::Breaker::ALL {
            endpoints.with_label_values(&[breaker.word()]);
        }
        let in_flight = IntGauge::new("postrider_in_flight", "Attempts under way.")?;
        registry.register(Box::new(in_flight.clone()))?;
        Ok(Self {
            delivered: deliveries.with_label_values(&["delivered"]),
            filtered: deliveries.with_label_values(&["filtered"]),
            superseded: deliveries.with_label_values(&["superseded"]),
            deliveries,
            dead: to.counters(
                "postrider_dead_letters_total",
                "Deliveries that will not be tried again, by reason.",
                "reason",
                DeadReason::ALL.iter().map(|reason| reason.word()),
            )?,
            succeeded: attempts.with_label_values(&[SUCCESS]),
            attempts,
            attempt_seconds: to.histogram(
                "postrider_attempt_duration_seconds",
                "One attempt, from connecting to the last byte read.",
                &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0],
            )?,
            first_attempt_seconds: to.histogram(
                "postrider_event_to_first_attempt_seconds",
                "From the router's taking an event to the start of a delivery's first attempt.",
                &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0],
            )?,
            retry_lag_seconds: to.histogram(
                "postrider_retry_due_lag_seconds",
                "How much later than due a retry came back from the ladder.",
                &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0],
            )?,
            in_flight,
            parked: to.counters(
                "postrider_parked_total",
                "Deliveries put back on the retry ladder without an attempt, by cause.",
                "cause",
                crate::park::Cause::ALL.iter().map(|cause| cause.word()),
            )?,
            endpoints,
            redelivered: to.counter(
                "postrider_deliveries_redelivered_total",
                "Deliveries that came to a deliverer a second time after a fault: the most there can be of duplicates.",
            )?,
            quarantined: to.counter(
                "postrider_bundles_quarantined_total",
                "Parcels on the deliver queue that are no bundle; they went to quarantine.",
            )?,
            loads: to.counters(
                "postrider_loads_total",
                "Views that an event lacked and a loader was asked for, by how that went.",
                "result",
                crate::views::RESULTS,
            )?,
            log_entries: to.counter(
                "postrider_log_entries_total",
                "Entries of the delivery log that were published.",
            )?,
            log_batches: to.counter(
                "postrider_log_batches_total",
                "Batches that the entries of the delivery log were published in.",
            )?,
        })
    }
}

struct To<'a>(&'a Registry);

impl To<'_> {
    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        let counter = IntCounter::new(name, help)?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = &'static str>,
    ) -> prometheus::Result<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
        self.0.register(Box::new(counters.clone()))?;
        for value in values {
            counters.with_label_values(&[value]);
        }
        Ok(counters)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let histogram = Histogram::with_opts(opts)?;
        self.0.register(Box::new(histogram.clone()))?;
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_value_is_there_from_the_start() {
        let registry = Registry::new();
        Metrics::register(&registry).expect("registers");
        let series: usize = registry
            .gather()
            .iter()
            .map(|family| family.get_metric().len())
            .sum();
        let labelled = OUTCOMES.len()
            + 1
            + AttemptError::ALL.len()
            + DeadReason::ALL.len()
            + crate::park::Cause::ALL.len()
            + crate::endpoint::Breaker::ALL.len()
            + crate::views::RESULTS.len();
        assert_eq!(series, labelled + 8);
        assert!(
            Metrics::register(&registry).is_err(),
            "a name is registered once"
        );
    }
}
