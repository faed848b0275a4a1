//! Reads the configuration again when its files change or an operator asks for it, and applies it or refuses it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::prepare::{Milestone, OnReload, OnStateChange, audit_file, certificate, check_exposure, has_client_ca};
use crate::config::{self, BoundListeners, Config, Files, Fingerprint, Sources};
use crate::metrics::{ResultLabels, StaticLabel};
use crate::server::tls::TlsAcceptor;
use crate::stack::{self, Assembly, SharedState};

/// How often the configuration and secret files are checked. Their content counts, not their times: a Kubernetes volume
/// replaces links, and a bind mount may report no change at all.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// How long changed files must stay unchanged before they are read, so that a key and its secret that are replaced one
/// after the other are read together. The wait is limited.
const DEBOUNCE: Duration = Duration::from_millis(400);
const MAX_DEBOUNCES: u32 = 5;

/// Applies changed configurations until the gateway ends.
pub(super) struct Reloader {
    pub(super) sources: Sources,
    pub(super) current: Arc<ArcSwap<Assembly>>,
    pub(super) config: Arc<ArcSwap<Config>>,
    pub(super) shared: SharedState,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) held: BoundListeners,
    pub(super) on_state_change: OnStateChange,
    pub(super) on_reload: OnReload,
}

/// Why a new configuration is not applied, and the files whose change may correct it.
struct Refused {
    why: String,
    files: Files,
}

impl Reloader {
    pub(super) async fn forever(mut self, asked: Arc<Notify>) {
        // The files of the newest configuration, used or refused. A refused one is read again when one of its files
        // changes, also if that file was missing before.
        let mut files = self.config.load().files.clone();
        loop {
            let by_hand = tokio::select! {
                () = asked.notified() => true,
                () = tokio::time::sleep(POLL_INTERVAL) => false,
            };
            if !by_hand {
                let now = fingerprint(&files).await;
                if now == files.fingerprint() {
                    continue;
                }
                debounced(&files, now).await;
            }
            (self, files) = blocking(move || {
                let read = self.reload();
                // There are no files when the configuration could not be read at all.
                let files = if read.paths().is_empty() { files.again() } else { read };
                (self, files)
            })
            .await;
        }
    }

    /// Applies all or nothing: a refused configuration changes nothing. Returns the files that were read. Blocks for as long
    /// as the disk takes.
    fn reload(&mut self) -> Files {
        (self.on_state_change)(Milestone::Reloading);
        let applied = self.apply();
        (self.on_state_change)(Milestone::Ready);
        let count =
            |result| self.shared.metrics.reloads.get_or_create(&ResultLabels { result: StaticLabel(result) }).inc();
        // Applied first, then counted, then logged: when the log line is written, the metric and the configuration
        // are already new.
        match applied {
            Ok(files) => {
                self.shared.reloads.applied();
                count("applied");
                tracing::info!("configuration reloaded");
                files
            }
            Err(Refused { why, files }) => {
                self.shared.reloads.refused(&why, self.shared.clock.now());
                self.reopen_audit_log();
                count("refused");
                tracing::error!("the new configuration is refused, the old one stays: {why}");
                files
            }
        }
    }

    /// A reload may have been requested because the log was rotated, so this is done even if the configuration is
    /// refused.
    fn reopen_audit_log(&self) {
        match audit_file(&self.config.load()) {
            Ok(file) => self.shared.audit.switch(file),
            Err(error) => tracing::error!("the old audit log stays in use: {error}"),
        }
    }

    fn apply(&mut self) -> Result<Files, Refused> {
        let new = config::reload(&self.sources)
            .map_err(|faults| Refused { why: faults.to_string(), files: faults.files().clone() })?;
        let files = new.files.clone();
        self.take(new).map_err(|why| Refused { why, files: files.clone() })?;
        Ok(files)
    }

    fn take(&mut self, new: Config) -> Result<(), String> {
        let old = self.config.load_full();
        // All steps that can fail come before any step with an effect.
        check_exposure(&new, &self.held)?;
        let certificate = certificate(&new).map_err(|error| error.to_string())?;
        let audit = audit_file(&new).map_err(|error| error.to_string())?;
        let assembly = stack::assemble(&new, &self.shared).map_err(|error| error.to_string())?;
        if let (Some(acceptor), Some(certificate)) = (&self.tls, certificate) {
            self.shared.certificate.set(certificate.validity(), self.shared.clock.now());
            acceptor.replace(certificate);
            self.held.client_ca = has_client_ca(&new);
        }
        self.shared.audit.switch(audit);
        if new.admin.token_sha256 != old.admin.token_sha256 {
            // Before the token is in use, so that no session of an older one meets it.
            self.shared.reloads.admin_token_changes();
        }
        for key in new.waiting_for_restart(&old) {
            tracing::warn!(key, "this cannot change while the gateway runs; restart it");
        }
        (self.on_reload)(&new);
        self.current.store(Arc::new(assembly));
        self.config.store(Arc::new(new));
        Ok(())
    }
}

/// Does work that reads files, on a thread that no request waits for. A panic in it is one of the caller.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(_) => std::future::pending().await,
        },
    }
}

async fn fingerprint(files: &Files) -> Fingerprint {
    let files = files.clone();
    blocking(move || files.fingerprint_now()).await
}

/// Waits until the files stay unchanged.
async fn debounced(files: &Files, mut now: Fingerprint) {
    for _ in 0..MAX_DEBOUNCES {
        tokio::time::sleep(DEBOUNCE).await;
        let before = std::mem::replace(&mut now, fingerprint(files).await);
        if now == before {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The files of a configuration with a secret, and the path of the secret.
    fn files(folder: &tempfile::TempDir) -> (Files, std::path::PathBuf) {
        let secret = folder.path().join("secret");
        fs::write(&secret, "secret-of-0").unwrap();
        let sources = Sources::default()
            .with_flag("accounts.main.account_sid", "AC00000000000000000000000000000001")
            .with_flag("accounts.main.api_key", "SK1")
            .with_flag("accounts.main.api_secret.file", secret.display().to_string());
        (config::load(&sources).unwrap().files, secret)
    }

    async fn write(secret: &std::path::Path, times: u32, pause: Duration) {
        for n in 1..=times {
            tokio::time::sleep(pause).await;
            fs::write(secret, format!("secret-of-{n}")).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changed_files_are_read_once_they_stay_unchanged() {
        let folder = tempfile::TempDir::new().unwrap();
        let (files, secret) = files(&folder);
        let mut writing = std::pin::pin!(write(&secret, 4, DEBOUNCE * 3 / 4));
        tokio::select! {
            biased;
            () = &mut writing => {}
            () = debounced(&files, files.fingerprint()) => panic!("it did not wait"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_keep_changing_are_read_within_five_seconds() {
        let folder = tempfile::TempDir::new().unwrap();
        let (files, secret) = files(&folder);
        let begun = tokio::time::Instant::now();
        tokio::select! {
            () = debounced(&files, files.fingerprint()) => {}
            () = write(&secret, 1000, DEBOUNCE / 2) => panic!("it waited for the end"),
        }
        // The remaining time is for reading and building.
        assert!(POLL_INTERVAL + begun.elapsed() <= Duration::from_millis(4500), "{:?}", begun.elapsed());
    }
}
