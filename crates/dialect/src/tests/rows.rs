//! docs/dialects.md says what proves each row of the platforms' documents: that has to be so.

use std::collections::BTreeSet;

use super::*;

const DOCS: &str = include_str!("../../../../docs/dialects.md");
const TESTS: [(&str, &str); 3] = [
    ("catalogue", include_str!("catalogue.rs")),
    ("files", include_str!("files.rs")),
    ("subscribing", include_str!("subscribing.rs")),
];

/// What the last column of a dialect's table names.
fn proofs(dialect: &str) -> BTreeSet<&'static str> {
    let section = DOCS
        .split(&format!("\n### {dialect}\n"))
        .nth(1)
        .unwrap_or_else(|| panic!("docs/dialects.md has no section on {dialect}"));
    let section = section.split("\n### ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    rows.filter_map(|row| row.trim_end_matches([' ', '|']).rsplit(" | ").next())
        .flat_map(|names| names.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn every_example_stands_in_the_table_and_every_name_in_the_table_is_there() {
    for dialect in dialects().names() {
        let proofs = proofs(dialect);
        let report = dialects().check(dialect).expect("a dialect");
        let examples: BTreeSet<&str> = report
            .examples
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        let (tests, named): (BTreeSet<&str>, BTreeSet<&str>) =
            proofs.into_iter().partition(|name| name.contains("::"));
        assert_eq!(named, examples, "{dialect}");
        for test in tests {
            let (module, name) = test.split_once("::").unwrap_or_default();
            let known = TESTS.iter().find(|(known, _)| *known == module);
            let (_, text) = known.unwrap_or_else(|| panic!("{dialect}: no module {module}"));
            assert!(
                text.contains(&format!("\nfn {name}()")),
                "{dialect}: no test {test}"
            );
        }
    }
}

#[test]
fn the_worked_example_of_the_documentation_works() {
    let file = DOCS
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let report = Dialects::check_file("acme.toml", file.expect("an example")).expect("it reads");
    for example in &report.examples {
        assert_eq!(example.diff, [""; 0], "{}", example.name);
    }
    assert_eq!(
        (report.examples.len(), report.without_example.len()),
        (3, 0)
    );
}
