//! What each command does, and how it ends.

mod dead_letters;
mod deliveries;
mod dialects;
mod events;
mod jobs;
mod listen;
mod local;
mod subjects;
mod subscriptions;
mod tail;
mod tokens;

use std::{fmt, io::Read, path::Path, process::ExitCode};

use clap::CommandFactory;

use crate::{
    bench,
    cli::{Cli, Command, Global, Publish},
    demo, output, serve,
    settings::Settings,
    stack,
};

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    text: String,
    code: u8,
}

impl Failure {
    /// It was tried and failed (1).
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code: 1,
        }
    }

    /// It was asked wrongly (2).
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code: 2,
        }
    }

    /// The settings are wrong (64).
    pub(crate) fn settings(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code: 64,
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Does what the command line asks.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    match command {
        Command::Completions { shell } => {
            let mut command = Cli::command();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "postrider", &mut script);
            output::text(&script);
            Ok(())
        }
        Command::Config(config) => local::config(&global, &config),
        Command::Topology(topology) => local::topology(&global, &topology),
        Command::Demo(options) => block_on(demo::run(&options)),
        Command::Serve(options) => {
            let settings = settings(&global)?;
            stack::make_room(&settings.broker.url);
            block_on(serve::run(settings, &options.role))
        }
        Command::Bench(options) => bench::run(&global, &options),
        Command::Publish(options) => {
            let settings = settings(&global)?;
            block_on(publish(&settings, &options))
        }
        Command::Subscriptions(options) => {
            let settings = settings(&global)?;
            block_on(subscriptions::run(&settings, options))
        }
        Command::Dialects(options) => dialects::run(&settings(&global)?, options),
        Command::EventTypes(options) => dialects::event_types(&settings(&global)?, &options),
        Command::Events(options) => {
            let settings = settings(&global)?;
            block_on(events::run(&settings, options))
        }
        Command::Deliveries(options) => {
            let settings = settings(&global)?;
            block_on(deliveries::run(&settings, options))
        }
        Command::DeadLetters(options) => {
            let settings = settings(&global)?;
            block_on(dead_letters::run(&settings, options))
        }
        Command::Jobs(options) => {
            let settings = settings(&global)?;
            block_on(jobs::run(&settings, options))
        }
        Command::Listen(options) => {
            let settings = settings(&global)?;
            block_on(listen::run(&settings, *options))
        }
        Command::Tail(options) => {
            let settings = settings(&global)?;
            block_on(tail::run(&settings, options))
        }
        Command::Subjects(options) => {
            let settings = settings(&global)?;
            block_on(subjects::run(&settings, options))
        }
        Command::Quarantine(options) => {
            let settings = settings(&global)?;
            block_on(dead_letters::quarantine(&settings, options))
        }
        Command::Tokens(options) => {
            let settings = settings(&global)?;
            block_on(tokens::run(&settings, options))
        }
    }
}

pub(crate) fn settings(global: &Global) -> Result<Settings, Failure> {
    Ok(crate::settings::load(global)?.settings)
}

/// Runs a future on a runtime of our own.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no runtime: {error}")))?
        .block_on(future)
}

async fn publish(settings: &Settings, options: &Publish) -> Result<(), Failure> {
    let body = read_input(&options.file)?;
    let api = crate::api::Api::new(&options.listing.remote, settings)?;
    let kind = if options.ndjson || is_lines(&body) {
        "application/x-ndjson"
    } else {
        "application/json"
    };
    let answer = api.post_bytes("/v1/events", kind, body).await?;
    output::one(&answer, options.listing.output);
    Ok(())
}

/// Whether there is more than one line, and the first is a whole object.
fn is_lines(body: &[u8]) -> bool {
    let mut lines = body
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty());
    let whole = |line: &[u8]| {
        line.starts_with(b"{") && serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok()
    };
    lines.next().is_some_and(whole) && lines.next().is_some()
}

/// A file's bytes, or standard input's for `-`.
pub(crate) fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes))
    }
    .map_err(|error| Failure::failed(format!("cannot read {}: {error}", path.display())))?;
    Ok(bytes)
}
