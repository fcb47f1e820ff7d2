//! Examples: a subscription and an event in, and what has to come of them.

use std::{collections::BTreeMap, ops::Range};

use event::{Event, EventId, EventType, Subject, Tenant, subscription::View};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, value::RawValue};

use crate::file;

/// An event's own fields, without whose it is and when it happened: what a test delivery of a
/// subscribed word consists of.
#[derive(Debug, Clone, Serialize)]
pub struct ExampleEvent {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// The resource's own id or ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<Subject>,
    /// The status after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The status before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_status: Option<String>,
    /// Grows with each change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The full view.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
    /// The basic view.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<Box<RawValue>>,
    /// The extended view.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<RawValue>>,
}

impl ExampleEvent {
    /// The event that `tenant` would have published at `time`.
    pub fn into_event(self, id: EventId, tenant: Tenant, time: Timestamp) -> Event {
        Event {
            id,
            tenant,
            kind: self.kind,
            time,
            subject: self.subject,
            status: self.status,
            previous_status: self.previous_status,
            version: self.version,
            expires_at: None,
            data: self.data,
            changes: self.changes,
            details: self.details,
            depth: 0,
        }
    }
}

impl From<&Event> for ExampleEvent {
    fn from(event: &Event) -> Self {
        Self {
            kind: event.kind.clone(),
            subject: event.subject.clone(),
            status: event.status.clone(),
            previous_status: event.previous_status.clone(),
            version: event.version,
            data: event.data.clone(),
            changes: event.changes.clone(),
            details: event.details.clone(),
        }
    }
}

/// One example of a file.
#[derive(Debug)]
pub(crate) struct Example {
    pub(crate) name: String,
    /// What a person would write.
    pub(crate) subscription: Map<String, Value>,
    pub(crate) event: Option<Event>,
    pub(crate) loaded: Option<(View, Box<RawValue>)>,
    pub(crate) expected: Expected,
}

/// What has to come of an example.
#[derive(Debug)]
pub(crate) enum Expected {
    Request {
        body: String,
        content_type: Option<String>,
        headers: BTreeMap<String, String>,
        view_sent: Option<View>,
    },
    /// The clause that stops it.
    Stopped(String),
    /// The render error's text.
    Error(String),
    /// The faults of the subscription.
    Refused(Vec<String>),
}

impl Example {
    pub(crate) fn read(example: file::Example) -> Result<Self, (Range<usize>, String)> {
        let at = example.name.span();
        let request = example.body.map(|body| Expected::Request {
            // The line break before the closing quotes is the file's, not the body's.
            body: body.strip_suffix('\n').map(str::to_owned).unwrap_or(body),
            content_type: example.content_type,
            headers: example.headers,
            view_sent: example.view_sent,
        });
        let ends = [
            request,
            example.stopped.map(Expected::Stopped),
            example.error.map(Expected::Error),
            example.refused.map(Expected::Refused),
        ];
        let mut ends = ends.into_iter().flatten();
        let (Some(expected), None) = (ends.next(), ends.next()) else {
            let reason = "an example has one of `body`, `stopped`, `error` and `refused`";
            return Err((at, reason.into()));
        };
        let event = match example.event {
            Some(text) => {
                let span = text.span();
                let event = read_event(text.get_ref()).map_err(|reason| (span, reason))?;
                Some(event)
            }
            None if matches!(expected, Expected::Refused(_)) => None,
            None => return Err((at, "an example has an `event`".into())),
        };
        let loaded = match example.loaded {
            Some(loaded) => {
                let text = RawValue::from_string(loaded.text.get_ref().clone())
                    .map_err(|error| (loaded.text.span(), format!("is not JSON: {error}")))?;
                Some((loaded.view, text))
            }
            None => None,
        };
        Ok(Self {
            name: example.name.into_inner(),
            subscription: example.subscription,
            event,
            loaded,
            expected,
        })
    }
}

/// An example's event: as published, with a name, an owner and a time where it has none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: Option<EventId>,
    tenant: Option<Tenant>,
    #[serde(rename = "type")]
    kind: EventType,
    time: Option<Timestamp>,
    subject: Option<Subject>,
    status: Option<String>,
    previous_status: Option<String>,
    version: Option<u64>,
    expires_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "present")]
    data: Option<Box<RawValue>>,
    changes: Option<Box<RawValue>>,
    details: Option<Box<RawValue>>,
}

/// Reads a field that is there, also when it is `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// Reads an event as people write it into files: `id`, `tenant` and `time` may be left out.
pub(crate) fn read_event(text: &str) -> Result<Event, String> {
    let written: Written =
        serde_json::from_str(text).map_err(|error| format!("is no event: {error}"))?;
    let known = |text: &str| text.to_owned();
    let id = match written.id {
        Some(id) => id,
        None => EventId::parse("evt_example").map_err(|bad| known(&bad.0))?,
    };
    let tenant = match written.tenant {
        Some(tenant) => tenant,
        None => Tenant::parse("example").map_err(|bad| known(&bad.0))?,
    };
    Ok(Event {
        id,
        tenant,
        kind: written.kind,
        time: written.time.unwrap_or(EXAMPLE_TIME),
        subject: written.subject,
        status: written.status,
        previous_status: written.previous_status,
        version: written.version,
        expires_at: written.expires_at,
        data: written.data,
        changes: written.changes,
        details: written.details,
        depth: 0,
    })
}

/// When an example that names no time happened: 2026-03-01T10:00:00Z.
pub(crate) const EXAMPLE_TIME: Timestamp = Timestamp::constant(1_772_359_200, 0);
