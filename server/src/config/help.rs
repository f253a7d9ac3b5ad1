//! `--help` and `--version`.

use std::fmt::Write;

use varve_engine::backend::NAMES;

use super::options::{Group, SETTINGS};

const USAGE: &str = "\
Usage:

  varve [flags]
    Start a Varve node.

  varve --version
    Show the version.

  varve -h | --help
    Show this help.

Every flag may be written -name x, --name x, -name=x or --name=x. Every flag is
also an environment variable (--data-dir is VARVE_DATA_DIR) and a key of the
config file. Flags win over the environment, the environment over the file.
";

/// The text of `--help`.
pub(super) fn usage() -> String {
    let mut text = USAGE.to_owned();
    for (group, title) in Group::ALL {
        // Writing to a string can't fail.
        let _ = write!(text, "\n{title}:\n");
        for setting in SETTINGS.iter().filter(|setting| setting.group == group) {
            let _ = writeln!(text, "  --{} '{}'", setting.name, setting.default);
            let help = setting.help.replace("{engines}", &NAMES.join(", "));
            for line in help.lines() {
                let _ = writeln!(text, "    {line}");
            }
        }
        if group == Group::Process {
            text.push_str("  --config-file ''\n    Path to a config file (YAML or JSON).\n");
        }
    }
    text
}

/// The text of `--version`.
pub(super) fn version() -> String {
    format!(
        "varve Version: {}\nOS/Arch: {}/{}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_setting() {
        let text = usage();
        for setting in SETTINGS {
            assert!(
                text.contains(&format!("\n  --{} '", setting.name)),
                "{}",
                setting.name
            );
        }
        assert!(text.lines().all(|line| line.len() <= 100));
    }
}
