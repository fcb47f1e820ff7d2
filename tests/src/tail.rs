//! What happens is told live: everything once, whoever recorded it, to nobody whose it is not, and
//! from where a reader left off.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use crate::{
    delivers::on_both,
    support::{
        receiver::Answer,
        world::{Fate, Kind, Sub, World, client},
    },
};

on_both!(
    everything_is_told_once,
    a_reader_is_told_what_it_asked_for,
    another_tenants_tail_shows_nothing_of_ours,
    a_reader_goes_on_where_it_left_off_also_after_a_kill,
    a_tail_ends_when_the_process_stops,
);

const ADMIN: &str = "the-admin-token-of-this-test";
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Something that a stream told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    pub(crate) event: String,
    pub(crate) data: Value,
    pub(crate) id: Option<String>,
}

impl Message {
    fn text(&self, key: &str) -> &str {
        self.data[key].as_str().unwrap_or_default()
    }
}

/// An open stream of server-sent events.
pub(crate) struct Stream {
    response: reqwest::Response,
    bytes: Vec<u8>,
}

impl Stream {
    /// Opens one, whatever it answers.
    pub(crate) async fn ask(
        url: &str,
        token: Option<&str>,
        last_event_id: Option<&str>,
    ) -> reqwest::Response {
        let mut request = client().get(url).timeout(Duration::from_secs(3600));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        request.send().await.expect("the API answers")
    }

    /// Opens one, and returns when nothing is missed any more.
    pub(crate) async fn open(url: &str, token: Option<&str>, last_event_id: Option<&str>) -> Self {
        let response = Self::ask(url, token, last_event_id).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut stream = Self {
            response,
            bytes: Vec::new(),
        };
        let greeting = stream.block().await.expect("a greeting");
        assert!(greeting.starts_with(": begun"), "{greeting}");
        stream
    }

