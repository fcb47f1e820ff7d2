//! What a template may see: the event without its views, the one view that is sent, and what the
//! subscription says of itself. The views that are not sent are not here, so none can leak.

use std::sync::Arc;

use event::{Event, EventId, EventType, Tenant, fault};
use jiff::Timestamp;
use minijinja::{
    Value,
    value::{Enumerator, Object},
};

use super::Raw;

/// The names that a template may use.
const SCOPE: [&str; 8] = [
    "action",
    "attributes",
    "event",
    "parameters",
    "says",
    "subscription",
    "view",
    "word",
];

/// What one rendering may see.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    /// What the dialect calls the event.
    pub(crate) word: Value,
    /// What the dialect calls the action.
    pub(crate) action: Value,
    /// What the file says of the word.
    pub(crate) says: Value,
    pub(crate) event: Value,
    pub(crate) view: Value,
    pub(crate) subscription: Value,
    pub(crate) attributes: Value,
    pub(crate) parameters: Value,
}

impl Scope {
    pub(super) fn into_value(self) -> Value {
        Value::from_object(self)
    }
}

impl Object for Scope {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let value = match key {
            "word" => &self.word,
            "action" => &self.action,
            "says" => &self.says,
            "event" => &self.event,
            "view" => &self.view,
            "subscription" => &self.subscription,
            "attributes" => &self.attributes,
            "parameters" => &self.parameters,
            _ => return None,
        };
        Some(value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&SCOPE)
    }
}

/// The event without its views.
#[derive(Debug)]
pub(crate) struct EventScope {
    id: EventId,
    tenant: Tenant,
    kind: EventType,
    time: Timestamp,
    subject: Option<Box<str>>,
    status: Option<String>,
    previous_status: Option<String>,
    version: Option<u64>,
    expires_at: Option<Timestamp>,
}

impl EventScope {
    pub(crate) fn value(event: &Event) -> Value {
        Value::from_object(Self {
            id: event.id.clone(),
            tenant: event.tenant.clone(),
            kind: event.kind.clone(),
            time: event.time,
            subject: event.subject.as_ref().map(|subject| subject.0.get().into()),
            status: event.status.clone(),
            previous_status: event.previous_status.clone(),
            version: event.version,
            expires_at: event.expires_at,
        })
    }
}

impl Object for EventScope {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        match key {
            "id" => Some(self.id.as_str().into()),
            "tenant" => Some(self.tenant.as_str().into()),
            "type" => Some(self.kind.as_str().into()),
            "entity" => Some(self.kind.entity().into()),
            "action" => Some(self.kind.action().into()),
            "time" => Some(self.time.to_string().into()),
            "subject" => self.subject.as_deref().map(Raw::value),
            "status" => self.status.as_deref().map(Value::from),
            "previous_status" => self.previous_status.as_deref().map(Value::from),
            "version" => self.version.map(Value::from),
            "expires_at" => self.expires_at.map(|time| time.to_string().into()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&[
            "id",
            "tenant",
            "type",
            "entity",
            "action",
            "time",
            "subject",
            "status",
            "previous_status",
            "version",
            "expires_at",
        ])
    }
}

/// Whether a template may use a name.
pub(super) fn known(name: &str) -> Result<(), String> {
    if SCOPE.contains(&name) {
        return Ok(());
    }
    let near = fault::nearest(name, SCOPE)
        .map(|near| format!("; did you mean `{near}`?"))
        .unwrap_or_default();
    Err(format!(
        "a template has no `{name}`{near} (there are `{}`)",
        SCOPE.join("`, `")
    ))
}
