//! From untrusted bytes to an [`Event`], or a [`Refusal`] that names all faults at once.
//!
//! Used by the HTTP intake and by the router (events that services published over AMQP), so that
//! one event is judged alike wherever it came in. `crate::scan` reads the bytes; this room knows
//! what an event is.

use std::{borrow::Cow, collections::HashSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::value::RawValue;

use crate::{
    event::{EVENT_BYTES_MAX, Event, EventType, FILLED_IN_BYTES_MAX, Subject},
    fault::{Fault, Refusal, did_you_mean, sentence, shown},
    id::{EventId, Tenant},
    reason::QuarantineReason,
    scan::{self, Document, Field, Finding, Kind},
};

pub mod cloud_events;
#[cfg(test)]
mod tests;

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

/// The fields of an event, in the order of the documentation.
const FIELDS: [&str; 12] = [
    "id",
    "tenant",
    "type",
    "time",
    "subject",
    "status",
    "previous_status",
    "version",
    "expires_at",
    "data",
    "changes",
    "details",
];

/// How far a publisher's clock may be ahead of ours.
const SKEW_MAX: SignedDuration = SignedDuration::from_mins(5);
/// How long a status may be, in bytes.
const STATUS_BYTES_MAX: usize = 256;
/// How long one of the subject's ids may be, in bytes.
const SUBJECT_BYTES_MAX: usize = 1024;
/// How many faults of a batch are told at once.
const FAULTS_MAX: usize = 100;

/// Reads one event.
pub fn admit(body: &[u8], envelope: &Envelope<'_>) -> Result<Event, Refusal> {
    if body.len() > EVENT_BYTES_MAX {
        return Err(too_large("", body.len()));
    }
    read(scan::object(body)?, "", envelope).map_err(refusal)
}

/// Reads one event, an array of events, or NDJSON (told apart by `ndjson`): all of them, or the
/// refusal of the whole with pointers such as `/3/type`.
pub fn admit_many(
    body: &[u8],
    ndjson: bool,
    envelope: &Envelope<'_>,
) -> Result<Vec<Event>, Refusal> {
    let text = scan::text_of(body)?;
    let first = scan::skip_space(text, 0);
    let mut batch = Batch::new(envelope, read);
    if ndjson {
        batch.lines(text)?;
    } else if text.as_bytes().get(first) == Some(&b'[') {
        batch.array(text, first + 1)?;
    } else {
        return admit(body, envelope).map(|event| vec![event]);
    }
    batch.finish()
}

/// Reads what our own intake wrote: one event, or where `several` an array of them, each as it was
/// published and with what was missing filled in.
pub fn admit_own(
    body: &[u8],
    several: bool,
    envelope: &Envelope<'_>,
) -> Result<Vec<Event>, Refusal> {
    let bytes_max = EVENT_BYTES_MAX + FILLED_IN_BYTES_MAX;
    if several {
        let text = scan::text_of(body)?;
        let first = scan::skip_space(text, 0);
        if text.as_bytes().get(first) == Some(&b'[') {
            let mut batch = Batch::new(envelope, read);
            batch.bytes_max = bytes_max;
            batch.array(text, first + 1)?;
            return batch.finish();
        }
    }
    if body.len() > bytes_max {
        return Err(too_large("", body.len()));
    }
    let event = read(scan::object(body)?, "", envelope).map_err(refusal)?;
    Ok(vec![event])
}

/// Reads a view that was fetched because its event lacks it: JSON by the rules of what is
/// published, kept byte for byte. The error is one sentence without payload.
pub fn admit_view(body: &[u8]) -> Result<Box<RawValue>, String> {
    if body.len() > EVENT_BYTES_MAX {
        return Err(format!("is larger than {} KiB", EVENT_BYTES_MAX / 1024));
    }
    let said = |refusal: Refusal| format!("is not usable JSON: {}", refusal.detail);
    let text = scan::text_of(body).map_err(said)?;
    let document = scan::scan(text, 0, "").map_err(said)?;
    scan::nothing_after(text, document.end).map_err(said)?;
    if let Some(finding) = document.findings.first() {
        return Err(format!("is not usable JSON: {}", finding.code));
    }
    RawValue::from_string(document.raw.to_owned()).map_err(|_| "is not JSON".into())
}

/// The quarantine reason for a refused message.
pub fn quarantine_reason(refusal: &Refusal) -> QuarantineReason {
    match refusal.code {
        "empty_body" | "bad_json" | "bad_utf8" => QuarantineReason::Malformed,
        "too_large" => QuarantineReason::TooLarge,
        "id_conflict" => QuarantineReason::IdConflict,
        "unsupported_encoding" => QuarantineReason::UnsupportedEncoding,
        // not_object, too_deep, duplicate_key, number_too_large, invalid_event, future_timestamp,
        // tenant_mismatch: JSON that is not an event we may take.
        _ => QuarantineReason::InvalidEvent,
    }
}

/// Several events that are taken together or not at all.
struct Batch<'e> {
    envelope: &'e Envelope<'e>,
    /// How one of them is read.
    read: Read,
    /// How large each of them may be.
    bytes_max: usize,
    events: Vec<Event>,
    /// Tenant and id of the events so far: one body cannot hold one event twice.
    ids: HashSet<(Tenant, EventId)>,
    faults: Vec<Finding>,
}

