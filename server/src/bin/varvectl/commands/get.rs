//! `get`.

use varve_types::{RangeRequest, SortOrder, SortTarget};

use super::{is_linearizable, keys_of};
use crate::cli::GetArgs;
use crate::failure::{EXIT_BAD_FEATURE, Failure};
use crate::output::to_stdout;
use crate::printer::Format;
use crate::settings::Settings;

/// A checked `get`, on the command line or in a transaction.
#[derive(Debug)]
pub(crate) struct GetOp {
    key: Vec<u8>,
    range_end: Vec<u8>,
    rest: RangeRequest<'static>,
}

impl GetOp {
    pub(crate) fn new(args: &GetArgs) -> Result<Self, Failure> {
        if args.args.is_empty() {
            return Err(Failure::bad_args(
                "get command needs one argument as key and an optional argument as range_end",
            ));
        }
        let (key, range_end) = keys_of(&args.args, args.prefix, args.from_key)?;
        let serializable = !is_linearizable(&args.consistency)?;
        let sort_order = match args.order.to_uppercase().as_str() {
            "" => SortOrder::None,
            "ASCEND" => SortOrder::Ascend,
            "DESCEND" => SortOrder::Descend,
            _ => {
                let message = format!("bad sort order {}", args.order);
                return Err(Failure::new(EXIT_BAD_FEATURE, message));
            }
        };
        let sort_target = match args.sort_by.to_uppercase().as_str() {
            "" | "KEY" => SortTarget::Key,
            "CREATE" => SortTarget::Create,
            "MODIFY" => SortTarget::Mod,
            "VALUE" => SortTarget::Value,
            "VERSION" => SortTarget::Version,
            _ => {
                let message = format!("bad sort target {}", args.sort_by);
                return Err(Failure::new(EXIT_BAD_FEATURE, message));
            }
        };
        Ok(Self {
            key,
            range_end,
            rest: RangeRequest {
                limit: args.limit,
                revision: args.rev.max(0),
                sort_order,
                sort_target,
                serializable,
                keys_only: args.keys_only,
                count_only: args.count_only,
                min_mod_revision: args.min_mod_rev,
                max_mod_revision: args.max_mod_rev,
                min_create_revision: args.min_create_rev,
                max_create_revision: args.max_create_rev,
                ..RangeRequest::default()
            },
        })
    }

    pub(crate) fn request(&self) -> RangeRequest<'_> {
        RangeRequest {
            key: &self.key,
            range_end: &self.range_end,
            ..self.rest
        }
    }
}

pub(super) async fn run(args: &GetArgs, settings: &Settings) -> Result<(), Failure> {
    let op = GetOp::new(args)?;
    let client = settings.client()?;
    let mut printer = settings.printer()?;
    let answer = client.range(&op.request()).await?;
    if args.count_only && !matches!(printer.format, Format::Fields | Format::Json) {
        return Err(Failure::bad_args(
            "--count-only is only for `--write-out=fields` and `--write-out=json`",
        ));
    }
    if args.print_value_only {
        let Format::Simple { value_only } = &mut printer.format else {
            return Err(Failure::bad_args(
                "print-value-only is only for `--write-out=simple`",
            ));
        };
        *value_only = true;
    }
    to_stdout(&printer.get(&answer)?)
}
