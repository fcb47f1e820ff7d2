//! The state machine, step by step, with times made up.

use proptest::prelude::*;

use super::*;

const QUICK: Duration = Duration::from_millis(10);

fn health(window_max: u32) -> Health {
    Health::new(Bounds {
        window_max,
        failures_max: 4,
        pause_max: Duration::from_secs(60),
    })
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn the_window_starts_small_doubles_per_round_and_stops_at_its_bound() {
    let now = Instant::now();
    let mut health = health(16);
    assert_eq!(health.window(), 4);
    for wider in [8, 16, 16] {
        for _ in 0..health.window() {
            health.record(now, Sign::Well, QUICK, 0.0);
        }
        assert_eq!(health.window(), wider);
    }
    assert_eq!(self::health(2).window(), 2);
}

#[test]
fn what_fails_together_halves_the_window_once_and_it_regrows_by_one_per_round() {
    let now = Instant::now();
    let mut health = health(16);
    for _ in 0..12 {
        health.record(now, Sign::Well, QUICK, 0.0);
    }
    assert_eq!(health.window(), 16);
    for _ in 0..8 {
        health.record(now, Sign::Failing, QUICK, 0.0);
    }
    assert_eq!(health.window(), 8);
    health.record(now, Sign::Failing, QUICK, 0.0);
    assert_eq!(
        health.window(),
        4,
        "a whole window finished since, and it still fails"
    );
    for _ in 0..5 {
        health.record(now, Sign::Well, QUICK, 0.0);
    }
    assert_eq!(health.window(), 5);
}

#[test]
fn a_slow_endpoint_gets_no_wider_window() {
    let now = Instant::now();
    let mut health = health(16);
    for _ in 0..100 {
        health.record(now, Sign::Well, seconds(5), 0.0);
    }
    assert_eq!(health.window(), 4);
    assert!(health.expected_wait(0) > seconds(1));
    assert!(health.expected_wait(7) > seconds(9));
}

#[test]
fn timeouts_in_a_row_open_the_breaker_and_its_pauses_double_up_to_the_bound() {
    let mut now = Instant::now();
    let mut health = health(16);
    for _ in 0..3 {
        health.record(now, Sign::Unreachable, seconds(20), 0.0);
        assert_eq!(health.breaker(), Breaker::Closed);
    }
    health.record(now, Sign::Unreachable, seconds(20), 0.0);
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(health.breaker(), Breaker::Open);
        assert_eq!(health.window(), 1);
        assert_eq!(health.admit(now), Err((Cause::Breaker, seconds(pause))));
        now += seconds(pause);
        assert_eq!(health.admit(now), Ok(()));
        assert_eq!(health.breaker(), Breaker::HalfOpen);
        health.record(now, Sign::Unreachable, seconds(20), 0.0);
    }
}

#[test]
fn late_failures_of_what_was_under_way_do_not_prolong_the_pause() {
    let now = Instant::now();
    let mut health = health(16);
    for _ in 0..16 {
        health.record(now, Sign::Unreachable, seconds(20), 0.0);
    }
    assert_eq!(health.admit(now), Err((Cause::Breaker, seconds(1))));
}

#[test]
fn one_answer_closes_the_breaker_and_the_window_regrows_slowly() {
    let mut now = Instant::now();
    let mut health = health(16);
    for _ in 0..4 {
        health.record(now, Sign::Unreachable, seconds(20), 0.0);
    }
    now += seconds(1);
    assert_eq!(health.admit(now), Ok(()));
    health.record(now, Sign::Well, QUICK, 0.0);
    assert_eq!(health.breaker(), Breaker::Closed);
    assert_eq!(health.window(), 2);
    health.record(now, Sign::Well, QUICK, 0.0);
    assert_eq!(health.window(), 2);
}

#[test]
fn answers_that_are_no_success_neither_open_the_breaker_nor_count_in_the_row() {
    let now = Instant::now();
    let mut health = health(16);
    for sign in [Sign::Answering, Sign::Failing] {
        for _ in 0..20 {
            health.record(now, Sign::Unreachable, QUICK, 0.0);
            health.record(now, Sign::Unreachable, QUICK, 0.0);
            health.record(now, sign, QUICK, 0.0);
        }
        assert_eq!(health.breaker(), Breaker::Closed);
        assert_eq!(health.admit(now), Ok(()));
    }
}

