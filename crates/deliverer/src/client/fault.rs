//! From what the HTTP stack reports to the closed set of attempt errors, with one phrase for
//! people. The phrases name no address: a tenant must not learn our network from them.

use std::{error::Error, io, time::Duration};

use event::reason::AttemptError;

use super::NotPermitted;
use crate::outcome::Outcome;

pub(crate) fn not_allowed() -> Outcome {
    Outcome::failed(
        AttemptError::TargetNotAllowed,
        "the target is not one we may dial",
    )
}

pub(super) fn headers_too_large() -> Outcome {
    Outcome::failed(
        AttemptError::HeadersTooLarge,
        "the answer's header block is too large",
    )
}

pub(crate) fn no_answer(timeout: Duration) -> Outcome {
    Outcome::failed(
        AttemptError::Timeout,
        format!("no answer within {timeout:?}"),
    )
}

/// Reads an error of the HTTP stack.
pub(super) fn outcome(error: &reqwest::Error) -> Outcome {
    if find::<NotPermitted>(error).is_some() {
        return not_allowed();
    }
    let (kind, detail) = if let Some(http) = find::<hyper::Error>(error) {
        protocol(http)
    } else if let Some(tls) = find::<rustls::Error>(error) {
        (
            AttemptError::Tls,
            format!("the tls handshake failed: {tls}"),
        )
    } else if error.is_dns() {
        (AttemptError::Dns, "the name did not resolve".into())
    } else if error.is_timeout() {
        (
            AttemptError::Timeout,
            "no connection was made in time".into(),
        )
    } else if error.is_connect() {
        connecting(error)
    } else {
        (
            AttemptError::Reset,
            "the connection broke before a status came".into(),
        )
    };
    Outcome::failed(kind, detail)
}

fn protocol(error: &hyper::Error) -> (AttemptError, String) {
    if error.is_parse_too_large() {
        let Outcome { detail, .. } = headers_too_large();
        (AttemptError::HeadersTooLarge, detail)
    } else if error.is_parse() {
        (AttemptError::NotHttp, "the answer is not http/1.1".into())
    } else {
        (
            AttemptError::Reset,
            "the connection broke before a status came".into(),
        )
    }
}

fn connecting(error: &reqwest::Error) -> (AttemptError, String) {
    let kind = find::<io::Error>(error).map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => {
            (AttemptError::Connect, "the connection was refused".into())
        }
        // The connector speaks TLS too: an end of the stream there is a broken handshake.
        Some(io::ErrorKind::UnexpectedEof) => {
            (AttemptError::Tls, "the tls handshake was cut off".into())
        }
        _ => (AttemptError::Connect, "no connection was made".into()),
    }
}

/// The first error of a type in a chain. An `io::Error` hides the one it wraps from `source`, so
/// that is looked into as well.
fn find<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(here) = next {
        if let Some(found) = here.downcast_ref::<E>() {
            return Some(found);
        }
        if let Some(wrapped) = here
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            && let Some(found) = find::<E>(wrapped)
        {
            return Some(found);
        }
        next = here.source();
    }
    None
}
