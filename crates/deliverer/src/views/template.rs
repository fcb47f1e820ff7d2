//! The URL of a loader: text with `{id}`, `{view}` and `{tenant}` in its path or query, filled in
//! for one event. Pure. What is filled in can name a record and nothing else: it is
//! percent-encoded, and it cannot climb out of its path segment.

use std::borrow::Cow;

use event::{Event, subscription::View};
use serde_json::value::RawValue;
use url::Url;

/// How long a subject's id may be in a URL, in bytes.
const ID_BYTES_MAX: usize = 1024;

/// A URL with places to fill in.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Id,
    View,
    Tenant,
}

impl Template {
    /// Parses what an operator wrote, or says what is wrong with it.
    pub(crate) fn parse(written: &str) -> Result<Self, String> {
        if written.is_empty() {
            return Err("is missing: a loader needs a URL with `{id}`".into());
        }
        let parts = parts(written)?;
        if !parts.contains(&Part::Id) {
            return Err("must contain `{id}`".into());
        }
        // As written: the parser would make a host of what follows in `https:///{id}`.
        let authority = written
            .split_once("://")
            .and_then(|(_, rest)| rest.split(['/', '?', '#']).next())
            .filter(|authority| !authority.is_empty())
            .ok_or("must begin with `https://` or `http://` and a host")?;
        if authority.contains(['{', '}', '\\']) {
            return Err("must have a fixed host: placeholders belong into path or query".into());
        }
        let template = Self { parts };
        let example = template
            .with("1", "full", "tenant")
            .map_err(|error| format!("is not a URL: {error}"))?;
        if !matches!(example.scheme(), "http" | "https") || !example.has_host() {
            return Err("must begin with `https://` or `http://` and a host".into());
        }
        if !example.username().is_empty() || example.password().is_some() {
            return Err("must not contain credentials: use `token` or `headers`".into());
        }
        if example.fragment().is_some() {
            return Err("must not have a fragment (`#…`)".into());
        }
        Ok(template)
    }

    /// The URL for one event, or why it has none.
    pub(crate) fn fill(&self, event: &Event, view: View) -> Result<Url, &'static str> {
        let id = id_of(event)?;
        if id.is_empty() || id.len() > ID_BYTES_MAX || id.bytes().all(|byte| byte == b'.') {
            return Err("the subject's id cannot stand in a URL");
        }
        self.with(&id, word(view), event.tenant.as_str())
            .map_err(|_| "the subject's id cannot stand in a URL")
    }

    fn with(&self, id: &str, view: &str, tenant: &str) -> Result<Url, url::ParseError> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(fixed) => text.push_str(fixed),
                Part::Id => encode(id, &mut text),
                Part::View => encode(view, &mut text),
                Part::Tenant => encode(tenant, &mut text),
            }
        }
        Url::parse(&text)
    }
}

fn parts(written: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = written;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, behind) = after.split_once('}').ok_or("has a `{` without its `}`")?;
        parts.push(Part::Text(before.to_owned()));
        parts.push(match name {
            "id" => Part::Id,
            "view" => Part::View,
            "tenant" => Part::Tenant,
            _ => {
                return Err("may contain `{id}`, `{view}` and `{tenant}`, and no other `{`".into());
            }
        });
        rest = behind;
    }
    parts.push(Part::Text(rest.to_owned()));
    Ok(parts)
}

/// The word of a view in URLs: as in a subscription.
fn word(view: View) -> &'static str {
    match view {
        View::Basic => "basic",
        View::Full => "full",
        View::Extended => "extended",
    }
}

/// Everything but what RFC 3986 calls unreserved is encoded.
fn encode(value: &str, into: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            into.push('%');
            for digit in [byte >> 4, byte & 15] {
                into.push(char::from(HEX[usize::from(digit)]));
            }
        }
    }
}

