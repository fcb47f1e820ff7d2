//! The client against a server that misbehaves, on loopback. The ids are those of the hostile-world
//! list: R for receivers, D for names, U for literals.

use std::net::SocketAddr;

use bytesize::ByteSize;
use event::reason::AttemptError;
use http::HeaderValue;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};

use super::*;

/// A server of one behaviour, told what each connection's request was.
struct Hostile {
    address: SocketAddr,
    requests: mpsc::UnboundedReceiver<String>,
    task: JoinHandle<()>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves each connection with `behave` after its first request has been read.
async fn serve<F, Fut>(behave: F) -> Hostile
where
    F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let (told, requests) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let request = read_request(&mut stream).await;
            if told.send(request).is_err() {
                return;
            }
            // A client that hangs up on a hostile answer is what is hoped for.
            let behaving = behave(stream);
            tokio::spawn(async move { drop(behaving.await) });
        }
    });
    Hostile {
        address,
        requests,
        task,
    }
}

/// Head and body of one request, by its `content-length`.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .and_then(|length| length.parse().ok())
                .unwrap_or(0);
            if body.len() >= length {
                return text;
            }
        }
        match stream.read(&mut chunk).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            _ => return text,
        }
    }
}

/// Answers with these bytes and closes.
async fn answering(answer: impl Into<Vec<u8>>) -> Hostile {
    let answer = Arc::new(answer.into());
    serve(move |mut stream| {
        let answer = answer.clone();
        async move { stream.write_all(&answer).await }
    })
    .await
}

impl Client {
    /// One attempt where there is room for it.
    async fn attempt(&self, post: Post) -> Outcome {
        self.post(post).await.expect("a place at the address")
    }
}

fn client() -> Client {
    client_with(&Settings {
        response_timeout: Duration::from_millis(200),
        ..Settings::default()
    })
}

fn client_with(settings: &Settings) -> Client {
    let allow = vec!["127.0.0.0/8".parse().expect("a network")];
    let egress = Egress {
        allow,
        require_https: false,
        ..Egress::default()
    };
    Client::new(settings, &egress).expect("a client")
}

fn to(url: &str) -> Post {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    Post {
        url: url.parse().expect("a url"),
        headers,
        body: Bytes::from_static(b"{\"a\":1}"),
        timeout: Duration::from_secs(20),
        keep: Keep::All,
    }
}

async fn post(server: &Hostile) -> Outcome {
    client()
        .attempt(to(&format!("http://{}/hook", server.address)))
        .await
}

/// For behaviours that only the deadline ends.
async fn post_briefly(server: &Hostile) -> Outcome {
    let url = format!("http://{}/hook", server.address);
    client()
        .attempt(Post {
            timeout: Duration::from_millis(300),
            ..to(&url)
        })
        .await
}

#[track_caller]
fn check(outcome: &Outcome, status: Option<u16>, error: Option<AttemptError>) {
    assert_eq!(
        (outcome.status, outcome.error),
        (status, error),
        "{outcome:?}"
    );
}

const FOREVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn r01_a_2xx_is_success_and_the_request_is_what_was_asked() {
    let mut server = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    check(&post(&server).await, Some(204), None);
    let request = server.requests.recv().await.expect("a request");
    let mut lines: Vec<&str> = request.lines().collect();
    lines[1..6].sort_unstable();
    let user_agent = format!("user-agent: {USER_AGENT}");
    let host = format!("host: {}", server.address);
    assert_eq!(
        lines,
        [
            "POST /hook HTTP/1.1",
            "accept: */*",
            "content-length: 7",
            "content-type: application/json",
            &host,
            &user_agent,
            "",
            "{\"a\":1}"
        ]
    );
}

#[tokio::test]
async fn r02_a_body_that_breaks_off_after_a_2xx_changes_nothing() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nbad",
    ] {
        check(&post(&answering(answer).await).await, Some(200), None);
    }
}

