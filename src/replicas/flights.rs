//! The flights of all replicas: identical calls of several replicas are one upstream call.
//!
//! A flight has two keys, in one slot of a cluster:
//!
//! * **The lock**, a hash with the id of the flight that is under way and the time at which it began, on the store's
//!   clock. It expires after `shared.lease`, which the leader renews, so a replica that dies costs the others one lease.
//!   `waited` is set once another replica waits. `stored` takes the place of a lock whose flight has just stored its
//!   response, because that may still be on its way to the store.
//! * **The end**, under the id, so that it is only for those who have waited for this flight. It is written only if there
//!   are any, sealed, and expires after seconds.
//!
//! A flight that does not do for a caller, because it began before the caller's request or before a purge, is replaced in
//! the lock by the caller's own. Those who wait for the older one see that, and claim again: the newer flight does for
//! them too. A leader whose lock was lost goes on, and leaves the other's alone.
//!
//! There is no publish and subscribe: a client of Sentinel or of a cluster would lose messages when a node fails. Those who
//! wait ask again and again. Every failure of the store ends a wait at once: the caller goes upstream by itself.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use redis::Cmd;
use tokio::sync::oneshot;

use super::seal::Context;
use super::{SharedStore, StoreError};
use crate::accounts::Account;
use crate::cache::Purge;
use crate::cache::fill_lock::{FillLease, FillLock, Turn, Waited, Wanted};
use crate::cache::flight::FlightResult;
use crate::cache::flight_record;
use crate::core::clock::{Clock, Moment};
use crate::twilio::endpoint::Operation;

/// The first pause of one who waits. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest. Those who wait are told within 100 ms of the first answer.
const LONGEST_PAUSE: Duration = Duration::from_millis(40);
/// How long an end is kept for those who wait.
const TOLD: Duration = Duration::from_secs(5);
/// How long a flight is known to have stored its response: longer than that is on its way to the store.
const STORED: Duration = Duration::from_secs(1);
/// Purges are remembered for longer than a flight can last.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Different purges that are remembered. When there are more, everything counts as purged.
const PURGES: usize = 64;

/// What [`CLAIM`] and [`WAIT`] return.
const LEADS: u8 = 0;
const UNDER_WAY: u8 = 1;
const ENDED: u8 = 2;

/// Keys: the lock. Arguments: the caller's flight, the lease in milliseconds, the greatest age of a flight that does in
/// microseconds or -1, and 1 if one that has stored its response does. Returns what the caller has to do, the id of the
/// flight and when it began.
const CLAIM: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local flight = redis.call('HMGET', KEYS[1], 'id', 'begun', 'stored')
local oldest = tonumber(ARGV[3])
if flight[1] and (oldest < 0 or tonumber(flight[2]) >= now - oldest) then
  if not flight[3] then
    redis.call('HSET', KEYS[1], 'waited', 1)
    return {1, flight[1], flight[2]}
  elseif ARGV[4] == '1' then
    return {2, flight[1], flight[2]}
  end
end
local begun = string.format('%.0f', now)
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'begun', begun)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {0, ARGV[1], begun}
";

/// Keys: the lock. Arguments: the leader's flight, the lease in milliseconds, when the flight began. Takes the lock again
/// if the store has lost it. Returns whether the leader has it.
const RENEW: &str = r"
local id = redis.call('HGET', KEYS[1], 'id')
if not id then
  redis.call('HSET', KEYS[1], 'id', ARGV[1], 'begun', ARGV[3])
elseif id ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
";

/// Keys: the lock and the end. Arguments: the leader's flight; `lost`, `stored` or `ended`; how long it is known to have
/// stored its response in milliseconds; the end, empty at first; how long that is kept in milliseconds. Returns 1, and
/// does nothing, if the end is empty and others wait for it.
const END: &str = r"
local has_lock = redis.call('HGET', KEYS[1], 'id') == ARGV[1]
if ARGV[4] ~= '' then
  redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
