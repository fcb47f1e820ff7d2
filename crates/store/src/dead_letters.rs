//! Deliveries that will not be tried again. Once recorded, a letter's id is known for ever: a
//! deleted one leaves a tombstone, so that a late redelivery does not bring it back.

use event::{DeadLetterId, delivery::DeadLetter};

use crate::{
    DeadFilter, Error, Page, Paging, Sight, Store,
    cursor::{Cursor, Wanted},
    database::{Statement, within},
    log::health,
    notices, time,
};

/// How many letters one transaction records. A batch that took longer than a call may would never
/// get anywhere; in parts, each try gets further.
const TRANSACTION_MAX: usize = 64;

/// id, died_at, document.
type Row = (String, i64, String);

impl Store {
    /// Records dead letters, each once however often it is given. On an error some may be
    /// recorded already; giving all of them again is right.
    pub async fn record_dead(&self, letters: &[DeadLetter]) -> Result<(), Error> {
        self.record_dead_and_tell(letters, |_| false).await
    }

    /// As [`Self::record_dead`], keeping a notice of each letter that was not known and that
    /// `tells` says is worth one. A letter that is a notice itself gives rise to none.
    pub async fn record_dead_and_tell(
        &self,
        letters: &[DeadLetter],
        tells: impl Fn(&DeadLetter) -> bool,
    ) -> Result<(), Error> {
        // In one order, so that two recorders with the same letters never wait for each other
        // in a circle.
        let mut letters: Vec<_> = letters.iter().collect();
        letters.sort_by(|a, b| a.id.cmp(&b.id));
        for letters in letters.chunks(TRANSACTION_MAX) {
            within(self.record_some_dead(letters, &tells)).await?;
        }
        Ok(())
    }

    async fn record_some_dead(
        &self,
        letters: &[&DeadLetter],
        tells: &impl Fn(&DeadLetter) -> bool,
    ) -> Result<(), Error> {
        let mut lease = self.database().write().await?;
        for letter in letters {
            // Text, not a JSON type: the event's data comes back byte for byte.
            let document = serde_json::to_string(letter).map_err(|error| {
                Error::Fatal(format!(
                    "dead letter {} cannot be written: {error}",
                    letter.id
                ))
            })?;
            let done = sqlx::query(
                "INSERT INTO dead_letters \
                 (id, tenant, subscription_id, kind, reason, died_at, document) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING",
            )
            .bind(letter.id.as_str())
            .bind(letter.tenant.as_str())
            .bind(letter.subscription_id.as_str())
            .bind(letter.kind.as_str())
            .bind(letter.reason.word())
            .bind(time::write(letter.died_at))
            .bind(document)
            .execute(&mut *lease)
            .await?;
            if done.rows_affected() == 1 && !health::is_notice(&letter.kind) && tells(letter) {
                notices::insert_dead(&mut lease, letter).await?;
            }
        }
        lease.commit().await
    }

    /// A page of dead letters, newest first.
    pub async fn dead_letters(
        &self,
        sight: &Sight,
        filter: &DeadFilter,
        paging: &Paging,
    ) -> Result<Page<DeadLetter>, Error> {
        let wanted = Wanted::new("dead_letters", paging)?;
        within(async {
            let mut statement = Statement::new(
                "SELECT id, died_at, document FROM dead_letters WHERE document IS NOT NULL",
            );
            statement.sight(sight)?;
            if let Some(reason) = filter.reason {
                statement.text(" AND reason = ").value(reason.word())?;
            }
            if let Some(subscription) = &filter.subscription {
                statement
                    .text(" AND subscription_id = ")
                    .value(subscription.as_str())?;
            }
            if let Some(kind) = &filter.kind {
                statement
                    .text(" AND kind = ")
                    .value(kind.replace('\0', "\u{fffd}"))?;
            }
            if let Some(since) = filter.since {
                statement
                    .text(" AND died_at >= ")
                    .value(time::write(since))?;
            }
            if let Some(until) = filter.until {
                statement
                    .text(" AND died_at < ")
                    .value(time::write(until))?;
            }
            if let Some(after) = &wanted.after {
                statement.text(" AND (died_at, id) < (").value(after.at)?;
                statement.text(", ").value(after.id.as_str())?.text(")");
            }
            statement
                .text(" ORDER BY died_at DESC, id DESC LIMIT ")
                .value(wanted.fetch())?;
            let rows: Vec<Row> = self.database().rows(statement).await?;
            wanted.page(
                rows,
                |row| Cursor {
                    at: row.1,
                    id: row.0.clone(),
                },
                read,
            )
        })
        .await
    }

    /// One dead letter.
    pub async fn dead_letter(
        &self,
        sight: &Sight,
        id: &DeadLetterId,
    ) -> Result<Option<DeadLetter>, Error> {
        within(async {
            let mut statement = Statement::new(
                "SELECT id, died_at, document FROM dead_letters \
                 WHERE document IS NOT NULL AND id = ",
            );
            statement.value(id.as_str())?.sight(sight)?;
            let row: Option<Row> = self.database().row(statement).await?;
            row.map(read).transpose()
        })
        .await
    }

    /// Deletes a dead letter (dropped by a person, or redriven); false when there was none.
    /// Keeps a tombstone, so that a late redelivery of the same letter does not bring it back.
    pub async fn delete_dead_letter(
        &self,
        sight: &Sight,
        id: &DeadLetterId,
    ) -> Result<bool, Error> {
        within(async {
            let mut statement = Statement::new(
                "UPDATE dead_letters SET document = NULL WHERE document IS NOT NULL AND id = ",
            );
            statement.value(id.as_str())?.sight(sight)?;
            let (sql, arguments) = statement.parts();
            let mut lease = self.database().write().await?;
            let done = sqlx::query_with(sql, arguments)
                .execute(&mut *lease)
                .await?;
            lease.commit().await?;
            Ok(done.rows_affected() == 1)
        })
        .await
    }
}

fn read((id, _, document): Row) -> Result<DeadLetter, Error> {
    serde_json::from_str(&document)
        .map_err(|error| Error::Fatal(format!("dead letter {id} cannot be read: {error}")))
}
