//! The config file: YAML or JSON (which is YAML too), by the names of the flags.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::{ConfigError, options};

/// Longest config file read; a larger one is a mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads the settings of `path`.
pub(super) fn read(path: &Path) -> Result<Vec<(&'static str, String)>, ConfigError> {
    let failed = |why: String| ConfigError::File {
        path: path.to_owned(),
        why,
    };
    let size = std::fs::metadata(path)
        .map_err(|error| failed(error.to_string()))?
        .len();
    if size > MAX_FILE_BYTES {
        return Err(failed(format!(
            "{size} bytes are over the limit of {MAX_FILE_BYTES}"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    parse(&text).map_err(failed)
}

pub(super) fn parse(text: &str) -> Result<Vec<(&'static str, String)>, String> {
    let document: Option<BTreeMap<String, Value>> =
        serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    document
        .unwrap_or_default()
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| {
            let setting = options::find(&key).ok_or_else(|| format!("unknown setting {key:?}"))?;
            Ok((setting.name, scalar(&key, &value)?))
        })
        .collect()
}

/// The text that a flag would have carried. Lists are joined by commas.
fn scalar(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Array(items) => items
            .iter()
            .map(|item| scalar(key, item))
            .collect::<Result<Vec<_>, _>>()
            .map(|items| items.join(",")),
        Value::Null | Value::Object(_) => Err(format!(
            "setting {key:?} takes a string, a number or a list"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_and_json() {
        let yaml = "# member\nname: n1\nheartbeat-interval: 50\nwal-dir: ''\ndata-dir:\n\
                    listen-peer-urls: [http://127.0.0.1:1, http://127.0.0.1:2]\n";
        assert_eq!(
            parse(yaml).unwrap(),
            [
                ("heartbeat-interval", "50".to_owned()),
                (
                    "listen-peer-urls",
                    "http://127.0.0.1:1,http://127.0.0.1:2".to_owned()
                ),
                ("name", "n1".to_owned()),
                ("wal-dir", String::new()),
            ]
        );
        assert_eq!(
            parse("{\"name\": \"n1\", \"election-timeout\": 900}").unwrap(),
            [
                ("election-timeout", "900".to_owned()),
                ("name", "n1".to_owned())
            ]
        );
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(parse("# nothing\n").unwrap(), []);
    }

    #[test]
    fn errors_name_the_key() {
        assert_eq!(parse("nmae: x").unwrap_err(), "unknown setting \"nmae\"");
        assert!(parse("name: {a: b}").unwrap_err().contains("\"name\""));
        assert!(parse("name: [").is_err());
        assert!(parse("just text").is_err());
    }
}
