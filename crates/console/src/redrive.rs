//! A dead letter begins a new run: published first, then no longer dead.
//!
//! In that order, because a letter that is deleted and not published is lost, and one that is
//! published and not deleted is only listed once too often.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use broker::{Parcel, Publish, Route};
use event::{
    DeadLetterId, DeliveryId, SubscriptionId,
    delivery::{Bundle, DeadLetter, Item, Recipient},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;
use service::http::Problem;
use store::{Sight, Store};
use tokio::sync::Mutex;

use crate::answer::{Answer, conflict, not_published, store_failed};

/// How long a publish waits for its confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(1800);
/// How many letters of a bulk are on their way at once.
const WINDOW: usize = 32;

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

    async fn redrive(&self, sight: &Sight, letter: &DeadLetter) -> Answer<Redriven> {
        let now = Timestamp::now();
        let subscription = &letter.subscription_id;
        let stored = self
            .store
            .subscription(sight, subscription)
            .await
            .map_err(store_failed)?;
        let revision = match stored.map(|stored| stored.subscription.revision) {
            None => {
                let detail = "its subscription was deleted; there is nowhere to deliver it to";
                return Ok(Redriven::Stays(conflict("subscription_deleted", detail)));
            }
            Some(_) if letter.event.expires_at.is_some_and(|end| end <= now) => {
                let detail = "its event has expired; it would die again at once";
                return Ok(Redriven::Stays(conflict("expired", detail)));
            }
            Some(revision) => revision,
        };
        self.publish(parcel(letter, revision)?).await?;
        tracing::info!(
            dead_letter_id = %letter.id, delivery_id = %letter.delivery_id,
            event_id = %letter.event_id, "dead letter redriven"
        );
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
            delivery_id: letter.delivery_id.clone(),
            subscription_id: letter.subscription_id.clone(),
            run: letter.run + 1,
        }))
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

/// The first delivery of the letter's next run.
fn parcel(letter: &DeadLetter, revision: u64) -> Answer<Parcel> {
    let recipient = Recipient {
        run: letter.run + 1,
        ..Recipient::first(letter.subscription_id.clone())
    };
    let item = Item {
        event: Arc::clone(&letter.event),
        accepted_at: letter.accepted_at,
        revision,
        to: vec![recipient],
    };
    let body = serde_json::to_vec(&Bundle { items: vec![item] }).map_err(|error| {
        tracing::error!(dead_letter_id = %letter.id, %error, "a dead letter cannot be written");
        Problem::internal()
    })?;
    Ok(Parcel::json(Route::Deliver, letter.id.as_str(), body))
}
