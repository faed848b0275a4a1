//! The audit log: who asked for what, from where, and what became of it. One JSON object a line.
//!
//! It names the members of a query and holds none of its values, no header and no part of an answer. No request
//! waits for it: records go to a thread of their own, which reads the queries' names and writes. What waits there is
//! bounded, for each team and for all together. A record that finds no room goes without its query's names; where there
//! is none for that either, or none on the disk, it is lost, counted, and said once in the log.

mod record;
mod room;
mod writer;

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::oneshot;

use self::record::Record;
use self::room::Room;
use self::writer::Writer;
use crate::config;
use crate::core::clock::Clock;
use crate::metrics::{Metrics, ResultLabels, StaticLabel};
use crate::request::ended::{RequestEnded, RequestSubscriber};

/// How long the end of the process waits for the last records.
const LAST: Duration = Duration::from_secs(2);

/// A file that takes records.
pub struct AuditFile(Box<dyn Write + Send>);

/// The audit log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the audit log {path}: {source}")]
pub struct AuditError {
    path: String,
    source: io::Error,
}

impl AuditFile {
    /// Opens `path` behind what it holds. It can be read by nobody else, or by its group if that is how it was made.
    ///
    /// # Errors
    ///
    /// When it cannot be written, or is no regular file.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let open = || -> io::Result<File> {
            // Looked at before it is opened: opening a pipe would wait for a reader.
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

enum Message {
    /// What it weighs while it waits is in the [`Room`].
    Record {
        record: Box<Record>,
        /// There was no room for its query.
        is_cut: bool,
    },
    File(Option<AuditFile>),
    End(oneshot::Sender<()>),
}

/// Takes records. Cheap to clone; it outlives reloads, and the files that it writes to.
#[derive(Clone)]
pub struct AuditLog(Arc<Inner>);

struct Inner {
    /// Absent until there is a file, and so no thread for most gateways.
    sender: OnceLock<Sender<Message>>,
    room: Arc<Room>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl RequestSubscriber for AuditLog {
    fn ended(&self, request: &RequestEnded) {
        self.record(Record::of(request, self.0.clock));
    }

    fn reads_query(&self) -> bool {
        true
    }
}

impl AuditLog {
    /// Without a file yet. Counts records in `metrics`.
    pub fn new(metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self(Arc::new(Inner { sender: OnceLock::new(), room: Arc::default(), metrics, clock }))
    }

    /// From now on records go to `file`. What was recorded before still goes to the one before.
    pub fn switch(&self, file: Option<AuditFile>) {
        let sender = match &file {
            Some(_) => Some(self.0.sender.get_or_init(|| self.start())),
            None => self.0.sender.get(),
        };
        // Fails only where there could be no thread, which has been said.
        let _ = sender.map(|sender| sender.send(Message::File(file)));
    }

    fn record(&self, record: Record) {
        if !self.0.sender.get().is_some_and(|sender| self.send(sender, record)) {
            count(&self.0.metrics, "dropped", 1);
        }
    }

    fn send(&self, sender: &Sender<Message>, mut record: Record) -> bool {
        let room = &self.0.room;
        let has_room = |record: &Record| room.take(record.team.as_ref(), record.weight(), record.query.is_some());
        let mut is_cut = false;
        if !has_room(&record) {
            is_cut = record.query.take().is_some();
            if !(is_cut && has_room(&record)) {
                return false;
            }
        }
        let (team, weight) = (record.team.clone(), record.weight());
        let sent = sender.send(Message::Record { record: Box::new(record), is_cut }).is_ok();
        if !sent {
            room.give_back(team.as_ref(), weight);
        }
        sent
    }

    /// Waits until what was recorded so far is written, but not for long.
    pub async fn close(&self) {
        let (done, written) = oneshot::channel();
        if self.0.sender.get().is_some_and(|sender| sender.send(Message::End(done)).is_ok())
            && tokio::time::timeout(LAST, written).await.is_err()
        {
            tracing::warn!("the last records of the audit log were not written in time");
        }
    }

    fn start(&self) -> Sender<Message> {
        let (sender, receiver) = channel();
        let writer = Writer::new(Arc::clone(&self.0.room), Arc::clone(&self.0.metrics));
        let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(&receiver));
        if let Err(error) = thread {
            tracing::error!(%error, "there can be no thread for the audit log: all its records are lost");
        }
        sender
    }
}

fn count(metrics: &Metrics, result: &'static str, records: u64) {
    metrics.audit_records.get_or_create(&ResultLabels { result: StaticLabel(result) }).inc_by(records);
}
