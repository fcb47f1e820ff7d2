//! How a delivery is said: the dialects, their names, views, bodies and headers.
//!
//! Pure: it reads no clock and no file, and knows nothing of queues, keys or sockets. Who sends a
//! delivery asks [`Dialects::render`] for the request's body and signs what it gets.
#![warn(missing_docs)]

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use event::{
    Event, Fault, Subscription,
    filter::Stopped,
    subscription::{
        View,
        words::{Canonical, Vocabulary, Words},
    },
};
use serde_json::{Map, Value, value::RawValue};

mod standard;

/// All dialects a process knows, by name.
#[derive(Debug)]
pub struct Dialects {
    by_name: BTreeMap<Cow<'static, str>, Arc<Dialect>>,
}

/// How one dialect writes a delivery.
#[derive(Debug)]
struct Dialect {
    content_type: Cow<'static, str>,
    /// Sent with every delivery, under the names given here.
    headers: Vec<(String, String)>,
    body: Write,
    policy: Policy,
}

/// Writes the body, and says which view really went into it.
type Write = fn(&Event, View, Loaded<'_>) -> Result<(Vec<u8>, View), RenderError>;

/// A view that was fetched because the event lacks it, with its text.
pub type Loaded<'a> = Option<(View, &'a RawValue)>;

/// What a dialect's platform promises about deliveries, beside the defaults that a new
/// subscription takes from it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Statuses after which no attempt is made again: the delivery is dead as `refused`.
    pub not_retried: Vec<u16>,
}

/// One subscription's way of saying things: made once per revision of a subscription, used for
/// each of its deliveries.
#[derive(Debug, Clone)]
pub struct Speaker {
    dialect: Arc<Dialect>,
    wanted: View,
}

/// A delivery as it will be sent, before it is signed.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// The request's body, exactly.
    pub body: Bytes,
    /// The request's `content-type`.
    pub content_type: Cow<'static, str>,
    /// Headers of the dialect's own. They never carry a signature.
    pub headers: Vec<(String, String)>,
    /// Which view the body holds: not the wanted one where the event lacks it.
    pub view_sent: View,
}

/// Why a delivery cannot be written. Trying again cannot help: the event and the subscription are
/// what they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The subscription names a dialect this process does not have.
    #[error("no dialect is named {0:?}")]
    UnknownDialect(String),
    /// There is nothing to put into the body.
    #[error("the event has no data, and no subject to name in its place")]
    NothingToSend,
}

impl Dialects {
    /// The dialects that are built in.
    pub fn builtin() -> Self {
        let standard = Dialect {
            content_type: Cow::Borrowed("application/json"),
            headers: Vec::new(),
            body: standard::body,
            policy: Policy::default(),
        };
        Self {
            by_name: BTreeMap::from([(Cow::Borrowed("standard"), Arc::new(standard))]),
        }
    }

    /// The names a subscription may give, in alphabetical order.
    pub fn names(&self) -> Vec<&str> {
        self.by_name.keys().map(AsRef::as_ref).collect()
    }

    /// How `subscription` is spoken to.
    pub fn speaker(&self, subscription: &Subscription) -> Result<Speaker, RenderError> {
        let name = subscription.dialect.as_str();
        let dialect = self
            .by_name
            .get(name)
            .ok_or_else(|| RenderError::UnknownDialect(name.into()))?;
        Ok(Speaker {
            dialect: dialect.clone(),
            wanted: subscription.view,
        })
    }
}

impl Vocabulary for Dialects {
    fn names(&self) -> Vec<&str> {
        self.names()
    }

    fn parameters(&self, _dialect: &str) -> Vec<&str> {
        Vec::new()
    }

    fn read(&self, dialect: &str, written: &Map<String, Value>) -> Result<Words, Vec<Fault>> {
        Canonical(&[dialect]).read(dialect, written)
    }
}

impl Speaker {
    /// Whether the subscription's own words, with their parameters, want this event and the
    /// dialect has a name for it. The filter of the subscription is judged apart from this.
    pub fn judge(&self, _event: &Event) -> Result<(), Stopped> {
        Ok(())
    }

    /// The view that has to be fetched before the event can be written as the subscription wants
    /// it; `None` where the event carries it, or the event has no views (a deletion).
    pub fn missing_view(&self, event: &Event) -> Option<View> {
        let has = match self.wanted {
            View::Basic => event.changes.is_some(),
            View::Full => event.data.is_some(),
            View::Extended => event.details.is_some(),
        };
        (!has && event.subject.is_none()).then_some(self.wanted)
    }

    /// Writes `event` for `subscription` (the one that this speaker was made for), with the view
    /// that was fetched where one was.
    pub fn render(
        &self,
        event: &Event,
        loaded: Loaded<'_>,
        // `standard` says the same to everybody; others read names, attributes and parameters.
        _subscription: &Subscription,
    ) -> Result<Rendered, RenderError> {
        let (body, view_sent) = (self.dialect.body)(event, self.wanted, loaded)?;
        Ok(Rendered {
            body: body.into(),
            content_type: self.dialect.content_type.clone(),
            headers: self.dialect.headers.clone(),
            view_sent,
        })
    }

    /// What the dialect's platform promises about deliveries.
    pub fn policy(&self) -> &Policy {
        &self.dialect.policy
    }
}

#[cfg(test)]
mod tests;
