//! The corpus of URLs and hosts (rows U01 to U49), and the addresses behind names.

use super::*;

fn rules(allow: &[&str], require_https: bool) -> TargetRules {
    TargetRules {
        allow: allow.iter().map(|net| net.parse().unwrap()).collect(),
        require_https,
        ..TargetRules::default()
    }
}

/// Strict about addresses, open to plain http, so that a row is refused for its own reason.
fn http() -> TargetRules {
    rules(&[], false)
}

#[track_caller]
fn refused(row: &str, written: &str, says: &str) {
    match http().check_url(written) {
        Ok(url) => panic!("{row}: {written:?} became {url}"),
        Err(faults) => {
            let told: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
            let told = told.join("; ");
            assert!(
                told.contains(says),
                "{row}: {written:?}: {told:?} does not say {says:?}"
            );
            assert!(faults.iter().all(|fault| fault.pointer.is_empty()));
        }
    }
}

#[track_caller]
fn taken(row: &str, written: &str, as_: &str) {
    match http().check_url(written) {
        Ok(url) => assert_eq!(url.as_str(), as_, "{row}"),
        Err(faults) => panic!("{row}: {written:?} refused: {faults:?}"),
    }
}

const GUARD: &str = "target_not_allowed";

#[test]
fn u01_to_u24_an_address_is_judged_in_every_spelling() {
    for (row, hosts) in [
        ("U01", "127.0.0.1"),
        ("U02", "127.1 127.0.1"),
        ("U03", "2130706433"),
        ("U04", "0x7f000001 0x7f.1"),
        ("U05", "0177.0.0.1 017700000001 00000177.0.0.01"),
        ("U06", "0 0.0.0.0"),
        ("U07", "127.0.0.1. 127.0.0.1.:80"),
        ("U08", "127。0。0。1 １２７.0.0.1 ①②⑦.⓪.⓪.①"),
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
        ("U15", "[::1] [0:0:0:0:0:0:0:1]"),
        ("U16", "[::]"),
        ("U17", "[::ffff:127.0.0.1] [::ffff:7f00:1]"),
        ("U18", "[::ffff:0.0.0.0]"),
        (
            "U19",
            "[::127.0.0.1] [::ffff:0:7f00:1] [::5efe:7f00:1] [2600::5efe:7f00:1] [2600::200:5efe:a00:1]",
        ),
        ("U20", "[64:ff9b::7f00:1] [64:ff9b::a9fe:a9fe]"),
        ("U21", "[64:ff9b::808:808]"),
        ("U22", "[64:ff9b:1::a9fe:a9fe] [64:ff9b:1::808:808]"),
        (
            "U23",
            "[2002:7f00:1::] [2002:808:808::] [2001:0:4136:e378:8000:63bf:3fff:fdd2]",
        ),
        (
            "U24",
            "[fe80::1] [fec0::1] [fc00::1] [fd00:ec2::254] [ff02::1] [100::1] [5f00::1] [2001:db8::1] [3fff::1]",
        ),
    ] {
        for host in hosts.split(' ') {
            refused(row, &format!("http://{host}/"), GUARD);
        }
    }
    // One text for all of them: no telling which exist.
    let text = |host: &str| http().check_url(&format!("http://{host}/")).unwrap_err();
    assert_eq!(text("127.0.0.1"), text("[fd00:ec2::254]"));
    assert_eq!(text("10.0.0.1"), text("localhost"));
}

#[test]
fn u14_and_u25_what_is_no_address_is_no_url() {
    for host in ["256.256.256.256", "127.0.0.256", "4294967296", "1.2.3.4.5"] {
        refused("U14", &format!("http://{host}/"), "is not a URL");
    }
    for host in [
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "[v1.fe80::]",
        "[::1",
        "::1",
    ] {
        refused("U25", &format!("http://{host}/"), "is not a URL");
    }
}

#[test]
fn u26_to_u28_names_that_mean_something_only_inside_are_refused() {
    for host in [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "foo.localhost",
        "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
        "lo\u{ad}calhost",
        "%6c%6f%63alhost",
    ] {
        refused("U26", &format!("http://{host}/"), GUARD);
    }
    for host in [
        "metadata.google.internal",
        "x.internal",
        "x.local",
        "x.lan",
        "x.home.arpa",
        "x.svc",
        "x.cluster.local",
        "kubernetes.default.svc",
        "X.INTERNAL.",
    ] {
        refused("U27", &format!("http://{host}/"), GUARD);
    }
    refused("U28", "http://example/", "`example` is a single word");
    refused("U28", "http://com./", "`com` is a single word");
    taken(
        "U27",
        "http://internal.example.com/",
        "http://internal.example.com/",
    );
    taken(
        "U27",
        "http://notlocal.example/",
        "http://notlocal.example/",
    );
}

