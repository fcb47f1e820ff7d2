//! From messages on the recorder's queues to what the store takes. Pure.

use broker::Received;
use event::{
    delivery::DeadLetter,
    log::{ArchiveBatch, Archived, LogBatch},
    reason::QuarantineReason,
};
use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};
use store::Quarantined;

/// What is larger than this, whatever the reason, is nothing of ours: our own largest message is a
/// batch of 4 MiB.
const WHOLE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How much is kept of a message that no event can be: enough to see whose it is.
const KEPT_BYTES: usize = 64 * 1024;

/// Events as a router archived them, or why they cannot be read.
pub(crate) fn archived(message: &Received) -> Result<Vec<Archived>, String> {
    let batch: ArchiveBatch = serde_json::from_slice(&message.body)
        .map_err(|error| format!("a message on the archive queue is not of ours: {error}"))?;
    Ok(batch.events)
}

/// Outcomes as a deliverer logged them and what it hands over, or why they cannot be read.
pub(crate) fn logged(message: &Received) -> Result<LogBatch, String> {
    serde_json::from_slice(&message.body)
        .map_err(|error| format!("a message on the log queue is not of ours: {error}"))
}

/// A record that the store will never take.
pub(crate) fn refused(
    record: &impl Serialize,
    source: &str,
    detail: String,
    now: Timestamp,
) -> Quarantined {
    // It was read from JSON a moment ago, so that it can be written again.
    let body = serde_json::to_vec(record).unwrap_or_default();
    let reason = QuarantineReason::HandlerFailed;
    Quarantined {
        id: Quarantined::id_for(&body, reason, source, None),
        reason,
        detail,
        first_seen: now,
        source: source.to_owned(),
        message_id: None,
        content_type: Some("application/json".into()),
        size: body.len(),
        body,
    }
}

/// A dead letter as a deliverer wrote it, or why it cannot be read.
pub(crate) fn dead_letter(message: &Received) -> Result<DeadLetter, String> {
    serde_json::from_slice(&message.body).map_err(|error| {
        format!("a message on the dead-letter queue is not a dead letter of ours: {error}")
    })
}

/// A message that came to quarantine, with the reason its headers give. One without them came by
/// the broker's own hand: nothing was bound where it should have gone, or it was handed out too
/// often.
pub(crate) fn quarantined(message: &Received, now: Timestamp) -> Quarantined {
    let header = |wanted: &str| {
        message
            .headers
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.as_str())
    };
    let reason = header("x-postrider-reason").and_then(QuarantineReason::from_word);
    let detail = header("x-postrider-detail").unwrap_or(
        "the broker could not route this message, or gave it up after too many redeliveries",
    );
    let first_seen = header("x-postrider-first-seen").and_then(|text| text.parse().ok());
    let source = header("x-postrider-source").unwrap_or(&message.source);
    row(
        message,
        reason.unwrap_or(QuarantineReason::HandlerFailed),
        detail,
        first_seen.unwrap_or(now),
        source,
    )
}

/// A message on one of our own queues that we cannot read.
pub(crate) fn unreadable(message: &Received, detail: String, now: Timestamp) -> Quarantined {
    row(
        message,
        QuarantineReason::HandlerFailed,
        &detail,
        now,
        &message.source,
    )
}

fn row(
    message: &Received,
    reason: QuarantineReason,
    detail: &str,
    first_seen: Timestamp,
    source: &str,
) -> Quarantined {
    let id = Quarantined::id_for(&message.body, reason, source, message.message_id.as_deref());
    let size = message.body.len();
    let (kept, detail) = if reason == QuarantineReason::TooLarge || size > WHOLE_BYTES_MAX {
        let kept = &message.body[..size.min(KEPT_BYTES)];
        let hash = sha256(&message.body);
        let detail = format!(
            "{detail}; the first {} of its {size} bytes are kept, the sha256 of all is {hash}",
            kept.len()
        );
        (kept, detail)
    } else {
        (&*message.body, detail.to_owned())
    };
    Quarantined {
        id,
        reason,
        detail,
        size,
        first_seen,
        source: source.to_owned(),
        message_id: message.message_id.clone(),
        content_type: message.content_type.clone(),
        body: kept.to_vec(),
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
