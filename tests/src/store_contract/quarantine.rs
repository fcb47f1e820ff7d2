//! Quarantine: bytes unchanged, each message once, released ones may come again.

use event::reason::QuarantineReason;
use jiff::{Timestamp, ToSpan};
use store::{Paging, Quarantined, Store};

use super::{Place, promises, read_pages};

promises!(
    bytes_and_words_come_back,
    a_message_is_recorded_once_until_it_is_forgotten,
    messages_are_listed_newest_first_by_reason,
);

pub(super) fn message(n: i32, reason: QuarantineReason) -> Quarantined {
    let body = format!("body {n}").into_bytes();
    Quarantined {
        id: Quarantined::id_for(&body, reason, "postrider.events/x", None),
        reason,
        detail: "not JSON".into(),
        first_seen: "2025-06-01T00:00:00Z".parse::<Timestamp>().unwrap() + n.minutes(),
        source: "postrider.events/x".into(),
        message_id: None,
        content_type: None,
        size: body.len(),
        body,
    }
}

async fn count(store: &Store) -> usize {
    store
        .quarantined(None, &Paging::default())
        .await
        .unwrap()
        .items
        .len()
}

async fn bytes_and_words_come_back(place: Place) {
    let store = place.open().await;
    let mut given = message(1, QuarantineReason::Malformed);
    given.body = (0..=255).cycle().take(300_000).collect();
    given.size = 5_000_000;
    given.source = "postrider.events/a\u{0}b é".into();
    given.message_id = Some("\u{0}".into());
    given.content_type = Some("text/plain".into());
    let mut empty = message(2, QuarantineReason::TooLarge);
    empty.body.clear();
    store
        .record_quarantined(&[given.clone(), empty.clone()])
        .await
        .unwrap();

    let read = place
        .open()
        .await
        .quarantined_one(&given.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((&read.body, read.size), (&given.body, given.size));
    let listed = store.quarantined(None, &Paging::default()).await.unwrap();
    let heads = listed.items.iter().map(|item| (item.body.len(), item.size));
    assert_eq!(
        heads.collect::<Vec<_>>(),
        [(0, empty.size), (0, given.size)],
        "no bodies"
    );
    assert_eq!(
        (read.reason, read.first_seen),
        (given.reason, given.first_seen)
    );
    // A zero byte in a word from a stranger must not stop the recorder.
    assert_eq!(read.source, "postrider.events/a\u{fffd}b é");
    assert_eq!(read.message_id.as_deref(), Some("\u{fffd}"));
    assert_eq!(read.content_type.as_deref(), Some("text/plain"));
    let read = store.quarantined_one(&empty.id).await.unwrap().unwrap();
    assert_eq!(
        (read.body, read.message_id, read.content_type),
        (vec![], None, None)
    );
    assert!(store.quarantined_one("q_\u{0}").await.unwrap().is_none());
}

async fn a_message_is_recorded_once_until_it_is_forgotten(place: Place) {
    let store = place.open().await;
    let given = message(1, QuarantineReason::InvalidEvent);
    let batch = [given.clone(), given.clone()];
    store.record_quarantined(&batch).await.unwrap();
    store.record_quarantined(&batch).await.unwrap();
    assert_eq!(count(&store).await, 1);
    assert!(store.delete_quarantined(&given.id).await.unwrap());
    assert!(!store.delete_quarantined(&given.id).await.unwrap());
    assert_eq!(count(&store).await, 0);
    store.record_quarantined(&batch).await.unwrap();
    assert_eq!(count(&store).await, 1);
}

async fn messages_are_listed_newest_first_by_reason(place: Place) {
    let store = place.open().await;
    let reasons = [QuarantineReason::Malformed, QuarantineReason::TooLarge];
    let given: Vec<_> = (0..9_usize)
        .map(|n| message(i32::try_from(n).unwrap(), reasons[n % 2]))
        .collect();
    store.record_quarantined(&given).await.unwrap();
    let minutes = async |reason| {
        let list = async |paging: Paging| store.quarantined(reason, &paging).await;
        let all = read_pages(2, list, async |_| {}).await;
        all.iter()
            .map(|m| m.first_seen.strftime("%M").to_string())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(minutes(None).await, "08 07 06 05 04 03 02 01 00");
    assert_eq!(minutes(Some(reasons[0])).await, "08 06 04 02 00");
    assert_eq!(minutes(Some(reasons[1])).await, "07 05 03 01");
    assert_eq!(minutes(Some(QuarantineReason::IdConflict)).await, "");
}

#[test]
fn an_id_depends_on_every_part_and_on_where_it_ends() {
    let id = Quarantined::id_for;
    let reason = QuarantineReason::Malformed;
    let all = [
        id(b"ab", reason, "c", None),
        id(b"a", reason, "bc", None),
        id(b"ab", QuarantineReason::TooLarge, "c", None),
        id(b"ab", reason, "c", Some("1")),
        id(b"ab", reason, "c1", None),
    ];
    let different: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(different.len(), all.len());
    assert_eq!(all[0], id(b"ab", reason, "c", None));
    assert!(all[0].starts_with("q_") && all[0].len() == 34);
}
