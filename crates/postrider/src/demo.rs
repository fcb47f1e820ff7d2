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
use serde_json::{Value, json};
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

/// How long the demo waits for its processes and deliveries. Far more than any machine needs: what
/// is reported then is a fault, not a slow disk.
const PATIENCE: Duration = Duration::from_secs(180);

/// How often it looks whether something has come about.
const GLANCE: Duration = Duration::from_millis(50);

/// Runs the demo; fails when anything has no end.
pub(crate) async fn run(options: &cli::Demo) -> Result<(), Failure> {
    let stays = !options.once && std::io::stdout().is_terminal();
    let asked_to_end =
        service::shutdown::on_signals().map_err(|error| Failure::failed(error.to_string()))?;
    let folder = Folder::make()?;
    let settings = settings(&folder)?;
    service::telemetry::init(&settings.log, crate::serve::ERRORS_ONLY)
        .map_err(|error| Failure::failed(error.to_string()))?;

    let voice = Voice::default();
    let receiver = Receiver::start(voice.clone()).await?;
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

    voice.say(format_args!(
        "postrider demo: embedded broker and store in {}\n\
         API at http://{address}, receiver at {}\n",
        folder.0.display(),
        receiver.url("/")
    ));
    let shown = async {
        show(&api, &receiver, &registry, &voice).await?;
        if stays {
            voice.say(format_args!(
                "\nstill up: http://{address} (try `curl http://{address}/v1/dead-letters`); \
                 Ctrl-C ends it"
            ));
            asked_to_end.cancelled().await;
        }
        Ok(())
    };
    let outcome = tokio::select! {
        biased;
        shown = shown => shown,
        () = voice.unheard.cancelled() => Ok(()),
        () = asked_to_end.cancelled() => Err(Failure::failed("the demo was stopped before its end")),
    };
    stop.cancel();
    served
        .await
        .map_err(|error| Failure::failed(format!("the demo broke: {error}")))??;
    outcome
}

/// Subscribes, publishes, waits for every end, and says how it went.
async fn show(
    api: &Api,
    receiver: &Receiver,
    registry: &Registry,
    voice: &Voice,
) -> Result<(), Failure> {
    let revision = subscribe(api, receiver, voice).await?;
    follow(registry, revision).await?;
    let events = publish(api, voice).await?;
    let tally = settle(registry, events).await;
    let waiting = tally.waiting(events);
    if let Some(waiting) = &waiting {
        voice.say(format_args!(
            "\nafter {} s still under way: {waiting}",
            PATIENCE.as_secs()
        ));
    }
    voice.say(format_args!("\n{}", tally.summary(events)));
    match waiting {
        None => Ok(()),
        Some(waiting) => Err(Failure::failed(format!(
            "the demo did not come to its end ({waiting}); please report this with its output"
        ))),
    }
}

/// Prints, from the demo and its endpoints alike. Where nobody reads on, the demo has to take its
/// folder away before it ends.
#[derive(Debug, Clone, Default)]
struct Voice {
    unheard: CancellationToken,
}

