//! It comes in: the publishing library for services written in Rust, and the HTTP intake.
//!
//! bytes -> admission (in `event`, shared with the router) -> one parcel -> the broker's confirm ->
//! 202. However many events a call has, they are one parcel: taken whole or not at all. Services
//! in other languages publish to the exchange `postrider.events` with any AMQP client.

mod intake;
mod metrics;
mod parcel;
mod repeat;

use std::{sync::Arc, time::Duration};

use broker::{Broker, OpenError, Publish, PublishError};
use event::{
    Event, EventId, Refusal, Tenant,
    admission::{self, Envelope},
};
use jiff::Timestamp;

pub use intake::{State, router};
pub use metrics::Metrics;
use parcel::Stamp;
pub use parcel::{BATCH_BYTES_MAX, TooLarge};

/// How long a publish waits for its confirm before it says that the broker is away. Below the 2 s
/// within which the intake promises its 503.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(1800);

/// Publishes events, each call confirmed by the broker before it returns. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Producer {
    publisher: Arc<dyn Publish>,
    via: Option<&'static str>,
    /// Held so that a connection of our own lives as long as its producer.
    broker: Option<Broker>,
}

/// Why events were not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They are not events; says everything that is wrong.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// They are more than one parcel may hold.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The broker did not take them.
    #[error(transparent)]
    Broker(#[from] PublishError),
    /// The broker has not confirmed in time. It may have them nevertheless: publish again with
    /// the same ids.
    #[error("the broker has not confirmed within {:.1} s", CONFIRM_TIMEOUT.as_secs_f32())]
    Unconfirmed,
}

impl Producer {
    /// Connects to a broker of its own.
    pub async fn connect(settings: &broker::Settings) -> Result<Self, OpenError> {
        let broker = Broker::open(settings).await?;
        Ok(Self {
            broker: Some(broker.clone()),
            ..Self::over(broker.publisher())
        })
    }

    /// Publishes over a connection that somebody else opened.
    pub fn over(publisher: Arc<dyn Publish>) -> Self {
        Self {
            publisher,
            via: None,
            broker: None,
        }
    }

    /// Says by which way events came in, so that the router does not count them again.
    pub(crate) fn via(self, via: &'static str) -> Self {
        Self {
            via: Some(via),
            ..self
        }
    }

    /// Publishes one event.
    pub async fn publish(&self, event: &Event) -> Result<(), Error> {
        self.publish_all(std::slice::from_ref(event)).await
    }

    /// Publishes events as one parcel: all of them are taken, or none.
    pub async fn publish_all(&self, events: &[Event]) -> Result<(), Error> {
        self.publish_stamped(events, &Stamp::new(None)).await
    }

    pub(crate) async fn publish_stamped(
        &self,
        events: &[Event],
        stamp: &Stamp,
    ) -> Result<(), Error> {
        let Some(parcel) = parcel::of(events, self.via, stamp)? else {
            return Ok(());
        };
        match tokio::time::timeout(CONFIRM_TIMEOUT, self.publisher.publish(parcel)).await {
            Ok(confirmed) => Ok(confirmed?),
            Err(_) => Err(Error::Unconfirmed),
        }
    }

    /// Reads one event or an array of them, as contract 1 has it, and publishes; returns their
    /// ids. An event without an id gets one, one without a tenant gets `tenant`.
    pub async fn publish_json(
        &self,
        json: &[u8],
        tenant: Option<&Tenant>,
    ) -> Result<Vec<EventId>, Error> {
        let now = Timestamp::now();
        let envelope = Envelope {
            now,
            message_id: None,
            tenant,
            fresh_id: Some(EventId::fresh),
        };
        let events = admission::admit_many(json, false, &envelope)?;
        self.publish_stamped(&events, &Stamp::new(Some(now)))
            .await?;
        Ok(events.into_iter().map(|event| event.id).collect())
    }

    /// Closes a connection of its own, after what is on its way.
    pub async fn close(self) {
        if let Some(broker) = self.broker {
            broker.close().await;
        }
    }
}

#[cfg(test)]
mod tests;
