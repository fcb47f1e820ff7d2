//! The corpus of bodies: each row's bytes, what HTTP answers, and what becomes of them on AMQP.

/// Stands in a row's bytes where the id goes, so that one row can be sent by several ways.
const ID: &str = "@@";

/// One input.
pub(super) struct Row {
    /// Its name: the id of the corpus, and a number where the id has several inputs.
    pub(super) name: String,
    bytes: Vec<u8>,
    pub(super) http: Http,
    pub(super) amqp: Amqp,
}

/// What HTTP answers.
#[derive(Debug, Clone)]
pub(super) enum Http {
    Refused {
        status: u16,
        code: &'static str,
        /// The pointer of one of the errors, where the row names one.
        pointer: Option<&'static str>,
        says: &'static [&'static str],
    },
    /// 202, and this JSON arrives as `data`, byte for byte.
    Taken(String),
    /// 202, and nobody wants it.
    Unwanted,
}

/// What becomes of a message with the same bytes.
#[derive(Debug, Clone)]
pub(super) enum Amqp {
    Quarantined {
        reason: &'static str,
        says: &'static [&'static str],
    },
    /// This JSON arrives as `data`, byte for byte.
    Taken(String),
    /// It is counted, and nobody wants it.
    Unwanted,
}

impl Row {
    /// The bytes with this id in them.
    pub(super) fn bytes(&self, id: &str) -> Vec<u8> {
        let Ok(text) = std::str::from_utf8(&self.bytes) else {
            return self.bytes.clone();
        };
        text.replace(ID, id).into_bytes()
    }
}

/// A good event with these fields added, put in the place of its own, or left out (empty).
pub(super) fn event(fields: &[(&str, &str)]) -> String {
    let mut all = vec![
        ("id", "\"@@\""),
        ("tenant", "\"salon-17\""),
        ("type", "\"appointment.created\""),
        ("data", "{\"price\":12.10}"),
    ];
    for (name, value) in fields {
        all.retain(|(known, _)| known != name);
        if !value.is_empty() {
            all.push((name, value));
        }
    }
    let all: Vec<_> = all
        .iter()
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .collect();
    format!("{{{}}}", all.join(","))
}

fn data(value: &str) -> String {
    event(&[("data", value)])
}

/// An event of exactly so many bytes, once its id of nine characters is in it.
fn sized(bytes: usize) -> String {
    let frame = data("\"\"").replace(ID, "h-i39-001").len();
    data(&format!("\"{}\"", "x".repeat(bytes - frame)))
}

fn nested(levels: usize) -> String {
    data(&format!("{}{}", "[".repeat(levels), "]".repeat(levels)))
}

fn nested_objects(levels: usize) -> String {
    data(&format!(
        "{}1{}",
        "{\"a\":".repeat(levels),
        "}".repeat(levels)
    ))
}

fn keys(count: usize) -> String {
    let keys: Vec<_> = (0..count).map(|n| format!("\"k{n}\":1")).collect();
    data(&format!("{{{}}}", keys.join(",")))
}

/// The reason that goes with a code, in the closed set of reasons.
fn reason(code: &str) -> &'static str {
    match code {
        "empty_body" | "bad_json" | "bad_utf8" => "malformed",
        "too_large" => "too_large",
        _ => "invalid_event",
    }
}

#[derive(Default)]
struct Table {
    rows: Vec<Row>,
}

impl Table {
    fn row(&mut self, id: &str, bytes: impl Into<Vec<u8>>, http: Http, amqp: Amqp) {
        let number = self.rows.len();
        self.rows.push(Row {
            name: format!("{}-{number:03}", id.to_lowercase()),
            bytes: bytes.into(),
            http,
            amqp,
        });
    }

    /// Refused over HTTP, quarantined over AMQP with the same words.
    fn refused(
        &mut self,
        id: &str,
        bytes: impl Into<Vec<u8>>,
        (status, code): (u16, &'static str),
        pointer: Option<&'static str>,
        says: &'static [&'static str],
    ) {
        let http = Http::Refused {
            status,
            code,
            pointer,
            says,
        };
        let reason = reason(code);
        self.row(id, bytes, http, Amqp::Quarantined { reason, says });
    }

    fn unreadable(
        &mut self,
        id: &str,
        bytes: impl Into<Vec<u8>>,
        code: &'static str,
        says: &'static [&'static str],
    ) {
        self.refused(id, bytes, (400, code), Some(""), says);
    }

    fn invalid(
        &mut self,
        id: &str,
        bytes: impl Into<Vec<u8>>,
        pointer: &'static str,
        says: &'static [&'static str],
    ) {
        self.refused(id, bytes, (422, "invalid_event"), Some(pointer), says);
    }

    fn taken(&mut self, id: &str, value: &str) {
        let (http, amqp) = (Http::Taken(value.into()), Amqp::Taken(value.into()));
        self.row(id, data(value), http, amqp);
    }

    /// Taken whatever stands beside the data.
    fn taken_with(&mut self, id: &str, fields: &[(&str, &str)]) {
        let value = "{\"price\":12.10}".to_owned();
        let (http, amqp) = (Http::Taken(value.clone()), Amqp::Taken(value));
        self.row(id, event(fields), http, amqp);
    }
}

