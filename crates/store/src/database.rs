//! The connections, and the few places where the two databases differ: how a transaction begins,
//! what a connection is told first, which migrations run. Everything else in this crate is one SQL
//! text for both.
//!
//! No call waits for ever: a connection is had within [`ACQUIRE_MAX`] and a call ends within
//! [`CALL_MAX`]. A connection that was not given back whole is closed, never reused: it may hang,
//! or be in the middle of a transaction.

use std::{
    collections::BTreeSet,
    ops::{Deref, DerefMut},
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{
    Any, AnyConnection, AnyPool, AssertSqlSafe, Encode, FromRow, SqlSafeStr, SqlStr, Type,
    any::{AnyArguments, AnyConnectOptions, AnyPoolOptions, AnyRow},
    migrate::{Migration, MigrationType, Migrator},
    pool::PoolConnection,
};
use tokio::time::timeout;

use crate::{Error, Sight, error::is_busy, location::Location};

/// How long a call may take in all.
const CALL_MAX: Duration = Duration::from_secs(5);
/// How long a call may wait for a connection.
const ACQUIRE_MAX: Duration = Duration::from_secs(3);
/// Connections to a PostgreSQL server, per process.
const POSTGRES_CONNECTIONS: u32 = 8;
/// Connections that read a SQLite file, per process; there is one more that writes.
const SQLITE_READERS: u32 = 4;

/// A commit is on the disk before it is confirmed, because queues are emptied on the word of it.
const SQLITE_SETUP: &str = "PRAGMA busy_timeout = 4000; PRAGMA synchronous = FULL;";

/// A writer does its waiting itself, in [`Database::write`]; but these words wait too, where
/// another process is just making the file or its log. The log is written all over its indexes:
/// with the usual 2 MiB of cache most pages would be read and written again and again.
const SQLITE_WRITER_SETUP: &str = "PRAGMA busy_timeout = 2500; PRAGMA synchronous = FULL; \
    PRAGMA cache_size = -65536; PRAGMA temp_store = MEMORY; PRAGMA wal_autocheckpoint = 4000; \
    PRAGMA busy_timeout = 0;";

/// How long a writer of SQLite waits before it tries again for the lock that another process has.
/// SQLite's own waiting grows to 100 ms a time, and so loses to processes that write without
/// pause for longer than a call may take.
const SQLITE_LOCK_PAUSE: Duration = Duration::from_millis(2);

/// PostgreSQL ends what our side has given up on, and frees the revision's lock from a process
/// that froze while holding it. A commit is on its disk too, even where the server's default is
/// to be quicker; a stronger default stands.
const POSTGRES_SETUP: &str = "SET statement_timeout = '5s'; \
    SET idle_in_transaction_session_timeout = '10s'; \
    SET default_transaction_isolation = 'read committed'; \
    SELECT set_config('synchronous_commit', 'on', false) \
    WHERE current_setting('synchronous_commit') = 'off';";

/// One opener at a time: any number that nobody else takes.
const POSTGRES_OPENING: &str =
    "SET LOCAL statement_timeout = '5min'; SELECT pg_advisory_xact_lock(5771460110320914);";

/// One step from an empty database to today's tables, in each database's words.
struct Step {
    name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

/// Reads a step from `migrations/`.
macro_rules! step {
    ($file:literal) => {
        Step {
            name: $file,
            sqlite: include_str!(concat!("../migrations/sqlite/", $file, ".sql")),
            postgres: include_str!(concat!("../migrations/postgres/", $file, ".sql")),
        }
    };
}

/// Every step, in order, never changed once released.
const MIGRATIONS: &[Step] = &[
    step!("0001_first"),
    step!("0002_log"),
    step!("0003_claims"),
    step!("0004_jobs"),
    step!("0005_held"),
    step!("0006_expunged"),
    step!("0007_versions"),
    step!("0008_listening"),
    step!("0009_sizes"),
    step!("0010_runs"),
];

/// An open database.
#[derive(Debug)]
pub(crate) struct Database {
    readers: AnyPool,
    writer: AnyPool,
    is_sqlite: bool,
    /// Days that have their partitions, as far as this process knows.
    days: Mutex<BTreeSet<i64>>,
}

impl Database {
    /// Connects.
    pub(crate) async fn connect(location: &Location) -> Result<Self, Error> {
        sqlx::any::install_default_drivers();
        let options = AnyConnectOptions::from_str(&location.prepare()?)?;
        match location {
            Location::Sqlite(_) => {
                // A file is not away between two calls, as a server may be; asking costs a thread's
                // waking up each time.
                let writer = pool(1, SQLITE_WRITER_SETUP)
                    .test_before_acquire(false)
                    .connect_lazy_with(options.clone());
                // The mode is kept in the file; setting it takes a lock that does not wait.
                set_wal(&writer).await?;
                let readers = pool(SQLITE_READERS, SQLITE_SETUP)
                    .test_before_acquire(false)
                    .connect_lazy_with(options);
                Ok(Self {
                    readers,
                    writer,
                    is_sqlite: true,
                    days: Mutex::default(),
                })
            }
            Location::Postgres(_) => {
                let writer = pool(POSTGRES_CONNECTIONS, POSTGRES_SETUP)
                    .idle_timeout(Duration::from_secs(300))
                    .max_lifetime(Duration::from_secs(1800))
                    .connect_lazy_with(options);
                Ok(Self {
                    readers: writer.clone(),
                    writer,
                    is_sqlite: false,
                    days: Mutex::default(),
                })
            }
        }
    }

    /// A connection for one statement that only reads.
    pub(crate) async fn read(&self) -> Result<Lease, Error> {
        Ok(Lease {
            connection: self.readers.acquire().await?,
            whole: false,
            ends: PLAIN,
        })
    }

    /// Every row of a statement that only reads.
    pub(crate) async fn rows<R>(&self, statement: Statement) -> Result<Vec<R>, Error>
    where
        R: for<'r> FromRow<'r, AnyRow> + Send + Unpin,
    {
        let (sql, arguments) = statement.parts();
        let mut lease = self.read().await?;
        let rows = sqlx::query_as_with(sql, arguments)
            .fetch_all(&mut *lease)
            .await?;
        lease.release();
        Ok(rows)
    }

    /// The row of a statement that only reads, where there is one.
    pub(crate) async fn row<R>(&self, statement: Statement) -> Result<Option<R>, Error>
    where
        R: for<'r> FromRow<'r, AnyRow> + Send + Unpin,
    {
        let (sql, arguments) = statement.parts();
        let mut lease = self.read().await?;
        let row = sqlx::query_as_with(sql, arguments)
            .fetch_optional(&mut *lease)
            .await?;
        lease.release();
        Ok(row)
    }

    /// How the database would go about a statement, a line for each step.
    pub(crate) async fn plan(&self, statement: Statement) -> Result<Vec<String>, Error> {
        use sqlx::Row;
        let word = if self.is_sqlite {
            "EXPLAIN QUERY PLAN "
        } else {
            "EXPLAIN "
        };
        let (sql, arguments) = statement.after(word).parts();
        let mut lease = self.read().await?;
        let rows = sqlx::query_with(sql, arguments)
            .fetch_all(&mut *lease)
            .await?;
        lease.release();
        let line = |row: &AnyRow| row.try_get(row.len() - 1);
        Ok(rows.iter().map(line).collect::<Result<_, _>>()?)
    }

    /// A connection with a transaction begun. SQLite takes its write lock now, because a
    /// transaction that read first could not wait for it later.
    pub(crate) async fn write(&self) -> Result<Lease, Error> {
        self.begin(if self.is_sqlite {
            "BEGIN IMMEDIATE"
        } else {
            "BEGIN"
        })
        .await
    }

    /// As [`Self::write`], for what may be lost with the machine's power: the commit does not wait
    /// for the disk.
    pub(crate) async fn write_lightly(&self) -> Result<Lease, Error> {
        let mut lease = self
            .begin(if self.is_sqlite {
                "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE"
            } else {
                "BEGIN; SET LOCAL synchronous_commit = off"
            })
            .await?;
        if self.is_sqlite {
            lease.ends = Ends {
                commit: "COMMIT; PRAGMA synchronous = FULL",
                rollback: "ROLLBACK; PRAGMA synchronous = FULL",
            };
        }
        Ok(lease)
    }

    async fn begin(&self, begin: &'static str) -> Result<Lease, Error> {
        let mut lease = Lease {
            connection: self.writer.acquire().await?,
            whole: false,
            ends: PLAIN,
        };
        loop {
            match sqlx::raw_sql(begin).execute(&mut *lease).await {
                Err(error) if is_busy(&error) => tokio::time::sleep(SQLITE_LOCK_PAUSE).await,
                begun => break begun.map(drop)?,
            };
        }
        Ok(lease)
    }

    /// Whether it is SQLite, for the few statements that have no words in common.
    pub(crate) fn is_sqlite(&self) -> bool {
        self.is_sqlite
    }

    /// Days that have their partitions, as far as this process knows.
    pub(crate) fn days(&self) -> MutexGuard<'_, BTreeSet<i64>> {
        self.days.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transaction that no other process's opening runs beside, with the tables up to date.
    pub(crate) async fn open(&self) -> Result<Lease, Error> {
        let mut lease = within(self.write()).await?;
        if !self.is_sqlite {
            sqlx::raw_sql(POSTGRES_OPENING).execute(&mut *lease).await?;
        }
        let migrations = MIGRATIONS.iter().zip(1..).map(|(migration, version)| {
            let sql = if self.is_sqlite {
                migration.sqlite
            } else {
                migration.postgres
            };
            Migration::new(
                version,
                migration.name.into(),
                MigrationType::Simple,
                sql.into_sql_str(),
                // Neither a transaction nor a lock of its own: it runs in ours.
                true,
            )
        });
        let mut migrator = Migrator::with_migrations(migrations.collect());
        migrator.set_locking(false);
        migrator
            .run_direct(None, &mut *lease, false)
            .await
            .map_err(not_migrated)?;
        Ok(lease)
    }
}

fn not_migrated(error: sqlx::migrate::MigrateError) -> Error {
    use sqlx::migrate::MigrateError;
    match error {
        MigrateError::Execute(error) => error.into(),
        MigrateError::VersionMissing(_) => Error::Fatal(
            "the store was made by a newer version of Postrider; update this one".into(),
        ),
        other => Error::Fatal(format!(
            "the store's tables cannot be brought up to date: {other}"
        )),
    }
}

fn pool(connections: u32, setup: &'static str) -> AnyPoolOptions {
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_MAX)
        .after_connect(move |connection, _| {
            Box::pin(async move { sqlx::raw_sql(setup).execute(connection).await.map(drop) })
        })
}

async fn set_wal(writer: &AnyPool) -> Result<(), Error> {
    let trying = async {
        loop {
            let set: Result<(), Error> = async {
                let mut connection = writer.acquire().await?;
                sqlx::raw_sql("PRAGMA journal_mode = WAL")
                    .execute(&mut *connection)
                    .await?;
                Ok(())
            }
            .await;
            match set {
                // Another process is setting it at this moment.
                Err(Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                done => return done,
            }
        }
    };
    within(trying).await
}

/// Ends a call that takes too long.
pub(crate) async fn within<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(CALL_MAX, call)
        .await
        .unwrap_or_else(|_| Err(Error::Unavailable(format!("no answer within {CALL_MAX:?}"))))
}

/// A connection on loan. Dropped without [`Self::release`], [`Self::commit`] or
/// [`Self::rollback`], it is closed, and a transaction on it undone.
pub(crate) struct Lease {
    connection: PoolConnection<Any>,
    whole: bool,
    ends: Ends,
}

/// The words that end a transaction, and leave the connection as it was.
struct Ends {
    commit: &'static str,
    rollback: &'static str,
}

const PLAIN: Ends = Ends {
    commit: "COMMIT",
    rollback: "ROLLBACK",
};

impl Lease {
    /// Gives the connection back.
    pub(crate) fn release(mut self) {
        self.whole = true;
    }

    /// Commits and gives the connection back.
    pub(crate) async fn commit(mut self) -> Result<(), Error> {
        sqlx::raw_sql(self.ends.commit).execute(&mut *self).await?;
        self.whole = true;
        Ok(())
    }

    /// Undoes and gives the connection back.
    pub(crate) async fn rollback(mut self) -> Result<(), Error> {
        sqlx::raw_sql(self.ends.rollback)
            .execute(&mut *self)
            .await?;
        self.whole = true;
        Ok(())
    }
}

impl Deref for Lease {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.connection
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.whole {
            self.connection.close_on_drop();
        }
    }
}

