//! F16, F17, F22, F23, F25: strangers' endpoints, people who change their minds, publishers of
//! nonsense, and a redrive beside live traffic.

use std::time::Duration;

use lapin::{BasicProperties, options::BasicPublishOptions, options::ConfirmSelectOptions};
use serde_json::json;

use crate::support::{
    checker::Bar,
    proxy::Proxy,
    receiver::Answer,
    run::{Run, Size, is_long, now, tenant},
    world::{Kind, World},
};

/// One tenant's endpoint hangs with a backlog; the others' time from publishing to the endpoint is
/// compared with that of the same load before. Measured and reported, not asserted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of half a minute: make chaos"]
async fn f16_a_slow_endpoint_with_a_backlog() {
    let world = World::start(Kind::Rabbit).await;
    let mut run = Run::start("F16", world, Size::of(20, 60)).await.counting();
    let backlog = if is_long() { 10_000 } else { 300 };
    let slow = tenant(run.size.tenants);
    let path = format!("/{slow}/0");
    let retry = json!({"delivery": {"timeout": "2s", "retry": {"delays": ["1s"]}}});
    run.add(&slow, &path, &retry).await;
    let hang = Answer::status(200).after(Duration::from_secs(30));
    run.world.receiver.plan(&path, [hang]);
    run.load().await;
    run.reaches(0.45).await;
    let flood = run.mark("the backlog is published");
    for n in 0..backlog {
        run.publish(&slow, &format!("{slow}-{n:06}")).await;
    }
    run.published().await;
    let end = run.mark("the load is over");
    let before = run.latency(0.99, 0, flood, &slow);
    let during = run.latency(0.99, flood, end, &slow);
    run.figure("p99 before", before, None);
    run.figure(
        "p99 beside the backlog",
        during,
        Some((2 * before).max(before + 50)),
    );
    run.world.receiver.plan(&path, [Answer::status(200)]);
    run.mark("the endpoint is well");
    run.finish(&Bar {
        // What timed out was being answered all the same.
        duplicates_max: backlog,
        ..Bar::strict()
    })
    .await;
}

/// All endpoints refuse connections for a while; afterwards everything is delivered, and what comes
/// at once stays within twice the usual.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: make chaos"]
async fn f17_all_endpoints_are_down() {
    let world = World::start(Kind::Rabbit).await;
    let port = world.receiver.port();
    let proxy = Proxy::before(port).await;
    let retry = json!({
        "delivery": {"retry": {"attempts": 30, "first": "1s", "factor": 1.5, "cap": "5s"}},
    });
    let mut run = Run::behind("F17", world, Size::of(25, 60), retry, proxy.port()).await;
    run.load().await;
    run.reaches(0.2).await;
    run.mark("all endpoints are down");
    proxy.down();
    tokio::time::sleep(Duration::from_secs(if is_long() { 30 } else { 10 })).await;
    proxy.up();
    let up = run.mark("all endpoints are up");
    let first = run.first_delivery(up).await;
    run.figure("first delivery after", first - up, None);
    run.finish(&Bar::strict()).await;
}

/// While deliveries are retried: one subscription is deleted, one moves, one gets a new secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f22_people_change_their_minds_during_retries() {
    let world = World::start(Kind::Rabbit).await;
    let retry =
        json!({"delivery": {"retry": {"attempts": 50, "first": "1s", "factor": 1, "cap": "1s"}}});
    let mut run = Run::with("F22", world, Size::of(4, 20), retry).await;
    for wanting in &run.wanting {
        let failing = [Answer::status(503)];
        run.world.receiver.plan(&wanting.path, failing);
    }
    run.load().await;
    run.reaches(0.6).await;
    let all = run.wanting.clone();
    let of = |n: usize| format!("/v1/subscriptions/{}", all[n].subscribed.id);

    run.world.call("DELETE", &of(0), None).await.expect(204);
    run.wanting[0].subscribed.until = Some(run.mark("one is unsubscribed"));

    let moved = "/moved";
    let target = json!({"target_url": run.world.receiver.url(moved)});
    run.world
        .call("PATCH", &of(1), Some(target))
        .await
        .expect(200);
    run.mark("one moves");
    run.moved(1, moved);

    let path = format!("{}/rotate-secret", of(2));
    let rotated = run.world.call("POST", &path, None);
    let rotated = rotated.await.expect(200);
    let secret = rotated["secret"]
        .as_str()
        .expect("the new secret")
        .to_owned();
    run.mark("one has a new secret");
    run.wanting[2].secrets.push(secret);

    run.published().await;
    for wanting in &run.wanting {
        run.world
            .receiver
            .plan(&wanting.path, [Answer::status(200)]);
    }
    run.mark("the endpoints are well");
    let slack = if is_long() { 2_000 } else { 20_000 };
    run.finish(&Bar {
        after_end_max_ms: slack,
        ..Bar::strict()
    })
    .await;
}

