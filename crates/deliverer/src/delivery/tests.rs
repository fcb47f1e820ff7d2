//! What travels with a delivery, and what its parcels carry.

use super::*;
use event::reason::AttemptError;

fn bundle() -> Bundle {
    let event = r#"{"id":"e1","tenant":"t","type":"a.b","time":"2026-03-01T10:00:00Z","data":{"price": 12.10}}"#;
    let at = "2026-03-01T10:00:01Z";
    serde_json::from_str(&format!(
        r#"{{"items":[
            {{"event":{event},"accepted_at":"{at}","revision":7,
              "to":[{{"sub":"sub_a"}},{{"sub":"sub_b","attempts":2,"run":1,"parked":3}}]}},
            {{"event":{event},"accepted_at":"{at}","revision":7,"to":[]}}
        ]}}"#
    ))
    .expect("a bundle")
}

fn attempt(number: u32) -> AttemptRecord {
    AttemptRecord {
        number,
        at: Timestamp::UNIX_EPOCH,
        duration_ms: 5,
        status: Some(500),
        error: Some(AttemptError::Status),
        detail: Some("status 500".into()),
        response: Some("no".into()),
    }
}

fn second() -> Delivery {
    Delivery::all(bundle()).nth(1).expect("two deliveries")
}

#[test]
fn a_bundle_is_opened_into_one_delivery_per_recipient() {
    let all: Vec<_> = Delivery::all(bundle()).collect();
    let to: Vec<_> = all
        .iter()
        .map(|delivery| delivery.to.subscription.as_str())
        .collect();
    assert_eq!(to, ["sub_a", "sub_b"]);
    assert!(
        Arc::ptr_eq(&all[0].event, &all[1].event),
        "the event is shared, not copied"
    );
}

#[test]
fn a_retry_parcel_carries_the_event_and_the_delivery_as_they_are() {
    let mut delivery = second();
    delivery.remember(attempt(3));
    let parcel = delivery.parcel(Route::Deliver).expect("serializes");
    assert_eq!(parcel.message_id, format!("{}:1:3:0", delivery.id()));
    let again = serde_json::from_slice(&parcel.body).expect("a bundle");
    let all: Vec<_> = Delivery::all(again).collect();
    assert_eq!(all.len(), 1);
    assert_eq!(
        (all[0].to.attempts, all[0].to.run, all[0].to.parked),
        (3, 1, 0)
    );
    assert_eq!(all[0].to.history, [attempt(3)]);
    assert_eq!(
        (all[0].accepted_at, all[0].revision),
        (delivery.accepted_at, 7)
    );
    let data = all[0].event.data.as_ref().map(|data| data.get());
    assert_eq!(data, Some("{\"price\": 12.10}"), "byte for byte");
}

#[test]
fn only_the_last_attempt_keeps_its_response_and_the_history_is_bounded() {
    let mut delivery = second();
    for number in 1..=40 {
        delivery.remember(attempt(number));
    }
    let history = &delivery.to.history;
    assert_eq!(history.len(), HISTORY_MAX);
    assert_eq!(
        (history[0].number, history[HISTORY_MAX - 1].number),
        (9, 40)
    );
    let with_response = history
        .iter()
        .filter(|attempt| attempt.response.is_some())
        .count();
    assert_eq!(with_response, 1);
    assert_eq!(history[HISTORY_MAX - 1], attempt(40));
}

#[test]
fn a_dead_letter_is_the_same_however_often_it_is_written_and_another_for_each_run() {
    let delivery = second();
    let letter = |delivery: &Delivery| {
        let written = delivery.dead_letter(DeadReason::Gone, "gone", Timestamp::UNIX_EPOCH);
        written.expect("serializes").message_id
    };
    assert_eq!(letter(&delivery), letter(&second()));
    let mut redriven = second();
    redriven.to.run += 1;
    assert_ne!(letter(&delivery), letter(&redriven));
}
