//! What is taken, attribute by attribute and in each mode, and what each refusal says.

use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-03-01T12:00:00Z";

fn envelope() -> Envelope<'static> {
    Envelope {
        now: NOW.parse().unwrap(),
        message_id: Some("not-mine"),
        tenant: None,
        fresh_id: Some(crate::EventId::fresh),
    }
}

/// A good structured event with `more` added or put in place; a null takes away.
fn good(more: Value) -> Value {
    let mut event = json!({
        "specversion": "1.0", "id": "e-1", "source": "/salon", "type": "appointment.created",
        "tenant": "salon-17", "data": {"price": 12.5},
    });
    for (name, value) in more.as_object().unwrap() {
        if value.is_null() {
            event.as_object_mut().unwrap().remove(name);
        } else {
            event[name] = value.clone();
        }
    }
    event
}

#[track_caller]
fn taken(body: &str) -> Event {
    let read = admit(
        Mode::Structured,
        None,
        &Attributes::new(),
        body.as_bytes(),
        &envelope(),
    );
    let mut events = read.unwrap_or_else(|refusal| panic!("{body:.200}: {refusal:?}"));
    assert_eq!(events.len(), 1);
    events.remove(0)
}

#[track_caller]
fn refused(body: &str) -> Refusal {
    let read = admit(
        Mode::Structured,
        None,
        &Attributes::new(),
        body.as_bytes(),
        &envelope(),
    );
    read.expect_err("must be refused")
}

/// The event as it travels on.
fn written(event: &Event) -> Value {
    serde_json::to_value(event).unwrap()
}

/// One fault alone, at this pointer, that says this.
#[track_caller]
fn check(more: Value, pointer: &str, says: &str) {
    let refusal = refused(&good(more).to_string());
    let [fault] = &*refusal.faults else {
        panic!("one fault wanted: {refusal:?}");
    };
    let status = if refusal.code == "duplicate_key" {
        400
    } else {
        422
    };
    assert_eq!((fault.pointer.as_str(), refusal.status), (pointer, status));
    assert!(fault.message.contains(says), "{:?}", fault.message);
}

fn headers<'a>(of: &[(&'a str, &'a str)]) -> Attributes<'a> {
    let mut all: Attributes<'a> = [
        ("specversion", "1.0"),
        ("id", "e-1"),
        ("source", "/salon"),
        ("type", "appointment.created"),
        ("tenant", "salon-17"),
    ]
    .map(|(name, value)| (name, Cow::Borrowed(value)))
    .to_vec();
    for (name, value) in of {
        all.retain(|(known, _)| known != name);
        if !value.is_empty() {
            all.push((name, Cow::Borrowed(value)));
        }
    }
    all
}

fn in_headers(of: &[(&str, &str)], kind: &str, body: &[u8]) -> Result<Vec<Event>, Refusal> {
    admit(Mode::Binary, Some(kind), &headers(of), body, &envelope())
}

#[test]
fn every_attribute_becomes_its_field() {
    let all = good(json!({
        "time": "2026-03-01T09:30:00+02:00", "subject": "8812", "status": "confirmed",
        "previousstatus": "pending", "version": 7, "expiresat": "2026-03-02T00:00:00Z",
        "changes": "{\"start_time\":\"10:00\"}", "details": {"salon": {"id": 17}},
        "datacontenttype": "application/json; charset=UTF-8", "dataschema": "urn:x",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "sequence": "1",
        "partitionkey": null,
    }));
    let wanted = json!({
        "id": "e-1", "tenant": "salon-17", "type": "appointment.created",
        "time": "2026-03-01T07:30:00Z", "subject": "8812", "status": "confirmed",
        "previous_status": "pending", "version": 7, "expires_at": "2026-03-02T00:00:00Z",
        "data": {"price": 12.5}, "changes": {"start_time": "10:00"},
        "details": {"salon": {"id": 17}},
    });
    assert_eq!(written(&taken(&all.to_string())), wanted);
}

