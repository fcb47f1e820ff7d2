//! The promises, a module each, against the product's own binary, real RabbitMQ, real PostgreSQL.

mod archive;
mod broker_contract;
mod checker;
mod cloud_events;
mod command;
mod dead_letters;
mod delivers;
mod dialects;
mod duplicates;
mod faults;
mod filters;
mod forgets;
mod intake;
mod life;
mod loaders;
mod log;
mod openapi;
mod ordering;
mod proxy;
mod recorder;
mod redacts;
mod remembers;
mod replay;
mod publishers;
mod retries;
mod signatures;
mod store_contract;
// Not every helper is used on every path.
mod rude_clients;
#[allow(dead_code)]
mod support;
mod tenants;
mod walls;
mod watching;
