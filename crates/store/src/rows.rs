//! Many rows in few statements: a round trip for each would cost more than the row.

use sqlx::{AnyConnection, AssertSqlSafe, any::AnyArguments};

use crate::Error;

/// How many rows one statement writes. Few sizes, so that few statements are prepared.
const SIZES: [usize; 5] = [256, 64, 16, 4, 1];

/// A statement that inserts many rows.
pub(crate) struct Insert {
    /// Up to `VALUES`.
    pub(crate) head: &'static str,
    /// How many values a row has.
    pub(crate) columns: usize,
    /// What to do about rows that are there, and what to return.
    pub(crate) tail: &'static str,
}

impl Insert {
    /// Writes the rows; how many it changed.
    pub(crate) async fn run<R>(
        &self,
        connection: &mut AnyConnection,
        rows: &[R],
        bind: impl Fn(&R, &mut Values) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let mut changed = 0;
        let sqlite = connection.backend_name() == "SQLite";
        for rows in parts(rows) {
            let (sql, values) = self.statement(sqlite, rows, &bind)?;
            let done = sqlx::query_with(AssertSqlSafe(sql), values.0)
                .execute(&mut *connection)
                .await?;
            changed += done.rows_affected();
        }
        Ok(changed)
    }

    /// Writes the rows; what it returns of them.
    pub(crate) async fn run_returning<R>(
        &self,
        connection: &mut AnyConnection,
        rows: &[R],
        bind: impl Fn(&R, &mut Values) -> Result<(), Error>,
    ) -> Result<Vec<sqlx::any::AnyRow>, Error> {
        let mut returned = Vec::new();
        let sqlite = connection.backend_name() == "SQLite";
        for rows in parts(rows) {
            let (sql, values) = self.statement(sqlite, rows, &bind)?;
            let part = sqlx::query_with(AssertSqlSafe(sql), values.0)
                .fetch_all(&mut *connection)
                .await?;
            returned.extend(part);
        }
        Ok(returned)
    }

    fn statement<R>(
        &self,
        sqlite: bool,
        rows: &[R],
        bind: impl Fn(&R, &mut Values) -> Result<(), Error>,
    ) -> Result<(String, Values), Error> {
        let mut sql = String::with_capacity(rows.len() * self.columns * 6 + 600);
        sql.push_str(self.head);
        let mut values = Values::default();
        let mut number = 0_usize;
        for (index, row) in rows.iter().enumerate() {
            sql.push_str(if index == 0 { "(" } else { ", (" });
            for column in 0..self.columns {
                if column > 0 {
                    sql.push_str(", ");
                }
                // SQLite looks a numbered one up among all the others, each time it is bound.
                if sqlite {
                    sql.push('?');
                } else {
                    number += 1;
                    sql.push('$');
                    sql.push_str(&number.to_string());
                }
            }
            sql.push(')');
            bind(row, &mut values)?;
        }
        sql.push_str(self.tail);
        Ok((sql, values))
    }
}

/// The values of a statement.
#[derive(Default)]
pub(crate) struct Values(AnyArguments);

impl Values {
    /// Adds one.
    pub(crate) fn add<'v, T>(&mut self, value: T) -> Result<(), Error>
    where
        T: sqlx::Encode<'v, sqlx::Any> + sqlx::Type<sqlx::Any>,
    {
        use sqlx::Arguments;
        self.0
            .add(value)
            .map_err(|error| Error::Fatal(format!("a value cannot be sent: {error}")))
    }
}

/// Cuts rows into parts of the sizes of [`SIZES`].
fn parts<R>(mut rows: &[R]) -> impl Iterator<Item = &[R]> {
    std::iter::from_fn(move || {
        let size = SIZES.into_iter().find(|size| *size <= rows.len())?;
        let (part, rest) = rows.split_at(size);
        rows = rest;
        Some(part)
    })
}