    /// The next block of lines; `None` at the end.
    async fn block(&mut self) -> Option<String> {
        loop {
            let end = self.bytes.windows(2).position(|two| two == b"\n\n");
            if let Some(end) = end {
                let block: Vec<u8> = self.bytes.drain(..end + 2).collect();
                return Some(String::from_utf8(block).expect("UTF-8"));
            }
            let part = tokio::time::timeout(LIMIT, self.response.chunk()).await;
            match part.expect("something is told in time") {
                Ok(Some(part)) => self.bytes.extend_from_slice(&part),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// The next message; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            let block = self.block().await?;
            let field = |name: &str| {
                let line = block.lines().find_map(|line| line.strip_prefix(name));
                line.map(str::to_owned)
            };
            if let Some(data) = field("data: ") {
                return Some(Message {
                    event: field("event: ").unwrap_or_default(),
                    data: serde_json::from_str(&data).expect("JSON"),
                    id: field("id: "),
                });
            }
        }
    }

    /// Messages until, with the last of them, `enough` holds of all of them.
    async fn until(&mut self, enough: impl Fn(&[Message]) -> bool) -> Vec<Message> {
        let mut told = Vec::new();
        let reading = async {
            while !enough(&told) {
                told.push(self.next().await.expect("the stream goes on"));
            }
        };
        if tokio::time::timeout(LIMIT, reading).await.is_err() {
            panic!("not told in time: {told:#?}");
        }
        told
    }
}

async fn problem(answer: reqwest::Response) -> Value {
    let text = answer.text().await.expect("an answer with an end");
    serde_json::from_str(&text).expect("a problem")
}

fn tail(world: &World, query: &str) -> String {
    format!("{}/v1/tail{query}", world.nodes[0].api())
}

/// How many of a kind were told.
fn count(told: &[Message], event: &str, wanted: impl Fn(&Message) -> bool) -> usize {
    let of_kind = told.iter().filter(|message| message.event == event);
    of_kind.filter(|message| wanted(message)).count()
}

fn delivered(told: &[Message]) -> usize {
    count(told, "delivery", |message| {
        message.text("state") == "delivered"
    })
}

async fn publish(world: &World, count: usize, prefix: &str, sub: Option<&Sub>) -> Vec<String> {
    let mut ids = Vec::new();
    for n in 0..count {
        let event = json!({"id": format!("{prefix}{n:02}"), "type": "appointment.created"});
        let id = world.publish(event).await;
        if let Some(sub) = sub {
            world.expect(sub, &id, Fate::Delivered);
        }
        ids.push(id);
    }
    ids
}

async fn everything_is_told_once(world: World) {
    world
        .receiver
        .plan("/flaky", [500, 200].map(Answer::status));
    let retry = json!({"delivery": {"retry": {"delays": ["1s"]}}});
    let well = world.subscribe("/well", &["*"], json!({})).await;
    let flaky = world.subscribe("/flaky", &["payment.*"], retry).await;
    let filter = json!({"filter": {"statuses": ["open"]}});
    let picky = world.subscribe("/picky", &["payment.*"], filter).await;
    let mut stream = Stream::open(&tail(&world, ""), None, None).await;
    publish(&world, 25, "a", Some(&well)).await;
    let paid = world.publish(json!({"type": "payment.paid"})).await;
    for (sub, fate) in [
        (&well, Fate::Delivered),
        (&flaky, Fate::Delivered),
        (&picky, Fate::Filtered),
    ] {
        world.expect(sub, &paid, fate);
    }
    let told = stream
        .until(|told| delivered(told) == 27 && count(told, "event", |_| true) == 26)
        .await;
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for message in &told {
        let (id, state) = (message.text("id"), message.text("state"));
        let standing = format!(
            "{} {id} {state} {}",
            message.event, message.data["attempts"]
        );
        *times.entry(standing).or_default() += 1;
    }
    times.retain(|_, times| *times > 1);
    assert_eq!(times, BTreeMap::new(), "told more than once");
    assert_eq!(count(&told, "gap", |_| true), 0);
    let of_flaky: Vec<_> = told
        .iter()
        .filter(|message| message.text("subscription_id") == flaky.id)
        .map(|message| message.text("state"))
        .filter(|state| *state != "pending")
        .collect();
    assert_eq!(of_flaky, ["retrying", "delivered"]);
    let stopped = |message: &Message| message.text("clause") == "statuses";
    assert_eq!(count(&told, "delivery", stopped), 1);
    let event = told.iter().find(|message| message.text("id") == paid);
    let event = &event.expect("told").data;
    assert_eq!(event["matched"].as_array().map(Vec::len), Some(3));
    assert!(event.get("data").is_none(), "without its payload: {event}");
    drop(stream);
    world.finish().await;
}

async fn a_reader_is_told_what_it_asked_for(world: World) {
    let a = world.subscribe("/a", &["*"], json!({})).await;
    let b = world.subscribe("/b", &["appointment.*"], json!({})).await;
    let query = format!("?subscription_id={}", b.id);
    let mut of_b = Stream::open(&tail(&world, &query), None, None).await;
    let query = "?type=payment.saved,customer.*";
    let mut of_types = Stream::open(&tail(&world, query), None, None).await;
    for (id, kind, to_b) in [
        ("1", "appointment.created", true),
        ("2", "payment.paid", false),
        ("3", "payment.updated", false),
        ("4", "customer.deleted", false),
        ("5", "appointment.updated", true),
    ] {
        let id = world
            .publish(json!({"id": id, "type": kind, "subject": 1}))
            .await;
        world.expect(&a, &id, Fate::Delivered);
        if to_b {
            world.expect(&b, &id, Fate::Delivered);
        }
    }
    let events = |told: &[Message]| -> Vec<String> {
        let events = told.iter().filter(|message| message.event == "event");
        let mut ids: Vec<_> = events
            .map(|message| message.text("id").to_owned())
            .collect();
        ids.sort();
        ids
    };
    let told = of_b
        .until(|told| delivered(told) == 2 && events(told).len() == 2)
        .await;
    assert_eq!(events(&told), ["1", "5"]);
    let others = |message: &Message| message.text("subscription_id") != b.id;
    assert_eq!(count(&told, "delivery", others), 0);
    let told = of_types
        .until(|told| delivered(told) == 2 && events(told).len() == 2)
        .await;
    assert_eq!(events(&told), ["3", "4"]);
    world.finish().await;
}

/// A world in which everybody needs a token, and one token for each of two tenants.
async fn guarded(kind: Kind) -> (World, String, String) {
    let world = World::with(kind, 1, &[("auth.admin_token", ADMIN.to_owned())]).await;
    let mut tokens = Vec::new();
    for tenant in ["ours", "theirs"] {
        let body = json!({"name": tenant, "tenant": tenant, "scopes": ["manage", "publish"]});
        let body = Some(("application/json", body.to_string().into_bytes()));
        let made = world.send("POST", "/v1/tokens", body, Some(ADMIN)).await;
        tokens.push(
            made.expect(201)["token"]
                .as_str()
                .expect("a token")
                .to_owned(),
        );
    }
    let theirs = tokens.pop().expect("two");
    (world, tokens.pop().expect("one"), theirs)
}

async fn another_tenants_tail_shows_nothing_of_ours(unguarded: World) {
    let (world, ours, theirs) = guarded(unguarded.kind).await;
    let mut stream = Stream::open(&tail(&world, ""), Some(&theirs), None).await;
    let other = Stream::ask(&tail(&world, "?tenant=ours"), Some(&theirs), None).await;
    assert_eq!(other.status(), 404);
    let post = async |token: &str, path: &str, body: Value| {
        let body = Some(("application/json", body.to_string().into_bytes()));
        world.send("POST", path, body, Some(token)).await
    };
    for token in [&ours, &theirs] {
        let body = json!({"target_url": world.receiver.url("/x"), "events": ["*"]});
        post(token, "/v1/subscriptions", body).await.expect(201);
    }
    let known = post(&theirs, "/v1/listeners", json!({"events": ["never.*"]}));
    world.known(&known.await.expect(201)).await;
    for n in 0..10 {
        for token in [&ours, &theirs] {
            let body = json!({"id": format!("e{n}"), "type": "payment.paid", "data": {}});
            post(token, "/v1/events", body).await.expect(202);
        }
    }
    let all = |told: &[Message]| delivered(told) == 10 && count(told, "event", |_| true) == 10;
    let told = stream.until(all).await;
    let strange = |message: &&Message| message.text("tenant") != "theirs";
    assert_eq!(told.iter().find(strange), None);
}

async fn a_reader_goes_on_where_it_left_off_also_after_a_kill(mut world: World) {
    let sub = world.subscribe("/a", &["*"], json!({})).await;
    let mut stream = Stream::open(&tail(&world, "?type=*"), None, None).await;
    let mut ids = publish(&world, 10, "a", Some(&sub)).await;
    // In the middle of what there is to tell.
    let mut told = stream.until(|told| told.len() == 3).await;
    drop(stream);
    ids.extend(publish(&world, 10, "b", Some(&sub)).await);
    world.receiver.wait_for("/a", 20).await;
    world.nodes[0].kill9();
    world.nodes[0].start_again().await;
    let last = told
        .last()
        .and_then(|message| message.id.clone())
        .expect("an id");
    let mut stream = Stream::open(&tail(&world, "?type=*"), None, Some(&last)).await;
    ids.extend(publish(&world, 10, "c", Some(&sub)).await);
    let before = told.clone();
    told.extend(
        stream
            .until(|rest| {
                let all = [&before, rest].concat();
                count(&all, "event", |_| true) == 30 && delivered(&all) == 30
            })
            .await,
    );
    assert_eq!(count(&told, "gap", |_| true), 0);
    for id in &ids {
        let times = count(&told, "event", |message| message.text("id") == id);
        assert_eq!(times, 1, "{id}");
    }
    drop(stream);
    // What was under way at the kill may arrive twice.
    world.settle().await;
}

async fn a_tail_ends_when_the_process_stops(mut world: World) {
    let mut stream = Stream::open(&tail(&world, ""), None, None).await;
    world.nodes[0].drain().await;
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_with_the_reason() {
    let (world, ours, _) = guarded(Kind::Embedded).await;
    let body = json!({"name": "p", "tenant": "ours", "scopes": ["publish"]});
    let body = Some(("application/json", body.to_string().into_bytes()));
    let made = world.send("POST", "/v1/tokens", body, Some(ADMIN)).await;
    let publisher = made.expect(201)["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    for (token, query, id, status) in [
        (None, "", None, 401),
        (Some("pr_1_wrong"), "", None, 401),
        (Some(publisher.as_str()), "", None, 403),
        (Some(ours.as_str()), "?type=a.b.c", None, 400),
        (Some(ours.as_str()), "?typ=a.b", None, 400),
        (Some(ours.as_str()), "", Some("yesterday"), 400),
    ] {
        let answer = Stream::ask(&tail(&world, query), token, id).await;
        assert_eq!(answer.status(), status, "{token:?} {query} {id:?}");
        let problem = problem(answer).await;
        assert_eq!(problem["status"], status);
    }
    // So many with one token, and one more once one of them has ended.
    let mut streams = Vec::new();
    for _ in 0..16 {
        streams.push(Stream::open(&tail(&world, ""), Some(&ours), None).await);
    }
    let more = Stream::ask(&tail(&world, ""), Some(&ours), None).await;
    assert_eq!(more.status(), 429);
    let mut admins = Stream::open(&tail(&world, ""), Some(ADMIN), Some("999999999-0")).await;
    let told = admins.next().await.expect("told");
    assert_eq!(told.event, "gap", "a place that never was: {told:?}");
    streams.pop();
    let begun = std::time::Instant::now();
    while Stream::ask(&tail(&world, ""), Some(&ours), None)
        .await
        .status()
        != 200
    {
        assert!(begun.elapsed() < LIMIT, "a place never comes free");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let off = World::with(Kind::Embedded, 1, &[("recorder.archive", "off".to_owned())]).await;
    let answer = Stream::ask(&tail(&off, ""), None, None).await;
    assert_eq!(answer.status(), 409);
    let problem = problem(answer).await;
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("recorder.archive"), "{detail}");
}
