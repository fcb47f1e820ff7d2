//! What has to be done now and then: days made ahead, old ones forgotten, endpoints judged that
//! have long failed. Every recorder does it; side by side it does no harm.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use store::{Error, Kept};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Parts, log::judge};

/// How often.
const EVERY: Duration = Duration::from_secs(3600);
/// How soon again where the store was away.
const AGAIN: Duration = Duration::from_secs(60);
/// What a step of forgetting leaves to everybody else who writes.
const PAUSE: Duration = Duration::from_millis(20);

/// Keeps up until `stop`.
pub(crate) async fn run(parts: &Parts, stop: &CancellationToken) {
    let keeping = async {
        loop {
            let wait = match round(parts, Timestamp::now()).await {
                Ok(()) => EVERY,
                Err(error) => {
                    warn!(%error, "the upkeep of the store was not finished, trying again");
                    AGAIN
                }
            };
            tokio::time::sleep(wait).await;
        }
    };
    stop.run_until_cancelled(keeping).await;
}

async fn round(parts: &Parts, now: Timestamp) -> Result<(), Error> {
    parts.store.prepare_days(now).await?;
    for kept in Kept::ALL {
        let Some(keep) = parts.retention.of(kept) else {
            continue;
        };
        let keep = SignedDuration::try_from(keep).unwrap_or(SignedDuration::MAX);
        let before = now.saturating_sub(keep).unwrap_or(Timestamp::MIN);
        let mut steps = 0_u64;
        while parts.store.forget(kept, before).await? > 0 {
            steps += 1;
            tokio::time::sleep(PAUSE).await;
        }
        if steps > 0 {
            info!(what = kept.word(), %before, steps, "forgot what is past its retention");
        }
    }
    parts.store.forget_health().await?;
    // Whoever recorded the last failure of a run may have been killed before judging it.
    let mut after = None;
    loop {
        let failing = parts.store.failing(after.as_ref(), 500).await?;
        judge(&parts.into(), &failing).await?;
        match failing.last() {
            Some(last) => after = Some(last.clone()),
            None => return Ok(()),
        }
    }
}
