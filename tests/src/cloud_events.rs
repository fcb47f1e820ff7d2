//! CloudEvents 1.0 come in as their official libraries write them, and what is wrong with one is
//! said by its own names.

use std::time::Duration;

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};

use crate::{
    delivers::on_both,
    intake::publish_raw,
    support::{
        clients::{Language, publish_cloud_events},
        world::{Fate, Kind, TENANT, World},
    },
};

on_both!(
    official_libraries_publish_in_every_mode,
    everything_wrong_with_a_cloud_event_is_told_at_once,
);

async fn official_libraries_publish_in_every_mode(world: World) {
    let whole = world.subscribe("/whole", &["*"], json!({})).await;
    // Only what has come through with all its attributes passes here.
    let narrow = json!({
        "filter": {
            "statuses": ["caf\u{e9} \"noir\" 100%"],
            "changed_fields": ["start_time"],
            "where": "event.previous_status == \"booked\" && event.version == 7 && event.subject == \"8812\"",
        },
        "view": "basic",
    });
    let basic = world
        .subscribe("/basic", &["appointment.updated"], narrow)
        .await;
    let broker = (world.kind == Kind::Rabbit).then(|| world.setting("broker.url"));
    let mut ids = Vec::new();
    for language in [Language::Python, Language::Node] {
        let api = world.nodes[0].api();
        ids.extend(publish_cloud_events(language, &api, TENANT, broker).await);
    }
    assert_eq!(ids.len(), if broker.is_some() { 14 } else { 8 });
    for id in &ids {
        world.expect(&whole, id, Fate::Delivered);
        world.expect(&basic, id, Fate::Delivered);
    }
    for request in world.receiver.wait_for("/whole", ids.len()).await {
        let data = &request.json()["data"];
        assert_eq!(*data, json!({"name": "Zo\u{eb}", "price": 12.5}));
    }
    for request in world.receiver.wait_for("/basic", ids.len()).await {
        assert_eq!(request.json()["data"], json!({"start_time": "10:00"}));
    }
    world.finish().await;
}

async fn everything_wrong_with_a_cloud_event_is_told_at_once(world: World) {
    let event = json!({
        "specversion": "0.3", "type": "com.example.appointment.created", "tenant": "no spaces",
        "previousstatus": 1, "datacontenttype": "text/plain", "data": "hello",
    });
    let kind = "application/cloudevents+json";
    let body = Some((kind, event.to_string().into_bytes()));
    let answer = world.send("POST", "/v1/events", body, None).await;
    assert_eq!(answer.status, 422);
    let errors = answer.json["errors"].as_array().expect("errors");
    let mut pointers: Vec<_> = errors
        .iter()
        .filter_map(|error| error["pointer"].as_str())
        .collect();
    pointers.sort_unstable();
    let wanted = [
        "/datacontenttype",
        "/id",
        "/previousstatus",
        "/source",
        "/specversion",
        "/tenant",
        "/type",
    ];
    assert_eq!(pointers, wanted, "{:#}", answer.json);
    let hint = errors.iter().any(|error| {
        error["message"]
            .as_str()
            .is_some_and(|message| message.contains("send `appointment.created`"))
    });
    assert!(hint, "{:#}", answer.json);
    let body = Some(("application/cloudevents+avro", b"Obj".to_vec()));
    let answer = world.send("POST", "/v1/events", body, None).await;
    assert_eq!(answer.status, 415);
    world.finish().await;
}

/// A binary message with these attributes besides the required ones.
fn binary(id: &str, kind: &str, more: &[(&str, AMQPValue)]) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in [
        ("specversion", "1.0"),
        ("id", id),
        ("source", "/salons/17"),
        ("type", "appointment.created"),
        ("tenant", TENANT),
    ] {
        let value = AMQPValue::LongString(value.into());
        headers.insert(format!("cloudEvents:{name}").into(), value);
    }
    for (name, value) in more {
        headers.insert((*name).into(), value.clone());
    }
    BasicProperties::default()
        .with_content_type(kind.into())
        .with_headers(headers)
}

#[tokio::test]
async fn over_amqp_what_is_no_cloud_event_is_quarantined_and_the_next_one_flows() {
    let world = World::start(Kind::Rabbit).await;
    let sub = world.subscribe("/next", &["*"], json!({})).await;
    let plain = |kind: &str| BasicProperties::default().with_content_type(kind.into());
    let json = "application/json";
    let data = b"{ \"n\": 1.0 }".to_vec();
    let typed = [
        ("cloudEvents_time", AMQPValue::Timestamp(1_767_225_600)),
        ("cloudEvents_version", AMQPValue::ShortInt(2)),
        ("cloudEvents_sampled", AMQPValue::Boolean(true)),
    ];
    let nothing = [("cloudEvents:subject", AMQPValue::Void)];
    let dns = AMQPValue::LongString("com.example.appointment.created".into());
    let messages = [
        (binary("xml", "application/xml", &[]), b"<a/>".to_vec()),
        (binary("bad", json, &[]), b"{".to_vec()),
        (binary("void", json, &nothing), data.clone()),
        (
            binary("dns", json, &[("cloudEvents:type", dns)]),
            data.clone(),
        ),
        (plain("application/cloudevents+avro"), b"Obj\x01".to_vec()),
        (plain("application/cloudevents+json"), b"{}".to_vec()),
        (binary("good", json, &typed), data.clone()),
    ];
    let messages: Vec<_> = messages
        .into_iter()
        .map(|(properties, body)| ("appointment.created", properties, body))
        .collect();
    publish_raw(world.setting("broker.url"), &messages).await;
    world.expect(&sub, "good", Fate::Delivered);
    let delivered = world.receiver.wait_for("/next", 1).await.remove(0);
    let body = String::from_utf8_lossy(&delivered.body).into_owned();
    assert!(
        body.contains("\"data\":{ \"n\": 1.0 }") && body.contains("2026-01-01T00:00:00"),
        "{body}"
    );

    let quarantined = loop {
        let items = world.items("/v1/quarantine").await;
        if items.len() >= 6 {
            break items;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let mut found = Vec::new();
    for item in &quarantined {
        let id = item["id"].as_str().expect("an id");
        let path = format!("/v1/quarantine/{id}");
        let whole = world.call("GET", &path, None).await.expect(200);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        found.push((
            text(&whole["body"]),
            text(&item["reason"]),
            text(&item["detail"]),
        ));
    }
    found.sort();
    let wanted = [
        ("<a/>", "invalid_event", "/datacontenttype must be JSON"),
        (
            "Obj\u{1}",
            "unsupported_encoding",
            "application/cloudevents+json",
        ),
        ("{", "malformed", "line 1"),
        (
            "{ \"n\": 1.0 }",
            "invalid_event",
            "/subject must not contain",
        ),
        (
            "{ \"n\": 1.0 }",
            "invalid_event",
            "send `appointment.created`",
        ),
        ("{}", "invalid_event", "/specversion is required"),
    ];
    for ((body, reason, detail), wanted) in found.iter().zip(wanted) {
        assert_eq!((body.as_str(), reason.as_str()), (wanted.0, wanted.1));
        assert!(detail.contains(wanted.2), "{detail}");
    }
    assert_eq!(found.len(), wanted.len());
    world.finish().await;
}
