//! What keeps a backlog from costing much while its endpoint is away, and from flooding it when it
//! is back. Pure: times come in.
//!
//! [`Usual`] knows how much the endpoint took before. [`Bookings`] spreads the looks at deliveries
//! that cannot go now, so that however many there are, only so many a second are looked at.
//! [`Recovery`] lets an endpoint that was away have somewhat more than the usual, and books the
//! rest.

use std::time::Duration;

use tokio::time::Instant;

/// The usual is an average over about so many seconds.
const USUAL_SECONDS: f64 = 60.0;
/// Of an endpoint that is away, or wants to be left alone, so many deliveries are looked at per
/// second: a look costs some 50 us, so a backlog of any size costs about a hundredth of a core.
const LOOKS_PER_SECOND: f64 = 200.0;
/// No delivery is booked further ahead: something may have changed.
const AHEAD_MAX: Duration = Duration::from_secs(600);
/// While it recovers, an endpoint gets so many times the usual: below 2, bursts included.
const SURGE: f64 = 1.8;
/// So many a second flood nobody, however little was usual.
const HARMLESS_PER_SECOND: f64 = 100.0;
/// What an endpoint of which nothing is known gets first; more from second to second.
const FIRST_PER_SECOND: f64 = 10.0;
const GROWTH_PER_SECOND: f64 = 1.05;
/// The part of that which is given to what waits. The rest is for what comes new.
const BACKLOG_SHARE: f64 = 0.5;
/// So much of a second's allowance may go at once.
const BURST_SECONDS: f64 = 0.1;
/// A recovery is over so long after the last delivery that it made wait was due.
const CALM: Duration = Duration::from_secs(10);

/// How many deliveries an endpoint takes per second when all is well.
#[derive(Debug, Default)]
pub(super) struct Usual {
    /// Successes, the older the less they count.
    weight: f64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Usual {
    pub(super) fn count(&mut self, now: Instant) {
        self.first.get_or_insert(now);
        let last = self.last.replace(now).unwrap_or(now);
        let since = now.saturating_duration_since(last).as_secs_f64();
        self.weight = self.weight * (-since / USUAL_SECONDS).exp() + 1.0;
    }

    /// As of the last success: what an outage kept away does not count.
    pub(super) fn per_second(&self) -> f64 {
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return 0.0;
        };
        // What is known of a young endpoint is not thinned by the time before it was known.
        let known = last.saturating_duration_since(first).as_secs_f64().max(1.0);
        self.weight / (USUAL_SECONDS * (1.0 - (-known / USUAL_SECONDS).exp()))
    }
}

/// Times given to deliveries that cannot go now: one after the other.
#[derive(Debug, Default)]
pub(super) struct Bookings {
    next: Option<Instant>,
}

impl Bookings {
    /// How long one more has to wait, where none may go before `earliest` and `per_second` may
    /// from then on.
    pub(super) fn book(&mut self, now: Instant, earliest: Instant, per_second: f64) -> Duration {
        let at = self.next.map_or(earliest, |next| next.max(earliest));
        let at = at.min(now + AHEAD_MAX).max(earliest);
        self.next = Some(at + Duration::from_secs_f64(1.0 / per_second.max(1.0)));
        at.saturating_duration_since(now)
    }

    /// The same for an endpoint that is away until `earliest`.
    pub(super) fn look_again(&mut self, now: Instant, earliest: Instant, usual: f64) -> Duration {
        self.book(now, earliest, usual.max(LOOKS_PER_SECOND))
    }
}

/// An endpoint that was away for long and is back.
#[derive(Debug)]
pub(super) struct Recovery {
    per_second: f64,
    most_per_second: f64,
    /// Attempts that may be made now.
    allowed: f64,
    counted: Instant,
    ends: Instant,
}

impl Recovery {
    pub(super) fn begin(now: Instant, usual: f64) -> Self {
        let most_per_second = (SURGE * usual).max(HARMLESS_PER_SECOND);
        Self {
            per_second: (SURGE * usual).max(FIRST_PER_SECOND),
            most_per_second,
            allowed: 1.0,
            counted: now,
            ends: now + CALM,
        }
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.ends
    }

    /// Whether an attempt could be made now, or how long it has to wait.
    pub(super) fn admit(&mut self, now: Instant, bookings: &mut Bookings) -> Result<(), Duration> {
        self.count(now);
        if self.allowed >= 1.0 {
            return Ok(());
        }
        let earliest = now + Duration::from_secs(1);
        let wait = bookings.book(now, earliest, self.most_per_second * BACKLOG_SHARE);
        self.ends = self.ends.max(now + wait + CALM);
        Err(wait)
    }

