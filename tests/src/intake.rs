//! How events come in: over HTTP after the broker's confirm, and over AMQP with nothing but a
//! standard client; and what cannot be an event goes to quarantine without stopping the next.

use std::{path::PathBuf, process::Command, time::Duration};

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use serde_json::json;

use crate::{
    delivers::on_both,
    support::{
        process::Process,
        rabbit::Rabbit,
        world::{Fate, Kind, World},
    },
};

on_both!(
    an_array_and_ndjson_are_taken_whole_or_not_at_all,
    every_fault_is_named_at_once,
);

async fn an_array_and_ndjson_are_taken_whole_or_not_at_all(world: World) {
    let sub = world.subscribe("/in", &["*"], json!({})).await;
    let lines = "{\"id\":\"n1\",\"tenant\":\"salon-17\",\"type\":\"a.b\",\"data\":1}\n\n{\"id\":\"n2\",\"tenant\":\"salon-17\",\"type\":\"a.c\",\"data\":2}\n";
    let kind = Some(("application/x-ndjson", lines.as_bytes().to_vec()));
    let answer = world
        .send("POST", "/v1/events", kind, None)
        .await
        .expect(202);
    assert_eq!(answer, json!({"accepted": 2, "ids": ["n1", "n2"]}));
    let array = json!([
        {"id": "a1", "tenant": "salon-17", "type": "a.b", "data": 1},
        {"id": "a2", "tenant": "salon-17", "type": "not a type", "data": 2},
    ]);
    let refused = world.call("POST", "/v1/events", Some(array)).await;
    assert_eq!(refused.status, 422);
    assert_eq!(refused.json["errors"][0]["pointer"], "/1/type");
    for id in ["n1", "n2"] {
        world.expect(&sub, id, Fate::Delivered);
    }
    world.finish().await;
}

