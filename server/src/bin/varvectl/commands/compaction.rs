//! `compaction`.

use varve_types::CompactionRequest;

use crate::cli::CompactionArgs;
use crate::failure::{EXIT_ERROR, Failure};
use crate::go_format::parse_int;
use crate::output::to_stdout;
use crate::settings::Settings;

pub(super) async fn run(args: &CompactionArgs, settings: &Settings) -> Result<(), Failure> {
    let [revision] = args.args.as_slice() else {
        return Err(Failure::bad_args("compaction command needs 1 argument"));
    };
    let revision = parse_int(revision).map_err(|reason| Failure::new(EXIT_ERROR, reason))?;
    let request = CompactionRequest {
        revision,
        physical: args.physical,
    };
    settings.client()?.compact(&request).await?;
    to_stdout(format!("compacted revision {revision}\n").as_bytes())
}
