//! The clock that all replicas share.
//!
//! It is the clock of the server that has the feed of changes: the keys of both are in one hash slot of a cluster. So
//! the time of a page's request and the time of a purge can be compared, whichever server has the page. Every heartbeat
//! and every reading of the feed tells a replica the time of that clock. In between, the replica uses its own clock to
//! measure how much time has passed.
//!
//! The shared clock never goes back, because then a page from before a purge would seem to come after it. The server's
//! own clock can go back: somebody sets it, or another server takes over whose clock is behind. So a replica sends the
//! store the latest time that it knows. The store keeps the difference by which the shared clock is ahead of the
//! server's clock. If that is more than a day, something is damaged. Then the shared clock starts again from the
//! server's clock, with a new generation of pages.
//!
//! Other keys can be on servers with other clocks. [`Due`] is for those.

use std::future::Future;
use std::time::Duration;

use super::error::StoreError;
use crate::core::clock::Moment;

/// The key of the clock. It shares a hash slot with the feed.
pub(super) const KEY: &str = "{changes}:clock";
/// A time that is farther ahead than this is not from the shared clock: something else has written it.
pub(super) const AHEAD: Duration = Duration::from_secs(60);
/// For this long a reading limits how late the clock may be. Within that time each replica has read the clock again.
const DOUBTED: Duration = Duration::from_secs(3);

/// Defines `read_clock` for a script. It takes the key of the clock, the head of the feed, and the time that the clock
/// shows at least. It returns the time, and that of the server itself, in microseconds.
pub(super) const READ_CLOCK: &str = r"
local function read_clock(key, head, least)
  local function number(text) return text and #text <= 16 and text:find('^%d+$') and tonumber(text) or 0 end
  local time = redis.call('TIME')
  local own = time[1] * 1000000 + time[2]
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', key) end
  local known = redis.call('HMGET', key, 'ahead', 'last')
  local now = math.max(own + number(known[1]), number(known[2]), number(least))
  if now > own + 86400000000 then
    redis.call('DEL', head)
    now = own
  end
  if now - own ~= number(known[1]) or now >= number(known[2]) + 500000 then
    redis.call('HSET', key, 'ahead', string.format('%.0f', now - own), 'last', string.format('%.0f', now))
    redis.call('PEXPIRE', key, 2678400000)
  end
  return now, own
end
";

/// A time on the shared clock, in microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StoreTime(pub(crate) u64);

/// What the store said of its clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) time: StoreTime,
    /// The clock of the server itself, in microseconds.
    pub(super) server: u64,
    /// The store read its clock between these moments.
    pub(super) sent: Moment,
    pub(super) came: Moment,
}

impl Reading {
    /// The time at this moment, never later than it really was.
    fn earliest(&self, moment: Moment) -> u64 {
        shifted(self.time.0, self.came, moment)
    }

    /// The time at this moment, never earlier than it really was.
    fn latest(&self, moment: Moment) -> u64 {
        shifted(self.time.0, self.sent, moment)
    }
}

/// What one replica knows of the shared clock.
#[derive(Debug, Default)]
pub(super) struct StoreClock {
    last: Option<Reading>,
    /// The reading that gives the latest time that has certainly passed. So the time that this replica uses never goes
    /// back either: of two pages, the one that it requested later has the later time.
    earliest: Option<Reading>,
    /// The recent reading that gives the latest time now. After another server has taken over, other replicas may still
    /// use the earlier clock.
    latest: Option<Reading>,
}

impl StoreClock {
    pub(super) fn record(&mut self, reading: Reading) {
        let came = reading.came;
        // If it is earlier by that much, the clock has started again.
        let counts = |before: &Reading| before.latest(came).saturating_sub(reading.latest(came)) < micros(AHEAD);
        let is_later = |before: &Reading| counts(before) && before.earliest(came) > reading.earliest(came);
        self.earliest = Some(self.earliest.filter(is_later).unwrap_or(reading));
        let is_recent = |before: &Reading| came.since(before.came) < DOUBTED;
        let is_later = |before: &Reading| counts(before) && before.latest(came) > reading.latest(came);
        self.latest = Some(self.latest.filter(is_recent).filter(is_later).unwrap_or(reading));
        self.last = Some(reading);
    }

    /// The time at this moment, never later than it really was.
    pub(super) fn earliest(&self, moment: Moment) -> Option<StoreTime> {
        self.earliest.map(|reading| StoreTime(reading.earliest(moment)))
    }

    /// The time at this moment, never earlier than it really was, nor earlier than the time that any replica uses.
    pub(super) fn latest(&self, moment: Moment) -> Option<StoreTime> {
        self.latest.map(|reading| StoreTime(reading.latest(moment)))
    }

