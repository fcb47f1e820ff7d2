//! `GET /v1/tail`: what happens, live: events that were accepted, and what became of deliveries.
//!
//! Told from the store, which all processes share, so that it does not matter which of them
//! accepted, delivered or recorded. One poll in half a second serves all readers of a process.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, Uri},
    response::sse::Event,
    routing::get,
};
use event::{EventType, SubscriptionId, Tenant, access::Scope, log::Archive, selector::Selector};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use service::http::Problem;
use store::{DeliveryRow, EventRow, Sight, Store, Told};
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    App,
    answer::{Answer, conflict, store_failed},
    caller::Caller,
    form::Form,
    streams::{Next, Reader, Source},
};

/// How often the store is asked while somebody reads.
const EVERY: Duration = Duration::from_millis(500);
/// For how long the store goes on writing down what happens after the last reader, and how long
/// that is kept: the time in which a reader may come back.
const KEPT: SignedDuration = SignedDuration::from_mins(5);
/// How many polls there are between two extensions of that.
const EXTENDED_EACH: u32 = 60;
/// How long a store that is away is left alone.
const AWAY: Duration = Duration::from_secs(1);
/// How many selectors one reader may name.
const SELECTORS_MAX: usize = 100;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/tail", get(tail))
}

async fn tail(caller: Caller, State(app): State<Arc<App>>, headers: HeaderMap, uri: Uri) -> Answer {
    caller.must(Scope::Read)?;
    let mut query = Form::of_query(&uri)?;
    let tenant = query.parsed("tenant", Tenant::parse);
    let selectors = query.parsed("type", selectors).unwrap_or_default();
    let subscription = query.parsed("subscription_id", SubscriptionId::parse);
    let follows = follows(&mut query);
    query.finish()?;
    let asked = last_event_id(&headers)?;
    if app.archive == Archive::Off {
        let detail = "nothing is recorded that could be told: set recorder.archive to `headers` \
                      or `full`";
        return Err(conflict("not_recorded", detail));
    }
    let sight = caller.sight_of(tenant).ok_or_else(Problem::not_found)?;
    let reader = Reader::new(&app, &caller, &headers, follows)?;
    let last = follow(&app.store).await.map_err(store_failed)?;
    let place = asked.unwrap_or(Place {
        after: last,
        told: 0,
    });
    let mut ready = VecDeque::new();
    // Of another database, or of this one before an older copy was restored.
    let place = if place.after > last {
        ready.push_back(gap());
        Place {
            after: last,
            told: 0,
        }
    } else {
        place
    };
    Ok(reader.answer(Tail {
        store: app.store.clone(),
        head: app.polls.join(&app.store, last),
        begun_at: last,
        sight,
        selectors,
        subscription,
        place,
        ready,
        away: false,
    }))
}

/// `follow=false` ends the answer once everything there is was told.
pub(crate) fn follows(query: &mut Form) -> bool {
    let word = |follows| if follows { "true" } else { "false" };
    query.word("follow", &[true, false], word).unwrap_or(true)
}

/// Selectors with commas between.
fn selectors(text: &str) -> Result<Vec<Selector>, String> {
    let selectors: Vec<_> = text
        .split(',')
        .map(|word| Selector::parse(word).map_err(|error| format!("{word:?} {error}")))
        .collect::<Result<_, _>>()?;
    if selectors.len() > SELECTORS_MAX {
        return Err(format!("must be at most {SELECTORS_MAX}"));
    }
    Ok(selectors)
}

/// Between which two entries of which step a reader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// All of this step was told, ...
    after: u64,
    /// ... and so many entries of the next.
    told: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.after, self.told)
    }
}

fn last_event_id(headers: &HeaderMap) -> Answer<Option<Place>> {
    let Some(given) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let parse = |text: &str| {
        let (after, told) = text.split_once('-')?;
        let (after, told) = (after.parse().ok()?, told.parse().ok()?);
        Some(Place { after, told })
    };
    match given.to_str() {
        // What a browser sends that was told none.
        Ok("") => Ok(None),
        Ok(text) if let Some(place) = parse(text) => Ok(Some(place)),
        _ => {
            let detail = "`Last-Event-ID` must be the `id` of something that this route told";
            let status = axum::http::StatusCode::BAD_REQUEST;
            Err(Problem::new(status, "bad_last_event_id", detail))
        }
    }
}

/// Has recorders write down what happens, for a while.
async fn follow(store: &Store) -> Result<u64, store::Error> {
    let now = Timestamp::now();
    store
        .follow(now, now.saturating_add(KEPT).unwrap_or(now))
        .await
}

/// What a reader is told where something between is missing.
fn gap() -> Event {
    let detail = "something was recorded in between that is not told here: nobody followed for \
                  more than 5 minutes, or this reader was away for as long";
    Event::default()
        .event("gap")
        .data(json!({ "detail": detail }).to_string())
}

/// One reader's way through the steps.
#[derive(Debug)]
struct Tail {
    store: Store,
    head: Head,
    /// The last step when it began, which the poll may not have seen yet.
    begun_at: u64,
    sight: Sight,
    /// Empty: every type.
    selectors: Vec<Selector>,
    subscription: Option<SubscriptionId>,
    place: Place,
    /// At most what one step tells.
    ready: VecDeque<Event>,
    away: bool,
}

