//! R01 to R40: receivers that answer badly, too much, too slowly or not at all, each as the
//! endpoint of a subscription of its own, through the product's own deliverer.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, sink},
    net::TcpStream,
    time::sleep,
};

use super::{became, errors, is_over};
use crate::support::{
    authority::{Authority, NOW},
    receiver::Answer,
    trap::{BlackHole, FOREVER, read_request, trap},
    world::{Kind, TENANT, World, client},
};

/// What a receiver does once it has the request.
#[derive(Debug, Clone)]
enum Does {
    /// Sends these bytes and closes.
    Says(Vec<u8>),
    /// Sends these bytes and keeps the connection.
    Holds(Vec<u8>),
    /// Sends the first, then the second for ever.
    Floods(Vec<u8>, Vec<u8>),
    /// Sends the first, then the second byte by byte, for ever.
    Drips(Vec<u8>, &'static [u8]),
    /// Answers before it has read the body.
    Hastes,
    /// Reads nothing.
    Deaf,
    /// Breaks the connection.
    Resets,
}

impl Does {
    async fn to(self, mut stream: TcpStream) -> io::Result<()> {
        match &self {
            Self::Deaf => {
                sleep(FOREVER).await;
                return Ok(());
            }
            Self::Hastes => {
                stream.read_u8().await?;
            }
            _ => drop(read_request(&mut stream).await),
        }
        match self {
            Self::Says(bytes) => stream.write_all(&bytes).await?,
            Self::Hastes => stream.write_all(&ok("")).await?,
            Self::Holds(bytes) => {
                stream.write_all(&bytes).await?;
                sleep(FOREVER).await;
            }
            Self::Floods(bytes, more) => {
                stream.write_all(&bytes).await?;
                loop {
                    stream.write_all(&more).await?;
                }
            }
            Self::Drips(bytes, more) => {
                stream.write_all(&bytes).await?;
                for byte in more.iter().cycle() {
                    stream.write_all(&[*byte]).await?;
                    sleep(Duration::from_millis(100)).await;
                }
            }
            Self::Resets => return stream.set_zero_linger(),
            Self::Deaf => {}
        }
        stream.shutdown().await?;
        // Reading on keeps the close from becoming a reset that overtakes the answer.
        copy(&mut stream, &mut sink()).await.map(drop)
    }
}

fn ok(headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{headers}content-length: 0\r\n\r\n").into()
}

fn status(status: u16, headers: &str) -> Does {
    let head = format!("HTTP/1.1 {status} Odd\r\n{headers}");
    Does::Says(format!("{head}content-length: 2\r\n\r\nno").into())
}

/// What the first attempt ends with, and where the delivery stands after it.
type Wanted = (Option<u16>, &'static str, &'static str);

const DELIVERED: Wanted = (Some(200), "ok", "delivered");

fn failed(status: u16) -> Wanted {
    (Some(status), "status", "retrying")
}

fn retried(error: &'static str) -> Wanted {
    (None, error, "retrying")
}

fn says(text: &str) -> Does {
    Does::Says(text.as_bytes().to_vec())
}

fn rows() -> Vec<(&'static str, Does, Wanted)> {
    let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let chunk = [b"10000\r\n".to_vec(), vec![b'x'; 0x10000], b"\r\n".to_vec()].concat();
    let huge = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
        10_u64 << 30
    );
    let block = |bytes: usize| format!("x-a: {}\r\n", "a".repeat(bytes));
    let many: String = (0..150).map(|n| format!("x-{n}: 1\r\n")).collect();
    let interim = |status: &str, times| format!("HTTP/1.1 {status}\r\n\r\n").repeat(times);
    let moved = |status: u16| {
        let headers = "location: http://127.0.0.1:1/\r\nrefresh: 0; url=http://127.0.0.1:1/\r\n";
        crate::hostile::receivers::status(status, headers)
    };
    let later = |value: &str| status(429, &format!("retry-after: {value}\r\n"));
    let mut rows = vec![
        ("R01", Does::Says(ok("")), DELIVERED),
        ("R01", status(201, ""), (Some(201), "ok", "delivered")),
        ("R01", status(202, ""), (Some(202), "ok", "delivered")),
        (
            "R01",
            says("HTTP/1.1 204 No Content\r\n\r\n"),
            (Some(204), "ok", "delivered"),
        ),
        (
            "R02",
            says("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort"),
            DELIVERED,
        ),
        (
            "R02",
            says("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nbad"),
            DELIVERED,
        ),
        (
            "R02",
            Does::Holds(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n".to_vec()),
            DELIVERED,
        ),
        (
            "R03",
            Does::Floods(huge.into(), vec![b'x'; 65_536]),
            DELIVERED,
        ),
        ("R03", Does::Floods(chunked.clone(), chunk), DELIVERED),
        ("R04", Does::Drips(chunked, b"1\r\nx\r\n"), DELIVERED),
        ("R05", Does::Says(bomb("gzip")), DELIVERED),
        ("R05", Does::Says(bomb("br")), DELIVERED),
        ("R05", Does::Says(bomb("zstd")), DELIVERED),
        (
            "R06",
            Does::Drips(Vec::new(), b"HTTP/1.1 200 OK\r\nx-slow: aaaaaaaa"),
            retried("timeout"),
        ),
        (
            "R06",
            Does::Drips(b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: y\r\n"),
            retried("timeout"),
        ),
        ("R07", Does::Holds(Vec::new()), retried("timeout")),
        ("R08", Does::Resets, retried("reset")),
        ("R08", says(""), retried("reset")),
        ("R08", says("HTTP/1.1 20"), retried("reset")),
        (
            "R09",
            Does::Says(ok(&block(200_000))),
            retried("headers_too_large"),
        ),
        (
            "R09",
            Does::Says(ok(&block(40_000))),
            retried("headers_too_large"),
        ),
        ("R09", Does::Says(ok(&block(20_000))), DELIVERED),
        (
            "R10",
            Does::Says(ok(&block(1_000_000))),
            retried("headers_too_large"),
        ),
        ("R10", Does::Says(ok(&many)), retried("headers_too_large")),
        (
            "R10",
            Does::Floods(
                b"HTTP/1.1 200 OK\r\n".to_vec(),
                b"x: yyyyyyyyyyyyy\r\n".to_vec(),
            ),
            retried("headers_too_large"),
        ),
        (
            "R11",
            says("<html>hello</html>\r\n\r\n"),
            retried("not_http"),
        ),
        (
            "R11",
            says("SSH-2.0-OpenSSH_9.2p1\r\n"),
            retried("not_http"),
        ),
        (
            "R11",
            says("-ERR unknown command 'POST'\r\n"),
            retried("not_http"),
        ),
        (
            "R11",
            says("\x15\x03\x01\x00\x02\x02\x46"),
            retried("not_http"),
        ),
        ("R11", says("HTTP/1.2 200 OK\r\n\r\n"), retried("not_http")),
        ("R11", says("HTTP/2 200\r\n\r\n"), retried("not_http")),
        (
            "R12",
            says(&(interim("100 Continue", 5000) + "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")),
            DELIVERED,
        ),
        (
            "R12",
            says(
                &(interim("103 Early Hints", 500) + "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
            ),
            DELIVERED,
        ),
        (
            "R12",
            Does::Drips(Vec::new(), b"HTTP/1.1 100 Continue\r\n\r\n"),
            retried("timeout"),
        ),
        (
            "R13",
            says(
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            ),
            failed(101),
        ),
        ("R14", says("HTTP/1.1 099 No\r\n\r\n"), retried("not_http")),
        ("R14", says("HTTP/1.1 1000 No\r\n\r\n"), retried("not_http")),
        ("R15", status(999, ""), failed(999)),
        ("R15", status(600, ""), failed(600)),
        ("R19", status(410, ""), (Some(410), "status", "dead")),
        (
            "R23",
            says("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"),
            retried("not_http"),
        ),
        (
            "R23",
            says("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nab"),
            retried("not_http"),
        ),
        (
            "R23",
            says(
                "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            ),
            DELIVERED,
        ),
        (
            "R24",
            says("HTTP/1.1 200 OK\ncontent-length: 0\n\n"),
            DELIVERED,
        ),
        (
            "R24",
            Does::Says(
                b"HTTP/1.1 200 OK\r\nx-odd: \xff\xfe\x80\r\ncontent-length: 0\r\n\r\n".to_vec(),
            ),
            DELIVERED,
        ),
        (
            "R24",
            says("HTTP/1.1 200 OK\r\nx-a: b\r\n folded\r\ncontent-length: 0\r\n\r\n"),
            retried("not_http"),
        ),
        (
            "R24",
            says("HTTP/1.1 200 OK\r\nx-a: b\0c\r\ncontent-length: 0\r\n\r\n"),
            retried("not_http"),
        ),
        ("R32", Does::Hastes, DELIVERED),
        (
            "R33",
            Does::Says(ok(
                "set-cookie: a=b\r\nalt-svc: h2=\":1\"\r\nstrict-transport-security: max-age=9\r\nrefresh: 0; url=http://127.0.0.1:1/\r\n",
            )),
            DELIVERED,
        ),
        (
            "R36",
            says("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello"),
            (Some(204), "ok", "delivered"),
        ),
        ("R37", Does::Deaf, retried("timeout")),
        (
            "R40",
            Does::Says(ok("webhook-delivery: abort-message\r\n")),
            DELIVERED,
        ),
    ];
    for code in [300, 301, 302, 303, 304, 307, 308] {
        let row = if matches!(code, 300 | 304) {
            "R17"
        } else {
            "R16"
        };
        rows.push((
            row,
            moved(code),
            (Some(code), "redirect_not_followed", "retrying"),
        ));
    }
    for code in [400, 401, 403, 404, 405, 413, 415, 422] {
        rows.push(("R18", status(code, ""), failed(code)));
    }
    for value in [
        "120",
        "Wed, 21 Oct 2099 07:28:00 GMT",
        "Wednesday, 21-Oct-99 07:28:00 GMT",
    ] {
        rows.push(("R20", later(value), failed(429)));
    }
    let long = "9".repeat(30_000);
    for value in [
        "-5",
        "NaN",
        "inf",
        "-inf",
        "1e13",
        "1e18",
        "9223372036854775807",
        "",
        "0x10",
        &long,
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ] {
        rows.push(("R21", later(value), failed(429)));
    }
    let endless = later(&"9".repeat(10_000_000));
    rows.push(("R21", endless, retried("headers_too_large")));
    for code in [500, 502, 503, 504] {
        rows.push(("R22", status(code, ""), failed(code)));
    }
    rows
}

/// What would be gigabytes if somebody unpacked it, as far as anybody here can tell.
fn bomb(coding: &str) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\ncontent-length: 4\r\n\r\n");
    [head.as_bytes(), b"\x1f\x8b\x08\x00"].concat()
}

async fn receiver(does: Does) -> SocketAddr {
    let does = Arc::new(does);
    trap(([127, 0, 0, 1], 0).into(), move |stream, _| {
        Does::clone(&does).to(stream)
    })
    .await
}

/// One subscription to an endpoint, with a retry that does not come while the test runs.
async fn subscribe(world: &World, url: &str, timeout: &str, event: &str) -> String {
    let delivery = json!({"timeout": timeout, "retry": {"delays": ["1h"]}});
    let more = json!({"target_url": url, "delivery": delivery});
    world.subscribe(url, &[event], more).await.id
}

#[track_caller]
fn check(row: &str, delivery: &Value, (status, error, state): Wanted) {
    let attempt = &delivery["history"][0];
    let told = (
        attempt["status"].as_u64(),
        errors(delivery)[0],
        delivery["state"].as_str().unwrap_or_default(),
    );
    assert_eq!(
        told,
        (status.map(u64::from), error, state),
        "{row}: {:#}",
        delivery["history"]
    );
}

fn is_attempted(delivery: &Value) -> bool {
    is_over(delivery) || delivery["state"] == "retrying"
}

#[tokio::test]
async fn r01_to_r40_each_receiver_has_its_attempt_and_its_verdict() {
    let world = World::start(Kind::Embedded).await;
    let mut subs = Vec::new();
    for (row, does, wanted) in rows() {
        let told = format!("{row} {}", does.told());
        let url = format!("http://{}/", receiver(does).await);
        subs.push((
            told,
            subscribe(&world, &url, timeout_of(wanted), "payment.paid").await,
            wanted,
        ));
    }
    let refused = "http://127.0.0.1:1/".to_owned();
    let hole = BlackHole::at(([127, 0, 0, 1], 0).into());
    let plain = hello(says("HTTP/1.1 400 Bad Request\r\n\r\n")).await;
    for (row, url, wanted) in [
        ("R08 refused", refused, retried("connect")),
        (
            "R08 black hole",
            format!("http://{}/", hole.address),
            retried("timeout"),
        ),
        (
            "R26 plain server",
            format!("https://{plain}/"),
            retried("tls"),
        ),
    ] {
        subs.push((
            row.to_owned(),
            subscribe(&world, &url, timeout_of(wanted), "payment.paid").await,
            wanted,
        ));
    }
    // 200 KB, so that a receiver that does not read stops us.
    let data = json!({"text": "x".repeat(200_000)});
    let event = world
        .publish(json!({"type": "payment.paid", "data": data}))
        .await;
    for (row, sub, wanted) in &subs {
        let delivery = became(&world, sub, &event, is_attempted).await;
        check(row, &delivery, *wanted);
        let attempt = &delivery["history"][0];
        let kept = attempt["response"].as_str().unwrap_or_default();
        assert!(kept.len() <= 16 * 1024, "{row} keeps {} bytes", kept.len());
        match row.split(' ').next() {
            Some("R02") => {
                let note = attempt["detail"].as_str().unwrap_or_default();
                assert!(note.starts_with("body_incomplete"), "{row}: {attempt:#}");
            }
            Some("R05") => assert_eq!(kept, "(encoded, 4 bytes)", "{row}"),
            Some("R16") if matches!(attempt["status"].as_u64(), Some(301 | 308)) => {
                let hint = attempt["detail"].as_str().unwrap_or_default();
                assert!(
                    hint.contains("target_url must be changed"),
                    "{row}: {attempt:#}"
                );
            }
            Some("R33") => assert!(!attempt.to_string().contains("a=b"), "{row}: {attempt:#}"),
            _ => {}
        }
    }
    assert!(
        !world.nodes[0].log().contains("panicked"),
        "{}",
        world.nodes[0].log()
    );
}

/// Only those that are to run into it get a short time.
fn timeout_of(wanted: Wanted) -> &'static str {
    match wanted.1 {
        "timeout" => "3s",
        _ => "30s",
    }
}

impl Does {
    fn told(&self) -> String {
        let mut text = format!("{self:?}");
        text.truncate(60);
        text
    }
}

#[tokio::test]
async fn r26_to_r28_only_a_certificate_that_holds_is_spoken_to() {
    let ours = Authority::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, &ours.pem).expect("written");
    let more = [("egress.ca_file", ca_file.display().to_string())];
    let world = World::with(Kind::Embedded, 1, &more).await;
    let local = "127.0.0.1";
    // A handshake of another time, and one that never goes on.
    let alert = Does::Says(b"\x15\x03\x01\x00\x02\x02\x46".to_vec());
    let flood = Does::Floods(
        b"\x16\x03\x03\x40\x00\x0b\xff\xff\xff".to_vec(),
        [&b"\x16\x03\x03\x40\x00"[..], &[0; 0x4000]].concat(),
    );
    let tls = retried("tls");
    let mut subs = Vec::new();
    for (row, address, wanted) in [
        (
            "R26 valid",
            ours.server("localhost", NOW, 1).await,
            DELIVERED,
        ),
        (
            "R26 expired",
            ours.server("localhost", (2001, 2002), 1).await,
            tls,
        ),
        (
            "R26 not yet valid",
            ours.server("localhost", (2100, 2110), 1).await,
            tls,
        ),
        (
            "R26 wrong host",
            ours.server("other.example.com", NOW, 1).await,
            tls,
        ),
        (
            "R26 unknown authority",
            Authority::new().server("localhost", NOW, 1).await,
            tls,
        ),
        (
            "R28 for another address",
            ours.server("127.0.0.2", NOW, 1).await,
            tls,
        ),
        (
            "R28 for the address",
            ours.server(local, NOW, 1).await,
            DELIVERED,
        ),
        (
            "R27 a chain of 100",
            ours.server("other.example.com", NOW, 100).await,
            tls,
        ),
        ("R27 an old protocol", hello(alert).await, tls),
        ("R27 endless certificates", hello(flood).await, tls),
        (
            "R27 a handshake that stalls",
            hello(Does::Holds(Vec::new())).await,
            retried("timeout"),
        ),
    ] {
        let host = if row.starts_with("R28") {
            local
        } else {
            "localhost"
        };
        let url = format!("https://{host}:{}/", address.port());
        subs.push((
            row,
            subscribe(&world, &url, "20s", "payment.paid").await,
            wanted,
        ));
    }
    let event = world.publish(json!({"type": "payment.paid"})).await;
    for (row, sub, wanted) in &subs {
        let delivery = became(&world, sub, &event, is_attempted).await;
        check(row, &delivery, *wanted);
    }
}

/// Does this after the first flight of a handshake, and fails the test where there is none: what
/// is sent without encryption is a leak.
async fn hello(does: Does) -> SocketAddr {
    trap(([127, 0, 0, 1], 0).into(), move |mut stream, _| {
        let does = does.clone();
        async move {
            let first = stream.read_u8().await?;
            assert_eq!(first, 0x16, "no handshake");
            let more = match does {
                Does::Says(bytes) => bytes,
                Does::Floods(bytes, more) => {
                    stream.write_all(&bytes).await?;
                    loop {
                        stream.write_all(&more).await?;
                    }
                }
                _ => {
                    sleep(FOREVER).await;
                    Vec::new()
                }
            };
            stream.write_all(&more).await?;
            stream.shutdown().await?;
            copy(&mut stream, &mut sink()).await.map(drop)
        }
    })
    .await
}

#[tokio::test]
async fn r16_to_r19_what_a_status_means_in_the_end() {
    let world = World::start(Kind::Embedded).await;
    let delivery = json!({"retry": {"delays": ["1s", "1s", "1s"]}});
    let mut subs = Vec::new();
    for (code, reason, attempts) in [
        (400, "exhausted", 4),
        (413, "refused", 3),
        (415, "refused", 3),
        (308, "exhausted", 4),
        (410, "gone", 1),
    ] {
        let path = format!("/{code}");
        let canary = world.receiver.url("/canary");
        let answer = Answer::status(code).with_header("location", &canary);
        world.receiver.plan(&path, [answer]);
        let more = json!({"delivery": delivery});
        subs.push((
            code,
            reason,
            attempts,
            world.subscribe(&path, &["*"], more).await.id,
        ));
    }
    let event = world.publish(json!({"type": "payment.paid"})).await;
    for (code, reason, attempts, sub) in &subs {
        let delivery = became(&world, sub, &event, is_over).await;
        let told = (delivery["reason"].as_str(), errors(&delivery).len());
        assert_eq!(told, (Some(*reason), *attempts), "{code}: {delivery:#}");
    }
    assert!(
        world.receiver.requests("/canary").is_empty(),
        "a redirect was followed"
    );
    let gone = &subs[4].3;
    let path = format!("/v1/subscriptions/{gone}");
    let subscription = world.call("GET", &path, None).await.expect(200);
    assert_eq!(subscription["state"], "disabled", "{subscription:#}");
}

#[tokio::test]
async fn r11_an_endpoint_that_never_speaks_http_is_left_alone() {
    let world = World::start(Kind::Embedded).await;
    let ssh = receiver(says("SSH-2.0-OpenSSH_9.2p1\r\n")).await;
    let delivery = json!({"retry": {"delays": vec!["1s"; 8]}});
    let more = json!({"target_url": format!("http://{ssh}/"), "delivery": delivery});
    world.subscribe("ssh", &["*"], more).await;
    world.publish(json!({"type": "payment.paid"})).await;
    let open = "breaker=\"open\"";
    world
        .wait_for_metric("postrider_endpoints", open, 1.0)
        .await;
    world
        .wait_for_metric("postrider_parked_total", "cause=\"breaker\"", 1.0)
        .await;
}

#[tokio::test]
async fn r25_r30_r31_connections_are_kept_only_where_that_is_safe() {
    let world = World::start(Kind::Embedded).await;
    // A second answer behind the first: it must not answer the next request.
    let smuggled = Does::Says(
        b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nnoHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
            .to_vec(),
    );
    let r25 = receiver(smuggled).await;
    let r25 = subscribe(&world, &format!("http://{r25}/"), "30s", "payment.paid").await;
    // Closes as soon as the connection is idle, without a word.
    let r30 = receiver(Does::Says(ok(""))).await;
    let r30 = subscribe(&world, &format!("http://{r30}/"), "30s", "payment.paid").await;
    for _ in 0..5 {
        let event = world.publish(json!({"type": "payment.paid"})).await;
        let delivery = became(&world, &r25, &event, is_attempted).await;
        check("R25", &delivery, failed(500));
        let delivery = became(&world, &r30, &event, is_attempted).await;
        check("R30", &delivery, DELIVERED);
    }
    // Answered after we had gone: it comes again, under the same id.
    world.receiver.plan(
        "/late",
        [
            Answer::status(200).after(Duration::from_secs(20)),
            Answer::status(200),
        ],
    );
    let more = json!({"delivery": {"timeout": "10s", "retry": {"delays": ["1s"]}}});
    let late = world.subscribe("/late", &["appointment.*"], more).await;
    let event = world.publish(json!({"type": "appointment.created"})).await;
    let delivery = became(&world, &late.id, &event, is_over).await;
    assert_eq!(errors(&delivery), ["timeout", "ok"], "R31: {delivery:#}");
    let requests = world.receiver.requests("/late");
    assert!(
        requests.iter().all(|request| request.event_id() == event),
        "R31"
    );
}

#[tokio::test]
async fn r34_what_an_answer_repeats_of_our_secrets_is_masked() {
    let world = World::start(Kind::Embedded).await;
    // Sends back all that it was sent, in its body and in a header, with an escape sequence.
    let echo = trap(([127, 0, 0, 1], 0).into(), |mut stream, _| async move {
        let request = read_request(&mut stream).await;
        let text = String::from_utf8_lossy(&request).into_owned();
        let line = |name: &str| {
            let found = text.lines().find(|line| line.starts_with(name));
            found
                .and_then(|line| line.split_once(": "))
                .map(|(_, value)| value.to_owned())
        };
        let key = line("x-api-key").unwrap_or_default();
        let body = format!("\x1b[31m<script>{text}</script>");
        let head = format!(
            "HTTP/1.1 500 No\r\nx-echo: {key}\r\ncontent-length: {}\r\n",
            body.len()
        );
        stream
            .write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes())
            .await?;
        stream.shutdown().await
    })
    .await;
    let more = json!({
        "target_url": format!("http://{echo}/"),
        "headers": {"x-api-key": "hunter2-canary", "authorization": "Bearer canary-token-7"},
        "delivery": {"retry": "none"},
    });
    let sub = world.subscribe("echo", &["*"], more).await;
    let event = world.publish(json!({"type": "payment.paid"})).await;
    let delivery = became(&world, &sub.id, &event, is_over).await;
    let shown = delivery.to_string();
    assert!(
        shown.contains("<script>"),
        "the answer is shown: {delivery:#}"
    );
    assert!(!shown.contains("canary"), "{delivery:#}");
    let response = delivery["history"][0]["response"].to_string();
    assert!(
        !response.contains("v1,"),
        "a signature is shown: {response}"
    );
    assert!(
        !shown.contains("\\u001b"),
        "an escape sequence is shown: {delivery:#}"
    );
    let letters = world.wait_for_dead(1).await;
    assert!(
        !json!(letters).to_string().contains("canary"),
        "{letters:#?}"
    );
}