#[test]
fn u29_to_u37_tricks_of_the_parser_are_refused_as_written() {
    for (row, written, says) in [
        ("U29", "http://user:pw@example.com/", "credentials"),
        ("U29", "http://example.com@127.0.0.1/", "credentials"),
        ("U30", "http://127.0.0.1@example.com/", "credentials"),
        ("U30", "http://@example.com/", "credentials"),
        (
            "U31",
            "http://example.com\\@127.0.0.1/",
            "must not contain `\\`",
        ),
        (
            "U31",
            "http://127.0.0.1\\@example.com/",
            "must not contain `\\`",
        ),
        ("U32", "http://example.com#@127.0.0.1/", "fragment"),
        ("U33", "http:127.0.0.1", "exactly `//`"),
        ("U33", "http:///127.0.0.1/", "exactly `//`"),
        ("U33", "http:////x", "exactly `//`"),
        ("U33", "https:/127.0.0.1", "exactly `//`"),
        ("U33", "http:\\\\127.0.0.1\\x", "must not contain `\\`"),
        ("U34", "ht\ntp://127.0.0.1/", "control characters"),
        ("U34", "http://127.0.0.1\t/", "control characters"),
        ("U34", "\0http://example.com/", "control characters"),
        ("U34", " http://example.com/", "spaces"),
        ("U34", "http://example.com/a b", "spaces"),
        ("U34", "http://example.com/\u{7f}", "control characters"),
        ("U34", "http://example.com/\u{a0}", "spaces"),
        ("U35", "http://example.com/\r\nX-A: b", "control characters"),
    ] {
        refused(row, written, says);
    }
    taken(
        "U36",
        "http://example.com/%0d%0aX-A:%20b",
        "http://example.com/%0d%0aX-A:%20b",
    );
    for scheme in [
        "ftp",
        "file",
        "gopher",
        "unix",
        "http+unix",
        "javascript",
        "data",
        "ws",
        "blob",
    ] {
        refused("U37", &format!("{scheme}://127.0.0.1/"), "got the scheme");
    }
    refused("U37", "javascript:alert(1)", "got the scheme `javascript`");
    // A path may hold an `@`, a query too.
    taken(
        "U29",
        "http://example.com/@a?b=@c",
        "http://example.com/@a?b=@c",
    );
}

#[test]
fn u38_plain_http_needs_a_literal_or_localhost_that_is_allowed() {
    let strict = rules(&["127.0.0.0/8", "10.1.0.0/16", "::1/128"], true);
    let says = |written: &str| match strict.check_url(written) {
        Ok(url) => url.to_string(),
        Err(faults) => faults[0].message.clone(),
    };
    assert_eq!(says("http://example.com/"), "must begin with `https://`");
    assert_eq!(says("http://8.8.8.8/"), "must begin with `https://`");
    assert_eq!(says("https://example.com"), "https://example.com/");
    assert_eq!(says("http://127.0.0.1:8099/x"), "http://127.0.0.1:8099/x");
    assert_eq!(says("http://0x7f.1/"), "http://127.0.0.1/");
    assert_eq!(says("http://localhost:5000/"), "http://localhost:5000/");
    assert_eq!(says("HTTP://LOCALHOST./"), "http://localhost/");
    assert_eq!(says("http://[::1]:7/"), "http://[::1]:7/");
    assert_eq!(says("http://10.1.2.3:5672/"), "http://10.1.2.3:5672/");
    assert!(says("http://10.2.0.1/").contains(GUARD));
    assert!(says("https://foo.localhost/").contains(GUARD));
    let ten = rules(&["10.0.0.0/8"], true);
    assert!(
        ten.check_url("http://localhost/").is_err(),
        "localhost is not in 10.0.0.0/8"
    );
}

