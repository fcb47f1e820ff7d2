//! What was routed, on its way to the recorder: many events in one parcel under load, one alone
//! when traffic is low.
//!
//! A message is acknowledged after its bundles and its archive parcel are confirmed, so that the
//! archive has every event there was.

use std::{collections::VecDeque, sync::Arc};

use event::{Event, SubscriptionId, log};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::bundle::Source;

/// A parcel holds at most so many bytes, unless a single event is larger.
const BYTES_MAX: usize = 256 * 1024;
/// A parcel holds at most so many events: as many as one transaction of a recorder likes.
const EVENTS_MAX: usize = 500;

/// Events waiting to be archived, oldest first.
#[derive(Debug)]
pub(crate) struct Archive {
    mode: log::Archive,
    waiting: VecDeque<Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    json: Vec<u8>,
    source: Arc<Source>,
}

/// One parcel's body, and the messages that wait for its confirm.
#[derive(Debug)]
pub(crate) struct Shelf {
    pub(crate) body: Vec<u8>,
    pub(crate) sources: Vec<Arc<Source>>,
}

/// An event as it was routed.
#[derive(Debug)]
pub(crate) struct Routed<'a> {
    pub(crate) event: &'a Event,
    /// The same, written.
    pub(crate) json: &'a RawValue,
    pub(crate) accepted_at: Timestamp,
    pub(crate) revision: u64,
    pub(crate) matched: &'a [SubscriptionId],
}

/// As [`log::Archived`] reads it, with the event written already.
#[derive(Serialize)]
struct Archived<'a, E> {
    event: E,
    accepted_at: Timestamp,
    revision: u64,
    bytes: u64,
    matched: &'a [SubscriptionId],
}

