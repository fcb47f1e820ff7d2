//! What came of one attempt, as values: the client makes it, the verdict reads it, the delivery
//! remembers it. Pure.

use std::time::Duration;

use event::{delivery::AttemptRecord, log::Timing, reason::AttemptError};
use http::{HeaderMap, header};
use jiff::Timestamp;

/// What came of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The status, where one came.
    pub(crate) status: Option<u16>,
    /// What went wrong; `None` is success.
    pub(crate) error: Option<AttemptError>,
    /// One phrase for people. It names no address and no header value.
    pub(crate) detail: String,
    /// The `Retry-After` header as sent, at most [`RETRY_AFTER_BYTES_MAX`].
    pub(crate) retry_after: Option<String>,
    /// The beginning of the response's body, made safe to show.
    pub(crate) response: Option<String>,
    /// From connecting to the last byte read.
    pub(crate) took: Duration,
    /// What only the log wants to know.
    pub(crate) seen: Seen,
}

/// What of an attempt does not travel with the delivery, and is told to the log alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    pub(crate) timing: Timing,
    /// The response's headers, made safe to show, at most [`HEADERS_BYTES_MAX`] together.
    pub(crate) headers: Vec<(String, String)>,
    /// The beginning of the response's body, made safe to show, at most [`LOGGED_BYTES_MAX`].
    pub(crate) body: Option<String>,
    /// What is worth saying of a success, too.
    pub(crate) note: Option<&'static str>,
}

/// No valid date or number of seconds is longer.
pub(crate) const RETRY_AFTER_BYTES_MAX: usize = 64;
/// How much of a response travels with the delivery.
pub(crate) const TRAVELS_BYTES_MAX: usize = 1024;
/// How much of a response is logged.
pub(crate) const LOGGED_BYTES_MAX: usize = 16 * 1024;
/// How much of a response's headers is logged, names included.
const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// How much of a `location` is logged.
const LOCATION_BYTES_MAX: usize = 512;
const DETAIL_BYTES_MAX: usize = 256;
/// What stands in the place of a secret.
pub(crate) const MASK: &str = "***";

impl Outcome {
    /// An attempt that ended without a status.
    pub(crate) fn failed(error: AttemptError, detail: impl Into<String>) -> Self {
        Self {
            status: None,
            error: Some(error),
            detail: detail.into(),
            retry_after: None,
            response: None,
            took: Duration::ZERO,
            seen: Seen::default(),
        }
    }

    /// An attempt that was answered. The status decides, whatever becomes of the body.
    pub(crate) fn answered(status: u16) -> Self {
        let error = match status {
            200..=299 => None,
            300..=399 => Some(AttemptError::RedirectNotFollowed),
            _ => Some(AttemptError::Status),
        };
        Self {
            status: Some(status),
            error,
            detail: match status {
                301 | 308 => format!(
                    "status {status}: the endpoint has moved for good; redirects are not followed, \
                     so its target_url must be changed"
                ),
                _ => format!("status {status}"),
            },
            retry_after: None,
            response: None,
            took: Duration::ZERO,
            seen: Seen::default(),
        }
    }

    /// The attempt as the delivery remembers it.
    pub(crate) fn record(&self, number: u32, at: Timestamp) -> AttemptRecord {
        AttemptRecord {
            number,
            at,
            duration_ms: u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
            status: self.status,
            error: self.error,
            detail: self.shown_detail(),
            response: self.response.clone(),
        }
    }

    /// What went wrong, safe to show; `None` of a success.
    pub(crate) fn shown_detail(&self) -> Option<String> {
        self.error.map(|_| brief(&self.detail))
    }
}

/// A sentence as it may stand in a record.
pub(crate) fn brief(text: &str) -> String {
    safe(text, DETAIL_BYTES_MAX)
}

