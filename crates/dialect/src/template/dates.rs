//! Dates in the forms that platforms write them, in the time zones of their customers.
//!
//! The time-zone database is the one that is built in, whatever the machine has: two deliverers
//! must never disagree about an hour.

use jiff::{
    Timestamp, Zoned,
    civil::DateTime,
    fmt::strtime,
    tz::{TimeZone, TimeZoneDatabase},
};
use minijinja::{Environment, Error, ErrorKind, Value};

use super::raw::plain;

/// How much of a bad value is said back.
const SHOWN_CHARS_MAX: usize = 40;

pub(super) fn add(environment: &mut Environment<'_>) {
    let zones = TimeZoneDatabase::bundled();
    environment.add_filter(
        "date",
        move |value: &Value, form: &str, zone: Option<&Value>| {
            date(&zones, value, form, zone.map(plain).as_ref())
        },
    );
    environment.add_filter("iso_millis", |value: &Value| {
        Ok::<_, Error>(iso_millis(parsed(&plain(value))?))
    });
}

/// A date in the form of `strftime`, in a time zone by its IANA name, or else in UTC. What is empty
/// stays as it is.
fn date(
    zones: &TimeZoneDatabase,
    value: &Value,
    form: &str,
    zone: Option<&Value>,
) -> Result<Value, Error> {
    let value = plain(value);
    if value.is_none() || value.as_str() == Some("") {
        return Ok(value);
    }
    let time = parsed(&value)?;
    let zone = match zone.filter(|zone| !zone.is_none() && !zone.is_undefined()) {
        None => TimeZone::UTC,
        Some(name) => find(zones, name)?,
    };
    let zoned = Zoned::new(time, zone);
    strtime::format(form, &zoned)
        .map(Value::from)
        .map_err(|error| bad(format!("the form `{form}` cannot be written: {error}")))
}

fn find(zones: &TimeZoneDatabase, name: &Value) -> Result<TimeZone, Error> {
    let unknown = || bad(format!("no time zone is named `{}`", shown(name)));
    let text = name.as_str().ok_or_else(unknown)?;
    // The database also knows a placeholder that is UTC by another name.
    if text.eq_ignore_ascii_case("Etc/Unknown") {
        return Err(unknown());
    }
    zones.get(text).map_err(|_| unknown())
}

/// `YYYY-MM-DDThh:mm:ss[.SSS]Z`: milliseconds only when there are any.
fn iso_millis(time: Timestamp) -> String {
    let form = if time.subsec_millisecond() == 0 {
        "%Y-%m-%dT%H:%M:%SZ"
    } else {
        "%Y-%m-%dT%H:%M:%S.%3fZ"
    };
    time.strftime(form).to_string()
}

/// RFC 3339, or `2018-09-20 16:15:00` (with a `T` too), which is in UTC.
fn parsed(value: &Value) -> Result<Timestamp, Error> {
    let read = |text: &str| {
        text.parse::<Timestamp>().ok().or_else(|| {
            let civil: DateTime = text.parse().ok()?;
            // A date alone would be given an hour that nobody wrote.
            let has_hour = text.len() > "2018-09-20".len();
            let zoned = has_hour.then(|| civil.to_zoned(TimeZone::UTC))?;
            zoned.ok().map(|zoned| zoned.timestamp())
        })
    };
    value.as_str().and_then(read).ok_or_else(|| {
        bad(format!(
            "`{}` is no date such as 2018-09-20 16:15:00 or 2018-09-20T16:15:00Z",
            shown(value)
        ))
    })
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    let cut = text.chars().take(SHOWN_CHARS_MAX);
    cut.map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn bad(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}
