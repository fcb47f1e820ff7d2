//! What bad endpoints cost their neighbours, and a backlog its process: ours, and a deliverer with
//! nothing but a fixed window beside it.
//!
//! The load is this process's own. On the embedded broker so are the stages; on RabbitMQ they are
//! processes of their own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use broker::{Broker, Publish, Queue};
use event::delivery::Bundle;
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{Part, crowd, load, meter::Meter, plan::Plan, sink};
use crate::{
    cli::{self, Role},
    commands::Failure,
    serve::Running,
    settings::Settings,
};

/// How long an endpoint that hangs holds an attempt.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts under way of the deliverer with the fixed window: what ours may have, too.
const FIXED_WINDOW: usize = 256;
/// Deliveries a second to the endpoint that goes away, before and after.
const USUAL: f64 = 500.0;
/// How long it takes that, so that it is known as usual.
const USUAL_SECONDS: u64 = 30;
/// How long the cost of a backlog is looked at.
const LOOK: Duration = Duration::from_secs(30);
const DRAIN_MAX: Duration = Duration::from_secs(1200);

/// The stages, and where the load is published.
struct House {
    publisher: Arc<dyn Publish>,
    /// The process that delivers.
    deliverer: u32,
    stop: CancellationToken,
    parts: Vec<Part>,
    /// Of this process.
    stages: Option<JoinHandle<()>>,
    fixed: Option<AbortOnDropHandle<()>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Deliverer {
    Ours,
    FixedWindow(u16),
}

impl House {
    async fn open(plan: &Plan, settings: &Settings, deliverer: Deliverer) -> Result<Self, Failure> {
        let mut roles = vec![Role::Router];
        roles.extend((deliverer == Deliverer::Ours).then_some(Role::Deliverer));
        let stop = CancellationToken::new();
        let (broker, mut parts, stages) = if plan.embedded {
            let settings = plan.settings(settings)?;
            let running = Running::start(&settings, &roles, stop.clone()).await?;
            let broker = running.broker().clone();
            let stage = tokio::spawn(async move {
                if let Err(failure) = running.until_stopped().await {
                    eprintln!("postrider: {failure}");
                }
            });
            (broker, Vec::new(), Some(stage))
        } else {
            let broker = Broker::open(&plan.settings(settings)?.broker).await;
            let broker = broker.map_err(failed)?;
            let mut status = broker.status();
            status.wait_for(|now| now.connected).await.map_err(failed)?;
            let parts = vec![Part::start("router", &mut plan.role("router")?)?];
            (broker, parts, None)
        };
        let mut pid = std::process::id();
        let mut fixed = None;
        match deliverer {
            Deliverer::FixedWindow(port) => {
                let task = tokio::spawn(fixed_window(broker.clone(), port));
                fixed = Some(AbortOnDropHandle::new(task));
            }
            Deliverer::Ours if !plan.embedded => {
                let part = Part::start("deliverer", &mut plan.role("deliverer")?)?;
                pid = part.pid();
                parts.push(part);
            }
            Deliverer::Ours => {}
        }
        tokio::time::sleep(super::WARM_UP).await;
        Ok(Self {
            publisher: broker.publisher(),
            deliverer: pid,
            stop,
            parts,
            stages,
            fixed,
        })
    }

    /// Ends the stages, so that others can have the broker.
    async fn close(self) {
        drop((self.fixed, self.parts));
        self.stop.cancel();
        if let Some(stages) = self.stages {
            // A panic there has been printed.
            stages.await.ok();
        }
    }

