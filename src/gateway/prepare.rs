//! What a start and a reload have in common: what they open and check before a configuration is used, and what they
//! tell the supervisor.

use std::sync::Arc;

use crate::audit::{AuditError, AuditFile};
use crate::config::{self, BoundListeners, Config};
use crate::server::tls::{Certificate, ClientCertificates, TlsError};

/// The state of a gateway, for its supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// It serves. Also sent after [`Milestone::Reloading`].
    Ready,
    /// It reads its configuration again. It serves meanwhile, and also if the new configuration is refused.
    Reloading,
    /// It has been told to stop.
    Stopping,
}

pub(super) type OnStateChange = Arc<dyn Fn(Milestone) + Send + Sync>;
pub(super) type OnReload = Arc<dyn Fn(&Config) + Send + Sync>;

pub(super) fn audit_file(config: &Config) -> Result<Option<AuditFile>, AuditError> {
    config.log.audit.as_deref().map(AuditFile::open).transpose()
}

/// With teams, a client may show a token instead of a certificate. Without teams it must show a certificate.
pub(super) fn certificate(config: &Config) -> Result<Option<Certificate>, TlsError> {
    let clients = match config.teams.is_empty() {
        true => ClientCertificates::Required,
        false => ClientCertificates::Accepted,
    };
    config.server.tls.as_ref().map(|tls| Certificate::read(tls, clients)).transpose()
}

pub(super) fn has_client_ca(config: &Config) -> bool {
    config.server.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
}

/// Whether everyone could use the open listeners if `config` were used. The error lists them, one per line.
pub(super) fn check_exposure(config: &Config, held: &BoundListeners) -> Result<(), String> {
    let exposures = config::exposures(config, held);
    let lines: Vec<_> = exposures.iter().map(ToString::to_string).collect();
    if lines.is_empty() { Ok(()) } else { Err(lines.join("\n")) }
}