type Read = fn(Document<'_>, &str, &Envelope<'_>) -> Result<Event, Vec<Finding>>;

impl<'e> Batch<'e> {
    fn new(envelope: &'e Envelope<'e>, read: Read) -> Self {
        Self {
            envelope,
            read,
            bytes_max: EVENT_BYTES_MAX,
            events: Vec::new(),
            ids: HashSet::new(),
            faults: Vec::new(),
        }
    }

    fn array(&mut self, text: &str, from: usize) -> Result<(), Refusal> {
        let mut at = scan::skip_space(text, from);
        if text.as_bytes().get(at) == Some(&b']') {
            scan::nothing_after(text, at + 1)?;
            return Err(empty("the array holds no event"));
        }
        for index in 0.. {
            let prefix = format!("/{index}");
            let document = scan::scan(text, at, &prefix)?;
            let end = scan::skip_space(text, document.end);
            self.take(document, &prefix)?;
            match text.as_bytes().get(end) {
                Some(b',') => at = end + 1,
                Some(b']') => return scan::nothing_after(text, end + 1),
                Some(_) => return Err(scan::syntax(text, end, "expected `,` or `]`")),
                None => return Err(scan::syntax(text, end, "the end of the input")),
            }
        }
        Ok(())
    }

    fn lines(&mut self, text: &str) -> Result<(), Refusal> {
        let mut from = 0;
        let mut index = 0;
        for line in text.split_inclusive('\n') {
            let end = from + line.len();
            if !line.trim_ascii().is_empty() {
                // The text up to the line's end, so that lines are counted over the whole body.
                let upto = &text[..from + line.trim_ascii_end().len()];
                let prefix = format!("/{index}");
                let document = scan::scan(upto, from, &prefix)?;
                scan::nothing_after(upto, document.end)?;
                self.take(document, &prefix)?;
                index += 1;
            }
            from = end;
        }
        if index == 0 {
            Err(empty("the body holds no event"))
        } else {
            Ok(())
        }
    }

    fn take(&mut self, document: Document<'_>, prefix: &str) -> Result<(), Refusal> {
        let bytes = document.raw.len();
        if bytes > self.bytes_max {
            return Err(too_large(prefix, bytes));
        }
        if document.kind != Kind::Object {
            let message = format!("must be an object, got {}", document.kind.word());
            self.find(vec![finding("not_object", prefix, "", message)]);
            return Ok(());
        }
        match (self.read)(document, prefix, self.envelope) {
            Ok(event) => {
                if !self.ids.insert((event.tenant.clone(), event.id.clone())) {
                    let message = "the same id as an earlier event of this batch";
                    self.find(vec![finding("invalid_event", prefix, "/id", message)]);
                }
                self.events.push(event);
            }
            Err(faults) => self.find(faults),
        }
        Ok(())
    }

    fn find(&mut self, faults: Vec<Finding>) {
        let room = FAULTS_MAX.saturating_sub(self.faults.len());
        self.faults.extend(faults.into_iter().take(room));
    }

    fn finish(self) -> Result<Vec<Event>, Refusal> {
        if self.faults.is_empty() {
            Ok(self.events)
        } else {
            Err(refusal(self.faults))
        }
    }
}

