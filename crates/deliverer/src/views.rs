//! The views that events lack: fetched from the loader of their entity, once for all subscribers.
//!
//! A loader is somebody's service and is treated like an endpoint: over the guarded client, with a
//! window and a breaker of its own, so that one that hangs holds up nothing but what needs it.
//! Nobody waits here with a permit of the process in hand. What was fetched is kept for a while;
//! what failed is not: each delivery that needed it counts its own failed attempt.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use broker::clock;
use event::{
    Event, EventId, Tenant, admission::admit_view, event::EVENT_BYTES_MAX, reason::AttemptError,
    subscription::View,
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use prometheus::{IntCounterVec, IntGaugeVec, Opts};
use serde_json::value::RawValue;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use url::Url;

use crate::{
    client::{self, Client, Get},
    endpoint::{Bounds, Endpoint, Refused},
    outcome::Outcome,
    park::{self, Cause},
    settings::{Egress, Loader as Wanted, Loaders, Settings},
    verdict,
};

mod cache;
pub(crate) mod template;

use cache::Cache;
use template::Template;

/// The tenant whose record is asked for; every request to a loader says it.
const TENANT: HeaderName = HeaderName::from_static("x-postrider-tenant");

/// The loaders of this process, and what they answered lately.
pub(crate) struct Views {
    loaders: HashMap<String, Loader>,
    /// What is known and what is being fetched, under one lock: between a look at the one and a
    /// look at the other nobody else can begin the same.
    state: Mutex<State>,
    loads: IntCounterVec,
}

struct State {
    cache: Cache,
    flights: HashMap<Key, watch::Receiver<Option<Answer>>>,
}

/// Which view of which event.
type Key = (Tenant, EventId, View);

struct Loader {
    entity: String,
    url: Template,
    headers: HeaderMap,
    timeout: Duration,
    client: Client,
    endpoint: Arc<Endpoint>,
}

/// What a loader said.
#[derive(Debug, Clone)]
enum Answer {
    Found(Arc<RawValue>),
    /// The record is not there any more: 404 or 410.
    Absent(u16),
    Failed(Box<Outcome>),
}

/// What is known of a view that an event lacks.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The view, where a loader had it.
    pub(crate) view: Option<(View, Arc<RawValue>)>,
    /// Why it is not there although there is a loader, in one sentence.
    pub(crate) note: Option<String>,
}

/// Why there is nothing to send now.
#[derive(Debug)]
pub(crate) enum Miss {
    /// The loader can take no request now.
    Refused(Refused),
    /// It failed: that is a failed attempt of the delivery.
    Failed(Box<Outcome>),
}

/// Why the loaders cannot be used: the settings are wrong.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {message}")]
pub struct BadLoader {
    key: String,
    message: String,
}

/// Somebody's turn to get a view.
enum Turn<'a> {
    Known(Answer),
    Follow(watch::Receiver<Option<Answer>>),
    Lead(Flight<'a>),
}

/// A fetch under way. Dropped unlanded (its delivery was cut off, or found no place) it lets the
/// next one try.
struct Flight<'a> {
    views: &'a Views,
    key: Key,
    answer: watch::Sender<Option<Answer>>,
}

impl Views {
    pub(crate) fn new(
        loaders: &Loaders,
        settings: &Settings,
        egress: &Egress,
        loads: IntCounterVec,
    ) -> Result<Self, crate::Error> {
        let made = loaders
            .iter()
            .map(|(entity, wanted)| {
                let loader = Loader::new(entity, wanted, settings, egress)?;
                Ok((entity.clone(), loader))
            })
            .collect::<Result<_, crate::Error>>()?;
        let bytes_max = usize::try_from(settings.views_max.as_u64()).unwrap_or(usize::MAX);
        Ok(Self {
            loaders: made,
            state: Mutex::new(State {
                cache: Cache::new(bytes_max),
                flights: HashMap::new(),
            }),
            loads,
        })
    }

