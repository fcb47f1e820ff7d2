//! What a subscriber does not want to get never leaves, in whatever dialect it is written.

use serde_json::json;

use crate::{
    delivers::on_both,
    support::world::{Fate, World},
};

on_both!(what_is_redacted_never_leaves);

const MARK: &str = "canary-7f3a";

async fn what_is_redacted_never_leaves(world: World) {
    let redact = json!(["/data/email", "/data/contacts/0", "/changes/email"]);
    let mut subs = Vec::new();
    for (path, more) in [
        ("/full", json!({"dialect": "standard"})),
        ("/basic", json!({"dialect": "standard", "view": "basic"})),
        ("/cloud", json!({"dialect": "cloudevents"})),
        (
            "/binary",
            json!({"dialect": "cloudevents", "mode": "binary"}),
        ),
        (
            "/vcita",
            json!({"dialect": "vcita", "events": ["client/updated"]}),
        ),
    ] {
        let mut more = more;
        more["redact"] = redact.clone();
        // The filter still sees what is not sent.
        more["filter"] = json!({"where": format!("event.data.email == '{MARK}'")});
        subs.push(world.subscribe(path, &["customer.*"], more).await);
    }
    let all = world.subscribe("/all", &["customer.*"], json!({})).await;
    let id = world
        .publish(json!({
            "type": "customer.updated",
            "data": {"id": 10, "email": MARK, "contacts": [MARK, "kept-contact"], "n": "kept"},
            "changes": {"email": MARK, "n": "kept"},
        }))
        .await;
    for sub in &subs {
        let request = world.receiver.wait_for(&sub.path, 1).await.remove(0);
        let body = String::from_utf8_lossy(&request.body).into_owned();
        assert!(!body.contains(MARK), "{}: {body}", sub.path);
        assert!(body.contains("kept"), "{}: {body}", sub.path);
        let headers = format!("{:?}", request.headers);
        assert!(!headers.contains(MARK), "{}: {headers}", sub.path);
        world.expect(sub, &id, Fate::Delivered);
    }
    let request = world.receiver.wait_for(&all.path, 1).await.remove(0);
    assert!(String::from_utf8_lossy(&request.body).contains(MARK));
    world.expect(&all, &id, Fate::Delivered);
    world.finish().await;
}
