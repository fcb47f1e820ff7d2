//! A connection that is closed when its client dawdles.
//!
//! hyper has one timeout for waiting for a request and for reading its headers. Ours are two: a
//! connection may lie idle for a minute, but headers, once begun, are due in seconds. The reading
//! side and the service note how far the connection is, and [`Phases::dawdled`] watches.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

use super::Limits;

/// What a connection is doing, shared by its reading side, its service and its watch.
#[derive(Debug, Clone)]
pub(super) struct Phases(Arc<Mutex<Phase>>);

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Headers are on their way since then.
    Headers(Instant),
    /// A request is being answered; it has its own timeout.
    Busy,
    /// Between two requests since then, the last answer perhaps not taken by the client yet.
    Idle(Instant),
    /// In an answer without an end, of which the client took something then.
    Streaming(Instant),
}

impl Phases {
    /// A connection that was just opened: whoever connects has something to say.
    pub(super) fn opened() -> Self {
        Self(Arc::new(Mutex::new(Phase::Headers(Instant::now()))))
    }

    /// A request is under way until the result is dropped.
    pub(super) fn begin(&self) -> InRequest {
        *self.lock() = Phase::Busy;
        InRequest(self.clone())
    }

    /// The answer has no end: it may take as long as its client goes on taking it.
    pub(super) fn stream(&self) {
        *self.lock() = Phase::Streaming(Instant::now());
    }

    fn written(&self) {
        let mut phase = self.lock();
        if matches!(*phase, Phase::Streaming(_)) {
            *phase = Phase::Streaming(Instant::now());
        }
    }

    fn read(&self) {
        let mut phase = self.lock();
        if matches!(*phase, Phase::Idle(_)) {
            *phase = Phase::Headers(Instant::now());
        }
    }

    /// Resolves when the client has taken too long. It looks once in every header time, so that
    /// watching costs nothing a request; headers may therefore take up to twice their time.
    pub(super) async fn dawdled(&self, limits: &Limits) {
        loop {
            let now = Instant::now();
            let due = match *self.lock() {
                Phase::Headers(since) => since + limits.header_timeout,
                Phase::Idle(since) | Phase::Streaming(since) => since + limits.idle_timeout,
                Phase::Busy => now + limits.header_timeout,
            };
            if due <= now {
                return;
            }
            sleep_until(due.min(now + limits.header_timeout)).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request is under way while this lives.
pub(super) struct InRequest(Phases);

impl Drop for InRequest {
    fn drop(&mut self) {
        *self.0.lock() = Phase::Idle(Instant::now());
    }
}

/// The connection, noting when bytes come.
pub(super) struct Guarded<C> {
    inner: C,
    phases: Phases,
}

impl<C> Guarded<C> {
    pub(super) fn new(inner: C, phases: Phases) -> Self {
        Self { inner, phases }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Guarded<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if read.is_ready() {
            self.phases.read();
        }
        read
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Guarded<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.phases.written();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.phases.written();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
