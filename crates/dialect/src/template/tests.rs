//! What templates may do, and what stops them.

use event::Event;
use serde_json::json;

use super::*;

fn event() -> Event {
    serde_json::from_value(json!({
        "id": "evt_1", "tenant": "salon-17", "type": "appointment.updated",
        "time": "2026-03-01T10:00:00Z", "subject": 10, "status": "con\"firmed",
    }))
    .expect("an event")
}

fn scope(view: &str) -> Scope {
    Scope {
        word: "word".into(),
        action: "updated".into(),
        says: Value::from_pairs([("n", Value::from(7))]),
        event: EventScope::value(&event()),
        view: Raw::view(view),
        subscription: Value::from_pairs([("name", "CRM")]),
        attributes: Value::from_pairs([("a", "x\n\"y\"")]),
        parameters: Value::from_pairs([("p", "q")]),
    }
}

fn added(name: &str, source: &str) -> Result<Engine, BadTemplate> {
    let mut engine = Engine::new();
    engine.add(name, source, &|_| Ok(()))?;
    Ok(engine)
}

fn body(source: &str, view: &str) -> Result<String, String> {
    let engine = added("b", source).map_err(|bad| format!("{}: {}", bad.line, bad.reason))?;
    let bytes = engine.body("b", scope(view), view)?;
    Ok(String::from_utf8(bytes).expect("utf-8"))
}

#[track_caller]
fn makes(source: &str, view: &str, wanted: &str) {
    assert_eq!(body(source, view).as_deref(), Ok(wanted), "{source}");
}

#[track_caller]
fn fails(source: &str, view: &str, says: &str) {
    let error = body(source, view).expect_err(source);
    assert!(error.contains(says), "{source}: {error}");
}

