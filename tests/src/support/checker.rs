//! The judge of a run: compares what was published, what endpoints saw and what the product
//! remembers, by the rules I1 to I10. Pure: it is given a history and knows nothing of how it came
//! about, so that a doctored one can prove that each rule can fail (`checker.rs`).
//!
//! A history is written first and judged after, so that one that failed can be read and judged again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

/// Everything that was seen of one run. Times are milliseconds of the one wall clock of the
/// machine, since 1970.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct History {
    pub(crate) name: String,
    /// What was done to it, and when.
    pub(crate) marks: Vec<Mark>,
    pub(crate) published: Vec<Published>,
    pub(crate) subscriptions: Vec<Subscribed>,
    pub(crate) received: Vec<Receipt>,
    /// The delivery log, as the API lists it.
    pub(crate) deliveries: Vec<Row>,
    pub(crate) dead: Vec<Letter>,
    /// Quarantined messages: their reasons.
    pub(crate) quarantine: Vec<String>,
    /// The product's own counters; absent when a process was killed and its counters with it.
    pub(crate) counted: Option<Counted>,
    /// What is left where nothing should be: a queue's name (or `in flight`) and how many.
    pub(crate) left: Vec<(String, u64)>,
    pub(crate) processes: Vec<Process>,
}

/// Something that happened in a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) at: u64,
    pub(crate) what: String,
}

/// One event as its publisher knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Published {
    pub(crate) id: String,
    pub(crate) tenant: String,
    pub(crate) sent: u64,
    /// When the confirm (or the 202) came; an event without one may arrive or not.
    pub(crate) confirmed: Option<u64>,
    /// SHA-256 of the body that endpoints should get.
    pub(crate) body: String,
}

/// A subscription to all events of its tenant, from when every process knew it until it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Subscribed {
    pub(crate) id: String,
    pub(crate) tenant: String,
    pub(crate) from: u64,
    pub(crate) until: Option<u64>,
}

/// One request that came to an endpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Receipt {
    pub(crate) id: String,
    /// The tenant that the body names.
    pub(crate) tenant: String,
    pub(crate) subscription: String,
    pub(crate) at: u64,
    /// `webhook-timestamp`, in seconds.
    pub(crate) timestamp: u64,
    pub(crate) signed: bool,
    pub(crate) body: String,
    /// `None` when the caller went away before the answer.
    pub(crate) answered: Option<u16>,
    /// `x-postrider-purpose`: empty for what simply happened.
    pub(crate) purpose: String,
}

/// One delivery of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) tenant: String,
    pub(crate) subscription: String,
    pub(crate) state: String,
    /// The attempts of the first run, where they were asked for: number, beginning, status.
    pub(crate) attempts: Vec<(u32, u64, Option<u16>)>,
}

/// One dead letter.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Letter {
    pub(crate) id: String,
    pub(crate) subscription: String,
}

/// The product's counters at the end of a run in which no process was killed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    /// `postrider_bundled_deliveries_total`: deliveries that routers sent on.
    pub(crate) routed: u64,
    pub(crate) delivered: u64,
    pub(crate) dead: u64,
    pub(crate) filtered: u64,
}

/// What a process used before the load and after it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) files: (u64, u64),
    pub(crate) resident_kib: (u64, u64),
}

/// What a run may do without failing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bar {
    /// Receipts beyond the first; 0 in a run without faults.
    pub(crate) duplicates_max: usize,
    /// Of the subscription's retry policy: the pause before each attempt but the first.
    pub(crate) pauses_ms: Vec<u64>,
    /// How far a signed timestamp may be from the time of arrival; `None` where clocks are bent.
    pub(crate) timestamp_off_max_ms: Option<u64>,
    /// How long after the end of its subscription a delivery may still come.
    pub(crate) after_end_max_ms: u64,
    /// Exactly so many messages are to be in quarantine.
    pub(crate) quarantined: usize,
    /// How much memory may have grown, beyond a tenth, while no process was replaced.
    pub(crate) resident_growth_max_kib: u64,
}

impl Bar {
    /// A run without faults.
    pub(crate) fn strict() -> Self {
        Self {
            timestamp_off_max_ms: Some(5_000),
            after_end_max_ms: 2_000,
            resident_growth_max_kib: 64 * 1024,
            ..Self::default()
        }
    }

    /// A run with a fault that may repeat so many deliveries.
    pub(crate) fn repeating(duplicates_max: usize) -> Self {
        Self {
            duplicates_max,
            ..Self::strict()
        }
    }
}

