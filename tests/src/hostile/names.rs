//! D01 to D13 and their kin: names whose answers change, mix, lie or never come, through real
//! deliveries and the system's own resolver, in a network that holds nothing but the test.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{io::AsyncWriteExt, time::sleep};

use super::{Verdict, became, holds, is_over, strict, tries};
use crate::support::{
    dns::{Dns, Says},
    namespace::{self, Net},
    trap::{BlackHole, Canaries, read_request, trap},
};

/// Public by number, ours in this network.
const PUBLIC: [&str; 3] = ["93.184.216.34", "93.184.216.35", "2606:2800:220:1::1"];
/// Where a connection would be the end of the guard.
const INSIDE: [&str; 6] = [
    "127.0.0.1",
    "::1",
    "10.0.0.1",
    "169.254.169.254",
    "fd00::1",
    "64:ff9b::7f00:1",
];
const NET: Net<'_> = Net {
    addresses: &[
        "93.184.216.34",
        "93.184.216.35",
        "2606:2800:220:1::1",
        "2606:2800:220:1::2",
        "10.0.0.1",
        "169.254.169.254",
        "fd00::1",
        "64:ff9b::7f00:1",
    ],
    hosts: "127.0.0.1 d11.example.com\n93.184.216.34 d11-public.example.com",
    resolver: "nameserver 127.0.0.1\nsearch corp.test\noptions timeout:5 attempts:1",
    environment: &[],
};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

/// Servers at the public addresses that take everything and keep no connection, and how often each
/// was called.
async fn receivers() -> Arc<Mutex<Vec<IpAddr>>> {
    let called: Arc<Mutex<Vec<IpAddr>>> = Arc::default();
    for address in PUBLIC {
        let called = called.clone();
        trap(SocketAddr::new(ip(address), 80), move |mut stream, _| {
            let called = called.clone();
            async move {
                read_request(&mut stream).await;
                called.lock().expect("no thread panicked").push(ip(address));
                let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).await?;
                stream.shutdown().await
            }
        })
        .await;
    }
    called
}

async fn canaries() -> Canaries {
    let canaries = Canaries::default();
    canaries.watch(&ips(&INSIDE), &[80, 443]).await;
    canaries
}

/// Every name with what is answered and what is to become of a delivery to it.
fn rows() -> Vec<(&'static str, &'static str, Says, Verdict)> {
    use Says::{Addresses, Alias, Code, NoData, Nothing, Truncated};
    use Verdict::{Delivered, Refused, Retried};
    let to = |texts: &[&str]| Addresses(ips(texts));
    // As many as an answer over TCP holds; none is there.
    let many = |last: &str| {
        let mut list: Vec<IpAddr> = (0..3999_u32)
            .map(|n| IpAddr::from((0x5DB9_0000 + n).to_be_bytes()))
            .collect();
        list.push(ip(last));
        Addresses(list)
    };
    vec![
        (
            "D02",
            "d02.example.com",
            to(&[PUBLIC[0], "10.0.0.1"]),
            Refused,
        ),
        (
            "D02",
            "d02-first.example.com",
            to(&["10.0.0.1", PUBLIC[0]]),
            Refused,
        ),
        ("D03", "d03.example.com", to(&[PUBLIC[0], "::1"]), Refused),
        (
            "D03",
            "d03-ula.example.com",
            to(&[PUBLIC[0], "fd00::1"]),
            Refused,
        ),
        ("D04", "d04.example.com", Alias("localhost"), Refused),
        (
            "D04",
            "d04-cloud.example.com",
            Alias("metadata.google.internal"),
            Refused,
        ),
        (
            "D05",
            "d05.example.com",
            Alias("d05-back.example.com"),
            Retried("dns"),
        ),
        (
            "D05",
            "d05-back.example.com",
            Alias("d05.example.com"),
            Retried("dns"),
        ),
        (
            "D05",
            "d05-0.example.com",
            Alias("d05-1.example.com"),
            Refused,
        ),
        ("D06", "d06-nodata.example.com", NoData, Retried("dns")),
        ("D07", "d07.example.com", Code(2), Retried("dns")),
        ("D07", "d07-refused.example.com", Code(5), Retried("dns")),
        ("D07", "d07-mute.example.com", Nothing, Retried("dns")),
        ("D08", "d08.example.com", Truncated, Retried("dns")),
        (
            "D09",
            "d09.example.com",
            many("93.185.255.1"),
            Retried("connect"),
        ),
        ("D09", "d09-bad.example.com", many("10.0.0.1"), Refused),
        ("D11", "d11.example.com", to(&[PUBLIC[0]]), Refused),
        (
            "D11",
            "d11-public.example.com",
            to(&["10.0.0.1"]),
            Delivered,
        ),
        (
            "D12",
            "d12.example.com",
            to(&["::ffff:169.254.169.254"]),
            Refused,
        ),
        (
            "D12",
            "d12-loopback.example.com",
            to(&["::ffff:127.0.0.1"]),
            Refused,
        ),
        (
            "U21",
            "u21.example.com",
            to(&["64:ff9b::808:808"]),
            Retried("connect"),
        ),
        (
            "U21",
            "u21-bad.example.com",
            to(&["64:ff9b::7f00:1"]),
            Refused,
        ),
        ("U06", "zero.example.com", to(&["0.0.0.0"]), Refused),
        ("U16", "zero6.example.com", to(&["::"]), Refused),
        ("R01", "plain.example.com", to(&[PUBLIC[0]]), Delivered),
        ("R01", "plain6.example.com", to(&[PUBLIC[2]]), Delivered),
        // The first of its addresses answers nobody.
        (
            "R39",
            "r39.example.com",
            to(&["2606:2800:220:1::2", PUBLIC[0]]),
            Delivered,
        ),
    ]
}

