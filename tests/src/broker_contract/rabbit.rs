//! What only a real server can be asked: to be killed, blocked, full, strict, or different.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use broker::{
    Broker, OpenError, Parcel, Publish, PublishError, Queue, Route, Settings, publish_until_taken,
    topology,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};

use super::{
    Bed, PATIENCE, a_full_queue_refuses_and_loses_nothing, ack_all, assert_empty, connected, event,
    id, ids, next, numbers, parcel, publish, publish_all, take, until,
};
use crate::support::rabbit::{Options, Rabbit, Tls};

fn queue_names() -> Vec<String> {
    let queues = topology::queues().into_iter();
    queues.map(|queue| queue.name).collect()
}

async fn channel(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default());
    let connection = connection.await.expect("the server is there");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}

/// Publishes events 0, 1, 2, … with many in flight until told to stop; all were confirmed, and
/// `confirmed` says how many so far.
async fn publish_until(publisher: &dyn Publish, stop: &AtomicBool, confirmed: &AtomicU64) -> u32 {
    let mut flying = FuturesUnordered::new();
    let mut number = 0;
    loop {
        if flying.len() >= 200 || (stop.load(Ordering::Relaxed) && !flying.is_empty()) {
            let taken: Result<(), PublishError> = flying.next().await.expect("not empty");
            taken.expect("only a close ends it");
            confirmed.fetch_add(1, Ordering::Relaxed);
        }
        if stop.load(Ordering::Relaxed) {
            if flying.is_empty() {
                return number;
            }
        } else {
            flying.push(publish_until_taken(publisher, event(number)));
            number += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_the_broker_loses_nothing_and_both_sides_come_back() {
    let bed = Bed::private_rabbit(Options::default()).await;
    let broker = bed.open().await;
    connected(&broker).await;
    bed.server().queue_names_are_on_disk().await;
    let (publisher, mut consumer) = (broker.publisher(), broker.consume(Queue::Inbox, 300).await);
    let (stop, confirmed) = (AtomicBool::new(false), AtomicU64::new(0));
    let publishing = async {
        let count = publish_until(&*publisher, &stop, &confirmed).await;
        publish_until_taken(&*publisher, event("last"))
            .await
            .expect("taken");
        count
    };
    let more_are_confirmed = async || {
        let wanted = confirmed.load(Ordering::Relaxed) + 1_000;
        let enough = async || u64::from(confirmed.load(Ordering::Relaxed) >= wanted);
        until(enough, 1).await;
    };
    let consuming = async {
        let mut seen = BTreeSet::new();
        loop {
            let received = next(&mut consumer).await;
            let id = id(&received);
            received.ticket.ack();
            if id == "last" {
                return seen;
            }
            seen.insert(id);
        }
    };
    let killing = async {
        more_are_confirmed().await;
        bed.server().kill9().await;
        let mut status = broker.status();
        let down = status.wait_for(|status| !status.connected);
        assert!(!down.await.expect("the broker lives").connected);
        bed.server().start_again().await;
        connected(&broker).await;
        more_are_confirmed().await;
        stop.store(true, Ordering::Relaxed);
    };
    let (count, mut seen, ()) = tokio::join!(publishing, consuming, killing);
    // Several lanes and a restart: "last" may overtake others.
    let wanted = numbers(0..count);
    while !seen.is_superset(&wanted) {
        let received = next(&mut consumer).await;
        seen.insert(id(&received));
        received.ticket.ack();
    }
    assert!(broker.status().borrow().reconnects >= 1);
    broker.close().await;
}

#[tokio::test]
async fn a_stopped_consumer_does_not_come_back_with_the_connection() {
    let bed = Bed::private_rabbit(Options::default()).await;
    let broker = bed.open().await;
    publish_all(&broker, (0..5).map(event)).await;
    let mut consumer = broker.consume(Queue::Inbox, 3).await;
    let held = next(&mut consumer).await;
    consumer.stop().await;
    assert!(!held.ticket.is_void(), "a stage still settles what it has");
    bed.server().ctl(&["close_all_connections", "a test"]).await;
    let mut status = broker.status();
    let back = status.wait_for(|status| status.connected && status.reconnects >= 1);
    let back = tokio::time::timeout(PATIENCE, back).await;
    assert!(matches!(back, Ok(Ok(_))), "not connected again");
    // It holds the status still.
    drop(back);
    until(async || u64::from(held.ticket.is_void()), 1).await;
    // The command takes longer than the pause between two channels.
    for _ in 0..2 {
        let consumers = bed.server().ctl(&["list_consumers", "queue_name"]).await;
        assert!(!consumers.contains(topology::INBOX), "{consumers}");
    }
    let mut after = broker.consume(Queue::Inbox, 10).await;
    let all = take(&mut after, 5).await;
    assert_eq!(ids(&all), numbers(0..5));
    assert!(all.iter().all(|received| received.returns <= 2), "{all:?}");
    ack_all(all);
    broker.close().await;
}

/// Takes a fresh virtual host and removes a binding, as an operator might.
async fn without_binding(bed: &Bed, queue: &str, exchange: &str, key: &str) {
    let (connection, channel) = channel(&bed.settings.url).await;
    let unbound = channel.queue_unbind(
        queue.into(),
        exchange.into(),
        key.into(),
        FieldTable::default(),
    );
    unbound.await.expect("the binding is removed");
    connection.close(200, "done".into()).await.expect("closed");
}

/// 1 000 parcels in flight, every twentieth to where nothing is bound.
async fn a_window_with_lost_keys(broker: &Broker) -> (BTreeSet<String>, BTreeSet<String>) {
    let publisher = broker.publisher();
    let mut flying: FuturesUnordered<_> = (0..1_000)
        .map(|number| {
            let key = if number % 20 == 0 {
                "lost.key"
            } else {
                "order.created"
            };
            let route = Route::Events {
                routing_key: key.into(),
            };
            let publisher = &publisher;
            async move {
                (
                    number.to_string(),
                    publisher.publish(parcel(route, number)).await,
                )
            }
        })
        .collect();
    let (mut taken, mut unroutable) = (BTreeSet::new(), BTreeSet::new());
    while let Some((id, answer)) = flying.next().await {
        match answer {
            Ok(()) => taken.insert(id),
            Err(PublishError::Unroutable(_)) => unroutable.insert(id),
            Err(error) => panic!("{id}: {error}"),
        };
    }
    (taken, unroutable)
}

fn lost_keys() -> BTreeSet<String> {
    (0..1_000)
        .step_by(20)
        .map(|number| number.to_string())
        .collect()
}

async fn bind_orders(bed: &Bed) {
    let (connection, channel) = channel(&bed.settings.url).await;
    let (queue, exchange) = (topology::INBOX.into(), topology::EVENTS.into());
    let bound = channel.queue_bind(
        queue,
        exchange,
        "order.#".into(),
        Default::default(),
        FieldTable::default(),
    );
    bound.await.expect("bound");
    connection.close(200, "done".into()).await.expect("closed");
}

#[tokio::test]
async fn what_no_queue_wants_ends_in_quarantine() {
    let bed = Bed::rabbit().await;
    let broker = bed.open().await;
    bind_orders(&bed).await;
    without_binding(&bed, topology::INBOX, topology::EVENTS, "#").await;
    let (taken, unroutable) = a_window_with_lost_keys(&broker).await;
    assert_eq!((taken.len(), unroutable), (1_000, BTreeSet::new()));
    let mut quarantine = broker.consume(Queue::Quarantine, 100).await;
    assert_eq!(ids(&take(&mut quarantine, 50).await), lost_keys());
    let mut inbox = broker.consume(Queue::Inbox, 1_000).await;
    let arrived = ids(&take(&mut inbox, 950).await);
    assert_eq!(arrived, taken.difference(&lost_keys()).cloned().collect());
    broker.close().await;
}

/// Without the way to quarantine, messages come back, some with another's confirm.
#[tokio::test]
async fn a_returned_message_is_told_to_its_own_publisher() {
    let bed = Bed::rabbit().await;
    let broker = bed.open().await;
    bind_orders(&bed).await;
    without_binding(&bed, topology::INBOX, topology::EVENTS, "#").await;
    without_binding(&bed, topology::QUARANTINE, topology::UNROUTABLE, "").await;
    for _ in 0..40 {
        let (taken, unroutable) = a_window_with_lost_keys(&broker).await;
        assert_eq!(unroutable, lost_keys());
        assert_eq!(taken.len(), 950);
    }
    broker.close().await;
}

#[tokio::test]
async fn a_full_queue_refuses_on_a_private_broker() {
    let bed = Bed::private_rabbit(Options::default()).await;
    let broker = bed.open().await;
    let policy = r#"{"max-length":10,"overflow":"reject-publish"}"#;
    bed.server()
        .ctl(&["set_policy", "small", "^postrider.inbox$", policy])
        .await;
    a_full_queue_refuses_and_loses_nothing(&broker).await;
    broker.close().await;
}

#[tokio::test]
async fn a_blocked_private_broker_is_told_apart_and_waited_out() {
    let bed = Bed::private_rabbit(Options::default()).await;
    let broker = bed.open().await;
    let publisher = broker.publisher();
    publish(&broker, event("before")).await;
    bed.server()
        .ctl(&["set_vm_memory_high_watermark", "absolute", "1"])
        .await;
    let mut status = broker.status();
    // The server tells whoever publishes, so this one may be in flight when it does.
    let blocked = async {
        loop {
            if let Err(PublishError::Blocked(reason)) = publisher.publish(event("during")).await {
                break reason;
            }
        }
    };
    let reason = tokio::time::timeout(PATIENCE, blocked)
        .await
        .expect("it is blocked");
    assert!(!reason.is_empty());
    assert!(status.borrow_and_update().blocked.is_some() && status.borrow().connected);
    // Acks go by another connection: consuming goes on.
    let mut consumer = broker.consume(Queue::Inbox, 10).await;
    let received = next(&mut consumer).await;
    assert_eq!(id(&received), "before");
    received.ticket.ack();
    let waiting = publish_until_taken(&*publisher, event("after"));
    let (taken, _) = tokio::join!(
        tokio::time::timeout(PATIENCE, waiting),
        bed.server().ctl(&["set_vm_memory_high_watermark", "0.4"]),
    );
    taken.expect("unblocked in time").expect("taken");
    assert_eq!(status.borrow_and_update().blocked, None);
    broker.close().await;
}

#[tokio::test]
async fn an_absent_broker_is_waited_for() {
    let settings = Settings {
        url: "amqp://127.0.0.1:1/%2f".into(),
        ..Settings::default()
    };
    let broker = Broker::open(&settings)
        .await
        .expect("absence is no fault of the settings");
    let mut status = broker.status();
    let fault = status.wait_for(|status| status.fault.is_some());
    let fault = tokio::time::timeout(PATIENCE, fault)
        .await
        .expect("in time")
        .expect("alive")
        .clone();
    assert!(!fault.connected);
    assert!(fault.fault.expect("a reason").contains("127.0.0.1:1"));
    assert_eq!(
        broker.publisher().publish(event(1)).await,
        Err(PublishError::Unavailable)
    );
    let mut consumer = broker.consume(Queue::Inbox, 1).await;
    tokio::join!(broker.close(), async {
        assert!(consumer.next().await.is_none())
    });
}

#[tokio::test]
async fn a_deleted_queue_or_exchange_is_declared_again() {
    let bed = Bed::rabbit().await;
    let broker = bed.open().await;
    let mut consumer = broker.consume(Queue::Inbox, 10).await;
    let (connection, channel) = channel(&bed.settings.url).await;
    let deleted = channel.queue_delete(topology::INBOX.into(), QueueDeleteOptions::default());
    deleted.await.expect("deleted");
    let deleted = channel.exchange_delete(topology::DEAD.into(), Default::default());
    deleted.await.expect("deleted");
    let publisher = broker.publisher();
    for parcel in [event("a"), parcel(Route::Dead, "b")] {
        let taken = publish_until_taken(&*publisher, parcel);
        tokio::time::timeout(PATIENCE, taken)
            .await
            .expect("in time")
            .expect("taken");
    }
    // What is published while its queue is away goes to quarantine, or to the new queue.
    let mut dead = broker.consume(Queue::Dead, 10).await;
    let mut quarantine = broker.consume(Queue::Quarantine, 10).await;
    let mut arrived = BTreeSet::new();
    while arrived.len() < 2 {
        let received = tokio::select! {
            received = next(&mut consumer) => received,
            received = next(&mut dead) => received,
            received = next(&mut quarantine) => received,
        };
        arrived.insert(id(&received));
    }
    assert_eq!(arrived, ["a".to_owned(), "b".to_owned()].into());
    // Until the binding is there, more goes to quarantine: publish until the consumer has one.
    let mut came_back = Box::pin(next(&mut consumer));
    loop {
        publish(&broker, event("c")).await;
        tokio::select! {
            received = &mut came_back => {
                assert_eq!(id(&received), "c");
                break;
            }
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
    drop(came_back);
    connection.close(200, "done".into()).await.expect("closed");
    broker.close().await;
}

#[tokio::test]
async fn an_exchange_that_a_service_declared_first_is_used_as_it_is() {
    let bed = Bed::rabbit().await;
    let (_connection, channel) = channel(&bed.settings.url).await;
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let topic = lapin::ExchangeKind::Topic;
    let declared = channel.exchange_declare(
        topology::EVENTS.into(),
        topic,
        durable,
        FieldTable::default(),
    );
    declared.await.expect("declared");
    let broker = bed.open().await;
    let mut inbox = broker.consume(Queue::Inbox, 10).await;
    publish(&broker, event(1)).await;
    let received = next(&mut inbox).await;
    assert_eq!(received.message_id, Some(event(1).message_id));
    received.ticket.ack();
    broker.close().await;
}

#[tokio::test]
async fn a_queue_declared_differently_is_named_with_its_argument_and_left_alone() {
    let bed = Bed::rabbit().await;
    let (connection, channel) = channel(&bed.settings.url).await;
    let queues = topology::queues();
    let ours = queues.iter().find(|queue| queue.name == topology::INBOX);
    let mut arguments = FieldTable::default();
    for (name, value) in &ours.expect("in the table").arguments {
        let value = match *value {
            topology::Argument::Text(text) => AMQPValue::LongString(text.into()),
            topology::Argument::Number(_) if *name == "x-max-length" => AMQPValue::LongLongInt(7),
            topology::Argument::Number(number) => AMQPValue::LongLongInt(number),
        };
        arguments.insert((*name).into(), value);
    }
    let inbox = || topology::INBOX.into();
    let declared = channel.queue_declare(inbox(), QueueDeclareOptions::durable(), arguments);
    declared.await.expect("declared");
    let findings = topology::check(&bed.settings)
        .await
        .expect("the server answers");
    let about = |findings: &[topology::Finding], name: &str| {
        findings
            .iter()
            .find(|finding| finding.name == name)
            .expect("in the table")
            .state
            .clone()
    };
    let topology::State::Differs { argument, detail } = about(&findings, topology::INBOX) else {
        panic!("{findings:?}");
    };
    assert_eq!(argument, "x-max-length");
    assert!(detail.contains("current is '7'"), "{detail}");
    assert_eq!(about(&findings, topology::DEAD), topology::State::Missing);
    // Declaring says the same and touches nothing, repairing or not.
    for repair in [false, true] {
        let findings = topology::declare(&bed.settings, repair)
            .await
            .expect("the server answers");
        assert!(matches!(
            about(&findings, topology::INBOX),
            topology::State::Differs { .. }
        ));
    }
    // A stage that starts on it says so and does not work on half a topology.
    let broker = Broker::open(&bed.settings).await.expect("it waits");
    let mut status = broker.status();
    let fault = status.wait_for(|status| status.fault.is_some());
    let fault = tokio::time::timeout(PATIENCE, fault)
        .await
        .expect("in time")
        .expect("alive")
        .clone();
    let text = fault.fault.expect("a reason");
    assert!(
        text.contains("x-max-length") && text.contains(topology::INBOX),
        "{text}"
    );
    broker.close().await;
    let (again, fresh) = self::channel(&bed.settings.url).await;
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::durable()
    };
    fresh
        .queue_declare(inbox(), passive, FieldTable::default())
        .await
        .expect("still there");
    for connection in [connection, again] {
        connection.close(200, "done".into()).await.expect("closed");
    }
}

#[tokio::test]
async fn the_declared_topology_is_found_fine() {
    let bed = Bed::rabbit().await;
    let declared = topology::declare(&bed.settings, false)
        .await
        .expect("declared");
    let found = topology::check(&bed.settings)
        .await
        .expect("the server answers");
    for finding in declared.iter().chain(&found) {
        assert_eq!(finding.state, topology::State::Fine, "{finding}");
    }
    assert_eq!(
        found.len(),
        topology::EXCHANGES.len() + topology::queues().len()
    );
}

#[tokio::test]
async fn an_embedded_broker_has_no_topology_to_declare() {
    let error = topology::check(&Bed::embedded().settings)
        .await
        .expect_err("not RabbitMQ");
    assert!(error.to_string().contains("embedded"), "{error}");
}

#[tokio::test]
async fn the_definitions_file_makes_the_same_topology_on_a_private_broker() {
    let bed = Bed::private_rabbit(Options::default()).await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("definitions.json");
    std::fs::write(&file, topology::definitions("/").to_string()).expect("written");
    bed.server()
        .ctl(&["import_definitions", file.to_str().expect("a plain path")])
        .await;
    for finding in topology::check(&bed.settings)
        .await
        .expect("the server answers")
    {
        assert_eq!(finding.state, topology::State::Fine, "{finding}");
    }
}

#[tokio::test]
async fn a_queue_lost_with_its_private_broker_is_recognised_and_repaired() {
    let bed = Bed::private_rabbit(Options::default()).await;
    topology::declare(&bed.settings, false)
        .await
        .expect("declared");
    bed.server().kill9().await;
    bed.server().forget_queue_names();
    bed.server().start_again().await;
    let in_state = |findings: &[topology::Finding], state: topology::State| {
        let queues = findings.iter().filter(|finding| finding.state == state);
        queues.map(|finding| finding.name.clone()).collect()
    };
    let findings = topology::check(&bed.settings)
        .await
        .expect("the server answers");
    let unusable: Vec<_> = in_state(&findings, topology::State::Unusable);
    assert_eq!(unusable, queue_names(), "{findings:?}");
    let findings = topology::declare(&bed.settings, true)
        .await
        .expect("the server answers");
    let repaired: Vec<_> = in_state(&findings, topology::State::Repaired);
    assert_eq!(repaired, queue_names(), "{findings:?}");
    let broker = bed.open().await;
    let routes = [
        (event(1).route, Queue::Inbox),
        (Route::Deliver, Queue::Deliver),
        (Route::Dead, Queue::Dead),
    ];
    for (route, queue) in routes {
        assert_empty(&broker, queue, route).await;
    }
    broker.close().await;
}

#[tokio::test]
async fn vhost_credentials_and_authorities_of_a_private_broker_count() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "a private authority");
    let ca_file = file("ca.pem", ca.self_signed(&ca_key).expect("signed").pem());
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("a name");
    let certificate = certificate.signed_by(&key, &issuer).expect("signed").pem();
    let tls = Tls {
        certificate: file("server.pem", certificate),
        key: file("server.key", key.serialize_pem()),
        ca: ca_file.clone(),
    };
    let options = Options {
        tls: Some(tls),
        ..Options::default()
    };
    let bed = Bed::private_rabbit(options).await;
    let server: &Rabbit = bed.server();
    server.ctl(&["add_vhost", "my house"]).await;
    server.ctl(&["add_user", "us@er", "p/ss:w"]).await;
    server
        .ctl(&[
            "set_permissions",
            "-p",
            "my house",
            "us@er",
            ".*",
            ".*",
            ".*",
        ])
        .await;

    let url = |userinfo: &str| {
        let place = server.tls_url();
        let (_, place) = place.rsplit_once('@').expect("a place");
        format!(
            "amqps://{userinfo}@{}/my%20house",
            place.trim_end_matches("/%2f")
        )
    };
    let with = |userinfo: &str, ca_file| Settings {
        url: url(userinfo),
        ca_file,
        ..Settings::default()
    };
    let good = Broker::open(&with("us%40er:p%2Fss%3Aw", Some(ca_file.clone())))
        .await
        .expect("opens");
    connected(&good).await;
    publish(&good, event("a")).await;
    let queues = server.ctl(&["list_queues", "-p", "my house", "name"]).await;
    assert!(queues.contains(topology::INBOX), "{queues}");
    assert!(
        !server
            .ctl(&["list_queues", "name"])
            .await
            .contains(topology::INBOX)
    );
    good.close().await;

    for (what, settings) in [
        ("an unknown authority", with("us%40er:p%2Fss%3Aw", None)),
        ("a wrong password", with("us%40er:hunter2", Some(ca_file))),
    ] {
        let broker = Broker::open(&settings).await.expect("it waits");
        let mut status = broker.status();
        let fault = status.wait_for(|status| status.fault.is_some() || status.connected);
        let fault = tokio::time::timeout(PATIENCE, fault)
            .await
            .expect("in time")
            .expect("alive")
            .clone();
        assert!(!fault.connected, "{what} was accepted");
        let text = fault.fault.expect("a reason");
        assert!(!text.contains("hunter2"), "{text}");
        broker.close().await;
    }
    let missing = Settings {
        ca_file: Some("/nowhere.pem".into()),
        ..with("u:p", None)
    };
    let error = Broker::open(&missing).await.expect_err("no such file");
    assert!(
        matches!(&error, OpenError::Other(text) if text.contains("/nowhere.pem")),
        "{error}"
    );
}

/// Two brokers on one server, as two processes are: one dies and the other gets its messages.
#[tokio::test]
async fn what_a_dead_process_held_goes_to_another() {
    let bed = Bed::rabbit().await;
    let (one, two) = (bed.open().await, bed.open().await);
    publish_all(&one, (0..30).map(event)).await;
    let mut first = one.consume(Queue::Inbox, 30).await;
    let held = take(&mut first, 30).await;
    let mut second = two.consume(Queue::Inbox, 30).await;
    drop((held, first, one));
    let received = take(&mut second, 30).await;
    assert_eq!(ids(&received), numbers(0..30));
    ack_all(received);
    two.close().await;
}

#[tokio::test]
async fn depths_are_those_of_the_server() {
    let bed = Bed::rabbit().await;
    let broker = bed.open().await;
    let due = std::time::SystemTime::now() + Duration::from_secs(4_000);
    let late: Parcel = parcel(Route::DeliverAt(due), "late");
    publish_all(&broker, (0..5).map(event).chain([late])).await;
    for (queue, depth) in [
        (topology::INBOX, 5),
        ("postrider.retry.1h", 1),
        (topology::DEAD, 0),
    ] {
        let of_queue = async || {
            let depths = broker.depths().await;
            assert_eq!(depths.len(), topology::queues().len());
            depths
                .into_iter()
                .find(|(name, _)| name == queue)
                .expect("in the table")
                .1
        };
        until(of_queue, depth).await;
    }
    broker.close().await;
}