impl Source for Tail {
    async fn next(&mut self) -> Next {
        if let Some(event) = self.ready.pop_front() {
            return Next::Piece(event);
        }
        let last = *self.head.last.borrow_and_update();
        if last.max(self.begun_at) <= self.place.after {
            return Next::Nothing;
        }
        let Place { after, told } = self.place;
        match self.store.next_step(&self.sight, after, told).await {
            Ok(None) => Next::Nothing,
            Ok(Some(step)) => {
                self.away = false;
                if step.gap {
                    self.ready.push_back(gap());
                }
                for (number, told) in step.told {
                    let place = Place {
                        after: step.number - 1,
                        told: number,
                    };
                    self.ready
                        .extend(self.shown(&told).map(|shown| shown.id(place.to_string())));
                }
                self.place = Place {
                    after: step.number,
                    told: 0,
                };
                Next::Again
            }
            Err(error) => {
                tracing::debug!(%error, "a tail found the store away");
                self.away = true;
                Next::Nothing
            }
        }
    }

    async fn more(&mut self) {
        if self.away {
            tokio::time::sleep(AWAY).await;
        } else if self.head.last.changed().await.is_err() {
            // The poll is over with the process.
            std::future::pending::<()>().await;
        }
    }

    fn place(&self) -> Option<String> {
        // Not behind what is still to be told.
        self.ready.is_empty().then(|| self.place.to_string())
    }
}

impl Tail {
    /// What the reader is told, where it wants to know.
    fn shown(&self, told: &Told) -> Option<Event> {
        let (word, text) = match told {
            Told::Event(row) => ("event", self.wants_event(row).then(|| text(row))??),
            Told::Delivery(row) => ("delivery", self.wants_delivery(row).then(|| text(row))??),
        };
        Some(Event::default().event(word).data(text))
    }

    fn wants_event(&self, row: &EventRow) -> bool {
        let subscription = self.subscription.as_ref();
        let types = &self.selectors;
        (types.is_empty() || types.iter().any(|selector| selector.matches(&row.event)))
            && subscription.is_none_or(|id| row.matched.contains(id))
    }

    fn wants_delivery(&self, row: &DeliveryRow) -> bool {
        let subscription = self.subscription.as_ref();
        let types = &self.selectors;
        (types.is_empty() || types.iter().any(|selector| says(selector, &row.kind)))
            && subscription.is_none_or(|id| row.subscription_id == *id)
    }
}

/// Whether a selector listens to a type, as far as a type can tell: a delivery does not know
/// whether its event changed a status.
fn says(selector: &Selector, kind: &EventType) -> bool {
    match selector {
        Selector::All => true,
        Selector::Exact(wanted) => wanted == kind,
        Selector::Entity(entity) | Selector::StatusChanged(entity) => kind.entity() == entity,
        Selector::Saved(entity) => {
            kind.entity() == entity && matches!(kind.action(), "created" | "updated" | "saved")
        }
    }
}

fn text<T: serde::Serialize>(row: &T) -> Option<String> {
    serde_json::to_string(row).ok()
}

/// The one poll of a process, which lives while somebody reads.
#[derive(Debug, Default)]
pub(crate) struct Polls(Mutex<Weak<Poll>>);

#[derive(Debug)]
struct Poll {
    last: watch::Receiver<u64>,
    task: AbortHandle,
}

/// A reader's view of it.
#[derive(Debug)]
struct Head {
    last: watch::Receiver<u64>,
    _poll: Arc<Poll>,
}

impl Drop for Poll {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Polls {
    /// `last` is the number of a step that there is.
    fn join(&self, store: &Store, last: u64) -> Head {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let poll = known.upgrade().unwrap_or_else(|| {
            let (sender, receiver) = watch::channel(last);
            let task = tokio::spawn(poll(store.clone(), sender)).abort_handle();
            let last = receiver;
            Arc::new(Poll { last, task })
        });
        *known = Arc::downgrade(&poll);
        Head {
            last: poll.last.clone(),
            _poll: poll,
        }
    }
}

async fn poll(store: Store, last: watch::Sender<u64>) {
    let mut round = 0_u32;
    loop {
        tokio::time::sleep(EVERY).await;
        round = round.wrapping_add(1);
        let looked = if round.is_multiple_of(EXTENDED_EACH) {
            let now = Timestamp::now();
            let before = now.saturating_sub(KEPT).unwrap_or(now);
            if let Err(error) = store.forget_steps(before).await {
                tracing::debug!(%error, "old steps could not be forgotten yet");
            }
            follow(&store).await
        } else {
            store.last_step().await
        };
        match looked {
            Ok(seq) => {
                last.send_if_modified(|known| std::mem::replace(known, seq) != seq);
            }
            Err(error) => tracing::debug!(%error, "the poll of all tails found the store away"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_says_of_a_type_what_a_type_can_tell() {
        for (selector, kind, wanted) in [
            ("*", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "b.a", false),
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.saved", "a.created", true),
            ("a.saved", "a.deleted", false),
            ("a.status_changed", "a.updated", true),
            ("a.status_changed", "b.updated", false),
        ] {
            let parsed = Selector::parse(selector).unwrap();
            let kind = EventType::parse(kind).unwrap();
            assert_eq!(says(&parsed, &kind), wanted, "{selector} {kind}");
        }
    }

    #[test]
    fn a_place_is_read_as_it_was_written() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", text.parse().unwrap());
            last_event_id(&headers)
        };
        let place = Place { after: 7, told: 3 };
        assert_eq!(read(&place.to_string()).unwrap(), Some(place));
        assert_eq!(read("").unwrap(), None);
        for wrong in ["7", "7-", "-3", "x-3", "7-3-1", "-7-3"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
