//! What needs a file that misbehaves, or a look behind the seam. The promises themselves are in
//! the contract suite.

use std::time::Duration;

use super::*;
use crate::{Broker, Received, Route, publish_until_taken};

const PATIENCE: Duration = Duration::from_secs(30);

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

fn open_at(folder: &tempfile::TempDir, pages_max: Option<u32>) -> Embedded {
    start(folder.path(), topology::QUEUE_MAX, pages_max).expect("it opens")
}

fn parcel(id: usize, bytes: usize) -> Parcel {
    Parcel::json(Route::Dead, id.to_string(), vec![b'x'; bytes])
}

async fn next(consumer: &mut Box<dyn Consume>) -> Received {
    let received = tokio::time::timeout(PATIENCE, consumer.next()).await;
    received.expect("in time").expect("open")
}

/// While the writer reads what came due, nobody may believe the queue empty: whoever adds up the
/// depths, a person or the law of the tests, would call it lost.
#[test]
fn what_is_being_read_is_counted() {
    let shelves = Shelves::new(topology::QUEUE_MAX);
    let shelf = shelves.of(Queue::Deliver);
    let depth = || {
        let depths = shelves.depths().into_iter();
        depths.map(|(_, depth)| depth).sum::<u64>()
    };
    let key = |id| file::Key {
        table: file::Table::Later,
        id,
    };
    shelf.know([key(1), key(2)]);
    let (known, tail) = shelf.wanted(10).expect("there is something to read");
    assert_eq!((known.len(), tail, depth()), (2, None, 2));
    shelf.unwanted(known);
    assert_eq!(depth(), 2, "it could not be read");
    let (known, _) = shelf.wanted(10).expect("again");
    let read = |key| file::Message::of(key, parcel(1, 1), String::new(), 0);
    shelf.refill(known.into_iter().map(read).collect(), Vec::new(), None);
    assert_eq!(depth(), 2, "it is ready");
}

/// A file that may not grow: what is refused is refused, what was confirmed is there, and room
/// that comes back is used.
#[tokio::test]
async fn a_full_disk_refuses_and_loses_nothing_and_heals() {
    let folder = folder();
    let broker = open_at(&folder, Some(200));
    let mut taken = Vec::new();
    let refusal = loop {
        match broker.send(parcel(taken.len(), 10_000)).await {
            Ok(()) => taken.push(taken.len().to_string()),
            Err(refusal) => break refusal,
        }
        assert!(taken.len() < 1_000, "a file of 800 KiB took 10 MB");
    };
    assert_eq!(refusal, PublishError::Rejected);
    let mut status = broker.status();
    assert!(
        status.borrow_and_update().blocked.is_some(),
        "readiness must see it"
    );
    let refusal = broker.send(parcel(0, 10)).await.expect_err("blocked");
    assert!(matches!(refusal, PublishError::Blocked(_)), "{refusal}");

    let mut consumer = broker.consume(Queue::Dead, 1_000).await;
    for id in &taken {
        let received = next(&mut consumer).await;
        assert_eq!(received.message_id.as_ref(), Some(id));
        received.ticket.ack();
    }
    let again = publish_until_taken(&broker, parcel(1_000, 10_000));
    tokio::time::timeout(PATIENCE, again)
        .await
        .expect("it heals")
        .expect("taken");
    assert_eq!(status.borrow_and_update().blocked, None);
    assert_eq!(
        next(&mut consumer).await.message_id.as_deref(),
        Some("1000")
    );
    broker.close().await;
}

#[tokio::test]
async fn what_was_handed_out_at_a_close_is_redelivered_and_the_rest_is_not() {
    let folder = folder();
    let broker = open_at(&folder, None);
    for id in 0..4 {
        broker.send(parcel(id, 10)).await.expect("taken");
    }
    let mut consumer = broker.consume(Queue::Dead, 10).await;
    let held = (next(&mut consumer).await, next(&mut consumer).await);
    broker.close().await;
    drop((held, consumer));
    let broker = open_at(&folder, None);
    let mut consumer = broker.consume(Queue::Dead, 10).await;
    for (id, returns) in [("0", 1), ("1", 1), ("2", 0), ("3", 0)] {
        let received = next(&mut consumer).await;
        assert_eq!(received.message_id.as_deref(), Some(id));
        assert_eq!(
            (received.returns, received.redelivered),
            (returns, returns > 0)
        );
    }
    broker.close().await;
}

/// Otherwise new messages would count as handed out by the run before.
#[tokio::test]
async fn ids_are_not_used_again_after_a_queue_ran_empty() {
    let folder = folder();
    for _ in 0..3 {
        let broker = open_at(&folder, None);
        broker.send(parcel(7, 10)).await.expect("taken");
        let mut consumer = broker.consume(Queue::Dead, 10).await;
        let received = next(&mut consumer).await;
        assert!(!received.redelivered);
        received.ticket.ack();
        broker.close().await;
    }
}

/// A place is free when the ack is on disk, so a prefetch of one must not wait for the group.
#[tokio::test]
async fn a_prefetch_of_one_goes_on_without_waiting_for_company() {
    let folder = folder();
    let broker = open_at(&folder, None);
    let mut consumer = broker.consume(Queue::Dead, 1).await;
    for id in 0..200 {
        broker.send(parcel(id, 10)).await.expect("taken");
    }
    for id in 0..200 {
        let received = next(&mut consumer).await;
        assert_eq!(received.message_id, Some(id.to_string()));
        received.ticket.ack();
    }
    broker.close().await;
}

#[tokio::test]
async fn a_broker_that_is_dropped_gives_its_folder_free() {
    let folder = folder();
    let settings = Settings {
        url: format!("embedded://{}", folder.path().display()),
        ..Settings::default()
    };
    for _ in 0..3 {
        let broker = Broker::open(&settings).await.expect("free");
        broker
            .publisher()
            .publish(parcel(1, 10))
            .await
            .expect("taken");
    }
}

#[test]
fn a_file_of_another_layout_is_refused() {
    let folder = folder();
    let path = folder.path().join("broker.db");
    let file = File::open(&path, None).expect("it opens");
    file.set_state("layout", 99).expect("written");
    drop(file);
    let error = File::open(&path, None).expect_err("unknown").to_string();
    assert!(error.contains("layout 99"), "{error}");
}
