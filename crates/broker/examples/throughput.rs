//! Measures publish + consume + ack per second: `throughput URL [MESSAGES [BYTES [IN_FLIGHT]]]`.
//!
//! Release mode, and nothing else running, or the figures mean nothing.

use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use postrider_broker::{Broker, Parcel, Queue, Route, Settings, publish_until_taken};

type Failure = Box<dyn std::error::Error>;

struct Load {
    messages: usize,
    body: Vec<u8>,
    in_flight: usize,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments
        .next()
        .ok_or("usage: throughput URL [MESSAGES [BYTES [IN_FLIGHT]]]")?;
    let mut number = |default| -> Result<usize, Failure> {
        Ok(arguments
            .next()
            .map(|text| text.parse())
            .transpose()?
            .unwrap_or(default))
    };
    let (messages, bytes, in_flight) = (number(100_000)?, number(1024)?, number(256)?);
    let load = Load {
        messages,
        body: vec![b'x'; bytes],
        in_flight,
    };
    let broker = Broker::open(&Settings {
        url,
        ..Settings::default()
    })
    .await?;
    broker.status().wait_for(|status| status.connected).await?;

    report(
        "publish, then drain: publish",
        &load,
        publish(&broker, &load).await?,
    );
    report(
        "publish, then drain: consume and ack",
        &load,
        consume(&broker, &load).await?,
    );
    let began = Instant::now();
    let (published, consumed) = tokio::join!(publish(&broker, &load), consume(&broker, &load));
    published?;
    consumed?;
    report("both at once", &load, began.elapsed());
    latency(&broker).await?;
    broker.close().await;
    Ok(())
}

fn report(what: &str, load: &Load, took: Duration) {
    let rate = load.messages as f64 / took.as_secs_f64();
    println!(
        "{what}: {rate:.0} per s ({} of {} bytes)",
        load.messages,
        load.body.len()
    );
}

async fn publish(broker: &Broker, load: &Load) -> Result<Duration, Failure> {
    let publisher = broker.publisher();
    let began = Instant::now();
    let mut flying = FuturesUnordered::new();
    for number in 0..load.messages {
        if flying.len() >= load.in_flight {
            flying.next().await.unwrap_or(Ok(()))?;
        }
        let parcel = Parcel::json(Route::Deliver, number.to_string(), load.body.clone());
        flying.push(publish_until_taken(&*publisher, parcel));
    }
    while let Some(taken) = flying.next().await {
        taken?;
    }
    Ok(began.elapsed())
}

async fn consume(broker: &Broker, load: &Load) -> Result<Duration, Failure> {
    let mut consumer = broker.consume(Queue::Deliver, 500).await;
    let began = Instant::now();
    for _ in 0..load.messages {
        consumer.next().await.ok_or("closed")?.ticket.ack();
    }
    let took = began.elapsed();
    consumer.stop().await;
    Ok(took)
}

/// One message at a time, from publish to hand-out.
async fn latency(broker: &Broker) -> Result<(), Failure> {
    let (publisher, mut consumer) = (broker.publisher(), broker.consume(Queue::Dead, 10).await);
    let (mut confirms, mut trips) = (Vec::new(), Vec::new());
    for number in 0..1_000 {
        let began = Instant::now();
        publisher
            .publish(Parcel::json(Route::Dead, number.to_string(), "{}"))
            .await?;
        confirms.push(began.elapsed());
        consumer.next().await.ok_or("closed")?.ticket.ack();
        trips.push(began.elapsed());
    }
    for (what, mut times) in [("confirm", confirms), ("publish to hand-out", trips)] {
        times.sort();
        println!(
            "{what}, one at a time: p50 {:?}, p99 {:?}, max {:?}",
            times[500], times[990], times[999]
        );
    }
    Ok(())
}