/// Every row of the corpus that is a body.
pub(super) fn all() -> Vec<Row> {
    let mut table = Table::default();
    unreadable(&mut table);
    not_objects(&mut table);
    differently_read(&mut table);
    wrong_fields(&mut table);
    times(&mut table);
    sizes(&mut table);
    unchanged(&mut table);
    table.rows
}

fn unreadable(t: &mut Table) {
    t.unreadable("I01", "", "empty_body", &["body is empty"]);
    t.unreadable(
        "I02",
        " ",
        "bad_json",
        &["end of the input", "line 1, column 2"],
    );
    t.unreadable("I02", " \n\t ", "bad_json", &["line 2, column 3"]);
    t.unreadable(
        "I05",
        "{\"a\":",
        "bad_json",
        &["end of the input", "line 1, column 6"],
    );
    t.unreadable("I05", "{\"a\":\"b", "bad_json", &["in a string", "line 1"]);
    t.unreadable("I05", "{\n\"a\": tru", "bad_json", &["line 2, column 6"]);
    t.unreadable(
        "I06",
        "{\"a\":1,\n}",
        "bad_json",
        &["trailing comma", "line 2, column 1"],
    );
    t.unreadable(
        "I06",
        "{\"a\":[1,]}",
        "bad_json",
        &["trailing comma", "column 9"],
    );
    t.unreadable("I06", "{ // x\n}", "bad_json", &["no comments", "column 3"]);
    t.unreadable("I06", "{ /* x */ }", "bad_json", &["no comments"]);
    t.unreadable("I06", "{'a':1}", "bad_json", &["double quotes", "column 2"]);
    t.unreadable(
        "I06",
        "{a:1}",
        "bad_json",
        &["key in double quotes", "column 2"],
    );
    t.unreadable(
        "I07",
        "{} {}",
        "bad_json",
        &["trailing characters", "column 4"],
    );
    t.unreadable(
        "I07",
        data("1") + "garbage",
        "bad_json",
        &["trailing characters"],
    );
    t.unreadable("I08", b"{\"a\":\"\xff\"}", "bad_utf8", &["UTF-8", "byte 6"]);
    t.unreadable("I08", b"{\"\xe9\":1}", "bad_utf8", &["byte 2"]);
    t.unreadable("I09", b"\xef\xbb\xbf{}", "bad_utf8", &["BOM"]);
    t.unreadable("I09", b"\xff\xfe{\0}\0", "bad_utf8", &["UTF-16"]);
    t.unreadable("I09", b"\0{\0}", "bad_utf8", &["UTF-16"]);
    t.unreadable("I10", b"{\"a\":\"\xc0\xaf\"}", "bad_utf8", &["byte 6"]);
    t.unreadable(
        "I14",
        data("\"x\ty\""),
        "bad_json",
        &["control character", "column"],
    );
    for number in [
        "NaN",
        "Infinity",
        "-Infinity",
        "01",
        "+1",
        ".5",
        "0x10",
        "1.",
        "1e",
        "-",
    ] {
        t.unreadable("I20", data(number), "bad_json", &["line 1, column"]);
    }
    t.unreadable("I20", data("+1"), "bad_json", &["no plus sign"]);
    t.unreadable("I20", data(".5"), "bad_json", &["a digit before the point"]);
    t.unreadable("I20", data("0x10"), "bad_json", &["no hexadecimal"]);
    t.unreadable("I20", data("NaN"), "bad_json", &["no NaN"]);
}

fn not_objects(t: &mut Table) {
    for (text, says) in [
        ("null", &["object", "null"] as &[&str]),
        ("true", &["object", "boolean"]),
        ("1", &["object", "number"]),
        ("\"x\"", &["object", "string"]),
    ] {
        t.refused("I03", text, (422, "not_object"), Some(""), says);
    }
    // Over HTTP an array is a batch, so that its elements are what is no event; a message is one.
    let empty = Http::Refused {
        status: 422,
        code: "invalid_event",
        pointer: Some(""),
        says: &["no event"],
    };
    let array = |says| Amqp::Quarantined {
        reason: "invalid_event",
        says,
    };
    t.row("I04", "[]", empty, array(&["object", "an array"]));
    let positional = Http::Refused {
        status: 422,
        // The third is an object, and no event.
        code: "invalid_event",
        pointer: Some("/0"),
        says: &["object", "a string"],
    };
    let bytes = "[\"e1\",\"salon-17\",{}]";
    t.row("I04", bytes, positional, array(&["object", "an array"]));
}

