//! What a caller can do about a failed call: try again, or tell a person.

use sqlx::error::DatabaseError;

/// Why a store call failed: our own house, or the network between.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be reached or is locked; trying again later may help.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// Something a person must mend.
    #[error("{0}")]
    Fatal(String),
    /// The caller's cursor is not one that this list gave out.
    #[error("the cursor is not one that this list gave out")]
    BadCursor,
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let passing = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed => true,
            sqlx::Error::Database(fault) => {
                let code = fault.code();
                let code = code.as_deref().unwrap_or_default();
                if fault
                    .try_downcast_ref::<sqlx::sqlite::SqliteError>()
                    .is_some()
                {
                    sqlite_passes(code)
                } else {
                    postgres_passes(code)
                }
            }
            _ => false,
        };
        match (passing, error) {
            (_, sqlx::Error::PoolTimedOut) => {
                Self::Unavailable("no connection could be had in time".into())
            }
            (_, sqlx::Error::Configuration(fault)) => Self::Fatal(format!("store.url: {fault}")),
            (true, error) => Self::Unavailable(error.to_string()),
            (false, error) => Self::Fatal(format!("the store failed: {error}")),
        }
    }
}

/// Whether another process is writing to the SQLite file at this moment.
pub(crate) fn is_busy(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|fault| fault.try_downcast_ref::<sqlx::sqlite::SqliteError>())
        .and_then(|fault| fault.code()?.parse::<u32>().ok())
        .is_some_and(|code| code & 0xff == 5)
}

/// Codes after which the same call may well succeed: busy, locked, interrupted, an I/O error, a
/// full disk, a file that cannot be opened just now.
fn sqlite_passes(code: &str) -> bool {
    // The low byte is the primary code, the rest refines it.
    code.parse::<u32>()
        .is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 9 | 10 | 13 | 14))
}

/// Connection lost (08), resources short (53), an operator at work (57: shutdown, start-up, a
/// cancelled statement), deadlock or serialization (40), a lock not had (55P03), a standby that
/// is not writable yet (25006).
fn postgres_passes(code: &str) -> bool {
    matches!(code.get(..2), Some("08" | "53" | "57" | "40")) || matches!(code, "55P03" | "25006")
}