#[test]
fn u39_to_u41_ports_that_a_post_could_talk_to_are_refused() {
    for port in [
        0, 22, 25, 53, 110, 143, 445, 465, 587, 993, 2375, 3306, 5432, 5672, 6379, 9200, 11211,
        15672, 27017, 81, 1023,
    ] {
        refused(
            "U39",
            &format!("http://example.com:{port}/"),
            &format!("port {port} is not one"),
        );
    }
    for port in [":65536", ":-1", ":x"] {
        refused(
            "U40",
            &format!("http://example.com{port}/"),
            "invalid port number",
        );
    }
    taken("U41", "http://example.com:", "http://example.com/");
    taken("U41", "http://example.com:080/", "http://example.com/");
    taken(
        "U41",
        "https://example.com:8443",
        "https://example.com:8443/",
    );
    taken(
        "U41",
        "https://example.com:1024/",
        "https://example.com:1024/",
    );
}

#[test]
fn u42_to_u49_a_host_is_a_name_of_the_dns() {
    let label = "a".repeat(64);
    let long = format!("{}.com", vec!["a".repeat(62); 4].join("."));
    for host in [
        "a..b",
        ".example.com",
        "*.example.com",
        &format!("{label}.com"),
        "-a.com",
        "a-.com",
        "a.com..",
        "a!b.com",
        ".",
    ] {
        refused("U42", &format!("http://{host}/"), "");
    }
    refused("U42", &format!("http://{long}/"), "longer than 253");
    taken(
        "U42",
        "http://a_b.ex-ample.com/",
        "http://a_b.ex-ample.com/",
    );
    for host in [
        "xn--",
        "xn--a",
        "exa%00mple.com",
        "exa%2fmple.com",
        "exa mple.com",
        "[example.com]",
    ] {
        refused("U43", &format!("http://{host}/"), "");
    }
    taken("U44", "http://ex\u{200b}ample.com/", "http://example.com/");
    taken("U44", "http://еxample.com/", "http://xn--xample-2of.com/");
    refused(
        "U45",
        &format!("http://example.com/{}", "a".repeat(70_000)),
        "at most 2048 characters",
    );
    refused(
        "U45",
        &format!("http://example.com/{}", "é".repeat(1000)),
        "once encoded",
    );
    for written in ["//host/", "host/path", "null", "example.com"] {
        refused("U46", written, "beginning with `https://`");
    }
    refused("U46", "", "must not be empty");
    refused("U46", " ", "spaces");
    refused("U46", "http://", "");
    refused("U46", "http://?x", "");
    refused("U46", "http://:80/", "");
    for host in ["{{tenant}}.example.com", "{tenant}.example.com"] {
        refused("U48", &format!("http://{host}/"), "templates");
    }
    taken(
        "U48",
        "http://example.com/%7B%7Bid%7D%7D",
        "http://example.com/%7B%7Bid%7D%7D",
    );
    taken("U49", "https://example.com./a", "https://example.com/a");
}

#[test]
fn u44_a_host_in_other_letters_is_told_apart() {
    for written in [
        "http://ex\u{200b}ample.com/",
        "http://еxample.com/",
        "https://XN--xample-2of.com",
        "https://a.xn--xample-2of.com:8443/",
        "https://%65xample.com/",
    ] {
        assert!(is_idn(written), "{written}");
    }
    for written in [
        "https://example.com/é",
        "https://example.com?xn--a",
        "https://axn--b.com/",
        "nothing",
    ] {
        assert!(!is_idn(written), "{written}");
    }
}

#[test]
fn u47_we_are_no_target_of_our_own_and_neither_is_what_is_denied() {
    let own = [
        Own::at("127.0.0.1", 8080),
        Own::at("localhost", 9090),
        Own::at("rabbit.example.com.", 5672),
        Own::at("203.0.113.9", 5432),
        Own::at("[::1]", 7000),
        Own::at("0.0.0.0", 8085),
    ]
    .concat();
    let deny = [
        "hooks.example.net",
        "*.corp.example",
        "8.8.8.0/24",
        "10.1.0.1",
    ];
    let rules = TargetRules {
        deny: deny.iter().map(|text| text.parse().unwrap()).collect(),
        own,
        ..rules(
            &[
                "127.0.0.0/8",
                "::1/128",
                "0.0.0.0/8",
                "10.0.0.0/8",
                "203.0.113.0/24",
            ],
            false,
        )
    };
    for written in [
        "http://127.0.0.1:8080/",
        "http://0x7f.1:8080/",
        "http://0.0.0.0:8080/",
        "http://[::ffff:127.0.0.1]:8080/",
        "http://localhost:8080/",
        "http://localhost:9090/",
        "http://127.0.0.1:9090/",
        "http://[::1]:9090/",
        "http://[::1]:7000/",
        "http://127.0.0.1:8085/",
        "http://127.0.0.9:8085/",
        "https://rabbit.example.com/",
        "https://RABBIT.example.com:8443/",
        "https://203.0.113.9/",
        "https://hooks.example.net./",
        "https://a.b.corp.example/",
        "https://8.8.8.8/",
        "http://10.1.0.1/",
    ] {
        let told = rules.check_url(written).map(String::from);
        assert!(
            told.as_ref()
                .is_err_and(|told| told[0].message == NOT_ALLOWED),
            "{written}: {told:?}"
        );
    }
    for written in [
        "http://127.0.0.1:8081/",
        "http://127.0.0.2:8080/",
        "http://localhost:8081/",
        "http://10.0.0.1:8085/",
        "https://a.hooks.example.net/",
        "https://corp.example/",
        "https://8.8.4.4/",
        "http://203.0.113.8/",
    ] {
        assert!(rules.check_url(written).is_ok(), "{written}");
    }
    assert!(rules.is_ours_everywhere(8085) && !rules.is_ours_everywhere(8080));
    assert!(!rules.permits("8.8.8.8".parse().unwrap()));
    for wrong in ["", "*.", "a b", "1.2.3.4/40", "http://a.example/"] {
        assert!(wrong.parse::<Denied>().is_err(), "{wrong}");
    }
}

