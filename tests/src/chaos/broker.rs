//! F10 to F15 and F18: the connection to the broker is cut, loses confirms, is blocked; its queues
//! are full, unbound, or lose patience.

use std::time::Duration;

use crate::support::{
    checker::Bar,
    http,
    node::Node,
    postgres,
    proxy::{Proxy, Toxics},
    rabbit::{self, Options, Rabbit},
    receiver::Answer,
    run::{Run, Size, is_long},
    world::{Kind, World},
};

/// What was unacknowledged when a connection broke comes again: a deliverer's deliveries and a
/// router's messages with all their deliveries.
const IN_FLIGHT: usize = 1024;

/// `amqp://…` by way of a proxy.
async fn by_proxy(url: &str) -> (Proxy, String) {
    let port: u16 = url
        .rsplit_once('@')
        .and_then(|(_, rest)| rest.split(['/', ':']).nth(1))
        .and_then(|port| port.parse().ok())
        .expect("the URL names its port");
    let proxy = Proxy::before(port).await;
    let url = url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
    (proxy, url)
}

/// A world on a broker of its own.
async fn on(rabbit: &Rabbit) -> World {
    let settings = vec![
        ("broker.url", rabbit.url()),
        ("store.url", postgres::fresh_database_url().await),
    ];
    World::around(Kind::Rabbit, settings).await
}

async fn ready(node: &Node) -> u16 {
    let answer = http::ask(node.ops(), "GET", "/readyz", &[]).await;
    answer.expect("the ops port answers").status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: make chaos"]
async fn f10_the_broker_is_cut_off_without_a_word() {
    let (proxy, url) = by_proxy(&rabbit::fresh_vhost_url().await).await;
    let settings = vec![
        ("broker.url", url),
        ("store.url", postgres::fresh_database_url().await),
    ];
    let world = World::around(Kind::Rabbit, settings).await;
    let mut run = Run::start("F10", world, Size::of(10, 60)).await;
    let in_flight = IN_FLIGHT + 500 * run.size.subscriptions;
    run.load().await;
    run.reaches(0.2).await;
    proxy.swallow();
    let cut = run.mark("cut");
    while ready(&run.world.nodes[1]).await == 200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let seen = run.mark("the router says that the broker is away");
    run.figure("cut seen by the heartbeat", seen - cut, Some(25_000));
    let lasts = Duration::from_secs(if is_long() { 90 } else { 25 });
    tokio::time::sleep(lasts.saturating_sub(Duration::from_millis(seen - cut))).await;
    proxy.heal();
    let healed = run.mark("healed");
    let first = run.first_delivery(healed).await;
    run.figure("first delivery after healing", first - healed, Some(10_000));
    run.finish(&Bar::repeating(in_flight)).await;
}

/// The broker stores the events and its confirms get lost: the publisher is told 503, publishes
/// again, and each event is routed once. Only intake and recorder are behind the proxy, so that
/// nothing else may repeat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_lost_confirms_make_no_duplicates() {
    let mut world = World::start(Kind::Rabbit).await;
    let (proxy, url) = by_proxy(world.setting("broker.url")).await;
    world.nodes[0].drain().await;
    let mut settings = world.settings.clone();
    settings.retain(|(key, _)| *key != "broker.url");
    settings.push(("broker.url", url));
    world.nodes[0] = Node::start("producer,recorder,console", &settings).await;
    let mut run = Run::start("F11", world, Size::of(6, 60)).await;
    let cuts = if is_long() { 20 } else { 4 };
    run.load().await;
    for n in 1..=cuts {
        run.reaches(f64::from(n) / f64::from(cuts + 1)).await;
        let lost = run.mark("confirms are lost");
        proxy.to_client(Toxics {
            limit_data: Some(0),
            ..Toxics::default()
        });
        run.answered(503, lost).await;
        proxy.heal();
        run.mark("confirms come through");
    }
    run.finish(&Bar::strict()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f12_a_disk_alarm_of_a_private_broker() {
    let rabbit = Rabbit::start().await;
    let alarm = ["set_disk_free_limit", "999999999999999"];
    let quiet = ["set_disk_free_limit", "64000000"];
    alarmed("F12", &rabbit, &alarm, &quiet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "as F12, with another alarm: make chaos"]
async fn f13_a_memory_alarm_of_a_private_broker() {
    let rabbit = Rabbit::start().await;
    let alarm = ["set_vm_memory_high_watermark", "absolute", "20000000"];
    let quiet = ["set_vm_memory_high_watermark", "0.6"];
    alarmed("F13", &rabbit, &alarm, &quiet).await;
}

/// Publishers are told 503 while consumers go on: what is to be recorded is recorded, its queues
/// run empty. Afterwards everything drains.
async fn alarmed(name: &'static str, rabbit: &Rabbit, alarm: &[&str], quiet: &[&str]) {
    let mut run = Run::start(name, on(rabbit).await, Size::of(5, 60)).await;
    run.load().await;
    run.reaches(0.3).await;
    rabbit.ctl(alarm).await;
    let alarmed = run.mark("alarm");
    let told = run.answered(503, alarmed).await;
    run.figure("503 after the alarm", told - alarmed, Some(2_000));
    // Acks still flow: what the recorder takes it settles.
    rabbit_records_everything(rabbit).await;
    run.mark("everything that was published for the recorder is settled");
    let long = if is_long() { 20 } else { 1 };
    tokio::time::sleep(Duration::from_secs(long)).await;
    rabbit.ctl(quiet).await;
    let over = run.mark("alarm over");
    let first = run.accepted_after(over).await;
    run.figure("accepted after the alarm", first - over, Some(10_000));
    // A bundle that was on its way to the broker when it stopped reading was published once more.
    run.finish(&Bar::repeating(IN_FLIGHT)).await;
}

/// Waits until the recorder's queues hold nothing, neither ready nor unacknowledged.
async fn rabbit_records_everything(rabbit: &Rabbit) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let list = ["list_queues", "name", "messages", "--no-table-headers"];
        let queues = rabbit.ctl(&list).await;
        let left = queues.lines().filter(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default();
            ["postrider.archive", "postrider.log"].contains(&name) && words.next() != Some("0")
        });
        if left.count() == 0 {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the recorder's acks do not reach a broker with an alarm:\n{queues}"
        );
    }
}

