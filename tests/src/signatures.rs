//! Every delivery is signed as Standard Webhooks has it, with every live secret.

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, Verifier, VerifyingKey};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::{
    delivers::on_both,
    support::{
        clients::{Language, script},
        process::Process,
        receiver::Request,
        world::{Fate, World},
    },
};

on_both!(
    two_secrets_sign_while_a_rotation_lasts,
    ed25519_signs_beside_hmac,
    published_verifiers_accept_every_live_secret_and_nothing_forged,
);

/// What the specification says is signed.
fn signed_content(request: &Request) -> Vec<u8> {
    let head = format!(
        "{}.{}.",
        request.event_id(),
        request.header("webhook-timestamp")
    );
    [head.as_bytes(), &request.body].concat()
}

fn signatures(request: &Request, kind: &str) -> Vec<Vec<u8>> {
    request
        .header("webhook-signature")
        .split(' ')
        .filter_map(|entry| entry.split_once(','))
        .filter(|(version, _)| *version == kind)
        .map(|(_, text)| STANDARD.decode(text).expect("a signature is base64"))
        .collect()
}

pub(crate) fn verifies(request: &Request, secret: &str) -> bool {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").expect("a whsec_ secret"));
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.expect("base64")).expect("any key fits");
    mac.update(&signed_content(request));
    let want = mac.finalize().into_bytes();
    signatures(request, "v1")
        .iter()
        .any(|got| got.as_slice() == want.as_slice())
}

async fn two_secrets_sign_while_a_rotation_lasts(world: World) {
    let sub = world.subscribe("/signed", &["*"], json!({})).await;
    let first = world.publish(json!({"type": "payment.paid"})).await;
    let before = world.receiver.wait_for("/signed", 1).await.remove(0);
    assert!(verifies(&before, &sub.secret));
    assert_eq!(signatures(&before, "v1").len(), 1);
    let at: i64 = before.header("webhook-timestamp").parse().expect("seconds");
    let now = jiff::Timestamp::now().as_second();
    assert!(
        (now - at).abs() <= 60,
        "the timestamp {at} is not the time of sending, {now}"
    );

    let path = format!("/v1/subscriptions/{}", sub.id);
    let rotated = world
        .call("POST", &format!("{path}/rotate-secret"), None)
        .await
        .expect(200);
    let fresh = rotated["secret"]
        .as_str()
        .expect("the new secret, once")
        .to_owned();
    assert_ne!(fresh, sub.secret);
    world
        .known(&world.call("GET", &path, None).await.expect(200))
        .await;
    let second = world.publish(json!({"type": "payment.paid"})).await;
    let during = world.receiver.wait_for("/signed", 2).await.remove(1);
    assert!(verifies(&during, &sub.secret), "the old secret still signs");
    assert!(verifies(&during, &fresh), "the new secret signs");
    assert_eq!(signatures(&during, "v1").len(), 2);
    assert!(!verifies(
        &during,
        "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    ));
    for id in [&first, &second] {
        world.expect(&sub, id, Fate::Delivered);
    }
    world.finish().await;
}

async fn ed25519_signs_beside_hmac(world: World) {
    let body = json!({
        "tenant": "salon-17", "target_url": world.receiver.url("/both"), "events": ["*"],
        "signing": ["v1", "v1a"],
    });
    let created = world
        .call("POST", "/v1/subscriptions", Some(body))
        .await
        .expect(201);
    world.known(&created).await;
    let text = |key: &str| created[key].as_str().expect(key).to_owned();
    let id = world.publish(json!({"type": "payment.paid"})).await;
    let got = world.receiver.wait_for("/both", 1).await.remove(0);
    assert!(verifies(&got, &text("secret")));
    let public = text("public_key");
    let public = STANDARD
        .decode(public.strip_prefix("whpk_").expect("whpk_"))
        .expect("base64");
    let key = VerifyingKey::from_bytes(&public.try_into().expect("32 bytes")).expect("a key");
    let signature = signatures(&got, "v1a").remove(0);
    let signature = Signature::from_slice(&signature).expect("64 bytes");
    key.verify(&signed_content(&got), &signature)
        .expect("the signature holds");
    let sub = crate::support::world::Sub {
        id: text("id"),
        path: "/both".into(),
        secret: text("secret"),
    };
    world.expect(&sub, &id, Fate::Delivered);
    world.finish().await;
}

/// A receiver of another language, with the Standard Webhooks library that people install there.
struct Published {
    process: Process,
    secrets: tempfile::NamedTempFile,
    url: String,
}

impl Published {
    async fn start(language: Language) -> Self {
        let secrets = tempfile::NamedTempFile::new().expect("a file");
        let mut command = script(language, "verify");
        command.arg(secrets.path());
        let process = Process::spawn(command);
        let port = line(&process, |line| Some(line.to_owned())).await;
        Self {
            process,
            secrets,
            url: format!("http://127.0.0.1:{port}/hook"),
        }
    }

    fn knows(&self, secrets: &[&str]) {
        std::fs::write(self.secrets.path(), secrets.join("\n")).expect("written");
    }

    /// What it said of this event.
    async fn said_of(&self, event: &str) -> Value {
        line(&self.process, |line| {
            let said: Value = serde_json::from_str(line).ok()?;
            (said["id"] == event).then_some(said)
        })
        .await
    }
}

/// Waits for a whole line of output.
async fn line<T>(process: &Process, wanted: impl Fn(&str) -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let out = process.stdout();
        let whole = out
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        if let Some(found) = whole.map(str::trim_end).find_map(&wanted) {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "it never said so: {out}{}",
            process.stderr()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn published_verifiers_accept_every_live_secret_and_nothing_forged(world: World) {
    const STRANGER: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for language in [Language::Python, Language::Node] {
        let verifier = Published::start(language).await;
        let body = json!({
            "tenant": "salon-17", "target_url": verifier.url, "events": ["*"],
            "signing": ["v1", "v1a"],
        });
        let created = world.call("POST", "/v1/subscriptions", Some(body)).await;
        let created = created.expect(201);
        world.known(&created).await;
        let id = created["id"].as_str().expect("an id").to_owned();
        let old = created["secret"].as_str().expect("the secret").to_owned();

        // Neither the form of the data nor what is not ASCII may come between it and its signature.
        let data = r#"{ "n": 1.10, "name":"Zo\u00eb", "emoji": "😀é" }"#;
        let publish = async || {
            let body = format!(r#"{{"tenant":"salon-17","type":"payment.paid","data":{data}}}"#);
            let body = Some(("application/json", body.into_bytes()));
            let answer = world.send("POST", "/v1/events", body, None).await;
            answer.expect(202)["ids"][0]
                .as_str()
                .expect("an id")
                .to_owned()
        };
        verifier.knows(&[&old, STRANGER]);
        let event = publish().await;
        let said = verifier.said_of(&event).await;
        let wanted = json!({"id": event, "verified": [true, false], "forged": false});
        assert_eq!(said, wanted, "{language:?}");

        let path = format!("/v1/subscriptions/{id}");
        let rotated = world
            .call("POST", &format!("{path}/rotate-secret"), None)
            .await
            .expect(200);
        let fresh = rotated["secret"].as_str().expect("the new secret");
        let now = world.call("GET", &path, None).await.expect(200);
        world.known(&now).await;
        verifier.knows(&[&old, fresh, STRANGER]);
        let event = publish().await;
        let said = verifier.said_of(&event).await;
        let wanted = json!({"id": event, "verified": [true, true, false], "forged": false});
        assert_eq!(said, wanted, "{language:?}");
        world.call("DELETE", &path, None).await.expect(204);
    }
    world.finish().await;
}
