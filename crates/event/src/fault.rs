//! What was wrong with somebody's input, where, and what to do about it.
//!
//! A refusal is an expected end, not an error: it names every fault at once so that a person
//! mends their input in one go. It never carries a payload or a secret.

use serde::{Deserialize, Serialize};

/// One thing wrong, at one place of the input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// RFC 6901 pointer into the input; empty for the whole document.
    pub pointer: String,
    /// What was expected and what was found, in one lowercase sentence.
    pub message: String,
}

impl Fault {
    /// A fault at `pointer`.
    pub fn at(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            message: message.into(),
        }
    }
}

/// Where in a text its reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// From 0.
    pub byte: usize,
}

impl Position {
    /// The position of a byte in a text that need not be UTF-8 after it.
    pub(crate) fn of(text: &[u8], byte: usize) -> Self {
        let before = &text[..byte.min(text.len())];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let from = before.iter().rposition(|b| *b == b'\n');
        let line_start = from.map_or(0, |newline| newline + 1);
        // A character is counted by its first byte.
        let first = |b: &&u8| (**b & 0xC0) != 0x80;
        let column = before[line_start..].iter().filter(first).count() + 1;
        Self { line, column, byte }
    }
}

/// Why some input was not taken, with every fault found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// A stable word for programs, such as `bad_json` or `invalid_event`.
    pub code: &'static str,
    /// The HTTP status an API answers with: 400 cannot be read, 413 too large, 422 read but wrong.
    pub status: u16,
    /// One sentence for people.
    pub detail: String,
    /// Everything wrong at once, in the order of the input.
    pub faults: Vec<Fault>,
    /// Where the reading ended, for what could not be read.
    pub position: Option<Position>,
}

impl Refusal {
    /// The bytes could not be read as what they claim to be (400): a fault of the whole.
    pub fn unreadable(code: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let faults = vec![Fault::at("", detail.as_str())];
        Self {
            status: 400,
            ..Self::invalid(code, detail, faults)
        }
    }

    /// The same, with the place.
    #[must_use]
    pub(crate) fn with_position(self, position: Position) -> Self {
        Self {
            position: Some(position),
            ..self
        }
    }

    /// The input was read and is wrong in the named places (422).
    pub fn invalid(code: &'static str, detail: impl Into<String>, faults: Vec<Fault>) -> Self {
        Self {
            code,
            status: 422,
            detail: detail.into(),
            faults,
            position: None,
        }
    }
}

/// The one of `candidates` that a person most likely meant by `word`, for "did you mean".
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A long word is no misspelling of ours, and comparing it would cost.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::jaro_winkler(&word, &candidate.to_ascii_lowercase()),
                candidate,
            )
        })
        .filter(|(likeness, _)| *likeness >= 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// `; did you mean `x`?`, or nothing.
pub(crate) fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> String {
    nearest(word, candidates)
        .map(|name| format!("; did you mean `{name}`?"))
        .unwrap_or_default()
}

/// The first fault, and how many more there are, in one sentence. `whole` is the word for a fault
/// without a pointer.
pub(crate) fn sentence(whole: &str, faults: &[Fault]) -> String {
    let Some(first) = faults.first() else {
        return String::new();
    };
    let pointer = if first.pointer.is_empty() {
        whole
    } else {
        &first.pointer
    };
    match faults.len() {
        1 => format!("{pointer} {}", first.message),
        n => format!("{pointer} {} (and {} more)", first.message, n - 1),
    }
}

/// A word from somebody's input as it may stand in a message: one line, visible, and short.
pub(crate) fn shown(word: &str, chars_max: usize) -> String {
    let mut text = String::with_capacity(word.len().min(chars_max));
    for (n, c) in word.chars().enumerate() {
        if n == chars_max {
            text.push('…');
            break;
        }
        // Besides control characters, those that would turn the reading direction of a log line.
        if c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            text.extend(c.escape_unicode());
        } else {
            text.push(c);
        }
    }
    text
}

/// What kind of value it is, as messages name it: `a string`, `an array`, ….
pub fn kind_of(value: &serde_json::Value) -> &'static str {
    use serde_json::Value;
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
