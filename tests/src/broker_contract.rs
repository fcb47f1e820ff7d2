//! What both brokers promise, each promise once and run on both; then what only one of them can be
//! asked: a killed process for the embedded broker, a killed or blocked server for RabbitMQ.

mod embedded;
mod rabbit;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use broker::{
    Broker, Consume, DUE_HEADER, Parcel, PublishError, Queue, Received, Route, Settings,
    publish_until_taken,
};
use futures_util::{StreamExt, stream::FuturesUnordered};

use crate::support::rabbit::{Options, Rabbit, fresh_vhost_url};

/// So long something that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A place for brokers: a folder, a virtual host, or a server of its own.
struct Bed {
    settings: Settings,
    server: Option<Rabbit>,
    _folder: Option<tempfile::TempDir>,
}

impl Bed {
    fn embedded() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let url = format!("embedded://{}", folder.path().display());
        let settings = Settings {
            url,
            ..Settings::default()
        };
        Self {
            settings,
            server: None,
            _folder: Some(folder),
        }
    }

    async fn rabbit() -> Self {
        let settings = Settings {
            url: fresh_vhost_url().await,
            ..Settings::default()
        };
        Self {
            settings,
            server: None,
            _folder: None,
        }
    }

    async fn private_rabbit(options: Options) -> Self {
        let server = Rabbit::start_with(options).await;
        let settings = Settings {
            url: server.url(),
            ..Settings::default()
        };
        Self {
            settings,
            server: Some(server),
            _folder: None,
        }
    }

    fn server(&self) -> &Rabbit {
        self.server
            .as_ref()
            .expect("this bed has a server of its own")
    }

    /// An open broker that is connected.
    async fn open(&self) -> Broker {
        let broker = Broker::open(&self.settings)
            .await
            .expect("the broker opens");
        connected(&broker).await;
        broker
    }
}

async fn connected(broker: &Broker) {
    let mut status = broker.status();
    let up = tokio::time::timeout(PATIENCE, status.wait_for(|status| status.connected)).await;
    assert!(
        matches!(up, Ok(Ok(_))),
        "not connected: {:?}",
        broker.status().borrow()
    );
}

/// One test per promise and broker.
macro_rules! on_both {
    ($($promise:ident)*) => {
        mod on_embedded {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise(super::Bed::embedded()).await;
            })*
        }
        mod on_rabbitmq {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise(super::Bed::rabbit().await).await;
            })*
        }
    };
}

on_both! {
    a_parcel_arrives_as_it_was_sent
    what_is_acked_never_comes_again
    what_was_not_settled_comes_back_after_a_crash
    what_a_dropped_consumer_held_comes_back
    what_is_given_back_is_handed_out_again
    what_comes_back_too_often_ends_in_quarantine
    a_delayed_parcel_is_never_early
    a_delayed_parcel_survives_a_crash
    a_consumer_holds_no_more_than_its_prefetch
    two_consumers_share_a_queue
    a_slow_message_does_not_hold_up_the_others
    a_stopped_consumer_gives_back_and_still_settles
    closing_settles_everything
    a_closed_broker_takes_and_gives_nothing
    waiting_for_a_message_can_be_cancelled
    hundreds_in_flight_all_arrive
}

fn parcel(route: Route, id: impl ToString) -> Parcel {
    let id = id.to_string();
    Parcel::json(route, &*id, format!("{{\"id\":\"{id}\"}}"))
}

fn event(id: impl ToString) -> Parcel {
    parcel(
        Route::Events {
            routing_key: "order.created".into(),
        },
        id,
    )
}

async fn publish(broker: &Broker, parcel: Parcel) {
    broker
        .publisher()
        .publish(parcel)
        .await
        .expect("the parcel is taken");
}

async fn publish_all(broker: &Broker, parcels: impl IntoIterator<Item = Parcel>) {
    let publisher = broker.publisher();
    let mut flying: FuturesUnordered<_> = parcels
        .into_iter()
        .map(|parcel| publisher.publish(parcel))
        .collect();
    while let Some(taken) = flying.next().await {
        taken.expect("the parcel is taken");
    }
}

async fn next(consumer: &mut Box<dyn Consume>) -> Received {
    match tokio::time::timeout(PATIENCE, consumer.next()).await {
        Ok(received) => received.expect("the consumer goes on"),
        Err(_) => panic!("no message within {PATIENCE:?}"),
    }
}

