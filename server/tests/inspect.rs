//! `varvectl inspect` on the files of a node that was stopped, one that runs, and
//! one whose files are damaged.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Cluster, client};
use varve_types::{PutRequest, RangeRequest};

const PAGE_BYTES: usize = 4096;

fn inspect(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varvectl"));
    command.env_remove("VARVECTL_WRITE_OUT");
    command.arg("inspect").args(arguments).output().unwrap()
}

/// What it prints when all is well.
fn said(arguments: &[&str]) -> String {
    let output = inspect(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> serde_json::Value {
    let mut all = vec!["-w", "json"];
    all.extend(arguments);
    serde_json::from_str(&said(&all)).unwrap()
}

/// All files below, with their bytes.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false => found.push((path.clone(), std::fs::read(path).unwrap())),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_stopped_nodes_files_are_shown_and_checked_and_not_changed() {
    let mut cluster = Cluster::start(1, &[]);
    cluster.wait_healthy();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = client(&cluster.endpoints());
        for number in 0..300_u32 {
            let key = format!("/registry/pods/{number:05}");
            let value = vec![b'v'; if number % 50 == 0 { 9000 } else { 200 }];
            let request = PutRequest {
                key: key.as_bytes(),
                value: &value,
                ..PutRequest::default()
            };
            client.put(&request).await.unwrap();
        }
    });
    let member = &mut cluster.members[0];
    let dir = member.data_dir.to_str().unwrap().to_owned();
    let dir = dir.as_str();
    // While it runs there is a warning, and no check.
    let running = inspect(&["meta", dir]);
    assert!(running.status.success());
    assert!(String::from_utf8_lossy(&running.stderr).contains("warning: a process uses"));
    let refused = inspect(&["check", dir]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nobody writes to"));

    assert!(member.signal("TERM").success());
    let before = files(&member.data_dir);
    let meta = said(&["meta", dir]);
    assert!(
        meta.contains("(in use): sequence") && meta.contains("tree latest: root"),
        "{meta}"
    );
    let value = json(&["meta", dir]);
    let chosen = value["chosen"].as_u64().unwrap();
    let trees = value["meta"][chosen as usize]["trees"].as_array().unwrap();
    let latest = trees.iter().find(|tree| tree["tree"] == "latest").unwrap();
    assert_eq!(latest["entries"], 300);

    let tree = said(&["tree", dir, "--tree", "latest"]);
    assert!(
        tree.contains("300 entries") && tree.contains("6 long values"),
        "{tree}"
    );
    assert!(tree.contains("pages are free"), "{tree}");
    let root = latest["root"].to_string();
    let page = said(&["page", dir, &root]);
    assert!(page.contains(": ok") && page.contains("in use"), "{page}");
    let value = json(&["page", dir, &root]);
    assert_eq!(value["kind"], "branch");
    let leaf = value["slots"][1]["page"].to_string();
    let page = said(&["page", dir, &leaf]);
    assert!(page.contains("\"/registry/pods/00"), "{page}");
    let page = said(&["--hex", "page", dir, &leaf]);
    assert!(page.contains("2f72656769737472792f706f6473"), "{page}");

    let wal = said(&["wal", dir]);
    for part in [
        "cluster",
        "marker index 1",
        "hard state term",
        "(1 commands)",
        "nothing more",
    ] {
        assert!(wal.contains(part), "{part}: {wal}");
    }
    let few = said(&["wal", dir, "--from", "100", "--limit", "2"]);
    assert!(few.contains(" index 100 "), "{few}");
    assert_eq!(few.matches("crc").count(), 2, "{few}");
    let segments = said(&["wal", dir, "--segments"]);
    assert!(
        !segments.contains("crc") && segments.contains(".wal: "),
        "{segments}"
    );
    let lines = said(&["-w", "json", "wal", dir]);
    let entries = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let entries = entries.filter(|line: &serde_json::Value| line["type"] == "entry");
    assert!(entries.count() >= 300);

    let check = said(&["check", dir]);
    for part in [
        "store: ok",
        "revisions: ok: revision 301, 300 live",
        "wal: ok",
        "no damage",
    ] {
        assert!(check.contains(part), "{part}: {check}");
    }
    assert_eq!(json(&["check", dir])["ok"], true);
    assert_eq!(files(&member.data_dir), before, "nothing is changed");

    damaged(&before, dir, &leaf);
}