/// A response's headers as they can be shown: in order, bounded, and without the cookies that an
/// endpoint gives out.
pub(crate) fn shown_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut room = HEADERS_BYTES_MAX;
    let mut shown = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let text = match *name {
            header::SET_COOKIE => MASK.into(),
            header::LOCATION => location(value.as_bytes()),
            _ => safe(
                &String::from_utf8_lossy(value.as_bytes()),
                HEADERS_BYTES_MAX,
            ),
        };
        let Some(left) = room.checked_sub(name.as_str().len() + text.len()) else {
            break;
        };
        room = left;
        shown.push((name.as_str().to_owned(), text));
    }
    shown
}

/// Where a redirect points to, without its query: that may hold a secret of the endpoint's.
fn location(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let shown = match text.split_once('?') {
        Some((place, _)) => format!("{place}?{MASK}"),
        None => text.into_owned(),
    };
    safe(&shown, LOCATION_BYTES_MAX)
}

/// The beginning of a response's body as text that can be shown: control characters and those
/// that turn the reading direction are escaped, so that it cannot pretend to be something else in
/// a terminal or a log.
pub(crate) fn shown(body: &[u8], bytes_max: usize) -> String {
    let head = &body[..body.len().min(bytes_max)];
    safe(&String::from_utf8_lossy(head), bytes_max)
}

fn safe(text: &str, bytes_max: usize) -> String {
    let mut safe = String::with_capacity(text.len().min(bytes_max));
    for c in text.chars() {
        let before = safe.len();
        match c {
            '\n' | '\t' => safe.push(c),
            c if c.is_control() || turns_direction(c) => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
        if safe.len() > bytes_max {
            safe.truncate(before);
            break;
        }
    }
    safe
}

fn turns_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_2xx_is_success() {
        let error = |status| Outcome::answered(status).error;
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(error(status), None, "{status}");
        }
        for status in [300, 301, 304, 308, 399] {
            assert_eq!(
                error(status),
                Some(AttemptError::RedirectNotFollowed),
                "{status}"
            );
        }
        for status in [101, 199, 400, 410, 429, 500, 600, 999] {
            assert_eq!(error(status), Some(AttemptError::Status), "{status}");
        }
    }

    #[test]
    fn a_response_is_shown_short_and_harmless() {
        let shown = |body: &[u8]| shown(body, TRAVELS_BYTES_MAX);
        assert_eq!(shown(b"no such hook\n"), "no such hook\n");
        assert_eq!(shown(b"\x1b[31mred\x00"), "\\u{1b}[31mred\\u{0}");
        assert_eq!(shown("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(shown(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        assert_eq!(shown(&[b'x'; 20_000]).len(), TRAVELS_BYTES_MAX);
        assert!(shown(&[0; 20_000]).len() <= TRAVELS_BYTES_MAX);
        assert!(shown("é".repeat(2000).as_bytes()).len() <= TRAVELS_BYTES_MAX);
    }

    #[test]
    fn a_responses_headers_are_shown_in_order_bounded_and_without_its_cookies() {
        let mut headers = HeaderMap::new();
        let long = "v".repeat(9000);
        for (name, value) in [
            ("server", b"nginx".as_slice()),
            ("set-cookie", b"session=secret"),
            ("location", b"https://a.example/b?token=secret"),
            ("x-odd", b"\xff\tb"),
            ("x-long", long.as_bytes()),
            ("x-longer", long.as_bytes()),
            ("x-last", b"short"),
        ] {
            let value = http::HeaderValue::from_bytes(value).unwrap();
            headers.append(http::HeaderName::from_static(name), value);
        }
        let shown = shown_headers(&headers);
        let names: Vec<&str> = shown.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["server", "set-cookie", "location", "x-odd", "x-long"]
        );
        assert_eq!(shown[1].1, "***");
        assert_eq!(shown[2].1, "https://a.example/b?***");
        assert_eq!(shown[3].1, "\u{fffd}\tb");
    }
}
