//! An endpoint on loopback that answers as it is told, and remembers what it was sent.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};

/// One request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    #[track_caller]
    pub(crate) fn header(&self, wanted: &str) -> &str {
        let mut values = self.headers.iter().filter(|(name, _)| name == wanted);
        let value = values
            .next()
            .unwrap_or_else(|| panic!("no {wanted} in {self:?}"));
        assert!(values.next().is_none(), "{wanted} twice in {self:?}");
        &value.1
    }
}

/// What to answer, and when.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Status(u16),
    With(u16, &'static str),
    /// A document.
    Says(u16, String),
    /// Answers 200 after so long.
    Late(Duration),
    /// Never answers.
    Never,
}

pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    requests: Mutex<Vec<Request>>,
    arrived: Notify,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

impl Receiver {
    /// Answers the n-th request (from 0) with `reply(n, request)`.
    pub(crate) async fn start(
        reply: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let reply = Arc::new(reply);
        let serving = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, reply) = (serving.clone(), reply.clone());
                tokio::spawn(async move {
                    // The client hangs up when it is done with the connection.
                    drop(serve(stream, &state, &*reply).await);
                });
            }
        });
        Self {
            address,
            state,
            task,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().expect("not poisoned").clone()
    }

    /// The most requests that were under way at once.
    pub(crate) fn most_under_way(&self) -> usize {
        self.state.most_under_way.load(Ordering::SeqCst)
    }

    /// Waits until so many requests have come.
    pub(crate) async fn until(&self, count: usize) -> Vec<Request> {
        loop {
            let arrived = self.state.arrived.notified();
            let requests = self.requests();
            if requests.len() >= count {
                return requests;
            }
            let waited = tokio::time::timeout(Duration::from_secs(30), arrived).await;
            assert!(
                waited.is_ok(),
                "only {} of {count} requests came",
                requests.len()
            );
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    state: &State,
    reply: &(impl Fn(usize, &Request) -> Reply + Send + Sync),
) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(request) = read(&mut stream, &mut buffer).await? {
        let under_way = state.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        state.most_under_way.fetch_max(under_way, Ordering::SeqCst);
        let reply = {
            let mut requests = state.requests.lock().expect("not poisoned");
            let reply = reply(requests.len(), &request);
            requests.push(request);
            reply
        };
        state.arrived.notify_waiters();
        let noted = || "noted".to_owned();
        let (status, header, body) = match reply {
            Reply::Status(status) => (status, "", noted()),
            Reply::With(status, header) => (status, header, noted()),
            Reply::Says(status, body) => (status, "", body),
            Reply::Late(pause) => {
                tokio::time::sleep(pause).await;
                (200, "", noted())
            }
            Reply::Never => std::future::pending().await,
        };
        // Over before the answer: the client may send its next request at once.
        state.under_way.fetch_sub(1, Ordering::SeqCst);
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status} -\r\n{header}content-length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    loop {
        if let Some((request, used)) = parse(buffer) {
            buffer.drain(..used);
            return Ok(Some(request));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn parse(buffer: &[u8]) -> Option<(Request, usize)> {
    let text = std::str::from_utf8(buffer).ok()?;
    let (head, rest) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    // A GET has none.
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.map_or(Some(0), |(_, value)| value.parse().ok())?;
    let body = rest.get(..length)?.to_owned();
    Some((
        Request {
            path,
            headers,
            body,
        },
        head.len() + 4 + length,
    ))
}
