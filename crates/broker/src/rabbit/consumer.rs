//! Consuming: one task per consumer, which owns its channel through every reconnection.
//!
//! It hands messages to the stage, sends acks in batches, steps parcels that are not due yet down
//! the ladder, and gives back what was not handed out when it stops. Tickets reach it by message,
//! stamped with the channel they belong to: one from an old channel is void.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{
    Channel,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    ladder::{self, Step},
    parcel::{PublishError, Queue, Received, Settle, Ticket},
    patience::{jittered, publish_until_taken},
    rabbit::{
        ANSWER_MAX, Life, Shared,
        acks::{Ack, Acks, Tag},
        declare,
        link::Link,
        message::{Incoming, remaining},
        publisher::Publisher,
    },
    seam::Consume,
    topology,
};

/// How often waiting acks are looked at.
const FLUSH: Duration = Duration::from_millis(5);
/// Between two channels, when one broke on a connection that lives.
const CHANNEL_PAUSE: Duration = Duration::from_millis(300);

/// Counts channels: a ticket names the one it came by.
static CHANNELS: AtomicU64 = AtomicU64::new(1);

enum Command {
    Settle {
        channel: u64,
        tag: Tag,
        how: How,
    },
    /// Stop taking; answered when the broker hands out no more.
    Stop(oneshot::Sender<()>),
    /// The stage dropped the consumer.
    Dropped,
}

#[derive(Clone, Copy)]
enum How {
    Ack,
    GiveBack,
    /// The ticket was dropped: the message stays unacked for as long as the channel lives.
    Abandon,
}

struct Ticketed {
    channel: u64,
    /// The channel that lives now.
    current: Arc<AtomicU64>,
    tag: Tag,
    to: mpsc::UnboundedSender<Command>,
    settled: bool,
}

impl fmt::Debug for Ticketed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticketed")
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

impl Ticketed {
    fn settle(&mut self, how: How) {
        self.settled = true;
        // A consumer that is gone gave its channel up: the broker hands the message out again.
        _ = self.to.send(Command::Settle {
            channel: self.channel,
            tag: self.tag,
            how,
        });
    }
}

impl Settle for Ticketed {
    fn ack(mut self: Box<Self>) {
        self.settle(How::Ack);
    }

    fn give_back(mut self: Box<Self>) {
        self.settle(How::GiveBack);
    }

    fn is_void(&self) -> bool {
        self.channel != self.current.load(Ordering::Acquire)
    }
}

impl Drop for Ticketed {
    fn drop(&mut self) {
        if !self.settled {
            self.settle(How::Abandon);
        }
    }
}

struct Handed {
    channel: u64,
    received: Received,
}

/// The seam in, on RabbitMQ.
pub(super) struct Consumer {
    queue: Queue,
    handed: mpsc::UnboundedReceiver<Handed>,
    commands: mpsc::UnboundedSender<Command>,
    channel: Arc<AtomicU64>,
    _life: Arc<Life>,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl Consume for Consumer {
    fn next(&mut self) -> BoxFuture<'_, Option<Received>> {
        Box::pin(async {
            loop {
                let Handed { channel, received } = self.handed.recv().await?;
                // What came by a channel that is gone will come again by the next one.
                if channel == self.channel.load(Ordering::Acquire) {
                    return Some(received);
                }
            }
        })
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let (stopped, until_stopped) = oneshot::channel();
            if self.commands.send(Command::Stop(stopped)).is_ok() {
                // A task that ends instead of answering has stopped too.
                _ = until_stopped.await;
            }
            self.handed.close();
            while let Ok(Handed { received, .. }) = self.handed.try_recv() {
                received.ticket.give_back();
            }
        })
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.handed.close();
        while let Ok(Handed { received, .. }) = self.handed.try_recv() {
            received.ticket.give_back();
        }
        // A task that is gone needs no word.
        _ = self.commands.send(Command::Dropped);
    }
}

pub(super) fn start(
    life: &Arc<Life>,
    publisher: Arc<Publisher>,
    queue: Queue,
    prefetch: u16,
) -> Consumer {
    let (hand, handed) = mpsc::unbounded_channel();
    let (commands, received) = mpsc::unbounded_channel();
    let channel = Arc::new(AtomicU64::new(0));
    let task = Task {
        shared: life.0.clone(),
        // Only what is consumed by deliverers can be early.
        ladder: (queue == Queue::Deliver).then_some(publisher),
        queue: topology::queue_name(queue),
        prefetch,
        hand,
        to_self: commands.downgrade(),
        current: channel.clone(),
        stopped: AtomicBool::new(false),
    };
    life.0.tasks.spawn(task.run(received));
    Consumer {
        queue,
        handed,
        commands,
        channel,
        _life: life.clone(),
    }
}