#[test]
fn everything_wrong_is_told_at_once() {
    let faults = rules(&[], true)
        .check_url("http://10.0.0.1:25/")
        .unwrap_err();
    assert_eq!(faults.len(), 3, "{faults:?}");
}

#[test]
fn resolved_addresses_are_judged_by_the_address_they_hide() {
    let check = |rules: &TargetRules, address: &str, wanted: bool| {
        assert_eq!(rules.permits(address.parse().unwrap()), wanted, "{address}");
    };
    let deny = rules(&[], true);
    for public in [
        "8.8.8.8",
        "1.1.1.1",
        "172.32.0.1",
        "100.128.0.1",
        "198.20.0.1",
        "223.255.255.255",
        "2606:4700::1",
        "2a00:1450::1",
        "64:ff9b::808:808",
        "::ffff:8.8.8.8",
        "2600::5efe:808:808",
        "168.63.129.17",
    ] {
        check(&deny, public, true);
    }
    for inside in [
        "::ffff:169.254.169.254",
        "64:ff9b::a00:1",
        "2600::5efe:a00:1",
        "::8.8.8.8",
        "4000::1",
        "168.63.129.16",
        "192.0.0.192",
        "100.100.100.200",
        "2001:20::1",
        "fd00::1",
    ] {
        check(&deny, inside, false);
    }
    let some = rules(&["10.0.0.0/8", "fd00::/8"], true);
    check(&some, "10.255.0.1", true);
    check(&some, "::ffff:10.0.0.1", true);
    check(&some, "fd12::1", true);
    check(&some, "11.0.0.1", true);
    check(&some, "192.168.0.1", false);
    check(&some, "127.0.0.1", false);
}

proptest::proptest! {
    /// The other half of the table: no spelling gets past the guard, whatever the bits.
    #[test]
    fn an_ipv4_address_is_judged_alike_bare_mapped_and_behind_nat64(bits: u32) {
        let v4 = Ipv4Addr::from(bits);
        let deny = rules(&[], true);
        let verdict = deny.permits(v4.into());
        let [a, b] = [(bits >> 16) as u16, bits as u16];
        let mapped = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, a, b);
        let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a, b);
        proptest::prop_assert_eq!(deny.permits(mapped.into()), verdict);
        proptest::prop_assert_eq!(deny.permits(nat64.into()), verdict);
        for hidden in [[0, 0, 0, 0, 0, 0, a, b], [0, 0, 0, 0, 0xffff, 0, a, b], [0x2002, a, b, 0, 0, 0, 0, 1]] {
            proptest::prop_assert!(!deny.permits(Ipv6Addr::from(hidden).into()));
        }
        // The standard library knows most of it and has to agree where it does.
        if v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() || v4.is_documentation() || v4.is_unspecified() {
            proptest::prop_assert!(!verdict);
        }
    }

    #[test]
    fn any_text_is_judged_without_a_panic_and_what_is_taken_is_stable(text in "(https?://)?[a-z0-9.:@/%\\[\\]#?\\\\_ \\-{}é。]{0,40}") {
        if let Ok(url) = rules(&[], false).check_url(&text) {
            let again = rules(&[], false).check_url(url.as_str());
            proptest::prop_assert_eq!(again.ok(), Some(url));
        }
    }
}
