//! What a person wrote, in a dialect's words: which events they mean, and which parameters those
//! take.

use std::collections::BTreeMap;

use event::{
    Fault,
    fault::{kind_of, nearest},
    selector::Selector,
    subscription::{
        View,
        words::{self, Words},
    },
};
use serde_json::{Map, Value};

use crate::{
    file::Parameter,
    spoken::{Dialect, Word},
};

/// How many entries a parameter that is a list may have, and how long each may be.
const ENTRIES_MAX: usize = 100;
const ENTRY_BYTES_MAX: usize = 256;
/// How much of a bad value is said back.
const SHOWN_CHARS_MAX: usize = 64;

/// What one entry of `events` listens to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Listen {
    /// One of the dialect's words, by its place.
    Word(usize),
    /// A word that stands for many, with the action that was written into it.
    Pattern(usize, Selector),
    /// All words that begin alike.
    Below(Vec<usize>),
    /// A canonical selector.
    Canonical(Selector),
}

/// One entry: how it is kept, what it means.
#[derive(Debug)]
struct Entry {
    text: String,
    listen: Listen,
}

impl Dialect {
    /// What an entry means, and how the platform documents it, or why it means nothing.
    pub(crate) fn resolve(&self, text: &str) -> Result<(String, Listen), String> {
        if self.canonical {
            let selector = words::canonical(text)?;
            return Ok((selector.to_string(), Listen::Canonical(selector)));
        }
        let named = |word: &Word| word.word == text || word.also.iter().any(|also| also == text);
        if let Some(place) = self.words.iter().position(named) {
            let word = &self.words[place];
            if word.pattern.is_none() {
                return Ok((word.word.clone(), Listen::Word(place)));
            }
        }
        if let Some(found) = self.pattern(text) {
            return found;
        }
        let below = self.words_below(text);
        if !below.is_empty() {
            return Ok((text.to_owned(), Listen::Below(below)));
        }
        if let Some(reason) = self.refusal(text) {
            return Err(reason);
        }
        if let Ok(selector) = words::canonical(text)
            && !self.words_for(&selector).is_empty()
        {
            return Ok((selector.to_string(), Listen::Canonical(selector)));
        }
        Err(self.unknown(text))
    }

    /// `custom:onAddItemCart` and the like.
    fn pattern(&self, text: &str) -> Option<Result<(String, Listen), String>> {
        for (place, word) in self.words.iter().enumerate() {
            let Some(prefix) = &word.pattern else {
                continue;
            };
            let Some(name) = text.strip_prefix(prefix.as_str()) else {
                continue;
            };
            let Some(Selector::Entity(entity)) =
                word.meanings.first().and_then(|m| m.selectors.first())
            else {
                continue;
            };
            let parsed = event::EventType::parse(&format!("{entity}.{name}"));
            return Some(match parsed {
                Ok(kind) => Ok((
                    text.to_owned(),
                    Listen::Pattern(place, Selector::Exact(kind)),
                )),
                Err(_) => Err(format!(
                    "`{}` does not name an event: after `{prefix}` stands its name, such as \
                     `{prefix}onAddItemCart`, of letters, digits and `_`",
                    shown(text)
                )),
            });
        }
        None
    }

    /// Why a word that the platform documents cannot be listened to.
    fn refusal(&self, text: &str) -> Option<String> {
        let joint = self.wildcard.as_deref().unwrap_or("/");
        let selector = words::canonical(text).ok();
        self.refused
            .iter()
            .find(|refused| {
                let rest = text.strip_prefix(refused.word.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(joint))
                    || selector.as_ref().is_some_and(|wanted| {
                        *wanted != Selector::All
                            && refused
                                .selectors
                                .iter()
                                .any(|own| crate::spoken::may_meet(own, wanted))
                    })
            })
            .map(|refused| {
                format!(
                    "`{}` cannot be listened to: {}",
                    shown(text),
                    refused.reason
                )
            })
    }

