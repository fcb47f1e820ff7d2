//! What is ready at once goes as one parcel.
//!
//! A bundle costs the broker about as much as a single delivery, so the more are waiting the fuller
//! it gets; when traffic is low each goes alone, at once. An event with very many recipients is
//! cut into parts, and its source message is acknowledged after the last part's confirm.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use broker::Ticket;
use event::{SubscriptionId, delivery::Recipient};
use jiff::Timestamp;
use prometheus::IntCounter;
use serde::Serialize;
use serde_json::value::RawValue;

/// The message some parts were made from. Acknowledged when the last of them is confirmed, and
/// those of its events that were routed count then.
#[derive(Debug)]
pub(crate) struct Source {
    ticket: std::sync::Mutex<Option<Ticket>>,
    open: AtomicUsize,
    events: AtomicU64,
    routed: IntCounter,
}

impl Source {
    pub(crate) fn new(ticket: Ticket, routed: &IntCounter) -> Arc<Self> {
        Arc::new(Self {
            ticket: std::sync::Mutex::new(Some(ticket)),
            open: AtomicUsize::new(1),
            events: AtomicU64::new(0),
            routed: routed.clone(),
        })
    }

    /// One more of its events is being routed.
    pub(crate) fn routes_one(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the broker hands the message out again in any case.
    pub(crate) fn is_void(&self) -> bool {
        let ticket = self
            .ticket
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        ticket.as_ref().is_some_and(Ticket::is_void)
    }

    /// One more part has to be confirmed.
    pub(crate) fn hold(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// One part, or the reading of the message itself, is done with.
    pub(crate) fn release(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            let ticket = self
                .ticket
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .take();
            if let Some(ticket) = ticket {
                self.routed.inc_by(self.events.load(Ordering::Relaxed));
                ticket.ack();
            }
        }
    }
}

/// An event as JSON, written once for all that is made of it.
pub(crate) type EventJson = Arc<Box<RawValue>>;

/// As [`event::delivery::Bundle`] reads it, with its events written already.
#[derive(Debug, Serialize)]
pub(crate) struct Bundle {
    items: Vec<Item>,
}

/// As [`event::delivery::Item`] reads it.
#[derive(Debug, Serialize)]
struct Item {
    event: EventJson,
    accepted_at: Timestamp,
    revision: u64,
    to: Vec<Recipient>,
}

/// A part of a bundle to be, and where it came from.
#[derive(Debug)]
struct Part {
    item: Item,
    bytes: usize,
    source: Arc<Source>,
}

/// Parts waiting to be sent, oldest first.
#[derive(Debug)]
pub(crate) struct Waiting {
    parts: VecDeque<Part>,
    deliveries_max: usize,
    bytes_max: usize,
}

/// What one bundle holds and which messages wait for its confirm.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) bundle: Bundle,
    pub(crate) deliveries: usize,
    pub(crate) sources: Vec<Arc<Source>>,
}

