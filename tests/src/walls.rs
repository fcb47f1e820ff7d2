//! Who may import whom: read from the manifests, so that a wall falls in review and not by habit.
//! `deny.toml` holds the outer half of the same rule for the whole dependency graph.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// What every stage may import.
const ROOMS: &[&str] = &["event", "service", "dialect", "broker", "store"];

/// Each crate of ours and the crates of ours it may import.
const ALLOWED: &[(&str, &[&str])] = &[
    ("event", &[]),
    ("service", &[]),
    ("dialect", &["event"]),
    ("broker", &["event"]),
    ("store", &["event"]),
    ("producer", ROOMS),
    ("router", ROOMS),
    ("deliverer", ROOMS),
    ("recorder", ROOMS),
    ("console", ROOMS),
];

/// The crates that may import anything of ours: the wiring and these tests.
const EVERYTHING: &[&str] = &["postrider", "tests", "sim"];

/// Foreign crates that have one home each, so that replacing one is one crate's work.
const HOMES: &[(&str, &[&str])] = &[
    ("lapin", &["broker", "tests"]),
    ("rusqlite", &["broker"]),
    ("maybe-backoff", &["broker"]),
    ("backoff", &["broker"]),
    ("sqlx", &["store", "tests"]),
    ("sqlx-core", &["store"]),
    ("config", &["service"]),
    ("reqwest", &["postrider", "tests"]),
];

/// Package name (without our prefix) to the names of what it depends on, in any way.
type Manifests = BTreeMap<String, Vec<String>>;

/// Every import that crosses a wall, in words.
fn breaches(manifests: &Manifests) -> Vec<String> {
    let mut breaches = Vec::new();
    for (package, dependencies) in manifests {
        let allowed = ALLOWED
            .iter()
            .find(|(name, _)| name == package)
            .map(|(_, list)| *list);
        let everything = EVERYTHING.contains(&package.as_str());
        if allowed.is_none() && !everything {
            breaches.push(format!("{package} is not on the map: add it to walls.rs"));
        }
        for dependency in dependencies {
            let ours = manifests.contains_key(dependency);
            if ours && !everything && !allowed.unwrap_or(&[]).contains(&dependency.as_str()) {
                breaches.push(format!("{package} must not import {dependency}"));
            }
            let home = HOMES.iter().find(|(name, _)| name == dependency);
            if let Some((_, homes)) = home
                && !homes.contains(&package.as_str())
            {
                breaches.push(format!("{dependency} lives in {homes:?}, not in {package}"));
            }
        }
    }
    breaches
}

fn short(name: &str) -> String {
    name.strip_prefix("postrider-").unwrap_or(name).to_owned()
}

fn text(value: &Value) -> String {
    short(value.as_str().expect("cargo metadata has names"))
}

fn workspace() -> Manifests {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    packages
        .iter()
        .map(|package| {
            let list = package["dependencies"]
                .as_array()
                .expect("a list of dependencies");
            (
                text(&package["name"]),
                list.iter().map(|one| text(&one["name"])).collect(),
            )
        })
        .collect()
}

#[test]
fn no_manifest_crosses_a_wall() {
    let manifests = workspace();
    assert_eq!(breaches(&manifests), Vec::<String>::new());
    // A map that names rooms which are gone protects nothing.
    for (name, _) in ALLOWED {
        assert!(
            manifests.contains_key(*name),
            "{name} is on the map and not in the workspace"
        );
    }
}

#[track_caller]
fn check_breach(package: &str, dependency: &str, expected: Option<&str>) {
    let mut manifests: Manifests = workspace();
    for dependencies in manifests.values_mut() {
        dependencies.clear();
    }
    manifests.insert(package.to_owned(), vec![dependency.to_owned()]);
    assert_eq!(breaches(&manifests).first().map(String::as_str), expected);
}

#[test]
fn a_crossed_wall_is_named() {
    check_breach("router", "broker", None);
    check_breach("postrider", "router", None);
    check_breach(
        "router",
        "deliverer",
        Some("router must not import deliverer"),
    );
    check_breach("event", "service", Some("event must not import service"));
    check_breach("store", "broker", Some("store must not import broker"));
    check_breach("broker", "lapin", None);
    check_breach(
        "router",
        "lapin",
        Some(r#"lapin lives in ["broker", "tests"], not in router"#),
    );
    check_breach(
        "utils",
        "serde",
        Some("utils is not on the map: add it to walls.rs"),
    );
}

/// What can open a connection to wherever a name leads.
const DIALS: [&str; 7] = [
    "TcpStream::connect",
    "TcpSocket",
    "UdpSocket",
    "lookup_host",
    "to_socket_addrs",
    "legacy::Client",
    "reqwest::",
];

/// Where it stands in the product: the guarded client, and the command line, which calls the
/// person's own server. A broker's and a store's driver dial what the settings name.
const DIALLERS: [&str; 2] = ["deliverer/src/client", "postrider/src/"];

/// The sources of the product below `folder`, tests left out.
fn sources(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the workspace") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if !path.ends_with("tests") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|kind| kind == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

#[test]
fn only_the_guarded_client_dials_what_a_subscriber_names() {
    let crates = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let mut found = Vec::new();
    sources(&crates, &mut found);
    let dials = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).expect("a source");
        DIALS.iter().any(|dial| text.contains(dial))
    };
    let dialling: Vec<String> = found
        .iter()
        .filter(|path| path.to_string_lossy().contains("/src/") && dials(path))
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    let named = |path: &&String| DIALLERS.iter().any(|place| path.contains(place));
    let strangers: Vec<_> = dialling.iter().filter(|path| !named(path)).collect();
    assert_eq!(strangers, Vec::<&String>::new());
    assert!(
        dialling.iter().any(|path| path.ends_with("client/dial.rs")),
        "the test no longer finds what it looks for: {dialling:?}"
    );
}
