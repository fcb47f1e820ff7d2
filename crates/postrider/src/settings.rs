//! Every setting of the process: the sections of the stages side by side, and the table of keys
//! that `config show` and `docs/configuration.md` are made from.

use event::target::Own;
use secrecy::{ExposeSecret, SecretString};
use service::settings::{Effective, Fault, Key, Kind, Loaded, Refused, Sources};

use crate::{cli::Global, commands::Failure};

/// The whole of the settings.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) api: service::http::Settings,
    pub(crate) ops: service::ops::Settings,
    pub(crate) auth: Auth,
    pub(crate) broker: broker::Settings,
    pub(crate) store: store::Settings,
    pub(crate) router: router::Settings,
    pub(crate) publishers: router::Publishers,
    pub(crate) dedup: store::dedup::Settings,
    pub(crate) recorder: Recorder,
    pub(crate) retention: recorder::Retention,
    pub(crate) delivery: deliverer::Settings,
    pub(crate) egress: deliverer::Egress,
    pub(crate) loaders: deliverer::Loaders,
    pub(crate) dialects: crate::dialects::Folder,
    pub(crate) log: service::telemetry::Settings,
}

/// `[auth]`: who may call.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Auth {
    pub(crate) admin_token: Option<SecretString>,
}

/// `[recorder]`: what is remembered.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Recorder {
    pub(crate) archive: event::log::Archive,
}

impl Settings {
    /// The bootstrap token, for the commands that call our own API.
    pub(crate) fn admin_token(&self) -> Option<&str> {
        self.auth
            .admin_token
            .as_ref()
            .map(ExposeSecret::expose_secret)
    }

    /// Where deliveries may go: what is written, and never to ourselves.
    pub(crate) fn egress(&self) -> deliverer::Egress {
        let mut egress = self.egress.clone();
        for listen in [self.api.listen, self.ops.listen] {
            egress.own.push(Own::Address(listen.ip(), listen.port()));
        }
        // A broker answers HTTP on ports of its own, too.
        let broker: [u16; 4] = [5671, 5672, 15671, 15672];
        let store = self.store().url;
        for (url, ports) in [(&self.broker.url, &broker[..]), (&store, &[5432])] {
            let Ok(url) = url::Url::parse(url) else {
                continue;
            };
            for port in ports.iter().copied().chain(url.port()) {
                let host = url.host_str().unwrap_or_default();
                egress.own.extend(Own::at(host, port));
            }
        }
        egress
    }

    /// The store's settings, with its default place: the embedded broker's folder.
    pub(crate) fn store(&self) -> store::Settings {
        let mut store = self.store.clone();
        if store.url.is_empty() {
            let folder = self
                .broker
                .url
                .strip_prefix("embedded://")
                .unwrap_or("./postrider-data");
            store.url = format!("sqlite://{}/postrider.db", folder.trim_end_matches('/'));
        }
        store
    }
}

/// Loads and judges the settings from the file, the environment and the flags.
pub(crate) fn load(global: &Global) -> Result<Loaded<Settings>, Failure> {
    let sources = Sources::of_process(global.config.clone(), global.set.clone());
    let refused = |refused: Refused| Failure::settings(refused.to_string());
    let loaded = service::settings::load::<Settings>(KEYS, &sources).map_err(refused)?;
    let faults = judge(&loaded);
    if faults.is_empty() {
        Ok(loaded)
    } else {
        Err(refused(Refused { faults }))
    }
}

