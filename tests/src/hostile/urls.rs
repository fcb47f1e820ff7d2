//! U01 to U49: every spelling of a target, at subscribing and, past it, at delivery.

use std::net::IpAddr;

use serde_json::{Value, json};
use sqlx::Connection;

use super::{Verdict, became, holds, is_over, strict, tries};
use crate::support::{
    dns::{Dns, Says},
    namespace::{self, Net},
    trap::Canaries,
    world::{Kind, TENANT, World},
};

/// The URLs that are refused when they are written. Hosts stand for `http://HOST/`.
const REFUSED_HOSTS: [(&str, &str); 41] = [
    ("U01", "127.0.0.1"),
    ("U02", "127.1 127.0.1"),
    ("U03", "2130706433"),
    ("U04", "0x7f000001 0x7f.1"),
    ("U05", "0177.0.0.1 017700000001 00000177.0.0.01"),
    ("U06", "0 0.0.0.0"),
    ("U07", "127.0.0.1. 127.0.0.1.:80"),
    ("U08", "127。0。0。1 １２７.0.0.1 １２７.０.０.１ ①②⑦.⓪.⓪.①"),
    ("U09", "%31%32%37.0.0.1 127%2e0%2e0%2e1"),
    ("U10", "169.254.169.254 2852039166 0xa9fea9fe"),
    ("U11", "10.0.0.1 172.16.0.1 172.31.255.254 192.168.1.1"),
    (
        "U12",
        "100.64.0.1 198.18.0.1 192.0.0.8 192.88.99.1 192.0.2.1 198.51.100.1 203.0.113.1",
    ),
    (
        "U13",
        "224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 0.0.0.1",
    ),
    ("U14", "256.256.256.256 127.0.0.256 4294967296 1.2.3.4.5"),
    ("U15", "[::1] [0:0:0:0:0:0:0:1]"),
    ("U16", "[::]"),
    ("U17", "[::ffff:127.0.0.1] [::ffff:7f00:1]"),
    ("U18", "[::ffff:0.0.0.0]"),
    ("U19", "[::127.0.0.1] [::ffff:0:7f00:1] [::5efe:7f00:1]"),
    ("U20", "[64:ff9b::7f00:1] [64:ff9b::a9fe:a9fe]"),
    ("U21", "[64:ff9b::808:808]"),
    ("U22", "[64:ff9b:1::a9fe:a9fe]"),
    (
        "U23",
        "[2002:7f00:1::] [2001:0:4136:e378:8000:63bf:3fff:fdd2]",
    ),
    (
        "U24",
        "[fe80::1] [fec0::1] [fc00::1] [fd00:ec2::254] [ff02::1] [100::1] [5f00::1]",
    ),
    ("U24", "[2001:db8::1] [3fff::1]"),
    (
        "U25",
        "[fe80::1%25eth0] [fe80::1%eth0] [v1.fe80::] [::1 ::1",
    ),
    (
        "U26",
        "localhost LOCALHOST localhost. foo.localhost ⓛⓞⓒⓐⓛⓗⓞⓢⓣ lo\u{ad}calhost",
    ),
    ("U26", "%6c%6f%63alhost"),
    (
        "U27",
        "metadata.google.internal x.internal x.local x.lan x.home.arpa x.svc",
    ),
    ("U27", "x.cluster.local kubernetes.default.svc"),
    ("U28", "example com. foo"),
    ("U29", "user:pw@example.com example.com@127.0.0.1"),
    ("U30", "127.0.0.1@example.com"),
    (
        "U39",
        "example.com:0 example.com:22 example.com:25 example.com:53 example.com:110",
    ),
    (
        "U39",
        "example.com:143 example.com:445 example.com:465 example.com:587 example.com:993",
    ),
    (
        "U39",
        "example.com:2375 example.com:3306 example.com:5432 example.com:5672 example.com:6379",
    ),
    (
        "U39",
        "example.com:9200 example.com:11211 example.com:15672 example.com:27017",
    ),
    ("U40", "example.com:65536 example.com:-1"),
    ("U42", "a..b .example.com *.example.com"),
    (
        "U43",
        "xn-- xn--a exa%00mple.com exa%2fmple.com [example.com]",
    ),
    ("U48", "{{tenant}}.example.com {tenant}.example.com"),
];

