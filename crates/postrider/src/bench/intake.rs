//! HTTP intake: how many events a second a producer takes, each confirmed by the broker first.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Part, load, meter::Meter, plan::Plan};
use crate::{cli, commands::Failure, output::say};

/// The environment variable by which the requests' process learns where to send them.
const TARGET: &str = "POSTRIDER_BENCH_INTAKE";

pub(super) async fn measure(plan: &Plan, options: &cli::Bench) -> Result<Value, Failure> {
    plan.subscribe("http://127.0.0.1:9", options).await?;
    let port = free_port()?;
    let mut serve = plan.command()?;
    serve.args(["serve", "--role", "producer"]);
    serve.env("POSTRIDER__API__LISTEN", format!("127.0.0.1:{port}"));
    let producer = Part::start("producer", &mut serve)?;
    tokio::time::sleep(super::WARM_UP).await;
    let mut requests: Command = plan.bench_part("requests", options)?;
    requests.env(TARGET, format!("http://127.0.0.1:{port}/v1/events"));
    let load = Part::start("requests", &mut requests)?;
    let meter = Meter::start(
        [&producer, &load]
            .map(|part| (part.name, part.pid()))
            .into_iter(),
    );
    let said = load.says()?;
    let reading = meter.read();
    let answer: Value = serde_json::from_str(&said).map_err(failed)?;
    let accepted = answer["accepted"].as_u64().unwrap_or(0);
    if accepted == 0 {
        return Err(Failure::failed(format!("nothing was accepted: {said}")));
    }
    let seconds = answer["seconds"].as_f64().unwrap_or(f64::NAN);
    Ok(json!({
        "measure": "intake",
        "broker": plan.broker_name(),
        "size": options.size,
        "window": options.window,
        "events": accepted,
        "events_per_second": (accepted as f64 / seconds).round(),
        "refused": answer["refused"],
        "cpu_us_per_event": reading.per(accepted),
    }))
}

/// Sends single events, `window` at a time on kept-alive connections; prints what was accepted.
pub(super) async fn load(options: &cli::Bench) -> Result<(), Failure> {
    let target = std::env::var(TARGET).map_err(failed)?;
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(crate::serve::tls_client_config()?)
        .build()
        .map_err(failed)?;
    let (accepted, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let begun = Instant::now();
    let end = begun + Duration::from_secs(options.secs);
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..options.window.max(1) {
        let (client, target) = (client.clone(), target.clone());
        let (accepted, refused) = (accepted.clone(), refused.clone());
        let size = options.size;
        workers.spawn(async move {
            let mut number = 0_u64;
            while Instant::now() < end {
                number += 1;
                let body = load::event(&format!("i{worker}-{number}"), size);
                let request = client
                    .post(&target)
                    .header("content-type", "application/json");
                let taken = match request.body(body).send().await {
                    Ok(answer) => answer.status() == 202 && answer.bytes().await.is_ok(),
                    Err(_) => false,
                };
                let count = if taken { &accepted } else { &refused };
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while workers.join_next().await.is_some() {}
    let report = json!({
        "accepted": accepted.load(Ordering::Relaxed),
        "refused": refused.load(Ordering::Relaxed),
        "seconds": begun.elapsed().as_secs_f64(),
    });
    say!("{report}");
    Ok(())
}

fn free_port() -> Result<u16, Failure> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(failed)?;
    listener
        .local_addr()
        .map(|address| address.port())
        .map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(error.to_string())
}
