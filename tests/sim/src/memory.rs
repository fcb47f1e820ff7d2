//! The simulated store, as far as recording is concerned: each call is a transaction, which takes a
//! moment, may find the store away, and may be done though its answer is lost.

use std::{collections::BTreeMap, sync::Arc};

use event::{
    delivery::{DeadLetter, Item},
    log::{Archived, HeldDelivery, LogEntry},
    reason::DeliveryState,
};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use recorder::sim::Memory;
use store::{Error, Quarantined, Recorded};
use tokio::time::{Instant, sleep};

use crate::{
    content::{Key, key, number},
    plants::Plant,
    world::{State, World},
};

/// What is on record.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    pub(crate) events: BTreeMap<usize, u64>,
    pub(crate) deliveries: BTreeMap<Key, Known>,
    pub(crate) dead: BTreeMap<Key, u64>,
    pub(crate) held: BTreeMap<Key, (Item, u64)>,
    /// The step at which a delivery was last handed over, also of those that were sent since.
    pub(crate) held_once: BTreeMap<Key, u64>,
    pub(crate) quarantined: u64,
}

/// How a delivery stands, by its latest entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// How far it has come, by the real store's own rule.
    pub(crate) progress: i64,
    pub(crate) state: DeliveryState,
    at: Timestamp,
}

/// The store, as one recorder sees it.
#[derive(Debug)]
pub(crate) struct Simulated {
    pub(crate) world: World,
    pub(crate) away_until: Arc<std::sync::Mutex<Instant>>,
    pub(crate) plant: Option<Plant>,
}

impl Simulated {
    /// One transaction: all of it or nothing.
    async fn within<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, Error> {
        let (takes, is_lost) = self.world.with(|state| {
            let is_lost = state.breaks() && state.chance.percent(3);
            (state.chance.ms(1, 30), is_lost)
        });
        sleep(takes).await;
        if Instant::now() < *self.away_until.lock().expect("not poisoned") {
            return Err(Error::Unavailable("the simulation wants so".into()));
        }
        let done = self.world.with(|state| {
            state.book.step += 1;
            change(state)
        });
        match is_lost {
            true => Err(Error::Unavailable("its answer is lost".into())),
            false => Ok(done),
        }
    }

    fn forgets(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }
}

impl Memory for Simulated {
    fn record<'a>(
        &'a self,
        archived: &'a [Archived],
        entries: &'a [LogEntry],
    ) -> BoxFuture<'a, Result<Recorded, Error>> {
        Box::pin(async move {
            // What a real store will never take is refused with all that is in the same call.
            let poison = self.world.lock().book.plan.poison;
            let mut events = archived
                .iter()
                .map(|archived| number(archived.event.id.as_str()));
            if events.any(|event| Some(event) == poison) {
                return Err(Error::Fatal("the simulation wants so".into()));
            }
            self.within(|state| {
                let step = state.book.step;
                let known = &mut state.book.remembered;
                for archived in archived {
                    let event = number(archived.event.id.as_str());
                    known.events.insert(event, step);
                }
                for entry in entries {
                    let place = key(entry.event_id.as_str(), entry.subscription_id.as_str());
                    let now = Known {
                        progress: store::log::progress(entry.state, entry.run, entry.attempts),
                        state: entry.state,
                        at: entry.at,
                    };
                    let before = known.deliveries.entry(place).or_insert(now);
                    if (now.progress, now.at) >= (before.progress, before.at) {
                        *before = now;
                    }
                }
            })
            .await?;
            Ok(Recorded::default())
        })
    }

    fn record_held<'a>(&'a self, held: &'a [HeldDelivery]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if self.forgets(Plant::HeldNotRecorded) {
                return Ok(());
            }
            self.within(|state| {
                let step = state.book.step;
                for held in held {
                    for to in &held.item.to {
                        let place = key(held.item.event.id.as_str(), to.subscription.as_str());
                        let known = &mut state.book.remembered;
                        known.held.entry(place).or_insert((held.item.clone(), step));
                        known.held_once.insert(place, step);
                    }
                }
            })
            .await
        })
    }

    fn record_quarantined<'a>(
        &'a self,
        messages: &'a [Quarantined],
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.within(|state| state.book.remembered.quarantined += messages.len() as u64))
    }

    fn record_dead<'a>(&'a self, letters: &'a [DeadLetter]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if self.forgets(Plant::StoreErrorTakenForCommit) {
                self.within(|state| letters.iter().for_each(|letter| dead(state, letter)))
                    .await
                    .ok();
                return Ok(());
            }
            self.within(|state| letters.iter().for_each(|letter| dead(state, letter)))
                .await
        })
    }
}

fn dead(state: &mut State, letter: &DeadLetter) {
    let place = key(letter.event_id.as_str(), letter.subscription_id.as_str());
    let step = state.book.step;
    state.book.remembered.dead.insert(place, step);
}
