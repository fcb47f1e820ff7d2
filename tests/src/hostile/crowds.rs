//! T5, T6, T12, R38: what many receivers, or the process's own surroundings, can make us do.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{io::AsyncWriteExt, sync::watch, time::sleep};

use super::{Verdict, became, holds, is_over, strict};
use crate::support::{
    dns::{Dns, Says},
    namespace::{self, Net},
    trap::{Canaries, FOREVER, read_request, trap},
    world::{Kind, World},
};

const NET: Net<'_> = Net {
    addresses: &["93.184.216.34", "93.184.216.35"],
    hosts: "",
    resolver: "nameserver 127.0.0.1\noptions timeout:5 attempts:1",
    environment: &[],
};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn r38_t12_one_address_gets_so_many_attempts_at_once_however_many_subscribe_to_it() {
    let name = "hostile::crowds::r38_t12_one_address_gets_so_many_attempts_at_once_however_many_subscribe_to_it";
    namespace::run(name, &NET, one_address);
}

async fn one_address() {
    const ADDRESS_MAX: usize = 50;
    let dns = Dns::start().await;
    let [stalls, works] = ["93.184.216.34", "93.184.216.35"].map(ip);
    let connected = Arc::new(AtomicUsize::new(0));
    let counted = connected.clone();
    let (open, opened) = watch::channel(false);
    trap(SocketAddr::new(stalls, 80), move |mut stream, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        let mut opened = opened.clone();
        async move {
            read_request(&mut stream).await;
            // Until the test lets all of them go.
            opened
                .wait_for(|open| *open)
                .await
                .map_err(io::Error::other)?;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await
        }
    })
    .await;
    trap(SocketAddr::new(works, 80), |mut stream, _| async move {
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await
    })
    .await;
    let world = strict(&[]).await;
    let delivery = json!({"timeout": "30s", "retry": {"delays": ["1s", "1s"]}});
    // T12: many subscriptions to one host; R38: many hosts at one address.
    for n in 0..200 {
        let host = if n < 100 {
            "one.example.com".into()
        } else {
            format!("h{n}.example.com")
        };
        dns.says(&host, Says::Addresses(vec![stalls]));
        let more = json!({"target_url": format!("http://{host}/{n}"), "delivery": delivery});
        world.subscribe("stalls", &["payment.*"], more).await;
    }
    dns.says("works.example.com", Says::Addresses(vec![works]));
    let more = json!({"target_url": "http://works.example.com/"});
    let good = world.subscribe("works", &["*"], more).await;
    world.publish(json!({"type": "payment.paid"})).await;
    let crowded = "cause=\"crowded\"";
    world
        .wait_for_metric("postrider_parked_total", crowded, 100.0)
        .await;
    // Somebody else's endpoint is served meanwhile.
    let event = world.publish(json!({"type": "appointment.created"})).await;
    let delivery = became(&world, &good.id, &event, is_over).await;
    assert_eq!(delivery["state"], "delivered", "{delivery:#}");
    assert_eq!(
        connected.load(Ordering::SeqCst),
        ADDRESS_MAX,
        "connections at once"
    );
    // Each of them has its turn.
    open.send(true).expect("the receivers wait");
    let delivered = "outcome=\"delivered\"";
    world
        .wait_for_metric("postrider_deliveries_total", delivered, 202.0)
        .await;
}

#[test]
fn t5_a_proxy_in_the_environment_is_never_asked() {
    let name = "hostile::crowds::t5_a_proxy_in_the_environment_is_never_asked";
    let proxy = "http://10.0.0.1:3128";
    let net = Net {
        addresses: &["93.184.216.34", "10.0.0.1"],
        environment: &[
            ("HTTP_PROXY", proxy),
            ("http_proxy", proxy),
            ("HTTPS_PROXY", proxy),
            ("https_proxy", proxy),
            ("ALL_PROXY", proxy),
            ("all_proxy", proxy),
        ],
        ..NET
    };
    namespace::run(name, &net, no_proxy);
}

