//! What a subscription listens to: `entity.action`, `entity.*`, `*`, and the group words.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    event::{Event, EventType, TYPE_GRAMMAR},
    id::BadId,
};

/// One entry of a subscription's `events`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// `*`: every event of the tenant.
    All,
    /// `entity.*`: every action of the entity.
    Entity(String),
    /// `entity.saved`: created or updated.
    Saved(String),
    /// `entity.status_changed`: that action, or any whose status differs from the previous one.
    StatusChanged(String),
    /// `entity.action`, exactly.
    Exact(EventType),
}

impl Selector {
    /// Parses one entry.
    pub fn parse(text: &str) -> Result<Self, BadId> {
        if text == "*" {
            return Ok(Self::All);
        }
        let wrong = || {
            BadId(format!(
                "must be `*`, `entity.*`, `entity.saved`, or a type: {TYPE_GRAMMAR}"
            ))
        };
        let (entity, action) = text.split_once('.').ok_or_else(wrong)?;
        if action == "*" {
            // The entity has to be a word that a type could have.
            EventType::parse(&format!("{entity}.x")).map_err(|_| wrong())?;
            return Ok(Self::Entity(entity.into()));
        }
        let kind = EventType::parse(text).map_err(|_| wrong())?;
        Ok(match action {
            "saved" => Self::Saved(entity.into()),
            "status_changed" => Self::StatusChanged(entity.into()),
            _ => Self::Exact(kind),
        })
    }

    /// Whether an event is what this entry listens to. The router's match table answers the same
    /// question by look-up; this is the definition it is tested against.
    pub fn matches(&self, event: &Event) -> bool {
        let kind = &event.kind;
        match self {
            Self::All => true,
            Self::Entity(entity) => kind.entity() == entity,
            Self::Saved(entity) => {
                kind.entity() == entity && matches!(kind.action(), "created" | "updated" | "saved")
            }
            Self::StatusChanged(entity) => kind.entity() == entity && event.status_changed(),
            Self::Exact(wanted) => wanted == kind,
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Entity(entity) => write!(f, "{entity}.*"),
            Self::Saved(entity) => write!(f, "{entity}.saved"),
            Self::StatusChanged(entity) => write!(f, "{entity}.status_changed"),
            Self::Exact(kind) => kind.fmt(f),
        }
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}
