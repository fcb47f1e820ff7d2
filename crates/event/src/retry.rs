//! When to try again: named policies, explicit delays, or a geometric series.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::fault::{did_you_mean, shown};

/// When to try again after a failed attempt. Written as a name (`"standard"`), as
/// `{"delays": ["5s", …]}`, or as `{"attempts", "first", "factor", "cap"}`, and shown back so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct RetryPolicy {
    /// As the person wrote it.
    written: Value,
    /// `delays[n]` is the wait after failed attempt `n + 1`; one fewer than the attempts.
    delays: Vec<Duration>,
}

/// The policies that have a name.
const NAMED: [(&str, &[u64]); 3] = [
    (
        "standard",
        // 16 attempts over 93.9 h: longer than a weekend, so that an endpoint that dies on Friday
        // evening is still being tried on Tuesday.
        &[
            5, 30, 120, 300, 900, 1_800, 3_600, 7_200, 14_400, 28_800, 43_200, 43_200, 64_800,
            64_800, 64_800,
        ],
    ),
    // Five retries that fit in 15 minutes.
    ("vagaro", &[29, 58, 116, 232, 464]),
    ("none", &[]),
];

/// How many delays a policy may have.
const DELAYS_MAX: usize = 50;
/// How long one delay may be.
const DELAY_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long all delays together may be.
const TOTAL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// The cap of a series that names none.
const CAP_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// How fast a series may grow.
const FACTOR_MAX: f64 = 100.0;

impl Default for RetryPolicy {
    fn default() -> Self {
        let (name, seconds) = NAMED[0];
        Self::named(name, seconds)
    }
}

impl RetryPolicy {
    fn named(name: &str, seconds: &[u64]) -> Self {
        let delays = seconds.iter().copied().map(Duration::from_secs).collect();
        Self {
            written: name.into(),
            delays,
        }
    }

    /// The wait after `attempts` failed attempts (1 = after the first), without jitter; `None` when
    /// the policy is exhausted.
    pub fn delay_after(&self, attempts: u32) -> Option<Duration> {
        let index = usize::try_from(attempts).ok()?.checked_sub(1)?;
        self.delays.get(index).copied()
    }

    /// How many attempts there are in all.
    pub fn attempts(&self) -> usize {
        self.delays.len() + 1
    }
}

impl TryFrom<Value> for RetryPolicy {
    type Error = String;

    fn try_from(written: Value) -> Result<Self, String> {
        let delays = match &written {
            Value::String(name) => {
                let known = NAMED.iter().find(|(known, _)| known == name);
                return known
                    .map(|(name, seconds)| Self::named(name, seconds))
                    .ok_or_else(|| {
                        let near = did_you_mean(name, NAMED.map(|(known, _)| known));
                        format!(
                            "no retry policy is named `{}`{near} ({FORMS})",
                            shown(name, 64)
                        )
                    });
            }
            Value::Object(fields) if fields.contains_key("delays") => listed(fields)?,
            Value::Object(fields) => series(fields)?,
            _ => return Err(format!("must be {FORMS}")),
        };
        let total = delays
            .iter()
            .try_fold(Duration::ZERO, |sum, next| sum.checked_add(*next));
        match total {
            Some(total) if total <= TOTAL_MAX => Ok(Self { written, delays }),
            _ => Err("the delays must not sum up to more than 30 days".into()),
        }
    }
}

const FORMS: &str = "`standard`, `vagaro`, `none`, {\"delays\": [\"5s\", …]}, or {\"attempts\": 8, \"first\": \"10s\", \"factor\": 2, \"cap\": \"6h\"}";

/// `{"delays": […]}`.
fn listed(fields: &Map<String, Value>) -> Result<Vec<Duration>, String> {
    only(fields, &["delays"])?;
    let Some(Value::Array(entries)) = fields.get("delays") else {
        return Err("`delays` must be an array of durations such as \"5s\"".into());
    };
    if entries.is_empty() || entries.len() > DELAYS_MAX {
        return Err(format!(
            "`delays` must have 1 to {DELAYS_MAX} entries, got {}",
            entries.len()
        ));
    }
    entries
        .iter()
        .enumerate()
        .map(|(n, entry)| delay(entry, &format!("delays[{n}]")))
        .collect()
}

/// `{"attempts", "first", "factor", "cap"}`: each delay is the one before times the factor.
fn series(fields: &Map<String, Value>) -> Result<Vec<Duration>, String> {
    only(fields, &["attempts", "first", "factor", "cap"])?;
    let attempts = fields
        .get("attempts")
        .and_then(Value::as_u64)
        .and_then(|attempts| usize::try_from(attempts).ok())
        .filter(|attempts| (1..=DELAYS_MAX + 1).contains(attempts))
        .ok_or_else(|| {
            format!(
                "`attempts` must be a whole number from 1 to {}",
                DELAYS_MAX + 1
            )
        })?;
    let first = fields
        .get("first")
        .ok_or("`first` is required: the delay before the first retry")?;
    let first = delay(first, "first")?;
    let factor = match fields.get("factor") {
        None => 2.0,
        Some(factor) => factor
            .as_f64()
            .filter(|factor| (1.0..=FACTOR_MAX).contains(factor))
            .ok_or_else(|| format!("`factor` must be a number from 1 to {FACTOR_MAX}"))?,
    };
    let cap = fields
        .get("cap")
        .map_or(Ok(CAP_DEFAULT), |cap| delay(cap, "cap"))?;
    let mut next = first.as_secs_f64();
    let delays = (1..attempts).map(|_| {
        let delay = Duration::from_secs_f64(next.min(cap.as_secs_f64()));
        next = (next * factor).min(DELAY_MAX.as_secs_f64());
        delay
    });
    Ok(delays.collect())
}

