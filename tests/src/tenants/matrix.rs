//! T8: every operation of `/openapi.json` × everything of another tenant's that it can be asked for:
//! ids in the path, filters of the query, names in the body; for a token of each scope. The answer
//! is, byte for byte, that to what never was, and nothing in it is the other's.
//!
//! The rows are the document's own: an operation, or a parameter, without one fails the test.

use std::time::{Duration, Instant};

use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::{ADMIN, call, token};
use crate::support::{
    http::encoded,
    receiver::Answer as Reply,
    world::{Kind, World, client},
};

/// Stands in everything that is the other tenant's, and in nothing else.
const CANARY: &str = "canaryb";

/// What one tenant has, or never had.
struct Things {
    tenant: String,
    subscription: String,
    event: String,
    delivery: String,
    letter: String,
    job: String,
    subject: String,
    kind: String,
    target: String,
    cursor: String,
}

/// What an operation has to do with tenants.
#[derive(Clone, Copy)]
enum Row {
    /// The `{id}` is one tenant's; asking needs this scope.
    Of(fn(&Things) -> &str, &'static str),
    /// One tenant's, by other parts of the path; the answer is that nothing was there.
    Elsewhere,
    /// A list that has the other's things for the other.
    Lists,
    /// A list or an action over what it finds by filters.
    Finds,
    /// Belongs to no tenant: 403 whatever is asked for.
    OfNobody,
    /// The same for everybody.
    Common,
    /// Sent as things happen; has a test of its own.
    Live,
}

fn row(operation: &str) -> Row {
    use Row::{Common, Elsewhere, Finds, Lists, Live, Of, OfNobody};
    match operation {
        "GET /v1/events/{id}" => Of(|b| &b.event, "read"),
        "GET /v1/subscriptions/{id}" => Of(|b| &b.subscription, "read"),
        "POST /v1/subscriptions/{id}/explain" => Of(|b| &b.subscription, "read"),
        "PATCH /v1/subscriptions/{id}"
        | "DELETE /v1/subscriptions/{id}"
        | "POST /v1/subscriptions/{id}/pause"
        | "POST /v1/subscriptions/{id}/resume"
        | "POST /v1/subscriptions/{id}/rotate-secret"
        | "POST /v1/subscriptions/{id}/test"
        | "POST /v1/subscriptions/{id}/replay" => Of(|b| &b.subscription, "manage"),
        "GET /v1/deliveries/{id}" => Of(|b| &b.delivery, "read"),
        "POST /v1/deliveries/{id}/retry" => Of(|b| &b.delivery, "manage"),
        "GET /v1/dead-letters/{id}" => Of(|b| &b.letter, "read"),
        "DELETE /v1/dead-letters/{id}" | "POST /v1/dead-letters/{id}/redrive" => {
            Of(|b| &b.letter, "manage")
        }
        "GET /v1/jobs/{id}" => Of(|b| &b.job, "read"),
        "POST /v1/jobs/{id}/cancel" => Of(|b| &b.job, "manage"),
        "DELETE /v1/subjects/{entity}/{id}" => Elsewhere,
        "GET /v1/events"
        | "GET /v1/subscriptions"
        | "GET /v1/deliveries"
        | "GET /v1/dead-letters"
        | "GET /v1/jobs" => Lists,
        "GET /v1/deliveries/periods"
        | "POST /v1/events"
        | "POST /v1/subscriptions"
        | "POST /v1/listeners"
        | "POST /v1/subscriptions/standard/subscribe"
        | "POST /v1/subscriptions/standard/unsubscribe"
        | "POST /v1/dead-letters/redrive" => Finds,
        "GET /v1/quarantine"
        | "GET /v1/quarantine/{id}"
        | "POST /v1/quarantine/{id}/release"
        | "POST /v1/tokens"
        | "GET /v1/tokens"
        | "DELETE /v1/tokens/{id}" => OfNobody,
        "GET /v1/event-types"
        | "GET /v1/dialects"
        | "GET /v1/dialects/{name}"
        | "GET /openapi.json"
        | "GET /docs" => Common,
        "GET /v1/tail"
        | "DELETE /v1/listeners/{id}"
        | "GET /v1/listeners/{id}/requests"
        | "POST /v1/listeners/{id}/taken" => Live,
        new => panic!("{new} has no row: say here what of one tenant's another can ask it for"),
    }
}

/// The bodies that name what is one tenant's, or one that is good where the path names it.
fn bodies(operation: &str, of: &Things) -> Vec<Option<Value>> {
    let some = |bodies: Vec<Value>| bodies.into_iter().map(Some).collect();
    match operation {
        "POST /v1/events" => some(vec![
            json!({"tenant": of.tenant, "type": "a.b", "data": 1}),
            json!([{"type": "a.b", "data": 1}, {"tenant": of.tenant, "type": "a.b", "data": 1}]),
            json!({"id": of.event, "type": "a.b", "time": "2026-01-01T00:00:00Z", "data": 1}),
        ]),
        "POST /v1/subscriptions" => {
            let body = |tenant: &str| json!({"tenant": tenant, "target_url": "https://example.com/", "events": ["*"]});
            some(vec![body(&of.tenant)])
        }
        "POST /v1/listeners" => some(vec![json!({"tenant": of.tenant, "events": ["*"]})]),
        "POST /v1/subscriptions/standard/subscribe"
        | "POST /v1/subscriptions/standard/unsubscribe" => some(vec![
            json!({"tenant": of.tenant, "target_url": of.target, "event": "client/created"}),
        ]),
        "POST /v1/dead-letters/redrive" => some(vec![
            json!({"subscription_id": of.subscription}),
            json!({"tenant": of.tenant}),
            json!({"type": of.kind}),
        ]),
        "POST /v1/tokens" => some(vec![
            json!({"name": "x", "tenant": of.tenant, "scopes": ["read"]}),
        ]),
        "POST /v1/subscriptions/{id}/explain" => some(vec![
            json!({"id": "x", "tenant": of.tenant, "type": "a.b", "data": 1}),
        ]),
        "POST /v1/subscriptions/{id}/replay" => {
            some(vec![json!({"since": "2020-01-01T00:00:00Z"})])
        }
        "PATCH /v1/subscriptions/{id}" => some(vec![json!({"name": "mine"})]),
        "POST /v1/subscriptions/{id}/rotate-secret" | "POST /v1/subscriptions/{id}/test" => {
            some(vec![json!({})])
        }
        _ => vec![None],
    }
}

/// What a parameter of the query can ask for of one tenant's; a word of its own otherwise.
fn values(parameter: &str, of: &Things) -> Vec<String> {
    let one = |value: &str| vec![value.to_owned()];
    match parameter {
        "tenant" => one(&of.tenant),
        "subscription_id" => one(&of.subscription),
        "event_id" => one(&of.event),
        "subject" => one(&of.subject),
        "type" | "types" => one(&of.kind),
        "cursor" => one(&of.cursor),
        "state" => ["active", "delivered", "dead", "done"]
            .map(str::to_owned)
            .into(),
        "reason" => one("exhausted"),
        "kind" => one("replay"),
        "since" => one("2020-01-01T00:00:00Z"),
        "until" => one("2120-01-01T00:00:00Z"),
        "limit" => one("500"),
        "by" => ["day", "month"].map(str::to_owned).into(),
        new => panic!("the parameter {new} has no row: what of one tenant's can it name?"),
    }
}

/// An operation of the document.
struct Operation {
    name: String,
    method: Method,
    path: String,
    query: Vec<String>,
    public: bool,
}

fn operations(document: &Value) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, about) in methods.as_object().expect("methods") {
            let method = method.to_uppercase();
            let parameters = about["parameters"].as_array().cloned().unwrap_or_default();
            let query = parameters.iter().filter_map(|parameter| {
                let parameter = match parameter["$ref"].as_str() {
                    Some(at) => document.pointer(&at[1..]).expect("a $ref points somewhere"),
                    None => parameter,
                };
                let name = parameter["name"].as_str().expect("a name").to_owned();
                (parameter["in"] == "query").then_some(name)
            });
            operations.push(Operation {
                name: format!("{method} {path}"),
                method: Method::from_bytes(method.as_bytes()).expect("a method"),
                path: path.clone(),
                query: query.collect(),
                public: about["security"] == json!([]),
            });
        }
    }
    operations
}

