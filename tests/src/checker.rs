//! The checker of fault runs can fail: a history doctored in one place fails by the rule that
//! forbids it, and by no other; an honest one passes.

use crate::support::checker::{
    Bar, Counted, History, Letter, Process, Published, Receipt, Row, Rule, Subscribed, check,
};

/// Two tenants with two subscriptions each and ten events; the last event of each was dead-lettered
/// for the second subscription, and the one before that was never confirmed.
fn honest() -> History {
    let mut history = History {
        name: "honest".into(),
        left: vec![("postrider.inbox".into(), 0)],
        processes: vec![Process {
            name: "router".into(),
            files: (40, 44),
            resident_kib: (50_000, 60_000),
        }],
        ..History::default()
    };
    for tenant in ["a", "b"] {
        for n in 0..2 {
            history.subscriptions.push(Subscribed {
                id: format!("sub_{tenant}{n}"),
                tenant: tenant.into(),
                from: 0,
                until: None,
            });
        }
        for n in 0..10_u64 {
            let (id, body) = (format!("{tenant}-{n}"), format!("hash-{tenant}-{n}"));
            let sent = 1_000_000 + n * 10;
            history.published.push(Published {
                id: id.clone(),
                tenant: tenant.into(),
                sent,
                confirmed: (n != 8).then_some(sent + 5),
                body: body.clone(),
            });
            for sub in 0..2 {
                let dead = n == 9 && sub == 1;
                let subscription = format!("sub_{tenant}{sub}");
                let mut attempts = vec![(1, sent + 20, Some(if dead { 500 } else { 200 }))];
                if dead {
                    attempts.push((2, sent + 1_025, Some(500)));
                    let letter = (id.clone(), subscription.clone());
                    let (id, subscription) = letter;
                    history.dead.push(Letter { id, subscription });
                }
                for (_, at, answered) in &attempts {
                    history.received.push(Receipt {
                        id: id.clone(),
                        tenant: tenant.into(),
                        subscription: subscription.clone(),
                        at: *at,
                        timestamp: at / 1_000,
                        signed: true,
                        body: body.clone(),
                        answered: *answered,
                        purpose: String::new(),
                    });
                }
                history.deliveries.push(Row {
                    id: id.clone(),
                    tenant: tenant.into(),
                    subscription,
                    state: if dead { "dead" } else { "delivered" }.into(),
                    attempts,
                });
            }
        }
    }
    history.counted = Some(Counted {
        routed: 40,
        delivered: 38,
        dead: 2,
        filtered: 0,
    });
    history
}

fn bar() -> Bar {
    Bar {
        pauses_ms: vec![1_000],
        ..Bar::strict()
    }
}

#[track_caller]
fn fails_by(rule: Rule, doctor: impl FnOnce(&mut History)) {
    let mut history = honest();
    doctor(&mut history);
    let report = check(&history, &bar());
    let rules: Vec<_> = report.rules().into_iter().collect();
    assert_eq!(rules, [rule], "{report}");
    let shown = report.to_string();
    assert!(shown.contains(rule.number()), "{shown}");
}

fn receipt(history: &mut History, id: &str) -> usize {
    let found = history.received.iter().position(|one| one.id == id);
    found.expect("the honest history has it")
}

#[test]
fn an_honest_history_passes() {
    let report = check(&honest(), &bar());
    assert_eq!(report.rules().len(), 0, "{report}");
    let found = (
        report.confirmed,
        report.unconfirmed,
        report.recovered,
        report.delivered,
        report.ended_otherwise,
        report.duplicates,
        report.lost,
    );
    assert_eq!(found, (18, 2, 2, 34, 2, 0, 0));
}

#[test]
fn an_unconfirmed_event_that_never_came_is_not_lost() {
    let mut history = honest();
    history.received.retain(|one| one.id != "a-8");
    history.deliveries.retain(|row| row.id != "a-8");
    history.counted = None;
    let report = check(&history, &bar());
    assert_eq!(report.rules().len(), 0, "{report}");
    assert_eq!((report.lost, report.recovered), (0, 1));
}

#[test]
fn a_confirmed_event_without_an_end_is_lost() {
    fails_by(Rule::Lost, |history| {
        history.received.retain(|one| one.id != "a-3");
        history.deliveries.retain(|row| row.id != "a-3");
    });
}

#[test]
fn an_event_lost_for_one_of_two_subscriptions_is_lost() {
    fails_by(Rule::Lost, |history| {
        let of = |id: &str, sub: &str| id == "b-4" && sub == "sub_b1";
        history
            .received
            .retain(|one| !of(&one.id, &one.subscription));
        history
            .deliveries
            .retain(|row| !of(&row.id, &row.subscription));
    });
}

#[test]
fn a_dead_letter_that_is_gone_is_lost() {
    fails_by(Rule::Lost, |history| {
        history.dead.retain(|letter| letter.id != "a-9");
        history
            .deliveries
            .retain(|row| !(row.id == "a-9" && row.state == "dead"));
    });
}

#[test]
fn what_nobody_published_is_unexpected() {
    fails_by(Rule::Unexpected, |history| {
        history.published.retain(|event| event.id != "a-2");
    });
}

