//! Templates: bodies and header values out of an event, with every value escaped for where it
//! stands, and bounds on what one rendering may use.
//!
//! A template sees what a [`Scope`] has and nothing else: no file, no clock, no other template. The
//! whole view is not written into the template's output but into a gap that is filled afterwards, so
//! that it is never parsed and only copied once; what is around it is checked to be JSON.

use std::{fmt, io};

use event::fault;
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value, syntax::SyntaxConfig,
};
use serde::de::IgnoredAny;

mod dates;
mod edited;
mod raw;
mod scope;

pub(crate) use raw::Raw;
pub(crate) use scope::{EventScope, Scope};

/// How many instructions one rendering may execute: some hundred times what the seeds' largest
/// body takes.
const FUEL: u64 = 100_000;
/// How large a body may become.
pub(crate) const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a header's value may become.
const HEADER_BYTES_MAX: usize = 4096;
/// How long a template may be.
const TEMPLATE_BYTES_MAX: usize = 64 * 1024;
/// How deep values may be nested that a template writes.
const DEPTH_MAX: usize = 100;

/// Stands in a template's output for the whole view. JSON text has no control characters, and a
/// template's own text must not have this one.
const GAP: u8 = 1;
/// Begin and end a comment in a template as it is compiled. A `{#` would read as `{{` and `#` after
/// a brace of the body.
const COMMENT: (&str, &str) = ("\u{2}", "\u{3}");
/// What stands in each gap while the text around it is checked: JSON where a value may stand, and
/// no JSON within a string or where a key must stand.
const FILLER: &str = r#"[""]"#;

/// One dialect's templates, compiled.
#[derive(Debug)]
pub(crate) struct Engine {
    environment: Environment<'static>,
}

/// Why a template cannot be used: the line within it, and what is wrong.
#[derive(Debug)]
pub(crate) struct BadTemplate {
    pub(crate) line: usize,
    pub(crate) reason: String,
}

/// Where a template's output goes, and so how its values are escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Body,
    Header,
}

impl Kind {
    /// The first letter of a template's name tells what it is.
    fn of(name: &str) -> Self {
        match name.as_bytes().first() {
            Some(b'h') => Self::Header,
            _ => Self::Body,
        }
    }
}

impl Engine {
    pub(crate) fn new() -> Self {
        let mut environment = Environment::empty();
        let syntax = SyntaxConfig::builder()
            .comment_delimiters(COMMENT.0, COMMENT.1)
            .build()
            .expect("the delimiters differ");
        environment.set_syntax(syntax);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        // Says in an error which expression had no value.
        environment.set_debug(true);
        environment.set_auto_escape_callback(|_| AutoEscape::Custom("json".into()));
        environment.set_formatter(|out, state, value| match Kind::of(state.name()) {
            Kind::Body => raw::write_json(out, value, DEPTH_MAX),
            Kind::Header => raw::write_text(out, value),
        });
        allow(&mut environment);
        dates::add(&mut environment);
        Self { environment }
    }

