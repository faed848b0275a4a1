//! Query jobs, and page tokens of their lists and results, that were given out under policies.
//!
//! An id does not show which query is behind it. So a team with a policy may use only what was given out under that
//! same policy. Each grant is kept for seven days, which is as long as Twilio keeps results, and at most 65,536
//! grants are kept. Above that number the scope with the most grants loses its oldest ones first, so that no policy
//! pushes out the grants of another.
//!
//! With a folder, grants survive a restart: a thread appends them to a file. A grant that cannot be written is lost only
//! at the restart. The job is then refused, so a disk fault never gives access.
//!
//! Where replicas share grants, a grant that this replica does not know is looked up in the store, and then kept here
//! for the rest of its seven days. If it is not found in time, access is refused. The look-up continues, so that the
//! next request finds the grant.

mod file;
mod grants;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};

use self::file::{GrantFile, Record, record};
use self::grants::{Grants, KEPT};
use crate::accounts::Account;
use crate::core::clock::Clock;
use crate::core::episode::Episode;
use crate::core::work_queue::WorkQueue;
pub(super) use crate::request::grants::Scope;
use crate::request::grants::SharedGrants;
use crate::request::key::Key;
use crate::request::store_wait::StoreWork;

/// Records that may wait for the disk.
const WAITING: usize = 4096;

/// How long the end of the process waits for the last records.
const LAST: Duration = Duration::from_secs(1);

/// Grants of other replicas that are looked up at the same time, for one request, and in all. A list of jobs can have more.
const AT_ONCE: usize = 64;
const LOOKED_UP: usize = 256;

/// The grants of all scopes. Cheap to clone; outlives reloads.
#[derive(Debug, Clone, Default)]
pub struct JobOwners {
    grants: Arc<Mutex<Grants>>,
    /// Records for the file.
    file: Option<WorkQueue<Record>>,
    /// Records are lost because they come faster than the disk takes them.
    losses: Episode,
    shared: Option<Arc<dyn SharedGrants>>,
}

impl JobOwners {
    /// Loads the grants that an earlier process wrote into `folder`. If the folder cannot be used, it logs that, and
    /// keeps grants in memory only.
    pub fn in_folder(folder: &Path, clock: Clock) -> Self {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        let opened = made.and_then(|()| GrantFile::open(folder, seconds(clock.wall_now())));
        let started = opened.and_then(|(grants, file)| {
            let (grants, (queue, work)) = (Arc::new(Mutex::new(grants)), WorkQueue::bounded(WAITING));
            let kept = Arc::clone(&grants);
            let all = move || lock(&kept).all().map(|(scope, key, at)| record(scope, key, at)).collect();
            thread::Builder::new().name("job-owners".to_owned()).spawn(move || file.write(work, all))?;
            Ok(Self { grants, file: Some(queue), ..Self::default() })
        });
        started.unwrap_or_else(|error| {
            tracing::warn!(%error, "the file of query jobs and their owners cannot be used: after a restart, policies have no access to earlier jobs");
            Self::default()
        })
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
        let news: Vec<_> = keys.iter().filter(|key| self.record(scope, key, now, clock)).collect();
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
                    owners.record(&scope, &key, now.saturating_sub(KEPT.saturating_sub(left).as_secs()), clock);
                }
            }
        });
        let finding: Vec<_> = finding.collect();
        let learning = stream::iter(finding).for_each_concurrent(AT_ONCE, std::convert::identity);
        Some(StoreWork::new(shared.patience(), clock, learning))
    }

    /// Records a grant of the time `at`; `false` if it is already known or has expired.
    fn record(&self, scope: &Scope, key: &Key, at: u64, clock: Clock) -> bool {
        if !lock(&self.grants).give(*scope, *key.as_bytes(), at, seconds(clock.wall_now())) {
            return false;
        }
        if let Some(file) = &self.file {
            match file.offer(record(scope, key.as_bytes(), at)) {
                Ok(()) => drop(self.losses.is_over(clock.now())),
                Err(_) if self.losses.goes_on(clock.now()) => tracing::warn!(
                    "the disk is too slow for all owners of query jobs: after a restart, policies have no access to some jobs"
                ),
                Err(_) => {}
            }
        }
        true
    }

    /// Waits until all grants so far are written, for a second at most.
    pub async fn close(&self) {
        if let Some(file) = &self.file
            && tokio::time::timeout(LAST, file.flush()).await.is_err()
        {
            tracing::warn!("the last owners of query jobs were not written in time");
        }
    }

    /// Whether `key` was given out in this scope.
    pub(super) fn has(&self, scope: &Scope, key: &Key, clock: Clock) -> bool {
        lock(&self.grants).has(scope, key.as_bytes(), seconds(clock.wall_now()))
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in memory changes as a whole.
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

    #[tokio::test]
    async fn grants_survive_a_restart() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::new());
        let keys = [Key::from_bytes(key(1)), Key::from_bytes(key(2))];
        let owners = JobOwners::in_folder(folder.path(), clock);
        let account = crate::accounts::Team::example("local").account;
        owners.give(&[1; 32], &account, &keys, clock);
        owners.close().await;
        let owners = JobOwners::in_folder(folder.path(), clock);
        assert!(keys.iter().all(|key| owners.has(&[1; 32], key, clock)));
        assert!(!owners.has(&[2; 32], &keys[0], clock));
        let nowhere = JobOwners::in_folder(&folder.path().join(file::NAME), clock);
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
