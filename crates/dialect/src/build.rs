//! From a file as it is written to a [`Dialect`], or everything that is wrong with it at once.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use event::{
    fault,
    selector::Selector,
    subscription::{DeliverySpec, View, words},
};
use minijinja::Value;

use crate::{
    Policy,
    example::Example,
    file::{self, File, FileFault, Of, Origin, Parameter, Text},
    spoken::{Body, Content, Dialect, Header, Meaning, Refused, VIEWS, Word},
    template::{BadTemplate, Engine},
};

const JSON: &str = "application/json";
/// The body of a word that names none.
const DEFAULT_BODY: &str = "default";
/// What stands in a word for the name of any event.
const ANY_EVENT: &str = "{event}";
/// As for a subscription's own.
const TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(30);
/// Headers that say what the request is, who sends it, or that it is ours.
const RESERVED: [&str; 8] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "te",
    "transfer-encoding",
    "user-agent",
];
const RESERVED_PREFIXES: [&str; 2] = ["webhook-", "x-postrider-"];

/// Makes a dialect of its file.
pub(crate) fn build(file: File, origin: Origin<'_>) -> Result<Dialect, Vec<FileFault>> {
    let mut maker = Maker {
        origin,
        faults: Vec::new(),
        engine: Engine::new(),
        attributes: file.attributes.keys().cloned().collect(),
    };
    let made = maker.dialect(file);
    if maker.faults.is_empty() {
        Ok(Dialect {
            engine: maker.engine,
            ..made
        })
    } else {
        maker.faults.sort_by_key(|fault| (fault.line, fault.column));
        Err(maker.faults)
    }
}

struct Maker<'a> {
    origin: Origin<'a>,
    faults: Vec<FileFault>,
    engine: Engine,
    attributes: Vec<String>,
}