/// What another parser than ours would read as another document.
fn differently_read(t: &mut Table) {
    t.invalid(
        "I11",
        data("{\"a\":[\"x\",\"\\ud800\"]}"),
        "/data/a/1",
        &["surrogate"],
    );
    t.invalid("I11", data("\"\\udc00\\ud800\""), "/data", &["surrogate"]);
    let control = event(&[
        ("type", "\"appointment\\u0000.created\""),
        ("tenant", "\"a\\u0000\""),
    ]);
    t.invalid("I12", control.clone(), "/type", &["control character"]);
    t.invalid("I12", control, "/tenant", &["control character"]);
    let deep = (422, "too_deep");
    for levels in [64, 65, 1_000, 100_000] {
        t.refused("I15", nested(levels), deep, None, &["64"]);
    }
    t.refused("I48", nested_objects(40_000), deep, None, &["64"]);
    // Without an end, and past what one event may have.
    t.refused("I48", "[".repeat(200_000), deep, None, &["64"]);
    t.refused("I48", "{\"a\":".repeat(40_000), deep, None, &["64"]);
    t.refused(
        "I16",
        keys(10_001),
        (422, "too_many_keys"),
        None,
        &["10000"],
    );
    let twice = data("1").replace("\"type\"", "\"tenant\":\"other\",\"type\"");
    let duplicate = &["duplicate", "tenant"];
    t.refused(
        "I17",
        twice.clone(),
        (400, "duplicate_key"),
        Some("/tenant"),
        duplicate,
    );
    let escaped = twice.replace("\"tenant\":\"other\"", "\"ten\\u0061nt\":\"other\"");
    t.refused(
        "I18",
        escaped,
        (400, "duplicate_key"),
        Some("/tenant"),
        duplicate,
    );
    // Whatever else is wrong: what a field is meant to be cannot be told.
    let alone = "{\"tenant\":\"a\",\"tenant\":\"b\"}";
    t.refused(
        "I17",
        alone,
        (400, "duplicate_key"),
        Some("/tenant"),
        duplicate,
    );
    let inside = data("{\"a\":[{\"b\":1,\"c\":2,\"b\":3}]}");
    let duplicate = &["duplicate", "`b`"];
    t.refused(
        "I19",
        inside,
        (422, "duplicate_key"),
        Some("/data/a/0/b"),
        duplicate,
    );
    let number = (422, "number_too_large");
    t.refused(
        "I21",
        data("{\"a\":1e400}"),
        number,
        Some("/data/a"),
        &["too large"],
    );
    t.refused(
        "I21",
        data(&"9".repeat(200_000)),
        number,
        Some("/data"),
        &["64"],
    );
}

fn wrong_fields(t: &mut Table) {
    let whole = Http::Refused {
        status: 422,
        code: "invalid_event",
        pointer: Some("/type"),
        // An id is made where there is none.
        says: &["/tenant", "/type", "/data"],
    };
    let named = Amqp::Quarantined {
        reason: "invalid_event",
        says: &["/id", "/tenant", "/type", "/data"],
    };
    t.row("I23", "{}", whole, named);
    let wrong = event(&[("tenant", "1"), ("type", "[]"), ("id", "{}")]);
    t.invalid("I24", wrong.clone(), "/tenant", &["a string", "a number"]);
    t.invalid("I24", wrong.clone(), "/type", &["a string", "an array"]);
    t.invalid("I24", wrong, "/id", &["a string", "an object"]);
    t.invalid(
        "I25",
        event(&[("tenant", "null")]),
        "/tenant",
        &["null", "leave"],
    );
    t.invalid(
        "I26",
        event(&[("tenant", "\"\"")]),
        "/tenant",
        &["1 to 128"],
    );
    t.invalid("I26", event(&[("id", "\" \"")]), "/id", &["visible ASCII"]);
    let long = format!("\"a.{}\"", "x".repeat(300));
    t.invalid("I26", event(&[("type", &long)]), "/type", &["at most 128"]);
    let long = format!("\"{}\"", "x".repeat(300));
    t.invalid("I26", event(&[("tenant", &long)]), "/tenant", &["1 to 128"]);
    for bad in [
        "a..b",
        ".a",
        "a.",
        "A B",
        "a/b",
        "*",
        "#",
        "😀.x",
        "a.*",
        "appointment",
        "a.b.c",
        "A.created",
        "appointment.Created",
    ] {
        let bad = format!("\"{bad}\"");
        t.invalid(
            "I27",
            event(&[("type", &bad)]),
            "/type",
            &["`entity.action`"],
        );
    }
    // The catalogue is open by default: a type that nobody knows is an event that nobody wants yet.
    t.taken_with("I28", &[("type", "\"spaceship.launched\"")]);
    t.taken_with("I29", &[("type", "\"appointment.teleported\"")]);
    let unknown = event(&[("tennant", "1")]);
    t.invalid(
        "I30",
        unknown,
        "/tennant",
        &["unknown field", "did you mean `tenant`"],
    );
    for bad in ["a.b", "a\\r\\nb", "é", "a b"] {
        let bad = format!("\"{bad}\"");
        t.invalid("I31", event(&[("id", &bad)]), "/id", &["must"]);
    }
    t.invalid(
        "I31",
        event(&[("id", "\"a.b\"")]),
        "/id",
        &["`.`", "signature"],
    );
    let long = format!("\"{}\"", "x".repeat(1024));
    t.invalid("I31", event(&[("id", &long)]), "/id", &["1 to 128"]);
    // No list of tenants exists: one without a subscription has nobody who waits for its events.
    t.row(
        "I38",
        event(&[("tenant", "\"nobody-knows-me\"")]),
        Http::Unwanted,
        Amqp::Unwanted,
    );
}

