//! A TCP proxy on loopback that misbehaves on demand: between the product and its broker, its store
//! or an endpoint. What it does to one direction stands in [`Toxics`] and can be changed while
//! connections are open; the names are those that other fault proxies use.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    // Halves that say nothing when they are dropped: an end in good order is no reset.
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::process::free_port;

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Toxics {
    /// Each piece comes so much later.
    pub(crate) latency: Option<Duration>,
    /// Bytes per second.
    pub(crate) bandwidth: Option<u64>,
    /// Pieces of so many bytes, with a pause between.
    pub(crate) slicer: Option<(usize, Duration)>,
    /// After so many more bytes both ends are closed; what is over is dropped.
    pub(crate) limit_data: Option<u64>,
    /// `timeout`: everything vanishes, without a word to either end. A connection that lost a byte
    /// stays silent after the network is healed, as one does that a firewall has forgotten.
    pub(crate) swallow: bool,
    /// An end is passed on so much later.
    pub(crate) slow_close: Option<Duration>,
}

/// How open connections are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// In good order, as by a process that ends.
    Fin,
    /// `reset_peer`.
    Reset,
}

#[derive(Debug, Clone)]
struct Plan {
    to_server: Toxics,
    to_client: Toxics,
    /// `down`: nobody listens.
    down: bool,
    /// How often connections were cut, and how the last time.
    cuts: (u64, Cut),
    /// Changes of the toxics: from here on limits are counted.
    version: u64,
}

/// The proxy; connections and the port go with it.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    plan: watch::Sender<Plan>,
    _end: DropGuard,
}

impl Proxy {
    /// In front of a port of loopback.
    pub(crate) async fn before(port: u16) -> Self {
        Self::before_address(SocketAddr::from(([127, 0, 0, 1], port))).await
    }

    /// In front of an address.
    pub(crate) async fn before_address(server: SocketAddr) -> Self {
        let port = free_port();
        let (plan, watched) = watch::channel(Plan {
            to_server: Toxics::default(),
            to_client: Toxics::default(),
            down: false,
            cuts: (0, Cut::Fin),
            version: 0,
        });
        let end = CancellationToken::new();
        let listener = listen(port).await;
        tokio::spawn(end.clone().run_until_cancelled_owned(accept(
            listener,
            server,
            watched,
            end.clone(),
        )));
        let _end = end.drop_guard();
        Self { port, plan, _end }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Does this to what clients send.
    pub(crate) fn to_server(&self, toxics: Toxics) {
        self.plan.send_modify(|plan| {
            plan.to_server = toxics;
            plan.version += 1;
        });
    }

    /// Does this to what the server sends.
    pub(crate) fn to_client(&self, toxics: Toxics) {
        self.plan.send_modify(|plan| {
            plan.to_client = toxics;
            plan.version += 1;
        });
    }

    /// Cuts both directions without a word.
    pub(crate) fn swallow(&self) {
        let swallow = || Toxics {
            swallow: true,
            ..Toxics::default()
        };
        self.to_server(swallow());
        self.to_client(swallow());
    }

    /// Takes every toxic away.
    pub(crate) fn heal(&self) {
        self.to_server(Toxics::default());
        self.to_client(Toxics::default());
    }

    /// Resets every open connection.
    pub(crate) fn reset_peers(&self) {
        let cut = |plan: &mut Plan| plan.cuts = (plan.cuts.0 + 1, Cut::Reset);
        self.plan.send_modify(cut);
    }

    /// Closes the port and every connection.
    pub(crate) fn down(&self) {
        self.plan.send_modify(|plan| {
            plan.down = true;
            plan.cuts = (plan.cuts.0 + 1, Cut::Fin);
        });
    }

    /// Listens again.
    pub(crate) fn up(&self) {
        self.plan.send_modify(|plan| plan.down = false);
    }
}

async fn listen(port: u16) -> TcpListener {
    let bound = TcpListener::bind(("127.0.0.1", port)).await;
    bound.unwrap_or_else(|error| panic!("port {port} of the proxy: {error}"))
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    mut plan: watch::Receiver<Plan>,
    end: CancellationToken,
) {
    let port = listener.local_addr().map_or(0, |address| address.port());
    let mut listener = Some(listener);
    loop {
        let down = plan.borrow_and_update().down;
        match (&listener, down) {
            (Some(_), true) => listener = None,
            (None, false) => listener = Some(listen(port).await),
            _ => {}
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = plan.changed() => if changed.is_err() { return },
            accepted = accepted => if let Ok((client, _)) = accepted {
                let carried = carry(client, server, plan.clone());
                tokio::spawn(end.clone().run_until_cancelled_owned(carried));
            },
        }
    }
}

/// One connection, until it ends or is cut.
async fn carry(client: TcpStream, server: SocketAddr, mut plan: watch::Receiver<Plan>) {
    let cuts = plan.borrow().cuts.0;
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("an open socket");
    }
    let (client, client_end) = twice(client);
    let (server, server_end) = twice(server);
    let (client_reads, client_writes) = split(client);
    let (server_reads, server_writes) = split(server);
    let closed = Arc::new(CancellationToken::new());
    let to_server = Way {
        toxics: |plan| &plan.to_server,
        plan: plan.clone(),
        closed: closed.clone(),
    };
    let to_client = Way {
        toxics: |plan| &plan.to_client,
        plan: plan.clone(),
        closed: closed.clone(),
    };
    let both = async {
        tokio::join!(
            to_server.pump(client_reads, server_writes),
            to_client.pump(server_reads, client_writes)
        )
    };
    tokio::select! {
        _ = both => {}
        () = closed.cancelled() => {}
        // An error means that the proxy is gone, and the connection with it.
        plan = plan.wait_for(|plan| plan.cuts.0 != cuts) => {
            if plan.is_ok_and(|plan| plan.cuts.1 == Cut::Reset) {
                for stream in [&client_end, &server_end] {
                    // One that is gone already needs no reset.
                    drop(stream.set_zero_linger());
                }
            }
        }
    }
}