#[tokio::test]
async fn r03_only_the_first_16_kib_of_a_body_are_read() {
    let server = serve(|mut stream| async move {
        stream
            .write_all(b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        let mut chunk = b"1000\r\n".to_vec();
        chunk.extend([b'x'; 0x1000]);
        chunk.extend(b"\r\n");
        // Until the client hangs up.
        loop {
            stream.write_all(&chunk).await?;
        }
    })
    .await;
    let settings = Settings {
        response_timeout: FOREVER,
        ..Settings::default()
    };
    let outcome = client_with(&settings)
        .attempt(to(&format!("http://{}/", server.address)))
        .await;
    check(&outcome, Some(500), Some(AttemptError::Status));
    assert_eq!(outcome.response.map(|text| text.len()), Some(1024));
}

#[tokio::test]
async fn r04_a_body_that_trickles_is_left_after_its_time_and_the_2xx_stands() {
    let server = serve(|mut stream| async move {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        tokio::time::sleep(FOREVER).await;
        Ok(())
    })
    .await;
    check(&post(&server).await, Some(200), None);
    // The attempt's own deadline ends it just so.
    let settings = Settings {
        response_timeout: FOREVER,
        ..Settings::default()
    };
    let url = format!("http://{}/", server.address);
    let post = Post {
        timeout: Duration::from_millis(300),
        ..to(&url)
    };
    check(&client_with(&settings).attempt(post).await, Some(200), None);
}

#[tokio::test]
async fn r05_an_encoded_body_is_not_decoded() {
    let answer =
        "HTTP/1.1 500 No\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x0b\x08\x00";
    let outcome = post(&answering(answer).await).await;
    assert_eq!(outcome.response.as_deref(), Some("(encoded, 4 bytes)"));
}

#[tokio::test]
async fn r06_r07_no_answer_in_time_is_a_timeout() {
    let mute = serve(|stream| async move {
        tokio::time::sleep(FOREVER).await;
        drop(stream);
        Ok(())
    })
    .await;
    let outcome = post_briefly(&mute).await;
    check(&outcome, None, Some(AttemptError::Timeout));
    assert!(
        outcome.took >= Duration::from_millis(300),
        "{:?}",
        outcome.took
    );
    let slow = serve(|mut stream| async move {
        for byte in b"HTTP/1.1 200 OK\r\nx-slow: "
            .iter()
            .chain(std::iter::repeat(&b'a'))
        {
            stream.write_all(&[*byte]).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    })
    .await;
    check(
        &post_briefly(&slow).await,
        None,
        Some(AttemptError::Timeout),
    );
}

#[tokio::test]
async fn r08_a_refused_connection_and_a_broken_one_have_their_words() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = closed.local_addr().expect("an address");
    drop(closed);
    let outcome = client().attempt(to(&format!("http://{address}/"))).await;
    check(&outcome, None, Some(AttemptError::Connect));
    assert_eq!(outcome.detail, "the connection was refused");

    check(
        &post(&answering("").await).await,
        None,
        Some(AttemptError::Reset),
    );
    check(
        &post(&answering("HTTP/1.1 20").await).await,
        None,
        Some(AttemptError::Reset),
    );
    let reset = serve(|stream| async move { stream.set_zero_linger() }).await;
    check(&post(&reset).await, None, Some(AttemptError::Reset));
}

#[tokio::test]
async fn r09_r10_a_header_block_that_is_too_large_is_refused() {
    let long = format!("HTTP/1.1 200 OK\r\nx-a: {}\r\n\r\n", "a".repeat(200_000));
    check(
        &post(&answering(long).await).await,
        None,
        Some(AttemptError::HeadersTooLarge),
    );
    for (bytes, error) in [
        (32_700, None),
        (32_800, Some(AttemptError::HeadersTooLarge)),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\nx-a: {}\r\n\r\n", "a".repeat(bytes));
        check(
            &post(&answering(head).await).await,
            error.is_none().then_some(200),
            error,
        );
    }
    let longer = format!("HTTP/1.1 200 OK\r\nx-a: {}\r\n\r\n", "a".repeat(1_000_000));
    check(
        &post(&answering(longer).await).await,
        None,
        Some(AttemptError::HeadersTooLarge),
    );
    let many: String = (0..150).map(|n| format!("x-{n}: 1\r\n")).collect();
    let many = format!("HTTP/1.1 200 OK\r\n{many}\r\n");
    check(
        &post(&answering(many).await).await,
        None,
        Some(AttemptError::HeadersTooLarge),
    );
}

#[tokio::test]
async fn r11_r14_what_is_not_http_1_1_is_said_so() {
    for banner in [
        "SSH-2.0-OpenSSH_9.2p1\r\n",
        "-ERR unknown command 'POST'\r\n",
        "\x15\x03\x01\x00\x02\x02\x46",
        "HTTP/2 200\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "<html>hello</html>\r\n\r\n",
        "HTTP/1.1 1000 No\r\n\r\n",
        "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
    ] {
        let outcome = post(&answering(banner).await).await;
        check(&outcome, None, Some(AttemptError::NotHttp));
    }
}

#[tokio::test]
async fn r12_interim_answers_are_skipped_within_the_deadline() {
    let mut answer = "HTTP/1.1 100 Continue\r\n\r\n".repeat(500);
    answer.push_str("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    check(&post(&answering(answer).await).await, Some(200), None);
    let endless = serve(|mut stream| async move {
        loop {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    check(
        &post_briefly(&endless).await,
        None,
        Some(AttemptError::Timeout),
    );
}

#[tokio::test]
async fn r13_r15_odd_statuses_are_failures() {
    for status in [101, 600, 999] {
        let answer = format!("HTTP/1.1 {status} Odd\r\n\r\n");
        let outcome = post(&answering(answer).await).await;
        check(&outcome, Some(status), Some(AttemptError::Status));
    }
}

#[tokio::test]
async fn r16_r17_no_redirect_is_followed() {
    let mut canary = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    for status in [300, 301, 302, 303, 304, 307, 308] {
        let answer = format!(
            "HTTP/1.1 {status} Moved\r\nlocation: http://{}/\r\nrefresh: 0; url=http://{}/\r\ncontent-length: 0\r\n\r\n",
            canary.address, canary.address
        );
        let outcome = post(&answering(answer).await).await;
        check(
            &outcome,
            Some(status),
            Some(AttemptError::RedirectNotFollowed),
        );
    }
    assert!(canary.requests.try_recv().is_err(), "the canary was called");
}

#[tokio::test]
async fn r20_r21_a_retry_after_is_handed_on_as_sent_unless_it_is_absurdly_long() {
    let with = |value: String| async move {
        let answer =
            format!("HTTP/1.1 429 Slow\r\nretry-after: {value}\r\ncontent-length: 4\r\n\r\nslow");
        post(&answering(answer).await).await
    };
    let outcome = with("120".into()).await;
    check(&outcome, Some(429), Some(AttemptError::Status));
    assert_eq!(outcome.retry_after.as_deref(), Some("120"));
    assert_eq!(outcome.response.as_deref(), Some("slow"));
    assert_eq!(with("9".repeat(65)).await.retry_after, None);
    assert_eq!(with("é".into()).await.retry_after, None);
}

#[tokio::test]
async fn r23_r24_ambiguous_framing_is_refused_and_odd_values_are_borne() {
    let two = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab";
    check(
        &post(&answering(two).await).await,
        None,
        Some(AttemptError::NotHttp),
    );
    let odd = b"HTTP/1.1 200 OK\nx-odd: \xff\xfe\ncontent-length: 0\n\n".to_vec();
    check(&post(&answering(odd).await).await, Some(200), None);
}

#[tokio::test]
async fn r25_bytes_after_the_body_do_not_answer_the_next_request() {
    let server = answering(
        "HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nnoHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let client = client();
    for _ in 0..3 {
        let outcome = client
            .attempt(to(&format!("http://{}/", server.address)))
            .await;
        check(&outcome, Some(500), Some(AttemptError::Status));
    }
}

#[tokio::test]
async fn r30_a_connection_is_kept_for_the_next_delivery_and_a_closed_one_replaced() {
    let mut server = serve(|mut stream| async move {
        for _ in 0..3 {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await?;
            read_request(&mut stream).await;
        }
        Ok(())
    })
    .await;
    let client = client();
    let url = format!("http://{}/", server.address);
    for _ in 0..3 {
        check(&client.attempt(to(&url)).await, Some(200), None);
    }
    assert!(server.requests.recv().await.is_some());
    assert!(
        server.requests.try_recv().is_err(),
        "a second connection was made"
    );
}

#[tokio::test]
async fn r32_a_full_answer_before_the_body_is_read_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        stream.read_u8().await?;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        // Reading on keeps the close from becoming a reset that overtakes the answer.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    });
    let body = Bytes::from(vec![b'x'; 200 * 1024]);
    let outcome = client()
        .attempt(Post {
            body,
            ..to(&format!("http://{address}/"))
        })
        .await;
    check(&outcome, Some(200), None);
    server.abort();
}

#[tokio::test]
async fn r37_a_receiver_that_does_not_read_is_left_at_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move {
        let connection = listener.accept().await;
        tokio::time::sleep(FOREVER).await;
        connection.map(drop)
    });
    // More than the socket buffers of both ends hold.
    let body = Bytes::from(vec![b'x'; 64 * 1024 * 1024]);
    let post = Post {
        body,
        timeout: Duration::from_millis(300),
        ..to(&format!("http://{address}/"))
    };
    check(
        &client().attempt(post).await,
        None,
        Some(AttemptError::Timeout),
    );
    server.abort();
}

#[tokio::test]
async fn a_literal_that_is_not_permitted_is_never_dialled() {
    let mut server = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let guarded = Client::new(&Settings::default(), &Egress::default()).expect("a client");
    let port = server.address.port();
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "[::1]",
    ] {
        let outcome = guarded.attempt(to(&format!("http://{host}:{port}/"))).await;
        check(&outcome, None, Some(AttemptError::TargetNotAllowed));
        assert!(!outcome.detail.contains("127"), "{}", outcome.detail);
    }
    assert!(server.requests.try_recv().is_err(), "it was dialled");
}

#[tokio::test]
async fn u01_to_u24_every_literal_is_judged_where_it_would_be_dialled() {
    let mut server = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let guarded = Client::new(&Settings::default(), &Egress::default()).expect("a client");
    let port = server.address.port();
    for host in [
        "0x7f.1",
        "017700000001",
        "127.0.0.1.",
        "①②⑦.⓪.⓪.①",
        "%31%32%37.0.0.1",
        "169.254.169.254",
        "10.0.0.1",
        "100.64.0.1",
        "255.255.255.255",
        "[::]",
        "[::ffff:0.0.0.0]",
        "[::127.0.0.1]",
        "[::ffff:0:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::a9fe:a9fe]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "localhost",
        "LOCALHOST.",
    ] {
        let outcome = guarded.attempt(to(&format!("http://{host}:{port}/"))).await;
        check(&outcome, None, Some(AttemptError::TargetNotAllowed));
    }
    assert!(server.requests.try_recv().is_err(), "it was dialled");
}

#[tokio::test]
async fn d11_a_name_that_resolves_to_what_is_not_permitted_is_never_dialled() {
    let mut server = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let guarded = Client::new(&Settings::default(), &Egress::default()).expect("a client");
    let url = format!("http://localhost:{}/", server.address.port());
    let outcome = guarded.attempt(to(&url)).await;
    check(&outcome, None, Some(AttemptError::TargetNotAllowed));
    assert!(server.requests.try_recv().is_err(), "it was dialled");
}

#[tokio::test]
async fn d06_a_name_that_does_not_exist_is_a_dns_error() {
    let outcome = client().attempt(to("http://no-such-name.invalid/")).await;
    check(&outcome, None, Some(AttemptError::Dns));
}

/// A server that speaks TLS with a certificate that only itself vouches for, and answers 200.
async fn tls_server() -> (String, rcgen::CertifiedKey<rcgen::KeyPair>, JoinHandle<()>) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".into()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der())
        .expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a server");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("https://{}/", listener.local_addr().expect("an address"));
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_ok() {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                drop(stream.write_all(answer).await);
            }
        }
    });
    (url, made, server)
}

