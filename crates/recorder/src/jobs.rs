//! Jobs: what people asked to be sent again, made by the recorders, one recorder a job.
//!
//! walk -> plan a step -> write it down -> publish it as one parcel -> settle it -> next.
//!
//! A recorder may die between any two of these. Whoever takes the job over finds the step that was
//! written down and not settled, and finds out from the delivery log whether it was published: as
//! one parcel, it was sent whole or not at all. Only a step that was not is sent (again). See
//! `docs/decisions/0010-jobs.md`.

pub mod metrics;
mod plan;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use broker::{Broker, Parcel, Publish, PublishError, Route, topology};
use event::{
    JobId, SubscriptionId,
    delivery::{Bundle, Item, Recipient},
    log::{Archive, LogEntry},
    subscription::SubscriptionState,
};
use jiff::{SignedDuration, Timestamp};
use metrics::Metrics;
use store::{
    Error, Sight, Store,
    jobs::{Candidate, Created, Intent, Job, JobFilter, JobKind, JobState, Note, Task, Walked},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// How many jobs one recorder works on at once.
const JOBS_MAX: usize = 8;
/// How many jobs that resume are begun at once.
const RESUMES_MAX: u32 = 20;
/// Deliveries per second of a job that resumes.
const RESUME_RATE: u32 = 100;
/// How long a publish waits for its confirm before it counts as unknown.
const CONFIRM_MAX: Duration = Duration::from_secs(30);
/// Messages that may wait in the deliver queue before a job holds back: what is live comes first.
/// A deliverer empties so many in less than a tenth of a second.
const DELIVER_MAX: u64 = 100;
/// Messages that may wait in a queue of ours and the recorder still counts as level.
const LEVEL_MAX: u64 = 32;
/// How many deliveries of jobs an endpoint may have under way before its job holds back, in
/// seconds of the job's rate, and at least.
const UNDER_WAY_SECONDS: u32 = 4;
const UNDER_WAY_MIN: u32 = 200;
/// How often tombstones are swept.
const TIDY: Duration = Duration::from_secs(60);
/// How many steps of forgetting there are each time, of some hundred rows, and what each leaves to
/// everybody else who writes.
const FORGET_STEPS: u32 = 200;
const FORGET_PAUSE: Duration = Duration::from_millis(10);
/// How long a store that is away is left alone.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// How long a job waits in a recorder's hands before others have their turn, and how long then.
const WAIT_MAX: Duration = Duration::from_secs(5);
const LATER: SignedDuration = SignedDuration::from_secs(10);
/// How long the runs of a step are its job's own: longer than it usually takes to find out whether
/// a step was sent.
const RUNS_TAKEN: SignedDuration = SignedDuration::from_mins(10);
/// How long what was found out about the broker and the endpoint stands.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Asks the store, and again while it is away.
macro_rules! ask {
    ($runner:expr, $question:expr $(,)?) => {{
        let mut away = false;
        loop {
            match $question.await {
                Ok(answer) => break answer,
                Err(error) => $runner.wait_out(error, &mut away).await?,
            }
        }
    }};
}

/// What the runner of jobs needs.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Where deliveries are published.
    pub broker: Broker,
    /// Where jobs are, and what they send.
    pub store: Store,
    /// How much the log tells: with `off`, nobody can find out whether a step was sent.
    pub archive: Archive,
    /// Counters.
    pub metrics: Metrics,
    /// Times.
    pub pace: Pace,
    /// Where a test ends the runner.
    #[cfg(test)]
    pub(crate) points: Option<Arc<tests::Points>>,
}

/// The times that a runner keeps.
#[derive(Debug, Clone)]
pub struct Pace {
    /// How often it looks for a job.
    pub look: Duration,
    /// How long a job is its own without a sign of life.
    pub lease: Duration,
    /// How long what was on the recorder's queues takes to be in the store.
    pub settle: Duration,
    /// How long after it left the queue a delivery may take until the log tells of it: longer than
    /// any attempt.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            look: Duration::from_secs(1),
            lease: Duration::from_secs(15),
            settle: Duration::from_secs(2),
            patience: Duration::from_secs(45),
        }
    }
}