async fn take(consumer: &mut Box<dyn Consume>, count: usize) -> Vec<Received> {
    let mut all = Vec::new();
    while all.len() < count {
        all.push(next(consumer).await);
    }
    all
}

fn id(received: &Received) -> String {
    received
        .message_id
        .clone()
        .expect("our messages have an id")
}

fn ids<'a>(received: impl IntoIterator<Item = &'a Received>) -> BTreeSet<String> {
    received.into_iter().map(id).collect()
}

fn numbers(range: std::ops::Range<u32>) -> BTreeSet<String> {
    range.map(|number| number.to_string()).collect()
}

fn ack_all(received: Vec<Received>) {
    received
        .into_iter()
        .for_each(|received| received.ticket.ack());
}

/// Proves that a queue holds nothing else: a marker published now is the next message.
async fn assert_empty(broker: &Broker, queue: Queue, route: Route) {
    publish(broker, parcel(route, "marker")).await;
    let mut consumer = broker.consume(queue, 10).await;
    let received = next(&mut consumer).await;
    assert_eq!(id(&received), "marker");
    received.ticket.ack();
    consumer.stop().await;
}

async fn a_parcel_arrives_as_it_was_sent(bed: Bed) {
    let broker = bed.open().await;
    let body: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    for (route, queue, source) in [
        (
            Route::Events {
                routing_key: "order.created".into(),
            },
            Queue::Inbox,
            "postrider.events/order.created",
        ),
        (
            Route::Deliver,
            Queue::Deliver,
            "postrider.deliver/postrider.deliver",
        ),
        (Route::Dead, Queue::Dead, "postrider.dead/"),
        (
            Route::Quarantine,
            Queue::Quarantine,
            "postrider.quarantine/",
        ),
    ] {
        let sent = Parcel {
            route,
            message_id: "an id".into(),
            content_type: Some("text/x-ünusual".into()),
            content_encoding: Some("gzip".into()),
            headers: vec![("x-postrider-detail".into(), "\u{1f4e8} \"line\"\n".into())],
            body: body.clone().into(),
        };
        publish(&broker, sent.clone()).await;
        let mut consumer = broker.consume(queue, 10).await;
        let received = next(&mut consumer).await;
        assert_eq!(received.body, sent.body);
        assert_eq!(received.message_id.as_deref(), Some("an id"));
        assert_eq!(received.content_type, sent.content_type);
        assert_eq!(received.content_encoding, sent.content_encoding);
        assert_eq!(received.headers, sent.headers);
        assert_eq!(received.source, source);
        assert_eq!((received.redelivered, received.returns), (false, 0));
        received.ticket.ack();
        consumer.stop().await;
    }
    broker.close().await;
}

async fn what_is_acked_never_comes_again(bed: Bed) {
    let broker = bed.open().await;
    publish_all(&broker, (0..50).map(event)).await;
    let mut consumer = broker.consume(Queue::Inbox, 50).await;
    let received = take(&mut consumer, 50).await;
    assert_eq!(ids(&received), numbers(0..50));
    ack_all(received);
    broker.close().await;
    let again = bed.open().await;
    assert_empty(&again, Queue::Inbox, event("").route).await;
    again.close().await;
}

async fn what_was_not_settled_comes_back_after_a_crash(bed: Bed) {
    let broker = bed.open().await;
    publish_all(&broker, (0..10).map(event)).await;
    let mut consumer = broker.consume(Queue::Inbox, 5).await;
    let held = take(&mut consumer, 5).await;
    let seen = ids(&held);
    // Nobody closes anything: that is the crash.
    drop((held, consumer, broker));
    let broker = bed.open().await;
    let mut consumer = broker.consume(Queue::Inbox, 20).await;
    let received = take(&mut consumer, 10).await;
    assert_eq!(ids(&received), numbers(0..10));
    for received in received
        .iter()
        .filter(|received| seen.contains(&id(received)))
    {
        assert!(
            received.redelivered,
            "{} was handed out before",
            id(received)
        );
    }
    ack_all(received);
    broker.close().await;
}