#[test]
fn what_comes_long_after_the_end_of_its_subscription_is_unexpected() {
    fails_by(Rule::Unexpected, |history| {
        // Its last events came in time, but for one.
        let sub = "sub_b1";
        let last = history
            .received
            .iter()
            .filter(|one| one.subscription == sub);
        let last = last.map(|one| one.at).max().expect("it got something");
        let of = history.subscriptions.iter_mut().find(|one| one.id == sub);
        of.expect("its subscription").until = Some(last - 2_001);
    });
}

#[test]
fn a_duplicate_without_a_fault_is_one_too_many() {
    fails_by(Rule::Duplicated, |history| {
        let at = receipt(history, "a-1");
        let again = history.received[at].clone();
        history.received.push(again);
    });
}

#[test]
fn duplicates_up_to_the_bound_pass_and_are_counted() {
    let mut history = honest();
    for _ in 0..3 {
        let at = receipt(&mut history, "a-1");
        let again = history.received[at].clone();
        history.received.push(again);
    }
    let allowed = |duplicates_max| Bar {
        duplicates_max,
        ..bar()
    };
    let report = check(&history, &allowed(3));
    assert_eq!((report.rules().len(), report.duplicates), (0, 3));
    let report = check(&history, &allowed(2));
    assert!(report.rules().contains(&Rule::Duplicated), "{report}");
}

#[test]
fn a_replay_that_was_asked_for_is_no_duplicate() {
    let mut history = honest();
    let at = receipt(&mut history, "a-1");
    let mut again = history.received[at].clone();
    again.purpose = "replay".into();
    history.received.push(again);
    let report = check(&history, &bar());
    assert_eq!((report.rules().len(), report.duplicates), (0, 0));
}

#[test]
fn another_tenants_event_is_mixed() {
    fails_by(Rule::Mixed, |history| {
        let at = receipt(history, "b-1");
        let mut foreign = history.received[at].clone();
        foreign.subscription = "sub_a0".into();
        foreign.answered = None;
        history.received.push(foreign);
    });
}

#[test]
fn a_log_entry_under_another_tenant_is_mixed() {
    fails_by(Rule::Mixed, |history| {
        let mut row = history.deliveries[0].clone();
        row.tenant = "b".into();
        row.attempts.clear();
        history.deliveries.push(row);
    });
}

#[test]
fn a_forged_signature_is_found() {
    fails_by(Rule::BadSignature, |history| {
        let at = receipt(history, "a-6");
        history.received[at].signed = false;
    });
}

#[test]
fn a_body_that_was_changed_is_found() {
    fails_by(Rule::BadBody, |history| {
        let at = receipt(history, "a-6");
        history.received[at].body = "another".into();
    });
}

#[test]
fn a_signature_made_long_before_is_found() {
    fails_by(Rule::BadTimestamp, |history| {
        let at = receipt(history, "a-6");
        history.received[at].timestamp -= 10;
    });
}

#[test]
fn an_attempt_that_came_too_early_is_found() {
    fails_by(Rule::BadAttempts, |history| {
        let row = history
            .deliveries
            .iter_mut()
            .find(|row| row.state == "dead");
        row.expect("one is dead").attempts[1].1 -= 100;
    });
}

#[test]
fn attempts_with_the_same_number_are_found() {
    fails_by(Rule::BadAttempts, |history| {
        let row = history
            .deliveries
            .iter_mut()
            .find(|row| row.state == "dead");
        row.expect("one is dead")
            .attempts
            .push((2, 9_000_000, None));
    });
}

#[test]
fn a_success_that_no_endpoint_saw_is_a_phantom() {
    // With the honest log alone the event has an end, and nobody would miss it.
    let mut history = honest();
    history.received.retain(|one| one.id != "b-7");
    let report = check(&history, &bar());
    assert!(report.rules().contains(&Rule::Phantom), "{report}");
    assert!(report.rules().contains(&Rule::Lost), "{report}");
}

#[test]
fn a_success_that_the_log_does_not_know_is_unrecorded() {
    fails_by(Rule::Unrecorded, |history| {
        history.deliveries.retain(|row| row.id != "a-0");
    });
}

#[test]
fn counters_that_do_not_add_up_are_found() {
    fails_by(Rule::BadSums, |history| {
        history.counted.as_mut().expect("no kill").delivered -= 1;
    });
}

#[test]
fn what_is_left_in_a_queue_is_found() {
    fails_by(Rule::Left, |history| {
        history.left.push(("postrider.retry.30s".into(), 2));
    });
}

#[test]
fn a_delivery_that_never_ended_is_found() {
    fails_by(Rule::Left, |history| {
        let mut row = history.deliveries[0].clone();
        row.id = "never".into();
        row.state = "retrying".into();
        row.attempts.clear();
        history.deliveries.push(row);
    });
}

#[test]
fn a_quarantined_message_that_nobody_counted_is_found() {
    fails_by(Rule::Left, |history| {
        history.quarantine.push("handler_failed".into());
    });
}

#[test]
fn files_and_memory_that_do_not_come_back_are_found() {
    fails_by(Rule::Leak, |history| history.processes[0].files.1 = 55);
    fails_by(Rule::Leak, |history| {
        history.processes[0].resident_kib.1 = 130_000;
    });
}

#[test]
fn a_written_history_is_judged_alike() {
    let text = serde_json::to_string(&honest()).expect("a history can be written");
    let read: History = serde_json::from_str(&text).expect("and read");
    assert_eq!(check(&read, &bar()).rules().len(), 0);
    assert_eq!(check(&read, &bar()).delivered, 34);
}
