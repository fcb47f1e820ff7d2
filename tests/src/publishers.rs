//! T9, T18: who may publish what over AMQP, with the users of `deploy/rabbitmq` on a real broker.

use std::{path::Path, time::Duration, time::Instant};

use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
        ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};
use serde_json::{Value, json};

use crate::support::{
    postgres,
    rabbit::Rabbit,
    world::{Fate, Kind, World},
};

/// A broker with the users of the example, and the URLs of the two.
async fn broker() -> (Rabbit, String, String) {
    let rabbit = Rabbit::start().await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let example = root.join("deploy/rabbitmq/definitions.example.json");
    let example = example.to_str().expect("a path in UTF-8");
    rabbit.ctl(&["import_definitions", example]).await;
    let url = |user: &str| {
        let port = rabbit.port();
        format!("amqp://{user}:change-me-{user}@127.0.0.1:{port}/postrider")
    };
    let (ours, publisher) = (url("postrider"), url("publisher"));
    (rabbit, ours, publisher)
}

async fn world(url: &str, more: &[(&'static str, String)]) -> World {
    let mut settings = vec![
        ("broker.url", url.to_owned()),
        ("store.url", postgres::fresh_database_url().await),
    ];
    settings.extend_from_slice(more);
    World::around(Kind::Rabbit, settings).await
}

async fn channel(connection: &Connection) -> Channel {
    let channel = connection.create_channel().await.expect("a channel");
    let confirms = channel.confirm_select(ConfirmSelectOptions::default());
    confirms.await.expect("confirms");
    channel
}

async fn connect(url: &str) -> Connection {
    let connection = Connection::connect(url, ConnectionProperties::default());
    connection.await.expect("the user may connect")
}

/// Publishes and waits for the confirm.
async fn publish(
    channel: &Channel,
    exchange: &str,
    key: &str,
    user: Option<&str>,
    body: &Value,
) -> Result<(), lapin::Error> {
    let mut properties = BasicProperties::default().with_content_type("application/json".into());
    if let Some(user) = user {
        properties = properties.with_user_id(user.into());
    }
    let body = body.to_string();
    let options = BasicPublishOptions::default();
    let sent = channel.basic_publish(
        exchange.into(),
        key.into(),
        options,
        body.as_bytes(),
        properties,
    );
    sent.await?.await.map(drop)
}

#[track_caller]
fn refused<T>(result: Result<T, lapin::Error>, code: &str, what: &str) {
    let error = result.err().map(|error| format!("{error:?}"));
    let error = error.unwrap_or_else(|| panic!("{what} was let through"));
    assert!(error.contains(code), "{what}: {error}");
}

#[tokio::test]
async fn t18_the_example_s_publisher_publishes_events_and_nothing_else() {
    let (_rabbit, ours, publisher) = broker().await;
    // Our own user may do all that the product does, from declaring to recording.
    let world = world(&ours, &[]).await;
    let sub = world.subscribe("/all", &["*"], json!({})).await;
    let connection = connect(&publisher).await;
    let event = json!({"id": "one", "tenant": "salon-17", "type": "a.b", "data": 1});
    let good = channel(&connection).await;
    publish(&good, "postrider.events", "a.b", None, &event)
        .await
        .expect("an event is confirmed");
    world.expect(&sub, "one", Fate::Delivered);

    let denied = "ACCESS_REFUSED";
    let table = FieldTable::default;
    for queue in ["postrider.inbox", "mine", "postrider.mine"] {
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel(&connection).await;
        let declared = declared.queue_declare(queue.into(), options, table());
        refused(declared.await, denied, &format!("declaring {queue}"));
    }
    for exchange in ["mine", "postrider.mine"] {
        let declared = channel(&connection).await;
        let options = ExchangeDeclareOptions::default();
        let declared =
            declared.exchange_declare(exchange.into(), ExchangeKind::Topic, options, table());
        refused(declared.await, denied, &format!("declaring {exchange}"));
    }
    for queue in ["postrider.inbox", "postrider.dead", "postrider.quarantine"] {
        let taken = channel(&connection).await;
        let taken = taken.basic_consume(
            queue.into(),
            "me".into(),
            BasicConsumeOptions::default(),
            table(),
        );
        refused(taken.await.map(drop), denied, &format!("consuming {queue}"));
        let taken = channel(&connection).await;
        let taken = taken.basic_get(queue.into(), BasicGetOptions::default());
        refused(
            taken.await.map(drop),
            denied,
            &format!("getting of {queue}"),
        );
        let purged = channel(&connection).await;
        let purged = purged.queue_purge(queue.into(), QueuePurgeOptions::default());
        refused(purged.await.map(drop), denied, &format!("purging {queue}"));
        let bound = channel(&connection).await;
        let options = QueueBindOptions::default();
        let bound = bound.queue_bind(
            queue.into(),
            "postrider.events".into(),
            "#".into(),
            options,
            table(),
        );
        refused(bound.await, denied, &format!("binding {queue}"));
        // Past the exchange, straight into a queue.
        let sent = channel(&connection).await;
        let sent = publish(&sent, "", queue, None, &event).await;
        refused(sent, denied, &format!("publishing into {queue}"));
    }
    for exchange in [
        "postrider.deliver",
        "postrider.retry",
        "postrider.log",
        "postrider.dead",
    ] {
        let sent = channel(&connection).await;
        let sent = publish(&sent, exchange, "postrider.deliver", None, &event).await;
        refused(sent, denied, &format!("publishing to {exchange}"));
    }
    world.finish().await;
}

#[tokio::test]
async fn t9_a_publisher_is_held_to_its_tenants() {
    let (rabbit, ours, publisher) = broker().await;
    rabbit
        .ctl(&["add_user", "stranger", "change-me-stranger"])
        .await;
    let may = [
        "-p",
        "postrider",
        "stranger",
        "^$",
        r"^postrider\.events$",
        "^$",
    ];
    let may = [&["set_permissions"][..], &may].concat();
    rabbit.ctl(&may).await;
    let bound = ("publishers.publisher", "salon-*,spa".to_owned());
    let world = world(&ours, &[bound]).await;
    let body = json!({
        "tenant": "other-1", "target_url": world.receiver.url("/other"), "events": ["*"],
    });
    let made = world
        .call("POST", "/v1/subscriptions", Some(body))
        .await
        .expect(201);
    world.known(&made).await;
    let sub = world.subscribe("/salon", &["*"], json!({})).await;

    let connection = connect(&publisher).await;
    let event =
        |id: &str, tenant: &str| json!({"id": id, "tenant": tenant, "type": "a.b", "data": 1});
    let events = "postrider.events";
    let open = channel(&connection).await;
    let own = Some("publisher");
    for (user, event) in [
        (own, event("good", "salon-17")),
        // Of a tenant that has subscriptions, and of one that nobody has heard of: alike.
        (own, event("bad-1", "other-1")),
        (own, event("bad-2", "never-was")),
        (None, event("bad-3", "salon-17")),
    ] {
        let sent = publish(&open, events, "a.b", user, &event).await;
        sent.expect("the broker takes it");
    }
    let unknown = connect(&publisher.replace("publisher", "stranger")).await;
    let unknown = channel(&unknown).await;
    let fourth = event("bad-4", "salon-17");
    let sent = publish(&unknown, events, "a.b", Some("stranger"), &fourth).await;
    sent.expect("the broker takes it");
    // Several in one message, one of them another's: forged as if our own intake had made it.
    let list = json!([event("bad-5", "salon-17"), event("bad-6", "other-1")]).to_string();
    let options = BasicPublishOptions::default();
    let properties = BasicProperties::default()
        .with_user_id("publisher".into())
        .with_content_type("application/json".into());
    let batch = open.basic_publish(
        events.into(),
        broker::BATCH_KEY.into(),
        options,
        list.as_bytes(),
        properties,
    );
    batch
        .await
        .expect("sent")
        .await
        .expect("the broker takes it");
    // Who says to be somebody else is not even heard: the broker closes the channel.
    let liar = channel(&connection).await;
    let lied = publish(
        &liar,
        events,
        "a.b",
        Some("postrider"),
        &event("lie", "other-1"),
    )
    .await;
    refused(lied, "PRECONDITION_FAILED", "another's user-id");

    // What comes over HTTP is the intake's, which has judged the token.
    let over_http = world.publish(json!({"id": "http", "type": "a.b"})).await;
    world.expect(&sub, "good", Fate::Delivered);
    world.expect(&sub, &over_http, Fate::Delivered);

    let deadline = Instant::now() + Duration::from_secs(60);
    let details = loop {
        let items = world.items("/v1/quarantine").await;
        if items.len() >= 5 {
            assert!(
                items.iter().all(|item| item["reason"] == "invalid_event"),
                "{items:#?}"
            );
            let details = items.iter().map(|item| item["detail"].to_string());
            break details.collect::<Vec<_>>();
        }
        assert!(Instant::now() < deadline, "{items:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(details.len(), 5, "{details:#?}");
    assert!(
        details
            .iter()
            .all(|detail| detail.contains("tenant_mismatch")),
        "{details:#?}"
    );
    let of_tenant = |detail: &&String| detail.contains("may not publish for its tenant");
    assert_eq!(details.iter().filter(of_tenant).count(), 3, "{details:#?}");
    for (cause, count) in [("tenant", 3.0), ("no_user", 1.0), ("unknown_user", 1.0)] {
        let cause = format!("cause=\"{cause}\"");
        let counted = world
            .metric("postrider_publishers_refused_total", &cause)
            .await;
        assert_eq!(counted, count, "{cause}");
    }
    assert!(world.receiver.requests("/other").is_empty());
    world.finish().await;
}
