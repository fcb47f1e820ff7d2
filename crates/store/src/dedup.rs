//! The same tenant and id is routed once within a window: `dedup.window`.
//!
//! What routers and intake of a process ask of the claims goes through here: what is asked at once
//! is one statement, no answer is waited for longer than a bound, and while the store does not
//! answer nothing is asked of it at all. Then duplicates are not recognized, which is said, and
//! routing goes on.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    Error, Store,
    claims::{Claim, Held, Key},
    outage::{self, Outage, Patient},
};

/// How long the store may take to find claims; a caller of the intake waits for it.
const FIND_MAX: Duration = Duration::from_secs(1);
/// How long it may take to make them; routing stands still meanwhile.
const CLAIM_MAX: Duration = Duration::from_secs(2);
/// How many ids one statement is asked about.
const GROUP_MAX: usize = 512;
/// Under load a statement waits until this long after the last one began, or until there are
/// enough ids for it: what a statement costs by itself is shared by those it is about. A lone
/// question waits for nothing.
const CLAIM_PACE: Duration = Duration::from_millis(3);
/// The same where a caller of the intake waits for the answer.
const FIND_PACE: Duration = Duration::from_millis(1);
/// How many ids are enough.
const ENOUGH: usize = 32;
/// How many questions wait for the one under way.
const WAITING_MAX: usize = 1024;
/// How often claims older than the window are forgotten, and how many in one step.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
const PRUNE_STEP: u32 = 1000;
/// What a step leaves to everybody else who writes.
const PRUNE_PAUSE: Duration = Duration::from_millis(20);

/// `[dedup]` of the settings.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How long an id is remembered, at most 30 days; `0s` recognizes no duplicates.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(24 * 3600),
        }
    }
}

impl Settings {
    /// What is out of bounds, with the key's name.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let most = Duration::from_secs(30 * 24 * 3600);
        if self.window > most {
            vec![("dedup.window", "must be at most 30 days".to_owned())]
        } else {
            Vec::new()
        }
    }
}

/// The claims of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dedup {
    state: Arc<State>,
    finding: mpsc::Sender<Question<Key>>,
    claiming: mpsc::Sender<Question<Claim>>,
    noting: mpsc::Sender<Question<Noted>>,
}

#[derive(Debug)]
struct State {
    store: Store,
    window: SignedDuration,
    outage: Outage,
    duplicates: AtomicU64,
}

/// What is on record for each thing asked about, in its order; `None` while nobody can say.
type Answer = Option<Vec<Option<Held>>>;

#[derive(Debug)]
struct Question<T> {
    about: Vec<T>,
    answer: oneshot::Sender<Answer>,
}

impl Dedup {
    /// Begins to answer; `None` where the window is zero. Ends with its last handle.
    pub fn start(store: Store, settings: &Settings) -> Option<Self> {
        let window = SignedDuration::try_from(settings.window).ok()?;
        if window.is_zero() {
            return None;
        }
        let state = Arc::new(State {
            store,
            window,
            outage: Outage::default(),
            duplicates: AtomicU64::new(0),
        });
        let (finding, to_find) = mpsc::channel(WAITING_MAX);
        let (claiming, to_claim) = mpsc::channel(WAITING_MAX);
        let (noting, to_note) = mpsc::channel(WAITING_MAX);
        tokio::spawn(answer(state.clone(), to_find));
        tokio::spawn(answer(state.clone(), to_claim));
        tokio::spawn(answer(state.clone(), to_note));
        Some(Self {
            state,
            finding,
            claiming,
            noting,
        })
    }

    /// What is on record for these ids. `None` while the store does not answer.
    pub async fn find(&self, keys: Vec<Key>) -> Answer {
        self.state.ask(&self.finding, keys).await
    }

    /// Claims ids; of one that is there twice the first is meant, and is what is on record for the
    /// second. `None` for what is claimed now; the whole is `None` while the store does not answer.
    pub async fn claim(&self, claims: Vec<Claim>) -> Answer {
        self.state.ask(&self.claiming, claims).await
    }

    /// Claims ids that may be claimed already, which is right too. Returns when they are on record,
    /// or when the store does not answer.
    pub async fn note(&self, claims: Vec<Claim>) {
        let noted = claims.into_iter().map(Noted).collect();
        self.state.ask(&self.noting, noted).await;
    }

    /// Whether duplicates are not recognized just now, because the store does not answer.
    pub fn is_off(&self) -> bool {
        self.state.outage.is_on()
    }

    /// Counts events that were published before and dropped.
    pub fn count_duplicates(&self, count: u64) {
        self.state.duplicates.fetch_add(count, Ordering::Relaxed);
    }

    /// How many there were in this process.
    pub fn duplicates(&self) -> u64 {
        self.state.duplicates.load(Ordering::Relaxed)
    }

    /// Forgets claims older than the window, in small steps, until `stop`.
    pub async fn prune(self, stop: CancellationToken) {
        let pruning = async {
            loop {
                tokio::time::sleep(PRUNE_EVERY).await;
                if !self.is_off() {
                    self.prune_once().await;
                }
            }
        };
        stop.run_until_cancelled(pruning).await;
    }

    async fn prune_once(&self) {
        loop {
            let before = self.state.since(Timestamp::now());
            match self.state.store.prune_claims(before, PRUNE_STEP).await {
                Ok(count) if count >= u64::from(PRUNE_STEP) => {
                    tokio::time::sleep(PRUNE_PAUSE).await;
                }
                Ok(_) => break,
                Err(error) => {
                    debug!(%error, "old claims could not be forgotten yet");
                    break;
                }
            }
        }
    }
}

impl State {
    fn since(&self, now: Timestamp) -> Timestamp {
        now.checked_sub(self.window).unwrap_or(Timestamp::MIN)
    }

