//! The map: every exchange and queue, as one table of data, and its three printed forms.
//!
//! Whoever needs a broker name takes it from here. The table is declared at every connection
//! ([`declare`]), compared ([`check`]) and printed ([`text`], [`json()`], [`definitions`]); it is
//! the embedded broker's map too, which keeps the names, the limits and nothing else.

use std::fmt::Write as _;

use serde_json::{Value, json};

pub use crate::rabbit::declare::{Finding, State, check, declare};
use crate::{Queue, ladder};

/// How an exchange chooses its queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// By a pattern on the routing key.
    Topic,
    /// By the routing key itself.
    Direct,
    /// All bound queues.
    Fanout,
}

impl Kind {
    /// As AMQP spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Direct => "direct",
            Self::Fanout => "fanout",
        }
    }
}

/// An argument's value: AMQP knows more, the table needs these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// A text.
    Text(&'static str),
    /// A whole number.
    Number(i64),
}

/// One exchange; all are durable.
#[derive(Debug, Clone, Copy)]
pub struct Exchange {
    /// Its name.
    pub name: &'static str,
    /// How it chooses.
    pub kind: Kind,
    /// Where it sends what it cannot route: a return can be attached to the wrong confirm, so
    /// nothing unroutable may vanish.
    pub alternate: Option<&'static str>,
}

/// One queue and its binding; all are durable quorum queues.
#[derive(Debug, Clone)]
pub struct BoundQueue {
    /// Its name.
    pub name: String,
    /// The exchange it is bound to.
    pub exchange: &'static str,
    /// The binding's key.
    pub key: &'static str,
    /// Its arguments.
    pub arguments: Vec<(&'static str, Argument)>,
}

/// The exchange services publish to.
pub const EVENTS: &str = "postrider.events";
/// The exchange and the queue of bundles that are due.
pub const DELIVER: &str = "postrider.deliver";
/// The exchange of the retry ladder; its queues are named after their tier.
pub const RETRY: &str = "postrider.retry";
/// The exchange and the queue of dead deliveries.
pub const DEAD: &str = "postrider.dead";
/// The exchange and the queue of what can never be processed.
pub const QUARANTINE: &str = "postrider.quarantine";
/// The exchange and the queue of routed events, for the recorder.
pub const ARCHIVE: &str = "postrider.archive";
/// The exchange and the queue of what became of deliveries, for the recorder.
pub const LOG: &str = "postrider.log";
/// Everybody's alternate exchange.
pub const UNROUTABLE: &str = "postrider.unroutable";
/// The router's queue.
pub const INBOX: &str = "postrider.inbox";

/// How many messages a queue takes before it refuses more. Two million of 1 KiB are 2 GiB: a
/// backlog of minutes at full speed, of days at the usual one, and no full disk.
pub const QUEUE_MAX: u64 = 2_000_000;

/// How often a message may come back before it is quarantined: whatever comes back so often
/// takes its consumer down each time.
pub const RETURNS_MAX: u32 = 64;

/// Dead letters and quarantine are the end of the line: there is nowhere better to go, so they
/// come back for as long as it takes. RabbitMQ 4 needs a number all the same, or takes 20.
const RETURNS_MAX_AT_THE_END: i64 = 1_000_000;

/// All exchanges. The alternate comes first: others name it.
pub const EXCHANGES: [Exchange; 8] = [
    Exchange {
        name: UNROUTABLE,
        kind: Kind::Fanout,
        alternate: None,
    },
    Exchange {
        name: QUARANTINE,
        kind: Kind::Fanout,
        alternate: Some(UNROUTABLE),
    },
    Exchange {
        name: DEAD,
        kind: Kind::Fanout,
        alternate: Some(UNROUTABLE),
    },
    Exchange {
        name: ARCHIVE,
        kind: Kind::Fanout,
        alternate: Some(UNROUTABLE),
    },
    Exchange {
        name: LOG,
        kind: Kind::Fanout,
        alternate: Some(UNROUTABLE),
    },
    Exchange {
        name: DELIVER,
        kind: Kind::Direct,
        alternate: Some(UNROUTABLE),
    },
    Exchange {
        name: RETRY,
        kind: Kind::Direct,
        alternate: Some(UNROUTABLE),
    },
    Exchange {
        name: EVENTS,
        kind: Kind::Topic,
        alternate: Some(UNROUTABLE),
    },
];

/// Bindings beside each queue's own: exchange, queue, key.
pub const MORE_BINDINGS: [(&str, &str, &str); 1] = [(UNROUTABLE, QUARANTINE, "")];

/// All queues. Quarantine comes first: the others end there.
pub fn queues() -> Vec<BoundQueue> {
    let plain = |name: &str, exchange, key, returns_max| BoundQueue {
        name: name.to_owned(),
        exchange,
        key,
        arguments: arguments(returns_max, QUARANTINE),
    };
    let mut all = vec![
        plain(QUARANTINE, QUARANTINE, "", RETURNS_MAX_AT_THE_END),
        plain(DEAD, DEAD, "", RETURNS_MAX_AT_THE_END),
        plain(ARCHIVE, ARCHIVE, "", RETURNS_MAX_AT_THE_END),
        plain(LOG, LOG, "", RETURNS_MAX_AT_THE_END),
        plain(DELIVER, DELIVER, DELIVER, i64::from(RETURNS_MAX)),
        plain(INBOX, EVENTS, "#", i64::from(RETURNS_MAX)),
    ];
    all.extend(ladder::TIERS.iter().map(|tier| {
        let mut arguments = arguments(i64::from(RETURNS_MAX), DELIVER);
        let wait_ms = i64::try_from(tier.wait.as_millis()).unwrap_or(i64::MAX);
        arguments.push(("x-message-ttl", Argument::Number(wait_ms)));
        arguments.push(("x-dead-letter-routing-key", Argument::Text(DELIVER)));
        BoundQueue {
            name: tier_queue(tier),
            exchange: RETRY,
            key: tier.name,
            arguments,
        }
    }));
    all
}

/// The arguments all queues have. Dead-lettering is at-least-once everywhere, which needs
/// `reject-publish`: the default, at-most-once, lost a third of the messages when a broker died.
fn arguments(returns_max: i64, dead_letter: &'static str) -> Vec<(&'static str, Argument)> {
    vec![
        ("x-queue-type", Argument::Text("quorum")),
        (
            "x-max-length",
            Argument::Number(i64::try_from(QUEUE_MAX).unwrap_or(i64::MAX)),
        ),
        ("x-overflow", Argument::Text("reject-publish")),
        ("x-delivery-limit", Argument::Number(returns_max)),
        ("x-dead-letter-exchange", Argument::Text(dead_letter)),
        ("x-dead-letter-strategy", Argument::Text("at-least-once")),
    ]
}

/// A tier's queue.
pub fn tier_queue(tier: &ladder::Tier) -> String {
    format!("{RETRY}.{}", tier.name)
}

/// The queue a stage's address means.
pub fn queue_name(queue: Queue) -> &'static str {
    match queue {
        Queue::Inbox => INBOX,
        Queue::Deliver => DELIVER,
        Queue::Dead => DEAD,
        Queue::Quarantine => QUARANTINE,
        Queue::Archive => ARCHIVE,
        Queue::Log => LOG,
    }
}

