//! Tables for people, JSON for programs.

use std::{
    fmt::Arguments,
    io::{ErrorKind, Write},
};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde_json::Value;

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
        say!("{answer:#}");
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
                table.add_row([name.clone(), cell(Some(value))]);
            }
            say!("{table}");
        }
        _ => say!("{answer:#}"),
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
        Some(other) => other.to_string(),
    }
}

/// What came from a stranger must not steer the terminal.
pub(crate) fn visible(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
