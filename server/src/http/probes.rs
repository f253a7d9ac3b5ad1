//! `/livez` and `/readyz`: etcd's probes for whoever starts and stops nodes.
//!
//! Each is a list of checks; `?verbose` shows them, `?exclude=NAME` leaves one out, and
//! `/readyz/NAME` asks for a single one. A lack of space fails none of them: reads go on.

use hyper::StatusCode;
use varve_types::AlarmKind;

use super::{PLAIN, Reply, health, reply};
use crate::service::Service;

/// Something that a probe looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// The members' states do not differ, and nothing was found damaged.
    DataCorruption,
    /// The disk completes what is written to it.
    Disk,
    /// This member can read its store.
    SerializableRead,
    /// It can read what the cluster agreed on.
    LinearizableRead,
    /// It has a vote.
    NonLearner,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::Disk => "disk",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    async fn run(self, service: &Service) -> Result<(), String> {
        match self {
            Self::Disk if service.node.is_disk_stuck() => {
                Err("no write of the log completes".to_owned())
            }
            Self::NonLearner if service.node.is_learner() => {
                Err("not supported for learner".to_owned())
            }
            Self::DataCorruption if service.node.members().is_on(AlarmKind::Corrupt) => {
                Err("alarm activated: CORRUPT".to_owned())
            }
            Self::DataCorruption => health::check_damage(service),
            Self::Disk | Self::NonLearner => Ok(()),
            Self::SerializableRead => health::check(service, true).await,
            Self::LinearizableRead => health::check(service, false).await,
        }
    }
}

/// A probe, or one check of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    name: &'static str,
    checks: &'static [Check],
}

impl Probe {
    const LIVE: Self = Self {
        name: "livez",
        checks: &[Check::SerializableRead],
    };
    /// A disk that hangs is told without waiting for a read to time out.
    const READY: Self = Self {
        name: "readyz",
        checks: &[
            Check::DataCorruption,
            Check::Disk,
            Check::SerializableRead,
            Check::LinearizableRead,
            Check::NonLearner,
        ],
    };

    /// The probe that a path asks for.
    pub(super) fn of(path: &str) -> Option<Self> {
        let (name, check) = match path.strip_prefix('/')?.split_once('/') {
            Some((name, check)) => (name, Some(check)),
            None => (path.strip_prefix('/')?, None),
        };
        let whole = [Self::LIVE, Self::READY]
            .into_iter()
            .find(|probe| probe.name == name)?;
        let Some(check) = check else {
            return Some(whole);
        };
        let position = whole.checks.iter().position(|c| c.name() == check)?;
        Some(Self {
            checks: &whole.checks[position..=position],
            ..whole
        })
    }

    /// Runs the checks, up to the first that fails: what waits for a leader or a disk
    /// need not be waited for more than once.
    pub(super) async fn answer(self, service: &Service, query: &str) -> Reply {
        let mut lines = String::new();
        let mut is_fine = true;
        let options = Options::of(query);
        for check in self.checks {
            let name = check.name();
            if options.excluded.contains(&name) {
                lines += &format!("[+]{name} excluded: ok\n");
                continue;
            }
            match check.run(service).await {
                Ok(()) => lines += &format!("[+]{name} ok\n"),
                Err(reason) => {
                    lines += &format!("[-]{name} failed: {reason}\n");
                    is_fine = false;
                    break;
                }
            }
        }
        if !is_fine {
            if let Some(suppressed) = service.health_log.pass() {
                tracing::warn!(suppressed, "/{} failed: {}", self.name, lines.trim_end());
            }
            let body = format!("{lines}{} check failed\n", self.name);
            return reply(StatusCode::SERVICE_UNAVAILABLE, PLAIN, body);
        }
        let body = match options.is_verbose {
            true => format!("{lines}{} check passed\n", self.name),
            false => "ok\n".to_owned(),
        };
        reply(StatusCode::OK, PLAIN, body)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Options<'a> {
    is_verbose: bool,
    excluded: Vec<&'a str>,
}

impl<'a> Options<'a> {
    fn of(query: &'a str) -> Self {
        let mut found = Self {
            is_verbose: false,
            excluded: Vec::new(),
        };
        for pair in query.split('&') {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("verbose", _) => found.is_verbose = true,
                ("exclude", name) => found.excluded.push(name),
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(Probe::of("/livez"), Some(Probe::LIVE));
        assert_eq!(Probe::of("/readyz"), Some(Probe::READY));
        let one = Probe::of("/readyz/linearizable_read").unwrap();
        assert_eq!(one.checks, [Check::LinearizableRead]);
        for path in ["", "/", "/ready", "/livez/", "/livez/disk", "/readyz/a/b"] {
            assert_eq!(Probe::of(path), None, "{path}");
        }
    }

    #[test]
    fn options() {
        let found = Options::of("verbose&exclude=disk&exclude=non_learner&x=y");
        assert!(found.is_verbose);
        assert_eq!(found.excluded, ["disk", "non_learner"]);
        assert!(!Options::of("").is_verbose);
    }
}
