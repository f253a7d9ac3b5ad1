//! Global settings: flags over `VARVECTL_*` over `ETCDCTL_*` over defaults.

use std::time::Duration;

use varve_client::{Client, ClientConfig};

use crate::cli::Global;
use crate::failure::{EXIT_BAD_FEATURE, EXIT_ERROR, Failure};
use crate::go_format::{parse_bool, parse_duration};
use crate::printer::{Format, Printer};

/// What every command works with.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) endpoints: Vec<String>,
    pub(crate) config: ClientConfig,
    write_out: String,
    hex: bool,
}

/// The value of `name` in the environment, under either prefix.
pub(crate) fn variable(name: &str) -> Option<std::ffi::OsString> {
    ["VARVECTL", "ETCDCTL"]
        .iter()
        .find_map(|prefix| std::env::var_os(format!("{prefix}_{name}")))
        .filter(|value| !value.is_empty())
}

/// The flag, or the variable that stands in for it.
fn resolve<T>(
    flag: Option<T>,
    name: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, Failure> {
    if flag.is_some() {
        return Ok(flag);
    }
    let Some(value) = variable(name) else {
        return Ok(None);
    };
    let value = value.to_string_lossy();
    parse(&value).map(Some).map_err(|reason| {
        Failure::new(
            EXIT_ERROR,
            format!("invalid value {value:?} for environment variable {name}: {reason}"),
        )
    })
}

impl Settings {
    pub(crate) fn new(global: Global) -> Result<Self, Failure> {
        let defaults = ClientConfig::default();
        let period = |flag: Option<Duration>, name: &str, default: Duration| {
            Ok::<_, Failure>(resolve(flag, name, parse_duration)?.unwrap_or(default))
        };
        let config = ClientConfig {
            command_timeout: period(
                global.command_timeout,
                "COMMAND_TIMEOUT",
                defaults.command_timeout,
            )?,
            dial_timeout: period(global.dial_timeout, "DIAL_TIMEOUT", defaults.dial_timeout)?,
            keepalive_time: period(
                global.keepalive_time,
                "KEEPALIVE_TIME",
                defaults.keepalive_time,
            )?,
            keepalive_timeout: period(
                global.keepalive_timeout,
                "KEEPALIVE_TIMEOUT",
                defaults.keepalive_timeout,
            )?,
            name: concat!("varvectl/", env!("CARGO_PKG_VERSION")).to_owned(),
            ..defaults
        };
        let endpoints = resolve(global.endpoints, "ENDPOINTS", |list| {
            Ok(list.split(',').map(str::to_owned).collect::<Vec<_>>())
        })?
        .unwrap_or_else(|| vec!["127.0.0.1:2379".to_owned()]);
        let write_out = resolve(global.write_out, "WRITE_OUT", |text| Ok(text.to_owned()))?;
        Ok(Self {
            endpoints: endpoints.iter().map(|e| e.trim().to_owned()).collect(),
            config,
            write_out: write_out.unwrap_or_else(|| "simple".to_owned()),
            hex: resolve(global.hex, "HEX", parse_bool)?.unwrap_or(false),
        })
    }

    /// A client of the endpoints.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Client::new(&self.endpoints, self.config.clone()).map_err(Failure::bad_args)
    }

    /// The printer for the output format.
    pub(crate) fn printer(&self) -> Result<Printer, Failure> {
        let format = match self.write_out.as_str() {
            "simple" => Format::Simple { value_only: false },
            "json" => Format::Json,
            "fields" => Format::Fields,
            "table" => Format::Table,
            _ => return Err(Failure::new(EXIT_BAD_FEATURE, "unsupported output format")),
        };
        Ok(Printer {
            format,
            hex: self.hex,
        })
    }
}
