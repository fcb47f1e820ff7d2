//! Publishing: a few lanes, each one task that owns one channel and keeps a window of confirms in
//! flight.
//!
//! One task per channel because two tasks on one channel get each other's confirms (measured: 10
//! of 20 000); a window because one confirm at a time is 400 messages a second and a hundred are
//! 20 000.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, SystemTime},
};

use futures_util::{Stream, future::BoxFuture, stream::FuturesUnordered};
use lapin::{
    Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    parcel::{Parcel, PublishError},
    patience::jittered,
    rabbit::{
        ANSWER_MAX, Life, Shared, declare,
        link::Link,
        message::Outgoing,
        returns::{Confirm, Flight, Returned, Returns, Verdict},
    },
    seam::{Publish, Status},
};

/// Channels to publish on.
const LANES: usize = 2;
/// Confirms in flight per lane: 100 and 1 000 are equally fast, and a burst of bundles fits.
const WINDOW: usize = 500;
/// Parcels that wait for a place in a lane's window; more wait in their own tasks.
const WAITING: usize = 500;
/// How long a publish waits for its confirm while the broker is blocked.
const BLOCKED_MAX: Duration = Duration::from_millis(1_500);
/// How long a publish waits for its confirm at all: a queue whose node is gone never confirms.
const CONFIRM_MAX: Duration = Duration::from_secs(30);
/// How often the two are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// Between two channels, when one broke on a connection that lives.
const CHANNEL_PAUSE: Duration = Duration::from_millis(200);

type Answer = Result<(), PublishError>;

struct Job {
    parcel: Parcel,
    answer: oneshot::Sender<Answer>,
}

/// The seam out, on RabbitMQ.
#[derive(Debug)]
pub(super) struct Publisher {
    lanes: Vec<mpsc::Sender<Job>>,
    next: AtomicUsize,
    status: watch::Receiver<Status>,
    life: Arc<Life>,
}

impl Publisher {
    pub(super) fn start(life: &Arc<Life>) -> Self {
        let shared = &life.0;
        let lanes = (0..LANES)
            .map(|_| {
                let (sender, jobs) = mpsc::channel(WAITING);
                shared.tasks.spawn(lane(shared.clone(), jobs));
                sender
            })
            .collect();
        let status = shared.status.subscribe();
        Self {
            lanes,
            next: AtomicUsize::new(0),
            status,
            life: life.clone(),
        }
    }

    async fn send(&self, parcel: Parcel) -> Answer {
        if self.life.0.closing.is_cancelled() {
            return Err(PublishError::Closed);
        }
        refused(&self.status.borrow())?;
        let (answer, answered) = oneshot::channel();
        let lane = self.next.fetch_add(1, Ordering::Relaxed) % self.lanes.len();
        let job = Job { parcel, answer };
        // A lane that is gone, or drops a job, does so because the broker closes.
        self.lanes[lane]
            .send(job)
            .await
            .map_err(|_| PublishError::Closed)?;
        answered.await.unwrap_or(Err(PublishError::Closed))
    }
}

impl Publish for Publisher {
    fn publish(&self, parcel: Parcel) -> BoxFuture<'_, Answer> {
        Box::pin(self.send(parcel))
    }
}

fn refused(status: &Status) -> Answer {
    match &status.blocked {
        _ if !status.connected => Err(PublishError::Unavailable),
        Some(reason) => Err(PublishError::Blocked(reason.clone())),
        None => Ok(()),
    }
}

/// One lane, from channel to channel.
async fn lane(shared: Arc<Shared>, mut jobs: mpsc::Receiver<Job>) {
    let mut link = shared.link.subscribe();
    loop {
        let up = link.borrow_and_update().clone();
        let ended = match &up {
            Some(up) => match open(up).await {
                Ok(channel) => {
                    Window::new(channel, shared.clone())
                        .run(&mut jobs, &mut link)
                        .await
                }
                Err(error) => {
                    tracing::debug!(%error, "publisher channel not opened");
                    Ended::Broken
                }
            },
            None => away(&shared, &mut jobs, &mut link).await,
        };
        match ended {
            Ended::Closed => break,
            Ended::Missing => {
                if let Some(up) = up {
                    up.mend().await;
                }
            }
            Ended::Broken => {}
        }
        if link.borrow().is_some() {
            tokio::time::sleep(jittered(CHANNEL_PAUSE)).await;
        }
    }
}

/// Why a lane's channel ended.
enum Ended {
    /// The broker closes, or nobody publishes any more.
    Closed,
    /// Something broke; the link tells whether the connection did.
    Broken,
    /// An exchange is missing.
    Missing,
}

