//! Settling: what a delivery's end calls for is published and confirmed, then counted and told.

use std::time::{Duration, SystemTime};

use broker::{Parcel, Route, clock, publish_while};
use event::{
    delivery::Purpose,
    log::{Archive, Attempt},
    reason::DeliveryState,
};
use jiff::Timestamp;
use tracing::{debug, info, warn};

use crate::{
    Deliverer, End,
    bundle::Share,
    delivery::Delivery,
    jitter,
    outcome::Outcome,
    park::{self, Cause},
    record,
};

impl Deliverer {
    /// Publishes what the delivery's end calls for, and what the log says of it; false where that
    /// could not be, and then the delivery must not be settled.
    pub(crate) async fn settle(
        &self,
        delivery: &mut Delivery,
        share: &Share,
        end: &End,
        attempt: Option<Box<Attempt>>,
    ) -> bool {
        match end {
            // What arrived or was not wanted did so, whoever is handed the bundle next.
            End::Delivered | End::Filtered(_) => {}
            // The bundle comes again: what is published from this copy would be a second delivery.
            _ if share.is_void() => return false,
            End::Void => return false,
            _ => {}
        }
        let was_held = delivery.to.held;
        let parcel = match parcel(delivery, end, self.journal.archive()) {
            Ok(parcel) => parcel,
            Err(error) => {
                warn!(event_id = %delivery.event.id, %error, "a delivery goes back to its queue");
                return false;
            }
        };
        let entry = match self.journal.archive() {
            Archive::Off => None,
            _ => record::entry(delivery, was_held, end, attempt, clock::now()),
        };
        let publish = async {
            match parcel {
                Some(parcel) => self.publish(parcel, delivery, share).await,
                None => true,
            }
        };
        let log = async {
            match &entry {
                Some(entry) => self.journal.write(entry).await,
                None => true,
            }
        };
        // Side by side: neither says anything that the other makes untrue, and both are waited for.
        let (published, logged) = tokio::join!(publish, log);
        published && logged
    }

    async fn publish(&self, parcel: Parcel, delivery: &Delivery, share: &Share) -> bool {
        let published = publish_while(&*self.publisher, parcel, || !share.is_void()).await;
        let Err(error) = published else {
            return true;
        };
        if !share.is_void() {
            warn!(event_id = %delivery.event.id, %error, "a delivery goes back to its queue");
        }
        false
    }

    /// Counts and logs a delivery's end, once it is settled.
    pub(crate) fn tell(&self, delivery: &Delivery, end: &End) {
        let metrics = &self.metrics;
        let event_id = &delivery.event.id;
        let subscription_id = &delivery.to.subscription;
        match end {
            End::Void => {}
            // A test is no delivery of an event: what came of it is in the log, and in the counts
            // of attempts.
            End::Delivered | End::Dead(..) if is_fleeting(delivery) => {
                debug!(%event_id, %subscription_id, "test over, or its listener is");
            }
            End::Delivered => metrics.delivered.inc(),
            End::Filtered(stopped) => {
                metrics.filtered.inc();
                debug!(%event_id, %subscription_id, clause = &*stopped.clause, "delivery filtered");
            }
            End::Superseded(newer) => {
                metrics.superseded.inc();
                debug!(
                    %event_id, %subscription_id, version = delivery.event.version,
                    newer = newer.version, newer_event_id = %newer.event_id,
                    "delivery superseded"
                );
            }
            End::Retry(due) => {
                debug!(
                    %event_id, %subscription_id, attempts = delivery.to.attempts, %due,
                    state = DeliveryState::Retrying.word(), "retry scheduled"
                );
            }
            End::Held(_) | End::Parked(_) => {
                let cause = match end {
                    End::Parked((cause, _)) => *cause,
                    _ => Cause::Held,
                };
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

/// Whether it is of no use to anybody once it has ended: a test, or for a listener.
fn is_fleeting(delivery: &Delivery) -> bool {
    delivery.to.purpose == Purpose::Test || delivery.to.subscription.is_listener()
}

/// What a delivery's end calls for, and the delivery as it is in that.
fn parcel(
    delivery: &mut Delivery,
    end: &End,
    archive: Archive,
) -> serde_json::Result<Option<Parcel>> {
    let parcel = match end {
        End::Void | End::Delivered | End::Filtered(_) | End::Superseded(_) => return Ok(None),
        // Nobody would redrive a test, or what was for a listener: the log says what came of it.
        End::Dead(..) if is_fleeting(delivery) => return Ok(None),
        End::Retry(due) => {
            delivery.to.due = Some(*due);
            delivery.parcel(Route::DeliverAt(SystemTime::from(*due)))
        }
        End::Parked((Cause::Stopping, _)) => delivery.parcel(Route::Deliver),
        End::Parked((cause, least)) => {
            // A look at an unknown subscription says nothing of whether it is still held.
            delivery.to.held &= *cause == Cause::Snapshot;
            parked(delivery, *least)
        }
        // Handed over to the recorder, or parked: never both, or it would arrive twice.
        End::Held(_) if archive == Archive::Full => delivery.kept(clock::now()),
        End::Held(_) => {
            delivery.to.held = true;
            parked(delivery, Duration::ZERO)
        }
        End::Dead(reason, detail) => delivery.dead_letter(*reason, detail, clock::now()),
    };
    parcel.map(Some)
}

fn parked(delivery: &mut Delivery, least: Duration) -> serde_json::Result<Parcel> {
    let pause = park::pause(delivery.to.parked, least, jitter(delivery));
    delivery.to.parked = delivery.to.parked.saturating_add(1);
    delivery.parcel(Route::DeliverAt(SystemTime::from(clock::now()) + pause))
}
