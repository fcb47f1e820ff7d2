//! What callers send besides subscriptions: query parameters and small JSON objects. Read field by
//! field, with everything wrong named at once.

use axum::{
    body::Body,
    extract::Query,
    http::{HeaderMap, StatusCode, Uri, header},
};
use bytes::Bytes;
use event::fault::nearest;
use jiff::Timestamp;
use serde_json::{Map, Value};
use service::http::{Problem, read_body};
use store::Paging;

/// The largest body of a management call.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// The longest page.
const LIMIT_MAX: u64 = 500;

/// A JSON body, unread.
pub(crate) async fn body(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let bytes = read_body(headers, body, BODY_BYTES_MAX).await?;
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    let json = ["application/json", "application/merge-patch+json"];
    // Not only order: a browser sends no foreign page's JSON without asking us first.
    if !bytes.is_empty() && !json.iter().any(|known| kind.eq_ignore_ascii_case(known)) {
        let detail = "the content type must be `application/json`";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(Problem::new(status, "unsupported_media_type", detail));
    }
    Ok(bytes)
}

/// Fields taken one by one.
#[derive(Debug)]
pub(crate) struct Form {
    fields: Map<String, Value>,
    /// `/` for a body's fields, `?` for a query's.
    prefix: char,
    known: Vec<&'static str>,
    faults: Vec<(String, String)>,
}

impl Form {
    /// The parameters of a query.
    pub(crate) fn of_query(uri: &Uri) -> Result<Self, Problem> {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| {
            Problem::new(StatusCode::BAD_REQUEST, "bad_query", error.body_text())
        })?;
        let mut form = Self::new('?', Map::new());
        for (name, value) in pairs.0 {
            if form.fields.insert(name.clone(), value.into()).is_some() {
                form.find(&name, "is given twice");
            }
        }
        Ok(form)
    }

    /// The fields of a JSON object; none for an empty body.
    pub(crate) fn of_body(body: &[u8]) -> Result<Self, Problem> {
        if body.is_empty() {
            return Ok(Self::new('/', Map::new()));
        }
        let bad = |detail| Problem::new(StatusCode::BAD_REQUEST, "bad_json", detail);
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self::new('/', fields)),
            Ok(_) => Err(bad("the body must be a JSON object".into())),
            Err(error) => Err(bad(format!("the body is not JSON: {error}"))),
        }
    }

    fn new(prefix: char, fields: Map<String, Value>) -> Self {
        Self {
            fields,
            prefix,
            known: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Notes something wrong with a field.
    pub(crate) fn find(&mut self, name: &str, message: impl Into<String>) {
        self.faults
            .push((format!("{}{name}", self.prefix), message.into()));
    }

    /// Whether something wrong was noted with a field.
    pub(crate) fn has_fault(&self, name: &str) -> bool {
        let pointer = format!("{}{name}", self.prefix);
        self.faults.iter().any(|(at, _)| *at == pointer)
    }

    /// Takes text that has to be there.
    pub(crate) fn required(&mut self, name: &'static str) -> Option<String> {
        let text = self.text(name);
        if text.is_none() && !self.has_fault(name) {
            self.find(name, "is required");
        }
        text
    }

    /// Takes a field; null is like none.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    /// Takes text.
    pub(crate) fn text(&mut self, name: &'static str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            _ => {
                self.find(name, "must be a string");
                None
            }
        }
    }

    /// Takes text that `parse` understands, or notes what it says.
    pub(crate) fn parsed<T, E: std::fmt::Display>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(name)?;
        parse(&text)
            .map_err(|error| self.find(name, error.to_string()))
            .ok()
    }

    /// Takes one word of a closed set.
    pub(crate) fn word<T: Copy>(
        &mut self,
        name: &'static str,
        all: &[T],
        word: fn(T) -> &'static str,
    ) -> Option<T> {
        self.parsed(name, |text| one_of(text, all, word))
    }

    /// Takes an RFC 3339 time.
    pub(crate) fn time(&mut self, name: &'static str) -> Option<Timestamp> {
        self.parsed(name, |text| {
            text.parse::<Timestamp>()
                .map_err(|_| "must be an RFC 3339 time such as \"2026-03-01T09:30:00Z\"")
        })
    }

    /// Takes `limit`: 1 to 500.
    pub(crate) fn limit(&mut self) -> Option<u32> {
        let number = match self.take("limit")? {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        };
        let fits = number.filter(|n| (1..=LIMIT_MAX).contains(n));
        if fits.is_none() {
            self.find(
                "limit",
                format!("must be a whole number from 1 to {LIMIT_MAX}"),
            );
        }
        fits.and_then(|n| u32::try_from(n).ok())
    }

    /// Takes `cursor` and `limit`.
    pub(crate) fn paging(&mut self) -> Paging {
        Paging {
            // An empty one is how a client's loop begins.
            cursor: self.text("cursor").filter(|cursor| !cursor.is_empty()),
            limit: self.limit().unwrap_or_default(),
        }
    }

    /// Refuses what nobody took, and what was noted: 400 for a query, 422 for a body.
    pub(crate) fn finish(mut self) -> Result<(), Problem> {
        let names: Vec<String> = self.fields.keys().cloned().collect();
        for name in names {
            let near = nearest(&name, self.known.iter().copied())
                .map(|near| format!("; did you mean `{near}`?"))
                .unwrap_or_default();
            self.find(
                &name.replace('~', "~0").replace('/', "~1"),
                format!("is not known{near}"),
            );
        }
        if self.faults.is_empty() {
            return Ok(());
        }
        let (status, code, what) = match self.prefix {
            '?' => (StatusCode::BAD_REQUEST, "bad_query", "the query"),
            _ => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_request",
                "the body",
            ),
        };
        let detail = match self.faults.as_slice() {
            [(pointer, message)] => format!("{what} has a fault: {pointer} {message}"),
            many => format!("{what} has {} faults", many.len()),
        };
        Err(Problem::new(status, code, detail).with_errors(self.faults))
    }
}

/// The member of a closed set that `text` names, or a sentence that lists them.
pub(crate) fn one_of<T: Copy>(
    text: &str,
    all: &[T],
    word: fn(T) -> &'static str,
) -> Result<T, String> {
    all.iter()
        .copied()
        .find(|member| word(*member) == text)
        .ok_or_else(|| {
            let words: Vec<_> = all
                .iter()
                .map(|member| format!("`{}`", word(*member)))
                .collect();
            format!("must be one of {}", words.join(", "))
        })
}
