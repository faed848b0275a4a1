//! The file of the audit log, and what its thread is told.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::record::Record;
use crate::config;
use crate::metrics::{Metrics, ResultLabels, StaticLabel};

/// An open file for records.
pub struct AuditFile(pub(super) Box<dyn Write + Send>);

/// The audit log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the audit log {path}: {source}")]
pub struct AuditError {
    path: String,
    source: io::Error,
}

impl AuditFile {
    /// Opens `path` and appends to it. A new file has mode 0600; an existing one keeps its mode, unless every user may
    /// use it.
    ///
    /// # Errors
    ///
    /// When it cannot be opened for writing, or is not a regular file.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let open = || -> io::Result<File> {
            // Checked before it is opened, because opening a pipe would wait for a reader.
            if std::fs::metadata(path).is_ok_and(|about| !about.is_file()) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
            }
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
            config::keep_from_others(&file, path);
            Ok(file)
        };
        match open() {
            Ok(file) => Ok(Self(Box::new(file))),
            Err(source) => Err(AuditError { path: path.display().to_string(), source }),
        }
    }
}

/// What the handles tell the thread.
pub(super) enum Message {
    /// Its bytes are reserved in the [`FairShares`](super::fair_shares::FairShares).
    Record {
        record: Box<Record>,
        /// Its query was left out, because there was no space for it.
        is_cut: bool,
    },
    /// Write to this file from now on.
    File(Option<AuditFile>),
}

/// Counts records that ended in this way.
pub(super) fn count(metrics: &Metrics, result: &'static str, records: u64) {
    metrics.audit_records.get_or_create(&ResultLabels { result: StaticLabel(result) }).inc_by(records);
}
