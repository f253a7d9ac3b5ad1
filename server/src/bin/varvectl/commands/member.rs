//! `member add`, `member remove`, `member update`, `member promote`, `member list`.

use varve_client::Answer;

use super::is_linearizable;
use crate::cli::{
    Learner, MemberAddArgs, MemberArgs, MemberCommand, MemberIdArgs, MemberUpdateArgs,
};
use crate::failure::{EXIT_ERROR, Failure};
use crate::go_format::parse_hex_id;
use crate::output::to_stdout;
use crate::printer::MemberChange;
use crate::settings::Settings;

pub(super) async fn run(args: &MemberArgs, settings: &Settings) -> Result<(), Failure> {
    match &args.command {
        MemberCommand::Add(args) => add(args, settings).await,
        MemberCommand::Update(args) => update(args, settings).await,
        MemberCommand::Remove(args) => change(args, settings, MemberChange::Removed).await,
        MemberCommand::Promote(args) => change(args, settings, MemberChange::Promoted).await,
        MemberCommand::List(args) => {
            let linearizable = is_linearizable(&args.consistency)?;
            let client = settings.client()?;
            let printer = settings.printer()?;
            let answer = without_revision(client.member_list(linearizable).await?);
            to_stdout(&printer.member_list(&answer))
        }
    }
}

/// etcd's answers about members do not tell the store's revision.
fn without_revision<T>(mut answer: Answer<T>) -> Answer<T> {
    answer.header.revision = 0;
    answer
}

async fn add(args: &MemberAddArgs, settings: &Settings) -> Result<(), Failure> {
    let name = match args.args.as_slice() {
        [] => return Err(Failure::bad_args("member name not provided")),
        [name] => name,
        many => {
            let urls = many
                .iter()
                .filter(|arg| arg.to_lowercase().starts_with("http"));
            let hints: String = urls
                .map(|url| format!(", did you mean --peer-urls={url}"))
                .collect();
            return Err(Failure::bad_args(format!("too many arguments{hints}")));
        }
    };
    let urls = peer_urls(&args.peer_urls)?;
    let printer = settings.printer()?;
    printer.check_member_change()?;
    let client = settings.client()?;
    let answer = match args.learner {
        Learner::No => client.member_add(&urls, false).await?,
        Learner::Keep => client.member_add(&urls, true).await?,
        Learner::Promoted => client.member_add_promotable(&urls).await?,
    };
    let answer = without_revision(answer);
    to_stdout(&printer.member_added(&answer, name, &args.peer_urls)?)
}

async fn update(args: &MemberUpdateArgs, settings: &Settings) -> Result<(), Failure> {
    let id = one_id(&args.args)?;
    let urls = peer_urls(&args.peer_urls)?;
    let printer = settings.printer()?;
    printer.check_member_change()?;
    let answer = settings.client()?.member_update(id, &urls).await?;
    let answer = without_revision(answer);
    to_stdout(&printer.member_changed(&answer, id, MemberChange::Updated)?)
}

async fn change(
    args: &MemberIdArgs,
    settings: &Settings,
    what: MemberChange,
) -> Result<(), Failure> {
    let id = one_id(&args.args)?;
    let printer = settings.printer()?;
    printer.check_member_change()?;
    let client = settings.client()?;
    let answer = match what {
        MemberChange::Promoted => client.member_promote(id).await?,
        _ => client.member_remove(id).await?,
    };
    to_stdout(&printer.member_changed(&without_revision(answer), id, what)?)
}

fn one_id(args: &[String]) -> Result<u64, Failure> {
    let [id] = args else {
        return Err(Failure::bad_args("member ID is not provided"));
    };
    parse_hex_id(id).map_err(|reason| {
        Failure::bad_args(format!("bad member ID arg ({reason}), expecting ID in Hex"))
    })
}

/// As given, but checked: the node sorts them.
fn peer_urls(list: &str) -> Result<Vec<String>, Failure> {
    if list.is_empty() {
        return Err(Failure::bad_args("member peer urls not provided"));
    }
    let checked = varve_raft::parse_urls(list);
    checked.map_err(|error| Failure::new(EXIT_ERROR, error))?;
    Ok(list.split(',').map(|url| url.trim().to_owned()).collect())
}
