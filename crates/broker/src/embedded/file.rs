//! The SQLite file: one table per queue, rows in the order of arrival, and the statements on them.
//!
//! It knows rows and nothing of consumers, channels or time.

use std::path::Path;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::parcel::{Parcel, Queue};

/// Pages of the write-ahead log after which it is worked into the file: 8 MiB.
const CHECKPOINT_PAGES: u32 = 2_000;
/// The log is cut back to this after a burst.
const LOG_MAX_BYTES: u32 = 64 << 20;
/// Memory for SQLite's own pages.
const CACHE_KIB: u32 = 16 << 10;
/// The tables' layout; a file with another one is refused.
const LAYOUT: i64 = 2;

/// Where a row is. `Later` holds what [`Queue::Deliver`] shall not hand out yet; it stays there
/// when it is due, so that nothing is written twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Table {
    Inbox,
    Deliver,
    Later,
    Dead,
    Quarantine,
    Archive,
    Log,
}

impl Table {
    pub(super) const ALL: [Self; 7] = [
        Self::Inbox,
        Self::Deliver,
        Self::Later,
        Self::Dead,
        Self::Quarantine,
        Self::Archive,
        Self::Log,
    ];

    pub(super) fn queue(self) -> Queue {
        match self {
            Self::Inbox => Queue::Inbox,
            Self::Deliver | Self::Later => Queue::Deliver,
            Self::Dead => Queue::Dead,
            Self::Quarantine => Queue::Quarantine,
            Self::Archive => Queue::Archive,
            Self::Log => Queue::Log,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Inbox => "inbox",
            Self::Deliver => "deliver",
            Self::Later => "later",
            Self::Dead => "dead",
            Self::Quarantine => "quarantine",
            Self::Archive => "archive",
            Self::Log => "log",
        }
    }

    /// The column a table is read and handed out by.
    fn order(self) -> &'static str {
        if self == Self::Later { "due" } else { "id" }
    }
}

/// A row's address: unique and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) table: Table,
    pub(super) id: i64,
}

/// A message as stored.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) key: Key,
    pub(super) message_id: Option<String>,
    pub(super) content_type: Option<String>,
    pub(super) content_encoding: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) source: String,
    pub(super) returns: u32,
    /// Milliseconds since 1970; 0 where it never waited.
    pub(super) due: i64,
    /// A crash left it open whether it had been handed out.
    pub(super) old: bool,
    pub(super) body: Bytes,
}

impl Message {
    pub(super) fn of(key: Key, parcel: Parcel, source: String, due: i64) -> Self {
        Self {
            key,
            message_id: Some(parcel.message_id),
            content_type: parcel.content_type,
            content_encoding: parcel.content_encoding,
            headers: parcel.headers,
            source,
            returns: 0,
            due,
            old: false,
            body: parcel.body,
        }
    }
}

#[derive(Debug)]
pub(super) struct File {
    connection: Connection,
}

type Result<T> = rusqlite::Result<T>;

