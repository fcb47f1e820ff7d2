//! What was wrong with somebody's input, where, and what to do about it.
//!
//! A refusal is an expected end, not an error: it names every fault at once so that a person
//! mends their input in one go. It never carries a payload or a secret.

use serde::{Deserialize, Serialize};

/// One thing wrong, at one place of the input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// RFC 6901 pointer into the input; empty for the whole document.
    pub pointer: String,
    /// What was expected and what was found, in one lowercase sentence.
    pub message: String,
}

impl Fault {
    /// A fault at `pointer`.
    pub fn at(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), message: message.into() }
    }
}

/// Why some input was not taken, with every fault found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// A stable word for programs, such as `bad_json` or `invalid_event`.
    pub code: &'static str,
    /// The HTTP status an API answers with: 400 cannot be read, 413 too large, 422 read but wrong.
    pub status: u16,
    /// One sentence for people.
    pub detail: String,
    /// Everything wrong at once, in the order of the input.
    pub faults: Vec<Fault>,
}

impl Refusal {
    /// The bytes could not be read as what they claim to be (400).
    pub fn unreadable(code: &'static str, detail: impl Into<String>) -> Self {
        Self { code, status: 400, detail: detail.into(), faults: Vec::new() }
    }

    /// The input was read and is wrong in the named places (422).
    pub fn invalid(code: &'static str, detail: impl Into<String>, faults: Vec<Fault>) -> Self {
        Self { code, status: 422, detail: detail.into(), faults }
    }
}