/// A client that trusts the authority of this PEM.
fn trusting(pem: &str) -> Client {
    let folder = tempfile::tempdir().expect("a folder");
    let ca_file = folder.path().join("ca.pem");
    fs::write(&ca_file, pem).expect("written");
    let egress = Egress {
        allow: vec!["127.0.0.0/8".parse().expect("a network")],
        require_https: true,
        ca_file: Some(ca_file),
        ..Egress::default()
    };
    Client::new(&Settings::default(), &egress).expect("a client")
}

#[tokio::test]
async fn r26_a_certificate_nobody_vouches_for_is_a_tls_error_and_a_known_one_is_not() {
    let (url, made, server) = tls_server().await;
    check(
        &client().attempt(to(&url)).await,
        None,
        Some(AttemptError::Tls),
    );

    let trusting = trusting(&made.cert.pem());
    check(&trusting.attempt(to(&url)).await, Some(200), None);
    server.abort();

    let folder = tempfile::tempdir().expect("a folder");
    let ca_file = folder.path().join("ca.pem");
    fs::write(&ca_file, "no certificate").expect("written");
    let egress = Egress {
        ca_file: Some(ca_file),
        ..Egress::default()
    };
    let refused = Client::new(&Settings::default(), &egress).expect_err("nothing to trust");
    assert!(
        refused.to_string().contains("no certificate in it"),
        "{refused}"
    );
}

