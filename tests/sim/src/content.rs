//! What a parcel says, in the simulation's numbers: which events, which subscriptions.

use std::sync::Arc;

use broker::{Parcel, Route};
use event::{
    delivery::{AttemptRecord, Item},
    log::LogBatch,
    reason::{DeadReason, DeliveryState},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// An event and a subscription, by their numbers.
pub(crate) type Key = (usize, usize);

/// What a parcel says.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// An event as a service published it.
    Event(usize),
    /// Deliveries on their way.
    Bundle(Vec<Copy>),
    /// A delivery that is not tried again.
    Dead {
        key: Key,
        reason: DeadReason,
        attempts: u32,
        history: Vec<AttemptRecord>,
    },
    /// What became of deliveries, and some that are handed over.
    Log {
        entries: Vec<(Key, DeliveryState, u32)>,
        held: Vec<(Key, Item)>,
    },
    /// Events that were routed.
    Archive(Vec<usize>),
    /// A message that nobody can read.
    Quarantine,
}

/// A delivery as it stands in a bundle.
#[derive(Debug, Clone)]
pub(crate) struct Copy {
    pub(crate) key: Key,
    pub(crate) attempts: u32,
    pub(crate) parked: u32,
    pub(crate) last: Option<AttemptRecord>,
}

/// Of each kind of parcel only what the law is about: most of a simulation's time goes into
/// reading.
#[derive(Deserialize)]
struct Bundle<'a> {
    #[serde(borrow)]
    items: Vec<BundleItem<'a>>,
}

#[derive(Deserialize)]
struct BundleItem<'a> {
    #[serde(borrow)]
    event: Id<'a>,
    #[serde(borrow)]
    to: Vec<Recipient<'a>>,
}

#[derive(Deserialize)]
struct Id<'a> {
    id: &'a str,
}

#[derive(Deserialize)]
struct Recipient<'a> {
    sub: &'a str,
    #[serde(default)]
    attempts: u32,
    #[serde(default)]
    parked: u32,
    #[serde(borrow, default)]
    history: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct DeadLetter<'a> {
    event_id: &'a str,
    subscription_id: &'a str,
    reason: DeadReason,
    attempts: u32,
    history: Vec<AttemptRecord>,
}

#[derive(Deserialize)]
struct Entries<'a> {
    #[serde(borrow, default)]
    entries: Vec<Entry<'a>>,
    #[serde(borrow, default)]
    held: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    event_id: &'a str,
    subscription_id: &'a str,
    state: DeliveryState,
    attempts: u32,
}

#[derive(Deserialize)]
struct ArchiveBatch<'a> {
    #[serde(borrow)]
    events: Vec<Archived<'a>>,
}

#[derive(Deserialize)]
struct Archived<'a> {
    #[serde(borrow)]
    event: Id<'a>,
}

impl Content {
    /// Reads a parcel of a stage's.
    pub(crate) fn of(parcel: &Parcel) -> Result<Arc<Self>, String> {
        let body = &parcel.body;
        let unreadable = |error: serde_json::Error| format!("{:?}: {error}", parcel.route);
        let content = match &parcel.route {
            Route::Events { .. } => return Err("a stage published an event".into()),
            Route::Deliver | Route::DeliverAt(_) => {
                let bundle: Bundle<'_> = serde_json::from_slice(body).map_err(unreadable)?;
                let mut copies = Vec::new();
                for item in &bundle.items {
                    for to in &item.to {
                        copies.push(copy(item.event.id, to).map_err(unreadable)?);
                    }
                }
                Self::Bundle(copies)
            }
            Route::Dead => {
                let letter: DeadLetter<'_> = serde_json::from_slice(body).map_err(unreadable)?;
                Self::Dead {
                    key: key(letter.event_id, letter.subscription_id),
                    reason: letter.reason,
                    attempts: letter.attempts,
                    history: letter.history,
                }
            }
            Route::Log => {
                let batch: Entries<'_> = serde_json::from_slice(body).map_err(unreadable)?;
                let entries = batch.entries.iter().map(|entry| {
                    let key = key(entry.event_id, entry.subscription_id);
                    (key, entry.state, entry.attempts)
                });
                let entries = entries.collect();
                let mut held = Vec::new();
                if batch.held.is_some() {
                    let batch: LogBatch = serde_json::from_slice(body).map_err(unreadable)?;
                    held.extend(batch.held.into_iter().flat_map(handed_over));
                }
                Self::Log { entries, held }
            }
            Route::Archive => {
                let batch: ArchiveBatch<'_> = serde_json::from_slice(body).map_err(unreadable)?;
                let events = batch.events.iter();
                Self::Archive(events.map(|archived| number(archived.event.id)).collect())
            }
            Route::Quarantine => Self::Quarantine,
        };
        Ok(Arc::new(content))
    }

    /// The deliveries it is about.
    pub(crate) fn copies(&self) -> &[Copy] {
        match self {
            Self::Bundle(copies) => copies,
            _ => &[],
        }
    }

    /// In short, for the trace.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Event(number) => format!("event e{number}"),
            Self::Bundle(copies) => {
                let shown = copies.iter().map(|copy| {
                    let (event, subscription) = copy.key;
                    let (attempts, parked) = (copy.attempts, copy.parked);
                    format!("e{event}>s{subscription} attempts {attempts} parked {parked}")
                });
                format!("bundle [{}]", shown.collect::<Vec<_>>().join(", "))
            }
            Self::Dead { key, reason, .. } => {
                format!("dead letter e{}>s{} {}", key.0, key.1, reason.word())
            }
            Self::Log { entries, held } => {
                let mut shown: Vec<_> = entries
                    .iter()
                    .map(|(key, state, attempts)| {
                        let state = state.word();
                        format!("e{}>s{} {state} attempts {attempts}", key.0, key.1)
                    })
                    .collect();
                shown.extend(
                    held.iter()
                        .map(|(key, _)| format!("e{}>s{} handed over", key.0, key.1)),
                );
                format!("log [{}]", shown.join(", "))
            }
            Self::Archive(events) => format!("archive {events:?}"),
            Self::Quarantine => "quarantined message".into(),
        }
    }
}

fn copy(event: &str, to: &Recipient<'_>) -> serde_json::Result<Copy> {
    let last = to.history.last();
    Ok(Copy {
        key: key(event, to.sub),
        attempts: to.attempts,
        parked: to.parked,
        last: last
            .map(|text| serde_json::from_str(text.get()))
            .transpose()?,
    })
}

fn handed_over(held: event::log::HeldDelivery) -> Vec<(Key, Item)> {
    let item = held.item;
    let key =
        |to: &event::delivery::Recipient| key(item.event.id.as_str(), to.subscription.as_str());
    item.to.iter().map(|to| (key(to), item.clone())).collect()
}

/// The numbers in `e17` and `sub_3`.
pub(crate) fn key(event: &str, subscription: &str) -> Key {
    (number(event), number(subscription))
}

pub(crate) fn number(id: &str) -> usize {
    let is_other = |c: char| !c.is_ascii_digit();
    let rest = id.trim_start_matches(is_other);
    let digits = rest.split(is_other).next().unwrap_or_default();
    digits.parse().expect("an id of the simulation's")
}
