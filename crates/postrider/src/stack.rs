//! Stacks that a stranger's message cannot exhaust.
//!
//! An AMQP header may be an array in an array in an array, 26 000 deep in one frame. The client
//! library reads that recursively, in a thread that it starts itself, before anybody could look at
//! the message; a stack that ends takes the whole process, which then meets the same message
//! again. Only the environment sizes that thread's stack, and only at the start of a process: so
//! the process starts itself once more. See decision record 0013.

use std::env;

/// What the standard library reads.
const VARIABLE: &str = "RUST_MIN_STACK";

/// Enough for the deepest header of a frame of 128 KiB, with as much again to spare. Only what is
/// used becomes memory.
const BYTES: usize = if cfg!(debug_assertions) { 512 } else { 128 } * 1024 * 1024;

/// Starts this process again with larger stacks, where it is to read from RabbitMQ and has not
/// got them. Returns when there is nothing to do, or when it could not be done.
pub(crate) fn make_room(broker_url: &str) {
    if broker_url.starts_with("embedded://") || env::var_os(VARIABLE).is_some() {
        return;
    }
    let error = start_again();
    tracing::warn!(
        %error,
        "stacks keep their usual size: a message with deeply nested headers can end this process; \
         set RUST_MIN_STACK={BYTES}"
    );
}

#[cfg(unix)]
fn start_again() -> std::io::Error {
    use std::os::unix::process::CommandExt;
    let program = match env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    // The same process, with its number and its open files; this returns only when it fails.
    std::process::Command::new(program)
        .args(env::args_os().skip(1))
        .env(VARIABLE, BYTES.to_string())
        .exec()
}

#[cfg(not(unix))]
fn start_again() -> std::io::Error {
    std::io::ErrorKind::Unsupported.into()
}
