//! Fills a store's log and measures it: rows written per second, as a recorder writes them, then
//! how long each list of the API takes.
//!
//! cargo run --release -p postrider-store --example fill_log -- URL [DELIVERIES] [FANOUT] [PAYLOAD]
//!
//! URL is an empty database (`postgres://…`, `sqlite://PATH`). The deliveries are of the last 30
//! days, of 20 tenants (the first has half of them) and 1000 subscriptions, in 40 types; one in
//! ten is not delivered. With 0 deliveries it measures the lists of what is there.

use std::{sync::Arc, time::Instant};

use event::{
    DeliveryId, EventId, SubscriptionId, Tenant,
    delivery::Purpose,
    log::{Archived, Attempt, LogEntry, Timing},
    reason::{AttemptError, DeadReason, DeliveryState},
    subscription::View,
};
use jiff::{Timestamp, ToSpan};
use postrider_store as store;
use serde_json::json;
use store::{DeliveryFilter, EventFilter, Paging, Period, Settings, Sight, Store};

/// As many as a recorder writes at once under load.
const BATCH: usize = 1000;
const DAYS: i64 = 30;

type Failed = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments
        .next()
        .ok_or("usage: fill_log URL [DELIVERIES] [FANOUT] [PAYLOAD]")?;
    let mut number = |usual: usize| arguments.next().map_or(Ok(usual), |text| text.parse());
    let (deliveries, fanout, payload) = (number(100_000)?, number(1)?.max(1), number(1024)?);
    let settings = Settings {
        url,
        encryption_key: None,
    };
    let store = Store::open(&settings).await?;
    let world = World {
        begin: Timestamp::now() - (DAYS * 24).hours(),
        events: i64::try_from(deliveries / fanout)?,
        fanout,
        payload: "x".repeat(payload),
    };
    if deliveries > 0 {
        fill(&store, &world).await?;
    }
    lists(&store).await
}

struct World {
    begin: Timestamp,
    events: i64,
    fanout: usize,
    payload: String,
}

/// Scatters numbers, the same in every run.
fn scatter(n: i64) -> u64 {
    let mut x = n
        .unsigned_abs()
        .wrapping_add(1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 32)
}

fn tenant(n: u64) -> Tenant {
    let of = if n.is_multiple_of(2) { 0 } else { n % 20 };
    Tenant::parse(&format!("tenant-{of}")).expect("a tenant")
}

fn subscription(n: u64) -> SubscriptionId {
    SubscriptionId::parse(&format!("sub_{:032x}", n % 1000)).expect("an id")
}

impl World {
    fn event(&self, n: i64) -> Result<Archived, Failed> {
        let r = scatter(n);
        let kind = format!("entity_{}.created", (r >> 8) % 40);
        let event = json!({
            "id": format!("{:016x}-{n}", r), "tenant": tenant(r), "type": kind,
            "time": self.begin, "data": { "text": self.payload },
        });
        let spread =
            i128::from(n) * i128::from(DAYS * 86_400_000_000_000) / i128::from(self.events);
        let at = Timestamp::from_nanosecond(self.begin.as_nanosecond() + spread)?;
        let matched = (0..self.fanout as u64).map(|k| subscription((r >> 16) + k * 37));
        Ok(Archived {
            event: Arc::new(serde_json::from_value(event)?),
            accepted_at: at,
            revision: 1,
            bytes: self.payload.len() as u64 + 200,
            matched: matched.collect(),
        })
    }

    fn outcome(&self, n: i64, archived: &Archived, to: &SubscriptionId) -> LogEntry {
        let r = scatter(n * 31 + 7);
        let (state, reason) = match r % 100 {
            0..4 => (DeliveryState::Filtered, None),
            4..7 => (
                DeliveryState::Dead,
                Some(DeadReason::ALL[(r >> 20) as usize % 7]),
            ),
            7..9 => (DeliveryState::Retrying, None),
            9 => (DeliveryState::Held, None),
            _ => (DeliveryState::Delivered, None),
        };
        let event = &archived.event;
        let good = state == DeliveryState::Delivered;
        let at = archived.accepted_at + 5.milliseconds();
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let attempt = Attempt {
            number: 1,
            at,
            timing: Timing {
                connect: Some(300),
                total: 4000,
                ..Timing::default()
            },
            view: View::Full,
            request_headers: vec![
                header("content-type", "application/json"),
                header("webhook-id", event.id.as_str()),
                header("webhook-timestamp", "1763800000"),
                header("webhook-signature", "***"),
            ],
            body_hash: "0123456789abcdef".repeat(4),
            body_bytes: 1200,
            status: Some(if good { 200 } else { 503 }),
            response_headers: vec![header("content-length", "2"), header("server", "nginx")],
            response: Some("ok".into()),
            error: (!good).then_some(AttemptError::Status),
            detail: None,
        };
        LogEntry {
            delivery_id: DeliveryId::of(&event.tenant, &event.id, to),
            event_id: event.id.clone(),
            subscription_id: to.clone(),
            tenant: event.tenant.clone(),
            kind: event.kind.clone(),
            accepted_at: archived.accepted_at,
            at,
            purpose: Purpose::Live,
            run: 0,
            attempts: 1,
            state,
            reason,
            detail: None,
            clause: (state == DeliveryState::Filtered).then(|| "where".into()),
            due: None,
            attempt: Some(Box::new(attempt)),
        }
    }
}