fn times(t: &mut Table) {
    let at = |time: &str| event(&[("time", &format!("\"{time}\""))]);
    let late = (422, "future_timestamp");
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(30);
    for time in [tomorrow, soon] {
        t.refused(
            "I34",
            at(&time.to_string()),
            late,
            Some("/time"),
            &["future", "now is"],
        );
    }
    t.refused(
        "I34",
        at("9999-01-01T00:00:00Z"),
        late,
        Some("/time"),
        &["9999-01-01"],
    );
    let near = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(2);
    t.taken_with("I34", &[("time", &format!("\"{near}\""))]);
    t.taken_with("I35", &[("time", "\"1970-01-01T00:00:00Z\"")]);
    let year = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * 365);
    t.taken_with("I35", &[("time", &format!("\"{year}\""))]);
    for bad in [
        "yesterday",
        "1767225600000",
        "2026-03-01",
        "2026-03-01T12:00:00",
    ] {
        t.invalid("I36", at(bad), "/time", &["RFC 3339"]);
    }
    for bad in ["1767225600000", "1767225600.5"] {
        t.invalid(
            "I36",
            event(&[("time", bad)]),
            "/time",
            &["RFC 3339", "a number"],
        );
    }
    t.taken_with("I36", &[("time", "\"2025-12-31T23:59:60Z\"")]);
}

fn sizes(t: &mut Table) {
    const MAX: usize = 256 * 1024;
    let large = (413, "too_large");
    let exact = sized(MAX);
    let start = exact.find("\"data\":").expect("an event has data") + "\"data\":".len();
    let value = exact[start..exact.len() - 1].to_owned();
    t.row("I39", exact, Http::Taken(value.clone()), Amqp::Taken(value));
    t.refused(
        "I39",
        sized(MAX + 1),
        large,
        Some(""),
        &["262144", "262145"],
    );
    t.refused("I39", sized(3 << 20), large, Some(""), &["262144"]);
    // Larger than `api.body_max`: the API says what a body may have, the message what an event may.
    let body = Http::Refused {
        status: 413,
        code: "too_large",
        pointer: None,
        says: &["4194304"],
    };
    let event = Amqp::Quarantined {
        reason: "too_large",
        says: &["262144"],
    };
    t.row("I39", sized(16 << 20), body, event);
}

/// What looks dangerous and is data.
fn unchanged(t: &mut Table) {
    t.taken("I13", "{\"a\":\"\\u0000\"}");
    for number in [
        "9007199254740993",
        "18446744073709551616",
        "12.10",
        "-0",
        "1E5",
        "1e-400",
    ] {
        t.taken("I22", &format!("{{\"n\":{number}}}"));
    }
    t.taken("I22", "{ \"b\" : [ 1 ,\t2 ] , \"a\":\"\\u0041\\/\" }");
    let levels = format!("{}{}", "[".repeat(63), "]".repeat(63));
    t.taken("I15", &levels);
    t.taken(
        "I53",
        "{\"__proto__\":{\"x\":1},\"constructor\":{\"prototype\":{\"y\":2}}}",
    );
    for text in [
        "'; DROP TABLE deliveries; --",
        "{\\\"$gt\\\":\\\"\\\"}",
        "*)(uid=*))(|(uid=*",
        "${jndi:ldap://127.0.0.1/x}",
        "{{7*7}}{% raw %}{{ event }}",
        "#{7*7} <%= 7*7 %> $(id) `id`",
        "<script>alert(1)</script>",
        "../../etc/passwd",
        "\\r\\nx-injected: 1",
    ] {
        t.taken("I54", &format!("{{\"name\":\"{text}\"}}"));
    }
}
