//! T10: one canary in the place of every secret, through everything that can happen to a delivery;
//! then every place where something is written down is read for it. T17: what strangers write
//! breaks out of no line of the log.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use lapin::{Connection, ConnectionProperties, options::BasicGetOptions};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row};

use crate::{
    command,
    support::{
        folder,
        node::Node,
        postgres,
        process::program,
        rabbit::Rabbit,
        receiver::{Answer as Reply, Receiver},
        world::{Kind, TENANT, World, client},
    },
};

const ADMIN: &str = "canary-admin-6f1d0a";
const HEADER: &str = "canary-header-93bd21";
const ATTRIBUTE: &str = "canary-attribute-27ee";
const BROKER: &str = "canary-broker-b81c55";
const STORE: &str = "canary-store-0d44e7";
const LOADER: &str = "canary-loader-5a9012";
const LOADER_HEADER: &str = "canary-loader-header-7c3e";
/// 32 bytes in base64.
const KEY: &str = "Y2FuYXJ5LWVuY3J5cHRpb24ta2V5LTAwMDAwMDAwMDA=";

/// Every secret there is, by what it is.
struct Canaries(Vec<(String, Vec<u8>)>);

impl Canaries {
    fn of_settings() -> Self {
        let mut all = Self(Vec::new());
        for secret in [ADMIN, HEADER, BROKER, STORE, LOADER, LOADER_HEADER, KEY] {
            all.add(secret, secret);
        }
        all
    }

    /// One more; its bytes, too, where it is written in base64.
    fn add(&mut self, name: &str, secret: &str) {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let text = secret.strip_prefix("whsec_").unwrap_or(secret);
        self.0.push((name.to_owned(), text.as_bytes().to_owned()));
        if let Ok(bytes) = STANDARD.decode(text)
            && bytes.len() >= 16
        {
            self.0.push((format!("{name}, decoded"), bytes));
        }
    }

    /// That none of them stands in what was written at `place`: as it is, in hex, or in base64.
    #[track_caller]
    fn are_not_in(&self, place: &str, written: &[u8]) {
        use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
        for (name, secret) in &self.0 {
            let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
            let base64 = STANDARD_NO_PAD.encode(secret);
            for form in [&secret[..], hex.as_bytes(), base64.as_bytes()] {
                let at = written.windows(form.len()).position(|at| at == form);
                if let Some(at) = at {
                    let from = at.saturating_sub(300);
                    let around = &written[from..written.len().min(at + form.len() + 60)];
                    let around = String::from_utf8_lossy(around);
                    panic!("{name} stands in {place}: …{around}…");
                }
            }
        }
    }
}

async fn call(world: &World, method: &str, path: &str, body: Option<Value>) -> Value {
    let body = body.map(|body| ("application/json", body.to_string().into_bytes()));
    let answer = world.send(method, path, body, Some(ADMIN)).await;
    assert!(answer.status < 300, "{method} {path}: {:#}", answer.json);
    answer.json
}