    /// Publishes at a rate until it is dropped, to each of `endpoints` in turn.
    fn load(&self, rate: f64, endpoints: usize, size: usize) -> AbortOnDropHandle<()> {
        let publisher = self.publisher.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut flying = JoinSet::new();
            let mut pace = load::Pace::new(rate);
            let mut turn = 0;
            loop {
                pace.next().await;
                turn += 1;
                let parcel = load::parcel_to(&tenant(turn % endpoints), &id(), size);
                let publisher = publisher.clone();
                flying.spawn(async move { publisher.publish(parcel).await });
                while flying.len() > 1_000 {
                    flying.join_next().await;
                }
                while flying.try_join_next().is_some() {}
            }
        }))
    }

    /// Publishes so many to endpoint 0 as fast as it goes.
    async fn burst(&self, count: usize, size: usize) {
        let mut flying = JoinSet::new();
        for _ in 0..count {
            let parcel = load::parcel_to(&tenant(0), &id(), size);
            let publisher = self.publisher.clone();
            flying.spawn(async move { publisher.publish(parcel).await });
            while flying.len() >= 200 {
                flying.join_next().await;
            }
        }
        while flying.join_next().await.is_some() {}
    }
}

fn id() -> String {
    event::EventId::fresh().to_string()
}

/// The tenant of an endpoint.
pub(super) fn tenant(n: usize) -> String {
    format!("t-{n}")
}

/// The other endpoints' publish-to-endpoint, without and with bad ones among them.
pub(super) async fn neighbours(
    plan: &Plan,
    settings: &Settings,
    options: &cli::Bench,
) -> Result<Value, Failure> {
    let endpoints = options.endpoints;
    if endpoints <= 2 * crowd::BAD_OF_EACH || endpoints > 10_000 || options.rate <= 0.0 {
        return Err(Failure::usage(
            "--endpoints is 21 to 10000, and --rate says how many events a second",
        ));
    }
    let (_sink, control, port) = endpoints_of(plan, endpoints).await?;
    let mut report = json!({
        "measure": "neighbours", "broker": plan.broker_name(), "endpoints": endpoints,
        "hanging": crowd::BAD_OF_EACH, "answering_in_5_s": crowd::BAD_OF_EACH,
        "rate": options.rate, "size": options.size, "seconds": options.secs,
    });
    for (name, which) in [
        ("postrider", Deliverer::Ours),
        ("fixed_window", Deliverer::FixedWindow(port)),
    ] {
        sink::ask(&control, "/good").await?;
        let house = House::open(plan, settings, which).await?;
        let load = house.load(options.rate, endpoints, options.size);
        tokio::time::sleep(super::WARM_UP).await;
        let mut seen = Vec::new();
        for (state, then) in [("without", "/bad"), ("with", "/good")] {
            sink::ask(&control, "/reset").await?;
            tokio::time::sleep(Duration::from_secs(options.secs)).await;
            let counted = sink::ask(&control, then).await?;
            report[name][state] = json!({
                "deliveries": counted["count"], "p50_ms": counted["p50_ms"],
                "p99_ms": counted["p99_ms"],
            });
            seen.push(counted["p99_ms"].as_f64().unwrap_or(f64::NAN));
        }
        drop(load);
        house.close().await;
        if let [without, with] = seen[..] {
            report[name]["p99_ratio"] = json!((with / without * 100.0).round() / 100.0);
        }
    }
    Ok(report)
}

