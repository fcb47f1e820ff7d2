//! Files of an operator's own: what a broken one is told, and what a good one adds.

use super::*;
use crate::FileFault;

/// A file with one word and nothing wrong.
const GOOD: &str = r#"
name = "acme"
title = "Acme"

[bodies.default]
template = '{"what":{{ word }},"about":{{ view }}}'

[[events]]
word = "Visit"
types = ["appointment.*"]

[[examples]]
name = "a visit"
subscription = { events = ["Visit"] }
event = '{"type":"appointment.created","data":{"id":1}}'
body = '{"what":"Visit","about":{"id":1}}'
"#;

fn load(text: &str) -> Result<Dialects, Vec<FileFault>> {
    Dialects::load([("acme.toml".to_owned(), text.to_owned())])
}

/// The faults of a file that has `is` in the place of `was`.
#[track_caller]
fn told(was: &str, is: &str) -> Vec<String> {
    assert!(GOOD.contains(was), "{was}");
    let text = GOOD.replacen(was, is, 1);
    let faults = load(&text).expect_err(is);
    faults.iter().map(FileFault::to_string).collect()
}

#[track_caller]
fn check(was: &str, is: &str, wanted: &str) {
    let told = told(was, is);
    assert!(
        told.iter().any(|fault| fault.starts_with(wanted)),
        "{is}: {told:#?}"
    );
}

