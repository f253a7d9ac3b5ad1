//! `put`.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;

use varve_types::PutRequest;

use crate::cli::PutArgs;
use crate::failure::Failure;
use crate::go_format::parse_int_radix;
use crate::output::to_stdout;
use crate::settings::Settings;

/// A checked `put`, on the command line or in a transaction.
#[derive(Debug)]
pub(crate) struct PutOp {
    key: Vec<u8>,
    value: Vec<u8>,
    rest: PutRequest<'static>,
}

impl PutOp {
    /// Checks the arguments; a value that is not among them comes from `input`.
    pub(crate) fn new(
        args: &PutArgs,
        input: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Result<Self, Failure> {
        let needs = || {
            Failure::bad_args("put command needs 1 argument and input from stdin or 2 arguments")
        };
        let key = args.args.first().ok_or_else(needs)?.as_bytes().to_vec();
        let given = args.args.get(1).map(|value| value.as_bytes().to_vec());
        if args.ignore_value && given.is_some() {
            return Err(Failure::bad_args(
                "put command needs only 1 argument when 'ignore-value' is set",
            ));
        }
        let value = match (args.ignore_value, given) {
            (true, _) => Vec::new(),
            (false, Some(value)) => value,
            (false, None) => input()
                .filter(|value| !value.is_empty())
                .ok_or_else(needs)?,
        };
        let lease = parse_int_radix(&args.lease, 16).map_err(|reason| {
            Failure::bad_args(format!("bad lease ID ({reason}), expecting ID in Hex"))
        })?;
        Ok(Self {
            key,
            value,
            rest: PutRequest {
                lease,
                prev_kv: args.prev_kv,
                ignore_value: args.ignore_value,
                ignore_lease: args.ignore_lease,
                ..PutRequest::default()
            },
        })
    }

    pub(crate) fn request(&self) -> PutRequest<'_> {
        PutRequest {
            key: &self.key,
            value: &self.value,
            ..self.rest
        }
    }
}

fn standard_input() -> Option<Vec<u8>> {
    let mut value = Vec::new();
    std::io::stdin().lock().read_to_end(&mut value).ok()?;
    Some(value)
}

pub(super) async fn run(args: &PutArgs, settings: &Settings) -> Result<(), Failure> {
    let op = PutOp::new(args, standard_input)?;
    let client = settings.client()?;
    let printer = settings.printer()?;
    let answer = client.put(&op.request()).await?;
    to_stdout(&printer.put(&answer)?)
}
