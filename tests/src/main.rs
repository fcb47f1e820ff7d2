//! The promises, a module each.

// Helpers wait here for the tests that need them.
#[allow(dead_code)]
mod support;
mod walls;
