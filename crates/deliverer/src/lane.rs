//! The way to one subscription, made ready once per revision: its filter compiled, its headers
//! built, its keys prepared, its endpoint's health remembered.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dialect::{Dialects, Signer, Speaker};
use event::{
    Subscription, SubscriptionId, filter::Filter, subscription::RateLimit, target::TargetRules,
};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter, clock::Clock};
use http::HeaderMap;
use prometheus::IntGaugeVec;
use store::{Stored, feed::Snapshot};
use tokio::time::{Instant, sleep};
use url::Url;

use crate::{
    endpoint::{Bounds, Endpoint, Refused},
    park::Cause,
};

/// The way to one subscription.
pub(crate) struct Lane {
    stored: Arc<Stored>,
    pub(crate) filter: Filter,
    /// How it is spoken to.
    pub(crate) speaker: Speaker,
    /// `None` where the rules of today refuse the URL.
    pub(crate) target: Option<Url>,
    /// The subscription's own headers.
    pub(crate) headers: HeaderMap,
    pub(crate) signer: Signer,
    pub(crate) endpoint: Arc<Endpoint>,
    rate: Option<Arc<Rate>>,
    /// Used since the last look for idle lanes.
    used: AtomicBool,
}

/// `rate_limit`, with what of it is used up.
struct Rate {
    limit: RateLimit,
    limiter: DefaultDirectRateLimiter,
}

/// All lanes in use, by subscription.
pub(crate) struct Lanes {
    lanes: RwLock<HashMap<SubscriptionId, Arc<Lane>>>,
    dialects: Arc<Dialects>,
    rules: TargetRules,
    bounds: Bounds,
    gauge: IntGaugeVec,
}

impl Lane {
    pub(crate) fn subscription(&self) -> &Subscription {
        &self.stored.subscription
    }

    /// Waits for the rate limit, if that is worth it within `patience`.
    pub(crate) async fn keep_rate(&self, patience: Duration) -> Result<(), Refused> {
        let Some(rate) = &self.rate else {
            return Ok(());
        };
        let until = Instant::now() + patience;
        while let Err(not_yet) = rate.limiter.check() {
            let wait = not_yet.wait_time_from(rate.limiter.clock().now());
            if Instant::now() + wait > until {
                return Err((Cause::RateLimit, wait));
            }
            sleep(wait).await;
        }
        Ok(())
    }
}

impl Lanes {
    pub(crate) fn new(
        dialects: Arc<Dialects>,
        rules: TargetRules,
        bounds: Bounds,
        gauge: IntGaugeVec,
    ) -> Self {
        Self {
            lanes: RwLock::default(),
            dialects,
            rules,
            bounds,
            gauge,
        }
    }

    /// The lane to a subscription as it is now, or why there cannot be one: something in it
    /// cannot be used, although it was accepted once.
    pub(crate) fn to(&self, stored: &Arc<Stored>) -> Result<Arc<Lane>, String> {
        let subscription = &stored.subscription;
        let ready = |lane: &&Arc<Lane>| lane.subscription().revision >= subscription.revision;
        if let Some(lane) = self.read().get(&subscription.id).filter(ready) {
            // Writing only where it changes something keeps the cache line shared.
            if !lane.used.load(Ordering::Relaxed) {
                lane.used.store(true, Ordering::Relaxed);
            }
            return Ok(lane.clone());
        }
        // Built under the lock: two lanes to one endpoint would each allow all its attempts.
        let mut lanes = self.write();
        let known = lanes.get(&subscription.id);
        if let Some(lane) = known.filter(ready) {
            return Ok(lane.clone());
        }
        let lane = Arc::new(self.build(stored, known.map(Arc::as_ref))?);
        lanes.insert(subscription.id.clone(), lane.clone());
        Ok(lane)
    }

    fn build(&self, stored: &Arc<Stored>, before: Option<&Lane>) -> Result<Lane, String> {
        let subscription = &stored.subscription;
        let filter = Filter::compile(&subscription.filter).map_err(|faults| {
            let said: Vec<_> = faults
                .iter()
                .map(|fault| format!("{}: {}", fault.pointer, fault.message))
                .collect();
            format!(
                "the subscription's filter cannot be used: {}",
                said.join("; ")
            )
        })?;
        let speaker = self.dialects.speaker(subscription);
        let speaker = speaker.map_err(|error| error.to_string())?;
        let headers = dialect::own_headers(subscription)?;
        let window_max = subscription.delivery.max_in_flight.max(1);
        // What is known of the endpoint stays known while the URL does.
        let endpoint = before
            .filter(|lane| lane.subscription().target_url == subscription.target_url)
            .map(|lane| lane.endpoint.clone());
        let endpoint = match endpoint {
            Some(endpoint) => {
                endpoint.set_window_max(window_max);
                endpoint
            }
            None => Arc::new(Endpoint::new(
                Bounds {
                    window_max,
                    ..self.bounds
                },
                self.gauge.clone(),
            )),
        };
        let rate = subscription.delivery.rate_limit.and_then(|limit| {
            let known = before.and_then(|lane| lane.rate.clone());
            known
                .filter(|rate| rate.limit == limit)
                .or_else(|| Rate::new(limit).map(Arc::new))
        });
        Ok(Lane {
            stored: stored.clone(),
            filter,
            speaker,
            target: self.rules.check_url(&subscription.target_url).ok(),
            headers,
            signer: Signer::new(&stored.keys),
            endpoint,
            rate,
            used: AtomicBool::new(true),
        })
    }

    /// Forgets the lanes to subscriptions that are gone, and those that are newer than their
    /// subscription: then an older copy of the store was restored, and that is what holds.
    pub(crate) fn forget_gone(&self, snapshot: &Snapshot) {
        self.write().retain(|id, lane| {
            let stored = snapshot.subscriptions.get(id);
            stored.is_some_and(|now| now.subscription.revision >= lane.subscription().revision)
        });
    }

    /// Forgets the lanes that were not used since the last call, unless their endpoint's bad
    /// health is worth remembering.
    pub(crate) fn forget_idle(&self) {
        self.write().retain(|_, lane| {
            lane.used.swap(false, Ordering::Relaxed) || !lane.endpoint.is_forgettable()
        });
    }

    /// Lets nobody wait for an endpoint any more.
    pub(crate) fn close(&self) {
        for lane in self.read().values() {
            lane.endpoint.close();
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<SubscriptionId, Arc<Lane>>> {
        self.lanes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<SubscriptionId, Arc<Lane>>> {
        self.lanes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rate {
    fn new(limit: RateLimit) -> Option<Self> {
        let quota = Quota::per_second(NonZeroU32::new(limit.per_second)?);
        Some(Self {
            limit,
            limiter: RateLimiter::direct(quota),
        })
    }
}

#[cfg(test)]
mod tests;