    fn unknown(&self, text: &str) -> String {
        let words: Vec<&str> = self.words.iter().map(|word| word.word.as_str()).collect();
        let also = self.words.iter().flat_map(|word| &word.also);
        let types = self.words.iter().flat_map(|word| &word.meanings);
        let types: Vec<String> = types
            .flat_map(|meaning| &meaning.selectors)
            .map(Selector::to_string)
            .collect();
        let below: Vec<String> = self.groups();
        let below = below.iter().map(String::as_str);
        let named = words.iter().copied();
        let near = nearest(text, named.chain(below.filter(|_| text.ends_with('*'))))
            .or_else(|| nearest(text, also.map(String::as_str)))
            .or_else(|| nearest(text, types.iter().map(String::as_str)))
            .map(|near| format!("; did you mean `{near}`?"))
            .unwrap_or_default();
        format!(
            "`{}` is no event of `{}`{near} (there are `{}`)",
            shown(text),
            self.name,
            words.join("`, `")
        )
    }

    /// The entries that stand for several words: `Bookings/*` and its like.
    fn groups(&self) -> Vec<String> {
        let joint = self.wildcard.as_deref().unwrap_or_default();
        let mut groups: Vec<String> = Vec::new();
        for word in &self.words {
            if let Some((group, _)) = word.word.split_once(joint).filter(|_| !joint.is_empty()) {
                let group = format!("{group}{joint}*");
                if !groups.contains(&group) {
                    groups.push(group);
                }
            }
        }
        groups
    }

    /// The words an entry may be said with.
    fn meant(&self, listen: &Listen) -> Vec<usize> {
        match listen {
            Listen::Word(place) | Listen::Pattern(place, _) => vec![*place],
            Listen::Below(places) => places.clone(),
            Listen::Canonical(selector) => self.words_for(selector),
        }
    }

    /// What a subscription in this dialect says, or everything that is wrong with it.
    pub(crate) fn read(&self, written: &Map<String, Value>) -> Result<Words, Vec<Fault>> {
        let mut reader = Reader {
            dialect: self,
            faults: Vec::new(),
        };
        let given: BTreeMap<&str, (&Parameter, &Value)> = self
            .parameters
            .iter()
            .filter_map(|(name, parameter)| {
                let value = written.get(name).filter(|value| !value.is_null())?;
                Some((name.as_str(), (parameter, value)))
            })
            .collect();
        let (entries, listed) = reader.entries(written, &given);
        let mut words = Words {
            delivery: self.delivery.clone(),
            https: self.https,
            ..Words::default()
        };
        for (name, (parameter, value)) in given {
            let pointer = format!("/{name}");
            if let Some(kept) = reader.parameter(name, parameter, value, &pointer, &entries) {
                if let (Parameter::View { .. }, Some(text)) = (parameter, kept.as_str()) {
                    words.view = view_of(text);
                }
                words.parameters.insert(name.to_owned(), kept);
            }
        }
        if words.view.is_none()
            && let Some(view) = written
                .get("view")
                .and_then(Value::as_str)
                .and_then(view_of)
        {
            reader.view(view, &entries);
        }
        for entry in entries {
            for selector in self.selectors(&entry.listen) {
                if !words.matches.contains(&selector) {
                    words.matches.push(selector);
                }
            }
            if listed && !words.events.contains(&entry.text) {
                words.events.push(entry.text);
            }
        }
        let are_selectors = words
            .matches
            .iter()
            .map(Selector::to_string)
            .eq(words.events.iter().cloned());
        if are_selectors {
            words.matches.clear();
        }
        if reader.faults.is_empty() {
            Ok(words)
        } else {
            Err(reader.faults)
        }
    }

    /// What the router matches by: at least what the dialect can say of it.
    fn selectors(&self, listen: &Listen) -> Vec<Selector> {
        let of = |places: &[usize]| {
            let words = places.iter().filter_map(|place| self.words.get(*place));
            let meanings = words.flat_map(|word| &word.meanings);
            meanings
                .flat_map(|meaning| meaning.selectors.iter().cloned())
                .collect()
        };
        match listen {
            Listen::Word(place) => of(&[*place]),
            Listen::Below(places) => of(places),
            Listen::Pattern(_, selector) | Listen::Canonical(selector) => vec![selector.clone()],
        }
    }
}

