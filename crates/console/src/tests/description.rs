use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use event::{delivery::Purpose, reason::AttemptError, reason::DeliveryState};
use store::jobs::{JobKind, JobState};

use super::*;
use crate::description::{DOCUMENT, POLICY, page};

/// A method and a path.
type Operation = (String, String);

const METHODS: [&str; 7] = ["get", "post", "put", "patch", "delete", "head", "options"];

fn described() -> Value {
    serde_json::from_str(DOCUMENT).unwrap()
}

fn operations(document: &Value) -> BTreeMap<Operation, Value> {
    let mut found = BTreeMap::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            found.insert((method.clone(), path.clone()), operation.clone());
        }
    }
    found
}

/// Every route of a crate, read from its source: axum does not list its routes.
fn routes_of(source: &str) -> BTreeSet<Operation> {
    let mut found = BTreeSet::new();
    for (begin, matched) in source.match_indices(".route(") {
        let mut open = 1;
        let rest = &source[begin + matched.len()..];
        let end = rest.find(|c| {
            open += i32::from(c == '(') - i32::from(c == ')');
            open == 0
        });
        let call = &rest[..end.expect("the call ends")];
        let mut quoted = call.split('"');
        let path = quoted.nth(1).unwrap_or_else(|| panic!("a path in {call}"));
        let handlers = quoted.next().unwrap_or_default();
        let before = found.len();
        for method in METHODS {
            let method_begins = |at: usize| {
                let before = handlers[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
            };
            let called = format!("{method}(");
            if handlers
                .match_indices(&called)
                .any(|(at, _)| method_begins(at))
            {
                found.insert((method.to_owned(), path.to_owned()));
            }
        }
        assert!(found.len() > before, "no method that is known: {call}");
    }
    found
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

#[test]
fn every_route_is_described_and_nothing_else_is() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for name in ["console", "producer"] {
        sources(&crates.join(name).join("src"), &mut files);
    }
    let routes: BTreeSet<_> = files
        .iter()
        .flat_map(|file| routes_of(&fs::read_to_string(file).unwrap()))
        .collect();
    assert!(
        routes.contains(&("post".into(), "/v1/events".into())),
        "{routes:?}"
    );
    let described: BTreeSet<_> = operations(&described()).into_keys().collect();
    let undescribed: Vec<_> = routes.difference(&described).collect();
    assert!(
        undescribed.is_empty(),
        "not in openapi.json: {undescribed:?}"
    );
    let nowhere: Vec<_> = described.difference(&routes).collect();
    assert!(nowhere.is_empty(), "only in openapi.json: {nowhere:?}");
}

#[test]
fn routes_are_read_from_the_source_however_they_are_broken() {
    let source = r#"
        .route("/a", get(one).delete(two)).route(
            "/b/{id}",
            post(budget(three)),
        )"#;
    let wanted = [("delete", "/a"), ("get", "/a"), ("post", "/b/{id}")];
    let wanted = wanted.map(|(method, path)| (method.to_owned(), path.to_owned()));
    assert_eq!(routes_of(source), BTreeSet::from(wanted));
}

/// Whoever asks without a token is answered 401 by each route of ours but the open ones.
#[tokio::test]
async fn what_is_described_is_there_and_asks_for_a_token_where_it_says_so() {
    let api = api().await;
    for ((method, path), operation) in operations(&described()) {
        if (method.as_str(), path.as_str()) == ("post", "/v1/events") {
            continue; // The producer's.
        }
        let at = path.replace(['{', '}'], "");
        let answer = api.call("", &method.to_uppercase(), &at, None).await;
        let wanted = if operation.get("security") == Some(&json!([])) {
            StatusCode::OK
        } else {
            assert!(
                operation["responses"].get("401").is_some(),
                "{method} {path}"
            );
            StatusCode::UNAUTHORIZED
        };
        assert_eq!(answer.status, wanted, "{method} {path}");
    }
}

#[test]
fn every_operation_has_a_name_of_its_own_and_its_path_parameters() {
    let document = described();
    let mut names = BTreeSet::new();
    for ((method, path), operation) in operations(&document) {
        let name = operation["operationId"].as_str().unwrap().to_owned();
        assert!(names.insert(name.clone()), "{name} twice");
        assert!(!operation["summary"].as_str().unwrap().is_empty(), "{name}");
        let none = Vec::new();
        let given = operation["parameters"].as_array().unwrap_or(&none);
        let given: Vec<_> = given
            .iter()
            .filter(|parameter| parameter["in"] == "path")
            .map(|parameter| format!("{{{}}}", parameter["name"].as_str().unwrap()))
            .collect();
        let wanted: Vec<_> = path
            .split('/')
            .filter(|part| part.starts_with('{'))
            .collect();
        assert_eq!(given, wanted, "{method} {path}");
        let tag = &operation["tags"][0];
        let tags = document["tags"].as_array().unwrap();
        assert!(
            tags.iter().any(|known| known["name"] == *tag),
            "{name}: {tag}"
        );
    }
}

/// Calls `visit` with every reference in `value`.
fn references(value: &Value, visit: &mut impl FnMut(&str)) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(to)) = fields.get("$ref") {
                visit(to);
            }
            fields.values().for_each(|field| references(field, visit));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, visit)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_component_is_used() {
    let document = described();
    let mut used = BTreeSet::new();
    references(&document, &mut |to| {
        let pointer = to
            .strip_prefix('#')
            .unwrap_or_else(|| panic!("{to} is elsewhere"));
        assert!(document.pointer(pointer).is_some(), "{to} leads nowhere");
        used.insert(to.to_owned());
    });
    for kind in ["schemas", "parameters", "responses"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            let at = format!("#/components/{kind}/{name}");
            assert!(used.contains(&at), "{at} is used by nothing");
        }
    }
}

