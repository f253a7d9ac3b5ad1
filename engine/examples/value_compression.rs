//! What compressing values saves and costs, on objects as Kubernetes stores them.
//!
//! `cargo run --release -p varve-engine --example value_compression -- [objects] [directory]`
//!
//! An embedded store on the B+tree, once without and once with LZ4: every object is
//! put, 20 per batch; half of them get a new status, twice; all are read at random,
//! and scanned; then history is compacted and free space given back. What is read is
//! compared with what was written. One line of the objects is protobuf-like: field
//! tags, lengths, the same words.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use varve_engine::backend::conformance::Random;
use varve_engine::backend::{self, Compression};
use varve_engine::db::{Db, Options, WriteBatch};
use varve_types::KeyRange;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const BATCH: usize = 20;
const NAMESPACES: usize = 40;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let count: usize = arguments.next().map_or(Ok(20_000), |count| count.parse())?;
    let temporary = tempfile::tempdir()?;
    let dir = arguments
        .next()
        .map_or(temporary.path().to_owned(), PathBuf::from);
    for (name, make) in [
        ("json", json as Make),
        ("json, managed", managed),
        ("protobuf", protobuf),
    ] {
        for compression in [Compression::None, Compression::Lz4] {
            let dir = dir.join(format!("{name}-{compression:?}"));
            measure(&dir, name, make, count, compression)?;
            std::fs::remove_dir_all(&dir)?;
        }
    }
    Ok(())
}

/// An object, by its number and how often its status changed.
type Make = fn(usize, u64) -> Vec<u8>;

fn measure(
    dir: &Path,
    name: &str,
    make: Make,
    count: usize,
    compression: Compression,
) -> Outcome<()> {
    let options = Options {
        backend: backend::Options {
            compression,
            ..backend::Options::default()
        },
        ..Options::default()
    };
    let db = Db::open(dir, options)?;
    let numbers: Vec<usize> = (0..count).collect();
    let put = put_all(&db, &numbers, make, 0)?;
    let mut random = Random::new(1);
    let mut updated: Vec<usize> = Vec::new();
    let mut update = Duration::ZERO;
    for change in 1..=2 {
        updated = (0..count / 2).map(|_| random.below(count)).collect();
        updated.sort_unstable();
        updated.dedup();
        update += put_all(&db, &updated, make, change)?;
    }
    let _ = updated;
    db.checkpoint()?;
    let with_history = db.stats().used_bytes;
    let gets: Vec<usize> = (0..count).map(|_| random.below(count)).collect();
    let started = Instant::now();
    let mut plain_bytes = 0;
    for number in &gets {
        let found = db.get(&key(*number))?.ok_or("a key is missing")?;
        let change = found.version as u64;
        // The number of its change is in the object: one of those that were put.
        assert!((0..=2).any(|change| found.value == make(*number, change)) && change >= 1);
        plain_bytes += found.value.len();
    }
    let get_checked = started.elapsed();
    let started = Instant::now();
    for number in &gets {
        plain_bytes += db.get(&key(*number))?.map_or(0, |found| found.value.len());
    }
    let get = started.elapsed();
    let started = Instant::now();
    let mut scanned = 0;
    for entry in db.iter(KeyRange::From(b"\0"), 0) {
        scanned += entry?.value.len();
    }
    let scan = started.elapsed();
    db.compact(db.revision())?;
    while db.view().compaction_pending() {
        std::thread::sleep(Duration::from_millis(10));
    }
    db.vacuum()?;
    db.checkpoint()?;
    let used = db.stats().used_bytes;
    db.check()?;
    db.close()?;
    let rate = |count: usize, time: Duration| count as f64 / time.as_secs_f64();
    println!(
        "{name:<13} {compression:<5?} {:>5} bytes each: put {:>7.0}/s, update {:>7.0}/s, get {:>7.0}/s, \
         scan {:>5.0} MB/s, store {:>6.1} MB with history, {:>6.1} MB without, of {:.1} MB of values",
        scanned / count,
        rate(count, put),
        rate(count, update),
        rate(count, get),
        scanned as f64 / 1e6 / scan.as_secs_f64(),
        with_history as f64 / 1e6,
        used as f64 / 1e6,
        scanned as f64 / 1e6,
    );
    std::hint::black_box((plain_bytes, get_checked));
    Ok(())
}

fn put_all(db: &Db, numbers: &[usize], make: Make, change: u64) -> Outcome<Duration> {
    let objects: Vec<_> = numbers
        .iter()
        .map(|number| (key(*number), make(*number, change)))
        .collect();
    let started = Instant::now();
    let mut pending = None;
    for part in objects.chunks(BATCH) {
        let mut batch = WriteBatch::new();
        for (key, value) in part {
            batch.put(key, value)?;
        }
        // The next one is made while this one syncs.
        if let Some(former) = pending.replace(db.submit(&batch)?) {
            former.wait()?;
        }
    }
    if let Some(last) = pending {
        last.wait()?;
    }
    Ok(started.elapsed())
}

fn key(number: usize) -> Vec<u8> {
    let namespace = number % NAMESPACES;
    format!("/registry/pods/team-{namespace:02}/web-{number:06}").into_bytes()
}

/// Something of an object that no other one has.
fn unique(number: usize, what: u64, digits: usize) -> String {
    let mut random = Random::new(number as u64 * 31 + what);
    (0..digits)
        .map(|_| char::from(b"0123456789abcdef"[random.below(16)]))
        .collect()
}