/// What a test without secrets would do: deliver, fail, wait, hold, load, test, explain, replay.
async fn everything(world: &World, canaries: &mut Canaries, round: usize) {
    let subscribe = async |path: &str, more: Value| {
        let mut body = json!({
            "tenant": TENANT, "target_url": world.receiver.url(path), "events": ["*"],
            "headers": {"x-api-key": HEADER, "x-innocent": HEADER, "authorization": HEADER},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        let made = call(world, "POST", "/v1/subscriptions", Some(body)).await;
        world.known(&made).await;
        made
    };
    // An endpoint that says back all that it hears, in its headers and its body.
    let echo = |said: &str| {
        Reply::status(200)
            .saying(&format!("you sent {said}"))
            .with_header("x-echo", HEADER)
    };
    world.receiver.plan("/well", [echo(HEADER)]);
    world
        .receiver
        .plan("/dead", [Reply::status(500).saying(HEADER)]);
    world
        .receiver
        .plan("/later", [Reply::status(503).saying(HEADER)]);
    world.receiver.plan("/vagaro", [echo(ATTRIBUTE)]);
    let well = subscribe("/well", json!({"view": "extended"})).await;
    let dead = subscribe("/dead", json!({"delivery": {"retry": "none"}})).await;
    let later = subscribe("/later", json!({})).await;
    let held = subscribe("/held", json!({})).await;
    let vagaro = json!({
        "dialect": "vagaro", "events": ["appointment.*"],
        "attributes": {"verification_token": ATTRIBUTE},
    });
    let vagaro = subscribe("/vagaro", vagaro).await;
    for made in [&well, &dead, &later, &held, &vagaro] {
        let id = made["id"].as_str().expect("an id");
        if let Some(secret) = made["secret"].as_str() {
            canaries.add("a signing secret", secret);
        }
        let path = format!("/v1/subscriptions/{id}/rotate-secret");
        let turned = world.send(
            "POST",
            &path,
            Some(("application/json", b"{}".into())),
            Some(ADMIN),
        );
        if let Some(secret) = turned.await.json["secret"].as_str() {
            canaries.add("a rotated secret", secret);
        }
    }
    let held = held["id"].as_str().expect("an id");
    call(
        world,
        "POST",
        &format!("/v1/subscriptions/{held}/pause"),
        None,
    )
    .await;
    let token = json!({"name": "t", "scopes": ["read"]});
    let token = call(world, "POST", "/v1/tokens", Some(token)).await;
    let token = token["token"].as_str().expect("a token");
    let secret = token.rsplit('_').next().expect("its secret");
    canaries.add("a token's secret", secret);
    // A guess that is nearly right, and one in the wrong place.
    let nearly = format!("{token}0");
    world
        .send("GET", "/v1/events", None, Some(&nearly))
        .await
        .expect(401);
    world
        .send(
            "GET",
            &format!("/v1/events?limit={secret}"),
            None,
            Some(token),
        )
        .await
        .expect(400);

    let event = |n: u32| {
        json!({"id": format!("r{round}-e{n}"), "tenant": TENANT, "type": "appointment.created",
               "subject": n, "data": {"id": n, "name": "Ada"}})
    };
    for n in 0..3 {
        call(world, "POST", "/v1/events", Some(event(n))).await;
    }
    // A body that is not read: it says so without saying it.
    let broken = format!("{{\"tenant\": {HEADER}");
    let broken = ("application/json", broken.into_bytes());
    world
        .send("POST", "/v1/events", Some(broken), Some(ADMIN))
        .await
        .expect(400);
    let wrong = json!({"tenant": "t", "target_url": "https://example.com/", "events": ["*"],
                       "headers": {"host": HEADER, "x-bad": format!("{HEADER}\n")}});
    let wrong = ("application/json", wrong.to_string().into_bytes());
    let wrong = world
        .send("POST", "/v1/subscriptions", Some(wrong), Some(ADMIN))
        .await;
    canaries.are_not_in("a refusal", wrong.expect(422).to_string().as_bytes());
    let id = vagaro["id"].as_str().expect("an id");
    let path = format!("/v1/subscriptions/{id}/explain");
    let explained = call(world, "POST", &path, Some(event(9))).await.to_string();
    canaries.are_not_in("an explanation", explained.as_bytes());
    assert!(!explained.contains(ATTRIBUTE), "{explained}");
    world.receiver.wait_for("/well", 3 * round).await;
    world.receiver.wait_for("/dead", 3 * round).await;
    world.receiver.wait_for("/later", 3 * round).await;
    world.receiver.wait_for("/vagaro", 3 * round).await;
}

/// Everything that the API tells, as the administrator.
async fn told(world: &World) -> Vec<(String, String)> {
    let client = client();
    let get = async |path: String| {
        let request = client.get(format!("{}{path}", world.nodes[0].api()));
        let request = request.header("authorization", format!("Bearer {ADMIN}"));
        let response = request.send().await.expect("the API answers");
        let headers = format!("{:?}", response.headers());
        (path, headers + &response.text().await.expect("a text"))
    };
    let mut told = Vec::new();
    for list in [
        "events",
        "subscriptions",
        "deliveries",
        "dead-letters",
        "jobs",
        "quarantine",
    ] {
        let (path, text) = get(format!("/v1/{list}?limit=500")).await;
        let start = text.find("{\"items\"").expect("a list");
        let page: Value = serde_json::from_str(&text[start..]).expect("JSON");
        for item in page["items"].as_array().into_iter().flatten() {
            let id = item["id"].as_str().expect("an id");
            let tenant = match list {
                "events" => format!("?tenant={TENANT}"),
                _ => String::new(),
            };
            told.push(get(format!("/v1/{list}/{id}{tenant}")).await);
        }
        told.push((path, text));
    }
    for path in [
        "/v1/tokens",
        "/v1/deliveries/periods",
        "/v1/dialects",
        "/openapi.json",
        "/docs",
    ] {
        told.push(get(path.to_owned()).await);
    }
    told
}

/// That nothing was written down that is nobody's to read.
async fn nothing_is_told(world: &World, canaries: &Canaries) {
    let mut attempts = 0;
    for (path, text) in told(world).await {
        canaries.are_not_in(&path, text.as_bytes());
        if path.starts_with("/v1/deliveries/dlv_") {
            assert!(!text.contains(ATTRIBUTE), "{path}: {text}");
            attempts += text.matches("\"x-innocent\"").count();
        }
    }
    assert!(attempts > 0, "no attempt shows a header at all");
    for node in world.nodes.iter().filter(|node| node.is_running()) {
        for path in ["/metrics", "/healthz", "/readyz"] {
            let answer = crate::support::http::ask(node.ops(), "GET", path, &[]).await;
            canaries.are_not_in(path, answer.expect("an answer").body.as_bytes());
        }
    }
    for node in &world.nodes {
        let log = node.log();
        assert!(log.contains("DEBUG"), "the log says what it does: {log}");
        canaries.are_not_in("the log", log.as_bytes());
    }
}

/// What the commands show with the same settings.
async fn commands(world: &World, canaries: &Canaries) {
    let env: Vec<(String, String)> = world
        .settings
        .iter()
        .map(|(key, value)| {
            let key = key.replace('.', "__").to_uppercase();
            (format!("POSTRIDER__{key}"), value.clone())
        })
        .collect();
    let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    for arguments in [
        &["config", "show"][..],
        &["config", "show", "--output", "json"],
        &["config", "check"],
    ] {
        let (code, out, err) = command::run(arguments, &env).await;
        assert_eq!(code, 0, "{arguments:?}: {out}{err}");
        canaries.are_not_in(&format!("{arguments:?}"), format!("{out}{err}").as_bytes());
    }
    // Settings that are refused, each in the place of a good one.
    for (key, value) in [
        (
            "POSTRIDER__BROKER__URL",
            format!("amqpx://u:{BROKER}@127.0.0.1:1/x"),
        ),
        ("POSTRIDER__BROKER__URL", format!("amqp://u:{BROKER}@[:1/x")),
        (
            "POSTRIDER__STORE__URL",
            format!("postgrex://u:{STORE}@127.0.0.1:1/x"),
        ),
        (
            "POSTRIDER__STORE__ENCRYPTION_KEY",
            format!("{HEADER}-too-short"),
        ),
        (
            "POSTRIDER__LOADERS__APPOINTMENT__URL",
            format!("ftp://u:{LOADER}@x/{{id}}"),
        ),
    ] {
        let mut env = env.clone();
        env.push((key, &value));
        let (code, out, err) = command::run(&["serve"], &env).await;
        assert_ne!(code, 0, "{key}={value}: {out}{err}");
        canaries.are_not_in(
            &format!("the refusal of {key}"),
            format!("{out}{err}").as_bytes(),
        );
    }
}

fn settings(loader: &Receiver) -> Vec<(&'static str, String)> {
    vec![
        ("auth.admin_token", ADMIN.to_owned()),
        ("store.encryption_key", KEY.to_owned()),
        ("loaders.appointment.url", loader.url("/{id}?view={view}")),
        ("loaders.appointment.token", LOADER.to_owned()),
        (
            "loaders.appointment.headers.x-key",
            LOADER_HEADER.to_owned(),
        ),
        ("log.level", "debug".to_owned()),
    ]
}

async fn loader() -> Receiver {
    let loader = Receiver::start().await;
    loader.plan(
        "/0",
        [
            Reply::status(500).saying(LOADER),
            Reply::status(200).saying(r#"{"id": 0}"#),
        ],
    );
    for path in ["/1", "/2"] {
        loader.plan(path, [Reply::status(200).saying(r#"{"id": 0}"#)]);
    }
    loader
}

#[tokio::test]
async fn t10_no_secret_is_written_down_embedded() {
    let loader = loader().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut more = settings(&loader);
    more.push((
        "broker.url",
        format!("embedded://{}", folder.path().display()),
    ));
    more.push(("log.format", "json".to_owned()));
    let world = World::around(Kind::Embedded, more).await;
    let mut canaries = Canaries::of_settings();
    everything(&world, &mut canaries, 1).await;
    settled(&world).await;
    nothing_is_told(&world, &canaries).await;
    // Broker and store, with what was deleted and what is not yet in its place.
    let mut files = 0;
    let mut folders = vec![folder.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).expect("a file");
            canaries.are_not_in(&path.display().to_string(), &bytes);
            files += usize::from(!bytes.is_empty());
        }
    }
    assert!(files >= 2, "a broker and a store");
    commands(&world, &canaries).await;
}

#[tokio::test]
async fn t10_no_secret_is_written_down_on_rabbitmq_and_postgresql() {
    let rabbit = Rabbit::start().await;
    rabbit.ctl(&["add_user", "canary", BROKER]).await;
    rabbit
        .ctl(&["set_permissions", "canary", ".*", ".*", ".*"])
        .await;
    let broker = format!("amqp://canary:{BROKER}@127.0.0.1:{}/%2f", rabbit.port());
    let database = postgres::fresh_database_url().await;
    let loader = loader().await;
    let mut more = settings(&loader);
    more.push(("broker.url", broker.clone()));
    let store = database.replace("postrider@", &format!("postrider:{STORE}@"));
    more.push(("store.url", store));
    let mut world = World::around(Kind::Rabbit, more).await;
    let mut canaries = Canaries::of_settings();
    everything(&world, &mut canaries, 1).await;
    settled(&world).await;
    nothing_is_told(&world, &canaries).await;
    commands(&world, &canaries).await;

    let mut dump = Command::new(program("pg_dump", "postgres"));
    dump.args(["--inserts", "--dbname", &database]);
    let output = folder::run(dump).await;
    assert!(output.status.success(), "{output:?}");
    assert!(
        output
            .stdout
            .windows(TENANT.len())
            .any(|at| at == TENANT.as_bytes())
    );
    canaries.are_not_in("the dump of PostgreSQL", &output.stdout);
    let mut connection = PgConnection::connect(&database)
        .await
        .expect("the database");
    let sessions = sqlx::query("SELECT query FROM pg_stat_activity").fetch_all(&mut connection);
    for row in sessions.await.expect("sessions") {
        let query: String = row.try_get(0).unwrap_or_default();
        canaries.are_not_in("a query", query.as_bytes());
    }

    // Everything once more without whoever takes it away, so that it is found in the queues.
    world.nodes[0].drain().await;
    world.nodes[0] = Node::start("producer,console", &world.settings).await;
    everything(&world, &mut canaries, 2).await;
    world.nodes[1].drain().await;
    let event = json!({"id": "inbox", "tenant": TENANT, "type": "a.b", "data": 1});
    call(&world, "POST", "/v1/events", Some(event)).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut found = Vec::new();
    while !["inbox", "archive", "log", "dead", "retry"]
        .iter()
        .all(|word| found.iter().any(|queue: &String| queue.contains(word)))
    {
        assert!(Instant::now() < deadline, "only {found:?} had anything");
        found.extend(in_queues(&broker, &canaries).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Reads every message of every queue, and names the queues that had one.
async fn in_queues(url: &str, canaries: &Canaries) -> Vec<String> {
    let connection = Connection::connect(url, ConnectionProperties::default());
    let connection = connection.await.expect("a connection");
    let channel = connection.create_channel().await.expect("a channel");
    let mut found = Vec::new();
    for queue in broker::topology::queues() {
        let name = queue.name.to_string();
        loop {
            let get = channel.basic_get(name.as_str().into(), BasicGetOptions::default());
            let Some(message) = get.await.expect("a queue of ours") else {
                break;
            };
            let head = format!("{:?}", message.delivery.properties);
            canaries.are_not_in(&format!("the head of a message in {name}"), head.as_bytes());
            canaries.are_not_in(&format!("a message in {name}"), &message.delivery.data);
            found.push(name.clone());
        }
    }
    // What was not acknowledged goes back.
    connection.close(200, "read".into()).await.expect("closed");
    found
}

/// Waits until the log has every attempt, and the dead letters are listed.
async fn settled(world: &World) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let states = call(world, "GET", "/v1/deliveries?limit=500", None).await;
        let items = states["items"].as_array().expect("items");
        let count = |state: &str| items.iter().filter(|item| item["state"] == state).count();
        let letters = call(world, "GET", "/v1/dead-letters", None).await;
        let letters = letters["items"].as_array().expect("items").len();
        let all = (
            count("delivered"),
            count("dead"),
            count("retrying"),
            letters,
        );
        if all.0 >= 6 && all.1 >= 3 && all.2 >= 3 && letters >= 3 {
            return;
        }
        assert!(Instant::now() < deadline, "{all:?} of {states:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Ids, types, texts and headers that would end a line, colour it or turn it round.
#[tokio::test]
async fn t17_no_text_breaks_out_of_a_line_of_the_log() {
    for format in ["text", "json"] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let more = vec![
            (
                "broker.url",
                format!("embedded://{}", folder.path().display()),
            ),
            ("log.level", "debug".to_owned()),
            ("log.format", format.to_owned()),
        ];
        let world = World::around(Kind::Embedded, more).await;
        let hostile = "x\r\nINFO forged: line\u{1b}[2J\u{9b}31m\u{202e}desrever\u{2028}\u{85}";
        let reply = Reply::status(500).saying(hostile);
        world.receiver.plan("/h", [reply]);
        let none = json!({"name": "n", "delivery": {"retry": "none"}});
        world.subscribe("/h", &["*"], none).await;
        for event in [
            json!({"id": hostile, "tenant": TENANT, "type": "a.b", "data": 1}),
            json!({"tenant": hostile, "type": "a.b", "data": 1}),
            json!({"tenant": TENANT, "type": hostile, "data": 1}),
            json!({"tenant": TENANT, "type": "a.b", "data": 1, hostile: 1}),
        ] {
            world
                .call("POST", "/v1/events", Some(event))
                .await
                .expect(422);
        }
        let good = json!({"type": "a.b", "subject": 1,
                          "data": {hostile: hostile}});
        world.publish(good).await;
        let path = "/v1/events/%1b%5b2J%0d%0aforged?tenant=%0d%0aforged";
        world.call("GET", path, None).await;
        let name = json!({"tenant": TENANT, "name": hostile, "target_url": hostile,
                          "events": [hostile], "headers": {hostile: hostile}});
        world
            .call("POST", "/v1/subscriptions", Some(name))
            .await
            .expect(422);
        world.wait_for_dead(1).await;
        let log = world.nodes[0].log();
        for line in log.lines() {
            let steers = |c: char| c.is_control() || "\u{202e}\u{2028}".contains(c);
            assert!(!line.contains(steers), "{format}: {line:?}");
            let whole = match format {
                "json" => serde_json::from_str::<Value>(line).is_ok(),
                _ => line.starts_with("20"),
            };
            assert!(whole, "{format}: {line:?}");
        }
        assert!(log.contains("answered"), "the log says something: {log}");
    }
}