/// What only the whole can tell: bounds, and settings that do not go together.
fn judge(loaded: &Loaded<Settings>) -> Vec<Fault> {
    let settings = &loaded.settings;
    let mut faults: Vec<Fault> = Vec::new();
    for (key, message) in settings
        .router
        .faults()
        .into_iter()
        .chain(settings.dedup.faults())
        .chain(settings.retention.faults())
        .chain(settings.delivery.faults())
        .chain(settings.egress.faults())
        .chain(settings.api.faults())
        .chain(settings.log.faults())
    {
        faults.push(loaded.fault(key, message));
    }
    for (key, message) in deliverer::settings::loader_faults(&settings.loaders) {
        faults.push(loaded.fault(&key, message));
    }
    for (key, message) in settings.publishers.faults() {
        faults.push(loaded.fault(&key, message));
    }
    let url = &settings.broker.url;
    if !settings.publishers.is_empty() && url.starts_with("embedded://") {
        let message = "the embedded broker has no users to tell apart; broker.url must be amqp";
        faults.push(loaded.fault("publishers", message));
    }
    if !["embedded://", "amqp://", "amqps://"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
    {
        let message = "must be `embedded://PATH` or `amqp(s)://user:password@host:port/vhost`";
        faults.push(loaded.fault("broker.url", message));
    }
    let url = settings.store().url;
    if !["sqlite://", "postgres://", "postgresql://"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
    {
        faults.push(loaded.fault("store.url", "must be `sqlite://PATH` or `postgres://…`"));
    }
    if settings.admin_token().is_some_and(|token| token.len() < 16) {
        faults.push(loaded.fault("auth.admin_token", "must have at least 16 characters"));
    }
    faults
}

/// Every line of `config show`.
pub(crate) fn effective(loaded: &Loaded<Settings>) -> &[Effective] {
    loaded.effective()
}

const fn key(path: &'static str, default: &'static str, help: &'static str) -> Key {
    Key {
        path,
        default,
        kind: Kind::Plain,
        help,
    }
}

const fn secret(path: &'static str, help: &'static str) -> Key {
    Key {
        path,
        default: "",
        kind: Kind::Secret,
        help,
    }
}

const fn url(path: &'static str, default: &'static str, help: &'static str) -> Key {
    Key {
        path,
        default,
        kind: Kind::Url,
        help,
    }
}

/// Every key there is. A test holds it against the types, and `docs/configuration.md` against it.
pub(crate) const KEYS: &[Key] = &[
    key(
        "api.listen",
        "127.0.0.1:8080",
        "Where intake and the management API listen.",
    ),
    key(
        "api.body_max",
        "4MiB",
        "The largest request body; a single event is at most 256 KiB.",
    ),
    key(
        "api.connections_max",
        "1024",
        "Open connections; more wait to be accepted.",
    ),
    key(
        "api.connections_per_client_max",
        "512",
        "Open connections from one address, trusted proxies apart; one more is closed at once.",
    ),
    key(
        "api.rate_limit.failures_per_minute",
        "600",
        "Requests without a valid token from one address (in IPv6 a /64); more are answered 429, and a token that was good goes on. `0`: no limit.",
    ),
    key(
        "api.rate_limit.requests_per_second",
        "5000",
        "Requests with one token; more are answered 429. `0`: no limit.",
    ),
    key(
        "api.trusted_proxies",
        "",
        "Networks of the proxies in front, such as `10.0.0.0/8`: only what they add to `X-Forwarded-For` is believed. Empty: the address is the connection's own.",
    ),
    key(
        "ops.listen",
        "127.0.0.1:9090",
        "Where `/metrics`, `/healthz` and `/readyz` listen.",
    ),
    secret(
        "auth.admin_token",
        "A bootstrap token with scope admin, at least 16 characters. Without it, and with no token in the store, the API answers on loopback only, unauthenticated.",
    ),
    url(
        "broker.url",
        "embedded://./postrider-data",
        "`embedded://FOLDER`, or `amqp(s)://user:password@host:port/vhost` for RabbitMQ; the nodes of a cluster as `host:port,host:port`.",
    ),
    key(
        "broker.ca_file",
        "",
        "A PEM file with authorities to trust for `amqps`, besides the system's.",
    ),
    key("broker.heartbeat", "10s", "AMQP heartbeat, 5 s to 60 s."),
    url(
        "store.url",
        "",
        "`sqlite://PATH` or `postgres://…`; by default `postrider.db` in the broker's folder.",
    ),
    secret(
        "store.encryption_key",
        "32 bytes in base64 that encrypt signing keys and header values at rest. By default a key file beside the SQLite database, or a key kept in PostgreSQL (with a warning).",
    ),
    key(
        "publishers.*",
        "",
        "The tenants that this user of RabbitMQ may publish events for, such as `salon-*`; see [security.md](security.md#tenants-and-tokens). With any user named, a message needs a `user-id`, which the broker validates; others go to quarantine. Every process needs the same.",
    ),
    key(
        "router.bundle_max",
        "32",
        "Deliveries in one parcel to the deliverers, 1 to 1000: more is faster under load and repeats more after a crash.",
    ),
    key(
        "router.prefetch",
        "500",
        "Unacknowledged messages a router holds, 1 to 10000.",
    ),
    key(
        "router.bundles_in_flight",
        "8",
        "Bundles waiting for their confirm, 1 to 256; the next ones fill up meanwhile.",
    ),
    key(
        "dedup.window",
        "24h",
        "How long an id is remembered, so that the same tenant and id is routed once; at most 30 days, `0s` recognizes no duplicates.",
    ),
    key(
        "recorder.archive",
        "full",
        "What is remembered of events and deliveries: `full`, `headers` (no payloads), or `off`. Dead letters and quarantine are kept in any case.",
    ),
    key(
        "retention.events",
        "30d",
        "How long events are kept, from their acceptance; 1 day to 10 years, `0s` for ever. Whole days are forgotten at a time.",
    ),
    key(
        "retention.deliveries",
        "30d",
        "How long deliveries and their attempts are kept, from the acceptance of the event.",
    ),
    key(
        "retention.dead_letters",
        "90d",
        "How long dead letters are kept and can be redriven.",
    ),
    key(
        "retention.quarantine",
        "30d",
        "How long quarantined messages are kept.",
    ),
    key(
        "retention.versions",
        "90d",
        "How long it is remembered which version of a subject was sent to a subscription with `ordering` `latest`, since it was last asked for; at least 10 days.",
    ),
    key(
        "delivery.max_in_flight",
        "256",
        "Attempts under way at once in this process, 1 to 10000. What waits for its turn or its confirm is bounded to four times as many.",
    ),
    key(
        "delivery.grace",
        "25s",
        "How long a stop waits for what is under way, 1 s to 10 min; what is not done by then stays the broker's and is delivered again.",
    ),
    key(
        "delivery.connect_timeout",
        "5s",
        "The longest a connection may take, TLS included, within the attempt's own timeout; 100 ms to 30 s.",
    ),
    key(
        "delivery.idle_timeout",
        "4s",
        "How long an idle connection is kept for the next delivery, 1 s to 10 min; by default less than the 5 s after which many servers close theirs.",
    ),
    key(
        "delivery.response_max",
        "16KiB",
        "How much of a response's body is read and kept, at most 1 MiB.",
    ),
    key(
        "delivery.response_timeout",
        "2s",
        "How long a response's body is read after its status came, 10 ms to 30 s.",
    ),
    key(
        "delivery.wait_max",
        "2s",
        "The longest a delivery waits in the process for its endpoint, and a quarter of that once many wait; longer ones wait on the retry ladder, where they hold nothing up. At most 10 s.",
    ),
    key(
        "delivery.breaker_failures",
        "4",
        "After how many timeouts and connection errors in a row an endpoint is left alone for a while, 1 to 1000.",
    ),
    key(
        "delivery.breaker_pause_max",
        "5m",
        "The longest such pause; the first is 1 s and each doubles. 1 s to 1 h.",
    ),
    key(
        "delivery.views_max",
        "32MiB",
        "How much of what loaders answered is kept in memory, at most 1 GiB.",
    ),
    key(
        "egress.allow",
        "",
        "Networks exempt from the address guard, such as `127.0.0.0/8` for local trials. Empty: no address inside your network is dialled.",
    ),
    key(
        "egress.deny",
        "",
        "Networks, addresses, names and `*.NAME`s that are no targets, whatever `egress.allow` says: what this installation is reached by from outside. Its own listeners, broker and store as the settings name them are no targets in any case.",
    ),
    key(
        "egress.address_max",
        "50",
        "Attempts under way at once from this process to one address, over all subscriptions, 1 to 10000; what comes on top waits on the retry ladder. Addresses in `egress.allow` are yours and are not counted.",
    ),
    key(
        "egress.require_https",
        "true",
        "Whether plain `http` is refused, except to what `egress.allow` covers.",
    ),
    key(
        "egress.ca_file",
        "",
        "A PEM file with authorities to trust besides the system's, for endpoints with certificates of your own.",
    ),
    url(
        "loaders.*.url",
        "",
        "Where a view is fetched that an event of this entity lacks: a URL with `{id}`, and with `{view}` (`basic`, `full`, `extended`) and `{tenant}` where wanted, such as `https://records.example.com/appointments/{id}?view={view}`.",
    ),
    secret(
        "loaders.*.token",
        "Sent to this loader as `authorization: Bearer …`.",
    ),
    secret("loaders.*.headers.*", "A header sent to this loader."),
    key(
        "loaders.*.timeout",
        "5s",
        "The time for one fetch, from resolving the name to the last byte; 100 ms to 30 s.",
    ),
    key(
        "loaders.*.max_in_flight",
        "16",
        "Fetches under way at once in this process, 1 to 256.",
    ),
    key(
        "loaders.*.allow",
        "",
        "Networks exempt from the address guard for this loader alone, such as the one that it stands in; `egress.allow` would open them to every subscription.",
    ),
    key(
        "dialects.path",
        "",
        "A folder of `NAME.toml` files: dialects besides those that are built in, see [dialects.md](dialects.md). A broken file refuses to start. Every process needs the same.",
    ),
    key("log.format", "text", "`text` or `json`, to standard error."),
    key(
        "log.level",
        "info",
        "`error`, `warn`, `info`, `debug` (each event and attempt by its id), `trace`, or directives such as `info,postrider_deliverer=debug`.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_listed_and_every_listed_key_is_read() {
        assert_eq!(
            service::settings::drift::<Settings>(KEYS),
            Vec::<String>::new()
        );
    }
}
