//! The flags that set the configuration, and the configuration that they lead to.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::builder::OsStringValueParser;

use super::exit;
use super::output::explain;
use crate::config::{self, Config, Sources};

/// The sources of the configuration. A flag overrides the environment, which overrides the file.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigArgs {
    /// Configuration file (TOML); without one, everything comes from the environment and from flags
    #[arg(long, value_name = "FILE", env = "INSIGHTS_GATEWAY_CONFIG", value_parser = OsStringValueParser::new())]
    pub config: Option<OsString>,
    /// Data plane address, or unix:/path/to.sock; repeatable [key: server.listen]
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Admin plane address [key: admin.listen]
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<String>,
    /// URL of Twilio, or of a simulator [key: upstream.url]
    #[arg(long, value_name = "URL")]
    pub upstream: Option<String>,
    /// Any other key, such as cache.capacity=64MiB; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub set: Vec<(String, String)>,
}

impl ConfigArgs {
    /// The file, this process's environment and these flags. They are kept for reloads.
    pub fn sources(&self) -> Sources {
        // An empty variable counts as unset, like all variables of the gateway.
        let file = self.config.as_ref().filter(|file| !file.is_empty());
        let mut sources = Sources::from_process(file.map(PathBuf::from));
        for (key, value) in &self.set {
            sources = sources.with_flag(key, value);
        }
        if !self.listen.is_empty() {
            sources = sources.with_flag("server.listen", self.listen.join(","));
        }
        let named = [("admin.listen", &self.admin_listen), ("upstream.url", &self.upstream)];
        for (key, value) in named {
            sources = value.iter().fold(sources, |sources, value| sources.with_flag(key, value));
        }
        sources
    }
}

fn key_and_value(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, such as cache.capacity=64MiB"),
    }
}

/// The configuration from `sources`; otherwise the faults are printed on standard error.
///
/// # Errors
///
/// `exit::USAGE`, with the faults already printed.
pub fn load_or_explain(sources: &Sources) -> Result<Config, ExitCode> {
    config::load(sources).map_err(|faults| {
        let count = match faults.count() {
            1 => "1 fault in the configuration".to_owned(),
            count => format!("{count} faults in the configuration"),
        };
        explain(&format!("{faults}\ninsights-gateway: {count}, nothing was started"));
        ExitCode::from(exit::USAGE)
    })
}
