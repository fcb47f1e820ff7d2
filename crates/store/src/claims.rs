//! Which ids have been taken: a claim for each event within the window of `dedup.window`.
//!
//! Claims may be lost when the machine loses power (they are not waited for on the disk): then an
//! event that comes twice is routed twice, which a fault may cause anyway.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use event::{Event, EventId, Tenant};
use jiff::Timestamp;

use crate::{
    Error, Store,
    database::{Lease, within},
    time,
};

/// How many claims one statement makes or reads.
const STATEMENT_MAX: usize = 512;

/// What a publisher said, in 32 hex digits: equal for the same event published again, and for
/// nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hash(Box<str>);

impl Hash {
    /// The hash of everything but id and tenant, which a claim names, and a `time` that was filled
    /// in at acceptance (`accepted_at`). `data`, `changes`, `details` and `subject` count byte for
    /// byte, the rest by value.
    pub fn of(event: &Event, accepted_at: Timestamp) -> Self {
        let mut hasher = blake3::Hasher::new();
        // Lengths first, so that no two events run together; none is not the same as empty.
        let mut part = |text: Option<&str>| {
            let length = text.map_or(u64::MAX, |text| text.len() as u64);
            hasher.update(&length.to_le_bytes());
            hasher.update(text.unwrap_or_default().as_bytes());
        };
        let time = |time: Timestamp| time.as_nanosecond().to_string();
        part(Some(event.kind.as_str()));
        part(
            (event.time != accepted_at)
                .then(|| time(event.time))
                .as_deref(),
        );
        part(event.subject.as_ref().map(|subject| subject.0.get()));
        part(event.status.as_deref());
        part(event.previous_status.as_deref());
        part(event.version.map(|version| version.to_string()).as_deref());
        part(event.expires_at.map(time).as_deref());
        for view in [&event.data, &event.changes, &event.details] {
            part(view.as_ref().map(|view| view.get()));
        }
        Self(hasher.finalize().to_hex()[..32].into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An id, unique per tenant.
pub type Key = (Tenant, EventId);

/// Somebody's wish to be the one who takes an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The id.
    pub key: Key,
    /// What is said about it, and by which message.
    pub held: Held,
}

/// What is on record for an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What was published.
    pub hash: Hash,
    /// Which message claimed it, where that message says: the same each time it is handed out.
    pub token: Option<String>,
    /// When it was accepted, as whoever claims it takes it: whoever routes it again goes by this.
    pub at: Timestamp,
}

/// What a claim comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The event is routed.
    Route,
    /// It was published before, by another message, and is dropped.
    Duplicate,
    /// Another event with its id was published before: this one's hash and that one's.
    Conflict(Box<(Hash, Hash)>),
}

impl Claim {
    /// Judges a message's claim against what is on record, if anything is. A message that was
    /// handed out before (`redelivered`) may have claimed its ids itself, and died before what was
    /// made of it was confirmed: what may be its own claim is routed. With a token there is no
    /// doubt whose it is.
    pub fn against(&self, on_record: Option<&Held>, redelivered: bool) -> Verdict {
        let Some(on_record) = on_record else {
            return Verdict::Route;
        };
        let (ours, theirs) = (&self.held, on_record);
        let same_message = ours.token == theirs.token;
        if same_message && ours.token.is_some() {
            return Verdict::Route;
        }
        if ours.hash != theirs.hash {
            // Not its own, because its own would say the same.
            return Verdict::Conflict(Box::new((ours.hash.clone(), theirs.hash.clone())));
        }
        if same_message && redelivered {
            Verdict::Route
        } else {
            Verdict::Duplicate
        }
    }
}

/// The statement that claims, from an array of arrays.
macro_rules! insert_from {
    ($array:literal) => {
        concat!(
            "INSERT INTO claims (tenant, event_id, hash, token, at) \
             SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, \
             CAST(value ->> 4 AS BIGINT) FROM ",
            $array,
            " WHERE true ON CONFLICT (tenant, event_id) DO UPDATE \
             SET hash = excluded.hash, token = excluded.token, at = excluded.at \
             WHERE claims.at < $2"
        )
    };
}

/// tenant, event_id.
type KeyRow = (String, String);
/// tenant, event_id, hash, token, at.
type Row = (String, String, String, String, i64);

