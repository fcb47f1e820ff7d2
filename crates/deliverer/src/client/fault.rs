//! From what the HTTP stack reports to the closed set of attempt errors, with one phrase for
//! people. The phrases name no address: a tenant must not learn our network from them.

use std::{error::Error, io, time::Duration};

use event::reason::AttemptError;

use super::dial::{DialError, find};
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
pub(super) fn outcome(error: &(dyn Error + 'static)) -> Outcome {
    let (kind, detail) = if let Some(dial) = find::<DialError>(error) {
        dialling(dial)
    } else if let Some(http) = find::<hyper::Error>(error) {
        protocol(http)
    } else {
        broken()
    };
    Outcome::failed(kind, detail)
}

fn dialling(error: &DialError) -> (AttemptError, String) {
    let kind = match error {
        DialError::NotPermitted => AttemptError::TargetNotAllowed,
        DialError::Unresolved => AttemptError::Dns,
        DialError::Timeout => AttemptError::Timeout,
        DialError::Crowded | DialError::Refused | DialError::Unconnected(_) => {
            AttemptError::Connect
        }
        DialError::Tls(cause) => return (AttemptError::Tls, handshake(cause)),
    };
    (kind, error.to_string())
}

fn handshake(error: &io::Error) -> String {
    match find::<rustls::Error>(error) {
        Some(tls) => format!("the tls handshake failed: {tls}"),
        None => "the tls handshake was cut off".into(),
    }
}

fn protocol(error: &hyper::Error) -> (AttemptError, String) {
    if error.is_parse_too_large() {
        let Outcome { detail, .. } = headers_too_large();
        (AttemptError::HeadersTooLarge, detail)
    } else if error.is_parse() {
        (AttemptError::NotHttp, "the answer is not http/1.1".into())
    } else {
        broken()
    }
}

fn broken() -> (AttemptError, String) {
    (
        AttemptError::Reset,
        "the connection broke before a status came".into(),
    )
}
