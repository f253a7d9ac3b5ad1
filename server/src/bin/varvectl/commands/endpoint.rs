//! `endpoint health`, `endpoint status`, `endpoint hashkv`.

use std::time::Instant;

use varve_client::{Answer, Client, ClientError};

use crate::cli::{EndpointArgs, EndpointCommand};
use crate::failure::{EXIT_ERROR, Failure};
use crate::go_format::duration;
use crate::output::{to_stderr, to_stdout};
use crate::printer::{At, Health};
use crate::settings::Settings;

pub(super) async fn run(args: &EndpointArgs, settings: &Settings) -> Result<(), Failure> {
    let printer = settings.printer()?;
    let endpoints = asked_endpoints(args.cluster, settings).await?;
    match &args.command {
        EndpointCommand::Health(_) => {
            let list = health(endpoints, settings).await;
            for line in printer.unhealthy(&list) {
                to_stderr(&line);
            }
            to_stdout(&printer.health(&list))?;
            match list.iter().all(|health| health.error.is_empty()) {
                true => Ok(()),
                false => Err(Failure::new(EXIT_ERROR, "unhealthy cluster")),
            }
        }
        EndpointCommand::Status(_) => {
            let client = settings.client()?;
            let status = async |endpoint: &str| client.status(endpoint).await;
            let (list, failed) = ask_each(endpoints, "status", status).await;
            to_stdout(&printer.status(&list))?;
            failed.map_or(Ok(()), |_| Err(Failure::silent(EXIT_ERROR)))
        }
        EndpointCommand::Hashkv(args) => {
            let client = settings.client()?;
            let hash = async |endpoint: &str| client.hash_kv(endpoint, args.rev).await;
            let (list, failed) = ask_each(endpoints, "hash", hash).await;
            to_stdout(&printer.hash_kv(&list))?;
            failed.map_or(Ok(()), |error| Err(Failure::new(EXIT_ERROR, error)))
        }
    }
}

/// The endpoints given, or with `--cluster` all client URLs of the members.
pub(super) async fn asked_endpoints(
    cluster: bool,
    settings: &Settings,
) -> Result<Vec<String>, Failure> {
    if !cluster {
        return Ok(settings.endpoints.clone());
    }
    let client = settings.client()?;
    // Without quorum the list is wanted most.
    let list = client.member_list(false).await.map_err(|error| {
        let message = format!("failed to fetch endpoints from etcd cluster member list: {error}");
        Failure::new(EXIT_ERROR, message)
    })?;
    let urls = list.body.members.into_iter().flat_map(|m| m.client_urls);
    Ok(urls.collect())
}

/// Asks one endpoint after the other, saying which ones failed; the last failure.
async fn ask_each<T>(
    endpoints: Vec<String>,
    what: &str,
    ask: impl AsyncFn(&str) -> Result<Answer<T>, ClientError>,
) -> (Vec<At<T>>, Option<ClientError>) {
    let (mut list, mut failed) = (Vec::new(), None);
    for endpoint in endpoints {
        match ask(&endpoint).await {
            Ok(answer) => list.push(At { endpoint, answer }),
            Err(error) => {
                to_stderr(&format!(
                    "Failed to get the {what} of endpoint {endpoint} ({error})"
                ));
                failed = Some(error);
            }
        }
    }
    (list, failed)
}

/// Reads a key linearizably at every endpoint, all at once.
async fn health(endpoints: Vec<String>, settings: &Settings) -> Vec<Health> {
    let checks: Vec<_> = endpoints
        .into_iter()
        .map(|endpoint| {
            let client = Client::new(&[&endpoint], settings.config.clone());
            tokio::spawn(async move {
                let start = Instant::now();
                let outcome = match client {
                    Ok(client) => client.get(b"health").await.map(|_| ()),
                    Err(error) => Err(error),
                };
                Health {
                    endpoint,
                    took: duration(start.elapsed()),
                    error: outcome.err().map_or_else(String::new, |e| e.to_string()),
                }
            })
        })
        .collect();
    let mut list = Vec::new();
    for check in checks {
        // A check that was cancelled has nothing to report: the runtime is going down.
        if let Ok(health) = check.await {
            list.push(health);
        }
    }
    list
}