/// The inbox takes no more than its limit: publishers are told 503, and nothing is dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f14_a_full_queue_of_a_private_broker_refuses() {
    let rabbit = Rabbit::start().await;
    let mut run = Run::start("F14", on(&rabbit).await, Size::of(4, 30)).await;
    let limit = r#"{"max-length":40}"#;
    let policy = ["set_policy", "full", "^postrider\\.inbox$", limit];
    rabbit
        .ctl(&[&policy as &[&str], &["--apply-to", "queues"]].concat())
        .await;
    run.world.router().drain().await;
    run.load().await;
    let full = run.mark("nobody empties the inbox");
    run.answered(503, full).await;
    run.mark("it is full");
    let before = run.accepted();
    let long = if is_long() { 20 } else { 1 };
    tokio::time::sleep(Duration::from_secs(long)).await;
    // A quorum queue takes a few more than its limit while it learns of it.
    assert!(run.accepted() < before + 100, "a full queue took events");
    run.world.router().start_again().await;
    run.mark("the router is back");
    run.finish(&Bar::strict()).await;
}

/// Somebody unbound the inbox. The alternate exchange takes what has no way to go, so that it is
/// confirmed and in quarantine; the recorder that finds it there brings the binding back, and what a
/// person releases is delivered. Nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f15_a_binding_that_was_removed() {
    let world = World::start(Kind::Rabbit).await;
    let url = world.setting("broker.url").to_owned();
    let mut run = Run::start("F15", world, Size::of(6, 30)).await;
    run.load().await;
    run.reaches(0.3).await;
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(&url, properties).await;
    let connection = connection.expect("the broker takes a client");
    let channel = connection.create_channel().await.expect("a channel");
    let unbound = run.mark("unbound");
    channel
        .queue_unbind(
            broker::topology::INBOX.into(),
            broker::topology::EVENTS.into(),
            "#".into(),
            Default::default(),
        )
        .await
        .expect("unbound");
    let stray = "postrider_recorder_rows_total";
    run.world
        .wait_for_metric(stray, "table=\"quarantine\"", 1.0)
        .await;
    let seen = run.mark("a stray event is in quarantine");
    run.figure(
        "quarantined after the binding went",
        seen - unbound,
        Some(5_000),
    );
    run.published().await;
    // The binding is back: the next event goes its way.
    let first = run.first_delivery(seen).await;
    run.figure("delivered again", first - seen, Some(10_000));
    // What became of the strays that were on their way.
    let mut strays = Vec::new();
    for _ in 0..3 {
        loop {
            let now = run.world.items("/v1/quarantine?limit=500").await;
            if std::mem::replace(&mut strays, now).len() == strays.len() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    for stray in &strays {
        let id = stray["id"].as_str().expect("an id");
        let path = format!("/v1/quarantine/{id}/release");
        let released = run.world.call("POST", &path, None).await;
        assert!((200..300).contains(&released.status), "{:#}", released.json);
    }
    run.mark(&format!("{} strays released", strays.len()));
    run.finish(&Bar::strict()).await;
}

/// Endpoints take longer than the broker waits for an acknowledgement: the channel is closed, the
/// next one gets everything again, and it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: make chaos"]
async fn f18_a_private_broker_that_loses_patience() {
    let advanced = "[{rabbit, [{consumer_timeout, 5000}, {channel_tick_interval, 1000}]}].";
    let options = Options {
        advanced: Some(advanced.into()),
        ..Options::default()
    };
    let rabbit = Rabbit::start_with(options).await;
    let mut run = Run::start("F18", on(&rabbit).await, Size::of(5, 30)).await;
    let slow = Answer::status(200).after(Duration::from_secs(9));
    for wanting in &run.wanting {
        let fast = Answer::status(200);
        let plan = [slow.clone(), slow.clone(), fast];
        run.world.receiver.plan(&wanting.path, plan);
    }
    run.load().await;
    run.finish(&Bar {
        duplicates_max: IN_FLIGHT * 4,
        ..Bar::strict()
    })
    .await;
}
