//! Damage on a running node's disk is found without anybody reading it, and told
//! by its log, its metrics and its health.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use common::{Cluster, client, wait_until};
use varve_types::PutRequest;

const PAGE_BYTES: usize = 4096;
const LEAF: u8 = 1;

/// The node's one store file.
fn store_of(data_dir: &std::path::Path) -> PathBuf {
    let mut dirs = vec![data_dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                dirs.push(path);
            } else if name.starts_with("store-") {
                return path;
            }
        }
    }
    panic!("no store in {}", data_dir.display());
}

/// Flips a bit in every leaf of a store's file.
fn damage(path: &std::path::Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let pages = file.metadata().unwrap().len() / PAGE_BYTES as u64;
    let mut bytes = [0; PAGE_BYTES];
    for page in 2..pages {
        file.read_exact_at(&mut bytes, page * PAGE_BYTES as u64)
            .unwrap();
        if bytes[4] == LEAF {
            let at = page * PAGE_BYTES as u64 + 3000;
            file.write_all_at(&[bytes[3000] ^ 4], at).unwrap();
        }
    }
}

#[test]
fn a_member_of_three_that_finds_damage_heals() {
    let mut cluster = Cluster::start(3, &["--scrub-interval", "300ms"]);
    cluster.wait_healthy();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = client(&cluster.endpoints());
        for number in 0..300_u32 {
            let key = format!("/registry/pods/{number:05}");
            let request = PutRequest {
                key: key.as_bytes(),
                value: &[b'v'; 300],
                ..PutRequest::default()
            };
            client.put(&request).await.unwrap();
        }
    });
    // A clean end makes a checkpoint, which is what a scrub reads.
    assert!(cluster.members[1].signal("TERM").success());
    cluster.spawn(1);
    cluster.wait_healthy();
    let member = &cluster.members[1];
    wait_until("a clean pass", || {
        member.metric("varve_scrub_passes_total") >= 1.0
    });
    let store = store_of(&member.data_dir);
    damage(&store);
    wait_until("the member to heal", || {
        member.log().contains("votes in the place of the damaged")
    });
    cluster.wait_healthy();
}

#[test]
fn damage_that_nobody_reads_is_found_and_told() {
    let mut cluster = Cluster::start(1, &["--scrub-interval", "200ms"]);
    cluster.wait_healthy();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = client(&cluster.endpoints());
        for number in 0..2000_u32 {
            let key = format!("/registry/pods/{number:05}");
            let value = vec![b'v'; 300];
            client
                .put(&PutRequest {
                    key: key.as_bytes(),
                    value: &value,
                    ..PutRequest::default()
                })
                .await
                .unwrap();
        }
    });
    // A clean end makes a checkpoint; after the start nothing has read the leaves.
    let member = &mut cluster.members[0];
    assert!(member.signal("TERM").success());
    cluster.spawn(0);
    cluster.wait_healthy();
    let member = &cluster.members[0];
    wait_until("a clean pass", || {
        member.metric("varve_scrub_passes_total") >= 1.0
    });
    assert_eq!(member.metric("varve_damaged_places"), 0.0);
    assert!(member.get("/health").0.contains("200"));

    let path = store_of(&member.data_dir);
    damage(&path);
    wait_until("the damage to be found", || {
        member.metric("varve_damaged_places") > 2.0
    });
    let (head, body) = member.get("/health");
    assert!(
        head.contains("503") && body.contains("ALARM CORRUPT"),
        "{head} {body}"
    );
    assert!(body.contains("is damaged: checksum is"), "{body}");
    assert!(member.get("/readyz/data_corruption").0.contains("503"));
    assert!(member.get("/livez").0.contains("200"));
    let log = member.log();
    let named = format!("{}: page ", path.display());
    assert!(log.contains("damage: ") && log.contains(&named), "{log}");
    wait_until("the scrub's count", || {
        member.metric("varve_scrub_errors_total") > 2.0
    });
    assert!(member.is_running());
}