/// One message in ten can never be an event: each is in quarantine, and the others flow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f23_a_storm_of_poison() {
    let world = World::start(Kind::Rabbit).await;
    let url = world.setting("broker.url").to_owned();
    let mut run = Run::start("F23", world, Size::of(5, 50)).await.counting();
    let poison = run.size.events() / 10;
    run.load().await;
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(&url, properties).await;
    let connection = connection.expect("the broker takes a client");
    let channel = connection.create_channel().await.expect("a channel");
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .expect("confirms");
    run.mark("poison");
    for n in 0..poison {
        let body = match n % 3 {
            0 => format!("{n} is no object"),
            1 => format!(r#"{{"id":"poison-{n}","tenant":"salon-00","type":"NO"}}"#),
            _ => format!(r#"{{"id":"poison-{n}","tenant":"salon-00","type":"a.b","dat":1}}"#),
        };
        channel
            .basic_publish(
                broker::topology::EVENTS.into(),
                "poison".into(),
                BasicPublishOptions::default(),
                body.as_bytes(),
                BasicProperties::default().with_delivery_mode(2),
            )
            .await
            .expect("published")
            .await
            .expect("confirmed");
    }
    run.mark(&format!("{poison} messages of poison"));
    run.finish(&Bar {
        quarantined: poison,
        ..Bar::strict()
    })
    .await;
}

/// Dead letters are redriven by a job while events flow. Measured and reported, not asserted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of half a minute: make chaos"]
async fn f25_a_redrive_beside_live_traffic() {
    let world = World::start(Kind::Rabbit).await;
    let mut run = Run::start("F25", world, Size::of(20, 60)).await;
    let dead = if is_long() { 10_000 } else { 300 };
    let unlucky = tenant(run.size.tenants);
    let path = format!("/{unlucky}/0");
    let none = json!({"delivery": {"retry": "none", "max_in_flight": 64}});
    run.add(&unlucky, &path, &none).await;
    run.world.receiver.plan(&path, [Answer::status(500)]);
    for n in 0..dead {
        run.publish(&unlucky, &format!("{unlucky}-{n:06}")).await;
    }
    run.quiet().await;
    run.world.receiver.plan(&path, [Answer::status(200)]);
    run.load().await;
    run.reaches(0.45).await;
    let redriven = run.mark("redrive");
    let body = json!({"tenant": unlucky, "job": true});
    let job = run
        .world
        .call("POST", "/v1/dead-letters/redrive", Some(body));
    let job = job.await.expect(202);
    run.published().await;
    let end = now();
    let (before, beside) = (
        run.latency(0.99, 0, redriven, &unlucky),
        run.latency(0.99, redriven, end, &unlucky),
    );
    run.figure("p99 before", before, None);
    run.figure("p99 beside the redrive", beside, Some(before * 3 / 2));
    let path = format!("/v1/jobs/{}", job["id"].as_str().expect("an id"));
    let deadline = std::time::Instant::now() + Duration::from_secs(200);
    while run.world.call("GET", &path, None).await.expect(200)["state"] != "done" {
        assert!(std::time::Instant::now() < deadline, "the job is not done");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    run.finish(&Bar::strict()).await;
}
