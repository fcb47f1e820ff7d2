//! How long a delivery that cannot be attempted now waits on the retry ladder. Pure.
//!
//! Parking is no attempt. The pause grows with how often in a row it happened, so that a backlog
//! nobody can take costs almost nothing, and is spread, so that it does not come back as one wave.

use std::time::Duration;

/// Why a delivery is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its subscription is paused or disabled.
    Held,
    /// Its endpoint has been timing out or refusing connections.
    Breaker,
    /// Its endpoint asked for a pause (`Retry-After`).
    Throttled,
    /// Its endpoint was away for long, and what waits for it is let through by and by.
    Recovering,
    /// Its endpoint has as many attempts under way as it takes.
    Busy,
    /// As many attempts as may be are under way to its endpoint's address, over all subscriptions.
    Crowded,
    /// Its subscription's `rate_limit` is used up.
    RateLimit,
    /// The loader of a view that it lacks has as many requests under way as it takes, or has been
    /// timing out.
    Loader,
    /// This process does not know its subscription yet.
    Snapshot,
    /// Its subscription's `ordering` asks what has overtaken it, and the store does not answer.
    Store,
    /// This process is stopping.
    Stopping,
}

impl Cause {
    pub(crate) const ALL: [Self; 11] = [
        Self::Held,
        Self::Breaker,
        Self::Throttled,
        Self::Recovering,
        Self::Busy,
        Self::Crowded,
        Self::RateLimit,
        Self::Loader,
        Self::Snapshot,
        Self::Store,
        Self::Stopping,
    ];

    /// The word in logs and in `postrider_parked_total{cause}`.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Breaker => "breaker",
            Self::Throttled => "throttled",
            Self::Recovering => "recovering",
            Self::Busy => "busy",
            Self::Crowded => "crowded",
            Self::RateLimit => "rate_limit",
            Self::Loader => "loader",
            Self::Snapshot => "snapshot",
            Self::Store => "store",
            Self::Stopping => "stopping",
        }
    }
}

/// 1, 2, 4, 8 s, then 10 s each while a person may be waiting for a resume, then 30 s each until
/// an hour is over, then doubling up to 10 min.
const DOUBLINGS: u32 = 4;
const BRISK: Duration = Duration::from_secs(10);
/// 15 s of doublings and 30 times 10 s are about five minutes.
const BRISK_UNTIL: u32 = DOUBLINGS + 30;
const STEADY: Duration = Duration::from_secs(30);
/// Those and 110 times 30 s are an hour.
const STEADY_UNTIL: u32 = BRISK_UNTIL + 110;
const LONGEST: Duration = Duration::from_secs(600);
/// A pause is lengthened by up to this share of itself.
const SPREAD: f64 = 0.25;

/// The pause before a delivery that was parked `parked` times in a row is looked at again, and at
/// least `least`. `jitter` is in `[0, 1)` and only ever lengthens it.
pub(crate) fn pause(parked: u32, least: Duration, jitter: f64) -> Duration {
    let steps = |n: u32| 2_u32.saturating_pow(n);
    let base = if parked < DOUBLINGS {
        Duration::from_secs(1) * steps(parked)
    } else if parked < BRISK_UNTIL {
        BRISK
    } else if parked < STEADY_UNTIL {
        STEADY
    } else {
        STEADY
            .saturating_mul(steps((parked - STEADY_UNTIL).saturating_add(1)))
            .min(LONGEST)
    };
    base.max(least)
        .mul_f64(1.0 + SPREAD * jitter.clamp(0.0, 1.0))
}

/// A number in `[0, 1)` drawn from what it is for: spread over deliveries, the same when asked
/// again, and no random source to carry along.
pub(crate) fn jitter(delivery: &str, turn: u32) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&turn.to_le_bytes());
    hasher.update(delivery.as_bytes());
    let bytes = hasher.finalize();
    let [a, b, c, d, ..] = *bytes.as_bytes();
    f64::from(u32::from_le_bytes([a, b, c, d])) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_10_s_for_5_min_then_30_s_for_an_hour_then_to_10_min() {
        let seconds = |parked| pause(parked, Duration::ZERO, 0.0).as_secs();
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 33, 34, 35].map(seconds),
            [1, 2, 4, 8, 10, 10, 10, 30, 30]
        );
        let first_minutes: u64 = (0..BRISK_UNTIL).map(seconds).sum();
        assert_eq!(first_minutes, 315);
        let first_hour: u64 = (0..STEADY_UNTIL).map(seconds).sum();
        assert_eq!(first_hour, 3615);
        assert_eq!(
            [144, 145, 146, 147, 148, 149, u32::MAX].map(seconds),
            [60, 120, 240, 480, 600, 600, 600]
        );
    }

    #[test]
    fn a_pause_is_never_shorter_than_asked_and_only_ever_lengthened() {
        assert_eq!(
            pause(0, Duration::from_secs(40), 0.0),
            Duration::from_secs(40)
        );
        assert_eq!(
            pause(9, Duration::from_secs(4), 0.0),
            Duration::from_secs(10)
        );
        assert_eq!(
            pause(0, Duration::from_secs(40), 1.0),
            Duration::from_secs(50)
        );
    }

    #[test]
    fn jitter_is_within_its_bounds_spread_and_repeatable() {
        let drawn: Vec<f64> = (0..1000).map(|turn| jitter("dlv_1", turn)).collect();
        assert!(drawn.iter().all(|j| (0.0..1.0).contains(j)));
        let mean = drawn.iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
        assert_eq!(jitter("dlv_1", 7).to_bits(), jitter("dlv_1", 7).to_bits());
        assert_ne!(jitter("dlv_1", 7).to_bits(), jitter("dlv_2", 7).to_bits());
    }
}