#[tokio::test]
async fn tls_to_a_plain_server_is_a_tls_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    });
    let outcome = client().attempt(to(&format!("https://{address}/"))).await;
    check(&outcome, None, Some(AttemptError::Tls));
    server.abort();
}

#[tokio::test]
async fn nothing_of_a_response_is_kept_beyond_its_bound() {
    let body = "x".repeat(1000);
    let answer = format!("HTTP/1.1 500 No\r\ncontent-length: 1000\r\n\r\n{body}");
    let server = answering(answer).await;
    let settings = Settings {
        response_max: ByteSize::b(10),
        ..Settings::default()
    };
    let outcome = client_with(&settings)
        .attempt(to(&format!("http://{}/", server.address)))
        .await;
    assert_eq!(outcome.response.as_deref(), Some("xxxxxxxxxx"));
}

/// Which parts of an attempt took time, in the order dns, connect, tls, first byte.
fn parts(outcome: &Outcome) -> [bool; 4] {
    let timing = outcome.seen.timing;
    [timing.dns, timing.connect, timing.tls, timing.first_byte].map(|part| part.is_some())
}

#[tokio::test]
async fn the_parts_that_happened_are_timed_and_the_others_are_not() {
    let server = serve(|mut stream| async move {
        loop {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer).await?;
            if read_request(&mut stream).await.is_empty() {
                return Ok(());
            }
        }
    })
    .await;
    let loopback = ["127.0.0.0/8", "::1/128"];
    let egress = Egress {
        allow: loopback.map(|net| net.parse().expect("a network")).into(),
        require_https: false,
        ..Egress::default()
    };
    let client = Client::new(&Settings::default(), &egress).expect("a client");
    let port = server.address.port();
    let [name, literal] = ["localhost", "127.0.0.1"].map(|host| format!("http://{host}:{port}/"));
    for (url, expected) in [
        (&name, [true, true, false, true]),
        (&name, [false, false, false, true]),
        (&literal, [false, true, false, true]),
        (&literal, [false, false, false, true]),
    ] {
        let outcome = client.attempt(to(url)).await;
        check(&outcome, Some(200), None);
        assert_eq!(parts(&outcome), expected, "{url}");
        let timing = outcome.seen.timing;
        let sum: u64 = [timing.dns, timing.connect].into_iter().flatten().sum();
        assert!(sum <= timing.first_byte.unwrap_or_default(), "{timing:?}");
        assert!(
            timing.first_byte.unwrap_or_default() <= timing.total,
            "{timing:?}"
        );
    }
}

