//! `postrider serve`: the wiring of the stages, and the life of the process.
//!
//! open store and broker -> start the stages asked for -> wait for a signal or a stage's end ->
//! stop taking, finish, settle, close.

pub(crate) mod gauges;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use broker::Broker;
use dialect::Dialects;
use event::SubscriptionId;
use jiff::Timestamp;
use prometheus::Registry;
use store::{Store, access::Access, dedup::Dedup, feed::Feed, gate::Gate};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{cli::Role, commands::Failure, settings::Settings};

/// How often the store is asked for changed subscriptions; half of what the promise of 2 s leaves.
const FEED_EVERY: Duration = Duration::from_secs(1);

/// lapin warns of a returned message with its body, and a body belongs in no log.
pub(crate) const ERRORS_ONLY: &[&str] = &["lapin"];

/// How long a start waits before it asks for a store that is away again.
const STORE_RETRY: Duration = Duration::from_secs(2);

/// Runs the roles (all when none is named) until a signal, then drains.
pub(crate) async fn run(settings: Settings, roles: &[Role]) -> Result<(), Failure> {
    service::telemetry::init(&settings.log, crate::serve::ERRORS_ONLY)
        .map_err(|error| Failure::settings(error.to_string()))?;
    let stop = service::shutdown::on_signals().map_err(failed)?;
    let running = Running::start(&settings, roles, stop).await?;
    running.until_stopped().await
}

/// A started process: in `serve` the only one, in `demo` and `bench` beside their own work.
pub(crate) struct Running {
    stages: JoinSet<Result<&'static str, Failure>>,
    broker: Broker,
    store: Store,
    stop: CancellationToken,
    /// Stops what must outlive the stages: the feed and the side tasks.
    side: CancellationToken,
    registry: Registry,
    api: Option<std::net::SocketAddr>,
    /// Set when the API listens and every stage runs.
    started: Arc<AtomicBool>,
    /// What was published before, as routers and intake of this process ask it.
    dedup: Option<Dedup>,
}

impl Running {
    /// Opens everything, binds every listener, and only then starts the stages.
    pub(crate) async fn start(
        settings: &Settings,
        roles: &[Role],
        stop: CancellationToken,
    ) -> Result<Self, Failure> {
        let roles: BTreeSet<usize> = wanted(roles);
        let has = |role: Role| roles.contains(&(role as usize));
        install_crypto();
        let dialects = crate::dialects::load(settings)?;

        let store = open_store(settings, &stop).await?;
        let broker = open_broker(settings).await?;
        let registry = Registry::new();
        let side = CancellationToken::new();
        let feed = Feed::follow(store.clone(), FEED_EVERY, side.clone());
        let mut running = Self {
            stages: JoinSet::new(),
            broker: broker.clone(),
            store: store.clone(),
            stop,
            side,
            registry: registry.clone(),
            api: None,
            started: Arc::default(),
            dedup: None,
        };

        running.watch(settings, &feed).await?;
        if has(Role::Producer) || has(Role::Router) {
            running.recognize_duplicates(settings)?;
        }
        if has(Role::Producer) || has(Role::Console) {
            running
                .serve_api(
                    settings,
                    &feed,
                    &dialects,
                    has(Role::Producer),
                    has(Role::Console),
                )
                .await?;
        }
        if has(Role::Router) {
            running.start_router(settings, &feed)?;
        }
        if has(Role::Deliverer) {
            running.start_deliverer(settings, &feed, dialects)?;
        }
        if has(Role::Recorder) {
            running.start_recorder(settings, &feed)?;
        }
        running.started.store(true, Ordering::Relaxed);
        let names: Vec<_> = Role::ALL
            .into_iter()
            .filter(|role| roles.contains(&(*role as usize)))
            .map(|role| format!("{role:?}").to_lowercase())
            .collect();
        info!(
            roles = names.join(","),
            version = env!("CARGO_PKG_VERSION"),
            broker = service::settings::mask(&settings.broker.url),
            "started"
        );
        Ok(running)
    }