async fn what_a_dropped_consumer_held_comes_back(bed: Bed) {
    let broker = bed.open().await;
    publish_all(&broker, (0..10).map(event)).await;
    let mut first = broker.consume(Queue::Inbox, 10).await;
    let held = take(&mut first, 5).await;
    let mut second = broker.consume(Queue::Inbox, 20).await;
    drop((held, first));
    assert_eq!(ids(&take(&mut second, 10).await), numbers(0..10));
    broker.close().await;
}

async fn what_is_given_back_is_handed_out_again(bed: Bed) {
    let broker = bed.open().await;
    publish(&broker, event("a")).await;
    let mut consumer = broker.consume(Queue::Inbox, 10).await;
    for returns in 0..3 {
        let received = next(&mut consumer).await;
        assert_eq!(
            (received.returns, received.redelivered),
            (returns, returns > 0)
        );
        assert_eq!(received.body, event("a").body);
        received.ticket.give_back();
    }
    next(&mut consumer).await.ticket.ack();
    consumer.stop().await;
    assert_empty(&broker, Queue::Inbox, event("").route).await;
    broker.close().await;
}

async fn what_comes_back_too_often_ends_in_quarantine(bed: Bed) {
    let broker = bed.open().await;
    for (parcel, queue) in [
        (event("i"), Queue::Inbox),
        (parcel(Route::Deliver, "d"), Queue::Deliver),
    ] {
        publish(&broker, parcel.clone()).await;
        let mut consumer = broker.consume(queue, 10).await;
        let mut quarantine = broker.consume(Queue::Quarantine, 10).await;
        let quarantined = loop {
            tokio::select! {
                received = next(&mut consumer) => received.ticket.give_back(),
                received = next(&mut quarantine) => break received,
            }
        };
        assert_eq!(quarantined.message_id.as_ref(), Some(&parcel.message_id));
        assert_eq!(quarantined.body, parcel.body);
        quarantined.ticket.ack();
        consumer.stop().await;
        quarantine.stop().await;
        assert_empty(&broker, queue, parcel.route).await;
    }
    broker.close().await;
}

async fn a_delayed_parcel_is_never_early(bed: Bed) {
    let broker = bed.open().await;
    let mut consumer = broker.consume(Queue::Deliver, 10).await;
    let began = SystemTime::now();
    let mut due: BTreeMap<String, SystemTime> = [0, 30, 400, 1_000, 1_900, 3_100]
        .into_iter()
        .map(|ms| (ms.to_string(), began + Duration::from_millis(ms)))
        .collect();
    let parcels = due
        .iter()
        .map(|(id, due)| parcel(Route::DeliverAt(*due), id));
    publish_all(&broker, parcels.chain([parcel(Route::Deliver, "at once")])).await;
    due.insert("at once".into(), began);
    while !due.is_empty() {
        let received = next(&mut consumer).await;
        let due = due.remove(&id(&received)).expect("each comes once");
        let early = due.duration_since(SystemTime::now()).unwrap_or_default();
        assert!(
            early <= Duration::from_millis(50),
            "{} is {early:?} early",
            id(&received)
        );
        assert_eq!(received.body, parcel(Route::Deliver, id(&received)).body);
        let header = received.headers.iter().find(|(name, _)| name == DUE_HEADER);
        assert_eq!(header.is_some(), id(&received) != "at once", "{header:?}");
        received.ticket.ack();
    }
    broker.close().await;
}

async fn a_delayed_parcel_survives_a_crash(bed: Bed) {
    let broker = bed.open().await;
    let due = SystemTime::now() + Duration::from_millis(2_500);
    let far = SystemTime::now() + Duration::from_secs(3_600);
    publish(&broker, parcel(Route::DeliverAt(due), "soon")).await;
    publish(&broker, parcel(Route::DeliverAt(far), "far")).await;
    drop(broker);
    let broker = bed.open().await;
    let mut consumer = broker.consume(Queue::Deliver, 10).await;
    let received = next(&mut consumer).await;
    assert_eq!(id(&received), "soon");
    assert!(
        SystemTime::now() + Duration::from_millis(50) >= due,
        "early after a restart"
    );
    received.ticket.ack();
    // Waiting, and neither handed out nor gone.
    let waiting = || async {
        let depths = broker.depths().await;
        depths
            .iter()
            .filter(|(name, _)| name.starts_with("postrider.retry"))
            .map(|(_, n)| n)
            .sum()
    };
    until(async || waiting().await, 1).await;
    consumer.stop().await;
    assert_empty(&broker, Queue::Deliver, Route::Deliver).await;
    broker.close().await;
}

