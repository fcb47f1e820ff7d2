//! F01, F02, F03, F21: our own processes are killed, frozen and drained.

use std::time::Duration;

use crate::support::{
    checker::Bar,
    run::{Run, Size, is_long, two_deliverers},
    world::{Kind, World},
};

/// What a killed process may have had under way: a router's unacknowledged messages times their
/// subscriptions, or a deliverer's deliveries (four times `delivery.max_in_flight`).
const IN_FLIGHT: usize = 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_a_router_killed_at_random() {
    let world = World::start(Kind::Rabbit).await;
    let mut run = Run::start("F01", world, Size::of(5, 60)).await;
    let kills = if is_long() { 20 } else { 3 };
    let in_flight = 500 * run.size.subscriptions;
    run.load().await;
    let mut slowest = 0;
    for n in 1..=kills {
        run.reaches(f64::from(n) / f64::from(kills + 1)).await;
        run.mark("kill -9 router");
        run.world.router().kill9();
        run.world.router().start_again().await;
        let up = run.mark("router ready");
        slowest = slowest.max(run.first_delivery(up).await - up);
    }
    run.figure("first delivery after a restart", slowest, Some(2_000));
    let kills = usize::try_from(kills).expect("a few");
    run.finish(&Bar::repeating(kills * in_flight)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f02_a_deliverer_killed_mid_post() {
    let world = World::start(Kind::Rabbit).await;
    let mut run = Run::start("F02", world, Size::of(5, 60)).await;
    let kills = if is_long() { 20 } else { 3 };
    run.load().await;
    let mut slowest = 0;
    for n in 1..=kills {
        run.reaches(f64::from(n) / f64::from(kills + 1)).await;
        let receiver = run.world.receiver.clone();
        let busy = || receiver.is_answering().then_some(());
        receiver.wait_until("a request under way", busy).await;
        run.mark("kill -9 deliverer");
        run.world.deliverer().kill9();
        run.world.deliverer().start_again().await;
        let up = run.mark("deliverer ready");
        slowest = slowest.max(run.first_delivery(up).await - up);
    }
    run.figure("first delivery after a restart", slowest, Some(2_000));
    let kills = usize::try_from(kills).expect("a few");
    run.finish(&Bar::repeating(kills * IN_FLIGHT)).await;
}

/// Frozen for longer than the broker waits for a heartbeat: what it held is another's by then, and
/// whatever it does when it wakes must not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: make chaos"]
async fn f03_a_frozen_deliverer_is_a_zombie_that_does_no_harm() {
    let world = two_deliverers(&[("broker.heartbeat", "5s".into())]).await;
    let mut run = Run::start("F03", world, Size::of(30, 75)).await;
    let frozen = Duration::from_secs(if is_long() { 60 } else { 20 });
    run.load().await;
    run.reaches(0.1).await;
    run.mark("SIGSTOP deliverer");
    run.world.deliverer().process().signal("STOP");
    tokio::time::sleep(frozen).await;
    run.mark("SIGCONT deliverer");
    run.world.deliverer().process().signal("CONT");
    run.finish(&Bar {
        // What it was in the middle of when it froze was signed back then.
        timestamp_off_max_ms: None,
        ..Bar::repeating(IN_FLIGHT)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_each_process_drained_under_load() {
    let world = World::with(Kind::Rabbit, 2, &[]).await;
    let mut run = Run::start("F21", world, Size::of(6, 60)).await;
    run.load().await;
    let mut slowest = 0;
    // The API too: its publishers try again, and what it had taken it had confirmed.
    for n in 0..3 {
        run.reaches((n + 1) as f64 / 5.0).await;
        let began = run.mark("SIGTERM");
        run.world.nodes[n].drain().await;
        slowest = slowest.max(run.mark("drained") - began);
        run.world.nodes[n].start_again().await;
    }
    run.figure("slowest drain", slowest, Some(25_000));
    run.finish(&Bar::strict()).await;
}
