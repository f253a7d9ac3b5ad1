//! Which keys a watch is for: from its arguments, or from the environment.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::Parser;
use varve_protocol::WatchRequest;
use varve_types::KeyRange;

use crate::cli::WatchTarget;
use crate::settings::variable;

/// Key and range end from the environment, for use where a command line cannot hold them.
#[derive(Debug, Clone, Default)]
pub(super) struct EnvKeys {
    pub(super) key: Option<OsString>,
    pub(super) range_end: Option<OsString>,
}

impl EnvKeys {
    pub(super) fn read() -> Result<Self, String> {
        let keys = Self {
            key: variable("WATCH_KEY"),
            range_end: variable("WATCH_RANGE_END"),
        };
        match (&keys.key, &keys.range_end) {
            (None, Some(end)) => Err(format!(
                "ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={}",
                crate::go_format::quote(end.as_bytes())
            )),
            _ => Ok(keys),
        }
    }
}

/// A checked watch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WatchOp {
    key: Vec<u8>,
    range_end: Vec<u8>,
    rev: i64,
    prev_kv: bool,
    progress_notify: bool,
    /// To run for each event; may be empty.
    pub(super) command: Vec<OsString>,
}

impl WatchOp {
    /// Checks the arguments; `separator` says whether `--` was among them.
    pub(super) fn new(target: WatchTarget, separator: bool, env: &EnvKeys) -> Result<Self, String> {
        if separator && target.command.is_empty() {
            let message = "bad number of arguments (found separator --, but no commands)";
            return Err(message.to_owned());
        }
        let keys = match &env.key {
            Some(_) if !target.args.is_empty() => {
                let message = "bad number of arguments (found conflicting environment key)";
                return Err(message.to_owned());
            }
            Some(key) => [key].into_iter().chain(&env.range_end).cloned().collect(),
            None => target.args,
        };
        let mut keys = keys.into_iter().map(OsString::into_vec);
        let mut key = keys.next().ok_or("bad number of arguments")?;
        // With three arguments etcdctl pays attention to the first only.
        let range_end = match (keys.next(), keys.next()) {
            (Some(end), None) => Some(end),
            _ => None,
        };
        if range_end.is_some() && target.prefix {
            return Err("`range_end` and `--prefix` are mutually exclusive".to_owned());
        }
        let range_end = match (target.prefix, key.as_slice()) {
            (false, _) => range_end.unwrap_or_default(),
            (true, []) => {
                key = vec![0];
                vec![0]
            }
            (true, prefix) => KeyRange::prefix_end(prefix),
        };
        Ok(Self {
            key,
            range_end,
            rev: target.rev,
            prev_kv: target.prev_kv,
            progress_notify: target.progress_notify,
            command: target.command,
        })
    }

    /// Reads a line of the interactive mode, without its first word.
    pub(super) fn from_words(words: Vec<OsString>, env: &EnvKeys) -> Result<Self, String> {
        #[derive(Debug, Parser)]
        #[command(
            no_binary_name = true,
            disable_help_flag = true,
            args_override_self = true
        )]
        struct Line {
            #[command(flatten)]
            target: WatchTarget,
        }
        let separator = words.iter().any(|word| word == "--");
        let line = Line::try_parse_from(words).map_err(|error| crate::usage::message(&error))?;
        Self::new(line.target, separator, env)
    }

    pub(super) fn request(&self) -> WatchRequest<'_> {
        WatchRequest {
            key: &self.key,
            range_end: &self.range_end,
            start_revision: self.rev,
            prev_kv: self.prev_kv,
            progress_notify: self.progress_notify,
            ..WatchRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(key: &str, range_end: &str) -> EnvKeys {
        let set = |text: &str| (!text.is_empty()).then(|| OsString::from(text));
        EnvKeys {
            key: set(key),
            range_end: set(range_end),
        }
    }

    fn op(line: &str, env: &EnvKeys) -> Result<WatchOp, String> {
        let words = line.split_whitespace().map(OsString::from).collect();
        WatchOp::from_words(words, env)
    }

    fn expected(key: &str, range_end: &str, rev: i64, command: &[&str]) -> WatchOp {
        WatchOp {
            key: key.into(),
            range_end: range_end.into(),
            rev,
            prev_kv: false,
            progress_notify: false,
            command: command.iter().map(OsString::from).collect(),
        }
    }

    #[test]
    fn arguments() {
        let none = env("", "");
        let echo = &["echo", "Hello", "World"][..];
        for (line, env, want) in [
            ("foo bar", &none, expected("foo", "bar", 0, &[])),
            ("--rev 1 foo", &none, expected("foo", "", 1, &[])),
            ("foo --rev 1", &none, expected("foo", "", 1, &[])),
            (
                "foo -- echo Hello World",
                &none,
                expected("foo", "", 0, echo),
            ),
            (
                "foo --rev 1 bar -- echo Hello World",
                &none,
                expected("foo", "bar", 1, echo),
            ),
            ("--prefix foo", &none, expected("foo", "fop", 0, &[])),
            ("a b c", &none, expected("a", "", 0, &[])),
            ("", &env("foo", "bar"), expected("foo", "bar", 0, &[])),
            ("--rev 1", &env("foo", ""), expected("foo", "", 1, &[])),
            (
                "--rev 1 -- echo Hello World",
                &env("foo", "bar"),
                expected("foo", "bar", 1, echo),
            ),
            (
                "foo -- echo -- --rev 7",
                &none,
                expected("foo", "", 0, &["echo", "--", "--rev", "7"]),
            ),
        ] {
            assert_eq!(op(line, env), Ok(want), "{line}");
        }
        let prefix_of_all = WatchOp::from_words(vec!["".into(), "--prefix".into()], &none);
        assert_eq!(prefix_of_all, Ok(expected("\0", "\0", 0, &[])));
        assert!(op("--rev 5 --prev-kv foo", &none).unwrap().prev_kv);
    }

    #[test]
    fn errors() {
        let none = env("", "");
        for (line, env, message) in [
            ("", &none, "bad number of arguments"),
            ("--rev 1 --prefix", &none, "bad number of arguments"),
            ("-- echo hi", &none, "bad number of arguments"),
            (
                "foo bar --",
                &none,
                "bad number of arguments (found separator --, but no commands)",
            ),
            (
                "foo",
                &env("foo", ""),
                "bad number of arguments (found conflicting environment key)",
            ),
            (
                "foo bar --rev 1 -- echo Hello World",
                &env("foo", ""),
                "bad number of arguments (found conflicting environment key)",
            ),
            (
                "a b --prefix",
                &none,
                "`range_end` and `--prefix` are mutually exclusive",
            ),
            ("a --nope", &none, "unknown flag: --nope"),
        ] {
            assert_eq!(op(line, env), Err(message.to_owned()), "{line}");
        }
    }
}
