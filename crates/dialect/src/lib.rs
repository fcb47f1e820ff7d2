//! How a delivery is said: the dialects, their names, views, bodies and headers.
//!
//! A dialect is data: a file (`dialects/*.toml`, or an operator's own) that is compiled once, when a
//! process starts. Pure: it reads no clock and no file, and knows nothing of queues or
//! sockets. Who sends a delivery asks a [`Speaker`] for the body, and [`Writing`] for the whole
//! request, signed with keys that it is given.
#![warn(missing_docs)]

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use event::{
    Event, Fault, Subscription,
    secret::names_a_secret,
    subscription::{
        View,
        words::{Canonical, Vocabulary, Words},
    },
};
use serde_json::{Map, Value, value::RawValue};

mod build;
mod catalogue;
mod check;
mod example;
mod file;
mod request;
mod sign;
mod speaker;
mod spoken;
mod template;
mod words;

pub use catalogue::{
    Catalogue, DeliveryInfo, EventTypeInfo, ExampleInfo, ParameterInfo, RefusedInfo, RequestInfo,
    SaidIn, WordInfo,
};
pub use check::{CheckReport, ExampleReport};
pub use example::ExampleEvent;
pub use file::FileFault;
pub use request::{Writing, own_headers};
pub use sign::Signer;
pub use speaker::Speaker;

use example::Expected;
use file::Origin;
use spoken::Dialect;

/// The dialects that are built in.
const BUILTIN: [(&str, &str); 7] = [
    (
        "cloudevents.toml",
        include_str!("../dialects/cloudevents.toml"),
    ),
    ("ssa.toml", include_str!("../dialects/ssa.toml")),
    ("standard.toml", include_str!("../dialects/standard.toml")),
    ("vagaro.toml", include_str!("../dialects/vagaro.toml")),
    ("vcita.toml", include_str!("../dialects/vcita.toml")),
    (
        "vikappointments.toml",
        include_str!("../dialects/vikappointments.toml"),
    ),
    ("zaui.toml", include_str!("../dialects/zaui.toml")),
];

/// All dialects a process knows, by name.
pub struct Dialects {
    by_name: BTreeMap<String, Arc<Dialect>>,
    /// One event of each type that any dialect has an example of.
    pool: Arc<[Event]>,
}

/// A view that was fetched because the event lacks it, with its text.
pub type Loaded<'a> = Option<(View, &'a RawValue)>;

/// What a dialect's platform promises about deliveries, beside the defaults that a new
/// subscription takes from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Statuses after which no attempt is made again: the delivery is dead as `refused`.
    pub not_retried: Vec<u16>,
    /// Whether the three headers of Standard Webhooks go along.
    pub signature_headers: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            not_retried: Vec::new(),
            signature_headers: true,
        }
    }
}

/// A delivery as it will be sent, before it is signed.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// The request's body, exactly.
    pub body: Bytes,
    /// The request's `content-type`.
    pub content_type: Cow<'static, str>,
    /// Headers of the dialect's own. They never carry a signature.
    pub headers: Vec<(String, String)>,
    /// Those of them that are made of the subscription's attributes.
    of_subscriber: Vec<String>,
    /// Which view the body holds: not the wanted one where the event lacks it.
    pub view_sent: View,
}

impl Rendered {
    /// Whether the value of this header is nobody's to see but the subscriber's: by where it is
    /// from, or, where that does not tell, by its name.
    pub fn is_secret(&self, name: &str) -> bool {
        let is = |own: &String| own.eq_ignore_ascii_case(name);
        names_a_secret(name) || self.of_subscriber.iter().any(is)
    }
}

/// Why a delivery cannot be written. Trying again cannot help: the event and the subscription are
/// what they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The subscription names a dialect this process does not have.
    #[error("no dialect is named {0:?}")]
    UnknownDialect(String),
    /// There is nothing to put into the body.
    #[error("the event has no data, and no subject to name in its place")]
    NothingToSend,
    /// The subscription's words do not say this event: [`Speaker::judge`] would have stopped it.
    #[error("{0}")]
    NotSaid(String),
    /// A template of the dialect failed on this event.
    #[error("the dialect's {part}: {detail}")]
    Template {
        /// The body or the header.
        part: String,
        /// What failed, with the template's line.
        detail: String,
    },
}

