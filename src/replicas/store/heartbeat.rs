//! Connects to the store, and writes there every second that this replica is alive.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{Cmd, FromRedisValue};

use super::{FAILURES, SharedStore};
use crate::config::Shared;
use crate::core::clock::{Clock, Moment};
use crate::metrics::{Metrics, NoLabels};
use crate::replicas::connection::Connection;
use crate::replicas::error::StoreError;
use crate::replicas::{changes, clock};

/// How often a replica writes that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A replica that has written nothing for this long no longer counts.
const SILENCE: Duration = Duration::from_secs(5);
/// The longest wait between two attempts to reach the store.
const RECONNECT: Duration = Duration::from_secs(1);

/// Marks this replica as alive, or as gone, and counts those that are alive, on the shared clock.
///
/// Keys: the replicas, the clock, the head of the feed. Arguments: this replica, the silence after which one is gone, in
/// milliseconds, 1 if this one leaves, and the time that the clock shows at least. Returns the time and that of the server
/// itself, in microseconds, and the number of replicas, this one included.
const BEAT: &str = r"
local now, own = read_clock(KEYS[2], KEYS[3], ARGV[4])
local ms = math.floor(now / 1000)
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
if ARGV[3] == '1' then redis.call('ZREM', KEYS[1], ARGV[1]) else redis.call('ZADD', KEYS[1], ms, ARGV[1]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms - ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], ms + ARGV[2], '+inf')
redis.call('PEXPIRE', KEYS[1], ARGV[2] * 2)
return {now, own, redis.call('ZCARD', KEYS[1]) + ARGV[3]}
";
/// The key of the replicas. It shares a hash slot with the clock.
const REPLICAS: &str = "{changes}:replicas";

impl SharedStore {
    /// Connects to the store in the background. Until it is reached, this replica is alone. Needs a tokio runtime.
    pub fn start(settings: Shared, metrics: Arc<Metrics>, clock: Clock) -> Self {
        let store = Self::new(settings, metrics, clock);
        let weak = Arc::downgrade(&store.0);
        tokio::spawn(async move {
            while let Some(inner) = weak.upgrade() {
                Self(inner).keep_up().await;
            }
        });
        store
    }

    /// From now on the other replicas do not count this one, which still uses the store until its process ends.
    pub(crate) async fn leave(&self) {
        self.0.has_left.store(true, Ordering::SeqCst);
        let sent = self.0.clock.moment();
        if let Ok(beat) = self.run("heartbeat", &self.beat()).await {
            self.record(beat, sent);
        }
    }

    /// Connects to the store, and returns when the connection is lost.
    async fn keep_up(self) {
        // Longer than an operation: a connection takes several round trips, and TLS.
        let patience = (self.0.settings.timeout * 4).clamp(Duration::from_secs(1), Duration::from_secs(2));
        let failed = match Connection::open(&self.login(), patience).await {
            Ok(connection) => self.try_out(connection).await.err(),
            Err(error) => Some(error.to_string()),
        };
        if let Some(cause) = failed {
            self.link().cause = cause;
            return pause().await;
        }
        let (mut is_up, mut failed) = (self.changes(), 0);
        loop {
            tokio::select! {
                _ = is_up.wait_for(|is_up| !is_up) => break,
                () = tokio::time::sleep(HEARTBEAT) => {}
            }
            let sent = self.0.clock.moment();
            match self.run("heartbeat", &self.beat()).await {
                Ok(beat) => {
                    failed = 0;
                    self.record(beat, sent);
                }
                Err(error) => {
                    failed += 1;
                    // A store that is full or read-only still answers what others read.
                    if failed >= FAILURES {
                        self.lost(&error.to_string());
                    }
                }
            }
        }
        pause().await;
    }

    /// Proves that the store accepts writes and runs scripts, before others use the connection.
    pub(super) async fn try_out(&self, mut connection: Connection) -> Result<(), String> {
        let sent = self.0.clock.moment();
        let beat = tokio::time::timeout(self.0.settings.timeout, connection.run(&self.beat())).await;
        let beat = beat.map_err(|_| StoreError::Timeout.to_string())?.map_err(|error| error.to_string())?;
        let beat = FromRedisValue::from_redis_value(beat).map_err(|error| error.to_string())?;
        self.record(beat, sent);
        let mut link = self.link();
        let now = self.0.clock.now();
        let away_ms = now.saturating_duration_since(link.since).as_millis();
        link.connection = Some(connection);
        link.since = now;
        drop(link);
        self.0.failures.store(0, Ordering::Relaxed);
        self.0.metrics.shared_up.get_or_create(&NoLabels {}).set(1);
        tracing::info!(away_ms, replicas = self.replicas(), "the shared store is reached");
        self.0.episodes.fetch_add(1, Ordering::SeqCst);
        self.0.is_up.send_replace(true);
        Ok(())
    }

    fn beat(&self) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg([clock::READ_CLOCK, BEAT].concat()).arg(3);
        for key in [REPLICAS, clock::KEY, changes::HEAD] {
            command.arg(self.0.names.common(key));
        }
        command.arg(&self.0.id).arg(SILENCE.as_millis() as u64).arg(u8::from(self.0.has_left.load(Ordering::SeqCst)));
        command.arg(self.least_time());
        command
    }

    fn record(&self, (time, server, replicas): (u64, u64, u32), sent: Moment) {
        self.learn_time((time, server), sent);
        self.0.replicas.store(replicas, Ordering::Relaxed);
        self.0.metrics.replicas.get_or_create(&NoLabels {}).set(replicas.into());
    }
}

/// The time between two attempts to reach the store: at random, so that the replicas do not all come at once.
async fn pause() {
    tokio::time::sleep(RECONNECT.mul_f64(0.25 + 0.75 * fastrand::f64())).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replicas::test_server::{TestServer, until};

    impl SharedStore {
        fn last_beat(&self) -> Moment {
            self.link().clock.read_at().unwrap()
        }
    }

    #[tokio::test]
    async fn replicas_count_each_other() {
        let Some(server) = TestServer::start() else { return };
        let (one, two) = (server.replica().await, server.replica().await);
        until("both are seen", || one.replicas() == 2 && two.replicas() == 2).await;
        let (a, b) = (one.time().unwrap().0, two.time().unwrap().0);
        // Each knows the store's time by one answer, which may have come late.
        assert!(a.abs_diff(b) < Duration::from_secs(10).as_micros() as u64, "{a} {b}");
    }

    #[tokio::test]
    async fn a_replica_that_leaves_is_not_counted_any_more() {
        let Some(server) = TestServer::start() else { return };
        let (one, two) = (server.replica().await, server.replica().await);
        until("both are seen", || two.replicas() == 2).await;
        let known = async || {
            let mut names = redis::cmd("ZRANGE");
            names.arg(two.names().common(REPLICAS)).arg(0).arg(-1);
            two.run::<Vec<String>>("test", &names).await.unwrap()
        };
        one.leave().await;
        assert_eq!(known().await, [two.id()]);
        // It still uses the store, and does not enter the list again.
        let before = one.last_beat();
        until("another heartbeat", || one.last_beat() > before).await;
        assert_eq!(known().await, [two.id()]);
        assert_eq!(one.replicas(), 2, "it counts itself");
        until("the other has noticed", || two.replicas() == 1).await;
    }
}
