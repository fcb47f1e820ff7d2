//! One pair of connections, from connect to loss.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use lapin::{Channel, Connection, ConnectionProperties, options::QueueDeclareOptions};
use tokio::{sync::Mutex, time::Instant};

use crate::rabbit::{
    declare::{self, DeclareError},
    target::Target,
};

/// How long connecting, with TLS and the AMQP handshake, may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The topology is not declared again more often than this.
const MEND_PAUSE: Duration = Duration::from_secs(1);

/// Both connections, up and with the topology declared.
pub(super) struct Link {
    pub(super) publish: Connection,
    pub(super) consume: Connection,
    /// Counts links: what belongs to an older one is void.
    pub(super) generation: u64,
    mended: Mutex<Option<Instant>>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

static GENERATIONS: AtomicU64 = AtomicU64::new(1);

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("no answer within {CONNECT_MAX:?}")]
    Timeout,
    #[error(transparent)]
    Amqp(#[from] lapin::Error),
    #[error(transparent)]
    Declare(#[from] DeclareError),
}

impl Link {
    /// Connects twice and declares the topology.
    pub(super) async fn connect(target: &Target) -> Result<Self, ConnectError> {
        let (publish, consume) = tokio::try_join!(
            connect(target, "postrider publish"),
            connect(target, "postrider consume")
        )?;
        declare::all(&consume).await?;
        Ok(Self {
            publish,
            consume,
            generation: GENERATIONS.fetch_add(1, Ordering::Relaxed),
            mended: Mutex::new(None),
        })
    }

    pub(super) fn connected(&self) -> bool {
        self.publish.status().connected() && self.consume.status().connected()
    }

    /// Declares the topology again, because a message found no queue behind an exchange of ours.
    pub(super) async fn bind_again(&self, exchange: &str) {
        if self.mended.lock().await.is_some_and(recently) {
            return;
        }
        tracing::error!(
            exchange,
            "a message found no queue and is in quarantine: a binding is gone, all are declared \
             again; release from quarantine what is there for want of a route"
        );
        self.mend().await;
    }

    /// Declares the topology again, for a queue or an exchange that somebody deleted.
    pub(super) async fn mend(&self) {
        let mut mended = self.mended.lock().await;
        if mended.is_some_and(recently) {
            return;
        }
        if let Err(error) = declare::all(&self.consume).await {
            tracing::warn!(%error, "topology not declared again");
        }
        *mended = Some(Instant::now());
    }

    /// How many messages wait in each of these queues. A queue that is missing is left out.
    pub(super) async fn depths(&self, names: Vec<String>) -> Vec<(String, u64)> {
        let mut depths = Vec::with_capacity(names.len());
        let mut channel: Option<Channel> = None;
        for name in names {
            let open = match channel.take() {
                Some(open) => open,
                None => match self.consume.create_channel().await {
                    Ok(open) => open,
                    Err(_) => return depths,
                },
            };
            let options = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::durable()
            };
            // A missing queue closes the channel: the next one gets a new channel.
            if let Ok(queue) = open
                .queue_declare(name.as_str().into(), options, Default::default())
                .await
            {
                depths.push((name, u64::from(queue.message_count())));
                channel = Some(open);
            }
        }
        depths
    }

    /// Says goodbye; the broker gives back what was not settled.
    pub(super) async fn close(&self) {
        for connection in [&self.publish, &self.consume] {
            // Closing what is already lost is no error worth a word.
            _ = tokio::time::timeout(MEND_PAUSE, connection.close(200, "closing".into())).await;
        }
    }
}

fn recently(at: Instant) -> bool {
    at.elapsed() < MEND_PAUSE
}

pub(super) async fn connect(target: &Target, name: &str) -> Result<Connection, ConnectError> {
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "postrider".into());
    let connecting = Connection::connect_uri_with_config(
        target.uri.clone(),
        properties,
        target.tls.clone(),
        lapin::runtime::default_runtime()?,
    );
    match tokio::time::timeout(CONNECT_MAX, connecting).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(ConnectError::Timeout),
    }
}
