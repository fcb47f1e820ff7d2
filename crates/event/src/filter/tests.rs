//! Each clause alone and combined, from both sides; and expressions that mean harm.

use proptest::prelude::*;

use super::*;
use crate::{EventId, EventType, Tenant, event::Subject};

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.into()).unwrap()
}

fn event() -> Event {
    Event {
        id: EventId::parse("e-1").unwrap(),
        tenant: Tenant::parse("salon-17").unwrap(),
        kind: EventType::parse("appointment.updated").unwrap(),
        time: "2026-03-01T12:00:00Z".parse().unwrap(),
        subject: Some(Subject(raw("[10,\"11\"]"))),
        status: Some("confirmed".into()),
        previous_status: Some("booked".into()),
        version: Some(7),
        expires_at: None,
        data: Some(raw(
            r#"{"price":150,"rate":12.5,"big":18446744073709551615,"name":"Ann","vip":true,"none":null,
               "customer":{"city":"Oslo"},"items":[{"sku":"a","n":1},{"sku":"b","n":2}],"tags":["x","y"]}"#,
        )),
        changes: Some(raw(r#"{"start_time":"10:00","note":null}"#)),
        details: None,
        depth: 0,
    }
}

fn spec(
    actions: &[&str],
    statuses: &[&str],
    changed: &[&str],
    expression: Option<&str>,
) -> FilterSpec {
    let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    FilterSpec {
        actions: list(actions),
        statuses: list(statuses),
        changed_fields: list(changed),
        expression: expression.map(str::to_owned),
    }
}

#[track_caller]
fn judge(spec: &FilterSpec, event: &Event) -> Result<(), Stopped> {
    Filter::compile(spec)
        .unwrap_or_else(|faults| panic!("{spec:?}: {faults:?}"))
        .judge(event)
}

#[track_caller]
fn stopped_by(spec: FilterSpec, event: &Event, clause: &str, says: &str) {
    let stopped = judge(&spec, event).unwrap_err();
    assert_eq!(stopped.clause, clause);
    assert!(stopped.detail.contains(says), "{}", stopped.detail);
}

#[track_caller]
fn holds(expression: &str) -> bool {
    judge(&spec(&[], &[], &[], Some(expression)), &event()).is_ok()
}

#[track_caller]
fn bad_where(expression: &str, says: &str) {
    let faults = match Filter::compile(&spec(&[], &[], &[], Some(expression))) {
        Ok(_) => panic!("{expression:?} was taken"),
        Err(faults) => faults,
    };
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].pointer, "/where");
    assert!(
        faults[0].message.contains(says),
        "{expression:.100}: {}",
        faults[0].message
    );
}

#[test]
fn filters_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Filter>();
}

#[test]
fn an_empty_filter_wants_everything() {
    assert_eq!(judge(&FilterSpec::default(), &event()), Ok(()));
}

#[test]
fn every_clause_that_was_given_is_judged_apart_from_the_others() {
    let filter = spec(
        &["created"],
        &["confirmed"],
        &[],
        Some("event.data.price > 1000"),
    );
    let filter = Filter::compile(&filter).unwrap();
    let event = event();
    let judged: Vec<_> = filter
        .clauses()
        .map(|clause| (clause.word(), clause.judge(&event).is_ok()))
        .collect();
    assert_eq!(
        judged,
        [("actions", false), ("statuses", true), ("where", false)]
    );
    let first = filter.judge(&event).unwrap_err();
    assert_eq!(
        first.clause, "actions",
        "the first that does not hold stops it"
    );
}

