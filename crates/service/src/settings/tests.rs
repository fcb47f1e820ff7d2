use std::{net::SocketAddr, time::Duration};

use serde::Deserialize;
use tempfile::TempDir;

use super::*;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Whole {
    api: Api,
    auth: Auth,
    broker: Broker,
    egress: Egress,
    loaders: BTreeMap<String, Loader>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Api {
    listen: SocketAddr,
    body_max: bytesize::ByteSize,
    workers: u16,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            body_max: bytesize::ByteSize::mib(4),
            workers: 4,
        }
    }
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Auth {
    admin_token: Option<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Broker {
    url: String,
    #[serde(with = "humantime_serde")]
    heartbeat: Duration,
    ca_file: Option<PathBuf>,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            url: "embedded://./data".into(),
            heartbeat: Duration::from_secs(10),
            ca_file: None,
        }
    }
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Egress {
    allow: Vec<String>,
    require_https: bool,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Loader {
    url: String,
}

const fn key(path: &'static str, default: &'static str, kind: Kind) -> Key {
    Key {
        path,
        default,
        kind,
        help: "",
    }
}

const KEYS: &[Key] = &[
    key("api.listen", "127.0.0.1:8080", Kind::Plain),
    key("api.body_max", "4MiB", Kind::Plain),
    key("api.workers", "4", Kind::Plain),
    key("auth.admin_token", "", Kind::Secret),
    key("broker.url", "embedded://./data", Kind::Url),
    key("broker.heartbeat", "10s", Kind::Plain),
    key("broker.ca_file", "", Kind::Plain),
    key("egress.allow", "", Kind::Plain),
    key("egress.require_https", "false", Kind::Plain),
    key("loaders.*.url", "", Kind::Plain),
];

/// A folder with a `postrider.toml`, an environment, flags.
struct Given {
    folder: TempDir,
    sources: Sources,
}

fn given(toml: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Given {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join(FILE), toml).unwrap();
    let sources = Sources {
        file: File::In(folder.path().to_owned()),
        env: env.iter().map(|(k, v)| (k.into(), v.into())).collect(),
        flags: flags
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    };
    Given { folder, sources }
}

impl Given {
    #[track_caller]
    fn holds(&self) -> Loaded<Whole> {
        load(KEYS, &self.sources).unwrap()
    }

    /// The faults, without the folder's path.
    #[track_caller]
    fn faults(&self) -> Vec<String> {
        let refused = load::<Whole>(KEYS, &self.sources).unwrap_err();
        let folder = format!("{}/", self.folder.path().display());
        refused
            .faults
            .iter()
            .map(|fault| fault.to_string().replace(&folder, ""))
            .collect()
    }
}

#[test]
fn nothing_given_is_the_defaults_of_the_types() {
    let sources = Sources {
        file: File::None,
        env: Vec::new(),
        flags: Vec::new(),
    };
    let loaded = load::<Whole>(KEYS, &sources).unwrap();
    assert_eq!(loaded.settings, Whole::default());
    assert!(
        loaded
            .effective()
            .iter()
            .all(|line| line.origin == "default")
    );
}

#[test]
fn each_source_overrides_the_one_before() {
    let toml = "[api]\nworkers = 5\nlisten = \"127.0.0.1:1\"\n[broker]\nheartbeat = \"20s\"\n";
    let env = [
        ("POSTRIDER__API__WORKERS", "6"),
        ("POSTRIDER__API__LISTEN", "127.0.0.1:2"),
    ];
    let given = given(toml, &env, &[("api.workers", "7")]);
    let loaded = given.holds();
    assert_eq!(loaded.settings.api.workers, 7);
    assert_eq!(loaded.settings.api.listen.port(), 2);
    assert_eq!(loaded.settings.broker.heartbeat, Duration::from_secs(20));
    let origin = |key: &str| {
        let line = loaded
            .effective()
            .iter()
            .find(|line| line.key == key)
            .unwrap();
        line.origin
            .replace(&format!("{}/", given.folder.path().display()), "")
    };
    assert_eq!(origin("api.workers"), "flag for api.workers");
    assert_eq!(origin("api.listen"), "env POSTRIDER__API__LISTEN");
    assert_eq!(origin("broker.heartbeat"), "postrider.toml:5");
    assert_eq!(origin("broker.url"), "default");
}

#[test]
fn everything_wrong_is_named_at_once_with_key_origin_and_nearest() {
    let toml = "[api]\nlisten = \"nowhere\"\nworker = 3\n\n[brokr]\nurl = \"embedded://x\"\n";
    let env = [
        ("POSTRIDER__BROKER__HEARTBEAT", "soon"),
        ("POSTRIDER__EGRESS__REQUIRE_HTTP", "true"),
        ("POSTRIDER__API__WORKERS", "70000"),
    ];
    let faults = given(toml, &env, &[("egress.require_https", "maybe")]).faults();
    let has = |parts: &[&str]| {
        let fits = |fault: &&String| parts.iter().all(|part| fault.contains(part));
        assert_eq!(
            faults.iter().filter(fits).count(),
            1,
            "{parts:?} in {faults:#?}"
        );
    };
    has(&["api.listen: ", "(postrider.toml:2)"]);
    has(&[
        "api.worker: is not a key (postrider.toml:3)",
        "did you mean `api.workers`?",
    ]);
    has(&[
        "brokr.url: is not a key (postrider.toml:6)",
        "did you mean `broker.url`?",
    ]);
    has(&["broker.heartbeat: ", "(env POSTRIDER__BROKER__HEARTBEAT)"]);
    has(&[
        "egress.require_http: is not a key",
        "did you mean `egress.require_https`?",
    ]);
    has(&[
        "api.workers: must be ",
        "70000",
        "(env POSTRIDER__API__WORKERS)",
    ]);
    has(&[
        "egress.require_https: must be a boolean",
        "\"maybe\"",
        "(flag for egress.require_https)",
    ]);
    assert_eq!(faults.len(), 7, "{faults:#?}");
}

#[test]
fn a_key_like_no_other_gets_no_suggestion() {
    let faults = given("zzzzqqqq = 1\n", &[], &[]).faults();
    assert_eq!(faults, ["zzzzqqqq: is not a key (postrider.toml:1)"]);
}

#[test]
fn a_word_in_the_wrong_section_finds_its_own() {
    let faults = given("[broker]\nlisten = \"127.0.0.1:1\"\n", &[], &[]).faults();
    assert!(
        faults[0].ends_with("did you mean `api.listen`?"),
        "{faults:?}"
    );
}

#[test]
fn a_value_where_a_section_belongs_says_so() {
    let faults = given("api = 3\n[broker.url]\nhost = \"x\"\n", &[], &[]).faults();
    assert_eq!(faults[0], "api: must be a table of keys (postrider.toml:1)");
    assert_eq!(
        faults[1],
        "broker.url: is not a value of the wanted form (postrider.toml:2)"
    );
}

#[test]
fn broken_toml_names_its_line() {
    let faults = given("[api]\nworkers = = 3\n", &[], &[]).faults();
    assert!(
        faults[0].contains("not TOML") && faults[0].contains("(postrider.toml:2)"),
        "{faults:?}"
    );
}

#[test]
fn a_named_file_must_be_there_and_the_default_one_need_not() {
    let folder = TempDir::new().unwrap();
    let none = Sources {
        file: File::In(folder.path().into()),
        env: vec![],
        flags: vec![],
    };
    load::<Whole>(KEYS, &none).unwrap();
    let missing = folder.path().join("other.toml");
    let named = Sources {
        file: File::Named(missing.clone()),
        ..none
    };
    let refused = load::<Whole>(KEYS, &named).unwrap_err();
    assert_eq!(refused.faults[0].origin, missing.display().to_string());
    assert!(
        refused.faults[0].message.contains("cannot be read"),
        "{refused}"
    );
}

#[test]
fn lists_numbers_and_booleans_come_from_the_environment() {
    for text in ["127.0.0.0/8, ::1/128", r#"["127.0.0.0/8", "::1/128"]"#] {
        let env = [
            ("POSTRIDER__EGRESS__ALLOW", text),
            ("POSTRIDER__EGRESS__REQUIRE_HTTPS", "true"),
            ("POSTRIDER__API__WORKERS", "12"),
            ("POSTRIDER__API__BODY_MAX", "256KiB"),
            ("POSTRIDER__LOADERS__APPOINTMENT__URL", "http://x/{id}"),
            ("PATH", "/bin"),
        ];
        let settings = given("", &env, &[]).holds().settings;
        assert_eq!(settings.egress.allow, ["127.0.0.0/8", "::1/128"]);
        assert!(settings.egress.require_https);
        assert_eq!(settings.api.workers, 12);
        assert_eq!(settings.api.body_max, bytesize::ByteSize::kib(256));
        assert_eq!(settings.loaders["appointment"].url, "http://x/{id}");
    }
}

#[test]
fn a_secret_of_digits_stays_text() {
    let env = [("POSTRIDER__AUTH__ADMIN_TOKEN", "0123456789")];
    let loaded = given("", &env, &[]).holds();
    assert_eq!(
        loaded.settings.auth.admin_token.as_deref(),
        Some("0123456789")
    );
}

#[test]
fn a_secret_may_come_from_a_file() {
    let mut given = given("", &[], &[]);
    let secret = given.folder.path().join("token");
    std::fs::write(&secret, "  s3cret\n").unwrap();
    let flag = (
        "auth.admin_token_file".to_owned(),
        secret.display().to_string(),
    );
    given.sources.flags.push(flag);
    let loaded = given.holds();
    assert_eq!(loaded.settings.auth.admin_token.as_deref(), Some("s3cret"));
    let line = loaded
        .effective()
        .iter()
        .find(|line| line.key == "auth.admin_token")
        .unwrap();
    assert_eq!(line.value, "***");
    assert!(line.origin.starts_with("file "), "{}", line.origin);

    let flag = ("auth.admin_token".to_owned(), "other".to_owned());
    given.sources.flags.push(flag);
    let faults = given.faults();
    assert!(faults[0].contains("is given twice"), "{faults:?}");
}

#[test]
fn only_secrets_come_from_files() {
    let faults = given("[api]\nworkers_file = \"x\"\n", &[], &[]).faults();
    assert!(
        faults[0].starts_with("api.workers_file: is not a key"),
        "{faults:?}"
    );
    // A key that ends in `_file` by itself is a key.
    let settings = given("[broker]\nca_file = \"ca.pem\"\n", &[], &[])
        .holds()
        .settings;
    assert_eq!(settings.broker.ca_file, Some(PathBuf::from("ca.pem")));
}

#[test]
fn nothing_secret_is_shown_or_quoted() {
    let toml = "[broker]\nurl = \"amqp://ann:canary@host/v\"\n[auth]\nadmin_token = \"canary\"\n";
    let loaded = given(toml, &[], &[]).holds();
    let shown = format!("{:?}", loaded.effective());
    assert!(!shown.contains("canary"), "{shown}");
    assert!(shown.contains("amqp://ann:***@host/v"), "{shown}");
    let faults = given("[auth]\nadmin_token = [\"canary\"]\n", &[], &[]).faults();
    assert!(!faults[0].contains("canary"), "{faults:?}");
}

#[test]
fn passwords_are_masked_wherever_a_url_has_them() {
    let table = [
        ("amqp://host/v", "amqp://host/v"),
        ("amqps://u:p@host:5671/%2f", "amqps://u:***@host:5671/%2f"),
        ("amqp://u@host", "amqp://u@host"),
        (
            "postgres://u:p:q@host/db?sslmode=require",
            "postgres://u:***@host/db?sslmode=require",
        ),
        (
            "postgres://host/db?user=u&password=p",
            "postgres://host/db?user=u&password=***",
        ),
        ("amqp://u:p/q#@host/v", "amqp://u:***@host/v"),
        ("embedded://./data", "embedded://./data"),
        ("just-a-password", "***"),
    ];
    for (url, want) in table {
        assert_eq!(mask(url), want, "{url}");
    }
}

#[test]
fn the_list_of_keys_is_held_against_the_types() {
    assert_eq!(drift::<Whole>(KEYS), Vec::<String>::new());
    let listed: Vec<Key> = KEYS[1..]
        .iter()
        .copied()
        .chain([key("api.gone", "", Kind::Plain)])
        .collect();
    let drift = drift::<Whole>(&listed);
    assert_eq!(
        drift,
        [
            "api.listen is read and not listed",
            "api.gone is listed and not read"
        ]
    );
}

#[test]
fn a_later_fault_knows_where_its_value_came_from() {
    let loaded = given("", &[("POSTRIDER__API__WORKERS", "0")], &[]).holds();
    assert!(loaded.given("api.workers") && !loaded.given("api.listen"));
    let fault = loaded.fault("api.workers", "must be at least 1");
    assert_eq!(
        fault.to_string(),
        "api.workers: must be at least 1 (env POSTRIDER__API__WORKERS)"
    );
}