/// Works on jobs until `stop`, then settles the steps under way and gives the jobs back.
pub async fn run(parts: Parts, stop: CancellationToken) {
    let mut working = JoinSet::new();
    let mut away = false;
    let mut tidied = Instant::now();
    while !stop.is_cancelled() {
        if let Err(error) = resume(&parts.store).await
            && !away
        {
            warn!(%error, "what is held could not be looked through");
        }
        if tidied.elapsed() >= TIDY {
            tidied = Instant::now();
            if let Err(error) = parts.store.forget_resumed(now()).await {
                warn!(%error, "what was resumed long ago could not be forgotten yet");
            }
            if let Err(error) = forget_runs(&parts.store).await {
                warn!(%error, "what was sent again could not be forgotten yet");
            }
        }
        while working.len() < JOBS_MAX {
            let owner = JobId::fresh().to_string();
            let now = Timestamp::now();
            let taken = parts.store.take_job(&owner, now, parts.until(now)).await;
            match taken {
                Ok(Some(task)) => {
                    let runner = Runner::new(parts.clone(), owner, task, stop.clone());
                    working.spawn(runner.work());
                }
                Ok(None) => {
                    away = false;
                    break;
                }
                Err(error) => {
                    if !away {
                        warn!(%error, "the store could not be asked for jobs");
                        away = true;
                    }
                    break;
                }
            }
        }
        parts.metrics.running.set(working.len() as i64);
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(parts.pace.look) => {}
            Some(ended) = working.join_next() => if let Err(error) = ended {
                error!(%error, "the runner of a job broke; another takes it over");
            },
        }
    }
    while working.join_next().await.is_some() {}
    parts.metrics.running.set(0);
}

/// Forgets the runs that nobody can begin twice any more: as many as jobs make in the time, and
/// some more.
async fn forget_runs(store: &Store) -> Result<(), Error> {
    for _ in 0..FORGET_STEPS {
        if store.forget_runs(now()).await? == 0 {
            break;
        }
        sleep(FORGET_PAUSE).await;
    }
    Ok(())
}

/// Begins to send what is held for subscriptions that are not paused any more. Found by looking:
/// whatever a deliverer that has not heard of the resume still holds is found the next time.
async fn resume(store: &Store) -> Result<(), Error> {
    for (tenant, subscription) in store.subscriptions_to_resume(RESUMES_MAX).await? {
        let (total, now) = (store.count_held(&subscription).await?, now());
        let job = Job {
            id: JobId::fresh(),
            tenant: Some(tenant),
            kind: JobKind::Resume,
            subscription_id: Some(subscription),
            filter: JobFilter::default(),
            state: JobState::Running,
            total,
            done: 0,
            skipped: 0,
            rate: RESUME_RATE,
            detail: None,
            created_at: now,
            updated_at: now,
        };
        // One that runs already finds these too.
        if let Created::New(job) = store.create_job(job).await? {
            info!(job_id = %job.id, total, "resuming what was held");
        }
    }
    Ok(())
}

impl Parts {
    fn until(&self, now: Timestamp) -> Timestamp {
        let lease = SignedDuration::try_from(self.pace.lease).unwrap_or(SignedDuration::ZERO);
        now.saturating_add(lease).unwrap_or(now)
    }
}

/// Why a runner leaves its job.
#[derive(Debug)]
enum Leave {
    /// The process stops.
    Stopping,
    /// The job was canceled, or another recorder has it.
    Lost,
    /// It has to wait: others first.
    Later,
    /// It is over, and why.
    Canceled(&'static str),
    /// It cannot go on, and why.
    Failed(String),
}

/// What came of publishing a step.
enum Sent {
    Yes,
    /// It was not: the walk goes on where it stood.
    No,
}

/// One recorder at work on one job.
struct Runner {
    parts: Parts,
    publisher: Arc<dyn Publish>,
    owner: String,
    job: Job,
    /// Behind this place nothing is settled.
    place: Option<String>,
    intent: Option<Intent>,
    /// How often the step at `place` was about to be sent.
    tries: u32,
    /// When the rate allows the next step.
    next: Instant,
    /// When the lease was last renewed.
    renewed: Instant,
    /// What the store was last told of why it waits.
    told: Option<String>,
    looked: Option<(Instant, Option<String>)>,
    /// Passed over and not written down yet.
    skipped: u64,
    stop: CancellationToken,
}

impl Runner {
    fn new(parts: Parts, owner: String, task: Task, stop: CancellationToken) -> Self {
        let Task { job, place, intent } = task;
        Self {
            publisher: parts.broker.publisher(),
            parts,
            owner,
            told: job.detail.clone(),
            job,
            place,
            intent,
            tries: 0,
            next: Instant::now(),
            renewed: Instant::now(),
            looked: None,
            skipped: 0,
            stop,
        }
    }

