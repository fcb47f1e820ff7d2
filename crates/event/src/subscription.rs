//! A subscription: who wants what, written how, sent where.
//!
//! [`Subscription`] is valid by construction: it is made by [`parse_new`] and [`parse_patch`] from
//! what a person wrote, or read back from our own store. It holds no secret; those are
//! [`crate::secret::SigningKeys`], kept beside it.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    id::{SubscriptionId, Tenant},
    retry::RetryPolicy,
    selector::Selector,
    target::TargetRules,
};

pub mod disable;
mod headers;
mod parse;
#[cfg(test)]
mod tests;
pub mod words;

pub use disable::DisableAfter;
pub use parse::{parse_new, parse_patch};

/// Who wants what, written how, sent where. Serializes as contract section 4 shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subscription {
    /// Made by us.
    pub id: SubscriptionId,
    /// Whose it is.
    pub tenant: Tenant,
    /// For people; may be empty; at most 200 characters.
    pub name: String,
    /// Where deliveries go: checked and normalised by [`crate::target`].
    pub target_url: String,
    /// How deliveries are written.
    pub dialect: String,
    /// What it listens to, in the words it was written in: canonical selectors or the dialect's
    /// own. Never empty, at most 100 entries.
    pub events: Vec<String>,
    /// What those words mean, for the router; empty where they are selectors themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<Selector>,
    /// What it does not want of that. Applied in the deliverer.
    pub filter: FilterSpec,
    /// How much of the record is sent.
    pub view: View,
    /// Sent along with every delivery. Values may be credentials: the API shows them as `***`.
    pub headers: BTreeMap<String, String>,
    /// Free words that dialects may use (`site_name`, …).
    pub attributes: BTreeMap<String, String>,
    /// Pointers to what is left out of what is sent, see [`crate::redact`].
    #[serde(default)]
    pub redact: Vec<String>,
    /// How it is sent.
    pub delivery: DeliverySpec,
    /// Whether deliveries are made or held.
    pub state: SubscriptionState,
    /// Why we disabled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_reason: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// The store's revision of its last change: grows over all subscriptions together.
    pub revision: u64,
    /// The dialect's own parameters (`type`, `status`, `loading_mode`, `actions`, …), as written
    /// beside `events` and shown back there.
    #[serde(flatten)]
    pub parameters: BTreeMap<String, Value>,
}

impl Subscription {
    /// What the router matches by. An entry that can no longer be read matches nothing; none can
    /// be stored.
    pub fn selectors(&self) -> Cow<'_, [Selector]> {
        meaning(&self.events, &self.matches)
    }

    /// The host that deliveries go to: with another, they go to somebody else.
    pub fn target_host(&self) -> Option<String> {
        host_of(&self.target_url)
    }
}

/// The host of a URL. A dot at its end names the same.
fn host_of(url: &str) -> Option<String> {
    let url = url::Url::parse(url).ok()?;
    let host = url.host_str()?;
    Some(host.strip_suffix('.').unwrap_or(host).to_owned())
}

/// What entries mean: what stands in `matches`, or else they are selectors themselves.
fn meaning<'m>(events: &[String], matches: &'m [Selector]) -> Cow<'m, [Selector]> {
    if matches.is_empty() {
        let parsed = events.iter().filter_map(|word| Selector::parse(word).ok());
        Cow::Owned(parsed.collect())
    } else {
        Cow::Borrowed(matches)
    }
}

/// Whether deliveries are made or held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionState {
    /// Deliveries are made.
    Active,
    /// A person paused it; what matches is held.
    Paused,
    /// We disabled it; what matches is held.
    Disabled,
}

/// How much of the record is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// Only what was saved: `changes`.
    Basic,
    /// The whole record: `data`.
    #[default]
    Full,
    /// The record with everything around it: `details`.
    Extended,
}

/// The clauses of a filter as a person writes them. Every clause given must hold; an empty list
/// means all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilterSpec {
    /// `created`, `updated`: which actions are wanted.
    pub actions: Vec<String>,
    /// Compared with the new status.
    pub statuses: Vec<String>,
    /// Any of these must be a key of `changes`.
    pub changed_fields: Vec<String>,
    /// A CEL expression over `event`, at most 1 KiB and 16 levels.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
}

/// How deliveries are sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeliverySpec {
    /// Total time of one attempt, from connecting to the last byte read; 1 s to 30 s.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// When to try again.
    pub retry: RetryPolicy,
    /// How many attempts may be under way at once per process; 1 to 256.
    pub max_in_flight: u32,
    /// `N/s`: how many attempts may begin each second per process; `None` is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// In which order retries may overtake.
    pub ordering: Ordering,
    /// After what run of failures the subscription is disabled.
    pub disable_after: DisableAfter,
}

impl Default for DeliverySpec {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(20),
            retry: RetryPolicy::default(),
            max_in_flight: 16,
            rate_limit: None,
            ordering: Ordering::None,
            disable_after: DisableAfter::default(),
        }
    }
}

/// Attempts per second, written `50/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RateLimit {
    /// 1 to 10 000.
    pub per_second: u32,
}

impl TryFrom<String> for RateLimit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("must be `N/s` with N from 1 to 10000, got {text:?}");
        let number = text.strip_suffix("/s").ok_or_else(wrong)?;
        let per_second = number.parse().map_err(|_| wrong())?;
        if (1..=10_000).contains(&per_second) {
            Ok(Self { per_second })
        } else {
            Err(wrong())
        }
    }
}

impl From<RateLimit> for String {
    fn from(limit: RateLimit) -> Self {
        format!("{}/s", limit.per_second)
    }
}

/// In which order retries may overtake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ordering {
    /// Any order.
    #[default]
    None,
    /// What a newer version of the same subject has overtaken is not sent any more.
    Latest,
}

/// What a new subscription is checked against.
#[derive(Debug, Clone)]
pub struct Rules<'a> {
    /// Where deliveries may go.
    pub target: &'a TargetRules,
    /// The dialects there are, and what is said in each.
    pub dialects: &'a dyn words::Vocabulary,
    /// The tenant the caller is bound to; `None` makes `tenant` a required field.
    pub tenant: Option<&'a Tenant>,
}

/// Which signatures a new subscription gets: `"signing": ["v1"]` (the default), `["v1a"]`, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SigningChoice {
    /// HMAC-SHA256.
    pub v1: bool,
    /// ed25519.
    pub v1a: bool,
}
