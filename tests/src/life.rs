//! `docs/life-of-an-event.md` names the files an event passes, and they are there.

use std::path::Path;

#[test]
fn every_file_it_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = root.join("docs/life-of-an-event.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let named: Vec<_> = page
        .split('`')
        .filter(|word| word.contains("/src/"))
        .collect();
    assert!(named.len() > 30, "the page names its files");
    for file in named {
        assert!(
            root.join("crates").join(file).is_file(),
            "crates/{file} is named and not there"
        );
    }
}

#[test]
fn every_crate_is_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |file: &str| std::fs::read_to_string(root.join(file)).expect("the page is there");
    let (life, architecture) = (
        read("docs/life-of-an-event.md"),
        read("docs/architecture.md"),
    );
    for entry in std::fs::read_dir(root.join("crates")).expect("there are crates") {
        let name = entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("a name");
        assert!(
            life.contains(&format!("`{name}/src/")),
            "{name} has no part in the life"
        );
        assert!(
            architecture.contains(&format!("| `{name}` |")),
            "{name} is not in the table"
        );
    }
}