async fn fill(store: &Store, world: &World) -> Result<(), Failed> {
    let (mut writing, mut rows, mut slowest) = (0.0_f64, 0_u64, 0.0_f64);
    let step = (BATCH / (1 + world.fanout)).max(1);
    let mut n = 0;
    while n < world.events {
        let end = (n + i64::try_from(step)?).min(world.events);
        let events = (n..end)
            .map(|n| world.event(n))
            .collect::<Result<Vec<_>, _>>()?;
        let entries: Vec<_> = (n..)
            .zip(&events)
            .flat_map(|(n, event)| {
                event
                    .matched
                    .iter()
                    .map(move |to| world.outcome(n, event, to))
            })
            .collect();
        let begun = Instant::now();
        let recorded = store.record(&events, &entries).await?;
        let took = begun.elapsed().as_secs_f64();
        (writing, slowest) = (writing + took, slowest.max(took));
        rows += recorded.events + recorded.deliveries + recorded.attempts;
        n = end;
    }
    let deliveries = world.events as f64 * world.fanout as f64;
    println!(
        "{deliveries} deliveries of {} events: {:.0} deliveries/s, {:.0} rows/s, {:.1} us a delivery, slowest batch {:.0} ms",
        world.events,
        deliveries / writing,
        rows as f64 / writing,
        writing / deliveries * 1e6,
        slowest * 1e3,
    );
    Ok(())
}

async fn lists(store: &Store) -> Result<(), Failed> {
    let none = DeliveryFilter::default;
    let week = || Some(Timestamp::now() - (7 * 24).hours());
    let all = Sight::All;
    let large = Sight::Only(tenant(0));
    let small = Sight::Only(tenant(3));
    let of = |n| Some(subscription(n));
    let kind = || Some("entity_7.created".to_owned());
    let page = store.deliveries(&all, &none(), &Paging::default()).await?;
    let event: Option<EventId> = page.items.first().map(|row| row.event_id.clone());
    let id = page.items.first().map(|row| row.id.clone());
    let state = |state| DeliveryFilter {
        state: Some(state),
        ..none()
    };
    let cases = [
        ("everything", &all, none()),
        ("a large tenant", &large, none()),
        ("a small tenant", &small, none()),
        (
            "a subscription",
            &all,
            DeliveryFilter {
                subscription: of(5),
                ..none()
            },
        ),
        ("an event", &all, DeliveryFilter { event, ..none() }),
        ("dead", &all, state(DeliveryState::Dead)),
        (
            "pending, of which there is none",
            &all,
            state(DeliveryState::Pending),
        ),
        ("dead of a small tenant", &small, state(DeliveryState::Dead)),
        (
            "a reason, of a large tenant",
            &large,
            DeliveryFilter {
                reason: Some(DeadReason::Gone),
                ..none()
            },
        ),
        (
            "dead of a subscription",
            &all,
            DeliveryFilter {
                subscription: of(5),
                ..state(DeliveryState::Dead)
            },
        ),
        (
            "pending of a subscription",
            &all,
            DeliveryFilter {
                subscription: of(5),
                ..state(DeliveryState::Pending)
            },
        ),
        (
            "a type",
            &all,
            DeliveryFilter {
                kind: kind(),
                ..none()
            },
        ),
        (
            "a type of a small tenant",
            &small,
            DeliveryFilter {
                kind: kind(),
                ..none()
            },
        ),
        (
            "a type of a subscription",
            &all,
            DeliveryFilter {
                subscription: of(5),
                kind: kind(),
                ..none()
            },
        ),
        (
            "a type that there is not",
            &all,
            DeliveryFilter {
                kind: Some("no.such".into()),
                ..none()
            },
        ),
        (
            "delivered of a subscription, a week ago",
            &all,
            DeliveryFilter {
                subscription: of(5),
                until: week(),
                ..state(DeliveryState::Delivered)
            },
        ),
        (
            "everything since a week",
            &large,
            DeliveryFilter {
                since: week(),
                ..none()
            },
        ),
    ];
    for (name, sight, filter) in cases {
        time(name, async || {
            store
                .deliveries(sight, &filter, &Paging::default())
                .await
                .map(|page| page.items.len())
        })
        .await?;
    }
    let mut paging = Paging {
        cursor: None,
        limit: 500,
    };
    for _ in 0..20 {
        paging.cursor = store.deliveries(&all, &none(), &paging).await?.cursor;
    }
    time("the 21st page of 500", async || {
        store
            .deliveries(&all, &none(), &paging)
            .await
            .map(|page| page.items.len())
    })
    .await?;
    if let Some(id) = id {
        time("one delivery", async || {
            store
                .delivery(&all, &id)
                .await
                .map(|found| usize::from(found.is_some()))
        })
        .await?;
    }
    time("events", async || {
        store
            .events(&large, &EventFilter::default(), &Paging::default())
            .await
            .map(|page| page.items.len())
    })
    .await?;
    let filter = EventFilter {
        kind: kind(),
        ..EventFilter::default()
    };
    time("events of a type", async || {
        store
            .events(&small, &filter, &Paging::default())
            .await
            .map(|page| page.items.len())
    })
    .await?;
    if let Some(row) = page.items.first() {
        time("one event", async || {
            store
                .event(&all, &row.event_id)
                .await
                .map(|found| found.len())
        })
        .await?;
    }
    let filter = DeliveryFilter {
        subscription: of(5),
        ..none()
    };
    time("counts by day of a subscription", async || {
        store
            .delivery_periods(&all, &filter, Period::Day)
            .await
            .map(|found| found.len())
    })
    .await?;
    Ok(())
}

/// The median and the worst of 20 calls.
async fn time(
    name: &str,
    call: impl AsyncFn() -> Result<usize, store::Error>,
) -> Result<(), Failed> {
    let mut took = Vec::new();
    let mut found = 0;
    for _ in 0..20 {
        let begun = Instant::now();
        found = call().await?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    println!(
        "{name:45} {found:4} rows  median {:7.1} ms  worst {:7.1} ms",
        took[10], took[19]
    );
    Ok(())
}
