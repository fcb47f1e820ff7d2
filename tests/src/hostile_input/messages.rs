//! The same bodies as AMQP messages, and what only a message can be: odd properties, forged
//! headers, tables without a bottom, a message that comes back again and again.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use lapin::{
    BasicProperties, Connection, ConnectionProperties, ErrorKind,
    options::{BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, DecimalValue, FieldArray, FieldTable, LongString},
};
use serde_json::{Value, json};

use super::{
    a_good_event_flows,
    rows::{self, Amqp, event},
    unchanged,
};
use crate::{
    intake::publish_raw,
    support::{
        raw_amqp,
        world::{Fate, Kind, World},
    },
};

#[tokio::test]
async fn every_body_of_the_corpus_is_quarantined_as_it_came_or_delivered_unchanged() {
    let world = World::start(Kind::Rabbit).await;
    let sub = world.subscribe("/amqp", &["*"], json!({})).await;
    let rows = rows::all();
    let sent: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                format!("row.{}", row.name),
                row.bytes(&format!("a-{}", row.name)),
            )
        })
        .collect();
    let messages: Vec<_> = sent
        .iter()
        .map(|(key, body)| (key.as_str(), BasicProperties::default(), body.clone()))
        .collect();
    publish_raw(world.setting("broker.url"), &messages).await;
    let mut taken = BTreeMap::new();
    for row in &rows {
        if let Amqp::Taken(data) = &row.amqp {
            let id = format!("a-{}", row.name);
            world.expect(&sub, &id, Fate::Delivered);
            taken.insert(id, data.clone());
        }
    }
    unchanged(&world, &sub, &taken).await;
    let wanted = rows
        .iter()
        .filter(|row| matches!(row.amqp, Amqp::Quarantined { .. }))
        .count();
    let found = quarantined(&world, wanted).await;
    let mut wrong = Vec::new();
    for (row, (key, body)) in rows.iter().zip(&sent) {
        let Amqp::Quarantined { reason, says } = row.amqp else {
            continue;
        };
        let Some(item) = found.get(&format!("postrider.events/{key}")) else {
            wrong.push(format!("{} is not in quarantine", row.name));
            continue;
        };
        let detail = item["detail"].as_str().unwrap_or_default();
        if item["reason"] != reason || says.iter().any(|word| !detail.contains(word)) {
            wrong.push(format!(
                "{}: wanted {reason} {says:?}, got {item}",
                row.name
            ));
        }
        wrong.extend(kept(&world, item, body).await.err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(found.len(), wanted, "nothing else is in quarantine");
    a_good_event_flows(&world, &sub).await;
    world.finish().await;
}

/// How much of a message that no event can be the store keeps.
const KEPT_OF_TOO_LARGE: usize = 64 * 1024;

/// Whether the store has the message as it came, or of one that is too large its beginning.
async fn kept(world: &World, item: &Value, body: &[u8]) -> Result<(), String> {
    let id = item["id"].as_str().unwrap_or_default();
    let whole = world
        .call("GET", &format!("/v1/quarantine/{id}"), None)
        .await;
    let text = whole.json["body_base64"].as_str().unwrap_or_default();
    let kept = STANDARD.decode(text).map_err(|error| error.to_string())?;
    let wanted = if item["reason"] == "too_large" {
        &body[..KEPT_OF_TOO_LARGE]
    } else {
        body
    };
    if kept != wanted {
        return Err(format!(
            "{item}: {} of {} bytes kept",
            kept.len(),
            body.len()
        ));
    }
    if whole.json["size"] != body.len() {
        return Err(format!("{item}: it had {} bytes", body.len()));
    }
    Ok(())
}

/// What is in quarantine once there is so much, by where it came from.
async fn quarantined(world: &World, count: usize) -> BTreeMap<String, Value> {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let items = world.items("/v1/quarantine?limit=500").await;
        if items.len() >= count {
            let source = |item: &Value| item["source"].as_str().unwrap_or_default().to_owned();
            return items
                .into_iter()
                .map(|item| (source(&item), item))
                .collect();
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{count} wanted in quarantine, got {items:#?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn table(entries: Vec<(&str, AMQPValue)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

/// A message as somebody would forge it to be taken for one of ours, or for one that died.
fn forged() -> FieldTable {
    let death = table(vec![
        ("queue", text("postrider.inbox")),
        ("reason", text("expired")),
        ("count", AMQPValue::LongLongInt(1_000_000)),
    ]);
    let deaths = FieldArray::from(vec![AMQPValue::FieldTable(death)]);
    let keys = |key: &str| AMQPValue::FieldArray(FieldArray::from(vec![text(key)]));
    table(vec![
        ("x-death", AMQPValue::FieldArray(deaths)),
        ("x-first-death-reason", text("expired")),
        ("x-delivery-count", AMQPValue::LongLongInt(1_000_000)),
        ("x-delay", AMQPValue::LongLongInt(i64::MAX)),
        ("CC", keys("postrider.quarantine")),
        ("BCC", keys("postrider.dead")),
        ("x-postrider-due", text("99999999999999")),
        ("x-postrider-reason", text("malformed")),
        ("x-postrider-detail", text("forged")),
        ("x-postrider-source", text("forged/forged")),
        ("x-postrider-released", text("true")),
        ("x-postrider-token", text("forged")),
        ("x-postrider-via", text("http")),
        ("x-postrider-accepted", text("9999-01-01T00:00:00Z")),
    ])
}

/// Every type of value that a header may have, and tables in tables.
fn zoo() -> FieldTable {
    let mut inner = table(vec![("leaf", text("x"))]);
    for _ in 0..100 {
        inner = table(vec![("table", AMQPValue::FieldTable(inner))]);
    }
    let mut zoo = table(vec![
        ("nested", AMQPValue::FieldTable(inner)),
        ("void", AMQPValue::Void),
        ("true", AMQPValue::Boolean(true)),
        ("time", AMQPValue::Timestamp(253_402_300_800)),
        (
            "decimal",
            AMQPValue::DecimalValue(DecimalValue { scale: 9, value: 1 }),
        ),
        ("float", AMQPValue::Double(1e300)),
        (
            "binary",
            AMQPValue::LongString(LongString::from(vec![0xff, 0, 0xc0])),
        ),
        ("x-postrider-odd", AMQPValue::Void),
        ("authorization", text("Bearer stolen")),
        ("webhook-signature", text("v1,forged")),
        ("host", text("169.254.169.254")),
    ]);
    for n in 0..1_000 {
        zoo.insert(format!("entry-{n}").into(), text("x"));
    }
    zoo
}

/// Properties that only AMQP has: none of them decides what becomes of an event.
fn odd_properties() -> Vec<(&'static str, BasicProperties)> {
    let plain = BasicProperties::default;
    vec![
        ("i41-none", plain()),
        ("i41-text", plain().with_content_type("text/plain".into())),
        ("i41-odd", plain().with_content_type("\r\n\0;;=".into())),
        (
            "i41-identity",
            plain().with_content_encoding("identity".into()),
        ),
        ("i42-zoo", plain().with_headers(zoo())),
        (
            "i43-headers",
            plain()
                .with_headers(forged())
                .with_reply_to("postrider.quarantine".into())
                .with_correlation_id("1".into()),
        ),
        ("i44-priority", plain().with_priority(255)),
        ("i45-transient", plain().with_delivery_mode(1)),
        (
            "i46-own-user",
            plain()
                .with_user_id("guest".into())
                .with_app_id("\u{202e}app".into())
                .with_timestamp(u64::MAX)
                .with_cluster_id("c".into())
                .with_type("deploy; rm".into()),
        ),
    ]
}

#[tokio::test]
async fn odd_properties_and_forged_headers_change_nothing() {
    let world = World::start(Kind::Rabbit).await;
    let sub = world.subscribe("/odd", &["*"], json!({})).await;
    let mut messages = Vec::new();
    for (id, properties) in odd_properties() {
        messages.push((
            "appointment.created",
            properties,
            event(&[]).replace("@@", id).into_bytes(),
        ));
        world.expect(&sub, id, Fate::Delivered);
    }
    let gzip = BasicProperties::default().with_content_encoding("gzip".into());
    let body = event(&[]).replace("@@", "i41-gzip").into_bytes();
    messages.push(("row.i41-gzip", gzip, body));
    // What cannot be read is quarantined under our own words, not under the forged ones.
    let lies = BasicProperties::default().with_headers(forged());
    messages.push(("row.i43-lies", lies, b"not json".to_vec()));
    publish_raw(world.setting("broker.url"), &messages).await;
    let found = quarantined(&world, 2).await;
    let gzip = &found["postrider.events/row.i41-gzip"];
    assert_eq!(gzip["reason"], "unsupported_encoding");
    let detail = gzip["detail"].as_str().unwrap_or_default();
    assert!(
        detail.contains("gzip") && detail.contains("plain JSON"),
        "{detail}"
    );
    let lies = &found["postrider.events/row.i43-lies"];
    assert!(lies["detail"].to_string().contains("line 1"), "{lies}");
    let count = odd_properties().len();
    let arrived = world.receiver.wait_for("/odd", count).await;
    for request in &arrived {
        for name in request.headers.keys() {
            let ours = [
                "content-",
                "webhook-",
                "x-postrider-",
                "user-agent",
                "host",
                "accept",
            ];
            assert!(
                ours.iter().any(|start| name.as_str().starts_with(start)),
                "{name} came along"
            );
        }
        for forged in ["forged", "stolen", "169.254.169.254", "entry-"] {
            assert!(
                !format!("{:?}", request.headers).contains(forged),
                "{request:?}"
            );
        }
    }
    a_good_event_flows(&world, &sub).await;
    world.finish().await;
}

#[tokio::test]
async fn a_user_id_that_is_not_the_publishers_is_the_brokers_to_refuse() {
    let world = World::start(Kind::Rabbit).await;
    let sub = world.subscribe("/user", &["*"], json!({})).await;
    let url = world.setting("broker.url");
    let connection = Connection::connect(url, ConnectionProperties::default())
        .await
        .expect("a connection");
    let channel = connection.create_channel().await.expect("a channel");
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .expect("confirms");
    let somebody = BasicProperties::default().with_user_id("somebody-else".into());
    let body = event(&[]).replace("@@", "i46-spoofed").into_bytes();
    let options = BasicPublishOptions::default();
    let sent = channel
        .basic_publish(
            "postrider.events".into(),
            "a.b".into(),
            options,
            &body,
            somebody,
        )
        .await;
    let refused = match sent {
        Ok(confirm) => confirm.await.expect_err("the broker does not take it"),
        Err(error) => error,
    };
    let ErrorKind::ProtocolError(error) = refused.kind() else {
        panic!("a channel error, got {refused:?}");
    };
    assert_eq!(error.get_id(), 406, "{error:?}");
    // The connection lives, and whoever opens another channel goes on.
    let body = event(&[]).replace("@@", "i46-next").into_bytes();
    let own = BasicProperties::default().with_user_id("guest".into());
    publish_raw(url, &[("appointment.created", own, body)]).await;
    world.expect(&sub, "i46-next", Fate::Delivered);
    connection.close(200, "done".into()).await.expect("closed");
    world.receiver.wait_for("/user", 1).await;
    world.finish().await;
}

/// How often a message comes back before it is quarantined.
const RETURNS_MAX: usize = 64;

#[tokio::test]
async fn what_comes_back_again_and_again_or_expires_ends_in_quarantine() {
    let mut world = World::start(Kind::Rabbit).await;
    let sub = world.subscribe("/back", &["*"], json!({})).await;
    world.router().drain().await;
    let url = world.setting("broker.url").to_owned();
    let body = event(&[]).replace("@@", "i47-poison").into_bytes();
    publish_raw(
        &url,
        &[("row.i47", BasicProperties::default(), body.clone())],
    )
    .await;
    // As a router would that dies of it each time.
    let connection = Connection::connect(&url, ConnectionProperties::default())
        .await
        .expect("a connection");
    let channel = connection.create_channel().await.expect("a channel");
    let mut times = 0;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while world.items("/v1/quarantine").await.is_empty() {
        let options = BasicGetOptions::default();
        let got = channel.basic_get("postrider.inbox".into(), options).await;
        if let Some(message) = got.expect("the queue is there") {
            let again = BasicNackOptions {
                requeue: true,
                ..BasicNackOptions::default()
            };
            message
                .delivery
                .acker
                .nack(again)
                .await
                .expect("given back");
            times += 1;
        }
        assert!(times <= RETURNS_MAX + 1, "it came back {times} times");
        assert!(std::time::Instant::now() < deadline, "never quarantined");
    }
    connection.close(200, "done".into()).await.expect("closed");
    // One that its publisher lets expire while no router is there to take it.
    let soon = BasicProperties::default().with_expiration("1".into());
    publish_raw(
        &url,
        &[(
            "row.i44",
            soon,
            event(&[]).replace("@@", "i44-expired").into(),
        )],
    )
    .await;
    let found = quarantined(&world, 2).await;
    let poison = &found["postrider.events/row.i47"];
    assert_eq!(poison["reason"], "handler_failed");
    let says = poison["detail"].to_string();
    assert!(says.contains("too many times"), "{says}");
    kept(&world, poison, &body).await.expect("as it came");
    let expired = &found["postrider.events/row.i44"];
    assert_eq!(expired["reason"], "handler_failed");
    let says = expired["detail"].to_string();
    assert!(
        says.contains("expired") && says.contains("`expiration`"),
        "{says}"
    );
    world.router().start_again().await;
    // Nothing is lost: a person who knows better sends it on its way.
    for (item, id) in [(poison, "i47-poison"), (expired, "i44-expired")] {
        let path = format!(
            "/v1/quarantine/{}/release",
            item["id"].as_str().unwrap_or_default()
        );
        world.call("POST", &path, None).await.expect(202);
        world.expect(&sub, id, Fate::Delivered);
    }
    world.receiver.wait_for("/back", 2).await;
    world.finish().await;
}

/// About what one frame of AMQP holds at five bytes a level.
const LEVELS: usize = 26_000;

#[tokio::test]
async fn a_header_table_without_a_bottom_takes_nobody_down() {
    let world = World::start(Kind::Rabbit).await;
    let sub = world.subscribe("/deep", &["*"], json!({})).await;
    let url = world.setting("broker.url");
    // No client writes this one, so that it is written by hand.
    let good = event(&[]).replace("@@", "i48-deep").into_bytes();
    raw_amqp::publish_nested(url, "appointment.created", &good, LEVELS).await;
    raw_amqp::publish_nested(url, "row.i48", b"not json", LEVELS).await;
    let found = quarantined(&world, 1).await;
    assert_eq!(found["postrider.events/row.i48"]["reason"], "malformed");
    world.expect(&sub, "i48-deep", Fate::Delivered);
    world.receiver.wait_for("/deep", 1).await;
    a_good_event_flows(&world, &sub).await;
    world.finish().await;
}
