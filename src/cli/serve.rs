//! `serve`: the gateway.

use std::io;
use std::process::ExitCode;

use clap::Args;

use super::logs::ProcessLog;
use super::output::explain;
use super::runtime::{outlive_file_size_limits, runtime, told_to_reload, told_to_stop};
use super::sources::{ConfigArgs, load_or_explain};
use super::{descriptors, exit, logs, systemd};
use crate::config::{Config, Sources};
use crate::gateway::{Gateway, StartError};
use crate::server::Inherited;

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The sources of the configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Runs the gateway until it is told to stop.
pub fn run(args: ServeArgs) -> ExitCode {
    // First, because it changes the environment, and no other thread may read that at the same time.
    let inherited = systemd::inherited();
    let sources = args.config.sources();
    let config = match load_or_explain(&sources) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let log = logs::install(&config.log);
    let served = match (inherited, runtime()) {
        (Ok(inherited), Ok(runtime)) => {
            let served = runtime.block_on(serve(config, sources, inherited, &log));
            // What still blocks a thread, such as a file on a mount that hangs, must not keep the process.
            runtime.shutdown_background();
            served
        }
        (Err(source), _) => Err(Failure::Bind { address: "the sockets that systemd has opened".to_owned(), source }),
        (_, Err(error)) => Err(error.into()),
    };
    match served {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(failure) => failure.explain(),
    }
}

async fn serve(config: Config, sources: Sources, inherited: Inherited, log: &ProcessLog) -> Result<(), Failure> {
    // Before the listeners, so that a signal is not lost that is sent as soon as they answer.
    let (reload, stop) = (told_to_reload()?, told_to_stop()?);
    outlive_file_size_limits()?;
    let gateway = Gateway::bind_with(config, inherited)?;
    let gateway = gateway.on_state_change(systemd::tell).on_reload(log.follow()).at_most(descriptors::connections());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        data = gateway.data_addresses().join(", "),
        admin = gateway.admin_address().map(tracing::field::display),
        "serving"
    );
    gateway.run(Some(sources), reload, stop).await;
    tracing::info!("stopped");
    Ok(())
}

/// Why a serving command ended with an error.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The gateway cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Another listener cannot be opened.
    #[error("cannot listen on {address}: {source}")]
    Bind { address: String, source: io::Error },
    /// As above, for an address that a flag sets.
    #[error("cannot listen on {address}: {source}; choose another address with {flag}")]
    Named { address: String, source: io::Error, flag: &'static str },
    /// The system refuses something that the command needs.
    #[error(transparent)]
    Machine(#[from] io::Error),
}

impl Failure {
    /// Prints the reason on standard error, and returns the exit code.
    pub(super) fn explain(&self) -> ExitCode {
        explain(&format!("insights-gateway: {self}"));
        ExitCode::from(match self {
            Self::Start(StartError::Bind(_)) | Self::Bind { .. } | Self::Named { .. } => exit::CANNOT_BIND,
            Self::Start(StartError::Trust(_) | StartError::Tls(_) | StartError::Exposed(_) | StartError::Audit(_)) => {
                exit::USAGE
            }
            Self::Machine(_) => exit::INTERNAL,
        })
    }
}