#[test]
fn who_was_away_for_long_is_let_through_to_by_and_by_and_who_was_not_is_not() {
    for (away, recovers) in [(1, false), (60, true)] {
        let now = Instant::now();
        let mut health = health(16);
        for _ in 0..4 {
            health.record(now, Sign::Unreachable, QUICK, 0.0);
        }
        assert_eq!(health.breaker(), Breaker::Open);
        let back = now + seconds(away);
        assert_eq!(health.pass(back), Ok(()), "one goes to see");
        health.record(back, Sign::Well, QUICK, 0.0);
        let passed = (0..50).filter(|_| health.pass(back).is_ok()).count();
        assert_eq!(passed, if recovers { 1 } else { 50 }, "away for {away} s");
        let calm = back + seconds(120);
        let passed = (0..50).filter(|_| health.pass(calm).is_ok()).count();
        assert_eq!(passed, 50, "a recovery ends");
    }
}

#[test]
fn a_pause_the_endpoint_asked_for_is_kept_within_a_bound() {
    let now = Instant::now();
    let mut health = health(16);
    health.record(now, Sign::AskedPause(seconds(30)), QUICK, 0.0);
    assert_eq!(health.admit(now), Err((Cause::Throttled, seconds(30))));
    health.record(now, Sign::AskedPause(seconds(5)), QUICK, 0.0);
    let refused = health.admit(now).expect_err("the longer one holds");
    assert_eq!((refused.0, refused.1.as_secs()), (Cause::Throttled, 30));
    assert_eq!(health.admit(now + seconds(30)), Ok(()));
    health.record(now, Sign::AskedPause(seconds(86_400)), QUICK, 0.0);
    assert_eq!(health.admit(now), Err((Cause::Throttled, QUIET_MAX)));
    health.record(now, Sign::Well, QUICK, 0.0);
    assert_eq!(health.admit(now), Ok(()), "it takes deliveries again");
}

#[test]
fn nobody_queues_behind_one_who_waited_in_vain_while_nothing_finished() {
    let mut now = Instant::now();
    let mut health = health(16);
    assert_eq!(
        health.expected_wait(1000),
        Duration::ZERO,
        "nothing is known yet"
    );
    health.waited_in_vain(now, seconds(2));
    assert_eq!(health.expected_wait(0), Duration::MAX);
    health.record(now, Sign::Well, QUICK, 0.0);
    assert!(health.expected_wait(0) < QUICK);
    now += seconds(1);
    health.waited_in_vain(now, seconds(2));
    assert!(
        health.expected_wait(0) < QUICK,
        "it is busy, and something finished meanwhile"
    );
    now += seconds(1);
    health.waited_in_vain(now, seconds(2));
    assert_eq!(health.expected_wait(0), Duration::MAX);
}

proptest! {
    #[test]
    fn the_window_stays_within_its_bounds_and_a_pause_ends(
        window_max in 1_u32..256,
        steps in prop::collection::vec((0_u8..5, 0_u64..40_000, 0.0_f64..1.0), 0..200),
    ) {
        let mut now = Instant::now();
        let mut health = health(window_max);
        for (sign, took_ms, jitter) in steps {
            let sign = match sign {
                0 => Sign::Well,
                1 => Sign::Answering,
                2 => Sign::Failing,
                3 => Sign::Unreachable,
                _ => Sign::AskedPause(Duration::from_millis(took_ms)),
            };
            now += Duration::from_millis(took_ms);
            health.record(now, sign, Duration::from_millis(took_ms), jitter);
            let window = u32::try_from(health.window()).expect("small");
            prop_assert!((1..=window_max).contains(&window));
            if let Err((_, pause)) = health.admit(now) {
                prop_assert!(pause <= QUIET_MAX);
            }
        }
        prop_assert_eq!(health.admit(now + QUIET_MAX), Ok(()));
    }
}