fn uid(number: usize, what: u64) -> String {
    let hex = unique(number, what, 32);
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// The fields of a pod: names and values, in order.
fn fields(number: usize, change: u64) -> Vec<(&'static str, String)> {
    let text = str::to_owned;
    let mut fields = vec![
        ("apiVersion", text("v1")),
        ("kind", text("Pod")),
        ("metadata.name", format!("web-{number:06}")),
        ("metadata.generateName", text("web-7c5ddbdf54-")),
        (
            "metadata.namespace",
            format!("team-{:02}", number % NAMESPACES),
        ),
        ("metadata.uid", uid(number, 1)),
        (
            "metadata.creationTimestamp",
            format!("2026-03-{:02}T10:{:02}:17Z", 1 + number % 28, number % 60),
        ),
        ("metadata.labels.app.kubernetes.io/name", text("web")),
        ("metadata.labels.app.kubernetes.io/managed-by", text("Helm")),
        ("metadata.labels.pod-template-hash", text("7c5ddbdf54")),
        (
            "metadata.annotations.checksum/config",
            unique(number % 50, 2, 64),
        ),
        ("metadata.annotations.prometheus.io/scrape", text("true")),
        ("metadata.ownerReferences.0.apiVersion", text("apps/v1")),
        ("metadata.ownerReferences.0.kind", text("ReplicaSet")),
        ("metadata.ownerReferences.0.name", text("web-7c5ddbdf54")),
        ("metadata.ownerReferences.0.uid", uid(number % 200, 3)),
        ("spec.serviceAccountName", text("web")),
        (
            "spec.nodeName",
            format!("ip-10-0-{}-{}.ec2.internal", number % 8, number % 250),
        ),
        ("spec.restartPolicy", text("Always")),
        ("spec.terminationGracePeriodSeconds", text("30")),
        ("spec.dnsPolicy", text("ClusterFirst")),
        ("spec.schedulerName", text("default-scheduler")),
    ];
    for container in ["web", "sidecar", "metrics"] {
        fields.extend([
            ("spec.containers.name", text(container)),
            (
                "spec.containers.image",
                format!("registry.example.com/team/{container}:1.{}.3", number % 9),
            ),
            ("spec.containers.ports.0.containerPort", text("8080")),
            ("spec.containers.ports.0.protocol", text("TCP")),
            ("spec.containers.resources.limits.cpu", text("500m")),
            ("spec.containers.resources.limits.memory", text("512Mi")),
            ("spec.containers.resources.requests.cpu", text("100m")),
            (
                "spec.containers.volumeMounts.0.name",
                format!("kube-api-access-{}", unique(number, 4, 5)),
            ),
            (
                "spec.containers.volumeMounts.0.mountPath",
                text("/var/run/secrets/kubernetes.io/serviceaccount"),
            ),
            (
                "spec.containers.livenessProbe.httpGet.path",
                text("/healthz"),
            ),
            (
                "spec.containers.terminationMessagePath",
                text("/dev/termination-log"),
            ),
            ("spec.containers.imagePullPolicy", text("IfNotPresent")),
        ]);
    }
    for condition in ["Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        fields.extend([
            ("status.conditions.type", text(condition)),
            ("status.conditions.status", text("True")),
            (
                "status.conditions.lastTransitionTime",
                format!(
                    "2026-03-{:02}T10:{:02}:{:02}Z",
                    1 + number % 28,
                    number % 60,
                    change * 7 % 60
                ),
            ),
        ]);
    }
    fields.extend([
        ("status.phase", text("Running")),
        (
            "status.hostIP",
            format!("10.0.{}.{}", number % 8, number % 250),
        ),
        (
            "status.podIP",
            format!("10.1.{}.{}", number / 250 % 250, number % 250),
        ),
        (
            "status.containerStatuses.0.containerID",
            format!("containerd://{}", unique(number, 5 + change, 64)),
        ),
        (
            "status.containerStatuses.0.imageID",
            format!(
                "registry.example.com/team/web@sha256:{}",
                unique(number % 9, 9, 64)
            ),
        ),
        (
            "status.containerStatuses.0.restartCount",
            change.to_string(),
        ),
    ]);
    fields
}

fn json(number: usize, change: u64) -> Vec<u8> {
    let fields = fields(number, change);
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| {
            let name = name.rsplit_once('.').map_or(*name, |(_, name)| name);
            format!("\"{name}\":\"{value}\"")
        })
        .collect();
    format!("{{{}}}", fields.join(",")).into_bytes()
}

/// With the list of fields and who set them, which most objects carry.
fn managed(number: usize, change: u64) -> Vec<u8> {
    let mut object = json(number, change);
    object.pop();
    for manager in ["kube-controller-manager", "kubelet"] {
        object.extend_from_slice(format!(",\"manager\":\"{manager}\",\"fieldsV1\":{{").as_bytes());
        for (name, _) in fields(number, change) {
            for part in name.split('.') {
                object.extend_from_slice(format!("\"f:{part}\":{{").as_bytes());
            }
            object.extend_from_slice("}".repeat(name.split('.').count()).as_bytes());
        }
        object.extend_from_slice(b"}");
    }
    object.push(b'}');
    object
}

/// Without the names: a tag and a length before each value.
fn protobuf(number: usize, change: u64) -> Vec<u8> {
    let mut bytes = b"k8s\0".to_vec();
    for (tag, (_, value)) in fields(number, change).iter().enumerate() {
        bytes.extend([(tag % 16 * 8 + 2) as u8, value.len() as u8]);
        bytes.extend_from_slice(value.as_bytes());
    }
    bytes
}
