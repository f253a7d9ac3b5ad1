//! `space`.

use std::os::unix::ffi::OsStrExt;

use varve_protocol::SpaceRequest;

use crate::cli::SpaceArgs;
use crate::failure::Failure;
use crate::output::to_stdout;
use crate::settings::Settings;

pub(super) async fn run(args: &SpaceArgs, settings: &Settings) -> Result<(), Failure> {
    let [prefix] = args.args.as_slice() else {
        return Err(Failure::bad_args("space command needs 1 argument"));
    };
    let Ok(depth @ 1..) = u32::try_from(args.depth) else {
        return Err(Failure::bad_args("depth must be 1 or more"));
    };
    let printer = settings.printer()?;
    printer.check_space()?;
    let client = settings.client()?;
    let mut lines = Vec::new();
    let mut last: Option<(Vec<u8>, bool)> = None;
    loop {
        let request = SpaceRequest {
            prefix: prefix.as_bytes(),
            separator: args.separator.as_bytes(),
            depth,
            limit: 0,
            after: last.as_ref().map(|(name, kind)| (&name[..], *kind)),
        };
        let mut answer = client.space(&request).await?;
        let newest = answer.body.lines.last();
        last = newest.map(|line| (line.name.clone(), line.is_directory));
        let more = answer.body.more && last.is_some();
        lines.append(&mut answer.body.lines);
        if printer.is_simple() || !more {
            to_stdout(&printer.space(&answer.header, &lines))?;
            lines.clear();
        }
        if !more {
            return Ok(());
        }
    }
}
