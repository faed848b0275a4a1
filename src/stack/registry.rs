//! What accounts and teams keep over reloads.
//!
//! It is read when a stack is built, and by the admin plane. Requests do not look here: the layers of a stack hold the
//! state of their accounts. What an account may send belongs to its SID and origin, so that a reload may give it another
//! name, and several names spend from one budget. What Twilio said of its credentials belongs to its name. An account
//! that a reload removes keeps its debts, in case another reload adds it again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::accounts::{Account, AccountId, PerAccount, TeamUsage};
use crate::budget::{self, AccountBudget};
use crate::config::Config;
use crate::core::backoff::Backoff;
use crate::core::clock::{Clock, Instant};
use crate::core::episode::Episode;
use crate::core::units::Rate;
use crate::health::upstream::AccountAttempts;
use crate::layers::authenticate::TeamRate;
use crate::layers::retry::RetryBudget;
use crate::layers::sign::{Configured, Credentials, Login, Rejection, Secrets, Signer};
use crate::replicas::{SharedQuota, SharedStore};

/// The accounts and teams of this and of earlier configurations. Clones share one state.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    spending: HashMap<AccountId, Spending>,
    accounts: HashMap<Arc<str>, AccountState>,
    credentials: Credentials,
    teams: HashMap<Arc<str>, TeamRate>,
    usage: HashMap<Arc<str>, TeamUsage>,
}

/// What limits the attempts of an account, whatever its name is.
#[derive(Clone)]
struct Spending {
    budget: AccountBudget,
    retries: RetryBudget,
}

/// What an account keeps over reloads.
#[derive(Clone)]
pub struct AccountState {
    /// What it may send upstream.
    pub budget: AccountBudget,
    /// How its attempts ended.
    pub attempts: AccountAttempts,
    /// Whether Twilio rejects its credentials.
    pub rejection: Rejection,
    echoes: Episode,
}

/// The accounts of one configuration, as the layers of its stack use them.
pub(super) struct Resolved {
    pub(super) budgets: PerAccount<AccountBudget>,
    pub(super) retries: PerAccount<RetryBudget>,
    pub(super) attempts: PerAccount<AccountAttempts>,
    pub(super) signers: PerAccount<Signer>,
    pub(super) secrets: Secrets,
}

impl Registry {
    /// What an account keeps; `None` if no configuration had it.
    pub fn account(&self, name: &str) -> Option<AccountState> {
        self.lock().accounts.get(name).cloned()
    }

