//! Requests that lie about themselves, dawdle, or bring what is not read.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::{a_good_event_flows, rows::event};
use crate::support::world::{Fate, Kind, World};

/// One raw exchange: what is written, and what the answer must be.
struct Raw {
    name: &'static str,
    head: String,
    body: Vec<u8>,
    /// `None`: the connection may also be closed without an answer.
    status: u16,
    code: &'static str,
    says: &'static str,
}

fn good() -> Vec<u8> {
    event(&[]).replace("@@", "never-taken").into_bytes()
}

fn head(lines: &[&str]) -> String {
    format!(
        "POST /v1/events HTTP/1.1\r\nhost: x\r\n{}\r\n\r\n",
        lines.join("\r\n")
    )
}

fn with_type(kind: &str, body: Vec<u8>) -> (String, Vec<u8>) {
    let length = format!("content-length: {}", body.len());
    let kind = format!("content-type: {kind}");
    (head(&[&kind, &length]), body)
}

fn lies() -> Vec<Raw> {
    let json = "content-type: application/json";
    let length = format!("content-length: {}", good().len());
    let mut all = Vec::new();
    let mut add = |name, head: String, body: Vec<u8>, (status, code, says)| {
        all.push(Raw {
            name,
            head,
            body,
            status,
            code,
            says,
        });
    };
    // More than is allowed, told beforehand: the client waits for our word and need not send it.
    let huge = head(&[json, "content-length: 134217728", "expect: 100-continue"]);
    add(
        "I39 128 MiB expected",
        huge,
        Vec::new(),
        (413, "too_large", "4194304 bytes"),
    );
    let huge = head(&[json, "content-length: 9223372036854775807"]);
    add(
        "I40 as much as can be",
        huge,
        good(),
        (413, "too_large", "4194304 bytes"),
    );
    // A head that promises more than comes: whoever half-closes is told that the end is missing.
    let more = head(&[json, "content-length: 4000"]);
    add(
        "I40 less than promised",
        more,
        good(),
        (400, "body_broken", "before its end"),
    );
    let chunked = head(&[json, "transfer-encoding: chunked"]);
    let broken = b"5\r\n{\"id\"\r\nzz\r\n".to_vec();
    add(
        "I40 broken chunks",
        chunked,
        broken,
        (400, "body_broken", "before its end"),
    );
    // What we do not read.
    let gzip = head(&[json, &length, "content-encoding: gzip"]);
    add(
        "I40 gzip",
        gzip,
        good(),
        (415, "unsupported_media_type", "as it is"),
    );
    for kind in [
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "text/plain",
        "application/xml",
        "application/json; charset=utf-16",
        "application/cloudevents+avro",
    ] {
        let (head, body) = with_type(kind, good());
        add(
            "I40 another type",
            head,
            body,
            (415, "unsupported_media_type", ""),
        );
    }
    let (none, body) = (head(&[&length]), good());
    add(
        "I40 no type",
        none,
        body,
        (415, "unsupported_media_type", "application/json"),
    );
    all
}

