//! `Retry-After` as strangers write it.

use jiff::{SignedDuration, Timestamp, civil, fmt::rfc2822, tz::TimeZone};

/// One further away than this is a mistake, and is ignored.
const SANE: SignedDuration = SignedDuration::from_hours(24 * 366);

/// Reads a `Retry-After`: whole seconds, or a date in any of HTTP's three forms. What is neither,
/// lies in the past or is absurdly far away says nothing.
pub fn read(text: &str, now: Timestamp) -> Option<SignedDuration> {
    let text = text.trim_matches([' ', '\t']);
    let pause = if text.bytes().all(|b| b.is_ascii_digit()) {
        SignedDuration::from_secs(text.parse().ok()?)
    } else {
        http_date(text)?.duration_since(now)
    };
    (SignedDuration::ZERO < pause && pause <= SANE).then_some(pause)
}

fn http_date(text: &str) -> Option<Timestamp> {
    // IMF-fixdate is an RFC 2822 date; the two older forms are spelled out.
    if let Ok(at) = rfc2822::DateTimeParser::new().parse_timestamp(text) {
        return Some(at);
    }
    ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"]
        .into_iter()
        .find_map(|form| {
            let at = civil::DateTime::strptime(form, text).ok()?;
            TimeZone::UTC.to_timestamp(at).ok()
        })
}
