//! The promises, a module each, against the product's own binary, real RabbitMQ, real PostgreSQL.

mod archive;
mod broker_contract;
mod chaos;
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
mod fuzzed;
mod hostile;
mod hostile_input;
mod intake;
mod life;
mod listen;
mod loaders;
mod log;
mod openapi;
mod ordering;
mod proxy;
mod publishers;
mod recorder;
mod redacts;
mod remembers;
mod replay;
mod retries;
mod rude_clients;
mod secrets;
mod signatures;
mod store_contract;
// Not every helper is used on every path.
#[allow(dead_code)]
mod support;
mod tail;
mod tenants;
mod walls;
mod watching;