    /// The same, and takes it.
    pub(super) fn pass(&mut self, now: Instant, bookings: &mut Bookings) -> Result<(), Duration> {
        self.admit(now, bookings)?;
        self.allowed -= 1.0;
        Ok(())
    }

    fn count(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.counted).as_secs_f64();
        self.counted = now;
        let grown = self.per_second * GROWTH_PER_SECOND.powf(seconds);
        self.per_second = grown.min(self.most_per_second);
        let burst = (self.per_second * BURST_SECONDS).max(1.0);
        self.allowed = (self.allowed + seconds * self.per_second).min(burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(begun: Instant, seconds: f64) -> Instant {
        begun + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_usual_is_known_soon_and_an_outage_does_not_thin_it() {
        let begun = Instant::now();
        let mut usual = Usual::default();
        assert!(usual.per_second() < f64::EPSILON);
        for n in 0..500 {
            usual.count(after(begun, f64::from(n) / 100.0));
        }
        let known = usual.per_second();
        assert!(
            (90.0..=115.0).contains(&known),
            "{known} after 5 s of 100/s"
        );
        // An hour of nothing, and one success.
        usual.count(after(begun, 3600.0));
        assert!(usual.per_second() < 1.0, "{}", usual.per_second());
    }

    #[test]
    fn however_many_wait_only_so_many_are_looked_at_and_none_is_forgotten() {
        let now = Instant::now();
        let back = after(now, 30.0);
        let mut bookings = Bookings::default();
        let waits: Vec<f64> = (0..150_000)
            .map(|_| bookings.look_again(now, back, 0.0).as_secs_f64())
            .collect();
        assert!((waits[0] - 30.0).abs() < 1e-6, "the first looks at once");
        assert!((waits[2_000] - 40.0).abs() < 0.1, "{}", waits[2_000]);
        assert!(waits.iter().all(|wait| (30.0..=600.1).contains(wait)));
        // An endpoint that takes more is looked at more often.
        let mut bookings = Bookings::default();
        let last = (0..5_000).map(|_| bookings.look_again(now, back, 1_000.0));
        assert!(
            last.last()
                .is_some_and(|wait| wait < Duration::from_secs(36))
        );
    }

    /// A crowd at an endpoint that is back: what passes in each second, until all have.
    fn crowd(usual: f64, backlog: usize, live_per_second: usize, seconds: usize) -> Vec<usize> {
        let begun = Instant::now();
        let mut recovery = Recovery::begin(begun, usual);
        let mut bookings = Bookings::default();
        let mut waiting: Vec<Duration> = vec![Duration::ZERO; backlog];
        let mut passed = vec![0; seconds];
        for tick in 0..seconds * 100 {
            let since = Duration::from_millis(10 * tick as u64);
            let now = begun + since;
            let live = live_per_second * (tick + 1) / 100 - live_per_second * tick / 100;
            waiting.extend(std::iter::repeat_n(since, live));
            for due in &mut waiting {
                if *due > since {
                    continue;
                }
                match recovery.pass(now, &mut bookings) {
                    Ok(()) => {
                        passed[tick / 100] += 1;
                        *due = Duration::MAX;
                    }
                    Err(wait) => *due = since + wait,
                }
            }
            waiting.retain(|due| *due < Duration::MAX);
        }
        passed
    }

    #[test]
    fn who_is_back_gets_less_than_twice_the_usual_and_in_the_end_everything() {
        let (usual, backlog, seconds) = (200, 6_000, 60);
        let passed = crowd(f64::from(usual), backlog, usual as usize, seconds);
        assert!(
            passed.iter().all(|n| *n <= 2 * usual as usize),
            "{passed:?}"
        );
        let all: usize = passed.iter().sum();
        assert_eq!(all, backlog + usual as usize * seconds, "{passed:?}");
    }

    #[test]
    fn who_is_unknown_gets_a_little_and_then_more() {
        let passed = crowd(0.0, 5_000, 0, 60);
        assert!((1..=11).contains(&passed[0]), "{passed:?}");
        assert!(passed.iter().all(|n| *n <= 111), "{passed:?}");
        assert!(passed[59] >= 45, "{passed:?}");
    }

    #[test]
    fn a_recovery_ends_when_nobody_has_waited_for_a_while() {
        let now = Instant::now();
        let mut bookings = Bookings::default();
        let mut recovery = Recovery::begin(now, 0.0);
        assert!(recovery.pass(now, &mut bookings).is_ok());
        assert!(!recovery.is_over(now));
        let wait = recovery.pass(now, &mut bookings).expect_err("one a while");
        let due = now + wait;
        assert!(!recovery.is_over(due));
        assert!(recovery.is_over(due + CALM));
    }
}