impl Maker<'_> {
    fn find<T>(&mut self, at: &toml::Spanned<T>, reason: impl Into<String>) {
        self.faults.push(self.origin.fault(&at.span(), reason));
    }

    fn dialect(&mut self, file: File) -> Dialect {
        self.name(&file.name);
        for name in file.parameters.keys() {
            self.parameter_name(name);
        }
        let headers = self.headers("h", &file.headers);
        let bodies = self.bodies(&file.bodies);
        let wildcard = file.wildcard.as_ref().and_then(|text| self.wildcard(text));
        let parameters: BTreeMap<String, Parameter> = file
            .parameters
            .iter()
            .map(|(name, parameter)| (name.get_ref().clone(), parameter.clone()))
            .collect();
        for (name, parameter) in &file.parameters {
            self.parameter(name, parameter, &bodies);
        }
        let views = file.views.clone().unwrap_or(VIEWS.to_vec());
        let words = if file.canonical {
            self.only_canonical(&file);
            vec![Word {
                word: "*".into(),
                pattern: None,
                also: Vec::new(),
                note: String::new(),
                meanings: vec![Meaning {
                    selectors: vec![Selector::All],
                    except: Vec::new(),
                    status: Vec::new(),
                    action: None,
                }],
                parameters: parameters.keys().cloned().collect(),
                views,
                body: self.body(&file.name, None, &bodies),
                says: Value::from(()),
            }]
        } else {
            if file.events.is_empty() {
                self.find(&file.name, "the dialect has no `[[events]]`");
            }
            let words = file.events.iter();
            words
                .map(|word| self.word(word, &views, &parameters, &bodies))
                .collect()
        };
        self.twice(&file);
        let refused = file.refused.iter().map(|one| Refused {
            word: one.word.get_ref().clone(),
            selectors: self.selectors(&one.types),
            reason: one.reason.clone(),
        });
        let refused = refused.collect();
        let (delivery, policy) = self.delivery(&file.delivery);
        let examples = self.examples(file.examples);
        Dialect {
            name: file.name.into_inner(),
            title: file.title,
            source: file.source,
            notes: file.notes.trim().into(),
            canonical: file.canonical,
            one_word_per_event: file.one_word_per_event,
            wildcard,
            attributes: file.attributes,
            parameters,
            words,
            refused,
            bodies,
            headers,
            engine: Engine::new(),
            delivery,
            https: file.delivery.https,
            policy,
            examples,
        }
    }

    fn name(&mut self, name: &Text) {
        let text = name.get_ref();
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        if text.is_empty() || text.len() > 64 || !text.bytes().all(word) {
            self.find(name, "the name must be 1 to 64 of `a-z0-9_-`");
        }
    }

    fn parameter_name(&mut self, name: &Text) {
        let text = name.get_ref();
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if text.is_empty() || text.len() > 64 || !text.bytes().all(word) {
            self.find(name, "a parameter's name must be 1 to 64 of `a-z0-9_`");
        } else if words::is_field(text) {
            let reason = format!("`{text}` is a field of every subscription, so no parameter");
            self.find(name, reason);
        }
    }

    fn parameter(&mut self, name: &Text, parameter: &Parameter, bodies: &[Body]) {
        let of = |words: Vec<&String>, default: &Option<String>| {
            let unknown = default.as_ref().filter(|word| !words.contains(word));
            unknown.map(|word| format!("the default `{word}` is not one of its values"))
        };
        let wrong = match parameter {
            Parameter::Action { values, .. } if values.is_empty() => {
                Some("it has no values".into())
            }
            Parameter::Action {
                values, default, ..
            } => of(values.keys().collect(), default),
            Parameter::Body {
                values, default, ..
            } => {
                let known = |body: &&String| !bodies.iter().any(|own| own.name == **body);
                match values.values().find(known) {
                    Some(body) => Some(unknown_body(body, bodies)),
                    None => of(values.keys().collect(), default),
                }
            }
            Parameter::Text {
                values, default, ..
            } if !values.is_empty() => of(values.iter().collect(), default),
            _ => None,
        };
        if let Some(reason) = wrong {
            self.find(name, reason);
        }
    }

    fn wildcard(&mut self, text: &Text) -> Option<String> {
        match text.get_ref().strip_suffix('*') {
            Some(joint) if !joint.is_empty() => Some(joint.into()),
            _ => {
                self.find(text, "must be what ends such an entry, for example \"/*\"");
                None
            }
        }
    }

    fn only_canonical(&mut self, file: &File) {
        let why = "the dialect is canonical: its words are the types themselves";
        if let Some(word) = file.events.first() {
            self.find(&word.word, why);
        }
        if let Some(refused) = file.refused.first() {
            self.find(&refused.word, why);
        }
    }

    // === bodies and headers

    fn bodies(&mut self, bodies: &BTreeMap<Text, file::Body>) -> Vec<Body> {
        let mut made = Vec::with_capacity(bodies.len());
        for (name, body) in bodies {
            let key = format!("b:{}", name.get_ref());
            let content = match (body.of, &body.template) {
                (Some(of), None) => Content::Of(of),
                (None, Some(text)) => {
                    self.template(&key, text);
                    Content::Template(key.clone())
                }
                _ => {
                    self.find(name, "a body has either `of` or a `template`");
                    Content::Of(Of::View)
                }
            };
            let content_type = match &body.content_type {
                Some(text) => self.content_type(text),
                None => Cow::Borrowed(JSON),
            };
            made.push(Body {
                name: name.get_ref().clone(),
                content,
                content_type,
                headers: self.headers(&format!("h:{}", name.get_ref()), &body.headers),
            });
        }
        made
    }

    fn content_type(&mut self, text: &Text) -> Cow<'static, str> {
        let fits =
            |text: &str| text.contains('/') && text.bytes().all(|b| matches!(b, b' '..=b'~'));
        if !fits(text.get_ref()) {
            self.find(text, "must be a media type such as \"application/json\"");
        }
        Cow::Owned(text.get_ref().clone())
    }

    fn headers(&mut self, prefix: &str, headers: &BTreeMap<Text, Text>) -> Vec<Header> {
        let mut made = Vec::with_capacity(headers.len());
        for (name, value) in headers {
            let text = name.get_ref();
            let lower = text.to_ascii_lowercase();
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            if text.is_empty() || text.len() > 64 || !text.bytes().all(token) {
                self.find(
                    name,
                    "must be 1 to 64 letters, digits or `-`, as HTTP has it",
                );
            } else if RESERVED.contains(&lower.as_str())
                || RESERVED_PREFIXES.iter().any(|own| lower.starts_with(own))
            {
                self.find(name, "is not a header that a dialect may set");
            }
            let key = format!("{prefix}:{text}");
            self.template(&key, value);
            made.push(Header {
                name: text.clone(),
                template: key,
                of_subscriber: value.get_ref().contains("attributes"),
            });
        }
        made
    }

    fn template(&mut self, key: &str, text: &Text) {
        let attributes = self.attributes.clone();
        let known = |name: &str| {
            if attributes.iter().any(|own| own == name) {
                return Ok(());
            }
            let near = near(name, attributes.iter().map(String::as_str));
            Err(format!(
                "the attribute `{name}` is not described under `[attributes]`{near}"
            ))
        };
        if let Err(BadTemplate { line, reason }) = self.engine.add(key, text.get_ref(), &known) {
            let line = self.origin.line_within(&text.span(), line);
            self.faults.push(self.origin.fault_at(line, 1, reason));
        }
    }

    fn body(&mut self, at: &Text, name: Option<&str>, bodies: &[Body]) -> usize {
        let wanted = name.unwrap_or(DEFAULT_BODY);
        let place = bodies.iter().position(|body| body.name == wanted);
        if place.is_none() {
            self.find(at, unknown_body(wanted, bodies));
        }
        place.unwrap_or_default()
    }

    // === words

    fn word(
        &mut self,
        word: &file::Word,
        views: &[View],
        parameters: &BTreeMap<String, Parameter>,
        bodies: &[Body],
    ) -> Word {
        let text = word.word.get_ref();
        for entry in std::iter::once(&word.word).chain(&word.also) {
            let entry_text = entry.get_ref();
            if entry_text.is_empty()
                || entry_text.len() > 200
                || entry_text.chars().any(char::is_control)
            {
                self.find(
                    entry,
                    "a word must be 1 to 200 bytes without control characters",
                );
            }
        }
        let pattern = text.strip_suffix(ANY_EVENT).map(str::to_owned);
        for name in &word.parameters {
            if !parameters.contains_key(name.get_ref()) {
                let known = parameters.keys().map(String::as_str);
                let near = near(name.get_ref(), known);
                let reason = format!(
                    "`{}` is not described under `[parameters]`{near}",
                    name.get_ref()
                );
                self.find(name, reason);
            }
        }
        let meanings = self.meanings(word);
        if pattern.is_some()
            && !matches!(
                meanings.first().map(|meaning| &*meaning.selectors),
                Some([Selector::Entity(_)])
            )
        {
            let reason =
                format!("a word with `{ANY_EVENT}` means one `entity.*`, such as `custom.*`");
            self.find(&word.word, reason);
        }
        let says = word.says.iter().map(|(name, value)| {
            let value = match value {
                file::Scalar::Whole(n) => Value::from(*n),
                file::Scalar::Truth(b) => Value::from(*b),
                file::Scalar::Text(text) => Value::from(text.as_str()),
            };
            (name.clone(), value)
        });
        let says: BTreeMap<String, Value> = says.collect();
        let at = word.body.as_ref().unwrap_or(&word.word);
        let body_name = word.body.as_ref().map(|body| body.get_ref().as_str());
        Word {
            word: text.clone(),
            pattern,
            also: word
                .also
                .iter()
                .map(|also| also.get_ref().clone())
                .collect(),
            note: word.note.clone(),
            meanings,
            parameters: word
                .parameters
                .iter()
                .map(|name| name.get_ref().clone())
                .collect(),
            views: word.views.clone().unwrap_or(views.to_vec()),
            body: self.body(at, body_name, bodies),
            says: Value::from(says),
        }
    }

    fn meanings(&mut self, word: &file::Word) -> Vec<Meaning> {
        if word.types.is_empty() == word.means.is_empty() {
            self.find(&word.word, "a word has either `types` or `means`");
        }
        if !word.types.is_empty() {
            return vec![Meaning {
                selectors: self.selectors(&word.types),
                except: Vec::new(),
                status: Vec::new(),
                action: None,
            }];
        }
        let mut meanings = Vec::with_capacity(word.means.len());
        for meaning in &word.means {
            if meaning.types.is_empty() {
                self.find(&word.word, "a meaning has no `types`");
            }
            meanings.push(Meaning {
                selectors: self.selectors(&meaning.types),
                except: self.selectors(&meaning.except),
                status: meaning.status.clone(),
                action: meaning.action.clone(),
            });
        }
        meanings
    }

    fn selectors(&mut self, types: &[Text]) -> Vec<Selector> {
        let mut selectors = Vec::with_capacity(types.len());
        for text in types {
            match words::canonical(text.get_ref()) {
                Ok(selector) => selectors.push(selector),
                Err(reason) => self.find(text, reason),
            }
        }
        selectors
    }

    /// Names every word that is given twice: an entry has to have one meaning.
    fn twice(&mut self, file: &File) {
        let mut seen: Vec<&str> = Vec::new();
        let words = file
            .events
            .iter()
            .flat_map(|word| std::iter::once(&word.word).chain(&word.also))
            .chain(file.refused.iter().map(|refused| &refused.word));
        for word in words {
            if seen.contains(&word.get_ref().as_str()) {
                self.find(
                    word,
                    format!("the word `{}` is given twice", word.get_ref()),
                );
            }
            seen.push(word.get_ref());
        }
    }

    // === the rest

    fn delivery(&mut self, delivery: &file::Delivery) -> (DeliverySpec, Policy) {
        let mut spec = DeliverySpec::default();
        if let Some(text) = &delivery.timeout {
            match humantime::parse_duration(text.get_ref()) {
                Ok(timeout) if TIMEOUTS.contains(&timeout) => spec.timeout = timeout,
                _ => self.find(text, "must be a duration from \"1s\" to \"30s\""),
            }
        }
        if let Some(retry) = &delivery.retry {
            spec.retry = retry.clone();
        }
        let final_status = |status: &u16| !(300..=599).contains(status);
        if let Some(status) = delivery
            .not_retried
            .get_ref()
            .iter()
            .find(|s| final_status(s))
        {
            let reason = format!("must be statuses of a failure, from 300 to 599, got {status}");
            self.find(&delivery.not_retried, reason);
        }
        if let Some(disable_after) = delivery.disable_after {
            spec.disable_after = disable_after;
        }
        let policy = Policy {
            not_retried: delivery.not_retried.get_ref().clone(),
            signature_headers: delivery.signature_headers,
        };
        (spec, policy)
    }

    fn examples(&mut self, examples: Vec<file::Example>) -> Vec<Example> {
        let mut made: Vec<Example> = Vec::with_capacity(examples.len());
        for example in examples {
            let name = example.name.clone();
            if made.iter().any(|known| known.name == *name.get_ref()) {
                let reason = format!("an example is named `{}` already", name.get_ref());
                self.find(&name, reason);
            }
            match Example::read(example) {
                Ok(example) => made.push(example),
                Err((span, reason)) => self.faults.push(self.origin.fault(&span, reason)),
            }
        }
        made
    }
}

fn unknown_body(name: &str, bodies: &[Body]) -> String {
    let known = bodies.iter().map(|body| body.name.as_str());
    format!("there is no `[bodies.{name}]`{}", near(name, known))
}

fn near<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    fault::nearest(name, known)
        .map(|near| format!("; did you mean `{near}`?"))
        .unwrap_or_default()
}
