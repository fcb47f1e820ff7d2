//! The door itself: one look-up, every address judged, and only those that were judged dialled.
//!
//! The HTTP stack calls this whenever it wants a connection, and has no other way to one. A
//! literal address in the URL comes by here as well as a name does.

use std::{
    error::Error,
    fs, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use event::target::TargetRules;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::{Uri, uri::Scheme};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::pki_types::ServerName;
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::Service;
use tracing::{debug, info, warn};

use super::{
    crowd::Crowd,
    timing::{self, Mark},
};

/// At most so many of a name's addresses are tried.
const ADDRESSES_MAX: usize = 16;
/// How long one address has before the next is tried beside it (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);
/// Names being looked up at once: each takes a thread of the system's resolver, however long that
/// waits for a server that does not answer.
const LOOKUPS_MAX: usize = 128;
/// What the system knows of names before it asks anybody.
const HOSTS: &str = "/etc/hosts";

/// Makes connections, guarded.
#[derive(Clone)]
pub(super) struct Dialler(Arc<Door>);

struct Door {
    rules: TargetRules,
    tls: TlsConnector,
    /// Over the look-up, the connection and the handshake.
    timeout: Duration,
    crowd: Crowd,
    lookups: Arc<Semaphore>,
}

/// Why there is no connection. No text names an address: a tenant must not learn our network.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("the target is not one we may dial")]
    NotPermitted,
    #[error("as many attempts to this address are under way as may be")]
    Crowded,
    #[error("the name did not resolve")]
    Unresolved,
    #[error("no connection was made in time")]
    Timeout,
    #[error("the connection was refused")]
    Refused,
    #[error("no connection was made")]
    Unconnected(#[source] io::Error),
    #[error("the tls handshake failed")]
    Tls(#[source] io::Error),
}

impl Dialler {
    pub(super) fn new(
        rules: TargetRules,
        tls: rustls::ClientConfig,
        timeout: Duration,
        address_max: usize,
    ) -> Self {
        Self(Arc::new(Door {
            rules,
            tls: TlsConnector::from(Arc::new(tls)),
            timeout,
            crowd: Crowd::new(address_max),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
        }))
    }
}

impl Service<Uri> for Dialler {
    type Response = Stream;
    type Error = DialError;
    type Future = BoxFuture<'static, Result<Stream, DialError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let door = self.0.clone();
        Box::pin(async move {
            timing::mark(Mark::Begun);
            let deadline = Instant::now() + door.timeout;
            let dialled = timeout_at(deadline, door.dial(&uri)).await;
            let stream = dialled.unwrap_or(Err(DialError::Timeout))?;
            timing::mark(Mark::Connected);
            Ok(stream)
        })
    }
}

impl Door {
    async fn dial(&self, uri: &Uri) -> Result<Stream, DialError> {
        let secure = if uri.scheme() == Some(&Scheme::HTTPS) {
            true
        } else if uri.scheme() == Some(&Scheme::HTTP) {
            false
        } else {
            return Err(DialError::NotPermitted);
        };
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let host = uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = match bare.parse::<IpAddr>() {
            Ok(literal) => vec![literal],
            Err(_) => self.look_up(bare).await?,
        };
        self.judge(bare, &addresses, port)?;
        let tcp = self.connect(&addresses, port).await?;
        // A request is one small write, and waits for its answer.
        tcp.set_nodelay(true).map_err(DialError::Unconnected)?;
        if !secure {
            return Ok(Stream::Plain(TokioIo::new(tcp)));
        }
        let name = ServerName::try_from(bare.to_owned()).map_err(|_| DialError::NotPermitted)?;
        timing::mark(Mark::Handshake);
        let tls = self.tls.connect(name, tcp).await.map_err(DialError::Tls)?;
        Ok(Stream::Tls(Box::new(TokioIo::new(tls))))
    }

    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, DialError> {
        let begun = Instant::now();
        let permit = self.lookups.clone().acquire_owned().await;
        let name = name.to_owned();
        let asking = tokio::task::spawn_blocking(move || {
            let found = look_up(&name);
            // The thread is what is scarce: whoever asked may be gone by now.
            drop(permit);
            found
        });
        let found = match asking.await {
            Ok(Ok(found)) if !found.is_empty() => found,
            Ok(_) | Err(_) => return Err(DialError::Unresolved),
        };
        timing::mark(Mark::LookedUp(begun));
        Ok(found)
    }

    /// Refuses all of them if one may not be dialled: a bad answer among good ones is how a
    /// rebinding attack looks. The address stays in the operator's log.
    fn judge(&self, host: &str, addresses: &[IpAddr], port: u16) -> Result<(), DialError> {
        let bad: Vec<_> = addresses
            .iter()
            .filter(|address| !self.permits(**address, port))
            .collect();
        let Some(first) = bad.first() else {
            return Ok(());
        };
        if bad.len() < addresses.len() && bad.iter().all(|address| address.is_ipv6()) {
            info!(
                host, address = %first,
                "target refused for its IPv6 addresses alone: with IPv4 only it would be dialled"
            );
        } else {
            debug!(host, address = %first, "target refused");
        }
        Err(DialError::NotPermitted)
    }

    fn permits(&self, address: IpAddr, port: u16) -> bool {
        let ours = || self.rules.is_ours_everywhere(port) && is_of_this_machine(address);
        self.rules.permits_at(address, port) && !ours()
    }

    /// Dials the addresses in the resolver's order, each with a head start on the next, and keeps
    /// the first connection.
    async fn connect(&self, addresses: &[IpAddr], port: u16) -> Result<TcpStream, DialError> {
        let mut waiting = addresses.iter().take(ADDRESSES_MAX);
        let mut under_way = FuturesUnordered::new();
        let mut failed = DialError::Unresolved;
        loop {
            if let Some(address) = waiting.next() {
                under_way.push(self.connect_to(SocketAddr::new(*address, port)));
            } else if under_way.is_empty() {
                return Err(failed);
            }
            let more = waiting.len() > 0;
            tokio::select! {
                Some(connected) = under_way.next() => match connected {
                    Ok(stream) => return Ok(stream),
                    Err(error) => failed = error,
                },
                () = sleep(HEAD_START), if more => {}
            }
        }
    }

    async fn connect_to(&self, address: SocketAddr) -> Result<TcpStream, DialError> {
        // The operator's own networks are no strangers that many could gang up on.
        let place = match self.rules.allows(address.ip()) {
            true => None,
            false => Some(
                self.crowd
                    .enter(address.ip())
                    .await
                    .ok_or(DialError::Crowded)?,
            ),
        };
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused => DialError::Refused,
                _ => DialError::Unconnected(error),
            })?;
        let peer = stream.peer_addr().map_err(DialError::Unconnected)?;
        if peer.ip().to_canonical() != address.ip().to_canonical() {
            warn!(%peer, "the connection ends at another address than was dialled");
            // On Linux the unspecified address is dialled as loopback.
            if !self.permits(peer.ip(), peer.port()) {
                return Err(DialError::NotPermitted);
            }
        }
        timing::hold(place);
        Ok(stream)
    }
}

