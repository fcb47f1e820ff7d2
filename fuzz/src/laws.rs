//! What must hold for any bytes at all, a function for each target.
//!
//! The fuzzer calls them (`make fuzz`), and so does an ordinary test, over the corpus and thousands
//! of mutations of it (`tests/src/fuzzed.rs`). A law that does not hold panics.

use std::{net::IpAddr, sync::LazyLock};

use dialect::Dialects;
use event::{
    Event, EventId, Subscription,
    admission::{self, Envelope},
    event::{EVENT_BYTES_MAX, FILLED_IN_BYTES_MAX},
    fault::Refusal,
    filter::Filter,
    retry_after,
    subscription::{self, FilterSpec, Rules},
    target::TargetRules,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use url::Host;

/// A target: its name, which is also its corpus' folder, and its law.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// Every target.
pub(crate) const TARGETS: [Target; 6] = [
    ("admission", admission),
    ("target_url", target_url),
    ("headers", headers),
    ("retry_after", retry_after),
    ("filter", filter),
    ("dialect", dialect),
];

/// The clock stands still, so that what was found once is found again.
fn now() -> Timestamp {
    Timestamp::from_second(1_772_366_400).expect("a second of the year 2026")
}

fn envelope() -> Envelope<'static> {
    Envelope {
        now: now(),
        message_id: None,
        tenant: None,
        fresh_id: Some(|| EventId::parse("fresh").expect("an id")),
    }
}

/// Bytes are an event, or are refused with a reason; what is an event keeps its data byte for byte,
/// and is read as the same event behind our queues.
fn admission(data: &[u8]) {
    match admission::admit(data, &envelope()) {
        Ok(event) => kept(data, &event),
        Err(refusal) => told(data, &refusal),
    }
    for ndjson in [false, true] {
        match admission::admit_many(data, ndjson, &envelope()) {
            Ok(events) => events.iter().for_each(|event| kept(data, event)),
            Err(refusal) => told(data, &refusal),
        }
    }
}

fn kept(published: &[u8], event: &Event) {
    let published = std::str::from_utf8(published).expect("an event is text");
    let views = [&event.data, &event.changes, &event.details];
    for view in views.into_iter().flatten() {
        assert!(
            published.contains(view.get()),
            "a view is not what was published"
        );
        let read: Result<serde::de::IgnoredAny, _> = serde_json::from_str(view.get());
        assert!(read.is_ok(), "a view that another parser does not read");
    }
    let written = serde_json::to_vec(event).expect("an event is JSON");
    assert!(
        written.len() <= EVENT_BYTES_MAX + FILLED_IN_BYTES_MAX,
        "an event that grew"
    );
    let again = admission::admit_own(&written, false, &envelope());
    let again = again
        .expect("what was taken once is taken by the router")
        .remove(0);
    let rewritten = serde_json::to_vec(&again).expect("an event is JSON");
    assert_eq!(written, rewritten, "an event that changed on its way");
}

fn told(published: &[u8], refusal: &Refusal) {
    assert!((400..500).contains(&refusal.status), "{refusal:?}");
    assert!(
        !refusal.code.is_empty() && !refusal.detail.is_empty(),
        "{refusal:?}"
    );
    assert!(!refusal.faults.is_empty(), "no fault is named: {refusal:?}");
    let said: usize = refusal
        .faults
        .iter()
        .map(|f| f.pointer.len() + f.message.len())
        .sum();
    assert!(
        said + refusal.detail.len() < 256 * 1024,
        "a refusal without an end"
    );
    let texts = refusal.faults.iter().flat_map(|f| [&f.pointer, &f.message]);
    for text in texts.chain([&refusal.detail]) {
        assert!(
            !text.chars().any(char::is_control),
            "a line break in a log: {text:?}"
        );
    }
    if let Some(at) = refusal.position {
        assert!(
            at.byte <= published.len() && at.line >= 1 && at.column >= 1,
            "{at:?}"
        );
    }
    // Every refusal has its place in the closed set.
    _ = admission::quarantine_reason(refusal);
}

/// A URL that is taken has a host that may be dialled, carries no credentials, and is the same URL
/// when it is read again.
fn target_url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for (require_https, allow) in [(true, ""), (false, ""), (true, "127.0.0.0/8")] {
        let allow = allow.parse().into_iter().collect();
        let rules = TargetRules {
            allow,
            require_https,
            ..TargetRules::default()
        };
        let Ok(url) = rules.check_url(text) else {
            continue;
        };
        assert!(["http", "https"].contains(&url.scheme()), "{url}");
        assert!(
            url.username().is_empty() && url.password().is_none(),
            "{url}"
        );
        assert!(url.fragment().is_none(), "{url}");
        let (address, name) = match url.host() {
            Some(Host::Ipv4(v4)) => (Some(IpAddr::V4(v4)), ""),
            Some(Host::Ipv6(v6)) => (Some(IpAddr::V6(v6)), ""),
            Some(Host::Domain(name)) => (None, name),
            None => panic!("{url} has no host"),
        };
        if let Some(address) = address {
            assert!(rules.permits(address), "{url}");
            assert!(rules.permits(address.to_canonical()), "{url}");
        } else {
            // No system's resolver takes it for an address.
            assert!(name.parse::<IpAddr>().is_err(), "{url}");
            assert!(name == "localhost" || name.contains('.'), "{url}");
            assert!(name != "localhost" || !rules.allow.is_empty(), "{url}");
        }
        let exempt = !rules.allow.is_empty();
        assert!(url.scheme() == "https" || !require_https || exempt, "{url}");
        let again = rules.check_url(url.as_str());
        assert_eq!(again.as_ref(), Ok(&url), "read again it is another URL");
        assert!(
            url.as_str().parse::<http::Uri>().is_ok(),
            "{url} cannot be asked for"
        );
    }
}