    async fn work(mut self) {
        let id = self.job.id.clone();
        info!(job_id = %id, kind = self.job.kind.word(), total = self.job.total, "job taken");
        let left = match self.drive().await {
            Ok(()) => return,
            Err(left) => left,
        };
        match left {
            Leave::Lost => info!(job_id = %id, "job left: it was canceled, or taken over"),
            Leave::Stopping => self.give_back(Timestamp::UNIX_EPOCH).await,
            Leave::Later => {
                let later = now().saturating_add(LATER).unwrap_or_else(|_| now());
                self.give_back(later).await;
            }
            Leave::Canceled(why) => self.end(JobState::Canceled, why).await,
            Leave::Failed(why) => self.end(JobState::Failed, &why).await,
        }
    }

    async fn give_back(&self, until: Timestamp) {
        let (store, owner, id) = (&self.parts.store, &self.owner, &self.job.id);
        // Where this fails the lease ends by itself.
        if let Err(error) = store.release_job(owner, id, until).await {
            warn!(job_id = %id, %error, "a job could not be given back");
        }
    }

    async fn end(&self, state: JobState, why: &str) {
        let (store, owner, id) = (&self.parts.store, &self.owner, &self.job.id);
        warn!(job_id = %id, state = state.word(), why, "job ended before it was done");
        // Where this fails, whoever takes it over finds the same.
        if let Err(error) = store.end_job(owner, id, state, Some(why), now()).await {
            warn!(job_id = %id, %error, "a job's end could not be recorded");
        }
    }

    async fn drive(&mut self) -> Result<(), Leave> {
        if let Some(intent) = self.intent.take() {
            self.take_over(&intent).await?;
        }
        if self.job.state != JobState::Running {
            return Ok(());
        }
        if self.job.kind == JobKind::Replay && self.place.is_none() {
            self.wait_until_level().await?;
            self.recount().await?;
        }
        loop {
            let walked = self.walk().await?;
            let revisions = self.revisions(&walked.candidates).await?;
            self.reached(Point::Walked).await;
            let end = walked.place.clone();
            if let Sent::No = self.send_all(walked, &revisions).await? {
                continue;
            }
            match end {
                Some(place) => self.place = Some(place),
                None => break,
            }
            self.keep(None, false).await?;
        }
        self.keep(None, true).await?;
        let (id, done) = (self.job.id.clone(), JobState::Done);
        let ended = ask!(
            self,
            self.parts
                .store
                .end_job(&self.owner, &id, done, None, now())
        );
        if !ended {
            return Err(Leave::Lost);
        }
        self.reached(Point::Ended).await;
        info!(job_id = %id, "job done");
        Ok(())
    }

    /// Sends what a page of the walk brought, step by step.
    async fn send_all(
        &mut self,
        walked: Walked,
        revisions: &HashMap<SubscriptionId, u64>,
    ) -> Result<Sent, Leave> {
        let mut rest = VecDeque::from(walked.candidates);
        while !rest.is_empty() {
            let step = plan::step(&mut rest, self.job.rate, now(), |id| {
                revisions.get(id).copied()
            });
            if step.sends.is_empty() {
                self.skipped += step.skipped;
                self.place = Some(step.place);
                continue;
            }
            self.wait_for_its_turn().await?;
            let at = now();
            let Some(step) = self.take_runs(step, at).await? else {
                continue;
            };
            let passed_over = std::mem::take(&mut self.skipped);
            let intent = Intent {
                place: step.place,
                sends: step.sends.iter().map(plan::sending).collect(),
                skipped: passed_over + step.skipped,
                tries: self.tries + 1,
            };
            let parcel = parcel(&self.job, &step.sends)?;
            if let Sent::No = self.send(&intent, parcel).await? {
                self.tries = intent.tries;
                self.skipped = passed_over;
                return Ok(Sent::No);
            }
            self.tries = 0;
            self.note(&step.sends, at).await;
        }
        Ok(Sent::Yes)
    }