/// The same, where the whole URL is what matters.
const REFUSED_URLS: [(&str, &str); 38] = [
    ("U31", "http://example.com\\@127.0.0.1/"),
    ("U31", "http://127.0.0.1\\@example.com/"),
    ("U32", "http://example.com#@127.0.0.1/"),
    ("U33", "http:127.0.0.1"),
    ("U33", "http:///127.0.0.1/"),
    ("U33", "http:////x"),
    ("U33", "https:/127.0.0.1"),
    ("U33", "http:\\\\127.0.0.1\\x"),
    ("U34", "ht\ntp://127.0.0.1/"),
    ("U34", "http://127.0.0.1\t/"),
    ("U34", "\0http://example.com/"),
    ("U34", " http://example.com/"),
    ("U34", "http://example.com/ "),
    ("U35", "http://example.com/\r\nX-A: b"),
    ("U37", "ftp://127.0.0.1/"),
    ("U37", "file:///etc/passwd"),
    ("U37", "gopher://127.0.0.1/"),
    ("U37", "unix:/run/docker.sock"),
    ("U37", "http+unix://%2frun%2fdocker.sock/"),
    ("U37", "javascript:alert(1)"),
    ("U37", "data:text/plain,x"),
    ("U37", "ws://example.com/"),
    ("U37", "blob:http://example.com/x"),
    ("U43", "http://exa mple.com/"),
    ("U46", "//host/"),
    ("U46", ""),
    ("U46", " "),
    ("U46", "http://"),
    ("U01", "https://127.0.0.1/"),
    ("U10", "https://169.254.169.254/latest/meta-data/"),
    ("U15", "https://[::1]/"),
    ("U17", "https://[::ffff:127.0.0.1]/"),
    ("U26", "https://localhost/"),
    ("U39", "http://127.0.0.1:15672/api/users"),
    ("U39", "https://example.com:22/"),
    ("U02", "https://127.1:8443/"),
    ("U06", "https://0/"),
    ("U13", "https://255.255.255.255/"),
];

/// What is taken, and as what.
const TAKEN: [(&str, &str, &str); 10] = [
    (
        "U36",
        "http://example.com/%0d%0aX-A:%20b",
        "http://example.com/%0d%0aX-A:%20b",
    ),
    ("U41", "http://example.com:", "http://example.com/"),
    ("U41", "http://example.com:080/", "http://example.com/"),
    (
        "U41",
        "https://example.com:8443/a",
        "https://example.com:8443/a",
    ),
    ("U44", "http://ex\u{200b}ample.com/", "http://example.com/"),
    ("U44", "http://еxample.com/", "http://xn--xample-2of.com/"),
    ("U49", "https://example.com./a", "https://example.com/a"),
    (
        "U27",
        "https://internal.example.com/",
        "https://internal.example.com/",
    ),
    (
        "U29",
        "https://example.com/@a?b=@c",
        "https://example.com/@a?b=@c",
    ),
    (
        "U48",
        "https://example.com/%7B%7Bid%7D%7D",
        "https://example.com/%7B%7Bid%7D%7D",
    ),
];

/// Every refused URL.
fn refused() -> Vec<(&'static str, String)> {
    let hosts = REFUSED_HOSTS.iter().flat_map(|(row, hosts)| {
        let url = |host| (*row, format!("http://{host}/"));
        hosts.split(' ').map(url)
    });
    let urls = REFUSED_URLS
        .iter()
        .map(|(row, url)| (*row, (*url).to_owned()));
    let label = format!("http://{}.com/", "a".repeat(64));
    let name = format!("http://{}.com/", vec!["a".repeat(63); 4].join("."));
    let long = format!("https://example.com/{}", "a".repeat(70_000));
    let made = [("U42", label), ("U42", name), ("U45", long)];
    hosts.chain(urls).chain(made).collect()
}

fn subscription(target: Value) -> Option<Value> {
    Some(json!({"tenant": TENANT, "target_url": target, "events": ["*"]}))
}

