//! Notices on their way out: events of the tenant like any other, but only where a subscription
//! names them. `*` alone is no reason to publish one: a tenant with one dead endpoint that listens
//! to everything would get twice the traffic.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use broker::{Parcel, Route, publish_until_taken};
use event::{Event, Tenant, selector::Selector};
use store::{
    Error,
    feed::{Feed, Snapshot},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::Parts;

/// How often the store is asked for notices.
const EVERY: Duration = Duration::from_secs(1);
/// How many are published before they are forgotten.
const BATCH_MAX: u32 = 100;

/// Publishes until `stop`.
pub(crate) async fn run(parts: &Parts, listeners: &Listeners, stop: &CancellationToken) {
    let publishing = async {
        let mut away = false;
        loop {
            match publish_some(parts, listeners).await {
                Ok(published) => {
                    away = false;
                    if published == BATCH_MAX as usize {
                        continue;
                    }
                }
                Err(error) if !away => {
                    warn!(%error, "notices cannot be published yet");
                    away = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    stop.run_until_cancelled(publishing).await;
}

async fn publish_some(parts: &Parts, listeners: &Listeners) -> Result<usize, Error> {
    let notices = parts.store.notices(BATCH_MAX).await?;
    let publisher = parts.broker.publisher();
    let mut done: Vec<&str> = Vec::with_capacity(notices.len());
    for notice in &notices {
        let event = notice.event()?;
        if listeners.listen_to(&event) {
            let route = Route::Events {
                routing_key: notice.kind.clone(),
            };
            let parcel = Parcel::json(route, notice.id.clone(), notice.body.clone());
            if let Err(error) = publish_until_taken(&*publisher, parcel).await {
                debug!(%error, "a notice was not published");
                break;
            }
        }
        done.push(&notice.id);
    }
    parts.store.forget_notices(&done).await?;
    Ok(notices.len())
}

/// Who wants to know: the subscriptions that name a notice, by tenant.
#[derive(Debug)]
pub(crate) struct Listeners {
    feed: Feed,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    of: Option<Arc<Snapshot>>,
    by_tenant: HashMap<Tenant, Vec<Selector>>,
}

impl Listeners {
    pub(crate) fn new(feed: Feed) -> Self {
        Self {
            feed,
            known: Mutex::default(),
        }
    }

    /// Whether anybody wants this notice.
    pub(crate) fn listen_to(&self, event: &Event) -> bool {
        self.any(&event.tenant, |selector| selector.matches(event))
    }

    /// Whether anybody of a tenant wants to know of its dead letters.
    pub(crate) fn listen_to_the_dead(&self, tenant: &Tenant) -> bool {
        self.any(tenant, |selector| match selector {
            Selector::Entity(entity) => entity == "delivery",
            Selector::Exact(kind) => kind.as_str() == "delivery.dead_lettered",
            _ => false,
        })
    }

    fn any(&self, tenant: &Tenant, matches: impl Fn(&Selector) -> bool) -> bool {
        let Some(snapshot) = self.feed.snapshot() else {
            return false;
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known
            .of
            .as_ref()
            .is_some_and(|of| Arc::ptr_eq(of, &snapshot))
        {
            *known = Known::read(snapshot);
        }
        known
            .by_tenant
            .get(tenant)
            .is_some_and(|selectors| selectors.iter().any(matches))
    }
}

impl Known {
    fn read(snapshot: Arc<Snapshot>) -> Self {
        let mut by_tenant: HashMap<Tenant, Vec<Selector>> = HashMap::new();
        for stored in snapshot.subscriptions.values() {
            let subscription = &stored.subscription;
            let names = |selector: &&Selector| match selector {
                Selector::All => false,
                Selector::Exact(kind) => matches!(kind.entity(), "postrider" | "delivery"),
                Selector::Entity(entity)
                | Selector::Saved(entity)
                | Selector::StatusChanged(entity) => {
                    matches!(entity.as_str(), "postrider" | "delivery")
                }
            };
            for selector in subscription.selectors().iter().filter(names) {
                by_tenant
                    .entry(subscription.tenant.clone())
                    .or_default()
                    .push(selector.clone());
            }
        }
        Self {
            of: Some(snapshot),
            by_tenant,
        }
    }
}
