//! Query jobs, and page tokens of their lists and results, that were given out under policies.
//!
//! An id does not show which query is behind it. So a team with a policy may use only what was given out under that
//! same policy. Each grant is kept for seven days, which is as long as Twilio keeps results, and at most [`MOST`]
//! grants are kept. Above that number the scope with the most grants loses its oldest ones first, so that no policy
//! pushes out the grants of another.
//!
//! With a folder, grants survive a restart: each is one record of a fixed size, appended to a file. Opening the file
//! rewrites it without expired grants. A record that cannot be written is lost only at the restart. The job is then
//! refused, so a disk fault never gives access.
//!
//! Where replicas share grants, a grant that this replica does not know is looked up in the store, and then kept here
//! for the rest of its seven days. If it is not found in time, access is refused. The look-up continues, so that the
//! next request finds the grant.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};

use crate::accounts::Account;
use crate::config;
use crate::core::clock::Clock;
pub(super) use crate::request::grants::Scope;
use crate::request::grants::SharedGrants;
use crate::request::key::Key;
use crate::request::store_wait::StoreWork;

/// The most grants, over all scopes: about 12 MiB.
const MOST: usize = 65_536;

const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// A grant that is repeated within this time is not recorded again.
const RENEWED_AFTER: Duration = Duration::from_secs(3600);

/// The file's name. The number increases when the format changes.
const FILE: &str = "job-owners-1";

/// Grants of other replicas that are looked up at the same time, for one request, and in all. A list of jobs can have more.
const AT_ONCE: usize = 64;
const LOOKED_UP: usize = 256;

/// Scope, key and seconds since 1970.
const RECORD: usize = 32 + 32 + 8;

/// The grants of all scopes. Cheap to clone; outlives reloads.
#[derive(Debug, Clone, Default)]
pub struct JobOwners {
    grants: Arc<Mutex<Grants>>,
    file: Option<Arc<Mutex<File>>>,
    shared: Option<Arc<dyn SharedGrants>>,
}

impl JobOwners {
    /// Loads the grants that an earlier process wrote into `folder`. If the folder cannot be used, it logs that, and
    /// keeps grants in memory only.
    pub fn in_folder(folder: &Path, clock: Clock) -> Self {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        let opened = made.and_then(|()| open(&folder.join(FILE), seconds(clock.wall_now())));
        match opened {
            Ok((grants, file)) => {
                Self { grants: Arc::new(Mutex::new(grants)), file: Some(Arc::new(Mutex::new(file))), shared: None }
            }
            Err(error) => {
                tracing::warn!(%error, "the file of query jobs and their owners cannot be used: after a restart, policies have no access to earlier jobs");
                Self::default()
            }
        }
    }

    /// Shares grants with other replicas.
    #[must_use]
    pub fn shared_by(self, grants: Arc<dyn SharedGrants>) -> Self {
        Self { shared: Some(grants), ..self }
    }

    /// Whether other replicas know them too.
    pub(super) fn are_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Records that `keys` were given out in this scope. What it returns ends when other replicas know them too; `None` if
    /// there is nothing to wait for.
    pub(super) fn give(&self, scope: &Scope, account: &Account, keys: &[Key], clock: Clock) -> Option<StoreWork> {
        let now = seconds(clock.wall_now());
        let news: Vec<_> = keys.iter().filter(|key| self.record(scope, key, now, now)).collect();
        let shared = self.shared.as_ref().filter(|_| !news.is_empty())?;
        let given: Vec<_> = news.into_iter().map(|key| shared.give(account, scope, key, KEPT)).collect();
        Some(StoreWork::new(shared.patience(), clock, async { drop(join_all(given).await) }))
    }

    /// Finds out which of `keys` other replicas gave out in this scope, of those that this one does not know. Of more than
    /// [`LOOKED_UP`] these are others each time. `None` if there is nothing to find out.
    pub(super) fn learn(
        &self,
        scope: &Scope,
        account: &Account,
        keys: impl IntoIterator<Item = Key>,
        clock: Clock,
    ) -> Option<StoreWork> {
        let shared = self.shared.as_ref()?;
        let mut unknown: Vec<_> = keys.into_iter().filter(|key| !self.has(scope, key, clock)).collect();
        if unknown.is_empty() {
            return None;
        }
        let first = fastrand::usize(..unknown.len());
        unknown.rotate_left(first);
        let finding = unknown.into_iter().take(LOOKED_UP).map(|key| {
            let (found, owners, scope) = (shared.find(account, scope, &key), self.clone(), *scope);
            async move {
                if let Some(left) = found.await {
                    let now = seconds(clock.wall_now());
                    owners.record(&scope, &key, now.saturating_sub(KEPT.saturating_sub(left).as_secs()), now);
                }
            }
        });
        let finding: Vec<_> = finding.collect();
        let learning = stream::iter(finding).for_each_concurrent(AT_ONCE, std::convert::identity);
        Some(StoreWork::new(shared.patience(), clock, learning))
    }