impl Waiting {
    pub(crate) fn new(deliveries_max: usize, bytes_max: usize) -> Self {
        Self {
            parts: VecDeque::new(),
            deliveries_max: deliveries_max.max(1),
            bytes_max,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Adds an event with everybody it goes to, in parts no larger than a bundle may be.
    pub(crate) fn add(
        &mut self,
        event: &EventJson,
        to: Vec<SubscriptionId>,
        revision: u64,
        accepted_at: Timestamp,
        source: &Arc<Source>,
    ) {
        let bytes = EVENT_BYTES + event.get().len();
        let mut to = to.into_iter().map(Recipient::first).peekable();
        while to.peek().is_some() {
            source.hold();
            let to: Vec<_> = to.by_ref().take(self.deliveries_max).collect();
            let bytes = bytes + to.len() * RECIPIENT_BYTES;
            let item = Item {
                event: event.clone(),
                accepted_at,
                revision,
                to,
            };
            self.parts.push_back(Part {
                item,
                bytes,
                source: source.clone(),
            });
        }
    }

    /// The next bundle: as many whole parts as fit, at least one.
    ///
    /// Parts of a message that the broker hands out again are left out: it is routed then.
    pub(crate) fn pack(&mut self) -> Option<Packed> {
        while self.parts.front().is_some_and(|part| part.source.is_void()) {
            self.parts.pop_front();
        }
        let first = self.parts.pop_front()?;
        let (mut deliveries, mut bytes) = (first.item.to.len(), first.bytes);
        let (mut items, mut sources) = (vec![first.item], vec![first.source]);
        while let Some(next) = self.parts.front() {
            if next.source.is_void() {
                self.parts.pop_front();
                continue;
            }
            if deliveries + next.item.to.len() > self.deliveries_max
                || bytes + next.bytes > self.bytes_max
            {
                break;
            }
            deliveries += next.item.to.len();
            bytes += next.bytes;
            if let Some(part) = self.parts.pop_front() {
                items.push(part.item);
                sources.push(part.source);
            }
        }
        Some(Packed {
            bundle: Bundle { items },
            deliveries,
            sources,
        })
    }
}

/// About what a recipient adds to a bundle: `{"sub":"sub_` and 32 hex digits.
const RECIPIENT_BYTES: usize = 48;

/// About what an event adds to a bundle beside itself: when it was accepted, and brackets.
const EVENT_BYTES: usize = 100;

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::AtomicBool;

    use broker::Settle;

    use super::*;

    #[derive(Debug)]
    struct Acked(Arc<AtomicBool>);

    #[derive(Debug)]
    struct Void;

    impl Settle for Void {
        fn ack(self: Box<Self>) {}
        fn give_back(self: Box<Self>) {}
        fn is_void(&self) -> bool {
            true
        }
    }

    impl Settle for Acked {
        fn ack(self: Box<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
        fn give_back(self: Box<Self>) {}
    }

    pub(crate) fn source() -> (Arc<Source>, Arc<AtomicBool>) {
        let acked = Arc::new(AtomicBool::new(false));
        let ticket = Ticket::new(Box::new(Acked(acked.clone())));
        (Source::new(ticket, &counter()), acked)
    }

    /// Of a message that the broker hands out again.
    pub(crate) fn void() -> Arc<Source> {
        Source::new(Ticket::new(Box::new(Void)), &counter())
    }

    fn counter() -> IntCounter {
        IntCounter::new("routed", "Events.").expect("a counter")
    }

    fn event(data_bytes: usize) -> EventJson {
        let text = format!(
            r#"{{"id":"e","tenant":"t","type":"a.b","time":"2026-01-01T00:00:00Z","data":"{}"}}"#,
            "x".repeat(data_bytes)
        );
        Arc::new(RawValue::from_string(text).expect("JSON"))
    }

    pub(crate) fn ids(count: usize) -> Vec<SubscriptionId> {
        (0..count)
            .map(|n| SubscriptionId::parse(&format!("sub_{n}")).expect("an id"))
            .collect()
    }

    #[test]
    fn small_parts_share_a_bundle_up_to_its_bounds() {
        let mut waiting = Waiting::new(4, 1 << 20);
        let now = Timestamp::UNIX_EPOCH;
        for count in [1, 2, 2, 1] {
            let (source, _) = source();
            waiting.add(&event(10), ids(count), 1, now, &source);
        }
        let sizes: Vec<_> = std::iter::from_fn(|| waiting.pack())
            .map(|packed| packed.deliveries)
            .collect();
        assert_eq!(sizes, [3, 3]);
    }

    #[test]
    fn what_the_broker_hands_out_again_is_left_out() {
        let mut waiting = Waiting::new(10, 1 << 20);
        let now = Timestamp::UNIX_EPOCH;
        for source in [void(), source().0, void(), source().0, void()] {
            waiting.add(&event(10), ids(1), 1, now, &source);
        }
        let sizes: Vec<_> = std::iter::from_fn(|| waiting.pack())
            .map(|packed| packed.deliveries)
            .collect();
        assert_eq!(sizes, [2]);
        assert!(waiting.is_empty());
    }

    #[test]
    fn a_deliverer_reads_what_was_packed() {
        let mut waiting = Waiting::new(10, 1 << 20);
        let at: Timestamp = "2026-03-01T12:00:00.25Z".parse().expect("a time");
        waiting.add(&event(3), ids(2), 7, at, &source().0);
        let packed = waiting.pack().expect("a bundle");
        let written = serde_json::to_vec(&packed.bundle).expect("JSON");
        let read: event::delivery::Bundle = serde_json::from_slice(&written).expect("a bundle");
        let item = &read.items[0];
        assert_eq!((item.revision, item.accepted_at, item.to.len()), (7, at, 2));
        assert_eq!(
            item.event.data.as_ref().map(|data| data.get()),
            Some(r#""xxx""#)
        );
        assert_eq!(
            serde_json::to_vec(&read).expect("JSON"),
            written,
            "in the same words"
        );
    }

    #[test]
    fn large_events_do_not_share() {
        let mut waiting = Waiting::new(100, 1000);
        for _ in 0..2 {
            let (source, _) = source();
            waiting.add(&event(900), ids(1), 1, Timestamp::UNIX_EPOCH, &source);
        }
        assert_eq!(std::iter::from_fn(|| waiting.pack()).count(), 2);
    }

    #[test]
    fn a_source_is_acked_after_its_last_part_and_not_before() {
        let mut waiting = Waiting::new(10, 1 << 20);
        let (acked, routed) = (Arc::new(AtomicBool::new(false)), counter());
        let ticket = Ticket::new(Box::new(Acked(acked.clone())));
        let source = Source::new(ticket, &routed);
        source.routes_one();
        source.routes_one();
        waiting.add(&event(10), ids(25), 1, Timestamp::UNIX_EPOCH, &source);
        source.release();
        let bundles: Vec<_> = std::iter::from_fn(|| waiting.pack()).collect();
        assert_eq!(bundles.len(), 3);
        let recipients: usize = bundles
            .iter()
            .flat_map(|packed| &packed.bundle.items)
            .map(|item| item.to.len())
            .sum();
        assert_eq!(recipients, 25);
        for (confirmed, packed) in bundles.iter().enumerate() {
            let so_far = (acked.load(Ordering::SeqCst), routed.get());
            assert_eq!(so_far, (false, 0), "after {confirmed} of 3");
            packed.sources.iter().for_each(|source| source.release());
        }
        assert_eq!((acked.load(Ordering::SeqCst), routed.get()), (true, 2));
    }

    #[test]
    fn a_source_nobody_wants_is_acked_at_once() {
        let (source, acked) = source();
        source.release();
        assert!(acked.load(Ordering::SeqCst));
    }
}