fn only(fields: &Map<String, Value>, known: &[&str]) -> Result<(), String> {
    match fields.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let near = did_you_mean(key, known.iter().copied());
            Err(format!(
                "unknown field `{}`{near} ({FORMS})",
                shown(key, 64)
            ))
        }
    }
}

fn delay(value: &Value, name: &str) -> Result<Duration, String> {
    value
        .as_str()
        .and_then(|text| humantime::parse_duration(text).ok())
        .filter(|delay| *delay <= DELAY_MAX)
        .ok_or_else(|| format!("`{name}` must be a duration from \"0s\" to \"7d\""))
}

impl From<RetryPolicy> for Value {
    fn from(policy: RetryPolicy) -> Self {
        policy.written
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn seconds(written: Value) -> Vec<u64> {
        let policy = RetryPolicy::try_from(written.clone()).unwrap();
        assert_eq!(
            Value::from(policy.clone()),
            written,
            "shown back as written"
        );
        assert_eq!(policy.attempts(), policy.delays.len() + 1);
        policy.delays.iter().map(Duration::as_secs).collect()
    }

    #[test]
    fn the_standard_policy_is_sixteen_attempts_over_93_9_hours() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.attempts(), 16);
        assert_eq!(policy.delay_after(1), Some(Duration::from_secs(5)));
        assert_eq!(policy.delay_after(15), Some(Duration::from_secs(18 * 3600)));
        assert_eq!(policy.delay_after(16), None);
        assert_eq!(policy.delay_after(0), None);
        let total: u64 = seconds(json!("standard")).iter().sum();
        assert_eq!((total + 180) / 360, 939, "in tenths of an hour");
        assert_eq!(RetryPolicy::try_from(json!("standard")), Ok(policy));
    }

    #[test]
    fn named_and_written_policies_have_their_delays() {
        assert_eq!(seconds(json!("vagaro")), [29, 58, 116, 232, 464]);
        assert_eq!(seconds(json!("none")), [0; 0]);
        assert_eq!(
            seconds(json!({"delays": ["0s", "5s", "2m", "7d"]})),
            [0, 5, 120, 604_800]
        );
        let series = json!({"attempts": 5, "first": "10s", "factor": 3, "cap": "1m"});
        assert_eq!(seconds(series), [10, 30, 60, 60]);
        assert_eq!(seconds(json!({"attempts": 4, "first": "1s"})), [1, 2, 4]);
        assert_eq!(seconds(json!({"attempts": 1, "first": "1s"})), [0; 0]);
    }

    #[test]
    fn what_is_no_policy_is_refused_by_name() {
        let check = |written: Value, says: &str| {
            let error = RetryPolicy::try_from(written.clone()).unwrap_err();
            assert!(error.contains(says), "{written}: {error}");
        };
        check(json!("standart"), "did you mean `standard`?");
        check(json!("zzz"), "no retry policy is named `zzz`");
        check(json!(5), "must be `standard`");
        check(json!({"delays": []}), "1 to 50 entries, got 0");
        check(json!({"delays": vec!["1s"; 51]}), "1 to 50 entries, got 51");
        check(json!({"delays": ["1s", "8d"]}), "`delays[1]`");
        check(json!({"delays": ["1s", 5]}), "`delays[1]`");
        check(json!({"delays": ["-1s"]}), "`delays[0]`");
        check(
            json!({"delays": ["1s"], "cap": "1s"}),
            "unknown field `cap`",
        );
        check(json!({"delays": vec!["7d"; 5]}), "30 days");
        check(json!({"attempts": 0, "first": "1s"}), "`attempts`");
        check(json!({"attempts": 52, "first": "1s"}), "`attempts`");
        check(json!({"attempts": 3}), "`first` is required");
        check(
            json!({"attempts": 3, "first": "1s", "factor": 0.5}),
            "`factor`",
        );
        check(
            json!({"attempts": 3, "first": "1s", "factr": 2}),
            "did you mean `factor`?",
        );
        check(json!({}), "`attempts`");
    }

    #[test]
    fn a_series_that_would_overflow_stays_within_its_cap() {
        let wild = json!({"attempts": 51, "first": "1s", "factor": 100, "cap": "1h"});
        assert_eq!(seconds(wild).last(), Some(&3600));
    }
}
