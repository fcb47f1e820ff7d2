//! Where a delivery may go: the URL as written, and every address it resolves to.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::fault::Fault;

/// The operator's rules for targets. Deny by default.
#[derive(Debug, Clone, Default)]
pub struct TargetRules {
    /// `egress.allow`: networks exempt from the address guard (and from the port list).
    pub allow: Vec<IpNet>,
    /// `egress.require_https`: plain `http` is refused, except to a literal address or `localhost`
    /// that `allow` covers.
    pub require_https: bool,
}

impl TargetRules {
    /// Checks a URL as a person wrote it and gives its normalised form. Literal addresses are
    /// judged here; names are judged when they are resolved, by [`Self::permits`].
    pub fn check_url(&self, written: &str) -> Result<url::Url, Vec<Fault>> {
        let _ = written;
        todo!("event: target urls")
    }

    /// Whether an address may be dialled. Called on every address, literal or resolved.
    pub fn permits(&self, address: IpAddr) -> bool {
        let _ = address;
        todo!("event: addresses")
    }
}