/// Refuses everything until there is a link.
async fn away(
    shared: &Shared,
    jobs: &mut mpsc::Receiver<Job>,
    link: &mut watch::Receiver<Option<Arc<Link>>>,
) -> Ended {
    loop {
        tokio::select! {
            () = shared.closing.cancelled() => return Ended::Closed,
            job = jobs.recv() => match job {
                Some(job) => answer(job.answer, Err(PublishError::Unavailable)),
                None => return Ended::Closed,
            },
            changed = link.changed() => {
                return if changed.is_ok() { Ended::Broken } else { Ended::Closed };
            }
        }
    }
}

async fn open(link: &Link) -> Result<Channel, lapin::Error> {
    let opening = async {
        let channel = link.publish.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(channel)
    };
    // A channel that does not open in time is tried again, as one that fails.
    tokio::time::timeout(ANSWER_MAX, opening)
        .await
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
}

fn answer(to: oneshot::Sender<Answer>, answer: Answer) {
    // Who does not wait for the answer any more does not need it.
    _ = to.send(answer);
}

type Landing = (Flight, String, lapin::Result<Confirmation>);

/// Sends on the first poll, resolves with the confirm.
async fn fly(channel: Arc<Channel>, flight: Flight, outgoing: Outgoing) -> Landing {
    let Outgoing {
        exchange,
        key,
        properties,
        message_id,
        body,
    } = outgoing;
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let confirmed = async {
        channel
            .basic_publish(exchange.into(), key, options, &body, properties)
            .await?
            .await
    };
    let confirmation = confirmed.await;
    (flight, message_id, confirmation)
}

/// The window of one channel.
struct Window {
    channel: Arc<Channel>,
    shared: Arc<Shared>,
    flights: FuturesUnordered<BoxFuture<'static, Landing>>,
    /// Who waits for which flight. A flight may outlive its waiter, who was told `Blocked`.
    waiting: HashMap<Flight, (oneshot::Sender<Answer>, Instant)>,
    /// How many flights have outlived their waiter.
    abandoned: usize,
    returns: Returns,
    next: Flight,
    alarm: Arc<Alarm>,
}

impl Window {
    fn new(channel: Channel, shared: Arc<Shared>) -> Self {
        Self {
            channel: Arc::new(channel),
            shared,
            flights: FuturesUnordered::new(),
            waiting: HashMap::new(),
            abandoned: 0,
            returns: Returns::default(),
            next: 0,
            alarm: Arc::default(),
        }
    }

    async fn run(
        mut self,
        jobs: &mut mpsc::Receiver<Job>,
        link: &mut watch::Receiver<Option<Arc<Link>>>,
    ) -> Ended {
        let closing = self.shared.closing.clone();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut arrived = Vec::new();
        let ended = loop {
            if self.abandoned >= WINDOW {
                // A window full of publishes nobody waits for any more: a new channel frees it.
                break Ended::Broken;
            }
            let room = WINDOW.saturating_sub(self.waiting.len());
            tokio::select! {
                biased;
                landed = landed(&mut self.flights, &self.alarm), if !self.flights.is_empty() => {
                    if let Err(ended) = self.land(landed) {
                        break ended;
                    }
                }
                count = jobs.recv_many(&mut arrived, room), if room > 0 => {
                    if count == 0 {
                        break self.finish().await;
                    }
                    for job in arrived.drain(..) {
                        self.send(job);
                    }
                }
                () = closing.cancelled() => {
                    jobs.close();
                    while let Ok(job) = jobs.try_recv() {
                        answer(job.answer, Err(PublishError::Closed));
                    }
                    break self.finish().await;
                }
                _ = look.tick() => self.look(),
                changed = link.changed() => {
                    if changed.is_err() || link.borrow().is_none() {
                        break Ended::Broken;
                    }
                }
            }
        };
        for (_, (to, _)) in self.waiting.drain() {
            answer(to, Err(PublishError::Unavailable));
        }
        ended
    }

    fn send(&mut self, job: Job) {
        if let Err(refusal) = refused(&self.shared.status.borrow()) {
            return answer(job.answer, Err(refusal));
        }
        let flight = self.next;
        self.next += 1;
        let outgoing = Outgoing::of(job.parcel, SystemTime::now());
        let outgoing = outgoing.by(self.shared.user.as_deref());
        self.waiting.insert(flight, (job.answer, Instant::now()));
        self.flights
            .push(Box::pin(fly(self.channel.clone(), flight, outgoing)));
    }