/// Makes an event of a scanned object, or tells everything that is wrong with it.
fn read(
    document: Document<'_>,
    prefix: &str,
    envelope: &Envelope<'_>,
) -> Result<Event, Vec<Finding>> {
    let mut reader = Reader {
        prefix,
        faults: document.findings,
    };
    let mut slots: [Option<&Field<'_>>; FIELDS.len()] = [None; FIELDS.len()];
    for field in &document.fields {
        match FIELDS.iter().position(|name| *name == field.key) {
            Some(slot) => slots[slot] = Some(field),
            None => reader.unknown(&field.key),
        }
    }
    let [
        id,
        tenant,
        kind,
        time,
        subject,
        status,
        previous,
        version,
        expires,
        data,
        changes,
        details,
    ] = slots;
    let id = reader.id(id, envelope);
    let tenant = reader.tenant(tenant, envelope.tenant);
    let kind_text = kind.and_then(|field| reader.text(field));
    let kind = reader.kind(kind.is_some(), kind_text.as_deref());
    let time = match time {
        Some(field) => reader.past(field, envelope.now),
        None => Some(envelope.now),
    };
    let deleted = kind_text.is_some_and(|text| text.ends_with(".deleted"));
    if deleted && subject.is_none() {
        reader.find(
            "/subject",
            "is required on `*.deleted`: the id or ids of what was deleted",
        );
    }
    let subject = subject.and_then(|field| reader.subject(field));
    let status = status.and_then(|field| reader.status(field));
    let previous_status = previous.and_then(|field| reader.status(field));
    let version = version.and_then(|field| reader.version(field));
    let expires_at = expires.and_then(|field| reader.timestamp(field));
    if !deleted && data.is_none() {
        reader.find("/data", "is required (except on `*.deleted`)");
    }
    let data = data.and_then(|field| reader.raw(field));
    let changes = changes.and_then(|field| reader.object(field));
    let details = details.and_then(|field| reader.object(field));
    match (id, tenant, kind, time) {
        (Some(id), Some(tenant), Some(kind), Some(time)) if reader.faults.is_empty() => Ok(Event {
            id,
            tenant,
            kind,
            time,
            subject,
            status,
            previous_status,
            version,
            expires_at,
            data,
            changes,
            details,
            depth: 0,
        }),
        _ => Err(reader.faults),
    }
}

/// Reads fields one by one and keeps what is wrong with them.
struct Reader<'p> {
    prefix: &'p str,
    faults: Vec<Finding>,
}

