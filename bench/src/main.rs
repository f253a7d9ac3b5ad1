//! `varve-bench`: loads a cluster and says what it did, checks what it reads
//! back, and compares with etcd driven by the same generator. Compares storage
//! engines too.

mod cli;
mod compare;
mod engines;
mod error;
mod http;
mod load;
mod machine;
mod report;
mod session;
mod spawn;
mod target;
mod torture;
mod upkeep;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("varve-bench: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            cli::Command::Load(args) => session::run(args).await,
            cli::Command::Compare(args) => compare::run(args).await,
            cli::Command::Engines(args) => engines::run(&args),
            cli::Command::Big(args) => engines::big::run(&args),
            cli::Command::Upkeep(args) => upkeep::run(args).await,
            cli::Command::Torture(args) => torture::run(args).await,
        }
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error::BenchError::Interrupted) => {
            eprintln!("varve-bench: interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("varve-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