impl Operation {
    /// Every way of asking for what `of` has: targets, bodies, and what they name.
    fn asks(&self, of: &Things) -> Vec<(String, Option<Value>)> {
        let path = match row(&self.name) {
            Row::Of(id, _) => self.path.replace("{id}", id(of)),
            _ => self
                .path
                .replace("{entity}", CANARY)
                .replace("{id}", &of.subject)
                .replace("{name}", "standard"),
        };
        let mut targets = vec![path.clone()];
        for parameter in &self.query {
            let values = values(parameter, of).into_iter();
            targets.extend(values.map(|value| format!("{path}?{parameter}={}", encoded(&value))));
        }
        let bodies = bodies(&self.name, of);
        let both = targets
            .iter()
            .flat_map(|target| bodies.iter().map(|body| (target.clone(), body.clone())));
        both.collect()
    }
}

/// An answer as it was sent, without what no two answers share.
#[derive(Debug, PartialEq)]
struct Bytes {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Bytes {
    /// With what was asked for struck out, which is no more than the asker knew.
    fn without(mut self, of: &Things) -> Self {
        for asked in [
            &of.tenant,
            &of.subscription,
            &of.event,
            &of.delivery,
            &of.letter,
            &of.job,
            &of.subject,
            &of.kind,
            &of.target,
            &of.cursor,
        ] {
            self.body = self.body.replace(asked.as_str(), "ASKED");
        }
        self
    }
}

async fn ask(
    (world, client): (&World, &Client),
    operation: &Operation,
    (target, body): &(String, Option<Value>),
    token: Option<&str>,
) -> Bytes {
    let url = format!("{}{target}", world.nodes[0].api());
    let mut request = client.request(operation.method.clone(), url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if let Some(body) = body {
        let kind = match operation.method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        request = request.header("content-type", kind).body(body.to_string());
    }
    let response = request.send().await.expect("the API answers");
    let status = response.status().as_u16();
    let mut headers: Vec<_> = response
        .headers()
        .iter()
        .filter(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), format!("{value:?}")))
        .collect();
    headers.sort();
    let body = response.text().await.expect("the API answers in UTF-8");
    Bytes {
        status,
        headers,
        body,
    }
}

