//! From untrusted bytes to an [`Event`], or a [`Refusal`] that names all faults at once.
//!
//! Used by the HTTP intake and by the router (events that services published over AMQP), so that
//! one event is judged alike wherever it came in.

use jiff::Timestamp;

use crate::{
    event::Event,
    fault::Refusal,
    id::{EventId, Tenant},
    reason::QuarantineReason,
};

/// What is known about an event besides its bytes.
#[derive(Debug, Clone)]
pub struct Envelope<'a> {
    /// The time of acceptance; becomes `time` where the event has none.
    pub now: Timestamp,
    /// The AMQP `message_id`, used where the body has no `id`. It is as untrusted as the body.
    pub message_id: Option<&'a str>,
    /// The tenant the caller's token is bound to: the default, and the only one allowed.
    pub tenant: Option<&'a Tenant>,
    /// An identifier for an event without one (HTTP); `None` makes `id` required (AMQP).
    pub fresh_id: Option<fn() -> EventId>,
}

/// Reads one event.
pub fn admit(body: &[u8], envelope: &Envelope<'_>) -> Result<Event, Refusal> {
    let _ = (body, envelope);
    todo!("event: admission")
}

/// Reads one event, an array of events, or NDJSON (told apart by `ndjson`): all of them, or the
/// refusal of the whole with pointers such as `/3/type`.
pub fn admit_many(
    body: &[u8],
    ndjson: bool,
    envelope: &Envelope<'_>,
) -> Result<Vec<Event>, Refusal> {
    let _ = (body, ndjson, envelope);
    todo!("event: admission")
}

/// The quarantine reason for a refused message.
pub fn quarantine_reason(refusal: &Refusal) -> QuarantineReason {
    let _ = refusal;
    todo!("event: admission")
}
