//! One pass over JSON text that nobody has judged yet: grammar, depth, size of numbers, number of
//! keys, duplicate keys, lone surrogates.
//!
//! It exists because `serde_json` keeps raw values without looking at any of that: depth 100 000,
//! `1e400` and duplicate keys would all travel on to a receiver whose parser sees another document
//! than ours. It never recurses, so no input can exhaust the stack. It must not know what an event
//! is.

use std::borrow::Cow;

use crate::fault::{Fault, Position, Refusal, shown};

/// How deep a document may be nested; the outermost value is the first level.
pub(crate) const DEPTH_MAX: usize = 64;
/// How many keys a document may have over all its objects.
pub(crate) const KEYS_MAX: usize = 10_000;
/// How long a number may be, in characters.
pub(crate) const NUMBER_BYTES_MAX: usize = 64;
/// How many findings are worth telling at once.
const FINDINGS_MAX: usize = 32;
/// Objects of at most this many keys are checked for duplicates pair by pair; larger are sorted.
const PAIRWISE_MAX: usize = 12;
/// How much of a key is repeated in a pointer, in characters.
const SEGMENT_MAX: usize = 64;

/// What a value is, without looking into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Object,
    Array,
    String,
    Number,
    Bool,
    Null,
}

impl Kind {
    /// The word for messages, with its article.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Object => "an object",
            Self::Array => "an array",
            Self::String => "a string",
            Self::Number => "a number",
            Self::Bool => "a boolean",
            Self::Null => "null",
        }
    }
}

/// One field of the outermost object.
#[derive(Debug)]
pub(crate) struct Field<'a> {
    /// The key, unescaped.
    pub(crate) key: Cow<'a, str>,
    /// The value's own bytes, without the whitespace around it.
    pub(crate) raw: &'a str,
    pub(crate) kind: Kind,
}

/// Something wrong that does not stop the reading, so that it can be told with everything else.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) code: &'static str,
    pub(crate) status: u16,
    pub(crate) fault: Fault,
}

/// A value that has been scanned.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    pub(crate) kind: Kind,
    /// The fields of the outermost object, in order; empty for any other kind.
    pub(crate) fields: Vec<Field<'a>>,
    pub(crate) findings: Vec<Finding>,
    /// The value's own bytes.
    pub(crate) raw: &'a str,
    /// Where the value ends in the text.
    pub(crate) end: usize,
}

/// The body as text, or why it is none. Byte order marks and UTF-16 are named for what they are.
pub(crate) fn text_of(body: &[u8]) -> Result<&str, Refusal> {
    match body {
        [] => return Err(Refusal::unreadable("empty_body", "the body is empty")),
        [0xEF, 0xBB, 0xBF, ..] => {
            let text = "the body begins with a byte order mark (BOM), which JSON does not accept; \
                        send UTF-8 without it";
            return Err(misencoded(body, 0, text));
        }
        [0xFE, 0xFF, ..] | [0xFF, 0xFE, ..] | [0, _, ..] | [_, 0, ..] => {
            let text =
                "the body looks like UTF-16 or UTF-32; a BOM or UTF-16 is not accepted, send UTF-8";
            return Err(misencoded(body, 0, text));
        }
        _ => {}
    }
    std::str::from_utf8(body).map_err(|error| {
        let at = error.valid_up_to();
        let Position { line, column, .. } = Position::of(body, at);
        let text = format!(
            "the body is not valid UTF-8 at byte {at} (line {line}, column {column}); send UTF-8"
        );
        misencoded(body, at, text)
    })
}

fn misencoded(body: &[u8], at: usize, text: impl Into<String>) -> Refusal {
    Refusal::unreadable("bad_utf8", text).with_position(Position::of(body, at))
}

/// Scans a body that has to be one object and nothing else.
pub(crate) fn object(body: &[u8]) -> Result<Document<'_>, Refusal> {
    let text = text_of(body)?;
    let document = scan(text, 0, "")?;
    nothing_after(text, document.end)?;
    if document.kind != Kind::Object {
        let detail = format!("must be a JSON object, got {}", document.kind.word());
        let faults = vec![Fault::at("", detail.as_str())];
        return Err(Refusal::invalid("not_object", detail, faults));
    }
    Ok(document)
}

