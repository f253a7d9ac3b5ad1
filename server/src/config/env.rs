//! `VARVE_*`: every flag by its name in capitals, `-` as `_`.

use super::options;

const PREFIX: &str = "VARVE_";
/// The variable that names the config file.
const CONFIG_FILE: &str = "VARVE_CONFIG_FILE";

/// What the environment says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Environment {
    /// `VARVE_CONFIG_FILE`.
    pub(super) config_file: Option<String>,
    /// Settings with their variable's value.
    pub(super) settings: Vec<(&'static str, String)>,
    /// Variables with our prefix that are none of ours.
    pub(super) unknown: Vec<String>,
}

/// The variable of a flag.
pub(super) fn variable(flag: &str) -> String {
    format!("{PREFIX}{}", flag.to_ascii_uppercase().replace('-', "_"))
}

/// Picks ours from all variables. An empty value counts as unset, as in etcd.
pub(super) fn read(variables: impl Iterator<Item = (String, String)>) -> Environment {
    let mut environment = Environment::default();
    for (name, value) in variables.filter(|(name, _)| name.starts_with(PREFIX)) {
        if name == CONFIG_FILE {
            environment.config_file = (!value.is_empty()).then_some(value);
            continue;
        }
        match options::SETTINGS
            .iter()
            .find(|setting| variable(setting.name) == name)
        {
            Some(_) if value.is_empty() => {}
            Some(setting) => environment.settings.push((setting.name, value)),
            None => environment.unknown.push(name),
        }
    }
    environment.unknown.sort();
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_ours() {
        let variables = [
            ("VARVE_NAME", "n1"),
            ("VARVE_WAL_DIR", ""),
            ("VARVE_CONFIG_FILE", "/etc/varve.yaml"),
            ("VARVE_NO_SUCH", "1"),
            ("HOME", "/root"),
        ];
        let environment = read(
            variables
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into_iter(),
        );
        assert_eq!(environment.settings, [("name", "n1".to_owned())]);
        assert_eq!(environment.config_file.as_deref(), Some("/etc/varve.yaml"));
        assert_eq!(environment.unknown, ["VARVE_NO_SUCH"]);
        assert_eq!(variable("listen-peer-urls"), "VARVE_LISTEN_PEER_URLS");
    }
}
