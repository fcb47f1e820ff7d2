//! Stopping: the first signal asks, the second one ends.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a process that was told twice: 128 and SIGINT, as shells have it.
const ENDED_BY_SIGNAL: i32 = 130;

/// A token that is cancelled by the first SIGTERM or SIGINT. The second ends the process at once,
/// without draining: whoever sends it has waited long enough, and what was not acked is the
/// broker's still.
pub fn on_signals() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        tracing::info!("stopping; a second signal ends the process at once");
        asked.cancel();
        either(&mut terminate, &mut interrupt).await;
        tracing::warn!("ended by a second signal before everything was settled");
        std::process::exit(ENDED_BY_SIGNAL);
    });
    Ok(stop)
}

async fn either(a: &mut Signal, b: &mut Signal) {
    tokio::select! {
        _ = a.recv() => {}
        _ = b.recv() => {}
    }
}