#[tokio::test]
async fn the_handshake_is_timed_apart_from_the_connection() {
    let (url, made, server) = tls_server().await;
    let outcome = trusting(&made.cert.pem()).attempt(to(&url)).await;
    check(&outcome, Some(200), None);
    assert_eq!(parts(&outcome), [false, true, true, true]);
    let broken = client().attempt(to(&url)).await;
    check(&broken, None, Some(AttemptError::Tls));
    assert_eq!(parts(&broken), [false, true, false, false]);
    server.abort();
    let refused = client().attempt(to("http://127.0.0.1:1/")).await;
    check(&refused, None, Some(AttemptError::Connect));
    assert_eq!(parts(&refused), [false; 4]);
}

#[tokio::test]
async fn for_the_log_a_success_keeps_its_headers_and_16_kib_of_its_body() {
    let body = "x".repeat(20_000);
    let answer = format!("HTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 20000\r\n\r\n{body}");
    let server = answering(answer).await;
    let url = format!("http://{}/", server.address);
    for (keep, headers, bytes) in [
        (Keep::All, 2, Some(16 * 1024)),
        (Keep::Headers, 2, None),
        (Keep::Nothing, 0, None),
    ] {
        let outcome = client().attempt(Post { keep, ..to(&url) }).await;
        check(&outcome, Some(200), None);
        assert_eq!(outcome.seen.headers.len(), headers, "{keep:?}");
        assert_eq!(outcome.seen.body.map(|body| body.len()), bytes, "{keep:?}");
        assert_eq!(outcome.response, None, "it does not travel");
    }
}

