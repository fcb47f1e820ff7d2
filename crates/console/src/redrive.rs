//! A dead letter begins a new run: published first, then no longer dead.
//!
//! In that order, because a letter that is deleted and not published is lost, and one that is
//! published and not deleted is only listed once too often.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use broker::{Parcel, Publish, PublishError, Route};
use event::{
    DeadLetterId, DeliveryId, Event, EventId, SubscriptionId,
    delivery::{Bundle, DeadLetter, Item, Purpose, Recipient},
    log::LogEntry,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use service::http::Problem;
use store::{Sight, Store, jobs::Sending};
use tokio::sync::{Mutex, MutexGuard};

use crate::answer::{Answer, conflict, not_published, store_failed};

/// How long a publish waits for its confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(1800);
/// How many letters of a bulk are on their way at once.
const WINDOW: usize = 32;
/// How long a run is a call's own: longer than any call takes from finding the delivery to noting
/// that it is under way.
const RUN_TAKEN: SignedDuration = SignedDuration::from_secs(120);

/// Redrives letters, one call after the other.
#[derive(Debug)]
pub(crate) struct Redrives {
    store: Store,
    publisher: Arc<dyn Publish>,
    /// Two calls at once would both find the letter and deliver it twice.
    turn: Mutex<()>,
}

/// The run that a redrive began.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    /// The letter it was.
    id: DeadLetterId,
    delivery_id: DeliveryId,
    subscription_id: SubscriptionId,
    run: u32,
}

/// What became of one letter.
#[derive(Debug)]
pub(crate) enum Redriven {
    /// It is on its way.
    Sent(Run),
    /// It stays dead, and why.
    Stays(Problem),
}

impl Redrives {
    pub(crate) fn new(store: Store, publisher: Arc<dyn Publish>) -> Self {
        Self {
            store,
            publisher,
            turn: Mutex::new(()),
        }
    }

    /// Redrives one letter, or says why it stays.
    pub(crate) async fn one(&self, sight: &Sight, id: &DeadLetterId) -> Answer<Run> {
        let _turn = self.turn.lock().await;
        let letter = self
            .store
            .dead_letter(sight, id)
            .await
            .map_err(store_failed)?;
        let letter = letter.ok_or_else(Problem::not_found)?;
        match self.redrive(sight, &letter).await? {
            Redriven::Sent(run) => Ok(run),
            Redriven::Stays(problem) => Err(problem),
        }
    }

    /// Redrives these letters; the first failure of ours ends it.
    pub(crate) async fn many(
        &self,
        sight: &Sight,
        letters: &[DeadLetter],
    ) -> Answer<Vec<Redriven>> {
        let _turn = self.turn.lock().await;
        let mut again = Vec::with_capacity(letters.len());
        for letter in letters {
            again.push(self.still(sight, &letter.id));
        }
        stream::iter(again)
            .buffer_unordered(WINDOW)
            .try_collect()
            .await
    }

    /// Redrives a letter that a page held: it may have been while this call waited for its turn.
    async fn still(&self, sight: &Sight, id: &DeadLetterId) -> Answer<Redriven> {
        match self
            .store
            .dead_letter(sight, id)
            .await
            .map_err(store_failed)?
        {
            Some(letter) => self.redrive(sight, &letter).await,
            None => Ok(Redriven::Stays(Problem::not_found())),
        }
    }

    /// For who begins runs by other ways: while the turn is held, nobody else redrives here.
    pub(crate) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Redrives a letter, for who holds the turn.
    pub(crate) async fn redrive(&self, sight: &Sight, letter: &DeadLetter) -> Answer<Redriven> {
        if letter.expunged_at.is_some() {
            let detail = "its event's payloads were expunged; there is nothing to deliver";
            return Ok(Redriven::Stays(conflict("expunged", detail)));
        }
        let now = Timestamp::now();
        let again = Again::of(letter);
        let revision = match self.can_go(sight, &again, now).await? {
            Ok(revision) => revision,
            Err(problem) => return Ok(Redriven::Stays(problem)),
        };
        if let Err(problem) = self.send(&again, revision, now).await? {
            return Ok(Redriven::Stays(problem));
        }
        tracing::info!(
            dead_letter_id = %letter.id, delivery_id = %letter.delivery_id,
            event_id = %letter.event_id, "dead letter redriven"
        );
        self.note(&again, now).await;
        if let Err(error) = self.store.delete_dead_letter(sight, &letter.id).await {
            tracing::warn!(
                dead_letter_id = %letter.id, %error,
                "a redriven dead letter is still listed"
            );
            let detail = "it was redriven, but is still listed: the store went away in between; \
                          delete it before redriving again";
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return Err(Problem::new(status, "redriven_but_listed", detail));
        }
        Ok(Redriven::Sent(Run {
            id: letter.id.clone(),
            delivery_id: again.delivery_id,
            subscription_id: again.subscription_id,
            run: again.run,
        }))
    }

