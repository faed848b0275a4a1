//! Samples the state of the gateway for the history, once a second.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::history::{AccountPoint, INTERVAL, Point};
use super::state::AdminState;
use crate::budget::{BudgetStatus, CircuitState};
use crate::live::Spread;

/// How often states that may end before the interval does are sampled.
const LOOK: Duration = Duration::from_secs(1);

/// Adds points until the admin plane ends.
pub(super) async fn record(admin: Weak<AdminState>) {
    let mut recorder = Recorder::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(admin) = admin.upgrade() else { return };
        recorder.look(&admin);
    }
}

/// What has been sampled since the last point.
#[derive(Debug, Default)]
struct Recorder {
    looks: u32,
    before: Option<Spread>,
    /// Of each account, by its SID, because a reload may change its name.
    attempts: HashMap<String, u64>,
    accounts: HashMap<Arc<str>, AccountPoint>,
    waiting: HashMap<Arc<str>, usize>,
}

impl Recorder {
    fn look(&mut self, admin: &AdminState) {
        let shared = &admin.shared;
        admin.history.sample(shared.live.counts());
        let mut budgets = Vec::new();
        for account in &admin.config.load().accounts {
            let Some(budget) = shared.registry.account(&account.name).map(|state| state.budget) else { continue };
            let (name, status) = (Arc::<str>::from(account.name.as_str()), budget.status());
            let seen = self.accounts.entry(Arc::clone(&name)).or_default();
            seen.paused += u32::from(!status.paused.is_zero());
            seen.broken += u32::from(status.circuit != CircuitState::Closed);
            let mut waiting = HashMap::<Arc<str>, usize>::new();
            for (team, calls) in budget.waiting_by_team() {
                *waiting.entry(team).or_default() += calls;
            }
            for (team, calls) in waiting {
                let most = self.waiting.entry(team).or_default();
                *most = calls.max(*most);
            }
            budgets.push((name, account.account_sid.clone(), status));
        }
        self.looks += 1;
        if u64::from(self.looks) * LOOK.as_secs() >= INTERVAL.as_secs() {
            self.finish(admin, &budgets);
        }
    }

    fn finish(&mut self, admin: &AdminState, budgets: &[(Arc<str>, String, BudgetStatus)]) {
        let spread = admin.shared.live.latencies().read();
        let requests = self.before.as_ref().map_or_else(|| spread.clone(), |before| spread.since(before));
        let mut accounts = Vec::new();
        for (name, sid, status) in budgets {
            let mut point = self.accounts.get(name).copied().unwrap_or_default();
            let before = self.attempts.get(sid).copied().unwrap_or_default();
            point.calls = status.attempts.saturating_sub(before);
            point.rate = status.per_second;
            accounts.push((Arc::clone(name), point));
        }
        self.attempts = budgets.iter().map(|(_, sid, status)| (sid.clone(), status.attempts)).collect();
        let waiting = self.waiting.drain().collect();
        admin.history.push(Point { at: admin.shared.clock.wall_now(), requests, accounts, waiting });
        self.accounts.clear();
        (self.before, self.looks) = (Some(spread), 0);
    }
}