impl File {
    /// Opens or creates the file. `pages_max` bounds it, for tests of a full disk.
    pub(super) fn open(path: &Path, pages_max: Option<u32>) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.set_prepared_statement_cache_capacity(64);
        // FULL: a confirm means that it survives a power cut, not only a crash of ours.
        connection.execute_batch(&format!(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};
             PRAGMA journal_size_limit = {LOG_MAX_BYTES};
             PRAGMA cache_size = -{CACHE_KIB};"
        ))?;
        if let Some(pages) = pages_max {
            connection.execute_batch(&format!("PRAGMA max_page_count = {pages};"))?;
        }
        let file = Self { connection };
        file.lay_out()?;
        Ok(file)
    }

    fn lay_out(&self) -> Result<()> {
        self.connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value INTEGER)",
        )?;
        match self.state("layout")? {
            Some(LAYOUT) => return Ok(()),
            Some(other) => {
                let text = format!("broker.db has layout {other}, this version knows {LAYOUT}");
                return Err(rusqlite::Error::SqliteFailure(
                    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_MISMATCH),
                    Some(text),
                ));
            }
            None => {}
        }
        for table in Table::ALL {
            self.connection.execute_batch(&format!(
                "CREATE TABLE IF NOT EXISTS {} (
                   id INTEGER PRIMARY KEY, due INTEGER NOT NULL, returns INTEGER NOT NULL,
                   message_id TEXT, content_type TEXT, content_encoding TEXT, headers TEXT,
                   source TEXT NOT NULL, body BLOB NOT NULL)",
                table.name()
            ))?;
        }
        self.set_state("layout", LAYOUT)
    }

    pub(super) fn begin(&self) -> Result<()> {
        self.connection
            .prepare_cached("BEGIN IMMEDIATE")?
            .execute([])
            .map(drop)
    }

    pub(super) fn commit(&self) -> Result<()> {
        self.connection
            .prepare_cached("COMMIT")?
            .execute([])
            .map(drop)
    }

    /// Ends a transaction that failed. SQLite may have ended it by itself.
    pub(super) fn roll_back(&self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::warn!(%error, "roll back failed");
        }
    }

    pub(super) fn insert(&self, message: &Message) -> Result<()> {
        let table = message.key.table.name();
        let mut insert = self.connection.prepare_cached(&format!(
            "INSERT INTO {table} (id, due, returns, message_id, content_type, content_encoding, \
             headers, source, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
        ))?;
        // Pairs of texts always become JSON.
        let headers = (!message.headers.is_empty())
            .then(|| serde_json::to_string(&message.headers).unwrap_or_default());
        insert.execute(params![
            message.key.id,
            message.due,
            message.returns,
            message.message_id,
            message.content_type,
            message.content_encoding,
            headers,
            message.source,
            &message.body[..],
        ])?;
        Ok(())
    }

    pub(super) fn delete(&self, key: Key) -> Result<()> {
        let delete = format!("DELETE FROM {} WHERE id = ?1", key.table.name());
        self.connection
            .prepare_cached(&delete)?
            .execute([key.id])
            .map(drop)
    }

    /// Counts a return; says how many there are now.
    pub(super) fn count_return(&self, key: Key) -> Result<u32> {
        let update = format!(
            "UPDATE {} SET returns = returns + 1 WHERE id = ?1 RETURNING returns",
            key.table.name()
        );
        let returns = self
            .connection
            .prepare_cached(&update)?
            .query_row([key.id], |row| row.get(0));
        Ok(returns.optional()?.unwrap_or_default())
    }

    /// Counts a return of every row that was handed out up to `mark` and is still there.
    pub(super) fn count_returns(&self, table: Table, mark: i64) -> Result<()> {
        let (name, order) = (table.name(), table.order());
        let update = format!("UPDATE {name} SET returns = returns + 1 WHERE {order} <= ?1");
        self.connection
            .prepare_cached(&update)?
            .execute([mark])
            .map(drop)
    }

    pub(super) fn read(&self, key: Key) -> Result<Option<Message>> {
        let select = format!("SELECT {COLUMNS} FROM {} WHERE id = ?1", key.table.name());
        let mut select = self.connection.prepare_cached(&select)?;
        select
            .query_row([key.id], |row| message(row, key.table))
            .optional()
    }

    /// Up to `count` rows from `id` on, and no more than `bytes` of bodies (but at least one).
    pub(super) fn page(
        &self,
        table: Table,
        id: i64,
        count: usize,
        bytes: usize,
    ) -> Result<Vec<Message>> {
        let select = format!(
            "SELECT {COLUMNS} FROM {} WHERE id >= ?1 ORDER BY id LIMIT ?2",
            table.name()
        );
        let mut select = self.connection.prepare_cached(&select)?;
        let mut rows = select.query(params![id, i64::try_from(count).unwrap_or(i64::MAX)])?;
        let (mut page, mut read) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let message = message(row, table)?;
            read += message.body.len();
            page.push(message);
            if read >= bytes {
                break;
            }
        }
        Ok(page)
    }

    /// Rows and the highest id.
    pub(super) fn extent(&self, table: Table) -> Result<(u64, i64)> {
        let select = format!(
            "SELECT count(*), coalesce(max(id), 0) FROM {}",
            table.name()
        );
        let (rows, last): (i64, i64) = self
            .connection
            .query_row(&select, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok((u64::try_from(rows).unwrap_or_default(), last))
    }

    /// Due time and id of everything that waits.
    pub(super) fn waiting(&self) -> Result<Vec<(i64, i64)>> {
        let mut select = self.connection.prepare("SELECT due, id FROM later")?;
        select
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    }

    pub(super) fn state(&self, name: &str) -> Result<Option<i64>> {
        let mut select = self
            .connection
            .prepare_cached("SELECT value FROM state WHERE name = ?1")?;
        select.query_row([name], |row| row.get(0)).optional()
    }

    pub(super) fn set_state(&self, name: &str, value: i64) -> Result<()> {
        let insert = "INSERT INTO state (name, value) VALUES (?1, ?2) \
                      ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        self.connection
            .prepare_cached(insert)?
            .execute(params![name, value])
            .map(drop)
    }

    /// The name under which a table's last id and mark are kept.
    pub(super) fn state_name(table: Table, what: &str) -> String {
        format!("{}.{what}", table.name())
    }

    /// Works the log into the file, so that a copy of the file alone is whole.
    pub(super) fn close(self) {
        if let Err(error) = self
            .connection
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        {
            tracing::warn!(%error, "checkpoint at close failed");
        }
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(%error, "close failed");
        }
    }
}

const COLUMNS: &str =
    "id, due, returns, message_id, content_type, content_encoding, headers, source, body";

fn message(row: &Row<'_>, table: Table) -> Result<Message> {
    let headers: Option<String> = row.get(6)?;
    Ok(Message {
        key: Key {
            table,
            id: row.get(0)?,
        },
        due: row.get(1)?,
        returns: row.get(2)?,
        message_id: row.get(3)?,
        content_type: row.get(4)?,
        content_encoding: row.get(5)?,
        // Only we write there.
        headers: headers
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default(),
        source: row.get(7)?,
        old: false,
        body: Bytes::from(row.get::<_, Vec<u8>>(8)?),
    })
}

/// Whether there is no room: then it helps to wait.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}
