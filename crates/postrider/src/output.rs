//! Tables for people, JSON for programs.

use std::{
    fmt::Arguments,
    io::{ErrorKind, Write},
};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde_json::Value;
use service::telemetry::neutral;

use crate::cli::Format;

/// A column: its title and the pointer of its value in an item.
pub(crate) type Column = (&'static str, &'static str);

/// Prints a line, as `println!` does, but that a reader who has seen enough (`| head`) is no fault.
macro_rules! say {
    ($($line:tt)*) => {
        $crate::output::line(format_args!($($line)*))
    };
}
pub(crate) use say;

/// Prints a line; ends the process where nobody reads on.
pub(crate) fn line(line: Arguments<'_>) {
    text(format!("{line}\n").as_bytes());
}

/// Prints text as it is; ends the process where nobody reads on.
pub(crate) fn text(text: &[u8]) {
    if let Err(error) = try_text(text) {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        eprintln!("postrider: cannot write to standard output: {error}");
        std::process::exit(1);
    }
}

/// Prints text, for who has more to end than the process when nobody reads on.
pub(crate) fn try_text(text: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text)?;
    out.flush()
}

/// Prints a list answer, `{"items": […], "cursor": …}`.
pub(crate) fn list(answer: &Value, columns: &[Column], format: Format) {
    if format == Format::Json {
        say!("{}", lines(&format!("{answer:#}")));
        return;
    }
    let items = answer["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if items.is_empty() {
        say!("none");
        return;
    }
    let mut table = plain_table();
    table.set_header(columns.iter().map(|(title, _)| *title));
    for item in items {
        table.add_row(
            columns
                .iter()
                .map(|(_, pointer)| cell(item.pointer(pointer))),
        );
    }
    say!("{table}");
    if let Some(cursor) = answer["cursor"].as_str() {
        say!("more: --cursor {cursor}");
    }
}

/// Prints one object, a line each field.
pub(crate) fn one(answer: &Value, format: Format) {
    match answer.as_object() {
        Some(fields) if format == Format::Table => {
            let mut table = plain_table();
            for (name, value) in fields {
                table.add_row([visible(name), cell(Some(value))]);
            }
            say!("{table}");
        }
        _ => say!("{}", lines(&format!("{answer:#}"))),
    }
}

/// A table without lines, which copies and greps well.
pub(crate) fn plain_table() -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) => visible(text),
        Some(Value::Array(items)) if items.iter().all(Value::is_string) => items
            .iter()
            .filter_map(Value::as_str)
            .map(visible)
            .collect::<Vec<_>>()
            .join(","),
        Some(other) => visible(&other.to_string()),
    }
}

/// What came from a stranger must not steer the terminal.
pub(crate) fn visible(text: &str) -> String {
    neutral(text).into_owned()
}

/// The same of several lines. Within JSON it is the same text, escaped.
pub(crate) fn lines(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(visible).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn t17_what_a_stranger_wrote_steers_no_terminal() {
        let hostile = "a\u{1b}[2Jb\r\n\u{9b}31m\u{202e}c\u{2028}";
        let value = json!({"name": hostile, "list": [hostile, [hostile]], hostile: 1});
        let harmless = |text: &str| {
            let bad = |c: char| c.is_control() || "\u{202e}\u{2028}".contains(c);
            assert!(!text.contains(bad), "{text:?}");
        };
        harmless(&cell(value.pointer("/name")));
        harmless(&cell(value.pointer("/list")));
        harmless(&cell(Some(&value)));
        harmless(&cell(Some(&json!([hostile]))));
        let pretty = lines(&format!("{value:#}"));
        harmless(&pretty.replace('\n', ""));
        let read: Value = serde_json::from_str(&pretty).expect("still JSON");
        assert_eq!(read, value, "and still the same");
    }
}