impl Archive {
    pub(crate) fn new(mode: log::Archive) -> Self {
        Self {
            mode,
            waiting: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Whether anything is archived at all.
    pub(crate) fn is_on(&self) -> bool {
        self.mode != log::Archive::Off
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether so much waits that no more should be taken.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes > 4 * BYTES_MAX
    }

    /// Adds an event. What cannot be written is an error: its message must stay the broker's.
    pub(crate) fn add(
        &mut self,
        routed: &Routed<'_>,
        source: &Arc<Source>,
    ) -> serde_json::Result<()> {
        let bytes = routed.json.get().len() as u64;
        let mut json = Vec::with_capacity(routed.json.get().len() + 256);
        match self.mode {
            log::Archive::Full => write(&mut json, routed.json, bytes, routed)?,
            log::Archive::Headers => write(&mut json, routed.event.bare(), bytes, routed)?,
            log::Archive::Off => return Ok(()),
        }
        source.hold();
        self.bytes += json.len();
        self.waiting.push_back(Entry {
            json,
            source: source.clone(),
        });
        Ok(())
    }

    /// The next parcel: as many events as fit, at least one. Those of a message that the broker
    /// hands out again are left out: it is archived then.
    pub(crate) fn pack(&mut self) -> Option<Shelf> {
        let mut body = Vec::with_capacity(self.bytes.min(BYTES_MAX) + 64);
        body.extend_from_slice(br#"{"events":["#);
        let mut sources: Vec<Arc<Source>> = Vec::new();
        while let Some(next) = self.waiting.front() {
            let is_void = next.source.is_void();
            let fits = sources.is_empty()
                || (sources.len() < EVENTS_MAX && body.len() + next.json.len() < BYTES_MAX);
            if !is_void && !fits {
                break;
            }
            let Some(entry) = self.waiting.pop_front() else {
                break;
            };
            self.bytes -= entry.json.len();
            if is_void {
                continue;
            }
            if !sources.is_empty() {
                body.push(b',');
            }
            body.extend_from_slice(&entry.json);
            sources.push(entry.source);
        }
        body.extend_from_slice(b"]}");
        (!sources.is_empty()).then_some(Shelf { body, sources })
    }
}

fn write<E: Serialize>(
    to: &mut Vec<u8>,
    event: E,
    bytes: u64,
    routed: &Routed<'_>,
) -> serde_json::Result<()> {
    let archived = Archived {
        event,
        accepted_at: routed.accepted_at,
        revision: routed.revision,
        bytes,
        matched: routed.matched,
    };
    serde_json::to_writer(to, &archived)
}

#[cfg(test)]
mod tests {
    use event::log::ArchiveBatch;

    use super::*;
    use crate::bundle::tests::{ids, source, void};

    fn event(id: &str, data_bytes: usize) -> Event {
        let text = format!(
            r#"{{"id":"{id}","tenant":"t","type":"a.b","time":"2026-01-01T00:00:00Z","subject":7,"data":{{ "x":"{}"}},"changes":{{}},"details":{{}}}}"#,
            "x".repeat(data_bytes)
        );
        serde_json::from_str(&text).expect("an event")
    }

    fn add(archive: &mut Archive, event: &Event, source: &Arc<Source>) {
        let json = serde_json::value::to_raw_value(event).expect("JSON");
        let routed = Routed {
            event,
            json: &json,
            accepted_at: "2026-03-01T12:00:00.5Z".parse().expect("a time"),
            revision: 7,
            matched: &ids(2),
        };
        archive.add(&routed, source).expect("it is written");
    }

    fn read(shelf: &Shelf) -> ArchiveBatch {
        serde_json::from_slice(&shelf.body).expect("an archive batch")
    }

    #[test]
    fn what_is_read_is_what_was_routed() {
        for (mode, has_data) in [(log::Archive::Full, true), (log::Archive::Headers, false)] {
            let mut archive = Archive::new(mode);
            let given = event("e", 10);
            add(&mut archive, &given, &source().0);
            let batch = read(&archive.pack().expect("a parcel"));
            let [one] = &batch.events[..] else {
                panic!("one event: {batch:?}")
            };
            assert_eq!(one.event.id, given.id);
            assert_eq!(one.matched, ids(2));
            assert_eq!(
                (one.revision, one.accepted_at.to_string().as_str()),
                (7, "2026-03-01T12:00:00.5Z")
            );
            assert_eq!(
                one.bytes,
                serde_json::to_vec(&given).expect("JSON").len() as u64
            );
            let data = one.event.data.as_ref().map(|data| data.get());
            assert_eq!(data, has_data.then_some(r#"{ "x":"xxxxxxxxxx"}"#));
            assert_eq!(
                (one.event.changes.is_some(), one.event.details.is_some()),
                (has_data, has_data)
            );
            // The same words that the type itself would write.
            let written = serde_json::to_vec(&batch).expect("JSON");
            let mut archive = Archive::new(mode);
            add(&mut archive, &given, &source().0);
            assert_eq!(archive.pack().expect("a parcel").body, written);
        }
        let mut off = Archive::new(log::Archive::Off);
        add(&mut off, &event("e", 1), &source().0);
        assert!(off.is_empty() && !off.is_on());
    }

    #[test]
    fn many_events_share_a_parcel_and_large_ones_go_alone() {
        let mut archive = Archive::new(log::Archive::Full);
        for _ in 0..EVENTS_MAX + 1 {
            add(&mut archive, &event("e", 10), &source().0);
        }
        for _ in 0..2 {
            add(&mut archive, &event("large", BYTES_MAX - 300), &source().0);
        }
        let sizes: Vec<_> = std::iter::from_fn(|| archive.pack())
            .map(|shelf| read(&shelf).events.len())
            .collect();
        assert_eq!(sizes, [EVENTS_MAX, 1, 1, 1]);
        assert_eq!(archive.bytes, 0);
    }

    #[test]
    fn a_message_is_acked_after_its_archive_parcel() {
        let mut archive = Archive::new(log::Archive::Full);
        let (source, acked) = source();
        add(&mut archive, &event("e", 10), &source);
        source.release();
        let shelf = archive.pack().expect("a parcel");
        assert!(!acked.load(std::sync::atomic::Ordering::SeqCst));
        shelf.sources.iter().for_each(|source| source.release());
        assert!(acked.load(std::sync::atomic::Ordering::SeqCst));
    }

    #[test]
    fn what_the_broker_hands_out_again_is_left_out() {
        let mut archive = Archive::new(log::Archive::Full);
        for source in [void(), source().0, void(), source().0, void()] {
            add(&mut archive, &event("e", 10), &source);
        }
        assert_eq!(read(&archive.pack().expect("a parcel")).events.len(), 2);
        assert!(archive.pack().is_none() && archive.is_empty());
    }
}