#[test]
fn a_file_adds_a_dialect() {
    let dialects = load(GOOD).expect("a good file");
    assert!(dialects.names().contains(&"acme"));
    assert!(dialects.check("acme").expect("acme").passed());
    let subscription = Subscription {
        dialect: "acme".into(),
        events: vec!["Visit".into()],
        ..subscription()
    };
    let speaker = dialects.speaker(&subscription).expect("a speaker");
    let rendered = speaker
        .render(&event(json!({"data": {"a": 1}})), None, &subscription)
        .expect("it renders");
    assert_eq!(rendered.body, r#"{"what":"Visit","about":{"a":1}}"#);
}

#[test]
fn a_broken_file_is_told_with_its_line_and_reason() {
    for (was, is, wanted) in [
        (
            "name = \"acme\"",
            "name = \"acme",
            "acme.toml:2:13: invalid basic string",
        ),
        (
            "title =",
            "titel =",
            "acme.toml:3:1: unknown field `titel`, expected one of",
        ),
        ("word =", "wrod =", "acme.toml:9:1: unknown field `wrod`"),
        ("name = \"acme\"", "", "acme.toml:1:1: missing field `name`"),
        (
            "name = \"acme\"",
            "name = \"Acme!\"",
            "acme.toml:2:8: the name must be",
        ),
        (
            "name = \"acme\"",
            "name = 7",
            "acme.toml:2:8: invalid type: integer `7`, expected a string",
        ),
        (
            "{{ word }}",
            "{{ word }",
            "acme.toml:6:1: the template cannot be read",
        ),
        (
            "{{ word }}",
            "{{ wrod }}",
            "acme.toml:6:1: a template has no `wrod`; did you mean `word`?",
        ),
        (
            "{{ word }}",
            "{{ attributes.tokn }}",
            "acme.toml:6:1: the attribute `tokn` is not described",
        ),
        (
            "{{ word }}",
            "{{ word|uper }}",
            "acme.toml:6:1: there is no filter `uper`; did you mean `upper`?",
        ),
        (
            "template = '{\"what\":{{ word }},\"about\":{{ view }}}'",
            "template = '''\n{\n\"what\":{{ wrod }}}\n'''",
            "acme.toml:8:1: a template has no `wrod`",
        ),
        (
            "template =",
            "of = \"view\"\ntemplate =",
            "acme.toml:5:9: a body has either `of` or a `template`",
        ),
        (
            "[bodies.default]",
            "[bodies.other]",
            "acme.toml:9:8: there is no `[bodies.default]`",
        ),
        (
            "word = \"Visit\"",
            "word = \"Visit\"\nbody = \"defalt\"",
            "acme.toml:10:8: there is no `[bodies.defalt]`; did you mean `default`?",
        ),
        (
            "word = \"Visit\"",
            "word = \"Visit\"\nparameters = [\"size\"]",
            "acme.toml:10:15: `size` is not described under `[parameters]`",
        ),
        (
            "word = \"Visit\"",
            "word = \"Visit\"\nalso = [\"Visit\"]",
            "acme.toml:10:9: the word `Visit` is given twice",
        ),
        (
            "word = \"Visit\"",
            "word = \"\"",
            "acme.toml:9:8: a word must be 1 to 200 bytes",
        ),
        (
            "word = \"Visit\"\ntypes = [\"appointment.*\"]",
            "word = \"any:{event}\"\ntypes = [\"appointment.created\"]",
            "acme.toml:9:8: a word with `{event}` means one `entity.*`",
        ),
        (
            "types = [\"appointment.*\"]",
            "types = [\"Appointment\"]",
            "acme.toml:10:10: must be `*`, `entity.*`",
        ),
        (
            "types = [\"appointment.*\"]",
            "",
            "acme.toml:9:8: a word has either `types` or `means`",
        ),
        (
            "types = [\"appointment.*\"]",
            "means = [{ types = [] }]",
            "acme.toml:9:8: a meaning has no `types`",
        ),
        (
            "[[events]]\nword = \"Visit\"\ntypes = [\"appointment.*\"]",
            "",
            "acme.toml:2:8: the dialect has no `[[events]]`",
        ),
        (
            "[bodies.default]",
            "[delivery]\ntimeout = \"2m\"\n[bodies.default]",
            "acme.toml:6:11: must be a duration from \"1s\" to \"30s\"",
        ),
        (
            "[bodies.default]",
            "[delivery]\nretry = \"standart\"\n[bodies.default]",
            "acme.toml:6:9: no retry policy is named `standart`; did you mean `standard`?",
        ),
        (
            "[bodies.default]",
            "[delivery]\nnot_retried = [200]\n[bodies.default]",
            "acme.toml:6:15: must be statuses of a failure",
        ),
        (
            "[bodies.default]",
            "[delivery]\ndisable_after = { failures = 0 }\n[bodies.default]",
            "acme.toml:6:17: `failures` must be",
        ),
        (
            "[bodies.default]",
            "[headers]\nwebhook-id = \"x\"\n[bodies.default]",
            "acme.toml:6:1: is not a header that a dialect may set",
        ),
        (
            "[bodies.default]",
            "[headers]\n\"a b\" = \"x\"\n[bodies.default]",
            "acme.toml:6:1: must be 1 to 64 letters",
        ),
        (
            "[bodies.default]",
            "[headers]\nx-a = \"{{ event.id\"\n[bodies.default]",
            "acme.toml:6:1: the template cannot be read",
        ),
        (
            "[bodies.default]",
            "[parameters.events]\nkind = \"status\"\nnote = \"\"\n[bodies.default]",
            "acme.toml:5:13: `events` is a field of every subscription",
        ),
        (
            "[bodies.default]",
            "[parameters.size]\nkind = \"sise\"\nnote = \"\"\n[bodies.default]",
            "acme.toml:",
        ),
        (
            "[bodies.default]",
            "[parameters.size]\nkind = \"action\"\nnote = \"\"\nvalues = { a = [] }\ndefault = \"b\"\n[bodies.default]",
            "acme.toml:5:13: the default `b` is not one of its values",
        ),
        (
            "[bodies.default]",
            "[parameters.size]\nkind = \"body\"\nnote = \"\"\nvalues = { a = \"x\" }\n[bodies.default]",
            "acme.toml:5:13: there is no `[bodies.x]`",
        ),
        (
            "title = \"Acme\"",
            "title = \"Acme\"\ncanonical = true",
            "acme.toml:10:8: the dialect is canonical",
        ),
        (
            "title = \"Acme\"",
            "title = \"Acme\"\nwildcard = \"*\"",
            "acme.toml:4:12: must be what ends such an entry",
        ),
        (
            "{\"type\":\"appointment.created\"",
            "{\"typ\":\"appointment.created\"",
            "acme.toml:15:9: is no event: unknown field `typ`",
        ),
        (
            "body = '{\"what\"",
            "stopped = \"x\"\nbody = '{\"what\"",
            "acme.toml:13:8: an example has one of `body`",
        ),
    ] {
        check(was, is, wanted);
    }
}

#[test]
fn everything_wrong_in_every_file_is_told_at_once() {
    let one = GOOD
        .replace("{{ word }}", "{{ wrod }}")
        .replace("appointment.*", "x");
    let files = [
        ("a.toml", one.as_str()),
        ("b.toml", "name ="),
        ("c.toml", GOOD),
        ("d.toml", GOOD),
    ];
    let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let faults = Dialects::load(files).expect_err("broken");
    let places: Vec<_> = faults
        .iter()
        .map(|fault| (fault.file.as_str(), fault.line))
        .collect();
    assert_eq!(
        places,
        [("a.toml", 6), ("a.toml", 10), ("b.toml", 1), ("d.toml", 1)]
    );
    assert_eq!(faults[3].reason, "`c.toml` has the dialect `acme` already");
}

#[test]
fn a_built_in_dialect_is_replaced_only_on_purpose() {
    let own = GOOD.replace("\"acme\"", "\"vcita\"");
    let faults = load(&own).expect_err("not on purpose");
    assert!(
        faults[0].reason.contains("say `replaces = true`"),
        "{faults:?}"
    );
    let own = own.replace("title =", "replaces = true\ntitle =");
    let dialects = load(&own).expect("on purpose");
    assert_eq!(dialects.catalogue("vcita").expect("vcita").title, "Acme");
    assert_eq!(dialects.names().len(), 7);
}

#[test]
fn a_check_shows_what_came_in_place_of_what_was_expected() {
    let report = Dialects::check_file("acme.toml", GOOD).expect("a good file");
    assert!(report.passed() && report.without_example.is_empty());
    let other = GOOD.replace(r#""about":{"id":1}"#, r#""about":{"id":2}"#);
    let report = Dialects::check_file("acme.toml", &other).expect("a good file");
    assert!(!report.passed());
    let [example] = &report.examples[..] else {
        panic!("{report:?}");
    };
    let diff = [
        "  content-type: application/json",
        "  {",
        "    \"about\": {",
        "-     \"id\": 2",
        "+     \"id\": 1",
        "    },",
        "    \"what\": \"Visit\"",
        "  }",
    ];
    assert_eq!(example.diff, diff);
    // Bytes that a reader of JSON does not see.
    let spaced = GOOD.replace(r#""about":{"id":1}"#, r#""about": {"id":1}"#);
    let report = Dialects::check_file("acme.toml", &spaced).expect("a good file");
    assert_eq!(
        report.examples[0].diff[1..],
        [
            r#"- {"what":"Visit","about": {"id":1}}"#,
            r#"+ {"what":"Visit","about":{"id":1}}"#
        ]
    );
    let more = format!("{GOOD}\n[[events]]\nword = \"Pay\"\ntypes = [\"payment.paid\"]\n");
    let report = Dialects::check_file("acme.toml", &more).expect("a good file");
    assert_eq!(report.without_example, ["Pay"]);
    // A built-in dialect's own file is checked as any other.
    let vcita = include_str!("../../dialects/vcita.toml");
    assert!(
        Dialects::check_file("vcita.toml", vcita)
            .expect("vcita")
            .passed()
    );
}

#[test]
fn a_dialect_may_leave_the_signature_headers_out() {
    let text = GOOD.replace(
        "[bodies.default]",
        "[delivery]\nsignature_headers = false\nnot_retried = [404]\n[bodies.default]",
    );
    let dialects = load(&text).expect("a good file");
    let subscription = subscription_in("acme", View::Full);
    let speaker = dialects.speaker(&subscription).expect("a speaker");
    assert_eq!(
        *speaker.policy(),
        crate::Policy {
            not_retried: vec![404],
            signature_headers: false
        }
    );
    let speaker = dialects
        .speaker(&subscription_in("standard", View::Full))
        .expect("a speaker");
    assert_eq!(*speaker.policy(), crate::Policy::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_makes_the_reader_panic(at in 0..GOOD.len(), cut in 0usize..40, put in any::<String>()) {
        let mut text = String::new();
        text.push_str(GOOD.get(..at).unwrap_or_default());
        text.push_str(&put);
        text.push_str(GOOD.get(at + cut..).unwrap_or_default());
        if let Err(faults) = load(&text) {
            prop_assert!(!faults.is_empty());
            prop_assert!(faults.iter().all(|fault| fault.line >= 1 && !fault.reason.is_empty()));
        }
    }
}
