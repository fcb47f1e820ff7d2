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
    entries: Vec<(Box<str>, Entry)>,
}

#[derive(Debug, Clone)]
enum Entry {
    /// As it was published.
    Published(Box<str>),
    Put(Value),
}

/// `object|put(map, …, without=[keys])`: the object with the keys taken out, and the entries of the
/// maps in the place of those of the same name, or else at the end.
pub(super) fn put(object: &Value, maps: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let without: Option<Vec<String>> = options.get("without")?;
    options.assert_all_used()?;
    let without = without.unwrap_or_default();
    let stays = |key: &str| !without.iter().any(|out| out == key);
    let mut edited = Edited::default();
    if let Some(own) = object.downcast_object_ref::<Edited>() {
        let entries = own.entries.iter().filter(|(key, _)| stays(key));
        edited.entries.extend(entries.cloned());
    } else if let Some(entries) = object.downcast_object_ref::<Raw>().and_then(Raw::entries) {
        edited.entries.reserve(32);
        for (key, text) in entries.filter(|(key, _)| stays(key)) {
            edited
                .entries
                .push((key.into(), Entry::Published(text.into())));
        }
    } else {
        return Err(no_object(
            "`put` needs an object of the event, such as `view`",
        ));
    }
    for map in maps.iter() {
        if map.kind() != ValueKind::Map {
            return Err(no_object("`put` takes objects to put in"));
        }
        for key in map.try_iter()? {
            let value = map.get_item(&key)?;
            edited.set(&key.to_string(), value);
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
        self.entries.push((key.into(), Entry::Put(value)));
    }

    fn set(&mut self, key: &str, value: Value) {
        match self.entries.iter_mut().find(|(known, _)| **known == *key) {
            Some((_, entry)) => *entry = Entry::Put(value),
            None => self.push(key, value),
        }
    }

    pub(super) fn write(&self, out: &mut Output<'_>, depth: usize) -> Result<(), Error> {
        written(out.write_char('{'))?;
        for (n, (key, entry)) in self.entries.iter().enumerate() {
            if n > 0 {
                written(out.write_char(','))?;
            }
            written(write_string(out, key))?;
            written(out.write_char(':'))?;
            match entry {
                Entry::Published(text) => written(out.write_str(text))?,
                Entry::Put(value) => write_json(out, value, depth)?,
            }
        }
        written(out.write_char('}'))
    }

    fn find(&self, key: &str) -> Option<Value> {
        let (_, entry) = self.entries.iter().find(|(known, _)| **known == *key)?;
        Some(match entry {
            Entry::Published(text) => Raw::value(text),
            Entry::Put(value) => value.clone(),
        })
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
        let keys = self.entries.iter().map(|(key, _)| Value::from(&**key));
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