async fn every_fault_is_named_at_once(world: World) {
    let event = json!({"id": "a.b", "tenant": "no spaces", "type": "Bad", "dta": 1, "version": -1});
    let answer = world.call("POST", "/v1/events", Some(event)).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    let pointers: Vec<_> = answer.json["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|error| error["pointer"].as_str().unwrap_or_default().to_owned())
        .collect();
    for pointer in ["/id", "/tenant", "/type", "/dta", "/version", "/data"] {
        assert!(
            pointers.iter().any(|got| got == pointer),
            "no {pointer} in {:#}",
            answer.json
        );
    }
    let big = json!({"tenant": "t", "type": "a.b", "data": "x".repeat(300 * 1024)});
    world
        .call("POST", "/v1/events", Some(big))
        .await
        .expect(413);
    let text = Some(("text/html", b"hello".to_vec()));
    world
        .send("POST", "/v1/events", text, None)
        .await
        .expect(415);
    let broken = Some(("application/json", b"{\"a\":".to_vec()));
    let broken = world.send("POST", "/v1/events", broken, None).await;
    assert_eq!(
        (broken.status, &broken.json["code"]),
        (400, &json!("bad_json"))
    );
    world.finish().await;
}

/// Publishes raw messages as any service could.
pub(crate) async fn publish_raw(url: &str, messages: &[(&str, BasicProperties, Vec<u8>)]) {
    let connection = Connection::connect(url, ConnectionProperties::default())
        .await
        .expect("a connection");
    let channel = connection.create_channel().await.expect("a channel");
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .expect("confirms");
    for (key, properties, body) in messages {
        channel
            .basic_publish(
                "postrider.events".into(),
                (*key).into(),
                BasicPublishOptions::default(),
                body,
                properties.clone(),
            )
            .await
            .expect("published")
            .await
            .expect("confirmed");
    }
    connection.close(200, "done".into()).await.expect("closed");
}

#[tokio::test]
async fn what_cannot_be_an_event_is_quarantined_and_the_next_one_flows() {
    let world = World::start(Kind::Rabbit).await;
    let sub = world.subscribe("/next", &["*"], json!({})).await;
    let plain = BasicProperties::default;
    let good = br#"{"tenant":"salon-17","type":"appointment.created","data":{"ok":true}}"#;
    let messages = vec![
        (
            "a.b",
            plain().with_message_id("p1".into()),
            b"not json".to_vec(),
        ),
        (
            "a.b",
            plain().with_message_id("p2".into()),
            vec![0xff, 0xfe, 0x00],
        ),
        ("a.b", plain(), good.to_vec()),
        (
            "a.b",
            plain().with_content_encoding("gzip".into()),
            good.to_vec(),
        ),
        (
            "a.b",
            plain().with_message_id("p5".into()),
            vec![b' '; 300 * 1024],
        ),
        (
            "a.b",
            plain().with_message_id("p6".into()),
            b"{\"tenant\":1}".to_vec(),
        ),
        (
            "appointment.created",
            plain().with_message_id("good-1".into()),
            good.to_vec(),
        ),
    ];
    publish_raw(world.setting("broker.url"), &messages).await;
    world.expect(&sub, "good-1", Fate::Delivered);
    world.receiver.wait_for("/next", 1).await;
    let quarantined = loop {
        let items = world.items("/v1/quarantine").await;
        if items.len() >= 6 {
            break items;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let mut reasons: Vec<_> = quarantined
        .iter()
        .map(|item| item["reason"].as_str().unwrap_or_default())
        .collect();
    reasons.sort_unstable();
    assert_eq!(
        reasons,
        [
            "invalid_event",
            "invalid_event",
            "malformed",
            "malformed",
            "too_large",
            "unsupported_encoding"
        ]
    );
    let names_the_id = |item: &serde_json::Value| {
        item["reason"] == "invalid_event"
            && item["detail"]
                .as_str()
                .is_some_and(|detail| detail.contains("/id"))
    };
    assert!(quarantined.iter().any(names_the_id), "{quarantined:#?}");
    assert_eq!(world.metric("postrider_quarantined_total", "").await, 6.0);
    world.finish().await;
}

#[tokio::test]
async fn standard_clients_publish_with_nothing_of_ours() {
    let world = World::start(Kind::Rabbit).await;
    let sub = world.subscribe("/clients", &["*"], json!({})).await;
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let tools = root.join("../target/tools");
    let mut pika = Command::new(tools.join("py/bin/python"));
    pika.arg(root.join("clients/publish.py"));
    let mut amqplib = Command::new("node");
    amqplib
        .arg(root.join("clients/publish.js"))
        .env("NODE_PATH", tools.join("node/node_modules"));
    for (mut command, prefix) in [(pika, "pika"), (amqplib, "amqplib")] {
        command.args([world.setting("broker.url"), "25", "salon-17", prefix]);
        let mut process = Process::spawn(command);
        let status = process.ended(Duration::from_secs(60)).await;
        assert!(
            status.success(),
            "{prefix}: {}{}",
            process.stdout(),
            process.stderr()
        );
    }
    let seen = world
        .receiver
        .wait_until("50 events", || {
            let seen = world.receiver.successes("/clients");
            (seen.len() >= 50).then_some(seen)
        })
        .await;
    for id in seen.keys() {
        world.expect(&sub, id, Fate::Delivered);
    }
    assert_eq!(seen.len(), 50);
    world.finish().await;
}

#[tokio::test]
async fn intake_answers_503_while_the_broker_is_away_or_blocked() {
    let rabbit = Rabbit::start().await;
    let store = crate::support::postgres::fresh_database_url().await;
    let settings = vec![("broker.url", rabbit.url()), ("store.url", store)];
    let world = World::around(Kind::Rabbit, settings).await;
    let sub = world.subscribe("/back", &["*"], json!({})).await;
    let event = |id: &str| Some(json!({"id": id, "tenant": "salon-17", "type": "a.b", "data": 1}));
    world
        .call("POST", "/v1/events", event("before"))
        .await
        .expect(202);

    // A memory alarm blocks publishers; consumers go on.
    rabbit
        .ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"])
        .await;
    let blocked = answer_of(&world, event("blocked"), 503).await;
    assert!(blocked.headers.contains_key("retry-after"));
    assert_eq!(blocked.headers["content-type"], "application/problem+json");
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.8"]).await;
    answer_of(&world, event("after"), 202).await;

    rabbit.queue_names_are_on_disk().await;
    rabbit.kill9().await;
    let away = answer_of(&world, event("away"), 503).await;
    assert!(away.headers.contains_key("retry-after"));
    rabbit.start_again().await;
    answer_of(&world, event("again"), 202).await;
    // A publish that was cut off may have been stored: unconfirmed is not refused.
    for id in ["before", "after", "again"] {
        world.expect(&sub, id, Fate::Delivered);
    }
    for id in ["blocked", "away"] {
        if world.receiver.successes("/back").contains_key(id) {
            world.expect(&sub, id, Fate::Delivered);
        }
    }
    world.receiver.wait_for("/back", 3).await;
}

/// Publishes the same event until it is answered so.
async fn answer_of(
    world: &World,
    event: Option<serde_json::Value>,
    status: u16,
) -> crate::support::world::Answer {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let answer = world.call("POST", "/v1/events", event.clone()).await;
        // Taken before, unconfirmed or without an answer: as good as taken now.
        let taken = status == 202 && answer.status == 200;
        if answer.status == status || taken {
            return answer;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "never {status}: {answer:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
