//! varvectl against a real node says what etcdctl said against a real etcd, byte for byte.

mod common;

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Cluster, PATIENCE};

/// One command of the transcript.
#[derive(Debug, Default)]
struct Step {
    command: String,
    input: Option<String>,
    output: String,
    errors: String,
    /// `None` where it goes on running.
    code: Option<i32>,
}

fn transcript() -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in include_str!("etcdctl_3.4.23.txt").lines() {
        let (mark, rest) = line.split_at(line.len().min(2));
        if mark == "$ " {
            steps.push(Step {
                command: rest.to_owned(),
                ..Step::default()
            });
            continue;
        }
        let Some(step) = steps.last_mut() else {
            continue;
        };
        match mark {
            "< " => step.input = Some(words(rest).remove(0)),
            "| " => step.output.push_str(&format!("{rest}\n")),
            "! " => step.errors.push_str(&format!("{rest}\n")),
            "= " => step.code = rest.parse().ok(),
            "" | "# " => {}
            _ => panic!("unreadable transcript line {line:?}"),
        }
    }
    steps
}

/// Splits at spaces; words in double quotes may have spaces and escapes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    while let Some(&first) = chars.peek() {
        let mut word = String::new();
        if first == ' ' {
            chars.next();
            continue;
        } else if first == '"' {
            chars.next();
            while let Some(c) = chars.next().filter(|c| *c != '"') {
                let escaped = |c: Option<char>| match c.unwrap() {
                    'n' => '\n',
                    't' => '\t',
                    c => c,
                };
                match c {
                    '\\' if chars.peek() == Some(&'x') => {
                        let digits: String = chars.by_ref().skip(1).take(2).collect();
                        word.push(char::from(u8::from_str_radix(&digits, 16).unwrap()));
                    }
                    '\\' => word.push(escaped(chars.next())),
                    c => word.push(c),
                }
            }
        } else {
            word.extend(std::iter::from_fn(|| chars.next_if(|c| *c != ' ')));
        }
        words.push(word);
    }
    words
}

/// Collects what a process writes, as it comes.
fn collect(mut pipe: impl Read + Send + 'static) -> Arc<Mutex<Vec<u8>>> {
    let collected = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&collected);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = pipe.read(&mut buffer) {
            shared.lock().unwrap().extend_from_slice(&buffer[..read]);
        }
        // Tells that everything is there: the reader has let go of it.
        drop(shared);
    });
    collected
}

fn taken(collected: &Arc<Mutex<Vec<u8>>>) -> String {
    String::from_utf8(collected.lock().unwrap().clone()).unwrap()
}

fn wait(child: &mut Child, mut done: impl FnMut(Option<ExitStatus>) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(child.try_wait().unwrap()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a step; what it wrote and its exit code, as the transcript has them.
fn run(
    step: &Step,
    endpoint: &str,
    hide: impl Fn(String) -> String,
) -> (String, String, Option<i32>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_varvectl"))
        .args(["--endpoints", endpoint])
        .args(words(&step.command))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = collect(child.stdout.take().unwrap());
    let errors = collect(child.stderr.take().unwrap());
    let mut stdin = child.stdin.take().unwrap();
    // A command that fails early does not read it.
    let _ = stdin.write_all(step.input.as_deref().unwrap_or_default().as_bytes());
    if step.code.is_some() {
        drop(stdin);
        wait(&mut child, |status| {
            let all_read = Arc::strong_count(&output) == 1 && Arc::strong_count(&errors) == 1;
            status.is_some() && all_read
        });
    } else {
        // It is meant to go on: it has until the expected output is there.
        wait(&mut child, |status| {
            let said = (hide(taken(&output)), hide(taken(&errors)));
            status.is_some() || said == (step.output.clone(), step.errors.clone())
        });
        // Its input ends with it: an end of input would make it leave by itself.
        child.stdin = Some(stdin);
    }
    let code = child.try_wait().unwrap().and_then(|status| status.code());
    let _ = child.kill();
    child.wait().unwrap();
    (hide(taken(&output)), hide(taken(&errors)), code)
}

#[tokio::test(flavor = "multi_thread")]
async fn as_etcdctl_says_it() {
    let cluster = Cluster::start(1, &[]);
    let member = &cluster.members[0];
    let endpoint = member.endpoint();
    let header = member.client().status(&endpoint).await.unwrap().header;
    let hide = |text: String| {
        text.replace(&header.cluster_id.to_string(), "CLUSTER")
            .replace(&header.member_id.to_string(), "MEMBER")
            .replace(&endpoint, "ENDPOINT")
    };
    let steps = transcript();
    assert!(steps.len() > 100);
    for step in &steps {
        let said = run(step, &endpoint, hide);
        let expected = (step.output.clone(), step.errors.clone(), step.code);
        assert_eq!(said, expected, "varvectl {}", step.command);
    }
}
