//! `[broker]` of the settings, and why a broker cannot be opened with them.

use std::{fmt, path::PathBuf, time::Duration};

/// `[broker]` of the settings.
#[derive(Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `embedded://PATH` (a folder) or `amqp(s)://user:password@host:port/vhost`; the nodes of a
    /// cluster as `host:port,host:port`. A secret.
    pub url: String,
    /// A PEM file with the authorities to trust for `amqps`, besides the system's.
    pub ca_file: Option<PathBuf>,
    /// AMQP heartbeat; 5 s to 60 s.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// RabbitMQ only: whether events are published with our user's name as `user-id`, which the
    /// broker holds against the connection.
    #[serde(skip)]
    pub identify: bool,
    /// Embedded only, and only for tests: how many messages each queue takes, instead of the
    /// topology's number.
    #[serde(skip)]
    pub queue_max: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "embedded://./postrider-data".into(),
            ca_file: None,
            heartbeat: Duration::from_secs(10),
            identify: false,
            queue_max: None,
        }
    }
}

/// The URL holds the password, so it is printed without it.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("url", &redacted(&self.url))
            .field("ca_file", &self.ca_file)
            .field("heartbeat", &self.heartbeat)
            .finish_non_exhaustive()
    }
}

/// Why a broker could not be opened at all: somebody must act. A RabbitMQ that is merely away is
/// not such a reason; it is waited for.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL cannot be used; never contains the password.
    #[error("broker.url: {0}")]
    Url(String),
    /// Another process has the embedded broker's folder open.
    #[error(
        "the embedded broker in {path} is in use by another process{by}; stop it, choose another \
         folder with broker.url = \"embedded://PATH\", or use RabbitMQ to run several processes"
    )]
    InUse {
        /// The folder.
        path: String,
        /// ` (process 123)` where known.
        by: String,
    },
    /// Files, certificates, declared queues that differ, …
    #[error("{0}")]
    Other(String),
}

/// Which broker the URL names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Embedded(PathBuf),
    Rabbit,
}

impl Settings {
    /// The user that we are on RabbitMQ.
    pub fn user(&self) -> Option<String> {
        let targets = crate::rabbit::target::Target::all(self).ok()?;
        targets.first().map(|target| target.user().to_owned())
    }

    /// Which broker the settings name, or what is wrong with them.
    pub(crate) fn address(&self) -> Result<Address, OpenError> {
        if let Some(path) = self.url.strip_prefix("embedded://") {
            if path.is_empty() {
                return Err(OpenError::Url("embedded:// needs a folder after it".into()));
            }
            return Ok(Address::Embedded(PathBuf::from(path)));
        }
        if self.url.starts_with("amqp://") || self.url.starts_with("amqps://") {
            return Ok(Address::Rabbit);
        }
        let scheme = self
            .url
            .split_once("://")
            .map_or("(none)", |(scheme, _)| scheme);
        Err(OpenError::Url(format!(
            "unknown scheme {scheme}; expected embedded://PATH, amqp://… or amqps://…"
        )))
    }
}

/// The URL without what stands between `://` and the last `@` before the path.
pub(crate) fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return "***".into();
    };
    match rest.rsplit_once('@') {
        Some((userinfo, place)) => {
            let user = userinfo.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:***@{place}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Settings {
        Settings {
            url: url.into(),
            ..Settings::default()
        }
    }

    #[test]
    fn the_password_is_never_printed() {
        for url in [
            "amqp://u:hunter2@h/v",
            "amqps://u:hunt@hunter2@h:1/%2f",
            "//u:hunter2@h",
        ] {
            let settings = settings(url);
            assert!(!format!("{settings:?}").contains("hunter2"), "{settings:?}");
        }
    }

    #[test]
    fn a_url_names_its_broker_or_its_fault() {
        assert_eq!(
            settings("embedded://./data").address().ok(),
            Some(Address::Embedded("./data".into()))
        );
        assert_eq!(
            settings("amqp://u:p@h:99/v").address().ok(),
            Some(Address::Rabbit)
        );
        for (url, fault) in [
            ("embedded://", "folder"),
            ("redis://u:p@h", "unknown scheme redis"),
            ("nonsense", "unknown scheme"),
        ] {
            let Err(error) = settings(url).address() else {
                panic!("{url} was accepted")
            };
            assert!(error.to_string().contains(fault), "{error}");
        }
    }
}