/// The same files with a bit flipped in a leaf, and then in the log.
fn damaged(files: &[(PathBuf, Vec<u8>)], dir: &str, leaf: &str) {
    let is_store = |path: &Path| path.extension().is_some_and(|ending| ending == "db");
    let (store, bytes) = files.iter().find(|(path, _)| is_store(path)).unwrap();
    let mut wrong = bytes.clone();
    wrong[leaf.parse::<usize>().unwrap() * PAGE_BYTES + 3000] ^= 1;
    std::fs::write(store, &wrong).unwrap();
    let named = format!("page {leaf} is damaged: checksum is");
    for arguments in [
        &["check", dir][..],
        &["tree", dir],
        &["check", store.to_str().unwrap()],
    ] {
        let output = inspect(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(
            text.contains(&named) && text.contains("DAMAGED"),
            "{arguments:?}: {text}"
        );
    }
    let output = inspect(&["page", dir, leaf]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("WRONG"));
    std::fs::write(store, bytes).unwrap();

    let is_log = |path: &Path| path.extension().is_some_and(|ending| ending == "wal");
    let (log, bytes) = files.iter().find(|(path, _)| is_log(path)).unwrap();
    let mut wrong = bytes.clone();
    wrong[5 * PAGE_BYTES + 40] ^= 1;
    std::fs::write(log, &wrong).unwrap();
    let output = inspect(&["check", dir]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("of segment 1 is damaged") && text.contains("store: ok"),
        "{text}"
    );
    // Garbage of any kind: an error, never a panic.
    for length in [0, 10, 4096, 100_000] {
        std::fs::write(store, vec![0xa7; length]).unwrap();
        std::fs::write(log, vec![0x3c; length]).unwrap();
        for what in ["meta", "tree", "wal", "check"] {
            let code = inspect(&[what, dir]).status.code();
            assert!(
                matches!(code, Some(0 | 1)),
                "{what} of {length} bytes: {code:?}"
            );
        }
    }
    let output = inspect(&["meta", "/no/such/directory"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no such file"));
}

#[test]
fn a_node_that_compresses_answers_the_same_and_its_files_check() {
    let mut cluster = Cluster::start(1, &["--value-compression", "lz4"]);
    cluster.wait_healthy();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let value = vec![b'v'; 9000];
    runtime.block_on(async {
        let client = client(&cluster.endpoints());
        for number in 0..50_u32 {
            let key = format!("/registry/pods/{number:05}");
            let request = PutRequest {
                key: key.as_bytes(),
                value: &value,
                ..PutRequest::default()
            };
            client.put(&request).await.unwrap();
        }
        let request = RangeRequest {
            key: b"/registry/pods/",
            range_end: b"/registry/pods0",
            ..RangeRequest::default()
        };
        let kvs = client.range(&request).await.unwrap().body.kvs;
        assert_eq!(kvs.len(), 50);
        assert!(kvs.iter().all(|kv| kv.value == value));
    });
    let member = &mut cluster.members[0];
    assert!(member.signal("TERM").success());
    let dir = member.data_dir.to_str().unwrap();
    let check = said(&["check", dir]);
    assert!(
        check.contains("50 live keys") && check.contains("no damage"),
        "{check}"
    );
    let tree = said(&["tree", dir, "--tree", "latest"]);
    assert!(
        tree.contains("50 entries") && tree.contains(" 0 long values"),
        "{tree}"
    );
}