#[test]
fn each_clause_holds_or_stops_alone() {
    let none = &[][..];
    let event = event();
    let bare = Event {
        status: None,
        changes: None,
        ..event.clone()
    };
    assert_eq!(
        judge(&spec(&["created", "updated"], none, none, None), &event),
        Ok(())
    );
    stopped_by(
        spec(&["created"], none, none, None),
        &event,
        "actions",
        "wanted `created`, got `updated`",
    );
    assert_eq!(
        judge(&spec(none, &["confirmed"], none, None), &event),
        Ok(())
    );
    stopped_by(
        spec(none, &["a", "b"], none, None),
        &event,
        "statuses",
        "wanted one of `a`, `b`, got `confirmed`",
    );
    stopped_by(
        spec(none, &["booked"], none, None),
        &event,
        "statuses",
        "got `confirmed`",
    );
    stopped_by(
        spec(none, &["confirmed"], none, None),
        &bare,
        "statuses",
        "got none",
    );
    assert_eq!(
        judge(&spec(none, none, &["end_time", "note"], None), &event),
        Ok(())
    );
    stopped_by(
        spec(none, none, &["end_time"], None),
        &event,
        "changed_fields",
        "got other fields",
    );
    stopped_by(
        spec(none, none, &["start"], None),
        &event,
        "changed_fields",
        "`start`",
    );
    stopped_by(
        spec(none, none, &["note"], None),
        &bare,
        "changed_fields",
        "carries no changes",
    );
    stopped_by(
        spec(none, none, none, Some("event.data.price > 150")),
        &event,
        "where",
        "does not hold",
    );
}

#[test]
fn every_clause_given_must_hold() {
    let event = event();
    let all = |action: &str, status: &str, changed: &str, expression: &str| {
        let spec = spec(&[action], &[status], &[changed], Some(expression));
        judge(&spec, &event).map_err(|stopped| stopped.clause.into_owned())
    };
    assert_eq!(
        all("updated", "confirmed", "note", "event.data.vip"),
        Ok(())
    );
    assert_eq!(
        all("created", "confirmed", "note", "event.data.vip"),
        Err("actions".to_owned())
    );
    assert_eq!(
        all("updated", "canceled", "note", "event.data.vip"),
        Err("statuses".to_owned())
    );
    assert_eq!(
        all("updated", "confirmed", "room", "event.data.vip"),
        Err("changed_fields".to_owned())
    );
    assert_eq!(
        all("updated", "confirmed", "note", "!event.data.vip"),
        Err("where".to_owned())
    );
}