/// Asks the system: its file of hosts first, then its resolver, with the name as a whole one, so
/// that no search domain is tried behind it.
fn look_up(name: &str) -> io::Result<Vec<IpAddr>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let listed = fs::read_to_string(HOSTS).map_or_else(|_| Vec::new(), |text| hosts(&text, name));
    if !listed.is_empty() {
        return Ok(listed);
    }
    let whole = match name {
        "localhost" => name.to_owned(),
        _ => format!("{name}."),
    };
    let mut found: Vec<IpAddr> = Vec::new();
    for address in (whole.as_str(), 0).to_socket_addrs()? {
        if !found.contains(&address.ip()) {
            found.push(address.ip());
        }
    }
    Ok(found)
}

/// The addresses that a hosts file has for a name.
fn hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words
                .any(|word| word.eq_ignore_ascii_case(name))
                .then_some(address)
        })
        .collect()
}

/// Whether the address is one of this machine's own: only those can be bound.
fn is_of_this_machine(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// A connection.
pub(super) enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Self::Tls(io) => Pin::new(io).poll_read(context, buffer),
        }
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(context, bytes),
            Self::Tls(io) => Pin::new(io).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(context),
            Self::Tls(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(context),
            Self::Tls(io) => Pin::new(io).poll_shutdown(context),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(context, parts),
            Self::Tls(io) => Pin::new(io).poll_write_vectored(context, parts),
        }
    }
}

/// The first error of a type in a chain. An `io::Error` hides the one it wraps from `source`, so
/// that is looked into as well.
pub(super) fn find<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(here) = next {
        if let Some(found) = here.downcast_ref::<E>() {
            return Some(found);
        }
        if let Some(wrapped) = here
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            && let Some(found) = find::<E>(wrapped)
        {
            return Some(found);
        }
        next = here.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d11_the_file_of_hosts_is_read_as_the_system_reads_it() {
        let text = "127.0.0.1 localhost a.example # b.example\n::1\tA.example\n#1.1.1.1 a.example\nx a.example\n";
        let found = |name| {
            hosts(text, name)
                .iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(found("a.example"), ["127.0.0.1", "::1"]);
        assert_eq!(found("localhost"), ["127.0.0.1"]);
        assert!(found("b.example").is_empty());
        assert!(found("example").is_empty());
    }

    #[test]
    fn u47_an_address_of_this_machine_is_known_as_one() {
        assert!(is_of_this_machine("127.0.0.1".parse().expect("an address")));
        assert!(!is_of_this_machine(
            "192.0.2.1".parse().expect("an address")
        ));
    }
}
