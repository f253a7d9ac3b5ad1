//! `move-leader`.

use crate::cli::MoveLeaderArgs;
use crate::failure::Failure;
use crate::go_format::parse_hex_id;
use crate::output::to_stdout;
use crate::settings::Settings;

pub(super) async fn run(args: &MoveLeaderArgs, settings: &Settings) -> Result<(), Failure> {
    let [id] = args.args.as_slice() else {
        return Err(Failure::bad_args("move-leader command needs 1 argument"));
    };
    let to = parse_hex_id(id).map_err(Failure::bad_args)?;
    let client = settings.client()?;
    let printer = settings.printer()?;
    for endpoint in &settings.endpoints {
        let status = client.status(endpoint).await?;
        if status.body.leader == status.header.member_id {
            printer.check_member_change()?;
            client.move_leader(endpoint, to).await?;
            return to_stdout(&printer.leader_moved(status.body.leader, to)?);
        }
    }
    Err(Failure::bad_args(format!(
        "no leader endpoint given at [{}]",
        settings.endpoints.join(" ")
    )))
}
