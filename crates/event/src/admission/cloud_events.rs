//! CloudEvents 1.0 on their way in: structured, batched, or binary, over HTTP or AMQP.
//!
//! An attribute is one field of an event and the other way round, so the attributes are written
//! down as an event and judged as any other; what is told is told in CloudEvents' own names. What
//! a CloudEvent may carry besides (other extensions, `source`, `dataschema`) is let by and dropped:
//! publishers' libraries add such, and an event has no place for it.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;

use super::{Batch, Envelope, FAULTS_MAX, finding, read, refusal, too_large};
use crate::{
    event::{EVENT_BYTES_MAX, Event, EventType},
    fault::{Fault, Refusal, did_you_mean, shown},
    scan::{self, Document, Finding, Kind},
};

#[cfg(test)]
mod tests;

/// The content type of one event, attributes and data together.
pub const STRUCTURED: &str = "application/cloudevents+json";
/// The content type of several.
pub const BATCH: &str = "application/cloudevents-batch+json";
/// How every content type of CloudEvents begins.
const FAMILY: &str = "application/cloudevents";

/// How a CloudEvent stands in its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The body is the whole event.
    Structured,
    /// The body is an array of whole events.
    Batch,
    /// The body is the data; the attributes are headers.
    Binary,
}

/// The attributes of a binary message by their names, in the order of its headers.
pub type Attributes<'a> = Vec<(&'a str, Cow<'a, str>)>;

/// Attributes that are fields of an event: the CloudEvents name, which allows no underscore, and
/// the event's.
const FIELDS: [(&str, &str); 11] = [
    ("id", "id"),
    ("type", "type"),
    ("time", "time"),
    ("subject", "subject"),
    ("tenant", "tenant"),
    ("status", "status"),
    ("previousstatus", "previous_status"),
    ("version", "version"),
    ("expiresat", "expires_at"),
    ("changes", "changes"),
    ("details", "details"),
];

/// What an event of ours has no field for, and we look at.
const OTHERS: [&str; 4] = ["specversion", "source", "datacontenttype", "dataschema"];

/// Which mode a message is in; `None` for one that is no CloudEvent.
pub fn mode(content_type: Option<&str>, attributes: &Attributes<'_>) -> Option<Mode> {
    let kind = essence(content_type.unwrap_or_default());
    if kind.eq_ignore_ascii_case(STRUCTURED) {
        return Some(Mode::Structured);
    }
    if kind.eq_ignore_ascii_case(BATCH) {
        return Some(Mode::Batch);
    }
    // One of these is enough, so that who forgets another is told so.
    let of_event = |name: &str| {
        ["specversion", "id", "type", "source"]
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known))
    };
    attributes
        .iter()
        .any(|(name, _)| of_event(name))
        .then_some(Mode::Binary)
}

/// Whether this is a content type of CloudEvents that is not read, such as its Avro form.
pub fn is_foreign(content_type: Option<&str>) -> bool {
    let kind = essence(content_type.unwrap_or_default());
    kind.get(..FAMILY.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(FAMILY))
        && !kind.eq_ignore_ascii_case(STRUCTURED)
        && !kind.eq_ignore_ascii_case(BATCH)
}

/// Reads one event, or several: all of them, or the refusal of the whole.
pub fn admit(
    mode: Mode,
    content_type: Option<&str>,
    attributes: &Attributes<'_>,
    body: &[u8],
    envelope: &Envelope<'_>,
) -> Result<Vec<Event>, Refusal> {
    match mode {
        Mode::Structured => one(body, envelope),
        Mode::Batch => several(body, envelope),
        Mode::Binary => binary(content_type, attributes, body, envelope).map(|event| vec![event]),
    }
}

fn one(body: &[u8], envelope: &Envelope<'_>) -> Result<Vec<Event>, Refusal> {
    if body.len() > EVENT_BYTES_MAX {
        return Err(too_large("", body.len()));
    }
    let event = structured(scan::object(body)?, "", envelope).map_err(refusal)?;
    Ok(vec![event])
}