/// The id of the one record that the event is about: its subject, or else the `id` in its data.
fn id_of(event: &Event) -> Result<Cow<'_, str>, &'static str> {
    if let Some(subject) = &event.subject {
        let text = subject.0.get().trim();
        if !text.starts_with('[') {
            return scalar(text).ok_or("the subject is not one id");
        }
        return match serde_json::from_str::<Vec<&RawValue>>(text).as_deref() {
            Ok([one]) => scalar(one.get()).map(|id| Cow::Owned(id.into_owned())),
            _ => None,
        }
        .ok_or("the event is about several records, and a view is of one");
    }
    #[derive(serde::Deserialize)]
    struct Identified<'a> {
        #[serde(borrow)]
        id: Option<&'a RawValue>,
    }
    // An array would be read by position.
    let data = event.data.as_deref().map(RawValue::get);
    data.filter(|data| data.starts_with('{'))
        .and_then(|data| serde_json::from_str::<Identified<'_>>(data).ok())
        .and_then(|data| scalar(data.id?.get()))
        .ok_or("the event names no record: it has no subject, and its data no id")
}

/// A string's content, or a number as written.
fn scalar(raw: &str) -> Option<Cow<'_, str>> {
    match raw.as_bytes().first()? {
        b'"' => serde_json::from_str::<String>(raw).ok().map(Cow::Owned),
        b'-' | b'0'..=b'9' => Some(Cow::Borrowed(raw)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(more: Value) -> Event {
        let mut event = json!({
            "id": "e", "tenant": "salon:17", "type": "appointment.created",
            "time": "2026-03-01T10:00:00Z",
        });
        let fields = event.as_object_mut().expect("an object");
        fields.extend(more.as_object().cloned().unwrap_or_default());
        serde_json::from_value(event).expect("an event")
    }

    fn filled(template: &str, more: Value) -> Result<String, &'static str> {
        let template = Template::parse(template).expect("a template");
        template
            .fill(&event(more), View::Extended)
            .map(|url| url.as_str().to_owned())
    }

    #[test]
    fn placeholders_are_filled_in_and_encoded() {
        let url = "http://records:8080/{tenant}/appointments/{id}?view={view}&again={id}";
        for (id, encoded) in [
            (json!(10), "10"),
            (json!("10"), "10"),
            (json!([10]), "10"),
            (json!("a b/../c?d#e%2e"), "a%20b%2F..%2Fc%3Fd%23e%252e"),
            (json!("é"), "%C3%A9"),
            (json!("\u{0}\r\n"), "%00%0D%0A"),
        ] {
            assert_eq!(
                filled(url, json!({ "subject": id })).as_deref(),
                Ok(&*format!(
                    "http://records:8080/salon%3A17/appointments/{encoded}?view=extended&again={encoded}"
                ))
            );
        }
    }

    #[test]
    fn the_id_is_the_subjects_or_else_that_of_the_data() {
        let url = "https://a.example/{id}";
        let of = |more| filled(url, more);
        let both = json!({"subject": "s", "data": {"id": "d"}});
        assert_eq!(of(both).as_deref(), Ok("https://a.example/s"));
        let data = json!({"data": {"name": "x", "id": 7}});
        assert_eq!(of(data).as_deref(), Ok("https://a.example/7"));
        for none in [
            json!({}),
            json!({"data": null}),
            json!({"data": [1]}),
            json!({"data": {"id": {"a": 1}}}),
            json!({"data": {"id": null}}),
            json!({"subject": [1, 2]}),
            json!({"subject": []}),
            json!({"subject": ""}),
            json!({"subject": ".."}),
            json!({"subject": "."}),
            json!({"subject": "x".repeat(2000)}),
        ] {
            assert!(of(none.clone()).is_err(), "{none}");
        }
    }

    #[test]
    fn what_is_no_template_is_refused_with_the_reason() {
        for (written, said) in [
            ("", "is missing"),
            ("https://a.example/", "must contain `{id}`"),
            ("https://{tenant}.a.example/{id}", "a fixed host"),
            ("https://a.example/{id}/{name}", "and no other"),
            ("https://a.example/{id}/{view", "without its"),
            ("ftp://a.example/{id}", "must begin with"),
            ("/{id}", "must begin with"),
            ("https:{id}", "must begin with"),
            ("https:///{id}", "must begin with"),
            ("https://a.example\\{id}", "a fixed host"),
            ("https://a b/{id}", "is not a URL"),
            ("https://u:p@a.example/{id}", "credentials"),
            ("https://a.example/{id}#x", "fragment"),
        ] {
            let refused = Template::parse(written).expect_err(written);
            assert!(refused.contains(said), "{written}: {refused}");
        }
    }
}
