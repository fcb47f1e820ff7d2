//! The `where` clause: CEL over one variable, `event`.
//!
//! A subscriber writes it and we evaluate it for every event, so nothing in it may run away: its
//! length and depth are bounded before the parser sees it, its functions and variables are checked
//! when it is compiled, and before each evaluation its cost is estimated from the event's real
//! sizes (see [`super::cost`]).

use std::{
    collections::HashMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
};

use cel::{
    Context, Env, IdedExpr, Value,
    common::{
        ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SelectExpr, operators},
        types::{
            CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt,
        },
        value::Val,
    },
    parser::PrattParser,
};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::cost::{self, Sizes};
use crate::{
    event::Event,
    fault::{did_you_mean, shown},
};

const BYTES_MAX: usize = 1024;
const LEVELS_MAX: usize = 16;
/// How deep `exists`, `all`, `map` and `filter` may stand inside each other's bodies.
const LOOPS_MAX: usize = 2;

/// The name an expression knows the event by.
pub(super) const EVENT: &str = "event";

/// What `event` has.
const FIELDS: [&str; 11] = [
    "id",
    "tenant",
    "type",
    "time",
    "subject",
    "status",
    "previous_status",
    "version",
    "data",
    "changes",
    "details",
];

/// The functions and macros that may be called. All others are unknown, or grow without a bound.
const FUNCTIONS: [&str; 18] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "type",
    "dyn",
    // Macros are gone once parsed; here they serve "did you mean".
    "has",
    "all",
    "exists",
    "exists_one",
    "existsOne",
    "map",
    "filter",
];

/// The names of types, to compare the result of `type()` with.
const TYPES: [&str; 9] = [
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "uint",
];

/// The standard functions, built once: they never change, and building them for each evaluation
/// would cost more than evaluating.
static STANDARD: LazyLock<Arc<Env>> =
    LazyLock::new(|| Arc::new(Env::default().with_optional_support(false).with_stdlib()));

const MESSAGES: &str = "messages are not supported";
const NOT_TRUE: &str = "the expression does not hold";
const TOO_COSTLY: &str = "the expression would cost too much on an event of this size";

/// A compiled expression.
pub(super) struct Expression {
    source: String,
    root: IdedExpr,
    /// What of the event it may look at; only this is read.
    want: Want,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.source).finish()
    }
}

impl Expression {
    /// Compiles the text, or says what is wrong with it and where.
    pub(super) fn compile(source: &str) -> Result<Self, String> {
        if source.len() > BYTES_MAX {
            return Err(format!(
                "must be at most {BYTES_MAX} bytes, got {}",
                source.len()
            ));
        }
        if source.trim().is_empty() {
            return Err("must not be empty; leave it out instead".into());
        }
        check_brackets(source)?;
        let root = parse(source)?;
        let mut check = Check {
            source,
            want: Want::Fields(Vec::new()),
            bound: Vec::new(),
        };
        let levels = check.expr(&root, 1)?;
        if levels > LEVELS_MAX {
            return Err(format!(
                "is nested {levels} levels deep, at most {LEVELS_MAX}"
            ));
        }
        if !cost::fits(&root, &Sizes::small()) {
            return Err("would cost too much even on a small event".into());
        }
        let want = check.want;
        Ok(Self {
            source: source.into(),
            root,
            want,
        })
    }

