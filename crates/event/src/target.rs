//! Where a delivery may go: the URL as written, and every address it resolves to.
//!
//! What is written is judged before it is parsed, because the URL parser mends what it is given:
//! it drops tabs and line ends, turns `\` into `/` and `0x7f.1` into 127.0.0.1. Names are judged
//! by their form alone; no look-up happens here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::{Host, Url};

use crate::fault::{Fault, shown};

mod address;
mod own;
#[cfg(test)]
mod tests;

pub use own::{Denied, Own};

/// The operator's rules for targets. Deny by default.
#[derive(Debug, Clone, Default)]
pub struct TargetRules {
    /// `egress.allow`: networks exempt from the address guard (and from the port list).
    pub allow: Vec<IpNet>,
    /// `egress.require_https`: plain `http` is refused, except to a literal address or `localhost`
    /// that `allow` covers.
    pub require_https: bool,
    /// `egress.deny`: networks and names that are no targets, whatever `allow` says.
    pub deny: Vec<Denied>,
    /// Our own listeners, broker and store.
    pub own: Vec<Own>,
}

/// How long a URL may be, in bytes.
pub const URL_BYTES_MAX: usize = 2048;

/// Ports of services that a POST could talk into doing something. Every port below 1024 but 80 and
/// 443 is refused too.
const PORTS_DENIED: [u16; 27] = [
    1433, 1521, 1883, 2049, 2181, 2375, 2376, 2379, 2380, 3306, 3389, 4369, 5432, 5671, 5672, 5900,
    5984, 6000, 6379, 6443, 9042, 9092, 9200, 9300, 10250, 11211, 27017,
];

/// RabbitMQ's management and distribution ports.
const PORTS_BROKER: [u16; 4] = [15671, 15672, 15692, 25672];

/// Names that mean something only inside a network.
const SUFFIXES_DENIED: [&str; 10] = [
    "localhost",
    "internal",
    "intranet",
    "local",
    "localdomain",
    "lan",
    "corp",
    "home.arpa",
    "svc",
    "cluster.local",
];

/// One public text for every address that is not allowed: which of them exist inside is not for
/// subscribers to find out.
const NOT_ALLOWED: &str = "target_not_allowed: this is not an address that deliveries may go to";

impl TargetRules {
    /// Checks a URL as a person wrote it and gives its normalised form. Literal addresses are
    /// judged here; names are judged when they are resolved, by [`Self::permits`].
    pub fn check_url(&self, written: &str) -> Result<Url, Vec<Fault>> {
        let one = |message: String| vec![Fault::at("", message)];
        as_written(written).map_err(one)?;
        let mut url = Url::parse(written).map_err(|error| {
            one(format!(
                "invalid_url: is not a URL: {}",
                lower(&error.to_string())
            ))
        })?;
        if url.as_str().len() > URL_BYTES_MAX {
            return Err(one(format!(
                "must be at most {URL_BYTES_MAX} characters once encoded"
            )));
        }
        let mut faults = Vec::new();
        let exempt = match self.check_host(&mut url) {
            Ok(exempt) => exempt,
            Err(message) => {
                faults.push(Fault::at("", message));
                false
            }
        };
        if url.scheme() == "http" && self.require_https && !exempt {
            faults.push(Fault::at("", "must begin with `https://`"));
        }
        if let Some(port) = url.port()
            && !exempt
            && denied_port(port)
        {
            faults.push(Fault::at(
                "",
                format!("port {port} is not one that deliveries may go to"),
            ));
        }
        if faults.is_empty() {
            Ok(url)
        } else {
            Err(faults)
        }
    }

    /// Whether an address may be dialled at some port. Called on every address, literal or
    /// resolved.
    pub fn permits(&self, address: IpAddr) -> bool {
        let denied = self.deny.iter().any(|denied| denied.covers(address));
        !denied && (self.allows(address) || address::is_public(address))
    }

    /// [`Self::permits`], and whether nothing of ours listens there.
    pub fn permits_at(&self, address: IpAddr, port: u16) -> bool {
        self.permits(address) && !self.own.iter().any(|own| own.is_at(address, port))
    }

    /// Whether something of ours listens at this port on every address of its machine, so that an
    /// address of this very machine is no target.
    pub fn is_ours_everywhere(&self, port: u16) -> bool {
        self.own
            .iter()
            .any(|own| own.port_everywhere() == Some(port))
    }

    /// Whether `allow` names the address, or the IPv4 address that it stands for.
    pub fn allows(&self, address: IpAddr) -> bool {
        let canonical = address.to_canonical();
        self.allow
            .iter()
            .any(|net| net.contains(&address) || net.contains(&canonical))
    }