fn several(body: &[u8], envelope: &Envelope<'_>) -> Result<Vec<Event>, Refusal> {
    let text = scan::text_of(body)?;
    let first = scan::skip_space(text, 0);
    if text.as_bytes().get(first) != Some(&b'[') {
        let detail = format!("the body must be an array of events; one alone is `{STRUCTURED}`");
        let faults = vec![Fault::at("", detail.as_str())];
        return Err(Refusal::invalid("invalid_event", detail, faults));
    }
    let mut batch = Batch::new(envelope, structured);
    batch.array(text, first + 1)?;
    batch.finish()
}

fn structured(
    document: Document<'_>,
    prefix: &str,
    envelope: &Envelope<'_>,
) -> Result<Event, Vec<Finding>> {
    let mut draft = Draft::new(prefix, document.findings);
    let mut data = Data::None;
    for field in document.fields {
        match &*field.key {
            "data" => draft.one_of(&mut data, Data::Json(field.raw)),
            "data_base64" => draft.one_of(&mut data, Data::Base64(field.raw, field.kind)),
            // CloudEvents has a null attribute mean one that is not set.
            _ if field.kind == Kind::Null => {}
            _ => draft.attribute(Attribute {
                name: field.key,
                raw: Cow::Borrowed(field.raw),
                kind: field.kind,
            }),
        }
    }
    match data {
        Data::None => {}
        Data::Json(raw) => draft.data(raw),
        Data::Base64(raw, kind) => draft.encoded(raw, kind),
    }
    draft.finish(envelope)
}

fn binary(
    content_type: Option<&str>,
    attributes: &Attributes<'_>,
    body: &[u8],
    envelope: &Envelope<'_>,
) -> Result<Event, Refusal> {
    let size = |(name, value): &(&str, Cow<'_, str>)| name.len() + value.len();
    let bytes = body.len() + attributes.iter().map(size).sum::<usize>();
    if bytes > EVENT_BYTES_MAX {
        return Err(too_large("", bytes));
    }
    let mut draft = Draft::new("", Vec::new());
    let mut seen: Vec<&str> = Vec::new();
    for (name, value) in attributes {
        if seen.contains(name) {
            draft.find(&format!("/{}", scan::segment(name)), "is given twice");
            continue;
        }
        seen.push(name);
        let time = is_time(name).then(|| of_milliseconds(value)).flatten();
        draft.attribute(Attribute {
            name: Cow::Borrowed(name),
            raw: Cow::Owned(quoted(time.as_deref().unwrap_or(value))),
            kind: Kind::String,
        });
    }
    if let Some(content_type) = content_type {
        draft.content_type = Some(content_type.to_owned());
    }
    if !body.is_empty() {
        // What is no JSON by its own word would only be told that it is bad JSON.
        if draft.carries_json() {
            let text = scan::text_of(body)?;
            let document = scan::scan(text, 0, "/data")?;
            scan::nothing_after(text, document.end)?;
            draft.findings.extend(document.findings);
            draft.data(document.raw);
        } else {
            draft.data("null");
        }
    }
    draft.finish(envelope).map_err(refusal)
}

/// The data of a structured event, as it stands there.
enum Data<'a> {
    None,
    Json(&'a str),
    Base64(&'a str, Kind),
}

/// One attribute: its name, its value as JSON, and what that is.
struct Attribute<'a> {
    name: Cow<'a, str>,
    raw: Cow<'a, str>,
    kind: Kind,
}

/// An event being written down from its attributes.
struct Draft<'p> {
    prefix: &'p str,
    /// The event so far: `{"id":"…","type":…`.
    text: String,
    findings: Vec<Finding>,
    specversion: bool,
    source: bool,
    content_type: Option<String>,
    has_data: bool,
}

impl<'p> Draft<'p> {
    fn new(prefix: &'p str, findings: Vec<Finding>) -> Self {
        Self {
            prefix,
            text: String::new(),
            findings,
            specversion: false,
            source: false,
            content_type: None,
            has_data: false,
        }
    }

