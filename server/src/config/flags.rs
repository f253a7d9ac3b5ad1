//! The command line, in the manner of Go's flag package: `-name x`, `--name x`,
//! `-name=x` and `--name=x` are one; a boolean stands alone or takes `=true`.

use super::ConfigError;
use super::options;

/// What the command line says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Flags {
    /// `--version`.
    pub(super) version: bool,
    /// `-h` or `--help`.
    pub(super) help: bool,
    /// `--config-file`.
    pub(super) config_file: Option<String>,
    /// Settings, in order of appearance.
    pub(super) settings: Vec<(&'static str, String)>,
}

/// Go's idea of a boolean.
fn boolean(name: &str, text: &str) -> Result<bool, ConfigError> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(ConfigError::Flag(format!(
            "invalid boolean value {text:?} for -{name}: parse error"
        ))),
    }
}

/// Splits the arguments (without the program's name) into settings.
pub(super) fn parse(arguments: &[String]) -> Result<Flags, ConfigError> {
    let mut flags = Flags::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let Some(body) = argument.strip_prefix("--").or(argument.strip_prefix('-')) else {
            return Err(ConfigError::Flag(format!(
                "{argument:?} is not a valid flag"
            )));
        };
        if body.is_empty() || body.starts_with(['-', '=']) {
            return Err(ConfigError::Flag(format!("bad flag syntax: {argument}")));
        }
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        match name {
            "version" => flags.version = boolean(name, inline.unwrap_or("true"))?,
            "h" | "help" => flags.help = boolean(name, inline.unwrap_or("true"))?,
            _ => {
                let setting = options::find(name);
                if setting.is_none() && name != "config-file" {
                    return Err(ConfigError::Flag(format!(
                        "flag provided but not defined: -{name}"
                    )));
                }
                let value = match inline {
                    Some(value) => value.to_owned(),
                    None if options::SWITCHES.contains(&name) => "true".to_owned(),
                    None => arguments
                        .next()
                        .ok_or_else(|| {
                            ConfigError::Flag(format!("flag needs an argument: -{name}"))
                        })?
                        .clone(),
                };
                match setting {
                    Some(setting) => flags.settings.push((setting.name, value)),
                    None => flags.config_file = Some(value),
                }
            }
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Flags, String> {
        let arguments: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        parse(&arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn four_ways_to_write_a_flag() {
        for line in ["-name x", "--name x", "-name=x", "--name=x"] {
            let flags = parsed(line).unwrap();
            assert_eq!(flags.settings, [("name", "x".to_owned())], "{line}");
        }
        assert_eq!(
            parsed("--data-dir=a=b").unwrap().settings,
            [("data-dir", "a=b".to_owned())]
        );
    }

    #[test]
    fn booleans() {
        for (line, value) in [
            ("--version", true),
            ("-version=1", true),
            ("--version=false", false),
            ("--version=0", false),
        ] {
            assert_eq!(parsed(line).unwrap().version, value, "{line}");
        }
        for (line, text) in [
            ("--strict-reconfig-check --name x", "true"),
            ("--strict-reconfig-check=false --name x", "false"),
        ] {
            let settings = parsed(line).unwrap().settings;
            let expected = [("strict-reconfig-check", text), ("name", "x")];
            assert_eq!(
                settings,
                expected.map(|(name, value)| (name, value.to_owned()))
            );
        }
        assert!(parsed("-h").unwrap().help);
        assert_eq!(
            parsed("--version=maybe").unwrap_err(),
            "invalid boolean value \"maybe\" for -version: parse error"
        );
    }

    #[test]
    fn errors() {
        for (line, text) in [
            ("--nosuch", "flag provided but not defined: -nosuch"),
            ("--max-txn-ops", "flag needs an argument: -max-txn-ops"),
            ("positional", "\"positional\" is not a valid flag"),
            ("---name=x", "bad flag syntax: ---name=x"),
            ("--=x", "bad flag syntax: --=x"),
        ] {
            assert_eq!(parsed(line).unwrap_err(), text);
        }
    }
}