impl Store {
    /// Claims ids, each at most once in `claims`, unless they were claimed at or after `since`.
    /// `None` for what is claimed by this call; else what is on record, in the order given.
    pub async fn claim(
        &self,
        claims: &[Claim],
        since: Timestamp,
    ) -> Result<Vec<Option<Held>>, Error> {
        let mut held = vec![None; claims.len()];
        for places in in_order(claims).chunks(STATEMENT_MAX) {
            let some: Vec<_> = places.iter().map(|place| &claims[*place]).collect();
            let found = within(self.claim_some(&some, since)).await?;
            for (place, one) in places.iter().zip(found) {
                held[*place] = one;
            }
        }
        Ok(held)
    }

    /// As [`Self::claim`], for whoever does not need to know what came of it.
    pub async fn note_claims(&self, claims: &[Claim], since: Timestamp) -> Result<(), Error> {
        for places in in_order(claims).chunks(STATEMENT_MAX) {
            let some: Vec<_> = places.iter().map(|place| &claims[*place]).collect();
            let noting = async {
                let mut lease = self.database().write_lightly().await?;
                self.insert(&mut lease, &some, since).await?;
                lease.commit().await
            };
            within(noting).await?;
        }
        Ok(())
    }

    async fn claim_some(
        &self,
        claims: &[&Claim],
        since: Timestamp,
    ) -> Result<Vec<Option<Held>>, Error> {
        // A message with a token comes from our own producer, which may well have claimed already:
        // reading that is cheaper than trying to write it.
        let likely: Vec<_> = claims
            .iter()
            .filter(|claim| claim.held.token.is_some())
            .map(|claim| &claim.key)
            .collect();
        let mut held: HashMap<&Key, Option<Held>> = HashMap::new();
        if !likely.is_empty() {
            let found = self.some_claimed(&likely, since).await?;
            held.extend(
                likely
                    .into_iter()
                    .zip(found)
                    .filter(|(_, held)| held.is_some()),
            );
        }
        let rest: Vec<_> = claims
            .iter()
            .copied()
            .filter(|claim| !held.contains_key(&claim.key))
            .collect();
        if !rest.is_empty() && !self.claim_all(&rest, since).await? {
            let found = self.claim_or_tell(&rest, since).await?;
            held.extend(rest.iter().map(|claim| &claim.key).zip(found));
        }
        let told = claims.iter().map(|claim| held.remove(&claim.key).flatten());
        Ok(told.collect())
    }

    /// Claims all of them, or none; whether it did.
    async fn claim_all(&self, claims: &[&Claim], since: Timestamp) -> Result<bool, Error> {
        let mut lease = self.database().write_lightly().await?;
        let made = self.insert(&mut lease, claims, since).await?;
        if made == claims.len() as u64 {
            lease.commit().await?;
            return Ok(true);
        }
        lease.rollback().await?;
        Ok(false)
    }

    async fn insert(
        &self,
        lease: &mut Lease,
        claims: &[&Claim],
        since: Timestamp,
    ) -> Result<u64, Error> {
        let done = sqlx::query(if self.database().is_sqlite() {
            insert_from!("json_each($1)")
        } else {
            insert_from!("json_array_elements($1::json)")
        })
        .bind(rows(claims)?)
        .bind(time::write(since))
        .execute(&mut **lease)
        .await?;
        Ok(done.rows_affected())
    }

    /// Claims what can be, and tells what cannot.
    async fn claim_or_tell(
        &self,
        claims: &[&Claim],
        since: Timestamp,
    ) -> Result<Vec<Option<Held>>, Error> {
        let mut lease = self.database().write_lightly().await?;
        let made: Vec<KeyRow> = sqlx::query_as(if self.database().is_sqlite() {
            concat!(insert_from!("json_each($1)"), " RETURNING tenant, event_id")
        } else {
            concat!(
                insert_from!("json_array_elements($1::json)"),
                " RETURNING tenant, event_id"
            )
        })
        .bind(rows(claims)?)
        .bind(time::write(since))
        .fetch_all(&mut *lease)
        .await?;
        lease.commit().await?;
        let made: HashSet<_> = made
            .iter()
            .map(|(tenant, id)| (tenant.as_str(), id.as_str()))
            .collect();
        let is_made = |key: &Key| made.contains(&(key.0.as_str(), key.1.as_str()));
        let others: Vec<_> = claims
            .iter()
            .map(|claim| &claim.key)
            .filter(|key| !is_made(key))
            .collect();
        let mut others = self.some_claimed(&others, since).await?.into_iter();
        // A claim that was pruned between the two statements is none.
        let told = claims.iter().map(|claim| {
            if is_made(&claim.key) {
                None
            } else {
                others.next().flatten()
            }
        });
        Ok(told.collect())
    }

