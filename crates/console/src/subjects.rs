//! `DELETE /v1/subjects/{entity}/{id}`: one resource is forgotten.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, Uri},
    response::IntoResponse,
    routing::delete,
};
use event::{Tenant, access::Scope, event::EventType};
use jiff::Timestamp;
use service::http::Problem;
use store::{Expunged, Resource, Sight};

use crate::{
    App,
    answer::{Answer, store_failed},
    caller::Caller,
    form::Form,
};

/// The longest id of a resource, in bytes.
const ID_BYTES_MAX: usize = 512;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/subjects/{entity}/{id}", delete(forget))
}

async fn forget(
    caller: Caller,
    State(app): State<Arc<App>>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
) -> Answer {
    caller.must(Scope::Manage)?;
    let mut query = Form::of_query(&uri)?;
    let tenant = query.parsed("tenant", Tenant::parse);
    if caller.0.tenant.is_none() && tenant.is_none() && !query.has_fault("tenant") {
        query.find(
            "tenant",
            "is required: the token is bound to none, and an id is one tenant's",
        );
    }
    query.finish()?;
    let Path((entity, id)) = path.map_err(|_| Problem::not_found())?;
    if EventType::parse(&format!("{entity}.any")).is_err()
        || id.len() > ID_BYTES_MAX
        || id.contains('\0')
    {
        let detail = format!(
            "the route is /v1/subjects/ENTITY/ID: the entity of an event type (`client` of \
             `client.created`), and an id of at most {ID_BYTES_MAX} bytes"
        );
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad_subject",
            detail,
        ));
    }
    let Some(Sight::Only(tenant)) = caller.sight_of(tenant) else {
        // Another tenant's resource is like one that never was.
        return Ok(Json(Expunged::default()).into_response());
    };
    // The synonym that services know the customer by; admission takes it for the same.
    let entity = match entity.as_str() {
        "client" => "customer".to_owned(),
        _ => entity,
    };
    let resource = Resource { tenant, entity, id };
    let store = app.store.clone();
    // On its own feet: who hangs up, or waits no longer, has asked for it all the same.
    let work = tokio::spawn(async move {
        let expunged = store.expunge(&resource, Timestamp::now()).await;
        match &expunged {
            // Without the id, which may be what was to be forgotten.
            Ok(expunged) => tracing::info!(
                tenant = %resource.tenant, entity = %resource.entity, events = expunged.events,
                deliveries = expunged.deliveries, dead_letters = expunged.dead_letters,
                "a resource's payloads were expunged"
            ),
            Err(error) => tracing::warn!(
                tenant = %resource.tenant, entity = %resource.entity, %error,
                "a resource's payloads were not all expunged"
            ),
        }
        expunged
    });
    let expunged = work.await.map_err(|error| {
        tracing::error!(%error, "expunging broke off");
        Problem::internal()
    })?;
    Ok(Json(expunged.map_err(store_failed)?).into_response())
}
