//! What a subscriber does not want to get is left out of what is sent: members of objects and
//! elements of arrays, found by JSON pointers (RFC 6901).
//!
//! The text is cut, never written anew: every byte that stays is the publisher's, numbers above
//! all. What the pointers miss is no fault; another event may have it.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::value::RawValue;

use crate::{Event, scan, subscription::View};

/// How many pointers a subscription may have.
pub const POINTERS_MAX: usize = 50;
/// How long one may be, in bytes.
const POINTER_BYTES_MAX: usize = 512;
/// What pointers may look into.
const ROOTS: [&str; 3] = ["data", "changes", "details"];

/// What is left out, as a tree by the pointers' segments.
#[derive(Debug, Clone, Default)]
pub struct Redaction {
    data: Node,
    changes: Node,
    details: Node,
}

#[derive(Debug, Clone, Default)]
struct Node {
    /// This goes, with all that is in it.
    goes: bool,
    children: BTreeMap<String, Node>,
}

/// What a pointer must be, where it is something else.
pub fn check(pointer: &str) -> Result<(), String> {
    if pointer.len() > POINTER_BYTES_MAX {
        return Err(format!("must be at most {POINTER_BYTES_MAX} bytes"));
    }
    match segments(pointer) {
        None => Err("must be a JSON pointer (RFC 6901), such as `/data/customer/email`".into()),
        Some((root, inside)) if !ROOTS.contains(&root.as_str()) || inside.is_empty() => {
            Err("must point into /data, /changes or /details".into())
        }
        Some(_) => Ok(()),
    }
}

/// The first segment and those after it; `None` for what is no pointer to anything inside.
fn segments(pointer: &str) -> Option<(String, Vec<String>)> {
    let mut segments = pointer.strip_prefix('/')?.split('/').map(|segment| {
        // A tilde stands only in `~0` and `~1`.
        let lone = segment.replace("~0", "").replace("~1", "").contains('~');
        (!lone).then(|| segment.replace("~1", "/").replace("~0", "~"))
    });
    let root = segments.next()??;
    Some((root, segments.collect::<Option<_>>()?))
}

impl Redaction {
    /// Of a subscription's pointers; `None` where nothing is left out.
    pub fn of(pointers: &[String]) -> Option<Self> {
        let mut redaction = Self::default();
        let mut any = false;
        for (root, inside) in pointers.iter().filter_map(|pointer| segments(pointer)) {
            let mut node = match root.as_str() {
                "data" => &mut redaction.data,
                "changes" => &mut redaction.changes,
                "details" => &mut redaction.details,
                _ => continue,
            };
            for segment in inside {
                node = node.children.entry(segment).or_default();
            }
            node.goes = true;
            any = true;
        }
        any.then_some(redaction)
    }

    /// The event with all that goes left out of its payloads.
    pub fn event(&self, event: &Event) -> Event {
        let cut = |node: &Node, part: &Option<Box<RawValue>>| {
            part.as_deref().map(|raw| node.cut(raw).into_owned())
        };
        Event {
            data: cut(&self.data, &event.data),
            changes: cut(&self.changes, &event.changes),
            details: cut(&self.details, &event.details),
            ..event.clone()
        }
    }

    /// A view that was fetched, with all that goes left out.
    pub fn view<'r>(&self, view: View, raw: &'r RawValue) -> Cow<'r, RawValue> {
        let node = match view {
            View::Basic => &self.changes,
            View::Full => &self.data,
            View::Extended => &self.details,
        };
        node.cut(raw)
    }
}