/// The first position at or after `from` that is not JSON whitespace.
pub(crate) fn skip_space(text: &str, from: usize) -> usize {
    let bytes = text.as_bytes();
    let mut at = from;
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(at) {
        at += 1;
    }
    at
}

/// Scans the one value that begins at or after `from`. What follows it is the caller's to judge.
/// `prefix` is put before every pointer.
pub(crate) fn scan<'a>(text: &'a str, from: usize, prefix: &str) -> Result<Document<'a>, Refusal> {
    let mut scanner = Scanner {
        text,
        bytes: text.as_bytes(),
        at: from,
        prefix,
        // Room for an ordinary document, so that it grows none of them.
        frames: Vec::with_capacity(8),
        keys: Vec::with_capacity(32),
        key_count: 0,
        fields: Vec::with_capacity(12),
        findings: Vec::new(),
    };
    scanner.document().map_err(|refusal| *refusal)
}

/// Refuses anything but whitespace at or after `from`.
pub(crate) fn nothing_after(text: &str, from: usize) -> Result<(), Refusal> {
    let at = skip_space(text, from);
    if at == text.len() {
        Ok(())
    } else {
        Err(syntax(text, at, "trailing characters"))
    }
}

/// A refusal that says where the text stops being JSON.
pub(crate) fn syntax(text: &str, at: usize, what: &str) -> Refusal {
    let position = Position::of(text.as_bytes(), at);
    let Position { line, column, .. } = position;
    let text = format!("the body is not JSON: {what} at line {line}, column {column}");
    Refusal::unreadable("bad_json", text).with_position(position)
}

/// The text of a string value, unescaped; `None` for what has no text (a lone surrogate).
pub(crate) fn unescaped(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str::<String>(raw).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// A key as one segment of an RFC 6901 pointer.
pub(crate) fn segment(key: &str) -> String {
    let key = shown(key, SEGMENT_MAX);
    key.replace('~', "~0").replace('/', "~1")
}

struct Frame {
    array: bool,
    /// Where this object's keys begin in `keys`.
    keys_from: usize,
    /// The element we are at, in an array.
    index: usize,
}

struct Scanner<'a, 'p> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    prefix: &'p str,
    frames: Vec<Frame>,
    /// The keys seen so far of every open object, the outermost first.
    keys: Vec<Cow<'a, str>>,
    key_count: usize,
    fields: Vec<Field<'a>>,
    findings: Vec<Finding>,
}

