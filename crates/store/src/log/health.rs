//! How each endpoint's attempts go: failures in a row, and since when.

use std::collections::BTreeMap;

use event::{EventType, SubscriptionId, Tenant, delivery::Purpose, log::LogEntry};
use sqlx::AnyConnection;

use crate::Error;

/// One attempt, as far as health is concerned.
pub(super) struct Turn<'a> {
    pub(super) subscription: &'a SubscriptionId,
    pub(super) tenant: &'a Tenant,
    pub(super) at: i64,
    pub(super) failed: bool,
}

/// Whether an attempt tells of its endpoint's health. A test is somebody trying things out; and if
/// notices counted, a notice that fails would give rise to the next.
pub(super) fn counts(entry: &LogEntry) -> bool {
    entry.purpose != Purpose::Test && !is_notice(&entry.kind)
}

/// Whether an event of this type tells of other deliveries.
pub(crate) fn is_notice(kind: &EventType) -> bool {
    kind.entity() == "postrider" || kind.as_str() == "delivery.dead_lettered"
}

/// A run of failures, or that there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) failures: i64,
    pub(crate) failing_since: Option<i64>,
    pub(crate) last_failure_at: Option<i64>,
    pub(crate) last_success_at: Option<i64>,
    pub(crate) reset_at: Option<i64>,
    pub(crate) warned: i64,
}

/// How old the last success on record may grow before another is worth a write.
const STALE: i64 = 60 * 1_000_000_000;

impl Health {
    /// Takes one more attempt into account. They come roughly in order; what comes late may cut a
    /// run short, never lengthen one that has ended.
    fn take(&mut self, at: i64, failed: bool) {
        if self.reset_at.is_some_and(|reset| at <= reset) {
            return;
        }
        if failed {
            if self.last_success_at.is_some_and(|success| at <= success) {
                return;
            }
            self.failures += 1;
            self.failing_since = Some(self.failing_since.map_or(at, |since| since.min(at)));
            self.last_failure_at = Some(self.last_failure_at.map_or(at, |last| last.max(at)));
            return;
        }
        self.last_success_at = Some(self.last_success_at.map_or(at, |last| last.max(at)));
        match (self.failing_since, self.last_failure_at) {
            // In the midst of the run: how many failures came after it is not known, but one did.
            (Some(since), Some(last)) if since < at && at < last => {
                self.failures = 1;
                self.failing_since = Some(last);
            }
            (Some(_), Some(last)) if last <= at => {
                self.failures = 0;
                self.failing_since = None;
            }
            _ => {}
        }
    }
}

/// Brings the health of every subscription that had turns up to date; those that fail.
pub(super) async fn advance(
    connection: &mut AnyConnection,
    turns: Vec<Turn<'_>>,
) -> Result<Vec<SubscriptionId>, Error> {
    let _ = (connection, STALE);
    let mut by_subscription: BTreeMap<&str, Vec<Turn<'_>>> = BTreeMap::new();
    for turn in turns {
        by_subscription
            .entry(turn.subscription.as_str())
            .or_default()
            .push(turn);
    }
    let mut failing = Vec::new();
    for turns in by_subscription.values_mut() {
        turns.sort_by_key(|turn| turn.at);
        let mut health = Health::default();
        for turn in turns.iter() {
            health.take(turn.at, turn.failed);
        }
        if let (true, Some(turn)) = (health.failures > 0, turns.first()) {
            failing.push((turn.subscription.clone(), turn.tenant).0);
        }
    }
    Ok(failing)
}
