//! Who fetches, who waits, and what becomes of those who wait for somebody who is cut off.

use prometheus::IntCounterVec;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};

use super::*;

/// A loader that tells of each request, and answers `[1]` when it is allowed to.
struct Gated {
    url: String,
    asked: mpsc::UnboundedReceiver<()>,
    gate: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Gated {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!(
            "http://{}/{{id}}",
            listener.local_addr().expect("an address")
        );
        let (told, asked) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(0));
        let open = gate.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (told, open) = (told.clone(), open.clone());
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    let read = stream.read(&mut request).await;
                    if !read.is_ok_and(|n| n > 0) || told.send(()).is_err() {
                        return;
                    }
                    if let Ok(permit) = open.acquire().await {
                        permit.forget();
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n[1]";
                        drop(stream.write_all(answer).await);
                    }
                });
            }
        });
        Self {
            url,
            asked,
            gate,
            task,
        }
    }

    async fn is_asked(&mut self) {
        self.asked.recv().await.expect("a request");
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The views of a process whose egress permits nothing inside, and whose loader does.
fn views(url: &str) -> Arc<Views> {
    let wanted = Wanted {
        url: url.into(),
        allow: vec!["127.0.0.0/8".parse().expect("a network")],
        max_in_flight: 4,
        ..Wanted::default()
    };
    let loads = IntCounterVec::new(Opts::new("loads", "loads"), &["result"]).expect("a counter");
    let loaders = Loaders::from([("appointment".into(), wanted)]);
    let views = Views::new(&loaders, &Settings::default(), &Egress::default(), loads);
    Arc::new(views.expect("views"))
}

fn event(tenant: &str, id: &str) -> Event {
    serde_json::from_value(json!({
        "id": id, "tenant": tenant, "type": "appointment.created",
        "time": "2026-03-01T10:00:00Z", "subject": 1,
    }))
    .expect("an event")
}

const PATIENCE: Duration = Duration::from_secs(20);

fn load(views: &Arc<Views>, event: Event) -> JoinHandle<Result<Loaded, Miss>> {
    let views = views.clone();
    tokio::spawn(async move { views.load(&event, View::Extended, PATIENCE).await })
}

async fn text(loading: JoinHandle<Result<Loaded, Miss>>) -> String {
    let loaded = loading.await.expect("no panic").expect("no miss");
    loaded.view.expect("a view").1.get().to_owned()
}

/// Lets every task that can run do so: there is one thread.
async fn settle_down() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn one_fetches_and_the_others_wait_for_it() {
    let mut loader = Gated::start().await;
    let views = views(&loader.url);
    let loading: Vec<_> = (0..5).map(|_| load(&views, event("t", "e"))).collect();
    loader.is_asked().await;
    settle_down().await;
    loader.gate.add_permits(100);
    for loading in loading {
        assert_eq!(text(loading).await, "[1]");
    }
    assert_eq!(text(load(&views, event("t", "e"))).await, "[1]", "kept");
    assert!(loader.asked.try_recv().is_err(), "asked once");
    assert!(views.lock().flights.is_empty());
}

#[tokio::test]
async fn another_tenants_event_of_the_same_id_is_another() {
    let mut loader = Gated::start().await;
    let views = views(&loader.url);
    loader.gate.add_permits(100);
    text(load(&views, event("t", "e"))).await;
    text(load(&views, event("u", "e"))).await;
    loader.is_asked().await;
    loader.is_asked().await;
}

#[tokio::test]
async fn when_the_one_who_fetches_is_cut_off_another_does() {
    let mut loader = Gated::start().await;
    let views = views(&loader.url);
    let first = load(&views, event("t", "e"));
    loader.is_asked().await;
    let second = load(&views, event("t", "e"));
    settle_down().await;
    first.abort();
    loader.is_asked().await;
    loader.gate.add_permits(100);
    assert_eq!(text(second).await, "[1]");
}

#[tokio::test]
async fn who_waits_too_long_is_sent_away_and_the_fetch_goes_on() {
    let mut loader = Gated::start().await;
    let views = views(&loader.url);
    let first = load(&views, event("t", "e"));
    loader.is_asked().await;
    let impatient = Duration::from_millis(20);
    let sent_away = views
        .load(&event("t", "e"), View::Extended, impatient)
        .await;
    let refused = Miss::Refused((Cause::Loader, Duration::ZERO));
    assert_eq!(format!("{sent_away:?}"), format!("Err({refused:?})"));
    loader.gate.add_permits(100);
    assert_eq!(text(first).await, "[1]");
}

#[tokio::test]
async fn at_a_stop_nobody_waits_for_a_place_any_more() {
    let mut loader = Gated::start().await;
    let views = views(&loader.url);
    let under_way: Vec<_> = (0..4)
        .map(|n| load(&views, event("t", &format!("e{n}"))))
        .collect();
    for _ in 0..4 {
        loader.is_asked().await;
    }
    let waiting = load(&views, event("t", "last"));
    settle_down().await;
    views.close();
    let stopping = Miss::Refused((Cause::Stopping, Duration::ZERO));
    let sent_away = waiting.await.expect("no panic");
    assert_eq!(format!("{sent_away:?}"), format!("Err({stopping:?})"));
    loader.gate.add_permits(100);
    for loading in under_way {
        assert_eq!(text(loading).await, "[1]", "what was begun is finished");
    }
}
