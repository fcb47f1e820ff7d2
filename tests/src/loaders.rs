//! A view that an event lacks comes from its entity's loader: once, retried, or else `data`.

use serde_json::{Value, json};

use crate::support::{
    receiver::{Answer, Receiver},
    world::{Fate, Kind, World},
};

/// Each scenario on both brokers, with a loader of appointments at its side.
macro_rules! with_a_loader {
    ($($name:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $name() {
                super::with(super::Kind::Embedded, super::$name).await;
            })+
        }
        mod rabbitmq {
            $(#[tokio::test]
            async fn $name() {
                super::with(super::Kind::Rabbit, super::$name).await;
            })+
        }
    };
}

with_a_loader!(
    a_view_is_fetched_once_and_reaches_all_who_want_it,
    a_loader_that_fails_is_tried_again_like_an_endpoint,
    a_record_that_is_gone_falls_back_to_data,
    a_loader_is_dialled_only_where_the_guard_permits,
);

async fn with<F: Future<Output = ()>>(kind: Kind, scenario: impl Fn(World, Receiver) -> F) {
    let loader = Receiver::start().await;
    let settings = [
        (
            "loaders.appointment.url",
            loader.url("/{tenant}/{id}/{view}"),
        ),
        ("loaders.appointment.token", "loader-token".to_owned()),
        // Where nobody may dial.
        ("loaders.customer.url", "http://10.255.0.1/{id}".to_owned()),
    ];
    let world = World::with(kind, 1, &settings).await;
    scenario(world, loader).await;
}

fn created(subject: Value) -> Value {
    json!({"type": "appointment.created", "subject": subject, "data": {"name": "only data"}})
}

async fn a_view_is_fetched_once_and_reaches_all_who_want_it(world: World, loader: Receiver) {
    let record = r#"{"price": 12.10, "customer": {"name": "Ada"}}"#;
    loader.plan("/salon-17/7/extended", [Answer::status(200).saying(record)]);
    let extended = json!({"view": "extended"});
    let first = world
        .subscribe("/first", &["appointment.*"], extended.clone())
        .await;
    let second = world.subscribe("/second", &["*"], extended).await;
    let full = world.subscribe("/full", &["*"], json!({})).await;
    let id = world.publish(created(json!(7))).await;
    for sub in [&first, &second, &full] {
        world.expect(sub, &id, Fate::Delivered);
    }
    for (path, data) in [
        ("/first", record),
        ("/second", record),
        ("/full", r#"{"name":"only data"}"#),
    ] {
        let requests = world.receiver.wait_for(path, 1).await;
        let body = String::from_utf8_lossy(&requests[0].body).into_owned();
        assert!(body.ends_with(&format!("\"data\":{data}}}")), "{body}");
    }
    let asked = loader.all();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), "Bearer loader-token");
    assert_eq!(asked[0].header("x-postrider-tenant"), "salon-17");
    world.finish().await;
}

async fn a_loader_that_fails_is_tried_again_like_an_endpoint(world: World, loader: Receiver) {
    let answers = [
        Answer::status(500),
        Answer::status(200).saying("not json"),
        Answer::status(200).saying(r#"{"all":true}"#),
    ];
    loader.plan("/salon-17/a%20b/extended", answers);
    let more = json!({"view": "extended", "delivery": {"retry": {"delays": ["1s", "1s"]}}});
    let sub = world.subscribe("/late", &["*"], more).await;
    let id = world.publish(created(json!("a b"))).await;
    world.expect(&sub, &id, Fate::Delivered);
    let requests = world.receiver.wait_for("/late", 1).await;
    assert_eq!(requests[0].json()["data"], json!({"all": true}));
    assert_eq!(loader.all().len(), 3);
    world.finish().await;
}

async fn a_record_that_is_gone_falls_back_to_data(world: World, loader: Receiver) {
    loader.plan("/salon-17/8/extended", [Answer::status(404)]);
    let sub = world
        .subscribe("/gone", &["*"], json!({"view": "extended"}))
        .await;
    let id = world.publish(created(json!(8))).await;
    world.expect(&sub, &id, Fate::Delivered);
    let several = world.publish(created(json!([1, 2]))).await;
    world.expect(&sub, &several, Fate::Delivered);
    for request in world.receiver.wait_for("/gone", 2).await {
        assert_eq!(request.json()["data"], json!({"name": "only data"}));
    }
    assert_eq!(
        loader.all().len(),
        1,
        "of several records there is no one view"
    );
    world.finish().await;
}

async fn a_loader_is_dialled_only_where_the_guard_permits(world: World, _loader: Receiver) {
    let more = json!({"view": "extended", "delivery": {"retry": "none"}});
    let sub = world.subscribe("/guarded", &["*"], more).await;
    let event = json!({"type": "customer.created", "subject": 1, "data": {}});
    let id = world.publish(event).await;
    world.expect(&sub, &id, Fate::Dead);
    let dead = world.wait_for_dead(1).await;
    let said = dead[0].to_string();
    assert!(
        said.contains("loader for customer") && !said.contains("10.255"),
        "{said}"
    );
    assert_eq!(world.receiver.requests("/guarded").len(), 0);
    world.finish().await;
}