#[test]
fn d02_to_d12_every_answer_has_its_verdict_and_nothing_inside_is_dialled() {
    let name =
        "hostile::names::d02_to_d12_every_answer_has_its_verdict_and_nothing_inside_is_dialled";
    namespace::run(name, &NET, every_answer);
}

async fn every_answer() {
    let dns = Dns::start().await;
    let called = receivers().await;
    let canaries = canaries().await;
    let _hole = BlackHole::at(SocketAddr::new(ip("2606:2800:220:1::2"), 80));
    dns.says("localhost", Says::Addresses(ips(&["127.0.0.1"])));
    dns.says(
        "metadata.google.internal",
        Says::Addresses(ips(&["169.254.169.254"])),
    );
    for n in 1..20 {
        let (here, there) = (
            format!("d05-{n}.example.com"),
            format!("d05-{}.example.com", n + 1),
        );
        dns.says(&here, Says::Alias(there.leak()));
    }
    dns.says("d05-20.example.com", Says::Addresses(ips(&["10.0.0.1"])));
    // D10: what a search domain would make of a name that does not exist.
    dns.says(
        "d10.example.com.corp.test",
        Says::Addresses(ips(&[PUBLIC[0]])),
    );
    let world = strict(&[]).await;
    let mut subs = Vec::new();
    let mut rows = rows();
    rows.push((
        "D06",
        "d06.example.com",
        Says::Code(3),
        Verdict::Retried("dns"),
    ));
    rows.push((
        "D10",
        "d10.example.com",
        Says::Code(3),
        Verdict::Retried("dns"),
    ));
    for (row, name, says, verdict) in rows {
        dns.says(name, says);
        let more = json!({"target_url": format!("http://{name}/"), "delivery": tries()});
        subs.push((
            row,
            name,
            verdict,
            world.subscribe(name, &["*"], more).await,
        ));
    }
    let event = world.publish(json!({"type": "appointment.created"})).await;
    let mut delivered = 0;
    for (row, name, verdict, sub) in &subs {
        let delivery = became(&world, &sub.id, &event, is_over).await;
        holds(&format!("{row} {name}"), &delivery, *verdict);
        delivered += usize::from(*verdict == Verdict::Delivered);
    }
    assert_eq!(canaries.heard(), [], "something inside was dialled");
    let called = called.lock().expect("no thread panicked").len();
    assert_eq!(called, delivered, "calls at the public addresses");
    assert_eq!(
        dns.asked("d10.example.com.corp.test"),
        0,
        "a search domain was tried"
    );
    let log = world.nodes[0].log();
    assert!(
        log.contains("with IPv4 only it would be dialled"),
        "D03: no hint for the operator"
    );
}