    fn find(&mut self, pointer: &str, message: impl Into<String>) {
        self.findings
            .push(finding("invalid_event", self.prefix, pointer, message));
    }

    fn put(&mut self, field: &str, raw: &str) {
        self.text.push(if self.text.is_empty() { '{' } else { ',' });
        self.text.push('"');
        self.text.push_str(field);
        self.text.push_str("\":");
        self.text.push_str(raw);
    }

    fn one_of<'a>(&mut self, data: &mut Data<'a>, given: Data<'a>) {
        if !matches!(data, Data::None) {
            self.find("/data_base64", "stands beside `data`; send one of them");
        }
        *data = given;
    }

    fn attribute(&mut self, attribute: Attribute<'_>) {
        let name = &*attribute.name;
        match name {
            "specversion" => self.specversion(&attribute),
            "source" => self.source = self.uri(&attribute),
            "dataschema" => _ = self.uri(&attribute),
            "datacontenttype" => self.content_type = self.text_of(&attribute),
            "type" => self.kind(&attribute),
            "version" => match digits(&attribute) {
                // Text in a header, and in JSON where it is beyond CloudEvents' 32 bits.
                Some(digits) => self.put("version", digits),
                None => self.put("version", &attribute.raw),
            },
            "changes" | "details" => self.view(&attribute),
            _ => match FIELDS.iter().find(|(known, _)| *known == name) {
                Some((_, field)) => self.put(field, &attribute.raw),
                None => self.other(name),
            },
        }
    }

    fn specversion(&mut self, attribute: &Attribute<'_>) {
        self.specversion = true;
        if attribute.raw != r#""1.0""# {
            let got = shown(&attribute.raw, 32);
            self.find("/specversion", format!("must be \"1.0\", got {got}"));
        }
    }

    /// The text of an attribute that we look at and do not keep.
    fn text_of(&mut self, attribute: &Attribute<'_>) -> Option<String> {
        let text = (attribute.kind == Kind::String)
            .then(|| scan::unescaped(&attribute.raw))
            .flatten();
        if text.is_none() {
            let kind = attribute.kind.word();
            self.find(
                &format!("/{}", attribute.name),
                format!("must be a string, got {kind}"),
            );
        }
        text.map(Cow::into_owned)
    }

    /// Whether it is given, right or wrong.
    fn uri(&mut self, attribute: &Attribute<'_>) -> bool {
        if self.text_of(attribute).is_some_and(|text| text.is_empty()) {
            self.find(&format!("/{}", attribute.name), "must not be empty");
        }
        true
    }

    /// CloudEvents advises a reverse-DNS prefix, which would be no `entity.action`. It is not cut
    /// off: a type that is another here than at its publisher would be found by nobody.
    fn kind(&mut self, attribute: &Attribute<'_>) {
        if let Some(text) = Some(attribute)
            .filter(|attribute| attribute.kind == Kind::String)
            .and_then(|attribute| scan::unescaped(&attribute.raw))
            && let Some((at, _)) = text.rmatch_indices('.').nth(1)
            && EventType::parse(&text[at + 1..]).is_ok()
        {
            let message = format!(
                "is taken as it is, so it must be `entity.action`: send `{}` and name yourself in `source`",
                &text[at + 1..]
            );
            self.find("/type", message);
        }
        self.put("type", &attribute.raw);
    }

    /// `changes` or `details`: an object, or, as an attribute properly is, its JSON as text.
    fn view(&mut self, attribute: &Attribute<'_>) {
        let pointer = format!("{}/{}", self.prefix, attribute.name);
        if attribute.kind != Kind::String {
            return self.put(&attribute.name, &attribute.raw);
        }
        // Without text it holds a lone surrogate, which the scanner has told.
        let Some(text) = scan::unescaped(&attribute.raw) else {
            return self.put(&attribute.name, "{}");
        };
        let scanned = scan::scan(&text, 0, &pointer).and_then(|document| {
            scan::nothing_after(&text, document.end)?;
            Ok(document)
        });
        match scanned {
            Ok(document) => {
                self.findings.extend(document.findings);
                self.put(&attribute.name, document.raw);
            }
            Err(refusal) => {
                let message = format!("must be the JSON text of an object: {}", refusal.detail);
                self.find(&format!("/{}", attribute.name), message);
                self.put(&attribute.name, "{}");
            }
        }
    }

    /// An attribute of somebody else's; one that CloudEvents does not allow is rather a slip.
    fn other(&mut self, name: &str) {
        let allowed = !name.is_empty()
            && name != "data"
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !allowed && self.findings.len() < FAULTS_MAX {
            let known = FIELDS.iter().map(|(known, _)| *known).chain(OTHERS);
            let message = format!(
                "`{}` is no name of an attribute, which is of a-z and 0-9{}",
                shown(name, 64),
                did_you_mean(name, known)
            );
            self.find(&format!("/{}", scan::segment(name)), message);
        }
    }

    fn data(&mut self, raw: &str) {
        self.has_data = true;
        self.put("data", raw);
    }

    /// `data_base64`, which is for what is no JSON, but some libraries write it for any bytes.
    fn encoded(&mut self, raw: &str, kind: Kind) {
        let bytes = (kind == Kind::String)
            .then(|| scan::unescaped(raw))
            .flatten()
            .and_then(|text| STANDARD.decode(text.as_bytes()).ok());
        let Some(bytes) = bytes else {
            self.find("/data_base64", "must be a string of base64");
            return self.data("null");
        };
        if !self.carries_json() {
            return self.data("null");
        }
        let pointer = format!("{}/data_base64", self.prefix);
        let scanned = scan::text_of(&bytes).and_then(|text| {
            let document = scan::scan(text, 0, &pointer)?;
            scan::nothing_after(text, document.end)?;
            Ok(document)
        });
        match scanned {
            Ok(document) => {
                self.findings.extend(document.findings);
                self.data(document.raw);
            }
            Err(refusal) => {
                let message = format!("must hold JSON: {}", refusal.detail);
                self.find("/data_base64", message);
                self.data("null");
            }
        }
    }

    fn carries_json(&self) -> bool {
        self.content_type.as_deref().is_none_or(is_json)
    }

    fn finish(mut self, envelope: &Envelope<'_>) -> Result<Event, Vec<Finding>> {
        for (name, given) in [("specversion", self.specversion), ("source", self.source)] {
            if !given {
                self.find(&format!("/{name}"), "is required by CloudEvents");
            }
        }
        if self.has_data && !self.carries_json() {
            let got = shown(self.content_type.as_deref().unwrap_or_default(), 64);
            let message = format!("must be JSON in UTF-8, such as `application/json`, got `{got}`");
            self.find("/datacontenttype", message);
        }
        if self.text.is_empty() {
            self.text.push('{');
        }
        self.text.push('}');
        let envelope = Envelope {
            // CloudEvents requires an id of its own.
            message_id: None,
            fresh_id: None,
            ..envelope.clone()
        };
        let document = match scan::object(self.text.as_bytes()) {
            // What is wrong with a value has been found where it stands. What only the whole shows
            // is left: a value as deep as can be is too deep inside of an event.
            Ok(document) if !self.findings.is_empty() => Document {
                findings: Vec::new(),
                ..document
            },
            Ok(document) => document,
            Err(refusal) => {
                self.findings.push(Finding {
                    code: refusal.code,
                    status: refusal.status,
                    fault: Fault::at(self.prefix, refusal.detail),
                });
                return Err(self.findings);
            }
        };
        let fields = read(document, self.prefix, &envelope);
        let mut found = self.findings;
        let fields = match fields {
            Ok(event) if found.is_empty() => return Ok(event),
            Ok(_) => return Err(found),
            Err(fields) => fields,
        };
        for mut finding in fields {
            finding.fault = renamed(finding.fault, self.prefix);
            let told = |earlier: &Finding| earlier.fault.pointer == finding.fault.pointer;
            if !found.iter().any(told) {
                found.push(finding);
            }
        }
        Err(found)
    }
}

