//! The bench's load: publishes events with a window of confirms, flat out or at a rate.

use std::{sync::Arc, time::Duration};

use broker::{Broker, Parcel, Publish, Route};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;

use super::{plan::TENANT, sink};
use crate::{
    cli::{self, Role},
    commands::Failure,
    serve::Running,
    settings::Settings,
};

const KIND: &str = "appointment.created";

/// Publishes until it is killed.
pub(super) async fn run(settings: &Settings, options: &cli::Bench) -> Result<(), Failure> {
    let broker = Broker::open(&settings.broker).await.map_err(failed)?;
    let mut status = broker.status();
    status.wait_for(|now| now.connected).await.map_err(failed)?;
    publish(broker.publisher(), options).await
}

/// Router and deliverer (and recorder) beside the load, for the broker that only one process can open.
pub(super) async fn run_with_stages(
    settings: &Settings,
    options: &cli::Bench,
) -> Result<(), Failure> {
    let mut roles = vec![Role::Router, Role::Deliverer];
    roles.extend(options.recorder.then_some(Role::Recorder));
    let running = Running::start(settings, &roles, CancellationToken::new()).await?;
    let publisher = running.broker().publisher();
    tokio::select! {
        ended = running.until_stopped() => ended,
        ended = publish(publisher, options) => ended,
    }
}

async fn publish(publisher: Arc<dyn Publish>, options: &cli::Bench) -> Result<(), Failure> {
    let mut pace = Pace::new(options.rate);
    let mut flying = FuturesUnordered::new();
    let mut number: u64 = 0;
    let run = std::process::id();
    loop {
        let ready = flying.len() < options.window.max(1);
        tokio::select! {
            biased;
            Some(outcome) = flying.next(), if !flying.is_empty() => {
                let outcome: Result<(), broker::PublishError> = outcome;
                outcome.map_err(failed)?;
            }
            () = pace.next(), if ready => {
                number += 1;
                let publisher = publisher.clone();
                let parcel = parcel(&format!("{run}-{number}"), options.size);
                flying.push(async move { publisher.publish(parcel).await });
            }
        }
    }
}

/// An event of about `size` bytes that says when it was published.
pub(super) fn event(id: &str, size: usize) -> String {
    event_of(TENANT, id, size)
}

fn event_of(tenant: &str, id: &str, size: usize) -> String {
    let head = format!(
        r#"{{"id":"{id}","tenant":"{tenant}","type":"{KIND}","status":"confirmed","data":{{{}{},"pad":""#,
        sink::STAMP,
        sink::now_us()
    );
    let pad = size.saturating_sub(head.len() + 3);
    format!("{head}{}\"}}}}", "x".repeat(pad))
}

fn parcel(id: &str, size: usize) -> Parcel {
    parcel_to(TENANT, id, size)
}

/// The same as a tenant's.
pub(super) fn parcel_to(tenant: &str, id: &str, size: usize) -> Parcel {
    Parcel::json(
        Route::Events {
            routing_key: KIND.into(),
        },
        id,
        event_of(tenant, id, size).into_bytes(),
    )
}

/// An open loop: what falls due while the window is full is published late, and counts as late.
pub(super) struct Pace {
    tick: tokio::time::Interval,
    per_tick: f64,
    owed: f64,
    flat_out: bool,
}

impl Pace {
    pub(super) fn new(rate: f64) -> Self {
        let step = Duration::from_millis(5);
        let tick = tokio::time::interval(step);
        Self {
            tick,
            per_tick: rate * step.as_secs_f64(),
            owed: 0.0,
            flat_out: rate <= 0.0,
        }
    }

    /// Resolves when the next event is due. Cancel safe.
    pub(super) async fn next(&mut self) {
        if self.flat_out {
            return;
        }
        while self.owed < 1.0 {
            self.tick.tick().await;
            self.owed += self.per_tick;
        }
        self.owed -= 1.0;
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(error.to_string())
}