impl fmt::Debug for Dialects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dialects").field(&self.names()).finish()
    }
}

impl Dialects {
    /// The dialects that are built in.
    pub fn builtin() -> Self {
        Self::load([]).expect("the built-in files load: the tests load them")
    }

    /// The built-in dialects and those of `files`, each a name (for messages) and its text. A file
    /// takes the place of a built-in dialect only if it says `replaces = true`. Everything wrong
    /// in any file is told at once.
    pub fn load(files: impl IntoIterator<Item = (String, String)>) -> Result<Self, Vec<FileFault>> {
        let mut faults = Vec::new();
        let mut by_name = BTreeMap::new();
        for (file, text) in BUILTIN {
            match compile(Origin { file, text }) {
                Ok((dialect, _)) => {
                    by_name.insert(dialect.name.clone(), Arc::new(dialect));
                }
                Err(found) => faults.extend(found),
            }
        }
        let mut own: BTreeMap<String, String> = BTreeMap::new();
        for (file, text) in files {
            let origin = Origin {
                file: &file,
                text: &text,
            };
            match compile(origin) {
                Ok((dialect, replaces)) => {
                    let name = dialect.name.clone();
                    let built_in = by_name.contains_key(&name);
                    if let Some(other) = own.get(&name) {
                        let reason = format!("`{other}` has the dialect `{name}` already");
                        faults.push(origin.fault(&(0..0), reason));
                    } else if built_in && !replaces {
                        let reason = format!(
                            "the dialect `{name}` is built in; say `replaces = true` to take its \
                             place, or give this one another name"
                        );
                        faults.push(origin.fault(&(0..0), reason));
                    } else {
                        own.insert(name.clone(), file.clone());
                        by_name.insert(name, Arc::new(dialect));
                    }
                }
                Err(found) => faults.extend(found),
            }
        }
        if faults.is_empty() {
            Ok(Self::of(by_name))
        } else {
            Err(faults)
        }
    }

    fn of(by_name: BTreeMap<String, Arc<Dialect>>) -> Self {
        let mut pool: BTreeMap<String, Event> = BTreeMap::new();
        let examples = by_name.values().flat_map(|dialect| &dialect.examples);
        for example in examples {
            if let (Expected::Request { .. }, Some(event)) = (&example.expected, &example.event) {
                pool.entry(event.kind.as_str().to_owned())
                    .or_insert_with(|| event.clone());
            }
        }
        Self {
            pool: pool.into_values().collect(),
            by_name,
        }
    }

    /// The names a subscription may give, in alphabetical order.
    pub fn names(&self) -> Vec<&str> {
        self.by_name.keys().map(AsRef::as_ref).collect()
    }

    /// How `subscription` is spoken to.
    pub fn speaker(&self, subscription: &Subscription) -> Result<Speaker, RenderError> {
        let name = subscription.dialect.as_str();
        let dialect = self
            .by_name
            .get(name)
            .ok_or_else(|| RenderError::UnknownDialect(name.into()))?;
        Ok(Speaker::new(
            dialect.clone(),
            self.pool.clone(),
            subscription,
        ))
    }
}

/// Makes a dialect of a file's text, and says whether it may take the place of a built-in one.
fn compile(origin: Origin<'_>) -> Result<(Dialect, bool), Vec<FileFault>> {
    let file = origin.parse().map_err(|fault| vec![*fault])?;
    let replaces = file.replaces;
    Ok((build::build(file, origin)?, replaces))
}

impl Vocabulary for Dialects {
    fn names(&self) -> Vec<&str> {
        self.names()
    }

    fn parameters(&self, dialect: &str) -> Vec<&str> {
        let dialect = self.by_name.get(dialect);
        let names = dialect.map(|dialect| dialect.parameters.keys().map(String::as_str).collect());
        names.unwrap_or_default()
    }

    fn read(&self, dialect: &str, written: &Map<String, Value>) -> Result<Words, Vec<Fault>> {
        match self.by_name.get(dialect) {
            Some(known) => known.read(written),
            None => Canonical(&[dialect]).read(dialect, written),
        }
    }
}

#[cfg(test)]
mod tests;