/// A fault of an event's field at the attribute that it came from.
fn renamed(fault: Fault, prefix: &str) -> Fault {
    let Some(rest) = fault.pointer.strip_prefix(prefix) else {
        return fault;
    };
    let mut message = fault.message;
    if rest == "/id" && message.contains("message_id") {
        message = "is required by CloudEvents".into();
    }
    for (attribute, field) in FIELDS {
        if attribute != field
            && let Some(inner) = rest
                .strip_prefix('/')
                .and_then(|rest| rest.strip_prefix(field))
            && (inner.is_empty() || inner.starts_with('/'))
        {
            return Fault::at(format!("{prefix}/{attribute}{inner}"), message);
        }
    }
    Fault::at(fault.pointer, message)
}

/// The digits of a whole number that is written as text.
fn digits<'a>(attribute: &'a Attribute<'_>) -> Option<&'a str> {
    let text = attribute.raw.strip_prefix('"')?.strip_suffix('"')?;
    let whole = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (whole && (text == "0" || !text.starts_with('0'))).then_some(text)
}

fn is_time(name: &str) -> bool {
    matches!(name, "time" | "expiresat")
}

/// A time as AMQP has it, and as libraries for it write a header: milliseconds since 1970.
fn of_milliseconds(text: &str) -> Option<String> {
    let whole = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let milliseconds = whole.then(|| text.parse().ok()).flatten()?;
    let time = Timestamp::from_millisecond(milliseconds).ok()?;
    Some(time.to_string())
}

