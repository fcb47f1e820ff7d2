//! Whether a subscription wants an event that matched it. Pure; called by the deliverer, and by
//! whoever explains.

use crate::{event::Event, fault::Fault, subscription::FilterSpec};

/// A filter made ready: lists hashed, the expression compiled. Cheap to share between threads.
#[derive(Debug)]
pub struct Filter {}

/// The clause that stopped an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// `actions`, `statuses`, `changed_fields` or `where`.
    pub clause: &'static str,
    /// What was wanted and what was found, in one sentence without payload.
    pub detail: String,
}

impl Filter {
    /// Makes a filter ready, or names every clause that cannot be (pointers relative to the
    /// filter object: `/where`, `/actions/0`).
    pub fn compile(spec: &FilterSpec) -> Result<Self, Vec<Fault>> {
        let _ = spec;
        todo!("event: filters")
    }

    /// `Ok` when every clause holds. A missing field makes a clause false, never an error. Bounded:
    /// an expression that would cost too much does not hold, and says so.
    pub fn judge(&self, event: &Event) -> Result<(), Stopped> {
        let _ = event;
        todo!("event: filters")
    }
}