impl Voice {
    fn say(&self, line: std::fmt::Arguments<'_>) {
        if crate::output::try_text(format!("{line}\n").as_bytes()).is_err() {
            self.unheard.cancel();
        }
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

/// Whose events they are.
const TENANT: &str = "salon-17";

/// One subscription for each thing the demo shows; the store's revision with all of them.
async fn subscribe(api: &Api, receiver: &Receiver, voice: &Voice) -> Result<u64, Failure> {
    let mut revision = 0;
    let named = |path: &str, name: &str| voice.say(format_args!("subscribed {path:<16} {name}"));
    // By vCita's own route, which answers no more than that; the next ones come after it.
    let by_route = json!({
        "event": "client/created", "target_url": receiver.url("/vcita"), "tenant": TENANT,
    });
    api.post("/v1/subscriptions/standard/subscribe", &by_route)
        .await?;
    named("/vcita", "vcita: client/created");
    for (name, path, mut wish) in dialects().into_iter().chain(needs()) {
        wish["tenant"] = json!(TENANT);
        wish["name"] = json!(name);
        wish["target_url"] = json!(receiver.url(path));
        let created = api.post("/v1/subscriptions", &wish).await?;
        revision = revision.max(created["revision"].as_u64().unwrap_or_default());
        named(path, name);
    }
    voice.say(format_args!(""));
    Ok(revision)
}

/// What a subscription shows, where it goes, and its fields.
type Wish = (&'static str, &'static str, Value);

/// The platforms, each in its own words.
fn dialects() -> Vec<Wish> {
    vec![
        (
            "vikappointments: appointments.save, those confirmed, what was saved of them",
            "/vikappointments",
            json!({
                "dialect": "vikappointments", "events": ["appointments.save"],
                "type": "both", "status": ["confirmed"], "loading_mode": "basic",
            }),
        ),
        (
            "vagaro: appointment, created or deleted",
            "/vagaro",
            json!({
                "dialect": "vagaro", "type": "appointment", "actions": ["created", "deleted"],
                "attributes": {"verification_token": "demo"},
            }),
        ),
        (
            "zaui: Bookings/Creation, Check-In/On Check-in",
            "/zaui",
            json!({
                "dialect": "zaui", "events": ["Bookings/Creation", "Check-In/On Check-in"],
                "attributes": {"company_name": "Salon 17", "timezone": "Europe/Paris"},
            }),
        ),
        (
            "ssa: appointment_booked, appointment_canceled",
            "/ssa",
            json!({
                "dialect": "ssa", "events": ["appointment_booked", "appointment_canceled"],
                "attributes": {"token": "demo", "site_name": "Salon 17"},
            }),
        ),
        (
            "cloudevents: payment.*, binary",
            "/cloudevents",
            json!({"dialect": "cloudevents", "events": ["payment.*"], "mode": "binary"}),
        ),
    ]
}

/// What people want of it, in the standard dialect.
fn needs() -> Vec<Wish> {
    let quick = json!({"retry": {"delays": ["1s", "1s"]}});
    vec![
        ("everything of the salon", "/crm", json!({"events": ["*"]})),
        (
            "only rescheduled appointments",
            "/calendar",
            json!({
                "events": ["appointment.saved"],
                "filter": {"actions": ["updated"], "changed_fields": ["start_date"]},
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
    ]
}

/// Waits until the stages work with this revision: an event goes to who has subscribed by the time
/// it is routed, and the stages follow the store with a little delay.
async fn follow(registry: &Registry, revision: u64) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while sum(registry, "postrider_subscription_revision", "") < revision as f64 {
        if Instant::now() > deadline {
            return Err(Failure::failed(format!(
                "the stages did not learn of the subscriptions within {} s",
                PATIENCE.as_secs()
            )));
        }
        tokio::time::sleep(GLANCE).await;
    }
    Ok(())
}

async fn publish(api: &Api, voice: &Voice) -> Result<u64, Failure> {
    let body = EVENTS.as_bytes().to_vec();
    let answer = api
        .post_bytes("/v1/events", "application/json", body)
        .await?;
    let accepted = answer["accepted"].as_u64().unwrap_or(0);
    voice.say(format_args!(
        "published {accepted} events to POST /v1/events\n"
    ));
    Ok(accepted)
}

/// Waits until every event is routed and every delivery has its end.
async fn settle(registry: &Registry, events: u64) -> Tally {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let tally = Tally::read(registry);
        if tally.waiting(events).is_none() || Instant::now() > deadline {
            return tally;
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// What the metrics say became of the events and their deliveries.
#[derive(Debug, Default)]
struct Tally {
    routed: u64,
    matched: u64,
    delivered: u64,
    filtered: u64,
    dead: u64,
    attempts: u64,
}

impl Tally {
    fn read(registry: &Registry) -> Self {
        let count = |name, word| sum(registry, name, word) as u64;
        // In this order. An event counts as routed after its deliveries were counted, and a
        // delivery as ended after its attempts: so what is read later covers what was read before.
        let routed = count("postrider_events_routed_total", "");
        let matched = count("postrider_bundled_deliveries_total", "");
        let ended = |word| count("postrider_deliveries_total", word);
        Self {
            routed,
            matched,
            delivered: ended("delivered"),
            filtered: ended("filtered"),
            dead: ended("dead"),
            attempts: count("postrider_attempts_total", ""),
        }
    }

    /// What of the published events is still under way, in words.
    fn waiting(&self, events: u64) -> Option<String> {
        let events = events.saturating_sub(self.routed);
        let deliveries = self.without_end();
        (events + deliveries > 0)
            .then(|| format!("{events} events to route, {deliveries} deliveries without an end"))
    }

    fn without_end(&self) -> u64 {
        self.matched
            .saturating_sub(self.delivered + self.filtered + self.dead)
    }

    fn summary(&self, events: u64) -> String {
        let first_attempts = self.delivered + self.dead;
        format!(
            "demo: {events} events, {} webhooks delivered, {} retries, {} dead-lettered, {} lost",
            self.delivered,
            self.attempts.saturating_sub(first_attempts),
            self.dead,
            // Read when the patience is over: nobody can say that it is not lost.
            events.saturating_sub(self.routed) + self.without_end(),
        )
    }
}

/// The sum of a metric over its labels, or of those whose label has `word`.
fn sum(registry: &Registry, name: &str, word: &str) -> f64 {
    registry
        .gather()
        .iter()
        .filter(|family| family.name() == name)
        .flat_map(|family| family.get_metric())
        .filter(|metric| {
            word.is_empty() || metric.get_label().iter().any(|label| label.value() == word)
        })
        // A metric has one of the two; the other reads as 0.
        .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
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