    /// The view `wanted` of an event that lacks it. Waits for a place at the loader, or for
    /// somebody else's fetch, at most `patience`.
    pub(crate) async fn load(
        &self,
        event: &Event,
        wanted: View,
        patience: Duration,
    ) -> Result<Loaded, Miss> {
        let Some(loader) = self.loaders.get(event.kind.entity()) else {
            return Ok(Loaded::default());
        };
        let url = match loader.url.fill(event, wanted) {
            Ok(url) => url,
            Err(why) => return Ok(loader.without(why)),
        };
        let key = (event.tenant.clone(), event.id.clone(), wanted);
        let until = Instant::now() + patience;
        let busy = || Miss::Refused((Cause::Loader, Duration::ZERO));
        loop {
            let (answer, word) = match self.turn(&key) {
                Turn::Known(answer) => (answer, CACHED),
                Turn::Follow(mut flight) => {
                    let landed = timeout_at(until, flight.wait_for(Option::is_some)).await;
                    match landed {
                        Ok(Ok(answer)) => match answer.clone() {
                            Some(answer) => (answer, CACHED),
                            None => continue,
                        },
                        // Its leader was cut off.
                        Ok(Err(_closed)) if Instant::now() < until => continue,
                        _ => return Err(self.count_refused(busy())),
                    }
                }
                Turn::Lead(flight) => {
                    let patience = until.saturating_duration_since(Instant::now());
                    let fetched = loader.fetch(event, url.clone(), patience).await;
                    let answer = fetched.map_err(|refused| {
                        let refused = match refused {
                            (Cause::Stopping, pause) => (Cause::Stopping, pause),
                            (_, pause) => (Cause::Loader, pause),
                        };
                        self.count_refused(Miss::Refused(refused))
                    })?;
                    flight.land(&answer);
                    let word = answer.word();
                    (answer, word)
                }
            };
            self.loads.with_label_values(&[word]).inc();
            return match answer {
                Answer::Found(text) => Ok(Loaded {
                    view: Some((wanted, text)),
                    note: None,
                }),
                Answer::Absent(status) => {
                    let why = format!("answered {status}, the record is gone");
                    Ok(loader.without(&why))
                }
                Answer::Failed(outcome) => Err(Miss::Failed(outcome)),
            };
        }
    }

    /// Lets nobody wait for a loader any more.
    pub(crate) fn close(&self) {
        for loader in self.loaders.values() {
            loader.endpoint.close();
        }
    }

    fn count_refused(&self, miss: Miss) -> Miss {
        self.loads.with_label_values(&[REFUSED]).inc();
        miss
    }

