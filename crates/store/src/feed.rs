//! The snapshot of all subscriptions that a process lives on, and how it follows the store.
//!
//! While the store is away the last snapshot stands, and [`Feed::age`] says how old the last
//! answer is. A database that was replaced or rolled back is noticed by its identity or by its
//! revision, and then everything is loaded anew.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use event::SubscriptionId;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Changes, Error, Store, Stored};

/// All subscriptions as of a revision. Swapped whole; readers keep the one they hold.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The store's revision.
    pub revision: u64,
    /// Every subscription, deleted ones gone.
    pub subscriptions: HashMap<SubscriptionId, Arc<Stored>>,
}

impl Snapshot {
    fn apply(&mut self, changes: Changes) {
        self.revision = changes.revision;
        for id in changes.deleted {
            self.subscriptions.remove(&id);
        }
        for stored in changes.stored {
            self.subscriptions
                .insert(stored.subscription.id.clone(), Arc::new(stored));
        }
    }
}

/// Follows the store: polls its revision, at once after [`Feed::nudge`].
#[derive(Debug, Clone)]
pub struct Feed {
    receiver: watch::Receiver<Option<Arc<Snapshot>>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Here and not in the follower alone, so that a watch outlives the following.
    sender: watch::Sender<Option<Arc<Snapshot>>>,
    nudged: Notify,
    /// Wakes those that wait for a change, in the order they came: a watch wakes its readers in
    /// any order, and a simulation could not be run again.
    turned: Notify,
    /// When the store last answered; `None` for a feed that never changes.
    answered: Option<Mutex<Instant>>,
}

impl Shared {
    fn turn_to(&self, snapshot: Snapshot) {
        self.sender.send_replace(Some(Arc::new(snapshot)));
        self.turned.notify_waiters();
    }
}

impl Feed {
    /// Starts following in the background until `stop`. Before the first snapshot
    /// [`Self::snapshot`] is `None` and the process is not ready.
    pub fn follow(store: Store, every: Duration, stop: CancellationToken) -> Self {
        let feed = Self::new(None, Some(Mutex::new(Instant::now())));
        let shared = Arc::clone(&feed.shared);
        let follower = Follower {
            store,
            shared,
            identity: String::new(),
            away: false,
        };
        tokio::spawn(follower.run(every, stop));
        feed
    }

    /// A feed that never changes, for tests.
    pub fn fixed(snapshot: Snapshot) -> Self {
        Self::new(Some(Arc::new(snapshot)), None)
    }

    /// A feed that changes when its owner says so ([`Self::turn_to`]), for simulations.
    pub fn by_hand(snapshot: Snapshot) -> Self {
        let now = Mutex::new(Instant::now());
        Self::new(Some(Arc::new(snapshot)), Some(now))
    }

    /// The store of a feed [`Self::by_hand`] has answered with this.
    pub fn turn_to(&self, snapshot: Snapshot) {
        if let Some(answered) = &self.shared.answered {
            *answered.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        if self.receiver.borrow().as_ref().map(|known| known.revision) != Some(snapshot.revision) {
            self.shared.turn_to(snapshot);
        }
    }

    /// Somebody asks for a look at the store; for the owner of a feed [`Self::by_hand`].
    pub async fn nudged(&self) {
        self.shared.nudged.notified().await;
    }

    fn new(first: Option<Arc<Snapshot>>, answered: Option<Mutex<Instant>>) -> Self {
        let (sender, receiver) = watch::channel(first);
        Self {
            receiver,
            shared: Arc::new(Shared {
                sender,
                nudged: Notify::new(),
                turned: Notify::new(),
                answered,
            }),
        }
    }

    /// The latest snapshot.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.receiver.borrow().clone()
    }

    /// Resolves when a newer snapshot than the last seen by this receiver is there.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.receiver.clone()
    }

    /// Asks for a look at the store now (after a change of our own).
    pub fn nudge(&self) {
        self.shared.nudged.notify_one();
    }

    /// Asks for a look at the store now, and waits until this process has seen `change`, or
    /// `patience` is over: what a person changed holds here when they are told that it is done.
    /// Other processes see it within the time they poll by.
    pub async fn shows(&self, patience: Duration, change: impl Fn(&Snapshot) -> bool) {
        if self.shared.answered.is_none() {
            return;
        }
        self.nudge();
        let seen = async {
            loop {
                let turned = self.shared.turned.notified();
                if self.snapshot().is_some_and(|snapshot| change(&snapshot)) {
                    return;
                }
                turned.await;
            }
        };
        // Over, or the process ends: the change is stored all the same.
        drop(tokio::time::timeout(patience, seen).await);
    }

    /// How long ago the store last answered.
    pub fn age(&self) -> Duration {
        self.shared
            .answered
            .as_ref()
            .map_or(Duration::ZERO, |answered| {
                answered
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .elapsed()
            })
    }
}

/// The background half of a feed.
struct Follower {
    store: Store,
    shared: Arc<Shared>,
    /// Which database the snapshot is of.
    identity: String,
    away: bool,
}

impl Follower {
    async fn run(mut self, every: Duration, stop: CancellationToken) {
        let following = async {
            loop {
                let looked = self.look().await;
                // First, so that who wakes up for a snapshot finds its age right.
                self.note(&looked);
                if let Ok(Some(snapshot)) = looked {
                    self.shared.turn_to(snapshot);
                }
                tokio::select! {
                    () = tokio::time::sleep(every) => {}
                    () = self.shared.nudged.notified() => {}
                }
            }
        };
        stop.run_until_cancelled(following).await;
    }

    /// The next snapshot, when there is one. Without a change that is one small query.
    async fn look(&mut self) -> Result<Option<Snapshot>, Error> {
        let head = self.store.head().await?;
        self.store.keep_up_with(&head).await?;
        let last = self.shared.sender.borrow().clone();
        // A server that was away may have come back as a replica that lost its last changes and
        // has since counted as far again; nothing else would tell.
        let same = self.identity == head.identity && !self.away;
        if same
            && last
                .as_ref()
                .is_some_and(|last| last.revision == head.revision)
        {
            return Ok(None);
        }
        // What has not changed is shared with the last snapshot.
        let mut next = last
            .filter(|last| same && last.revision < head.revision)
            .map_or_else(Snapshot::default, |last| (*last).clone());
        loop {
            let changes = self.store.changes(next.revision).await?;
            if changes.revision == next.revision {
                break;
            }
            next.apply(changes);
        }
        // A database whose newest rows were removed by hand would else look changed for ever.
        next.revision = next.revision.max(head.revision);
        self.identity = head.identity;
        Ok(Some(next))
    }

    /// Says once that the store is away, and once that it is back.
    fn note(&mut self, looked: &Result<Option<Snapshot>, Error>) {
        match looked {
            Ok(_) => {
                if let Some(answered) = &self.shared.answered {
                    *answered.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                }
                if std::mem::take(&mut self.away) {
                    info!("the store is back; subscriptions are up to date");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.away, true) {
                    warn!(%error, "the store is away; going on with the subscriptions last seen");
                }
            }
        }
    }
}