async fn no_proxy() {
    let dns = Dns::start().await;
    let canaries = Canaries::default();
    canaries.watch(&[ip("10.0.0.1")], &[3128]).await;
    trap(
        SocketAddr::new(ip("93.184.216.34"), 80),
        |mut stream, _| async move {
            read_request(&mut stream).await;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await
        },
    )
    .await;
    dns.says(
        "works.example.com",
        Says::Addresses(vec![ip("93.184.216.34")]),
    );
    dns.says("inside.example.com", Says::Addresses(vec![ip("10.0.0.1")]));
    let world = strict(&[]).await;
    let mut subs = Vec::new();
    for (host, verdict) in [
        ("works.example.com", Verdict::Delivered),
        ("inside.example.com", Verdict::Refused),
    ] {
        let more = json!({"target_url": format!("http://{host}/"), "delivery": super::tries()});
        subs.push((verdict, world.subscribe(host, &["*"], more).await.id));
    }
    let event = world.publish(json!({"type": "payment.paid"})).await;
    for (verdict, sub) in &subs {
        let delivery = became(&world, sub, &event, is_over).await;
        assert_eq!(
            delivery["history"][0]["status"].is_u64(),
            *verdict == Verdict::Delivered
        );
        if *verdict == Verdict::Refused {
            holds("T5", &delivery, *verdict);
        }
    }
    assert_eq!(canaries.heard(), [], "the proxy was asked");
    let log = world.nodes[0].log();
    assert!(
        log.contains("HTTP_PROXY") && log.contains("not used"),
        "{log}"
    );
}

#[tokio::test]
async fn t6_500_hostile_receivers_cost_less_than_64_mib() {
    const RECEIVERS: usize = 500;
    const MIB: u64 = 1024;
    let more = [("delivery.max_in_flight", "600".to_owned())];
    let mut world = World::with(Kind::Embedded, 1, &more).await;
    let busy = Arc::new(AtomicUsize::new(0));
    let mut first = None;
    for n in 0..RECEIVERS {
        let busy = busy.clone();
        let address = trap(([127, 0, 0, 1], 0).into(), move |mut stream, _| {
            let busy = busy.clone();
            async move {
                read_request(&mut stream).await;
                busy.fetch_add(1, Ordering::SeqCst);
                let (head, more): (&[u8], &[u8]) = match n % 5 {
                    0 => (
                        b"HTTP/1.1 200 OK\r\ncontent-length: 10737418240\r\n\r\n",
                        &[b'x'; 4096],
                    ),
                    1 => (b"HTTP/1.1 200 OK\r\nx-long: ", &[b'a'; 4096]),
                    2 => (
                        b"HTTP/1.1 200 OK\r\n",
                        b"x-more: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
                    ),
                    3 => (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
                    _ => (b"HTTP/1.1 200 OK\r\nx: ", b""),
                };
                stream.write_all(head).await?;
                if more.is_empty() {
                    sleep(FOREVER).await;
                }
                // Slowly enough that all of them are at it together.
                loop {
                    stream.write_all(more).await?;
                    sleep(Duration::from_millis(50)).await;
                }
            }
        })
        .await;
        let target = json!({
            "target_url": format!("http://{address}/"),
            "delivery": {"timeout": "10s", "retry": {"delays": ["1h"]}},
        });
        let sub = world.subscribe("hostile", &["payment.*"], target).await;
        first.get_or_insert(sub.id);
    }
    // What the process needs anyway: an event on its way, a delivery, its log.
    let warm = world
        .subscribe("/warm", &["appointment.*"], json!({}))
        .await;
    for _ in 0..50 {
        let event = world.publish(json!({"type": "appointment.created"})).await;
        became(&world, &warm.id, &event, is_over).await;
    }
    let pid = world.nodes[0].process().pid();
    let before = resident(pid, "VmRSS");
    let event = world.publish(json!({"type": "payment.paid"})).await;
    world
        .wait_for_metric("postrider_attempts_total", "", 50.0 + RECEIVERS as f64)
        .await;
    assert!(busy.load(Ordering::SeqCst) >= RECEIVERS, "each was asked");
    let peak = resident(pid, "VmHWM");
    let grown = peak.saturating_sub(before);
    println!("{before} KiB before, {peak} KiB at most: {grown} KiB for {RECEIVERS}");
    assert!(grown < 64 * MIB, "{grown} KiB on top of {before} KiB");
    let first = first.expect("a subscription");
    let delivery = became(&world, &first, &event, |_| true).await;
    assert_eq!(delivery["state"], "delivered", "{delivery:#}");
}

/// A line of `/proc/PID/status`, in KiB.
fn resident(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .expect("a number of KiB")
}
