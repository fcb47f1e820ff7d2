//! A dialect's file as it is written: TOML, read strictly, with a line for everything wrong in it.
//!
//! What the words mean together is [`crate::build`]'s to judge; this room only knows the form.

use std::{collections::BTreeMap, fmt, ops::Range};

use event::{
    fault,
    retry::RetryPolicy,
    subscription::{DisableAfter, View},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use toml::Spanned;

/// The largest file that is read.
const FILE_BYTES_MAX: usize = 1024 * 1024;

/// Something wrong in a dialect's file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {reason}")]
pub struct FileFault {
    /// The file's name, as the caller gave it.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// What was expected and what was found.
    pub reason: String,
}

/// Text that knows where it stands.
pub(crate) type Text = Spanned<String>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    pub(crate) name: Text,
    pub(crate) title: String,
    #[serde(default)]
    pub(crate) source: String,
    #[serde(default)]
    pub(crate) notes: String,
    /// Whether it takes the place of the built-in one of its name.
    #[serde(default)]
    pub(crate) replaces: bool,
    /// Whether its words are the canonical types themselves.
    #[serde(default)]
    pub(crate) canonical: bool,
    /// Whether an event is always said by the first word that has a meaning for it.
    #[serde(default)]
    pub(crate) one_word_per_event: bool,
    /// What an entry ends with that stands for all words that begin alike.
    pub(crate) wildcard: Option<Text>,
    /// The views that its words offer where they say nothing else.
    pub(crate) views: Option<Vec<View>>,
    #[serde(default)]
    pub(crate) delivery: Delivery,
    /// The subscription's attributes that it uses, each with what it is for.
    #[serde(default)]
    pub(crate) attributes: BTreeMap<String, String>,
    /// Sent with every delivery.
    #[serde(default)]
    pub(crate) headers: BTreeMap<Text, Text>,
    #[serde(default)]
    pub(crate) parameters: BTreeMap<Text, Parameter>,
    pub(crate) bodies: BTreeMap<Text, Body>,
    #[serde(default)]
    pub(crate) events: Vec<Word>,
    #[serde(default)]
    pub(crate) refused: Vec<Refused>,
    #[serde(default)]
    pub(crate) examples: Vec<Example>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Delivery {
    pub(crate) timeout: Option<Text>,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) not_retried: Spanned<Vec<u16>>,
    pub(crate) https: bool,
    /// Whether the three headers of Standard Webhooks go along.
    pub(crate) signature_headers: bool,
    /// After what run of failures the platform switches a webhook off.
    pub(crate) disable_after: Option<DisableAfter>,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            timeout: None,
            retry: None,
            not_retried: Spanned::new(0..0, Vec::new()),
            https: false,
            signature_headers: true,
            disable_after: None,
        }
    }
}

