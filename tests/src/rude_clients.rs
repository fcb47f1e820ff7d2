//! T15: who is slow, huge or talks nonsense is cut off within the server's own bounds, and nobody
//! else notices. Raw sockets: no client library would send such things.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::support::world::{Kind, World};

/// Far more than any bound of the server's: a test that comes to it has hung.
const PATIENCE: Duration = Duration::from_secs(60);
const LIST: &str = "GET /v1/subscriptions HTTP/1.1\r\nhost: x\r\n";

async fn open(world: &World) -> TcpStream {
    from(world, "127.0.0.1").await
}

/// A connection from an address of one's own.
async fn from(world: &World, source: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    let source = SocketAddr::new(source.parse().expect("an address"), 0);
    socket.bind(source).expect("an address of loopback");
    let target = world.nodes[0].api().replace("http://", "");
    let target = target.parse().expect("the API's address");
    socket.connect(target).await.expect("the API listens")
}

/// All that comes until the server ends the connection, which it must.
async fn until_closed(stream: &mut TcpStream) -> String {
    let mut told = Vec::new();
    let read = async {
        let mut chunk = [0; 4096];
        // A reset is an end, too: the server need not read what it does not want.
        while let Ok(1..) = stream.read(&mut chunk).await.inspect(|n| {
            told.extend_from_slice(&chunk[..*n]);
        }) {}
    };
    timeout(PATIENCE, read)
        .await
        .expect("the server ends the connection");
    String::from_utf8_lossy(&told).into_owned()
}

/// That somebody else is served.
async fn others_are_served(world: &World) {
    world
        .call("GET", "/v1/subscriptions", None)
        .await
        .expect(200);
}

#[tokio::test]
async fn t15_headers_that_drip_are_cut_off_while_others_are_served() {
    let world = World::start(Kind::Embedded).await;
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut stream = open(&world).await;
        stream.write_all(LIST.as_bytes()).await.expect("sent");
        slow.push(stream);
    }
    let drip = slow.into_iter().map(|mut stream| async move {
        // One more byte each half second, for ever: only the server ends this.
        let dripping = async {
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        timeout(PATIENCE, dripping)
            .await
            .expect("the server hangs up");
    });
    let dripping = futures_util::future::join_all(drip);
    let asking = async {
        for _ in 0..20 {
            others_are_served(&world).await;
        }
    };
    tokio::join!(dripping, asking);
    others_are_served(&world).await;
}

#[tokio::test]
async fn t15_a_body_that_drips_is_408() {
    let world = World::start(Kind::Embedded).await;
    let mut stream = open(&world).await;
    let head = "POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 100000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let (mut reading, mut writing) = stream.into_split();
    let dripping = async {
        while writing.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let mut answer = vec![0; 4096];
    let n = tokio::select! {
        n = timeout(PATIENCE, reading.read(&mut answer)) => n.expect("an answer").expect("told"),
        () = dripping => panic!("hung up without a word"),
    };
    let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("body_timeout"), "{answer}");
    others_are_served(&world).await;
}

#[tokio::test]
async fn t15_one_address_cannot_take_every_connection() {
    let more = [
        ("api.connections_max", "60".to_owned()),
        ("api.connections_per_client_max", "40".to_owned()),
    ];
    let world = World::with(Kind::Embedded, 1, &more).await;
    let mut held = Vec::new();
    for _ in 0..40 {
        let mut stream = from(&world, "127.0.0.9").await;
        let asked = format!("{LIST}\r\n");
        stream.write_all(asked.as_bytes()).await.expect("sent");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
        held.push(stream);
    }
    // One more is not kept waiting: it is closed without a word.
    let mut more = from(&world, "127.0.0.9").await;
    drop(more.write_all(format!("{LIST}\r\n").as_bytes()).await);
    assert_eq!(until_closed(&mut more).await, "");
    // Another address is served, and when one goes there is room for one.
    others_are_served(&world).await;
    held.pop();
    loop {
        let mut next = from(&world, "127.0.0.9").await;
        drop(
            next.write_all(format!("{LIST}connection: close\r\n\r\n").as_bytes())
                .await,
        );
        if until_closed(&mut next).await.starts_with("HTTP/1.1 200") {
            break;
        }
    }
}

#[tokio::test]
async fn t15_more_connections_than_there_is_room_for_come_and_go() {
    let world = World::with(
        Kind::Embedded,
        1,
        &[("api.connections_max", "50".to_owned())],
    )
    .await;
    let mut held = Vec::new();
    for n in 0..200 {
        held.push(from(&world, &format!("127.0.1.{}", n % 8 + 1)).await);
    }
    // They say nothing, so that their time for headers runs out, batch by batch, and the room is
    // another's again.
    let ask = world.call("GET", "/v1/subscriptions", None);
    timeout(2 * PATIENCE, ask)
        .await
        .expect("served in the end")
        .expect(200);
}

/// What a request that no client would make is answered with, before the connection ends.
struct Rude {
    name: &'static str,
    sent: Vec<u8>,
    /// The start of the answer; empty where the connection may end without one.
    told: &'static str,
}

