//! What loaders answered lately: bounded in bytes, forgotten after a while, the longest unused
//! first. Pure but for the lock around it.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use super::{Answer, Key};

/// How long an answer is kept: as long as the first retries of all subscribers take.
const KEPT: Duration = Duration::from_secs(300);
/// What an entry costs beside its text: key, bookkeeping and the allocator's share.
const ENTRY_BYTES: usize = 512;

pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    /// From the longest unused to the latest, by the turn of its last use.
    order: BTreeMap<u64, Key>,
    turn: u64,
    bytes: usize,
    bytes_max: usize,
}

struct Entry {
    answer: Answer,
    bytes: usize,
    until: Instant,
    turn: u64,
}

impl Cache {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            turn: 0,
            bytes: 0,
            bytes_max,
        }
    }

    pub(super) fn get(&mut self, key: &Key, now: Instant) -> Option<Answer> {
        let entry = self.entries.get_mut(key)?;
        if entry.until <= now {
            self.remove(key);
            return None;
        }
        self.turn += 1;
        self.order.remove(&entry.turn);
        entry.turn = self.turn;
        self.order.insert(self.turn, key.clone());
        Some(entry.answer.clone())
    }

    /// Keeps an answer whose text is so long, if it fits at all.
    pub(super) fn put(&mut self, key: &Key, answer: Answer, text_bytes: usize, now: Instant) {
        self.remove(key);
        let bytes = text_bytes + ENTRY_BYTES;
        if bytes > self.bytes_max {
            return;
        }
        while self.bytes + bytes > self.bytes_max {
            let Some((_, oldest)) = self.order.pop_first() else {
                break;
            };
            self.remove(&oldest);
        }
        self.turn += 1;
        self.bytes += bytes;
        self.order.insert(self.turn, key.clone());
        let entry = Entry {
            answer,
            bytes,
            until: now + KEPT,
            turn: self.turn,
        };
        self.entries.insert(key.clone(), entry);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.bytes;
            self.order.remove(&entry.turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use event::{EventId, Tenant, subscription::View};

    use super::*;

    fn key(n: u32) -> Key {
        let tenant = Tenant::parse("t").expect("a tenant");
        (
            tenant,
            EventId::parse(&format!("e{n}")).expect("an id"),
            View::Full,
        )
    }

    fn known(cache: &mut Cache, now: Instant) -> Vec<u32> {
        // By looking at the map: asking would count as a use.
        let mut known: Vec<u32> = (0..10)
            .filter(|n| {
                cache
                    .entries
                    .get(&key(*n))
                    .is_some_and(|entry| entry.until > now)
            })
            .collect();
        known.sort_unstable();
        known
    }

    #[test]
    fn the_longest_unused_make_room_and_the_bytes_stay_within_their_bound() {
        let now = Instant::now();
        let mut cache = Cache::new(3 * (ENTRY_BYTES + 100));
        for n in 0..3 {
            cache.put(&key(n), Answer::Absent(404), 100, now);
        }
        assert!(cache.get(&key(0), now).is_some());
        cache.put(&key(3), Answer::Absent(404), 100, now);
        assert_eq!(known(&mut cache, now), [0, 2, 3]);
        cache.put(&key(4), Answer::Absent(404), 2 * 100 + ENTRY_BYTES, now);
        assert_eq!(known(&mut cache, now), [3, 4]);
        cache.put(&key(5), Answer::Absent(404), 1_000_000, now);
        assert_eq!(
            known(&mut cache, now),
            [3, 4],
            "what can never fit removes nothing"
        );
        assert!(cache.bytes <= cache.bytes_max);
        assert_eq!(cache.order.len(), cache.entries.len());
    }

    #[test]
    fn an_answer_is_forgotten_after_its_time_and_replaced_by_a_newer_one() {
        let now = Instant::now();
        let mut cache = Cache::new(10_000);
        cache.put(&key(0), Answer::Absent(404), 10, now);
        cache.put(&key(0), Answer::Absent(410), 20, now);
        assert_eq!(cache.bytes, ENTRY_BYTES + 20);
        assert!(matches!(cache.get(&key(0), now), Some(Answer::Absent(410))));
        assert!(cache.get(&key(0), now + KEPT).is_none());
        assert_eq!((cache.bytes, cache.order.len()), (0, 0));
    }
}