    /// Where the API listens, where it does.
    pub(crate) fn api(&self) -> Option<std::net::SocketAddr> {
        self.api
    }

    /// The metrics of this process.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The broker of this process.
    pub(crate) fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Waits for the stop, or for a stage that ended without one, then drains every stage.
    pub(crate) async fn until_stopped(mut self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        tokio::select! {
            // First: a stage that ends because of the stop has not ended early.
            biased;
            () = self.stop.cancelled() => info!("stopping: no more is taken, what is under way is finished"),
            ended = self.stages.join_next() => outcome = Err(ended_early(ended)),
        }
        self.stop.cancel();
        while let Some(ended) = self.stages.join_next().await {
            match ended {
                Ok(Ok(stage)) => info!(stage, "stage finished"),
                Ok(Err(failure)) => outcome = Err(failure),
                Err(error) => outcome = Err(Failure::failed(format!("a stage broke: {error}"))),
            }
        }
        // The stages have settled what they took; the acks are still on their way.
        self.broker.close().await;
        self.side.cancel();
        if outcome.is_ok() {
            info!("stopped");
        }
        outcome
    }

    async fn watch(&mut self, settings: &Settings, feed: &Feed) -> Result<(), Failure> {
        let listener = service::http::bind("ops.listen", settings.ops.listen)
            .await
            .map_err(failed)?;
        let revision = option_env!("POSTRIDER_REVISION").unwrap_or("unknown");
        service::ops::build_info(&self.registry, env!("CARGO_PKG_VERSION"), revision)
            .map_err(metrics_failed)?;
        let gauges = gauges::Gauges::register(&self.registry).map_err(metrics_failed)?;
        tokio::spawn(gauges.keep_fresh(self.broker.clone(), feed.clone(), self.side.clone()));
        let checks = gauges::checks(&self.broker, feed);
        let (started, stop) = (self.started.clone(), self.stop.clone());
        // This listener is the first to answer and the last to stop.
        checks.add("stages", move || {
            match (started.load(Ordering::Relaxed), stop.is_cancelled()) {
                (false, _) => Err("not started yet".to_owned()),
                (true, true) => Err("stopping".to_owned()),
                (true, false) => Ok(()),
            }
        });
        let ops = service::ops::router(self.registry.clone(), checks);
        let side = self.side.clone();
        // Metrics and health answer until the very end of the drain.
        tokio::spawn(async move {
            service::http::serve(listener, ops, service::http::Limits::default(), side).await;
        });
        Ok(())
    }

    fn recognize_duplicates(&mut self, settings: &Settings) -> Result<(), Failure> {
        self.dedup = Dedup::start(self.store.clone(), &settings.dedup);
        gauges::Duplicates::register(&self.registry, self.dedup.clone()).map_err(metrics_failed)
    }

