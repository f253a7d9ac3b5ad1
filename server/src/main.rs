//! The node binary: settings, log, signals.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;
use varve::config::{self, Config, EXIT_START, Invocation, LogLevel};
use varve::node::{NodeError, RunningNode};
use varve::systemd;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    #[cfg(feature = "mutations")]
    let arguments = switch_on_mutation(arguments);
    let variables = std::env::vars_os().map(|(name, value)| {
        (
            name.to_string_lossy().into_owned(),
            value.to_string_lossy().into_owned(),
        )
    });
    let config = match config::load(&arguments, variables) {
        Ok(Invocation::Run(config)) => config,
        Ok(Invocation::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("varve: {error}\nSee 'varve --help'.");
            return ExitCode::from(error.exit_code());
        }
    };
    start_log(config.log_level);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(EXIT_START)
        }
    }
}

/// Takes `--mutation=NAME` out of the arguments.
#[cfg(feature = "mutations")]
fn switch_on_mutation(mut arguments: Vec<String>) -> Vec<String> {
    use varve_engine::mutations::{Mutation, switch_on_everywhere};
    arguments.retain(|argument| {
        let Some(wanted) = argument.strip_prefix("--mutation=") else {
            return true;
        };
        let found = Mutation::ON_REAL_FILES
            .iter()
            .find(|(name, _)| *name == wanted);
        match found {
            Some((name, mutation)) => {
                eprintln!("varve: this node has a deliberate bug: {name}");
                switch_on_everywhere(*mutation);
            }
            // Left in, it is refused as a flag that nobody knows.
            None => return true,
        }
        false
    });
    arguments
}

fn start_log(level: LogLevel) {
    let level = match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .init();
}

fn run(config: &Config) -> Result<(), NodeError> {
    let failed = |action| move |source| NodeError::Process { action, source };
    varve_engine::disk::sigbus::install().map_err(failed("cannot watch for lost pages"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.workers.into())
        .thread_name("varve-socket")
        .enable_all()
        .build()
        .map_err(failed("cannot start the threads that serve sockets"))?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_background();
    result
}

async fn serve(config: &Config) -> Result<(), NodeError> {
    let failed = |source| NodeError::Process {
        action: "cannot handle signals",
        source,
    };
    tracing::info!(
        "varve {} starts as {:?}, data in {}, engine {}",
        env!("CARGO_PKG_VERSION"),
        config.name,
        config.data_dir.display(),
        config.engine.name()
    );
    // Before the start, which may wait for other members: process 1 of a container is
    // not ended by a signal that it does not handle.
    let mut signals = Signals::new().map_err(failed)?;
    let mut found = None;
    loop {
        let start = async {
            match found.take() {
                None => RunningNode::start(config).await,
                Some(found) => RunningNode::start_damaged(config, found).await,
            }
        };
        let node = tokio::select! {
            started = start => started?,
            name = signals.next() => {
                tracing::info!("received {name} before it served, stopped");
                return Ok(());
            }
        };
        match serve_until(config, node, &mut signals).await? {
            End::Asked => return Ok(()),
            End::Damaged(what) => found = Some(what),
        }
    }
}

/// The signals that ask for an orderly end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one; its name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Why a node no longer serves.
enum End {
    /// It was asked to stop, or removed.
    Asked,
    /// Something of it is damaged: what.
    Damaged(String),
}

async fn serve_until(
    config: &Config,
    node: RunningNode,
    signals: &mut Signals,
) -> Result<End, NodeError> {
    let handle = node.handle().clone();
    let publish = RunningNode::publish(
        handle.clone(),
        config.name.clone(),
        config.advertise_client_urls.clone(),
    );
    let announce = tokio::spawn(async move {
        publish.await;
        tracing::info!("ready to serve client requests");
        systemd::notify(systemd::READY);
    });
    let mut damage = None;
    let failure = tokio::select! {
        name = signals.next() => {
            tracing::info!("received {name}, shutting down");
            None
        }
        () = RunningNode::removed(handle.clone()) => {
            tracing::error!("{}", varve_raft::REMOVED_HINT);
            None
        }
        reason = RunningNode::failed(handle.clone()) => {
            damage = handle.damage().map(str::to_owned);
            Some(reason)
        }
        found = RunningNode::damaged(Arc::clone(node.service()), config) => {
            damage = Some(found);
            None
        }
    };
    announce.abort();
    if let Some(found) = damage {
        // What it may still do of an orderly end it does: it hands leadership over.
        if let Err(error) = node.stop().await {
            tracing::warn!("{error}");
        }
        return Ok(End::Damaged(found));
    }
    systemd::notify(systemd::STOPPING);
    tokio::select! {
        stopped = node.stop() => stopped?,
        // Who asks twice does not want to wait.
        _ = signals.next() => tracing::warn!("stopping at once"),
    }
    match failure {
        None => {
            tracing::info!("stopped");
            Ok(End::Asked)
        }
        Some(reason) => Err(varve_raft::RaftError::Stopped(reason).into()),
    }
}
