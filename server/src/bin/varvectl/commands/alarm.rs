//! `alarm list`, `alarm disarm`.

use varve_client::Answer;
use varve_types::AlarmResponse;

use crate::cli::{AlarmArgs, AlarmCommand};
use crate::failure::{EXIT_ERROR, Failure};
use crate::output::to_stdout;
use crate::settings::Settings;

pub(super) async fn run(args: &AlarmArgs, settings: &Settings) -> Result<(), Failure> {
    let printer = settings.printer()?;
    let client = settings.client()?;
    let answer: Answer<AlarmResponse> = match args.command {
        AlarmCommand::List => client.alarm_list().await,
        AlarmCommand::Disarm => client.alarm_disarm().await,
    }
    .map_err(|error| Failure::new(EXIT_ERROR, error))?;
    to_stdout(&printer.alarm(&answer)?)
}
