//! Each clause of a filter, alone and together, from both sides.

use serde_json::{Value, json};

use crate::{
    delivers::on_both,
    support::world::{Fate, World},
};

on_both!(
    each_clause_from_both_sides,
    a_filter_is_judged_as_it_is_at_that_moment
);

async fn each_clause_from_both_sides(world: World) {
    let updated = json!({
        "type": "appointment.updated", "status": "confirmed", "previous_status": "pending",
        "changes": {"start_time": 1}, "data": {"price": 120, "customer": {"vip": true}},
    });
    let created = json!({
        "type": "appointment.created", "status": "pending", "data": {"price": 80},
    });
    let filters = [
        ("actions", json!({"actions": ["updated"]}), true, false),
        (
            "both-actions",
            json!({"actions": ["created", "updated"]}),
            true,
            true,
        ),
        (
            "statuses",
            json!({"statuses": ["confirmed", "arrived"]}),
            true,
            false,
        ),
        (
            "changed",
            json!({"changed_fields": ["end_time", "start_time"]}),
            true,
            false,
        ),
        (
            "unchanged",
            json!({"changed_fields": ["end_time"]}),
            false,
            false,
        ),
        (
            "where",
            json!({"where": "event.data.price > 100"}),
            true,
            false,
        ),
        (
            "where-status",
            json!({"where": "event.status != 'confirmed'"}),
            false,
            true,
        ),
        (
            "missing",
            json!({"where": "event.data.customer.vip"}),
            true,
            false,
        ),
        (
            "never-there",
            json!({"where": "event.data.nothing.here == 1"}),
            false,
            false,
        ),
        (
            "all-hold",
            json!({
                "actions": ["updated"], "statuses": ["confirmed"],
                "changed_fields": ["start_time"], "where": "event.data.price > 100",
            }),
            true,
            false,
        ),
        (
            "one-fails",
            json!({
                "actions": ["updated"], "statuses": ["confirmed"],
                "changed_fields": ["start_time"], "where": "event.data.price > 1000",
            }),
            false,
            false,
        ),
        (
            "empty",
            json!({"actions": [], "statuses": [], "changed_fields": []}),
            true,
            true,
        ),
    ];
    let mut subs = Vec::new();
    for (name, filter, wants_updated, wants_created) in filters {
        let path = format!("/{name}");
        let sub = world
            .subscribe(&path, &["appointment.*"], json!({"filter": filter}))
            .await;
        subs.push((sub, wants_updated, wants_created));
    }
    let updated = world.publish(updated).await;
    let created = world.publish(created).await;
    for (sub, wants_updated, wants_created) in &subs {
        for (id, wanted) in [(&updated, wants_updated), (&created, wants_created)] {
            let fate = if *wanted {
                Fate::Delivered
            } else {
                Fate::Filtered
            };
            world.expect(sub, id, fate);
        }
    }
    world.finish().await;
}

async fn a_filter_is_judged_as_it_is_at_that_moment(world: World) {
    let more = json!({"filter": {"statuses": ["never"]}});
    let sub = world.subscribe("/moment", &["*"], more).await;
    let first = world
        .publish(json!({"type": "appointment.created", "status": "booked"}))
        .await;
    world.expect(&sub, &first, Fate::Filtered);
    let filtered = "outcome=\"filtered\"";
    world
        .wait_for_metric("postrider_deliveries_total", filtered, 1.0)
        .await;
    let patch = json!({"filter": {"statuses": Value::Null}});
    let path = format!("/v1/subscriptions/{}", sub.id);
    let changed = world.call("PATCH", &path, Some(patch)).await.expect(200);
    world.known(&changed).await;
    let second = world
        .publish(json!({"type": "appointment.created", "status": "booked"}))
        .await;
    world.expect(&sub, &second, Fate::Delivered);
    world.finish().await;
}
