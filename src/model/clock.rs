//! The one clock. Everything that asks for the time asks here, so that tests run under tokio's paused time.

use std::time::SystemTime;

pub use tokio::time::Instant;

/// Monotonic time for arithmetic, wall time for dates in headers and logs.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    wall_at_start: SystemTime,
}

impl Clock {
    /// A clock that reads the machine's.
    #[expect(clippy::disallowed_methods, reason = "the one place where the wall clock is read")]
    pub fn new() -> Self {
        Self { start: Instant::now(), wall_at_start: SystemTime::now() }
    }

    /// Now, for arithmetic.
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// The wall time at `instant`. It advances with the monotonic clock, so it never jumps.
    pub fn wall(&self, instant: Instant) -> SystemTime {
        match instant.checked_duration_since(self.start) {
            Some(since) => self.wall_at_start + since,
            None => self.wall_at_start - self.start.duration_since(instant),
        }
    }

    /// When this clock was made: the start of the process, for uptimes.
    pub fn start(&self) -> Instant {
        self.start
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