    async fn serve_api(
        &mut self,
        settings: &Settings,
        feed: &Feed,
        dialects: &Arc<Dialects>,
        producer: bool,
        console: bool,
    ) -> Result<(), Failure> {
        let listen = settings.api.listen;
        let loopback = match listen.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.is_loopback(),
        };
        let access = Access::new(
            settings.auth.admin_token.clone(),
            self.store.clone(),
            loopback,
        );
        let access = Arc::new(access);
        self.check_exposure(settings, loopback).await?;
        let mut app = axum::Router::new();
        if producer {
            let metrics = producer::Metrics::register(&self.registry).map_err(metrics_failed)?;
            let intake = producer::State::new(
                self.broker.publisher(),
                access.clone(),
                metrics,
                settings.api.body_max,
            );
            app = app.merge(producer::router(intake.recognizing(self.dedup.clone())));
        }
        if console {
            app = app.merge(console::router(console::State {
                store: self.store.clone(),
                feed: feed.clone(),
                publisher: self.broker.publisher(),
                access,
                rules: settings.egress().rules(),
                dialects: Arc::clone(dialects),
                archive: settings.recorder.archive,
                stop: self.stop.clone(),
            }));
        }
        let limiter = service::http::Limiter::register(&settings.api, &self.registry)
            .map_err(metrics_failed)?;
        let app = limiter.around(app);
        let listener = service::http::bind("api.listen", listen)
            .await
            .map_err(failed)?;
        self.api = listener.local_addr().ok();
        let limits = service::http::Limits::from(&settings.api);
        let stop = self.stop.clone();
        self.stages.spawn(async move {
            service::http::serve(listener, app, limits, stop).await;
            Ok("api")
        });
        info!(listen = %settings.api.listen, "the API listens");
        Ok(())
    }

    /// Without any token the API is open, and open it must not be beyond this machine.
    async fn check_exposure(&self, settings: &Settings, loopback: bool) -> Result<(), Failure> {
        if settings.auth.admin_token.is_some() || self.store.has_tokens().await.map_err(failed)? {
            return Ok(());
        }
        if loopback {
            warn!(
                "no token is configured: the API answers anybody on this machine; set auth.admin_token"
            );
            return Ok(());
        }
        Err(Failure::settings(format!(
            "api.listen = {} reaches beyond this machine and no token is configured: set auth.admin_token (or auth.admin_token_file), or listen on 127.0.0.1",
            settings.api.listen
        )))
    }

    fn start_router(&mut self, settings: &Settings, feed: &Feed) -> Result<(), Failure> {
        let parts = router::Parts {
            broker: self.broker.clone(),
            feed: feed.clone(),
            archive: settings.recorder.archive,
            dedup: self.dedup.clone(),
            settings: bound_to_publishers(settings),
            metrics: router::metrics::Metrics::register(&self.registry).map_err(metrics_failed)?,
        };
        let stop = self.stop.clone();
        self.stages.spawn(async move {
            router::run(parts, stop).await.map_err(failed)?;
            Ok("router")
        });
        Ok(())
    }

    fn start_deliverer(
        &mut self,
        settings: &Settings,
        feed: &Feed,
        dialects: Arc<Dialects>,
    ) -> Result<(), Failure> {
        warn_of_proxies();
        let (disable, asked) = mpsc::channel(1024);
        tokio::spawn(disable_asked(self.store.clone(), feed.clone(), asked));
        let parts = deliverer::Parts {
            broker: self.broker.clone(),
            feed: feed.clone(),
            dialects,
            settings: settings.delivery.clone(),
            egress: settings.egress(),
            loaders: settings.loaders.clone(),
            archive: settings.recorder.archive,
            metrics: deliverer::Metrics::register(&self.registry).map_err(metrics_failed)?,
            gate: Some(Gate::start(self.store.clone())),
            disable,
        };
        let stop = self.stop.clone();
        self.stages.spawn(async move {
            deliverer::run(parts, stop).await.map_err(failed)?;
            Ok("deliverer")
        });
        Ok(())
    }

    fn start_recorder(&mut self, settings: &Settings, feed: &Feed) -> Result<(), Failure> {
        let parts = recorder::Parts {
            broker: self.broker.clone(),
            store: self.store.clone(),
            feed: feed.clone(),
            retention: settings.retention.clone(),
            metrics: recorder::metrics::Metrics::register(&self.registry)
                .map_err(metrics_failed)?,
        };
        let stop = self.stop.clone();
        self.stages.spawn(async move {
            // Large: it holds what every part of the recorder is in the middle of.
            Box::pin(recorder::run(parts, stop)).await;
            Ok("recorder")
        });
        let jobs = recorder::jobs::Parts {
            broker: self.broker.clone(),
            store: self.store.clone(),
            archive: settings.recorder.archive,
            metrics: recorder::jobs::metrics::Metrics::register(&self.registry)
                .map_err(metrics_failed)?,
            pace: recorder::jobs::Pace::default(),
        };
        let stop = self.stop.clone();
        self.stages.spawn(async move {
            recorder::jobs::run(jobs, stop).await;
            Ok("jobs")
        });
        Ok(())
    }
}

