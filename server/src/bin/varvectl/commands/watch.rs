//! `watch`, on the command line and interactive.

use std::ffi::{OsStr, OsString};
use std::io::BufRead;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use tokio::sync::mpsc;
use varve_client::{Client, ClientError, Watch};
use varve_types::{Event, EventKind};

use super::watch_args::{EnvKeys, WatchOp};
use crate::cli::WatchArgs;
use crate::failure::{EXIT_ERROR, EXIT_INTERRUPTED, Failure};
use crate::go_format::quote;
use crate::output::{to_stderr, to_stdout};
use crate::printer::{Printer, WatchNews};
use crate::settings::Settings;
use crate::words;

pub(super) async fn run(args: WatchArgs, settings: &Settings) -> Result<(), Failure> {
    let env = EnvKeys::read().map_err(Failure::bad_args)?;
    if args.interactive {
        return interactive(settings, &env).await;
    }
    let separator = std::env::args_os().any(|word| word == "--");
    let op = WatchOp::new(args.target, separator, &env).map_err(Failure::bad_args)?;
    let client = settings.client()?;
    let printer = settings.printer()?;
    report(client.watch(&op.request()), printer, op.command).await?;
    Err(Failure::new(
        EXIT_INTERRUPTED,
        "watch is canceled by the server",
    ))
}

/// Reads watches from standard input, one per line; they all run on one connection.
async fn interactive(settings: &Settings, env: &EnvKeys) -> Result<(), Failure> {
    let client = settings.client()?;
    let printer = settings.printer()?;
    let mut lines = standard_input();
    // A watch that cannot go on (its command failed, standard output is gone) ends the program.
    let (fatal, mut failures) = mpsc::unbounded_channel();
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            failure = failures.recv() => match failure {
                Some(failure) => return Err(failure),
                None => continue,
            },
        };
        let line = line
            .ok_or_else(|| read_error("EOF"))?
            .map_err(|e| read_error(&e))?;
        let mut words = words::split(&line)?.into_iter();
        match words.next().as_deref().map(OsStrExt::as_bytes) {
            None => to_stderr(&format!(
                "Invalid command: {line} (watch and progress supported)"
            )),
            Some(b"watch") => {
                if words.len() == 0 && env.key.is_none() {
                    to_stderr(&format!(
                        "Invalid command {line} (command type or key is not provided)"
                    ));
                    continue;
                }
                let op = WatchOp::from_words(words.collect(), env).map_err(Failure::bad_args)?;
                let watch = client.watch(&op.request());
                let fatal = fatal.clone();
                tokio::spawn(async move {
                    if let Err(failure) = report(watch, printer, op.command).await {
                        // The program is ending already if nobody listens.
                        drop(fatal.send(failure));
                    }
                });
                // Let the watch open before the next line is looked at.
                tokio::task::yield_now().await;
            }
            Some(b"progress") => report_progress(&client).await?,
            Some(_) => to_stderr(&format!("Invalid command {line} (only support watch)")),
        }
    }
}

fn read_error(reason: &str) -> Failure {
    Failure::invalid_input(format!("Error reading watch request line: {reason}"))
}

/// Lines of standard input, read on a thread of their own.
fn standard_input() -> mpsc::Receiver<Result<String, String>> {
    let (lines, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|error| error.to_string());
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn report_progress(client: &Client) -> Result<(), Failure> {
    let revision = client.watch_progress().await?;
    to_stdout(format!("progress notify: {revision}\n").as_bytes())
}

/// Prints news, and runs the command for each event, until the watch ends.
async fn report(mut watch: Watch, printer: Printer, command: Vec<OsString>) -> Result<(), Failure> {
    while let Some(news) = watch.next().await {
        let update = match news {
            Ok(update) => update,
            Err(error) => return report_end(&watch, &error, printer),
        };
        if update.events.is_empty() {
            let line = format!("progress notify: {}\n", update.header.revision);
            to_stdout(line.as_bytes())?;
        }
        to_stdout(&printer.watch(&WatchNews {
            header: update.header,
            events: &update.events,
            canceled: false,
            compact_revision: 0,
        })?)?;
        if !command.is_empty() {
            for event in update.events {
                let command = command.clone();
                let revision = update.header.revision;
                let ran = tokio::task::spawn_blocking(move || execute(&command, revision, &event));
                ran.await
                    .map_err(|error| Failure::new(EXIT_ERROR, error))??;
            }
        }
    }
    Ok(())
}

fn report_end(watch: &Watch, error: &ClientError, printer: Printer) -> Result<(), Failure> {
    to_stderr(&format!("watch was canceled ({error})"));
    let mut header = watch.last_header();
    header.revision = 0;
    to_stdout(&printer.watch(&WatchNews {
        header,
        events: &[],
        canceled: true,
        compact_revision: error.compact_revision().unwrap_or(0),
    })?)
}

fn execute(command: &[OsString], revision: i64, event: &Event) -> Result<(), Failure> {
    let Some((program, args)) = command.split_first() else {
        return Ok(());
    };
    let kind = match event.kind {
        EventKind::Put => "\"PUT\"",
        EventKind::Delete => "\"DELETE\"",
    };
    let status = Command::new(program)
        .args(args)
        .env("ETCD_WATCH_REVISION", revision.to_string())
        .env("ETCD_WATCH_EVENT_TYPE", kind)
        .env("ETCD_WATCH_KEY", quote(&event.kv.key))
        .env("ETCD_WATCH_VALUE", quote(&event.kv.value))
        .status();
    let reason = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => describe(status),
        Err(error) => cannot_start(program, &error),
    };
    let words: Vec<_> = command
        .iter()
        .map(|word| quote(OsStr::as_bytes(word)))
        .collect();
    to_stderr(&format!("command [{}] error ({reason})", words.join(" ")));
    Err(Failure::silent(EXIT_ERROR))
}

/// Why a program did not start, as Go says it.
fn cannot_start(program: &OsStr, error: &std::io::Error) -> String {
    let on_path = !program.as_bytes().contains(&b'/');
    if on_path && error.kind() == std::io::ErrorKind::NotFound {
        let program = quote(program.as_bytes());
        return format!("exec: {program}: executable file not found in $PATH");
    }
    let reason = error.to_string().to_lowercase();
    let reason = reason.split(" (os error").next().unwrap_or_default();
    format!("fork/exec {}: {reason}", program.to_string_lossy())
}

/// How a program ended, as Go says it.
fn describe(status: ExitStatus) -> String {
    let signal = match (status.code(), status.signal()) {
        (Some(code), _) => return format!("exit status {code}"),
        (None, Some(signal)) => signal,
        (None, None) => return status.to_string(),
    };
    match signal {
        1 => "signal: hangup".to_owned(),
        2 => "signal: interrupt".to_owned(),
        3 => "signal: quit".to_owned(),
        6 => "signal: aborted".to_owned(),
        9 => "signal: killed".to_owned(),
        11 => "signal: segmentation fault".to_owned(),
        13 => "signal: broken pipe".to_owned(),
        15 => "signal: terminated".to_owned(),
        other => format!("signal: signal {other}"),
    }
}