#[test]
fn data_stays_byte_for_byte() {
    let data = r#"{ "b":1.10,"a" : 1e2, "é":"é" , "n": 12345678901234567890123 }"#;
    let body = format!(
        r#"{{"specversion":"1.0","id":"e","source":"s","type":"a.b","tenant":"t","data": {data} }}"#
    );
    assert_eq!(taken(&body).data.unwrap().get(), data);
    let spaced = format!(" {data}\n");
    let events = in_headers(&[], "application/json", spaced.as_bytes()).unwrap();
    assert_eq!(events[0].data.as_ref().unwrap().get(), data);
    let base64 = STANDARD.encode(data);
    let body = good(json!({"data": null, "data_base64": base64})).to_string();
    assert_eq!(taken(&body).data.unwrap().get(), data);
}

#[test]
fn null_is_an_attribute_that_is_not_set_but_data_like_any_other() {
    let body = r#"{"specversion":"1.0","id":"e","source":"s","type":"a.b","tenant":"t",
        "subject":null,"time":null,"version":null,"data":null}"#;
    let event = taken(body);
    assert_eq!(event.data.unwrap().get(), "null");
    assert_eq!(event.time.to_string(), NOW);
    assert!(event.subject.is_none() && event.version.is_none());
}

#[test]
fn a_deletion_needs_no_data() {
    let gone = json!({"type": "appointment.deleted", "subject": "8790", "data": null});
    assert!(taken(&good(gone).to_string()).data.is_none());
    let events = in_headers(
        &[("type", "appointment.deleted"), ("subject", "8790")],
        "application/json",
        b"",
    );
    assert!(events.unwrap()[0].data.is_none());
    check(
        json!({"type": "appointment.deleted"}),
        "/subject",
        "is required",
    );
}