#[test]
fn the_closed_sets_are_described_whole() {
    fn check<T: Copy>(name: &str, all: &[T], word: impl Fn(T) -> &'static str) {
        let words: Vec<_> = all.iter().map(|member| word(*member)).collect();
        let described = described();
        assert_eq!(
            described["components"]["schemas"][name]["enum"],
            json!(words),
            "{name}"
        );
    }
    check("DeliveryState", DeliveryState::ALL, DeliveryState::word);
    check("DeadReason", DeadReason::ALL, DeadReason::word);
    check("AttemptError", AttemptError::ALL, AttemptError::word);
    check(
        "QuarantineReason",
        QuarantineReason::ALL,
        QuarantineReason::word,
    );
    check("JobKind", JobKind::ALL, JobKind::word);
    check("JobState", JobState::ALL, JobState::word);
    check("Scope", Scope::ALL, Scope::word);
    check(
        "Purpose",
        &[Purpose::Live, Purpose::Test, Purpose::Replay],
        Purpose::word,
    );
}

#[tokio::test]
async fn the_examples_are_accepted() {
    let document = described();
    let schemas = &document["components"]["schemas"];
    let examples = |name: &str| schemas[name]["examples"].as_array().unwrap().clone();
    let envelope = Envelope {
        now: jiff::Timestamp::now(),
        message_id: None,
        tenant: None,
        fresh_id: None,
    };
    for event in examples("NewEvent") {
        admit(event.to_string().as_bytes(), &envelope).unwrap();
    }
    let api = api().await;
    for subscription in examples("NewSubscription") {
        let made = api
            .call(ADMIN, "POST", "/v1/subscriptions", Some(subscription))
            .await;
        let at = format!(
            "/v1/subscriptions/{}",
            made.expect(201).json()["id"].as_str().unwrap()
        );
        for patch in examples("SubscriptionPatch") {
            api.call(ADMIN, "PATCH", &at, Some(patch)).await.expect(200);
        }
        for replay in examples("Replay") {
            let at = format!("{at}/replay");
            api.call(ADMIN, "POST", &at, Some(replay)).await.expect(200);
        }
    }
    for token in examples("NewToken") {
        api.call(ADMIN, "POST", "/v1/tokens", Some(token))
            .await
            .expect(201);
    }
    for letters in examples("RedriveMany") {
        let at = "/v1/dead-letters/redrive";
        api.call(ADMIN, "POST", at, Some(letters)).await.expect(200);
    }
}

#[test]
fn it_is_of_this_version() {
    assert_eq!(described()["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn the_page_shows_every_operation_and_schema_and_loads_nothing() {
    let answer = api().await.call("", "GET", "/docs", None).await.expect(200);
    assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(answer.headers["content-security-policy"], POLICY);
    let html = String::from_utf8(answer.bytes).unwrap();
    let document = described();
    for operation in operations(&document).values() {
        let id = operation["operationId"].as_str().unwrap();
        assert!(html.contains(&format!("<details id=\"{id}\">")), "{id}");
    }
    for name in document["components"]["schemas"]
        .as_object()
        .unwrap()
        .keys()
    {
        assert!(html.contains(&format!("id=\"schema-{name}\"")), "{name}");
    }
    for loading in ["<script", "<img", "<link", "src=", "url(", "href=\"http"] {
        assert!(!html.contains(loading), "{loading}");
    }
}

#[test]
fn the_page_takes_no_text_for_html() {
    let document = json!({"info": {"title": "<script>", "description": "a `<b>` & \"c\""}});
    let html = page::write(&document);
    assert!(!html.contains("<script>"), "{html}");
    assert!(
        html.contains("a <code>&lt;b&gt;</code> &amp; &quot;c&quot;"),
        "{html}"
    );
}