/// An id of the same form that nobody has.
fn never_was(id: &str) -> String {
    let from = id.len() - 6;
    let other = |c: char| match c {
        '0'..='8' | 'a'..='e' | 'g'..='y' => char::from_u32(u32::from(c) + 1).unwrap_or(c),
        '9' | 'f' => '0',
        'z' => 'a',
        other => other,
    };
    let end: String = id[from..].chars().map(other).collect();
    format!("{}{end}", &id[..from])
}

/// Gives tenant B one of everything.
async fn things_of_b(world: &World, b: &str) -> Things {
    let tenant = "canaryb-salon-01".to_owned();
    world
        .receiver
        .plan(&format!("/{CANARY}"), [500; 50].map(Reply::status));
    let target = world.receiver.url(&format!("/{CANARY}"));
    let body = json!({
        "name": CANARY, "target_url": target, "events": ["*"],
        "delivery": {"retry": "none"}, "headers": {"x-note": CANARY}, "attributes": {"site_name": CANARY},
    });
    let made = call(world, b, "POST", "/v1/subscriptions", Some(body))
        .await
        .expect(201);
    assert_eq!(made["tenant"], tenant);
    world.known(&made).await;
    let kind = format!("{CANARY}.created");
    let subject = format!("{CANARY}-subject-77");
    for n in [1, 2] {
        let event = json!({
            "id": format!("{CANARY}-event-000{n}"), "type": kind, "subject": subject,
            "data": {"note": CANARY},
        });
        call(world, b, "POST", "/v1/events", Some(event))
            .await
            .expect(202);
    }
    until_listed(world, b, "/v1/events").await;
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let subscription = text(&made["id"]);
    let path = format!("/v1/subscriptions/{subscription}/replay");
    let replay = json!({"since": "2020-01-01T00:00:00Z"});
    let job = call(world, b, "POST", &path, Some(replay))
        .await
        .expect(202);
    let deadline = Instant::now() + Duration::from_secs(60);
    let path = format!("/v1/jobs/{}", text(&job["id"]));
    while call(world, b, "GET", &path, None).await.expect(200)["state"] != "done" {
        assert!(Instant::now() < deadline, "the replay never ends");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let ended = |item: &Value| item["run"] == 1 && item["state"] == "dead";
    loop {
        let items = until_listed(world, b, "/v1/deliveries").await;
        let letters = until_listed(world, b, "/v1/dead-letters").await;
        if items.len() == 2 && items.iter().all(ended) && letters.len() == 2 {
            break;
        }
        assert!(Instant::now() < deadline, "{items:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let letters = until_listed(world, b, "/v1/dead-letters").await;
    let letter = &letters[0];
    let page = call(world, b, "GET", "/v1/deliveries?limit=1", None)
        .await
        .expect(200);
    Things {
        tenant,
        event: text(&letter["event_id"]),
        delivery: text(&letter["delivery_id"]),
        letter: text(&letter["id"]),
        job: text(&job["id"]),
        cursor: text(&page["cursor"]),
        subscription,
        subject,
        kind,
        target,
    }
}

/// The items of a list, once there are any.
async fn until_listed(world: &World, token: &str, path: &str) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let page = call(world, token, "GET", path, None).await.expect(200);
        let items = page["items"].as_array().expect("items").clone();
        if !items.is_empty() {
            return items;
        }
        assert!(Instant::now() < deadline, "{path} stays empty");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn nothing_of_another_tenant_shows_in_any_answer(kind: Kind) {
    let world = World::with(
        kind,
        1,
        &[
            ("auth.admin_token", ADMIN.to_owned()),
            ("api.rate_limit.failures_per_minute", "0".to_owned()),
        ],
    )
    .await;
    let (b, _) = token(&world, Some("canaryb-salon-01"), &["manage", "publish"]).await;
    let theirs = things_of_b(&world, &b).await;
    let nobodys = Things {
        tenant: never_was(&theirs.tenant),
        subscription: never_was(&theirs.subscription),
        event: never_was(&theirs.event),
        delivery: never_was(&theirs.delivery),
        letter: never_was(&theirs.letter),
        job: never_was(&theirs.job),
        subject: never_was(&theirs.subject),
        kind: format!("{CANARY}.creatfe"),
        target: world.receiver.url("/canaryc"),
        cursor: theirs.cursor.clone(),
    };
    let document = call(&world, ADMIN, "GET", "/openapi.json", None)
        .await
        .expect(200);
    let operations = operations(&document);
    // What B sees of its own: proof that the lists have what A must not see, and that A's asking
    // changed nothing.
    let client = client();
    let here = (&world, &client);
    let mut seen = Vec::new();
    for operation in operations
        .iter()
        .filter(|operation| operation.method == Method::GET)
    {
        let path = match row(&operation.name) {
            Row::Lists => operation.path.clone(),
            Row::Of(id, _) => operation.path.replace("{id}", id(&theirs)),
            _ => continue,
        };
        let shown = ask(here, operation, &(path.clone(), None), Some(&b)).await;
        assert_eq!(shown.status, 200, "{path} for its owner: {}", shown.body);
        assert!(shown.body.contains(CANARY), "{path} has nothing to betray");
        seen.push((operation, path, shown));
    }

    let mut tokens = vec![(None, &[][..])];
    for scopes in [&["publish"][..], &["read"], &["manage"], &["admin"]] {
        let (token, _) = token(&world, Some("canarya-salon-01"), scopes).await;
        tokens.push((Some(token), scopes));
    }
    let mut asked = 0;
    // Publishing comes last: an event of A's own may have the id of one of B's.
    let (publishing, others): (Vec<_>, Vec<_>) = operations
        .iter()
        .filter(|operation| !matches!(row(&operation.name), Row::Live))
        .partition(|operation| operation.name == "POST /v1/events");
    let rounds = [others, publishing];
    let rounds = rounds
        .iter()
        .flat_map(|round| tokens.iter().map(move |token| (round, token)));
    for (round, (token, scopes)) in rounds {
        for operation in round {
            for (one, other) in operation
                .asks(&theirs)
                .into_iter()
                .zip(operation.asks(&nobodys))
            {
                let at = format!("{} {one:?} with {scopes:?}", operation.name);
                let answer = ask(here, operation, &one, token.as_deref()).await;
                let never = ask(here, operation, &other, token.as_deref()).await;
                let wanted = wanted(operation, scopes);
                assert!(
                    wanted.contains(&answer.status),
                    "{at}: {answer:?}, not {wanted:?}"
                );
                let (answer, never) = (answer.without(&theirs), never.without(&nobodys));
                assert_eq!(answer, never, "{at}");
                let text = format!("{answer:?}").to_lowercase();
                assert!(
                    !text.contains(CANARY),
                    "{at} shows what is another's: {text}"
                );
                asked += 1;
            }
        }
    }
    assert!(asked > 5 * operations.len(), "{asked} questions");
    for (operation, path, before) in seen {
        let after = ask(here, operation, &(path.clone(), None), Some(&b)).await;
        assert_eq!(before, after, "{path} changed under another's hands");
    }
}

/// The statuses that a question for another's things may be answered with.
fn wanted(operation: &Operation, scopes: &[&str]) -> Vec<u16> {
    if operation.public {
        return vec![200];
    }
    let Some(scope) = scopes.first() else {
        return vec![401];
    };
    let may = |needed: &str| {
        *scope == needed || *scope == "admin" || (*scope == "manage" && needed == "read")
    };
    match row(&operation.name) {
        Row::Of(_, needed) if may(needed) => vec![404],
        Row::Of(..) | Row::OfNobody => vec![403],
        // What the answer is depends on the question; that it is the same for both is the promise.
        _ => vec![200, 201, 202, 400, 403, 404, 422],
    }
}

/// One test for each broker, and the store that goes with it.
mod embedded {
    use crate::support::world::Kind;

    #[tokio::test]
    async fn t8_nothing_of_another_tenant_shows_in_any_answer() {
        super::nothing_of_another_tenant_shows_in_any_answer(Kind::Embedded).await;
    }
}

mod rabbitmq {
    use crate::support::world::Kind;

    #[tokio::test]
    async fn t8_nothing_of_another_tenant_shows_in_any_answer() {
        super::nothing_of_another_tenant_shows_in_any_answer(Kind::Rabbit).await;
    }
}