    /// Takes the runs of a step, and leaves those out that somebody else is about to send; `None`
    /// where none is left. What is held is left to nobody else in any case.
    async fn take_runs(
        &mut self,
        mut step: plan::Step,
        at: Timestamp,
    ) -> Result<Option<plan::Step>, Leave> {
        let sends: Vec<_> = step.sends.iter().map(plan::sending).collect();
        let until = at.saturating_add(RUNS_TAKEN).unwrap_or(at);
        let owner = self.job.id.as_str();
        let taken = ask!(self, self.parts.store.take_runs(owner, &sends, at, until));
        let mut taken = taken
            .into_iter()
            .zip(&sends)
            .map(|(ours, s)| ours || s.held);
        step.sends.retain(|_| taken.next().unwrap_or(false));
        step.skipped += (sends.len() - step.sends.len()) as u64;
        if step.sends.is_empty() {
            self.skipped += step.skipped;
            self.place = Some(step.place);
            return Ok(None);
        }
        Ok(Some(step))
    }

    /// Tells the log that these are under way again, so that they are counted as such and nobody
    /// begins the same run. What a deliverer has said meanwhile stands.
    async fn note(&self, sends: &[plan::Planned], at: Timestamp) {
        if self.parts.archive == Archive::Off {
            return;
        }
        let known = sends.iter().filter(|p| p.candidate.standing.is_some());
        let entries: Vec<LogEntry> = known.map(|planned| planned.entry(at)).collect();
        if let Err(error) = self.parts.store.record(&[], &entries).await {
            warn!(job_id = %self.job.id, %error, "what is sent again is still logged as ended");
        }
    }

    /// Writes a step down, publishes it, settles it.
    async fn send(&mut self, intent: &Intent, parcel: Parcel) -> Result<Sent, Leave> {
        let id = self.job.id.clone();
        let until = self.parts.until(now());
        let ours = ask!(
            self,
            self.parts.store.intend(&self.owner, &id, intent, until)
        );
        if !ours {
            return Err(Leave::Lost);
        }
        self.renewed = Instant::now();
        self.reached(Point::Intended).await;
        loop {
            match timeout(CONFIRM_MAX, self.publisher.publish(parcel.clone())).await {
                Ok(Ok(())) => break,
                Ok(Err(PublishError::Closed)) => return Err(Leave::Stopping),
                // Refused for certain: the same once more.
                Ok(Err(error @ (PublishError::Blocked(_) | PublishError::Unroutable(_)))) => {
                    self.keep(Some(&error.to_string()), false).await?;
                    self.rest(LOOK_AGAIN).await?;
                }
                // The broker may have it all the same.
                Ok(Err(PublishError::Unavailable | PublishError::Rejected)) | Err(_) => {
                    if self.was_sent(intent).await? {
                        break;
                    }
                    return self.not_sent(intent).await;
                }
            }
        }
        self.reached(Point::Published).await;
        self.settle(intent).await?;
        Ok(Sent::Yes)
    }

    async fn settle(&mut self, intent: &Intent) -> Result<(), Leave> {
        let (id, now) = (self.job.id.clone(), now());
        let until = self.parts.until(now);
        let ours = ask!(
            self,
            self.parts
                .store
                .settle(&self.owner, &id, intent, now, until)
        );
        let sent = intent.sends.len() as u64;
        self.parts.metrics.sent(self.job.kind, sent, intent.skipped);
        if !ours {
            return Err(Leave::Lost);
        }
        self.renewed = Instant::now();
        self.told = None;
        self.place = Some(intent.place.clone());
        self.job.done += sent;
        self.reached(Point::Settled).await;
        Ok(())
    }

