//! What each source says: defaults, the file, the environment, flags.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::{
    ENV_PREFIX, FILE, Fault, File, Given, Key, origin,
    schema::{Node, Shape},
};

/// Everything settings may come from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The file.
    pub file: File,
    /// The whole environment; only what begins with [`ENV_PREFIX`] is looked at.
    pub env: Vec<(OsString, OsString)>,
    /// `(key, value)` from the command line, such as `("log.level", "debug")`.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// Those of this process: the named file or the one in the working folder, the environment,
    /// and these flags.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        Self {
            file: file.map_or_else(|| File::In(PathBuf::new()), File::Named),
            env: std::env::vars_os().collect(),
            flags,
        }
    }

    /// Only these flags: no file and no environment.
    pub fn only(flags: Vec<(String, String)>) -> Self {
        Self {
            file: File::None,
            env: Vec::new(),
            flags,
        }
    }

    pub(super) fn read_file(&self, schema: &Node, faults: &mut Vec<Fault>) -> Vec<Given> {
        let (path, named) = match &self.file {
            File::Named(path) => (path.clone(), true),
            File::In(folder) => (folder.join(FILE), false),
            File::None => return Vec::new(),
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => read_toml(&path, &text, schema, faults),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !named => Vec::new(),
            Err(error) => {
                faults.push(Fault {
                    key: String::new(),
                    origin: path.display().to_string(),
                    message: format!("the file cannot be read: {error}"),
                    nearest: None,
                });
                Vec::new()
            }
        }
    }

    pub(super) fn read_env(&self, schema: &Node, faults: &mut Vec<Fault>) -> Vec<Given> {
        let mut given = Vec::new();
        for (name, value) in &self.env {
            let Some(name) = name.to_str() else { continue };
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
                continue;
            };
            let path: Vec<String> = rest.to_lowercase().split("__").map(str::to_owned).collect();
            let origin = format!("env {name}");
            match value.to_str() {
                Some(text) => given.push(read_text(schema, path, text, origin)),
                None => faults.push(Fault {
                    key: path.join("."),
                    origin,
                    message: "is not UTF-8".into(),
                    nearest: None,
                }),
            }
        }
        given.sort_by(|a, b| a.origin.cmp(&b.origin));
        given
    }

    pub(super) fn read_flags(&self, schema: &Node, faults: &mut Vec<Fault>) -> Vec<Given> {
        let mut given: Vec<Given> = Vec::new();
        for (key, text) in &self.flags {
            let path: Vec<String> = key.split('.').map(str::to_owned).collect();
            let next = read_text(schema, path, text, format!("flag for {key}"));
            if given.iter().any(|other| other.path == next.path) {
                faults.push(fault(&next, "is given twice"));
            } else {
                given.push(next);
            }
        }
        given
    }
}

/// The defaults of the listed keys.
pub(super) fn defaults(schema: &Node, keys: &[Key]) -> Vec<Given> {
    let path = |key: &Key| key.path.split('.').map(str::to_owned).collect::<Vec<_>>();
    let listed = keys.iter().filter(|key| !key.path.contains('*'));
    listed
        .map(|key| (key, path(key)))
        // An empty default is unset, except for a list, where it is the empty list.
        .filter(|(key, path)| {
            !key.default.is_empty() || matches!(schema.find(path), Some(Node::Leaf(Shape::List)))
        })
        .map(|(key, path)| read_text(schema, path, key.default, origin::DEFAULT.into()))
        .collect()
}

/// A value from text, as its key wants it.
fn read_text(schema: &Node, path: Vec<String>, text: &str, origin: String) -> Given {
    let as_json = || serde_json::from_str::<Value>(text).ok();
    let structured = text.trim_start().starts_with(['[', '{']);
    let value = match schema.find(&path) {
        Some(Node::Leaf(Shape::List)) if structured => as_json().unwrap_or_else(|| text.into()),
        Some(Node::Leaf(Shape::List)) => {
            let items = text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty());
            items.collect::<Vec<_>>().into()
        }
        Some(Node::Leaf(Shape::Free)) if structured => as_json().unwrap_or_else(|| text.into()),
        _ => text.into(),
    };
    Given {
        path,
        value,
        origin,
    }
}

fn read_toml(path: &Path, text: &str, schema: &Node, faults: &mut Vec<Fault>) -> Vec<Given> {
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let offset = error.span().map_or(0, |span| span.start);
        faults.push(Fault {
            key: String::new(),
            origin: origin::line_of(path, text, offset),
            message: format!("not TOML: {}", error.message()),
            nearest: None,
        });
    }
    if !errors.is_empty() {
        // What could be recovered may be half of what was meant.
        return Vec::new();
    }
    let mut reader = TomlReader {
        file: path,
        text,
        given: Vec::new(),
        faults,
    };
    reader.table(root.get_ref(), schema, &[]);
    reader.given
}

struct TomlReader<'a> {
    file: &'a Path,
    text: &'a str,
    given: Vec<Given>,
    faults: &'a mut Vec<Fault>,
}

impl TomlReader<'_> {
    fn table(&mut self, table: &DeTable<'_>, node: &Node, path: &[String]) {
        for (name, value) in table {
            let mut path = path.to_vec();
            path.push(name.get_ref().to_string());
            let origin = origin::line_of(self.file, self.text, name.span().start);
            match (value.get_ref(), node.below(name.get_ref())) {
                (DeValue::Table(inner), Some(below @ (Node::Section(_) | Node::Any(_)))) => {
                    self.table(inner, below, &path);
                }
                // A table nobody knows: each of its keys is named, for the nearest one.
                (DeValue::Table(inner), None) if !inner.is_empty() => {
                    self.table(inner, &Node::Section(Vec::new()), &path);
                }
                (_, Some(Node::Section(_) | Node::Any(_))) => {
                    let given = Given {
                        path,
                        value: Value::Null,
                        origin,
                    };
                    self.faults.push(fault(&given, "must be a table of keys"));
                }
                (value, _) => self.given.push(Given {
                    path,
                    value: to_json(value),
                    origin,
                }),
            }
        }
    }
}

fn to_json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(int) => i64::from_str_radix(int.as_str(), int.radix())
            .map_or_else(|_| int.as_str().into(), Value::from),
        DeValue::Float(float) => float
            .as_str()
            .parse::<f64>()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .map_or_else(|| float.as_str().into(), Value::Number),
        DeValue::Boolean(yes) => (*yes).into(),
        DeValue::Datetime(at) => at.to_string().into(),
        DeValue::Array(items) => items.iter().map(|item| to_json(item.get_ref())).collect(),
        DeValue::Table(table) => {
            let pairs = table
                .iter()
                .map(|(k, v)| (k.get_ref().to_string(), to_json(v.get_ref())));
            Value::Object(pairs.collect())
        }
    }
}

/// The secret in the file that `given` names, trimmed.
pub(super) fn read_secret(given: Given, path: Vec<String>) -> Result<Given, Fault> {
    let Some(file) = given.value.as_str() else {
        return Err(fault(&given, "must be the path of a file"));
    };
    let text = std::fs::read_to_string(file)
        .map_err(|error| fault(&given, format!("{file} cannot be read: {error}")))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(fault(&given, format!("{file} is empty")));
    }
    let origin = format!("file {file} named by {}", given.origin);
    Ok(Given {
        path,
        value: text.into(),
        origin,
    })
}

pub(super) fn fault(given: &Given, message: impl Into<String>) -> Fault {
    Fault {
        key: given.key(),
        origin: given.origin.clone(),
        message: message.into(),
        nearest: None,
    }
}
