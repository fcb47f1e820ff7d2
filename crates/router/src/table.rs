//! The match table: which subscriptions listen to an event, by tenant, entity and action.
//!
//! Matching one event costs two or three look-ups, however many subscriptions do not match. The
//! table is swapped whole on change, but only the tenants that changed are built anew.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use event::{Event, SubscriptionId, Tenant, selector::Selector};
use store::{Stored, feed::Snapshot};

/// Who listens to what, as of one revision.
#[derive(Debug, Default)]
pub struct MatchTable {
    revision: u64,
    tenants: HashMap<Tenant, Arc<Listeners>>,
    /// What the table was built from, to tell what changed when the next snapshot comes.
    source: Arc<Snapshot>,
}

/// The subscriptions of one tenant. The lists hold indexes into `ids`.
#[derive(Debug, Default)]
struct Listeners {
    ids: Vec<SubscriptionId>,
    all: Vec<u32>,
    entities: HashMap<String, EntityListeners>,
}

#[derive(Debug, Default)]
struct EntityListeners {
    any: Vec<u32>,
    status_changed: Vec<u32>,
    actions: HashMap<String, Vec<u32>>,
}

impl MatchTable {
    /// The revision of the subscriptions it matches against.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The table for a newer snapshot, sharing every tenant that did not change.
    pub fn advance(&self, snapshot: Arc<Snapshot>) -> Self {
        let changed = changed_tenants(&self.source, &snapshot);
        let mut members: HashMap<&Tenant, Vec<&Arc<Stored>>> = HashMap::new();
        for stored in snapshot.subscriptions.values() {
            if changed.contains(&stored.subscription.tenant) {
                members
                    .entry(&stored.subscription.tenant)
                    .or_default()
                    .push(stored);
            }
        }
        let mut tenants = self.tenants.clone();
        for tenant in &changed {
            match members.get(tenant) {
                Some(members) => {
                    tenants.insert(tenant.clone(), Arc::new(Listeners::of(members)));
                }
                None => {
                    tenants.remove(tenant);
                }
            }
        }
        Self {
            revision: snapshot.revision,
            tenants,
            source: snapshot,
        }
    }

    /// The subscriptions that listen to the event, each once, in order of their ids. Paused and
    /// disabled ones too: what matches them is held, not lost.
    pub fn matching(&self, event: &Event) -> Vec<SubscriptionId> {
        let Some(listeners) = self.tenants.get(&event.tenant) else {
            return Vec::new();
        };
        let mut found = listeners.all.clone();
        if let Some(entity) = listeners.entities.get(event.kind.entity()) {
            found.extend_from_slice(&entity.any);
            if let Some(exact) = entity.actions.get(event.kind.action()) {
                found.extend_from_slice(exact);
            }
            if !entity.status_changed.is_empty() && event.status_changed() {
                found.extend_from_slice(&entity.status_changed);
            }
        }
        found.sort_unstable();
        found.dedup();
        found
            .into_iter()
            .map(|index| listeners.ids[index as usize].clone())
            .collect()
    }
}

fn changed_tenants(old: &Snapshot, new: &Snapshot) -> HashSet<Tenant> {
    let mut changed = HashSet::new();
    for (id, stored) in &new.subscriptions {
        match old.subscriptions.get(id) {
            Some(before) if Arc::ptr_eq(before, stored) => {}
            before => {
                changed.insert(stored.subscription.tenant.clone());
                changed.extend(before.map(|before| before.subscription.tenant.clone()));
            }
        }
    }
    for (id, stored) in &old.subscriptions {
        if !new.subscriptions.contains_key(id) {
            changed.insert(stored.subscription.tenant.clone());
        }
    }
    changed
}

impl Listeners {
    fn of(members: &[&Arc<Stored>]) -> Self {
        let mut members: Vec<_> = members.iter().map(|stored| &stored.subscription).collect();
        members.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        let mut listeners = Self::default();
        // A tenant has far fewer subscriptions than u32 can count; the rest would not fit memory.
        for (index, subscription) in (0_u32..).zip(&members) {
            listeners.ids.push(subscription.id.clone());
            for selector in subscription.selectors().iter() {
                listeners.listen(index, selector);
            }
        }
        listeners
    }