    /// A step that somebody else wrote down and did not settle.
    async fn take_over(&mut self, intent: &Intent) -> Result<(), Leave> {
        info!(job_id = %self.job.id, "finding out whether a step was sent");
        if self.was_sent(intent).await? {
            return self.settle(intent).await;
        }
        if self.job.state != JobState::Running {
            let (id, until) = (self.job.id.clone(), now());
            ask!(self, self.parts.store.drop_intent(&self.owner, &id, until));
            return Ok(());
        }
        self.tries = intent.tries;
        self.not_sent(intent).await.map(drop)
    }

    /// A step of which nothing tells is planned anew from where it began, with the same runs. Where
    /// nothing could ever tell, it is sent a second time and no third: its dead letters stay.
    async fn not_sent(&mut self, intent: &Intent) -> Result<Sent, Leave> {
        if self.parts.archive != Archive::Off || intent.tries < 2 {
            return Ok(Sent::No);
        }
        warn!(job_id = %self.job.id, "nobody can tell whether a step was sent; it is passed over");
        let passed_over = Intent {
            sends: Vec::new(),
            skipped: intent.skipped + intent.sends.len() as u64,
            ..intent.clone()
        };
        self.settle(&passed_over).await?;
        self.tries = 0;
        Ok(Sent::Yes)
    }

    /// Whether a step went out. What was published is in the queue, at a deliverer, on the way to
    /// the store, or in it: so the queue is seen empty first, then as much time passes as an
    /// attempt may take, then the log's queue is level, and then the store knows.
    async fn was_sent(&mut self, intent: &Intent) -> Result<bool, Leave> {
        let sends = &intent.sends;
        let mut left_the_queue: Option<Instant> = None;
        loop {
            let arrived = ask!(self, self.parts.store.any_arrived(sends));
            if arrived || self.parts.archive == Archive::Off {
                return Ok(arrived);
            }
            let depth = self.depths().await;
            if depth(topology::DELIVER) == Some(0) {
                left_the_queue.get_or_insert_with(Instant::now);
            }
            let waited = left_the_queue.is_some_and(|at| at.elapsed() >= self.parts.pace.patience);
            if waited && depth(topology::LOG).is_some_and(|depth| depth <= LEVEL_MAX) {
                self.rest(self.parts.pace.settle).await?;
                return Ok(ask!(self, self.parts.store.any_arrived(sends)));
            }
            self.keep(Some("finding out whether its last step was sent"), false)
                .await?;
            self.rest(LOOK_AGAIN.min(self.parts.pace.patience / 4))
                .await?;
        }
    }

    /// What was accepted before the job was asked for is in the store, and how it was delivered.
    async fn wait_until_level(&mut self) -> Result<(), Leave> {
        loop {
            let depth = self.depths().await;
            let level = |queue| depth(queue).is_some_and(|depth| depth <= LEVEL_MAX);
            if level(topology::ARCHIVE) && level(topology::LOG) {
                // What was handed to a recorder a moment ago.
                return self.rest(self.parts.pace.settle).await;
            }
            self.keep(Some("waiting for the recorder to catch up"), false)
                .await?;
            self.rest(LOOK_AGAIN).await?;
        }
    }

    async fn recount(&mut self) -> Result<(), Leave> {
        let Some((tenant, _)) = self.whose() else {
            return Ok(());
        };
        let (selectors, filter) = (self.selectors().await?, self.job.filter.clone());
        let counted = ask!(
            self,
            self.parts.store.count_events(&tenant, &selectors, &filter)
        );
        self.job.total = counted.total;
        self.keep(None, true).await
    }

    /// Waits for the rate, and while what is live would suffer.
    async fn wait_for_its_turn(&mut self) -> Result<(), Leave> {
        tokio::select! {
            () = self.stop.cancelled() => return Err(Leave::Stopping),
            () = sleep_until(self.next) => {}
        }
        let begun = Instant::now();
        while let Some(why) = self.obstacle().await? {
            self.keep(Some(&why), false).await?;
            if begun.elapsed() >= WAIT_MAX {
                return Err(Leave::Later);
            }
            self.rest(LOOK_AGAIN).await?;
        }
        if self.stop.is_cancelled() {
            return Err(Leave::Stopping);
        }
        self.keep(None, false).await?;
        // After a pause there is no burst to catch up.
        let steps = plan::step_size(self.job.rate) as u32;
        let pause = Duration::from_secs(1) * steps / self.job.rate.max(1);
        self.next = self.next.max(Instant::now()) + pause;
        Ok(())
    }

