//! How a process lives: settings, telemetry, ops HTTP, shutdown. Knows no event and no broker.
//!
//! The only crate that names `config`. A stage gets from here the shape of its HTTP answers
//! ([`http::Problem`]), its listener ([`http::serve`]) and the token that tells it to stop
//! ([`shutdown`]); the binary gets the settings, the log and the ops port.
#![warn(missing_docs)]

pub mod http;
pub mod ops;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