/// What a consumer's task keeps from channel to channel.
struct Task {
    shared: Arc<Shared>,
    ladder: Option<Arc<Publisher>>,
    queue: &'static str,
    prefetch: u16,
    hand: mpsc::UnboundedSender<Handed>,
    /// Tickets send to the task. Weak, so that the task sees when nobody is left.
    to_self: mpsc::WeakUnboundedSender<Command>,
    current: Arc<AtomicU64>,
    /// The stage takes no more.
    stopped: AtomicBool,
}

/// Why a channel ended.
enum Ended {
    /// The broker closes, or the consumer stopped and everything is settled.
    Finished,
    Broken,
    /// The queue is missing.
    Missing,
}

impl Task {
    async fn run(self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut link = self.shared.link.subscribe();
        loop {
            let up = link.borrow_and_update().clone();
            let ended = match &up {
                Some(up) => self.on_link(up, &mut commands, &mut link).await,
                None => self.away(&mut commands, &mut link).await,
            };
            self.current.store(0, Ordering::Release);
            match (ended, up) {
                (Ended::Finished, _) => break,
                // What was held went back with the channel. A new one would take messages only to
                // give them back, again and again, until they have come back too often.
                _ if self.stopped.load(Ordering::Relaxed) => break,
                (Ended::Missing, Some(up)) => up.mend().await,
                _ => {}
            }
            if link.borrow().is_some() {
                let pause = tokio::time::sleep(jittered(CHANNEL_PAUSE));
                tokio::select! {
                    () = pause => {}
                    () = self.shared.closing.cancelled() => break,
                }
            }
        }
    }

    /// Waits for a link. Tickets are void meanwhile.
    async fn away(
        &self,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        link: &mut watch::Receiver<Option<Arc<Link>>>,
    ) -> Ended {
        loop {
            tokio::select! {
                () = self.shared.closing.cancelled() => return Ended::Finished,
                command = commands.recv() => match command {
                    Some(Command::Settle { .. }) => {}
                    Some(Command::Stop(_) | Command::Dropped) | None => return Ended::Finished,
                },
                changed = link.changed() => {
                    return if changed.is_ok() { Ended::Broken } else { Ended::Finished };
                }
            }
        }
    }

    async fn on_link(
        &self,
        up: &Arc<Link>,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        link: &mut watch::Receiver<Option<Arc<Link>>>,
    ) -> Ended {
        let opened = tokio::select! {
            opened = tokio::time::timeout(ANSWER_MAX, self.open(up)) => opened,
            () = self.shared.closing.cancelled() => return Ended::Finished,
        };
        match opened {
            Ok(Ok((channel, deliveries))) => {
                self.shared.fault(None);
                let number = CHANNELS.fetch_add(1, Ordering::Relaxed);
                self.current.store(number, Ordering::Release);
                let subscription = Subscription {
                    task: self,
                    up: up.clone(),
                    number,
                    channel,
                    acks: Acks::new(self.prefetch),
                    sending: FuturesUnordered::new(),
                    steps: FuturesUnordered::new(),
                    stopped: false,
                    abandoned: 0,
                };
                subscription.run(deliveries, commands, link).await
            }
            Ok(Err(error)) => {
                tracing::warn!(queue = self.queue, %error, "not consuming, trying again");
                let missing = declare::code(&error) == Some(declare::NOT_FOUND);
                if missing {
                    Ended::Missing
                } else {
                    Ended::Broken
                }
            }
            Err(_) => {
                tracing::error!(queue = self.queue, "queue {}", declare::UNUSABLE);
                self.shared
                    .fault(Some(format!("queue {} {}", self.queue, declare::UNUSABLE)));
                Ended::Broken
            }
        }
    }

    async fn open(&self, up: &Link) -> lapin::Result<(Channel, lapin::Consumer)> {
        let channel = up.consume.create_channel().await?;
        channel
            .basic_qos(self.prefetch, BasicQosOptions::default())
            .await?;
        let (options, table) = (BasicConsumeOptions::default(), FieldTable::default());
        let deliveries = channel
            .basic_consume(self.queue.into(), "".into(), options, table)
            .await?;
        Ok((channel, deliveries))
    }
}