    /// What is on record for these ids since then, in the order given.
    pub async fn claimed(
        &self,
        keys: &[Key],
        since: Timestamp,
    ) -> Result<Vec<Option<Held>>, Error> {
        let mut held = Vec::with_capacity(keys.len());
        for keys in keys.chunks(STATEMENT_MAX) {
            let keys: Vec<_> = keys.iter().collect();
            held.extend(within(self.some_claimed(&keys, since)).await?);
        }
        Ok(held)
    }

    async fn some_claimed(
        &self,
        keys: &[&Key],
        since: Timestamp,
    ) -> Result<Vec<Option<Held>>, Error> {
        let wanted: Vec<_> = keys
            .iter()
            .map(|(tenant, id)| [tenant.as_str(), id.as_str()])
            .collect();
        let mut lease = self.database().read().await?;
        // Each key is looked up by itself, whatever the planner thinks of a table it has not
        // counted yet.
        let rows: Vec<Row> = sqlx::query_as(if self.database().is_sqlite() {
            "SELECT tenant, event_id, hash, token, at FROM json_each($1) CROSS JOIN claims \
             ON tenant = value ->> 0 AND event_id = value ->> 1 WHERE at >= $2"
        } else {
            "SELECT c.tenant, c.event_id, c.hash, c.token, c.at \
             FROM json_array_elements($1::json) \
             CROSS JOIN LATERAL (SELECT * FROM claims \
             WHERE tenant = value ->> 0 AND event_id = value ->> 1 LIMIT 1) c WHERE c.at >= $2"
        })
        .bind(json(&wanted)?)
        .bind(time::write(since))
        .fetch_all(&mut *lease)
        .await?;
        lease.release();
        let found: HashMap<(&str, &str), Held> = rows
            .iter()
            .map(|(tenant, id, hash, token, at)| {
                let held = Held {
                    hash: Hash(hash.as_str().into()),
                    token: (!token.is_empty()).then(|| token.clone()),
                    at: time::read(*at),
                };
                ((tenant.as_str(), id.as_str()), held)
            })
            .collect();
        Ok(keys
            .iter()
            .map(|(tenant, id)| found.get(&(tenant.as_str(), id.as_str())).cloned())
            .collect())
    }

    /// Whether claims can be made: a statement that writes, and changes nothing.
    pub async fn can_claim(&self) -> Result<(), Error> {
        within(async {
            let mut lease = self.database().write_lightly().await?;
            sqlx::query("DELETE FROM claims WHERE tenant = ''")
                .execute(&mut *lease)
                .await?;
            lease.commit().await
        })
        .await
    }

    /// Forgets at most `count_max` claims made before then; how many there were.
    pub async fn prune_claims(&self, before: Timestamp, count_max: u32) -> Result<u64, Error> {
        within(async {
            let mut lease = self.database().write_lightly().await?;
            // Rows that somebody claims anew at this moment are left to them.
            let done = sqlx::query(if self.database().is_sqlite() {
                "DELETE FROM claims WHERE (tenant, event_id) IN \
                 (SELECT tenant, event_id FROM claims WHERE at < $1 ORDER BY at LIMIT $2)"
            } else {
                "DELETE FROM claims WHERE (tenant, event_id) IN \
                 (SELECT tenant, event_id FROM claims WHERE at < $1 ORDER BY at LIMIT $2 \
                 FOR UPDATE SKIP LOCKED)"
            })
            .bind(time::write(before))
            .bind(i64::from(count_max))
            .execute(&mut *lease)
            .await?;
            lease.commit().await?;
            Ok(done.rows_affected())
        })
        .await
    }
}

/// The places of claims in one order, so that two routers with the same ids never wait for each
/// other in a circle.
fn in_order(claims: &[Claim]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..claims.len()).collect();
    places.sort_unstable_by(|a, b| claims[*a].key.cmp(&claims[*b].key));
    places
}

fn rows(claims: &[&Claim]) -> Result<String, Error> {
    let rows: Vec<_> = claims
        .iter()
        .map(|claim| {
            let (tenant, id) = &claim.key;
            let token = claim.held.token.as_deref().unwrap_or_default();
            (
                tenant.as_str(),
                id.as_str(),
                claim.held.hash.as_str(),
                token,
                time::write(claim.held.at),
            )
        })
        .collect();
    json(&rows)
}

