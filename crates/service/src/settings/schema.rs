//! The shape of settings, asked of their types.
//!
//! A type is deserialized by a [`Probe`] that answers with nothing but one path at a time and
//! notes what the type asks for at its end: fields, a map, text, a number. No list to keep.

use std::cell::RefCell;

use config::{ConfigError, Value as ConfigValue, ValueKind};
use serde::{
    Deserializer,
    de::{DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, Visitor, value::Error},
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};

/// One place of the settings.
#[derive(Debug)]
pub(super) enum Node {
    /// A section with these keys.
    Section(Vec<(&'static str, Self)>),
    /// Any names, each with this below it.
    Any(Box<Self>),
    /// A value.
    Leaf(Shape),
}

/// What a value is wanted as, for reading it from text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Taken as it is.
    Text,
    /// Numbers and booleans: converted when they are read.
    Scalar,
    /// `a,b` or `["a", "b"]`.
    List,
    /// Anything; text that is a JSON array or object is read as that.
    Free,
}

impl Node {
    /// The node at `path`.
    pub(super) fn find(&self, path: &[String]) -> Option<&Self> {
        let Some((first, rest)) = path.split_first() else {
            return matches!(self, Self::Leaf(_)).then_some(self);
        };
        match self {
            Self::Section(keys) => keys
                .iter()
                .find(|(key, _)| key == first)
                .and_then(|(_, node)| node.find(rest)),
            Self::Any(below) => below.find(rest),
            Self::Leaf(_) => None,
        }
    }

    /// Whether the value at `path` is a table of keys rather than a value of its own.
    pub(super) fn below(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Section(keys) => keys
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, node)| node),
            Self::Any(below) => Some(below),
            Self::Leaf(_) => None,
        }
    }

    /// Every key, with `*` for any name.
    pub(super) fn leaves(&self) -> Vec<String> {
        let under = |prefix: &str, node: &Self| -> Vec<String> {
            let tails = node.leaves();
            let join = |tail: String| {
                if tail.is_empty() {
                    prefix.to_owned()
                } else {
                    format!("{prefix}.{tail}")
                }
            };
            tails.into_iter().map(join).collect()
        };
        match self {
            Self::Section(keys) => keys
                .iter()
                .flat_map(|(key, node)| under(key, node))
                .collect(),
            Self::Any(below) => under("*", below),
            Self::Leaf(_) => vec![String::new()],
        }
    }
}

/// The shape of `T`.
pub(super) fn of<T: DeserializeOwned>() -> Node {
    explore::<T>(&mut Vec::new())
}

fn explore<T: DeserializeOwned>(path: &mut Vec<&'static str>) -> Node {
    let found = RefCell::new(None);
    // The probe never gives a value, so this always is an error; what was asked is the answer.
    drop(T::deserialize(Probe {
        path,
        found: &found,
    }));
    match found.into_inner() {
        Some(Asked::Fields(fields)) => {
            let mut below = |field: &'static str| {
                path.push(field);
                let node = explore::<T>(path);
                path.pop();
                (field, node)
            };
            Node::Section(fields.iter().map(|field| below(field)).collect())
        }
        Some(Asked::Names) => {
            path.push("*");
            let node = explore::<T>(path);
            path.pop();
            Node::Any(Box::new(node))
        }
        Some(Asked::Value(shape)) => Node::Leaf(shape),
        None => Node::Leaf(Shape::Free),
    }
}

enum Asked {
    Fields(&'static [&'static str]),
    Names,
    Value(Shape),
}

struct Probe<'a> {
    path: &'a [&'static str],
    found: &'a RefCell<Option<Asked>>,
}

impl<'a> Probe<'a> {
    fn note<T>(&self, asked: Asked) -> Result<T, Error> {
        if self.path.is_empty() {
            *self.found.borrow_mut() = Some(asked);
        }
        Err(serde::de::Error::custom("a probe has no values"))
    }

