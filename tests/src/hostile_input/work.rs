//! Input that is good and makes much work: many subscriptions, long expressions, long answers.

use serde_json::json;

use super::a_good_event_flows;
use crate::{
    delivers::on_both,
    support::{
        receiver::Answer,
        world::{Fate, World},
    },
};

on_both!(
    an_expression_without_an_end_is_refused_or_ends,
    a_header_that_could_split_a_request_is_refused,
    an_answer_too_long_to_keep_is_kept_in_part,
);

async fn an_expression_without_an_end_is_refused_or_ends(world: World) {
    let sub = world.subscribe("/quick", &["*"], json!({})).await;
    let deep = format!("{}true{}", "(".repeat(200), ")".repeat(200));
    let long = vec!["event.data.a == 1"; 100].join(" || ");
    let loops = "event.data.l.all(a, event.data.l.all(b, event.data.l.all(c, a + b + c > 0)))";
    for (expression, says) in [
        (deep.as_str(), "nested"),
        (&long, "at most 1024 bytes"),
        (loops, "loops"),
        ("event.data.a ==", "line 1"),
        ("nothing.data", "`nothing`"),
        ("event.data.name.matches('(a+)+$')", ""),
    ] {
        let body = json!({
            "tenant": "salon-17", "target_url": world.receiver.url("/never"), "events": ["*"],
            "filter": {"where": expression},
        });
        let answer = world.call("POST", "/v1/subscriptions", Some(body)).await;
        if answer.status == 201 {
            // Taken: then it has an end, which the events below show.
            assert!(says.is_empty(), "{expression} was taken");
            continue;
        }
        let refused = answer.expect(422);
        let errors = refused["errors"].to_string();
        assert!(errors.contains("/filter/where"), "{errors}");
        assert!(errors.contains(says), "{expression:.80}: {errors}");
    }
    // As much as can be written, over as much as an event can hold.
    let worst = json!({"filter": {"where":
        "event.data.l.all(a, event.data.l.exists(b, a == b + 1 || string(a) + string(b) == 'x'))"}});
    let heavy = world.subscribe("/heavy", &["*"], worst).await;
    let numbers: Vec<_> = (0..9_000).collect();
    let long = "a".repeat(100_000) + "!";
    let data = json!({"l": numbers, "name": long});
    let id = world
        .publish(json!({"type": "appointment.created", "data": data}))
        .await;
    world.expect(&sub, &id, Fate::Delivered);
    world.expect(&heavy, &id, Fate::Filtered);
    let receiver = &world.receiver;
    receiver
        .wait_until("the others' deliveries", || {
            receiver.successes("/quick").contains_key(&id).then_some(())
        })
        .await;
    // Who asks is told why.
    let path = format!("/v1/events/{id}");
    let why = loop {
        let answer = world.call("GET", &path, None).await;
        let text = answer.json.to_string();
        if text.contains("filtered") {
            break text;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert!(
        why.contains("where") && why.contains("too much"),
        "{why:.2000}"
    );
}

async fn a_header_that_could_split_a_request_is_refused(world: World) {
    for (headers, says) in [
        (json!({"x-a": "1\r\nx-injected: 1"}), "visible ASCII"),
        (json!({"x-a\r\nx-b": "1"}), "name"),
        (json!({"x-a": "\u{0}"}), ""),
        (json!({"content-length": "0"}), "content-length"),
        (json!({"transfer-encoding": "chunked"}), "transfer-encoding"),
    ] {
        let body = json!({
            "tenant": "salon-17", "target_url": world.receiver.url("/x"), "events": ["*"],
            "headers": headers,
        });
        let answer = world.call("POST", "/v1/subscriptions", Some(body)).await;
        let refused = answer.expect(422);
        let text = refused["errors"].to_string();
        assert!(text.contains("/headers"), "{text}");
        assert!(text.contains(says), "{headers}: {text}");
    }
    world.finish().await;
}

async fn an_answer_too_long_to_keep_is_kept_in_part(world: World) {
    let sub = world.subscribe("/long", &["*"], json!({})).await;
    let mut answer = Answer::status(200).saying(&"x".repeat(200 * 1024));
    for name in ["x-one", "x-two", "x-three"] {
        answer = answer.with_header(name, &"y".repeat(8 * 1024));
    }
    world.receiver.plan("/long", [answer]);
    let id = world.publish(json!({"type": "payment.paid"})).await;
    world.expect(&sub, &id, Fate::Delivered);
    let path = format!("/v1/deliveries?event_id={id}");
    let delivery = loop {
        let items = world.items(&path).await;
        if let Some(item) = items.iter().find(|item| item["state"] == "delivered") {
            break item["id"].as_str().unwrap_or_default().to_owned();
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let whole = world
        .call("GET", &format!("/v1/deliveries/{delivery}"), None)
        .await
        .expect(200);
    let attempt = &whole["history"][0];
    let text = attempt.to_string();
    assert!(
        text.contains(&"x".repeat(16 * 1024)),
        "the first 16 KiB are kept"
    );
    assert!(!text.contains(&"x".repeat(16 * 1024 + 1)), "and no more");
    assert!(text.len() < 64 * 1024, "{} bytes of record", text.len());
    a_good_event_flows(&world, &sub).await;
    world.finish().await;
}
