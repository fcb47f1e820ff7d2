//! What the log says of a delivery and of an attempt. Pure: secrets are masked here, bounds are
//! kept here, and what is not worth an entry is decided here.

use event::{
    log::{Archive, Attempt, LogEntry},
    reason::{DeadReason, DeliveryState},
    subscription::View,
};
use http::HeaderMap;
use jiff::Timestamp;

use crate::{
    End,
    client::USER_AGENT,
    delivery::Delivery,
    outcome::{MASK, Outcome, brief},
    park::Cause,
};

/// What was sent in an attempt.
#[derive(Debug)]
pub(crate) struct Sent {
    view: View,
    headers: Vec<(String, String)>,
    body: bytes::Bytes,
    /// What is worth saying of a success, too.
    note: Option<String>,
}

impl Sent {
    /// A request as it goes out. `headers` that are secret are marked sensitive.
    pub(crate) fn request(
        headers: &HeaderMap,
        body: &bytes::Bytes,
        view: View,
        note: Option<String>,
    ) -> Self {
        Self {
            view,
            headers: shown_headers(headers, body.len()),
            body: body.clone(),
            note,
        }
    }

    /// No request was made that we know of.
    pub(crate) fn nothing(view: View) -> Self {
        Self {
            view,
            headers: Vec::new(),
            body: bytes::Bytes::new(),
            note: None,
        }
    }
}

/// A request's headers as the client sends them: those that the HTTP stack adds at the end, and
/// without `host`, because no queue carries a target.
fn shown_headers(headers: &HeaderMap, body_bytes: usize) -> Vec<(String, String)> {
    let mut shown: Vec<(String, String)> = Vec::with_capacity(headers.len() + 3);
    for (name, value) in headers {
        let text = match value.to_str() {
            Ok(text) if !value.is_sensitive() => text,
            _ => MASK,
        };
        shown.push((name.as_str().to_owned(), text.to_owned()));
    }
    let length = body_bytes.to_string();
    for (name, value) in [
        ("accept", "*/*"),
        ("user-agent", USER_AGENT),
        ("content-length", &length),
    ] {
        if !headers.contains_key(name) {
            shown.push((name.to_owned(), value.to_owned()));
        }
    }
    shown
}

/// The log's record of an attempt that began at `at`.
pub(crate) fn attempt(
    number: u32,
    at: Timestamp,
    sent: Sent,
    outcome: &Outcome,
    archive: Archive,
) -> Box<Attempt> {
    let body_hash = match sent.headers.is_empty() {
        true => String::new(),
        false => blake3::hash(&sent.body).to_hex().to_string(),
    };
    Box::new(Attempt {
        number,
        at,
        timing: outcome.seen.timing,
        view: sent.view,
        request_headers: sent.headers,
        body_hash,
        body_bytes: u64::try_from(sent.body.len()).unwrap_or(u64::MAX),
        status: outcome.status,
        response_headers: outcome.seen.headers.clone(),
        response: match archive {
            Archive::Full => outcome.seen.body.clone(),
            Archive::Headers | Archive::Off => None,
        },
        error: outcome.error,
        detail: outcome
            .shown_detail()
            .or_else(|| sent.note.as_deref().or(outcome.seen.note).map(brief)),
    })
}

/// What the log says of a delivery whose turn ended so, if anything. `was_held` is whether the log
/// said last that it is held: of many looks at a paused subscription only the first is worth an
/// entry, and being parked for any other cause changes nothing unless it was held before.
pub(crate) fn entry(
    delivery: &Delivery,
    was_held: bool,
    end: &End,
    attempt: Option<Box<Attempt>>,
    at: Timestamp,
) -> Option<LogEntry> {
    let mut entry = LogEntry {
        delivery_id: delivery.id(),
        event_id: delivery.event.id.clone(),
        subscription_id: delivery.to.subscription.clone(),
        tenant: delivery.event.tenant.clone(),
        kind: delivery.event.kind.clone(),
        accepted_at: delivery.accepted_at,
        at,
        purpose: delivery.to.purpose,
        run: delivery.to.run,
        attempts: delivery.to.attempts,
        state: DeliveryState::Pending,
        reason: None,
        detail: None,
        clause: None,
        due: None,
        attempt,
    };
    match end {
        End::Void => return None,
        End::Delivered => entry.state = DeliveryState::Delivered,
        End::Filtered(stopped) => {
            entry.state = DeliveryState::Filtered;
            entry.clause = Some(stopped.clause.to_string());
            entry.detail = Some(stopped.detail.clone());
        }
        End::Superseded(newer) => {
            entry.state = DeliveryState::Superseded;
            entry.clause = Some("ordering".into());
            entry.detail = Some(newer.to_string());
        }
        End::Retry(due) => {
            entry.state = DeliveryState::Retrying;
            entry.due = Some(*due);
        }
        End::Held(_) if was_held => return None,
        End::Held(why) => {
            entry.state = DeliveryState::Held;
            entry.detail = Some(why.clone());
        }
        End::Parked((Cause::Stopping, _)) => return None,
        End::Parked((cause, _)) if !was_held && begins(delivery) => {
            entry.detail = Some(format!("waits: {}", cause.word()));
        }
        End::Parked((Cause::Snapshot, _)) => return None,
        End::Parked(_) if !was_held => return None,
        End::Parked((cause, _)) => {
            if delivery.to.attempts > 0 {
                entry.state = DeliveryState::Retrying;
                entry.due = delivery.to.due;
            }
            entry.detail = Some(format!("not held any more; waits: {}", cause.word()));
        }
        End::Dead(DeadReason::SubscriptionDeleted, _) if entry.subscription_id.is_listener() => {
            entry.state = DeliveryState::Canceled;
            entry.detail = Some("its listener had ended".to_owned());
        }
        End::Dead(reason, detail) => dead(&mut entry, *reason, detail),
    }
    Some(entry)
}

/// Whether this is the first that is seen of a run that somebody asked for. It is told even where
/// the delivery only waits, so that whoever asked knows that it arrived here and need not ask again.
fn begins(delivery: &Delivery) -> bool {
    let to = &delivery.to;
    // As it goes to the ladder: parked for the first time.
    to.run > 0 && to.attempts == 0 && to.parked == 1
}

fn dead(entry: &mut LogEntry, reason: DeadReason, detail: &str) {
    entry.state = DeliveryState::Dead;
    entry.reason = Some(reason);
    entry.detail = Some(detail.to_owned());
}

#[cfg(test)]
mod tests;