    /// Records a grant of the time `at`; `false` if it is already known or has expired.
    fn record(&self, scope: &Scope, key: &Key, at: u64, now: u64) -> bool {
        if !lock(&self.grants).give(*scope, *key.as_bytes(), at, now) {
            return false;
        }
        if let Some(file) = self.file.clone() {
            let record = record(scope, key.as_bytes(), at);
            tokio::task::spawn_blocking(move || {
                if let Err(error) = lock(&file).write_all(&record) {
                    tracing::warn!(%error, "the owner of a query job could not be written: after a restart, its policy has no access to the job");
                }
            });
        }
        true
    }

    /// Whether `key` was given out in this scope.
    pub(super) fn has(&self, scope: &Scope, key: &Key, clock: Clock) -> bool {
        lock(&self.grants).has(scope, key.as_bytes(), seconds(clock.wall_now()))
    }
}

#[derive(Debug, Default)]
struct Grants {
    scopes: HashMap<Scope, ScopeGrants>,
    count: usize,
}

#[derive(Debug, Default)]
struct ScopeGrants {
    /// When each grant was last recorded, in seconds since 1970.
    times: HashMap<[u8; 32], u64>,
    /// Grants in the order of recording. Entries of grants that were recorded again later are skipped.
    order: VecDeque<([u8; 32], u64)>,
}

impl Grants {
    /// Records a grant of the time `at`; `false` if it is already known or has expired.
    fn give(&mut self, scope: Scope, key: [u8; 32], at: u64, now: u64) -> bool {
        if is_over(at, now) {
            return false;
        }
        let given = self.scopes.entry(scope).or_default();
        let known = given.times.get(&key).copied();
        if known.is_some_and(|known| at < known.saturating_add(RENEWED_AFTER.as_secs())) {
            return false;
        }
        given.times.insert(key, at);
        given.order.push_back((key, at));
        self.count += usize::from(known.is_none());
        self.count -= given.drop_while(|noted| is_over(noted, now));
        if self.count > MOST
            && let Some(most) = self.scopes.values_mut().max_by_key(|given| given.times.len())
        {
            let mut left = 1;
            self.count -= most.drop_while(|_| std::mem::take(&mut left) > 0);
        }
        self.scopes.retain(|_, given| !given.times.is_empty());
        true
    }

    fn has(&self, scope: &Scope, key: &[u8; 32], now: u64) -> bool {
        let at = self.scopes.get(scope).and_then(|given| given.times.get(key));
        at.is_some_and(|at| !is_over(*at, now))
    }
}

impl ScopeGrants {
    /// Drops grants from the oldest on while `goes` is true of the time at which they were recorded. Returns how many
    /// there were.
    fn drop_while(&mut self, mut goes: impl FnMut(u64) -> bool) -> usize {
        let mut dropped = 0;
        while let Some((key, at)) = self.order.front() {
            let is_current = self.times.get(key) == Some(at);
            if is_current && !goes(*at) {
                break;
            }
            if is_current {
                self.times.remove(key);
                dropped += 1;
            }
            self.order.pop_front();
        }
        dropped
    }
}

/// Whether a grant has expired. One with a time in the future has: a clock that was set back must not prolong it.
fn is_over(at: u64, now: u64) -> bool {
    now.checked_sub(at).is_none_or(|age| age > KEPT.as_secs())
}

fn record(scope: &Scope, key: &[u8; 32], at: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..32].copy_from_slice(scope);
    record[32..64].copy_from_slice(key);
    record[64..].copy_from_slice(&at.to_le_bytes());
    record
}

