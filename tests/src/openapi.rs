//! `/openapi.json` says the truth: schemathesis calls every operation with examples of its own and of
//! the document, with edges and with nonsense, and holds the answers against the document.

use serde_json::json;

use crate::support::{
    clients,
    folder::run,
    node::Node,
    receiver::Answer,
    world::{Fate, Kind, World},
};

const ADMIN: &str = "the-admin-token-of-this-test";

/// What must hold of every answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance";

#[tokio::test]
async fn every_answer_is_as_the_document_describes_it() {
    let mut world = World::start(Kind::Embedded).await;
    // Something for every list to show: what arrived, what was filtered, what died.
    world.receiver.plan("/gone", [Answer::status(410)]);
    let well = world.subscribe("/well", &["*"], json!({})).await;
    let gone = world.subscribe("/gone", &["payment.*"], json!({})).await;
    let filter = json!({"filter": {"statuses": ["open"]}});
    let picky = world.subscribe("/picky", &["payment.*"], filter).await;
    let id = world
        .publish(json!({"type": "payment.paid", "subject": 7, "data": {"id": 7}}))
        .await;
    world.expect(&well, &id, Fate::Delivered);
    world.expect(&gone, &id, Fate::Dead);
    world.expect(&picky, &id, Fate::Filtered);
    let letter = world.wait_for_dead(1).await.remove(0);

    // Without a deliverer: what is made up now has targets that nobody may call.
    world.nodes[0].drain().await;
    world.settings.push(("auth.admin_token", ADMIN.to_owned()));
    let roles = "producer,router,recorder,console";
    world.nodes[0] = Node::start(roles, &world.settings).await;
    let mut document = world.call("GET", "/openapi.json", None).await.expect(200);
    for (path, id) in [
        ("/v1/events/{id}", &json!(id)),
        ("/v1/subscriptions/{id}", &json!(well.id)),
        ("/v1/deliveries/{id}", &letter["delivery_id"]),
        ("/v1/dead-letters/{id}", &letter["id"]),
    ] {
        let example = &mut document["paths"][path]["get"]["parameters"][0]["example"];
        assert!(example.is_string(), "{path}: {example}");
        *example = id.clone();
    }
    // From a file: the route of the document itself would be left out if it came from there.
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    std::fs::write(folder.path().join("openapi.json"), document.to_string())
        .expect("the document can be written");
    let mut schemathesis = clients::schemathesis();
    schemathesis
        .current_dir(folder.path())
        .args(["run", "openapi.json", "--url", &world.nodes[0].api()])
        .args(["--header", &format!("Authorization: Bearer {ADMIN}")])
        .args(["--checks", CHECKS, "--max-examples", "10", "--seed", "17"])
        .args(["--generation-database", "none", "--no-color"]);
    let output = run(schemathesis).await;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{said}{errors}\n{}",
        world.nodes[0].log()
    );
    let paths = document["paths"].as_object().expect("paths");
    let operations: usize = paths
        .values()
        .filter_map(|methods| Some(methods.as_object()?.len()))
        .sum();
    let all = format!("Tested: {operations}\n");
    assert!(said.contains(&all), "not {operations} operations: {said}");
    // What schemathesis published has no fate that anybody wrote down: no law to check.
}
