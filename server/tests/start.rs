//! Starting and stopping: flags, environment, config file, and everything that
//! makes a node refuse to start with the reason.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use common::{Cluster, free_port, get, put, run_to_end, wait_until};

#[test]
fn wrong_flags_are_named() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, code, text) in [
        (
            &["--nosuch"][..],
            2,
            "flag provided but not defined: -nosuch",
        ),
        (
            &["--max-txn-ops"],
            2,
            "flag needs an argument: -max-txn-ops",
        ),
        (
            &["--heartbeat-interval", "abc"],
            2,
            "invalid value \"abc\" for flag -heartbeat-interval",
        ),
        (
            &["-snapshot-count=-1"],
            2,
            "invalid value \"-1\" for flag -snapshot-count",
        ),
        (
            &["--engine", "lsm"],
            2,
            "invalid value \"lsm\" for flag -engine",
        ),
        (
            &["--disk", "floppy"],
            2,
            "invalid value \"floppy\" for flag -disk",
        ),
        (
            &["--election-timeout", "100"],
            1,
            "--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[100ms]",
        ),
        (
            &["--listen-client-urls", "http://127.0.0.1:1"],
            1,
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            &["--listen-peer-urls", "http://example.com:2380"],
            1,
            "expected IP in URL for binding (http://example.com:2380)",
        ),
        (
            &["--config-file", "/no/such/file"],
            1,
            "config file /no/such/file",
        ),
    ] {
        let (status, said) = run_to_end(arguments, directory.path());
        assert_eq!(status, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(text), "{arguments:?}: {said}");
    }
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert!(left.is_empty(), "a refused start leaves nothing behind");
}

#[test]
fn help_and_version() {
    let directory = tempfile::tempdir().unwrap();
    let (status, said) = run_to_end(&["--version"], directory.path());
    assert_eq!(status, Some(0));
    assert!(said.starts_with("varve Version: "), "{said}");
    for flag in ["-h", "--help", "-help"] {
        let (status, said) = run_to_end(&[flag], directory.path());
        assert_eq!(status, Some(0));
        assert!(
            said.contains("--initial-cluster-token 'etcd-cluster'"),
            "{said}"
        );
    }
}

#[test]
fn an_initial_cluster_without_this_member() {
    let directory = tempfile::tempdir().unwrap();
    let (client, peer) = (free_port(), free_port());
    let client = format!("http://127.0.0.1:{client}");
    let peer = format!("http://127.0.0.1:{peer}");
    let ports = [
        "--listen-client-urls",
        &client,
        "--advertise-client-urls",
        &client,
        "--listen-peer-urls",
        &peer,
        "--initial-advertise-peer-urls",
        &peer,
    ];
    for (cluster, text) in [
        (
            "other=http://127.0.0.1:1",
            "couldn't find local name \"n1\" in the initial cluster configuration",
        ),
        (
            "n1=http://127.0.0.1:1",
            "--initial-cluster has n1=http://127.0.0.1:1 but missing from \
             --initial-advertise-peer-urls",
        ),
    ] {
        let mut arguments = vec!["--name", "n1", "--initial-cluster", cluster];
        arguments.extend(ports);
        let (status, said) = run_to_end(&arguments, directory.path());
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(text), "{said}");
    }
}

#[test]
fn an_unusable_data_directory() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("data");
    for path in [
        file.to_str().unwrap(),
        below.to_str().unwrap(),
        "/proc/varve",
    ] {
        let (status, said) = run_to_end(&["--data-dir", path], directory.path());
        assert_eq!(status, Some(1), "{said}");
        assert!(
            said.contains("cannot use data directory") && said.contains(path),
            "{said}"
        );
    }
}

#[test]
fn a_port_in_use_and_a_directory_in_use() {
    let cluster = Cluster::start(1, &[]);
    let directory = tempfile::tempdir().unwrap();
    let port = cluster.members[0].client_port;
    let url = format!("http://127.0.0.1:{port}");
    let (status, said) = run_to_end(
        &[
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ],
        directory.path(),
    );
    assert_eq!(status, Some(1), "{said}");
    let text = format!("cannot listen for clients on {url}: Address already in use");
    assert!(said.contains(&text), "{said}");

    let data_dir = cluster.members[0].data_dir.to_str().unwrap();
    let (status, said) = run_to_end(&["--data-dir", data_dir], directory.path());
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("is in use by another process"), "{said}");
}

