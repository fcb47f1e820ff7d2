//! Answers without an end: how many there may be, and how each of them is kept alive and ended.
//!
//! An answer is made piece by piece as its reader takes it, so that a slow one costs nothing but
//! its place; one that takes nothing for a minute loses its connection (`service::http::Endless`).

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response, Sse, sse::Event},
};
use event::TokenId;
use futures_util::stream;
use jiff::Timestamp;
use service::http::{Endless, Problem, bearer};
use store::access::Denied;
use tokio::time::Instant;

use crate::{App, answer::Answer, caller::Caller};

/// How many there may be in this process, and with one token.
const ALL_MAX: usize = 128;
const TOKEN_MAX: usize = 16;
/// How often a reader hears that there is nothing new, and its token is looked at again.
const BEAT: Duration = Duration::from_secs(15);

/// The places there are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seats(Arc<Mutex<HashMap<Option<TokenId>, usize>>>);

/// One place, while this lives.
#[derive(Debug)]
struct Seat(Seats, Option<TokenId>);

impl Seats {
    fn take(&self, token: Option<TokenId>) -> Answer<Seat> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.entry(token.clone()).or_default();
        let (most, whose) = if all >= ALL_MAX {
            (ALL_MAX, "in this process")
        } else if token.is_some() && *own >= TOKEN_MAX {
            (TOKEN_MAX, "with this token")
        } else {
            *own += 1;
            drop(taken);
            return Ok(Seat(self.clone(), token));
        };
        let detail = format!("there are {most} streams {whose} already: end one of them");
        let status = StatusCode::TOO_MANY_REQUESTS;
        Err(Problem::new(status, "too_many_streams", detail))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Self(seats, token) = self;
        let mut taken = seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(token) {
            *own -= 1;
            if *own == 0 {
                taken.remove(token);
            }
        }
    }
}

/// Where the pieces of an answer come from.
pub(crate) trait Source: Send + 'static {
    /// The next piece there is at this moment; none where there is nothing new.
    fn next(&mut self) -> impl Future<Output = Next> + Send;

    /// Resolves when it may be worth asking again.
    fn more(&mut self) -> impl Future<Output = ()> + Send;

    /// The place that a reader goes on from.
    fn place(&self) -> Option<String>;
}

/// What a source says.
#[derive(Debug)]
pub(crate) enum Next {
    /// This.
    Piece(Event),
    /// It got on, without a piece.
    Again,
    /// Nothing for now.
    Nothing,
    /// Nothing any more.
    Over,
}

/// Who reads, and until when.
#[derive(Debug)]
pub(crate) struct Reader {
    app: Arc<App>,
    bearer: Option<String>,
    follows: bool,
    beat: Instant,
    greeted: bool,
    _seat: Seat,
}

impl Reader {
    /// A reader, where there is a place. One that does not follow is told what there is.
    pub(crate) fn new(
        app: &Arc<App>,
        caller: &Caller,
        headers: &HeaderMap,
        follows: bool,
    ) -> Answer<Self> {
        Ok(Self {
            _seat: app.seats.take(caller.0.token.clone())?,
            app: Arc::clone(app),
            bearer: bearer(headers).map(str::to_owned),
            follows,
            beat: Instant::now() + BEAT,
            greeted: false,
        })
    }

    /// The whole answer.
    pub(crate) fn answer(self, source: impl Source) -> Response {
        let pieces = stream::unfold((self, source), |(mut reader, mut source)| async move {
            let piece = reader.piece(&mut source).await?;
            Some((Ok::<_, Infallible>(piece), (reader, source)))
        });
        let mut answer = Sse::new(pieces).into_response();
        answer.extensions_mut().insert(Endless);
        let headers = answer.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // A proxy that gathers an answer before it passes it on would never pass this one on.
        headers.insert(NO_BUFFERING, HeaderValue::from_static("no"));
        answer
    }

    async fn piece(&mut self, source: &mut impl Source) -> Option<Event> {
        if !std::mem::replace(&mut self.greeted, true) {
            // The reader knows from here on that nothing is missed any more.
            return Some(self.beat(source, "begun"));
        }
        loop {
            if self.app.stop.is_cancelled() {
                return None;
            }
            if self.beat <= Instant::now() {
                return self
                    .is_still_welcome()
                    .await
                    .then(|| self.beat(source, "alive"));
            }
            match source.next().await {
                Next::Piece(piece) => return Some(piece),
                Next::Again => continue,
                Next::Over => return None,
                Next::Nothing if !self.follows => return None,
                Next::Nothing => {}
            }
            tokio::select! {
                () = self.app.stop.cancelled() => return None,
                () = tokio::time::sleep_until(self.beat) => {}
                () = source.more() => {}
            }
        }
    }

    fn beat(&mut self, source: &impl Source, word: &str) -> Event {
        self.beat = Instant::now() + BEAT;
        let beat = Event::default().comment(word);
        match source.place() {
            Some(place) => beat.id(place),
            None => beat,
        }
    }

    /// Whether the token still counts: one that was revoked ends what it began.
    async fn is_still_welcome(&self) -> bool {
        let asked = self
            .app
            .access
            .authenticate(self.bearer.as_deref(), Timestamp::now());
        !matches!(asked.await, Err(Denied::Missing | Denied::Invalid))
    }
}

/// What nginx and its like listen to.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
