//! `postrider demo`: the main job on real input, with nothing to configure or install.
//!
//! Everything in it is the product: the embedded broker and store in a temporary folder, the HTTP
//! API, the router, the deliverer. Only the receiver is the demo's own.

mod receiver;

use std::{
    io::IsTerminal,
    path::PathBuf,
    time::{Duration, Instant},
};

use prometheus::Registry;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    api::Api,
    cli::{self, Remote},
    commands::Failure,
    serve::Running,
    settings::Settings,
};
use receiver::Receiver;

/// The demo's events, as a booking platform would publish them.
const EVENTS: &str = include_str!("demo/events.json");

/// How long the demo may take before what is still under way counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the demo; fails when anything was lost.
pub(crate) async fn run(options: &cli::Demo) -> Result<(), Failure> {
    let stays = !options.once && std::io::stdout().is_terminal();
    let folder = Folder::make()?;
    let settings = settings(&folder)?;
    service::telemetry::init(&settings.log, crate::serve::ERRORS_ONLY)
        .map_err(|error| Failure::failed(error.to_string()))?;

    let receiver = Receiver::start().await?;
    let stop = CancellationToken::new();
    let running = Running::start(&settings, &[], stop.clone()).await?;
    let address = running
        .api()
        .ok_or_else(|| Failure::failed("the demo's API did not start"))?;
    let registry = running.registry().clone();
    let served = tokio::spawn(running.until_stopped());
    let remote = Remote {
        api: Some(format!("http://{address}")),
        token: None,
    };
    let api = Api::new(&remote, &settings)?;

    println!(
        "postrider demo: embedded broker and store in {}",
        folder.0.display()
    );
    println!(
        "API at http://{address}, receiver at {}\n",
        receiver.url("/")
    );
    subscribe(&api, &receiver).await?;
    println!();
    let events = publish(&api).await?;
    let tally = settle(&registry).await;
    println!("\n{}", tally.summary(events));

    if stays {
        println!(
            "\nstill up: http://{address} (try `curl http://{address}/v1/dead-letters`); Ctrl-C ends it"
        );
        service::shutdown::on_signals()
            .map_err(|error| Failure::failed(error.to_string()))?
            .cancelled()
            .await;
    }
    stop.cancel();
    served
        .await
        .map_err(|error| Failure::failed(format!("the demo broke: {error}")))??;
    if tally.waiting() == 0 {
        Ok(())
    } else {
        Err(Failure::failed(
            "the demo lost deliveries; please report this with its output",
        ))
    }
}

fn settings(folder: &Folder) -> Result<Settings, Failure> {
    let place = folder.0.display();
    let set = |key: &str, value: String| (key.to_owned(), value);
    let flags = vec![
        set("broker.url", format!("embedded://{place}")),
        set("api.listen", "127.0.0.1:0".into()),
        set("ops.listen", "127.0.0.1:0".into()),
        set("egress.allow", "127.0.0.0/8".into()),
        set(
            "log.level",
            std::env::var("POSTRIDER__LOG__LEVEL").unwrap_or("error".into()),
        ),
    ];
    let sources = service::settings::Sources::only(flags);
    service::settings::load(crate::settings::KEYS, &sources)
        .map(|loaded| loaded.settings)
        .map_err(|refused| Failure::failed(refused.to_string()))
}

/// One subscription for each thing the demo shows.
async fn subscribe(api: &Api, receiver: &Receiver) -> Result<(), Failure> {
    let quick = json!({"retry": {"delays": ["1s", "1s"]}});
    let wishes = [
        ("everything of the salon", "/crm", json!({"events": ["*"]})),
        (
            "only rescheduled appointments",
            "/calendar",
            json!({
                "events": ["appointment.saved"],
                "filter": {"actions": ["updated"], "changed_fields": ["start_time"]},
                "view": "basic",
            }),
        ),
        (
            "only what costs more than 100",
            "/accounting",
            json!({
                "events": ["appointment.created", "payment.paid", "booking.created"],
                "filter": {"where": "event.data.price > 100.0 || event.data.amount > 100.0"},
            }),
        ),
        (
            "an endpoint that fails twice and recovers",
            "/flaky",
            json!({"events": ["booking.*"], "delivery": quick}),
        ),
        (
            "an endpoint that never works",
            "/broken",
            json!({"events": ["payment.paid"], "delivery": quick}),
        ),
    ];
    for (name, path, mut wish) in wishes {
        wish["tenant"] = json!("salon-17");
        wish["name"] = json!(name);
        wish["target_url"] = json!(receiver.url(path));
        let created = api.post("/v1/subscriptions", &wish).await?;
        let id = created["id"].as_str().unwrap_or_default();
        println!("subscribed {path:<12} {name} ({id})");
    }
    Ok(())
}

async fn publish(api: &Api) -> Result<u64, Failure> {
    let body = EVENTS.as_bytes().to_vec();
    let answer = api
        .post_bytes("/v1/events", "application/json", body)
        .await?;
    let accepted = answer["accepted"].as_u64().unwrap_or(0);
    println!("published {accepted} events to POST /v1/events\n");
    Ok(accepted)
}

/// Waits until every delivery has its end.
async fn settle(registry: &Registry) -> Tally {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let tally = Tally::read(registry);
        let routed = tally.routed >= 1.0;
        if (routed && tally.waiting() == 0) || Instant::now() > deadline {
            return tally;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What the metrics say became of the deliveries.
#[derive(Debug, Default)]
struct Tally {
    routed: f64,
    matched: f64,
    delivered: f64,
    filtered: f64,
    dead: f64,
    attempts: f64,
}

impl Tally {
    fn read(registry: &Registry) -> Self {
        let outcome = |word| sum(registry, "postrider_deliveries_total", word);
        Self {
            routed: sum(registry, "postrider_events_routed_total", ""),
            matched: sum(registry, "postrider_bundled_deliveries_total", ""),
            delivered: outcome("delivered"),
            filtered: outcome("filtered"),
            dead: outcome("dead"),
            attempts: sum(registry, "postrider_attempts_total", ""),
        }
    }

    /// Deliveries without an end yet.
    fn waiting(&self) -> u64 {
        (self.matched - self.delivered - self.filtered - self.dead).max(0.0) as u64
    }

    fn summary(&self, events: u64) -> String {
        let first_attempts = self.delivered + self.dead;
        format!(
            "demo: {events} events, {} webhooks delivered, {} retries, {} dead-lettered, {} lost",
            self.delivered,
            self.attempts - first_attempts,
            self.dead,
            // Read when the patience is over: what has no end by then is lost.
            self.waiting(),
        )
    }
}

/// The sum of a counter over its labels, or of those whose label has `word`.
fn sum(registry: &Registry, name: &str, word: &str) -> f64 {
    registry
        .gather()
        .iter()
        .filter(|family| family.name() == name)
        .flat_map(|family| family.get_metric())
        .filter(|metric| {
            word.is_empty() || metric.get_label().iter().any(|label| label.value() == word)
        })
        .map(|metric| metric.get_counter().get_value())
        .sum()
}

/// A temporary folder that goes with the demo.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self, Failure> {
        let name = format!("postrider-demo-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path)
            .map_err(|error| Failure::failed(format!("cannot make {}: {error}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("postrider: cannot remove {}: {error}", self.0.display());
        }
    }
}