/// The rules, by the number they have in the reliability page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// I1: a confirmed event has no end for a subscription.
    Lost,
    /// I1: something came that nobody published, or to whom it was not for any more.
    Unexpected,
    /// I2: more duplicates than the fault explains.
    Duplicated,
    /// I3: one tenant's event at another's endpoint or in another's log.
    Mixed,
    /// I4: a signature that does not verify.
    BadSignature,
    /// I4: a timestamp that is not the time of sending.
    BadTimestamp,
    /// I4: a body that is not what was published.
    BadBody,
    /// I6: attempts that do not rise, or came before they were due.
    BadAttempts,
    /// I7: a success in the log that no endpoint saw.
    Phantom,
    /// I7: a success at an endpoint that the log does not know.
    Unrecorded,
    /// I8: the counters do not add up.
    BadSums,
    /// I9: something is left in a queue, or in quarantine.
    Left,
    /// I10: files or memory that were not given back.
    Leak,
}

impl Rule {
    /// Its number in the reliability page.
    pub(crate) fn number(self) -> &'static str {
        match self {
            Self::Lost | Self::Unexpected => "I1",
            Self::Duplicated => "I2",
            Self::Mixed => "I3",
            Self::BadSignature | Self::BadTimestamp | Self::BadBody => "I4",
            Self::BadAttempts => "I6",
            Self::Phantom | Self::Unrecorded => "I7",
            Self::BadSums => "I8",
            Self::Left => "I9",
            Self::Leak => "I10",
        }
    }
}

/// An event for a subscription: the tenant, its event's id, the subscription.
pub(crate) type Key = (String, String, String);

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) confirmed: usize,
    /// Events that were never confirmed: they may have arrived or not, and are never lost (I5).
    pub(crate) unconfirmed: usize,
    /// Unconfirmed ones that arrived all the same.
    pub(crate) recovered: usize,
    pub(crate) delivered: usize,
    /// Deliveries that ended otherwise: dead, canceled, filtered, held, superseded.
    pub(crate) ended_otherwise: usize,
    /// Receipts beyond the first.
    pub(crate) duplicates: usize,
    pub(crate) lost: usize,
    pub(crate) faults: Vec<(Rule, String)>,
}

impl Report {
    pub(crate) fn rules(&self) -> BTreeSet<Rule> {
        self.faults.iter().map(|(rule, _)| *rule).collect()
    }

    fn fault(&mut self, rule: Rule, text: impl Into<String>) {
        self.faults.push((rule, text.into()));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} confirmed, {} unconfirmed ({} of them arrived), {} delivered, {} ended otherwise, \
             {} duplicates, {} lost",
            self.confirmed,
            self.unconfirmed,
            self.recovered,
            self.delivered,
            self.ended_otherwise,
            self.duplicates,
            self.lost
        )?;
        let mut shown = BTreeMap::<Rule, usize>::new();
        for (rule, text) in &self.faults {
            let count = shown.entry(*rule).or_default();
            *count += 1;
            if *count <= 5 {
                writeln!(f, "  {} {rule:?}: {text}", rule.number())?;
            }
        }
        for (rule, count) in shown.into_iter().filter(|(_, count)| *count > 5) {
            writeln!(f, "  {} {rule:?}: {count} in all", rule.number())?;
        }
        Ok(())
    }
}

/// Judges a history.
pub(crate) fn check(history: &History, bar: &Bar) -> Report {
    let mut report = Report::default();
    let judge = Judge::of(history);
    judge.receipts(bar, &mut report);
    judge.ends(&mut report);
    judge.log(bar, &mut report);
    judge.rest(bar, &mut report);
    report
}

/// A history with what is looked up in it.
struct Judge<'a> {
    history: &'a History,
    events: BTreeMap<(&'a str, &'a str), &'a Published>,
    subscriptions: BTreeMap<&'a str, &'a Subscribed>,
    rows: BTreeMap<(&'a str, &'a str, &'a str), &'a Row>,
    /// How often each was answered with success, without what a person asked for again.
    arrived: BTreeMap<Key, usize>,
    /// The same with it.
    seen: BTreeSet<Key>,
}

fn success(status: Option<u16>) -> bool {
    status.is_some_and(|status| (200..300).contains(&status))
}

