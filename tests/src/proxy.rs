//! The fault proxy does to a connection what its words say, and nothing else when it is healed.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::proxy::{Proxy, Toxics};

/// A server that sends back what it gets, and a proxy before it.
async fn echo() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reads, mut writes) = stream.split();
                drop(tokio::io::copy(&mut reads, &mut writes).await);
            });
        }
    });
    Proxy::before(port).await
}

async fn connect(proxy: &Proxy) -> TcpStream {
    let connected = TcpStream::connect(("127.0.0.1", proxy.port())).await;
    connected.expect("the proxy listens")
}

/// Sends `text` and reads as much back.
async fn said(stream: &mut TcpStream, text: &str) -> std::io::Result<String> {
    stream.write_all(text.as_bytes()).await?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await?;
    Ok(String::from_utf8_lossy(&back).into_owned())
}

/// Whether nothing at all comes for a moment.
async fn is_silent(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    let read = stream.read(&mut byte);
    tokio::time::timeout(Duration::from_millis(300), read)
        .await
        .is_err()
}

/// How the connection ends: `Ok` in good order, `Err` by a reset.
async fn end(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut rest = Vec::new();
    let read = stream.read_to_end(&mut rest);
    let read = tokio::time::timeout(Duration::from_secs(30), read).await;
    read.expect("the connection ends").map(|_| ())
}

#[tokio::test]
async fn without_toxics_everything_comes_through_whole() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    let long = "0123456789".repeat(20_000);
    let (mut reads, mut writes) = stream.split();
    let sent = writes.write_all(long.as_bytes());
    let mut back = vec![0; long.len()];
    let (sent, read) = tokio::join!(sent, reads.read_exact(&mut back));
    sent.expect("sent");
    read.expect("read");
    assert_eq!(back, long.as_bytes());
    stream.shutdown().await.expect("an open socket");
    end(&mut stream).await.expect("an end is passed on");
}

#[tokio::test]
async fn latency_puts_every_piece_off() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    let late = Duration::from_millis(200);
    proxy.to_client(Toxics {
        latency: Some(late),
        ..Toxics::default()
    });
    let began = Instant::now();
    assert_eq!(said(&mut stream, "hello").await.expect("said"), "hello");
    assert!(began.elapsed() >= late);
}

#[tokio::test]
async fn bandwidth_and_slices_take_their_time() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    proxy.to_server(Toxics {
        bandwidth: Some(10_000),
        ..Toxics::default()
    });
    let began = Instant::now();
    let text = "x".repeat(2_000);
    assert_eq!(said(&mut stream, &text).await.expect("said"), text);
    proxy.to_server(Toxics {
        slicer: Some((100, Duration::from_millis(10))),
        ..Toxics::default()
    });
    assert_eq!(said(&mut stream, &text).await.expect("said"), text);
    // The last piece is there before its time is over.
    assert!(began.elapsed() >= Duration::from_millis(180));
}

#[tokio::test]
async fn what_is_swallowed_never_comes_and_its_connection_stays_silent() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    proxy.swallow();
    stream.write_all(b"lost").await.expect("the socket is open");
    assert!(is_silent(&mut stream).await);
    proxy.heal();
    stream.write_all(b"late").await.expect("the socket is open");
    assert!(is_silent(&mut stream).await);
    let mut fresh = connect(&proxy).await;
    assert_eq!(said(&mut fresh, "hello").await.expect("healed"), "hello");
}

#[tokio::test]
async fn a_limit_drops_what_is_over_it_and_closes() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    assert_eq!(said(&mut stream, "before").await.expect("said"), "before");
    proxy.to_client(Toxics {
        limit_data: Some(3),
        ..Toxics::default()
    });
    stream
        .write_all(b"hello")
        .await
        .expect("the socket is open");
    let mut rest = String::new();
    let read = stream.read_to_string(&mut rest).await;
    read.expect("closed in good order");
    assert_eq!(rest, "hel");
}

#[tokio::test]
async fn a_reset_peer_is_told_so() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    assert_eq!(said(&mut stream, "hello").await.expect("said"), "hello");
    proxy.reset_peers();
    let error = end(&mut stream).await.expect_err("a reset, not an end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn while_it_is_down_nobody_listens() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    assert_eq!(said(&mut stream, "hello").await.expect("said"), "hello");
    proxy.down();
    end(&mut stream).await.expect("closed in good order");
    let refused = TcpStream::connect(("127.0.0.1", proxy.port())).await;
    refused.expect_err("nobody listens");
    proxy.up();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", proxy.port())).await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(said(&mut stream, "again").await.expect("up"), "again");
}

#[tokio::test]
async fn a_slow_close_passes_the_end_on_later() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    assert_eq!(said(&mut stream, "hello").await.expect("said"), "hello");
    let late = Duration::from_millis(200);
    proxy.to_client(Toxics {
        slow_close: Some(late),
        ..Toxics::default()
    });
    let began = Instant::now();
    stream.shutdown().await.expect("an open socket");
    end(&mut stream).await.expect("closed in good order");
    assert!(began.elapsed() >= late);
}
