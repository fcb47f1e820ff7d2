//! `[retention]` of the settings.

use std::time::Duration;

use store::Kept;

/// How long each kind of record is kept. `0s` keeps it for ever.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Events and their payloads.
    #[serde(with = "humantime_serde")]
    pub events: Duration,
    /// Deliveries and their attempts.
    #[serde(with = "humantime_serde")]
    pub deliveries: Duration,
    /// Dead letters.
    #[serde(with = "humantime_serde")]
    pub dead_letters: Duration,
    /// Quarantined messages.
    #[serde(with = "humantime_serde")]
    pub quarantine: Duration,
    /// Which versions were sent to subscriptions with `ordering` `latest`, since they were last
    /// asked about; at least 10 days. Those of a paused or disabled one are kept.
    #[serde(with = "humantime_serde")]
    pub versions: Duration,
}

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 86_400)
}

/// Less would forget what is still under way.
const SHORTEST: Duration = days(1);
/// A retry may be 7 days after the attempt before it, and what has overtaken it must be known then.
const SHORTEST_VERSIONS: Duration = days(10);
const LONGEST: Duration = days(3660);

impl Default for Retention {
    fn default() -> Self {
        Self {
            events: days(30),
            deliveries: days(30),
            dead_letters: days(90),
            quarantine: days(30),
            // A dead letter may be redriven for as long as there is one.
            versions: days(90),
        }
    }
}

impl Retention {
    /// How long a kind of record is kept; `None` is for ever.
    pub fn of(&self, kept: Kept) -> Option<Duration> {
        let time = match kept {
            Kept::Events => self.events,
            Kept::Deliveries => self.deliveries,
            Kept::DeadLetters => self.dead_letters,
            Kept::Quarantine => self.quarantine,
            Kept::Versions => self.versions,
        };
        (!time.is_zero()).then_some(time)
    }

    /// What is out of bounds, by key.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let keys = [
            ("retention.events", Kept::Events),
            ("retention.deliveries", Kept::Deliveries),
            ("retention.dead_letters", Kept::DeadLetters),
            ("retention.quarantine", Kept::Quarantine),
            ("retention.versions", Kept::Versions),
        ];
        let shortest = |kept| match kept {
            Kept::Versions => SHORTEST_VERSIONS,
            _ => SHORTEST,
        };
        let wrong = |kept| {
            self.of(kept)
                .is_some_and(|time| !(shortest(kept)..=LONGEST).contains(&time))
        };
        let message = |kept| {
            let days = shortest(kept).as_secs() / 86_400;
            format!("must be from {days}d to 10y, or `0s` for ever")
        };
        keys.into_iter()
            .filter(|(_, kept)| wrong(*kept))
            .map(|(key, kept)| (key, message(kept)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_forgotten_in_its_time_unless_that_is_zero() {
        let retention = Retention {
            quarantine: Duration::ZERO,
            ..Retention::default()
        };
        assert_eq!(retention.of(Kept::Events), Some(days(30)));
        assert_eq!(retention.of(Kept::DeadLetters), Some(days(90)));
        assert_eq!(retention.of(Kept::Quarantine), None);
        assert!(retention.faults().is_empty());
        let hasty = Retention {
            deliveries: Duration::from_secs(3600),
            ..retention
        };
        assert_eq!(hasty.faults()[0].0, "retention.deliveries");
        let shorter_than_a_retry_waits = Retention {
            versions: days(9),
            ..Retention::default()
        };
        let faults = shorter_than_a_retry_waits.faults();
        let told = "must be from 10d to 10y, or `0s` for ever".to_owned();
        assert_eq!(faults, [("retention.versions", told)]);
    }
}
