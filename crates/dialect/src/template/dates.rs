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

use super::{edited::Edited, raw::plain};

/// How much of a bad value is said back.
const SHOWN_CHARS_MAX: usize = 40;

pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_filter("date", |value: &Value, form: &str, zone: Option<&Value>| {
        date(value, form, &zone_of(zone)?)
    });
    environment.add_filter("dates", dates);
    environment.add_filter("iso_millis", |value: &Value| {
        Ok::<_, Error>(iso_millis(parsed(&plain(value))?))
    });
}

/// A date in the form of `strftime`, in a time zone. What is empty stays as it is.
fn date(value: &Value, form: &str, zone: &TimeZone) -> Result<Value, Error> {
    let value = plain(value);
    if is_empty(&value) {
        return Ok(value);
    }
    let time = parsed(&value)?;
    if form == PLAIN {
        return Ok(plain_text(zone.to_datetime(time)).into());
    }
    strtime::format(form, &Zoned::new(time, zone.clone()))
        .map(Value::from)
        .map_err(|error| bad(format!("the form `{form}` cannot be written: {error}")))
}

/// Of an object, the dates under some keys, in their order; those that it lacks or that are empty
/// are left out.
fn dates(object: &Value, keys: &Value, form: &str, zone: Option<&Value>) -> Result<Value, Error> {
    let zone = zone_of(zone)?;
    let mut made = Edited::default();
    for key in keys.try_iter()? {
        let value = object.get_item(&key)?;
        if !value.is_undefined() && !is_empty(&value) {
            made.push(&key.to_string(), date(&value, form, &zone)?);
        }
    }
    Ok(Value::from_object(made))
}

fn is_empty(value: &Value) -> bool {
    value.is_none() || value.as_str() == Some("")
}

/// A time zone by its IANA name; UTC where there is none.
fn zone_of(name: Option<&Value>) -> Result<TimeZone, Error> {
    let name = name.map(plain);
    match name.filter(|name| !name.is_none() && !name.is_undefined()) {
        None => Ok(TimeZone::UTC),
        Some(name) => find(&name),
    }
}

fn find(name: &Value) -> Result<TimeZone, Error> {
    let unknown = || bad(format!("no time zone is named `{}`", shown(name)));
    let text = name.as_str().ok_or_else(unknown)?;
    // The database also knows a placeholder that is UTC by another name.
    if text.eq_ignore_ascii_case("Etc/Unknown") {
        return Err(unknown());
    }
    TimeZoneDatabase::bundled().get(text).map_err(|_| unknown())
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
        // Most dates are in this form, and the general reader takes its time to refuse it.
        if let Some(civil) = plain_civil(text) {
            return TimeZone::UTC.to_timestamp(civil).ok();
        }
        text.parse::<Timestamp>().ok().or_else(|| {
            let civil: DateTime = text.parse().ok()?;
            // A date alone would be given an hour that nobody wrote.
            let has_hour = text.len() > "2018-09-20".len();
            TimeZone::UTC.to_timestamp(civil).ok().filter(|_| has_hour)
        })
    };
    value.as_str().and_then(read).ok_or_else(|| {
        bad(format!(
            "`{}` is no date such as 2018-09-20 16:15:00 or 2018-09-20T16:15:00Z",
            shown(value)
        ))
    })
}

/// `2018-09-20 16:15:00`, with a space or a `T`, and nothing else.
fn plain_civil(text: &str) -> Option<DateTime> {
    let bytes: &[u8; 19] = text.as_bytes().try_into().ok()?;
    let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if marks.iter().any(|(at, mark)| bytes[*at] != *mark) || !matches!(bytes[10], b' ' | b'T') {
        return None;
    }
    let number = |from: usize, to: usize| {
        let mut number = 0i16;
        for byte in bytes.get(from..to)? {
            let digit = byte.is_ascii_digit().then(|| i16::from(byte - b'0'))?;
            number = number * 10 + digit;
        }
        Some(number)
    };
    let two = |from: usize| i8::try_from(number(from, from + 2)?).ok();
    DateTime::new(
        number(0, 4)?,
        two(5)?,
        two(8)?,
        two(11)?,
        two(14)?,
        two(17)?,
        0,
    )
    .ok()
}

/// The form that most platforms write, which is worth a shorter way.
const PLAIN: &str = "%Y-%m-%d %H:%M:%S";

fn plain_text(civil: DateTime) -> String {
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        civil.year(),
        civil.month(),
        civil.day(),
        civil.hour(),
        civil.minute(),
        civil.second()
    )
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    let cut = text.chars().take(SHOWN_CHARS_MAX);
    cut.map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn bad(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}