    /// Checks the host, strips a name's last dot, and says whether `allow` covers it.
    fn check_host(&self, url: &mut Url) -> Result<bool, String> {
        let port = url.port_or_known_default().unwrap_or_default();
        let literal = match url.host() {
            None => return Err("has no host".into()),
            Some(Host::Ipv4(v4)) => IpAddr::V4(v4),
            Some(Host::Ipv6(v6)) => IpAddr::V6(v6),
            Some(Host::Domain(name)) => {
                let bare = name.strip_suffix('.').unwrap_or(name).to_owned();
                let exempt = self.check_name(&bare, port)?;
                if bare.len() < name.len() {
                    url.set_host(Some(&bare))
                        .map_err(|error| error.to_string())?;
                }
                return Ok(exempt);
            }
        };
        let exempt = self.allows(literal);
        let nat64 = matches!(literal, IpAddr::V6(v6) if address::is_nat64(v6));
        if !self.permits_at(literal, port) || nat64 && !exempt {
            return Err(NOT_ALLOWED.into());
        }
        Ok(exempt)
    }

    fn check_name(&self, name: &str, port: u16) -> Result<bool, String> {
        let told = shown(name, 80);
        let denied = self.deny.iter().any(|denied| denied.covers_name(name));
        if denied || self.own.iter().any(|own| own.is_name(name)) {
            return Err(NOT_ALLOWED.into());
        }
        if name == "localhost" {
            let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            let mut allowed = loopback.into_iter().filter(|one| self.allows(*one));
            let ours = |one| !self.permits_at(one, port);
            let exempt = allowed.clone().next().is_some() && !allowed.any(ours);
            return if exempt {
                Ok(true)
            } else {
                Err(NOT_ALLOWED.into())
            };
        }
        if name.len() > 253 {
            return Err("the host's name is longer than 253 characters".into());
        }
        let label_fits = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if !name.split('.').all(label_fits) {
            return Err(format!("`{told}` is not a valid host name"));
        }
        if !name.contains('.') {
            return Err(format!(
                "`{told}` is a single word; a full domain name is needed"
            ));
        }
        let special = |suffix: &str| {
            name.strip_suffix(suffix)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if let Some(suffix) = SUFFIXES_DENIED.iter().find(|suffix| special(suffix)) {
            return Err(format!(
                "target_not_allowed: `.{suffix}` names are not public"
            ));
        }
        Ok(false)
    }
}

/// The form that a target is stored in, wherever it may go: two spellings of one target come to the
/// same text. `None` for what could be no target.
pub fn normalised(written: &str) -> Option<Url> {
    as_written(written).ok()?;
    let mut url = Url::parse(written).ok()?;
    if let Some(Host::Domain(name)) = url.host()
        && let Some(bare) = name.strip_suffix('.').map(str::to_owned)
    {
        url.set_host(Some(&bare)).ok()?;
    }
    Some(url)
}

/// Whether the host of a URL as written is in other letters than those that are dialled: mapped
/// from Unicode, or the encoded form of a name that is. Such a name may look like another one.
pub fn is_idn(written: &str) -> bool {
    let rest = written.split_once("//").map_or("", |(_, rest)| rest);
    let host = rest.split(['/', '?', ':']).next().unwrap_or_default();
    let coded = |label: &str| {
        label
            .get(..4)
            .is_some_and(|head| head.eq_ignore_ascii_case("xn--"))
    };
    !host.is_ascii() || host.contains('%') || host.split('.').any(coded)
}

/// Whether a target that has passed [`TargetRules::check_url`] is spoken to by `https`, or never
/// leaves the machine.
pub(crate) fn is_https_or_loopback(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else {
        return false;
    };
    let loopback = match url.host() {
        Some(Host::Ipv4(v4)) => v4.is_loopback(),
        Some(Host::Ipv6(v6)) => IpAddr::V6(v6).to_canonical().is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "https" || loopback
}

/// Judges the text before a parser mends it.
fn as_written(written: &str) -> Result<(), String> {
    if written.is_empty() {
        return Err("must not be empty".into());
    }
    if written.len() > URL_BYTES_MAX {
        let got = written.len();
        return Err(format!(
            "must be at most {URL_BYTES_MAX} characters, got {got}"
        ));
    }
    if written.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("must not contain spaces or control characters".into());
    }
    if written.contains('\\') {
        return Err("must not contain `\\`".into());
    }
    let Some((scheme, rest)) = written.split_once(':') else {
        return Err("must be a whole URL beginning with `https://`".into());
    };
    if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
        return Err(format!(
            "must begin with `https://`, got the scheme `{}`",
            shown(scheme, 20)
        ));
    }
    let Some(rest) = rest
        .strip_prefix("//")
        .filter(|rest| !rest.starts_with('/'))
    else {
        return Err("must have exactly `//` after the scheme".into());
    };
    if rest.contains('#') {
        return Err("must not have a fragment (`#…`)".into());
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err(
            "credentials_in_url: must not contain `user@`; send credentials as a header".into(),
        );
    }
    if authority.contains(['{', '}']) {
        return Err("the host must be fixed: templates are not allowed in it".into());
    }
    Ok(())
}

fn denied_port(port: u16) -> bool {
    (port < 1024 && port != 80 && port != 443)
        || PORTS_DENIED.contains(&port)
        || PORTS_BROKER.contains(&port)
}

fn lower(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|c| c.to_ascii_lowercase())
        .into_iter()
        .chain(chars)
        .collect()
}