#[tokio::test]
async fn the_directory_of_another_cluster() {
    let mut cluster = Cluster::start(1, &[]);
    put(&cluster.client(), "k", "v").await.unwrap();
    assert!(cluster.members[0].signal("TERM").success());

    let mut arguments = cluster.arguments(0);
    arguments.extend(["--initial-cluster-token".to_owned(), "other".to_owned()]);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (status, said) = run_to_end(&arguments, cluster.path());
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("this data directory belongs to member")
            && said.contains("but the flags describe member")
            && said.contains("use another --data-dir"),
        "{said}"
    );

    // The same flags still open it, and so does a start that names no cluster.
    cluster.spawn(0);
    cluster.wait_healthy();
    assert_eq!(get(&cluster.client(), "k").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn a_restart_without_the_clusters_flags() {
    let mut cluster = Cluster::start(1, &[]);
    put(&cluster.client(), "k", "v").await.unwrap();
    cluster.members[0].kill();
    let path = cluster.path().join("config.yaml");
    let member = &cluster.members[0];
    let (client, peer) = (member.client_port, member.peer_port);
    let text = format!(
        "data-dir: {}\nlisten-client-urls: http://127.0.0.1:{client}\n\
         advertise-client-urls: http://127.0.0.1:{client}\n\
         listen-peer-urls: http://127.0.0.1:{peer}\n",
        member.data_dir.display()
    );
    std::fs::write(&path, text).unwrap();
    let mut node = std::process::Command::new(env!("CARGO_BIN_EXE_varve"))
        .env("VARVE_CONFIG_FILE", &path)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let found = get(&cluster.client(), "k").await;
    node.kill().unwrap();
    node.wait().unwrap();
    assert_eq!(found.as_deref(), Some("v"));
}

#[test]
fn both_signals_end_a_node_in_order() {
    let mut cluster = Cluster::start(1, &["--election-timeout", "500"]);
    for signal in ["TERM", "INT"] {
        assert!(cluster.members[0].signal(signal).success());
        let log = cluster.members[0].log();
        assert!(
            log.contains(&format!("received SIG{signal}, shutting down")),
            "{log}"
        );
        assert!(log.contains("stopped"), "{log}");
        cluster.spawn(0);
        cluster.wait_healthy();
    }
}

#[test]
fn both_signals_end_a_node_that_waits_for_others() {
    let mut cluster = Cluster::prepare(3, &[]);
    for signal in ["TERM", "INT"] {
        cluster.spawn(0);
        wait_until("it waits for others", || {
            let (_, health) = cluster.members[0].get("/health");
            health.contains("is new; it waits for a quorum")
        });
        assert!(cluster.members[0].signal(signal).success());
        let log = cluster.members[0].log();
        assert!(
            log.contains(&format!("received SIG{signal} before it served, stopped")),
            "{log}"
        );
    }
}

#[test]
fn systemd_is_told_when_it_serves() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let (client, peer) = (free_port(), free_port());
    let mut node = std::process::Command::new(env!("CARGO_BIN_EXE_varve"))
        .current_dir(directory.path())
        .env("NOTIFY_SOCKET", &path)
        .env(
            "VARVE_LISTEN_CLIENT_URLS",
            format!("http://127.0.0.1:{client}"),
        )
        .env(
            "VARVE_ADVERTISE_CLIENT_URLS",
            format!("http://127.0.0.1:{client}"),
        )
        .env("VARVE_LISTEN_PEER_URLS", format!("http://127.0.0.1:{peer}"))
        .env("VARVE_NO_SUCH_THING", "1")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut buffer = [0; 64];
    let read = socket.recv(&mut buffer);
    let health = common::http_get(client, "/health").0;
    node.kill().unwrap();
    let output = node.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(&buffer[..read.unwrap()], b"READY=1", "{said}");
    assert!(health.contains(" 200 "), "{health}");
    assert!(directory.path().join("default.varve").is_dir());
    assert!(
        said.contains("unrecognized environment variable VARVE_NO_SUCH_THING"),
        "{said}"
    );
    assert!(
        said.contains(&format!("listening for clients on 127.0.0.1:{client}")),
        "{said}"
    );
    assert!(said.contains("disk: "), "{said}");
}

#[tokio::test]
async fn the_log_in_a_directory_of_its_own() {
    let mut cluster = Cluster::prepare(1, &[]);
    let wal_dir = cluster.path().join("logs/wal");
    cluster.flags = vec!["--wal-dir".to_owned(), wal_dir.display().to_string()];
    cluster.spawn(0);
    cluster.wait_healthy();
    put(&cluster.client(), "k", "v").await.unwrap();
    cluster.members[0].kill();
    let files = std::fs::read_dir(&wal_dir).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    assert!(!paths.is_empty());
    // All that was written is in there: nobody else may read it.
    paths.push(wal_dir);
    for path in paths {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }
    assert!(!cluster.members[0].data_dir.join("wal").exists());
    cluster.spawn(0);
    cluster.wait_healthy();
    assert_eq!(get(&cluster.client(), "k").await.as_deref(), Some("v"));
}
