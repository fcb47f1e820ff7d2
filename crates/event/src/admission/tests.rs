//! The corpus of bad input (rows I01 to I39), and what must hold for any bytes at all.

use proptest::prelude::*;

use super::*;

const NOW: &str = "2026-03-01T12:00:00Z";

fn envelope() -> Envelope<'static> {
    Envelope {
        now: NOW.parse().unwrap(),
        message_id: None,
        tenant: None,
        fresh_id: None,
    }
}

/// A good event with `fields` added or put in the place of its own.
fn event_with(fields: &[(&str, &str)]) -> String {
    let mut all = vec![
        ("id", r#""e-1""#),
        ("tenant", r#""salon-17""#),
        ("type", r#""appointment.created""#),
        ("data", r#"{"price":12.10}"#),
    ];
    for (name, value) in fields {
        all.retain(|(known, _)| known != name);
        if !value.is_empty() {
            all.push((name, value));
        }
    }
    let all: Vec<String> = all
        .iter()
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .collect();
    format!("{{{}}}", all.join(","))
}

#[track_caller]
fn taken(body: &str) -> Event {
    admit(body.as_bytes(), &envelope()).unwrap_or_else(|refusal| panic!("{body:.200}: {refusal:?}"))
}

#[track_caller]
fn refused(body: impl AsRef<[u8]>) -> Refusal {
    admit(body.as_ref(), &envelope()).expect_err("must be refused")
}

/// Code, status, and a piece of the text, at the pointer if one is named.
#[track_caller]
fn check(row: &str, body: impl AsRef<[u8]>, code: &str, status: u16, pointer: &str, says: &str) {
    let refusal = refused(body.as_ref());
    assert_eq!(
        (refusal.code, refusal.status),
        (code, status),
        "{row}: {refusal:?}"
    );
    let told = if status == 400 && refusal.faults.is_empty() {
        refusal.detail
    } else {
        let fault = refusal.faults.iter().find(|fault| fault.pointer == pointer);
        fault
            .unwrap_or_else(|| panic!("{row}: nothing at {pointer:?}: {refusal:?}"))
            .message
            .clone()
    };
    assert!(told.contains(says), "{row}: {told:?} does not say {says:?}");
}

#[test]
fn i01_to_i10_what_cannot_be_read_says_where() {
    check("I01", "", "empty_body", 400, "", "the body is empty");
    check(
        "I02",
        " \n ",
        "bad_json",
        400,
        "",
        "end of the input at line 2, column 2",
    );
    for (body, got) in [
        ("null", "null"),
        ("true", "a boolean"),
        ("1", "a number"),
        ("\"x\"", "a string"),
    ] {
        check(
            "I03",
            body,
            "not_object",
            422,
            "",
            &format!("must be a JSON object, got {got}"),
        );
    }
    check("I04", "[]", "not_object", 422, "", "got an array");
    check(
        "I04",
        r#"["t","x",{}]"#,
        "not_object",
        422,
        "",
        "got an array",
    );
    check(
        "I05",
        r#"{"a":"#,
        "bad_json",
        400,
        "",
        "end of the input at line 1, column 6",
    );
    check(
        "I05",
        r#"{"a":"bc"#,
        "bad_json",
        400,
        "",
        "in a string at line 1",
    );
    check(
        "I06",
        "{\"a\":1,\n}",
        "bad_json",
        400,
        "",
        "a trailing comma at line 2, column 1",
    );
    check(
        "I06",
        r#"{"a":[1,]}"#,
        "bad_json",
        400,
        "",
        "a trailing comma",
    );
    check(
        "I06",
        "{// x\n}",
        "bad_json",
        400,
        "",
        "JSON has no comments",
    );
    check("I06", "{'a':1}", "bad_json", 400, "", "only double quotes");
    check(
        "I07",
        "{} {}",
        "bad_json",
        400,
        "",
        "trailing characters at line 1, column 4",
    );
    check("I08", b"{\"a\":\"\xff\"}", "bad_utf8", 400, "", "at byte 6");
    check("I09", b"\xef\xbb\xbf{}", "bad_utf8", 400, "", "BOM");
    check(
        "I09",
        b"\xff\xfe{\0}\0",
        "bad_utf8",
        400,
        "",
        "UTF-16 is not accepted",
    );
    check(
        "I09",
        b"{\0}\0",
        "bad_utf8",
        400,
        "",
        "UTF-16 is not accepted",
    );
    check(
        "I10",
        b"{\"a\":\"\xc0\xaf\"}",
        "bad_utf8",
        400,
        "",
        "at byte 6",
    );
    check(
        "I14",
        "{\"a\":\"x\ty\"}",
        "bad_json",
        400,
        "",
        "control character in a string",
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
        check(
            "I20",
            format!("{{\"a\":{number}}}"),
            "bad_json",
            400,
            "",
            "at line 1, column",
        );
    }
    // A column counts characters, not bytes.
    check("I07", "{\"ä\":1}x", "bad_json", 400, "", "line 1, column 8");
}

/// The scanner looks at eight bytes at a time: none may hide among the others.
#[test]
fn i14_no_place_in_a_long_string_hides_a_control_character() {
    for at in 0..40 {
        let with = |piece: &str| {
            let text = format!(
                "{}{piece}{}",
                "é".repeat(at / 2) + &"x".repeat(at % 2),
                "y".repeat(40 - at)
            );
            event_with(&[("data", &format!("\"{text}\""))])
        };
        for control in ["\0", "\t", "\n", "\u{1f}"] {
            check(
                "I14",
                with(control),
                "bad_json",
                400,
                "",
                "control character in a string",
            );
        }
        check(
            "I14",
            with("\\x"),
            "bad_json",
            400,
            "",
            "an escape that JSON does not have",
        );
        check(
            "I14",
            with("\"\""),
            "bad_json",
            400,
            "",
            "expected `,` or `}`",
        );
        check(
            "I11",
            with("\\ud800"),
            "invalid_event",
            422,
            "/data",
            "lone surrogate",
        );
        taken(&with("\u{7f}\u{80}\u{10ffff} !#[]"));
    }
}

#[test]
fn i11_to_i21_what_another_parser_would_read_differently_is_refused() {
    let with = |value: &str| event_with(&[("data", value)]);
    check(
        "I11",
        with(r#"{"a":["x","\ud800"]}"#),
        "invalid_event",
        422,
        "/data/a/1",
        "lone surrogate",
    );
    check(
        "I11",
        with(r#"{"\udc00":1}"#),
        "invalid_event",
        422,
        "/data/\\udc00",
        "lone surrogate",
    );
    check(
        "I11",
        with(r#""\ud800\ud800""#),
        "invalid_event",
        422,
        "/data",
        "lone surrogate",
    );
    taken(&with(r#""\ud83d\ude00""#));
    let control = [
        ("type", r#""appointment\u0000.created""#),
        ("tenant", r#""a\u0000""#),
    ];
    check(
        "I12",
        event_with(&control),
        "invalid_event",
        422,
        "/type",
        "control characters",
    );
    check(
        "I12",
        event_with(&control),
        "invalid_event",
        422,
        "/tenant",
        "control characters",
    );
    let nul = taken(&with(r#"{"a":"\u0000"}"#));
    assert_eq!(nul.data.unwrap().get(), r#"{"a":"\u0000"}"#, "I13");
    for depth in [64, 1_000, 100_000] {
        let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let refusal = refused(with(&deep));
        assert_eq!(
            (refusal.code, refusal.status),
            ("too_deep", 422),
            "I15 {depth}"
        );
        assert!(
            refusal.detail.contains("64 levels"),
            "I15: {}",
            refusal.detail
        );
    }
    // The event is the first level, so its data may have 63 more.
    taken(&with(&format!("{}{}", "[".repeat(63), "]".repeat(63))));
    let keys = |n: usize| {
        let keys: Vec<String> = (0..n).map(|n| format!("\"k{n}\":1")).collect();
        with(&format!("{{{}}}", keys.join(",")))
    };
    check(
        "I16",
        keys(10_001),
        "too_many_keys",
        422,
        "",
        "more than 10000 keys",
    );
    taken(&keys(9_996));
    check(
        "I17",
        r#"{"tenant":"a","tenant":"b"}"#,
        "duplicate_key",
        400,
        "/tenant",
        "duplicate field `tenant`",
    );
    let twice = event_with(&[]).replace('}', "") + r#"},"tenant":"b"}"#;
    check(
        "I17",
        &twice,
        "duplicate_key",
        400,
        "/tenant",
        "duplicate field `tenant`",
    );
    let escaped = twice.replace(r#""tenant":"b""#, r#""ten\u0061nt":"b""#);
    check(
        "I18",
        escaped,
        "duplicate_key",
        400,
        "/tenant",
        "duplicate field `tenant`",
    );
    check(
        "I19",
        with(r#"{"a":[{"b":1,"c":2,"b":3}]}"#),
        "duplicate_key",
        422,
        "/data/a/0/b",
        "duplicate key",
    );
    let wide: Vec<String> = (0..40).map(|n| format!("\"k{}\":1", n % 39)).collect();
    check(
        "I19",
        with(&format!("{{{}}}", wide.join(","))),
        "duplicate_key",
        422,
        "/data/k0",
        "duplicate key",
    );
    check(
        "I21",
        with(r#"{"a":1e400}"#),
        "number_too_large",
        422,
        "/data/a",
        "too large",
    );
    check(
        "I21",
        with(&"9".repeat(65)),
        "number_too_large",
        422,
        "/data",
        "65 characters",
    );
    check(
        "I21",
        with(&"9".repeat(200_000)),
        "number_too_large",
        422,
        "/data",
        "at most 64",
    );
    // Pointers escape what RFC 6901 escapes.
    check(
        "I19",
        with(r#"{"a/b~c":{"x":1,"x":2}}"#),
        "duplicate_key",
        422,
        "/data/a~1b~0c/x",
        "duplicate",
    );
}

#[test]
fn i22_numbers_keep_their_bytes() {
    for value in [
        "9007199254740993",
        "18446744073709551616",
        "12.10",
        "-0",
        "1E5",
        "1e-400",
        &"9".repeat(64),
    ] {
        let event = taken(&event_with(&[("data", value)]));
        assert_eq!(event.data.unwrap().get(), value, "I22");
    }
    let spaced = "{ \"b\" : [ 1 ,\t2 ] , \"a\":\"\\u0041\" }";
    let event = taken(&event_with(&[
        ("data", spaced),
        ("details", spaced),
        ("changes", spaced),
    ]));
    for part in [event.data, event.details, event.changes] {
        assert_eq!(part.unwrap().get(), spaced, "byte for byte");
    }
}

#[test]
fn i23_to_i27_every_fault_is_named_at_once() {
    let refusal = refused("{}");
    let pointers: Vec<&str> = refusal
        .faults
        .iter()
        .map(|fault| fault.pointer.as_str())
        .collect();
    assert_eq!(pointers, ["/id", "/tenant", "/type", "/data"], "I23");
    assert_eq!(
        refusal.detail,
        "/id is required (or the message's `message_id` property) (and 3 more)"
    );
    let row = event_with(&[
        ("tenant", "1"),
        ("type", "[]"),
        ("id", "{}"),
        ("version", "-1"),
        ("nme", "1"),
    ]);
    let refusal = refused(row);
    let found: Vec<String> = refusal
        .faults
        .iter()
        .map(|fault| format!("{} {}", fault.pointer, fault.message))
        .collect();
    assert_eq!(
        found,
        [
            "/nme unknown field `nme`",
            "/id must be a string, got an object",
            "/tenant must be a string, got a number",
            "/type must be a string, got an array",
            "/version must be a whole number from 0 to 18446744073709551615",
        ],
        "I24"
    );
    check(
        "I25",
        event_with(&[("tenant", "null")]),
        "invalid_event",
        422,
        "/tenant",
        "got null; leave the field out",
    );
    check(
        "I25",
        event_with(&[("status", "null")]),
        "invalid_event",
        422,
        "/status",
        "got null",
    );
    for bad in ["", " ", "a b", &"x".repeat(129)] {
        let quoted = format!("\"{bad}\"");
        for field in ["id", "tenant", "type"] {
            check(
                "I26",
                event_with(&[(field, &quoted)]),
                "invalid_event",
                422,
                &format!("/{field}"),
                "must",
            );
        }
    }
    check(
        "I26",
        event_with(&[("type", &format!("\"a.{}\"", "x".repeat(300)))]),
        "invalid_event",
        422,
        "/type",
        "at most 128",
    );
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
    ] {
        let body = event_with(&[("type", &format!("\"{bad}\""))]);
        check(
            "I27",
            body,
            "invalid_event",
            422,
            "/type",
            "`entity.action`",
        );
    }
    taken(&event_with(&[("type", "\"custom.onAddItemCart\"")]));
    taken(&event_with(&[("type", "\"spaceship.launched\"")]));
    check(
        "I30",
        event_with(&[("tennant", "1")]),
        "invalid_event",
        422,
        "/tennant",
        "did you mean `tenant`?",
    );
    check(
        "I30",
        event_with(&[("a/b", "1")]),
        "invalid_event",
        422,
        "/a~1b",
        "unknown field `a/b`",
    );
    for bad in ["a.b", "a\\r\\nb", &"x".repeat(1024), "é", "a b"] {
        check(
            "I31",
            event_with(&[("id", &format!("\"{bad}\""))]),
            "invalid_event",
            422,
            "/id",
            "must",
        );
    }
}

#[test]
fn i34_to_i36_times_are_rfc_3339_and_not_in_the_future() {
    let with = |time: &str| event_with(&[("time", time)]);
    for late in [
        "9999-01-01T00:00:00Z",
        "2026-03-02T12:00:00Z",
        "2026-03-01T12:05:01Z",
    ] {
        let text = format!("\"{late}\"");
        check(
            "I34",
            with(&text),
            "future_timestamp",
            422,
            "/time",
            "now is 2026-03-01T12:00:00Z",
        );
    }
    for fine in [
        "2026-03-01T12:05:00Z",
        "1970-01-01T00:00:00Z",
        "2025-03-01T12:00:00+05:30",
        "2025-12-31T23:59:60Z",
        "2025-01-01t00:00:00.123456789z",
        "2025-01-01 00:00:00-00:00",
    ] {
        taken(&with(&format!("\"{fine}\"")));
    }
    for bad in [
        "yesterday",
        "1767225600000",
        "2026-03-01",
        "2026-03-01T12:00:00",
        "2026-13-01T12:00:00Z",
        "2026-02-30T12:00:00Z",
        "2026-03-01T12:00Z",
        "2026-03-01T12:00:00.Z",
        "2026-03-01T12:00:00+0530",
        "2026-03-01T12:00:00Z[UTC]",
        "20260301T120000Z",
        "+002026-03-01T12:00:00Z",
        "",
    ] {
        check(
            "I36",
            with(&format!("\"{bad}\"")),
            "invalid_event",
            422,
            "/time",
            "RFC 3339",
        );
    }
    check(
        "I36",
        with("1767225600"),
        "invalid_event",
        422,
        "/time",
        "got a number",
    );
    check(
        "I36",
        with("17672.5"),
        "invalid_event",
        422,
        "/time",
        "RFC 3339",
    );
    assert_eq!(
        taken(&event_with(&[])).time.to_string(),
        NOW,
        "acceptance is when it happened"
    );
    let later = taken(&event_with(&[("expires_at", "\"2030-01-01T00:00:00Z\"")]));
    assert_eq!(
        later.expires_at.unwrap().to_string(),
        "2030-01-01T00:00:00Z"
    );
}

#[test]
fn i37_a_bound_caller_publishes_for_its_own_tenant_alone() {
    let own = Tenant::parse("salon-17").unwrap();
    let other = Tenant::parse("salon-18").unwrap();
    let bound = |tenant| Envelope {
        tenant: Some(tenant),
        ..envelope()
    };
    let body = event_with(&[]);
    assert!(admit(body.as_bytes(), &bound(&own)).is_ok());
    let refusal = admit(body.as_bytes(), &bound(&other)).unwrap_err();
    assert_eq!((refusal.code, refusal.status), ("tenant_mismatch", 403));
    assert!(
        !format!("{refusal:?}").contains("salon"),
        "names no tenant: {refusal:?}"
    );
    // The mismatch hides every other fault.
    let worse = event_with(&[("type", "1")]);
    let refusal = admit(worse.as_bytes(), &bound(&other)).unwrap_err();
    assert_eq!((refusal.status, refusal.faults.len()), (403, 1));
    let without = event_with(&[("tenant", "")]);
    let event = admit(without.as_bytes(), &bound(&other)).unwrap();
    assert_eq!(event.tenant, other, "the bound tenant is the default");
}

#[test]
fn i39_an_event_may_have_256_kib_and_not_a_byte_more() {
    let frame = event_with(&[("data", "\"\"")]).len();
    let sized =
        |bytes: usize| event_with(&[("data", &format!("\"{}\"", "x".repeat(bytes - frame)))]);
    let largest = sized(EVENT_BYTES_MAX);
    assert_eq!(largest.len(), 262_144);
    taken(&largest);
    for bytes in [EVENT_BYTES_MAX + 1, 16 << 20] {
        check(
            "I39",
            sized(bytes),
            "too_large",
            413,
            "",
            "at most 262144 bytes",
        );
    }
    let refusal = refused(sized(EVENT_BYTES_MAX + 1));
    assert_eq!(quarantine_reason(&refusal), QuarantineReason::TooLarge);
}

#[test]
fn i39_what_an_intake_fills_in_does_not_count() {
    let frame = event_with(&[("data", "\"\"")]).len();
    let sized =
        |bytes: usize| event_with(&[("data", &format!("\"{}\"", "x".repeat(bytes - frame)))]);
    let filled_in = EVENT_BYTES_MAX + FILLED_IN_BYTES_MAX;
    for (bytes, fits) in [(filled_in, true), (filled_in + 1, false)] {
        let one = sized(bytes);
        let own = |body: &str, several| admit_own(body.as_bytes(), several, &envelope());
        assert_eq!(own(&one, false).is_ok(), fits, "{bytes}");
        assert_eq!(own(&format!("[{one}]"), true).is_ok(), fits, "{bytes}");
    }
}

#[test]
fn an_id_comes_from_the_body_the_message_or_fresh() {
    let without = event_with(&[("id", "")]);
    let message = Envelope {
        message_id: Some("m-1"),
        ..envelope()
    };
    assert_eq!(
        admit(without.as_bytes(), &message).unwrap().id.as_str(),
        "m-1"
    );
    assert_eq!(
        admit(event_with(&[]).as_bytes(), &message)
            .unwrap()
            .id
            .as_str(),
        "e-1"
    );
    let fresh = Envelope {
        fresh_id: Some(EventId::fresh),
        ..envelope()
    };
    assert_eq!(
        admit(without.as_bytes(), &fresh).unwrap().id.as_str().len(),
        36
    );
    let poison = Envelope {
        message_id: Some("m.1\r\n"),
        ..envelope()
    };
    let refusal = admit(without.as_bytes(), &poison).unwrap_err();
    assert_eq!(refusal.faults[0].pointer, "/id");
    assert!(
        refusal.faults[0].message.contains("`message_id`"),
        "{refusal:?}"
    );
}

#[test]
fn a_deleted_event_needs_its_subject_and_no_data() {
    let deleted = |subject: &str| {
        event_with(&[
            ("type", "\"customer.deleted\""),
            ("data", ""),
            ("subject", subject),
        ])
    };
    for good in ["10", "\"c-1\"", "[10,11,\"12\"]", "[ 1.50 ]"] {
        assert_eq!(taken(&deleted(good)).subject.unwrap().0.get(), good);
    }
    check(
        "-",
        deleted(""),
        "invalid_event",
        422,
        "/subject",
        "is required on `*.deleted`",
    );
    check(
        "-",
        deleted("[]"),
        "invalid_event",
        422,
        "/subject",
        "must not be an empty array",
    );
    check(
        "-",
        deleted("[1,null]"),
        "invalid_event",
        422,
        "/subject/1",
        "must be a string or a number",
    );
    check(
        "-",
        deleted("[1,[2]]"),
        "invalid_event",
        422,
        "/subject/1",
        "must be a string or a number",
    );
    check(
        "-",
        deleted("{}"),
        "invalid_event",
        422,
        "/subject",
        "an array of those, got an object",
    );
    check(
        "-",
        deleted("\"\""),
        "invalid_event",
        422,
        "/subject",
        "1 to 1024 bytes",
    );
    check(
        "-",
        deleted("\"a\\n\""),
        "invalid_event",
        422,
        "/subject",
        "control characters",
    );
    check(
        "-",
        event_with(&[("data", "")]),
        "invalid_event",
        422,
        "/data",
        "is required",
    );
}

#[test]
fn the_other_views_are_objects_and_data_may_be_anything() {
    for field in ["changes", "details"] {
        check(
            "-",
            event_with(&[(field, "[]")]),
            "invalid_event",
            422,
            &format!("/{field}"),
            "must be an object",
        );
        check(
            "-",
            event_with(&[(field, "null")]),
            "invalid_event",
            422,
            &format!("/{field}"),
            "got null",
        );
    }
    for data in ["null", "[]", "\"x\"", "false", "1", "{}"] {
        assert_eq!(
            taken(&event_with(&[("data", data)])).data.unwrap().get(),
            data
        );
    }
    let version = |text: &str| taken(&event_with(&[("version", text)])).version;
    assert_eq!(version("18446744073709551615"), Some(u64::MAX));
    for bad in ["1.0", "18446744073709551616", "-0", "\"1\"", "1e3"] {
        check(
            "-",
            event_with(&[("version", bad)]),
            "invalid_event",
            422,
            "/version",
            "whole number",
        );
    }
    let long = format!("\"{}\"", "x".repeat(257));
    check(
        "-",
        event_with(&[("status", &long)]),
        "invalid_event",
        422,
        "/status",
        "at most 256 bytes",
    );
}

#[test]
fn a_client_is_a_customer() {
    let event = taken(&event_with(&[("type", "\"client.created\"")]));
    assert_eq!(event.kind.as_str(), "customer.created");
    let escaped = taken(&event_with(&[("type", r#""cl\u0069ent.created""#)]));
    assert_eq!(escaped.kind.as_str(), "customer.created");
}

#[test]
fn several_events_are_taken_together_or_not_at_all() {
    let one = event_with(&[]);
    let two = event_with(&[("id", "\"e-2\"")]);
    let many = |body: &str, ndjson| admit_many(body.as_bytes(), ndjson, &envelope());
    let ids = |events: Vec<Event>| {
        events
            .iter()
            .map(|event| event.id.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(many(&one, false).unwrap()), ["e-1"]);
    assert_eq!(
        ids(many(&format!(" [ {one} , {two} ] "), false).unwrap()),
        ["e-1", "e-2"]
    );
    assert_eq!(
        ids(many(&format!("{one}\n\n  \r\n{two}\r\n"), true).unwrap()),
        ["e-1", "e-2"]
    );
    assert_eq!(ids(many(&one, true).unwrap()), ["e-1"]);

    let bad = event_with(&[("type", "1"), ("id", "\"e-3\"")]);
    let refusal = many(&format!("[{one},{bad},null,{{}}]"), false).unwrap_err();
    let pointers: Vec<&str> = refusal
        .faults
        .iter()
        .map(|fault| fault.pointer.as_str())
        .collect();
    assert_eq!(
        pointers,
        ["/1/type", "/2", "/3/id", "/3/tenant", "/3/type", "/3/data"]
    );
    assert_eq!((refusal.code, refusal.status), ("invalid_event", 422));
    let refusal = many(&format!("{one}\n\n{bad}"), true).unwrap_err();
    assert_eq!(
        refusal.faults[0].pointer, "/1/type",
        "blank lines are not counted"
    );

    let refusal = many(&format!("[{one},{one}]"), false).unwrap_err();
    assert_eq!(refusal.faults[0].pointer, "/1/id");
    assert!(refusal.faults[0].message.contains("same id"), "{refusal:?}");
    let elsewhere = event_with(&[("tenant", "\"salon-18\"")]);
    assert!(
        many(&format!("[{one},{elsewhere}]"), false).is_ok(),
        "an id is unique per tenant"
    );

    for (body, ndjson) in [("[]", false), ("[ ]", false), ("\n \n", true)] {
        let refusal = many(body, ndjson).unwrap_err();
        assert_eq!(refusal.status, 422, "{body:?}");
        assert!(refusal.detail.contains("no event"), "{refusal:?}");
    }
    for (body, ndjson, says) in [
        (format!("[{one}"), false, "end of the input"),
        (format!("[{one}]x"), false, "trailing characters"),
        (format!("[{one} {two}]"), false, "expected `,` or `]`"),
        (format!("[{one},]"), false, "expected a value, found `]`"),
        (
            format!("{one}\n{two} x"),
            true,
            "trailing characters at line 2",
        ),
        (format!("{one}\n{{\"a\""), true, "at line 2, column 5"),
        (one.replace(",\"data", ",\n\"data"), true, "at line 1"),
    ] {
        let refusal = many(&body, ndjson).unwrap_err();
        assert_eq!((refusal.code, refusal.status), ("bad_json", 400), "{body}");
        assert!(refusal.detail.contains(says), "{body}: {}", refusal.detail);
    }
    let large = event_with(&[("data", &format!("\"{}\"", "x".repeat(EVENT_BYTES_MAX)))]);
    let refusal = many(&format!("[{one},{large}]"), false).unwrap_err();
    assert_eq!(
        (refusal.code, refusal.status, &*refusal.faults[0].pointer),
        ("too_large", 413, "/1")
    );
    let half = event_with(&[(
        "data",
        &format!("\"{}\"", "x".repeat(EVENT_BYTES_MAX / 2 + 1)),
    )]);
    let halves = [half.replace("e-1", "e-5"), half.replace("e-1", "e-6")].join(",");
    assert_eq!(
        many(&format!("[{halves}]"), false).unwrap().len(),
        2,
        "the bound is each event's"
    );

    let bound = Tenant::parse("salon-18").unwrap();
    let envelope = Envelope {
        tenant: Some(&bound),
        ..envelope()
    };
    let body = format!("[{bad},{one}]");
    let refusal = admit_many(body.as_bytes(), false, &envelope).unwrap_err();
    assert_eq!((refusal.code, refusal.status), ("tenant_mismatch", 403));
}

#[test]
fn the_faults_told_at_once_are_bounded() {
    let many = format!("[{}]", vec!["{}"; 5_000].join(","));
    let refusal = admit_many(many.as_bytes(), false, &envelope()).unwrap_err();
    assert_eq!(refusal.faults.len(), FAULTS_MAX);
    let unknown: Vec<String> = (0..5_000).map(|n| format!("\"f{n}\":1")).collect();
    let refusal = refused(format!("{{{}}}", unknown.join(",")));
    assert!(
        refusal.faults.len() <= FAULTS_MAX + FIELDS.len(),
        "{}",
        refusal.faults.len()
    );
}

#[test]
fn every_refusal_has_its_quarantine_reason() {
    use QuarantineReason::{IdConflict, InvalidEvent, Malformed, TooLarge, UnsupportedEncoding};
    for (code, reason) in [
        ("empty_body", Malformed),
        ("bad_json", Malformed),
        ("bad_utf8", Malformed),
        ("not_object", InvalidEvent),
        ("too_deep", InvalidEvent),
        ("too_many_keys", InvalidEvent),
        ("duplicate_key", InvalidEvent),
        ("number_too_large", InvalidEvent),
        ("invalid_event", InvalidEvent),
        ("future_timestamp", InvalidEvent),
        ("tenant_mismatch", InvalidEvent),
        ("too_large", TooLarge),
        ("id_conflict", IdConflict),
        ("unsupported_encoding", UnsupportedEncoding),
    ] {
        assert_eq!(
            quarantine_reason(&Refusal::unreadable(code, "")),
            reason,
            "{code}"
        );
    }
}

/// JSON of any shape, with what it means: what `serde_json` would write, spaced out at random.
fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        any::<f64>()
            .prop_filter("finite", |value| value.is_finite())
            .prop_map(|value| format!("{value:e}")),
        ".{0,12}".prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..6), "[ \n\t]{0,2}").prop_map(
                |(all, space)| format!("[{space}{}{space}]", all.join(&format!("{space},{space}")))
            ),
            (
                prop::collection::btree_map(".{0,6}", inner, 0..20),
                "[ \n\t]{0,2}"
            )
                .prop_map(|(all, space)| {
                    let all: Vec<String> = all
                        .into_iter()
                        .map(|(key, value)| {
                            format!(
                                "{}{space}:{space}{value}",
                                serde_json::to_string(&key).unwrap()
                            )
                        })
                        .collect();
                    format!(
                        "{{{space}{}{space}}}",
                        all.join(&format!("{space},{space}"))
                    )
                }),
        ]
    })
}

#[test]
fn a_fetched_view_is_taken_byte_for_byte_or_refused_by_the_rules_of_an_event() {
    let view = admit_view(b" { \"a\" : 1.50 }\n").unwrap();
    assert_eq!(view.get(), "{ \"a\" : 1.50 }");
    assert_eq!(admit_view(b"[1,null]").unwrap().get(), "[1,null]");
    for bad in [
        "",
        "<html>",
        "{} {}",
        r#"{"secret":1,"secret":2}"#,
        r#""\ud800""#,
        &"[".repeat(1000),
    ] {
        let said = admit_view(bad.as_bytes()).unwrap_err();
        assert!(!said.contains("secret"), "{said}");
    }
    let large = format!("\"{}\"", "x".repeat(EVENT_BYTES_MAX));
    assert_eq!(
        admit_view(large.as_bytes()).unwrap_err(),
        "is larger than 256 KiB"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _judged = admit(&bytes, &envelope());
        let _judged = admit_many(&bytes, true, &envelope());
        let _judged = admit_many(&bytes, false, &envelope());
    }

    #[test]
    fn anything_like_json_is_judged_as_serde_json_reads_it(text in r#"[\[\]{}",:\\ud8c0a1e+.\-0 \ntruefalsnl'é]{0,40}"#) {
        let read = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        let refusal = admit(text.as_bytes(), &envelope()).expect_err("too short to be an event");
        let judged = !matches!(refusal.code, "bad_json" | "empty_body");
        prop_assert_eq!(read, judged, "{:?}: {:?}", text, refusal);
    }

    #[test]
    fn a_damaged_event_is_judged_without_a_panic(at in 0_usize..120, byte in any::<u8>(), cut in 0_usize..120) {
        let mut body = event_with(&[("changes", r#"{"a":"\ud83d\ude00é"}"#), ("subject", "[1,\"2\"]")]).into_bytes();
        let last = body.len() - 1;
        body[at.min(last)] = byte;
        let _judged = admit(&body, &envelope());
        body.truncate(cut);
        let _judged = admit(&body, &envelope());
        let _judged = admit_many(&body, true, &envelope());
    }

    #[test]
    fn what_is_taken_keeps_its_data_byte_for_byte(data in any_json()) {
        let event = taken(&event_with(&[("data", &data)]));
        prop_assert_eq!(event.data.as_ref().map(|data| data.get()), Some(data.as_str()));
        // And through our queues.
        let stored = serde_json::to_string(&event).unwrap();
        let read: Event = serde_json::from_str(&stored).unwrap();
        prop_assert_eq!(read.data.map(|data| data.get().to_owned()), Some(data));
    }
}