    /// Applies a configuration that is put into use, and returns the state of its accounts. `accounts` are those of
    /// `config`, in its order.
    pub(super) fn resolve(
        &self,
        config: &Config,
        accounts: &[Arc<Account>],
        replicas: Option<&SharedStore>,
        clock: Clock,
    ) -> Resolved {
        let mut known = self.lock();
        let Known { spending, accounts: states, credentials, .. } = &mut *known;
        let spent_from = set_spending(spending, config, accounts, replicas, clock);
        let proxy = config.upstream.proxy.as_ref().and_then(|proxy| proxy.authorization.as_ref());
        let signed_with = credentials.set(&logins(config, accounts), &config.upstream.url, proxy);
        let (mut budgets, mut retries, mut attempts, mut signers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for ((account, configured), spending) in accounts.iter().zip(signed_with).zip(spent_from) {
            let Configured { credential, is_unchanged } = configured;
            let Spending { budget, retries: retry_budget } = spending;
            let state = states.entry(Arc::clone(&account.name)).or_insert_with(|| AccountState {
                budget: budget.clone(),
                attempts: AccountAttempts::default(),
                rejection: Rejection::default(),
                echoes: Episode::default(),
            });
            state.budget = budget;
            if !is_unchanged {
                // Twilio has said nothing of the new ones yet.
                state.rejection.clear(clock.now());
                state.attempts.forget_acceptance();
            }
            let account = || Arc::clone(account);
            budgets.push((account(), state.budget.clone()));
            retries.push((account(), retry_budget));
            attempts.push((account(), state.attempts.clone()));
            let (rejection, echoes) = (state.rejection.clone(), state.echoes.clone());
            signers.push((account(), Signer { credential, rejection, echoes }));
        }
        Resolved {
            budgets: PerAccount::new(budgets),
            retries: PerAccount::new(retries),
            attempts: PerAccount::new(attempts),
            signers: PerAccount::new(signers),
            secrets: credentials.secrets(),
        }
    }

    /// The request rate of a team. What the team has spent stays spent, whatever its rate is now.
    pub(super) fn team_rate(&self, team: &Arc<str>, rate: Rate, now: Instant) -> TeamRate {
        let mut known = self.lock();
        let state = known.teams.entry(Arc::clone(team)).or_insert_with(|| TeamRate::full(rate, now));
        state.set_rate(rate, now);
        state.clone()
    }

    /// The usage of a team since the process started, over all reloads.
    pub fn usage(&self, team: &str) -> TeamUsage {
        self.lock().usage.entry(team.into()).or_default().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Applies the limits of a configuration, and returns what each of its accounts spends from, in its order.
fn set_spending(
    known: &mut HashMap<AccountId, Spending>,
    config: &Config,
    accounts: &[Arc<Account>],
    replicas: Option<&SharedStore>,
    clock: Clock,
) -> Vec<Spending> {
    let mut configured: HashMap<AccountId, (Vec<&str>, budget::Limits)> = HashMap::new();
    for (account, settings) in accounts.iter().zip(&config.accounts) {
        let limits = limits(config, settings);
        let (names, lowest) = configured.entry(account.id()).or_insert((Vec::new(), limits));
        names.push(&account.name);
        *lowest = lowest.lower(limits);
    }
    let spent_from = accounts.iter().filter_map(|account| {
        let (names, limits) = configured.get(&account.id())?;
        let spending = known.entry(account.id()).or_insert_with(|| Spending {
            budget: budget(account, *limits, replicas, clock),
            retries: RetryBudget::new(clock.now()),
        });
        spending.budget.set_name(names.join(", ").into());
        spending.budget.set_limits(*limits);
        Some(spending.clone())
    });
    let spent_from = spent_from.collect();
    for (_, spending) in known.iter().filter(|(id, _)| !configured.contains_key(*id)) {
        spending.budget.retire();
    }
    spent_from
}

/// The budget of this process, or the one that all replicas of the account share.
fn budget(
    account: &Arc<Account>,
    limits: budget::Limits,
    replicas: Option<&SharedStore>,
    clock: Clock,
) -> AccountBudget {
    let name = Arc::clone(&account.name);
    match replicas {
        None => AccountBudget::new(name, limits, clock),
        Some(store) => {
            let quota = SharedQuota::new(store.clone(), Arc::clone(account), &limits, clock);
            AccountBudget::with_quota(name, limits, Box::new(quota), clock)
        }
    }
}

fn logins<'c>(config: &'c Config, accounts: &'c [Arc<Account>]) -> Vec<Login<'c>> {
    let login = |(account, settings): (&'c Arc<Account>, &'c crate::config::Account)| Login {
        account,
        username: &settings.username,
        secret: &settings.secret,
    };
    accounts.iter().zip(&config.accounts).map(login).collect()
}

fn limits(config: &Config, account: &crate::config::Account) -> budget::Limits {
    budget::Limits {
        rate: account.rate,
        burst: account.burst,
        concurrency: account.concurrency,
        queue: account.queue,
        adapt: account.adapt,
        max_pause: config.retry.max_pause,
        backoff: backoff(config),
        circuit: budget::CircuitPolicy {
            consecutive: config.circuit.consecutive,
            ratio: config.circuit.ratio,
            open: config.circuit.open,
        },
    }
}

/// The pauses between attempts, for each call and for the account.
pub(super) fn backoff(config: &Config) -> Backoff {
    Backoff { base: config.retry.base, max: config.retry.max }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{self, Sources};
    use crate::health::upstream::Attempt;
    use crate::request::call::UpstreamCall;
    use crate::semantics::request_directives::Urgency;
    use crate::twilio::endpoint::Operation;

    /// A configuration with these accounts and rates.
    fn config(accounts: &[(&str, &str)]) -> Config {
        let mut sources = Sources::default();
        for (name, rate) in accounts {
            let id = format!("{:032}", name.as_bytes()[0]);
            for (key, value) in [
                (format!("accounts.{name}.account_sid"), format!("AC{id}")),
                (format!("accounts.{name}.api_key"), "SK1".to_owned()),
                (format!("accounts.{name}.api_secret"), "a-secret".to_owned()),
                (format!("accounts.{name}.rate"), (*rate).to_owned()),
                (format!("teams.of-{name}.account"), (*name).to_owned()),
                (format!("teams.of-{name}.token_sha256"), id.repeat(2)),
            ] {
                sources = sources.with_flag(key, value);
            }
        }
        config::load(&sources).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_keeps_its_state_wherever_it_stands() {
        let (registry, clock) = (Registry::default(), Clock::new());
        let resolve = |config: Config| {
            let accounts = super::super::accounts(&config);
            let resolved = registry.resolve(&config, &accounts, None, clock);
            (accounts.into_iter().find(|account| &*account.name == "m").unwrap(), resolved)
        };
        let limit = |(account, resolved): &(Arc<Account>, Resolved)| resolved.budgets.of(account).status().limits.rate;
        let second = Duration::from_secs(1);
        let first = resolve(config(&[("m", "1/s")]));
        assert_eq!(limit(&first), Rate::new(1, second));
        let others = resolve(config(&[("a", "2/s"), ("m", "3/s"), ("z", "4/s")]));
        assert_eq!(limit(&others), Rate::new(3, second));
        assert_eq!(limit(&first), Rate::new(3, second), "calls under way spend from the same budget");
        assert!(registry.account("z").is_some() && registry.account("x").is_none());
    }

    /// Resolves the accounts with these names, SIDs and rates, and returns what they spend from.
    fn spend(registry: &Registry, accounts: &[(&str, &str, &str)], origin: &str, clock: Clock) -> Vec<AccountBudget> {
        let key = |sources: Sources, (key, value): (String, &str)| sources.with_flag(key, value.to_owned());
        let sources = accounts.iter().fold(Sources::default(), |sources, (name, sid, rate)| {
            let keys = [("account_sid", *sid), ("api_key", "SK1"), ("api_secret", "a-secret"), ("rate", *rate)];
            let sources =
                keys.map(|(key, value)| (format!("accounts.{name}.{key}"), value)).into_iter().fold(sources, key);
            let team = [("account", *name), ("token_sha256", &*format!("{:064}", name.as_bytes()[0]))];
            team.map(|(key, value)| (format!("teams.of-{name}.{key}"), value)).into_iter().fold(sources, key)
        });
        let config = config::load(&sources.with_flag("upstream.url".to_owned(), origin.to_owned())).unwrap();
        let accounts = super::super::accounts(&config);
        let resolved = registry.resolve(&config, &accounts, None, clock);
        accounts.iter().map(|account| resolved.budgets.of(account).clone()).collect()
    }

    const ONE: &str = "AC00000000000000000000000000000001";
    const TWO: &str = "AC00000000000000000000000000000002";
    const TWILIO: &str = "https://twilio.example";

    /// Sends one attempt.
    async fn attempt(budget: &AccountBudget) {
        let call = UpstreamCall::example(Operation::Metadata, "", "");
        let _waiter = call.waiters.join(&call.team, Urgency::new(3));
        budget.acquire(&call).await.unwrap().spend();
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_belongs_to_a_sid_and_an_origin_whatever_their_names() {
        let (registry, clock) = (Registry::default(), Clock::new());
        let resolve = |accounts: &[_], origin| spend(&registry, accounts, origin, clock);
        let attempts = |budgets: &[AccountBudget]| budgets[0].status().attempts;
        let first = resolve(&[("main", ONE, "5/s")], TWILIO);
        attempt(&first[0]).await;
        assert_eq!(attempts(&first), 1);
        assert_eq!(attempts(&resolve(&[("main", TWO, "5/s")], TWILIO)), 0, "another SID");
        assert_eq!(attempts(&resolve(&[("main", ONE, "5/s")], "https://elsewhere.example")), 0, "another upstream");
        assert_eq!(attempts(&resolve(&[("main", ONE, "5/s")], TWILIO)), 1, "debts are kept");
        let renamed = resolve(&[("main", TWO, "5/s"), ("other", ONE, "5/s")], TWILIO);
        assert_eq!((attempts(&renamed), renamed[1].status().attempts), (0, 1), "the same SID under another name");
        assert_eq!(registry.account("main").unwrap().budget.status().attempts, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn names_of_one_sid_spend_from_one_budget_at_the_lowest_rate() {
        let (registry, clock) = (Registry::default(), Clock::new());
        let budgets = spend(&registry, &[("a", ONE, "5/s"), ("b", ONE, "2/s"), ("c", TWO, "9/s")], TWILIO, clock);
        attempt(&budgets[1]).await;
        let seen = |budget: &AccountBudget| (budget.status().attempts, budget.status().limits.rate);
        let (two, nine) = (Rate::new(2, Duration::from_secs(1)), Rate::new(9, Duration::from_secs(1)));
        assert_eq!([0, 1, 2].map(|which: usize| seen(&budgets[which])), [(1, two), (1, two), (0, nine)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_twilio_said_of_credentials_is_forgotten_only_when_they_change() {
        let base = [("accounts.main.account_sid", "AC1"), ("accounts.main.api_key", "SK1")];
        let base = [&base[..], &[("accounts.main.api_secret", "a-secret"), ("log.hits", "1.0")]].concat();
        for (change, is_kept) in [
            (("log.hits", "0.5"), true),
            (("accounts.main.rate", "9/s"), true),
            (("accounts.main.account_sid", "AC2"), false),
            (("accounts.main.api_key", "SK2"), false),
            (("accounts.main.api_secret", "another"), false),
            (("upstream.url", "https://elsewhere.example"), false),
        ] {
            let (registry, clock) = (Registry::default(), Clock::new());
            let resolve = |changes: &[(&str, &str)]| {
                let keys = base.iter().chain(changes);
                let sources = keys.fold(Sources::default(), |all, (key, value)| {
                    all.with_flag((*key).to_owned(), (*value).to_owned())
                });
                let config = config::load(&sources).unwrap();
                registry.resolve(&config, &super::super::accounts(&config), None, clock)
            };
            let _old = resolve(&[]);
            let attempts = registry.account("main").unwrap().attempts;
            attempts.ended(Attempt::Answered { accepted: true }, clock.now());
            let _same = resolve(&[]);
            assert!(attempts.now().accepted, "nothing changed");
            let _new = resolve(&[change]);
            assert_eq!(attempts.now().accepted, is_kept, "{change:?}");
        }
    }

    #[test]
    fn a_team_keeps_what_it_has_spent_when_its_rate_changes() {
        let (registry, now, team) = (Registry::default(), Instant::now(), "a".into());
        let rate = |count| registry.team_rate(&team, Rate::new(count, Duration::from_secs(1)).unwrap(), now);
        let first = rate(2);
        assert!(first.take(now).is_ok() && rate(2).take(now).is_ok());
        assert!(first.take(now).is_err() && rate(2).take(now).is_err());
        assert_eq!(rate(10).take(now).map(|left| left.remaining), Ok(7), "two of ten were spent before");
        assert!(rate(2).take(now).is_err());
    }
}
