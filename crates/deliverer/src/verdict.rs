//! What follows from an attempt: delivered, tried again, or dead. Pure, total, and never earlier
//! than the policy's schedule.

use std::time::Duration;

use event::{
    reason::{AttemptError, DeadReason},
    retry::RetryPolicy,
    retry_after,
};
use jiff::{SignedDuration, Timestamp};

use crate::outcome::Outcome;

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It arrived.
    Delivered,
    /// It is tried again then.
    RetryAt(Timestamp),
    /// It is not tried again.
    Dead(DeadReason, String),
}

/// What an attempt is judged against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case<'a> {
    /// Attempts made, this one included.
    pub(crate) attempts: u32,
    /// The subscription's policy.
    pub(crate) policy: &'a RetryPolicy,
    /// Statuses that the dialect's platform never retries.
    pub(crate) not_retried: &'a [u16],
    /// A test: the policy does not matter, there is one attempt.
    pub(crate) once: bool,
    /// The event's `expires_at`.
    pub(crate) expires_at: Option<Timestamp>,
    /// When the attempt ended.
    pub(crate) now: Timestamp,
    /// In `[0, 1)`: by how much of [`JITTER`] the wait grows.
    pub(crate) jitter: f64,
}

/// A wait grows by at most this share of itself, so that what failed together does not come back
/// together. It never shrinks.
const JITTER: f64 = 0.1;
/// The longest an endpoint may put a retry off by `Retry-After`.
const RETRY_AFTER_MAX: SignedDuration = SignedDuration::from_hours(24);
/// A target we may not dial stays so: a few tries cover an operator's mistake, more are noise.
const NOT_ALLOWED_TRIES: u32 = 3;
/// "Too large" and "unsupported media type" speak of the request itself, which does not change.
const UNFIT_TRIES: u32 = 3;

/// Judges an attempt.
pub(crate) fn decide(outcome: &Outcome, case: &Case<'_>) -> Verdict {
    let Some(error) = outcome.error else {
        return Verdict::Delivered;
    };
    if let Some((reason, detail)) = final_by_itself(outcome, error, case) {
        return Verdict::Dead(reason, detail);
    }
    let delay = case.policy.delay_after(case.attempts);
    let Some(delay) = delay.filter(|_| !case.once) else {
        let tried = match case.attempts {
            1 => "the only attempt".into(),
            n => format!("all {n} attempts"),
        };
        return Verdict::Dead(
            DeadReason::Exhausted,
            format!("{tried} failed, the last with {error}: {}", outcome.detail),
        );
    };
    let due = due(case, delay, asked_pause(outcome, case.now));
    match case.expires_at {
        Some(end) if end <= due => Verdict::Dead(
            DeadReason::Expired,
            format!("the event expires at {end}, before the next attempt would be due"),
        ),
        _ => Verdict::RetryAt(due),
    }
}

/// The ends that no policy puts off.
fn final_by_itself(
    outcome: &Outcome,
    error: AttemptError,
    case: &Case<'_>,
) -> Option<(DeadReason, String)> {
    match (outcome.status, error) {
        (Some(410), _) => Some((
            DeadReason::Gone,
            "the endpoint answered 410: it is gone for good".into(),
        )),
        (Some(status), _) if case.not_retried.contains(&status) => Some((
            DeadReason::Refused,
            format!("the endpoint answered {status}, which this dialect does not retry"),
        )),
        (Some(status @ (413 | 415)), _) if case.attempts >= UNFIT_TRIES => Some((
            DeadReason::Refused,
            format!("the endpoint answered {status}, and the request cannot change"),
        )),
        (_, AttemptError::TargetNotAllowed) if case.attempts >= NOT_ALLOWED_TRIES => Some((
            DeadReason::TargetNotAllowed,
            "the target is not one we may dial".into(),
        )),
        _ => None,
    }
}

fn due(case: &Case<'_>, delay: Duration, asked: Option<SignedDuration>) -> Timestamp {
    let stretched = |wait: Duration| {
        let wait = wait.mul_f64(1.0 + JITTER * case.jitter.clamp(0.0, 1.0));
        SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX)
    };
    let scheduled = stretched(delay);
    let asked = asked.map_or(SignedDuration::ZERO, |pause| {
        stretched(pause.unsigned_abs()).min(RETRY_AFTER_MAX)
    });
    #[cfg(feature = "sim")]
    let scheduled = match broker::sim::planted("retry-after instead of the schedule") {
        true if asked > SignedDuration::ZERO => SignedDuration::ZERO,
        _ => scheduled,
    };
    case.now
        .saturating_add(scheduled.max(asked))
        .unwrap_or(Timestamp::MAX)
}

/// How long the endpoint asked to be left alone: `Retry-After` on 429 and 503, bounded.
pub(crate) fn asked_pause(outcome: &Outcome, now: Timestamp) -> Option<SignedDuration> {
    if !matches!(outcome.status, Some(429 | 503)) {
        return None;
    }
    let pause = retry_after::read(outcome.retry_after.as_deref()?, now)?;
    Some(pause.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests;
