//! What the tests stand on: real servers of their own, on loopback, in folders of their own, and
//! the product's own binary as a process. Nothing here knows what a test is about.
//!
//! A server that is not installed fails the test with the command that installs it; nothing skips.

pub(crate) mod authority;
pub(crate) mod checker;
pub(crate) mod clients;
pub(crate) mod cluster;
pub(crate) mod dns;
pub(crate) mod folder;
pub(crate) mod http;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod rabbit;
pub(crate) mod raw_amqp;
pub(crate) mod receiver;
pub(crate) mod run;
pub(crate) mod trap;
pub(crate) mod world;
