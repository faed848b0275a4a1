//! The flights of all replicas: identical calls of several replicas are one upstream call.
//!
//! A flight has two keys, in one slot of a cluster:
//!
//! * **The lock**, a hash with the id of the flight that is under way and the time at which it began, on the store's
//!   clock. It expires after `shared.lease`, and the leader renews it. So a replica that dies delays the others by one
//!   lease. `waited` is set once another replica waits, and `clients` once clients of another replica wait. When a
//!   flight has stored its response, `stored` replaces its lock for a short time, because the response may not have
//!   reached the store yet.
//! * **The end**, under the id, so that only the replicas that have waited for this flight find it. It is written only
//!   if a replica waits. It is sealed, and expires after seconds. It does not contain a long response. The replicas
//!   that have waited look for such a response among the stored pages. If it is not stored there, each of them goes
//!   upstream.
//!
//! A caller cannot use a flight that began before a purge or before the caller's result set. Then the caller's own
//! flight replaces it in the lock. The replicas that wait for the older flight see that, and claim again: they can use
//! the newer flight too. A leader that has lost the lock continues its call, and does not change the lock of the other
//! flight.
//!
//! A refresh that no client waits for is queued behind the calls of clients, on all replicas. Clients of another
//! replica that wait for such a refresh would wait for as long as clients ask for other things. So the leader of a
//! refresh checks every [`POLL_INTERVAL`] whether `clients` is set. If it is, the refresh is queued as a call of
//! clients.
//!
//! When a store that stood still continues, it runs all commands that it has received meanwhile, also those of replicas
//! that no longer wait for an answer. So a command that takes the lock says until when it may be run. And a replica
//! that got no answer, or could not write the end, releases the lock as soon as it reaches the store again.
//!
//! An expiry is a time on the clock of the server, also after a failover. Where the new server's clock is behind, a
//! lock would last for longer than any leader asked. So a lock that has more than two leases left, or that never
//! expires, counts as expired. A key of another type is not a lock that a replica has written, so it is deleted.
//!
//! Publish and subscribe is not used: a client of Sentinel or of a cluster would lose messages when a node fails. The
//! replicas that wait ask again and again. Every failure of the store ends a wait at once, and the caller goes upstream
//! by itself. It also does that if an answer takes longer than its request may still wait for the store.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use redis::Cmd;
use tokio::sync::oneshot;

use super::clock::{self, Due};
use super::script::LuaScript;
use super::seal::Context;
use super::{LARGE, LONGEST_BODY, SharedStore, StoreError};
use crate::cache::Purge;
use crate::cache::fill_lock::{ClaimOutcome, ClaimRequest, FillLease, FillLock, StoredSize, WaitOutcome};
use crate::cache::flight::FlightResult;
use crate::cache::flight_record::{self, FlightRecord};
use crate::core::clock::{Clock, Moment};
use crate::request::key::Key;
use crate::request::waiters::Waiter;
use crate::semantics::request_directives::Urgency;
use crate::twilio::endpoint::Operation;

/// The first pause of one who waits. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest pause. Those who wait get the end within 100 ms of the first answer.
const LONGEST_PAUSE: Duration = Duration::from_millis(40);
/// How often the leader of a refresh that no client waits for checks whether clients of another replica do.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long an end is kept for the replicas that wait.
const END_KEPT: Duration = Duration::from_secs(5);
/// How long a flight is known to have stored its response. The response reaches the store sooner.
const STORED: Duration = Duration::from_secs(1);
/// Purges are remembered for longer than a flight can last.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Different purges that are remembered. When there are more, everything counts as purged.
const PURGES: usize = 64;
/// The longest end that is read, in bytes: more than a body of [`LARGE`] and its headers.
const LONGEST_END: usize = 2 * LARGE;
/// Pages that are remembered because another replica has replaced them. If there are more, everything counts as purged.
const REPLACED: usize = 16_384;

/// What [`CLAIM`] and [`WAIT`] return.
const LEADS: u8 = 0;
const UNDER_WAY: u8 = 1;
const ENDED: u8 = 2;
const LATE: u8 = 3;
const ENDED_LARGE: u8 = 4;