impl Reader<'_> {
    fn find(&mut self, pointer: &str, message: impl Into<String>) {
        self.faults
            .push(finding("invalid_event", self.prefix, pointer, message));
    }

    fn wrong(&mut self, field: &Field<'_>, message: impl Into<String>) {
        self.find(&format!("/{}", field.key), message);
    }

    fn wrong_kind(&mut self, field: &Field<'_>, wanted: &str) {
        let hint = if field.kind == Kind::Null {
            "; leave the field out instead"
        } else {
            ""
        };
        self.wrong(
            field,
            format!("must be {wanted}, got {}{hint}", field.kind.word()),
        );
    }

    fn unknown(&mut self, key: &str) {
        if self.faults.len() >= FAULTS_MAX {
            return;
        }
        let message = format!(
            "unknown field `{}`{}",
            shown(key, 64),
            did_you_mean(key, FIELDS)
        );
        self.find(&format!("/{}", scan::segment(key)), message);
    }

    /// The field's text, without control characters.
    fn text<'f>(&mut self, field: &'f Field<'_>) -> Option<Cow<'f, str>> {
        if field.kind != Kind::String {
            self.wrong_kind(field, "a string");
            return None;
        }
        // Without text it holds a lone surrogate, which the scanner has told.
        let text = scan::unescaped(field.raw)?;
        if text.chars().any(char::is_control) {
            self.wrong(field, "must not contain control characters");
            return None;
        }
        Some(text)
    }

    fn id(&mut self, field: Option<&Field<'_>>, envelope: &Envelope<'_>) -> Option<EventId> {
        if let Some(field) = field {
            let text = self.text(field)?;
            return EventId::parse(&text)
                .map_err(|bad| self.wrong(field, bad.0))
                .ok();
        }
        if let Some(text) = envelope.message_id {
            let told = |bad: crate::id::BadId| {
                self.find(
                    "/id",
                    format!("the `message_id` that stands for it {}", bad.0),
                );
            };
            return EventId::parse(text).map_err(told).ok();
        }
        if envelope.fresh_id.is_none() {
            self.find(
                "/id",
                "is required (or the message's `message_id` property)",
            );
        }
        envelope.fresh_id.map(|fresh| fresh())
    }

    fn tenant(&mut self, field: Option<&Field<'_>>, bound: Option<&Tenant>) -> Option<Tenant> {
        let Some(field) = field else {
            if bound.is_none() {
                self.find("/tenant", "is required");
            }
            return bound.cloned();
        };
        let text = self.text(field)?;
        let tenant = Tenant::parse(&text)
            .map_err(|bad| self.wrong(field, bad.0))
            .ok()?;
        if bound.is_some_and(|bound| *bound != tenant) {
            let message = "is not the tenant that the caller may publish for";
            let mut finding = finding("tenant_mismatch", self.prefix, "/tenant", message);
            finding.status = 403;
            self.faults.push(finding);
            return None;
        }
        Some(tenant)
    }

    fn kind(&mut self, given: bool, text: Option<&str>) -> Option<EventType> {
        if !given {
            self.find("/type", "is required");
        }
        let text = text?;
        let parsed = match text.strip_prefix("client.") {
            // The synonym that services know the customer by.
            Some(action) => EventType::parse(&format!("customer.{action}")),
            None => EventType::parse(text),
        };
        parsed.map_err(|bad| self.find("/type", bad.0)).ok()
    }

    fn timestamp(&mut self, field: &Field<'_>) -> Option<Timestamp> {
        if field.kind != Kind::String {
            self.wrong_kind(field, "an RFC 3339 time such as \"2026-03-01T09:30:00Z\"");
            return None;
        }
        let text = self.text(field)?;
        let parsed = rfc3339(&text);
        if parsed.is_none() {
            self.wrong(
                field,
                format!(
                    "must be an RFC 3339 time such as \"2026-03-01T09:30:00Z\", got \"{}\"",
                    shown(&text, 40)
                ),
            );
        }
        parsed
    }

    /// A time that is not in the future, as far as two clocks can agree on it.
    fn past(&mut self, field: &Field<'_>, now: Timestamp) -> Option<Timestamp> {
        let time = self.timestamp(field)?;
        if time.duration_since(now) > SKEW_MAX {
            let message = format!(
                "is in the future: {time}, and now is {now} (at most 5 minutes ahead are taken)"
            );
            self.faults
                .push(finding("future_timestamp", self.prefix, "/time", message));
            return None;
        }
        Some(time)
    }

    fn status(&mut self, field: &Field<'_>) -> Option<String> {
        let text = self.text(field)?;
        if text.len() > STATUS_BYTES_MAX {
            self.wrong(
                field,
                format!(
                    "must be at most {STATUS_BYTES_MAX} bytes, got {}",
                    text.len()
                ),
            );
            return None;
        }
        Some(text.into_owned())
    }

    fn version(&mut self, field: &Field<'_>) -> Option<u64> {
        let parsed = field
            .raw
            .parse()
            .ok()
            .filter(|_| field.kind == Kind::Number);
        if parsed.is_none() {
            let wanted = format!("a whole number from 0 to {}", u64::MAX);
            if field.kind == Kind::Number {
                self.wrong(field, format!("must be {wanted}"));
            } else {
                self.wrong_kind(field, &wanted);
            }
        }
        parsed
    }

    fn subject(&mut self, field: &Field<'_>) -> Option<Subject> {
        const WANTED: &str = "a string, a number, or an array of those";
        match field.kind {
            Kind::Number => {}
            Kind::String => self.subject_text(field.raw, "/subject"),
            Kind::Array => self.subject_array(field),
            _ => self.wrong_kind(field, WANTED),
        }
        self.raw(field).map(Subject)
    }

    fn subject_array(&mut self, field: &Field<'_>) {
        let elements = match serde_json::from_str::<Vec<&RawValue>>(field.raw) {
            Ok(elements) if !elements.is_empty() => elements,
            Ok(_) => return self.wrong(field, "must not be an empty array"),
            Err(_) => return self.wrong(field, "must be an array"),
        };
        for (index, element) in elements.into_iter().enumerate() {
            let pointer = format!("/subject/{index}");
            match element.get().as_bytes().first() {
                Some(b'"') => self.subject_text(element.get(), &pointer),
                Some(b'-' | b'0'..=b'9') => {}
                _ => self.find(&pointer, "must be a string or a number"),
            }
            if self.faults.len() >= FAULTS_MAX {
                return;
            }
        }
    }

    fn subject_text(&mut self, raw: &str, pointer: &str) {
        let Some(text) = scan::unescaped(raw) else {
            return;
        };
        if text.is_empty() || text.len() > SUBJECT_BYTES_MAX {
            let got = text.len();
            self.find(
                pointer,
                format!("must be 1 to {SUBJECT_BYTES_MAX} bytes, got {got}"),
            );
        } else if text.chars().any(char::is_control) {
            self.find(pointer, "must not contain control characters");
        }
    }

    fn object(&mut self, field: &Field<'_>) -> Option<Box<RawValue>> {
        if field.kind != Kind::Object {
            self.wrong_kind(field, "an object");
            return None;
        }
        self.raw(field)
    }

    fn raw(&mut self, field: &Field<'_>) -> Option<Box<RawValue>> {
        let raw = RawValue::from_string(field.raw.to_owned());
        // The scanner has read it, so this says that it and serde_json differ on what JSON is.
        raw.map_err(|error| self.wrong(field, format!("is not JSON: {error}")))
            .ok()
    }
}

