//! Declares the topology, compares it with what is there, and mends a queue that does not answer.
//!
//! Nothing is ever deleted because it differs: a person must decide what becomes of the messages
//! in it. The one thing `repair` deletes is a quorum queue that cannot be read or written at all.

use std::{fmt, time::Duration};

use futures_util::future::try_join_all;
use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind,
    options::{
        BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};

use crate::{
    rabbit::{
        ANSWER_MAX,
        link::{self, ConnectError},
        target::Target,
    },
    settings::{Address, OpenError, Settings},
    topology::{self, Argument, BoundQueue, Exchange, Kind},
};

/// How long a healthy queue may take to say that it is empty.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// How often a question is asked whose answer the client lost, and the pause between.
const ASKED_MAX: usize = 5;
const ASKED_PAUSE: Duration = Duration::from_millis(500);
/// AMQP's code for "there is no such queue or exchange".
pub(super) const NOT_FOUND: u16 = 404;
/// AMQP's code for "it is there, and it is different".
const PRECONDITION_FAILED: u16 = 406;

/// What was found about one exchange or queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `exchange` or `queue`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: State,
}

/// How an exchange or a queue of ours is on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// As in the table.
    Fine,
    /// Not there.
    Missing,
    /// There, with another value for one argument.
    Differs {
        /// The argument.
        argument: String,
        /// The broker's own words, with both values.
        detail: String,
    },
    /// There, but it answers nothing: its node was killed within seconds of its first declaration.
    Unusable,
    /// It was unusable, and is declared anew.
    Repaired,
}

/// What an unusable queue is, for people.
pub(super) const UNUSABLE: &str = "does not answer: its node was killed within seconds of its first \
    declaration, before the queue's name was on disk; it holds nothing that can be read; \
    `postrider topology declare --repair` deletes and declares it anew";

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, state } = self;
        match state {
            State::Fine => write!(f, "{kind} {name}: fine"),
            State::Missing => write!(f, "{kind} {name}: missing"),
            State::Differs { argument, detail } => {
                write!(f, "{kind} {name}: {argument} differs ({detail})")
            }
            State::Unusable => write!(f, "{kind} {name}: {UNUSABLE}"),
            State::Repaired => write!(f, "{kind} {name}: declared anew"),
        }
    }
}

/// Why the topology could not be declared.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeclareError {
    #[error(
        "{0}; nothing was changed: empty and delete it, or give it the declared arguments, and \
         it will be declared"
    )]
    Differs(Finding),
    #[error("declaring {name}: no answer within {ANSWER_MAX:?}")]
    Timeout { name: String },
    #[error("declaring {name}: {source}")]
    Amqp { name: String, source: lapin::Error },
}

/// Declares everything: queues first, then each exchange together with its bindings, so that an
/// exchange that somebody deleted does not come back without them and send to quarantine.
pub(super) async fn all(connection: &Connection) -> Result<(), DeclareError> {
    let open = connection.create_channel();
    let mut channel = answered("a channel", open).await?;
    let queues = topology::queues();
    for queue in &queues {
        judged("queue", &queue.name, declare_queue(&channel, queue)).await?;
    }
    for exchange in topology::EXCHANGES {
        let own = queues
            .iter()
            .map(|queue| (queue.exchange, queue.name.as_str(), queue.key));
        let bindings = own
            .chain(topology::MORE_BINDINGS)
            .filter(|(from, ..)| *from == exchange.name)
            .map(|(from, queue, key)| bind(&channel, queue, from, key));
        let bindings = answered(exchange.name, try_join_all(bindings));
        // Sent in this order at once, and judged in it: a binding fails when its exchange does.
        let (declared, bound) = tokio::join!(
            judged(
                "exchange",
                exchange.name,
                declare_exchange(&channel, &exchange)
            ),
            bindings
        );
        match declared {
            Err(DeclareError::Differs(finding)) if is_plain_events(&finding) => {
                tracing::warn!(
                    exchange = exchange.name,
                    "declared by somebody else without our alternate exchange: it is used as it \
                     is, but a message that finds no queue there is dropped, not quarantined; \
                     delete it once and it is declared in full"
                );
                channel = answered("a channel", connection.create_channel()).await?;
                let inbox = bind(&channel, topology::INBOX, topology::EVENTS, "#");
                answered(exchange.name, inbox).await?;
            }
            declared => {
                declared?;
                bound?;
            }
        }
    }
    // All is declared; a channel that cannot be closed is closed with its connection.
    _ = tokio::time::timeout(ANSWER_MAX, channel.close(200, "declared".into())).await;
    Ok(())
}

/// Services may declare the exchange they publish to before we do, and cannot be expected to know
/// our alternate exchange. Refusing to start over it would hold up every event.
fn is_plain_events(finding: &Finding) -> bool {
    let State::Differs { argument, .. } = &finding.state else {
        return false;
    };
    finding.name == topology::EVENTS && argument == "alternate-exchange"
}

