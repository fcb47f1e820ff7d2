//! Which version of a subject was let go to whom: what `delivery.ordering = "latest"` goes by.
//!
//! A deliverer asks right before it sends. Asking and remembering are one statement, so that of
//! several deliverers none can send an older version after another has been told to send a newer
//! one. The commit is on the disk before anybody is told: what is remembered outlives a crash.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use event::{Event, EventId, SubscriptionId};
use jiff::Timestamp;

use crate::{
    Error, Store,
    database::{Lease, within},
    log::DAY,
    time,
};

/// How many subjects one statement is about.
const STATEMENT_MAX: usize = 512;
/// How many subjects of one event are looked at: as many as it is found by.
const SUBJECTS_MAX: usize = 1000;

/// A delivery that is about to be sent, where versions matter to it.
#[derive(Debug, Clone)]
pub struct Sending {
    subscription: SubscriptionId,
    event_id: EventId,
    version: u64,
    /// Hashes of the subjects; at least one.
    subjects: Vec<String>,
}

impl Sending {
    /// `None` of an event without a version or without a subject: it overtakes nothing, and
    /// nothing overtakes it.
    pub fn of(event: &Event, subscription: &SubscriptionId) -> Option<Self> {
        let version = event.version?;
        let ids = event.subject.as_ref()?.ids(SUBJECTS_MAX);
        let subjects: Vec<_> = ids.iter().map(|id| hash(event.kind.entity(), id)).collect();
        (!subjects.is_empty()).then(|| Self {
            subscription: subscription.clone(),
            event_id: event.id.clone(),
            version,
            subjects,
        })
    }
}

/// What has overtaken a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newer {
    /// Its version of the subject.
    pub version: u64,
    /// The event that it came with.
    pub event_id: EventId,
}

impl fmt::Display for Newer {
    /// As it stands in a delivery's detail.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, event_id } = self;
        write!(
            f,
            "overtaken by version {version} of the same subject, in event {event_id}"
        )
    }
}

/// A subject of a subscription's: its id and the subject's hash.
type Key<'a> = (&'a str, &'a str);
/// subscription_id, subject, version, event_id.
type Row = (String, String, i64, String);

/// The statement that remembers what is newest, and tells it.
macro_rules! remember_from {
    ($array:literal) => {
        concat!(
            "INSERT INTO versions (subscription_id, subject, version, event_id, at) \
             SELECT value ->> 0, value ->> 1, CAST(value ->> 2 AS BIGINT), value ->> 3, $2 FROM ",
            $array,
            " WHERE true ON CONFLICT (subscription_id, subject) DO UPDATE SET \
             event_id = CASE WHEN excluded.version > versions.version \
             THEN excluded.event_id ELSE versions.event_id END, \
             version = CASE WHEN excluded.version > versions.version \
             THEN excluded.version ELSE versions.version END, \
             at = CASE WHEN excluded.at > versions.at THEN excluded.at ELSE versions.at END \
             RETURNING subscription_id, subject, version, event_id"
        )
    };
}

impl Store {
    /// Lets deliveries go, or tells what has overtaken them, in the order given: a version of one
    /// of their subjects that is newer and was let go to the same subscription before, or is with
    /// this call. From then on they are remembered as let go. The same version again is let go
    /// again.
    pub async fn let_go(
        &self,
        sendings: &[Sending],
        now: Timestamp,
    ) -> Result<Vec<Option<Newer>>, Error> {
        // In one order, so that two deliverers with the same subjects never wait for each other in
        // a circle; each once, because a statement may not meet a row twice.
        let mut newest: BTreeMap<Key<'_>, &Sending> = BTreeMap::new();
        for sending in sendings {
            for subject in &sending.subjects {
                let key = (sending.subscription.as_str(), subject.as_str());
                let known = newest.entry(key).or_insert(sending);
                if known.version < sending.version {
                    *known = sending;
                }
            }
        }
        let newest: Vec<_> = newest.into_iter().collect();
        let mut rows = Vec::with_capacity(newest.len());
        within(async {
            let mut lease = self.database().write().await?;
            for some in newest.chunks(STATEMENT_MAX) {
                rows.extend(self.remember(&mut lease, some, now).await?);
            }
            lease.commit().await
        })
        .await?;
        let found: HashMap<Key<'_>, (u64, &str)> = rows
            .iter()
            .map(|(subscription, subject, version, event_id)| {
                let newest = (read(*version), event_id.as_str());
                ((subscription.as_str(), subject.as_str()), newest)
            })
            .collect();
        sendings
            .iter()
            .map(|sending| sending.overtaken_by(&found))
            .collect()
    }