/// RFC 3339 alone: of the many forms that the time library reads, only the one in the contract.
fn rfc3339(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let digits = |range: std::ops::Range<usize>| {
        bytes
            .get(range)
            .is_some_and(|part| part.iter().all(u8::is_ascii_digit))
    };
    let mark = |at: usize, any: &[u8]| bytes.get(at).is_some_and(|byte| any.contains(byte));
    let shape = digits(0..4)
        && mark(4, b"-")
        && digits(5..7)
        && mark(7, b"-")
        && digits(8..10)
        && mark(10, b"Tt ")
        && digits(11..13)
        && mark(13, b":")
        && digits(14..16)
        && mark(16, b":")
        && digits(17..19);
    let rest = text.get(19..).filter(|_| shape)?;
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => {
            let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            if zone.len() == fraction.len() {
                return None;
            }
            zone
        }
        None => rest,
    };
    let numeric = |zone: &[u8]| {
        matches!(zone, [b'+' | b'-', h1, h2, b':', m1, m2]
            if [h1, h2, m1, m2].iter().all(|digit| digit.is_ascii_digit()))
    };
    if zone == "Z" || zone == "z" || numeric(zone.as_bytes()) {
        text.parse().ok()
    } else {
        None
    }
}

fn finding(code: &'static str, prefix: &str, pointer: &str, message: impl Into<String>) -> Finding {
    Finding {
        code,
        status: 422,
        fault: Fault::at(format!("{prefix}{pointer}"), message),
    }
}

/// One refusal for everything found. Its code is the findings' own where they agree; what cannot
/// be read at all (400) decides over what was read and is wrong.
fn refusal(mut found: Vec<Finding>) -> Refusal {
    if found
        .iter()
        .any(|finding| finding.code == "tenant_mismatch")
    {
        // Whoever may not publish for a tenant learns nothing else.
        found.retain(|finding| finding.code == "tenant_mismatch");
    }
    let mut code = found.first().map_or("invalid_event", |first| first.code);
    let mut status = found.first().map_or(422, |first| first.status);
    for finding in &found {
        if finding.code != code {
            code = "invalid_event";
        }
        if finding.status != status {
            status = 422;
        }
    }
    if let Some(unread) = found.iter().find(|finding| finding.status == 400) {
        (code, status) = (unread.code, unread.status);
    }
    let faults: Vec<Fault> = found.into_iter().map(|finding| finding.fault).collect();
    Refusal {
        code,
        status,
        detail: sentence("the event", &faults),
        faults,
        position: None,
    }
}

fn too_large(pointer: &str, bytes: usize) -> Refusal {
    let detail = format!("an event is at most {EVENT_BYTES_MAX} bytes, got {bytes}");
    let faults = vec![Fault::at(pointer, detail.as_str())];
    Refusal {
        code: "too_large",
        status: 413,
        detail,
        faults,
        position: None,
    }
}

fn empty(detail: &str) -> Refusal {
    Refusal::invalid("invalid_event", detail, vec![Fault::at("", detail)])
}
