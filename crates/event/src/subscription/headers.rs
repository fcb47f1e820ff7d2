//! Which headers a subscription may send along: none that changes what the request is, where it
//! goes, or who a machine on the way takes it for.

use std::collections::BTreeMap;

const NAME_BYTES_MAX: usize = 64;
const VALUE_BYTES_MAX: usize = 4096;
const COUNT_MAX: usize = 20;
const TOTAL_BYTES_MAX: usize = 8 * 1024;

const DENIED: [&str; 21] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "metadata",
    "metadata-flavor",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
];

const DENIED_PREFIXES: [&str; 11] = [
    "proxy-",
    "sec-",
    "webhook-",
    "x-amz",
    "x-aws-",
    "x-azure-",
    "x-forwarded-",
    "x-goog",
    "x-http-method",
    "x-ms",
    "x-postrider-",
];

/// Checks one header.
pub(super) fn check(name: &str, value: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_token) {
        return Err(format!(
            "the name must be 1 to {NAME_BYTES_MAX} letters, digits or `-`, as HTTP has it"
        ));
    }
    let lower = name.to_ascii_lowercase();
    if DENIED.contains(&lower.as_str())
        || DENIED_PREFIXES
            .iter()
            .any(|prefix| lower.starts_with(prefix))
    {
        return Err("is not a header that a subscription may set".into());
    }
    if value.len() > VALUE_BYTES_MAX {
        let got = value.len();
        return Err(format!(
            "the value must be at most {VALUE_BYTES_MAX} bytes, got {got}"
        ));
    }
    if !value.bytes().all(|b| matches!(b, b'\t' | b' '..=b'~')) {
        return Err("the value must be visible ASCII, spaces and tabs".into());
    }
    if value.trim_ascii().len() != value.len() {
        return Err("the value must not begin or end with a space or tab".into());
    }
    Ok(())
}

/// Checks them together.
pub(super) fn check_all(headers: &BTreeMap<String, String>) -> Result<(), String> {
    if headers.len() > COUNT_MAX {
        return Err(format!(
            "must have at most {COUNT_MAX} entries, got {}",
            headers.len()
        ));
    }
    let total: usize = headers
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if total > TOTAL_BYTES_MAX {
        return Err(format!(
            "must be at most {TOTAL_BYTES_MAX} bytes together, got {total}"
        ));
    }
    Ok(())
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
