//! What a step of a job sends, and what it passes over. Pure.

use std::collections::VecDeque;

use event::{
    DeliveryId, Event, SubscriptionId, delivery::Purpose, log::LogEntry, reason::DeliveryState,
};
use jiff::{SignedDuration, Timestamp};
use store::jobs::{Candidate, Sending, Standing};

/// The most deliveries of one step, which is one parcel.
const SENDS_MAX: usize = 50;
/// Five steps a second, so that a slow job is even.
const STEPS_PER_SECOND: u32 = 5;
/// The most bytes of a step, but for one event that is larger alone.
const BYTES_MAX: u64 = 512 * 1024;

/// A pending delivery that nothing was heard of for so long is not on its way any more: what was
/// lost with a broker can be replayed.
const PENDING_MAX: SignedDuration = SignedDuration::from_hours(1);
/// The same of a retry that is overdue; longer than the longest pause of a parked one.
const OVERDUE_MAX: SignedDuration = SignedDuration::from_mins(15);

/// One step.
#[derive(Debug)]
pub(super) struct Step {
    /// Behind what it sends and passes over.
    pub(super) place: String,
    pub(super) sends: Vec<Planned>,
    pub(super) skipped: u64,
}

/// A delivery that is sent.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) candidate: Candidate,
    /// Its new run: one more than its last, so that the same step planned twice is the same.
    pub(super) run: u32,
    /// Of its subscription.
    pub(super) revision: u64,
}

impl Planned {
    /// Why it is made: what is resumed is made for the reason that it was held with.
    pub(super) fn purpose(&self) -> Purpose {
        self.candidate.held.unwrap_or(Purpose::Replay)
    }

    fn delivery_id(&self) -> DeliveryId {
        let Candidate {
            event,
            subscription_id,
            ..
        } = &self.candidate;
        DeliveryId::of(&event.tenant, &event.id, subscription_id)
    }

    /// What the log says of it from now on.
    pub(super) fn entry(&self, at: Timestamp) -> LogEntry {
        let candidate = &self.candidate;
        let run = (self.purpose(), self.run);
        LogEntry::pending(
            &candidate.event,
            &candidate.subscription_id,
            candidate.accepted_at,
            run,
            at,
        )
    }
}

/// How many deliveries a step of a job with this rate has.
pub(super) fn step_size(rate: u32) -> usize {
    ((rate / STEPS_PER_SECOND) as usize).clamp(1, SENDS_MAX)
}

/// How many candidates are fetched at once: about a second's worth, because how their deliveries
/// stand grows old.
pub(super) fn page_size(rate: u32) -> u32 {
    rate.clamp(10, 200)
}

/// Takes the next step off the candidates, which must not be empty.
pub(super) fn step(
    rest: &mut VecDeque<Candidate>,
    rate: u32,
    now: Timestamp,
    revision: impl Fn(&SubscriptionId) -> Option<u64>,
) -> Step {
    let mut step = Step {
        place: String::new(),
        sends: Vec::new(),
        skipped: 0,
    };
    let mut bytes = 0;
    while let Some(next) = rest.front() {
        let revision = revision(&next.subscription_id);
        let planned = revision.zip(next_run(next, now));
        if planned.is_some() {
            bytes += next.bytes;
            let full = step.sends.len() == step_size(rate);
            if full || (bytes > BYTES_MAX && !step.sends.is_empty()) {
                break;
            }
        }
        let Some(candidate) = rest.pop_front() else {
            break;
        };
        step.place.clone_from(&candidate.place);
        match planned {
            Some((revision, run)) => step.sends.push(Planned {
                candidate,
                run,
                revision,
            }),
            None => step.skipped += 1,
        }
    }
    step
}

/// The run that a candidate is sent in; `None` for one that cannot be sent or is on its way.
fn next_run(candidate: &Candidate, now: Timestamp) -> Option<u32> {
    let expired = candidate.event.expires_at.is_some_and(|end| end <= now);
    let standing = candidate.standing;
    let run = standing
        .map_or(0, |standing| standing.run)
        .saturating_add(1);
    if candidate.held.is_some() {
        // Whatever has become of it meanwhile, the deliverer must say so: it is nowhere else.
        return Some(run);
    }
    let whole = candidate.letter.is_some() || is_whole(&candidate.event, candidate.bytes);
    let under_way = standing.is_some_and(|standing| is_on_its_way(&standing, now));
    if candidate.expunged || expired || !whole || under_way {
        return None;
    }
    // Never 0, which is the router's: a first delivery long after is no measure of speed.
    Some(run)
}

/// Whether the event, which had so many bytes, is there with its payloads. A deletion may have had
/// nothing but its subject; its size tells.
fn is_whole(event: &Event, bytes: u64) -> bool {
    if event.data.is_some() || event.changes.is_some() || event.details.is_some() {
        return true;
    }
    event.kind.action() == "deleted"
        && serde_json::to_vec(event).is_ok_and(|written| written.len() as u64 >= bytes)
}

fn is_on_its_way(standing: &Standing, now: Timestamp) -> bool {
    let since = |then: Timestamp| now.duration_since(then);
    match standing.state {
        DeliveryState::Pending => since(standing.updated_at) < PENDING_MAX,
        // It goes when its subscription is resumed.
        DeliveryState::Held => true,
        DeliveryState::Retrying => {
            let due = standing.due.unwrap_or(standing.updated_at);
            since(due.max(standing.updated_at)) < OVERDUE_MAX
        }
        DeliveryState::Delivered
        | DeliveryState::Filtered
        | DeliveryState::Superseded
        | DeliveryState::Dead
        | DeliveryState::Canceled => false,
    }
}

/// A planned delivery as it is written down. A dead delivery's letter goes with it: it is not
/// dead any more.
pub(super) fn sending(planned: &Planned) -> Sending {
    let candidate = &planned.candidate;
    let delivery_id = planned.delivery_id();
    let letter = candidate.letter.clone().or_else(|| {
        let standing = candidate.standing?;
        (standing.state == DeliveryState::Dead)
            .then(|| event::DeadLetterId::of(&delivery_id, standing.run))
    });
    Sending {
        delivery_id,
        accepted_at: candidate.accepted_at,
        run: planned.run,
        letter,
        held: candidate.held.is_some(),
    }
}

#[cfg(test)]
mod tests;