    fn listen(&mut self, index: u32, selector: &Selector) {
        let mut at = |entity: &str, actions: &[&str]| {
            let entity = self.entities.entry(entity.to_owned()).or_default();
            for action in actions {
                entity
                    .actions
                    .entry((*action).to_owned())
                    .or_default()
                    .push(index);
            }
        };
        match selector {
            Selector::All => self.all.push(index),
            Selector::Entity(entity) => {
                self.entities
                    .entry(entity.clone())
                    .or_default()
                    .any
                    .push(index);
            }
            Selector::Saved(entity) => at(entity, &["created", "updated", "saved"]),
            Selector::Exact(kind) => at(kind.entity(), &[kind.action()]),
            Selector::StatusChanged(entity) => {
                self.entities
                    .entry(entity.clone())
                    .or_default()
                    .status_changed
                    .push(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn stored(id: usize, tenant: &str, events: &[&str]) -> Arc<Stored> {
        let events = serde_json::to_string(events).expect("list of strings");
        let document = format!(
            r#"{{"id":"sub_{id}","tenant":"{tenant}","name":"","target_url":"https://example.com/",
            "dialect":"standard","events":{events},"filter":{{}},"view":"full","headers":{{}},
            "attributes":{{}},"redact":[],"delivery":{{}},"state":"active",
            "created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z","revision":1}}"#
        );
        let subscription = serde_json::from_str(&document).expect("a subscription");
        Arc::new(Stored {
            subscription,
            keys: Default::default(),
        })
    }

    fn snapshot(revision: u64, stored: &[Arc<Stored>]) -> Arc<Snapshot> {
        let subscriptions = stored
            .iter()
            .map(|one| (one.subscription.id.clone(), one.clone()))
            .collect();
        Arc::new(Snapshot {
            revision,
            subscriptions,
        })
    }

    fn event(tenant: &str, kind: &str, statuses: Option<(&str, &str)>) -> Event {
        let statuses = statuses.map_or(String::new(), |(before, after)| {
            format!(r#","previous_status":"{before}","status":"{after}""#)
        });
        let text = format!(
            r#"{{"id":"e1","tenant":"{tenant}","type":"{kind}","time":"2026-01-01T00:00:00Z"{statuses},"data":{{}}}}"#
        );
        serde_json::from_str(&text).expect("an event")
    }

    #[track_caller]
    fn check(table: &MatchTable, event: &Event, want: &[&str]) {
        let got: Vec<_> = table
            .matching(event)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(got, want, "{event:?}");
    }

    #[test]
    fn an_event_reaches_every_listener_once_and_no_other_tenant() {
        let table = MatchTable::default().advance(snapshot(
            1,
            &[
                stored(1, "a", &["appointment.created", "appointment.*", "*"]),
                stored(2, "a", &["appointment.saved"]),
                stored(3, "a", &["appointment.status_changed"]),
                stored(4, "a", &["payment.paid"]),
                stored(5, "b", &["*"]),
            ],
        ));
        check(
            &table,
            &event("a", "appointment.created", None),
            &["sub_1", "sub_2"],
        );
        check(
            &table,
            &event("a", "appointment.updated", Some(("x", "y"))),
            &["sub_1", "sub_2", "sub_3"],
        );
        check(
            &table,
            &event("a", "appointment.updated", Some(("x", "x"))),
            &["sub_1", "sub_2"],
        );
        check(
            &table,
            &event("a", "appointment.status_changed", None),
            &["sub_1", "sub_3"],
        );
        check(
            &table,
            &event("a", "payment.paid", None),
            &["sub_1", "sub_4"],
        );
        check(&table, &event("b", "payment.paid", None), &["sub_5"]);
        check(&table, &event("c", "payment.paid", None), &[]);
    }

    #[test]
    fn a_change_replaces_only_its_tenant() {
        let (one, two) = (stored(1, "a", &["*"]), stored(2, "b", &["*"]));
        let table = MatchTable::default().advance(snapshot(1, &[one, two.clone()]));
        let next = table.advance(snapshot(2, &[two, stored(3, "a", &["*"])]));
        check(&next, &event("a", "x.y", None), &["sub_3"]);
        check(&next, &event("b", "x.y", None), &["sub_2"]);
        let tenant = Tenant::parse("b").expect("a tenant");
        assert!(Arc::ptr_eq(&table.tenants[&tenant], &next.tenants[&tenant]));
        assert_eq!(next.revision(), 2);
    }

    proptest! {
        /// The table is a fast way to ask every selector; it never answers otherwise.
        #[test]
        fn agrees_with_the_selectors(
            subs in prop::collection::vec(
                prop::collection::vec(
                    prop::sample::select(vec![
                        "*", "a.*", "b.*", "a.saved", "a.status_changed", "a.created", "b.updated",
                        "a.saved", "b.saved", "custom.onAdd",
                    ]),
                    1..4,
                ),
                0..12,
            ),
            kind in prop::sample::select(vec![
                "a.created", "a.updated", "a.deleted", "a.status_changed", "b.updated", "custom.onAdd",
            ]),
            changed in any::<bool>(),
        ) {
            let subs: Vec<_> =
                subs.iter().enumerate().map(|(id, events)| stored(id, "t", events)).collect();
            let table = MatchTable::default().advance(snapshot(1, &subs));
            let event = event("t", kind, changed.then_some(("x", "y")));
            let got: BTreeSet<_> = table.matching(&event).into_iter().collect();
            let want: BTreeSet<_> = subs
                .iter()
                .filter(|one| one.subscription.selectors().iter().any(|entry| entry.matches(&event)))
                .map(|one| one.subscription.id.clone())
                .collect();
            prop_assert_eq!(got, want);
        }
    }
}
