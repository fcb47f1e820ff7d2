//! The log: `tracing` to stderr, as text or JSON lines, with nothing in it that a terminal obeys.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use serde::{Deserialize, Serialize};
use tracing_subscriber::{
    EnvFilter,
    filter::{LevelFilter, ParseError},
    fmt::MakeWriter,
};

/// `[log]` of the settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `text` (the default) or `json`: one object a line.
    pub format: Format,
    /// `error`, `warn`, `info` (the default), `debug`, `trace`, or directives such as
    /// `info,postrider_deliverer=debug`.
    pub level: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            format: Format::Text,
            level: "info".into(),
        }
    }
}

impl Settings {
    /// A level that is none: its key and what it must be.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let wrong = |error| format!("is not a level or a list of directives: {error}");
        let error = EnvFilter::try_new(&self.level).err().map(wrong);
        // To the filter, a word alone that is no level is a target, of which it logs everything.
        let stray = self.level.split(',').map(str::trim).find(|directive| {
            !directive.contains(['=', '[']) && directive.parse::<LevelFilter>().is_err()
        });
        let stray = stray.map(|word| {
            format!("`{word}` is not one of `error`, `warn`, `info`, `debug`, `trace`, `off`")
        });
        let fault = error.or(stray);
        fault
            .map(|fault| ("log.level", fault))
            .into_iter()
            .collect()
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl TryFrom<String> for Format {
    type Error = &'static str;

    fn try_from(word: String) -> Result<Self, Self::Error> {
        match word.as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be `text` or `json`"),
        }
    }
}

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `log.level` is none.
    #[error("log.level: {level:?} is not a level or a list of directives: {source}")]
    Level {
        /// As given.
        level: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Somebody else set a subscriber before.
    #[error("the log is already open: {0}")]
    Twice(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Opens the log of this process.
///
/// Of each target in `errors_only` (such as `lapin`, which warns of a returned message with its
/// body) only errors are logged, whatever the level: a log never holds what a tenant sent.
pub fn init(settings: &Settings, errors_only: &[&str]) -> Result<(), Error> {
    let filter = filter(&settings.level, errors_only).map_err(|source| Error::Level {
        level: settings.level.clone(),
        source,
    })?;
    // No colours: an escape sequence in the log is then always somebody's mischief.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Neutral(io::stderr));
    match settings.format {
        Format::Text => tracing::subscriber::set_global_default(log.finish())?,
        Format::Json => {
            tracing::subscriber::set_global_default(log.json().flatten_event(true).finish())?;
        }
    }
    Ok(())
}

/// A writer that escapes what a terminal would obey or a reader be misled by.
#[derive(Debug, Clone)]
struct Neutral<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Neutral<W> {
    type Writer = NeutralWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        NeutralWriter(self.0.make_writer())
    }
}

struct NeutralWriter<W>(W);

impl<W: Write> Write for NeutralWriter<W> {
    // The formatter hands over one whole line a call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let (body, end) = text
            .strip_suffix('\n')
            .map_or((&*text, ""), |body| (body, "\n"));
        self.0.write_all(neutral(body).as_bytes())?;
        self.0.write_all(end.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The text with C0, C1 and bidirectional controls and line separators written as `\u001b`, which
/// is also what they are within a JSON string. For logs and for terminals.
pub fn neutral(text: &str) -> Cow<'_, str> {
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if obeyed(c) {
            safe.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

fn obeyed(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}'
        )
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn filter(level: &str, errors_only: &[&str]) -> Result<EnvFilter, ParseError> {
    let mut filter = EnvFilter::try_new(level)?;
    for target in errors_only {
        filter = filter.add_directive(format!("{target}=error").parse()?);
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, hostile: &str) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(Neutral(move || writer.clone()));
        let say = || tracing::info!(name = %hostile, debug = ?hostile, "seen");
        if json {
            tracing::subscriber::with_default(log.json().flatten_event(true).finish(), say);
        } else {
            tracing::subscriber::with_default(log.finish(), say);
        }
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_target_that_may_only_say_errors_says_nothing_else() {
        for level in ["info", "trace", "debug,lapin=trace"] {
            let sink = Sink::default();
            let writer = sink.clone();
            let log = tracing_subscriber::fmt()
                .with_env_filter(filter(level, &["lapin"]).unwrap())
                .with_writer(move || writer.clone())
                .finish();
            tracing::subscriber::with_default(log, || {
                tracing::warn!(target: "lapin::returned_messages", body = "secret", "returned");
                tracing::error!(target: "lapin::channels", "broken");
                tracing::info!("ours");
            });
            let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
            assert!(!text.contains("secret"), "{level}: {text}");
            assert!(
                text.contains("broken") && text.contains("ours"),
                "{level}: {text}"
            );
        }
    }

    const HOSTILE: &str = "a\u{1b}[2Jb\r\nfake line\u{85}\u{9b}31m\u{202e}evil\u{2028}\0";

    #[test]
    fn a_text_line_stays_one_line_without_controls() {
        let line = logged(false, HOSTILE);
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        assert!(!line.trim_end_matches('\n').contains(obeyed), "{line:?}");
        assert!(
            line.contains("fake line"),
            "the text itself is kept: {line:?}"
        );
    }

    #[test]
    fn a_json_line_reads_back_to_what_was_logged() {
        let line = logged(true, HOSTILE);
        assert!(!line.trim_end_matches('\n').contains(obeyed), "{line:?}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["name"], HOSTILE);
    }

    #[test]
    fn plain_text_is_not_copied() {
        assert!(matches!(neutral("Größe 5 €, 東京"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_word_that_is_no_level_or_format_is_a_fault() {
        let faults = |level: &str| {
            let level = level.to_owned();
            let settings = Settings {
                level,
                ..Settings::default()
            };
            settings.faults().len()
        };
        for fine in ["info", "WARN", "off", "info,postrider_deliverer=debug"] {
            assert_eq!(faults(fine), 0, "{fine}");
        }
        for bad in ["loud", "info,loud", "info,postrider=loud"] {
            assert_eq!(faults(bad), 1, "{bad}");
        }
        let error = serde_json::from_str::<Format>("\"xml\"").unwrap_err();
        assert!(error.to_string().contains("`text` or `json`"), "{error}");
    }

    #[test]
    fn a_bad_level_is_named() {
        let settings = Settings {
            level: "info,postrider=loud".into(),
            ..Settings::default()
        };
        let error = init(&settings, &[]).unwrap_err().to_string();
        assert!(
            error.starts_with("log.level: \"info,postrider=loud\""),
            "{error}"
        );
    }
}
