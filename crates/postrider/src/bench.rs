//! `postrider bench`: publish -> endpoint on the configured broker, with a load and a sink of its
//! own. A program, not a test.
//!
//! On RabbitMQ the sink, the load, a router and a deliverer are processes of their own, as they
//! would be in production; on the embedded broker router, deliverer and load share one.
//! It uses the product's own queues, so point it at a broker that nothing else uses.

mod crowd;
mod intake;
mod load;
mod meter;
mod neighbours;
mod plan;
mod sink;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    cli::{self, Format, Global, Measure},
    commands::{Failure, block_on, settings},
    output::say,
    settings::Settings,
};
use meter::Meter;
use plan::Plan;

/// How long the pipeline runs before it is measured.
const WARM_UP: Duration = Duration::from_secs(2);

/// Runs a bench, or one of its processes.
pub(crate) fn run(global: &Global, options: &cli::Bench) -> Result<(), Failure> {
    match options.part.as_deref() {
        Some("sink") => block_one(sink::serve()),
        Some("crowd") => block_one(crowd::serve(options.endpoints)),
        Some("load") => {
            let settings = settings(global)?;
            block_one(load::run(&settings, options))
        }
        Some("node") => {
            let settings = settings(global)?;
            block_on(load::run_with_stages(&settings, options))
        }
        Some("requests") => block_one(intake::load(options)),
        Some(other) => Err(Failure::usage(format!("a bench has no part {other:?}"))),
        None => {
            let settings = settings(global)?;
            let report = block_on(measure(&settings, options))?;
            print(&report, options.output);
            Ok(())
        }
    }
}

/// A load or a sink is one thread's work; more would take it from what is measured.
fn block_one(future: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no runtime: {error}")))?
        .block_on(future)
}

async fn measure(settings: &Settings, options: &cli::Bench) -> Result<Value, Failure> {
    let plan = Plan::lay(settings, options).await?;
    match options.measure {
        Measure::Pipeline => pipeline(&plan, options).await,
        Measure::Intake => intake::measure(&plan, options).await,
        Measure::Neighbours => neighbours::neighbours(&plan, settings, options).await,
        Measure::Backlog => neighbours::backlog(&plan, settings, options).await,
    }
}

async fn pipeline(plan: &Plan, options: &cli::Bench) -> Result<Value, Failure> {
    let sink = Part::start(
        "sink",
        Command::new(plan.program()?).args(["bench", "--part", "sink"]),
    )?;
    let sink_at = sink.says()?;
    plan.subscribe(&format!("http://{sink_at}"), options)
        .await?;
    let mut parts = if plan.embedded {
        vec![Part::start("node", &mut plan.bench_part("node", options)?)?]
    } else {
        vec![
            Part::start("router", &mut plan.role("router")?)?,
            Part::start("deliverer", &mut plan.role("deliverer")?)?,
            Part::start("load", &mut plan.bench_part("load", options)?)?,
        ]
    };
    if options.recorder && !plan.embedded {
        parts.push(Part::start("recorder", &mut plan.role("recorder")?)?);
    }
    tokio::time::sleep(WARM_UP).await;
    wait_for_traffic(&sink_at).await?;
    sink::ask(&sink_at, "/reset").await?;
    let meter = Meter::start(
        parts
            .iter()
            .chain([&sink])
            .map(|part| (part.name, part.pid())),
    );
    tokio::time::sleep(Duration::from_secs(options.secs)).await;
    let reading = meter.read();
    let counted = sink::ask(&sink_at, "/").await?;
    let deliveries = counted["count"].as_u64().unwrap_or(0);
    if deliveries == 0 {
        return Err(Failure::failed(
            "nothing was delivered; see the parts' messages above",
        ));
    }
    Ok(json!({
        "measure": "pipeline",
        "broker": plan.broker_name(),
        "fanout": options.fanout,
        "rate": options.rate,
        "size": options.size,
        "subscriptions": options.subscriptions,
        "seconds": reading.seconds,
        "deliveries": deliveries,
        "deliveries_per_second": (deliveries as f64 / reading.seconds).round(),
        "cpu_us_per_delivery": reading.per(deliveries),
        "rss_mib": reading.rss,
        "publish_to_endpoint_ms": {"p50": counted["p50_ms"], "p99": counted["p99_ms"]},
    }))
}

/// The measure begins with the first delivery: what a process needs to start is not its speed.
async fn wait_for_traffic(sink: &str) -> Result<(), Failure> {
    for _ in 0..300 {
        if sink::ask(sink, "/").await?["count"].as_u64().unwrap_or(0) > 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(Failure::failed(
        "nothing was delivered within 30 s; see the parts' messages above",
    ))
}

fn print(report: &Value, format: Format) {
    if format == Format::Json {
        say!("{report}");
        return;
    }
    for (name, value) in report.as_object().into_iter().flatten() {
        say!("{name:<24}{value}");
    }
}

/// A process of the bench, ended with it.
struct Part {
    name: &'static str,
    child: Child,
}

impl Part {
    fn start(name: &'static str, command: &mut Command) -> Result<Self, Failure> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::failed(format!("cannot start the {name}: {error}")))?;
        Ok(Self { name, child })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line it prints.
    fn says(&self) -> Result<String, Failure> {
        let silent = || Failure::failed(format!("the {} said nothing", self.name));
        let fd = self.child.stdout.as_ref().ok_or_else(silent)?;
        let fd = std::os::fd::AsFd::as_fd(fd)
            .try_clone_to_owned()
            .map_err(|_| silent())?;
        let mut line = String::new();
        BufReader::new(std::fs::File::from(fd))
            .read_line(&mut line)
            .map_err(|_| silent())?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().ok();
        }
    }
}