/// A statement whose conditions depend on what was asked. Text comes from this crate alone; what a
/// caller gave is always bound.
pub(crate) struct Statement {
    sql: String,
    arguments: AnyArguments,
}

impl Statement {
    /// Begins with a text that has at least one condition already.
    pub(crate) fn new(sql: &'static str) -> Self {
        Self {
            sql: sql.to_owned(),
            arguments: AnyArguments::default(),
        }
    }

    /// Adds text.
    pub(crate) fn text(&mut self, sql: &'static str) -> &mut Self {
        self.sql.push_str(sql);
        self
    }

    /// Adds a value.
    pub(crate) fn value<'v, T>(&mut self, value: T) -> Result<&mut Self, Error>
    where
        T: Encode<'v, Any> + Type<Any>,
    {
        use sqlx::Arguments;
        self.arguments
            .add(value)
            .map_err(|error| Error::Fatal(format!("a value cannot be sent: {error}")))?;
        self.sql.push_str(&format!("${}", self.arguments.len()));
        Ok(self)
    }

    /// Adds values with commas between.
    pub(crate) fn list(&mut self, values: &[&str]) -> Result<&mut Self, Error> {
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.text(", ");
            }
            self.value(*value)?;
        }
        Ok(self)
    }

    /// Keeps other tenants' rows out.
    pub(crate) fn sight(&mut self, sight: &Sight) -> Result<&mut Self, Error> {
        match sight {
            Sight::All => Ok(self),
            Sight::Only(tenant) => self.text(" AND tenant = ").value(tenant.as_str()),
        }
    }

    /// With words before it.
    fn after(mut self, words: &'static str) -> Self {
        self.sql.insert_str(0, words);
        self
    }

    /// The text and the values, for `sqlx::query_with` and its kin.
    pub(crate) fn parts(self) -> (SqlStr, AnyArguments) {
        (AssertSqlSafe(self.sql).into_sql_str(), self.arguments)
    }
}