impl Node {
    fn cut<'r>(&self, raw: &'r RawValue) -> Cow<'r, RawValue> {
        if self.children.is_empty() {
            return Cow::Borrowed(raw);
        }
        let mut out = String::with_capacity(raw.get().len());
        // A raw value is JSON. Should it ever not be, nothing of it leaves.
        let whole = self.copy(raw.get(), 0, &mut out).is_some();
        let cut = whole.then(|| RawValue::from_string(out).ok()).flatten();
        Cow::Owned(cut.unwrap_or_else(|| RawValue::NULL.to_owned()))
    }

    /// Copies the value that begins at `at` without what goes; where it ends. As deep as a pointer
    /// is long, however deep the value is.
    fn copy(&self, text: &str, at: usize, out: &mut String) -> Option<usize> {
        let (open, close) = match text.as_bytes().get(at)? {
            b'{' => ('{', b'}'),
            b'[' => ('[', b']'),
            _ => return self.copy_whole(text, at, out),
        };
        if self.children.is_empty() {
            return self.copy_whole(text, at, out);
        }
        out.push(open);
        let (mut from, mut kept, mut index) = (at + 1, 0_usize, 0_usize);
        loop {
            // A member, or an element, with the space around it.
            let mut place = scan::skip_space(text, from);
            if text.as_bytes().get(place) == Some(&close) {
                out.push_str(&text[from..place]);
                out.push(char::from(close));
                return Some(place + 1);
            }
            let key = if close == b'}' {
                let end = skip_string(text, place)?;
                let key = scan::unescaped(&text[place..end]);
                place = scan::skip_space(text, end);
                if text.as_bytes().get(place) != Some(&b':') {
                    return None;
                }
                place = scan::skip_space(text, place + 1);
                key
            } else {
                Some(Cow::Owned(index.to_string()))
            };
            let child = key.and_then(|key| self.children.get(key.as_ref()));
            let goes = child.is_some_and(|child| child.goes);
            let end = skip_value(text, place)?;
            let next = scan::skip_space(text, end);
            if !goes {
                if kept > 0 {
                    out.push(',');
                }
                kept += 1;
                out.push_str(&text[from..place]);
                match child {
                    Some(child) => drop(child.copy(text, place, out)?),
                    None => out.push_str(&text[place..end]),
                }
                out.push_str(&text[end..next]);
            }
            index += 1;
            match text.as_bytes().get(next)? {
                b',' => from = next + 1,
                other if *other == close => {
                    out.push(char::from(close));
                    return Some(next + 1);
                }
                _ => return None,
            }
        }
    }

    fn copy_whole(&self, text: &str, at: usize, out: &mut String) -> Option<usize> {
        let end = skip_value(text, at)?;
        out.push_str(&text[at..end]);
        Some(end)
    }
}

