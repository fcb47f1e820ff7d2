//! How a delivery is said: the dialects, their names, views, bodies and headers.
//!
//! Pure: it reads no clock and no file, and knows nothing of queues, keys or sockets. Who sends a
//! delivery asks [`Dialects::render`] for the request's body and signs what it gets.
#![warn(missing_docs)]

use std::{borrow::Cow, collections::BTreeMap};

use bytes::Bytes;
use event::{Event, Subscription, subscription::View};

mod standard;

/// All dialects a process knows, by name.
#[derive(Debug)]
pub struct Dialects {
    by_name: BTreeMap<Cow<'static, str>, Dialect>,
}

/// How one dialect writes a delivery.
#[derive(Debug)]
struct Dialect {
    content_type: Cow<'static, str>,
    /// Sent with every delivery, under the names given here.
    headers: Vec<(String, String)>,
    body: Write,
}

/// Writes the body, and says which view really went into it.
type Write = fn(&Event, View) -> Result<(Vec<u8>, View), RenderError>;

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
        };
        Self {
            by_name: BTreeMap::from([(Cow::Borrowed("standard"), standard)]),
        }
    }

    /// The names a subscription may give, in alphabetical order.
    pub fn names(&self) -> Vec<&str> {
        self.by_name.keys().map(AsRef::as_ref).collect()
    }

    /// Writes `event` in the dialect `name` for `subscription`, with the `wanted` view where the
    /// event has it.
    pub fn render(
        &self,
        name: &str,
        event: &Event,
        wanted: View,
        // `standard` says the same to everybody; a dialect with parameters reads them from here.
        _subscription: &Subscription,
    ) -> Result<Rendered, RenderError> {
        let dialect = self
            .by_name
            .get(name)
            .ok_or_else(|| RenderError::UnknownDialect(name.into()))?;
        let (body, view_sent) = (dialect.body)(event, wanted)?;
        Ok(Rendered {
            body: body.into(),
            content_type: dialect.content_type.clone(),
            headers: dialect.headers.clone(),
            view_sent,
        })
    }
}

#[cfg(test)]
mod tests;