    /// Compiles a template under `name`, whose first letter says what it makes: `b…` a body, `h…`
    /// a header's value.
    pub(crate) fn add(
        &mut self,
        name: &str,
        source: &str,
        attributes: &dyn Fn(&str) -> Result<(), String>,
    ) -> Result<(), BadTemplate> {
        let first = |reason: &str| BadTemplate {
            line: 1,
            reason: reason.into(),
        };
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(first("the template is longer than 64 KiB"));
        }
        if source.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
            return Err(first("the template has a control character"));
        }
        let joined = joined(source, Kind::of(name) == Kind::Body);
        self.environment
            .add_template_owned(name.to_owned(), joined)
            .map_err(|error| BadTemplate {
                line: error.line().unwrap_or(1),
                reason: format!("the template cannot be read: {}", told(&error)),
            })?;
        self.known(name, source, attributes)?;
        filters_known(source)
    }

    /// Refuses variables that no scope has: they would fail at the first event.
    fn known(
        &self,
        name: &str,
        source: &str,
        attributes: &dyn Fn(&str) -> Result<(), String>,
    ) -> Result<(), BadTemplate> {
        let template = self
            .environment
            .get_template(name)
            .map_err(|error| BadTemplate {
                line: 1,
                reason: told(&error),
            })?;
        let mut used: Vec<String> = template.undeclared_variables(true).into_iter().collect();
        used.sort();
        for path in used {
            let mut parts = path.split('.');
            let root = parts.next().unwrap_or_default();
            let judged = match (root, parts.next()) {
                ("attributes", Some(attribute)) => attributes(attribute),
                _ => scope::known(root),
            };
            if let Err(reason) = judged {
                let at = source.find(&path).unwrap_or(0);
                let line = source[..at].matches('\n').count() + 1;
                return Err(BadTemplate { line, reason });
            }
        }
        Ok(())
    }

    /// A body: the template's output, with the view in its gaps.
    pub(crate) fn body(&self, name: &str, scope: Scope, view: &str) -> Result<Vec<u8>, String> {
        let frame = self.render(name, scope, BODY_BYTES_MAX)?;
        let gaps = frame.iter().filter(|byte| **byte == GAP).count();
        let size = view
            .len()
            .checked_mul(gaps)
            .and_then(|views| views.checked_add(frame.len()))
            .filter(|size| *size <= BODY_BYTES_MAX)
            .ok_or_else(too_large)?;
        let is_json = |text: &[u8]| {
            serde_json::from_slice::<IgnoredAny>(text)
                .map(|_| ())
                .map_err(|error| format!("the body is not JSON: {error}"))
        };
        if gaps == 0 {
            is_json(&frame)?;
            return Ok(frame);
        }
        is_json(&fill(&frame, FILLER, frame.len() + gaps * FILLER.len()))?;
        Ok(fill(&frame, view, size))
    }

    /// A header's value; empty where it is to be left out.
    pub(crate) fn header(&self, name: &str, scope: Scope) -> Result<String, String> {
        let value = self.render(name, scope, HEADER_BYTES_MAX)?;
        let value = value.trim_ascii();
        match std::str::from_utf8(value) {
            Ok(text) if text.bytes().all(|b| matches!(b, b' '..=b'~')) => Ok(text.into()),
            _ => Err("the value is not visible ASCII".into()),
        }
    }

    fn render(&self, name: &str, scope: Scope, bytes_max: usize) -> Result<Vec<u8>, String> {
        let mut bounded = Bounded {
            bytes: Vec::with_capacity(match Kind::of(name) {
                Kind::Body => 512,
                Kind::Header => 64,
            }),
            bytes_max,
        };
        let rendered = self
            .environment
            .get_template(name)
            .and_then(|template| template.render_captured_to(scope.into_value(), &mut bounded));
        match rendered {
            Ok(_) => Ok(bounded.bytes),
            Err(error) if error.kind() == ErrorKind::WriteFailure => Err(too_large()),
            Err(error) if error.kind() == ErrorKind::OutOfFuel => Err(format!(
                "it takes more than {FUEL} instructions: a loop over too much"
            )),
            Err(error) => Err(match error.line() {
                Some(line) => format!("line {line}: {}", told(&error)),
                None => told(&error),
            }),
        }
    }
}

/// The filters that templates have; `safe` is not among them: nothing may leave unescaped.
const FILTERS: [&str; 22] = [
    "abs",
    "date",
    "dates",
    "default",
    "elements",
    "fields",
    "first",
    "float",
    "int",
    "iso_millis",
    "items",
    "join",
    "last",
    "length",
    "lower",
    "percent",
    "put",
    "replace",
    "split",
    "string",
    "trim",
    "upper",
];

/// Refuses filters that there are not: the language would tell at the first event.
fn filters_known(source: &str) -> Result<(), BadTemplate> {
    let mut line = 1;
    let mut in_tag = false;
    let mut quote = None;
    let mut after_pipe: Option<String> = None;
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        if let Some(name) = &mut after_pipe {
            if c.is_alphanumeric() || c == '_' {
                name.push(c);
                if chars
                    .peek()
                    .is_some_and(|c| c.is_alphanumeric() || *c == '_')
                {
                    continue;
                }
                let name = after_pipe.take().unwrap_or_default();
                if !FILTERS.contains(&name.as_str()) {
                    let near = fault::nearest(&name, FILTERS)
                        .map(|near| format!("; did you mean `{near}`?"))
                        .unwrap_or_default();
                    let all = FILTERS.join("`, `");
                    let reason = format!("there is no filter `{name}`{near} (there are `{all}`)");
                    return Err(BadTemplate { line, reason });
                }
            }
            continue;
        }
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') if in_tag => quote = Some(c),
            (None, '{') => in_tag |= matches!(chars.peek(), Some('{' | '%')),
            (None, '}') => in_tag = false,
            (None, '|') if in_tag => after_pipe = Some(String::new()),
            _ => {}
        }
    }
    Ok(())
}

