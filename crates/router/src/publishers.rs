//! Whose events an AMQP user may publish: `[publishers]` of the settings.
//!
//! RabbitMQ holds a message's `user-id` against the user of the connection it came by, and closes
//! the channel of a message that lies (406). So the property, where there is one, is the truth.

use std::collections::BTreeMap;

use broker::Received;
use event::{Event, reason::QuarantineReason};
use serde::{Deserialize, Serialize};

use crate::admit::Unfit;

/// Each user, and the tenants that it may publish for: a tenant's name, or the beginning of many
/// followed by `*`. Without any user nobody is held to anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Publishers(BTreeMap<String, Vec<String>>);

/// Why a message is not its publisher's to send; the words of a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stranger {
    NoUser,
    UnknownUser,
    Tenant,
}

impl Stranger {
    pub(crate) const ALL: [Self; 3] = [Self::NoUser, Self::UnknownUser, Self::Tenant];

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::NoUser => "no_user",
            Self::UnknownUser => "unknown_user",
            Self::Tenant => "tenant",
        }
    }

    /// As a person finds it in quarantine. It does not say whether there is such a tenant.
    pub(crate) fn unfit(self) -> Unfit {
        let detail = match self {
            Self::NoUser => {
                "tenant_mismatch: the message has no user-id, and [publishers] says who may \
                 publish for whom; set the property to the connection's user"
            }
            Self::UnknownUser => {
                "tenant_mismatch: [publishers] does not know the message's user-id"
            }
            Self::Tenant => "tenant_mismatch: the message's user-id may not publish for its tenant",
        };
        Unfit {
            reason: QuarantineReason::InvalidEvent,
            detail: detail.to_owned(),
        }
    }
}

impl Publishers {
    /// Whether anybody is held to anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// With our own user, as which the intake publishes for all whose tokens it has judged.
    #[must_use]
    pub fn with_own(mut self, user: &str) -> Self {
        if !self.is_empty() {
            self.0.insert(user.to_owned(), vec!["*".to_owned()]);
        }
        self
    }

    /// What cannot be meant, with the key's name.
    pub fn faults(&self) -> Vec<(String, String)> {
        let fits = |pattern: &str| {
            let name = pattern.strip_suffix('*').unwrap_or(pattern);
            name.chars().count() <= 128
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "_-:".contains(c))
                && !pattern.is_empty()
        };
        let wrong = self.0.iter().flat_map(|(user, patterns)| {
            let wrong = patterns.iter().filter(|pattern| !fits(pattern));
            wrong.map(move |pattern| (user, pattern))
        });
        wrong
            .map(|(user, pattern)| {
                let message = format!(
                    "{pattern:?} is no tenant: use a tenant's name, or its beginning followed by `*`"
                );
                (format!("publishers.{user}"), message)
            })
            .collect()
    }

    /// Holds who published a message against what it says.
    pub(crate) fn judge(&self, message: &Received, events: &[Event]) -> Result<(), Stranger> {
        self.judge_user(message.user_id.as_deref(), events)
    }

    fn judge_user(&self, user: Option<&str>, events: &[Event]) -> Result<(), Stranger> {
        if self.is_empty() {
            return Ok(());
        }
        let user = user.ok_or(Stranger::NoUser)?;
        let patterns = self.0.get(user).ok_or(Stranger::UnknownUser)?;
        let own = |event: &Event| {
            let tenant = event.tenant.as_str();
            patterns
                .iter()
                .any(|pattern| match pattern.strip_suffix('*') {
                    Some(beginning) => tenant.starts_with(beginning),
                    None => tenant == pattern,
                })
        };
        if events.iter().all(own) {
            Ok(())
        } else {
            Err(Stranger::Tenant)
        }
    }
}

#[cfg(test)]
mod tests {
    use event::admission::{Envelope, admit};
    use jiff::Timestamp;

    use super::*;

    fn publishers() -> Publishers {
        let toml = r#"{"booking": ["salon-*", "spa"], "billing": []}"#;
        let publishers: Publishers = serde_json::from_str(toml).unwrap();
        publishers.with_own("postrider")
    }

    fn event(tenant: &str) -> Event {
        let body = format!(r#"{{"id":"1","tenant":"{tenant}","type":"a.b","data":1}}"#);
        let envelope = Envelope {
            now: Timestamp::now(),
            message_id: None,
            tenant: None,
            fresh_id: None,
        };
        admit(body.as_bytes(), &envelope).unwrap()
    }

    #[test]
    fn t9_a_user_publishes_for_its_tenants_alone() {
        let publishers = publishers();
        for (user, tenants, want) in [
            (Some("booking"), &["salon-1", "salon-2", "spa"][..], Ok(())),
            (
                Some("booking"),
                &["salon-1", "spa-2"],
                Err(Stranger::Tenant),
            ),
            (Some("booking"), &["xsalon-1"], Err(Stranger::Tenant)),
            (Some("billing"), &["salon-1"], Err(Stranger::Tenant)),
            (Some("Booking"), &["salon-1"], Err(Stranger::UnknownUser)),
            (Some(""), &["salon-1"], Err(Stranger::UnknownUser)),
            (None, &["salon-1"], Err(Stranger::NoUser)),
            (Some("postrider"), &["anything"], Ok(())),
        ] {
            let events: Vec<_> = tenants.iter().map(|tenant| event(tenant)).collect();
            assert_eq!(
                publishers.judge_user(user, &events),
                want,
                "{user:?} {tenants:?}"
            );
        }
        let nobody = Publishers::default().with_own("postrider");
        assert_eq!(nobody.judge_user(None, &[event("x")]), Ok(()));
    }

    #[test]
    fn a_pattern_that_is_no_tenant_is_named() {
        let json = r#"{"a": ["salon-*", "*", "x y", "*-salon", ""], "b": ["ok"]}"#;
        let publishers: Publishers = serde_json::from_str(json).unwrap();
        let faults = publishers.faults();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults.iter().all(|(key, _)| key == "publishers.a"));
    }
}
