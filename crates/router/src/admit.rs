//! From a message on the inbox to its events, or to its quarantine. Pure, but for the message.

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
};

use broker::{BATCH_KEY, Parcel, Received, Route};
use event::{
    Event,
    admission::{
        self, Envelope,
        cloud_events::{self, Attributes},
    },
    event::DEPTH_HEADER,
    fault::{Fault, Refusal},
    reason::QuarantineReason,
};
use jiff::Timestamp;

/// Why a message is not events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unfit {
    pub(crate) reason: QuarantineReason,
    pub(crate) detail: String,
}

/// The header by which our own intake says that it has counted an event already.
pub(crate) const VIA_HEADER: &str = "x-postrider-via";

/// The header by which our own producer names a message.
pub(crate) const TOKEN_HEADER: &str = "x-postrider-token";

/// Reads the events of a message: one, or several where our own intake published a batch.
pub(crate) fn admit(message: &Received, now: Timestamp) -> Result<Vec<Event>, Unfit> {
    if let Some(encoding) = message.content_encoding.as_deref()
        && !matches!(encoding, "" | "identity" | "utf-8" | "UTF-8")
    {
        return Err(Unfit {
            reason: QuarantineReason::UnsupportedEncoding,
            detail: format!("content encoding {encoding:?} is not accepted; publish plain JSON"),
        });
    }
    let attributes = attributes(message);
    let content_type = message.content_type.as_deref();
    if cloud_events::is_foreign(content_type) {
        return Err(Unfit {
            reason: QuarantineReason::UnsupportedEncoding,
            detail: format!(
                "of CloudEvents, `{}`, `{}` and headers beside JSON are read",
                cloud_events::STRUCTURED,
                cloud_events::BATCH
            ),
        });
    }
    let envelope = Envelope {
        now,
        message_id: message.message_id.as_deref(),
        tenant: None,
        fresh_id: None,
    };
    // The scanner bounds every input, so a panic would be a bug of ours; it must cost one message
    // and never the process, which would meet the same message again after each restart.
    let read = catch_unwind(AssertUnwindSafe(|| {
        if let Some(mode) = cloud_events::mode(content_type, &attributes) {
            cloud_events::admit(mode, content_type, &attributes, &message.body, &envelope)
        } else if is_batch(message) {
            let envelope = Envelope {
                message_id: None,
                ..envelope
            };
            admission::admit_own(&message.body, true, &envelope)
        } else if is_own(message) {
            admission::admit_own(&message.body, false, &envelope)
        } else {
            admission::admit(&message.body, &envelope).map(|event| vec![event])
        }
    }));
    match read {
        Ok(Ok(mut events)) => {
            let said = message
                .headers
                .iter()
                .find(|(name, _)| name == DEPTH_HEADER);
            let depth = said.map_or(0, |(_, value)| event::event::depth(value));
            for event in &mut events {
                event.depth = depth;
            }
            Ok(events)
        }
        Ok(Err(refusal)) => Err(unfit(&refusal)),
        Err(_) => Err(Unfit {
            reason: QuarantineReason::HandlerFailed,
            detail: "reading this message panicked; please report it with the message".into(),
        }),
    }
}

/// What the message's headers say of a CloudEvent.
fn attributes(message: &Received) -> Attributes<'_> {
    let headers = message.headers.iter().filter_map(|(name, value)| {
        let name = cloud_events::of_amqp_header(name)?;
        Some((name, Cow::Borrowed(value.as_str())))
    });
    headers.collect()
}

fn is_batch(message: &Received) -> bool {
    message.source.rsplit('/').next() == Some(BATCH_KEY)
}

/// Whether our own producer wrote it. Whoever forges that may send a little more.
fn is_own(message: &Received) -> bool {
    let named = |(name, _): &(String, String)| name == TOKEN_HEADER;
    message.headers.iter().any(named)
}

fn unfit(refusal: &Refusal) -> Unfit {
    let mut detail = refusal.detail.clone();
    // A fault of the whole is the sentence itself.
    let placed = |fault: &&Fault| !fault.pointer.is_empty();
    for fault in refusal.faults.iter().filter(placed).take(20) {
        detail.push_str(&format!("; {}: {}", fault.pointer, fault.message));
    }
    Unfit {
        reason: admission::quarantine_reason(refusal),
        detail,
    }
}

/// The message as it goes to quarantine: body unchanged, the reason in headers.
pub(crate) fn quarantine(message: &Received, unfit: &Unfit, now: Timestamp) -> Parcel {
    // Header values are for people; one that is too long would not fit a frame.
    let detail: String = unfit.detail.chars().take(1_000).collect();
    let mut headers = vec![
        ("x-postrider-reason".into(), unfit.reason.word().into()),
        ("x-postrider-detail".into(), detail),
        ("x-postrider-first-seen".into(), now.to_string()),
        ("x-postrider-source".into(), message.source.clone()),
    ];
    // Half of a CloudEvent is in its headers.
    let of_event = |(name, _): &&(String, String)| cloud_events::of_amqp_header(name).is_some();
    headers.extend(message.headers.iter().filter(of_event).cloned());
    Parcel {
        route: Route::Quarantine,
        message_id: message.message_id.clone().unwrap_or_default(),
        content_type: message.content_type.clone(),
        content_encoding: message.content_encoding.clone(),
        headers,
        body: message.body.clone(),
    }
}
