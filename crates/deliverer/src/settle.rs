//! Settling: what a delivery's end calls for is published and confirmed, then counted and told.

use std::time::SystemTime;

use broker::{Route, publish_while};
use event::reason::DeliveryState;
use jiff::Timestamp;
use tracing::{debug, info, warn};

use crate::{
    Deliverer, End,
    bundle::Share,
    delivery::Delivery,
    jitter,
    outcome::Outcome,
    park::{self, Cause},
};

impl Deliverer {
    /// Publishes what the delivery's end calls for; false where that could not be, and then the
    /// delivery must not be settled.
    pub(crate) async fn settle(&self, delivery: &mut Delivery, share: &Share, end: &End) -> bool {
        let parcel = match end {
            End::Delivered | End::Filtered(_) => return true,
            // The bundle comes again: what is published from this copy would be a second delivery.
            _ if share.is_void() => return false,
            End::Void => return false,
            End::Retry(due) => {
                delivery.to.due = Some(*due);
                delivery.parcel(Route::DeliverAt(SystemTime::from(*due)))
            }
            End::Parked((Cause::Stopping, _)) => delivery.parcel(Route::Deliver),
            End::Parked((_, least)) => {
                let pause = park::pause(delivery.to.parked, *least, jitter(delivery));
                delivery.to.parked = delivery.to.parked.saturating_add(1);
                delivery.parcel(Route::DeliverAt(SystemTime::now() + pause))
            }
            End::Dead(reason, detail) => delivery.dead_letter(*reason, detail, Timestamp::now()),
        };
        let published = match parcel {
            Ok(parcel) => publish_while(&*self.publisher, parcel, || !share.is_void())
                .await
                .map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = published {
            if share.is_void() {
                return false;
            }
            warn!(event_id = %delivery.event.id, error, "a delivery goes back to its queue");
            return false;
        }
        true
    }

    /// Counts and logs a delivery's end, once it is settled.
    pub(crate) fn tell(&self, delivery: &Delivery, end: &End) {
        let metrics = &self.metrics;
        let event_id = &delivery.event.id;
        let subscription_id = &delivery.to.subscription;
        match end {
            End::Void => {}
            End::Delivered => metrics.delivered.inc(),
            End::Filtered(stopped) => {
                metrics.filtered.inc();
                debug!(%event_id, %subscription_id, clause = &*stopped.clause, "delivery filtered");
            }
            End::Retry(due) => {
                debug!(
                    %event_id, %subscription_id, attempts = delivery.to.attempts, %due,
                    state = DeliveryState::Retrying.word(), "retry scheduled"
                );
            }
            End::Parked((cause, _)) => {
                metrics.parked.with_label_values(&[cause.word()]).inc();
                debug!(
                    %event_id, %subscription_id, cause = cause.word(),
                    parked = delivery.to.parked, "delivery parked"
                );
            }
            End::Dead(reason, detail) => {
                metrics.dead.with_label_values(&[reason.word()]).inc();
                metrics.deliveries.with_label_values(&["dead"]).inc();
                info!(
                    %event_id, %subscription_id, tenant = %delivery.event.tenant,
                    reason = reason.word(), attempts = delivery.to.attempts, detail,
                    "delivery dead-lettered"
                );
            }
        }
    }

    pub(crate) fn observe_lateness(&self, delivery: &Delivery, now: Timestamp) {
        let since = |then: Timestamp| now.duration_since(then).as_secs_f64().max(0.0);
        let to = &delivery.to;
        if let Some(due) = to.due.filter(|_| to.parked == 0) {
            self.metrics.retry_lag_seconds.observe(since(due));
        } else if to.attempts == 0 && to.run == 0 {
            self.metrics
                .first_attempt_seconds
                .observe(since(delivery.accepted_at));
        }
    }

    pub(crate) fn count_attempt(&self, outcome: &Outcome) {
        match outcome.error {
            None => self.metrics.succeeded.inc(),
            Some(error) => self
                .metrics
                .attempts
                .with_label_values(&[error.word()])
                .inc(),
        }
        self.metrics
            .attempt_seconds
            .observe(outcome.took.as_secs_f64());
    }
}