fn json<T: serde::Serialize>(rows: &T) -> Result<String, Error> {
    serde_json::to_string(rows)
        .map_err(|error| Error::Fatal(format!("claims cannot be written: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(json: &str) -> Hash {
        let event = serde_json::from_str(json).unwrap();
        Hash::of(&event, "2026-03-01T12:00:00Z".parse().unwrap())
    }

    const EVENT: &str = r#"{"id":"e","tenant":"t","type":"a.b","time":"2026-01-01T00:00:00Z","subject":1,"status":"s","version":1,"data":{"a": 1},"changes":{}}"#;

    #[test]
    fn the_same_event_said_again_has_the_same_hash() {
        assert_eq!(hash(EVENT), hash(EVENT));
        assert_eq!(hash(EVENT).as_str().len(), 32);
        // The key of the claim says these.
        assert_eq!(hash(EVENT), hash(&EVENT.replace(r#""e""#, r#""f""#)));
        assert_eq!(
            hash(EVENT),
            hash(&EVENT.replace("01T00:00:00Z", "01T02:00:00+02:00"))
        );
    }

    #[test]
    fn a_time_that_was_filled_in_does_not_count() {
        let at = |time: &str| {
            let event: Event =
                serde_json::from_str(&EVENT.replace("2026-01-01T00:00:00Z", time)).unwrap();
            Hash::of(&event, event.time)
        };
        assert_eq!(at("2026-03-01T12:00:00Z"), at("2026-03-01T12:00:01Z"));
        assert_ne!(at("2026-03-01T12:00:00Z"), hash(EVENT));
    }

    #[track_caller]
    fn check(ours: (&str, &str), redelivered: bool, theirs: Option<(&str, &str)>, want: &str) {
        let held = |(hash, token): (&str, &str)| Held {
            hash: Hash(hash.into()),
            token: (!token.is_empty()).then(|| token.to_owned()),
            at: Timestamp::UNIX_EPOCH,
        };
        let key = (Tenant::parse("t").unwrap(), EventId::parse("e").unwrap());
        let claim = Claim {
            key,
            held: held(ours),
        };
        let verdict = claim.against(theirs.map(held).as_ref(), redelivered);
        let got = match &verdict {
            Verdict::Route => "route",
            Verdict::Duplicate => "duplicate",
            Verdict::Conflict(hashes) => {
                assert_eq!(
                    (hashes.0.as_str(), hashes.1.as_str()),
                    (ours.0, theirs.unwrap().0)
                );
                "conflict"
            }
        };
        assert_eq!(
            got, want,
            "{ours:?} against {theirs:?}, redelivered: {redelivered}"
        );
    }

    #[test]
    fn only_what_another_message_published_is_held_against_an_event() {
        for redelivered in [false, true] {
            check(("h", ""), redelivered, None, "route");
            check(("h", "k"), redelivered, None, "route");
            check(("h", "k"), redelivered, Some(("h", "k")), "route");
            check(("h", "k"), redelivered, Some(("h", "l")), "duplicate");
            check(("h", "k"), redelivered, Some(("h", "")), "duplicate");
            check(("h", ""), redelivered, Some(("h", "k")), "duplicate");
            check(("h", ""), redelivered, Some(("g", "")), "conflict");
            check(("h", ""), redelivered, Some(("g", "k")), "conflict");
            check(("h", "k"), redelivered, Some(("g", "l")), "conflict");
        }
        check(("h", ""), false, Some(("h", "")), "duplicate");
        check(("h", ""), true, Some(("h", "")), "route");
    }

    #[test]
    fn every_field_counts() {
        for (from, to) in [
            ("a.b", "a.c"),
            ("00:00:00Z", "00:00:00.000000001Z"),
            (r#""subject":1"#, r#""subject":"1""#),
            (r#""status":"s""#, r#""status":"x""#),
            (r#""status":"s""#, r#""previous_status":"s""#),
            (r#""version":1"#, r#""version":2"#),
            (
                r#""version":1"#,
                r#""version":1,"expires_at":"2027-01-01T00:00:00Z""#,
            ),
            (r#"{"a": 1}"#, r#"{"a":1}"#),
            (r#""changes":{}"#, r#""details":{}"#),
            (r#","changes":{}"#, ""),
        ] {
            let other = EVENT.replace(from, to);
            assert_ne!(other, EVENT, "{from}");
            assert_ne!(hash(EVENT), hash(&other), "{from} -> {to}");
        }
    }
}