/// Keys: the lock. Arguments: the caller's flight, the lease in milliseconds, the greatest age of a flight that does in
/// microseconds or -1, 1 if one that has stored its response does, from and until when the claim is due, and how long a
/// lock lasts at most whose flight has stored its response, in milliseconds. Returns what the caller has to do, the id
/// of the flight, and when it began: its age where another has it. Where the claim is not due, the time.
pub(super) static CLAIM: LuaScript = LuaScript::of(&[r"
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if now < tonumber(ARGV[5]) or now > tonumber(ARGV[6]) then return {3, '', string.format('%.0f', now)} end
local flight = redis.call('HMGET', KEYS[1], 'id', 'begun', 'stored')
local oldest = tonumber(ARGV[3])
if flight[1] == ARGV[1] then return {0, ARGV[1], flight[2]} end
local lasts = redis.call('PTTL', KEYS[1])
local most = flight[3] and math.max(2 * ARGV[2], tonumber(ARGV[7])) or 2 * ARGV[2]
local is_sound = flight[1] and #flight[1] == 32 and flight[2] and #flight[2] <= 16 and string.find(flight[2], '^%d+$')
local age = is_sound and now - flight[2]
-- One from the future began on another clock: nobody knows when.
if is_sound and lasts >= 0 and lasts <= most and (oldest < 0 or age >= 0 and age <= oldest) then
  if not flight[3] then
    redis.call('HSET', KEYS[1], 'waited', 1)
    return {1, flight[1], string.format('%.0f', math.max(age, 0))}
  elseif ARGV[4] == '1' then
    return {flight[3] == 'large' and 4 or 2, flight[1], string.format('%.0f', math.max(age, 0))}
  end
end
local begun = string.format('%.0f', now)
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'begun', begun)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {0, ARGV[1], begun}
"]);

/// Keys: the lock. Arguments: the leader's flight, the lease in milliseconds, when the flight began, from and until
/// when the renewal is due. Takes the lock again if the store has lost it. Returns 0 if another flight has it, 2 if
/// clients of another replica wait, otherwise 1, and the time with a minus sign where the renewal is not due.
static RENEW: LuaScript = LuaScript::of(&[r"
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if now < tonumber(ARGV[4]) or now > tonumber(ARGV[5]) then return -now end
local id = redis.call('HGET', KEYS[1], 'id')
if not id then
  redis.call('HSET', KEYS[1], 'id', ARGV[1], 'begun', ARGV[3])
elseif id ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('HEXISTS', KEYS[1], 'clients') == 1 and 2 or 1
"]);

/// Keys: the lock and the end. Arguments: the leader's flight; `lost`, `stored`, `large` (which is stored too) or
/// `ended`; how long it is known to have stored its response in milliseconds; the end, empty at first; how long that is
/// kept in milliseconds. Returns 1, and does nothing, if the end is empty and others wait for it.
static END: LuaScript = LuaScript::of(&[r"
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
local has_lock = redis.call('HGET', KEYS[1], 'id') == ARGV[1]
if ARGV[4] ~= '' then
  redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
elseif has_lock and ARGV[2] ~= 'lost' and redis.call('HEXISTS', KEYS[1], 'waited') == 1 then
  return 1
end
if has_lock and (ARGV[2] == 'stored' or ARGV[2] == 'large') then
  redis.call('HSET', KEYS[1], 'stored', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
elseif has_lock then
  redis.call('DEL', KEYS[1])
end
return 0
"]);

/// Keys: the lock and the end. Arguments: the flight that is waited for, the lease in milliseconds, the length of the
/// longest end, 1 if clients wait here and the leader has not been told. Returns how it stands, and the end. One that
/// is longer is empty, and does not open.
pub(super) static WAIT: LuaScript = LuaScript::of(&[r"
local length = redis.call('STRLEN', KEYS[2])
local lasts = redis.call('PTTL', KEYS[1])
if length > 0 then
  return {2, length <= tonumber(ARGV[3]) and redis.call('GET', KEYS[2]) or ''}
elseif redis.call('HGET', KEYS[1], 'id') == ARGV[1] and lasts >= 0 and lasts <= 2 * ARGV[2] then
  if ARGV[4] == '1' then redis.call('HSET', KEYS[1], 'clients', 1) end
  return {1, ''}
end
return {0, ''}
"]);

/// The lock of the flights of all replicas. Clones share what they know of purges.
#[derive(Debug, Clone)]
pub(crate) struct SharedFlights {
    store: SharedStore,
    clock: Clock,
    /// Each with the time of the last one.
    purges: Arc<Mutex<Vec<(Purge, Moment)>>>,
    /// Pages of which other replicas have newer ones, each with the last moment at which one was requested.
    replaced: Arc<Mutex<HashMap<Key, Moment>>>,
}

impl SharedFlights {
    /// A lock in this store.
    pub(crate) fn new(store: SharedStore, clock: Clock) -> Self {
        Self { store, clock, purges: Arc::default(), replaced: Arc::default() }
    }

    /// When what the caller wants was last purged or replaced.
    fn purged(&self, request: &ClaimRequest) -> Option<Moment> {
        let account = request.team.account.id();
        let is_purged = |which: &Purge| {
            which.matches(&request.key, Some((account, request.operation)))
                || request.first.is_some_and(|first| which.matches(&first, Some((account, Operation::Query))))
        };
        let purged = self.lock().iter().filter(|(which, _)| is_purged(which)).map(|(_, at)| *at).max();
        let replaced = self.replaced();
        let replaced = [Some(request.key), request.first].map(|key| key.and_then(|key| replaced.get(&key).copied()));
        replaced.into_iter().fold(purged, Ord::max)
    }

    async fn claim_outcome(self, request: ClaimRequest) -> ClaimOutcome {
        let mut flight = Flight::new(self.store.clone(), self.clock, &request);
        let not_before = self.purged(&request).max(request.not_before);
        // The store reads its clock after this, so a flight never seems younger than it is.
        let oldest = not_before.map(|moment| self.clock.moment().since(moment).as_micros());
        let oldest = oldest.map_or(-1, |oldest| i64::try_from(oldest).unwrap_or(i64::MAX));
        let accepts_stored = !request.is_forced && !request.is_new;
        match flight.claim(oldest, accepts_stored).await {
            Err(StoreError::Down) => ClaimOutcome::Unavailable,
            Err(_) => {
                // It may have been granted. The others must not wait for it until it expires.
                tokio::spawn(async move { flight.give_back().await });
                ClaimOutcome::Unavailable
            }
            Ok((LEADS, _, begun)) => {
                (flight.begun, flight.since) = (begun, self.clock.moment());
                let (lease, ending) = FillLease::new();
                tokio::spawn(flight.lead(ending));
                ClaimOutcome::Lead(lease)
            }
            Ok((UNDER_WAY, id, age)) => {
                (flight.id, flight.since) = (id, self.clock.moment().before(Duration::from_micros(age)));
                ClaimOutcome::Wait(flight.wait().boxed())
            }
            Ok((turn @ (ENDED | ENDED_LARGE), _, age)) => {
                let size = if turn == ENDED { StoredSize::Usual } else { StoredSize::Large };
                ClaimOutcome::Stored(size, self.clock.moment().before(Duration::from_micros(age)))
            }
            Ok(_) => ClaimOutcome::Unavailable,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Purge, Moment)>> {
        // A panic can lose at most the purge that was being recorded.
        self.purges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replaced(&self) -> MutexGuard<'_, HashMap<Key, Moment>> {
        // As with the purges.
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FillLock for SharedFlights {
    fn claim(&self, request: &ClaimRequest) -> BoxFuture<'static, ClaimOutcome> {
        self.clone().claim_outcome(request.clone()).boxed()
    }

    fn patience(&self) -> Duration {
        self.store.patience()
    }

    fn purge(&self, which: &Purge, at: Option<Moment>) {
        let now = self.clock.moment();
        let at = at.unwrap_or(now);
        let mut purges = self.lock();
        purges.retain(|(_, at)| now.since(*at) < REMEMBERED);
        if let Some((_, last)) = purges.iter_mut().find(|(known, _)| known == which) {
            *last = at.max(*last);
        } else if purges.len() < PURGES {
            purges.push((which.clone(), at));
        } else {
            let last = purges.drain(..).map(|(_, at)| at).fold(at, Moment::max);
            purges.push((Purge::All, last));
        }
    }

    fn outdate(&self, outdated: Vec<(Key, Moment)>) {
        let now = self.clock.moment();
        let mut replaced = self.replaced();
        for (key, at) in outdated {
            replaced.entry(key).and_modify(|last| *last = at.max(*last)).or_insert(at);
        }
        if replaced.len() > REPLACED {
            replaced.retain(|_, at| now.since(*at) < REMEMBERED);
        }
        if replaced.len() > REPLACED {
            let last = replaced.drain().map(|(_, at)| at).max();
            drop(replaced);
            self.purge(&Purge::All, last);
        }
    }
}

/// One flight, as its leader or one who waits knows it.
struct Flight {
    store: SharedStore,
    clock: Clock,
    request: ClaimRequest,
    lock: String,
    id: String,
    /// When it began, on the clock of the lock's server in microseconds; only its leader knows it.
    begun: u64,
    /// The same on this machine, never earlier than it really did.
    since: Moment,
}

impl Flight {
    fn new(store: SharedStore, clock: Clock, request: &ClaimRequest) -> Self {
        let part = [request.key.as_bytes().as_slice(), &[request.is_forced.into()]].concat();
        let lock = store.key_names().of_account(&request.team.account, "flight", &part);
        let id = format!("{:032x}", fastrand::u128(..));
        Self { store, clock, request: request.clone(), lock, id, begun: 0, since: clock.moment() }
    }

    async fn claim(&self, oldest: i64, accepts_stored: bool) -> Result<(u8, String, u64), StoreError> {
        let claim = |due: Due| {
            let mut command = CLAIM.call(&[&self.lock]);
            command.arg(&self.id).arg(self.lease()).arg(oldest).arg(u8::from(accepts_stored));
            command.arg(due.from).arg(due.until).arg(millis(self.store.large_patience()));
            async move { self.store.run("flight_claim", &command).await }
        };
        let late = |(turn, _, now): &(u8, String, u64)| (*turn == LATE).then_some(*now);
        let now = self.store.server_time().ok_or(StoreError::Down)?;
        clock::run_in_time(now, self.patience(), late, claim).await
    }

    /// How long a command may take that is sent now. What is known of the time may be late by the time of one
    /// operation.
    fn patience(&self) -> Duration {
        2 * self.store.settings().timeout
    }

    /// Keeps the lock until the flight ends, and tells the others.
    async fn lead(self, mut ending: oneshot::Receiver<FlightResult>) {
        let renewal = until_renewal(self.store.settings().lease, self.store.settings().timeout);
        let waiters = &self.request.waiters;
        // Stands for the clients of other replicas.
        let mut elsewhere: Option<Waiter> = None;
        let finished = loop {
            let looks = waiters.is_refresh() && !waiters.is_wanted();
            let pause = if looks { renewal.min(POLL_INTERVAL) } else { renewal };
            tokio::select! {
                biased;
                finished = &mut ending => break finished.ok(),
                () = tokio::time::sleep(pause) => {
                    if self.renew().await && waiters.is_refresh() && elsewhere.is_none() {
                        elsewhere = Some(waiters.join(&self.request.team, Urgency::default()));
                    }
                }
            }
        };
        drop(elsewhere);
        let is_told = match finished {
            Some(finished) => self.tell(&finished).await.is_some(),
            None => false,
        };
        if !is_told {
            // The others must not wait until the lock expires.
            self.give_back().await;
        }
    }

    /// Gives back the lock that this flight may have. It tries until the store has answered, or the lock has expired.
    async fn give_back(&self) {
        let mut is_up = self.store.watch_up();
        let given_back = async {
            while let Err(error) = self.end("lost", &[]).await {
                if matches!(error, StoreError::Failed(_)) && self.store.is_up() {
                    // It refuses, and will not change its mind soon.
                    return;
                }
                tokio::time::sleep(self.store.settings().timeout).await;
                // It cannot fail: `self` has the sender.
                let _ = is_up.wait_for(|is_up| *is_up).await;
            }
        };
        // What is sent now may be run at the end of two timeouts.
        let lasts = self.store.settings().lease + 2 * self.store.settings().timeout;
        let _ = tokio::time::timeout(lasts, given_back).await;
    }

    /// Gives the lock back, and tells those who wait. `None` if that failed.
    async fn tell(&self, finished: &FlightResult) -> Option<()> {
        let length = finished.result.as_ref().map_or(0, |response| response.body.len());
        let is_shared = finished.stored && length <= LONGEST_BODY;
        let how = match is_shared {
            true if length > LARGE => "large",
            true => "stored",
            false => "ended",
        };
        let is_awaited = self.end(how, &[]).await.ok()? == 1;
        if is_awaited {
            let ending = match length > LARGE {
                true => flight_record::encode_too_long(is_shared),
                false => flight_record::encode(finished)?,
            };
            self.end(how, &self.seal(&ending)?).await.ok()?;
        }
        Some(())
    }

    /// Renews the lock. Returns whether clients of another replica wait for this flight.
    async fn renew(&self) -> bool {
        let renew = |due: Due| {
            let mut command = RENEW.call(&[&self.lock]);
            command.arg(&self.id).arg(self.lease()).arg(self.begun).arg(due.from).arg(due.until);
            async move { self.store.run("flight_renew", &command).await }
        };
        let now = self.begun.saturating_add(millis(self.clock.moment().since(self.since)) * 1000);
        // Where it failed, it is tried again before the lease ends.
        let renewed = clock::run_in_time(now, self.patience(), clock::negative, renew).await;
        if let Ok(0) = renewed {
            tracing::debug!(flight = self.id, "another replica has begun a newer flight");
        }
        matches!(renewed, Ok(2))
    }

    async fn end(&self, how: &'static str, ending: &[u8]) -> Result<u8, StoreError> {
        let mut command = END.call(&[&self.lock, &self.ending()]);
        let stored = if how == "large" { self.store.large_patience() } else { STORED };
        command.arg(&self.id).arg(how).arg(millis(stored)).arg(ending).arg(millis(END_KEPT));
        self.store.run("flight_end", &command).await
    }

    async fn wait(self) -> WaitOutcome {
        let mut pause = FIRST_PAUSE;
        let mut is_told = false;
        loop {
            tokio::time::sleep(pause).await;
            pause = longer(pause);
            let tells = !is_told && self.request.waiters.is_wanted();
            let mut command = WAIT.call(&[&self.lock, &self.ending()]);
            command.arg(&self.id).arg(self.lease()).arg(LONGEST_END).arg(u8::from(tells));
            match self.ask(&command).await {
                None => return WaitOutcome::Unavailable,
                Some((UNDER_WAY, _)) => is_told |= tells,
                Some((ENDED, ending)) => match self.open(&ending) {
                    Some(FlightRecord::Ended(finished)) => return WaitOutcome::Ended(finished),
                    Some(FlightRecord::TooLong { is_shared: true }) => {
                        return WaitOutcome::Stored(Some(self.since));
                    }
                    Some(FlightRecord::TooLong { is_shared: false }) => return WaitOutcome::Unavailable,
                    None => {
                        self.store.unsealed();
                        return WaitOutcome::Unavailable;
                    }
                },
                Some(_) => return WaitOutcome::Lost,
            }
        }
    }

    /// Asks how the flight stands. An answer costs the request nothing, because the flight is under way meanwhile;
    /// `None` and the time that it took count as a wait for the store.
    async fn ask(&self, command: &Cmd) -> Option<(u8, Vec<u8>)> {
        let (wait, begun) = (&self.request.context.store_wait, self.clock.now());
        let left = wait.left(self.store.patience())?;
        let answered = tokio::time::timeout(left, self.store.run("flight_wait", command)).await;
        if !matches!(answered, Ok(Ok(_))) {
            wait.add(self.clock.now() - begun);
        }
        answered.ok()?.ok()
    }

    fn lease(&self) -> u64 {
        millis(self.store.settings().lease)
    }

    /// The key of the end. The braces put it into the lock's slot.
    fn ending(&self) -> String {
        format!("{}:{{{}}}:{}", self.store.key_names().of_deployment("flight-end"), self.lock, self.id)
    }

    fn seal(&self, end: &[u8]) -> Option<Vec<u8>> {
        let ending = self.ending();
        self.store.sealer().seal(&self.context(&ending), end).ok()
    }

    fn open(&self, sealed: &[u8]) -> Option<FlightRecord> {
        let ending = self.ending();
        flight_record::decode(&self.store.sealer().open(&self.context(&ending), sealed)?)
    }

    fn context<'c>(&'c self, ending: &'c str) -> Context<'c> {
        Context { kind: "flight", account: &self.request.team.account.sid, key: ending, bound: b"" }
    }
}

/// How long after an answer of the store the next renewal is sent. It may take the whole timeout, and the lease, which
/// is longer than that, must not end before.
fn until_renewal(lease: Duration, timeout: Duration) -> Duration {
    (lease / 3).min(lease.saturating_sub(timeout) / 2)
}

/// The pause after this one.
fn longer(pause: Duration) -> Duration {
    (pause * 2).min(LONGEST_PAUSE)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
