//! Keeps the link up: connect, declare, watch, and again. The only file that names `backoff`
//! (decision record 0001): webhook retries are durable and live on the ladder instead.

use std::{sync::Arc, time::Duration};

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};
use futures_util::StreamExt;
use lapin::{Connection, Event};
use tokio::time::Instant;

use crate::rabbit::{Shared, link::Link, target::Target};

const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A link that lived this long was a good one: the next loss starts with the short pause again.
const GOOD_LINK: Duration = Duration::from_secs(10);
/// lapin tells of a loss by an event; this is how often it is asked besides.
const LOOK: Duration = Duration::from_secs(1);

fn pauses() -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(PAUSE_FIRST)
        .with_randomization_factor(0.5)
        .with_multiplier(1.7)
        .with_max_interval(PAUSE_MAX)
        .with_max_elapsed_time(None)
        .build()
}

/// Runs until the broker is closed. Of several nodes, the next one is tried when one fails.
pub(super) async fn supervise(targets: Vec<Target>, shared: Arc<Shared>) {
    let mut pauses = pauses();
    let mut first = true;
    // Processes begin at different nodes, so that not all of them are one node's.
    let mut turn = std::process::id() as usize;
    let mut failed = 0;
    while !shared.closed.is_cancelled() {
        let Some(target) = targets.get(turn % targets.len().max(1)) else {
            break;
        };
        let place = target.place();
        let connecting = tokio::select! {
            () = shared.closed.cancelled() => break,
            connecting = Link::connect(target) => connecting,
        };
        match connecting {
            Ok(link) => {
                tracing::info!(broker = %place, "broker connected");
                failed = 0;
                let since = Instant::now();
                let cause = live(Arc::new(link), &shared, std::mem::take(&mut first)).await;
                if shared.closed.is_cancelled() {
                    break;
                }
                if since.elapsed() >= GOOD_LINK {
                    pauses.reset();
                }
                tracing::warn!(broker = %place, cause, "broker connection lost");
                shared.fault(Some(format!("connection to {place} lost: {cause}")));
            }
            Err(error) => {
                tracing::warn!(broker = %place, %error, "broker not connected");
                shared.fault(Some(format!("{place}: {error}")));
                failed += 1;
            }
        }
        turn = turn.wrapping_add(1);
        if failed % targets.len() != 0 {
            // Another node of the cluster has not been asked yet.
            continue;
        }
        // Without a limit of time there is always a next pause.
        let pause = pauses.next_backoff().unwrap_or(PAUSE_MAX);
        tokio::select! {
            () = shared.closed.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    shared.status.send_modify(|status| status.connected = false);
    shared.link.send_replace(None);
}

/// Offers the link until it is lost or the broker closes; says why it ended.
async fn live(link: Arc<Link>, shared: &Shared, first: bool) -> String {
    let mut publish_events = link.publish.events_listener().boxed();
    let mut consume_events = link.consume.events_listener().boxed();
    shared.status.send_modify(|status| {
        status.connected = true;
        status.blocked = None;
        status.fault = None;
        status.reconnects += u64::from(!first);
    });
    shared.link.send_replace(Some(link.clone()));
    let mut look = tokio::time::interval(LOOK);
    let cause = loop {
        tokio::select! {
            () = shared.closed.cancelled() => {
                link.close().await;
                break String::from("closed");
            }
            event = publish_events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    tracing::warn!(reason, "broker blocked");
                    shared.status.send_modify(|status| status.blocked = Some(reason));
                }
                Some(Event::ConnectionUnblocked) => {
                    tracing::info!("broker unblocked");
                    shared.status.send_modify(|status| status.blocked = None);
                }
                event => if let Some(cause) = lost(&link.publish, event) { break cause; },
            },
            event = consume_events.next() => {
                if let Some(cause) = lost(&link.consume, event) { break cause; }
            }
            _ = look.tick() => if !link.connected() { break String::from("not connected"); },
        }
    };
    shared.status.send_modify(|status| {
        status.connected = false;
        status.blocked = None;
    });
    shared.link.send_replace(None);
    if !shared.closed.is_cancelled() {
        // One of the two may still be up: nobody shall hold messages over it.
        link.close().await;
    }
    cause
}

fn lost(connection: &Connection, event: Option<Event>) -> Option<String> {
    match event {
        Some(Event::Error(error)) if !connection.status().connected() => Some(error.to_string()),
        None => Some(String::from("connection ended")),
        _ => None,
    }
}
