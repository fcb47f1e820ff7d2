//! What a person may write, and what is said about the rest.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{words::Canonical, *};
use crate::Refusal;

mod dialects;

const DIALECTS: &Canonical<'_> = &Canonical(&["standard", "vagaro"]);

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn later() -> Timestamp {
    "2026-03-02T12:00:00Z".parse().unwrap()
}

/// Parses against the rules of a server that allows loopback.
fn create_for(
    tenant: Option<&Tenant>,
    body: &Value,
) -> Result<(Subscription, SigningChoice), Refusal> {
    let target = TargetRules {
        allow: vec!["127.0.0.0/8".parse().unwrap()],
        require_https: true,
        ..TargetRules::default()
    };
    let rules = Rules {
        target: &target,
        dialects: DIALECTS,
        tenant,
    };
    parse_new(body.to_string().as_bytes(), &rules, now())
        .map(|(subscription, signing, _)| (subscription, signing))
}

#[track_caller]
fn created(body: Value) -> Subscription {
    create_for(None, &body)
        .unwrap_or_else(|refusal| panic!("{body}: {refusal:?}"))
        .0
}

fn patch(current: &Subscription, body: &Value) -> Result<Subscription, Refusal> {
    let target = TargetRules {
        allow: vec!["127.0.0.0/8".parse().unwrap()],
        require_https: true,
        ..TargetRules::default()
    };
    let rules = Rules {
        target: &target,
        dialects: DIALECTS,
        tenant: None,
    };
    parse_patch(body.to_string().as_bytes(), current, &rules, later())
}

