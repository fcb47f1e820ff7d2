//! A deliverer for a simulation: the same in everything, but its attempts reach receivers that are
//! none. Only there with the feature `sim`, which no binary of ours asks for.

use std::{fmt, sync::Arc};

use broker::{Settle, Ticket};
use event::reason::AttemptError;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    Deliverer, Error, Parts,
    bundle::{self, Share},
    client::{self, Post},
    outcome::Outcome,
    run_by,
    way::Way,
};

/// All endpoints there are.
pub trait Receivers: Send + Sync + fmt::Debug {
    /// Takes a request, and answers it or lets it wait for ever.
    fn attempt(&self, url: Url, headers: HeaderMap) -> BoxFuture<'_, Answer>;
}

/// What comes of an attempt.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A response.
    Status {
        /// Its status.
        status: u16,
        /// Its `Retry-After`.
        retry_after: Option<String>,
    },
    /// None, for this reason.
    Failed(AttemptError),
}

/// [`crate::run`], with receivers that are none.
pub async fn run(
    parts: Parts,
    receivers: Arc<dyn Receivers>,
    stop: CancellationToken,
) -> Result<(), Error> {
    run_by(parts, stop, |parts| {
        let publisher = parts.broker.publisher();
        Deliverer::going_by(publisher, parts, Way::Simulated(receivers))
    })
    .await
}

/// An attempt as the guarded client makes one, without a connection.
pub(crate) async fn post(receivers: &dyn Receivers, post: Post) -> Outcome {
    let begun = Instant::now();
    let answer = timeout(post.timeout, receivers.attempt(post.url, post.headers)).await;
    let mut outcome = match answer {
        Ok(Answer::Status {
            status,
            retry_after,
        }) => {
            let mut outcome = Outcome::answered(status);
            outcome.retry_after = retry_after.filter(|_| outcome.error.is_some());
            outcome
        }
        Ok(Answer::Failed(error)) => Outcome::failed(error, "as the simulation wants"),
        Err(_) => client::no_answer(post.timeout),
    };
    outcome.took = begun.elapsed();
    outcome.seen.timing.total = client::micros(outcome.took);
    outcome
}

/// A planted bug: the first share alone decides over the bundle.
pub(crate) fn share_with_the_first(ticket: Ticket, count: usize) -> Vec<Share> {
    let mut shares = bundle::undivided(ticket, count.min(1));
    let nobodys = Ticket::new(Box::new(Nobodys));
    shares.extend(bundle::undivided(nobodys, count.saturating_sub(1)));
    shares
}

#[derive(Debug)]
struct Nobodys;

impl Settle for Nobodys {
    fn ack(self: Box<Self>) {}
    fn give_back(self: Box<Self>) {}
}