/// Reads the file, and rewrites it without expired grants. An incomplete record is skipped.
fn open(path: &Path, now: u64) -> io::Result<(Grants, File)> {
    let mut grants = Grants::default();
    let written = match fs::read(path) {
        Ok(written) => written,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    for record in written.chunks_exact(RECORD) {
        let (Some((scope, rest)), Some(at)) = (record.split_first_chunk::<32>(), record.last_chunk::<8>()) else {
            continue;
        };
        let Some(key) = rest.first_chunk::<32>() else { continue };
        grants.give(*scope, *key, u64::from_le_bytes(*at), now);
    }
    let new = path.with_extension("new");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    config::keep_from_others(&file, &new);
    let mut file = io::BufWriter::new(file);
    for (scope, given) in &grants.scopes {
        for (key, at) in given.order.iter().filter(|(key, at)| given.times.get(key) == Some(at)) {
            file.write_all(&record(scope, key, *at))?;
        }
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&new, path)?;
    Ok((grants, OpenOptions::new().append(true).open(path)?))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A record that was cut short by a panic is not read, and what is in memory changes as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::store_wait::StoreWait;

    const DAY: u64 = 24 * 3600;

    fn key(n: usize) -> [u8; 32] {
        *blake3::hash(&n.to_le_bytes()).as_bytes()
    }

    #[test]
    fn a_grant_is_valid_for_its_scope_and_for_seven_days() {
        let mut grants = Grants::default();
        assert!(grants.give([1; 32], key(1), 0, 0) && !grants.give([1; 32], key(1), 60, 60));
        assert!(grants.has(&[1; 32], &key(1), 7 * DAY) && !grants.has(&[1; 32], &key(1), 7 * DAY + 1));
        assert!(!grants.has(&[2; 32], &key(1), 0) && !grants.has(&[1; 32], &key(2), 0));
        assert!(grants.give([1; 32], key(1), DAY, DAY), "given again");
        assert!(grants.has(&[1; 32], &key(1), 8 * DAY));
        assert!(!Grants::default().give([1; 32], key(1), 5, 4), "of the future");
    }

    #[test]
    fn no_scope_pushes_out_the_grants_of_another() {
        let mut grants = Grants::default();
        grants.give([1; 32], key(0), 0, 0);
        for n in 0..MOST + 10 {
            grants.give([2; 32], key(n), 0, 0);
        }
        assert_eq!((grants.count, grants.scopes[&[2; 32]].times.len()), (MOST, MOST - 1));
        assert!(grants.has(&[1; 32], &key(0), 0) && grants.has(&[2; 32], &key(MOST + 9), 0));
        assert!(!grants.has(&[2; 32], &key(0), 0));
    }

    #[test]
    fn expired_grants_use_no_memory() {
        let mut grants = Grants::default();
        for day in 0..100 {
            grants.give([1; 32], key(7), day * DAY, day * DAY);
            grants.give([1; 32], key(1000 + day as usize), day * DAY, day * DAY);
        }
        let given = &grants.scopes[&[1; 32]];
        assert_eq!((grants.count, given.times.len()), (9, 9));
        assert!(given.order.len() < 20, "{}", given.order.len());
    }

    #[tokio::test]
    async fn grants_survive_a_restart_after_an_incomplete_record() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::new());
        let keys = [Key::from_bytes(key(1)), Key::from_bytes(key(2))];
        let owners = JobOwners::in_folder(folder.path(), clock);
        let account = crate::accounts::Team::example("local").account;
        owners.give(&[1; 32], &account, &keys, clock);
        let path = folder.path().join(FILE);
        let written = async {
            while fs::metadata(&path).unwrap().len() < 2 * RECORD as u64 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), written).await.unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(2 * RECORD as u64 - 1).unwrap();
        let owners = JobOwners::in_folder(folder.path(), clock);
        let left = keys.iter().filter(|key| owners.has(&[1; 32], key, clock)).count();
        assert_eq!((left, fs::metadata(&path).unwrap().len()), (1, RECORD as u64));
        assert!(!owners.has(&[2; 32], &keys[0], clock));
        let nowhere = JobOwners::in_folder(&path, clock);
        nowhere.give(&[1; 32], &account, &keys[..1], clock);
        assert!(nowhere.has(&[1; 32], &keys[0], clock));
    }

    #[tokio::test(start_paused = true)]
    async fn replicas_know_each_others_grants_for_seven_days_in_all() {
        let (clock, account) = (Clock::simulated(), crate::accounts::Team::example("local").account);
        let grants = Arc::new(crate::request::grants::MemoryGrants::default());
        let [one, two, three] = [0; 3].map(|_| JobOwners::default().shared_by(Arc::clone(&grants) as _));
        let keys: Vec<_> = (0..3 * AT_ONCE).map(|n| Key::from_bytes(key(n))).collect();
        let wait = StoreWait::default();
        one.give(&[1; 32], &account, &keys[1..], clock).unwrap().wait(&wait).await;
        assert!(one.give(&[1; 32], &account, &keys[1..], clock).is_none(), "once");
        assert_eq!(grants.count(), keys.len() - 1);
        two.learn(&[2; 32], &account, keys.clone(), clock).unwrap().wait(&wait).await;
        assert!(keys.iter().all(|key| !two.has(&[2; 32], key, clock)), "another scope");
        two.learn(&[1; 32], &account, keys.clone(), clock).unwrap().wait(&wait).await;
        assert!(keys[1..].iter().all(|key| two.has(&[1; 32], key, clock)) && !two.has(&[1; 32], &keys[0], clock));
        // A day is left.
        grants.give(&account, &[1; 32], &keys[0], Duration::from_secs(DAY)).await;
        three.learn(&[1; 32], &account, [keys[0]], clock).unwrap().wait(&wait).await;
        tokio::time::advance(Duration::from_secs(DAY)).await;
        assert!(three.has(&[1; 32], &keys[0], clock));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!three.has(&[1; 32], &keys[0], clock) && two.has(&[1; 32], &keys[1], clock));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_request_did_not_wait_for_is_known_to_the_next() {
        let (clock, account) = (Clock::simulated(), crate::accounts::Team::example("local").account);
        let grants = Arc::new(crate::request::grants::MemoryGrants::default());
        let (owners, key) = (JobOwners::default().shared_by(Arc::clone(&grants) as _), Key::from_bytes(key(1)));
        grants.give(&account, &[1; 32], &key, KEPT).await;
        let learning = owners.learn(&[1; 32], &account, [key], clock).unwrap();
        learning.wait(&StoreWait::spent()).await;
        assert!(!owners.has(&[1; 32], &key, clock), "the request goes on at once");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(owners.has(&[1; 32], &key, clock));
    }
}
