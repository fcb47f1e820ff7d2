//! Taking: bundles off the queue, a task for each delivery, and the way out at a stop.

use std::{pin::pin, sync::Arc};

use broker::{Consume, Parcel, Received, Route, clock, publish_until_taken};
use event::{delivery::Bundle, reason::QuarantineReason};
use tokio::{task::JoinSet, time::interval};
use tokio_util::sync::CancellationToken;

use crate::{Deliverer, Error, IDLE_LANE, Taken, bundle::share, delivery::Delivery};

impl Deliverer {
    /// Takes bundles and starts a task for each delivery, until `stop`.
    pub(crate) async fn take_all(
        self: &Arc<Self>,
        consumer: &mut dyn Consume,
        under_way: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let mut stopped = pin!(stop.cancelled());
        let mut changes = self.feed.watch();
        let mut follows = true;
        let mut idle = interval(IDLE_LANE);
        loop {
            while under_way.try_join_next().is_some() {}
            let received = tokio::select! {
                biased;
                () = &mut stopped => return Ok(()),
                changed = changes.changed(), if follows => {
                    follows = changed.is_ok();
                    if let Some(snapshot) = self.feed.snapshot() {
                        self.lanes.forget_gone(&snapshot);
                    }
                    continue;
                }
                _ = idle.tick() => {
                    self.lanes.forget_idle();
                    continue;
                }
                received = consumer.next() => received.ok_or(Error::QueueEnded)?,
            };
            let bundle = match serde_json::from_slice::<Bundle>(&received.body) {
                Ok(bundle) => bundle,
                Err(error) => {
                    under_way.spawn(self.clone().quarantine(received, error));
                    continue;
                }
            };
            let deliveries: Vec<_> = Delivery::all(bundle).collect();
            let count = deliveries.len();
            if received.redelivered {
                self.metrics
                    .redelivered
                    .inc_by(u64::try_from(count).unwrap_or(u64::MAX));
            }
            // From here on the bundle goes back if anything is dropped.
            let shares = share(received.ticket, count);
            let wanted = u32::try_from(count.min(self.room_max)).unwrap_or(u32::MAX);
            let mut room = tokio::select! {
                biased;
                () = &mut stopped => return Ok(()),
                // Never closed.
                Ok(room) = self.room.clone().acquire_many_owned(wanted) => room,
                else => return Ok(()),
            };
            for (delivery, share) in deliveries.into_iter().zip(shares) {
                let taken = Taken {
                    delivery,
                    share,
                    _room: room.split(1),
                };
                under_way.spawn(self.clone().carry(taken));
            }
        }
    }

    /// A parcel that is no bundle can never be delivered: somebody else published it.
    async fn quarantine(self: Arc<Self>, received: Received, error: serde_json::Error) {
        let header = |name: &str, value: String| (format!("x-postrider-{name}"), value);
        let parcel = Parcel {
            route: Route::Quarantine,
            message_id: received.message_id.unwrap_or_else(|| "deliver".into()),
            content_type: received.content_type,
            content_encoding: received.content_encoding,
            headers: vec![
                header("reason", QuarantineReason::Malformed.word().into()),
                header("detail", format!("not a bundle of deliveries: {error}")),
                header("first-seen", clock::now().to_string()),
                header("source", received.source),
            ],
            body: received.body,
        };
        match publish_until_taken(&*self.publisher, parcel).await {
            Ok(()) => {
                self.metrics.quarantined.inc();
                received.ticket.ack();
            }
            Err(_closed) => received.ticket.give_back(),
        }
    }

    /// Finishes and settles what is under way; lets what merely waits go back.
    pub(crate) async fn drain(&self, consumer: &mut dyn Consume, under_way: &mut JoinSet<()>) {
        consumer.stop().await;
        while let Some(received) = consumer.next().await {
            received.ticket.give_back();
        }
        self.in_flight.close();
        self.lanes.close();
        self.views.close();
        while under_way.join_next().await.is_some() {}
    }
}