struct Reader<'d> {
    dialect: &'d Dialect,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn find(&mut self, pointer: &str, message: impl Into<String>) {
        self.faults.push(Fault::at(pointer, message));
    }

    /// What is listened to, and whether it stands in `events`.
    fn entries(
        &mut self,
        written: &Map<String, Value>,
        given: &BTreeMap<&str, (&Parameter, &Value)>,
    ) -> (Vec<Entry>, bool) {
        let events = written.get("events");
        let instead = given
            .iter()
            .find(|(_, (parameter, _))| matches!(parameter, Parameter::Events { .. }));
        if let Some((name, (_, value))) = instead {
            let pointer = format!("/{name}");
            // As it is shown where a parameter stands in its place.
            if events.is_some_and(|events| events != &Value::Array(Vec::new())) {
                let message = "stands in the place of `events`: leave one of the two out";
                self.find(&pointer, message);
            }
            let entry = match value.as_str() {
                Some(text) => self.entry(&pointer, text),
                None => {
                    self.wrong_kind(&pointer, "a string", value);
                    None
                }
            };
            return (entry.into_iter().collect(), false);
        }
        let mut faults = Vec::new();
        let texts = words::entries(events, &mut faults);
        self.faults.append(&mut faults);
        let entries = texts
            .into_iter()
            .filter_map(|(pointer, text)| self.entry(&pointer, text));
        (entries.collect(), true)
    }

    fn entry(&mut self, pointer: &str, text: &str) -> Option<Entry> {
        match self.dialect.resolve(text) {
            Ok((text, listen)) => Some(Entry { text, listen }),
            Err(message) => {
                self.find(pointer, message);
                None
            }
        }
    }

    /// A parameter's value as it is kept, if every entry that it stands beside takes it.
    fn parameter(
        &mut self,
        name: &str,
        parameter: &Parameter,
        value: &Value,
        pointer: &str,
        entries: &[Entry],
    ) -> Option<Value> {
        let before = self.faults.len();
        let texts = match parameter {
            Parameter::Actions { .. } | Parameter::Status { .. } => self.list(pointer, value)?,
            Parameter::Events { .. } => {
                let entry = entries.first()?;
                return Some(entry.text.as_str().into());
            }
            _ => match value.as_str() {
                Some(text) => vec![(pointer.to_owned(), text)],
                None => {
                    self.wrong_kind(pointer, "a string", value);
                    return None;
                }
            },
        };
        for entry in entries {
            let meant = self.dialect.meant(&entry.listen);
            let takers: Vec<&Word> = meant
                .iter()
                .filter_map(|place| self.dialect.words.get(*place))
                .filter(|word| word.takes(name))
                .collect();
            if takers.is_empty() {
                let message = format!(
                    "`{}` takes no `{name}`; {}",
                    shown(&entry.text),
                    self.takes(&meant)
                );
                self.find(pointer, message);
                continue;
            }
            let allowed = allowed(parameter, &takers);
            if allowed.is_empty() {
                // Any text will do.
                continue;
            }
            for (pointer, text) in &texts {
                if !allowed.iter().any(|word| word == text) {
                    let near = nearest(text, allowed.iter().map(String::as_str))
                        .map(|near| format!("; did you mean `{near}`?"))
                        .unwrap_or_default();
                    let message = format!(
                        "must be {} with `{}`, got `{}`{near}",
                        one_of(&allowed),
                        shown(&entry.text),
                        shown(text)
                    );
                    self.find(pointer, message);
                }
            }
        }
        (self.faults.len() == before).then(|| value.clone())
    }

    /// Refuses a view that an entry's words do not offer.
    fn view(&mut self, view: View, entries: &[Entry]) {
        for entry in entries {
            let meant = self.dialect.meant(&entry.listen);
            let words = meant
                .iter()
                .filter_map(|place| self.dialect.words.get(*place));
            let offers: Vec<&Word> = words.filter(|word| !word.views.is_empty()).collect();
            if offers.is_empty() || offers.iter().any(|word| word.views.contains(&view)) {
                continue;
            }
            let names = view_names(&offers);
            let message = format!(
                "must be {} with `{}`, got `{}`",
                one_of(&names),
                shown(&entry.text),
                view_name(view)
            );
            self.find("/view", message);
        }
    }

    /// What some words take, in one sentence.
    fn takes(&self, places: &[usize]) -> String {
        let words: Vec<&Word> = places
            .iter()
            .filter_map(|place| self.dialect.words.get(*place))
            .collect();
        let taken: Vec<String> = self
            .dialect
            .parameters
            .iter()
            .filter_map(|(name, parameter)| {
                let takers: Vec<&Word> = words
                    .iter()
                    .copied()
                    .filter(|word| word.takes(name))
                    .collect();
                if takers.is_empty() || matches!(parameter, Parameter::Events { .. }) {
                    return None;
                }
                let allowed = allowed(parameter, &takers);
                Some(match (is_list(parameter), allowed.is_empty()) {
                    (true, true) => format!("`{name}` (a list)"),
                    (true, false) => format!("`{name}` (a list of {})", one_of(&allowed)),
                    (false, true) => format!("`{name}` (a text)"),
                    (false, false) => format!("`{name}` ({})", one_of(&allowed)),
                })
            })
            .collect();
        match taken.split_last() {
            None => "it takes no parameters".into(),
            Some((only, [])) => format!("it takes {only}"),
            Some((last, others)) => format!("it takes {} and {last}", others.join(", ")),
        }
    }

    fn list<'v>(&mut self, pointer: &str, value: &'v Value) -> Option<Vec<(String, &'v str)>> {
        let Value::Array(entries) = value else {
            self.wrong_kind(pointer, "an array of strings", value);
            return None;
        };
        if entries.len() > ENTRIES_MAX {
            let got = entries.len();
            self.find(
                pointer,
                format!("must have at most {ENTRIES_MAX} entries, got {got}"),
            );
            return None;
        }
        let before = self.faults.len();
        let mut texts = Vec::with_capacity(entries.len());
        for (n, entry) in entries.iter().enumerate() {
            let pointer = format!("{pointer}/{n}");
            match entry.as_str() {
                Some(text) if text.is_empty() || text.len() > ENTRY_BYTES_MAX => {
                    let got = text.len();
                    self.find(
                        &pointer,
                        format!("must be 1 to {ENTRY_BYTES_MAX} bytes, got {got}"),
                    );
                }
                Some(text) => texts.push((pointer, text)),
                None => self.wrong_kind(&pointer, "a string", entry),
            }
        }
        (self.faults.len() == before).then_some(texts)
    }

    fn wrong_kind(&mut self, pointer: &str, wanted: &str, got: &Value) {
        let got = kind_of(got);
        self.find(pointer, format!("must be {wanted}, got {got}"));
    }
}

