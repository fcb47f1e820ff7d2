//! The way out: the guarded client, or in a simulation receivers that nothing is sent to.

#[cfg(feature = "sim")]
use std::sync::Arc;

#[cfg(feature = "sim")]
use crate::sim::{self, Receivers};
use crate::{
    client::{Client, Crowded, Post},
    outcome::Outcome,
};

/// What makes attempts.
#[derive(Debug)]
pub(crate) enum Way {
    /// The only one that opens connections.
    Guarded(Box<Client>),
    #[cfg(feature = "sim")]
    Simulated(Arc<dyn Receivers>),
}

impl Way {
    /// Makes one attempt. Every way it can end is an [`Outcome`].
    pub(crate) async fn post(&self, post: Post) -> Result<Outcome, Crowded> {
        match self {
            Self::Guarded(client) => client.post(post).await,
            #[cfg(feature = "sim")]
            Self::Simulated(receivers) => Ok(sim::post(&**receivers, post).await),
        }
    }
}