    async fn ask<T>(&self, lane: &mpsc::Sender<Question<T>>, about: Vec<T>) -> Answer {
        if self.outage.is_on() {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        lane.send(Question { about, answer }).await.ok()?;
        answered.await.ok()?
    }
}

impl Patient for State {
    const ANSWER_MAX: Duration = CLAIM_MAX;
    const BEGINS: &str =
        "the store does not answer: events that are published twice are delivered twice";
    const ENDS: &str = "the store answers again: duplicates are recognized";

    fn outage(&self) -> &Outage {
        &self.outage
    }

    async fn probe(&self) -> Result<(), Error> {
        self.store.can_claim().await
    }
}

/// What can be asked about.
trait About: Send + Sync + 'static {
    fn key(&self) -> &Key;
    /// What is on record once this one, of which nothing was found, has been dealt with.
    fn leaves(&self) -> Option<Held>;
    /// Asks the store about different ids.
    fn ask(
        state: &State,
        about: &[Self],
    ) -> impl Future<Output = Result<Vec<Option<Held>>, Error>> + Send
    where
        Self: Sized;
    const PATIENCE: Duration;
    const PACE: Duration;
}

impl About for Key {
    fn key(&self) -> &Key {
        self
    }

    fn leaves(&self) -> Option<Held> {
        None
    }

    async fn ask(state: &State, about: &[Self]) -> Result<Vec<Option<Held>>, Error> {
        let since = state.since(Timestamp::now());
        state.store.claimed(about, since).await
    }

    const PATIENCE: Duration = FIND_MAX;
    const PACE: Duration = FIND_PACE;
}

impl About for Claim {
    fn key(&self) -> &Key {
        &self.key
    }

    fn leaves(&self) -> Option<Held> {
        Some(self.held.clone())
    }

    async fn ask(state: &State, about: &[Self]) -> Result<Vec<Option<Held>>, Error> {
        let since = state.since(Timestamp::now());
        state.store.claim(about, since).await
    }

    const PATIENCE: Duration = CLAIM_MAX;
    const PACE: Duration = CLAIM_PACE;
}

/// A claim of which nobody needs to know what came of it.
#[derive(Debug)]
struct Noted(Claim);

impl About for Noted {
    fn key(&self) -> &Key {
        &self.0.key
    }

    fn leaves(&self) -> Option<Held> {
        None
    }

    async fn ask(state: &State, about: &[Self]) -> Result<Vec<Option<Held>>, Error> {
        let claims: Vec<_> = about.iter().map(|noted| noted.0.clone()).collect();
        let since = state.since(Timestamp::now());
        let noted = state.store.note_claims(&claims, since);
        noted.await.map(|()| vec![None; claims.len()])
    }

    const PATIENCE: Duration = CLAIM_MAX;
    const PACE: Duration = FIND_PACE;
}

/// Answers questions, those that wait at once with one statement. While one is under way the next
/// ones gather.
async fn answer<T: About>(state: Arc<State>, mut questions: mpsc::Receiver<Question<T>>) {
    let mut next_from = Instant::now();
    while let Some(first) = questions.recv().await {
        let mut count = first.about.len();
        let mut group = vec![first];
        while count < GROUP_MAX {
            let next = match questions.try_recv() {
                Ok(next) => Some(next),
                Err(_) if count >= ENOUGH => None,
                Err(_) => timeout_at(next_from, questions.recv()).await.ok().flatten(),
            };
            let Some(next) = next else { break };
            count += next.about.len();
            group.push(next);
        }
        next_from = Instant::now() + T::PACE;
        let (abouts, answers): (Vec<_>, Vec<_>) = group
            .into_iter()
            .map(|question| (question.about, question.answer))
            .unzip();
        let sizes: Vec<_> = abouts.iter().map(Vec::len).collect();
        let found = ask_once(&state, abouts.into_iter().flatten().collect()).await;
        let mut found = found.map(Vec::into_iter);
        for (size, answer) in sizes.into_iter().zip(answers) {
            let part = found
                .as_mut()
                .map(|found| found.by_ref().take(size).collect());
            // Who asked may have gone.
            drop(answer.send(part));
        }
    }
}

/// Asks about each id once, whatever was asked about it how often.
async fn ask_once<T: About>(state: &Arc<State>, abouts: Vec<T>) -> Answer {
    // It may have gone away while these were waiting.
    if state.outage.is_on() {
        return None;
    }
    let mut firsts: HashMap<Key, usize> = HashMap::with_capacity(abouts.len());
    let mut unique = Vec::with_capacity(abouts.len());
    // For each thing asked, which of the unique ones answers it, and whether it is that one.
    let mut places = Vec::with_capacity(abouts.len());
    for about in abouts {
        let place = *firsts.entry(about.key().clone()).or_insert(unique.len());
        let is_first = place == unique.len();
        places.push((place, is_first));
        if is_first {
            unique.push(about);
        }
    }
    let mut found = Vec::with_capacity(unique.len());
    // Patience for each statement: a batch of very many events is no sign of a store that hangs.
    for some in unique.chunks(GROUP_MAX) {
        let asked = timeout(T::PATIENCE, T::ask(state, some)).await;
        match asked.unwrap_or_else(|_| Err(too_late(T::PATIENCE))) {
            Ok(part) => found.extend(part),
            Err(error) => {
                outage::begin(state, &error);
                return None;
            }
        }
    }
    let answers = places.into_iter().map(|(place, is_first)| {
        let on_record = found.get(place).cloned().flatten();
        if is_first {
            on_record
        } else {
            on_record.or_else(|| unique[place].leaves())
        }
    });
    Some(answers.collect())
}

fn too_late(patience: Duration) -> Error {
    Error::Unavailable(format!("no answer within {patience:?}"))
}
