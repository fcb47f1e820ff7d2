//! Where a value came from, in words.

use std::path::Path;

/// The origin of what nobody gave.
pub(super) const DEFAULT: &str = "default";

/// `FILE:LINE` of a byte offset.
pub(super) fn line_of(file: &Path, text: &str, offset: usize) -> String {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    format!("{}:{line}", file.display())
}