/// Compares the server with the table and changes nothing. Bindings cannot be read over AMQP:
/// they are left to [`declare`], which is idempotent.
pub async fn check(settings: &Settings) -> Result<Vec<Finding>, OpenError> {
    let connection = connect(settings).await?;
    let findings = find(&connection).await;
    close(&connection).await;
    findings.map_err(other)
}

/// Declares what is missing and says how everything is then. What differs is left alone. With
/// `repair`, a queue that does not answer is deleted and declared anew.
pub async fn declare(settings: &Settings, repair: bool) -> Result<Vec<Finding>, OpenError> {
    let connection = connect(settings).await?;
    let declared = declare_over(&connection, repair).await;
    close(&connection).await;
    declared.map_err(other)
}

async fn declare_over(connection: &Connection, repair: bool) -> Result<Vec<Finding>, DeclareError> {
    let mut findings = find(connection).await?;
    for finding in &mut findings {
        if finding.state == State::Unusable && repair {
            insisted(|| delete_queue(connection, &finding.name)).await?;
            finding.state = State::Repaired;
        }
    }
    if findings
        .iter()
        .any(|finding| matches!(finding.state, State::Differs { .. }))
    {
        return Ok(findings);
    }
    insisted(|| all(connection)).await?;
    for finding in &mut findings {
        if finding.state == State::Missing {
            finding.state = State::Fine;
        }
    }
    Ok(findings)
}

async fn find(connection: &Connection) -> Result<Vec<Finding>, DeclareError> {
    let mut findings = Vec::new();
    for exchange in topology::EXCHANGES {
        let name = exchange.name;
        let channel = answered("a channel", connection.create_channel()).await?;
        let passive = ExchangeDeclareOptions {
            passive: true,
            ..durable()
        };
        let there = channel.exchange_declare(
            name.into(),
            kind(exchange.kind),
            passive,
            FieldTable::default(),
        );
        let state = if is_missing(answered(name, there).await)? {
            State::Missing
        } else {
            compared("exchange", name, declare_exchange(&channel, &exchange)).await?
        };
        findings.push(Finding {
            kind: "exchange",
            name: name.into(),
            state,
        });
    }
    for queue in topology::queues() {
        let name = &queue.name;
        let state = insisted(|| find_queue(connection, &queue)).await?;
        findings.push(Finding {
            kind: "queue",
            name: name.clone(),
            state,
        });
    }
    Ok(findings)
}

/// How one queue is. Changes nothing but what is missing in the table's own words.
async fn find_queue(connection: &Connection, queue: &BoundQueue) -> Result<State, DeclareError> {
    let name = &queue.name;
    let channel = answered("a channel", connection.create_channel()).await?;
    match answered(name, passive_queue(&channel, name)).await {
        Err(error) => {
            is_missing(Err::<(), _>(error))?;
            Ok(State::Missing)
        }
        Ok(depth) => match compared("queue", name, declare_queue(&channel, queue)).await? {
            State::Fine if depth == 0 && !answers(connection, name).await? => Ok(State::Unusable),
            state => Ok(state),
        },
    }
}

async fn delete_queue(connection: &Connection, name: &str) -> Result<(), DeclareError> {
    let channel = answered("a channel", connection.create_channel()).await?;
    // Not `if_empty`: such a queue cannot say whether it is.
    let delete = channel.queue_delete(name.into(), QueueDeleteOptions::default());
    answered(name, delete).await.map(drop)
}

/// Asks again, on a channel of its own, while the answer was lost.
async fn insisted<T, F>(mut ask: impl FnMut() -> F) -> Result<T, DeclareError>
where
    F: Future<Output = Result<T, DeclareError>>,
{
    for _ in 1..ASKED_MAX {
        match ask().await {
            Err(error) if is_lost_answer(&error) => tokio::time::sleep(ASKED_PAUSE).await,
            answer => return answer,
        }
    }
    ask().await
}

/// The server closed the channel with its reason, and the client lost the reason: it says only
/// that the channel is closed. Queues that come back after a kill are where it is seen. Asked
/// again, the server says it again.
fn is_lost_answer(error: &DeclareError) -> bool {
    let DeclareError::Amqp { source, .. } = error else {
        return false;
    };
    matches!(source.kind(), lapin::ErrorKind::InvalidChannelState(..))
}

async fn passive_queue(channel: &Channel, name: &str) -> lapin::Result<u32> {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::durable()
    };
    let queue = channel
        .queue_declare(name.into(), options, FieldTable::default())
        .await?;
    Ok(queue.message_count())
}

/// Whether an empty queue says so. Asked of empty queues only, so that no message is taken out
/// and put back, which counts as a return.
async fn answers(connection: &Connection, name: &str) -> Result<bool, DeclareError> {
    let channel = answered("a channel", connection.create_channel()).await?;
    let get = channel.basic_get(name.into(), BasicGetOptions::default());
    match tokio::time::timeout(PROBE_MAX, get).await {
        // Closing the channel gives back what a publisher put there meanwhile.
        Ok(Ok(_)) => {
            _ = tokio::time::timeout(PROBE_MAX, channel.close(200, "probed".into())).await;
            Ok(true)
        }
        Ok(Err(error)) => {
            tracing::debug!(queue = name, %error, "probe failed");
            Ok(false)
        }
        Err(_) => Ok(false),
    }
}