/// What of the template language there is.
fn allow(environment: &mut Environment<'_>) {
    use minijinja::{filters, tests};
    environment.add_filter("abs", filters::abs);
    environment.add_filter("default", filters::default);
    environment.add_filter("first", filters::first);
    environment.add_filter("float", filters::float);
    environment.add_filter("int", filters::int);
    environment.add_filter("items", filters::items);
    environment.add_filter("join", filters::join);
    environment.add_filter("last", filters::last);
    environment.add_filter("length", filters::length);
    environment.add_filter("lower", filters::lower);
    environment.add_filter("replace", filters::replace);
    environment.add_filter("split", filters::split);
    environment.add_filter("trim", filters::trim);
    environment.add_filter("upper", filters::upper);
    environment.add_filter("elements", raw::elements);
    environment.add_filter("fields", raw::fields);
    environment.add_filter("put", edited::put);
    environment.add_filter("percent", percent);
    environment.add_filter("string", raw::text_of);
    environment.add_test("defined", tests::is_defined);
    environment.add_test("undefined", tests::is_undefined);
    environment.add_test("none", tests::is_none);
    environment.add_test("string", tests::is_string);
    environment.add_test("number", tests::is_number);
    environment.add_test("mapping", tests::is_mapping);
    environment.add_test("sequence", tests::is_sequence);
    environment.add_test("startingwith", tests::is_startingwith);
    environment.add_test("endingwith", tests::is_endingwith);
}

/// Percent-encodes what the HTTP binding of CloudEvents does not let into a header: everything
/// outside of `!` to `~`, the quote and the percent sign.
fn percent(value: &Value) -> Result<String, Error> {
    let text = raw::text_of(value)?;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'%' => encoded.push_str(&format!("%{byte:02X}")),
            b'!'..=b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(encoded)
}

/// What went wrong, without the template's text or its values.
fn told(error: &Error) -> String {
    match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    }
}

fn too_large() -> String {
    format!("the body is larger than {} KiB", BODY_BYTES_MAX / 1024)
}

/// The frame with `text` in each of its gaps.
fn fill(frame: &[u8], text: &str, size: usize) -> Vec<u8> {
    let mut filled = Vec::with_capacity(size);
    let mut rest = frame;
    while let Some(at) = rest.iter().position(|byte| *byte == GAP) {
        filled.extend_from_slice(&rest[..at]);
        filled.extend_from_slice(text.as_bytes());
        rest = &rest[at + 1..];
    }
    filled.extend_from_slice(rest);
    filled
}

/// The template as it is compiled. Comments get the delimiters that a brace before them cannot
/// change, and of a body line breaks outside of tags, with the spaces that follow them, become
/// comments too: they are for the reader of the file, and an error still names the right line.
fn joined(source: &str, is_body: bool) -> String {
    const TAGS: [(&str, &str); 2] = [("{{", "}}"), ("{%", "%}")];
    let mut joined = String::with_capacity(source.len() + 64);
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let tag = TAGS.iter().find(|(open, _)| rest.starts_with(open));
        let length = if let Some((_, close)) = tag {
            tag_length(rest, close)
        } else if rest.starts_with("{#") {
            let end = rest.find("#}").map(|at| at + 2).unwrap_or(rest.len());
            comment(&mut joined, &rest[..end]);
            rest = &rest[end..];
            continue;
        } else if is_body && matches!(c, '\n' | '\r') {
            let after = rest.trim_start_matches([' ', '\t', '\n', '\r']);
            comment(&mut joined, &rest[..rest.len() - after.len()]);
            rest = after;
            continue;
        } else {
            c.len_utf8()
        };
        joined.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    joined
}

/// How long the tag is that `rest` begins with: braces and quotes within it do not end it. What is
/// left open is as long as the rest.
fn tag_length(rest: &str, close: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    let mut depth = 0u32;
    for (at, c) in rest.char_indices().skip(2) {
        if let Some(open) = quote {
            if !escaped && c == open {
                quote = None;
            }
            escaped = !escaped && c == '\\';
            continue;
        }
        if depth == 0 && rest[at..].starts_with(close) {
            return at + close.len();
        }
        match c {
            '"' | '\'' => quote = Some(c),
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    rest.len()
}

fn comment(joined: &mut String, text: &str) {
    joined.push_str(COMMENT.0);
    joined.push_str(text);
    joined.push_str(COMMENT.1);
}

/// Takes so many bytes and no more.
struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl io::Write for &mut Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Formatting into a template's output fails only as its writer does.
fn written(outcome: fmt::Result) -> Result<(), Error> {
    outcome.map_err(|_| Error::from(ErrorKind::WriteFailure))
}

#[cfg(test)]
mod tests;
