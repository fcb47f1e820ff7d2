//! Receivers that do with a connection whatever a test wants, and canaries that must hear nothing.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpSocket, TcpStream},
};

/// Longer than any test.
pub(crate) const FOREVER: Duration = Duration::from_secs(3600);

/// A server that does this with each connection, told which number it is, from 0. It lives as long
/// as the test's runtime.
pub(crate) async fn trap<F, Fut>(address: SocketAddr, behave: F) -> SocketAddr
where
    F: Fn(TcpStream, usize) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind(address)
        .await
        .unwrap_or_else(|error| panic!("{address} can be listened on: {error}"));
    let address = listener.local_addr().expect("a bound address");
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((stream, _)) = listener.accept().await {
            let behaving = behave(stream, number);
            // A client that hangs up on a hostile answer is what is hoped for.
            tokio::spawn(async move { drop(behaving.await) });
            number += 1;
        }
    });
    address
}

/// Head and body of one request, by its `content-length`; what came of it where it breaks off.
pub(crate) async fn read_request(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n");
        if let Some(head) = head {
            let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .and_then(|length| length.parse().ok())
                .unwrap_or(0);
            if bytes.len() >= head + 4 + length {
                return bytes;
            }
        }
        match stream.read(&mut chunk).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            _ => return bytes,
        }
    }
}

/// A port at which a connection is never made and never refused: its queue is full, and the
/// system drops whatever knocks.
#[derive(Debug)]
pub(crate) struct BlackHole {
    pub(crate) address: SocketAddr,
    _listener: TcpListener,
    _queue: Vec<std::net::TcpStream>,
}

impl BlackHole {
    pub(crate) fn at(address: SocketAddr) -> Self {
        let socket = match address.ip() {
            IpAddr::V4(_) => TcpSocket::new_v4(),
            IpAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = socket.expect("a socket");
        socket.bind(address).expect("the address is free");
        let listener = socket.listen(0).expect("a bound socket listens");
        let address = listener.local_addr().expect("a bound address");
        let knock = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300));
        let mut queue = Vec::new();
        while let Ok(stream) = knock() {
            queue.push(stream);
            assert!(
                queue.len() < 64,
                "the queue of a listener that accepts nobody fills up"
            );
        }
        Self {
            address,
            _listener: listener,
            _queue: queue,
        }
    }
}

/// Listeners where nobody may come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Canaries(Arc<Mutex<Vec<SocketAddr>>>);

impl Canaries {
    /// Listens at every port of every address.
    pub(crate) async fn watch(&self, addresses: &[IpAddr], ports: &[u16]) {
        for address in addresses {
            for port in ports {
                let here = SocketAddr::new(*address, *port);
                let heard = self.0.clone();
                trap(here, move |stream, _| {
                    heard.lock().expect("no thread panicked").push(here);
                    async move {
                        drop(stream);
                        Ok(())
                    }
                })
                .await;
            }
        }
    }

    /// Whoever was called.
    pub(crate) fn heard(&self) -> Vec<SocketAddr> {
        self.0.lock().expect("no thread panicked").clone()
    }
}