#[test]
fn d01_d13_a_name_that_changes_its_mind_is_judged_each_time() {
    let name = "hostile::names::d01_d13_a_name_that_changes_its_mind_is_judged_each_time";
    namespace::run(name, &NET, each_time);
}

async fn each_time() {
    let dns = Dns::start().await;
    let called = receivers().await;
    let canaries = canaries().await;
    let turns = [PUBLIC[0], "127.0.0.1"].map(|address| ips(&[address]));
    dns.says("d01.example.com", Says::Turns(turns.into()));
    let turns = [PUBLIC[0], PUBLIC[1]].map(|address| ips(&[address]));
    dns.says("d13.example.com", Says::Turns(turns.into()));
    let world = strict(&[]).await;
    let subscribe = async |name: &str| {
        let more = json!({"target_url": format!("http://{name}/"), "delivery": tries()});
        world.subscribe(name, &["*"], more).await
    };
    let (d01, d13) = (
        subscribe("d01.example.com").await,
        subscribe("d13.example.com").await,
    );
    for (round, verdict) in [Verdict::Delivered, Verdict::Refused]
        .into_iter()
        .enumerate()
    {
        let event = world.publish(json!({"type": "appointment.created"})).await;
        let delivery = became(&world, &d01.id, &event, is_over).await;
        holds("D01", &delivery, verdict);
        let delivery = became(&world, &d13.id, &event, is_over).await;
        holds("D13", &delivery, Verdict::Delivered);
        let called = called.lock().expect("no thread panicked").clone();
        assert!(called.contains(&ip(PUBLIC[round])), "D13: {called:?}");
    }
    assert_eq!(canaries.heard(), []);
}

#[test]
fn t2_in_10_000_attempts_at_a_rebinding_name_only_what_was_judged_is_dialled() {
    let name =
        "hostile::names::t2_in_10_000_attempts_at_a_rebinding_name_only_what_was_judged_is_dialled";
    namespace::run(name, &NET, rebinding);
}

async fn rebinding() {
    const EVENTS: usize = 10_000;
    let dns = Dns::start().await;
    let called = receivers().await;
    let canaries = canaries().await;
    // Good, bad, mixed, good, in each family.
    let turns: [&[&str]; 5] = [
        &[PUBLIC[0]],
        &["127.0.0.1"],
        &[PUBLIC[1], "169.254.169.254"],
        &["10.0.0.1", PUBLIC[2]],
        &[PUBLIC[1], "::1"],
    ];
    let turns = turns.map(ips).to_vec();
    dns.says("rebind.example.com", Says::Cycle(turns));
    let world = strict(&[]).await;
    let more = json!({
        "target_url": "http://rebind.example.com/",
        "delivery": {"retry": "none", "max_in_flight": 64},
    });
    world.subscribe("rebind", &["*"], more).await;
    let sent = AtomicUsize::new(0);
    while sent.load(Ordering::Relaxed) < EVENTS {
        let batch: Vec<_> = (0..500)
            .map(|n| json!({"type": "appointment.created", "tenant": "salon-17", "data": {"n": n}}))
            .collect();
        world
            .call("POST", "/v1/events", Some(json!(batch)))
            .await
            .expect(202);
        sent.fetch_add(500, Ordering::Relaxed);
    }
    let metric = "postrider_attempts_total";
    // As long as it goes on: how long 10 000 attempts take is the machine's business.
    let (mut seen, mut quiet_since) = (0.0, Instant::now());
    while seen < EVENTS as f64 {
        let now = world.metric(metric, "").await;
        if now > seen {
            (seen, quiet_since) = (now, Instant::now());
        }
        let quiet = quiet_since.elapsed();
        assert!(
            quiet < Duration::from_secs(60),
            "{seen} attempts, and no more"
        );
        sleep(Duration::from_millis(200)).await;
    }
    let refused = world.metric(metric, "result=\"target_not_allowed\"").await;
    let well = called.lock().expect("no thread panicked").len();
    assert_eq!(canaries.heard(), [], "something inside was dialled");
    assert!(
        refused > 0.0 && well > 0,
        "{refused} refused, {well} arrived"
    );
    let other = world.metric(metric, "").await - refused - well as f64;
    assert!(other.abs() < 1.0, "{other} attempts ended in another way");
}
