//! A crowd of endpoints for the benches of neighbours: each on an address of its own, and some of
//! them bad while the bench says so.

use std::{
    cell::{Cell, RefCell},
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use serde_json::json;
use tokio::{net::TcpListener, task::AbortHandle};

use super::sink::{self, Tally};
use crate::{commands::Failure, output::say};

/// So many hang until the deliverer gives up, and as many after them answer late.
pub(super) const BAD_OF_EACH: usize = 10;
/// How late.
const LATE: Duration = Duration::from_secs(5);

/// The address of endpoint `n`.
pub(super) fn address(n: usize, port: u16) -> SocketAddr {
    let low = |n: usize| u8::try_from(n % 250 + 1).unwrap_or(1);
    SocketAddr::from((Ipv4Addr::new(127, 1, low(n / 250), low(n)), port))
}

#[derive(Default)]
struct Crowd {
    /// Whether the bad ones are bad now.
    bad: Cell<bool>,
    /// Deliveries to all but the bad ones.
    good: RefCell<Tally>,
    /// What endpoint 0 took, by the second.
    first: RefCell<Vec<(Instant, u64)>>,
    /// Endpoint 0, with its connections: away while there is none.
    door: RefCell<Option<AbortHandle>>,
}

/// Serves `endpoints` endpoints and a control until it is killed; prints `CONTROL PORT` first.
pub(super) async fn serve(endpoints: usize) -> Result<(), Failure> {
    let control = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let at = control.local_addr().map_err(failed)?;
    tokio::task::LocalSet::new()
        .run_until(async move {
            let crowd = Rc::new(Crowd::default());
            let first = TcpListener::bind(address(0, 0)).await.map_err(failed)?;
            let port = first.local_addr().map_err(failed)?.port();
            open(&crowd, 0, first);
            for n in 1..endpoints {
                let listener = TcpListener::bind(address(n, port)).await.map_err(failed)?;
                open(&crowd, n, listener);
            }
            say!("{at} {port}");
            let obeying = move |request| obey(request, crowd.clone(), port);
            sink::accept(control, obeying).await.map_err(failed)
        })
        .await
}

fn open(crowd: &Rc<Crowd>, n: usize, listener: TcpListener) {
    let at_work = crowd.clone();
    let answering = move |request| answer(request, at_work.clone(), n);
    let door = tokio::task::spawn_local(sink::accept(listener, answering));
    if n == 0 {
        *crowd.door.borrow_mut() = Some(door.abort_handle());
    }
}

async fn answer(
    request: Request<Incoming>,
    crowd: Rc<Crowd>,
    n: usize,
) -> Result<Response<Body>, axum::Error> {
    let body = axum::body::to_bytes(Body::new(request.into_body()), usize::MAX).await?;
    if n == 0 {
        let mut taken = crowd.first.borrow_mut();
        match taken.last_mut() {
            Some((second, count)) if second.elapsed() < Duration::from_secs(1) => *count += 1,
            _ => taken.push((Instant::now(), 1)),
        }
    }
    if n >= 2 * BAD_OF_EACH {
        crowd.good.borrow_mut().note(&body);
    } else if crowd.bad.get() {
        match n < BAD_OF_EACH {
            true => std::future::pending().await,
            false => tokio::time::sleep(LATE).await,
        }
    }
    Ok(Response::new(Body::empty()))
}

/// `/reset`, `/bad`, `/good`, `/away` and `/back` (endpoint 0), or nothing but a report.
async fn obey(
    request: Request<Incoming>,
    crowd: Rc<Crowd>,
    port: u16,
) -> Result<Response<Body>, std::io::Error> {
    match request.uri().path() {
        "/reset" => {
            *crowd.good.borrow_mut() = Tally::default();
            crowd.first.borrow_mut().clear();
        }
        "/bad" => crowd.bad.set(true),
        "/good" => crowd.bad.set(false),
        "/away" => {
            crowd
                .door
                .borrow_mut()
                .take()
                .iter()
                .for_each(AbortHandle::abort);
        }
        "/back" => open(&crowd, 0, TcpListener::bind(address(0, port)).await?),
        _ => {}
    }
    let good = crowd.good.borrow();
    let first = crowd.first.borrow();
    let report = json!({
        "count": good.count(), "p50_ms": good.quantile_ms(0.5), "p99_ms": good.quantile_ms(0.99),
        "first": {
            "count": first.iter().map(|(_, count)| count).sum::<u64>(),
            "peak_per_second": first.iter().map(|(_, count)| count).max(),
        },
    });
    Ok(Response::new(Body::from(report.to_string())))
}

fn failed(error: std::io::Error) -> Failure {
    Failure::failed(format!("the crowd of endpoints: {error}"))
}
