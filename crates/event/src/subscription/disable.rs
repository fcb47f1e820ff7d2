//! When an endpoint that only fails is left alone: after a number of failures in a row, or after
//! a time without a success.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::fault::{did_you_mean, shown};

/// After how many failures in a row, or how long a run of failures, a subscription is disabled.
/// Written `{"failures": 10}`, `{"for": "5d"}`, both (whichever comes first), or `"never"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct DisableAfter {
    /// So many deliveries failed in a row, each counted once however often it was tried; 1 to
    /// 100 000.
    pub failures: Option<u32>,
    /// The last attempt that failed began so long after the first, and none succeeded between;
    /// 1 minute to 90 days.
    pub span: Option<Duration>,
}

/// How much of a limit a run of failures has used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Less than half of every limit.
    Short,
    /// Half of a limit or more: time for a warning.
    Long,
    /// The limit is reached.
    TooLong,
}

const DAY: Duration = Duration::from_secs(86_400);
const FAILURES_MAX: u32 = 100_000;
const SPAN_MIN: Duration = Duration::from_secs(60);
const SPAN_MAX: Duration = Duration::from_secs(90 * 86_400);
const FORMS: &str = "{\"failures\": 10}, {\"for\": \"5d\"}, both, or `never`";

impl Default for DisableAfter {
    /// Five days: longer than the standard policy tries one delivery, and than a long weekend.
    fn default() -> Self {
        Self {
            failures: None,
            span: Some(5 * DAY),
        }
    }
}

impl DisableAfter {
    /// The limit that is never reached.
    pub const NEVER: Self = Self {
        failures: None,
        span: None,
    };

    /// Judges a run of so many failures that has lasted so long, from the first failed attempt to
    /// the last.
    pub fn judge(&self, failures: u64, lasted: Duration) -> Run {
        let reached = |part: u32| {
            let count = self
                .failures
                .is_some_and(|max| failures.saturating_mul(part.into()) >= max.into());
            // One attempt lasts no time, however short the limit.
            let time = self
                .span
                .is_some_and(|max| lasted.saturating_mul(part) >= max);
            count || time
        };
        if failures == 0 {
            Run::Short
        } else if reached(1) {
            Run::TooLong
        } else if reached(2) {
            Run::Long
        } else {
            Run::Short
        }
    }
}

impl TryFrom<Value> for DisableAfter {
    type Error = String;

    fn try_from(written: Value) -> Result<Self, String> {
        match &written {
            Value::String(word) if word == "never" => Ok(Self::NEVER),
            Value::Object(fields) => limits(fields),
            _ => Err(format!("must be {FORMS}")),
        }
    }
}

fn limits(fields: &Map<String, Value>) -> Result<DisableAfter, String> {
    let known = ["failures", "for"];
    if let Some(key) = fields.keys().find(|key| !known.contains(&key.as_str())) {
        let near = did_you_mean(key, known);
        return Err(format!(
            "unknown field `{}`{near} ({FORMS})",
            shown(key, 64)
        ));
    }
    let failures = match fields.get("failures") {
        None | Some(Value::Null) => None,
        Some(number) => Some(
            number
                .as_u64()
                .and_then(|number| u32::try_from(number).ok())
                .filter(|number| (1..=FAILURES_MAX).contains(number))
                .ok_or_else(|| {
                    format!("`failures` must be a whole number from 1 to {FAILURES_MAX}")
                })?,
        ),
    };
    let span = match fields.get("for") {
        None | Some(Value::Null) => None,
        Some(text) => Some(
            text.as_str()
                .and_then(|text| humantime::parse_duration(text).ok())
                .filter(|span| (SPAN_MIN..=SPAN_MAX).contains(span))
                .ok_or("`for` must be a duration from \"1m\" to \"90d\"")?,
        ),
    };
    if failures.is_none() && span.is_none() {
        return Err(format!("must be {FORMS}"));
    }
    Ok(DisableAfter { failures, span })
}

impl From<DisableAfter> for Value {
    fn from(limits: DisableAfter) -> Self {
        let mut fields = Map::new();
        if let Some(failures) = limits.failures {
            fields.insert("failures".into(), json!(failures));
        }
        if let Some(span) = limits.span {
            fields.insert("for".into(), json!(written(span)));
        }
        if fields.is_empty() {
            json!("never")
        } else {
            fields.into()
        }
    }
}

/// In the largest unit that leaves no rest, as a person would write it.
fn written(span: Duration) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let whole = |(length, _): &&(u64, &str)| {
        span.subsec_nanos() == 0 && span.as_secs().is_multiple_of(*length)
    };
    match units.iter().find(whole) {
        Some((length, unit)) => format!("{}{unit}", span.as_secs() / length),
        None => humantime::format_duration(span).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_shown_as_it_is_written() {
        for written in [
            json!({"failures": 10}),
            json!({"for": "5d"}),
            json!({"failures": 3, "for": "90m"}),
            json!("never"),
        ] {
            let read = DisableAfter::try_from(written.clone()).unwrap();
            assert_eq!(Value::from(read), written);
        }
        let default = Value::from(DisableAfter::default());
        assert_eq!(default, json!({"for": "5d"}));
    }

    #[test]
    fn anything_else_is_refused_with_the_forms_there_are() {
        for (written, told) in [
            (json!(10), "must be {\"failures\": 10}"),
            (json!("newer"), "or `never`"),
            (json!({}), "must be"),
            (json!({"failures": null}), "must be"),
            (json!({"failures": 0}), "from 1 to 100000"),
            (json!({"failures": 1.5}), "from 1 to 100000"),
            (json!({"for": "30s"}), "from \"1m\" to \"90d\""),
            (json!({"for": 5}), "from \"1m\" to \"90d\""),
            (json!({"failure": 5}), "did you mean `failures`?"),
        ] {
            let refused = DisableAfter::try_from(written.clone()).unwrap_err();
            assert!(refused.contains(told), "{written}: {refused}");
        }
    }

    #[test]
    fn a_run_is_judged_by_whichever_limit_it_reaches_first() {
        let of = |failures, span| DisableAfter { failures, span };
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let check = |limit: DisableAfter, failures, lasted, wanted| {
            assert_eq!(
                limit.judge(failures, lasted),
                wanted,
                "{limit:?} {failures}"
            );
        };
        let count = of(Some(10), None);
        check(count, 0, hours(900), Run::Short);
        check(count, 4, hours(900), Run::Short);
        check(count, 5, hours(0), Run::Long);
        check(count, 9, hours(900), Run::Long);
        check(count, 10, hours(0), Run::TooLong);
        let time = of(None, Some(hours(120)));
        check(time, 500, hours(59), Run::Short);
        check(time, 2, hours(60), Run::Long);
        check(time, 2, hours(120), Run::TooLong);
        check(time, 1, hours(120), Run::TooLong);
        check(time, 1, hours(0), Run::Short);
        let both = of(Some(10), Some(hours(120)));
        check(both, 10, hours(1), Run::TooLong);
        check(both, 2, hours(120), Run::TooLong);
        check(of(Some(1), None), 1, hours(0), Run::TooLong);
        check(DisableAfter::NEVER, u64::MAX, hours(9000), Run::Short);
    }
}