impl<'a> Judge<'a> {
    fn of(history: &'a History) -> Self {
        let mut judge = Self {
            history,
            events: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            rows: BTreeMap::new(),
            arrived: BTreeMap::new(),
            seen: BTreeSet::new(),
        };
        for event in &history.published {
            judge.events.insert((&event.tenant, &event.id), event);
        }
        for subscription in &history.subscriptions {
            judge.subscriptions.insert(&subscription.id, subscription);
        }
        for row in &history.deliveries {
            judge
                .rows
                .insert((&row.tenant, &row.id, &row.subscription), row);
        }
        for receipt in history.received.iter().filter(|one| success(one.answered)) {
            // By the endpoint's tenant: that a body names another one is its own rule.
            let owner = judge.subscriptions.get(receipt.subscription.as_str());
            let tenant = owner.map_or(&receipt.tenant, |owner| &owner.tenant);
            let key = (
                tenant.clone(),
                receipt.id.clone(),
                receipt.subscription.clone(),
            );
            if receipt.purpose.is_empty() {
                *judge.arrived.entry(key.clone()).or_default() += 1;
            }
            judge.seen.insert(key);
        }
        judge
    }

    /// I1 (nothing unasked), I2, I3, I4: what endpoints saw.
    fn receipts(&self, bar: &Bar, report: &mut Report) {
        for one in &self.history.received {
            let what = format!("{} at {}", one.id, one.subscription);
            let Some(owner) = self.subscriptions.get(one.subscription.as_str()) else {
                report.fault(Rule::Unexpected, format!("{what}: no such subscription"));
                continue;
            };
            if owner.tenant != one.tenant {
                let text = format!("{what}: of {}, came to {}", one.tenant, owner.tenant);
                report.fault(Rule::Mixed, text);
                continue;
            }
            let Some(event) = self.events.get(&(one.tenant.as_str(), one.id.as_str())) else {
                report.fault(Rule::Unexpected, format!("{what}: nobody published it"));
                continue;
            };
            if let Some(until) = owner.until
                && one.at > until + bar.after_end_max_ms
            {
                let late = one.at - until;
                let text = format!("{what}: {late} ms after its subscription ended");
                report.fault(Rule::Unexpected, text);
            }
            if !one.signed {
                report.fault(Rule::BadSignature, what.clone());
            }
            if one.body != event.body {
                report.fault(Rule::BadBody, what.clone());
            }
            let off = (one.timestamp * 1_000).abs_diff(one.at);
            // The header has whole seconds.
            if bar.timestamp_off_max_ms.is_some_and(|max| off > max + 999) {
                report.fault(Rule::BadTimestamp, format!("{what}: {off} ms off"));
            }
        }
        report.duplicates = self.arrived.values().map(|times| times - 1).sum();
        if report.duplicates > bar.duplicates_max {
            let some: Vec<_> = self
                .arrived
                .iter()
                .filter(|(_, times)| **times > 1)
                .collect();
            let text = format!(
                "{} duplicates, at most {}: {:?} …",
                report.duplicates,
                bar.duplicates_max,
                &some[..some.len().min(3)]
            );
            report.fault(Rule::Duplicated, text);
        }
    }

    /// I1, I5: each confirmed event has its end for each subscription of its tenant.
    fn ends(&self, report: &mut Report) {
        let letters: BTreeSet<(&str, &str)> = self
            .history
            .dead
            .iter()
            .map(|letter| (letter.id.as_str(), letter.subscription.as_str()))
            .collect();
        let mut of_tenant = BTreeMap::<&str, Vec<&Subscribed>>::new();
        for subscription in &self.history.subscriptions {
            let those = of_tenant.entry(&subscription.tenant).or_default();
            those.push(subscription);
        }
        for event in &self.history.published {
            let subscriptions = of_tenant.get(event.tenant.as_str());
            let confirmed = match event.confirmed {
                Some(at) => {
                    report.confirmed += 1;
                    at
                }
                None => {
                    report.unconfirmed += 1;
                    let came = subscriptions.into_iter().flatten().any(|one| {
                        self.seen.contains(&(
                            event.tenant.clone(),
                            event.id.clone(),
                            one.id.clone(),
                        ))
                    });
                    report.recovered += usize::from(came);
                    continue;
                }
            };
            for one in subscriptions.into_iter().flatten() {
                // Asked for before it was sent and still after it was taken: beyond doubt.
                let beyond_doubt =
                    one.from <= event.sent && one.until.is_none_or(|until| until >= confirmed);
                let key = (event.tenant.clone(), event.id.clone(), one.id.clone());
                let row = self
                    .rows
                    .get(&(key.0.as_str(), key.1.as_str(), key.2.as_str()));
                let state = row.map(|row| row.state.as_str());
                if self.seen.contains(&key) {
                    report.delivered += 1;
                } else if letters.contains(&(event.id.as_str(), one.id.as_str()))
                    || state.is_some_and(|state| ENDED_OTHERWISE.contains(&state))
                {
                    report.ended_otherwise += 1;
                } else if beyond_doubt {
                    report.lost += 1;
                    let text = format!("{} for {}: the log says {state:?}", event.id, one.id);
                    report.fault(Rule::Lost, text);
                }
            }
        }
    }