#[tokio::test]
async fn a_request_that_lies_or_brings_what_is_not_read_is_told_so() {
    let world = World::start(Kind::Embedded).await;
    let sub = world.subscribe("/lies", &["*"], json!({})).await;
    let api = world.nodes[0].api().replace("http://", "");
    for raw in lies() {
        let mut stream = TcpStream::connect(&api).await.expect("the API listens");
        stream.write_all(raw.head.as_bytes()).await.expect("sent");
        stream.write_all(&raw.body).await.expect("sent");
        if raw.code == "body_broken" {
            // Only so does the server learn that no more will come.
            stream.shutdown().await.expect("half closed");
        }
        let (status, problem) = answer(&mut stream, raw.name).await;
        assert_eq!(status, raw.status, "{}: {problem:#}", raw.name);
        assert_eq!(problem["code"], raw.code, "{}", raw.name);
        assert!(
            problem["detail"].to_string().contains(raw.says),
            "{problem:#}"
        );
    }
    // What is no HTTP is closed, with or without a 400, and never taken.
    for (name, text) in [
        (
            "two lengths",
            head(&[
                "content-type: application/json",
                "content-length: 5",
                "content-length: 6",
            ]),
        ),
        (
            "a length past any number",
            head(&[
                "content-type: application/json",
                "content-length: 18446744073709551615",
            ]),
        ),
        (
            "a negative length",
            head(&["content-type: application/json", "content-length: -1"]),
        ),
        (
            "a length and chunks",
            head(&[
                "content-type: application/json",
                "content-length: 5",
                "transfer-encoding: gzip",
            ]),
        ),
        (
            "no HTTP",
            "\x16\x03\x01\x02\0\x01\0\x01\u{1}\r\n\r\n".to_owned(),
        ),
    ] {
        let mut stream = TcpStream::connect(&api).await.expect("the API listens");
        stream.write_all(text.as_bytes()).await.expect("sent");
        stream.write_all(&good()).await.ok();
        stream.shutdown().await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        let told = String::from_utf8_lossy(&answer);
        assert!(
            told.is_empty() || told.starts_with("HTTP/1.1 4"),
            "{name}: {told}"
        );
    }
    // Who asks first is answered first, and then taken.
    let body = event(&[]).replace("@@", "i40-continue");
    let length = format!("content-length: {}", body.len());
    let mut stream = TcpStream::connect(&api).await.expect("the API listens");
    let asks = head(&[
        "content-type: application/json",
        &length,
        "expect: 100-continue",
    ]);
    stream.write_all(asks.as_bytes()).await.expect("sent");
    let mut word = [0; 25];
    stream.read_exact(&mut word).await.expect("go on");
    assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).await.expect("sent");
    assert_eq!(answer(&mut stream, "I40 continue").await.0, 202);
    world.expect(&sub, "i40-continue", Fate::Delivered);
    a_good_event_flows(&world, &sub).await;
    world.finish().await;
}

#[tokio::test]
async fn a_body_that_dawdles_is_told_so_and_holds_up_nobody() {
    let world = World::start(Kind::Embedded).await;
    let sub = world.subscribe("/slow", &["*"], json!({})).await;
    let api = world.nodes[0].api().replace("http://", "");
    let mut slow = JoinSet::new();
    for n in 0..40 {
        let api = api.clone();
        slow.spawn(async move {
            let mut stream = TcpStream::connect(&api).await.expect("the API listens");
            let body = if n % 2 == 0 {
                "content-length: 1000"
            } else {
                "transfer-encoding: chunked"
            };
            let head = head(&["content-type: application/json", body]);
            stream.write_all(head.as_bytes()).await.expect("sent");
            let (mut reader, mut writer) = stream.into_split();
            let dribble = async {
                let piece: &[u8] = if n % 2 == 0 { b"{" } else { b"1\r\n{\r\n" };
                loop {
                    if writer.write_all(piece).await.is_err() {
                        return std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            let mut told = [0; 12];
            tokio::select! {
                read = reader.read_exact(&mut told) => read.map(|_| told),
                () = dribble => unreachable!("it goes on until it is told"),
            }
        });
    }
    // All of them are under way, and everybody else is served.
    a_good_event_flows(&world, &sub).await;
    while let Some(told) = slow.join_next().await {
        let told = told.expect("no task panicked").expect("an answer");
        assert_eq!(String::from_utf8_lossy(&told), "HTTP/1.1 408");
    }
    a_good_event_flows(&world, &sub).await;
    world.finish().await;
}

/// The status and the problem of an answer.
async fn answer(stream: &mut TcpStream, name: &str) -> (u16, Value) {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Ok(json) = serde_json::from_str(body)
        {
            let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
            return (status.expect("a status"), json);
        }
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.unwrap_or_default();
        assert!(read > 0, "{name}: closed after {text:?}");
        bytes.extend_from_slice(&chunk[..read]);
    }
}
