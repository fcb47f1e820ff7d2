//! How parcels travel: the topology as data, and the two seams behind which RabbitMQ and the
//! embedded broker are alike.
//!
//! A stage sees [`Publish`] and [`Consume`] and nothing of lapin, of SQLite, of channels, tiers or
//! reconnection. Both brokers pass one contract suite (`tests/`): publish, consume, ack,
//! redeliver, delay, dead, limit, shutdown.
#![warn(missing_docs)]

pub mod clock;
pub mod ladder;
#[cfg(feature = "sim")]
pub mod sim;
pub mod topology;

mod embedded;
mod parcel;
mod patience;
mod rabbit;
mod seam;
mod settings;

pub use parcel::{
    BATCH_KEY, DUE_HEADER, Parcel, PublishError, Queue, Received, Route, Settle, Ticket,
};
pub use patience::{publish_until_taken, publish_while};
pub use seam::{Backend, Broker, Consume, Publish, Status};
pub use settings::{OpenError, Settings};