    /// Why nothing should be sent now.
    async fn obstacle(&mut self) -> Result<Option<String>, Leave> {
        if let Some((at, why)) = &self.looked
            && at.elapsed() < LOOK_AGAIN
        {
            return Ok(why.clone());
        }
        let why = self.look_for_obstacle().await?;
        self.looked = Some((Instant::now(), why.clone()));
        Ok(why)
    }

    async fn look_for_obstacle(&mut self) -> Result<Option<String>, Leave> {
        let status = self.parts.broker.status().borrow().clone();
        if !status.connected || status.blocked.is_some() {
            return Ok(Some("waiting for the broker".into()));
        }
        let depth = self.depths().await;
        if depth(topology::DELIVER).is_none_or(|depth| depth > DELIVER_MAX) {
            return Ok(Some("holding back: live deliveries are waiting".into()));
        }
        let Some((_, id)) = self.whose() else {
            return Ok(None);
        };
        let stored = ask!(self, self.parts.store.subscription(&Sight::All, &id));
        let resumes = self.job.kind == JobKind::Resume;
        let Some(stored) = stored else {
            // What was held for it becomes dead letters, by the deliverer's hand.
            return if resumes { Ok(None) } else { Err(deleted()) };
        };
        match stored.subscription.state {
            SubscriptionState::Active => {}
            // Held for good: what is sent waits for its listener.
            SubscriptionState::Paused if id.is_listener() => {}
            SubscriptionState::Paused | SubscriptionState::Disabled if resumes => {
                return Err(Leave::Canceled("the subscription is held again"));
            }
            SubscriptionState::Paused => {
                return Ok(Some("waiting: the subscription is paused".into()));
            }
            SubscriptionState::Disabled => {
                return Ok(Some("waiting: the subscription is disabled".into()));
            }
        }
        if self.parts.archive == Archive::Off {
            return Ok(None);
        }
        let most = UNDER_WAY_MIN.max(self.job.rate.saturating_mul(UNDER_WAY_SECONDS));
        let under_way = ask!(self, self.parts.store.replays_under_way(&id, most));
        Ok((under_way >= u64::from(most))
            .then(|| format!("holding back: {under_way} of its deliveries wait for the endpoint")))
    }

    async fn walk(&mut self) -> Result<Walked, Leave> {
        let limit = plan::page_size(self.job.rate);
        let (filter, place) = (self.job.filter.clone(), self.place.clone());
        if self.job.kind != JobKind::Redrive {
            let Some((tenant, subscription)) = self.whose() else {
                return Err(Leave::Failed("it needs a subscription".into()));
            };
            if self.job.kind == JobKind::Resume {
                let (place, store) = (place.as_deref(), &self.parts.store);
                return Ok(ask!(self, store.walk_held(&subscription, place, limit)));
            }
            let selectors = self.selectors().await?;
            let (to, place) = ((&tenant, &subscription), place.as_deref());
            let store = &self.parts.store;
            let walked = ask!(
                self,
                store.walk_events(to, &selectors, &filter, place, limit)
            );
            return Ok(walked);
        }
        let sight = self.job.tenant.clone().map_or(Sight::All, Sight::Only);
        let subscription = self.job.subscription_id.clone();
        let (to, place) = (subscription.as_ref(), place.as_deref());
        let store = &self.parts.store;
        Ok(ask!(
            self,
            store.walk_letters(&sight, to, &filter, place, limit)
        ))
    }

    fn whose(&self) -> Option<(event::Tenant, SubscriptionId)> {
        self.job
            .tenant
            .clone()
            .zip(self.job.subscription_id.clone())
    }

    async fn selectors(&mut self) -> Result<Vec<event::selector::Selector>, Leave> {
        let Some((_, id)) = self.whose() else {
            return Ok(Vec::new());
        };
        let stored = ask!(self, self.parts.store.subscription(&Sight::All, &id));
        let stored = stored.ok_or_else(deleted)?;
        Ok(stored.subscription.selectors().into_owned())
    }