    /// `Ok` when the expression is true of the event.
    pub(super) fn holds(&self, event: &Event) -> Result<(), &'static str> {
        let value: Box<dyn Val> = Box::new(self.variable(event));
        if !cost::fits(&self.root, &Sizes::rough(value.as_ref()))
            && !cost::fits(&self.root, &Sizes::exact(value.as_ref()))
        {
            return Err(TOO_COSTLY);
        }
        let mut context = Context::with_env(Arc::clone(&STANDARD));
        context.add_variable_as_val(EVENT, value);
        // What was compiled is not known to panic; should the evaluator do so on some value, then
        // this clause does not hold, and the deliverer goes on.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            Value::resolve_val(&self.root, &context).is_ok_and(|value| {
                value
                    .downcast_ref::<CelBool>()
                    .is_some_and(|it| *it.inner())
            })
        }));
        match outcome {
            Ok(true) => Ok(()),
            Ok(false) => Err(NOT_TRUE),
            Err(_) => Err("the expression could not be evaluated on this event"),
        }
    }

    /// The event as the expression sees it: only what it looks at is read.
    fn variable(&self, event: &Event) -> CelMap<'static> {
        let mut map: HashMap<CelMapKey<'static>, Box<dyn Val>> = HashMap::new();
        for field in FIELDS {
            let Some(want) = self.want.field(field) else {
                continue;
            };
            let json = |raw: &RawValue| read(raw, want);
            let text =
                |text: &str| Some(Box::new(CelString::from(text.to_owned())) as Box<dyn Val>);
            let value = match field {
                "id" => text(event.id.as_str()),
                "tenant" => text(event.tenant.as_str()),
                "type" => text(event.kind.as_str()),
                "time" => text(&event.time.to_string()),
                "subject" => event.subject.as_ref().and_then(|subject| json(&subject.0)),
                "status" => event.status.as_deref().and_then(text),
                "previous_status" => event.previous_status.as_deref().and_then(text),
                "version" => event.version.map(number),
                "data" => event.data.as_deref().and_then(&json),
                "changes" => event.changes.as_deref().and_then(&json),
                "details" => event.details.as_deref().and_then(&json),
                _ => None,
            };
            if let Some(value) = value {
                map.insert(CelMapKey::from(field.to_owned()), value);
            }
        }
        CelMap::from(map)
    }
}

/// Bounds the nesting before the parser, which recurses, sees the text.
fn check_brackets(source: &str) -> Result<(), String> {
    let bytes = source.as_bytes();
    let mut depth = 0_usize;
    let mut branches = 0_usize;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'?' => branches += 1,
            b'"' | b'\'' => at = string_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at += bytes[at..]
                    .iter()
                    .position(|b| *b == b'\n')
                    .unwrap_or(bytes.len() - at);
            }
            _ => {}
        }
        if depth > LEVELS_MAX || branches > LEVELS_MAX {
            let (line, column) = place(source, at);
            return Err(format!(
                "line {line}, column {column}: nested deeper than {LEVELS_MAX} levels"
            ));
        }
        at += 1;
    }
    Ok(())
}