/// The map for people.
pub fn text() -> String {
    let mut out = String::from("exchanges\n");
    for Exchange {
        name,
        kind,
        alternate,
    } in EXCHANGES
    {
        let alternate = alternate
            .map(|to| format!("  unroutable -> {to}"))
            .unwrap_or_default();
        // Writing to a String cannot fail.
        _ = writeln!(out, "  {name:<24}{:<8}durable{alternate}", kind.name());
    }
    out.push_str("queues\n");
    for BoundQueue {
        name,
        exchange,
        key,
        arguments,
    } in queues()
    {
        let key = if key.is_empty() {
            String::new()
        } else {
            format!(" by {key}")
        };
        _ = writeln!(out, "  {name:<24}from {exchange}{key}");
        for (argument, value) in arguments {
            _ = match value {
                Argument::Text(value) => writeln!(out, "    {argument} = {value}"),
                Argument::Number(value) => writeln!(out, "    {argument} = {value}"),
            };
        }
    }
    for (exchange, queue, _) in MORE_BINDINGS {
        _ = writeln!(out, "  {queue:<24}from {exchange}");
    }
    out
}

/// The map for programs.
pub fn json() -> Value {
    json!({
        "exchanges": EXCHANGES.iter().map(|exchange| exchange_json(exchange, None)).collect::<Vec<_>>(),
        "queues": queues().iter().map(|queue| queue_json(queue, None)).collect::<Vec<_>>(),
        "bindings": bindings_json(None),
    })
}

/// The map as a RabbitMQ definitions file for one vhost (`rabbitmqctl import_definitions`).
pub fn definitions(vhost: &str) -> Value {
    let vhost = Some(vhost);
    json!({
        "vhosts": [{ "name": vhost }],
        "exchanges": EXCHANGES.iter().map(|exchange| exchange_json(exchange, vhost)).collect::<Vec<_>>(),
        "queues": queues().iter().map(|queue| queue_json(queue, vhost)).collect::<Vec<_>>(),
        "bindings": bindings_json(vhost),
    })
}

