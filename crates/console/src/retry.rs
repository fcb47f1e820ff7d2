//! `POST /v1/deliveries/{id}/retry`: one delivery sent again, now.
//!
//! A dead one is redriven by its letter. Any other that has ended begins its next run with the
//! event from the archive, under the same id. What is still under way is left alone: sent beside
//! itself it would arrive twice.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use event::{
    DeadLetterId, DeliveryId, EventId, SubscriptionId, access::Scope, reason::DeliveryState,
};
use jiff::Timestamp;
use serde::Serialize;
use service::http::Problem;
use store::{DeliveryRow, Sight};

use crate::{
    App,
    answer::{Answer, conflict, store_failed},
    caller::{Caller, Id},
    events::is_archived,
    redrive::{Again, Redriven},
};

/// The run that a retry began.
#[derive(Debug, Serialize)]
struct Run {
    id: DeliveryId,
    event_id: EventId,
    subscription_id: SubscriptionId,
    run: u32,
}

pub(crate) async fn retry(caller: Caller, State(app): State<Arc<App>>, id: Id) -> Answer {
    caller.must(Scope::Manage)?;
    let id = id.parse(DeliveryId::parse)?;
    // Two calls at once would both find it ended and send it twice.
    let _turn = app.redrives.turn().await;
    let record = app
        .store
        .delivery(&caller.sight(), &id)
        .await
        .map_err(store_failed)?;
    let delivery = record.ok_or_else(Problem::not_found)?.delivery;
    has_ended(&delivery)?;
    let sight = Sight::Only(delivery.tenant.clone());
    if !redriven(&app, &sight, &delivery).await? {
        send_again(&app, &sight, &delivery).await?;
    }
    tracing::info!(
        delivery_id = %delivery.id, event_id = %delivery.event_id,
        subscription_id = %delivery.subscription_id, "delivery sent again"
    );
    let run = Run {
        id: delivery.id,
        event_id: delivery.event_id,
        subscription_id: delivery.subscription_id,
        run: delivery.run + 1,
    };
    Ok((StatusCode::ACCEPTED, Json(run)).into_response())
}

fn has_ended(delivery: &DeliveryRow) -> Answer<()> {
    match delivery.state {
        DeliveryState::Pending => Err(conflict("under_way", "it is being delivered")),
        DeliveryState::Retrying => {
            let due = delivery.due.map(|due| format!(" at {due}"));
            let detail = format!("it is tried again by itself{}", due.unwrap_or_default());
            Err(conflict("under_way", detail))
        }
        DeliveryState::Held => {
            let detail = "it is held, and is delivered when its subscription is resumed";
            Err(conflict("held", detail))
        }
        DeliveryState::Delivered
        | DeliveryState::Filtered
        | DeliveryState::Superseded
        | DeliveryState::Dead
        | DeliveryState::Canceled => Ok(()),
    }
}

/// Redrives its dead letter, where there is one.
async fn redriven(app: &App, sight: &Sight, delivery: &DeliveryRow) -> Answer<bool> {
    if delivery.state != DeliveryState::Dead {
        return Ok(false);
    }
    let id = DeadLetterId::of(&delivery.id, delivery.run);
    let letter = app
        .store
        .dead_letter(sight, &id)
        .await
        .map_err(store_failed)?;
    let Some(letter) = letter else {
        return Ok(false);
    };
    match app.redrives.redrive(sight, &letter).await? {
        Redriven::Sent(_) => Ok(true),
        Redriven::Stays(problem) => Err(problem),
    }
}

/// Begins its next run with the event from the archive.
async fn send_again(app: &App, sight: &Sight, delivery: &DeliveryRow) -> Answer<()> {
    let records = app
        .store
        .event(sight, &delivery.event_id)
        .await
        .map_err(store_failed)?;
    let record = records
        .into_iter()
        .find(|record| record.accepted_at == delivery.accepted_at && is_archived(record));
    let Some(record) = record else {
        let detail = "the event's payload is not in the archive: there is nothing to send";
        return Err(conflict("not_archived", detail));
    };
    let again = Again {
        delivery_id: delivery.id.clone(),
        event: Arc::new(record.event),
        accepted_at: delivery.accepted_at,
        subscription_id: delivery.subscription_id.clone(),
        run: delivery.run + 1,
    };
    let now = Timestamp::now();
    let revision = app.redrives.can_go(sight, &again, now).await??;
    app.redrives.send(&again, revision, now).await??;
    app.redrives.note(&again, now).await;
    Ok(())
}
