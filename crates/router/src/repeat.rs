//! Whether an event was published before: asked of the claims once for all messages at hand.
//!
//! Judging is `store::claims`' work; this room knows what a message says about itself.

use broker::Received;
use event::{Event, reason::QuarantineReason};
use jiff::Timestamp;
use store::{
    claims::{Claim, Hash, Held, Verdict},
    dedup::Dedup,
};

use crate::admit::{TOKEN_HEADER, Unfit};

/// When our own producer accepted the events: the `time` of those that had none.
const ACCEPTED_HEADER: &str = "x-postrider-accepted";
/// A person released it from quarantine: what it claimed before it went there is its own.
const RELEASED_HEADER: &str = "x-postrider-released";

/// A message that was read.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) message: Received,
    pub(crate) events: Vec<Event>,
    pub(crate) at: Timestamp,
}

/// Messages, and what is to become of their events: a word for each, in order; without any,
/// all are routed.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) taken: Vec<Taken>,
    pub(crate) events: Vec<Word>,
}

/// What is to become of an event.
#[derive(Debug)]
pub(crate) struct Word {
    pub(crate) verdict: Verdict,
    /// When it was accepted, where that is on record: whoever routed it before has said so of its
    /// deliveries, which lie by the day of it.
    pub(crate) accepted_at: Option<Timestamp>,
}

impl From<Vec<Taken>> for Judged {
    fn from(taken: Vec<Taken>) -> Self {
        Self {
            taken,
            events: Vec::new(),
        }
    }
}

/// Asks about every event of these messages. While nobody can say, all are routed.
pub(crate) async fn check(dedup: Dedup, taken: Vec<Taken>) -> Judged {
    let claims: Vec<_> = taken.iter().flat_map(claims).collect();
    let Some(on_record) = dedup.claim(claims.clone()).await else {
        return taken.into();
    };
    let again = taken.iter().flat_map(|taken| {
        let released = header(&taken.message, RELEASED_HEADER).is_some();
        let again = (taken.message.redelivered, released);
        taken.events.iter().map(move |_| again)
    });
    let events = claims
        .iter()
        .zip(on_record)
        .zip(again)
        .map(|((claim, on_record), again)| Word {
            verdict: judge(claim, on_record.as_ref(), again),
            accepted_at: on_record.map(|held| held.at),
        })
        .collect();
    Judged { taken, events }
}

fn judge(
    claim: &Claim,
    on_record: Option<&Held>,
    (redelivered, released): (bool, bool),
) -> Verdict {
    match claim.against(on_record, redelivered) {
        Verdict::Duplicate if released => Verdict::Route,
        verdict => verdict,
    }
}

fn claims(taken: &Taken) -> impl Iterator<Item = Claim> + '_ {
    let token = header(&taken.message, TOKEN_HEADER);
    let accepted_at = header(&taken.message, ACCEPTED_HEADER)
        .and_then(|text| text.parse().ok())
        .unwrap_or(taken.at);
    taken.events.iter().map(move |event| Claim {
        key: (event.tenant.clone(), event.id.clone()),
        held: Held {
            hash: Hash::of(event, accepted_at),
            token: token.filter(|token| !token.is_empty()).map(str::to_owned),
            at: taken.at,
        },
    })
}

fn header<'a>(message: &'a Received, name: &str) -> Option<&'a str> {
    let found = message.headers.iter().find(|(have, _)| have == name);
    found.map(|(_, value)| value.as_str())
}

/// Why another event with a taken id is not routed.
pub(crate) fn conflict(event: &Event, (ours, theirs): &(Hash, Hash)) -> Unfit {
    Unfit {
        reason: QuarantineReason::IdConflict,
        detail: format!(
            "another event with the id {} was published before: its hash is {theirs}, this one's {ours}",
            event.id
        ),
    }
}
