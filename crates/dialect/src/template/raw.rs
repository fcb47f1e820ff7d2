//! JSON text as a value of the template language: written as it was published, taken apart one
//! level at a time, and only where a template looks into it.

use std::{
    fmt::{self, Write as _},
    ops::Range,
    sync::{Arc, OnceLock},
};

use minijinja::{
    Error, ErrorKind, Output, Value,
    value::{Enumerator, Object, ObjectRepr, ValueKind},
};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{GAP, edited::Edited, written};

/// A JSON text, or a part of one.
#[derive(Debug)]
pub(crate) struct Raw {
    text: Arc<str>,
    at: Range<usize>,
    /// Whether it is the whole view, which goes into a gap.
    whole: bool,
    level: OnceLock<Level>,
}

/// One level of a value, taken apart.
#[derive(Debug)]
enum Level {
    Object(Vec<(Box<str>, Range<usize>)>),
    Array(Vec<Range<usize>>),
    Leaf,
}

impl Raw {
    /// A whole JSON text, written as it is.
    pub(crate) fn value(text: &str) -> Value {
        natural(&text.into(), 0..text.len())
    }

    /// The view: what a template writes of it whole is copied past the template. It is a JSON text
    /// without space around it.
    pub(crate) fn view(text: &str) -> Value {
        Value::from_object(Self {
            text: text.into(),
            at: 0..text.len(),
            whole: true,
            level: OnceLock::new(),
        })
    }

    /// The entries of an object, each value as published.
    pub(super) fn entries(&self) -> Option<impl Iterator<Item = (&str, &str)>> {
        let Level::Object(entries) = self.level() else {
            return None;
        };
        let text = |at: &Range<usize>| self.text.get(at.clone()).unwrap_or("null");
        Some(entries.iter().map(move |(key, at)| (&**key, text(at))))
    }

    /// An entry of an object, by its place.
    pub(super) fn entry(&self, place: usize) -> Option<(&str, &str)> {
        let Level::Object(entries) = self.level() else {
            return None;
        };
        let (key, at) = entries.get(place)?;
        Some((&**key, self.text.get(at.clone())?))
    }

    fn part(text: &Arc<str>, at: Range<usize>) -> Value {
        Value::from_object(Self {
            text: text.clone(),
            at,
            whole: false,
            level: OnceLock::new(),
        })
    }

    fn get(&self) -> &str {
        self.text.get(self.at.clone()).unwrap_or("null")
    }

    fn level(&self) -> &Level {
        self.level
            .get_or_init(|| match self.get().as_bytes().first() {
                Some(b'{') => Level::read(self.get(), self.at.start, Entries),
                Some(b'[') => Level::read(self.get(), self.at.start, Elements),
                _ => Level::Leaf,
            })
    }

    fn find(&self, key: &str) -> Option<Value> {
        match self.level() {
            Level::Object(entries) => entries
                .iter()
                .find(|(known, _)| **known == *key)
                .map(|(_, at)| natural(&self.text, at.clone())),
            _ => None,
        }
    }
}

impl Object for Raw {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        match self.get().as_bytes().first() {
            Some(b'{') => ObjectRepr::Map,
            Some(b'[') => ObjectRepr::Seq,
            _ => ObjectRepr::Plain,
        }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match self.level() {
            Level::Object(_) => self.find(key.as_str()?),
            Level::Array(elements) => {
                let at = elements.get(key.as_usize()?)?;
                Some(natural(&self.text, at.clone()))
            }
            Level::Leaf => None,
        }
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.find(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match self.level() {
            Level::Object(entries) => {
                let keys: Vec<Value> = entries.iter().map(|(key, _)| Value::from(&**key)).collect();
                Enumerator::Iter(Box::new(keys.into_iter()))
            }
            Level::Array(elements) => Enumerator::Seq(elements.len()),
            Level::Leaf => Enumerator::NonEnumerable,
        }
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        match self.level() {
            Level::Object(entries) => Some(entries.len()),
            Level::Array(elements) => Some(elements.len()),
            Level::Leaf => None,
        }
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.get())
    }
}

/// A part as a template thinks of it: texts, truths, `none` and small whole numbers are values of
/// the language; objects, lists and all other numbers stay as they were published.
fn natural(text: &Arc<str>, at: Range<usize>) -> Value {
    let part = text.get(at.clone()).unwrap_or("null");
    match part.as_bytes() {
        b"null" => Value::from(()),
        b"true" => true.into(),
        b"false" => false.into(),
        // Without escapes the text stands between the quotes as it is.
        [b'"', text @ .., b'"'] if !text.contains(&b'\\') => part[1..part.len() - 1].into(),
        [b'"', ..] => match serde_json::from_str::<String>(part) {
            Ok(unescaped) => unescaped.into(),
            // A lone surrogate is no text; it can still be sent on.
            Err(_) => Raw::part(text, at),
        },
        [b'-' | b'0'..=b'9', ..] => match part.parse::<i64>() {
            // Minus nothing is a number of its own.
            Ok(number) if part != "-0" => number.into(),
            _ => Raw::part(text, at),
        },
        _ => Raw::part(text, at),
    }
}

/// What a filter sees of a value that `fields` left as published.
pub(super) fn plain(value: &Value) -> Value {
    match value.downcast_object_ref::<Raw>() {
        Some(raw) => natural(&raw.text, raw.at.clone()),
        None => value.clone(),
    }
}

/// The pairs of an object, each value as published.
pub(super) fn fields(value: &Value) -> Result<Value, Error> {
    let Some(raw) = value.downcast_object_ref::<Raw>() else {
        return Err(no_object());
    };
    let Level::Object(entries) = raw.level() else {
        return Err(no_object());
    };
    let pairs: Vec<Value> = entries
        .iter()
        .map(|(key, at)| Value::from(vec![Value::from(&**key), Raw::part(&raw.text, at.clone())]))
        .collect();
    Ok(pairs.into())
}