elseif has_lock and ARGV[2] ~= 'lost' and redis.call('HEXISTS', KEYS[1], 'waited') == 1 then
  return 1
end
if has_lock and ARGV[2] == 'stored' then
  redis.call('HSET', KEYS[1], 'stored', 1)
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
elseif has_lock then
  redis.call('DEL', KEYS[1])
end
return 0
";

/// Keys: the lock and the end. Arguments: the flight that is waited for. Returns how it stands, and the end.
const WAIT: &str = r"
local ending = redis.call('GET', KEYS[2])
if ending then
  return {2, ending}
elseif redis.call('HGET', KEYS[1], 'id') == ARGV[1] then
  return {1, ''}
end
return {0, ''}
";

/// The lock of the flights of all replicas. Clones share what they know of purges.
#[derive(Debug, Clone)]
pub(crate) struct SharedFlights {
    store: SharedStore,
    clock: Clock,
    /// Each with the time of the last one.
    purges: Arc<Mutex<Vec<(Purge, Moment)>>>,
}

impl SharedFlights {
    /// A lock in this store.
    pub(crate) fn new(store: SharedStore, clock: Clock) -> Self {
        Self { store, clock, purges: Arc::default() }
    }

    /// When what the caller wants was last purged.
    fn purged(&self, wanted: &Wanted) -> Option<Moment> {
        let account = &*wanted.account.name;
        let is_purged = |which: &Purge| {
            which.matches(&wanted.key, Some((account, wanted.operation)))
                || wanted.first.is_some_and(|first| which.matches(&first, Some((account, Operation::Query))))
        };
        self.lock().iter().filter(|(which, _)| is_purged(which)).map(|(_, at)| *at).max()
    }