#[tokio::test]
async fn a_document_is_whole_or_a_failure() {
    let get = |server: &Hostile| Get {
        url: format!("http://{}/", server.address)
            .parse()
            .expect("a url"),
        headers: HeaderMap::new(),
        timeout: Duration::from_secs(20),
        bytes_max: 4,
    };
    let server = answering("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n1234").await;
    let (outcome, body) = client().get(get(&server)).await;
    check(&outcome, Some(200), None);
    assert_eq!(body, b"1234");
    for (answer, status, error) in [
        (
            "200 OK\r\ncontent-length: 5\r\n\r\n12345",
            None,
            AttemptError::NotHttp,
        ),
        (
            "200 OK\r\ncontent-length: 4\r\n\r\n12",
            None,
            AttemptError::Reset,
        ),
        (
            "404 No\r\ncontent-length: 2\r\n\r\n{}",
            Some(404),
            AttemptError::Status,
        ),
        (
            "302 Found\r\nlocation: /b\r\ncontent-length: 0\r\n\r\n",
            Some(302),
            AttemptError::RedirectNotFollowed,
        ),
    ] {
        let server = answering(format!("HTTP/1.1 {answer}")).await;
        let (outcome, body) = client().get(get(&server)).await;
        check(&outcome, status, Some(error));
        assert_eq!(body, b"", "{answer}");
    }
}
