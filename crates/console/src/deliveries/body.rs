//! The body of a delivery's requests. The log keeps its hash only: written again, it is shown
//! where it has that very hash, and where it has not, nobody can know what was sent.

use dialect::Dialects;
use event::Subscription;
use serde::Serialize;
use store::{DeliveryRecord, EventRecord};

/// What was sent in the last attempt that sent anything.
#[derive(Debug, Serialize)]
pub(super) struct RequestBody {
    /// The body, where it is certain.
    request_body: Option<String>,
    /// Why it cannot be shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_body_unknown: Option<&'static str>,
}

impl RequestBody {
    pub(super) fn of(
        record: &DeliveryRecord,
        archived: Option<&EventRecord>,
        subscription: Option<&Subscription>,
        dialects: &Dialects,
    ) -> Self {
        let mut sent = record.history.iter().rev().map(|logged| &logged.attempt);
        let Some(last) = sent.find(|attempt| !attempt.body_hash.is_empty()) else {
            return Self::unknown("nothing was sent");
        };
        let Some(event) = archived else {
            return Self::unknown("the event's payload is not in the archive");
        };
        let Some(subscription) = subscription else {
            return Self::unknown("the subscription was deleted");
        };
        let speaker = dialects.speaker(subscription);
        let written = speaker.and_then(|speaker| speaker.render(&event.event, None, subscription));
        match written {
            Ok(written) if blake3::hash(&written.body).to_hex().as_str() == last.body_hash => {
                Self {
                    request_body: Some(String::from_utf8_lossy(&written.body).into_owned()),
                    request_body_unknown: None,
                }
            }
            _ => Self::unknown(
                "written again it would not be the same: the subscription or its dialect has \
                 changed since, or the body held a view that was fetched",
            ),
        }
    }

    fn unknown(why: &'static str) -> Self {
        Self {
            request_body: None,
            request_body_unknown: Some(why),
        }
    }
}
