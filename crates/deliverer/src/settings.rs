//! `[delivery]` and `[egress]` of the settings: every bound of the deliverer has its number here.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use event::target::{Denied, Own, TargetRules};
use ipnet::IpNet;
use secrecy::SecretString;

use crate::views::template::Template;

/// `[delivery]` of the settings.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Attempts under way at once in this process; 1 to 10000. What waits for its turn or its
    /// confirm is bounded to four times as many.
    pub max_in_flight: usize,
    /// How long a stop waits for what is under way; 1 s to 10 min. What is not done by then
    /// stays the broker's and is delivered again.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// The longest a connection may take, TLS included; 100 ms to 30 s, within the attempt's own
    /// timeout.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long an idle connection is kept for the next delivery; 1 s to 10 min. By default less
    /// than the 5 s after which many servers close theirs: a request that meets the close fails.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How much of a response's body is read and kept; at most 1 MiB.
    pub response_max: ByteSize,
    /// How long a response's body is read after its status came; 10 ms to 30 s.
    #[serde(with = "humantime_serde")]
    pub response_timeout: Duration,
    /// The longest a delivery waits in the process for its endpoint, and a quarter of that once
    /// many wait; longer ones wait on the retry ladder, where they hold nothing up. At most 10 s.
    #[serde(with = "humantime_serde")]
    pub wait_max: Duration,
    /// After how many timeouts and connection errors in a row an endpoint is left alone for a
    /// while; 1 to 1000.
    pub breaker_failures: u32,
    /// The longest such pause; the first is 1 s and each doubles. 1 s to 1 h.
    #[serde(with = "humantime_serde")]
    pub breaker_pause_max: Duration,
    /// How much of what loaders answered is kept in memory; at most 1 GiB.
    pub views_max: ByteSize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_in_flight: 256,
            grace: Duration::from_secs(25),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(4),
            response_max: ByteSize::kib(16),
            response_timeout: Duration::from_secs(2),
            wait_max: Duration::from_secs(2),
            breaker_failures: 4,
            breaker_pause_max: Duration::from_secs(300),
            views_max: ByteSize::mib(32),
        }
    }
}

impl Settings {
    /// What is out of bounds, with the key's name.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let mut within = |key, holds: bool, bounds: &str| {
            if !holds {
                faults.push((key, format!("must be {bounds}")));
            }
        };
        let ms = Duration::from_millis;
        let secs = Duration::from_secs;
        within(
            "delivery.max_in_flight",
            (1..=10_000).contains(&self.max_in_flight),
            "1 to 10000",
        );
        within(
            "delivery.grace",
            (secs(1)..=secs(600)).contains(&self.grace),
            "1s to 10min",
        );
        within(
            "delivery.connect_timeout",
            (ms(100)..=secs(30)).contains(&self.connect_timeout),
            "100ms to 30s",
        );
        within(
            "delivery.idle_timeout",
            (secs(1)..=secs(600)).contains(&self.idle_timeout),
            "1s to 10min",
        );
        within(
            "delivery.response_max",
            self.response_max <= ByteSize::mib(1),
            "at most 1MiB",
        );
        within(
            "delivery.response_timeout",
            (ms(10)..=secs(30)).contains(&self.response_timeout),
            "10ms to 30s",
        );
        within(
            "delivery.wait_max",
            self.wait_max <= secs(10),
            "at most 10s",
        );
        within(
            "delivery.breaker_failures",
            (1..=1000).contains(&self.breaker_failures),
            "1 to 1000",
        );
        within(
            "delivery.breaker_pause_max",
            (secs(1)..=secs(3600)).contains(&self.breaker_pause_max),
            "1s to 1h",
        );
        within(
            "delivery.views_max",
            self.views_max <= ByteSize::gib(1),
            "at most 1GiB",
        );
        faults
    }
}

/// `[loaders]` of the settings, by entity.
pub type Loaders = BTreeMap<String, Loader>;

/// `[loaders.ENTITY]`: the service that knows the records of an entity, asked for the views that
/// events of it lack.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Loader {
    /// Where a view is fetched, with `{id}`, and with `{view}` and `{tenant}` where wanted.
    pub url: String,
    /// Sent as `authorization: Bearer …`.
    pub token: Option<SecretString>,
    /// Sent along.
    pub headers: BTreeMap<String, SecretString>,
    /// Over one fetch, from resolving the name to the last byte; 100 ms to 30 s.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Fetches under way at once in this process; 1 to 256.
    pub max_in_flight: u32,
    /// Networks exempt from the address guard for this loader alone, besides `egress.allow`.
    pub allow: Vec<IpNet>,
}

