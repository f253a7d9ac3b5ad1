//! varvectl: the command line client of varve, with etcdctl's commands,
//! outputs, error texts and exit codes.

mod cli;
mod commands;
mod failure;
mod go_format;
mod output;
mod printer;
mod settings;
mod txn_parser;
mod usage;
mod words;

use clap::Parser;

use crate::cli::Cli;
use crate::failure::{EXIT_ERROR, Failure};
use crate::settings::Settings;

fn main() {
    let outcome = match Cli::try_parse() {
        Ok(cli) => run(cli),
        Err(error) => usage::explain(&error),
    };
    if let Err(failure) = outcome {
        failure.report();
        std::process::exit(failure.code);
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let settings = Settings::new(cli.global)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(EXIT_ERROR, format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(commands::run(cli.command, settings));
    // A read of standard input may still be blocked.
    runtime.shutdown_background();
    outcome
}
