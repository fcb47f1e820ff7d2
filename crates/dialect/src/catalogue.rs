//! What can be listened to, for people and programs that look: each dialect with its words, their
//! parameters and views, and an example of each.

use std::collections::BTreeMap;

use event::{
    Event,
    retry::RetryPolicy,
    selector::Selector,
    subscription::{DisableAfter, View},
};
use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};

use crate::{
    Dialects,
    check::subscription_of,
    example::{Example, ExampleEvent, Expected},
    file::Parameter,
    spoken::{Dialect, VIEWS, Word},
    words::{allowed, is_list},
};

/// A dialect as the catalogue shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Catalogue {
    /// What a subscription's `dialect` says.
    pub name: String,
    /// For people.
    pub title: String,
    /// Where the platform documents it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// What else is to be known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub notes: String,
    /// Whether its words are the canonical types themselves.
    pub canonical: bool,
    /// Every parameter that any of its words takes.
    pub parameters: Vec<ParameterInfo>,
    /// The subscription's attributes that it uses, with what each is for.
    pub attributes: BTreeMap<String, String>,
    /// The names of the headers that it may send.
    pub headers: Vec<String>,
    /// How deliveries are sent where a subscription says nothing else.
    pub delivery: DeliveryInfo,
    /// What can be listened to.
    pub events: Vec<WordInfo>,
    /// What the platform documents and cannot be listened to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedInfo>,
}

/// A parameter, beside one word or beside any.
#[derive(Debug, Clone, Serialize)]
pub struct ParameterInfo {
    /// The subscription's field.
    pub name: String,
    /// What it is for.
    pub note: String,
    /// Whether it is a list of texts; otherwise it is one text.
    pub list: bool,
    /// What may stand in it; empty where any text will do.
    pub values: Vec<String>,
    /// What holds where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
}

/// A dialect's delivery policy.
#[derive(Debug, Clone, Serialize)]
pub struct DeliveryInfo {
    /// Total time of one attempt.
    pub timeout: String,
    /// When it is tried again.
    pub retry: RetryPolicy,
    /// Statuses after which it is not.
    pub not_retried: Vec<u16>,
    /// Whether the target has to be an `https` URL.
    pub https: bool,
    /// Whether the three headers of Standard Webhooks go along.
    pub signature_headers: bool,
    /// After what run of failures a subscription is disabled.
    pub disable_after: DisableAfter,
}

/// One word.
#[derive(Debug, Clone, Serialize)]
pub struct WordInfo {
    /// What a subscription's `events` says.
    pub word: String,
    /// Also accepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub synonyms: Vec<String>,
    /// What the platform says of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// The canonical events it stands for.
    pub types: Vec<String>,
    /// What it takes.
    pub parameters: Vec<ParameterInfo>,
    /// The views it offers; none where the body is the record's id.
    pub views: Vec<View>,
    /// One event, and the request that says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub example: Option<ExampleInfo>,
}

/// A word that cannot be listened to.
#[derive(Debug, Clone, Serialize)]
pub struct RefusedInfo {
    /// The platform's word.
    pub word: String,
    /// The canonical events it would stand for.
    pub types: Vec<String>,
    /// Why it is refused.
    pub reason: String,
}

/// An event, and the request that says it.
#[derive(Debug, Clone, Serialize)]
pub struct ExampleInfo {
    /// What the subscription says, besides its target and dialect.
    pub subscription: Map<String, Value>,
    /// The event as it is published.
    pub event: ExampleEvent,
    /// What the endpoint receives, besides the signature.
    pub request: RequestInfo,
}

/// A request without its signature.
#[derive(Debug, Clone, Serialize)]
pub struct RequestInfo {
    /// The dialect's own headers, and the content type.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Box<RawValue>,
}

/// A canonical type, and who has a word for it.
#[derive(Debug, Clone, Serialize)]
pub struct EventTypeInfo {
    /// `entity.action`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What each dialect calls it.
    pub words: Vec<SaidIn>,
    /// The views that can be asked for.
    pub views: Vec<View>,
    /// An event of the type.
    pub event: ExampleEvent,
    /// Its body in the standard dialect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Box<RawValue>>,
}

/// A dialect's word.
#[derive(Debug, Clone, Serialize)]
pub struct SaidIn {
    /// The dialect.
    pub dialect: String,
    /// Its word.
    pub word: String,
}

impl Dialects {
    /// Everything that can be said in a dialect; `None` where there is none of that name.
    pub fn catalogue(&self, name: &str) -> Option<Catalogue> {
        let dialect = self.by_name.get(name)?;
        let all: Vec<&Word> = dialect.words.iter().collect();
        let parameters = dialect.parameters.iter();
        let headers = dialect.headers.iter();
        let headers = headers.chain(dialect.bodies.iter().flat_map(|body| &body.headers));
        Some(Catalogue {
            name: dialect.name.clone(),
            title: dialect.title.clone(),
            source: dialect.source.clone(),
            notes: dialect.notes.clone(),
            canonical: dialect.canonical,
            parameters: parameters
                .map(|(name, parameter)| parameter_info(name, parameter, &all))
                .collect(),
            attributes: dialect.attributes.clone(),
            headers: headers.map(|header| header.name.clone()).collect(),
            delivery: DeliveryInfo {
                timeout: humantime::format_duration(dialect.delivery.timeout).to_string(),
                retry: dialect.delivery.retry.clone(),
                not_retried: dialect.policy.not_retried.clone(),
                https: dialect.https,
                signature_headers: dialect.policy.signature_headers,
                disable_after: dialect.delivery.disable_after,
            },
            events: if dialect.canonical {
                self.canonical_words(dialect)
            } else {
                all.iter()
                    .map(|word| self.word_info(dialect, word))
                    .collect()
            },
            refused: dialect
                .refused
                .iter()
                .map(|refused| RefusedInfo {
                    word: refused.word.clone(),
                    types: refused.selectors.iter().map(Selector::to_string).collect(),
                    reason: refused.reason.clone(),
                })
                .collect(),
        })
    }

