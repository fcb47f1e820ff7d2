//! A connection that closes itself when its client dawdles.
//!
//! hyper has one timeout for waiting for a request and for reading its headers. Ours are two: a
//! connection may lie idle for a minute, but headers, once begun, are due in seconds.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::Limits;

/// What the service side tells the connection side: how many requests began and ended.
#[derive(Debug, Default)]
pub(super) struct Progress {
    begun: AtomicU32,
    ended: AtomicU32,
}

impl Progress {
    pub(super) fn begin(self: &Arc<Self>) -> InRequest {
        self.begun.fetch_add(1, Ordering::Relaxed);
        InRequest(Arc::clone(self))
    }
}

/// A request is under way while this lives.
pub(super) struct InRequest(Arc<Progress>);

impl Drop for InRequest {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// The connection.
pub(super) struct Guarded<C> {
    inner: C,
    limits: Limits,
    progress: Arc<Progress>,
    deadline: Pin<Box<Sleep>>,
    /// The request count at which the deadline was set.
    seen: u32,
    waiting: Waiting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// A request is under way, or was when we last looked: no deadline is set.
    Nothing,
    /// For the first byte of a request.
    Request,
    /// For the end of its headers.
    Headers,
}

impl<C> Guarded<C> {
    pub(super) fn new(inner: C, limits: &Limits, progress: Arc<Progress>) -> Self {
        Self {
            inner,
            deadline: Box::pin(sleep(limits.header_timeout)),
            limits: limits.clone(),
            progress,
            seen: 0,
            // Whoever connects has something to say.
            waiting: Waiting::Headers,
        }
    }

    /// Moves on with the service side; whether a deadline runs.
    fn wait(&mut self) -> bool {
        let begun = self.progress.begun.load(Ordering::Relaxed);
        if begun != self.seen {
            self.seen = begun;
            self.waiting = Waiting::Nothing;
        }
        if self.progress.ended.load(Ordering::Relaxed) != begun {
            return false;
        }
        if self.waiting == Waiting::Nothing {
            self.waiting = Waiting::Request;
            self.deadline
                .as_mut()
                .reset(Instant::now() + self.limits.idle_timeout);
        }
        true
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Guarded<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let waits = this.wait();
        if let Poll::Ready(read) = Pin::new(&mut this.inner).poll_read(cx, buf) {
            if waits && this.waiting == Waiting::Request {
                this.waiting = Waiting::Headers;
                this.deadline
                    .as_mut()
                    .reset(Instant::now() + this.limits.header_timeout);
            }
            return Poll::Ready(read);
        }
        if waits && this.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Guarded<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
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
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
