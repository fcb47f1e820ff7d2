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
    /// Reads the settings, or says what is wrong with them: one target for each node of the
    /// cluster that the URL names, in its order.
    pub(crate) fn all(settings: &Settings) -> Result<Vec<Self>, OpenError> {
        let nodes = nodes(&settings.url).into_iter();
        nodes.map(|url| Self::of(settings, &url)).collect()
    }

    fn of(settings: &Settings, url: &str) -> Result<Self, OpenError> {
        let mut uri = uri(url)?;
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

    /// As whom we connect.
    pub(crate) fn user(&self) -> &str {
        &self.uri.authority.userinfo.username
    }

    /// `host:port/vhost`, for people.
    pub(crate) fn place(&self) -> String {
        let AMQPUri {
            authority, vhost, ..
        } = &self.uri;
        let slash = if vhost.starts_with('/') { "" } else { "/" };
        format!("{}:{}{slash}{vhost}", authority.host, authority.port)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.place()).finish()
    }
}

/// `amqp://user:password@one:5672,two:5672/vhost` as one URL for each node.
fn nodes(url: &str) -> Vec<String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return vec![url.to_owned()];
    };
    // The password may hold what stands for itself elsewhere: the last `@` ends it.
    let (user, place) = match rest.rfind('@') {
        Some(at) => rest.split_at(at + 1),
        None => ("", rest),
    };
    let end = place.find(['/', '?', '#']).unwrap_or(place.len());
    let (hosts, path) = place.split_at(end);
    let nodes = hosts.split(',');
    nodes
        .map(|host| format!("{scheme}://{user}{host}{path}"))
        .collect()
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

    fn targets(url: &str) -> Result<Vec<Target>, OpenError> {
        Target::all(&Settings {
            url: url.into(),
            ..Settings::default()
        })
    }

    fn target(url: &str) -> Result<Target, OpenError> {
        targets(url).map(|mut all| all.remove(0))
    }

    #[test]
    fn each_node_of_a_cluster_is_a_target_with_the_same_credentials() {
        let all = targets("amqp://u:p@one:1,two,[::3]:3/v").expect("valid");
        let places: Vec<_> = all.iter().map(Target::place).collect();
        assert_eq!(places, ["one:1/v", "two:5672/v", "::3:3/v"]);
        for target in all {
            assert_eq!(target.uri.authority.userinfo.password, "p");
        }
        let error = targets("amqp://u:hunter2@one:1,two:x/v").expect_err("not a port");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        targets("amqp://u:p@one:1,,two/v").expect_err("a node without a name");
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
        let error = Target::all(&settings).expect_err("too short").to_string();
        assert!(error.contains("5s to 60s"), "{error}");
    }
}