    /// The canonical types that are documented: all that any dialect has a word or an example for.
    pub fn event_types(&self) -> Vec<EventTypeInfo> {
        let standard = Map::from_iter([("dialect".to_owned(), Value::from("standard"))]);
        self.pool
            .iter()
            .map(|event| {
                let words = self.by_name.values().filter_map(|dialect| {
                    Some(SaidIn {
                        dialect: dialect.name.clone(),
                        word: called(dialect, event)?,
                    })
                });
                EventTypeInfo {
                    kind: event.kind.to_string(),
                    words: words.collect(),
                    views: VIEWS.to_vec(),
                    event: event.into(),
                    body: self.request(&standard, event).map(|request| request.body),
                }
            })
            .collect()
    }

    fn canonical_words(&self, dialect: &Dialect) -> Vec<WordInfo> {
        let subscription = |event: &Event| {
            Map::from_iter([
                ("dialect".to_owned(), Value::from(dialect.name.as_str())),
                ("events".to_owned(), vec![event.kind.as_str()].into()),
            ])
        };
        let all: Vec<&Word> = dialect.words.iter().collect();
        self.pool
            .iter()
            .map(|event| WordInfo {
                word: event.kind.to_string(),
                synonyms: Vec::new(),
                note: String::new(),
                types: vec![event.kind.to_string()],
                parameters: dialect
                    .parameters
                    .iter()
                    .map(|(name, parameter)| parameter_info(name, parameter, &all))
                    .collect(),
                views: VIEWS.to_vec(),
                example: self.example_info(subscription(event), event),
            })
            .collect()
    }

    fn word_info(&self, dialect: &Dialect, word: &Word) -> WordInfo {
        let mut types: Vec<String> = Vec::new();
        for selector in word.meanings.iter().flat_map(|meaning| &meaning.selectors) {
            let text = selector.to_string();
            if !types.contains(&text) {
                types.push(text);
            }
        }
        let parameters = dialect.parameters.iter();
        WordInfo {
            word: word.word.clone(),
            synonyms: word.also.clone(),
            note: word.note.clone(),
            types,
            parameters: parameters
                .filter(|(name, _)| word.takes(name))
                .map(|(name, parameter)| parameter_info(name, parameter, &[word]))
                .collect(),
            views: word.views.clone(),
            example: self.example_of(dialect, word),
        }
    }

    /// The first example of the file that says this word.
    fn example_of(&self, dialect: &Dialect, word: &Word) -> Option<ExampleInfo> {
        let said = |example: &&Example| {
            let requests = matches!(example.expected, Expected::Request { .. });
            let event = example.event.as_ref().filter(|_| requests);
            event.is_some_and(|event| {
                said_by(dialect, event).is_some_and(|own| std::ptr::eq(own, word))
            })
        };
        let example = dialect.examples.iter().find(said)?;
        let mut subscription = example.subscription.clone();
        subscription.insert("dialect".into(), dialect.name.as_str().into());
        self.example_info(subscription, example.event.as_ref()?)
    }

    fn example_info(&self, subscription: Map<String, Value>, event: &Event) -> Option<ExampleInfo> {
        let request = self.request(&subscription, event)?;
        Some(ExampleInfo {
            subscription,
            event: event.into(),
            request,
        })
    }

    fn request(&self, written: &Map<String, Value>, event: &Event) -> Option<RequestInfo> {
        let subscription = subscription_of(self, written, &event.tenant).ok()?;
        let speaker = self.speaker(&subscription).ok()?;
        let rendered = speaker.render(event, None, &subscription).ok()?;
        let mut headers: BTreeMap<String, String> = rendered.headers.into_iter().collect();
        headers.insert("content-type".into(), rendered.content_type.into());
        let body = std::str::from_utf8(&rendered.body).ok()?;
        Some(RequestInfo {
            headers,
            body: RawValue::from_string(body.to_owned()).ok()?,
        })
    }
}

/// The first of a dialect's words that has a meaning for an event.
fn said_by<'d>(dialect: &'d Dialect, event: &Event) -> Option<&'d Word> {
    let mut words = dialect.words.iter();
    words.find(|word| word.meaning_of(event).is_some())
}

fn called(dialect: &Dialect, event: &Event) -> Option<String> {
    let word = said_by(dialect, event)?;
    Some(match dialect.canonical {
        true => event.kind.to_string(),
        false => word.called(event),
    })
}

fn parameter_info(name: &str, parameter: &Parameter, words: &[&Word]) -> ParameterInfo {
    let (note, default) = match parameter {
        Parameter::Action { note, default, .. }
        | Parameter::Body { note, default, .. }
        | Parameter::Text { note, default, .. } => (note, default.clone()),
        Parameter::Actions { note }
        | Parameter::Status { note, .. }
        | Parameter::View { note }
        | Parameter::Events { note } => (note, None),
    };
    let takers: Vec<&Word> = words
        .iter()
        .copied()
        .filter(|word| word.takes(name))
        .collect();
    ParameterInfo {
        name: name.into(),
        note: note.clone(),
        list: is_list(parameter),
        values: allowed(parameter, if takers.is_empty() { words } else { &takers }),
        default,
    }
}
