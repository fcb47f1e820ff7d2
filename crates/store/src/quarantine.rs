//! Messages that could never be processed, kept as they came. Unlike a dead letter, one that was
//! released leaves no tombstone: if it comes back to quarantine, it must be seen again.

use event::reason::QuarantineReason;

use crate::{
    Error, Page, Paging, Quarantined, Store,
    cursor::{Cursor, Wanted},
    database::{Statement, within},
    time,
};

/// How many messages one transaction records: few, because nothing bounds their size but the
/// broker.
const TRANSACTION_MAX: usize = 8;

const COLUMNS: &str = "SELECT id, reason, detail, first_seen, source, message_id, content_type, \
                       COALESCE(size, length(body)), body FROM quarantine WHERE 1 = 1";

/// The same without bodies: a page of them could be more than anybody wants to hold.
const HEADS: &str = "SELECT id, reason, detail, first_seen, source, message_id, content_type, \
                     COALESCE(size, length(body)), substr(body, 1, 0) FROM quarantine WHERE 1 = 1";

/// As [`COLUMNS`] selects.
type Row = (
    String,
    String,
    String,
    i64,
    String,
    Option<String>,
    Option<String>,
    i64,
    // SQLite has null for no part of an empty body.
    Option<Vec<u8>>,
);

impl Quarantined {
    /// The id of a message: the same each time it is handed to a recorder again.
    pub fn id_for(
        body: &[u8],
        reason: QuarantineReason,
        source: &str,
        message_id: Option<&str>,
    ) -> String {
        let mut hasher = blake3::Hasher::new();
        // Lengths first, so that no two lists of parts run together.
        for part in [body, reason.word().as_bytes(), source.as_bytes()] {
            hasher
                .update(&(part.len() as u64).to_le_bytes())
                .update(part);
        }
        if let Some(message_id) = message_id {
            hasher.update(message_id.as_bytes());
        }
        format!("q_{}", &hasher.finalize().to_hex()[..32])
    }
}

impl Store {
    /// Records quarantined messages, each once. On an error some may be recorded already; giving
    /// all of them again is right.
    pub async fn record_quarantined(&self, messages: &[Quarantined]) -> Result<(), Error> {
        let mut messages: Vec<_> = messages.iter().collect();
        messages.sort_by(|a, b| a.id.cmp(&b.id));
        for messages in messages.chunks(TRANSACTION_MAX) {
            within(self.record_some_quarantined(messages)).await?;
        }
        Ok(())
    }

    async fn record_some_quarantined(&self, messages: &[&Quarantined]) -> Result<(), Error> {
        // These words come from strangers, and PostgreSQL has no text with a zero byte.
        let clean = |text: &str| text.replace('\0', "\u{fffd}");
        let mut lease = self.database().write().await?;
        for message in messages {
            sqlx::query(
                "INSERT INTO quarantine (id, reason, detail, first_seen, source, message_id, \
                 content_type, body, size) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
                 ON CONFLICT (id) DO NOTHING",
            )
            .bind(&message.id)
            .bind(message.reason.word())
            .bind(clean(&message.detail))
            .bind(time::write(message.first_seen))
            .bind(clean(&message.source))
            .bind(message.message_id.as_deref().map(clean))
            .bind(message.content_type.as_deref().map(clean))
            .bind(message.body.as_slice())
            .bind(i64::try_from(message.size).unwrap_or(i64::MAX))
            .execute(&mut *lease)
            .await?;
        }
        lease.commit().await
    }

    /// A page of quarantined messages without their bodies, newest first.
    pub async fn quarantined(
        &self,
        reason: Option<QuarantineReason>,
        paging: &Paging,
    ) -> Result<Page<Quarantined>, Error> {
        let wanted = Wanted::new("quarantine", paging)?;
        within(async {
            let mut statement = Statement::new(HEADS);
            if let Some(reason) = reason {
                statement.text(" AND reason = ").value(reason.word())?;
            }
            if let Some(after) = &wanted.after {
                statement
                    .text(" AND (first_seen, id) < (")
                    .value(after.at)?;
                statement.text(", ").value(after.id.as_str())?.text(")");
            }
            statement
                .text(" ORDER BY first_seen DESC, id DESC LIMIT ")
                .value(wanted.fetch())?;
            let rows: Vec<Row> = self.database().rows(statement).await?;
            wanted.page(
                rows,
                |row| Cursor {
                    at: row.3,
                    id: row.0.clone(),
                },
                read,
            )
        })
        .await
    }

    /// One quarantined message.
    pub async fn quarantined_one(&self, id: &str) -> Result<Option<Quarantined>, Error> {
        within(async {
            let mut statement = Statement::new(COLUMNS);
            statement
                .text(" AND id = ")
                .value(id.replace('\0', "\u{fffd}"))?;
            let row: Option<Row> = self.database().row(statement).await?;
            row.map(read).transpose()
        })
        .await
    }

    /// Forgets a quarantined message (released or dropped); false when there was none.
    pub async fn delete_quarantined(&self, id: &str) -> Result<bool, Error> {
        within(async {
            let mut lease = self.database().write().await?;
            let done = sqlx::query("DELETE FROM quarantine WHERE id = $1")
                .bind(id.replace('\0', "\u{fffd}"))
                .execute(&mut *lease)
                .await?;
            lease.commit().await?;
            Ok(done.rows_affected() == 1)
        })
        .await
    }
}

fn read(row: Row) -> Result<Quarantined, Error> {
    let (id, reason, detail, first_seen, source, message_id, content_type, size, body) = row;
    let reason = QuarantineReason::from_word(&reason).ok_or_else(|| {
        Error::Fatal(format!(
            "quarantined {id}: the reason {reason:?} is not known"
        ))
    })?;
    let first_seen = time::read(first_seen);
    Ok(Quarantined {
        id,
        reason,
        detail,
        first_seen,
        source,
        message_id,
        content_type,
        size: usize::try_from(size).unwrap_or_default(),
        body: body.unwrap_or_default(),
    })
}
