//! `GET /v1/listeners/{id}/requests`: what waits for a listener, each as the request that would be
//! made, signed as of the moment in which it is told.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::State,
    http::{HeaderMap, Uri},
    response::sse::Event,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use dialect::{Dialects, Signer, Writing, own_headers};
use event::{
    EventId, EventType, SubscriptionId,
    delivery::Purpose,
    log::HeldDelivery,
    reason::{DeadReason, DeliveryState},
    subscription::View,
};
use jiff::Timestamp;
use serde::Serialize;
use store::{Error, Sight, Store, Stored, Waiting, WaitingKey};
use tokio::time::Instant;

use super::alive;
use crate::{
    App,
    answer::Answer,
    caller::{Caller, Id},
    form::Form,
    streams::{Next, Reader, Source},
    tail::follows,
};

/// How many are told that the listener has not said it took. Few, because each is signed when it
/// is told, and a signature is good for minutes only.
const OPEN_MAX: u32 = 16;
/// How often the store is asked for more.
const EVERY: Duration = Duration::from_millis(500);
/// The same while the listener is at work: what it says it took makes room.
const BUSY_EVERY: Duration = Duration::from_millis(100);
/// How often the lease is extended while nothing waits for the listener.
const EXTENDED_EVERY: Duration = Duration::from_secs(2);

pub(super) async fn requests(
    caller: Caller,
    State(app): State<Arc<App>>,
    id: Id,
    headers: HeaderMap,
    uri: Uri,
) -> Answer {
    caller.must(event::access::Scope::Manage)?;
    let mut query = Form::of_query(&uri)?;
    let follows = follows(&mut query);
    query.finish()?;
    let stored = alive(&app, &caller, &id).await?;
    let reader = Reader::new(&app, &caller, &headers, follows)?;
    Ok(reader.answer(Requests {
        store: app.store.clone(),
        dialects: Arc::clone(&app.dialects),
        id: stored.subscription.id,
        told: HashSet::new(),
        ready: VecDeque::new(),
        extended: Instant::now(),
    }))
}

/// A request as a listener is told of it.
#[derive(Debug, Serialize)]
struct Request<'a> {
    /// What the listener says it took it by.
    id: &'a str,
    delivery_id: &'a str,
    event_id: &'a EventId,
    subscription_id: &'a SubscriptionId,
    tenant: &'a event::Tenant,
    r#type: &'a EventType,
    purpose: Purpose,
    run: u32,
    accepted_at: Timestamp,
    /// When it was signed.
    signed_at: Timestamp,
    view_sent: View,
    method: &'static str,
    headers: Vec<(&'a str, String)>,
    /// Where it is text, which in every built-in dialect it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

/// One connection of a listener.
struct Requests {
    store: Store,
    dialects: Arc<Dialects>,
    id: SubscriptionId,
    /// What this connection was told and the listener has not said it took.
    told: HashSet<WaitingKey>,
    /// Each is signed when it leaves here.
    ready: VecDeque<Waiting>,
    extended: Instant,
}

impl Source for Requests {
    async fn next(&mut self) -> Next {
        match self.look().await {
            Ok(next) => next,
            Err(error) => {
                tracing::debug!(%error, "a listener found the store away");
                Next::Nothing
            }
        }
    }

    async fn more(&mut self) {
        let is_busy = !self.told.is_empty();
        tokio::time::sleep(if is_busy { BUSY_EVERY } else { EVERY }).await;
    }

    fn place(&self) -> Option<String> {
        None
    }
}

impl Requests {
    async fn look(&mut self) -> Result<Next, Error> {
        if self.ready.is_empty() {
            // What was taken makes room, and what comes late may be older than what was told.
            let waiting = self.store.waiting(&self.id, OPEN_MAX).await?;
            self.told
                .retain(|key| waiting.iter().any(|one| one.key == *key));
            let is_idle = waiting.is_empty();
            let new = waiting
                .into_iter()
                .filter(|one| !self.told.contains(&one.key));
            self.ready.extend(new);
            if let Over::Yes = self.extend(is_idle).await? {
                return Ok(Next::Over);
            }
            if self.ready.is_empty() {
                return Ok(Next::Nothing);
            }
        }
        let Some(stored) = self.store.subscription(&Sight::All, &self.id).await? else {
            return Ok(Next::Over);
        };
        let Some(waiting) = self.ready.pop_front() else {
            return Ok(Next::Again);
        };
        match self.write(&stored, &waiting) {
            Ok(text) => {
                let event = Event::default().event("request").data(text);
                let event = event.id(waiting.key.to_string());
                self.told.insert(waiting.key);
                Ok(Next::Piece(event))
            }
            Err(detail) => {
                self.cannot_be_written(waiting, detail).await?;
                Ok(Next::Again)
            }
        }
    }

    /// Extends the lease while the listener has taken everything; else it is the listener's own
    /// word that extends it, so that nothing is kept for ever for one that takes nothing.
    async fn extend(&mut self, is_idle: bool) -> Result<Over, Error> {
        let now = Instant::now();
        if !is_idle || now.duration_since(self.extended) < EXTENDED_EVERY {
            return Ok(Over::No);
        }
        self.extended = now;
        let until = self
            .store
            .extend_listener(&self.id, Timestamp::now())
            .await?;
        Ok(if until.is_some() { Over::No } else { Over::Yes })
    }

    fn write(&self, stored: &Stored, waiting: &Waiting) -> Result<String, String> {
        let subscription = &stored.subscription;
        let speaker = self.dialects.speaker(subscription);
        let speaker = speaker.map_err(|error| error.to_string())?;
        let event = &*waiting.item.event;
        let now = Timestamp::now();
        let writing = Writing {
            subscription,
            speaker: &speaker,
            signer: &Signer::new(&stored.keys),
            headers: &own_headers(subscription)?,
            event,
            loaded: None,
            purpose: waiting.to.purpose,
        };
        let (headers, rendered) = writing.sign(now)?;
        let text = std::str::from_utf8(&rendered.body).ok();
        let base64 = || STANDARD.encode(&rendered.body);
        let shown = |value: &axum::http::HeaderValue| {
            String::from_utf8_lossy(value.as_bytes()).into_owned()
        };
        let request = Request {
            id: &waiting.key.to_string(),
            delivery_id: waiting.key.delivery_id.as_str(),
            event_id: &event.id,
            subscription_id: &subscription.id,
            tenant: &event.tenant,
            r#type: &event.kind,
            purpose: waiting.to.purpose,
            run: waiting.to.run,
            accepted_at: waiting.item.accepted_at,
            signed_at: now,
            view_sent: rendered.view_sent,
            method: "POST",
            headers: headers
                .iter()
                .map(|(name, value)| (name.as_str(), shown(value)))
                .collect(),
            body: text,
            body_base64: text.is_none().then(base64),
        };
        serde_json::to_string(&request).map_err(|error| error.to_string())
    }

    /// Trying again cannot help: it ends here.
    async fn cannot_be_written(&self, waiting: Waiting, detail: String) -> Result<(), Error> {
        let ended = (DeliveryState::Dead, waiting.to.attempts);
        let mut entry = HeldDelivery::ended(&waiting.item, &waiting.to, ended, Timestamp::now());
        entry.reason = Some(DeadReason::RenderError);
        entry.detail = Some(detail);
        self.store.record(&[], &[entry]).await?;
        self.store.taken(&[waiting.key]).await
    }
}

/// Whether a listener has ended.
enum Over {
    Yes,
    No,
}