    fn land(&mut self, landed: Vec<Landing>) -> Result<(), Ended> {
        let mut confirms = Vec::with_capacity(landed.len());
        let mut ended = Ok(());
        for (flight, message_id, confirmation) in landed {
            let (stored, returned) = match confirmation {
                Ok(Confirmation::Ack(returned)) => (true, returned),
                Ok(Confirmation::Nack(returned)) => (false, returned),
                // Not a confirm channel: a bug here, and no proof of anything.
                Ok(Confirmation::NotRequested) => (false, None),
                Err(error) => {
                    tracing::debug!(%error, "publisher channel lost");
                    let missing = declare::code(&error) == Some(declare::NOT_FOUND);
                    ended = Err(if missing {
                        Ended::Missing
                    } else {
                        Ended::Broken
                    });
                    continue;
                }
            };
            let returned = returned.map(|message| Returned {
                message_id: message
                    .properties
                    .message_id()
                    .as_ref()
                    .map_or_else(String::new, |id| id.as_str().into()),
                reason: format!("{} at {}", message.reply_text, message.exchange),
            });
            confirms.push(Confirm {
                flight,
                message_id,
                stored,
                returned,
            });
        }
        for (flight, verdict) in self.returns.take(confirms, self.flights.len()) {
            let Some((to, _)) = self.waiting.remove(&flight) else {
                self.abandoned = self.abandoned.saturating_sub(1);
                continue;
            };
            answer(
                to,
                match verdict {
                    Verdict::Stored => Ok(()),
                    Verdict::Refused => Err(PublishError::Rejected),
                    Verdict::Unroutable(reason) => Err(PublishError::Unroutable(reason)),
                },
            );
        }
        ended
    }

    /// Answers those who waited long enough. Their messages may still be stored.
    fn look(&mut self) {
        let blocked = self.shared.status.borrow().blocked.clone();
        let overdue: Vec<_> = self
            .waiting
            .iter()
            .filter_map(|(flight, (_, since))| match &blocked {
                Some(reason) if since.elapsed() >= BLOCKED_MAX => {
                    Some((*flight, PublishError::Blocked(reason.clone())))
                }
                _ if since.elapsed() >= CONFIRM_MAX => Some((*flight, PublishError::Rejected)),
                _ => None,
            })
            .collect();
        for (flight, refusal) in overdue {
            if let Some((to, _)) = self.waiting.remove(&flight) {
                self.abandoned += 1;
                answer(to, Err(refusal));
            }
        }
    }

    /// The broker closes: waits for the confirms that are on their way.
    async fn finish(&mut self) -> Ended {
        while !self.waiting.is_empty() && !self.flights.is_empty() {
            let landed = landed(&mut self.flights, &self.alarm);
            match tokio::time::timeout(BLOCKED_MAX, landed).await {
                Ok(landed) => {
                    if self.land(landed).is_err() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        Ended::Closed
    }
}

/// Waits for a confirm and takes all that are there by then.
///
/// `Returns` needs every confirm that was resolved before the last one taken. lapin resolves them
/// one after the other from one thread, each before it wakes its flight, so they are complete when
/// the ready queue of `FuturesUnordered` was seen empty. But it also says `Pending` when it has
/// had enough for one turn, and then it wakes its waker at once: the alarm tells the two apart.
async fn landed(
    flights: &mut FuturesUnordered<BoxFuture<'static, Landing>>,
    alarm: &Arc<Alarm>,
) -> Vec<Landing> {
    let mut landed = Vec::new();
    std::future::poll_fn(|cx| {
        alarm.watch(cx);
        let waker = Waker::from(alarm.clone());
        let mut inner = Context::from_waker(&waker);
        loop {
            alarm.rung.store(false, Ordering::SeqCst);
            let complete = loop {
                match Pin::new(&mut *flights).poll_next(&mut inner) {
                    Poll::Ready(Some(landing)) => landed.push(landing),
                    Poll::Ready(None) => break true,
                    Poll::Pending => break !alarm.rung.load(Ordering::SeqCst),
                }
            };
            if complete {
                break;
            }
        }
        if landed.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    landed
}

/// A waker that remembers that it was called.
#[derive(Default)]
struct Alarm {
    rung: AtomicBool,
    task: futures_util::task::AtomicWaker,
}

impl Alarm {
    fn watch(&self, cx: &Context<'_>) {
        self.task.register(cx.waker());
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::SeqCst);
        self.task.wake();
    }
}