    /// The revision of the subscription that it goes to, or why it cannot go.
    pub(crate) async fn can_go(
        &self,
        sight: &Sight,
        again: &Again,
        now: Timestamp,
    ) -> Answer<Result<u64, Problem>> {
        let stored = self
            .store
            .subscription(sight, &again.subscription_id)
            .await
            .map_err(store_failed)?;
        Ok(match stored.map(|stored| stored.subscription.revision) {
            None => {
                let detail = "its subscription was deleted; there is nowhere to deliver it to";
                Err(conflict("subscription_deleted", detail))
            }
            Some(_) if again.event.expires_at.is_some_and(|end| end <= now) => {
                let detail = "its event has expired; it would die again at once";
                Err(conflict("expired", detail))
            }
            Some(revision) => Ok(revision),
        })
    }

    /// Publishes the first delivery of a run, unless somebody else is about to: another process,
    /// or a job.
    pub(crate) async fn send(
        &self,
        again: &Again,
        revision: u64,
        now: Timestamp,
    ) -> Answer<Result<(), Problem>> {
        let parcel = again.parcel(revision)?;
        let owner = EventId::fresh();
        let until = now.saturating_add(RUN_TAKEN).unwrap_or(now);
        let taken = self
            .store
            .take_runs(owner.as_str(), &[again.run()], now, until)
            .await
            .map_err(store_failed)?;
        if taken != [true] {
            let detail = "somebody else is sending it again at this moment";
            return Ok(Err(conflict("under_way", detail)));
        }
        let publishing = self.publisher.publish(parcel);
        let error = match tokio::time::timeout(CONFIRM_TIMEOUT, publishing).await {
            Ok(Ok(())) => return Ok(Ok(())),
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        // Of anything else the broker may have it all the same: then the run stays taken.
        if let Some(PublishError::Blocked(_) | PublishError::Unroutable(_)) = &error {
            let given = self
                .store
                .give_back_run(owner.as_str(), &again.delivery_id, again.run);
            if let Err(error) = given.await {
                tracing::warn!(
                    delivery_id = %again.delivery_id, %error,
                    "a delivery that was not sent again cannot be for two minutes"
                );
            }
        }
        Err(not_published(error.as_ref()))
    }

    /// Notes in the log that the delivery is under way again, so that nobody begins the same run
    /// before a deliverer has said so. Where the log has no such delivery, it gets none.
    pub(crate) async fn note(&self, again: &Again, now: Timestamp) {
        let sight = Sight::Only(again.event.tenant.clone());
        let noted = match self.store.delivery(&sight, &again.delivery_id).await {
            Ok(Some(known)) if known.delivery.accepted_at == again.accepted_at => {
                self.store.record(&[], &[again.entry(now)]).await.map(drop)
            }
            other => other.map(drop),
        };
        if let Err(error) = noted {
            tracing::warn!(
                delivery_id = %again.delivery_id, %error,
                "a delivery that is sent again is still logged as ended"
            );
        }
    }

    /// Publishes with a bound on the wait.
    pub(crate) async fn publish(&self, parcel: Parcel) -> Answer<()> {
        match tokio::time::timeout(CONFIRM_TIMEOUT, self.publisher.publish(parcel)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(not_published(Some(&error))),
            Err(_) => Err(not_published(None)),
        }
    }
}

/// A delivery's next run.
#[derive(Debug)]
pub(crate) struct Again {
    pub(crate) delivery_id: DeliveryId,
    pub(crate) event: Arc<Event>,
    pub(crate) accepted_at: Timestamp,
    pub(crate) subscription_id: SubscriptionId,
    pub(crate) run: u32,
}

impl Again {
    fn of(letter: &DeadLetter) -> Self {
        Self {
            delivery_id: letter.delivery_id.clone(),
            event: Arc::clone(&letter.event),
            accepted_at: letter.accepted_at,
            subscription_id: letter.subscription_id.clone(),
            run: letter.run + 1,
        }
    }

    fn run(&self) -> Sending {
        Sending {
            delivery_id: self.delivery_id.clone(),
            accepted_at: self.accepted_at,
            run: self.run,
            letter: None,
            held: false,
        }
    }

    fn parcel(&self, revision: u64) -> Answer<Parcel> {
        let recipient = Recipient {
            run: self.run,
            purpose: Purpose::Replay,
            ..Recipient::first(self.subscription_id.clone())
        };
        let item = Item {
            event: Arc::clone(&self.event),
            accepted_at: self.accepted_at,
            revision,
            to: vec![recipient],
        };
        let body = serde_json::to_vec(&Bundle { items: vec![item] }).map_err(|error| {
            tracing::error!(delivery_id = %self.delivery_id, %error, "a delivery cannot be written");
            Problem::internal()
        })?;
        let message_id = format!("{}:{}", self.delivery_id, self.run);
        Ok(Parcel::json(Route::Deliver, message_id, body))
    }

    fn entry(&self, now: Timestamp) -> LogEntry {
        let run = (Purpose::Replay, self.run);
        LogEntry::pending(
            &self.event,
            &self.subscription_id,
            self.accepted_at,
            run,
            now,
        )
    }
}