/// Headers of which a receiver, or a machine on the way, would take the request for another one.
const NEVER: [&str; 12] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "expect",
    "content-type",
    "x-forwarded-for",
    "webhook-signature",
    "metadata-flavor",
];

/// Lines of `name: value`: the headers that are taken can be sent as they are.
fn headers(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut headers = serde_json::Map::new();
    for line in text.split('\u{1}').take(32) {
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        headers.insert(name.to_owned(), value.into());
    }
    let body = json!({
        "tenant": "t", "target_url": "https://example.com/", "events": ["*"], "headers": headers,
    });
    let Ok(taken) = written(&body) else {
        return;
    };
    let mut bytes = 0;
    for (name, value) in &taken.headers {
        let lower = name.to_ascii_lowercase();
        assert!(!NEVER.contains(&lower.as_str()), "{name} is taken");
        assert!(
            lower.parse::<http::HeaderName>().is_ok(),
            "{name:?} cannot be sent"
        );
        let value = http::HeaderValue::from_str(value);
        bytes += name.len() + value.expect("a value that can be sent").len();
    }
    assert!(
        taken.headers.len() <= 20 && bytes <= 8 * 1024,
        "{bytes} bytes of headers"
    );
}

fn written(body: &Value) -> Result<Subscription, Refusal> {
    let target = TargetRules::default();
    let rules = Rules {
        target: &target,
        dialects: &*DIALECTS,
        tenant: None,
    };
    let text = body.to_string();
    subscription::parse_new(text.as_bytes(), &rules, now()).map(|(subscription, _, _)| subscription)
}

static DIALECTS: LazyLock<Dialects> = LazyLock::new(Dialects::builtin);

/// A pause lies ahead, and not absurdly far.
fn retry_after(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(pause) = retry_after::read(text, now()) {
        assert!(pause > SignedDuration::ZERO, "{text:?}");
        assert!(pause <= SignedDuration::from_hours(24 * 366), "{text:?}");
        assert!(now().checked_add(pause).is_ok(), "{text:?}");
    }
}

/// An expression, a zero byte, and an event's data: an expression that is taken has an end, and
/// judges the same event alike.
fn filter(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (expression, data) = text.split_once('\0').unwrap_or((text, "{\"price\":1}"));
    let spec = FilterSpec {
        expression: Some(expression.to_owned()),
        ..FilterSpec::default()
    };
    let filter = match Filter::compile(&spec) {
        Ok(filter) => filter,
        Err(faults) => {
            for fault in faults {
                assert_eq!(fault.pointer, "/where", "{fault:?}");
                assert!(
                    !fault.message.is_empty() && fault.message.len() < 4096,
                    "{fault:?}"
                );
            }
            return;
        }
    };
    let Some(event) = event_of(data) else {
        return;
    };
    let judged = filter.judge(&event);
    assert_eq!(
        judged,
        filter.judge(&event),
        "the same event is judged alike"
    );
    if let Err(stopped) = judged {
        assert_eq!(stopped.clause, "where");
        assert!(stopped.detail.len() < 4096, "{}", stopped.detail.len());
    }
}

fn event_of(data: &str) -> Option<Event> {
    let body = format!(
        "{{\"id\":\"e\",\"tenant\":\"t\",\"type\":\"appointment.created\",\"data\":{data}}}"
    );
    admission::admit(body.as_bytes(), &envelope()).ok()
}

/// A byte that chooses a dialect and a view, and an event: what is written can be sent, and where
/// it says that it is JSON, it is.
fn dialect(data: &[u8]) {
    let Some((choice, body)) = data.split_first() else {
        return;
    };
    let Ok(event) = admission::admit(body, &envelope()) else {
        return;
    };
    let names = DIALECTS.names();
    let name = names[usize::from(*choice) % names.len()];
    let view = ["basic", "full", "extended"][usize::from(*choice) / names.len() % 3];
    let subscription = json!({
        "id": "sub_1", "tenant": "t", "name": "a \"name\"\r\n", "dialect": name, "view": view,
        "target_url": "https://example.com/", "events": ["*"], "filter": {}, "headers": {},
        "attributes": {"site_name": "</script>\u{2028}"}, "delivery": {"retry": "none"},
        "state": "active", "created_at": "2026-03-01T10:00:00Z",
        "updated_at": "2026-03-01T10:00:00Z", "revision": 1,
    });
    let subscription: Subscription =
        serde_json::from_value(subscription).expect("a subscription as it is stored");
    let speaker = DIALECTS
        .speaker(&subscription)
        .expect("a dialect that is built in");
    let judged = speaker.judge(&event);
    _ = speaker.missing_view(&event);
    let Ok(rendered) = speaker.render(&event, None, &subscription) else {
        return;
    };
    assert!(judged.is_ok(), "an event that is not said was written");
    assert!(rendered.body.len() <= 1024 * 1024, "a body without an end");
    let kind = http::HeaderValue::from_str(&rendered.content_type);
    assert!(kind.is_ok(), "{:?}", rendered.content_type);
    if rendered.content_type.contains("json") {
        let read: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(&rendered.body);
        assert!(
            read.is_ok(),
            "{name}: {}",
            String::from_utf8_lossy(&rendered.body)
        );
    }
    for (name, value) in &rendered.headers {
        assert!(name.parse::<http::HeaderName>().is_ok(), "{name:?}");
        assert!(
            http::HeaderValue::from_str(value).is_ok(),
            "{name}: {value:?}"
        );
    }
}