/// A text as JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A content type without its parameters.
fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Whether data of this content type is JSON in UTF-8.
fn is_json(content_type: &str) -> bool {
    let kind = essence(content_type).to_ascii_lowercase();
    let foreign = content_type.split(';').skip(1).any(|parameter| {
        parameter.split_once('=').is_some_and(|(name, value)| {
            name.trim().eq_ignore_ascii_case("charset")
                && !value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        })
    });
    let json = matches!(&*kind, "application/json" | "text/json")
        || kind
            .split_once('/')
            .is_some_and(|(_, kind)| kind.ends_with("+json"));
    json && !foreign
}

/// The attribute that an HTTP header carries, in any case of its name.
pub fn of_http_header(name: &str) -> Option<&str> {
    prefixed(name, "ce-")
}

/// The value of an attribute in an HTTP header: quotes and percent-encoding undone, as the HTTP
/// binding has it. `None` when that is no UTF-8.
pub fn of_http_value(value: &[u8]) -> Option<String> {
    let value = value.trim_ascii();
    let mut text = Vec::with_capacity(value.len());
    match value
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""))
    {
        Some(inner) => {
            let mut bytes = inner.iter();
            while let Some(byte) = bytes.next() {
                text.extend(if *byte == b'\\' {
                    bytes.next()
                } else {
                    Some(byte)
                });
            }
        }
        None => text.extend_from_slice(value),
    }
    String::from_utf8(percent_decoded(&text)).ok()
}

fn percent_decoded(bytes: &[u8]) -> Vec<u8> {
    let hex = |at: usize| {
        let digit = bytes.get(at).map(|byte| char::from(*byte))?.to_digit(16)?;
        u8::try_from(digit).ok()
    };
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(high << 4 | low);
                at += 3;
            }
            // A lone `%` is what somebody meant by it.
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

/// The attribute that an AMQP header carries: `cloudEvents:` and `cloudEvents_` are the binding's
/// prefixes, and `ce-` is HTTP's, which some publishers use everywhere.
pub fn of_amqp_header(name: &str) -> Option<&str> {
    ["cloudEvents:", "cloudEvents_", "ce-"]
        .into_iter()
        .find_map(|prefix| prefixed(name, prefix))
}

fn prefixed<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let start = name.get(..prefix.len())?;
    start
        .eq_ignore_ascii_case(prefix)
        .then(|| &name[prefix.len()..])
}