    /// I3, I6, I7: what the log says, against what endpoints saw.
    fn log(&self, bar: &Bar, report: &mut Report) {
        if self.history.deliveries.is_empty() && self.history.published.is_empty() {
            return;
        }
        for row in &self.history.deliveries {
            let what = format!("{} for {}", row.id, row.subscription);
            let owner = self.subscriptions.get(row.subscription.as_str());
            if owner.is_some_and(|owner| owner.tenant != row.tenant) {
                report.fault(Rule::Mixed, format!("{what}: logged for {}", row.tenant));
                continue;
            }
            let key = (row.tenant.clone(), row.id.clone(), row.subscription.clone());
            if row.state == "delivered" && !self.seen.contains(&key) {
                report.fault(Rule::Phantom, what.clone());
            }
            for pair in row.attempts.windows(2) {
                let ((number, began, _), (next, again, _)) = (pair[0], pair[1]);
                if next <= number {
                    let text = format!("{what}: attempt {next} after {number}");
                    report.fault(Rule::BadAttempts, text);
                }
                let Some(pause) = bar.pauses_ms.get(next as usize - 2) else {
                    continue;
                };
                // One per cent, and what the clock's milliseconds round away.
                let least = pause - pause / 100 - 1;
                if next == number + 1 && again.saturating_sub(began) < least {
                    let text = format!(
                        "{what}: attempt {next} came {} ms after the one before, due after {pause}",
                        again.saturating_sub(began)
                    );
                    report.fault(Rule::BadAttempts, text);
                }
            }
        }
        for (tenant, id, subscription) in &self.seen {
            let row = self
                .rows
                .get(&(tenant.as_str(), id.as_str(), subscription.as_str()));
            if row.is_none_or(|row| row.state != "delivered") {
                let text = format!("{id} for {subscription}: {:?}", row.map(|row| &row.state));
                report.fault(Rule::Unrecorded, text);
            }
        }
    }

    /// I8, I9, I10.
    fn rest(&self, bar: &Bar, report: &mut Report) {
        if let Some(counted) = &self.history.counted {
            let sum = counted.delivered + counted.dead + counted.filtered;
            if counted.routed != sum {
                report.fault(Rule::BadSums, format!("{counted:?}"));
            }
        }
        for (queue, count) in self.history.left.iter().filter(|(_, count)| *count > 0) {
            report.fault(Rule::Left, format!("{count} in {queue}"));
        }
        for row in &self.history.deliveries {
            if ["pending", "retrying"].contains(&row.state.as_str()) {
                let text = format!("{} for {} is {}", row.id, row.subscription, row.state);
                report.fault(Rule::Left, text);
            }
        }
        if self.history.quarantine.len() != bar.quarantined {
            let mut reasons = BTreeMap::<&str, usize>::new();
            for reason in &self.history.quarantine {
                *reasons.entry(reason).or_default() += 1;
            }
            let text = format!("quarantine has {reasons:?}, wanted {}", bar.quarantined);
            report.fault(Rule::Left, text);
        }
        for process in &self.history.processes {
            let (before, after) = process.files;
            // Connections that are kept for a moment come and go by the handful.
            if after > before + before / 10 + 10 {
                let text = format!("{}: {before} open files became {after}", process.name);
                report.fault(Rule::Leak, text);
            }
            let (before, after) = process.resident_kib;
            if after > before + before / 10 + bar.resident_growth_max_kib {
                let text = format!("{}: {before} KiB became {after}", process.name);
                report.fault(Rule::Leak, text);
            }
        }
    }
}

/// Ends of a delivery that are on record without the endpoint having it.
const ENDED_OTHERWISE: [&str; 5] = ["dead", "filtered", "canceled", "superseded", "held"];