#[test]
fn a_changed_field_is_a_key_of_changes_and_no_deeper() {
    let wanted = |changes: &str| {
        let event = Event {
            changes: Some(raw(changes)),
            ..event()
        };
        judge(&spec(&[], &[], &["note"], None), &event).is_ok()
    };
    assert!(wanted(r#"{"a":1,"note":null}"#));
    assert!(
        wanted(r#"{"n\u006fte":1}"#),
        "an escaped key is the same key"
    );
    assert!(!wanted(r#"{"a":{"note":1},"b":"note"}"#));
    assert!(!wanted("{}"));
}

#[test]
fn lists_of_words_are_checked() {
    let check = |spec: FilterSpec, pointer: &str, says: &str| {
        let faults = Filter::compile(&spec).unwrap_err();
        assert_eq!(faults[0].pointer, pointer);
        assert!(faults[0].message.contains(says), "{}", faults[0].message);
    };
    check(
        spec(&["created", "Up-dated"], &[], &[], None),
        "/actions/1",
        "got `Up-dated`",
    );
    check(spec(&[""], &[], &[], None), "/actions/0", "1 to 256 bytes");
    check(
        spec(&[], &["ok", ""], &[], None),
        "/statuses/1",
        "1 to 256 bytes",
    );
    check(
        spec(&[], &[], &[&"x".repeat(257)], None),
        "/changed_fields/0",
        "got 257",
    );
    check(
        spec(&[], &vec!["x"; 101], &[], None),
        "/statuses",
        "at most 100 entries, got 101",
    );
    let both = Filter::compile(&spec(&["A"], &[""], &[], Some("1 +"))).unwrap_err();
    let pointers: Vec<&str> = both.iter().map(|fault| fault.pointer.as_str()).collect();
    assert_eq!(
        pointers,
        ["/statuses/0", "/actions/0", "/where"],
        "all at once"
    );
}

#[test]
fn expressions_see_the_event() {
    for expression in [
        "event.data.price > 100",
        "event.data.price > 149.5 && event.data.price <= 150.0",
        "event.data.price == 150 && event.data.price == 150.0",
        "event.data.rate * 2.0 == 25.0",
        "event.data.big > 5",
        "event.data.big == 18446744073709551615u",
        "event.data['price'] == 150",
        "event['data'].price == 150",
        "event.data.customer.city == 'Oslo'",
        "event.data.customer.city in ['Oslo', 'Bergen']",
        "event.data.name.startsWith('A') && event.data.name.endsWith(\"n\") && event.data.name.contains('nn')",
        "size(event.data.items) == 2 && event.data.tags.size() == 2",
        "event.data.items.exists(i, i.sku == 'b' && i.n > 1)",
        "event.data.items.all(i, i.n > 0)",
        "event.data.items.exists_one(i, i.n == 1)",
        "event.data.items.map(i, i.sku) == ['a', 'b']",
        "event.data.items.filter(i, i.n > 1)[0].sku == 'b'",
        "event.data.items.exists(i, event.data.tags.exists(t, t == 'x' && i.n == 2))",
        "'x' in event.data.tags",
        "'price' in event.data",
        "has(event.data.price) && !has(event.data.missing)",
        "event.data.none == null",
        "event.data.vip ? event.version == 7 : false",
        "event.id == 'e-1' && event.tenant == 'salon-17' && event.type == 'appointment.updated'",
        "event.status == 'confirmed' && event.previous_status == 'booked'",
        "event.time.startsWith('2026-03-01T')",
        "event.subject[0] == 10 && event.subject[1] == '11'",
        "'start_time' in event.changes && !has(event.details)",
        "int('5') + event.data.price == 155 && double(event.data.price) > 1.0 && string(7) == '7'",
        "type(event.data.price) == int && type(event.data.items) == list",
        "event.data.missing == 1 || true",
        "size(event) > 3",
        // A string may hold what looks like nesting, and a comment too.
        "event.data.name != '((((((((((((((((((((((((' // ((((((((((((((((((((((",
        r#"event.data.name != "\"((((((((((((((((((((" && event.data.name != r'\'"#,
        "event.data.name != '''(((((((((((((((((((((((' '''",
    ] {
        assert!(holds(expression), "{expression}");
    }
}

#[test]
fn what_is_missing_or_of_another_type_does_not_hold() {
    for expression in [
        "event.data.missing > 1",
        "event.data.missing.deeper == 'x'",
        "!(event.data.missing == 1)",
        "event.details.x == 1",
        "event.nothing == 1",
        "event.data.price > 'a'",
        "event.data.price",
        "event.data.name",
        "1 + 1",
        "'text'",
        "event.data",
        "null",
        "event.data.items[5].n == 1",
        "event.data.price / 0 == 1",
        "9223372036854775807 + event.data.price > 0",
        "event.data.name + 1 == 'x'",
        "event.data.price.startsWith('1')",
        "event.data.vip && event.data.missing",
        "event.data.items.exists(i, i.missing == 1)",
        "int('x') == 1",
        "-event.data.name == 1",
        "{1: 2}[3] == 4",
        "false",
    ] {
        assert!(!holds(expression), "{expression}");
    }
    let bare = Event {
        data: None,
        changes: None,
        subject: None,
        ..event()
    };
    assert!(judge(&spec(&[], &[], &[], Some("event.data.price > 1")), &bare).is_err());
    assert!(judge(&spec(&[], &[], &[], Some("!has(event.data)")), &bare).is_ok());
}

#[test]
fn a_bad_expression_is_refused_with_its_place() {
    bad_where("", "must not be empty");
    bad_where(" \n", "must not be empty");
    bad_where(
        &format!("event.id == '{}'", "x".repeat(1024)),
        "at most 1024 bytes, got 1038",
    );
    bad_where("event.data.price >", "line 1, column 19:");
    bad_where("event.data.price > 1 &&\n & 2", "line 2, column");
    bad_where("event.id = 'x'", "line 1, column 10:");
    bad_where(
        "data.price > 1",
        "unknown variable `data`; did you mean `event.data`?",
    );
    bad_where(
        "true && price > 1",
        "line 1, column 9: unknown variable `price`; the event is `event`",
    );
    bad_where("event.id.matches('a')", "unknown function `matches`");
    bad_where("event.id.startWith('a')", "did you mean `startsWith`?");
    bad_where("timestamp(event.time) > 1", "unknown function `timestamp`");
    bad_where("event.data.items.exists(event, true)", "`event` is taken");
    bad_where("Foo{a: 1}.a == 1", "not supported");
    bad_where("event.data.?a == 1", "line 1, column");
    bad_where("event.data.items.exists(1, true)", "line 1, column");
    bad_where("has(event)", "line 1, column");
    bad_where("'unclosed", "line 1, column 1:");
}

#[test]
fn an_expression_has_at_most_16_levels() {
    let nested =
        |open: &str, close: &str, n: usize| format!("{}true{}", open.repeat(n), close.repeat(n));
    assert!(holds(&nested("(", ")", 16)));
    bad_where(&nested("(", ")", 17), "nested deeper than 16 levels");
    bad_where(&nested("(", ")", 500), "nested deeper than 16 levels");
    bad_where(&nested("[", "]", 200), "nested deeper than 16 levels");
    bad_where(&"(".repeat(1024), "nested deeper than 16 levels");
    bad_where(&"true?".repeat(200), "nested deeper than 16 levels");
    bad_where(&"true?true:".repeat(102), "nested deeper than 16 levels");
    let sum = |n: usize| format!("{} == {n}", vec!["1"; n].join("+"));
    assert!(holds(&sum(15)));
    bad_where(&sum(17), "levels deep, at most 16");
    bad_where(&sum(500), "nested deeper than 16 levels");
    // A chain of fields, and of `&&` and `||`, is flat.
    let fields = format!("event.data{} == 1", ".a".repeat(200));
    assert!(!holds(&fields));
    bad_where(
        &format!("event.data.items.map(i, i){} == 1", ".a".repeat(200)),
        "deeper than 16 levels",
    );
    bad_where(
        &format!("has(event.data){} == 1", ".a".repeat(200)),
        "deeper than 16 levels",
    );
    for (open, close) in [
        ("[", "]"),
        ("size([", "])"),
        ("-(", ")"),
        ("{1: ", "}"),
        ("true ? 1 : ", ""),
    ] {
        let n = 14 / open.matches(['(', '[', '{', '?']).count();
        let _judged = holds(&format!("{}1{} == 1", open.repeat(n), close.repeat(n)));
    }
    let ands = vec!["event.data.vip"; 50].join(" && ");
    assert!(holds(&ands));
    assert!(!holds(&format!("{}event.data.missing", "!".repeat(1000))));
}

#[test]
fn an_expression_that_could_run_away_is_refused_or_does_not_hold() {
    let growing = |n: usize| format!("['x']{}.size() > 0", ".map(x,[x,x,x,x,x,x,x,x])".repeat(n));
    assert!(holds(&growing(3)));
    bad_where(&growing(9), "would cost too much");
    bad_where(
        "[1,2,3].map(a,[1,2,3].map(b,[1,2,3].map(c,a+b+c))).size()>0",
        "at most 2 deep",
    );
    let list = format!("[{}]", vec!["1"; 200].join(","));
    bad_where(
        &format!("{list}.all(a, {list}.all(b, a == b))"),
        "would cost too much",
    );
    for hostile in [
        "[event.data].map(x, [x, x]).map(x, [x, x]).map(x, [x, x]).map(x, [x, x]).size() > 0",
        "event.data.l.all(a, event.data.l.all(b, a == b))",
        "event.data.l.map(a, event.data.l).size() > 0",
        "event.data.l.map(a, event.data.l.map(b, [a, b])).size() > 0",
        "event.data.l.all(a, event.data.s.contains(event.data.s + string(a)) == false)",
        "event.data.l.all(a, a in event.data.l)",
    ] {
        let filter = Filter::compile(&spec(&[], &[], &[], Some(hostile))).unwrap();
        // It is the event's size that makes them costly: small ones are judged.
        let sized = |n: usize| {
            let data = format!(
                r#"{{"l":[{}],"s":"{}"}}"#,
                vec!["1"; n].join(","),
                "x".repeat(2 * n)
            );
            filter.judge(&Event {
                data: Some(raw(&data)),
                ..event()
            })
        };
        assert_eq!(sized(3), Ok(()), "{hostile}");
        let stopped = sized(60_000).unwrap_err();
        assert!(
            stopped.detail.contains("cost too much"),
            "{hostile}: {}",
            stopped.detail
        );
    }
}

#[test]
fn a_large_event_costs_an_ordinary_expression_no_more_than_it_looks_at() {
    let items: Vec<String> = (0..400)
        .map(|n| format!(r#"{{"sku":"sku-{n}","n":{n},"tags":["a","b"]}}"#))
        .collect();
    let notes = "n".repeat(200_000);
    let data = format!(
        r#"{{"items":[{}],"notes":"{notes}","limit":399,"city":"Oslo"}}"#,
        items.join(",")
    );
    let large = Event {
        data: Some(raw(&data)),
        ..event()
    };
    for expression in [
        "event.data.city == 'Oslo'",
        "event.data.items.exists(i, i.n >= event.data.limit)",
        "event.data.items.exists(i, i.tags.exists(t, t == 'b'))",
        "event.data.items.map(i, i.sku).exists(s, s.startsWith('sku-39'))",
        "event.data.items.filter(i, i.n > 10).size() == 389",
        "event.data.notes.contains('nnn') && size(event.data.items) == 400",
    ] {
        assert_eq!(
            judge(&spec(&[], &[], &[], Some(expression)), &large),
            Ok(()),
            "{expression}"
        );
    }
}

/// Tokens of the language in any order: what a parser is most easily confused by.
fn tokens() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "event", ".", "data", "price", "items", "exists", "map", "filter", "all", "has", "size",
        "(", ")", "[", "]", "{", "}", ",", ":", "?", "!", "-", "+", "*", "/", "%", "==", "!=", "<",
        ">=", "&&", "||", "in", "1", "1u", "1.5", "0x1F", "'s'", "\"t\"", "b'b'", "r'\\'", "'''",
        "true", "null", "i", "x", " ", "\n", "//", "\\", "`", "#", "é", "\u{0}", "int", "string",
        "type", "e1",
    ]);
    prop::collection::vec(token, 0..24).prop_map(|tokens| tokens.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_compiles_or_is_refused_and_never_panics(text in prop_oneof![".{0,80}", tokens()]) {
        // A panic that is caught is a fault all the same, and these are the words for it.
        match Filter::compile(&spec(&[], &[], &[], Some(&text))) {
            Err(faults) => prop_assert!(!faults[0].message.contains("can be read"), "{:?}", faults),
            Ok(filter) => {
                let judged = filter.judge(&event());
                prop_assert!(!judged.is_err_and(|stopped| stopped.detail.contains("be evaluated")));
            }
        }
    }

    #[test]
    fn any_bytes_in_any_shape_are_judged(actions in prop::collection::vec(".{0,6}", 0..3), changed in prop::collection::vec(".{1,6}", 0..3)) {
        let spec = FilterSpec { actions, changed_fields: changed, ..FilterSpec::default() };
        if let Ok(filter) = Filter::compile(&spec) {
            let _judged = filter.judge(&event());
        }
    }
}