fn within(vhost: Option<&str>, mut value: Value) -> Value {
    if let Some(vhost) = vhost {
        value["vhost"] = vhost.into();
    }
    value
}

fn exchange_json(exchange: &Exchange, vhost: Option<&str>) -> Value {
    let arguments = match exchange.alternate {
        Some(alternate) => json!({ "alternate-exchange": alternate }),
        None => json!({}),
    };
    within(
        vhost,
        json!({
            "name": exchange.name, "type": exchange.kind.name(), "durable": true,
            "auto_delete": false, "internal": false, "arguments": arguments,
        }),
    )
}

fn queue_json(queue: &BoundQueue, vhost: Option<&str>) -> Value {
    let arguments: serde_json::Map<_, _> = queue
        .arguments
        .iter()
        .map(|(name, value)| {
            let value = match value {
                Argument::Text(text) => json!(text),
                Argument::Number(number) => json!(number),
            };
            ((*name).to_owned(), value)
        })
        .collect();
    within(
        vhost,
        json!({ "name": queue.name, "durable": true, "auto_delete": false, "arguments": arguments }),
    )
}

fn bindings_json(vhost: Option<&str>) -> Vec<Value> {
    let binding = |exchange: &str, queue: &str, key: &str| {
        within(
            vhost,
            json!({
                "source": exchange, "destination": queue, "destination_type": "queue",
                "routing_key": key, "arguments": {},
            }),
        )
    };
    let own = queues()
        .into_iter()
        .map(|queue| binding(queue.exchange, &queue.name, queue.key));
    let more = MORE_BINDINGS
        .iter()
        .map(|(exchange, queue, key)| binding(exchange, queue, key));
    own.chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(queue: &BoundQueue, argument: &str) -> Option<Argument> {
        queue
            .arguments
            .iter()
            .find(|(name, _)| *name == argument)
            .map(|(_, value)| *value)
    }

    #[test]
    fn no_queue_can_lose_what_it_holds() {
        for queue in queues() {
            for (argument, wanted) in [
                ("x-queue-type", Argument::Text("quorum")),
                ("x-overflow", Argument::Text("reject-publish")),
                ("x-dead-letter-strategy", Argument::Text("at-least-once")),
            ] {
                assert_eq!(value(&queue, argument), Some(wanted), "{}", queue.name);
            }
            assert!(
                value(&queue, "x-delivery-limit").is_some(),
                "{}",
                queue.name
            );
            assert!(value(&queue, "x-max-length").is_some(), "{}", queue.name);
            let Some(Argument::Text(target)) = value(&queue, "x-dead-letter-exchange") else {
                panic!("{} has no dead-letter exchange", queue.name);
            };
            assert!(
                EXCHANGES.iter().any(|exchange| exchange.name == target),
                "{target}"
            );
        }
    }

    #[test]
    fn what_an_exchange_cannot_route_ends_in_quarantine() {
        for exchange in EXCHANGES
            .iter()
            .filter(|exchange| exchange.name != UNROUTABLE)
        {
            assert_eq!(exchange.alternate, Some(UNROUTABLE), "{}", exchange.name);
        }
        assert!(MORE_BINDINGS.contains(&(UNROUTABLE, QUARANTINE, "")));
    }

    #[test]
    fn every_tier_lands_in_the_deliver_queue() {
        let tiers: Vec<_> = queues()
            .into_iter()
            .filter(|queue| queue.exchange == RETRY)
            .collect();
        assert_eq!(tiers.len(), ladder::TIERS.len());
        for queue in tiers {
            assert_eq!(
                value(&queue, "x-dead-letter-exchange"),
                Some(Argument::Text(DELIVER))
            );
            assert_eq!(
                value(&queue, "x-dead-letter-routing-key"),
                Some(Argument::Text(DELIVER))
            );
            assert!(value(&queue, "x-message-ttl").is_some(), "{}", queue.name);
        }
        assert!(
            queues()
                .iter()
                .any(|queue| queue.exchange == DELIVER && queue.key == DELIVER)
        );
    }

    #[test]
    fn the_three_forms_name_every_queue_and_exchange() {
        let (text, json, file) = (text(), json().to_string(), definitions("/").to_string());
        let names = queues().into_iter().map(|queue| queue.name);
        for name in names.chain(EXCHANGES.iter().map(|exchange| exchange.name.to_owned())) {
            for form in [&text, &json, &file] {
                assert!(form.contains(&name), "{name} is missing");
            }
        }
    }
}
