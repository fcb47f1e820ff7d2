//! What travels: events, subscriptions, filters, retry policies, deliveries and the closed sets of
//! words that describe their ends.
//!
//! This crate is pure. It opens no file, no socket and no clock; whoever needs the time passes it
//! in. Every other crate of the workspace may import it, and it imports none of them.
#![warn(missing_docs)]

pub mod access;
pub mod admission;
pub mod delivery;
pub mod event;
pub mod fault;
pub mod filter;
pub mod id;
pub mod log;
pub mod reason;
pub mod redact;
pub mod retry;
pub mod retry_after;
mod scan;
pub mod secret;
pub mod selector;
pub mod subscription;
pub mod target;

pub use event::{Event, EventType, Subject};
pub use fault::{Fault, Refusal};
pub use id::{DeadLetterId, DeliveryId, EventId, JobId, SubscriptionId, Tenant, TokenId};
pub use subscription::Subscription;
