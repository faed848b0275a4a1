//! The only clock. All code reads the time here, so that tests run under tokio's paused time.
//!
//! There are three kinds of time, because no single one fits every use:
//!
//! * [`Instant`], monotonic, for timers and deadlines. It stands still while the machine is suspended.
//! * [`Moment`], monotonic, for ages. It goes on while the machine is suspended.
//! * [`SystemTime`], for people and for other machines. It is read whenever it is needed, because it is corrected while
//!   the process runs. Ages are computed with it only where they survive a restart.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};
pub use tokio::time::Instant;

/// A moment on the clock that starts when the machine boots and goes on while it is suspended (`CLOCK_BOOTTIME`), in
/// nanoseconds. Moments of an earlier boot are below 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

impl Moment {
    /// From a value of [`nanos`](Self::nanos) of this boot.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the machine booted.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Time since `earlier`; zero where `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// `duration` earlier. Saturates.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }

    /// `duration` later. Saturates.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

fn nanos(duration: Duration) -> i64 {
    // An `i64` holds 292 years, which is enough.
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Reads the time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    source: Source,
    start: Instant,
    moment_at_start: Moment,
    wall_at_start: SystemTime,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Machine,
    /// Follows tokio's time, paused or not.
    #[cfg(test)]
    Simulated(&'static Simulation),
}

impl Source {
    fn moment(self) -> Moment {
        match self {
            Self::Machine => {
                let time = clock_gettime(ClockId::Boottime);
                Moment(time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec))
            }
            #[cfg(test)]
            Self::Simulated(simulation) => simulation.moment(),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where the wall clock is read")]
    fn wall(self) -> SystemTime {
        match self {
            Self::Machine => SystemTime::now(),
            #[cfg(test)]
            Self::Simulated(simulation) => simulation.wall(),
        }
    }
}

impl Clock {
    /// A clock that reads the machine's clocks.
    pub fn new() -> Self {
        Self::of(Source::Machine)
    }

    fn of(source: Source) -> Self {
        Self { source, moment_at_start: source.moment(), start: Instant::now(), wall_at_start: source.wall() }
    }

    /// The time now, for waiting.
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// The time now, for ages.
    pub fn moment(&self) -> Moment {
        self.source.moment()
    }

    /// The moment of an `instant`, or an earlier one if the machine has been suspended since the start.
    pub fn earliest_moment(&self, instant: Instant) -> Moment {
        let since = instant.saturating_duration_since(self.start);
        self.moment_at_start.after(since).before(self.start.saturating_duration_since(instant))
    }

    /// The machine's wall time now.
    pub fn wall_now(&self) -> SystemTime {
        self.source.wall()
    }

    /// The wall time of a recent `instant`, by today's wall clock.
    pub fn wall(&self, instant: Instant) -> SystemTime {
        self.reading().wall(instant)
    }

    /// One reading of the wall clock that converts several instants: the distances between them stay the same.
    pub fn reading(&self) -> Reading {
        Reading { now: self.now(), wall: self.wall_now() }
    }

    /// What the wall clock would show now if it had not been set since the start. Where it shows something else, it was
    /// wrong then or is wrong now.
    pub fn predicted_wall(&self) -> SystemTime {
        self.wall_at_start + self.moment().since(self.moment_at_start)
    }

    /// When this clock was created: the start of the process, for uptimes.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// The wall time of the start, by today's wall clock.
    pub fn started_at(&self) -> SystemTime {
        let wall = self.wall_now();
        wall.checked_sub(self.moment().since(self.moment_at_start)).unwrap_or(wall)
    }
}

/// See [`Clock::reading`].
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    now: Instant,
    wall: SystemTime,
}

impl Reading {
    /// The wall time of `instant`.
    pub fn wall(&self, instant: Instant) -> SystemTime {
        let ago = self.now.saturating_duration_since(instant);
        self.wall.checked_sub(ago).unwrap_or(self.wall) + instant.saturating_duration_since(self.now)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
pub use simulation::Simulation;

#[cfg(test)]
mod simulation {
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::{Duration, SystemTime};

    use super::{Clock, Instant, Moment, Source, nanos};

    /// A machine whose clocks follow tokio's, and that can be suspended and set.
    #[derive(Debug)]
    pub struct Simulation {
        begun: Instant,
        wall: SystemTime,
        suspended: AtomicI64,
        stepped: AtomicI64,
    }

    impl Simulation {
        /// Suspends the machine: wall time goes on, tokio's time does not.
        pub fn suspend(&self, duration: Duration) {
            self.suspended.fetch_add(nanos(duration), Ordering::SeqCst);
        }

        /// Sets the wall clock forward by `seconds`, or back if they are negative.
        pub fn step_wall(&self, seconds: i64) {
            self.stepped.fetch_add(seconds * 1_000_000_000, Ordering::SeqCst);
        }

        pub(super) fn moment(&self) -> Moment {
            // As if the machine had been running for a day.
            let up = Moment(86_400_000_000_000).after(self.begun.elapsed());
            Moment(up.0 + self.suspended.load(Ordering::SeqCst))
        }

        pub(super) fn wall(&self) -> SystemTime {
            let stepped = self.stepped.load(Ordering::SeqCst) + self.suspended.load(Ordering::SeqCst);
            let by = Duration::from_nanos(stepped.unsigned_abs());
            let wall = self.wall + self.begun.elapsed();
            if stepped < 0 { wall - by } else { wall + by }
        }
    }

    impl Clock {
        /// A clock whose times all follow tokio's.
        pub fn simulated() -> Self {
            Self::simulation().0
        }

        /// Such a clock and its machine. The machine is never freed, so that clocks can be copied.
        pub fn simulation() -> (Self, &'static Simulation) {
            let machine: &Simulation = Box::leak(Box::new(Simulation {
                begun: Instant::now(),
                wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
                suspended: AtomicI64::new(0),
                stepped: AtomicI64::new(0),
            }));
            (Self::of(Source::Simulated(machine)), machine)
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn ages_grow_while_the_machine_is_suspended_and_not_when_its_clock_is_set() {
        let (clock, machine) = Clock::simulation();
        let (moment, instant, wall) = (clock.moment(), clock.now(), clock.wall_now());
        advance(10 * S).await;
        machine.suspend(90 * S);
        machine.step_wall(-50);
        assert_eq!((clock.moment().since(moment), clock.now() - instant), (100 * S, 10 * S));
        assert_eq!(clock.wall_now().duration_since(wall).unwrap(), 50 * S, "as it has been set");
        assert_eq!(clock.predicted_wall().duration_since(wall).unwrap(), 100 * S);
        assert_eq!(clock.started_at(), clock.wall_now() - 100 * S);
        assert_eq!(clock.wall(instant), clock.wall_now() - 10 * S);
        assert_eq!(clock.wall(clock.now() + S), clock.wall_now() + S);
        assert_eq!(clock.earliest_moment(instant), moment);
        assert_eq!(
            clock.earliest_moment(clock.now()),
            moment.after(10 * S),
            "the machine may have been suspended before"
        );
    }

    #[test]
    fn the_machines_clocks_go_forward() {
        let clock = Clock::new();
        let (moment, wall) = (clock.moment(), clock.wall_now());
        assert!(moment.nanos() > 0 && clock.moment() >= moment);
        assert!(clock.predicted_wall().duration_since(wall).is_ok_and(|passed| passed < 60 * S));
    }

    #[test]
    fn moments_saturate() {
        let first = Moment::from_nanos(i64::MIN);
        assert_eq!(first.before(S), first);
        assert_eq!(Moment::from_nanos(0).since(Moment::from_nanos(5)), Duration::ZERO);
        assert_eq!(Moment::from_nanos(0).after(Duration::MAX).nanos(), i64::MAX);
    }
}