/// Opens the broker. Where publishers are held to their tenants, our own intake says who it is.
async fn open_broker(settings: &Settings) -> Result<Broker, Failure> {
    let mut broker = settings.broker.clone();
    broker.identify = !settings.publishers.is_empty();
    Broker::open(&broker).await.map_err(failed)
}

/// The router's settings, with who may publish for whom.
fn bound_to_publishers(settings: &Settings) -> router::Settings {
    let mut router = settings.router.clone();
    router.publishers = settings.publishers.clone();
    if let Some(user) = settings.broker.user() {
        router.publishers = router.publishers.with_own(&user);
    }
    router
}

/// Opens the store; one that is merely away is waited for, as the broker is.
async fn open_store(settings: &Settings, stop: &CancellationToken) -> Result<Store, Failure> {
    let settings = settings.store();
    loop {
        match Store::open(&settings).await {
            Err(store::Error::Unavailable(reason)) => {
                warn!(reason, "the store is away, waiting for it")
            }
            opened => return opened.map_err(failed),
        }
        tokio::select! {
            () = stop.cancelled() => return Err(Failure::failed("stopped before the store was there")),
            () = tokio::time::sleep(STORE_RETRY) => {}
        }
    }
}

/// Whoever sets a proxy for a machine may count on it. Deliveries do not use one: it would resolve
/// and dial what the guard never sees.
fn warn_of_proxies() {
    const VARIABLES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    for variable in VARIABLES {
        let lower = variable.to_lowercase();
        if [variable, &lower]
            .iter()
            .any(|name| std::env::var_os(name).is_some())
        {
            warn!(
                variable,
                "a proxy in the environment is not used: deliveries dial what was judged, themselves"
            );
        }
    }
}

/// Disables subscriptions as the deliverer asks (an endpoint answered 410). While the store is
/// away it is tried again; the deliveries that follow are dead-lettered as `gone` meanwhile.
async fn disable_asked(
    store: Store,
    feed: Feed,
    mut asked: mpsc::Receiver<(SubscriptionId, String)>,
) {
    while let Some((id, reason)) = asked.recv().await {
        while let Err(error) = store
            .disable_subscription(&id, &reason, Timestamp::now())
            .await
        {
            warn!(subscription_id = %id, %error, "the subscription could not be disabled yet");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        info!(subscription_id = %id, reason, "subscription disabled");
        feed.nudge();
    }
}

fn wanted(roles: &[Role]) -> BTreeSet<usize> {
    let all = if roles.is_empty() { &Role::ALL } else { roles };
    all.iter().map(|role| *role as usize).collect()
}

fn ended_early(
    ended: Option<Result<Result<&'static str, Failure>, tokio::task::JoinError>>,
) -> Failure {
    let text = match ended {
        Some(Ok(Ok(stage))) => format!("the {stage} ended although nobody stopped it"),
        Some(Ok(Err(failure))) => return failure,
        Some(Err(error)) => format!("a stage broke: {error}"),
        None => "no stage was started".into(),
    };
    error!(text, "stopping");
    Failure::failed(text)
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(error.to_string())
}

fn metrics_failed(error: prometheus::Error) -> Failure {
    Failure::failed(format!("metrics: {error}"))
}

/// The process's TLS primitives. Installing them twice is harmless: the first stays.
fn install_crypto() {
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// TLS for the commands that call an API over `https`: the system's authorities.
pub(crate) fn tls_client_config() -> Result<rustls::ClientConfig, Failure> {
    install_crypto();
    deliverer::client::system_tls().map_err(failed)
}
