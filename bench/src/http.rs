//! As much of an HTTP client as `/health` and `/metrics` need.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::target::{authority, dial};

/// No answer that is read here is larger.
const MAX_BYTES: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(5);

/// Status and body of a GET.
pub(crate) async fn get(endpoint: &str, path: &str) -> Result<(u16, String), String> {
    tokio::time::timeout(PATIENCE, get_patiently(endpoint, path))
        .await
        .map_err(|_| format!("GET {path}: no answer in {} s", PATIENCE.as_secs()))?
}

async fn get_patiently(endpoint: &str, path: &str) -> Result<(u16, String), String> {
    let failed = |error: std::io::Error| format!("GET {path}: {error}");
    let mut stream = dial(endpoint).await?;
    let host = authority(endpoint);
    // 1.0, so that the answer comes in one piece and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    stream
        .take(MAX_BYTES)
        .read_to_end(&mut answer)
        .await
        .map_err(failed)?;
    parse(&String::from_utf8_lossy(&answer)).ok_or_else(|| format!("GET {path}: not HTTP"))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    Some((status.parse().ok()?, body.to_owned()))
}

/// The samples of a Prometheus page by name, those of one name (other labels) added up.
pub(crate) fn samples(page: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let name = series.split('{').next().unwrap_or(series);
        if let Ok(value) = value.trim().parse::<f64>() {
            *samples.entry(name.to_owned()).or_insert(0.0) += value;
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let answer = "HTTP/1.0 200 OK\r\nA: b\r\n\r\n{\"health\":\"true\"}";
        assert_eq!(parse(answer), Some((200, "{\"health\":\"true\"}".into())));
        assert_eq!(parse("garbage"), None);
    }

    #[test]
    fn metrics() {
        let page = "# HELP x y\nx_count 3\nx_sum 0.5\nk{a=\"1 2\"} 1\nk{a=\"3\"} 2\nbad\n";
        let samples = samples(page);
        assert_eq!(samples["x_count"], 3.0);
        assert_eq!(samples["k"], 3.0);
        assert_eq!(samples.len(), 3);
    }
}
