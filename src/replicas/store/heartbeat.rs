//! Connects to the store, and writes there every second that this replica is alive.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::Cmd;

use super::faults::FAILURES;
use super::{Fault, Inner, REPLICAS, SharedStore, read};
use crate::config::Shared;
use crate::core::clock::{Clock, Moment};
use crate::metrics::{Metrics, NoLabels};
use crate::replicas::connection::Connection;
use crate::replicas::error::StoreError;
use crate::replicas::script::LuaScript;
use crate::replicas::{change_feed, clock, retry_pause};

/// How often a replica writes that it is alive.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);
/// A replica that has written nothing for this long no longer counts.
const SILENCE: Duration = Duration::from_secs(5);
/// Defines `refusal` for a script: tries every command that replicas send, on a key that exists only meanwhile. It
/// returns the error if one is refused.
pub(super) const RIGHTS: &str = r"
local function refusal(key)
  -- First one that needs memory: a server that is full lets a script go on that has written.
  local commands = {
    {'SET', key, '', 'XX'}, {'DEL', key}, {'PEXPIRE', key, 1}, {'GET', key}, {'GETRANGE', key, 0, 0}, {'STRLEN', key},
    {'EXISTS', key}, {'PTTL', key}, {'TYPE', key}, {'TIME'},
    {'HSET', key, 'a', 0}, {'HINCRBY', key, 'a', 1}, {'HGET', key, 'a'}, {'HMGET', key, 'a'}, {'HGETALL', key},
    {'HEXISTS', key, 'a'}, {'HDEL', key, 'a'},
    {'XADD', key, 'NOMKSTREAM', '*', 'a', ''}, {'XLEN', key}, {'XRANGE', key, '-', '+'}, {'XTRIM', key, 'MAXLEN', 0},
    {'ZADD', key, 'XX', 0, 'a'}, {'ZCARD', key}, {'ZREM', key, 'a'}, {'ZREMRANGEBYSCORE', key, 0, 0},
  }
  for n, command in ipairs(commands) do
    local reply = redis.pcall(unpack(command))
    if type(reply) == 'table' and reply.err then
      -- Else nothing has been written.
      if n > 1 then redis.pcall('DEL', key) end
      -- Servers do not say which command it was.
      local is_right = reply.err:find('The user executing', 1, true) or reply.err:find('ACL failure', 1, true)
      if is_right and not reply.err:find('key', 1, true) then
        return redis.error_reply('NOPERM no permissions to run the \'' .. command[1] .. '\' command')
      end
      return reply
    end
  end
end
";
/// Marks this replica as alive, or as gone, and counts those that are alive, on the shared clock.
///
/// Keys: the replicas, the clock, the head of the feed, one on which rights are tried. Arguments: this replica, the
/// silence after which one is gone, in milliseconds, 1 if this one leaves, and the time that the clock shows at least.
/// Returns the time and that of the server itself, in microseconds, and the number of replicas, this one included.
pub(super) static BEAT: LuaScript = LuaScript::of(&[
    RIGHTS,
    clock::READ_CLOCK,
    r"
local refused = refusal(KEYS[4])
if refused then return refused end
local now, own = read_clock(KEYS[2], KEYS[3], ARGV[4])
local ms = math.floor(now / 1000)
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
if ARGV[3] == '1' then redis.call('ZREM', KEYS[1], ARGV[1]) else redis.call('ZADD', KEYS[1], ms, ARGV[1]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms - ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], ms + ARGV[2], '+inf')
redis.call('PEXPIRE', KEYS[1], ARGV[2] * 2)
return {now, own, redis.call('ZCARD', KEYS[1]) + ARGV[3]}
",
]);
/// The key on which rights are tried. It shares a hash slot with the clock.
const TRIED: &str = "{changes}:rights";

impl SharedStore {
    /// Connects to the store in the background. Until it is reached, this replica is alone. Needs a tokio runtime.
    pub fn start(settings: Shared, metrics: Arc<Metrics>, clock: Clock) -> Self {
        let store = Self::new(settings, metrics, clock);
        store.start_trials();
        let weak = Arc::downgrade(&store.0);
        tokio::spawn(async move {
            while let Some(inner) = weak.upgrade() {
                if Self(inner).connect().await {
                    keep_alive(&weak).await;
                }
                tokio::time::sleep(retry_pause::random()).await;
            }
        });
        store
    }

    /// From now on the other replicas do not count this one, which still uses the store until its process ends.
    pub(crate) async fn leave(&self) {
        self.0.has_left.store(true, Ordering::SeqCst);
        let sent = self.0.clock.moment();
        if let Ok(beat) = self.run_always("heartbeat", &self.beat()).await {
            self.record(beat, sent);
        }
    }