#[test]
fn what_is_wrong_with_an_attribute_is_told_by_its_cloud_events_name() {
    check(
        json!({"specversion": "0.3"}),
        "/specversion",
        "\"1.0\", got \"0.3\"",
    );
    check(json!({"specversion": 1.0}), "/specversion", "got 1.0");
    check(json!({"specversion": null}), "/specversion", "is required");
    check(json!({"source": null}), "/source", "is required");
    check(json!({"source": ""}), "/source", "must not be empty");
    check(json!({"source": 1}), "/source", "must be a string");
    check(json!({"id": null}), "/id", "is required by CloudEvents");
    check(json!({"id": "a.b"}), "/id", "");
    check(json!({"type": null}), "/type", "is required");
    check(
        json!({"type": "com.example.appointment.created"}),
        "/type",
        "send `appointment.created`",
    );
    check(json!({"type": "Created"}), "/type", "`entity.action`");
    check(json!({"tenant": null}), "/tenant", "is required");
    check(json!({"data": null}), "/data", "is required");
    check(json!({"time": "yesterday"}), "/time", "RFC 3339");
    check(json!({"expiresat": 5}), "/expiresat", "RFC 3339");
    check(json!({"previousstatus": 5}), "/previousstatus", "a string");
    check(json!({"version": "01"}), "/version", "a whole number");
    check(json!({"version": -1}), "/version", "a whole number");
    check(
        json!({"changes": "start_time"}),
        "/changes",
        "JSON text of an object",
    );
    check(
        json!({"changes": "[1]"}),
        "/changes",
        "must be an object, got an array",
    );
    check(
        json!({"details": [1]}),
        "/details",
        "must be an object, got an array",
    );
    check(json!({"changes": r#"{"a":1,"a":2}"#}), "/changes/a", "");
    check(
        json!({"previous_status": "x"}),
        "/previous_status",
        "did you mean `previousstatus`?",
    );
    check(
        json!({"datacontenttype": "application/xml"}),
        "/datacontenttype",
        "must be JSON",
    );
    check(
        json!({"datacontenttype": "application/json;charset=iso-8859-1"}),
        "/datacontenttype",
        "UTF-8",
    );
    check(
        json!({"data_base64": "e30="}),
        "/data_base64",
        "beside `data`",
    );
    check(
        json!({"data": null, "data_base64": "***"}),
        "/data_base64",
        "base64",
    );
    check(
        json!({"data": null, "data_base64": STANDARD.encode("hello")}),
        "/data_base64",
        "must hold JSON",
    );
    check(
        json!({"data": null, "data_base64": STANDARD.encode(r#"{"a":1,"a":2}"#)}),
        "/data_base64/a",
        "",
    );
}

#[test]
fn everything_wrong_is_told_at_once_and_once() {
    let refusal = refused(r#"{"specversion":"2.0","type":"a.b.c","version":"x","data_base64":1}"#);
    let mut pointers: Vec<_> = refusal.faults.iter().map(|fault| &*fault.pointer).collect();
    pointers.sort_unstable();
    let wanted = [
        "/data_base64",
        "/id",
        "/source",
        "/specversion",
        "/tenant",
        "/type",
        "/version",
    ];
    assert_eq!(pointers, wanted, "{refusal:?}");
}

#[test]
fn a_batch_is_taken_whole_or_told_by_index() {
    let batch = |events: Value| {
        admit(
            Mode::Batch,
            None,
            &Attributes::new(),
            events.to_string().as_bytes(),
            &envelope(),
        )
    };
    let other = json!({"id": "e-2"});
    let events = batch(json!([good(json!({})), good(other.clone())])).unwrap();
    let ids: Vec<_> = events.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids, ["e-1", "e-2"]);
    let pointers = |events: Value| {
        let refusal = batch(events).expect_err("must be refused");
        let pointers: Vec<_> = refusal.faults.into_iter().map(|f| f.pointer).collect();
        pointers.join(" ")
    };
    let bad = json!([
        good(other),
        good(json!({"previousstatus": 1, "source": null})),
        7
    ]);
    assert_eq!(pointers(bad), "/1/source /1/previousstatus /2");
    assert_eq!(pointers(json!([good(json!({})), good(json!({}))])), "/1/id");
    assert_eq!(pointers(good(json!({}))), "");
    assert_eq!(pointers(json!([])), "");
}

#[test]
fn headers_carry_what_the_body_does_not() {
    let more = [
        ("time", "1772357400000"),
        ("expiresat", "2026-03-02T09:30:00.5Z"),
        ("subject", "10"),
        ("status", "confirmed \"now\""),
        ("previousstatus", "pending"),
        ("version", "18446744073709551615"),
        ("changes", r#"{"a":1.0}"#),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ];
    let events = in_headers(&more, "application/vnd.salon+json", b"[1, 2]").unwrap();
    let wanted = json!({
        "id": "e-1", "tenant": "salon-17", "type": "appointment.created",
        "time": "2026-03-01T09:30:00Z", "expires_at": "2026-03-02T09:30:00.5Z", "subject": "10", "status": "confirmed \"now\"",
        "previous_status": "pending", "version": u64::MAX, "changes": {"a": 1.0}, "data": [1, 2],
    });
    assert_eq!(written(&events[0]), wanted);
}

#[test]
fn a_binary_message_is_refused_as_any_other() {
    let pointers = |of: &[(&str, &str)], kind, body: &[u8]| {
        let refusal = in_headers(of, kind, body).expect_err("must be refused");
        let pointers: Vec<_> = refusal.faults.iter().map(|f| f.pointer.as_str()).collect();
        (refusal.code, refusal.status, pointers.join(" "))
    };
    let invalid = |at: &str| ("invalid_event", 422, at.to_owned());
    let json = "application/json";
    assert_eq!(
        pointers(&[("id", ""), ("source", "")], "text/plain", b"hello"),
        invalid("/source /datacontenttype /id")
    );
    assert_eq!(pointers(&[("data", "{}")], json, b"1"), invalid("/data"));
    assert_eq!(pointers(&[], json, b""), invalid("/data"));
    assert_eq!(pointers(&[], json, b"{").0, "bad_json");
    assert_eq!(
        pointers(&[], json, b"\xff\xff"),
        ("bad_utf8", 400, "".into())
    );
    let twice = [headers(&[]), headers(&[])].concat();
    let refusal = admit(Mode::Binary, Some(json), &twice, b"1", &envelope());
    assert_eq!(refusal.expect_err("twice").faults.len(), 5);
    let big = vec![b' '; EVENT_BYTES_MAX];
    assert_eq!(pointers(&[], json, &big).1, 413);
}

#[test]
fn a_value_as_deep_as_can_be_is_too_deep_inside_of_an_event() {
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let events = in_headers(&[], "application/json", deep(63).as_bytes());
    let read = super::super::admit(
        &serde_json::to_vec(&events.unwrap()[0]).unwrap(),
        &envelope(),
    );
    read.expect("what is taken here is taken by the router");
    let refusal = in_headers(&[], "application/json", deep(64).as_bytes());
    assert_eq!(refusal.expect_err("too deep").code, "too_deep");
}

#[test]
fn the_mode_is_told_by_content_type_then_headers() {
    let none = Attributes::new();
    let of = |kind: &str| mode(Some(kind), &none);
    assert_eq!(
        of("Application/CloudEvents+json; charset=utf-8"),
        Some(Mode::Structured)
    );
    assert_eq!(of(BATCH), Some(Mode::Batch));
    assert_eq!(of("application/json"), None);
    assert_eq!(mode(None, &none), None);
    let all = headers(&[]);
    assert_eq!(mode(Some("text/plain"), &all), Some(Mode::Binary));
    assert_eq!(mode(Some(STRUCTURED), &all), Some(Mode::Structured));
    let noise = vec![("thing", Cow::Borrowed("1"))];
    assert_eq!(mode(None, &noise), None);
    assert!(is_foreign(Some("application/cloudevents+avro")));
    assert!(!is_foreign(Some(STRUCTURED)) && !is_foreign(Some("application/json")));
}

#[test]
fn header_names_and_values_are_those_of_the_bindings() {
    assert_eq!(of_http_header("CE-Id"), Some("Id"));
    assert_eq!(of_http_header("cell"), None);
    for name in [
        "cloudEvents:id",
        "cloudEvents_id",
        "cloudevents_id",
        "ce-id",
    ] {
        assert_eq!(of_amqp_header(name), Some("id"), "{name}");
    }
    assert_eq!(of_amqp_header("x-postrider-via"), None);
    for (value, text) in [
        ("plain", "plain"),
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("100%", "100%"),
        ("%zz%2", "%zz%2"),
        ("%2520", "%20"),
        (r#""a \"b\" %25""#, r#"a "b" %"#),
        (r#"{"a":"b"}"#, r#"{"a":"b"}"#),
        ("\"", "\""),
    ] {
        assert_eq!(
            of_http_value(value.as_bytes()).as_deref(),
            Some(text),
            "{value}"
        );
    }
    assert_eq!(of_http_value(b"%ff"), None);
}

proptest::proptest! {
    /// Whatever an event may hold, its CloudEvents form is the same event.
    #[test]
    fn both_forms_are_the_same_event(
        status in "[ -~é€]{0,20}", version in proptest::num::u64::ANY, data in "[ -~é\\n]{0,40}",
    ) {
        let data = json!({"text": data}).to_string();
        let version = version.to_string();
        let changes = json!({"status": status}).to_string();
        let native = format!(
            r#"{{"id":"e-1","tenant":"salon-17","type":"appointment.created","status":{},
                "version":{version},"changes":{changes},"data":{data}}}"#,
            json!(status)
        );
        let native = super::super::admit(native.as_bytes(), &envelope()).unwrap();
        let mut attributes = headers(&[("version", &version), ("changes", &changes)]);
        attributes.push(("status", Cow::Borrowed(&status)));
        let read = admit(Mode::Binary, None, &attributes, data.as_bytes(), &envelope()).unwrap();
        proptest::prop_assert_eq!(written(&native), written(&read[0]));
        let body = good(json!({
            "status": status, "version": version, "changes": changes,
            "data": serde_json::from_str::<Value>(&data).unwrap(),
        }));
        proptest::prop_assert_eq!(written(&native), written(&taken(&body.to_string())));
    }
}