/// Waits for a number to become `wanted`.
async fn until(mut number: impl AsyncFnMut() -> u64, wanted: u64) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let now = number().await;
        if now == wanted {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{now} instead of {wanted}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn a_consumer_holds_no_more_than_its_prefetch(bed: Bed) {
    let broker = bed.open().await;
    publish_all(&broker, (0..10).map(event)).await;
    let mut narrow = broker.consume(Queue::Inbox, 3).await;
    let held = take(&mut narrow, 3).await;
    let mut wide = broker.consume(Queue::Inbox, 100).await;
    // All others are free for somebody else: `narrow` has not taken them in advance.
    let mut others = take(&mut wide, 7).await;
    others.extend(held);
    assert_eq!(ids(&others), numbers(0..10));
    wide.stop().await;
    publish(&broker, event("more")).await;
    let waiting = tokio::time::timeout(Duration::from_millis(300), narrow.next()).await;
    assert!(waiting.is_err(), "a fourth message was handed out");
    others
        .into_iter()
        .for_each(|received| received.ticket.ack());
    assert_eq!(id(&next(&mut narrow).await), "more");
    broker.close().await;
}

async fn two_consumers_share_a_queue(bed: Bed) {
    let broker = bed.open().await;
    let (mut one, mut two) = (
        broker.consume(Queue::Inbox, 10).await,
        broker.consume(Queue::Inbox, 10).await,
    );
    publish_all(&broker, (0..20).map(event)).await;
    // Each can hold ten: unless they share, one of them waits for ever.
    let (ones, twos) = tokio::join!(take(&mut one, 10), take(&mut two, 10));
    assert_eq!(ids(ones.iter().chain(&twos)), numbers(0..20));
    broker.close().await;
}

async fn a_slow_message_does_not_hold_up_the_others(bed: Bed) {
    let broker = bed.open().await;
    publish_all(&broker, (0..200).map(event)).await;
    let mut consumer = broker.consume(Queue::Inbox, 10).await;
    let slow = next(&mut consumer).await;
    // Twenty times the prefetch passes while the first message is not settled.
    let mut seen = BTreeSet::from([id(&slow)]);
    while seen.len() < 200 {
        let received = next(&mut consumer).await;
        seen.insert(id(&received));
        received.ticket.ack();
    }
    assert_eq!(seen, numbers(0..200));
    slow.ticket.ack();
    broker.close().await;
    let broker = bed.open().await;
    assert_empty(&broker, Queue::Inbox, event("").route).await;
    broker.close().await;
}

async fn a_stopped_consumer_gives_back_and_still_settles(bed: Bed) {
    let broker = bed.open().await;
    publish_all(&broker, (0..20).map(event)).await;
    let mut first = broker.consume(Queue::Inbox, 10).await;
    let held = take(&mut first, 3).await;
    let mut seen = ids(&held);
    first.stop().await;
    let left = tokio::time::timeout(PATIENCE, first.next())
        .await
        .expect("an answer");
    assert!(left.is_none(), "a stopped consumer handed out a message");
    let mut second = broker.consume(Queue::Inbox, 20).await;
    let others = take(&mut second, 17).await;
    assert!(
        ids(&others).is_disjoint(&seen),
        "what was handed out came again"
    );
    seen.extend(ids(&others));
    assert_eq!(seen, numbers(0..20));
    ack_all(others);
    ack_all(held);
    broker.close().await;
    let broker = bed.open().await;
    assert_empty(&broker, Queue::Inbox, event("").route).await;
    broker.close().await;
}

async fn closing_settles_everything(bed: Bed) {
    let broker = bed.open().await;
    publish_all(&broker, (0..300).map(event)).await;
    let mut consumer = broker.consume(Queue::Inbox, 300).await;
    let mut received = take(&mut consumer, 300).await;
    // Out of order, with gaps, one given back, and not a moment between the last ack and the end.
    let back = received.remove(150);
    let back_id = id(&back);
    back.ticket.give_back();
    received
        .into_iter()
        .rev()
        .for_each(|received| received.ticket.ack());
    broker.close().await;
    let broker = bed.open().await;
    let mut consumer = broker.consume(Queue::Inbox, 300).await;
    let received = next(&mut consumer).await;
    assert_eq!(id(&received), back_id);
    received.ticket.ack();
    consumer.stop().await;
    assert_empty(&broker, Queue::Inbox, event("").route).await;
    broker.close().await;
}

async fn a_closed_broker_takes_and_gives_nothing(bed: Bed) {
    let broker = bed.open().await;
    let (publisher, mut consumer) = (broker.publisher(), broker.consume(Queue::Inbox, 10).await);
    publish(&broker, event("a")).await;
    let held = next(&mut consumer).await;
    broker.close().await;
    assert_eq!(
        publisher.publish(event("b")).await,
        Err(PublishError::Closed)
    );
    assert_eq!(
        publish_until_taken(&*publisher, event("b")).await,
        Err(PublishError::Closed)
    );
    let end = tokio::time::timeout(PATIENCE, consumer.next())
        .await
        .expect("an answer");
    assert!(end.is_none(), "a closed broker handed out a message");
    // Too late, and no harm: the message comes again.
    held.ticket.ack();
    drop(consumer);
    let broker = bed.open().await;
    let mut consumer = broker.consume(Queue::Inbox, 10).await;
    assert_eq!(id(&next(&mut consumer).await), "a");
    broker.close().await;
}

async fn waiting_for_a_message_can_be_cancelled(bed: Bed) {
    let broker = bed.open().await;
    let mut consumer = broker.consume(Queue::Inbox, 10).await;
    let publishing = publish_all(&broker, (0..100).map(event));
    let taking = async {
        let mut seen = BTreeSet::new();
        while seen.len() < 100 {
            let moment = Duration::from_micros(200);
            if let Ok(received) = tokio::time::timeout(moment, consumer.next()).await {
                let received = received.expect("the consumer goes on");
                assert!(!received.redelivered);
                seen.insert(id(&received));
                received.ticket.ack();
            }
        }
        seen
    };
    let (seen, ()) = tokio::join!(tokio::time::timeout(PATIENCE, taking), publishing);
    assert_eq!(seen.expect("all come"), numbers(0..100));
    broker.close().await;
}

async fn hundreds_in_flight_all_arrive(bed: Bed) {
    let broker = bed.open().await;
    let mut consumer = broker.consume(Queue::Inbox, 500).await;
    let publishing = publish_all(&broker, (0..3_000).map(event));
    let consuming = async {
        let mut seen = BTreeSet::new();
        for _ in 0..3_000 {
            let received = next(&mut consumer).await;
            assert!(seen.insert(id(&received)), "{} came twice", id(&received));
            received.ticket.ack();
        }
        seen
    };
    let ((), seen) = tokio::join!(publishing, consuming);
    assert_eq!(seen, numbers(0..3_000));
    broker.close().await;
}

/// A queue that takes ten messages: some are refused, and exactly the others are there.
async fn a_full_queue_refuses_and_loses_nothing(broker: &Broker) {
    let publisher = broker.publisher();
    let mut taken = BTreeSet::new();
    let mut refused = 0;
    // RabbitMQ counts with a delay, so the bound is soft: go on until it refuses.
    for number in 0..2_000 {
        match publisher.publish(event(number)).await {
            Ok(()) => _ = taken.insert(number.to_string()),
            Err(error) => {
                assert_eq!(error, PublishError::Rejected);
                refused += 1;
            }
        }
        if refused == 5 {
            break;
        }
    }
    assert_eq!(refused, 5, "2 000 messages went into a queue of ten");
    assert!(taken.len() >= 10, "only {} were taken", taken.len());
    let mut consumer = broker.consume(Queue::Inbox, 500).await;
    let received = take(&mut consumer, taken.len()).await;
    assert_eq!(ids(&received), taken);
    // There is room again, and who waits gets it.
    let waiting = publish_until_taken(&*publisher, event("patient"));
    let (waited, ()) = tokio::join!(tokio::time::timeout(PATIENCE, waiting), async {
        ack_all(received);
    });
    waited.expect("room in time").expect("taken");
    assert_eq!(id(&next(&mut consumer).await), "patient");
}