/// The same socket by two handles: one to read and write, one to say how it shall end.
fn twice(stream: TcpStream) -> (TcpStream, TcpStream) {
    let stream = stream.into_std().expect("an open socket");
    let other = stream.try_clone().expect("an open socket");
    let of = |stream| TcpStream::from_std(stream).expect("an open socket");
    (of(stream), of(other))
}

/// One direction of a connection.
struct Way {
    toxics: fn(&Plan) -> &Toxics,
    plan: watch::Receiver<Plan>,
    closed: Arc<CancellationToken>,
}

impl Way {
    async fn pump(self, mut from: ReadHalf<TcpStream>, mut to: WriteHalf<TcpStream>) {
        let mut buffer = vec![0; 16 * 1024];
        let (mut version, mut carried, mut silent) = (0, 0_u64, false);
        loop {
            let count = from.read(&mut buffer).await.unwrap_or(0);
            let plan = self.plan.borrow().clone();
            let toxics = (self.toxics)(&plan);
            if plan.version != version {
                (version, carried) = (plan.version, 0);
            }
            silent |= toxics.swallow;
            if count == 0 {
                if silent {
                    // Nobody hears of the end either.
                    std::future::pending::<()>().await;
                }
                if let Some(pause) = toxics.slow_close {
                    tokio::time::sleep(pause).await;
                }
                drop(to.shutdown().await);
                return;
            }
            if silent {
                continue;
            }
            let mut piece = &buffer[..count];
            let mut over = false;
            if let Some(limit) = toxics.limit_data {
                let left = usize::try_from(limit.saturating_sub(carried)).unwrap_or(usize::MAX);
                over = left < piece.len();
                piece = &piece[..left.min(piece.len())];
            }
            carried += count as u64;
            if !write(&mut to, piece, toxics).await || over {
                self.closed.cancel();
                return;
            }
        }
    }
}

/// Writes as the toxics want it; false when the other end is gone.
async fn write(to: &mut WriteHalf<TcpStream>, piece: &[u8], toxics: &Toxics) -> bool {
    if let Some(latency) = toxics.latency {
        tokio::time::sleep(latency).await;
    }
    let (size, pause) = toxics.slicer.unwrap_or((usize::MAX, Duration::ZERO));
    for slice in piece.chunks(size.max(1)) {
        let began = Instant::now();
        if to.write_all(slice).await.is_err() {
            return false;
        }
        if let Some(bandwidth) = toxics.bandwidth {
            let takes = Duration::from_secs_f64(slice.len() as f64 / bandwidth as f64);
            tokio::time::sleep_until(began + takes).await;
        }
        tokio::time::sleep(pause).await;
    }
    true
}
