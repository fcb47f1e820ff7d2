//! `postrider`: one binary, five stages. This file is the table of contents.

mod api;
mod bench;
mod cli;
mod commands;
mod demo;
mod dialects;
#[cfg(test)]
mod docs;
mod output;
mod serve;
mod settings;
mod sse;
mod stack;

use std::process::ExitCode;

use clap::Parser;

/// Events, bundles and requests are made by one thread and dropped by another, which the C
/// library's allocator pays for with locks and merges.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("postrider: {}", output::lines(&failure.to_string()));
            failure.exit_code()
        }
    }
}