/// The last byte of the string literal that begins at `from`.
fn string_end(bytes: &[u8], from: usize) -> usize {
    let quote = bytes[from];
    let triple = bytes[from..].starts_with(&[quote; 3]);
    let raw = from > 0 && matches!(bytes[from - 1], b'r' | b'R');
    let mut at = from + if triple { 3 } else { 1 };
    while let Some(byte) = bytes.get(at) {
        if *byte == b'\\' && !raw {
            at += 2;
        } else if triple && bytes[at..].starts_with(&[quote; 3]) {
            return at + 2;
        } else if !triple && (*byte == quote || *byte == b'\n') {
            return at;
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// Parses with the hand-written of the crate's two parsers. The generated one takes more than 128
/// KiB of stack per level in an unoptimised build, and some twenty times as long, which counts when
/// 100 000 subscriptions are loaded.
fn parse(source: &str) -> Result<IdedExpr, String> {
    // It is not known to panic within our bounds, but what it reads was written by somebody else.
    let parsed = catch_unwind(|| {
        let depth = u16::try_from(2 * LEVELS_MAX).unwrap_or(u16::MAX);
        PrattParser::new().max_recursion_depth(depth).parse(source)
    });
    match parsed {
        Ok(Ok(root)) => Ok(root),
        Ok(Err(errors)) => Err(errors.errors.first().map_or_else(
            || "is not an expression".into(),
            |error| {
                let (line, column) = error.pos;
                let text = error
                    .msg
                    .strip_prefix("Syntax error: ")
                    .unwrap_or(&error.msg);
                format!("line {line}, column {column}: {}", shown(text, 200))
            },
        )),
        Err(_) => Err("is not an expression that can be read".into()),
    }
}

/// Line and column of a byte, both from 1.
fn place(source: &str, at: usize) -> (usize, usize) {
    let before = source.get(..at).unwrap_or(source);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    (line, column)
}

/// Walks a parsed expression: what it names, how deep it is.
struct Check<'s> {
    source: &'s str,
    want: Want,
    /// The variables of the loops we are in.
    bound: Vec<String>,
}

impl Check<'_> {
    /// Checks a node that stands at `level`, and gives the deepest level below it.
    fn expr(&mut self, node: &IdedExpr, level: usize) -> Result<usize, String> {
        // The walk itself recurses, so it stops before the final verdict.
        if level > 4 * LEVELS_MAX {
            return Err(format!("is nested deeper than {LEVELS_MAX} levels"));
        }
        match &node.expr {
            Expr::Literal(_) => Ok(level),
            Expr::Ident(name) => {
                self.name(name)?;
                if name == EVENT && !self.is_bound(name) {
                    self.want = Want::All;
                }
                Ok(level)
            }
            Expr::Select(select) => self.select(select, level),
            Expr::Call(call) => self.call(call, level),
            Expr::List(list) => self.each(list.elements.iter(), level + 1),
            Expr::Map(map) => {
                let mut deepest = level;
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else {
                        return Err(MESSAGES.into());
                    };
                    deepest = deepest.max(self.each([&entry.key, &entry.value], level + 1)?);
                }
                Ok(deepest)
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, level),
            Expr::Struct(message) => Err(self.at(&message.type_name, MESSAGES)),
            Expr::Unspecified => Err("is not an expression".into()),
        }
    }

    fn select(&mut self, select: &SelectExpr, level: usize) -> Result<usize, String> {
        let mut innermost = select;
        let mut path = vec![select.field.as_str()];
        while let Expr::Select(next) = &innermost.operand.expr
            && !next.test
        {
            innermost = next;
            path.push(&next.field);
        }
        match &innermost.operand.expr {
            Expr::Ident(name) if name == EVENT && !self.is_bound(name) => {
                self.want.add(path.iter().rev().copied());
                Ok(level)
            }
            // A path from a variable is one level: `event.data.customer.address.city`.
            Expr::Ident(name) => self.name(name).map(|()| level),
            // Fields of a computed value are looked up one inside the other.
            _ => self.expr(&innermost.operand, level + path.len()),
        }
    }

    fn each<'n>(
        &mut self,
        nodes: impl IntoIterator<Item = &'n IdedExpr>,
        level: usize,
    ) -> Result<usize, String> {
        nodes.into_iter().try_fold(level, |deepest, node| {
            Ok(deepest.max(self.expr(node, level)?))
        })
    }

    fn call(&mut self, call: &CallExpr, level: usize) -> Result<usize, String> {
        let name = call.func_name.as_str();
        let operator =
            !name.starts_with(|c: char| c.is_ascii_alphabetic()) || name == operators::IN;
        if !operator && !FUNCTIONS.contains(&name) {
            let near = did_you_mean(name, FUNCTIONS);
            return Err(self.at(
                name,
                &format!("unknown function `{}`{near}", shown(name, 64)),
            ));
        }
        // A literal index of the event is as good as a field.
        if name == operators::INDEX
            && let [operand, index] = call.args.as_slice()
            && matches!(&operand.expr, Expr::Ident(ident) if ident == EVENT && !self.is_bound(ident))
            && let Expr::Literal(LiteralValue::String(field)) = &index.expr
        {
            self.want.add([field.inner()]);
            return Ok(level);
        }
        self.each(
            call.target.as_deref().into_iter().chain(&call.args),
            level + 1,
        )
    }

    fn comprehension(
        &mut self,
        comprehension: &ComprehensionExpr,
        level: usize,
    ) -> Result<usize, String> {
        // The range is walked outside the loop.
        let range = self.expr(&comprehension.iter_range, level + 1)?;
        if self.bound.len() == LOOPS_MAX * 2 {
            let text = format!("loops may stand inside each other at most {LOOPS_MAX} deep");
            return Err(text);
        }
        let variable = &comprehension.iter_var;
        if variable == EVENT || TYPES.contains(&variable.as_str()) {
            return Err(self.at(
                variable,
                &format!(
                    "`{}` is taken, name the variable otherwise",
                    shown(variable, 64)
                ),
            ));
        }
        self.bound.push(variable.clone());
        self.bound.push(comprehension.accu_var.clone());
        // The macro wraps what was written in up to two calls of its own, and a list.
        let parts = [
            &comprehension.accu_init,
            &comprehension.loop_cond,
            &comprehension.loop_step,
            &comprehension.result,
        ];
        let body = self.each(parts, level)?;
        self.bound.truncate(self.bound.len() - 2);
        Ok(range.max(body))
    }

    fn name(&self, name: &str) -> Result<(), String> {
        if name == EVENT || self.is_bound(name) || TYPES.contains(&name) {
            return Ok(());
        }
        let hint = if FIELDS.contains(&name) {
            format!("; did you mean `event.{name}`?")
        } else {
            "; the event is `event`, as in `event.data.price > 100`".into()
        };
        Err(self.at(
            name,
            &format!("unknown variable `{}`{hint}", shown(name, 64)),
        ))
    }

    fn is_bound(&self, name: &str) -> bool {
        self.bound.iter().any(|bound| bound == name)
    }

    /// A message about a word of the source, with its place. The parsed expression knows none, so
    /// this is where the word stands first.
    fn at(&self, word: &str, message: &str) -> String {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let whole = |at: &usize| {
            let (before, after) = (&self.source[..*at], &self.source[at + word.len()..]);
            !before.ends_with(part) && !after.starts_with(part)
        };
        match self
            .source
            .match_indices(word)
            .map(|(at, _)| at)
            .find(whole)
        {
            Some(at) => {
                let (line, column) = place(self.source, at);
                format!("line {line}, column {column}: {message}")
            }
            None => message.into(),
        }
    }
}