    fn turn(&self, key: &Key) -> Turn<'_> {
        let mut state = self.lock();
        if let Some(answer) = state.cache.get(key, Instant::now()) {
            return Turn::Known(answer);
        }
        if let Some(flight) = state.flights.get(key) {
            return Turn::Follow(flight.clone());
        }
        let (answer, landed) = watch::channel(None);
        state.flights.insert(key.clone(), landed);
        Turn::Lead(Flight {
            views: self,
            key: key.clone(),
            answer,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight<'_> {
    /// Hands the answer to whoever follows, and keeps it where it is worth that.
    fn land(self, answer: &Answer) {
        let mut state = self.views.lock();
        let now = Instant::now();
        match answer {
            Answer::Found(text) => {
                let bytes = text.get().len();
                state.cache.put(&self.key, answer.clone(), bytes, now);
            }
            Answer::Absent(_) => state.cache.put(&self.key, answer.clone(), 0, now),
            Answer::Failed(_) => {}
        }
        drop(state);
        self.answer.send_replace(Some(answer.clone()));
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.views.lock().flights.remove(&self.key);
    }
}

impl Loader {
    fn new(
        entity: &str,
        wanted: &Wanted,
        settings: &Settings,
        egress: &Egress,
    ) -> Result<Self, crate::Error> {
        let bad = |key: &str, message: String| BadLoader {
            key: format!("loaders.{entity}.{key}"),
            message,
        };
        let url = Template::parse(&wanted.url).map_err(|message| bad("url", message))?;
        let headers = wanted
            .request_headers()
            .map_err(|(key, message)| bad(&key, message))?;
        let egress = Egress {
            allow: [egress.allow.as_slice(), &wanted.allow].concat(),
            ..egress.clone()
        };
        let bounds = Bounds {
            window_max: wanted.max_in_flight,
            failures_max: settings.breaker_failures,
            pause_max: settings.breaker_pause_max,
        };
        // Loaders are not endpoints of anybody's: their breakers are not counted among those.
        let uncounted = IntGaugeVec::new(Opts::new("loaders", "loaders"), &["breaker"])
            .map_err(crate::Error::Metrics)?;
        Ok(Self {
            entity: entity.to_owned(),
            url,
            headers,
            timeout: wanted.timeout,
            client: Client::new(settings, &egress)?,
            endpoint: Arc::new(Endpoint::new(bounds, uncounted)),
        })
    }

    /// Nothing of the view, and why.
    fn without(&self, why: &str) -> Loaded {
        Loaded {
            view: None,
            note: Some(format!("loader for {}: {why}", self.entity)),
        }
    }

    async fn fetch(&self, event: &Event, url: Url, patience: Duration) -> Result<Answer, Refused> {
        let slot = self.endpoint.enter(patience).await?;
        let mut headers = self.headers.clone();
        if let Ok(tenant) = HeaderValue::from_str(event.tenant.as_str()) {
            headers.insert(TENANT, tenant);
        }
        let (outcome, body) = self
            .client
            .get(Get {
                url,
                headers,
                timeout: self.timeout,
                bytes_max: EVENT_BYTES_MAX,
            })
            .await;
        let pause = verdict::asked_pause(&outcome, clock::now());
        slot.leave(&outcome, pause, || park::jitter(event.id.as_str(), 0));
        Ok(match (outcome.status, outcome.error) {
            (Some(status @ (404 | 410)), _) => Answer::Absent(status),
            (_, Some(error)) => self.failed(error, &outcome.detail, outcome.took),
            (_, None) => match admit_view(&body) {
                Ok(text) => Answer::Found(text.into()),
                Err(what) => {
                    let detail = format!("the answer {what}");
                    self.failed(AttemptError::NotHttp, &detail, outcome.took)
                }
            },
        })
    }

    /// The failed attempt of a delivery that needed the view. It has no status: that would be the
    /// endpoint's.
    fn failed(&self, error: AttemptError, detail: &str, took: Duration) -> Answer {
        let (error, detail) = match error {
            // The end that this word means for a target is not the subscriber's fault here.
            AttemptError::TargetNotAllowed => (
                AttemptError::Connect,
                "its address is not one that egress.allow or its own allow permits",
            ),
            error => (error, detail),
        };
        let mut outcome = Outcome::failed(error, format!("loader for {}: {detail}", self.entity));
        outcome.took = took;
        outcome.seen.timing.total = client::micros(took);
        Answer::Failed(Box::new(outcome))
    }
}

/// How a view came, for `postrider_loads_total{result}`.
pub(crate) const RESULTS: [&str; 5] = [FETCHED, CACHED, ABSENT, FAILED, REFUSED];
const FETCHED: &str = "fetched";
const CACHED: &str = "cached";
const ABSENT: &str = "absent";
const FAILED: &str = "failed";
const REFUSED: &str = "refused";

impl Answer {
    fn word(&self) -> &'static str {
        match self {
            Self::Found(_) => FETCHED,
            Self::Absent(_) => ABSENT,
            Self::Failed(_) => FAILED,
        }
    }
}

impl Wanted {
    /// The headers of each request, or the key that is wrong and why.
    pub(crate) fn request_headers(&self) -> Result<HeaderMap, (String, String)> {
        use secrecy::ExposeSecret;
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let secret = |text: &str| {
            let mut value = HeaderValue::from_str(text).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        for (name, value) in &self.headers {
            let key = format!("headers.{name}");
            let parsed = HeaderName::try_from(name).ok();
            let Some((name, value)) = parsed.zip(secret(value.expose_secret())) else {
                return Err((key, "is not a header that can be sent".into()));
            };
            headers.insert(name, value);
        }
        if let Some(token) = &self.token {
            let value = secret(&format!("Bearer {}", token.expose_secret()));
            let Some(value) = value else {
                return Err(("token".into(), "cannot be sent in a header".into()));
            };
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(headers)
    }
}

#[cfg(test)]
mod tests;