#[test]
fn every_value_is_escaped_for_json() {
    makes("{{ attributes.a }}", "{}", r#""x\n\"y\"""#);
    makes("[{{ event.status }}]", "{}", r#"["con\"firmed"]"#);
    makes(
        "{{ {'k\"': [1, 2.5, none, true, false|string]} }}",
        "{}",
        r#"{"k\"":[1,2.5,null,true,"false"]}"#,
    );
    makes(
        "{{ view.s }}",
        r#"{"s": "\u0001\u2028é\\"}"#,
        "\"\\u0001\u{2028}é\\\\\"",
    );
    // A block that was captured is escaped once.
    makes(
        "{% set x %}{{ attributes.a }}{% endset %}{{ x }}",
        "{}",
        r#""x\n\"y\"""#,
    );
    // Not even where the template says so does a value leave as it is.
    fails("{{ attributes.a|safe }}", "{}", "there is no filter `safe`");
    makes(
        "{% autoescape false %}{{ attributes.a }}{% endautoescape %}",
        "{}",
        r#""x\n\"y\"""#,
    );
}

#[test]
fn what_is_not_looked_at_leaves_byte_for_byte() {
    let view = r#"{ "n" : 1.10, "big": 9007199254740993.0, "u":"é\u00e9" , "l": [ 1 ,2] }"#;
    makes("{{ view }}", view, view);
    makes("[{{ view }},{{ view }}]", view, &format!("[{view},{view}]"));
    makes(
        "[{{ view.n }},{{ view.big }},{{ view.l }}]",
        view,
        "[1.10,9007199254740993.0,[ 1 ,2]]",
    );
    makes(
        "{ {% for key, value in view|fields %}{{ key }}:{{ value }}{% if not loop.last %},{% endif %}{% endfor %}}",
        view,
        r#"{ "n":1.10,"big":9007199254740993.0,"u":"é\u00e9","l":[ 1 ,2]}"#,
    );
    makes(
        "[{% for part in view|elements %}{{ part }}{% if not loop.last %},{% endif %}{% endfor %}]",
        r#"["\u00e9", -0, {"a" : 1}]"#,
        r#"["\u00e9",-0,{"a" : 1}]"#,
    );
}

#[test]
fn values_of_the_view_can_be_compared() {
    let view = r#"{"s": "booked", "n": 7, "t": true, "z": null, "o": {"k": [3, 4]}, "f": 2.5}"#;
    let ok = |condition: &str| {
        makes(
            &format!("{{% if {condition} %}}1{{% else %}}0{{% endif %}}"),
            view,
            "1",
        );
    };
    ok("view.s == 'booked'");
    ok("view.n > 6 and view.n < 8");
    ok("view.t and view.z is none and view.o.k[1] == 4");
    ok("'s' in view and 'x' not in view and view is mapping and view.o.k is sequence");
    ok("view.x is undefined and view.x|default(1) == 1");
    ok("view.f|string|float == 2.5");
    ok(
        "event.subject == 10 and event.entity == 'appointment' and parameters.p == 'q' and says.n == 7",
    );
}

#[test]
fn line_breaks_are_for_the_reader() {
    makes(
        "\n{\n  \"a\": {{ says.n }},\n\t{# a note, with }} in it #}\n  \"b\":{%\n if true %}1{% endif %}\n}\n",
        "{}",
        r#"{"a": 7,"b":1}"#,
    );
    // A brace of the body before a break or a tag is no tag.
    makes("{\n{% if true %}\"a\":1{% endif %}}", "{}", r#"{"a":1}"#);
    fails(
        "{\n\"a\":1,\n\"b\":{{ view.x }}}",
        "{}",
        "line 3: `view.x` is undefined",
    );
}

#[test]
fn an_object_is_edited_where_it_stands() {
    let view = r#"{"z": 1.10, "a" : "é\u00e9", "d": "2026-03-01 10:00:00", "n": null}"#;
    makes(
        "{{ view|put({'a': 'new', 'x': {'b': 1, 'a': 2}}, {'y': view.z}, without=['n', 'q']) }}",
        view,
        r#"{"z":1.10,"a":"new","d":"2026-03-01 10:00:00","x":{"b":1,"a":2},"y":1.10}"#,
    );
    makes(
        "{{ view|put(without=['z', 'd', 'n'])|put({'z': 1}) }}",
        view,
        r#"{"a":"é\u00e9","z":1}"#,
    );
    makes(
        "{{ view|dates(['x', 'n', 'd'], '%H:%M', 'Asia/Tokyo') }}",
        view,
        r#"{"d":"19:00"}"#,
    );
    makes(
        "{% set e = view|put({'s': 't'}) %}{{ [e.s, e.z, e.q is undefined, 'a' in e, e|length] }}",
        view,
        r#"["t",1.10,true,true,5]"#,
    );
    fails("{{ 7|put({}) }}", view, "`put` needs an object");
    fails("{{ view.d|put({}) }}", view, "`put` needs an object");
    fails("{{ view|put(7) }}", view, "`put` takes objects");
    fails("{{ view|put(withot=[]) }}", view, "withot");
    fails("{{ view|put({'a': view.q}) }}", view, "undefined");
}

#[test]
fn a_tag_ends_where_its_braces_and_quotes_do() {
    makes(
        "\n{{ {'a': {'b': {'c': 1}}} }}\n",
        "{}",
        r#"{"a":{"b":{"c":1}}}"#,
    );
    makes(
        "\n{{ [\n'}}', \"%}\\\"}}\"\n] }}\n",
        "{}",
        r#"["}}","%}\"}}"]"#,
    );
}

#[test]
fn what_is_no_json_is_not_sent() {
    for source in [
        "{\"a\":}",
        "{{ view }}{{ view }}",
        "\"{{ view }}\"",
        "\"{{ view }}{{ view }}\"",
        "{ {{ view }}:1}",
        "{\"a\" {{ view }}}",
        "",
        "x",
    ] {
        fails(source, "{}", "the body is not JSON");
    }
}

#[test]
fn a_template_that_takes_too_much_is_stopped() {
    let list = format!("[{}1]", "1,".repeat(400));
    fails(
        "[{% for a in view %}{% for b in view %}{% for c in view %}{{ c }},{% endfor %}{% endfor %}{% endfor %}1]",
        &list,
        "it takes more than 100000 instructions",
    );
    let large = format!("{{\"t\": \"{}\"}}", "x".repeat(200_000));
    fails(
        "[{{ view }},{{ view }},{{ view }},{{ view }},{{ view }},{{ view }}]",
        &large,
        "larger than 1024 KiB",
    );
    fails(
        "[{{ view.t }},{{ view.t }},{{ view.t }},{{ view.t }},{{ view.t }},{{ view.t }}]",
        &large,
        "larger than 1024 KiB",
    );
    let deep = format!("{}{}", "[".repeat(60), "]".repeat(60));
    makes("{{ view[0] }}", &deep, &deep[1..deep.len() - 1]);
}

#[test]
fn a_template_that_cannot_work_is_refused_when_it_is_read() {
    for (source, line, says) in [
        ("{\n\"a\":{{ event.id }", 2, "cannot be read"),
        ("{% if view %}\n1", 2, "cannot be read"),
        ("\n{{ veiw }}", 2, "no `veiw`; did you mean `view`?"),
        ("{{ range(3) }}", 1, "no `range`"),
        (
            "\n\n{{ event.time|dat('%Y') }}",
            3,
            "no filter `dat`; did you mean `date`?",
        ),
        ("{% include 'x' %}", 1, "cannot be read"),
        ("a\u{1}b", 1, "control character"),
    ] {
        let bad = added("b", source).expect_err(source);
        assert_eq!(bad.line, line, "{source}: {}", bad.reason);
        assert!(bad.reason.contains(says), "{source}: {}", bad.reason);
    }
    let long = "x".repeat(TEMPLATE_BYTES_MAX + 1);
    assert!(added("b", &long).is_err());
}

#[test]
fn a_header_is_visible_text_or_nothing() {
    let header = |source: &str| {
        let engine = added("h", source).expect("a template");
        engine.header("h", scope(r#"{"s": "é", "n": 1.50}"#))
    };
    assert_eq!(
        header("v={{ event.id }} {{ view.n }}").as_deref(),
        Ok("v=evt_1 1.50")
    );
    assert_eq!(
        header("{{ attributes.none|default('') }}").as_deref(),
        Ok("")
    );
    assert_eq!(
        header("{{ event.status|percent }}").as_deref(),
        Ok("con%22firmed")
    );
    assert_eq!(header("{{ view.s|percent }}").as_deref(), Ok("%C3%A9"));
    for bad in ["{{ view.s }}", "{{ attributes.a }}"] {
        assert_eq!(header(bad), Err("the value is not visible ASCII".into()));
    }
    let error = header("{{ attributes.none }}").expect_err("undefined");
    assert!(error.contains("`attributes.none` is undefined"), "{error}");
}

#[test]
fn dates_are_read_in_two_forms_and_written_in_any() {
    let date = |value: &str, rest: &str| {
        body(
            &format!("{{{{ view.d|date({rest}) }}}}"),
            &format!(r#"{{"d": {value}, "z": "Europe/Berlin"}}"#),
        )
    };
    let form = "'%Y-%m-%d %H:%M:%S'";
    assert_eq!(
        date(r#""2026-03-29 00:59:59""#, &format!("{form}, view.z")).as_deref(),
        Ok(r#""2026-03-29 01:59:59""#)
    );
    assert_eq!(
        date(r#""2026-03-29T01:00:00Z""#, &format!("{form}, view.z")).as_deref(),
        Ok(r#""2026-03-29 03:00:00""#)
    );
    assert_eq!(
        date(r#""2026-10-25T02:30:00+02:00""#, "'%H:%M %Z', view.z").as_deref(),
        Ok(r#""02:30 CEST""#)
    );
    assert_eq!(
        date(
            r#""2026-10-25T02:30:00+01:00""#,
            "'%H:%M %Z', 'europe/berlin'"
        )
        .as_deref(),
        Ok(r#""02:30 CET""#)
    );
    assert_eq!(date("null", form).as_deref(), Ok("null"));
    for (value, rest, says) in [
        (r#""2026-03-29""#, form, "is no date such as"),
        (r#""2026-13-29 00:00:00""#, form, "is no date such as"),
        ("7", form, "`7` is no date such as"),
        (
            r#""2026-03-29T01:00:00Z""#,
            "'%Y', 'Etc/Unknown'",
            "no time zone is named `Etc/Unknown`",
        ),
        (
            r#""2026-03-29T01:00:00Z""#,
            "'%Y', 'CEST2'",
            "no time zone is named `CEST2`",
        ),
        (
            r#""2026-03-29T01:00:00Z""#,
            "'%Y', 7",
            "no time zone is named `7`",
        ),
        (r#""2026-03-29T01:00:00Z""#, "'%J'", "cannot be written"),
    ] {
        let error = date(value, rest).expect_err(value);
        assert!(error.contains(says), "{value} {rest}: {error}");
    }
}