impl<'a> Scanner<'a, '_> {
    fn document(&mut self) -> Result<Document<'a>, Box<Refusal>> {
        self.space();
        let from = self.at;
        let outermost = self.kind_here()?;
        // Where the value of the outermost object's latest key begins.
        let mut field = (from, outermost);
        loop {
            if self.begin_value()? {
                // Opened and not empty: its first member comes next.
                if self.frames.len() == 1 && outermost == Kind::Object {
                    field = (self.at, self.kind_here()?);
                }
                continue;
            }
            // A value is complete: close what closes after it.
            loop {
                let Some(frame) = self.frames.last_mut() else {
                    return Ok(Document {
                        kind: outermost,
                        fields: std::mem::take(&mut self.fields),
                        findings: std::mem::take(&mut self.findings),
                        raw: &self.text[from..self.at],
                        end: self.at,
                    });
                };
                let array = frame.array;
                if self.frames.len() == 1 && !array {
                    let key = self.keys.last().cloned().unwrap_or_default();
                    let raw = &self.text[field.0..self.at];
                    self.fields.push(Field {
                        key,
                        raw,
                        kind: field.1,
                    });
                }
                self.space();
                match (self.bytes.get(self.at), array) {
                    (Some(b','), true) => {
                        self.at += 1;
                        self.space();
                        if let Some(frame) = self.frames.last_mut() {
                            frame.index += 1;
                        }
                        if self.bytes.get(self.at) == Some(&b']') {
                            return Err(self.unexpected("a trailing comma"));
                        }
                        break;
                    }
                    (Some(b','), false) => {
                        self.at += 1;
                        self.space();
                        if self.bytes.get(self.at) == Some(&b'}') {
                            return Err(self.unexpected("a trailing comma"));
                        }
                        self.key()?;
                        if self.frames.len() == 1 {
                            field = (self.at, self.kind_here()?);
                        }
                        break;
                    }
                    (Some(b']'), true) | (Some(b'}'), false) => self.close(),
                    (None, _) => return Err(self.unexpected("the end of the input")),
                    (Some(_), true) => return Err(self.expected("`,` or `]`")),
                    (Some(_), false) => return Err(self.expected("`,` or `}`")),
                }
            }
        }
    }

    /// Reads a scalar whole, or opens a container. True when a container was opened that is not
    /// empty; the scanner then stands at its first member's value.
    fn begin_value(&mut self) -> Result<bool, Box<Refusal>> {
        match self.kind_here()? {
            Kind::Object => {
                self.open(false)?;
                if self.bytes.get(self.at) == Some(&b'}') {
                    self.close();
                    return Ok(false);
                }
                self.key()?;
                return Ok(true);
            }
            Kind::Array => {
                self.open(true)?;
                if self.bytes.get(self.at) == Some(&b']') {
                    self.close();
                    return Ok(false);
                }
                return Ok(true);
            }
            Kind::String => {
                if self.string()?.lone {
                    let pointer = self.pointer();
                    self.find("invalid_event", pointer, LONE.into());
                }
            }
            Kind::Number => self.number()?,
            Kind::Bool if self.bytes[self.at] == b't' => self.word("true")?,
            Kind::Bool => self.word("false")?,
            Kind::Null => self.word("null")?,
        }
        Ok(false)
    }

    fn kind_here(&self) -> Result<Kind, Box<Refusal>> {
        Ok(match self.bytes.get(self.at) {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            Some(b'-' | b'0'..=b'9') => Kind::Number,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'n') => Kind::Null,
            None => return Err(self.unexpected("the end of the input")),
            Some(_) => return Err(self.expected("a value")),
        })
    }

    fn open(&mut self, array: bool) -> Result<(), Box<Refusal>> {
        if self.frames.len() == DEPTH_MAX {
            let text = format!("nested deeper than {DEPTH_MAX} levels");
            let fault = Fault::at(self.pointer(), text.as_str());
            return Err(Box::new(Refusal::invalid("too_deep", text, vec![fault])));
        }
        self.frames.push(Frame {
            array,
            keys_from: self.keys.len(),
            index: 0,
        });
        self.at += 1;
        self.space();
        Ok(())
    }

    fn close(&mut self) {
        self.at += 1;
        let Some(frame) = self.frames.pop() else {
            return;
        };
        if !frame.array {
            self.find_duplicates(frame.keys_from);
            self.keys.truncate(frame.keys_from);
        }
    }

    /// Reads `"key":` and the whitespace after it.
    fn key(&mut self) -> Result<(), Box<Refusal>> {
        if self.bytes.get(self.at) != Some(&b'"') {
            return Err(self.expected("a key in double quotes"));
        }
        self.key_count += 1;
        if self.key_count > KEYS_MAX {
            let text = format!("more than {KEYS_MAX} keys");
            let fault = Fault::at(self.prefix, text.as_str());
            return Err(Box::new(Refusal::invalid(
                "too_many_keys",
                text,
                vec![fault],
            )));
        }
        let from = self.at;
        let string = self.string()?;
        let raw = &self.text[from..self.at];
        let key = if string.escaped { unescaped(raw) } else { None };
        self.keys
            .push(key.unwrap_or_else(|| Cow::Borrowed(&raw[1..raw.len() - 1])));
        if string.lone {
            let pointer = self.pointer();
            self.find("invalid_event", pointer, LONE.into());
        }
        self.space();
        if self.bytes.get(self.at) != Some(&b':') {
            return Err(self.expected("`:`"));
        }
        self.at += 1;
        self.space();
        Ok(())
    }

    /// Reads a string; the scanner stands at its opening quote.
    fn string(&mut self) -> Result<Str, Box<Refusal>> {
        let mut found = Str {
            escaped: false,
            lone: false,
        };
        self.at += 1;
        loop {
            // Eight bytes at a time while none of them needs a look.
            while let Some(eight) = self.bytes[self.at..].first_chunk::<8>()
                && !needs_a_look(u64::from_ne_bytes(*eight))
            {
                self.at += 8;
            }
            while let Some(byte) = self.bytes.get(self.at)
                && *byte >= b' '
                && *byte != b'"'
                && *byte != b'\\'
            {
                self.at += 1;
            }
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(found);
                }
                Some(b'\\') => {
                    found.escaped = true;
                    found.lone |= self.escape()?;
                }
                None => return Err(self.unexpected("the end of the input in a string")),
                Some(_) => {
                    return Err(self.unexpected("a control character in a string (escape it)"));
                }
            }
        }
    }

    /// Reads one escape, or a pair of surrogates. True when it is half of such a pair.
    fn escape(&mut self) -> Result<bool, Box<Refusal>> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                return Ok(false);
            }
            Some(b'u') => {}
            None => return Err(self.unexpected("the end of the input in a string")),
            Some(_) => return Err(self.unexpected("an escape that JSON does not have")),
        }
        let Some(first) = self.hex(self.at + 2) else {
            return Err(self.unexpected("a `\\u` escape without four hex digits"));
        };
        self.at += 6;
        if !(0xD800..0xE000).contains(&first) {
            return Ok(false);
        }
        let pair = first < 0xDC00
            && self.bytes.get(self.at) == Some(&b'\\')
            && self.bytes.get(self.at + 1) == Some(&b'u')
            && self
                .hex(self.at + 2)
                .is_some_and(|low| (0xDC00..0xE000).contains(&low));
        if pair {
            self.at += 6;
        }
        Ok(!pair)
    }

    fn hex(&self, at: usize) -> Option<u32> {
        let digits = self.bytes.get(at..at + 4)?;
        digits.iter().try_fold(0, |sum, digit| {
            char::from(*digit)
                .to_digit(16)
                .map(|value| sum * 16 + value)
        })
    }

    fn number(&mut self) -> Result<(), Box<Refusal>> {
        let from = self.at;
        if self.bytes[self.at] == b'-' {
            self.at += 1;
        }
        match self.bytes.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return Err(self.expected("a digit")),
        }
        match self.bytes.get(self.at) {
            Some(b'0'..=b'9') => return Err(self.unexpected("a number with a leading zero")),
            Some(b'x' | b'X') => {
                return Err(self.unexpected("JSON has no hexadecimal numbers, but found one"));
            }
            _ => {}
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        let mut exponent = false;
        if let Some(b'e' | b'E') = self.bytes.get(self.at) {
            exponent = true;
            self.at += 1;
            if let Some(b'+' | b'-') = self.bytes.get(self.at) {
                self.at += 1;
            }
            self.digits()?;
        }
        let raw = &self.text[from..self.at];
        // Without an exponent 64 characters cannot leave the range of a double.
        let message = if raw.len() > NUMBER_BYTES_MAX {
            format!(
                "a number of {} characters, at most {NUMBER_BYTES_MAX}",
                raw.len()
            )
        } else if exponent && raw.parse().is_ok_and(|value: f64| value.is_infinite()) {
            "a number too large for a double".into()
        } else {
            return Ok(());
        };
        let pointer = self.pointer();
        self.find("number_too_large", pointer, message);
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Box<Refusal>> {
        let from = self.at;
        while let Some(b'0'..=b'9') = self.bytes.get(self.at) {
            self.at += 1;
        }
        if self.at == from {
            Err(self.expected("a digit"))
        } else {
            Ok(())
        }
    }

    fn word(&mut self, word: &'static str) -> Result<(), Box<Refusal>> {
        if self.bytes[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(())
        } else {
            Err(self.expected("a value"))
        }
    }

    fn space(&mut self) {
        self.at = skip_space(self.text, self.at);
    }

    fn find_duplicates(&mut self, keys_from: usize) {
        let keys = &mut self.keys[keys_from..];
        let mut twice = Vec::new();
        if keys.len() <= PAIRWISE_MAX {
            for (n, key) in keys.iter().enumerate() {
                if keys[..n].contains(key) {
                    twice.push(key.clone());
                }
            }
        } else {
            keys.sort_unstable();
            twice.extend(
                keys.windows(2)
                    .filter(|two| two[0] == two[1])
                    .map(|two| two[1].clone()),
            );
        }
        twice.dedup();
        for key in twice {
            let outermost = self.frames.is_empty();
            let mut pointer = self.pointer_to(keys_from);
            pointer.push('/');
            pointer.push_str(&segment(&key));
            let what = if outermost { "field" } else { "key" };
            let message = format!("duplicate {what} `{}`", shown(&key, SEGMENT_MAX));
            self.find("duplicate_key", pointer, message);
            if outermost && let Some(last) = self.findings.last_mut() {
                // Twice the same field of the envelope cannot be read at all.
                last.status = 400;
            }
        }
    }

    fn find(&mut self, code: &'static str, pointer: String, message: String) {
        if self.findings.len() < FINDINGS_MAX {
            let fault = Fault { pointer, message };
            self.findings.push(Finding {
                code,
                status: 422,
                fault,
            });
        }
    }

    /// Where the scanner stands.
    fn pointer(&self) -> String {
        self.pointer_to(self.keys.len())
    }

    /// The place of the innermost open container's member, with the keys before `keys_to`.
    fn pointer_to(&self, keys_to: usize) -> String {
        let mut pointer = self.prefix.to_owned();
        for (level, frame) in self.frames.iter().enumerate() {
            if frame.array {
                pointer.push('/');
                pointer.push_str(&frame.index.to_string());
                continue;
            }
            let end = self
                .frames
                .get(level + 1)
                .map_or(keys_to, |inner| inner.keys_from);
            if let Some(key) = self.keys[frame.keys_from..end].last() {
                pointer.push('/');
                pointer.push_str(&segment(key));
            }
        }
        pointer
    }

    // A refusal is boxed, so that the many results without one stay small.
    #[cold]
    fn unexpected(&self, what: &str) -> Box<Refusal> {
        Box::new(syntax(self.text, self.at, what))
    }

    #[cold]
    fn expected(&self, wanted: &str) -> Box<Refusal> {
        let rest = &self.text[self.at..];
        let hint = match rest.as_bytes() {
            [] => return self.unexpected("the end of the input"),
            [b'\'', ..] => " (JSON has only double quotes)",
            [b'/', b'/' | b'*', ..] | [b'#', ..] => " (JSON has no comments)",
            [b'N' | b'I', ..] => " (JSON has no NaN and no Infinity)",
            [b'+', ..] => " (JSON numbers have no plus sign)",
            [b'.', ..] => " (a number needs a digit before the point)",
            _ => "",
        };
        let found = rest.chars().next().unwrap_or_default().escape_default();
        self.unexpected(&format!("expected {wanted}, found `{found}`{hint}"))
    }
}

/// Whether any of eight bytes is a quote, a backslash or a control character. May say yes for no
/// reason, never no: a borrow can run from one byte into the next.
fn needs_a_look(eight: u64) -> bool {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES * 0x80;
    let zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let quote = zero(eight ^ (ONES * 0x22));
    let backslash = zero(eight ^ (ONES * 0x5c));
    let control = eight.wrapping_sub(ONES * 0x20) & !eight;
    (quote | backslash | control) & HIGH != 0
}

struct Str {
    escaped: bool,
    lone: bool,
}

const LONE: &str = "a lone surrogate, which is no character";
