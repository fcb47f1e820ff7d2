use std::sync::Arc;

use event::Tenant;
use jiff::ToSpan;

use super::*;

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn candidate(n: u32, more: &str) -> Candidate {
    let event = format!(
        r#"{{"id":"e{n}","tenant":"t","type":"appointment.created","time":"2026-03-01T09:00:00Z"{more}}}"#
    );
    Candidate {
        place: format!("behind {n}"),
        event: Arc::new(serde_json::from_str(&event).unwrap()),
        accepted_at: now() - 2.hours(),
        bytes: 1000,
        subscription_id: SubscriptionId::parse("sub_1").unwrap(),
        standing: None,
        letter: None,
        held: None,
        expunged: false,
    }
}

fn whole(n: u32) -> Candidate {
    candidate(n, r#","data":{}"#)
}

fn standing(state: DeliveryState, minutes_ago: i64) -> Standing {
    Standing {
        run: 4,
        state,
        updated_at: now() - minutes_ago.minutes(),
        due: None,
    }
}

#[track_caller]
fn check_run(candidate: &Candidate, run: Option<u32>) {
    assert_eq!(next_run(candidate, now()), run, "{candidate:?}");
}

#[test]
fn what_ended_is_sent_in_its_next_run_and_what_is_new_in_run_one() {
    check_run(&whole(1), Some(1));
    for state in [
        DeliveryState::Delivered,
        DeliveryState::Dead,
        DeliveryState::Filtered,
        DeliveryState::Canceled,
    ] {
        let standing = Some(standing(state, 0));
        check_run(
            &Candidate {
                standing,
                ..whole(1)
            },
            Some(5),
        );
    }
}

#[test]
fn what_is_on_its_way_is_left_alone_and_what_was_lost_is_not() {
    for (state, minutes_ago, run) in [
        (DeliveryState::Pending, 59, None),
        (DeliveryState::Pending, 61, Some(5)),
        (DeliveryState::Retrying, 14, None),
        (DeliveryState::Retrying, 16, Some(5)),
        (DeliveryState::Held, 14, None),
        (DeliveryState::Held, 1600, None),
    ] {
        let standing = Some(standing(state, minutes_ago));
        check_run(
            &Candidate {
                standing,
                ..whole(1)
            },
            run,
        );
    }
    let due = Some(Standing {
        due: Some(now() + 9.hours()),
        ..standing(DeliveryState::Retrying, 600)
    });
    check_run(
        &Candidate {
            standing: due,
            ..whole(1)
        },
        None,
    );
}

#[test]
fn what_lacks_its_payload_or_has_expired_is_passed_over() {
    check_run(&candidate(1, ""), None);
    check_run(&candidate(1, r#","changes":{}"#), Some(1));
    let mut deleted = candidate(1, r#","subject":7"#);
    let event = Arc::get_mut(&mut deleted.event).unwrap();
    event.kind = event::EventType::parse("appointment.deleted").unwrap();
    check_run(&deleted, None);
    deleted.bytes = 80;
    check_run(&deleted, Some(1));
    check_run(
        &candidate(1, r#","data":{},"expires_at":"2026-03-01T12:00:00Z""#),
        None,
    );
    check_run(
        &candidate(1, r#","data":{},"expires_at":"2026-03-01T12:00:01Z""#),
        Some(1),
    );
}

#[test]
fn what_is_held_goes_whatever_has_become_of_it() {
    let held = Candidate {
        standing: Some(standing(DeliveryState::Held, 0)),
        held: Some(event::delivery::Purpose::Live),
        ..candidate(1, r#","expires_at":"2026-03-01T11:00:00Z""#)
    };
    check_run(&held, Some(5));
}

#[test]
fn steps_are_bounded_and_together_they_are_everything_once() {
    let mut rest: VecDeque<_> = (0..23)
        .map(|n| {
            if n % 4 == 3 {
                candidate(n, "")
            } else {
                whole(n)
            }
        })
        .collect();
    let mut sent = Vec::new();
    let mut skipped = 0;
    while !rest.is_empty() {
        let step = step(&mut rest, 25, now(), |_| Some(7));
        assert!(step.sends.len() <= 5);
        assert!(!step.place.is_empty());
        skipped += step.skipped;
        sent.extend(step.sends.iter().map(|p| p.candidate.event.id.to_string()));
    }
    let wanted: Vec<_> = (0..23)
        .filter(|n| n % 4 != 3)
        .map(|n| format!("e{n}"))
        .collect();
    assert_eq!(sent, wanted);
    assert_eq!(skipped, 5);
}

#[test]
fn a_step_is_bounded_in_bytes_but_for_one_large_event() {
    let large = |n| Candidate {
        bytes: BYTES_MAX,
        ..whole(n)
    };
    let mut rest: VecDeque<_> = [large(0), large(1), whole(2)].into();
    let mut lengths = Vec::new();
    while !rest.is_empty() {
        lengths.push(step(&mut rest, 1000, now(), |_| Some(7)).sends.len());
    }
    assert_eq!(lengths, [1, 1, 1]);
}

#[test]
fn what_is_for_nobody_is_passed_over() {
    let mut rest: VecDeque<_> = [whole(0)].into();
    let step = step(&mut rest, 50, now(), |_| None);
    assert_eq!((step.sends.len(), step.skipped), (0, 1));
}

#[test]
fn a_dead_delivery_is_sent_with_its_letter() {
    let candidate = Candidate {
        standing: Some(standing(DeliveryState::Dead, 5)),
        ..whole(1)
    };
    let delivery_id = DeliveryId::of(
        &Tenant::parse("t").unwrap(),
        &candidate.event.id,
        &candidate.subscription_id,
    );
    let planned = Planned {
        candidate,
        run: 5,
        revision: 1,
    };
    let letter = sending(&planned).letter;
    assert_eq!(letter, Some(event::DeadLetterId::of(&delivery_id, 4)));
}

#[test]
fn a_rate_is_kept_by_even_steps() {
    for (rate, size) in [(1, 1), (4, 1), (50, 10), (250, 50), (1000, 50)] {
        assert_eq!(step_size(rate), size, "{rate}");
    }
}