/// What a subscription may say beside `events`.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Parameter {
    /// One word, which stands for a choice of the actions that events are said with.
    Action {
        note: String,
        values: BTreeMap<String, Vec<String>>,
        default: Option<String>,
    },
    /// A list of the actions that events are said with; empty for all.
    Actions { note: String },
    /// A list that the new status must be in; empty for all.
    Status {
        note: String,
        #[serde(default)]
        values: Vec<String>,
    },
    /// One of the views that the word offers.
    View { note: String },
    /// One word, which stands for a body.
    Body {
        note: String,
        values: BTreeMap<String, String>,
        default: Option<String>,
    },
    /// One word of the dialect, in the place of `events`.
    Events { note: String },
    /// A text that templates may use.
    Text {
        note: String,
        #[serde(default)]
        values: Vec<String>,
        default: Option<String>,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Body {
    pub(crate) of: Option<Of>,
    pub(crate) template: Option<Text>,
    pub(crate) content_type: Option<Text>,
    #[serde(default)]
    pub(crate) headers: BTreeMap<Text, Text>,
}

/// A body that is no template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Of {
    /// The view, byte for byte; of a deletion without one, its subject.
    View,
    /// `{"id": …}` with the subject, byte for byte.
    Subject,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Word {
    pub(crate) word: Text,
    /// Also accepted on the way in.
    #[serde(default)]
    pub(crate) also: Vec<Text>,
    #[serde(default)]
    pub(crate) note: String,
    /// What it stands for, where one meaning is enough.
    #[serde(default)]
    pub(crate) types: Vec<Text>,
    #[serde(default)]
    pub(crate) means: Vec<Meaning>,
    #[serde(default)]
    pub(crate) parameters: Vec<Text>,
    pub(crate) views: Option<Vec<View>>,
    pub(crate) body: Option<Text>,
    /// What templates may say of it.
    #[serde(default)]
    pub(crate) says: BTreeMap<String, Scalar>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Meaning {
    pub(crate) types: Vec<Text>,
    #[serde(default)]
    pub(crate) except: Vec<Text>,
    /// The new status has to be one of these.
    #[serde(default)]
    pub(crate) status: Vec<String>,
    /// How the dialect calls the action; the canonical one where it is left out.
    pub(crate) action: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Scalar {
    Whole(i64),
    Truth(bool),
    Text(String),
}

/// What the platform documents and we cannot say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refused {
    pub(crate) word: Text,
    #[serde(default)]
    pub(crate) types: Vec<Text>,
    pub(crate) reason: String,
}

/// A subscription and an event in, and what comes of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Example {
    pub(crate) name: Text,
    pub(crate) subscription: Map<String, Value>,
    /// The event, as JSON; `id`, `tenant` and `time` may be left out.
    pub(crate) event: Option<Text>,
    /// A view that was fetched for it.
    pub(crate) loaded: Option<Loaded>,
    pub(crate) body: Option<String>,
    pub(crate) content_type: Option<String>,
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) view_sent: Option<View>,
    /// The clause that stops the event.
    pub(crate) stopped: Option<String>,
    /// The render error's text.
    pub(crate) error: Option<String>,
    /// The faults for which the subscription is refused, each as `POINTER MESSAGE`.
    pub(crate) refused: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Loaded {
    pub(crate) view: View,
    pub(crate) text: Text,
}

/// A file's name and text, to tell where in it something is wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) file: &'a str,
    pub(crate) text: &'a str,
}

impl Origin<'_> {
    pub(crate) fn parse(&self) -> Result<File, Box<FileFault>> {
        if self.text.len() > FILE_BYTES_MAX {
            let reason = format!("is larger than {} KiB", FILE_BYTES_MAX / 1024);
            return Err(Box::new(self.fault(&(0..0), reason)));
        }
        toml::from_str(self.text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            Box::new(self.fault(&span, explained(error.message())))
        })
    }

    pub(crate) fn fault(&self, span: &Range<usize>, reason: impl Into<String>) -> FileFault {
        let (line, column) = self.place(span.start);
        self.fault_at(line, column, reason)
    }

    pub(crate) fn fault_at(
        &self,
        line: usize,
        column: usize,
        reason: impl Into<String>,
    ) -> FileFault {
        FileFault {
            file: self.file.into(),
            line,
            column,
            reason: reason.into(),
        }
    }

    /// The line of the `n`-th line (from 1) of a multi-line text.
    pub(crate) fn line_within(&self, span: &Range<usize>, n: usize) -> usize {
        let (first, _) = self.place(span.start);
        let quoted = self.text.get(span.clone()).unwrap_or_default();
        let begins_below = quoted
            .trim_start_matches(['\'', '"'])
            .starts_with(['\n', '\r']);
        first + usize::from(begins_below) + n.saturating_sub(1)
    }

    fn place(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default();
        (line, column.chars().count() + 1)
    }
}

/// The parser's message, with the nearest name where it does not know one.
fn explained(message: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    let near = message
        .strip_prefix("unknown field `")
        .or_else(|| message.strip_prefix("unknown variant `"))
        .and_then(|rest| rest.split_once('`'))
        .and_then(|(word, known)| fault::nearest(word, known.split('`').skip(1).step_by(2)));
    match near {
        Some(name) => format!("{message}; did you mean `{name}`?"),
        None => message,
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(n) => n.fmt(f),
            Self::Truth(b) => b.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}
