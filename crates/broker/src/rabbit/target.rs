//! Where a RabbitMQ is and how to get in: the settings, read into lapin's terms.

use std::{fmt, path::Path};

use lapin::{
    tcp::OwnedTLSConfig,
    uri::{AMQPScheme, AMQPUri},
};

use crate::settings::{OpenError, Settings, redacted};

/// A RabbitMQ to connect to. Its `Debug` is not derived: the URI holds the password.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) uri: AMQPUri,
    pub(crate) tls: OwnedTLSConfig,
}

impl Target {
    /// Reads the settings, or says what is wrong with them.
    pub(crate) fn of(settings: &Settings) -> Result<Self, OpenError> {
        let mut uri = uri(&settings.url)?;
        if !(5..=60).contains(&settings.heartbeat.as_secs()) {
            return Err(OpenError::Other(format!(
                "broker.heartbeat: {:?} is outside 5s to 60s",
                settings.heartbeat
            )));
        }
        if uri.query.heartbeat.is_none() {
            uri.query.heartbeat = u16::try_from(settings.heartbeat.as_secs()).ok();
        }
        if settings.ca_file.is_some() && uri.scheme == AMQPScheme::AMQP {
            return Err(OpenError::Url(
                "ca_file is set, but the URL is amqp://".into(),
            ));
        }
        let cert_chain = settings.ca_file.as_deref().map(authorities).transpose()?;
        Ok(Self {
            uri,
            tls: OwnedTLSConfig {
                identity: None,
                cert_chain,
            },
        })
    }

    /// `host:port/vhost`, for people.
    pub(crate) fn place(&self) -> String {
        let AMQPUri {
            authority, vhost, ..
        } = &self.uri;
        let slash = if vhost.starts_with('/') { "" } else { "/" };
    /// As whom we connect.
    pub(crate) fn user(&self) -> &str {
        &self.uri.authority.userinfo.username
    }

        format!("{}:{}{slash}{vhost}", authority.host, authority.port)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.place()).finish()
    }
}

fn uri(text: &str) -> Result<AMQPUri, OpenError> {
    // The parsers' own messages may quote the URL, and the URL holds the password.
    let refuse = || OpenError::Url(format!("{} is not a valid AMQP URL", redacted(text)));
    let mut uri: AMQPUri = text.parse().map_err(|_| refuse())?;
    let url: url::Url = text.parse().map_err(|_| refuse())?;
    // lapin's parser takes an IPv6 address for no host at all, and connects to localhost.
    if let Some(url::Host::Ipv6(address)) = url.host() {
        uri.authority.host = address.to_string();
    }
    if uri.vhost.is_empty() {
        uri.vhost = "/".into();
    }
    Ok(uri)
}

fn authorities(file: &Path) -> Result<String, OpenError> {
    let pem = std::fs::read_to_string(file)
        .map_err(|error| OpenError::Other(format!("broker.ca_file {}: {error}", file.display())))?;
    if !pem.contains("-----BEGIN CERTIFICATE-----") {
        let file = file.display();
        return Err(OpenError::Other(format!(
            "broker.ca_file {file}: no certificate in it"
        )));
    }
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn target(url: &str) -> Result<Target, OpenError> {
        Target::of(&Settings {
            url: url.into(),
            ..Settings::default()
        })
    }

    #[test]
    fn host_port_vhost_and_credentials_come_from_the_url() {
        let target = target("amqp://us%40er:p%2Fw@h:99/my%2Fhost").expect("valid");
        assert_eq!(target.uri.authority.userinfo.username, "us@er");
        assert_eq!(target.uri.authority.userinfo.password, "p/w");
        assert_eq!(target.uri.query.heartbeat, Some(10));
        assert_eq!(target.place(), "h:99/my/host");
    }

    #[test]
    fn an_ipv6_host_is_not_taken_for_localhost() {
        assert_eq!(
            target("amqp://[::2]:99").expect("valid").uri.authority.host,
            "::2"
        );
    }

    #[test]
    fn no_path_and_a_bare_slash_both_mean_the_default_vhost() {
        for url in ["amqp://h", "amqp://h/", "amqp://h/%2f"] {
            assert_eq!(target(url).expect("valid").uri.vhost, "/", "{url}");
        }
    }

    #[test]
    fn the_password_is_in_no_text() {
        let good = target("amqp://u:hunter2@h/v").expect("valid");
        assert!(!format!("{good:?}").contains("hunter2"));
        let error = target("amqp://u:hunter2@h:port/v")
            .expect_err("not a port")
            .to_string();
        assert!(
            error.contains("not a valid AMQP URL") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn a_heartbeat_out_of_bounds_is_refused() {
        let settings = Settings {
            url: "amqp://localhost".into(),
            heartbeat: Duration::from_secs(2),
            ..Settings::default()
        };
        let error = Target::of(&settings).expect_err("too short").to_string();
        assert!(error.contains("5s to 60s"), "{error}");
    }
}
