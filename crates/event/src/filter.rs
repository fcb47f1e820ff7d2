//! Whether a subscription wants an event that matched it. Pure; called by the deliverer, and by
//! whoever explains.

use std::{borrow::Cow, fmt};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::{
    event::Event,
    fault::{Fault, shown},
    subscription::FilterSpec,
};

mod cost;
mod expression;
#[cfg(test)]
mod tests;

use expression::Expression;

/// How many entries each list of a filter may have.
const ENTRIES_MAX: usize = 100;
/// How long each entry may be, in bytes.
const ENTRY_BYTES_MAX: usize = 256;

/// A filter made ready: lists checked, the expression compiled. Cheap to share between threads.
#[derive(Debug)]
pub struct Filter {
    // Lists of a few words: walking them is cheaper than hashing.
    actions: Vec<String>,
    statuses: Vec<String>,
    changed_fields: Vec<String>,
    expression: Option<Expression>,
}

/// The clause that stopped an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// `actions`, `statuses`, `changed_fields`, `where`; `dialect` or a dialect's parameter.
    pub clause: Cow<'static, str>,
    /// What was wanted and what was found, in one sentence without payload.
    pub detail: String,
}

impl Filter {
    /// Makes a filter ready, or names every clause that cannot be (pointers relative to the
    /// filter object: `/where`, `/actions/0`).
    pub fn compile(spec: &FilterSpec) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        check_list("actions", &spec.actions, &mut faults);
        check_list("statuses", &spec.statuses, &mut faults);
        check_list("changed_fields", &spec.changed_fields, &mut faults);
        for (n, action) in spec.actions.iter().enumerate() {
            if !is_lower_snake(action) {
                let message = format!(
                    "must be an action such as `created` or `updated`, in lower snake case, got `{}`",
                    shown(action, 64)
                );
                faults.push(Fault::at(format!("/actions/{n}"), message));
            }
        }
        let compiled = spec
            .expression
            .as_deref()
            .map(Expression::compile)
            .transpose();
        let expression = compiled.unwrap_or_else(|message| {
            faults.push(Fault::at("/where", message));
            None
        });
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            actions: spec.actions.clone(),
            statuses: spec.statuses.clone(),
            changed_fields: spec.changed_fields.clone(),
            expression,
        })
    }

    /// `Ok` when every clause holds. A missing field makes a clause false, never an error. Bounded:
    /// an expression that would cost too much does not hold, and says so.
    pub fn judge(&self, event: &Event) -> Result<(), Stopped> {
        self.clauses().try_for_each(|clause| clause.judge(event))
    }

    /// The clauses that were given, in the order in which they are judged, for who explains.
    pub fn clauses(&self) -> impl Iterator<Item = Clause<'_>> {
        let given = |list: &'_ [String]| !list.is_empty();
        [
            given(&self.actions).then_some(Clause::Actions(&self.actions)),
            given(&self.statuses).then_some(Clause::Statuses(&self.statuses)),
            given(&self.changed_fields).then_some(Clause::ChangedFields(&self.changed_fields)),
            self.expression.as_ref().map(Where).map(Clause::Where),
        ]
        .into_iter()
        .flatten()
    }
}

/// One clause of a filter.
#[derive(Debug, Clone, Copy)]
pub enum Clause<'f> {
    /// The event's action is one of these.
    Actions(&'f [String]),
    /// The new status is one of these.
    Statuses(&'f [String]),
    /// One of these is a key of `changes`.
    ChangedFields(&'f [String]),
    /// An expression holds.
    Where(Where<'f>),
}

/// The expression of a filter.
#[derive(Debug, Clone, Copy)]
pub struct Where<'f>(&'f Expression);

impl Clause<'_> {
    /// Its word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Actions(_) => "actions",
            Self::Statuses(_) => "statuses",
            Self::ChangedFields(_) => "changed_fields",
            Self::Where(_) => "where",
        }
    }

    /// Whether it holds.
    pub fn judge(&self, event: &Event) -> Result<(), Stopped> {
        let detail = match self {
            Self::Actions(wanted) => {
                let action = event.kind.action();
                if wanted.iter().any(|wanted| wanted == action) {
                    return Ok(());
                }
                format!("wanted {}, got `{action}`", any_of(wanted))
            }
            Self::Statuses(wanted) => {
                let status = event.status.as_deref();
                if status.is_some_and(|status| wanted.iter().any(|wanted| wanted == status)) {
                    return Ok(());
                }
                let got = status.map_or("none".into(), |status| format!("`{}`", shown(status, 64)));
                format!("wanted {}, got {got}", any_of(wanted))
            }
            Self::ChangedFields(wanted) => {
                if has_any_key(event.changes.as_deref(), wanted) {
                    return Ok(());
                }
                let got = match event.changes {
                    Some(_) => "got other fields",
                    None => "the event carries no changes",
                };
                format!("wanted a change of {}, {got}", any_of(wanted))
            }
            Self::Where(Where(expression)) => match expression.holds(event) {
                Ok(()) => return Ok(()),
                Err(detail) => detail.into(),
            },
        };
        Err(Stopped {
            clause: self.word().into(),
            detail,
        })
    }
}

fn check_list(name: &str, entries: &[String], faults: &mut Vec<Fault>) {
    if entries.len() > ENTRIES_MAX {
        let message = format!(
            "must have at most {ENTRIES_MAX} entries, got {}",
            entries.len()
        );
        faults.push(Fault::at(format!("/{name}"), message));
    }
    for (n, entry) in entries.iter().enumerate() {
        if entry.is_empty() || entry.len() > ENTRY_BYTES_MAX {
            let message = format!("must be 1 to {ENTRY_BYTES_MAX} bytes, got {}", entry.len());
            faults.push(Fault::at(format!("/{name}/{n}"), message));
        }
    }
}

fn is_lower_snake(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_lowercase())
        && word
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The words of a list as a sentence names them.
fn any_of(words: &[String]) -> String {
    const TOLD_MAX: usize = 5;
    let told: Vec<String> = words
        .iter()
        .take(TOLD_MAX)
        .map(|word| format!("`{}`", shown(word, 64)))
        .collect();
    let more = if words.len() > TOLD_MAX { ", …" } else { "" };
    let one_of = if words.len() > 1 { "one of " } else { "" };
    format!("{one_of}{}{more}", told.join(", "))
}

/// Whether an object has any of these keys.
fn has_any_key(object: Option<&RawValue>, wanted: &[String]) -> bool {
    struct AnyOf<'w>(&'w [String]);
    impl<'de> Visitor<'de> for AnyOf<'_> {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
            let mut found = false;
            while let Some(this) = map.next_key_seed(Self(self.0))? {
                found |= this;
                map.next_value::<IgnoredAny>()?;
            }
            Ok(found)
        }

        fn visit_str<E>(self, key: &str) -> Result<bool, E> {
            Ok(self.0.iter().any(|wanted| wanted == key))
        }
    }
    impl<'de> DeserializeSeed<'de> for AnyOf<'_> {
        type Value = bool;

        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
            deserializer.deserialize_any(self)
        }
    }
    object.is_some_and(|object| {
        let mut reader = serde_json::Deserializer::from_str(object.get());
        AnyOf(wanted).deserialize(&mut reader).unwrap_or(false)
    })
}