#[tokio::test]
async fn r35_a_circle_of_webhooks_ends() {
    let world = World::start(Kind::Embedded).await;
    let events = format!("{}/v1/events", world.nodes[0].api());
    let seen: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let told = seen.clone();
    // Publishes an event for each webhook, and hands its depth on.
    let relay = trap(([127, 0, 0, 1], 0).into(), move |mut stream, _| {
        let (events, told) = (events.clone(), told.clone());
        async move {
            let request = String::from_utf8_lossy(&read_request(&mut stream).await).into_owned();
            let mut lines = request.lines();
            let depth = lines.find_map(|line| line.strip_prefix("webhook-depth: "));
            let depth = depth.unwrap_or_default().to_owned();
            told.lock().expect("no thread panicked").push(depth.clone());
            let event = json!({"tenant": TENANT, "type": "payment.paid", "data": {}}).to_string();
            let published = client()
                .post(&events)
                .header("content-type", "application/json")
                .header("webhook-depth", depth)
                .body(event)
                .send();
            published.await.map_err(io::Error::other)?;
            stream.write_all(&ok("connection: close\r\n")).await
        }
    })
    .await;
    let more = json!({"target_url": format!("http://{relay}/")});
    world.subscribe("relay", &["payment.*"], more).await;
    world.publish(json!({"type": "payment.paid"})).await;
    let letters = world.wait_for_dead(1).await;
    assert_eq!(letters[0]["reason"], "refused", "{letters:#?}");
    assert_eq!(letters[0]["attempts"], 0, "{letters:#?}");
    let seen = seen.lock().expect("no thread panicked").clone();
    assert_eq!(seen, ["1", "2", "3", "4", "5", "6", "7", "8"]);
}
