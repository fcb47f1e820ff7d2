//! F04 to F09: three brokers, of which one or all are killed, stopped or cut off.

use std::time::Duration;

use broker::topology;

use crate::support::{
    checker::Bar,
    cluster::Cluster,
    postgres,
    run::{Run, Size, is_long},
    world::{Kind, World},
};

/// What was unacknowledged when connections broke: of deliverer and router, and each that was
/// published and not confirmed is published again.
fn bar(breaks: usize) -> Bar {
    let subscriptions = if is_long() { 5 } else { 2 };
    Bar::repeating(breaks * (1024 + 500 * subscriptions))
}

async fn run_on(name: &'static str, cluster: &Cluster, size: Size) -> Run {
    let settings = vec![
        ("broker.url", cluster.url().await),
        ("broker.heartbeat", "5s".into()),
        ("store.url", postgres::fresh_database_url().await),
    ];
    let world = World::around(Kind::Rabbit, settings).await;
    let run = Run::start(name, world, size).await;
    // The names of new queues are not on disk yet; a node killed before loses them.
    tokio::time::sleep(Duration::from_secs(4)).await;
    run
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts three brokers: make chaos"]
async fn f04_the_leader_of_the_queues_is_killed() {
    let cluster = Cluster::start().await;
    let mut run = run_on("F04", &cluster, Size::of(20, 60)).await;
    run.load().await;
    run.reaches(0.3).await;
    let leader = cluster.leader(topology::INBOX).await;
    let killed = run.mark(&format!("kill -9 node {leader}, the leader"));
    cluster.kill9(leader).await;
    run.reaches(0.7).await;
    run.figure(
        "longest time without a confirm",
        run.longest_silence(killed),
        Some(10_000),
    );
    run.mark("the node comes back");
    cluster.start_again(&[leader]).await;
    run.finish(&bar(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts three brokers: make chaos"]
async fn f05_all_three_are_killed() {
    let cluster = Cluster::start().await;
    let mut run = run_on("F05", &cluster, Size::of(15, 60)).await;
    run.load().await;
    run.reaches(0.4).await;
    run.mark("kill -9 all nodes");
    for node in [1, 2, 3] {
        cluster.kill9(node).await;
    }
    cluster.start_again(&[1, 2, 3]).await;
    let up = run.mark("all nodes answer");
    let first = run.first_delivery(up).await;
    run.figure("first delivery after the start", first - up, None);
    run.finish(&bar(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts three brokers: make chaos"]
async fn f06_a_rolling_restart() {
    let cluster = Cluster::start().await;
    let mut run = run_on("F06", &cluster, Size::of(40, 90)).await;
    run.load().await;
    let mut slowest = 0;
    for node in [1, 2, 3] {
        run.reaches((node as f64 - 0.5) / 4.0).await;
        let down = run.mark(&format!("node {node} stops"));
        cluster.ctl(node, &["stop_app"]).await;
        cluster.ctl(node, &["start_app"]).await;
        run.mark(&format!("node {node} is back"));
        run.reaches(node as f64 / 4.0).await;
        slowest = slowest.max(run.longest_silence(down));
    }
    run.figure("longest time without a confirm", slowest, Some(10_000));
    run.finish(&bar(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts three brokers in network namespaces: make chaos"]
async fn f07_the_leader_is_cut_off() {
    let cluster = Cluster::in_namespaces().await;
    let mut run = run_on("F07", &cluster, Size::of(60, 120)).await;
    run.load().await;
    run.reaches(0.2).await;
    let mut slowest = 0;
    let lasting: &[u64] = if is_long() { &[10, 30] } else { &[30] };
    for seconds in lasting {
        let leader = cluster.leader(topology::INBOX).await;
        let cut = run.mark(&format!("node {leader}, the leader, is alone"));
        cluster.alone(leader).await;
        tokio::time::sleep(Duration::from_secs(*seconds)).await;
        cluster.heal().await;
        let healed = run.mark("healed");
        slowest = slowest.max(run.first_delivery(healed).await - healed);
        run.figure(
            "longest time without a confirm",
            run.longest_silence(cut),
            None,
        );
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    run.figure("first delivery after healing", slowest, None);
    run.finish(&bar(lasting.len() * 2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts three brokers in network namespaces: make chaos"]
async fn f08_one_node_after_the_other_is_cut_off() {
    let cluster = Cluster::in_namespaces().await;
    let mut run = run_on("F08", &cluster, Size::of(75, 150)).await;
    run.load().await;
    run.reaches(0.1).await;
    // In which order the halves fall apart is the run's own luck, and written down.
    let first = std::process::id() as usize % 3;
    let seconds: &[u64] = if is_long() {
        &[10, 30, 10]
    } else {
        &[10, 20, 10]
    };
    let began = run.mark("three partitions follow");
    for (n, seconds) in seconds.iter().enumerate() {
        let node = (first + n) % 3 + 1;
        run.mark(&format!("node {node} is alone"));
        cluster.alone(node).await;
        tokio::time::sleep(Duration::from_secs(*seconds)).await;
        cluster.heal().await;
        run.mark("healed");
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    run.published().await;
    run.figure(
        "longest time without a confirm",
        run.longest_silence(began),
        None,
    );
    run.finish(&bar(6)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts three brokers in network namespaces: make chaos"]
async fn f09_two_nodes_do_not_see_each_other() {
    let cluster = Cluster::in_namespaces().await;
    let mut run = run_on("F09", &cluster, Size::of(50, 90)).await;
    run.load().await;
    run.reaches(0.2).await;
    let cut = run.mark("1 and 2 do not see each other");
    cluster.ring().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    cluster.heal().await;
    run.mark("healed");
    run.published().await;
    run.figure(
        "longest time without a confirm",
        run.longest_silence(cut),
        None,
    );
    run.finish(&bar(4)).await;
}
