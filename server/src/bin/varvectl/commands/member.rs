//! `member`.

use super::is_linearizable;
use crate::cli::{MemberArgs, MemberCommand};
use crate::failure::Failure;
use crate::output::to_stdout;
use crate::settings::Settings;

pub(super) async fn run(args: &MemberArgs, settings: &Settings) -> Result<(), Failure> {
    match &args.command {
        MemberCommand::List(args) => {
            let linearizable = is_linearizable(&args.consistency)?;
            let client = settings.client()?;
            let printer = settings.printer()?;
            let mut answer = client.member_list(linearizable).await?;
            // etcd's member list does not tell the store's revision.
            answer.header.revision = 0;
            to_stdout(&printer.member_list(&answer))
        }
    }
}