/// Refused with the stable code, at the field, and without a word of what is inside.
#[track_caller]
fn check_refused(row: &str, written: &Value, status: u16, answer: &Value) {
    let told = answer.to_string();
    assert_eq!(status, 422, "{row}: {written}: {told}");
    assert_eq!(answer["code"], "invalid_subscription", "{row}: {told}");
    let at = |fault: &Value| fault["pointer"] == "/target_url";
    let faults = answer["errors"].as_array().cloned().unwrap_or_default();
    assert!(
        !faults.is_empty() && faults.iter().all(at),
        "{row}: {written}: {told}"
    );
}

#[tokio::test]
async fn u01_to_u49_every_target_is_judged_when_it_is_subscribed() {
    let world = strict(&[]).await;
    let path = "/v1/subscriptions";
    for (row, url) in refused() {
        let answer = world.call("POST", path, subscription(json!(url))).await;
        check_refused(row, &json!(url), answer.status, &answer.json);
    }
    for odd in [
        Value::Null,
        json!(7),
        json!(["https://example.com/"]),
        json!({}),
    ] {
        let answer = world.call("POST", path, subscription(odd.clone())).await;
        check_refused("U46", &odd, answer.status, &answer.json);
    }
    assert_eq!(world.items(path).await.len(), 0, "something was taken");

    for (row, written, normalised) in TAKEN {
        let answer = world
            .call("POST", path, subscription(json!(written)))
            .await
            .expect(201);
        assert_eq!(answer["target_url"], normalised, "{row}");
        let warned = answer["warnings"][0]["code"].as_str();
        assert_eq!(
            warned,
            (row == "U44").then_some("idn_host"),
            "{row}: {answer}"
        );
        // A change is judged by the same rules.
        let id = answer["id"].as_str().expect("an id");
        let path = format!("{path}/{id}");
        let patch = Some(json!({"target_url": "http://127.1/"}));
        let patched = world.call("PATCH", &path, patch).await;
        check_refused(row, &json!("patched"), patched.status, &patched.json);
    }
    // T13: one text for whatever is inside, and nothing is looked up: what exists is not told.
    let mut told = Vec::new();
    for inside in ["127.0.0.1", "10.0.0.1", "[fd00:ec2::254]", "localhost"] {
        let url = json!(format!("http://{inside}/"));
        let answer = world.call("POST", path, subscription(url)).await;
        told.push(answer.json["errors"].clone());
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].to_string().contains("target_not_allowed"),
        "{told:?}"
    );
    for name in ["no-such-name.example.com", "inside.example.com"] {
        let url = json!(format!("http://{name}/"));
        world
            .call("POST", path, subscription(url))
            .await
            .expect(201);
    }
}

#[tokio::test]
async fn u38_u47_plain_http_and_our_own_places_are_no_targets() {
    // With a whole network allowed: what is ours stays closed, whatever spelling it has.
    let deny = (
        "egress.deny",
        "*.corp.example,198.51.100.0/24,hooks.example.net".to_owned(),
    );
    let allow = (
        "egress.allow",
        "127.0.0.0/8,0.0.0.0/8,::1/128,198.51.100.0/24".to_owned(),
    );
    let world = World::with(Kind::Embedded, 1, &[allow, deny]).await;
    let api = world.nodes[0]
        .api()
        .rsplit(':')
        .next()
        .map(str::to_owned)
        .expect("a port");
    let ops = world.nodes[0].ops();
    for (row, url) in [
        ("U38", "http://example.com/".to_owned()),
        ("U38", "http://8.8.8.8/".to_owned()),
        ("U47", format!("http://127.0.0.1:{api}/v1/events")),
        ("U47", format!("http://127.1:{api}/")),
        ("U47", format!("http://0.0.0.0:{api}/")),
        ("U47", format!("http://[::ffff:127.0.0.1]:{api}/")),
        ("U47", format!("http://localhost:{api}/")),
        ("U47", format!("http://127.0.0.1:{ops}/metrics")),
        ("U47", "https://a.corp.example/".to_owned()),
        ("U47", "https://hooks.example.net./".to_owned()),
        ("U47", "https://198.51.100.9/".to_owned()),
    ] {
        let answer = world
            .call("POST", "/v1/subscriptions", subscription(json!(url)))
            .await;
        check_refused(row, &json!(url), answer.status, &answer.json);
    }
    world.subscribe("/mine", &["*"], json!({})).await;
}