fn number(number: u64) -> Box<dyn Val> {
    match i64::try_from(number) {
        Ok(number) => Box::new(CelInt::from(number)),
        Err(_) => Box::new(CelUInt::from(number)),
    }
}

/// Which part of a value an expression may look at. What it has no path to is skipped, not read: an
/// event may be large and a clause small.
#[derive(Debug)]
enum Want {
    All,
    Fields(Vec<(String, Want)>),
}

impl Want {
    /// Adds a path, whose end is wanted whole.
    fn add<'p>(&mut self, path: impl IntoIterator<Item = &'p str>) {
        let mut here = self;
        for field in path {
            let Self::Fields(fields) = here else { return };
            let at = fields
                .iter()
                .position(|(known, _)| known == field)
                .unwrap_or_else(|| {
                    fields.push((field.into(), Self::Fields(Vec::new())));
                    fields.len() - 1
                });
            here = &mut fields[at].1;
        }
        *here = Self::All;
    }

    fn field(&self, name: &str) -> Option<&Self> {
        match self {
            Self::All => Some(self),
            Self::Fields(fields) => fields
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, want)| want),
        }
    }
}

/// Reads JSON straight into CEL's values: whole numbers as `int`, which is what a literal is.
fn read(raw: &RawValue, want: &Want) -> Option<Box<dyn Val>> {
    Json(want)
        .deserialize(&mut serde_json::Deserializer::from_str(raw.get()))
        .ok()
}

struct Json<'w>(&'w Want);

impl<'de> DeserializeSeed<'de> for Json<'_> {
    type Value = Box<dyn Val>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json<'_> {
    type Value = Box<dyn Val>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Box::new(CelNull))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Box::new(CelBool::from(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Box::new(CelInt::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(number(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Box::new(CelDouble::from(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Box::new(CelString::from(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut list: Vec<Box<dyn Val>> = Vec::new();
        // A list has no fields: where only a field is wanted, its elements are not.
        if let Want::All = self.0 {
            while let Some(value) = seq.next_element_seed(Json(self.0))? {
                list.push(value);
            }
        } else {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
        }
        Ok(Box::new(CelList::from(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut map: HashMap<CelMapKey<'static>, Box<dyn Val>> = HashMap::new();
        while let Some(wanted) = entries.next_key_seed(Key(self.0))? {
            match wanted {
                Some((key, want)) => {
                    let value = entries.next_value_seed(Json(want))?;
                    map.insert(CelMapKey::from(key), value);
                }
                None => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Box::new(CelMap::from(map)))
    }
}

/// A key, copied only where its value is wanted.
struct Key<'w>(&'w Want);

impl<'de, 'w> DeserializeSeed<'de> for Key<'w> {
    type Value = Option<(String, &'w Want)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'w> Visitor<'_> for Key<'w> {
    type Value = Option<(String, &'w Want)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.field(key).map(|want| (key.to_owned(), want)))
    }
}
