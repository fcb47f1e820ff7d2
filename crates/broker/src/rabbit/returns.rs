//! Which publish a returned message belongs to.
//!
//! The broker returns an unroutable message before it confirms it, but lapin hands the returned
//! message to whichever confirm comes next: measured, in a window of 100, four of 680 returns
//! came with another's confirm and their own was a plain `Ack`. So an `Ack` is believed only when
//! no return for its message id can still be on its way. Pure: it sees ids and confirms.
//!
//! What it leans on (checked in lapin 4.12.3): returns wait in one line, every confirm takes the
//! first of the line, and a confirm that takes none proves the line empty at that moment.

use std::collections::HashMap;

/// A publish in flight.
pub(super) type Flight = u64;

/// A confirm as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Confirm {
    pub(super) flight: Flight,
    pub(super) message_id: String,
    /// Stored, or refused (nack).
    pub(super) stored: bool,
    /// A returned message that came with it, whosever it is.
    pub(super) returned: Option<Returned>,
}

/// A message that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Returned {
    pub(super) message_id: String,
    pub(super) reason: String,
}

/// What became of a publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Stored,
    Refused,
    Unroutable(String),
}

/// Confirms and returns of one channel.
#[derive(Debug, Default)]
pub(super) struct Returns {
    /// Returned messages whose own confirm is not decided yet, by message id.
    returned: HashMap<String, Vec<String>>,
    /// Confirms that took another's return off the line: their own may still wait in it.
    doubtful: Vec<Confirm>,
}

impl Returns {
    /// Takes all confirms that are there by now; `in_flight` publishes are still without. Decides
    /// what can be decided.
    pub(super) fn take(&mut self, batch: Vec<Confirm>, in_flight: usize) -> Vec<(Flight, Verdict)> {
        let line_was_empty = batch.iter().any(|confirm| confirm.returned.is_none());
        for returned in batch.iter().filter_map(|confirm| confirm.returned.as_ref()) {
            let reasons = self
                .returned
                .entry(returned.message_id.clone())
                .or_default();
            reasons.push(returned.reason.clone());
        }
        let mut decided = Vec::with_capacity(batch.len());
        // An earlier batch's doubts end when a later confirm finds the line empty.
        if line_was_empty {
            for confirm in std::mem::take(&mut self.doubtful) {
                decided.push(self.decide(confirm));
            }
        }
        for confirm in batch {
            let own = self.returned.contains_key(&confirm.message_id);
            if confirm.returned.is_none() || own {
                decided.push(self.decide(confirm));
            } else {
                self.doubtful.push(confirm);
            }
        }
        // Every waiting return belongs to a publish in flight: without one the line is empty.
        if in_flight == 0 {
            for confirm in std::mem::take(&mut self.doubtful) {
                decided.push(self.decide(confirm));
            }
            self.returned.clear();
        }
        decided
    }

    fn decide(&mut self, confirm: Confirm) -> (Flight, Verdict) {
        let Confirm {
            flight,
            message_id,
            stored,
            ..
        } = confirm;
        if let Some(reasons) = self.returned.get_mut(&message_id) {
            let reason = reasons.pop().unwrap_or_default();
            if reasons.is_empty() {
                self.returned.remove(&message_id);
            }
            return (flight, Verdict::Unroutable(reason));
        }
        (
            flight,
            if stored {
                Verdict::Stored
            } else {
                Verdict::Refused
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};

    use proptest::prelude::*;

    use super::*;

    fn confirm(flight: Flight, returned: Option<Flight>) -> Confirm {
        let id = |flight: Flight| format!("m{flight}");
        Confirm {
            flight,
            message_id: id(flight),
            stored: true,
            returned: returned.map(|other| Returned {
                message_id: id(other),
                reason: "NO_ROUTE".into(),
            }),
        }
    }

    fn unroutable() -> Verdict {
        Verdict::Unroutable("NO_ROUTE".into())
    }

    #[test]
    fn a_plain_ack_is_stored() {
        assert_eq!(
            Returns::default().take(vec![confirm(1, None)], 5),
            [(1, Verdict::Stored)]
        );
    }

    #[test]
    fn a_return_with_its_own_confirm_is_unroutable() {
        assert_eq!(
            Returns::default().take(vec![confirm(1, Some(1))], 5),
            [(1, unroutable())]
        );
    }

    #[test]
    fn a_return_with_anothers_confirm_finds_its_owner() {
        let mut returns = Returns::default();
        assert_eq!(
            returns.take(vec![confirm(1, Some(2))], 5),
            [],
            "1 may be returned too"
        );
        let decided = returns.take(vec![confirm(2, None)], 4);
        assert_eq!(decided, [(1, Verdict::Stored), (2, unroutable())]);
    }

    #[test]
    fn doubts_end_with_the_window() {
        let mut returns = Returns::default();
        assert_eq!(returns.take(vec![confirm(1, Some(2))], 1), []);
        let decided = returns.take(vec![confirm(2, Some(1))], 0);
        assert_eq!(decided, [(2, unroutable()), (1, unroutable())]);
    }

    proptest! {
        /// lapin's line of returns, with confirms in any order and cut into any batches: whoever
        /// was returned is told so, whoever was not is stored.
        #[test]
        fn every_publish_gets_its_own_verdict(
            lost in prop::collection::vec(any::<bool>(), 1..60),
            order in prop::collection::vec(any::<u32>(), 60),
            cuts in prop::collection::vec(1usize..6, 60),
        ) {
            let mut flights: Vec<usize> = (0..lost.len()).collect();
            // Confirms come nearly in order: a return comes before its own confirm.
            flights.sort_by_key(|&flight| flight as u32 * 3 + order[flight] % 12);
            let mut returns = Returns::default();
            let (mut line, mut told, mut arrived) = (VecDeque::new(), HashSet::new(), HashSet::new());
            let (mut at, mut open) = (0, lost.len());
            for cut in cuts.into_iter().cycle() {
                let batch: Vec<_> = flights[at..].iter().take(cut).map(|&flight| {
                    for (earlier, &lost) in lost.iter().enumerate().take(flight + 1) {
                        if lost && arrived.insert(earlier) {
                            line.push_back(earlier as u64);
                        }
                    }
                    confirm(flight as u64, line.pop_front())
                }).collect();
                at += batch.len();
                open -= batch.len();
                for (flight, verdict) in returns.take(batch, open) {
                    let wanted = if lost[flight as usize] { unroutable() } else { Verdict::Stored };
                    prop_assert_eq!(verdict, wanted, "publish {}", flight);
                    prop_assert!(told.insert(flight), "{} was told twice", flight);
                }
                if open == 0 { break }
            }
            prop_assert_eq!(told.len(), lost.len());
        }
    }
}