    /// The moment at which it shows this time, never earlier than it really does.
    pub(super) fn moment_of(&self, StoreTime(time): StoreTime) -> Option<Moment> {
        let Reading { time: StoreTime(then), came, .. } = self.earliest?;
        let (later, earlier) = (time.saturating_sub(then), then.saturating_sub(time));
        Some(came.after(Duration::from_micros(later)).before(Duration::from_micros(earlier)))
    }

    /// When it was last read.
    #[cfg(test)]
    pub(super) fn read_at(&self) -> Option<Moment> {
        self.last.map(|reading| reading.came)
    }

    /// The server's own time at this moment, never later than it really was.
    pub(super) fn server(&self, moment: Moment) -> Option<u64> {
        self.last.map(|reading| shifted(reading.server, reading.came, moment))
    }
}

/// What a clock shows at `moment` that showed `time` at `at`.
fn shifted(time: u64, at: Moment, moment: Moment) -> u64 {
    time.saturating_add(micros(moment.since(at))).saturating_sub(micros(at.since(moment)))
}

/// In microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// When a server may run a command, on its own clock in microseconds. When a store that stood still continues, it runs
/// all commands that it has received, also those whose callers no longer wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) from: u64,
    pub(super) until: u64,
}

impl Due {
    /// Within `patience`, on a clock that shows about `now`.
    pub(super) fn within(patience: Duration, now: u64) -> Self {
        Self { from: now.saturating_sub(micros(patience)), until: now.saturating_add(micros(patience)) }
    }
}

/// Sends a command that the server does not run after `patience`. `now` is the server's time, as far as it is known.
/// `late` finds the server's time in a reply that refuses. Such a reply came in time, so the server has another clock,
/// and the command is sent once more with times of that clock.
pub(super) async fn run_in_time<T, R: Future<Output = Result<T, StoreError>>>(
    now: u64,
    patience: Duration,
    late: impl Fn(&T) -> Option<u64>,
    run: impl Fn(Due) -> R,
) -> Result<T, StoreError> {
    let replied = run(Due::within(patience, now)).await?;
    match late(&replied) {
        Some(now) => run(Due::within(patience, now)).await,
        None => Ok(replied),
    }
}

