//! How many attempts are under way to each address, over all subscriptions: nobody shall gather
//! many endpoints on one address and have us hold hundreds of connections to it, be it a trap of
//! theirs or a stranger's server.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// The longest an attempt waits for a place: it holds one of the process's own meanwhile.
const PATIENCE: Duration = Duration::from_millis(250);
/// From so many addresses on, those that nobody uses are forgotten.
const FORGET_FROM: usize = 1024;

/// The addresses in use.
#[derive(Debug)]
pub(super) struct Crowd {
    address_max: usize,
    addresses: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
}

/// One attempt's place at its address, given back with it.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Crowd {
    pub(super) fn new(address_max: usize) -> Self {
        Self {
            address_max,
            addresses: Mutex::default(),
        }
    }

    /// A place at the address, at once or within [`PATIENCE`].
    pub(super) async fn enter(&self, address: IpAddr) -> Option<Place> {
        let places = self.places(address.to_canonical());
        let permit = timeout(PATIENCE, places.acquire_owned()).await.ok()?.ok()?;
        Some(Place { _permit: permit })
    }

    /// A permit keeps its semaphore, so an address is known for as long as it is in use.
    fn places(&self, address: IpAddr) -> Arc<Semaphore> {
        let mut addresses = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = addresses.get(&address).and_then(Weak::upgrade) {
            return places;
        }
        if addresses.len() >= FORGET_FROM {
            addresses.retain(|_, places| places.strong_count() > 0);
        }
        let places = Arc::new(Semaphore::new(self.address_max));
        addresses.insert(address, Arc::downgrade(&places));
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn r38_an_address_has_so_many_places_in_whatever_spelling() {
        let crowd = Crowd::new(2);
        let [one, other] = ["203.0.113.1", "203.0.113.2"].map(|text| text.parse().unwrap());
        let mapped = "::ffff:203.0.113.1".parse().unwrap();
        let first = crowd.enter(one).await;
        let second = crowd.enter(mapped).await;
        assert!(first.is_some() && second.is_some());
        assert!(crowd.enter(one).await.is_none(), "a third");
        assert!(crowd.enter(other).await.is_some(), "another address");
        drop(first);
        assert!(crowd.enter(one).await.is_some(), "a place was given back");
    }
}
