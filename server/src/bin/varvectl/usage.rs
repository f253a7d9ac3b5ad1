//! What to say when the command line cannot be read, in the words of etcdctl's flag library.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::failure::{EXIT_ERROR, Failure};
use crate::go_format::quote;
use crate::output::to_stdout;

/// Prints help where that was asked for; else the failure.
pub(crate) fn explain(error: &clap::Error) -> Result<(), Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::DisplayVersion => to_stdout(error.render().to_string().as_bytes()),
        _ => Err(Failure {
            hint: None,
            code: EXIT_ERROR,
            message: Some(message(error)),
        }),
    }
}

/// The text after `Error: `.
pub(crate) fn message(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    // clap names an argument with its value, as in `--limit <LIMIT>`.
    let flag = context(ContextKind::InvalidArg)
        .and_then(|arg| arg.split([' ', '=', '[']).next())
        .unwrap_or_default();
    let value = context(ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument if flag.starts_with("--") => format!("unknown flag: {flag}"),
        ErrorKind::UnknownArgument if flag.starts_with('-') => format!(
            "unknown shorthand flag: '{}' in {flag}",
            flag.chars().nth(1).unwrap_or('-')
        ),
        ErrorKind::InvalidSubcommand => {
            let command = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            format!(
                "unknown command {} for \"varvectl\"\nRun 'varvectl --help' for usage.",
                quote(command.as_bytes())
            )
        }
        ErrorKind::InvalidValue if value.is_empty() => format!("flag needs an argument: {flag}"),
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(error).map(ToString::to_string);
            format!(
                "invalid argument {} for {} flag: {}",
                quote(value.as_bytes()),
                quote(flag.as_bytes()),
                reason.unwrap_or_default()
            )
        }
        _ => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            text.trim_end().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn fails(args: &[&str]) -> String {
        let args = ["varvectl"].iter().chain(args);
        message(&Cli::try_parse_from(args).unwrap_err())
    }

    #[test]
    fn errors_are_etcdctls() {
        assert_eq!(fails(&["get", "--badflag"]), "unknown flag: --badflag");
        assert_eq!(
            fails(&["get", "--badflag=3", "a"]),
            "unknown flag: --badflag"
        );
        assert_eq!(
            fails(&["get", "-x", "a"]),
            "unknown shorthand flag: 'x' in -x"
        );
        assert_eq!(
            fails(&["get", "a", "--limit", "x"]),
            "invalid argument \"x\" for \"--limit\" flag: strconv.ParseInt: parsing \"x\": invalid syntax"
        );
        assert_eq!(
            fails(&["get", "a", "--command-timeout", "5"]),
            "invalid argument \"5\" for \"--command-timeout\" flag: time: missing unit in duration \"5\""
        );
        assert_eq!(
            fails(&["get", "a", "--limit"]),
            "flag needs an argument: --limit"
        );
        assert_eq!(
            fails(&["nonsense"]),
            "unknown command \"nonsense\" for \"varvectl\"\nRun 'varvectl --help' for usage."
        );
    }

    #[test]
    fn accepted_as_etcdctl_does() {
        for args in [
            &["get", "a", "b", "c", "--rev", "-5", "--prefix=false"][..],
            &["compact", "5"],
            &["comp", "--physical=true", "5"],
            &["endp", "stat", "--cluster"],
            &["endpoint", "--cluster", "health", "extra"],
            &["defrag", "--cluster", "extra"],
            &["member", "list", "--hex"],
            &[
                "--endpoints",
                "a:1,b:2",
                "put",
                "--prev-kv",
                "k",
                "--",
                "-v",
            ],
            &["put", "k", "v", "--limit-is-no-flag"][..3],
            &["get", "k", "-w", "json", "-w=table", "--write-out=fields"],
            &["get", "k", "--limit=1", "--limit=2"],
            &[
                "watch", "foo", "--rev", "1", "bar", "--", "echo", "--", "-x",
            ],
        ] {
            let args: Vec<_> = ["varvectl"].iter().chain(args).collect();
            Cli::try_parse_from(&args).unwrap_or_else(|error| panic!("{args:?}: {error}"));
        }
    }
}
