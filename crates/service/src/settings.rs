//! Settings: defaults, then `postrider.toml`, then the environment, then flags.
//!
//! The keys there are come from the settings' own types (`schema`), so that the check for unknown
//! keys cannot drift from what is read. Everything wrong is named at once, each with its full key,
//! where it came from and the nearest key there is.

mod origin;
mod schema;
mod sources;

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use schema::Node;
pub use sources::Sources;

/// The file that is read when no other is named.
pub const FILE: &str = "postrider.toml";
/// What every environment variable of ours begins with.
pub const ENV_PREFIX: &str = "POSTRIDER__";

/// One key of the settings, for the defaults, for `config show` and for the documentation.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// `section.key`; a `*` stands for any name (`loaders.*.url`).
    pub path: &'static str,
    /// The default, written as in the environment (`15s`, `127.0.0.0/8,::1/128`); empty is unset.
    pub default: &'static str,
    /// How much of the value may be shown.
    pub kind: Kind,
    /// What it is for and its bounds, in one sentence.
    pub help: &'static str,
}

/// How much of a value may be shown. Secrets and URLs may also come from `KEY_file`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All of it.
    Plain,
    /// None of it: `***`.
    Secret,
    /// All but the password.
    Url,
}

/// One thing wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The full key; empty for a source that could not be read at all.
    pub key: String,
    /// Where it came from: `postrider.toml:12`, `env POSTRIDER__LOG__LEVEL`, `flag --log-level`.
    pub origin: String,
    /// What is wrong with it.
    pub message: String,
    /// The nearest key there is, for an unknown one.
    pub nearest: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = if self.key.is_empty() {
            "settings"
        } else {
            &self.key
        };
        write!(f, "{key}: {} ({})", self.message, self.origin)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean `{nearest}`?")?;
        }
        Ok(())
    }
}

/// Why the process does not start: everything wrong with its settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    /// At least one.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.faults.as_slice() {
            [one] => write!(f, "bad settings: {one}"),
            many => {
                write!(f, "bad settings, {} faults:", many.len())?;
                many.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
            }
        }
    }
}

/// One line of `config show`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Effective {
    /// The full key.
    pub key: String,
    /// Its value, with what is secret masked; null is unset.
    pub value: Value,
    /// `default`, or where it came from.
    pub origin: String,
}

/// Settings that hold, and where each came from.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The settings.
    pub settings: T,
    effective: Vec<Effective>,
}

impl<T> Loaded<T> {
    /// Every key with its value, as it may be shown, and its origin.
    pub fn effective(&self) -> &[Effective] {
        &self.effective
    }

    /// Whether a person gave this key, anywhere.
    pub fn given(&self, key: &str) -> bool {
        self.find(key)
            .is_some_and(|line| line.origin != origin::DEFAULT)
    }

    /// A fault about a value that was read but cannot be meant, found by whoever knows more.
    pub fn fault(&self, key: &str, message: impl Into<String>) -> Fault {
        let origin = self.find(key).map_or(origin::DEFAULT, |line| &line.origin);
        Fault {
            key: key.into(),
            origin: origin.into(),
            message: message.into(),
            nearest: None,
        }
    }

    fn find(&self, key: &str) -> Option<&Effective> {
        self.effective.iter().find(|line| line.key == key)
    }
}

/// A value as some source gave it.
#[derive(Debug, Clone)]
struct Given {
    path: Vec<String>,
    value: Value,
    origin: String,
}

impl Given {
    fn key(&self) -> String {
        self.path.join(".")
    }
}

/// Loads the settings from all sources, or says everything that is wrong with them.
///
/// `T` and its sections deserialize from nothing (`#[serde(default)]`) and refuse what they do not
/// know (`deny_unknown_fields`); they do not use `#[serde(flatten)]`.
pub fn load<T: DeserializeOwned>(keys: &[Key], sources: &Sources) -> Result<Loaded<T>, Refused> {
    let schema = schema::of::<T>();
    let mut faults = Vec::new();
    let defaults = sources::defaults(&schema, keys);
    let mut chosen: BTreeMap<Vec<String>, Given> = BTreeMap::new();
    let layers = [
        defaults,
        sources.read_file(&schema, &mut faults),
        sources.read_env(&schema, &mut faults),
        sources.read_flags(&schema, &mut faults),
    ];
    for layer in layers {
        for given in take_layer(layer, &schema, keys, &mut faults) {
            chosen.insert(given.path.clone(), given);
        }
    }
    for given in chosen.values() {
        faults.extend(judge::<T>(given, keys));
    }
    if !faults.is_empty() {
        return Err(Refused { faults });
    }
    let whole = schema::to_config(&schema::nest(chosen.values().map(|g| (&*g.path, &g.value))));
    let settings = whole.try_deserialize().map_err(|error| Refused {
        faults: vec![Fault {
            key: String::new(),
            origin: "all sources together".into(),
            message: error.to_string(),
            nearest: None,
        }],
    })?;
    Ok(Loaded {
        settings,
        effective: show(&schema, keys, &chosen),
    })
}

/// What differs between the keys listed and the keys the types have: for the test that keeps the
/// list, and the documentation made from it, whole.
pub fn drift<T: DeserializeOwned>(keys: &[Key]) -> Vec<String> {
    let schema = schema::of::<T>();
    let known = schema.leaves();
    let mut drift = Vec::new();
    for leaf in &known {
        if !keys.iter().any(|key| key.path == leaf) {
            drift.push(format!("{leaf} is read and not listed"));
        }
    }
    for key in keys {
        if !known.iter().any(|leaf| leaf == key.path) {
            drift.push(format!("{} is listed and not read", key.path));
        }
    }
    drift
}

