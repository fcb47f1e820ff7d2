//! Declares the topology, compares it with what is there, and mends a queue that does not answer.
//!
//! Nothing is ever deleted because it differs: a person must decide what becomes of the messages
//! in it. The one thing `repair` deletes is a quorum queue that cannot be read or written at all.

use std::{fmt, time::Duration};

use futures_util::future::{join_all, try_join_all};
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

/// How long a queue may take to say that it is empty. Short of the 60 s after which the server
/// gives up itself, and with that question the connection it came on.
const PROBE_MAX: Duration = Duration::from_secs(10);
/// The same before a queue is deleted for its silence: one that still reads its log after a start
/// is silent too, and holds messages.
const PROBE_BEFORE_REPAIR_MAX: Duration = Duration::from_secs(30);
/// How long deleting a queue may take: the server looks for the queue's leader first.
const DELETE_MAX: Duration = Duration::from_secs(60);
/// How long a connection may take to say goodbye.
const GOODBYE_MAX: Duration = Duration::from_secs(1);
/// How often a question is asked whose answer the client lost, and the pause between.
const ASKED_MAX: usize = 5;
const ASKED_PAUSE: Duration = Duration::from_millis(500);
/// AMQP's code for "there is no such queue or exchange".
pub(super) const NOT_FOUND: u16 = 404;
/// AMQP's code for "it is there, and it is different".
const PRECONDITION_FAILED: u16 = 406;

/// AMQP's code for "something in the server failed".
const INTERNAL_ERROR: u16 = 541;

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
    #[error("declaring {name}: no answer within {waited:?}")]
    Timeout { name: String, waited: Duration },
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
    let (connection, findings) = examine(settings, PROBE_MAX).await?;
    close(&connection).await;
    Ok(findings)
}

/// Declares what is missing and says how everything is then. What differs is left alone. With
/// `repair`, a queue that does not answer is deleted and declared anew.
pub async fn declare(settings: &Settings, repair: bool) -> Result<Vec<Finding>, OpenError> {
    let patience = if repair {
        PROBE_BEFORE_REPAIR_MAX
    } else {
        PROBE_MAX
    };
    let (connection, findings) = examine(settings, patience).await?;
    let declared = declare_over(&connection, findings, repair).await;
    close(&connection).await;
    declared.map_err(other)
}

async fn declare_over(
    connection: &Connection,
    mut findings: Vec<Finding>,
    repair: bool,
) -> Result<Vec<Finding>, DeclareError> {
    if repair {
        let unusable = findings
            .iter_mut()
            .filter(|finding| finding.state == State::Unusable);
        let repairs = unusable.map(|finding| async {
            insisted(|| delete_queue(connection, &finding.name)).await?;
            finding.state = State::Repaired;
            Ok(())
        });
        try_join_all(repairs).await?;
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

/// A connection to go on with, and how everything is.
async fn examine(
    settings: &Settings,
    patience: Duration,
) -> Result<(Connection, Vec<Finding>), OpenError> {
    let connection = connect(settings).await?;
    let (mut findings, empty) = find(&connection).await.map_err(other)?;
    // A question that is not answered holds up what comes after it on its connection, so these
    // have one of their own.
    let probing = connect(settings).await?;
    let probes = empty
        .iter()
        .map(|at| probe(&probing, &findings[*at].name, patience));
    let answers = join_all(probes).await;
    close(&probing).await;
    for (at, mut answer) in empty.into_iter().zip(answers) {
        if matches!(answer, Probed::GivenUp) {
            // With the connection, and so for every question on it: whose it was is not said.
            let own = connect(settings).await?;
            answer = probe(&own, &findings[at].name, patience).await;
            close(&own).await;
        }
        match answer {
            Probed::Answered => {}
            Probed::Silent | Probed::GivenUp => findings[at].state = State::Unusable,
            Probed::Failed(error) => return Err(other(error)),
        }
    }
    Ok((connection, findings))
}

/// How everything says it is, and which of the findings are queues that say they are empty.
async fn find(connection: &Connection) -> Result<(Vec<Finding>, Vec<usize>), DeclareError> {
    let (mut findings, mut empty) = (Vec::new(), Vec::new());
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
        let (state, depth) = insisted(|| find_queue(connection, &queue)).await?;
        if state == State::Fine && depth == 0 {
            empty.push(findings.len());
        }
        findings.push(Finding {
            kind: "queue",
            name: name.clone(),
            state,
        });
    }
    Ok((findings, empty))
}

/// How one queue says it is, and how many messages it says it has. Changes nothing but what is
/// missing in the table's own words.
async fn find_queue(
    connection: &Connection,
    queue: &BoundQueue,
) -> Result<(State, u32), DeclareError> {
    let name = &queue.name;
    let channel = answered("a channel", connection.create_channel()).await?;
    match answered(name, passive_queue(&channel, name)).await {
        Err(error) => {
            is_missing(Err::<(), _>(error))?;
            Ok((State::Missing, 0))
        }
        Ok(depth) => {
            let state = compared("queue", name, declare_queue(&channel, queue)).await?;
            Ok((state, depth))
        }
    }
}

async fn delete_queue(connection: &Connection, name: &str) -> Result<(), DeclareError> {
    let channel = answered("a channel", connection.create_channel()).await?;
    // Not `if_empty`: such a queue cannot say whether it is.
    let delete = channel.queue_delete(name.into(), QueueDeleteOptions::default());
    answered_within(DELETE_MAX, name, delete).await.map(drop)
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

/// What came of asking a queue for a message.
enum Probed {
    Answered,
    Silent,
    /// The server could not ask the queue, and closed the connection.
    GivenUp,
    /// It says nothing about the queue.
    Failed(DeclareError),
}

/// Whether an empty queue answers a question. Asked of empty queues only, so that no message is
/// taken out and put back, which counts as a return; closing the connection gives back what a
/// publisher put there meanwhile.
async fn probe(connection: &Connection, name: &str, patience: Duration) -> Probed {
    let channel = match answered("a channel", connection.create_channel()).await {
        Ok(channel) => channel,
        Err(error) => return Probed::Failed(error),
    };
    let get = channel.basic_get(name.into(), BasicGetOptions::default());
    match answered_within(patience, name, get).await {
        Ok(_) => Probed::Answered,
        Err(DeclareError::Timeout { .. }) => Probed::Silent,
        Err(DeclareError::Amqp { source, .. }) if code(&source) == Some(INTERNAL_ERROR) => {
            tracing::debug!(queue = name, error = %source, "probe given up by the server");
            Probed::GivenUp
        }
        Err(error) => Probed::Failed(error),
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
    answered_within(ANSWER_MAX, name, request).await
}

async fn answered_within<T>(
    waited: Duration,
    name: &str,
    request: impl Future<Output = lapin::Result<T>>,
) -> Result<T, DeclareError> {
    match tokio::time::timeout(waited, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(DeclareError::Amqp {
            name: name.into(),
            source,
        }),
        Err(_) => Err(DeclareError::Timeout {
            name: name.into(),
            waited,
        }),
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
    let mut away = Vec::new();
    for target in Target::all(settings)? {
        match link::connect(&target, "postrider topology").await {
            Ok(connection) => return Ok(connection),
            Err(ConnectError::Declare(error)) => return Err(other(error)),
            Err(error) => away.push(format!("broker {}: {error}", target.place())),
        }
    }
    Err(OpenError::Other(away.join("; ")))
}

async fn close(connection: &Connection) {
    // The answer is known; a connection that cannot say goodbye ends with the process.
    _ = tokio::time::timeout(GOODBYE_MAX, connection.close(200, "done".into())).await;
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