    /// The subscriptions that are to be sent to, as they are now. Those that are gone are not
    /// among them; a job that is of one subscription ends with it.
    async fn revisions(
        &mut self,
        candidates: &[Candidate],
    ) -> Result<HashMap<SubscriptionId, u64>, Leave> {
        let mut ids: Vec<_> = candidates
            .iter()
            .map(|c| c.subscription_id.clone())
            .collect();
        ids.extend(self.job.subscription_id.clone());
        ids.sort();
        ids.dedup();
        let mut revisions = HashMap::new();
        for id in ids {
            let stored = ask!(self, self.parts.store.subscription(&Sight::All, &id));
            match stored {
                Some(stored) => drop(revisions.insert(id, stored.subscription.revision)),
                None if self.job.kind == JobKind::Resume => drop(revisions.insert(id, 0)),
                None if self.job.subscription_id.is_some() => return Err(deleted()),
                None => {}
            }
        }
        Ok(revisions)
    }

    /// Renews the lease where it is time, and writes down what has changed. `all` writes anyway.
    async fn keep(&mut self, detail: Option<&str>, all: bool) -> Result<(), Leave> {
        let due = self.renewed.elapsed() >= self.parts.pace.lease / 3;
        if !due && !all && self.told.as_deref() == detail {
            return Ok(());
        }
        let (id, now) = (self.job.id.clone(), now());
        let note = Note {
            state: self.job.state,
            now,
            until: self.parts.until(now),
            place: self.place.as_deref(),
            skipped: self.skipped,
            total: all.then_some(self.job.total),
            detail,
        };
        let ours = ask!(self, self.parts.store.keep_job(&self.owner, &id, &note));
        if !ours {
            return Err(Leave::Lost);
        }
        self.parts.metrics.sent(self.job.kind, 0, self.skipped);
        self.skipped = 0;
        self.renewed = Instant::now();
        self.told = detail.map(str::to_owned);
        Ok(())
    }

    async fn rest(&self, time: Duration) -> Result<(), Leave> {
        tokio::select! {
            () = self.stop.cancelled() => Err(Leave::Stopping),
            () = sleep(time) => Ok(()),
        }
    }

    async fn depths(&self) -> impl Fn(&str) -> Option<u64> + use<> {
        let depths: HashMap<_, _> = self.parts.broker.depths().await.into_iter().collect();
        move |queue| depths.get(queue).copied()
    }

    /// Waits for a store that is away; any other failure ends the job.
    async fn wait_out(&self, error: Error, away: &mut bool) -> Result<(), Leave> {
        match error {
            Error::Unavailable(reason) if !*away => {
                warn!(job_id = %self.job.id, reason, "a job waits for the store");
                *away = true;
            }
            Error::Unavailable(_) => {}
            error => return Err(Leave::Failed(error.to_string())),
        }
        self.rest(STORE_PAUSE).await
    }

    #[cfg(not(test))]
    async fn reached(&self, _: Point) {}

    /// Where a test may end the runner, as a kill would.
    #[cfg(test)]
    async fn reached(&self, point: Point) {
        if let Some(points) = &self.parts.points {
            points.reach(point).await;
        }
    }
}

/// The moments between which a recorder may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    Walked,
    Intended,
    Published,
    Settled,
    Ended,
}

fn deleted() -> Leave {
    Leave::Failed("the subscription was deleted".into())
}

fn now() -> Timestamp {
    Timestamp::now()
}

/// A step as one parcel.
fn parcel(job: &Job, sends: &[plan::Planned]) -> Result<Parcel, Leave> {
    let item = |planned: &plan::Planned| Item {
        event: Arc::clone(&planned.candidate.event),
        accepted_at: planned.candidate.accepted_at,
        revision: planned.revision,
        to: vec![Recipient {
            run: planned.run,
            purpose: planned.purpose(),
            ..Recipient::first(planned.candidate.subscription_id.clone())
        }],
    };
    let bundle = Bundle {
        items: sends.iter().map(item).collect(),
    };
    let body = serde_json::to_vec(&bundle)
        .map_err(|error| Leave::Failed(format!("a delivery cannot be written: {error}")))?;
    let first = sends.first().map_or(0, |planned| planned.run);
    let id = format!("{}:{first}:{}", job.id, job.done);
    Ok(Parcel::json(Route::Deliver, id, body))
}

#[cfg(test)]
mod tests;