/// Keeps what a layer says of keys there are; reads `KEY_file`.
fn take_layer(
    layer: Vec<Given>,
    schema: &Node,
    keys: &[Key],
    faults: &mut Vec<Fault>,
) -> Vec<Given> {
    let mut taken: Vec<Given> = Vec::new();
    for given in layer {
        let read = match schema.find(&given.path) {
            Some(_) => Ok(given),
            None => match file_variant(&given.path, keys) {
                Some(path) => sources::read_secret(given, path),
                None => Err(unknown(&given, schema, keys)),
            },
        };
        match read {
            Ok(given) if taken.iter().any(|other| other.path == given.path) => {
                let mut fault = sources::fault(&given, "is given twice");
                fault.message = format!("{}, also as `{}_file`", fault.message, fault.key);
                faults.push(fault);
            }
            Ok(given) => taken.push(given),
            Err(fault) => faults.push(fault),
        }
    }
    taken
}

/// The path without `_file`, where that is the key of a secret.
fn file_variant(path: &[String], keys: &[Key]) -> Option<Vec<String>> {
    let (last, before) = path.split_last()?;
    let stem = last.strip_suffix("_file")?;
    let stripped: Vec<String> = before.iter().cloned().chain([stem.to_owned()]).collect();
    let kind = kind_of(&stripped, keys)?;
    (kind != Kind::Plain).then_some(stripped)
}

fn kind_of(path: &[String], keys: &[Key]) -> Option<Kind> {
    let fits = |key: &&Key| {
        let segments: Vec<&str> = key.path.split('.').collect();
        segments.len() == path.len()
            && segments
                .iter()
                .zip(path)
                .all(|(want, got)| *want == "*" || want == got)
    };
    keys.iter().find(fits).map(|key| key.kind)
}

fn unknown(given: &Given, schema: &Node, keys: &[Key]) -> Fault {
    let mut known = schema.leaves();
    let secrets = keys.iter().filter(|key| key.kind != Kind::Plain);
    known.extend(secrets.map(|key| format!("{}_file", key.path)));
    Fault {
        nearest: nearest(&given.key(), &known),
        ..sources::fault(given, "is not a key")
    }
}

/// The known key most like `key`, where any is like it at all.
fn nearest(key: &str, known: &[String]) -> Option<String> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |other: &str| {
        let whole = strsim::normalized_damerau_levenshtein(key, other);
        // A right word in the wrong section is the commoner mistake than two wrong words.
        let word = strsim::normalized_damerau_levenshtein(&last(key), &last(other));
        whole.max(word * 0.8)
    };
    let scored = known.iter().map(|other| (likeness(other), other));
    let (score, best) = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (score > 0.55).then(|| best.clone())
}

/// Reads the settings with this one value and nothing else: what fails is this value's fault.
fn judge<T: DeserializeOwned>(given: &Given, keys: &[Key]) -> Option<Fault> {
    let alone = schema::to_config(&schema::nest([(&*given.path, &given.value)]));
    let error = alone.try_deserialize::<T>().err()?;
    let secret = kind_of(&given.path, keys).is_some_and(|kind| kind != Kind::Plain);
    // The text of an error quotes the value.
    let message = if secret {
        "is not a value of the wanted form".into()
    } else {
        schema::explain(&error)
    };
    Some(sources::fault(given, message))
}

fn show(schema: &Node, keys: &[Key], chosen: &BTreeMap<Vec<String>, Given>) -> Vec<Effective> {
    let mut lines = Vec::new();
    for given in chosen.values() {
        let value = match kind_of(&given.path, keys) {
            Some(Kind::Secret) => Value::from("***"),
            Some(Kind::Url) => given
                .value
                .as_str()
                .map_or(Value::Null, |url| mask(url).into()),
            Some(Kind::Plain) | None => given.value.clone(),
        };
        lines.push(Effective {
            key: given.key(),
            value,
            origin: given.origin.clone(),
        });
    }
    let unset = schema
        .leaves()
        .into_iter()
        .filter(|leaf| !leaf.contains('*'));
    for key in unset {
        if !lines.iter().any(|line| line.key == key) {
            lines.push(Effective {
                key,
                value: Value::Null,
                origin: origin::DEFAULT.into(),
            });
        }
    }
    lines.sort_by(|a, b| a.key.cmp(&b.key));
    lines
}

/// A URL without its password, wherever it carries one.
pub fn mask(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // Not a URL: nobody knows what it is, and it may be a password in the wrong place.
        return "***".into();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    // A password with an unescaped `/` or `#` ends up after the authority: take the last `@`.
    let at = rest[..end].rfind('@').or_else(|| rest.rfind('@'));
    let (user, host) = at.map_or(("", rest), |at| (&rest[..at], &rest[at + 1..]));
    let user = match (at, user.split_once(':')) {
        (None, _) => String::new(),
        (Some(_), Some((name, _))) => format!("{name}:***@"),
        (Some(_), None) => format!("{user}@"),
    };
    let Some((place, query)) = host.split_once('?') else {
        return format!("{scheme}://{user}{host}");
    };
    let pairs: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, _)) if name.to_ascii_lowercase().contains("pass") => format!("{name}=***"),
            _ => pair.to_owned(),
        })
        .collect();
    format!("{scheme}://{user}{place}?{}", pairs.join("&"))
}

/// The file a `--config` names, or the default one.
#[derive(Debug, Clone)]
pub enum File {
    /// Named by a person: missing is a fault.
    Named(PathBuf),
    /// [`FILE`] in this folder: missing is fine.
    In(PathBuf),
    /// None is read.
    None,
}

#[cfg(test)]
mod tests;
