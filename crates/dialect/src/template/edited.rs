//! An object of the event with some of its entries taken out, and others put in: what stays is
//! written as it was published, without a step of the template for each entry.

use std::{
    fmt::{self, Write as _},
    sync::Arc,
};

use minijinja::{
    Error, ErrorKind, Output, Value,
    value::{Enumerator, Kwargs, Object, Rest, ValueKind},
};

use super::{
    raw::{Raw, write_json, write_string},
    written,
};

/// An object whose entries have an order.
#[derive(Debug, Default)]
pub(super) struct Edited {
    /// The object that was published.
    own: Option<Arc<Raw>>,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    /// The published object's, by its place.
    Own(usize),
    Put(Box<str>, Value),
}

/// `object|put(map, …, without=[keys])`: the object with the keys taken out, and the entries of the
/// maps in the place of those of the same name, or else at the end.
pub(super) fn put(object: &Value, maps: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let without: Option<Vec<Value>> = options.get("without")?;
    options.assert_all_used()?;
    let without = without.unwrap_or_default();
    let stays = |key: &str| !without.iter().any(|out| out.as_str() == Some(key));
    let mut edited = Edited::default();
    if let Some(before) = object.downcast_object_ref::<Edited>() {
        edited.own.clone_from(&before.own);
        let entries = before.entries.iter();
        let entries = entries.filter(|entry| stays(before.key(entry))).cloned();
        edited.entries.extend(entries);
    } else if let Some(raw) = object.downcast_object::<Raw>()
        && let Some(entries) = raw.entries()
    {
        let staying = entries.enumerate().filter(|(_, (key, _))| stays(key));
        edited.entries.extend(staying.map(|(n, _)| Entry::Own(n)));
        edited.own = Some(raw.clone());
    } else {
        return Err(no_object(
            "`put` needs an object of the event, such as `view`",
        ));
    }
    for map in maps.iter() {
        if let Some(map) = map.downcast_object_ref::<Edited>() {
            for entry in &map.entries {
                edited.set(map.key(entry), map.value(entry));
            }
        } else if map.kind() == ValueKind::Map {
            for key in map.try_iter()? {
                let value = map.get_item(&key)?;
                edited.set(&key.to_string(), value);
            }
        } else {
            return Err(no_object("`put` takes objects to put in"));
        }
    }
    Ok(Value::from_object(edited))
}

fn no_object(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

impl Edited {
    /// Adds an entry at the end.
    pub(super) fn push(&mut self, key: &str, value: Value) {
        self.entries.push(Entry::Put(key.into(), value));
    }

    fn set(&mut self, key: &str, value: Value) {
        let place = self.entries.iter().position(|entry| self.key(entry) == key);
        match place.and_then(|place| self.entries.get_mut(place)) {
            Some(entry) => *entry = Entry::Put(key.into(), value),
            None => self.push(key, value),
        }
    }

    fn published(&self, place: usize) -> (&str, &str) {
        let own = self.own.as_deref().and_then(|own| own.entry(place));
        own.unwrap_or(("", "null"))
    }

    fn key<'e>(&'e self, entry: &'e Entry) -> &'e str {
        match entry {
            Entry::Own(place) => self.published(*place).0,
            Entry::Put(key, _) => key,
        }
    }

    fn value(&self, entry: &Entry) -> Value {
        match entry {
            Entry::Own(place) => Raw::value(self.published(*place).1),
            Entry::Put(_, value) => value.clone(),
        }
    }

    pub(super) fn write(&self, out: &mut Output<'_>, depth: usize) -> Result<(), Error> {
        written(out.write_char('{'))?;
        for (n, entry) in self.entries.iter().enumerate() {
            if n > 0 {
                written(out.write_char(','))?;
            }
            written(write_string(out, self.key(entry)))?;
            written(out.write_char(':'))?;
            match entry {
                Entry::Own(place) => written(out.write_str(self.published(*place).1))?,
                Entry::Put(_, value) => write_json(out, value, depth)?,
            }
        }
        written(out.write_char('}'))
    }

    fn find(&self, key: &str) -> Option<Value> {
        let entry = self.entries.iter().find(|entry| self.key(entry) == key)?;
        Some(self.value(entry))
    }
}

impl Object for Edited {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.find(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.find(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let keys = self.entries.iter().map(|entry| self.key(entry).into());
        let keys: Vec<Value> = keys.collect();
        Enumerator::Iter(Box::new(keys.into_iter()))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.entries.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{…}")
    }
}
