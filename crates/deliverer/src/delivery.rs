//! One delivery in the process's hands, and the parcels that are made from it.

use std::sync::Arc;

use broker::{Parcel, Route};
use event::{
    DeadLetterId, DeliveryId, Event,
    delivery::{AttemptRecord, Bundle, DeadLetter, HISTORY_MAX, Item, Recipient},
    log::{HeldDelivery, LogBatch},
    reason::DeadReason,
};
use jiff::Timestamp;

/// One event on its way to one subscription.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) event: Arc<Event>,
    pub(crate) accepted_at: Timestamp,
    /// The subscriptions' revision that the router matched against.
    pub(crate) revision: u64,
    pub(crate) to: Recipient,
}

impl Delivery {
    /// The deliveries of a bundle, in its order.
    pub(crate) fn all(bundle: Bundle) -> impl Iterator<Item = Self> {
        bundle.items.into_iter().flat_map(|item| {
            let Item {
                event,
                accepted_at,
                revision,
                to,
            } = item;
            to.into_iter().map(move |to| Self {
                event: event.clone(),
                accepted_at,
                revision,
                to,
            })
        })
    }

    pub(crate) fn id(&self) -> DeliveryId {
        DeliveryId::of(&self.event.tenant, &self.event.id, &self.to.subscription)
    }

    /// Remembers an attempt, and keeps only the latest response: the delivery carries its history
    /// through every queue.
    pub(crate) fn remember(&mut self, attempt: AttemptRecord) {
        self.to.attempts = attempt.number;
        self.to.parked = 0;
        self.to.held = false;
        self.to.due = None;
        if let Some(last) = self.to.history.last_mut() {
            last.response = None;
        }
        let surplus = (self.to.history.len() + 1).saturating_sub(HISTORY_MAX);
        self.to.history.drain(..surplus);
        self.to.history.push(attempt);
    }

    /// The delivery as a bundle of its own.
    pub(crate) fn parcel(&self, route: Route) -> serde_json::Result<Parcel> {
        let to = &self.to;
        let message_id = format!("{}:{}:{}:{}", self.id(), to.run, to.attempts, to.parked);
        let bundle = Bundle {
            items: vec![Item {
                event: self.event.clone(),
                accepted_at: self.accepted_at,
                revision: self.revision,
                to: vec![to.clone()],
            }],
        };
        Ok(Parcel::json(
            route,
            message_id,
            serde_json::to_vec(&bundle)?,
        ))
    }

    /// The delivery as something that the recorder keeps until its subscription is resumed.
    pub(crate) fn kept(&self, now: Timestamp) -> serde_json::Result<Parcel> {
        let item = Item {
            event: self.event.clone(),
            accepted_at: self.accepted_at,
            revision: self.revision,
            to: vec![self.to.clone()],
        };
        let batch = LogBatch {
            entries: Vec::new(),
            held: vec![HeldDelivery { at: now, item }],
        };
        let message_id = format!("held:{}:{}", self.id(), self.to.run);
        Ok(Parcel::json(
            Route::Log,
            message_id,
            serde_json::to_vec(&batch)?,
        ))
    }

    /// The delivery's dead letter.
    pub(crate) fn dead_letter(
        &self,
        reason: DeadReason,
        detail: &str,
        now: Timestamp,
    ) -> serde_json::Result<Parcel> {
        let delivery_id = self.id();
        let letter = DeadLetter {
            id: DeadLetterId::of(&delivery_id, self.to.run),
            delivery_id,
            event_id: self.event.id.clone(),
            subscription_id: self.to.subscription.clone(),
            tenant: self.event.tenant.clone(),
            kind: self.event.kind.clone(),
            reason,
            detail: detail.to_owned(),
            attempts: self.to.attempts,
            run: self.to.run,
            died_at: now,
            accepted_at: self.accepted_at,
            history: self.to.history.clone(),
            event: self.event.clone(),
            expunged_at: None,
        };
        let body = serde_json::to_vec(&letter)?;
        let mut parcel = Parcel::json(Route::Dead, letter.id.as_str(), body);
        let header = |name: &str, value: &str| (format!("x-postrider-{name}"), value.to_owned());
        parcel.headers = vec![
            header("reason", reason.word()),
            header("event-id", letter.event_id.as_str()),
            header("subscription-id", letter.subscription_id.as_str()),
            header("tenant", letter.tenant.as_str()),
            header("attempts", &letter.attempts.to_string()),
        ];
        Ok(parcel)
    }
}

#[cfg(test)]
mod tests;