    async fn remember(
        &self,
        lease: &mut Lease,
        newest: &[(Key<'_>, &Sending)],
        now: Timestamp,
    ) -> Result<Vec<Row>, Error> {
        let rows: Vec<_> = newest
            .iter()
            .map(|((subscription, subject), sending)| {
                let version = write(sending.version);
                (*subscription, *subject, version, sending.event_id.as_str())
            })
            .collect();
        let rows = serde_json::to_string(&rows)
            .map_err(|error| Error::Fatal(format!("versions cannot be written: {error}")))?;
        // To the day, so that an index on it need not be changed each time.
        let day = time::write(now).div_euclid(DAY).saturating_mul(DAY);
        Ok(sqlx::query_as(if self.database().is_sqlite() {
            remember_from!("json_each($1)")
        } else {
            remember_from!("json_array_elements($1::json)")
        })
        .bind(rows)
        .bind(day)
        .fetch_all(&mut **lease)
        .await?)
    }

    /// What has overtaken a delivery, if anything has, as far as is remembered; nothing is changed.
    pub async fn overtaken(&self, sending: &Sending) -> Result<Option<Newer>, Error> {
        let keys = serde_json::to_string(&sending.subjects)
            .map_err(|error| Error::Fatal(format!("subjects cannot be written: {error}")))?;
        let rows: Vec<Row> = within(async {
            let mut lease = self.database().read().await?;
            let rows = sqlx::query_as(if self.database().is_sqlite() {
                "SELECT subscription_id, subject, version, event_id FROM json_each($2) \
                 CROSS JOIN versions ON subscription_id = $1 AND subject = value"
            } else {
                "SELECT v.subscription_id, v.subject, v.version, v.event_id \
                 FROM json_array_elements_text($2::json) \
                 CROSS JOIN LATERAL (SELECT * FROM versions \
                 WHERE subscription_id = $1 AND subject = value LIMIT 1) v"
            })
            .bind(sending.subscription.as_str())
            .bind(keys)
            .fetch_all(&mut *lease)
            .await?;
            lease.release();
            Ok(rows)
        })
        .await?;
        let found = rows
            .iter()
            .map(|(subscription, subject, version, event_id)| {
                let newest = (read(*version), event_id.as_str());
                ((subscription.as_str(), subject.as_str()), newest)
            })
            .collect();
        sending.overtaken_by(&found)
    }

    /// Whether deliveries can be let go: a statement that writes, and changes nothing.
    pub(crate) async fn can_let_go(&self) -> Result<(), Error> {
        within(async {
            let mut lease = self.database().write().await?;
            sqlx::query("DELETE FROM versions WHERE subscription_id = ''")
                .execute(&mut *lease)
                .await?;
            lease.commit().await
        })
        .await
    }
}

impl Sending {
    fn overtaken_by(&self, newest: &HashMap<Key<'_>, (u64, &str)>) -> Result<Option<Newer>, Error> {
        let known = self
            .subjects
            .iter()
            .filter_map(|subject| newest.get(&(self.subscription.as_str(), subject.as_str())));
        let Some((version, event_id)) = known.max().filter(|(v, _)| *v > self.version) else {
            return Ok(None);
        };
        let event_id = EventId::parse(event_id)
            .map_err(|_| Error::Fatal("a version's event id cannot be read".into()))?;
        Ok(Some(Newer {
            version: *version,
            event_id,
        }))
    }
}

fn hash(entity: &str, id: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(entity.as_bytes());
    // No entity has a zero byte.
    hasher.update(b"\0");
    hasher.update(id.as_bytes());
    hasher.finalize().to_hex()[..32].to_owned()
}

const HALF: u64 = 1 << 63;

fn write(version: u64) -> i64 {
    (version ^ HALF).cast_signed()
}

fn read(version: i64) -> u64 {
    version.cast_unsigned() ^ HALF
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sending(json: &str) -> Option<Sending> {
        let event = serde_json::from_str(json).expect("an event");
        let subscription = SubscriptionId::parse("sub_1").expect("an id");
        Sending::of(&event, &subscription)
    }

    #[test]
    fn versions_keep_their_order_and_come_back() {
        let all = [0, 1, 2, HALF - 1, HALF, HALF + 1, u64::MAX];
        assert!(all.map(write).is_sorted());
        assert_eq!(all.map(|version| read(write(version))), all);
    }

    #[test]
    fn only_an_event_with_version_and_subject_takes_part() {
        let of = |more: &str| {
            sending(&format!(
                r#"{{"id":"e","tenant":"t","type":"a.b","time":"2026-01-01T00:00:00Z"{more}}}"#
            ))
        };
        assert!(of("").is_none());
        assert!(of(r#","version":1"#).is_none());
        assert!(of(r#","subject":"x""#).is_none());
        assert!(of(r#","version":1,"subject":[]"#).is_none());
        let one = of(r#","version":0,"subject":"10""#).expect("takes part");
        assert_eq!((one.version, one.subjects.len()), (0, 1));
        let same = of(r#","version":0,"subject":[10,11]"#).expect("takes part");
        assert_eq!(
            same.subjects[0], one.subjects[0],
            "as a number or as a text"
        );
        assert_eq!(same.subjects.len(), 2);
    }

    #[test]
    fn a_subject_is_one_entitys() {
        assert_ne!(hash("a", "1"), hash("b", "1"));
        assert_ne!(hash("a", "1"), hash("a", "2"));
        assert_eq!(hash("a", "1").len(), 32);
    }
}