impl Default for Loader {
    fn default() -> Self {
        Self {
            url: String::new(),
            token: None,
            headers: BTreeMap::new(),
            timeout: Duration::from_secs(5),
            max_in_flight: 16,
            allow: Vec::new(),
        }
    }
}

/// What is wrong with the loaders, each with its key.
pub fn loader_faults(loaders: &Loaders) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    for (entity, loader) in loaders {
        let mut fault = |key: &str, message: String| {
            faults.push((format!("loaders.{entity}.{key}"), message));
        };
        if let Err(message) = Template::parse(&loader.url) {
            fault("url", message);
        }
        if let Err((key, message)) = loader.request_headers() {
            fault(&key, message);
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(30)).contains(&loader.timeout) {
            fault("timeout", "must be 100ms to 30s".into());
        }
        if !(1..=256).contains(&loader.max_in_flight) {
            fault("max_in_flight", "must be 1 to 256".into());
        }
    }
    faults
}

/// `[egress]` of the settings: where deliveries may go.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Egress {
    /// Networks exempt from the address guard, such as `127.0.0.0/8` for local trials.
    pub allow: Vec<IpNet>,
    /// Whether plain `http` is refused (except to what `allow` covers).
    pub require_https: bool,
    /// A PEM file with authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Networks, addresses, names and `*.NAME`s that are no targets, whatever `allow` says: the
    /// public addresses of the installation itself.
    pub deny: Vec<Denied>,
    /// Attempts under way at once to one address, over all subscriptions; 1 to 10000. Addresses
    /// that `allow` covers are the operator's own and are not counted.
    pub address_max: usize,
    /// Our own listeners, broker and store, which are no targets either. Not a setting: the
    /// process knows them.
    #[serde(skip)]
    pub own: Vec<Own>,
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            require_https: true,
            ca_file: None,
            deny: Vec::new(),
            address_max: 50,
            own: Vec::new(),
        }
    }
}

impl Egress {
    /// What is out of bounds, with the key's name.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        match self.address_max {
            1..=10_000 => Vec::new(),
            _ => vec![("egress.address_max", "must be 1 to 10000".into())],
        }
    }

    /// The rules that every target is judged by, at subscribing and at each attempt.
    pub fn rules(&self) -> TargetRules {
        TargetRules {
            allow: self.allow.clone(),
            require_https: self.require_https,
            deny: self.deny.clone(),
            own: self.own.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_their_bounds() {
        assert_eq!(Settings::default().faults(), []);
        assert!(Egress::default().rules().require_https);
        assert_eq!(Egress::default().faults(), []);
    }

    #[test]
    fn every_number_out_of_bounds_is_named_with_its_key() {
        let settings = Settings {
            max_in_flight: 0,
            grace: Duration::ZERO,
            connect_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            response_max: ByteSize::gib(1),
            response_timeout: Duration::ZERO,
            wait_max: Duration::from_secs(60),
            breaker_failures: 0,
            breaker_pause_max: Duration::ZERO,
            views_max: ByteSize::gib(2),
        };
        let keys: Vec<_> = settings.faults().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), 10, "{keys:?}");
    }

    #[test]
    fn a_loader_that_cannot_be_used_is_named_with_its_key() {
        let good = Loader {
            url: "https://a.example/{id}".into(),
            token: Some("secret".into()),
            ..Loader::default()
        };
        let bad = Loader {
            url: "https://a.example/".into(),
            token: Some("line\nbreak".into()),
            timeout: Duration::ZERO,
            max_in_flight: 0,
            ..Loader::default()
        };
        let odd = Loader {
            headers: BTreeMap::from([("no header".into(), "x".into())]),
            ..good.clone()
        };
        let loaders = [("appointment", good), ("customer", bad), ("service", odd)];
        let faults = loader_faults(&loaders.map(|(name, loader)| (name.into(), loader)).into());
        let keys: Vec<_> = faults.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "loaders.customer.url",
                "loaders.customer.token",
                "loaders.customer.timeout",
                "loaders.customer.max_in_flight",
                "loaders.service.headers.no header",
            ]
        );
        assert!(!format!("{faults:?}").contains("break"));
    }
}
