//! What a subscription listens to: `entity.action`, `entity.*`, `*`, and the group words.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
        crate::id::parsed(deserializer, Self::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventId, Tenant};

    fn event(kind: &str, before: Option<&str>, after: Option<&str>) -> Event {
        Event {
            id: EventId::parse("e-1").unwrap(),
            tenant: Tenant::parse("salon-17").unwrap(),
            kind: EventType::parse(kind).unwrap(),
            time: Default::default(),
            subject: None,
            status: after.map(str::to_owned),
            previous_status: before.map(str::to_owned),
            version: None,
            expires_at: None,
            data: None,
            changes: None,
            details: None,
            depth: 0,
        }
    }

    #[test]
    fn each_kind_of_entry_matches_what_it_says() {
        let plain = |kind| event(kind, None, None);
        let moved = |kind| event(kind, Some("booked"), Some("confirmed"));
        let still = |kind| event(kind, Some("booked"), Some("booked"));
        for (selector, event, wanted) in [
            ("*", plain("appointment.created"), true),
            ("*", plain("custom.onAddItemCart"), true),
            ("appointment.*", plain("appointment.anything"), true),
            ("appointment.*", plain("appointments.created"), false),
            ("appointment.created", plain("appointment.created"), true),
            (
                "appointment.created",
                plain("appointment.created_twice"),
                false,
            ),
            ("appointment.created", plain("payment.created"), false),
            ("appointment.saved", plain("appointment.created"), true),
            ("appointment.saved", plain("appointment.updated"), true),
            ("appointment.saved", plain("appointment.saved"), true),
            ("appointment.saved", plain("appointment.deleted"), false),
            ("appointment.saved", plain("payment.created"), false),
            (
                "appointment.status_changed",
                plain("appointment.status_changed"),
                true,
            ),
            (
                "appointment.status_changed",
                moved("appointment.updated"),
                true,
            ),
            (
                "appointment.status_changed",
                moved("appointment.canceled"),
                true,
            ),
            (
                "appointment.status_changed",
                still("appointment.updated"),
                false,
            ),
            (
                "appointment.status_changed",
                plain("appointment.updated"),
                false,
            ),
            (
                "appointment.status_changed",
                event("appointment.updated", None, Some("x")),
                false,
            ),
            (
                "appointment.status_changed",
                event("appointment.updated", Some("x"), None),
                false,
            ),
            (
                "appointment.status_changed",
                moved("payment.updated"),
                false,
            ),
            ("custom.onAddItemCart", plain("custom.onAddItemCart"), true),
            ("custom.onadditemcart", plain("custom.onAddItemCart"), false),
        ] {
            let parsed = Selector::parse(selector).unwrap();
            assert_eq!(parsed.matches(&event), wanted, "{selector} {}", event.kind);
            assert_eq!(parsed.to_string(), selector, "shown as written");
        }
    }

    #[test]
    fn what_is_no_entry_is_refused_with_the_grammar() {
        for bad in [
            "",
            "appointment",
            "*.created",
            "*.*",
            "appointment.",
            ".created",
            "a.b.c",
            "A.*",
            "a.**",
            "#",
        ] {
            let error = Selector::parse(bad).unwrap_err();
            assert!(error.0.contains("`entity.*`"), "{bad}: {error}");
        }
    }
}