/// Whether a message came to quarantine by the alternate exchange: it was published to an exchange
/// of ours that has lost a binding.
fn unroutable(queue: &str, exchange: &str) -> bool {
    let ours = |one: &topology::Exchange| one.name == exchange;
    queue == topology::QUARANTINE
        && exchange != topology::QUARANTINE
        && topology::EXCHANGES.iter().any(ours)
}

/// One channel's life.
struct Subscription<'a> {
    task: &'a Task,
    /// The link it is on.
    up: Arc<Link>,
    number: u64,
    channel: Channel,
    acks: Acks,
    /// Acks and nacks on their way to the socket.
    sending: FuturesUnordered<BoxFuture<'static, lapin::Result<()>>>,
    /// Parcels on their way to a later tier.
    steps: FuturesUnordered<BoxFuture<'static, (Tag, Result<(), PublishError>)>>,
    stopped: bool,
    /// Messages whose ticket was dropped.
    abandoned: usize,
}

impl Subscription<'_> {
    async fn run(
        mut self,
        mut deliveries: lapin::Consumer,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        link: &mut watch::Receiver<Option<Arc<Link>>>,
    ) -> Ended {
        let closing = self.task.shared.closing.clone();
        let mut batch = Vec::new();
        // Neither the consumer nor a ticket is left to say anything.
        let mut alone = false;
        loop {
            if self.stopped && self.acks.open() <= self.abandoned && self.steps.is_empty() {
                return self.finish().await;
            }
            let flush_at = Instant::now() + FLUSH;
            tokio::select! {
                biased;
                count = commands.recv_many(&mut batch, 1024), if !alone => {
                    let now = Instant::now();
                    alone = count == 0;
                    let mut stop = alone.then_some(None);
                    for command in batch.drain(..) {
                        match command {
                            Command::Settle { channel, tag, how } if channel == self.number => {
                                self.settle(tag, how, now);
                            }
                            Command::Settle { .. } => {}
                            Command::Stop(stopped) => stop = Some(Some(stopped)),
                            Command::Dropped => stop = Some(None),
                        }
                    }
                    if let Some(stopped) = stop {
                        self.stop(&mut deliveries).await;
                        if let Some(stopped) = stopped {
                            // Who does not wait for it any more does not need it.
                            _ = stopped.send(());
                        }
                    }
                    self.flush(false);
                }
                sent = self.sending.next(), if !self.sending.is_empty() => {
                    if let Some(Err(error)) = sent {
                        tracing::debug!(%error, "ack not sent");
                        return Ended::Broken;
                    }
                }
                () = closing.cancelled() => {
                    while let Ok(command) = commands.try_recv() {
                        if let Command::Settle { channel, tag, how } = command
                            && channel == self.number
                        {
                            self.settle(tag, how, Instant::now());
                        }
                    }
                    return self.finish().await;
                }
                stepped = self.steps.next(), if !self.steps.is_empty() => {
                    // An error means that the broker closes: the parcel stays where it is.
                    if let Some((tag, Ok(()))) = stepped {
                        self.acks.done(tag, Instant::now());
                        self.flush(false);
                    }
                }
                delivery = deliveries.next(), if !self.stopped => match delivery {
                    Some(Ok(delivery)) => self.take(delivery),
                    Some(Err(error)) => {
                        tracing::debug!(queue = self.task.queue, %error, "consumer lost");
                        let missing = declare::code(&error) == Some(declare::NOT_FOUND);
                        return if missing { Ended::Missing } else { Ended::Broken };
                    }
                    // Never a normal end: somebody deleted the queue, or its node is gone.
                    None => {
                        tracing::warn!(queue = self.task.queue, "consumer cancelled by the broker");
                        return Ended::Missing;
                    }
                },
                changed = link.changed() => {
                    // The next link may be there before this task saw that the last one went.
                    let lives = |up: &Arc<Link>| up.generation == self.up.generation;
                    if changed.is_err() || !link.borrow().as_ref().is_some_and(lives) {
                        return Ended::Broken;
                    }
                }
                () = tokio::time::sleep_until(flush_at), if self.acks.waiting() => {
                    self.flush(false);
                }
            }
        }
    }

    fn take(&mut self, delivery: Delivery) {
        let tag = delivery.delivery_tag;
        self.acks.delivered(tag);
        if unroutable(self.task.queue, delivery.exchange.as_str()) {
            let (up, exchange) = (self.up.clone(), delivery.exchange.to_string());
            let mending = async move { up.bind_again(&exchange).await };
            self.task.shared.tasks.spawn(mending);
        }
        let incoming = Incoming::of(delivery);
        let now = SystemTime::now();
        if let (Some(publisher), Some(due)) = (&self.task.ladder, incoming.due(now))
            && let Step::Wait(_) = ladder::step(remaining(due, now))
        {
            let publisher = publisher.clone();
            self.steps.push(Box::pin(async move {
                (
                    tag,
                    publish_until_taken(&*publisher, incoming.again(due)).await,
                )
            }));
            return;
        }
        let Some(to) = self.task.to_self.upgrade() else {
            return self.give_back(tag);
        };
        let ticket = Ticket::new(Box::new(Ticketed {
            channel: self.number,
            current: self.task.current.clone(),
            tag,
            to,
            settled: false,
        }));
        let received = Received {
            body: incoming.body,
            message_id: incoming.message_id,
            content_type: incoming.content_type,
            content_encoding: incoming.content_encoding,
            user_id: incoming.user_id,
            headers: incoming.headers,
            source: incoming.source,
            redelivered: incoming.redelivered,
            returns: incoming.returns,
            ticket,
        };
        // A stage that is gone has said so by a command that is on its way.
        if let Err(unread) = self.task.hand.send(Handed {
            channel: self.number,
            received,
        }) {
            unread.0.received.ticket.give_back();
        }
    }

    fn settle(&mut self, tag: Tag, how: How, now: Instant) {
        match how {
            How::Ack => self.acks.done(tag, now),
            How::GiveBack => self.give_back(tag),
            How::Abandon => self.abandoned += 1,
        }
    }

    fn give_back(&mut self, tag: Tag) {
        self.acks.gone(tag);
        let channel = self.channel.clone();
        let options = BasicNackOptions {
            requeue: true,
            ..BasicNackOptions::default()
        };
        self.send(Box::pin(
            async move { channel.basic_nack(tag, options).await },
        ));
    }

    fn flush(&mut self, all: bool) {
        for ack in self.acks.flush(Instant::now(), all) {
            let (tag, multiple) = match ack {
                Ack::UpTo(tag) => (tag, true),
                Ack::One(tag) => (tag, false),
            };
            let channel = self.channel.clone();
            let options = BasicAckOptions { multiple };
            self.send(Box::pin(
                async move { channel.basic_ack(tag, options).await },
            ));
        }
    }

    /// Sends a frame now, in order, and awaits it later: lapin queues it on the first poll.
    fn send(&mut self, mut frame: BoxFuture<'static, lapin::Result<()>>) {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match frame.as_mut().poll(&mut cx) {
            std::task::Poll::Ready(sent) => self.sending.push(Box::pin(async move { sent })),
            std::task::Poll::Pending => self.sending.push(frame),
        }
    }

    /// Ends the subscription and gives back what came and was not handed out.
    async fn stop(&mut self, deliveries: &mut lapin::Consumer) {
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        self.task.stopped.store(true, Ordering::Relaxed);
        let cancel = self
            .channel
            .basic_cancel(deliveries.tag(), Default::default());
        let cancelled = tokio::time::timeout(ANSWER_MAX, cancel).await;
        if !matches!(cancelled, Ok(Ok(()))) {
            // The channel is broken: what was not handed out is the broker's again anyway.
            return;
        }
        // What came before the answer is in the stream, then its end.
        while let Some(Ok(delivery)) = deliveries.next().await {
            self.acks.delivered(delivery.delivery_tag);
            self.give_back(delivery.delivery_tag);
        }
    }

    /// Sends what is to be sent and closes the channel.
    async fn finish(mut self) -> Ended {
        self.flush(true);
        let settle = async {
            while let Some(sent) = self.sending.next().await {
                sent?;
            }
            // Answered after all that was sent before it: then the broker has it.
            self.channel.close(200, "done".into()).await
        };
        if let Ok(Err(error)) = tokio::time::timeout(ANSWER_MAX, settle).await {
            tracing::debug!(%error, "consumer channel not closed in order");
        }
        Ended::Finished
    }
}
