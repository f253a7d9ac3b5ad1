//! `txn`.

use crate::cli::TxnArgs;
use crate::failure::Failure;
use crate::output::to_stdout;
use crate::settings::Settings;
use crate::txn_parser::Script;

pub(super) async fn run(args: &TxnArgs, settings: &Settings) -> Result<(), Failure> {
    if !args.args.is_empty() {
        return Err(Failure::bad_args("txn command does not accept argument"));
    }
    let client = settings.client()?;
    let printer = settings.printer()?;
    let script = Script::read(&mut std::io::stdin().lock(), |prompt| {
        match args.interactive {
            true => to_stdout(format!("{prompt}\n").as_bytes()),
            false => Ok(()),
        }
    })?;
    let answer = client.txn(script.request()).await?;
    to_stdout(&printer.txn(&answer)?)
}
