//! The retry ladder: how a wait of any length is made from queues with one TTL each.
//!
//! TTL expiry is checked at the head of a queue only, so a queue may hold one TTL and no other.
//! A waiting parcel therefore climbs down: it waits in the longest tier that fits, comes back,
//! and waits again until it is due. Pure: it knows no clock and no broker.

use std::time::Duration;

/// One rung: a queue in which every message waits equally long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier {
    /// The routing key on the retry exchange, and the end of the queue's name.
    pub name: &'static str,
    /// How long a message waits there.
    pub wait: Duration,
}

/// The rungs, shortest first.
pub const TIERS: [Tier; 7] = [
    Tier {
        name: "1s",
        wait: Duration::from_secs(1),
    },
    Tier {
        name: "5s",
        wait: Duration::from_secs(5),
    },
    Tier {
        name: "30s",
        wait: Duration::from_secs(30),
    },
    Tier {
        name: "2m",
        wait: Duration::from_secs(2 * 60),
    },
    Tier {
        name: "10m",
        wait: Duration::from_secs(10 * 60),
    },
    Tier {
        name: "1h",
        wait: Duration::from_secs(60 * 60),
    },
    Tier {
        name: "6h",
        wait: Duration::from_secs(6 * 60 * 60),
    },
];

/// So close to its due time a parcel is handed out: another second would make it late instead.
pub const EARLY_MAX: Duration = Duration::from_millis(50);

/// What to do with a parcel that is due in `remaining`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Hand it out.
    Due,
    /// Let it wait here, then ask again.
    Wait(Tier),
}

/// The next step for a parcel that is due in `remaining`.
///
/// It takes the longest tier that fits, and lets one fit that is longer by a quarter of a second
/// or half a per cent: a delay of 30 s of which a millisecond has passed would otherwise take ten
/// steps through 5 s and 1 s instead of one. That is half of the lateness a delivery may have.
pub fn step(remaining: Duration) -> Step {
    if remaining <= EARLY_MAX {
        return Step::Due;
    }
    let fits = remaining + Duration::from_millis(250) + remaining / 200;
    let longest = TIERS.iter().rev().find(|tier| tier.wait <= fits);
    Step::Wait(*longest.unwrap_or(&TIERS[0]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Climbs down from `wait`, losing `hop` on each rung, and says how long it took.
    fn climb(wait: Duration, hop: Duration) -> (Duration, u32) {
        let (mut passed, mut steps) = (Duration::ZERO, 0);
        while let Step::Wait(tier) = step(wait.saturating_sub(passed)) {
            passed += tier.wait + hop;
            steps += 1;
        }
        (passed, steps)
    }

    proptest! {
        #[test]
        fn every_wait_ends_at_its_due_time(ms in 0u64..400_000_000, hop_ms in 0u64..20) {
            let (wait, hop) = (Duration::from_millis(ms), Duration::from_millis(hop_ms));
            let (passed, steps) = climb(wait, hop);
            let late_max = Duration::from_secs(1).max(wait / 100) + hop;
            prop_assert!(passed + EARLY_MAX >= wait, "{passed:?} of {wait:?} is early");
            prop_assert!(passed <= wait + late_max, "{passed:?} of {wait:?} is late");
            prop_assert!(steps < 60, "{steps} steps for {wait:?}");
        }
    }

    #[test]
    fn the_usual_delays_take_one_step_though_a_moment_has_passed() {
        for tier in TIERS {
            let moment = Duration::from_millis(3);
            assert_eq!(step(tier.wait - moment), Step::Wait(tier), "{}", tier.name);
        }
    }

    #[test]
    fn what_is_due_within_a_blink_is_due() {
        assert_eq!(step(Duration::ZERO), Step::Due);
        assert_eq!(step(EARLY_MAX), Step::Due);
        assert_eq!(step(Duration::from_millis(51)), Step::Wait(TIERS[0]));
    }
}