/// The elements of a list, each as published.
pub(super) fn elements(value: &Value) -> Result<Value, Error> {
    let parts = value
        .downcast_object_ref::<Raw>()
        .map(|raw| match raw.level() {
            Level::Array(elements) => elements
                .iter()
                .map(|at| Raw::part(&raw.text, at.clone()))
                .collect::<Vec<Value>>(),
            _ => Vec::new(),
        });
    parts.map(Value::from).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOperation,
            "`elements` needs a list of the event",
        )
    })
}

fn no_object() -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        "`fields` needs an object of the event, such as `view`",
    )
}

/// Writes a value as JSON.
pub(super) fn write_json(out: &mut Output<'_>, value: &Value, depth: usize) -> Result<(), Error> {
    if depth == 0 {
        let reason = "the value is nested too deep";
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    if let Some(raw) = value.downcast_object_ref::<Raw>() {
        return written(if raw.whole {
            out.write_char(char::from(GAP))
        } else {
            out.write_str(raw.get())
        });
    }
    if let Some(edited) = value.downcast_object_ref::<Edited>() {
        return edited.write(out, depth - 1);
    }
    if value.is_safe() {
        // A block that was captured has been escaped where it was written.
        return written(out.write_str(value.as_str().unwrap_or_default()));
    }
    match value.kind() {
        ValueKind::None => written(out.write_str("null")),
        ValueKind::Bool => written(out.write_str(truth(value))),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(number) if !number.is_finite() => Err(Error::new(
                ErrorKind::InvalidOperation,
                "the number has no end, which JSON cannot say",
            )),
            _ => written(write!(out, "{value}")),
        },
        ValueKind::String => written(write_string(out, value.as_str().unwrap_or_default())),
        ValueKind::Seq | ValueKind::Iterable => {
            written(out.write_char('['))?;
            for (n, element) in value.try_iter()?.enumerate() {
                if n > 0 {
                    written(out.write_char(','))?;
                }
                write_json(out, &element, depth - 1)?;
            }
            written(out.write_char(']'))
        }
        ValueKind::Map => {
            written(out.write_char('{'))?;
            for (n, key) in value.try_iter()?.enumerate() {
                if n > 0 {
                    written(out.write_char(','))?;
                }
                written(write_string(out, &key.to_string()))?;
                written(out.write_char(':'))?;
                write_json(out, &value.get_item(&key)?, depth - 1)?;
            }
            written(out.write_char('}'))
        }
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        _ => Err(Error::new(
            ErrorKind::InvalidOperation,
            "the value cannot be said in JSON",
        )),
    }
}

/// The language would write it as Python does.
fn truth(value: &Value) -> &'static str {
    if value.is_true() { "true" } else { "false" }
}

/// A value as text, for the filters that make one of it.
pub(super) fn text_of(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::Bool => Ok(truth(value).into()),
        _ => Ok(value.to_string()),
    }
}

/// Writes a value as text.
pub(super) fn write_text(out: &mut Output<'_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::None => Ok(()),
        ValueKind::Bool => written(out.write_str(truth(value))),
        _ => match value.downcast_object_ref::<Raw>() {
            Some(raw) => written(out.write_str(raw.get())),
            None => written(write!(out, "{value}")),
        },
    }
}

pub(super) fn write_string(out: &mut Output<'_>, text: &str) -> fmt::Result {
    out.write_char('"')?;
    let mut rest = text;
    while let Some(at) = rest.find(|c| c < ' ' || c == '"' || c == '\\') {
        out.write_str(&rest[..at])?;
        let byte = rest.as_bytes()[at];
        match byte {
            b'"' => out.write_str("\\\"")?,
            b'\\' => out.write_str("\\\\")?,
            b'\n' => out.write_str("\\n")?,
            b'\r' => out.write_str("\\r")?,
            b'\t' => out.write_str("\\t")?,
            _ => write!(out, "\\u{byte:04x}")?,
        }
        rest = &rest[at + 1..];
    }
    out.write_str(rest)?;
    out.write_char('"')
}

impl Level {
    /// Reads one level of `text`, which stands at `from` in the whole.
    fn read<'de, V: Visitor<'de, Value = Parts<'de>>>(
        text: &'de str,
        from: usize,
        visitor: V,
    ) -> Self {
        let mut reader = serde_json::Deserializer::from_str(text);
        let place = |part: &RawValue| {
            // A raw value that was borrowed is a part of the text it was read from.
            let at = from + (part.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
            at..at + part.get().len()
        };
        match reader.deserialize_any(visitor) {
            Ok(Parts::Entries(entries)) => Self::Object(
                entries
                    .into_iter()
                    .map(|(key, part)| (key, place(part)))
                    .collect(),
            ),
            Ok(Parts::Elements(elements)) => Self::Array(elements.into_iter().map(place).collect()),
            // It was JSON when it was admitted.
            Err(_) => Self::Leaf,
        }
    }
}

enum Parts<'de> {
    Entries(Vec<(Box<str>, &'de RawValue)>),
    Elements(Vec<&'de RawValue>),
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Parts<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::with_capacity(32);
        while let Some(entry) = map.next_entry::<Box<str>, &'de RawValue>()? {
            entries.push(entry);
        }
        Ok(Parts::Entries(entries))
    }
}

struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = Parts<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = list.next_element::<&'de RawValue>()? {
            elements.push(element);
        }
        Ok(Parts::Elements(elements))
    }
}
