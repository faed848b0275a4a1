//! The runtime, and the signals that end or reload a process.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;

use rustix::process::Signal;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// Threads in addition to the runtime's own: the log, the audit log, the disk cache, the owners of query jobs, and one for
/// calls that block.
const OTHER_THREADS: usize = 5;

/// A runtime for the available cores. With a single core, work stealing is useless, and the scheduler without it
/// answers more requests a second.
///
/// # Errors
///
/// When the system lets this process have too few threads.
pub(super) fn runtime() -> io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut builder = if cores == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    try_threads(cores + OTHER_THREADS).map_err(|error| {
        io::Error::other(format!(
            "the system lets this process have too few threads, and it needs {}: {error}; allow more (TasksMax= in a \
             systemd unit, --pids-limit for a container, ulimit -u elsewhere)",
            cores + OTHER_THREADS
        ))
    })?;
    builder.enable_all().build()
}

/// Starts this many threads at the same time and ends them again, because the runtime panics when it cannot start one.
fn try_threads(count: usize) -> io::Result<()> {
    let gate = RwLock::new(());
    thread::scope(|scope| {
        let shut = gate.write().unwrap_or_else(PoisonError::into_inner);
        let wait = || drop(gate.read());
        let started = (0..count).try_for_each(|_| thread::Builder::new().spawn_scoped(scope, wait).map(drop));
        drop(shut);
        started
    })
}

/// Ends when the process is told to stop: SIGTERM, or SIGINT from a keyboard. Listens from the call on.
pub(super) fn told_to_stop() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// From now on, writing to a file beyond its size limit returns an error, like a full disk. By default the system ends
/// a process that does so (`ulimit -f`, `LimitFSIZE=`).
pub(super) fn outlive_file_size_limits() -> io::Result<()> {
    // The signal is not read. Only its handler matters, and that stays until the process ends.
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}

/// Notified on every SIGHUP.
pub(super) fn told_to_reload() -> io::Result<Arc<Notify>> {
    let mut hangup = signal(SignalKind::hangup())?;
    let notify = Arc::new(Notify::new());
    let notified = Arc::clone(&notify);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            notified.notify_one();
        }
    });
    Ok(notify)
}
