//! Writes formatted log lines to a buffer, from which a separate thread writes to standard error.
//!
//! So a request neither makes a system call for its line nor waits for a slow reader. Lines are written within a few
//! milliseconds, many at a time when there are many, but never so many that the thread occupies a core for long. The
//! buffer is bounded: when standard error is not read, lines are dropped and counted, and their number is written when
//! it is read again.
//!
//! It is not a [`WorkQueue`](crate::core::work_queue): it holds bytes that are swapped out together, and it is flushed
//! without a runtime.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Bytes that may wait to be written.
const CAPACITY: usize = 4 * 1024 * 1024;

/// How long lines are gathered before they are written.
const GATHER: Duration = Duration::from_millis(5);

/// Bytes that are enough for a write, which takes about ten microseconds.
const ENOUGH: usize = 32 * 1024;

/// How long the process waits for the last lines when it ends.
const LAST: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    dropped: u64,
    writing: bool,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A writer of lines. Cheap to clone; all clones share one buffer.
#[derive(Debug, Clone)]
pub(super) struct Sink(Arc<Shared>);

impl Sink {
    /// A sink whose thread writes to `output`; `None` when the thread cannot be started.
    pub(super) fn start(output: impl Write + Send + 'static) -> Option<Self> {
        let shared = Arc::<Shared>::default();
        let written = Arc::clone(&shared);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || write_forever(&written, output)).ok()?;
        Some(Self(shared))
    }

    /// Waits until all lines so far are written, for two seconds at most.
    pub(super) fn flush(&self) {
        let busy = |waiting: &mut Waiting| !waiting.lines.is_empty() || waiting.writing;
        // Whether it took too long does not matter, because the process ends now.
        let _ = self.0.changed.wait_timeout_while(self.0.lock(), LAST, busy);
    }
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.lock();
        let (before, after) = (waiting.lines.len(), waiting.lines.len() + line.len());
        if after > CAPACITY {
            waiting.dropped += 1;
            return Ok(line.len());
        }
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        let are_enough = before < ENOUGH && after >= ENOUGH;
        if before == 0 || are_enough {
            self.0.changed.notify_all();
        }
        if are_enough {
            // On a busy core the thread might run only when the scheduler stops this one, and would then keep the core
            // until all lines gathered meanwhile are written.
            std::thread::yield_now();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn write_forever(shared: &Shared, mut output: impl Write) {
    let mut lines = Vec::new();
    loop {
        let waiting = shared.changed.wait_while(shared.lock(), |waiting| waiting.lines.is_empty());
        let waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        // More lines usually follow.
        let gathered = shared.changed.wait_timeout_while(waiting, GATHER, |waiting| waiting.lines.len() < ENOUGH);
        let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut waiting.lines, &mut lines);
        let dropped = std::mem::take(&mut waiting.dropped);
        waiting.writing = true;
        drop(waiting);
        if dropped > 0 {
            lines.extend_from_slice(
                format!("insights-gateway: {dropped} log lines were dropped: they were not read in time\n").as_bytes(),
            );
        }
        // If standard error is broken, there is nowhere to report it.
        let _ = output.write_all(&lines).and_then(|()| output.flush());
        lines.clear();
        shared.lock().writing = false;
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Passes on the lines that are written, and waits at the gate if there is one.
    struct Reader {
        written: mpsc::Sender<Vec<u8>>,
        gate: Option<mpsc::Receiver<()>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.written.send(bytes.to_vec()).map_err(io::Error::other)?;
            if let Some(gate) = &self.gate {
                gate.recv().map_err(io::Error::other)?;
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_completely_and_in_order() {
        let (written, lines) = mpsc::channel();
        let mut sink = Sink::start(Reader { written, gate: None }).unwrap();
        let expected: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        for line in expected.split_inclusive('\n') {
            sink.write_all(line.as_bytes()).unwrap();
        }
        Sink::flush(&sink);
        let all: Vec<u8> = lines.try_iter().flatten().collect();
        assert_eq!(String::from_utf8(all).unwrap(), expected);
    }

    #[test]
    fn a_stalled_reader_loses_lines_and_does_not_fill_memory() {
        let ((written, lines), (let_on, gate)) = (mpsc::channel(), mpsc::channel());
        let mut sink = Sink::start(Reader { written, gate: Some(gate) }).unwrap();
        sink.write_all(b"first\n").unwrap();
        assert_eq!(lines.recv().unwrap(), b"first\n");
        let line = [b'x'; 1024];
        for _ in 0..2 * CAPACITY / line.len() {
            sink.write_all(&line).unwrap();
        }
        assert!(sink.0.lock().lines.len() <= CAPACITY);
        let_on.send(()).unwrap();
        let second = lines.recv().unwrap();
        assert!(second.len() <= CAPACITY + 100);
        assert!(String::from_utf8_lossy(&second).contains("4096 log lines were dropped"));
        let_on.send(()).unwrap();
    }
}
