//! People look: the management API.
//!
//! One file per resource. Each handler asks who is calling (`caller`), reads what they sent
//! (`form`), asks the store within the caller's sight, and answers as contract 3 has it. What is
//! not the caller's tenant's is, byte for byte, what never was: 404.
//!
//! Calls are bounded in size, time, rate and number of connections by [`service::http`].

mod answer;
mod caller;
mod catalogue;
mod dead_letters;
mod deliveries;
mod description;
mod events;
mod explain;
mod form;
mod jobs;
mod listeners;
mod quarantine;
mod redrive;
mod retry;
mod streams;
mod subjects;
mod subscriptions;
mod tail;
mod tokens;

use std::sync::Arc;

use axum::Router;
use broker::Publish;
use dialect::Dialects;
use event::{log::Archive, target::TargetRules};
use store::{Store, access::Access, feed::Feed};
use tokio_util::sync::CancellationToken;

/// What the management API works with.
#[derive(Debug, Clone)]
pub struct State {
    /// Subscriptions, dead letters, quarantine, tokens.
    pub store: Store,
    /// Nudged after each change, so that this process acts on it at once.
    pub feed: Feed,
    /// For redrives and releases.
    pub publisher: Arc<dyn Publish>,
    /// Who may call.
    pub access: Arc<Access>,
    /// Where a subscription may point (`egress.allow`, `egress.require_https`).
    pub rules: TargetRules,
    /// How a subscription may want its deliveries written.
    pub dialects: Arc<Dialects>,
    /// How much is recorded (`recorder.archive`): what is not cannot be told live.
    pub archive: Archive,
    /// Ends what has no end of its own.
    pub stop: CancellationToken,
}

/// The routes, for [`service::http::serve`].
pub fn router(state: State) -> Router {
    let redrives = redrive::Redrives::new(state.store.clone(), Arc::clone(&state.publisher));
    let app = Arc::new(App {
        state,
        redrives,
        catalogue: catalogue::Catalogue::default(),
        seats: streams::Seats::default(),
        polls: tail::Polls::default(),
    });
    Router::new()
        .merge(subscriptions::routes())
        .merge(explain::routes())
        .merge(events::routes())
        .merge(deliveries::routes())
        .merge(dead_letters::routes())
        .merge(jobs::routes())
        .merge(tail::routes())
        .merge(listeners::routes())
        .merge(subjects::routes())
        .merge(quarantine::routes())
        .merge(tokens::routes())
        .merge(catalogue::routes())
        .merge(description::routes())
        .with_state(app)
}

/// What handlers share.
#[derive(Debug)]
struct App {
    state: State,
    redrives: redrive::Redrives,
    catalogue: catalogue::Catalogue,
    seats: streams::Seats,
    polls: tail::Polls,
}

impl std::ops::Deref for App {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

#[cfg(test)]
mod tests;
