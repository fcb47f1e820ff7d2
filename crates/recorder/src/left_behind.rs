//! Listeners that were left behind: whoever listens for the time being says so again and again, and
//! who does not any more has ended. What was held for them ends with them.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use store::Error;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::Parts;

/// How often somebody looks.
const EVERY: Duration = Duration::from_secs(2);
/// How many deliveries end at once.
const STEP: u32 = 100;
/// How many looks there are between two looks at the steps of live tails: whoever follows forgets
/// them too, and this is for when nobody does.
const STEPS_EACH: u32 = 150;
/// How long a live tail may go back; see `console/src/tail.rs`.
const STEPS_KEPT: SignedDuration = SignedDuration::from_mins(5);

/// Ends what was left behind, until `stop`.
pub(crate) async fn run(parts: &Parts, stop: &CancellationToken) {
    let looking = async {
        for round in 0_u32.. {
            if let Err(error) = look(parts, round, Timestamp::now()).await {
                debug!(%error, "listeners could not be looked through");
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    stop.run_until_cancelled(looking).await;
}

async fn look(parts: &Parts, round: u32, now: Timestamp) -> Result<(), Error> {
    for id in parts.store.end_listeners(now).await? {
        info!(subscription_id = %id, "a listener ended: nothing was heard of it");
    }
    while parts.store.cancel_for_nobody(now, STEP).await? > 0 {}
    if !round.is_multiple_of(STEPS_EACH) {
        return Ok(());
    }
    let before = now.saturating_sub(STEPS_KEPT).unwrap_or(now);
    parts.store.forget_steps(before).await.map(drop)
}
