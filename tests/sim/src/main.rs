//! Deterministic simulation: the router, the deliverers and the recorder as they are, on a simulated
//! broker, receivers, subscriptions, store and clock. One seed decides everything; the law is checked
//! at every step and at the end.
//!
//! `SIM_SEED=17 cargo nextest run -p postrider-sim one_seed --no-capture` shows one seed step by
//! step; `SIM_SEEDS=200000` runs more of them.

mod book;
mod chance;
mod content;
mod link;
mod memory;
mod plan;
mod plants;
mod receivers;
mod run;
mod world;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use dialect::Dialects;

use book::Counts;
use plants::Plant;
use run::{Report, run};

/// How many seeds a run of the tests has.
const SEEDS: u64 = 2_000;
/// Within so many seeds a planted bug is found.
const FOUND_WITHIN: u64 = 500;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number of a seed"))
}

/// Runs seeds on all cores until one breaks the law: that one, or what all of them had.
fn seeds(count: u64, plant: Option<Plant>) -> Result<Counts, Box<(u64, Report)>> {
    let dialects = Arc::new(Dialects::builtin());
    let next = AtomicU64::new(0);
    let end = AtomicU64::new(count);
    let all = Mutex::new(Counts::default());
    let found: Mutex<Option<(u64, Report)>> = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end.load(Ordering::Relaxed) {
                        return;
                    }
                    let report = run(seed, plant, &dialects, false);
                    all.lock().expect("not poisoned").add(&report.counts);
                    if !report.breaches.is_empty() {
                        let mut found = found.lock().expect("not poisoned");
                        if found.as_ref().is_none_or(|(first, _)| seed < *first) {
                            end.fetch_min(seed, Ordering::Relaxed);
                            *found = Some((seed, report));
                        }
                    }
                }
            });
        }
    });
    let counts = *all.lock().expect("not poisoned");
    match found.into_inner().expect("not poisoned") {
        Some(found) => Err(Box::new(found)),
        None => Ok(counts),
    }
}

/// The end of a run that broke the law, in words.
fn story(seed: u64, report: &Report) -> String {
    let dialects = Arc::new(Dialects::builtin());
    let again = run(seed, None, &dialects, true);
    let here = again.trace.iter().position(|line| line.contains("!!"));
    let end = here.map_or(again.trace.len(), |place| place + 1);
    let skipped = end.saturating_sub(60);
    format!(
        "seed {seed} breaks the law:\n  {}\nthe last of its steps:\n{}\n\
         see it whole: SIM_SEED={seed} cargo nextest run -p postrider-sim one_seed --no-capture",
        report.breaches.join("\n  "),
        again.trace[skipped..end].join("\n"),
    )
}

#[test]
fn no_seed_breaks_the_law() {
    let count = number("SIM_SEEDS").unwrap_or(SEEDS);
    let begun = Instant::now();
    match seeds(count, None) {
        Ok(counts) => println!("{count} seeds in {:?}: {counts:?}", begun.elapsed()),
        Err(found) => panic!("{}", story(found.0, &found.1)),
    }
}

#[test]
fn one_seed() {
    let dialects = Arc::new(Dialects::builtin());
    let seed = number("SIM_SEED").unwrap_or(0);
    let report = run(seed, None, &dialects, true);
    for line in &report.trace {
        println!("{line}");
    }
    assert!(!report.trace.is_empty(), "a run tells what happened");
    assert!(report.breaches.is_empty(), "{:#?}", report.breaches);
}

#[test]
fn the_same_seed_runs_the_same() {
    let dialects = Arc::new(Dialects::builtin());
    for seed in 0..60 {
        let [first, second] = [0, 1].map(|_| run(seed, None, &dialects, true));
        let differs = first
            .trace
            .iter()
            .zip(&second.trace)
            .find(|(first, second)| first != second);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.sum, second.sum, "seed {seed}");
    }
}

/// Bugs are planted in debug builds only.
#[cfg(debug_assertions)]
#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for plant in plants::ALL {
        match seeds(FOUND_WITHIN, Some(plant)) {
            Ok(_) => missed.push(plant),
            Err(found) => println!("{plant:?}: seed {}: {}", found.0, found.1.breaches[0]),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
