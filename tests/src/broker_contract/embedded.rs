//! What only a broker in a folder can be asked: one process at a time, and a process that is killed.

use std::{
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use broker::{Broker, OpenError, Queue, Route, Settings};
use futures_util::{StreamExt, stream::FuturesUnordered};

use super::{
    Bed, PATIENCE, a_full_queue_refuses_and_loses_nothing, ack_all, assert_empty, event, id, ids,
    next, numbers, parcel, publish_all, take,
};
use crate::support::process::Process;

/// Tells the child that it is one.
const FOLDER: &str = "BROKER_CONTRACT_FOLDER";

/// Another process with the folder open, publishing events without end.
fn child(bed: &Bed) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("the test knows its program"));
    command
        .args([
            "--exact",
            "broker_contract::embedded::publishes_until_killed",
            "--ignored",
        ])
        .arg("--nocapture")
        .env(FOLDER, &bed.settings.url);
    Process::spawn(command)
}

/// The ids that the child says were confirmed; a line cut by the kill was not said.
fn confirmed(child: &Process) -> Vec<String> {
    let output = child.stdout();
    let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole
        .lines()
        .filter_map(|line| line.strip_prefix("confirmed "));
    lines.map(str::to_owned).collect()
}

async fn has_confirmed(child: &mut Process, count: usize) {
    let began = Instant::now();
    while confirmed(child).len() < count {
        assert!(
            child.status().is_none(),
            "the child ended: {}",
            child.stderr()
        );
        assert!(
            began.elapsed() < PATIENCE,
            "the child does not publish: {}",
            child.stderr()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
#[ignore = "not a test: the process that the tests below kill"]
async fn publishes_until_killed() {
    let url = std::env::var(FOLDER).expect("only the tests below start this");
    let broker = Broker::open(&Settings {
        url,
        ..Settings::default()
    })
    .await
    .expect("it opens");
    let publisher = broker.publisher();
    let next_number = AtomicU64::new(0);
    let events = (0..64).map(|_| async {
        loop {
            let number = next_number.fetch_add(1, Ordering::Relaxed);
            publisher.publish(event(number)).await.expect("taken");
            // At once: the kill must find as little as possible between the confirm and the word.
            println!("confirmed {number}");
        }
    });
    // Acks ride in the same transactions, and some messages are held when the kill comes.
    let mut consumer = broker.consume(Queue::Dead, 100).await;
    let settling = async {
        for number in 0_u64.. {
            let dead = publisher.publish(parcel(Route::Dead, number));
            dead.await.expect("taken");
            let received = next(&mut consumer).await;
            if number < 50 {
                std::mem::forget(received);
            } else {
                received.ticket.ack();
            }
        }
    };
    let mut events: FuturesUnordered<_> = events.collect();
    tokio::join!(events.next(), settling);
}

#[tokio::test]
async fn what_was_confirmed_survives_kill_9_of_the_process() {
    // The kill must fall between a confirm and its commit to find one that came too early.
    for _ in 0..12 {
        survives_a_kill().await;
    }
}

async fn survives_a_kill() {
    let bed = Bed::embedded();
    let mut child = child(&bed);
    has_confirmed(&mut child, 1_000).await;
    child.kill9();
    let confirmed = confirmed(&child);
    let broker = bed.open().await;
    let depths = broker.depths().await;
    let (_, depth) = depths
        .iter()
        .find(|(name, _)| name == "postrider.inbox")
        .expect("a queue");
    let depth = usize::try_from(*depth).expect("fits");
    let mut consumer = broker.consume(Queue::Inbox, u16::MAX).await;
    let received = take(&mut consumer, depth).await;
    let there = ids(&received);
    assert_eq!(there.len(), depth, "a message is there twice");
    let lost: Vec<_> = confirmed.iter().filter(|id| !there.contains(*id)).collect();
    assert!(lost.is_empty(), "confirmed and gone: {lost:?}");
    assert!(
        received.iter().all(|received| received.redelivered),
        "nobody can know"
    );
    ack_all(received);
    broker.close().await;
}

#[tokio::test]
async fn a_second_process_is_refused_and_told_what_to_do() {
    let bed = Bed::embedded();
    let mut child = child(&bed);
    has_confirmed(&mut child, 1).await;
    let refusal = Broker::open(&bed.settings)
        .await
        .expect_err("the child has the folder");
    assert!(matches!(refusal, OpenError::InUse { .. }), "{refusal}");
    let text = refusal.to_string();
    assert!(
        text.contains(&format!("(process {})", child.pid())),
        "{text}"
    );
    // The lock dies with its process.
    child.kill9();
    bed.open().await.close().await;
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let mut bed = Bed::embedded();
    bed.settings.queue_max = Some(10);
    let broker = bed.open().await;
    a_full_queue_refuses_and_loses_nothing(&broker).await;
    broker.close().await;
}

/// More than the memory for bodies: the rest is read from the file, in order, each once.
#[tokio::test]
async fn a_backlog_larger_than_memory_is_handed_out_whole() {
    let bed = Bed::embedded();
    let broker = bed.open().await;
    let large = |number: u32| {
        let mut parcel = event(number);
        parcel.body = vec![b'x'; 64 << 10].into();
        parcel
    };
    publish_all(&broker, (0..800).map(large)).await;
    let mut consumer = broker.consume(Queue::Inbox, 50).await;
    let mut seen = Vec::new();
    while seen.len() < 800 {
        let received = next(&mut consumer).await;
        assert_eq!(received.body.len(), 64 << 10);
        seen.push(id(&received).parse::<u32>().expect("a number"));
        received.ticket.ack();
        // Some come while it is being read.
        if seen.len() == 400 {
            publish_all(&broker, (800..810).map(event)).await;
        }
    }
    assert_eq!(seen, (0..800).collect::<Vec<_>>());
    assert_eq!(ids(&take(&mut consumer, 10).await), numbers(800..810));
    consumer.stop().await;
    broker.close().await;
}

#[tokio::test]
async fn the_file_does_not_grow_with_what_passes_through() {
    let bed = Bed::embedded();
    let path = bed
        .settings
        .url
        .strip_prefix("embedded://")
        .expect("a folder")
        .to_owned();
    let size = || -> u64 {
        let files = std::fs::read_dir(&path).expect("the folder is there");
        files
            .map(|file| file.and_then(|file| file.metadata()).expect("a file").len())
            .sum()
    };
    let broker = bed.open().await;
    let mut consumer = broker.consume(Queue::Inbox, 200).await;
    let mut round = async || {
        for _ in 0..20 {
            let parcels = (0..100).map(|number| {
                let mut parcel = event(number);
                parcel.body = vec![b'x'; 8 << 10].into();
                parcel
            });
            publish_all(&broker, parcels).await;
            ack_all(take(&mut consumer, 100).await);
        }
    };
    round().await;
    let after_one = size();
    for _ in 0..4 {
        round().await;
    }
    // 16 MiB pass in each round.
    let grown = size().saturating_sub(after_one);
    assert!(
        grown < 16 << 20,
        "{grown} bytes more after four more rounds"
    );
    consumer.stop().await;
    assert_empty(&broker, Queue::Inbox, event("").route).await;
    broker.close().await;
}