fn rude() -> Vec<Rude> {
    let mut rude = Vec::new();
    let mut add = |name, sent: &[u8], told| {
        let sent = sent.to_owned();
        rude.push(Rude { name, sent, told });
    };
    let close = "connection: close\r\n\r\n";
    let line = format!("{LIST}x: {}\r\n{close}", "a".repeat(1024 * 1024));
    add("a header of 1 MiB", line.as_bytes(), "HTTP/1.1 431 ");
    let many = format!("{LIST}{}{close}", "x: y\r\n".repeat(5_000));
    add("5000 headers", many.as_bytes(), "HTTP/1.1 431 ");
    let path = format!(
        "GET /{} HTTP/1.1\r\nhost: x\r\n{close}",
        "a".repeat(100_000)
    );
    add("a path of 100 kB", path.as_bytes(), "HTTP/1.1 431 ");
    add(
        "the preface of HTTP/2",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "",
    );
    add(
        "a TLS hello",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "HTTP/1.1 400 ",
    );
    add("binary", &[0xff; 64], "HTTP/1.1 400 ");
    add(
        "no host",
        b"GET /v1/subscriptions HTTP/9.9\r\n\r\n",
        "HTTP/1.1 400 ",
    );
    let folded = format!("{LIST}x: a\r\n b: c\r\n{close}");
    add("a folded header", folded.as_bytes(), "HTTP/1.1 400 ");
    let post = "POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    for (name, chunks) in [
        ("a chunk without a size", "zz\r\n{}\r\n0\r\n\r\n"),
        ("a chunk of 2^64", "fffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
        ("a chunk of less than it says", "1\r\n{}\r\n0\r\n\r\n"),
        (
            "endless extensions",
            &format!("2;{}\r\n", "a".repeat(100_000)),
        ),
    ] {
        let sent = format!("{post}transfer-encoding: chunked\r\n{close}{chunks}");
        add(name, sent.as_bytes(), "HTTP/1.1 400 ");
    }
    let lengths = format!("{post}content-length: 2\r\ncontent-length: 3\r\n{close}{{}}");
    add("two lengths", lengths.as_bytes(), "HTTP/1.1 400 ");
    let negative = format!("{post}content-length: -1\r\n{close}{{}}");
    add("a negative length", negative.as_bytes(), "HTTP/1.1 400 ");
    // Whichever holds, what follows is not taken for a request of its own.
    let smuggled = format!(
        "{post}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /docs HTTP/1.1\r\n\r\n"
    );
    add("a length and chunks", smuggled.as_bytes(), "");
    let form = "POST /v1/subscriptions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let huge = format!(
        "{form}content-length: 300000\r\n{close}{}",
        " ".repeat(300_000)
    );
    add("a subscription of 300 kB", huge.as_bytes(), "HTTP/1.1 413 ");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let length = deep.len();
    let deep = format!("{form}content-length: {length}\r\n{close}{deep}");
    add("a subscription 100 000 deep", deep.as_bytes(), "HTTP/1.1 4");
    let deep = format!("{{\"filter\":{}1{}}}", "[".repeat(1_000), "]".repeat(1_000));
    let length = deep.len();
    let deep = format!("{form}content-length: {length}\r\n{close}{deep}");
    add("a subscription 1000 deep", deep.as_bytes(), "HTTP/1.1 4");
    rude
}

#[tokio::test]
async fn t15_nonsense_is_refused_and_the_next_is_served() {
    let world = World::start(Kind::Embedded).await;
    for Rude { name, sent, told } in rude() {
        let mut stream = open(&world).await;
        // The server may have heard enough before all is sent.
        drop(stream.write_all(&sent).await);
        // What is taken as two requests leaves a connection that waits for a third.
        if name == "a length and chunks" {
            drop(stream.shutdown().await);
        }
        let answer = until_closed(&mut stream).await;
        assert!(answer.starts_with(told), "{name}: {answer}");
        let answers = answer.matches("HTTP/1.1 ").count();
        assert!(answers <= 1, "{name}: {answers} answers: {answer}");
        assert!(!answer.contains("HTTP/1.1 2"), "{name}: {answer}");
        others_are_served(&world).await;
    }
}

#[tokio::test]
async fn t15_pipelined_requests_are_answered_each_and_in_order() {
    let world = World::start(Kind::Embedded).await;
    let mut stream = open(&world).await;
    let mut sent = String::new();
    for n in 0..200 {
        sent.push_str(&format!("{LIST}x-request-id: number-{n}\r\n\r\n"));
    }
    sent.push_str(&format!(
        "{LIST}x-request-id: last\r\nconnection: close\r\n\r\n"
    ));
    stream.write_all(sent.as_bytes()).await.expect("sent");
    let answers = until_closed(&mut stream).await;
    let ids: Vec<&str> = answers
        .lines()
        .filter_map(|line| line.strip_prefix("x-request-id: "))
        .collect();
    assert_eq!(ids.len(), 201, "{answers}");
    for (n, id) in ids[..200].iter().enumerate() {
        assert_eq!(*id, format!("number-{n}"));
    }
    assert_eq!(ids[200], "last");
    let list: Value = world
        .call("GET", "/v1/subscriptions", None)
        .await
        .expect(200);
    assert_eq!(list["items"], Value::Array(Vec::new()));
}
