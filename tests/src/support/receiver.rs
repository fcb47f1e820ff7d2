//! An endpoint: a real HTTP server on loopback that answers by plan and remembers every request.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use tokio::sync::Notify;

/// What an endpoint does with one request.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) delay: Duration,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            delay: Duration::ZERO,
            body: String::new(),
        }
    }

    pub(crate) fn saying(mut self, body: &str) -> Self {
        self.body = body.to_owned();
        self
    }

    pub(crate) fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

/// One request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) began: Instant,
    pub(crate) wall: SystemTime,
    /// What it was answered; `None` while it has not been, or when the caller went away first.
    pub(crate) answered: Option<u16>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    pub(crate) fn event_id(&self) -> &str {
        self.header("webhook-id")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("the body of a delivery is JSON")
    }
}

#[derive(Default)]
struct Book {
    requests: Vec<Request>,
    /// What is left of each path's plan; its last answer stays.
    plans: HashMap<String, Vec<Answer>>,
}

struct Shared {
    book: Mutex<Book>,
    news: Notify,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The server. Paths without a plan answer 200.
#[derive(Clone)]
pub(crate) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared {
            book: Mutex::default(),
            news: Notify::new(),
        });
        let app = Router::new().fallback(receive).with_state(shared.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port on loopback");
        let address = listener.local_addr().expect("a bound address");
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, shared }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The same server under the address of a proxy before it.
    pub(crate) fn behind(mut self, port: u16) -> Self {
        self.address.set_port(port);
        self
    }

    /// Answers requests to `path` with these, in turn; the last one stays.
    pub(crate) fn plan(&self, path: &str, answers: impl IntoIterator<Item = Answer>) {
        self.shared
            .book()
            .plans
            .insert(path.to_owned(), answers.into_iter().collect());
    }

    /// Every request to `path` so far.
    pub(crate) fn requests(&self, path: &str) -> Vec<Request> {
        let book = self.shared.book();
        book.requests
            .iter()
            .filter(|request| request.path == path)
            .cloned()
            .collect()
    }

    /// Every request so far.
    pub(crate) fn all(&self) -> Vec<Request> {
        self.shared.book().requests.clone()
    }

    /// How many requests came so far.
    pub(crate) fn count(&self) -> usize {
        self.shared.book().requests.len()
    }

    /// How often each event was answered with success at `path`.
    pub(crate) fn successes(&self, path: &str) -> HashMap<String, usize> {
        let mut seen = HashMap::new();
        // In place: a test of a stream asks this of thousands of requests, again and again.
        for request in &self.shared.book().requests {
            let success = |status: u16| (200..300).contains(&status);
            if request.path == path && request.answered.is_some_and(success) {
                *seen.entry(request.event_id().to_owned()).or_default() += 1;
            }
        }
        seen
    }

    /// Whether a request is being answered just now.
    pub(crate) fn is_answering(&self) -> bool {
        let book = self.shared.book();
        book.requests
            .iter()
            .any(|request| request.answered.is_none())
    }

    /// Waits until `path` has been asked `count` times, or fails the test.
    pub(crate) async fn wait_for(&self, path: &str, count: usize) -> Vec<Request> {
        self.wait_until(&format!("{count} requests to {path}"), || {
            let requests = self.requests(path);
            (requests.len() >= count).then_some(requests)
        })
        .await
    }

    /// Waits until `done` has an answer, looking again when requests came in. Fails the test when
    /// none has come in for 90 s: how long a stream takes is the machine's business.
    pub(crate) async fn wait_until<T>(&self, what: &str, done: impl Fn() -> Option<T>) -> T {
        const QUIET_MAX: Duration = Duration::from_secs(90);
        let (mut seen, mut quiet_since) = (0, Instant::now());
        loop {
            let news = self.shared.news.notified();
            let looked = Instant::now();
            if let Some(found) = done() {
                return found;
            }
            let cost = looked.elapsed();
            let now = self.shared.book().requests.len();
            if now != seen {
                (seen, quiet_since) = (now, Instant::now());
            }
            assert!(
                quiet_since.elapsed() < QUIET_MAX,
                "waited for {what}, and nothing came in for {QUIET_MAX:?}; got {:?}",
                self.paths()
            );
            tokio::time::timeout(Duration::from_millis(500), news)
                .await
                .ok();
            // The same thread answers the requests: looking must not be what holds them up.
            tokio::time::sleep(cost * 4).await;
        }
    }

    fn paths(&self) -> HashMap<String, usize> {
        let mut paths = HashMap::new();
        for request in &self.shared.book().requests {
            *paths.entry(request.path.clone()).or_default() += 1;
        }
        paths
    }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (index, answer) = {
        let mut book = shared.book();
        let plan = book.plans.get_mut(uri.path());
        let answer = plan.map_or(Answer::status(200), |plan| {
            if plan.len() > 1 {
                plan.remove(0)
            } else {
                plan[0].clone()
            }
        });
        book.requests.push(Request {
            path: uri.path().to_owned(),
            headers,
            body,
            began: Instant::now(),
            wall: SystemTime::now(),
            answered: None,
        });
        (book.requests.len() - 1, answer)
    };
    shared.news.notify_waiters();
    tokio::time::sleep(answer.delay).await;
    shared.book().requests[index].answered = Some(answer.status);
    shared.news.notify_waiters();
    let status = StatusCode::from_u16(answer.status).expect("a planned status");
    let mut response = (status, answer.body).into_response();
    for (name, value) in answer.headers {
        response
            .headers_mut()
            .insert(name, value.parse().expect("a planned header"));
    }
    response
}
