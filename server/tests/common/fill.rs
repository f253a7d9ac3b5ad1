//! Much data in short time, in transactions of many keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use varve_client::{Client, ClientConfig, ClientError};
use varve_types::{PutRequest, RequestOp, TxnRequest};

use super::PATIENCE;

/// Bytes of each value: four fill a page.
pub const VALUE_BYTES: usize = 900;
/// Operations of one transaction.
const PART: usize = 100;

/// A client that waits long: the node may have much to do.
pub fn patient_client(endpoint: &str) -> Client {
    let config = ClientConfig {
        command_timeout: 2 * PATIENCE,
        ..ClientConfig::default()
    };
    Client::new(&[endpoint], config).unwrap()
}

/// Asks again while it is refused: a busy disk may make the node do that. What is asked
/// here may be done twice.
pub async fn insist<T, F>(mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, ClientError>>,
{
    let started = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(started.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Puts the keys that `name` gives to the numbers below `count`.
pub async fn fill(endpoint: &str, count: usize, name: fn(usize) -> String) {
    let next = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (client, next) = (patient_client(endpoint), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let first = next.fetch_add(PART, Ordering::Relaxed);
                    if first >= count {
                        return;
                    }
                    let names: Vec<_> = (first..count.min(first + PART)).map(name).collect();
                    let value = [b'v'; VALUE_BYTES];
                    let puts = names.iter().map(|name| {
                        RequestOp::Put(PutRequest {
                            key: name.as_bytes(),
                            value: &value,
                            ..PutRequest::default()
                        })
                    });
                    let txn = TxnRequest {
                        success: puts.collect(),
                        ..TxnRequest::default()
                    };
                    insist(|| client.txn(txn.clone())).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}
