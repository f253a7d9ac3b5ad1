//! `del`.

use varve_types::DeleteRangeRequest;

use super::keys_of;
use crate::cli::DelArgs;
use crate::failure::Failure;
use crate::output::to_stdout;
use crate::settings::Settings;

/// A checked `del`, on the command line or in a transaction.
#[derive(Debug)]
pub(crate) struct DeleteOp {
    key: Vec<u8>,
    range_end: Vec<u8>,
    prev_kv: bool,
}

impl DeleteOp {
    pub(crate) fn new(args: &DelArgs) -> Result<Self, Failure> {
        if args.args.is_empty() || args.args.len() > 2 {
            return Err(Failure::bad_args(
                "del command needs one argument as key and an optional argument as range_end",
            ));
        }
        let (key, range_end) = keys_of(&args.args, args.prefix, args.from_key)?;
        Ok(Self {
            key,
            range_end,
            prev_kv: args.prev_kv,
        })
    }

    pub(crate) fn request(&self) -> DeleteRangeRequest<'_> {
        DeleteRangeRequest {
            key: &self.key,
            range_end: &self.range_end,
            prev_kv: self.prev_kv,
        }
    }
}

pub(super) async fn run(args: &DelArgs, settings: &Settings) -> Result<(), Failure> {
    let op = DeleteOp::new(args)?;
    let client = settings.client()?;
    let printer = settings.printer()?;
    let answer = client.delete_range(&op.request()).await?;
    to_stdout(&printer.delete(&answer)?)
}