    async fn turn(self, wanted: Wanted) -> Turn {
        let mut flight = Flight::new(self.store.clone(), &wanted);
        let not_before = self.purged(&wanted).max(wanted.not_before);
        // The store reads its clock after this, so a flight never seems younger than it is.
        let oldest = not_before.map(|moment| self.clock.moment().since(moment).as_micros());
        let oldest = oldest.map_or(-1, |oldest| i64::try_from(oldest).unwrap_or(i64::MAX));
        let accepts_stored = !wanted.is_forced && !wanted.is_new;
        match flight.claim(oldest, accepts_stored).await {
            Err(error) => {
                if error == StoreError::Timeout {
                    // It may have been granted. The others must not wait for it until it expires.
                    tokio::spawn(async move { drop(flight.end("lost", &[]).await) });
                }
                Turn::Alone
            }
            Ok((LEADS, _, begun)) => {
                flight.begun = begun;
                let (lease, ending) = FillLease::new();
                tokio::spawn(flight.lead(ending));
                Turn::Lead(lease)
            }
            Ok((UNDER_WAY, id, _)) => {
                flight.id = id;
                Turn::Wait(flight.wait().boxed())
            }
            Ok(_) => Turn::Stored,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Purge, Moment)>> {
        // A panic can lose at most the purge that was being recorded.
        self.purges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FillLock for SharedFlights {
    fn claim(&self, wanted: &Wanted) -> BoxFuture<'static, Turn> {
        self.clone().turn(wanted.clone()).boxed()
    }

    fn purge(&self, which: &Purge) {
        let now = self.clock.moment();
        let mut purges = self.lock();
        purges.retain(|(known, at)| known != which && now.since(*at) < REMEMBERED);
        let mut which = which.clone();
        if purges.len() >= PURGES {
            purges.clear();
            which = Purge::All;
        }
        purges.push((which, now));
    }
}

/// One flight, as its leader or one who waits knows it.
struct Flight {
    store: SharedStore,
    account: Arc<Account>,
    lock: String,
    id: String,
    /// On the store's clock, in microseconds.
    begun: u64,
}

impl Flight {
    fn new(store: SharedStore, wanted: &Wanted) -> Self {
        let part = [wanted.key.as_bytes().as_slice(), &[wanted.is_forced.into()]].concat();
        let lock = store.names().of(&wanted.account, "flight", &part);
        let id = format!("{:032x}", fastrand::u128(..));
        Self { store, account: Arc::clone(&wanted.account), lock, id, begun: 0 }
    }

    async fn claim(&self, oldest: i64, accepts_stored: bool) -> Result<(u8, String, u64), StoreError> {
        let mut command = script(CLAIM, &[&self.lock]);
        command.arg(&self.id).arg(self.lease()).arg(oldest).arg(u8::from(accepts_stored));
        self.store.run("flight_claim", &command).await
    }

    /// Keeps the lock until the flight ends, and tells the others.
    async fn lead(self, mut ending: oneshot::Receiver<FlightResult>) {
        let pause = self.store.settings().lease / 3;
        let finished = loop {
            tokio::select! {
                biased;
                finished = &mut ending => break finished.ok(),
                () = tokio::time::sleep(pause) => self.renew().await,
            }
        };
        let is_told = match finished {
            Some(finished) => self.tell(&finished).await.is_some(),
            None => false,
        };
        if !is_told {
            // The others must not wait until the lock expires.
            drop(self.end("lost", &[]).await);
        }
    }

    /// Gives the lock back, and tells those who wait. `None` if that failed.
    async fn tell(&self, finished: &FlightResult) -> Option<()> {
        let how = if finished.stored { "stored" } else { "ended" };
        let is_awaited = self.end(how, &[]).await.ok()? == 1;
        if is_awaited {
            self.end(how, &self.seal(finished)?).await.ok()?;
        }
        Some(())
    }

    async fn renew(&self) {
        let mut command = script(RENEW, &[&self.lock]);
        command.arg(&self.id).arg(self.lease()).arg(self.begun);
        // Tried again before the lease ends.
        if let Ok(0) = self.store.run::<u8>("flight_renew", &command).await {
            tracing::debug!(flight = self.id, "another replica has begun a newer flight");
        }
    }

    async fn end(&self, how: &'static str, ending: &[u8]) -> Result<u8, StoreError> {
        let mut command = script(END, &[&self.lock, &self.ending()]);
        command.arg(&self.id).arg(how).arg(millis(STORED)).arg(ending).arg(millis(TOLD));
        self.store.run("flight_end", &command).await
    }

    async fn wait(self) -> Waited {
        let mut command = script(WAIT, &[&self.lock, &self.ending()]);
        command.arg(&self.id);
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match self.store.run::<(u8, Vec<u8>)>("flight_wait", &command).await {
                Err(_) => return Waited::Alone,
                Ok((UNDER_WAY, _)) => {}
                Ok((ENDED, ending)) => match self.open(&ending) {
                    Some(finished) => return Waited::Ended(finished),
                    None => {
                        self.store.unsealed();
                        return Waited::Alone;
                    }
                },
                Ok(_) => return Waited::Lost,
            }
        }
    }

    fn lease(&self) -> u64 {
        millis(self.store.settings().lease)
    }

    /// The key of the end. The braces put it into the lock's slot.
    fn ending(&self) -> String {
        format!("{}:{{{}}}:{}", self.store.names().common("flight-end"), self.lock, self.id)
    }

    fn seal(&self, finished: &FlightResult) -> Option<Vec<u8>> {
        let ending = self.ending();
        self.store.sealer().seal(&self.context(&ending), &flight_record::encode(finished)?).ok()
    }

    fn open(&self, sealed: &[u8]) -> Option<FlightResult> {
        let ending = self.ending();
        flight_record::decode(&self.store.sealer().open(&self.context(&ending), sealed)?)
    }

    fn context<'c>(&'c self, ending: &'c str) -> Context<'c> {
        Context { kind: "flight", account: &self.account.sid, key: ending, bound: b"" }
    }
}

fn script(text: &str, keys: &[&str]) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(text).arg(keys.len()).arg(keys);
    command
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
