//! The audit log: who asked for what, from where, and with which result. One JSON object per line.
//!
//! A line names the members of a query. It holds none of the query's values, no header and no part of a response. No
//! request waits for it: records go to a thread of their own, which reads the names out of the queries and writes. What
//! waits there is bounded, for each team and for all together. A record that finds no space is kept without its query; if
//! there is no space for that either, or none on the disk, it is dropped and counted, and the log says so once.

mod fair_shares;
mod message;
mod record;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Semaphore;

use self::fair_shares::FairShares;
pub use self::message::{AuditError, AuditFile};
use self::message::{Message, count};
use self::record::Record;
use self::writer::Writer;
use crate::core::clock::Clock;
use crate::core::work_queue::WorkQueue;
use crate::metrics::Metrics;
use crate::request::ended::{RequestEnded, RequestSubscriber};

/// How long the end of the process waits for the last records.
const LAST: Duration = Duration::from_secs(2);

/// The shares limit what waits, so the queue needs no limit of its own.
const UNLIMITED: usize = Semaphore::MAX_PERMITS;

/// The audit log. Cheap to clone; all clones are one. It outlives reloads and the files that it writes to.
#[derive(Clone)]
pub struct AuditLog(Arc<Inner>);

struct Inner {
    /// Set with the first file, so that gateways without an audit log have no thread for it.
    queue: OnceLock<WorkQueue<Message>>,
    shares: Arc<FairShares>,
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
    /// An audit log without a file. Counts records in `metrics`.
    pub fn new(metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self(Arc::new(Inner { queue: OnceLock::new(), shares: Arc::default(), metrics, clock }))
    }

    /// From now on records go to `file`; those that wait already go to the file before it.
    pub fn switch(&self, file: Option<AuditFile>) {
        let queue = match &file {
            Some(_) => Some(self.0.queue.get_or_init(|| self.start())),
            None => self.0.queue.get(),
        };
        // Fails only if the thread could not be started, which has been logged.
        let _ = queue.map(|queue| queue.offer(Message::File(file)));
    }

    fn record(&self, record: Record) {
        if !self.0.queue.get().is_some_and(|queue| self.send(queue, record)) {
            count(&self.0.metrics, "dropped", 1);
        }
    }

    fn send(&self, queue: &WorkQueue<Message>, mut record: Record) -> bool {
        let shares = &self.0.shares;
        let fits = |record: &Record| shares.reserve(record.team.as_ref(), record.weight(), record.query.is_some());
        let mut is_cut = false;
        if !fits(&record) {
            is_cut = record.query.take().is_some();
            if !(is_cut && fits(&record)) {
                return false;
            }
        }
        let (team, weight) = (record.team.clone(), record.weight());
        let sent = queue.offer(Message::Record { record: Box::new(record), is_cut }).is_ok();
        if !sent {
            shares.release(team.as_ref(), weight);
        }
        sent
    }

    /// Waits until what was recorded so far is written, for two seconds at most.
    pub async fn close(&self) {
        if let Some(queue) = self.0.queue.get()
            && tokio::time::timeout(LAST, queue.flush()).await.is_err()
        {
            tracing::warn!("the last records of the audit log were not written in time");
        }
    }

    fn start(&self) -> WorkQueue<Message> {
        let (queue, work) = WorkQueue::bounded(UNLIMITED);
        let writer = Writer::new(Arc::clone(&self.0.shares), Arc::clone(&self.0.metrics));
        let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(work));
        if let Err(error) = thread {
            tracing::error!(%error, "cannot start the thread of the audit log: all its records are lost");
        }
        queue
    }
}