async fn declare_exchange(channel: &Channel, exchange: &Exchange) -> lapin::Result<()> {
    let mut arguments = FieldTable::default();
    if let Some(alternate) = exchange.alternate {
        arguments.insert(
            "alternate-exchange".into(),
            AMQPValue::LongString(alternate.into()),
        );
    }
    channel
        .exchange_declare(
            exchange.name.into(),
            kind(exchange.kind),
            durable(),
            arguments,
        )
        .await
}

async fn declare_queue(channel: &Channel, queue: &BoundQueue) -> lapin::Result<()> {
    let mut arguments = FieldTable::default();
    for (name, value) in &queue.arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString((*text).into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
        };
        arguments.insert((*name).into(), value);
    }
    let options = QueueDeclareOptions::durable();
    channel
        .queue_declare(queue.name.as_str().into(), options, arguments)
        .await?;
    Ok(())
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> lapin::Result<()> {
    let options = QueueBindOptions::default();
    channel
        .queue_bind(
            queue.into(),
            exchange.into(),
            key.into(),
            options,
            FieldTable::default(),
        )
        .await
}

fn durable() -> ExchangeDeclareOptions {
    ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    }
}

fn kind(kind: Kind) -> ExchangeKind {
    match kind {
        Kind::Topic => ExchangeKind::Topic,
        Kind::Direct => ExchangeKind::Direct,
        Kind::Fanout => ExchangeKind::Fanout,
    }
}

/// A request that must be answered in time.
async fn answered<T>(
    name: &str,
    request: impl Future<Output = lapin::Result<T>>,
) -> Result<T, DeclareError> {
    match tokio::time::timeout(ANSWER_MAX, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(DeclareError::Amqp {
            name: name.into(),
            source,
        }),
        Err(_) => Err(DeclareError::Timeout { name: name.into() }),
    }
}

/// A declaration: fine, or different in one argument.
async fn compared(
    kind: &'static str,
    name: &str,
    request: impl Future<Output = lapin::Result<()>>,
) -> Result<State, DeclareError> {
    match answered(name, request).await {
        Ok(()) => Ok(State::Fine),
        Err(DeclareError::Amqp { source, .. }) if code(&source) == Some(PRECONDITION_FAILED) => {
            let detail = source.to_string();
            tracing::debug!(kind, name, %detail, "declared differently");
            Ok(State::Differs {
                argument: differing(&detail),
                detail: words(&detail),
            })
        }
        Err(error) => Err(error),
    }
}

async fn judged(
    kind: &'static str,
    name: &str,
    request: impl Future<Output = lapin::Result<()>>,
) -> Result<(), DeclareError> {
    match compared(kind, name, request).await? {
        State::Fine => Ok(()),
        state => Err(DeclareError::Differs(Finding {
            kind,
            name: name.into(),
            state,
        })),
    }
}

/// True for "not found", false for an answer; any other failure is one.
fn is_missing<T>(answer: Result<T, DeclareError>) -> Result<bool, DeclareError> {
    match answer {
        Ok(_) => Ok(false),
        Err(DeclareError::Amqp { source, .. }) if code(&source) == Some(NOT_FOUND) => Ok(true),
        Err(error) => Err(error),
    }
}

/// The AMQP code of an error the broker sent.
pub(super) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// The argument's name in `… inequivalent arg 'x-max-length' for queue …`.
fn differing(detail: &str) -> String {
    let quoted = detail
        .split_once("inequivalent arg '")
        .and_then(|(_, rest)| rest.split_once('\''));
    quoted.map_or_else(|| "an argument".into(), |(argument, _)| argument.into())
}

/// The part of the broker's words that names both values.
fn words(detail: &str) -> String {
    detail
        .split_once("received ")
        .map_or_else(|| detail.into(), |(_, rest)| format!("received {rest}"))
}

async fn connect(settings: &Settings) -> Result<Connection, OpenError> {
    if settings.address()? != Address::Rabbit {
        let why = "the embedded broker has no topology to declare or check: it is made when opened";
        return Err(OpenError::Other(why.into()));
    }
    let target = Target::of(settings)?;
    link::connect(&target, "postrider topology")
        .await
        .map_err(|error| match error {
            ConnectError::Declare(error) => other(error),
            error => OpenError::Other(format!("broker {}: {error}", target.place())),
        })
}

async fn close(connection: &Connection) {
    // The answer is known; a connection that cannot say goodbye ends with the process.
    _ = tokio::time::timeout(PROBE_MAX, connection.close(200, "done".into())).await;
}

fn other(error: DeclareError) -> OpenError {
    OpenError::Other(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_words_name_the_argument_and_both_values() {
        let detail = "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue \
                      'postrider.inbox' in vhost '/': received '5' but current is '10'";
        assert_eq!(differing(detail), "x-max-length");
        assert_eq!(words(detail), "received '5' but current is '10'");
    }
}
