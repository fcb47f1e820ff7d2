//! One parcel, many deliveries, one ack: a bundle is acknowledged when each of its deliveries is
//! settled, and goes back to its queue when one of them could not be.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use broker::Ticket;

/// One delivery's share in its bundle. Settled exactly once; dropping it unsettled (a task that was
/// cut off) sends the bundle back, so that a delivery can be repeated but never lost.
#[derive(Debug)]
pub(crate) struct Share {
    bundle: Arc<Bundle>,
    settled: bool,
}

#[derive(Debug)]
struct Bundle {
    /// Taken by `drop`, which is the only place that settles it.
    ticket: Option<Ticket>,
    unsettled: AtomicBool,
}

/// Divides a parcel's ticket between its `count` deliveries. A parcel without any is done with.
pub(crate) fn share(ticket: Ticket, count: usize) -> Vec<Share> {
    #[cfg(feature = "sim")]
    if broker::sim::planted("bundle acked with its first share") {
        return crate::sim::share_with_the_first(ticket, count);
    }
    undivided(ticket, count)
}

/// All shares of one ticket.
pub(crate) fn undivided(ticket: Ticket, count: usize) -> Vec<Share> {
    let bundle = Arc::new(Bundle {
        ticket: Some(ticket),
        unsettled: AtomicBool::new(false),
    });
    std::iter::repeat_n(bundle, count)
        .map(|bundle| Share {
            bundle,
            settled: false,
        })
        .collect()
}

impl Share {
    /// Whether the broker hands the bundle out again in any case.
    pub(crate) fn is_void(&self) -> bool {
        self.bundle.ticket.as_ref().is_none_or(Ticket::is_void)
    }

    /// The delivery arrived, was not wanted, or what was made from it is confirmed.
    pub(crate) fn settle(mut self) {
        self.settled = true;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if !self.settled {
            self.bundle.unsettled.store(true, Ordering::Release);
        }
    }
}

impl Drop for Bundle {
    /// The last share is gone.
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        if self.unsettled.load(Ordering::Acquire) {
            ticket.give_back();
        } else {
            ticket.ack();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use broker::Settle;

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Seen(Arc<Mutex<Vec<&'static str>>>);

    impl Seen {
        fn ticket(&self) -> Ticket {
            Ticket::new(Box::new(self.clone()))
        }

        #[track_caller]
        fn check(&self, expected: &[&str]) {
            assert_eq!(*self.0.lock().expect("not poisoned"), expected);
        }
    }

    impl Settle for Seen {
        fn ack(self: Box<Self>) {
            self.0.lock().expect("not poisoned").push("ack");
        }

        fn give_back(self: Box<Self>) {
            self.0.lock().expect("not poisoned").push("give back");
        }
    }

    #[test]
    fn a_bundle_is_acked_when_its_last_delivery_is_settled_and_not_before() {
        let seen = Seen::default();
        let mut shares: Vec<Share> = share(seen.ticket(), 3);
        shares.remove(1).settle();
        shares.remove(1).settle();
        seen.check(&[]);
        shares.remove(0).settle();
        seen.check(&["ack"]);
    }

    #[test]
    fn a_bundle_goes_back_when_one_delivery_could_not_be_settled() {
        let seen = Seen::default();
        let mut shares: Vec<Share> = share(seen.ticket(), 3);
        drop(shares.remove(0));
        seen.check(&[]);
        shares.remove(0).settle();
        seen.check(&[]);
        shares.remove(0).settle();
        seen.check(&["give back"]);
    }

    #[test]
    fn an_empty_bundle_is_done_with() {
        let seen = Seen::default();
        drop(share(seen.ticket(), 0));
        seen.check(&["ack"]);
    }
}