    /// Connects to the store. Returns whether it is reached.
    async fn connect(self) -> bool {
        // Longer than an operation: a connection takes several round trips, and TLS.
        let patience = (self.0.settings.timeout * 4).clamp(Duration::from_secs(1), Duration::from_secs(2));
        let failed = match Connection::open(&self.login(), patience).await {
            Ok(connection) => self.try_out(connection).await.err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        let is_reached = failed.is_none();
        if let Some(cause) = failed {
            self.not_reached(cause);
        }
        is_reached
    }

    /// Proves that the store accepts writes and runs scripts, and that the user may do what replicas do, before others
    /// use the connection.
    pub(super) async fn try_out(&self, mut connection: Connection) -> Result<(), StoreError> {
        let sent = self.0.clock.moment();
        let replied = tokio::time::timeout(self.0.settings.timeout, connection.run(&self.beat())).await;
        let (_, _, beat) = read(replied);
        self.record(beat?, sent);
        self.reached(connection);
        Ok(())
    }

    fn beat(&self) -> Cmd {
        let keys = [REPLICAS, clock::KEY, change_feed::HEAD, TRIED].map(|key| self.0.names.of_deployment(key));
        let mut command = BEAT.call(&keys);
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

/// Writes every second that this replica is alive, until the connection is lost, or nobody uses the store any more. In
/// between it does not hold the store, so that it does not keep the connection.
async fn keep_alive(store: &Weak<Inner>) {
    let Some(mut is_up) = store.upgrade().map(|inner| SharedStore(inner).watch_up()) else { return };
    let mut failed = 0;
    loop {
        tokio::select! {
            _ = is_up.wait_for(|is_up| !is_up) => return,
            () = tokio::time::sleep(HEARTBEAT) => {}
        }
        let Some(store) = store.upgrade().map(SharedStore) else { return };
        let sent = store.0.clock.moment();
        match store.run_always("heartbeat", &store.beat()).await {
            Ok(beat) => {
                failed = 0;
                store.record(beat, sent);
            }
            Err(error) => {
                failed += 1;
                // A store that is full or read-only still answers what others read.
                if failed >= FAILURES {
                    store.lost(&error, Fault::Refusal);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::replicas::test_server::{TestServer, until};

    /// The commands that the heartbeat tries.
    fn tried() -> Vec<String> {
        RIGHTS.split("{'").skip(1).map(|rest| rest.split('\'').next().unwrap().to_owned()).collect()
    }

    /// The commands that the handbook gives the user of the store.
    fn documented() -> Vec<String> {
        let page = include_str!("../../../docs/replicas.md").replace("\\\n", " ");
        let line = page.lines().find(|line| line.starts_with("ACL SETUSER gateway ")).unwrap();
        line.split(' ').filter_map(|word| word.strip_prefix('+')).map(str::to_uppercase).collect()
    }

    /// The commands that the sources of this folder name.
    fn used(folder: &Path) -> Vec<String> {
        let mut used = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            if name.starts_with("test") || name.ends_with("_tests") {
                continue;
            }
            if path.is_dir() {
                used.extend(self::used(&path));
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("mod tests {").next().unwrap();
            for before in ["call('", "cmd(\""] {
                let words = text.split(before).skip(1).map(|rest| rest.split(['\'', '"']).next().unwrap());
                used.extend(words.map(str::to_owned));
            }
        }
        used
    }

    #[test]
    fn the_heartbeat_tries_what_replicas_use_and_what_the_handbook_allows() {
        // These are needed to connect, and for the heartbeat itself.
        let connecting = ["EVAL", "SELECT", "PING", "ROLE", "CLUSTER|SLOTS"];
        let allowed: BTreeSet<_> = documented().into_iter().collect();
        let tried: BTreeSet<_> = tried().into_iter().chain(connecting.map(str::to_owned)).collect();
        assert_eq!(tried, allowed);
        let used = used(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/replicas"));
        assert!(used.len() > 50 && used.contains(&"EVAL".to_owned()), "{used:?}");
        // Of some commands only a part is allowed, such as `CLUSTER|SLOTS`.
        let is_allowed = |command: &str| allowed.iter().any(|right| right.split('|').next() == Some(command));
        let missing: Vec<_> = used.iter().filter(|command| !is_allowed(command)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[tokio::test]
    async fn each_right_that_is_missing_is_named() {
        let Some(server) = TestServer::start() else { return };
        let mut admin = server.connection();
        let mut rights = |right: &str| {
            let mut user = redis::cmd("ACL");
            user.arg(&["SETUSER", "gateway", "on", ">password", "~*", "-@all"]);
            user.arg(documented().iter().map(|right| format!("+{}", right.to_lowercase())).collect::<Vec<_>>())
                .arg(right);
            user.exec(&mut admin).unwrap();
        };
        let login = || Shared {
            username: Some("gateway".to_owned()),
            password: Some("password".to_owned().into()),
            ..server.settings()
        };
        for command in tried().into_iter().chain(["EVAL".to_owned()]) {
            rights(&format!("-{}", command.to_lowercase()));
            let store = SharedStore::start(login(), Metrics::new(), Clock::new());
            let cause = format!("the user may not run {command}: NOPERM");
            until(&cause, || store.view().cause.as_ref() == Some(&cause)).await;
            let left: Vec<String> = redis::cmd("KEYS").arg("*:rights").query(&mut server.connection()).unwrap();
            assert!(left.is_empty(), "{command}: {left:?}");
        }
        rights("+eval");
        server.replica_with(login(), Clock::new()).await;
    }

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
            names.arg(two.key_names().of_deployment(REPLICAS)).arg(0).arg(-1);
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

    #[tokio::test]
    async fn a_store_that_nobody_uses_any_more_is_left() {
        let Some(server) = TestServer::start() else { return };
        let (one, two) = (server.replica().await, server.replica().await);
        until("both are seen", || one.replicas() == 2 && two.replicas() == 2).await;
        let held = Arc::downgrade(&one.0);
        drop(one);
        until("the connection is closed", || held.strong_count() == 0).await;
        until("the other has noticed", || two.replicas() == 1).await;
    }
}