/// Addresses that a URL of the corpus names, so that a connection would be heard. The last two are
/// there in every network.
const INSIDE: [&str; 34] = [
    "169.254.169.254",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.254",
    "192.168.1.1",
    "100.64.0.1",
    "198.18.0.1",
    "192.0.0.8",
    "192.88.99.1",
    "192.0.2.1",
    "198.51.100.1",
    "203.0.113.1",
    "240.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::808:808",
    "64:ff9b:1::a9fe:a9fe",
    "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "100::1",
    "5f00::1",
    "2001:db8::1",
    "3fff::1",
    "::ffff:0:7f00:1",
    "::5efe:7f00:1",
    "93.184.216.34",
    "2606:2800:220:1::1",
    "::127.0.0.1",
    "172.30.0.1",
    "127.0.0.1",
    "::1",
];
/// Ports that the corpus names, or that a URL without one means.
const PORTS: [u16; 8] = [80, 443, 8443, 22, 25, 5432, 6379, 15672];
const NET: Net<'_> = Net {
    addresses: INSIDE.split_at(INSIDE.len() - 2).0,
    hosts: "",
    resolver: "nameserver 127.0.0.1\noptions timeout:1 attempts:1",
    environment: &[],
};

#[test]
fn u01_to_u49_past_subscribing_nothing_refused_is_dialled() {
    let name = "hostile::urls::u01_to_u49_past_subscribing_nothing_refused_is_dialled";
    namespace::run(name, &NET, past_subscribing);
}

/// The store is made to hold what no subscribing would have taken: an older version's rows, or a
/// rule that came later.
async fn past_subscribing() {
    let inside: Vec<IpAddr> = INSIDE
        .iter()
        .map(|text| text.parse().expect("an address"))
        .collect();
    let canaries = Canaries::default();
    canaries.watch(&inside, &PORTS).await;
    let dns = Dns::start().await;
    // Each name of the corpus leads where it would hurt.
    let loopback = || Says::Addresses(vec!["127.0.0.1".parse().expect("an address")]);
    for (_, url) in refused() {
        let host = url::Url::parse(&url)
            .ok()
            .and_then(|url| url.host_str().map(str::to_owned));
        dns.says(host.unwrap_or_default().trim_end_matches('.'), loopback());
    }
    let mut world = strict(&[]).await;
    let mut subs = Vec::new();
    for (n, (row, url)) in refused().into_iter().enumerate() {
        let placeholder = format!("https://row-{n}.example.com/");
        let more = json!({"target_url": placeholder, "delivery": tries()});
        subs.push((row, url, world.subscribe("row", &["*"], more).await.id));
    }
    world.nodes[0].drain().await;
    let folder = world.setting("broker.url").replace("embedded://", "");
    let store = format!("sqlite://{folder}/postrider.db");
    let mut store = sqlx::SqliteConnection::connect(&store)
        .await
        .expect("the store opens");
    for (_, url, id) in &subs {
        let target = json!(url).to_string();
        let changed = sqlx::query(
            "UPDATE subscriptions SET document = json_set(document, '$.target_url', json($1)) \
             WHERE id = $2",
        )
        .bind(&target)
        .bind(id)
        .execute(&mut store)
        .await
        .expect("the store takes it");
        assert_eq!(changed.rows_affected(), 1);
    }
    store.close().await.expect("the store closes");
    world.nodes[0].start_again().await;

    let event = world.publish(json!({"type": "appointment.created"})).await;
    for (row, url, id) in &subs {
        let delivery = became(&world, id, &event, is_over).await;
        let shown = &url[..url.len().min(80)];
        holds(&format!("{row} {shown}"), &delivery, Verdict::Refused);
    }
    assert_eq!(canaries.heard(), [], "something was dialled");
}