/// Where the string that begins at `at` ends.
fn skip_string(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Where the value that begins at `at` ends. Never recurses.
fn skip_value(text: &str, mut at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut depth = 0_usize;
    loop {
        match bytes.get(at)? {
            b'"' => at = skip_string(text, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
                continue;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            b',' | b':' | b' ' | b'\n' | b'\r' | b'\t' => {
                at += 1;
                continue;
            }
            _ => {
                let ends = |b: &u8| matches!(b, b',' | b']' | b'}' | b' ' | b'\n' | b'\r' | b'\t');
                let rest = &bytes[at..];
                at += rest.iter().position(ends).unwrap_or(rest.len());
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn cut(data: &str, pointers: &[&str]) -> String {
        let pointers: Vec<String> = pointers.iter().map(|&pointer| pointer.into()).collect();
        for pointer in &pointers {
            check(pointer).unwrap();
        }
        let raw = RawValue::from_string(data.into()).unwrap();
        let redaction = Redaction::of(&pointers).unwrap();
        redaction.view(View::Full, &raw).get().to_owned()
    }

    #[test]
    fn what_goes_is_cut_and_all_other_bytes_stay() {
        for (data, pointers, left) in [
            (r#"{"a":1,"b":2}"#, &["/data/a"] as &[&str], r#"{"b":2}"#),
            (r#"{"a":1,"b":2}"#, &["/data/b"], r#"{"a":1}"#),
            (r#"{"a":1}"#, &["/data/a"], "{}"),
            (r#"{ "a" : 1 }"#, &["/data/a"], "{}"),
            (
                r#"{ "x" : 1.50, "a":{"s":"}\"],"} ,"y":1e400 }"#,
                &["/data/a"],
                r#"{ "x" : 1.50,"y":1e400 }"#,
            ),
            (
                r#"{"c":{ "email":"x", "n":-0 },"email":2}"#,
                &["/data/c/email"],
                r#"{"c":{ "n":-0 },"email":2}"#,
            ),
            // Missed: another event may have it.
            (
                r#"{"a":[1, 2]}"#,
                &["/data/b", "/data/a/b/c"],
                r#"{"a":[1, 2]}"#,
            ),
            (r#"{ }"#, &["/data/a"], "{ }"),
            (r#"[ ]"#, &["/data/0"], "[ ]"),
            ("null", &["/data/a"], "null"),
            (r#""a""#, &["/data/a"], r#""a""#),
            // Elements are counted as they were published.
            ("[1,2,3,4]", &["/data/0", "/data/2"], "[2,4]"),
            ("[1,2]", &["/data/00", "/data/-"], "[1,2]"),
            (r#"[{"a":1},{"a":2}]"#, &["/data/1/a"], r#"[{"a":1},{}]"#),
            // However a key is written, twice as well.
            (r#"{"\u0061":1,"b":2,"a":3}"#, &["/data/a"], r#"{"b":2}"#),
            (
                r#"{"a/b":1,"m~n":2,"":3,"k":4}"#,
                &["/data/a~1b", "/data/m~0n", "/data/"],
                r#"{"k":4}"#,
            ),
            // The whole wins over its parts.
            (
                r#"{"a":{"b":1},"c":1}"#,
                &["/data/a/b", "/data/a"],
                r#"{"c":1}"#,
            ),
        ] {
            assert_eq!(cut(data, pointers), left, "{data} {pointers:?}");
        }
    }

    #[test]
    fn each_payload_has_its_own_pointers() {
        let event = r#"{"id":"e","tenant":"t","type":"a.b","time":"2026-01-01T00:00:00Z",
            "subject":10,"data":{"a":1,"b":2},"changes":{"a":1,"b":2},"details":{"a":1,"b":2}}"#;
        let event: Event = serde_json::from_str(event).unwrap();
        let redaction = Redaction::of(&["/data/a".into(), "/details/b".into()]).unwrap();
        let left = serde_json::to_value(redaction.event(&event)).unwrap();
        assert_eq!(left["data"], json!({"b": 2}));
        assert_eq!(left["changes"], json!({"a": 1, "b": 2}));
        assert_eq!(left["details"], json!({"a": 1}));
        assert_eq!(left["subject"], 10);
        assert!(Redaction::of(&[]).is_none());
    }

    #[test]
    fn what_is_no_pointer_into_a_payload_is_refused() {
        let long = format!("/data/{}", "x".repeat(600));
        for bad in [
            "",
            "/",
            "data/a",
            "/data",
            "/subject/0",
            "/Data/a",
            "/data/a~",
            "/data/~2",
            &long,
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        for fine in ["/data/a", "/changes/a~0~1/0", "/details/"] {
            check(fine).unwrap();
        }
    }

    const MARK: &str = "canary-7f3a";

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            "[a\"\\\\{},:\u{e9} \\]]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[ab/~\"]{0,2}", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    /// Every place of a value, as a pointer.
    fn places(value: &Value, at: &str, found: &mut Vec<String>) {
        let inner: Vec<(String, &Value)> = match value {
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value))
                .collect(),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .map(|(index, value)| (index.to_string(), value))
                .collect(),
            _ => Vec::new(),
        };
        for (segment, value) in inner {
            let place = format!("{at}/{segment}");
            places(value, &place, found);
            found.push(place);
        }
    }

    proptest! {
        #[test]
        fn what_is_pointed_at_never_leaves_and_the_rest_does(
            value in value(), pick in any::<prop::sample::Index>(), pretty in any::<bool>(),
        ) {
            let mut all = Vec::new();
            places(&value, "", &mut all);
            prop_assume!(!all.is_empty());
            let place = pick.get(&all);
            let mut marked = value.clone();
            *marked.pointer_mut(place).unwrap() = json!([{"deep": MARK}, MARK]);
            let text = match pretty {
                true => serde_json::to_string_pretty(&marked).unwrap(),
                false => marked.to_string(),
            };
            let left = cut(&text, &[&format!("/data{place}")]);
            prop_assert!(!left.contains(MARK), "{left}");
            // What is left is the same without the place.
            let (parent, last) = place.rsplit_once('/').unwrap();
            match marked.pointer_mut(parent).unwrap() {
                Value::Object(map) => {
                    map.remove(&last.replace("~1", "/").replace("~0", "~"));
                }
                Value::Array(list) => {
                    list.remove(last.parse().unwrap());
                }
                _ => unreachable!(),
            }
            prop_assert_eq!(serde_json::from_str::<Value>(&left).unwrap(), marked);
        }

        #[test]
        fn what_no_pointer_meets_keeps_every_byte(value in value(), pretty in any::<bool>()) {
            let text = match pretty {
                true => serde_json::to_string_pretty(&value).unwrap(),
                false => value.to_string(),
            };
            prop_assert_eq!(cut(&text, &["/data/nobody/has/it", "/data/0/nor/this"]), text);
        }
    }
}
