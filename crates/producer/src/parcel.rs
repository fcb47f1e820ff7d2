//! Events as one parcel. Pure.

use broker::{BATCH_KEY, Parcel, Route};
use event::{
    Event, EventId,
    event::{DEPTH_HEADER, EVENT_BYTES_MAX, FILLED_IN_BYTES_MAX},
};
use jiff::Timestamp;

/// The largest parcel of several events, in bytes.
pub const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The header by which the router knows that an event has been counted on its way in.
const VIA_HEADER: &str = "x-postrider-via";
/// The header that names the message, for its claims.
const TOKEN_HEADER: &str = "x-postrider-token";
/// The header that says which `time` was filled in, because it does not tell events apart.
const ACCEPTED_HEADER: &str = "x-postrider-accepted";

/// What a parcel says of itself.
#[derive(Debug)]
pub(crate) struct Stamp {
    /// No other parcel's.
    pub(crate) token: String,
    /// When its events were accepted: the `time` of those that came without one.
    pub(crate) accepted_at: Option<Timestamp>,
}

impl Stamp {
    pub(crate) fn new(accepted_at: Option<Timestamp>) -> Self {
        Self {
            token: EventId::fresh().to_string(),
            accepted_at,
        }
    }
}

/// Events are more than may travel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    /// One event, with its id, tenant and time filled in.
    #[error(
        "an event is at most {EVENT_BYTES_MAX} bytes and its id, tenant and time; event {index} has {bytes}"
    )]
    Event {
        /// Which, from 0.
        index: usize,
        /// How large it is.
        bytes: usize,
    },
    /// All of them together.
    #[error(
        "the events of one call are at most {BATCH_BYTES_MAX} bytes together; send them in several calls"
    )]
    Batch,
}

/// One parcel for all these events; none for no event. A single one goes by its type, as a
/// service's own publish would; several go as an array.
pub(crate) fn of(
    events: &[Event],
    via: Option<&str>,
    stamp: &Stamp,
) -> Result<Option<Parcel>, TooLarge> {
    let Some((first, rest)) = events.split_first() else {
        return Ok(None);
    };
    let mut body = Vec::with_capacity(events.iter().map(size_hint).sum());
    let routing_key = if rest.is_empty() {
        write(first, 0, &mut body)?;
        first.kind.as_str()
    } else {
        write_array(events, &mut body)?;
        BATCH_KEY
    };
    let route = Route::Events {
        routing_key: routing_key.to_owned(),
    };
    let mut parcel = Parcel::json(route, first.id.as_str(), body);
    let mut say = |name: &str, value: &str| {
        parcel.headers.push((name.to_owned(), value.to_owned()));
    };
    say(TOKEN_HEADER, &stamp.token);
    if let Some(accepted_at) = stamp.accepted_at {
        say(ACCEPTED_HEADER, &accepted_at.to_string());
    }
    if let Some(via) = via {
        say(VIA_HEADER, via);
    }
    let depth = events.iter().map(|event| event.depth).max().unwrap_or(0);
    if depth > 0 {
        say(DEPTH_HEADER, &depth.to_string());
    }
    Ok(Some(parcel))
}

fn write_array(events: &[Event], body: &mut Vec<u8>) -> Result<(), TooLarge> {
    for (index, event) in events.iter().enumerate() {
        body.push(if index == 0 { b'[' } else { b',' });
        write(event, index, body)?;
        if body.len() >= BATCH_BYTES_MAX {
            return Err(TooLarge::Batch);
        }
    }
    body.push(b']');
    Ok(())
}

fn write(event: &Event, index: usize, body: &mut Vec<u8>) -> Result<(), TooLarge> {
    let start = body.len();
    // It travels beside the event, because it is no part of one as services publish it.
    let flat = (event.depth > 0).then(|| Event {
        depth: 0,
        ..event.clone()
    });
    let event = flat.as_ref().unwrap_or(event);
    // An event holds only text and JSON that was read as JSON, and a Vec takes all of it.
    serde_json::to_writer(&mut *body, event).expect("an event is always JSON");
    let bytes = body.len() - start;
    // What the router would not read must not be confirmed to anybody.
    if bytes > EVENT_BYTES_MAX + FILLED_IN_BYTES_MAX {
        Err(TooLarge::Event { index, bytes })
    } else {
        Ok(())
    }
}

fn size_hint(event: &Event) -> usize {
    let raw = [&event.data, &event.changes, &event.details];
    FILLED_IN_BYTES_MAX
        + raw
            .into_iter()
            .flatten()
            .map(|raw| raw.get().len())
            .sum::<usize>()
}
