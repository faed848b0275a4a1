//! The thread that writes the records.

use std::io;
use std::sync::Arc;

use futures_util::FutureExt;

use super::fair_shares::FairShares;
use super::message::{AuditFile, Message, count};
use crate::core::work_queue::Work;
use crate::metrics::Metrics;

/// Lines are written together, up to so many bytes.
const BATCH: usize = 256 * 1024;

/// Formats records and writes them, until every handle is gone.
pub(super) struct Writer {
    shares: Arc<FairShares>,
    metrics: Arc<Metrics>,
    file: Option<AuditFile>,
    lines: Vec<u8>,
    /// Records in `lines`.
    records: u64,
    /// The last write failed, perhaps in the middle of a line.
    failed: bool,
}

impl Writer {
    pub(super) fn new(shares: Arc<FairShares>, metrics: Arc<Metrics>) -> Self {
        Self { shares, metrics, file: None, lines: Vec::new(), records: 0, failed: false }
    }

    pub(super) fn run(mut self, mut work: Work<Message>) {
        while let Some(first) = work.blocking_next() {
            self.take(first);
            while let Some(message) = work.more().now_or_never().flatten() {
                self.take(message);
            }
            self.flush();
        }
    }

    pub(super) fn take(&mut self, message: Message) {
        match message {
            Message::Record { record, is_cut } => {
                record.write(&mut self.lines, is_cut);
                self.records += 1;
                self.shares.release(record.team.as_ref(), record.weight());
                if self.lines.len() >= BATCH {
                    self.flush();
                }
            }
            Message::File(file) => {
                self.flush();
                self.file = file;
                self.failed = false;
            }
        }
    }

    pub(super) fn flush(&mut self) {
        let records = std::mem::take(&mut self.records);
        if records == 0 {
            return;
        }
        match self.write() {
            Ok(()) => {
                count(&self.metrics, "written", records);
                if std::mem::take(&mut self.failed) {
                    tracing::info!("the audit log is written again");
                }
            }
            Err(error) => {
                count(&self.metrics, "dropped", records);
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::error!(%error, "the audit log cannot be written: records are lost until it can");
                }
            }
        }
        self.lines.clear();
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(AuditFile(file)) = &mut self.file else { return Err(io::Error::other("there is no file")) };
        if self.failed {
            // Ends the line that the failed write may have cut.
            file.write_all(b"\n")?;
        }
        file.write_all(&self.lines)
    }
}
