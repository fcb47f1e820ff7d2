//! What is never a target, whatever else is allowed: ourselves, and what the operator denies.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An entry of `egress.deny`: `203.0.113.0/24`, `203.0.113.7`, `hooks.example.com`, or
/// `*.example.com` for every name below one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Denied {
    /// A network, or one address.
    Network(IpNet),
    /// One name.
    Name(String),
    /// Every name that ends in `.NAME`.
    Below(String),
}

impl Denied {
    pub(super) fn covers_name(&self, name: &str) -> bool {
        match self {
            Self::Network(_) => false,
            Self::Name(denied) => name == denied,
            Self::Below(denied) => name
                .strip_suffix(denied.as_str())
                .is_some_and(|rest| rest.ends_with('.')),
        }
    }

    pub(super) fn covers(&self, address: IpAddr) -> bool {
        match self {
            Self::Network(net) => net.contains(&address) || net.contains(&address.to_canonical()),
            Self::Name(_) | Self::Below(_) => false,
        }
    }
}

impl FromStr for Denied {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self::Network(net));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.into()));
        }
        let lower = text.trim_end_matches('.').to_ascii_lowercase();
        let below = lower.strip_prefix("*.");
        let name = below.unwrap_or(&lower);
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(fits) {
            return Err(format!(
                "`{text}` is neither a network, an address, a name nor `*.NAME`"
            ));
        }
        Ok(match below {
            Some(name) => Self::Below(name.into()),
            None => Self::Name(name.into()),
        })
    }
}

impl TryFrom<String> for Denied {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Denied> for String {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Network(net) => net.to_string(),
            Denied::Name(name) => name,
            Denied::Below(name) => format!("*.{name}"),
        }
    }
}

/// A place of our own: a listener of this installation, its broker, its store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Own {
    /// This address. Loopback, and the unspecified address that listens everywhere, are ours at
    /// this port alone; any other address is ours at every port.
    Address(IpAddr, u16),
    /// This name, at every port.
    Name(String),
}

impl Own {
    /// A place by its host as a setting names it. `localhost` is the loopback addresses.
    pub fn at(host: &str, port: u16) -> Vec<Self> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return vec![Self::Address(address, port)];
        }
        let name = bare.trim_end_matches('.').to_ascii_lowercase();
        match name.as_str() {
            "" => Vec::new(),
            "localhost" => vec![
                Self::Address(Ipv4Addr::LOCALHOST.into(), port),
                Self::Address(Ipv6Addr::LOCALHOST.into(), port),
            ],
            _ => vec![Self::Name(name)],
        }
    }

    pub(super) fn is_name(&self, wanted: &str) -> bool {
        matches!(self, Self::Name(name) if name == wanted)
    }

    /// Whether a connection to `address` at `port` ends here.
    pub(super) fn is_at(&self, address: IpAddr, port: u16) -> bool {
        let Self::Address(own, own_port) = self else {
            return false;
        };
        let (own, address) = (own.to_canonical(), address.to_canonical());
        // Linux dials the unspecified address as loopback.
        let local = address.is_loopback() || address.is_unspecified();
        if own.is_unspecified() {
            return local && port == *own_port;
        }
        let same = own == address || own.is_loopback() && address.is_unspecified();
        same && (!own.is_loopback() || port == *own_port)
    }

    /// The port of a place that listens on every address of its machine.
    pub(super) fn port_everywhere(&self) -> Option<u16> {
        match self {
            Self::Address(own, port) if own.is_unspecified() => Some(*port),
            _ => None,
        }
    }
}
