use axum::{
    Router,
    response::IntoResponse,
    routing::{get, post},
};
use http::{HeaderValue, Request};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;

async fn json_of(response: axum::response::Response) -> Value {
    let bytes = body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn a_problem_has_the_shape_of_rfc_9457() {
    let problem = Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "invalid_event",
        "two faults",
    )
    .with_errors([
        ("/id".into(), "missing".into()),
        ("/type".into(), "empty".into()),
    ]);
    let response = problem.into_response();
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        "application/problem+json"
    );
    assert_eq!(response.status(), 422);
    let want = json!({
        "type": "urn:postrider:problem:invalid_event",
        "title": "Unprocessable Entity",
        "status": 422,
        "code": "invalid_event",
        "detail": "two faults",
        "errors": [
            {"pointer": "/id", "message": "missing"},
            {"pointer": "/type", "message": "empty"},
        ],
    });
    assert_eq!(json_of(response).await, want);
}

#[test]
fn each_kind_of_problem_has_its_headers() {
    let away = Problem::unavailable("broker_unavailable", "away").into_response();
    assert_eq!(away.headers()[header::RETRY_AFTER], "1");
    let denied = Problem::unauthorized().into_response();
    assert!(denied.headers().contains_key(header::WWW_AUTHENTICATE));
}

