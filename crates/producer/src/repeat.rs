//! What was published before is not published again: the intake asks the claims before it
//! publishes, and makes its own after the broker's confirm.
//!
//! Never before the confirm: a claim whose event was lost on the way would drop every later try to
//! publish it. Two callers at once may both be told 202; the router routes one of the two.

use std::collections::BTreeMap;

use event::{Event, EventId};
use jiff::Timestamp;
use store::{
    claims::{Claim, Hash, Held, Verdict},
    dedup::Dedup,
};

use crate::{Error, Producer, Stamp};

/// What became of a call's events.
#[derive(Debug)]
pub(crate) struct Published {
    /// All of them, in order.
    pub(crate) ids: Vec<EventId>,
    /// Those that had been published before.
    pub(crate) duplicates: Vec<EventId>,
    /// Those that are published now.
    pub(crate) events: Vec<Event>,
}

/// Why nothing was published.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Other events with these ids were published before.
    Conflicts(Vec<Conflict>),
    /// They were not taken.
    Publish(Error),
}

/// An id that another event has.
#[derive(Debug)]
pub(crate) struct Conflict {
    /// Which event of the call, from 0.
    pub(crate) index: usize,
    pub(crate) id: EventId,
    /// This event's hash, and that of the one published before.
    pub(crate) hashes: (Hash, Hash),
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (ours, theirs) = &self.hashes;
        write!(
            f,
            "another event with the id {} was published before: its hash is {theirs}, this one's {ours}",
            self.id
        )
    }
}

/// Publishes those of the events that were not published before, unless one of them stands
/// against another that was.
pub(crate) async fn publish(
    producer: &Producer,
    dedup: Option<&Dedup>,
    events: Vec<Event>,
    accepted_at: Timestamp,
) -> Result<Published, Failed> {
    let stamp = Stamp::new(Some(accepted_at));
    let ids: Vec<_> = events.iter().map(|event| event.id.clone()).collect();
    let Some(dedup) = dedup else {
        let published = producer.publish_stamped(&events, &stamp).await;
        published.map_err(Failed::Publish)?;
        return Ok(Published {
            ids,
            duplicates: Vec::new(),
            events,
        });
    };
    let claims = claims(&events, &stamp, accepted_at);
    let verdicts = judge(dedup, &claims).await;
    let conflicts = conflicts(&ids, &verdicts);
    if !conflicts.is_empty() {
        return Err(Failed::Conflicts(conflicts));
    }
    let (mut fresh, mut duplicates) = (Vec::with_capacity(events.len()), Vec::new());
    for (index, event) in events.into_iter().enumerate() {
        match verdicts.get(&index) {
            Some(Verdict::Duplicate) => duplicates.push(event.id),
            _ => fresh.push(event),
        }
    }
    let published = producer.publish_stamped(&fresh, &stamp).await;
    published.map_err(Failed::Publish)?;
    dedup.count_duplicates(duplicates.len() as u64);
    let mine: Vec<_> = claims
        .into_iter()
        .filter(|(index, _)| verdicts.get(index) != Some(&Verdict::Duplicate))
        .map(|(_, claim)| claim)
        .collect();
    if !mine.is_empty() {
        // Where the store does not answer, the router makes the claims when it can.
        dedup.note(mine).await;
    }
    Ok(Published {
        ids,
        duplicates,
        events: fresh,
    })
}

/// The claims of those events that may have been published before, each by its place.
fn claims(events: &[Event], stamp: &Stamp, accepted_at: Timestamp) -> BTreeMap<usize, Claim> {
    let now = Timestamp::now();
    let old = |event: &Event| !is_new(&event.id, accepted_at, now);
    let claims = events.iter().enumerate().filter(|(_, event)| old(event));
    claims
        .map(|(index, event)| {
            let claim = Claim {
                key: (event.tenant.clone(), event.id.clone()),
                held: Held {
                    hash: Hash::of(event, accepted_at),
                    token: Some(stamp.token.clone()),
                    at: accepted_at,
                },
            };
            (index, claim)
        })
        .collect()
}

async fn judge(dedup: &Dedup, claims: &BTreeMap<usize, Claim>) -> BTreeMap<usize, Verdict> {
    if claims.is_empty() {
        return BTreeMap::new();
    }
    let keys = claims.values().map(|claim| claim.key.clone()).collect();
    let on_record = dedup.find(keys).await;
    let on_record = on_record.into_iter().flatten();
    let judged = claims.iter().zip(on_record);
    judged
        .map(|((index, claim), held)| (*index, claim.against(held.as_ref(), false)))
        .collect()
}

fn conflicts(ids: &[EventId], verdicts: &BTreeMap<usize, Verdict>) -> Vec<Conflict> {
    let conflicts = verdicts
        .iter()
        .filter_map(|(index, verdict)| match verdict {
            Verdict::Conflict(hashes) => Some(Conflict {
                index: *index,
                id: ids[*index].clone(),
                hashes: (**hashes).clone(),
            }),
            Verdict::Route | Verdict::Duplicate => None,
        });
    conflicts.collect()
}

/// Whether an id cannot have been published before: it is a UUIDv7 of this very moment, as those
/// that were made for events without one.
fn is_new(id: &EventId, accepted_at: Timestamp, now: Timestamp) -> bool {
    made_at_ms(id.as_str())
        .is_some_and(|made| (accepted_at.as_millisecond()..=now.as_millisecond()).contains(&made))
}

/// When a UUIDv7 was made, in milliseconds since 1970.
fn made_at_ms(id: &str) -> Option<i64> {
    let version = id.as_bytes().get(14)?;
    if id.len() != 36 || *version != b'7' {
        return None;
    }
    let (high, low) = (id.get(..8)?, id.get(9..13)?);
    let part = |text| i64::from_str_radix(text, 16).ok();
    Some((part(high)? << 16) | part(low)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_id_of_this_very_moment_cannot_have_been_published_before() {
        let before = Timestamp::now();
        let id = EventId::fresh();
        let after = Timestamp::now();
        assert!(is_new(&id, before, after));
        let second = jiff::SignedDuration::from_secs(1);
        assert!(
            !is_new(&id, before + second, after + second),
            "an older one"
        );
        assert!(
            !is_new(&id, before - second, before - second),
            "of a clock ahead"
        );
        for other in [
            "evt-1",
            "0198b6a2-1c2f-4000-8000-000000000000",
            "zzzzzzzz-zzzz-7000-8000-000000000000",
        ] {
            let id = EventId::parse(other).unwrap();
            assert!(
                !is_new(&id, Timestamp::UNIX_EPOCH, Timestamp::MAX),
                "{other}"
            );
        }
        let id = EventId::parse("0198b6a2-1c2f-7000-8000-000000000000").unwrap();
        assert_eq!(made_at_ms(id.as_str()), Some(0x0198_b6a2_1c2f));
    }
}
