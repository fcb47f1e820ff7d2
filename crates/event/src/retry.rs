//! When to try again: named policies, explicit delays, or a geometric series.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When to try again after a failed attempt. Written as a name (`"standard"`), as
/// `{"delays": ["5s", …]}`, or as `{"attempts", "first", "factor", "cap"}`, and shown back so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "serde_json::Value", into = "serde_json::Value")]
pub struct RetryPolicy {
    /// As the person wrote it.
    written: serde_json::Value,
    /// `delays[n]` is the wait after failed attempt `n + 1`; one fewer than the attempts.
    delays: Vec<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        todo!("event: the standard policy")
    }
}

impl RetryPolicy {
    /// The wait after `attempts` failed attempts (1 = after the first), without jitter; `None` when
    /// the policy is exhausted.
    pub fn delay_after(&self, attempts: u32) -> Option<Duration> {
        let index = usize::try_from(attempts).ok()?.checked_sub(1)?;
        self.delays.get(index).copied()
    }

    /// How many attempts there are in all.
    pub fn attempts(&self) -> usize {
        self.delays.len() + 1
    }
}

impl TryFrom<serde_json::Value> for RetryPolicy {
    type Error = String;

    fn try_from(written: serde_json::Value) -> Result<Self, String> {
        let _ = written;
        todo!("event: retry policies")
    }
}

impl From<RetryPolicy> for serde_json::Value {
    fn from(policy: RetryPolicy) -> Self {
        policy.written
    }
}