/// The smallest subscription with `fields` added or put in the place of its own.
fn with(fields: Value) -> Value {
    let mut body = json!({
        "tenant": "salon-17", "target_url": "https://example.com/hooks", "events": ["*"]
    });
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn full() -> Value {
    json!({
        "tenant": "salon-17",
        "name": "CRM sync",
        "target_url": "https://example.com/hooks",
        "dialect": "standard",
        "events": ["appointment.*", "payment.paid", "customer.saved"],
        "filter": {
            "actions": ["created", "updated"],
            "statuses": ["confirmed"],
            "changed_fields": ["start_time"],
            "where": "event.data.price > 100"
        },
        "view": "extended",
        "headers": { "x-api-key": "secret-1", "authorization": "Bearer abc" },
        "attributes": { "site_name": "Salon" },
        "redact": [],
        "delivery": {
            "timeout": "15s",
            "retry": { "delays": ["5s", "1m"] },
            "max_in_flight": 4,
            "rate_limit": "50/s",
            "ordering": "latest",
            "disable_after": {"failures": 10, "for": "36h"}
        }
    })
}

/// Every fault as `pointer message`.
fn faults(refusal: Refusal) -> Vec<String> {
    assert_eq!(
        (refusal.code, refusal.status),
        ("invalid_subscription", 422),
        "{refusal:?}"
    );
    refusal
        .faults
        .iter()
        .map(|fault| format!("{} {}", fault.pointer, fault.message))
        .collect()
}

#[track_caller]
fn refused(fields: Value, says: &str) {
    let told = faults(create_for(None, &with(fields.clone())).expect_err("must be refused"));
    assert_eq!(told.len(), 1, "{fields}: {told:?}");
    assert!(
        told[0].contains(says),
        "{fields}: {told:?} does not say {says:?}"
    );
}

#[test]
fn a_subscription_is_shown_as_it_was_written() {
    let mut shown = serde_json::to_value(created(full())).unwrap();
    let fields = shown.as_object_mut().unwrap();
    assert!(
        fields
            .remove("id")
            .unwrap()
            .as_str()
            .unwrap()
            .starts_with("sub_")
    );
    assert_eq!(fields.remove("state").unwrap(), "active");
    assert_eq!(fields.remove("created_at").unwrap(), "2026-03-01T12:00:00Z");
    assert_eq!(fields.remove("updated_at").unwrap(), "2026-03-01T12:00:00Z");
    assert_eq!(fields.remove("revision").unwrap(), 0);
    assert_eq!(shown, full());
}

#[test]
fn a_subscription_survives_the_store() {
    let subscription = created(full());
    let stored = serde_json::to_string(&subscription).unwrap();
    assert_eq!(
        serde_json::from_str::<Subscription>(&stored).unwrap(),
        subscription
    );
}

#[test]
fn what_is_left_out_has_its_default() {
    let shown = serde_json::to_value(created(with(json!({})))).unwrap();
    assert_eq!(shown["name"], "");
    assert_eq!(shown["dialect"], "standard");
    assert_eq!(
        shown["filter"],
        json!({"actions": [], "statuses": [], "changed_fields": []})
    );
    assert_eq!(shown["view"], "full");
    assert_eq!(shown["redact"], json!([]));
    let delivery = json!({"timeout": "20s", "retry": "standard", "max_in_flight": 16, "ordering": "none",
            "disable_after": {"for": "5d"}});
    assert_eq!(shown["delivery"], delivery);
}

#[test]
fn a_body_that_is_no_subscription_is_refused_like_an_event() {
    let target = TargetRules::default();
    let rules = Rules {
        target: &target,
        dialects: DIALECTS,
        tenant: None,
    };
    let code = |body: &[u8]| {
        let refusal = parse_new(body, &rules, now()).unwrap_err();
        (refusal.code, refusal.status)
    };
    assert_eq!(code(b""), ("empty_body", 400));
    assert_eq!(code(b"{"), ("bad_json", 400));
    assert_eq!(code(b"[]"), ("not_object", 422));
    assert_eq!(code(b"\xff"), ("bad_utf8", 400));
    assert_eq!(code(&vec![b' '; 300_000]), ("too_large", 413));
    assert_eq!(code(&[b'['].repeat(100_000)), ("too_deep", 422));
    let twice = br#"{"name":"a","name":"b","target_url":"\ud800"}"#;
    let refusal = parse_new(twice, &rules, now()).unwrap_err();
    let pointers: Vec<&str> = refusal
        .faults
        .iter()
        .map(|fault| fault.pointer.as_str())
        .collect();
    assert_eq!(pointers, ["/target_url", "/name"]);
}

#[test]
fn every_fault_is_named_at_once() {
    let body = json!({
        "nam": "x", "revision": 3, "state": "paused", "dialect": "vagarro", "view": "ful",
        "target_url": "http://example.com:25/", "events": ["appointment.*", 5, "Nope"],
        "filter": {"where": "1 +", "action": []}, "headers": {"Host": "x", "x-a": 1},
        "delivery": {"timeout": "40s", "retry": "standart", "max_in_flight": 0,
            "rate_limit": "fast", "ordering": "strict", "disable_after": {"failures": 0},
            "timout": 1},
        "redact": ["/data"], "attributes": {"a b": "x"}, "signing": ["v2"]
    });
    let told = faults(create_for(None, &body).unwrap_err());
    let expected = [
        "/nam unknown field `nam`; did you mean `name`?",
        "/revision is read-only",
        "/state is changed by the pause and resume routes",
        "/filter/action unknown field `action`; did you mean `actions`?",
        "/delivery/timout unknown field `timout`; did you mean `timeout`?",
        "/tenant is required",
        "/signing/0 must be `v1` or `v1a`",
        "/target_url must begin with `https://`",
        "/target_url port 25",
        "/dialect unknown dialect `vagarro`; did you mean `vagaro`?",
        "/events/1 must be a string, got a number",
        "/events/2 must be `*`, `entity.*`",
        "/filter/where line 1, column",
        "/view must be `basic`, `full` or `extended`; did you mean `full`?",
        "/headers/Host is not a header that a subscription may set",
        "/headers/x-a must be a string, got a number",
        "/attributes/a b the name must be",
        "/redact/0 must point into /data, /changes or /details",
        "/delivery/timeout must be a duration from \"1s\" to \"30s\"",
        "/delivery/retry no retry policy is named `standart`; did you mean `standard`?",
        "/delivery/max_in_flight must be a whole number from 1 to 256",
        "/delivery/rate_limit must be `N/s`",
        "/delivery/ordering strict ordering is reserved and does not exist yet",
        "/delivery/disable_after `failures` must be a whole number from 1 to 100000",
    ];
    for wanted in expected {
        assert!(
            told.iter().any(|fault| fault.starts_with(wanted)),
            "{wanted}: {told:#?}"
        );
    }
    assert_eq!(told.len(), expected.len(), "{told:#?}");
}

#[test]
fn fields_have_their_bounds() {
    refused(
        json!({"name": "x".repeat(201)}),
        "/name must be at most 200 characters, got 201",
    );
    refused(
        json!({"name": "a\nb"}),
        "/name must not contain control characters",
    );
    refused(json!({"name": 5}), "/name must be a string, got a number");
    refused(
        json!({"target_url": 5}),
        "/target_url must be a string, got a number",
    );
    refused(json!({"target_url": null}), "/target_url is required");
    refused(
        json!({"target_url": "https://10.0.0.1/"}),
        "/target_url target_not_allowed",
    );
    refused(
        json!({"events": []}),
        "/events must have 1 to 100 entries, got 0",
    );
    refused(
        json!({"events": vec!["*"; 101]}),
        "/events must have 1 to 100 entries, got 101",
    );
    refused(json!({"events": "*"}), "/events must be an array");
    refused(
        json!({"filter": []}),
        "/filter must be an object, got an array",
    );
    refused(
        json!({"filter": {"where": 5}}),
        "/filter/where must be a string, got a number",
    );
    refused(
        json!({"filter": {"actions": ["created", 1]}}),
        "/filter/actions/1 must be a string",
    );
    refused(
        json!({"filter": {"actions": ["Created"]}}),
        "/filter/actions/0 must be an action",
    );
    refused(
        json!({"attributes": {"a": "x".repeat(1025)}}),
        "/attributes/a must be at most 1024",
    );
    refused(json!({"delivery": {"timeout": 20}}), "/delivery/timeout");
    refused(
        json!({"delivery": {"timeout": "999ms"}}),
        "/delivery/timeout",
    );
    refused(
        json!({"delivery": {"ordering": "sttrict"}}),
        "did you mean `strict`?",
    );
    refused(json!({"delivery": {"max_in_flight": 257}}), "from 1 to 256");
    refused(
        json!({"delivery": {"rate_limit": "0/s"}}),
        "/delivery/rate_limit",
    );
    refused(
        json!({"redact": ["/data/a", "/data/b~2"]}),
        "/redact/1 must be a JSON pointer",
    );
    let pointers: Vec<_> = (0..51).map(|n| format!("/data/{n}")).collect();
    refused(
        json!({"redact": pointers}),
        "/redact must have at most 50 entries, got 51",
    );
    refused(
        json!({"redact": {}}),
        "/redact must be an array of strings, got an object",
    );
    refused(json!({"id": "sub_1"}), "/id is read-only");
    refused(
        json!({"disabled_reason": "x"}),
        "/disabled_reason is read-only",
    );
    refused(json!({"secret": "whsec_x"}), "/secret must be `whsec_`");
    let seed = format!("whsk_{}=", "A".repeat(43));
    refused(json!({"secret": seed}), "/secret must be `whsec_`");
    let key = format!("whsec_{}", "A".repeat(32));
    refused(
        json!({"secret": key, "signing": ["v1a"]}),
        "/secret is a key of `v1`",
    );
    refused(json!({"tenant": null}), "/tenant is required");
    refused(json!({"nam": null}), "did you mean `name`?");
    refused(json!({"signing": []}), "/signing must name");
    for fine in [
        json!({"delivery": {"timeout": "1s"}}),
        json!({"delivery": {"timeout": "30s", "rate_limit": null}}),
        json!({"filter": {"where": null, "actions": null}}),
        json!({"redact": ["/data/customer/email", "/details/"]}),
        json!({"filter": null, "delivery": null, "view": null, "headers": null, "name": null}),
        json!({"delivery": {"retry": null, "timeout": null}, "redact": null, "signing": null}),
        json!({"secret": format!("whsec_{}", "A".repeat(32))}),
        json!({"state": "active"}),
        json!({"target_url": "http://127.0.0.1:9/x"}),
        json!({"target_url": "http://localhost:9/x"}),
    ] {
        created(with(fine));
    }
}

#[test]
fn signatures_are_chosen_at_creation() {
    let choice = |fields| create_for(None, &with(fields)).unwrap().1;
    assert_eq!(
        choice(json!({})),
        SigningChoice {
            v1: true,
            v1a: false
        }
    );
    assert_eq!(
        choice(json!({"signing": ["v1a"]})),
        SigningChoice {
            v1: false,
            v1a: true
        }
    );
    assert_eq!(
        choice(json!({"signing": ["v1a", "v1"]})),
        SigningChoice {
            v1: true,
            v1a: true
        }
    );
}

#[test]
fn a_bound_caller_stays_with_its_tenant() {
    let own = Tenant::parse("salon-17").unwrap();
    let other = Tenant::parse("salon-18").unwrap();
    assert!(create_for(Some(&own), &with(json!({}))).is_ok());
    let refusal = create_for(Some(&other), &with(json!({}))).unwrap_err();
    assert!(!format!("{refusal:?}").contains("salon"), "{refusal:?}");
    assert_eq!(
        faults(refusal),
        ["/tenant is not the tenant that the caller may manage"]
    );
    let mut without = with(json!({}));
    without.as_object_mut().unwrap().remove("tenant");
    assert_eq!(create_for(Some(&other), &without).unwrap().0.tenant, other);
}

#[test]
fn a_client_is_a_customer_and_an_entry_stands_once() {
    let subscription = created(with(
        json!({"events": ["client.*", "customer.*", "client.created", "custom.onAdd"]}),
    ));
    let shown = serde_json::to_value(&subscription.events).unwrap();
    assert_eq!(
        shown,
        json!(["customer.*", "customer.created", "custom.onAdd"])
    );
}

#[test]
fn headers_that_change_the_request_are_refused() {
    for name in [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "te",
        "trailer",
        "connection",
        "keep-alive",
        "upgrade",
        "expect",
        "proxy-authorization",
        "Proxy-X",
        "forwarded",
        "x-forwarded-for",
        "x-real-ip",
        "via",
        "content-type",
        "content-encoding",
        "user-agent",
        "date",
        "cookie",
        "webhook-id",
        "Webhook-Signature",
        "x-postrider-attempt",
        "x-amz-date",
        "x-aws-ec2-metadata-token",
        "metadata",
        "metadata-flavor",
        "x-google-metadata-request",
        "x-goog-x",
        "x-ms-version",
        "x-azure-ref",
        "x-original-url",
        "x-rewrite-url",
        "x-http-method-override",
        "sec-fetch-mode",
    ] {
        refused(json!({"headers": {name: "x"}}), "may set");
    }
    for name in ["", "a b", "a:b", "é", "a\r\nb", &"x".repeat(65)] {
        refused(json!({"headers": {name: "x"}}), "the name must be");
    }
    for value in ["a\r\nb", "a\0", "é", "\u{7f}"] {
        refused(
            json!({"headers": {"x-a": value}}),
            "/headers/x-a the value must be visible ASCII",
        );
    }
    refused(json!({"headers": {"x-a": " a"}}), "begin or end");
    refused(
        json!({"headers": {"x-a": "v".repeat(4097)}}),
        "at most 4096 bytes, got 4097",
    );
    refused(json!({"headers": {"X-A": "1", "x-a": "2"}}), "given twice");
    refused(
        json!({"headers": {"x-a": "***"}}),
        "/headers/x-a `***` is how a value is hidden",
    );
    let many: serde_json::Map<String, Value> =
        (0..21).map(|n| (format!("x-{n}"), json!("v"))).collect();
    refused(
        json!({"headers": many}),
        "/headers must have at most 20 entries, got 21",
    );
    let large: serde_json::Map<String, Value> = (0..3)
        .map(|n| (format!("x-{n}"), json!("v".repeat(3000))))
        .collect();
    refused(
        json!({"headers": large}),
        "/headers must be at most 8192 bytes together",
    );
    let fine = created(with(
        json!({"headers": {"X-Api-Key": "a\tb c", "Authorization": "Bearer x"}}),
    ));
    let names: Vec<&String> = fine.headers.keys().collect();
    assert_eq!(names, ["authorization", "x-api-key"]);
}

#[test]
fn a_patch_changes_what_it_names_and_nothing_else() {
    let current = created(full());
    assert_eq!(
        patch(&current, &json!({})).unwrap(),
        Subscription {
            updated_at: later(),
            ..current.clone()
        }
    );
    let patched = patch(
        &current,
        &json!({
            "name": "new", "filter": {"where": null, "statuses": []},
            "delivery": {"timeout": "5s", "rate_limit": null}, "attributes": {"site_name": null, "b": "c"}
        }),
    )
    .unwrap();
    assert_eq!(patched.name, "new");
    assert_eq!(patched.filter.expression, None);
    assert_eq!(patched.filter.actions, current.filter.actions);
    assert_eq!(patched.filter.statuses, Vec::<String>::new());
    assert_eq!(patched.delivery.timeout, Duration::from_secs(5));
    assert_eq!(patched.delivery.rate_limit, None);
    assert_eq!(patched.delivery.retry, current.delivery.retry);
    assert_eq!(
        patched.attributes,
        BTreeMap::from([("b".into(), "c".into())])
    );
    assert_eq!(
        (&patched.id, patched.revision),
        (&current.id, current.revision)
    );
    assert_eq!(patched.headers, current.headers);
    // Null puts back the default, as RFC 7396 has it.
    let reset = patch(
        &current,
        &json!({"filter": null, "delivery": null, "view": null, "name": null}),
    )
    .unwrap();
    assert_eq!(reset.filter, FilterSpec::default());
    assert_eq!(reset.delivery, DeliverySpec::default());
    assert_eq!((reset.view, &*reset.name), (View::Full, ""));
    // A retry policy in another form takes the place of the whole, where merging would mix two.
    let policy = |retry: Value| {
        patch(&current, &json!({"delivery": {"retry": retry}}))
            .unwrap()
            .delivery
            .retry
    };
    assert_eq!(Value::from(policy(json!("none"))), json!("none"));
    let series = json!({"attempts": 3, "first": "1s"});
    assert_eq!(Value::from(policy(series.clone())), series);
}

#[test]
fn a_patch_is_judged_like_a_new_subscription() {
    let current = created(full());
    let told = |body: Value| faults(patch(&current, &body).expect_err("must be refused"));
    assert_eq!(
        told(json!({"tenant": "salon-18"})),
        ["/tenant cannot be changed"]
    );
    assert!(patch(&current, &json!({"tenant": "salon-17"})).is_ok());
    assert!(told(json!({"id": "x", "revision": 1}))[1].starts_with("/revision is read-only"));
    assert!(told(json!({"state": "paused"}))[0].starts_with("/state is changed by"));
    assert!(told(json!({"signing": ["v1"]}))[0].starts_with("/signing is chosen at creation"));
    assert_eq!(
        told(json!({"nam": null})),
        ["/nam unknown field `nam`; did you mean `name`?"]
    );
    assert!(told(json!({"filter": {"wher": null}}))[0].starts_with("/filter/wher unknown field"));
    assert_eq!(
        told(json!({"target_url": null})),
        ["/target_url is required"]
    );
    assert!(told(json!({"events": null}))[0].starts_with("/events is required"));
    assert!(told(json!({"filter": {"where": "x > 1"}}))[0].starts_with("/filter/where"));
    assert!(told(json!({"headers": {"Host": "x"}}))[0].starts_with("/headers/Host"));
    assert!(told(json!({"headers": 5}))[0].starts_with("/headers must be an object"));
    assert!(told(json!({"delivery": 5}))[0].starts_with("/delivery must be an object"));
}

#[test]
fn hidden_header_values_stay_and_new_ones_replace_them() {
    let current = created(full());
    let headers = |body: Value| patch(&current, &json!({"headers": body})).map(|it| it.headers);
    let shown = json!({"x-api-key": "***", "Authorization": "Bearer new", "x-b": "c"});
    let kept = headers(shown).unwrap();
    assert_eq!(kept["x-api-key"], "secret-1");
    assert_eq!(kept["authorization"], "Bearer new");
    assert_eq!(kept["x-b"], "c");
    assert_eq!(headers(json!({"X-API-KEY": null})).unwrap().len(), 1);
    assert_eq!(headers(json!(null)).unwrap().len(), 0);
    let told = faults(headers(json!({"x-other": "***"})).unwrap_err());
    assert!(
        told[0].starts_with("/headers/x-other `***` is how"),
        "{told:?}"
    );
}

#[test]
fn t22_another_host_gets_no_header_that_was_not_sent_for_it() {
    let current = created(full());
    let headers = |body: Value| patch(&current, &body).map(|it| it.headers.len());
    let moved = "https://evil.example.net/hooks";
    assert_eq!(headers(json!({"target_url": moved})), Ok(0));
    assert_eq!(
        headers(json!({"target_url": moved, "headers": {"x-new": "1"}})),
        Ok(1)
    );
    assert_eq!(
        headers(json!({"target_url": "https://sub.example.com/hooks"})),
        Ok(0)
    );
    assert_eq!(
        headers(json!({"target_url": "https://EXAMPLE.com./other?x=1"})),
        Ok(2)
    );
    let refusal =
        headers(json!({"target_url": moved, "headers": {"x-api-key": "***"}})).unwrap_err();
    assert!(faults(refusal)[0].starts_with("/headers/x-api-key `***` is how"));
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "*",
            "***",
            "full",
            "standard",
            "none",
            "strict",
            "20s",
            "5/s",
            "x",
            "appointment.*",
            "created",
            "https://example.org/",
            "http://127.0.0.1/",
            "http://10.0.0.1/",
            "event.data.x > 1",
            "1 +",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let keys = prop::sample::select(vec![
            "tenant",
            "name",
            "target_url",
            "dialect",
            "events",
            "filter",
            "view",
            "headers",
            "attributes",
            "redact",
            "delivery",
            "actions",
            "statuses",
            "changed_fields",
            "where",
            "timeout",
            "retry",
            "max_in_flight",
            "rate_limit",
            "ordering",
            "disable_after",
            "x-api-key",
            "X-Api-Key",
            "Host",
            "delays",
            "id",
            "zzz",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((keys, inner), 0..5).prop_map(|all| all
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn no_patch_makes_a_subscription_that_could_not_be_created(body in any_value()) {
        let current = created(full());
        if let Ok(patched) = patch(&current, &body) {
            let mut again = serde_json::to_value(&patched).unwrap();
            for ours in ["id", "state", "created_at", "updated_at", "revision"] {
                again.as_object_mut().unwrap().remove(ours);
            }
            let remade = created(again);
            prop_assert_eq!(&remade.target_url, &patched.target_url);
            prop_assert_eq!(&remade.filter, &patched.filter);
            prop_assert_eq!(&remade.delivery, &patched.delivery);
            prop_assert_eq!(&remade.headers, &patched.headers);
        }
    }

    #[test]
    fn any_json_is_judged_without_a_panic(body in any_value()) {
        let _judged = create_for(None, &body);
    }
}

#[test]
fn what_was_read_may_be_changed_in_places_and_sent_back_whole() {
    let current = created(full());
    let mut whole = serde_json::to_value(&current).unwrap();
    whole["name"] = "renamed".into();
    for value in whole["headers"].as_object_mut().unwrap().values_mut() {
        *value = "***".into();
    }
    let patched = patch(&current, &whole).unwrap();
    let expected = Subscription {
        name: "renamed".into(),
        updated_at: later(),
        ..current.clone()
    };
    assert_eq!(patched, expected);
    whole["public_key"] = "whpk_x".into();
    assert!(patch(&current, &whole).is_ok());
    whole["revision"] = 99.into();
    let told = faults(patch(&current, &whole).unwrap_err());
    assert_eq!(told, ["/revision is read-only: it is ours to set"]);
    let told = faults(patch(&current, &json!({"secret": "whsec_x"})).unwrap_err());
    assert_eq!(told, ["/secret is changed by rotate-secret"]);
}