/// The server's time in the reply of a script that returns it with a minus sign where it is not due.
pub(super) fn negative(replied: &i64) -> Option<u64> {
    u64::try_from(replied.saturating_neg()).ok().filter(|now| *now > 0)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::replicas::test_server::TestServer;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);
    const SECOND: i64 = 1_000_000;
    const HOUR: i64 = 3600 * SECOND;

    fn moment(at: Duration) -> Moment {
        Moment::from_nanos(0).after(at)
    }

    /// The store says this time between two moments.
    fn reading(time: u64, sent: Duration, came: Duration) -> Reading {
        Reading { time: StoreTime(time), server: time, sent: moment(sent), came: moment(came) }
    }

    #[test]
    fn the_time_lies_between_what_the_way_there_and_the_way_back_leave_open() {
        let mut clock = StoreClock::default();
        assert_eq!((clock.earliest(moment(S)), clock.latest(moment(S))), (None, None));
        clock.record(reading(50_000_000, S, S + 10 * MS));
        for (at, earliest, latest) in
            [(S + 10 * MS, 50_000_000, 50_010_000), (2 * S, 50_990_000, 51_000_000), (S, 49_990_000, 50_000_000)]
        {
            let at = moment(at);
            assert_eq!(clock.earliest(at), Some(StoreTime(earliest)));
            assert_eq!(clock.latest(at), Some(StoreTime(latest)));
            assert_eq!(clock.moment_of(StoreTime(earliest)), Some(at));
        }
    }

    #[test]
    fn what_others_may_still_go_by_counts_for_a_while() {
        let mut clock = StoreClock::default();
        clock.record(reading(500_000_000, S, S + 10 * MS));
        // A server that is 5 ms behind took over.
        clock.record(reading(500_995_000, 2 * S, 2 * S));
        assert_eq!(clock.earliest(moment(2 * S)), Some(StoreTime(500_995_000)));
        assert_eq!(clock.latest(moment(2 * S)), Some(StoreTime(501_000_000)));
        clock.record(reading(503_995_000, 5 * S, 5 * S));
        assert_eq!(clock.latest(moment(5 * S)), Some(StoreTime(503_995_000)));
        // One that began anew is no such doubt.
        clock.record(reading(7_000_000, 6 * S, 6 * S));
        assert_eq!(clock.latest(moment(6 * S)), Some(StoreTime(7_000_000)));
        assert_eq!(clock.earliest(moment(6 * S)), Some(StoreTime(7_000_000)));
    }

    #[test]
    fn a_slow_reading_takes_no_time_back() {
        let mut clock = StoreClock::default();
        clock.record(reading(50_000_000, S, S + 10 * MS));
        clock.record(reading(50_500_000, S + 450 * MS, S + 850 * MS));
        assert_eq!(clock.earliest(moment(2 * S)), Some(StoreTime(50_990_000)));
        assert_eq!(clock.latest(moment(2 * S)), Some(StoreTime(51_050_000)));
        clock.record(reading(50_996_000, 2 * S, 2 * S));
        assert_eq!(clock.earliest(moment(2 * S)), Some(StoreTime(50_996_000)));
    }

    /// The script on a server whose clock the test sets.
    struct Server {
        connection: redis::Connection,
        script: String,
        /// Microseconds since 1970.
        own: i64,
        _server: TestServer,
    }

    impl Server {
        const BEGUN: i64 = 1_800_000_000_123_456;

        fn start() -> Option<Self> {
            let server = TestServer::start()?;
            let script = READ_CLOCK.replace("redis.call('TIME')", "ARGV");
            let script = format!("{script} local now, own = read_clock(KEYS[1], KEYS[2], ARGV[3]) return {{now, own}}");
            Some(Self { connection: server.connection(), script, own: Self::BEGUN, _server: server })
        }

        /// By how much the clock is later than the test began. `least` is told in the same way.
        fn read(&mut self, least: i64) -> i64 {
            let mut command = redis::cmd("EVAL");
            command.arg(&self.script).arg(2).arg("clock").arg("head");
            command.arg(self.own / 1_000_000).arg(self.own % 1_000_000).arg(Self::BEGUN + least);
            let (now, own): (i64, i64) = command.query(&mut self.connection).unwrap();
            assert_eq!(own, self.own);
            now - Self::BEGUN
        }

        fn run<T: redis::FromRedisValue>(&mut self, words: &[&str]) -> T {
            redis::cmd(words[0]).arg(&words[1..]).query(&mut self.connection).unwrap()
        }
    }

    #[test]
    fn the_clock_goes_on_where_that_of_the_server_goes_back() {
        let Some(mut server) = Server::start() else { return };
        assert_eq!(server.read(-5), 0);
        server.own += 100;
        assert_eq!(server.read(0), 100);
        server.own -= HOUR;
        assert_eq!(server.read(150), 150, "by what a replica knows");
        server.own += SECOND;
        assert_eq!(server.read(0), SECOND + 150, "as fast as the server's");
        server.own -= HOUR;
        assert_eq!(server.read(0), SECOND + 150, "by what the store knows");
        server.own += 3 * HOUR;
        assert_eq!(server.read(0), SECOND + 150 + 3 * HOUR, "one that is set forward is followed");
        assert!((1..=31 * 24 * 3_600_000).contains(&server.run::<i64>(&["PTTL", "clock"])));
    }

    #[test]
    fn a_clock_that_is_damaged_begins_anew_and_with_it_the_feed() {
        let Some(mut server) = Server::start() else { return };
        for (damage, ends) in [
            (&["SET", "clock", "text"][..], false),
            (&["HSET", "clock", "ahead", "text"], false),
            (&["HSET", "clock", "last", "-1"], false),
            (&["HSET", "clock", "ahead", "99999999999999999999"], false),
            (&["HSET", "clock", "ahead", "9000000000000000"], true),
            (&["HSET", "clock", "last", "9000000000000000"], true),
        ] {
            server.read(0);
            server.run::<()>(&["SET", "head", "x"]);
            server.run::<redis::Value>(damage);
            server.own += 10;
            assert_eq!(server.read(0), server.own - Server::BEGUN, "{damage:?}");
            assert_eq!(server.run::<bool>(&["EXISTS", "head"]), !ends, "{damage:?}");
        }
        server.own -= 30 * HOUR;
        assert_eq!(server.read(0), server.own - Server::BEGUN, "more than a day");
        assert!(!server.run::<bool>(&["EXISTS", "head"]));
    }

    #[tokio::test]
    async fn a_command_is_run_by_the_clock_of_the_server_that_refused_it() {
        for (server, runs) in [(1_000_000, 1), (1_100_000, 1), (1_100_001, 2), (899_999, 2), (u64::MAX / 2, 2)] {
            let asked = RefCell::new(Vec::new());
            let replied = run_in_time(1_000_000, 100 * MS, negative, |due| {
                asked.borrow_mut().push(due);
                let is_due = (due.from..=due.until).contains(&server);
                async move { Ok(if is_due { 7 } else { -i64::try_from(server).unwrap() }) }
            });
            assert_eq!(replied.await, Ok(7));
            assert_eq!(asked.borrow().len(), runs, "{server}");
        }
    }
}
