//! What a simulation sets for its own thread: the clock, what chance decides, and the bug that is
//! planted to see whether it is found. Only there with the feature `sim`, which no binary of ours
//! asks for; outside a simulation's thread nothing of it has any effect.

use std::{cell::RefCell, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// How one simulation is set.
#[derive(Debug, Clone)]
pub struct Setting {
    /// What the clock says when it begins.
    pub begins: Timestamp,
    /// Decides what the stages leave to chance.
    pub seed: u64,
    /// The bug that is planted in this run, by its name.
    pub planted: Option<&'static str>,
}

#[derive(Debug)]
struct Running {
    setting: Setting,
    since: Instant,
    drawn: u64,
}

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// The setting holds for this thread until this is dropped.
#[derive(Debug)]
pub struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        RUNNING.with_borrow_mut(|running| *running = None);
    }
}

/// Begins a simulation in this thread. Its clock follows tokio's, which is paused in a simulation
/// and goes on when everybody waits.
pub fn enter(setting: Setting) -> Entered {
    let running = Running {
        setting,
        since: Instant::now(),
        drawn: 0,
    };
    RUNNING.with_borrow_mut(|slot| *slot = Some(running));
    Entered(())
}

/// The simulation's time; `None` outside one.
pub(crate) fn now() -> Option<Timestamp> {
    RUNNING.with_borrow(|running| {
        let running = running.as_ref()?;
        if running.setting.planted == Some("clock of the machine") {
            return None;
        }
        let passed = SignedDuration::try_from(running.since.elapsed()).ok()?;
        running.setting.begins.checked_add(passed).ok()
    })
}

/// A number below `bound` that the seed decides; `None` outside a simulation.
pub(crate) fn draw(bound: u64) -> Option<u64> {
    RUNNING.with_borrow_mut(|running| {
        let running = running.as_mut()?;
        running.drawn += 1;
        Some(mixed(running.setting.seed ^ mixed(running.drawn)) % bound.max(1))
    })
}

/// Whether this bug is planted here. Bugs are planted in debug builds only.
pub fn planted(bug: &str) -> bool {
    cfg!(debug_assertions)
        && RUNNING.with_borrow(|running| {
            running
                .as_ref()
                .is_some_and(|running| running.setting.planted == Some(bug))
        })
}

/// How long ago the simulation began; `None` outside one.
pub fn passed() -> Option<Duration> {
    RUNNING.with_borrow(|running| running.as_ref().map(|running| running.since.elapsed()))
}

/// Spreads a number over all bits (splitmix64).
fn mixed(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