pub(crate) fn is_list(parameter: &Parameter) -> bool {
    matches!(
        parameter,
        Parameter::Actions { .. } | Parameter::Status { .. }
    )
}

/// The values that a parameter may have beside some words; empty where any text will do.
pub(crate) fn allowed(parameter: &Parameter, words: &[&Word]) -> Vec<String> {
    match parameter {
        Parameter::Action { values, .. } => values.keys().cloned().collect(),
        Parameter::Body { values, .. } => values.keys().cloned().collect(),
        Parameter::Status { values, .. } | Parameter::Text { values, .. } => values.clone(),
        Parameter::View { .. } => view_names(words),
        Parameter::Actions { .. } => {
            let mut actions: Vec<String> = Vec::new();
            for action in words.iter().flat_map(|word| word.actions()) {
                if !actions.iter().any(|known| known == action) {
                    actions.push(action.to_owned());
                }
            }
            actions
        }
        Parameter::Events { .. } => words.iter().map(|word| word.word.clone()).collect(),
    }
}

fn view_names(words: &[&Word]) -> Vec<String> {
    crate::spoken::VIEWS
        .into_iter()
        .filter(|view| words.iter().any(|word| word.views.contains(view)))
        .map(|view| view_name(view).to_owned())
        .collect()
}

pub(crate) fn view_name(view: View) -> &'static str {
    match view {
        View::Basic => "basic",
        View::Full => "full",
        View::Extended => "extended",
    }
}

fn view_of(name: &str) -> Option<View> {
    crate::spoken::VIEWS
        .into_iter()
        .find(|view| view_name(*view) == name)
}

/// `a`, `b` or `c`.
fn one_of(words: &[String]) -> String {
    let told: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match told.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

/// A word from somebody's input as it may stand in a message.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown.replace(char::is_control, "?")
}