/// What a backlog for one endpoint that is away costs, and how the endpoint gets it when it is
/// back.
pub(super) async fn backlog(
    plan: &Plan,
    settings: &Settings,
    options: &cli::Bench,
) -> Result<Value, Failure> {
    let (_sink, control, _) = endpoints_of(plan, 1).await?;
    let house = House::open(plan, settings, Deliverer::Ours).await?;
    let counted = |report: &Value| report["first"]["count"].as_u64().unwrap_or(0);
    let usual = house.load(USUAL, 1, options.size);
    tokio::time::sleep(Duration::from_secs(USUAL_SECONDS)).await;
    drop(usual);
    tokio::time::sleep(super::WARM_UP).await;
    sink::ask(&control, "/away").await?;
    house.burst(options.backlog, options.size).await;
    // Each of them is looked at once, as it comes; what is measured is what they cost from then on.
    tokio::time::sleep(LOOK).await;
    let meter = Meter::start([("deliverer", house.deliverer)].into_iter());
    tokio::time::sleep(LOOK).await;
    let cost = meter.read();
    sink::ask(&control, "/reset").await?;
    let back = Instant::now();
    let load = house.load(USUAL, 1, options.size);
    sink::ask(&control, "/back").await?;
    let backlog = options.backlog as u64;
    let mut report = Value::Null;
    let mut drained = None;
    while back.elapsed() < DRAIN_MAX {
        tokio::time::sleep(Duration::from_secs(1)).await;
        report = sink::ask(&control, "/").await?;
        let live = (back.elapsed().as_secs_f64() * USUAL) as u64;
        if counted(&report) + (USUAL * 2.0) as u64 >= backlog + live {
            drained = Some(back.elapsed().as_secs());
            break;
        }
    }
    drop(load);
    house.close().await;
    Ok(json!({
        "measure": "backlog", "broker": plan.broker_name(), "backlog": backlog, "size": options.size,
        "cpu_percent": (cost.cpu("deliverer") / cost.seconds * 1000.0).round() / 10.0,
        "usual_per_second": USUAL, "peak_per_second": report["first"]["peak_per_second"],
        "delivered": counted(&report), "drained_after_seconds": drained,
    }))
}

async fn endpoints_of(plan: &Plan, endpoints: usize) -> Result<(Part, String, u16), Failure> {
    let number = endpoints.to_string();
    let mut command = std::process::Command::new(plan.program()?);
    command.args(["bench", "--part", "crowd", "--endpoints", &number]);
    let part = Part::start("crowd", &mut command)?;
    let said = part.says()?;
    let said = said.split_once(' ').and_then(|(control, port)| {
        let port: u16 = port.parse().ok()?;
        Some((control.to_owned(), port))
    });
    let (control, port) = said.ok_or_else(|| failed("the crowd of endpoints did not start"))?;
    plan.subscribe_each(endpoints, port).await?;
    Ok((part, control, port))
}

/// The deliverer that one writes first: so many attempts under way, whoever they are for. It
/// neither filters nor signs nor retries.
async fn fixed_window(broker: Broker, port: u16) {
    let tls = crate::serve::tls_client_config();
    let client = tls.ok().and_then(|tls| {
        let client = reqwest::Client::builder().no_proxy();
        client.tls_backend_preconfigured(tls).build().ok()
    });
    let Some(client) = client else {
        eprintln!("postrider: no HTTP client for the fixed window");
        return;
    };
    let window = Arc::new(Semaphore::new(FIXED_WINDOW));
    let mut consumer = broker
        .consume(
            Queue::Deliver,
            u16::try_from(FIXED_WINDOW).unwrap_or(u16::MAX),
        )
        .await;
    while let Some(received) = consumer.next().await {
        let Ok(bundle) = serde_json::from_slice::<Bundle>(&received.body) else {
            received.ticket.ack();
            continue;
        };
        let mut attempts = JoinSet::new();
        for item in bundle.items {
            let Ok(permit) = window.clone().acquire_owned().await else {
                return;
            };
            let to = item.event.tenant.as_str().strip_prefix("t-");
            let n: usize = to.and_then(|n| n.parse().ok()).unwrap_or(0);
            let url = format!("http://{}/hook", crowd::address(n, port));
            let body = serde_json::to_vec(&*item.event).unwrap_or_default();
            let request = client.post(url).timeout(TIMEOUT).body(body);
            attempts.spawn(async move {
                // What fails is not tried again: only the neighbours are looked at.
                drop(request.send().await);
                drop(permit);
            });
        }
        tokio::spawn(async move {
            while attempts.join_next().await.is_some() {}
            received.ticket.ack();
        });
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(error.to_string())
}