#[test]
fn only_one_bearer_token_is_a_bearer_token() {
    let table: [(&[&str], Option<&str>); 7] = [
        (&[], None),
        (&["Bearer pr_1_x"], Some("pr_1_x")),
        (&["bearer  pr_1_x "], Some("pr_1_x")),
        (&["Bearer "], None),
        (&["Basic abc"], None),
        (&["pr_1_x"], None),
        (&["Bearer a", "Bearer b"], None),
    ];
    for (given, want) in table {
        let mut headers = HeaderMap::new();
        for value in given {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        assert_eq!(bearer(&headers), want, "{given:?}");
    }
}

fn app() -> Router {
    let echo = |headers: HeaderMap, body: Body| async move {
        read_body(&headers, body, 8)
            .await
            .map(|bytes| bytes.len().to_string())
    };
    Router::new()
        .route("/echo", post(echo))
        .route("/quick", get(|| async { "quick" }))
        .route("/never", get(std::future::pending::<&'static str>))
}

#[tokio::test]
async fn unknown_routes_and_methods_are_problems_with_a_request_id() {
    let app = shell(app(), Duration::from_secs(5));
    let request = Request::get("/nothing").body(Body::empty()).unwrap();
    let missing = app.clone().oneshot(request).await.unwrap();
    assert!(missing.headers().contains_key("x-request-id"));
    assert_eq!(json_of(missing).await["code"], "not_found");
    let request = Request::get("/echo").body(Body::empty()).unwrap();
    let wrong = app.clone().oneshot(request).await.unwrap();
    assert_eq!(wrong.headers()[header::ALLOW], "POST");
    assert_eq!(json_of(wrong).await["code"], "method_not_allowed");
}

#[tokio::test]
async fn a_request_id_is_kept_only_where_it_can_be_logged() {
    let app = shell(app(), Duration::from_secs(5));
    for (given, kept) in [
        ("abc-1_2.3", true),
        ("a b", false),
        (&"x".repeat(65), false),
    ] {
        let request = Request::get("/quick").header("x-request-id", given);
        let request = request.body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        assert_eq!(response.headers()["x-request-id"] == given, kept, "{given}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_answers_is_a_503() {
    let app = shell(app(), Duration::from_secs(5));
    let request = Request::get("/never").body(Body::empty()).unwrap();
    let response = app.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key(header::RETRY_AFTER));
}

#[tokio::test(start_paused = true)]
async fn a_body_is_bounded_in_size_and_time() {
    let none = HeaderMap::new();
    assert_eq!(
        read_body(&none, Body::from("12345678"), 8)
            .await
            .unwrap()
            .len(),
        8
    );
    let chunked = read_body(&none, Body::from("123456789"), 8)
        .await
        .unwrap_err();
    assert_eq!(chunked.status(), 413);
    let mut told = HeaderMap::new();
    told.insert(header::CONTENT_LENGTH, HeaderValue::from_static("9"));
    // Told beforehand, nothing is kept, and not much waited for: this body would never end.
    let stream = || Body::new(Endless);
    assert_eq!(
        read_body(&told, stream(), 8).await.unwrap_err().status(),
        413
    );
    assert_eq!(
        read_body(&none, stream(), 8).await.unwrap_err().status(),
        408
    );
}

#[tokio::test]
async fn a_client_that_sends_too_much_reads_why() {
    let (address, stop, server) = served(Limits::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = 8 * 1024 * 1024;
    let head = format!("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // More than the sockets' buffers hold: it only gets through when it is read.
    stream.write_all(&vec![b'x'; length]).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    drop(stream);
    stop.cancel();
    server.await.unwrap();
}

/// A body that neither comes nor ends.
struct Endless;

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Pending
    }
}

/// A server with these limits; its address and what stops it.
async fn served(limits: Limits) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let listener = bind("api.listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(listener, app(), limits, stop.clone()));
    (address, stop, server)
}

async fn read_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"quick") {
        let mut chunk = [0; 1024];
        let n = stream.read(&mut chunk).await.unwrap();
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8(answer).unwrap()
}

const QUICK: &[u8] = b"GET /quick HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn headers_that_do_not_end_close_the_connection_and_an_idle_one_lives() {
    let limits = Limits {
        header_timeout: Duration::from_millis(150),
        idle_timeout: Duration::from_secs(600),
        ..Limits::default()
    };
    let (address, _stop, _server) = served(limits).await;

    // Slow from the first byte, or in its second request: closed either way.
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /quick HTTP/1.1\r\n").await.unwrap();
    assert_eq!(slow.read(&mut [0; 16]).await.unwrap(), 0);

    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(QUICK).await.unwrap();
    assert!(read_answer(&mut second).await.starts_with("HTTP/1.1 200"));
    second.write_all(b"GET /qu").await.unwrap();
    assert_eq!(second.read(&mut [0; 16]).await.unwrap(), 0);

    // Idle for longer than headers may take, then used again.
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(QUICK).await.unwrap();
    read_answer(&mut idle).await;
    let mut canary = TcpStream::connect(address).await.unwrap();
    assert_eq!(
        canary.read(&mut [0; 16]).await.unwrap(),
        0,
        "the header time has passed"
    );
    idle.write_all(QUICK).await.unwrap();
    read_answer(&mut idle).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_the_end() {
    let limits = Limits {
        header_timeout: Duration::from_millis(50),
        idle_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let (address, _stop, _server) = served(limits).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(QUICK).await.unwrap();
    read_answer(&mut idle).await;
    assert_eq!(idle.read(&mut [0; 16]).await.unwrap(), 0);
}

#[tokio::test]
async fn one_connection_too_many_waits_for_room() {
    let limits = Limits {
        connections_max: 1,
        ..Limits::default()
    };
    let (address, _stop, _server) = served(limits).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(QUICK).await.unwrap();
    read_answer(&mut first).await;
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(QUICK).await.unwrap();
    // The second is not served while the first still is, again and again.
    for _ in 0..3 {
        first.write_all(QUICK).await.unwrap();
        read_answer(&mut first).await;
    }
    let early = second.try_read(&mut [0; 16]);
    assert_eq!(early.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(first);
    read_answer(&mut second).await;
}

#[tokio::test]
async fn stopping_refuses_new_connections_and_ends_idle_ones() {
    let (address, stop, server) = served(Limits::default()).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(QUICK).await.unwrap();
    read_answer(&mut idle).await;
    stop.cancel();
    server.await.unwrap();
    assert_eq!(idle.read(&mut [0; 16]).await.unwrap(), 0);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn an_address_in_use_is_named_with_its_key() {
    let taken = bind("api.listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .await
        .unwrap();
    let address = taken.local_addr().unwrap();
    let error = bind("ops.listen", address).await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("ops.listen: cannot listen on {address}: ")),
        "{error}"
    );
}

/// Tells when it is dropped.
struct Told(tokio::sync::mpsc::UnboundedSender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.send(()).ok();
    }
}

/// An answer that says something every 20 ms, without an end.
fn endless(over: tokio::sync::mpsc::UnboundedSender<()>) -> axum::response::Response {
    let pieces = futures_util::stream::unfold(Told(over), |told| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Some((
            Ok::<_, std::convert::Infallible>(vec![b'x'; 64 * 1024]),
            told,
        ))
    });
    let mut answer = Body::from_stream(pieces).into_response();
    answer.extensions_mut().insert(super::Endless);
    answer
}

#[tokio::test]
async fn an_endless_answer_lasts_while_its_client_takes_it() {
    let limits = Limits {
        header_timeout: Duration::from_millis(200),
        idle_timeout: Duration::from_secs(1),
        ..Limits::default()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (over, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let app = Router::new().route("/endless", get(async move || endless(over.clone())));
    tokio::spawn(serve(listener, app, limits, CancellationToken::new()));
    let open = async || {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(request).await.unwrap();
        stream
    };
    // Taken for longer than the idle time.
    let mut reader = open().await;
    let begun = std::time::Instant::now();
    let mut buffer = vec![0; 64 * 1024];
    while begun.elapsed() < Duration::from_secs(3) {
        assert_ne!(reader.read(&mut buffer).await.unwrap(), 0);
    }
    assert!(ended.try_recv().is_err(), "it goes on");
    drop(reader);
    ended.recv().await.unwrap();
    // Not taken at all: cut off, once what lies in between is full.
    let _idle = open().await;
    let cut = tokio::time::timeout(Duration::from_secs(60), ended.recv()).await;
    cut.expect("it is not cut off").unwrap();
}
