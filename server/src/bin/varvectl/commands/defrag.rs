//! `defrag`.

use super::endpoint::asked_endpoints;
use crate::cli::DefragArgs;
use crate::failure::{EXIT_ERROR, Failure};
use crate::output::{to_stderr, to_stdout};
use crate::settings::Settings;

/// One member after the other: etcd's advice, and its texts.
pub(super) async fn run(args: &DefragArgs, settings: &Settings) -> Result<(), Failure> {
    let endpoints = asked_endpoints(args.cluster, settings).await?;
    let client = settings.client()?;
    let mut has_failed = false;
    for endpoint in endpoints {
        match client.defragment(&endpoint).await {
            Ok(_) => {
                to_stdout(format!("Finished defragmenting etcd member[{endpoint}]\n").as_bytes())?
            }
            Err(error) => {
                to_stderr(&format!(
                    "Failed to defragment etcd member[{endpoint}] ({error})"
                ));
                has_failed = true;
            }
        }
    }
    match has_failed {
        true => Err(Failure::silent(EXIT_ERROR)),
        false => Ok(()),
    }
}
