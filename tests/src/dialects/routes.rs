//! vCita's two routes, as an integration that was written for vCita calls them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::world::{Fate, Kind, Sub, World};

const ADMIN: &str = "an-admin-token-for-tests";

async fn post(
    world: &World,
    token: &str,
    path: &str,
    body: Value,
) -> crate::support::world::Answer {
    let body = ("application/json", body.to_string().into_bytes());
    world.send("POST", path, Some(body), Some(token)).await
}

async fn tenants(world: &World, tenant: &str) -> String {
    let body = json!({"name": "vcita", "tenant": tenant, "scopes": ["manage", "publish"]});
    let made = post(world, ADMIN, "/v1/tokens", body).await.expect(201);
    made["token"].as_str().expect("a token").to_owned()
}

async fn subscriptions(world: &World, token: &str) -> Vec<Value> {
    let list = world
        .send("GET", "/v1/subscriptions", None, Some(token))
        .await;
    let items = list.expect(200)["items"].clone();
    items.as_array().expect("items").clone()
}

#[tokio::test]
async fn vcitas_integrations_subscribe_and_unsubscribe_by_url() {
    for kind in [Kind::Embedded, Kind::Rabbit] {
        let world = World::with(kind, 1, &[("auth.admin_token", ADMIN.to_owned())]).await;
        let (a, b) = (
            tenants(&world, "salon-a").await,
            tenants(&world, "salon-b").await,
        );
        let url = world.receiver.url("/vcita");
        let subscribe = async |token: &str, event: &str| {
            let body = json!({"event": event, "target_url": url});
            let path = "/v1/subscriptions/standard/subscribe";
            let answer = post(&world, token, path, body).await;
            assert_eq!(answer.expect(200), json!({"response": "Subscribed"}));
        };
        let unsubscribe = async |token: &str, url: &str| {
            let path = "/v1/subscriptions/standard/unsubscribe";
            let answer = post(&world, token, path, json!({"target_url": url})).await;
            assert_eq!(answer.expect(200), json!({"response": "Unsubscribed"}));
        };
        let again = (0..6).map(|_| subscribe(&a, "client/create"));
        futures_util::future::join_all(again).await;
        subscribe(&a, "payment/paid").await;
        subscribe(&b, "client/created").await;
        let own = subscriptions(&world, &a).await;
        assert_eq!(own.len(), 1, "{own:#?}");
        assert_eq!(own[0]["events"], json!(["client/created", "payment/paid"]));
        for token in [&a, &b] {
            let last = subscriptions(&world, token).await.remove(0);
            world.known(&last).await;
        }

        let publish = async |token: &str, event: Value| {
            let answer = post(&world, token, "/v1/events", event).await.expect(202);
            answer["ids"][0].as_str().expect("an id").to_owned()
        };
        let sub = Sub {
            id: String::new(),
            path: "/vcita".into(),
            secret: String::new(),
        };
        let mut wanted = Vec::new();
        for (token, event, word) in [
            (
                &a,
                json!({"type": "client.created", "data": {"id": 1}}),
                "client/created",
            ),
            (
                &a,
                json!({"type": "payment.paid", "data": {"id": 2}}),
                "payment/paid",
            ),
            (
                &b,
                json!({"type": "customer.created", "data": {"id": 3}}),
                "client/created",
            ),
        ] {
            let data = event["data"].clone();
            let id = publish(token, event).await;
            world.expect(&sub, &id, Fate::Delivered);
            wanted.push((id, word, data));
        }
        let none = publish(&b, json!({"type": "payment.paid", "data": {"id": 4}})).await;
        let requests = world.receiver.wait_for("/vcita", 3).await;
        for (id, word, data) in &wanted {
            let request = requests.iter().find(|request| request.event_id() == id);
            let body = request.expect("it came").json();
            assert_eq!(
                (&body["event"], &body["event_uid"]),
                (&json!(word), &json!(id))
            );
            assert_eq!(body["data"], *data);
        }
        assert!(requests.iter().all(|request| request.event_id() != none));

        unsubscribe(&a, &url).await;
        unsubscribe(&a, &url).await;
        unsubscribe(&b, &world.receiver.url("/nobody")).await;
        assert!(subscriptions(&world, &a).await.is_empty());
        assert_eq!(subscriptions(&world, &b).await.len(), 1);
        gone(&world, 1.0).await;
        publish(&a, json!({"type": "client.created", "data": {"id": 5}})).await;
        let theirs = publish(&b, json!({"type": "client.created", "data": {"id": 6}})).await;
        world.expect(&sub, &theirs, Fate::Delivered);
        let last = world.receiver.wait_for("/vcita", 4).await.remove(3);
        assert_eq!(last.event_id(), theirs);
    }
}

/// Waits until every process works with so many subscriptions.
async fn gone(world: &World, left: f64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    for node in &world.nodes {
        while node.metric("postrider_subscriptions", "").await > left {
            assert!(
                Instant::now() < deadline,
                "a process still works with what was deleted"
            );
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}
