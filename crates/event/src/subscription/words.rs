//! The words a subscription is written in: canonical selectors, or a dialect's own names with its
//! own parameters beside them.
//!
//! What a dialect's words are is the `dialect` crate's to know; it answers through [`Vocabulary`].

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde_json::{Map, Value};

use super::{
    DeliverySpec, View,
    parse::{FIELDS, OURS},
};
use crate::{Fault, fault, selector::Selector};

/// How many entries `events` may have.
pub const EVENTS_MAX: usize = 100;

/// What can be said in each dialect. Asked while a subscription is read.
pub trait Vocabulary: fmt::Debug + Sync {
    /// The dialects there are, in alphabetical order.
    fn names(&self) -> Vec<&str>;

    /// The parameters that a subscription in this dialect may carry beside the common fields;
    /// empty for a dialect that is not known.
    fn parameters(&self, dialect: &str) -> Vec<&str>;

    /// Reads `events` and the dialect's parameters out of what a person wrote (all fields of the
    /// subscription are there, the other ones are not its business). Every fault has a pointer
    /// into the subscription and names what would be accepted, and the nearest name.
    fn read(&self, dialect: &str, written: &Map<String, Value>) -> Result<Words, Vec<Fault>>;
}

/// Whether a subscription has a field of this name, so that no parameter can.
pub fn is_field(name: &str) -> bool {
    let ours = ["state", "public_key", "previous_expires_at"];
    FIELDS.contains(&name) || OURS.contains(&name) || ours.contains(&name)
}

/// What a subscription's words come to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Words {
    /// The entries as they are kept and shown back.
    pub events: Vec<String>,
    /// What they mean; empty where they are selectors themselves.
    pub matches: Vec<Selector>,
    /// The parameters as they are kept and shown back.
    pub parameters: BTreeMap<String, Value>,
    /// The view that a parameter chose; `None` leaves it to `view`.
    pub view: Option<View>,
    /// How deliveries are sent where the subscription says nothing else.
    pub delivery: DeliverySpec,
    /// Whether the target has to be an `https` URL whatever the server's rules allow: a loopback
    /// address that they name is the only exception, for trials on one machine.
    pub https: bool,
}

impl Words {
    /// What the router matches by.
    pub fn selectors(&self) -> Cow<'_, [Selector]> {
        super::meaning(&self.events, &self.matches)
    }
}

/// The vocabulary of a server that speaks only canonical selectors, whatever a dialect is called.
#[derive(Debug, Clone, Copy)]
pub struct Canonical<'a>(pub &'a [&'a str]);

impl Vocabulary for Canonical<'_> {
    fn names(&self) -> Vec<&str> {
        self.0.to_vec()
    }

    fn parameters(&self, _dialect: &str) -> Vec<&str> {
        Vec::new()
    }

    fn read(&self, _dialect: &str, written: &Map<String, Value>) -> Result<Words, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut events: Vec<String> = Vec::new();
        for (pointer, text) in entries(written.get("events"), &mut faults) {
            match canonical(text) {
                Ok(selector) => {
                    let word = selector.to_string();
                    if !events.contains(&word) {
                        events.push(word);
                    }
                }
                Err(message) => faults.push(Fault::at(pointer, message)),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Words {
            events,
            ..Words::default()
        })
    }
}

/// Reads a canonical selector, by the synonyms that services use too.
pub fn canonical(text: &str) -> Result<Selector, String> {
    let parsed = match text.strip_prefix("client.") {
        // The synonym that services know the customer by.
        Some(action) => Selector::parse(&format!("customer.{action}")),
        None => Selector::parse(text),
    };
    parsed.map_err(|bad| bad.0)
}

/// The entries of `events` with their pointers. What is no list of texts is a fault.
pub fn entries<'v>(events: Option<&'v Value>, faults: &mut Vec<Fault>) -> Vec<(String, &'v str)> {
    let mut find = |pointer: &str, message: String| faults.push(Fault::at(pointer, message));
    let list = match events {
        Some(Value::Array(list)) => list,
        Some(other) => {
            let got = fault::kind_of(other);
            find(
                "/events",
                format!("must be an array such as [\"appointment.*\"], got {got}"),
            );
            return Vec::new();
        }
        None => {
            find(
                "/events",
                "is required, for example [\"appointment.*\"] or [\"*\"]".into(),
            );
            return Vec::new();
        }
    };
    if list.is_empty() || list.len() > EVENTS_MAX {
        let got = list.len();
        find(
            "/events",
            format!("must have 1 to {EVENTS_MAX} entries, got {got}"),
        );
        return Vec::new();
    }
    let mut entries = Vec::with_capacity(list.len());
    for (n, entry) in list.iter().enumerate() {
        let pointer = format!("/events/{n}");
        match entry.as_str() {
            Some(text) if text.chars().any(char::is_control) => {
                find(&pointer, "must not contain control characters".into());
            }
            Some(text) => entries.push((pointer, text)),
            None => {
                let got = fault::kind_of(entry);
                find(&pointer, format!("must be a string, got {got}"));
            }
        }
    }
    entries
}