    fn descend<'de, V: Visitor<'de>>(self, visitor: V, asked: Asked) -> Result<V::Value, Error> {
        match self.path.split_first() {
            None => self.note(asked),
            Some((first, rest)) => visitor.visit_map(OneKey {
                key: Some(first),
                below: rest,
                found: self.found,
            }),
        }
    }
}

macro_rules! ask {
    ($($method:ident => $shape:expr),+ $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
            self.note(Asked::Value($shape))
        })+
    };
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    ask! {
        deserialize_any => Shape::Free,
        deserialize_ignored_any => Shape::Free,
        deserialize_bool => Shape::Scalar,
        deserialize_i8 => Shape::Scalar,
        deserialize_i16 => Shape::Scalar,
        deserialize_i32 => Shape::Scalar,
        deserialize_i64 => Shape::Scalar,
        deserialize_u8 => Shape::Scalar,
        deserialize_u16 => Shape::Scalar,
        deserialize_u32 => Shape::Scalar,
        deserialize_u64 => Shape::Scalar,
        deserialize_f32 => Shape::Scalar,
        deserialize_f64 => Shape::Scalar,
        deserialize_char => Shape::Text,
        deserialize_str => Shape::Text,
        deserialize_string => Shape::Text,
        deserialize_identifier => Shape::Text,
        deserialize_seq => Shape::List,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Error> {
        self.note(Asked::Value(Shape::Text))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.descend(visitor, Asked::Fields(fields))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.descend(visitor, Asked::Names)
    }

    forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit unit_struct tuple tuple_struct
    }
}

struct OneKey<'a> {
    key: Option<&'static str>,
    below: &'a [&'static str],
    found: &'a RefCell<Option<Asked>>,
}

impl<'de> MapAccess<'de> for OneKey<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.key
            .take()
            .map(|key| seed.deserialize(key.into_deserializer()))
            .transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(Probe {
            path: self.below,
            found: self.found,
        })
    }
}

/// A tree from values and their paths.
pub(super) fn nest<'a>(values: impl IntoIterator<Item = (&'a [String], &'a Value)>) -> Value {
    let mut root = Map::new();
    for (path, value) in values {
        let Some((last, before)) = path.split_last() else {
            continue;
        };
        let mut table = &mut root;
        for segment in before {
            let below = table
                .entry(segment.clone())
                .or_insert_with(|| Value::Object(Map::new()));
            // Paths end at leaves of one schema, so no path is the beginning of another.
            let Value::Object(below) = below else {
                return Value::Object(root);
            };
            table = below;
        }
        table.insert(last.clone(), value.clone());
    }
    Value::Object(root)
}

/// As `config` has it, whose reading of text as numbers and booleans we use.
pub(super) fn to_config(value: &Value) -> ConfigValue {
    let kind = match value {
        Value::Null => ValueKind::Nil,
        Value::Bool(yes) => ValueKind::Boolean(*yes),
        Value::Number(n) => n
            .as_i64()
            .map(ValueKind::I64)
            .or_else(|| n.as_u64().map(ValueKind::U64))
            .or_else(|| n.as_f64().map(ValueKind::Float))
            .unwrap_or(ValueKind::Nil),
        Value::String(text) => ValueKind::String(text.clone()),
        Value::Array(items) => ValueKind::Array(items.iter().map(to_config).collect()),
        Value::Object(map) => ValueKind::Table(
            map.iter()
                .map(|(key, v)| (key.clone(), to_config(v)))
                .collect(),
        ),
    };
    ConfigValue::new(None, kind)
}

/// The innermost sentence of an error: the key and the origin are told elsewhere.
pub(super) fn explain(error: &ConfigError) -> String {
    match error {
        ConfigError::At { error, .. } => explain(error),
        ConfigError::Type {
            unexpected,
            expected,
            ..
        } => {
            format!("must be {expected}, got {unexpected}")
        }
        other => other.to_string(),
    }
}
