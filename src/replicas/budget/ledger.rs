//! The messages between a replica and the common budget, and how they are sent to the store. See `budget.lua`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use redis::Cmd;
use tokio::sync::watch;

use crate::accounts::Account;
use crate::budget::{LEAST_QUERIES, PROBE};
use crate::replicas::clock::micros;
use crate::replicas::script::LuaScript;
use crate::replicas::{Part, SharedStore, StoreError};

/// The script that decides.
pub(in crate::replicas) static SCRIPT: LuaScript = LuaScript::of(&[include_str!("../budget.lua")]);
/// A token is granted so long before its time if the store is near: enough for the way back and for a timer.
pub(super) const AHEAD: Duration = Duration::from_millis(10);
/// A replica that asks so late does not wait any more.
pub(super) const GRACE: Duration = Duration::from_millis(150);
/// The longest time until a replica asks again.
pub(super) const LONGEST: Duration = Duration::from_secs(1);
/// The time until a replica asks again when it is the turn of a team that waits at another.
pub(super) const RETRY: Duration = Duration::from_millis(4);
/// A replica's limits count for so long.
pub(super) const ALIVE: Duration = Duration::from_secs(5);
/// The cost of a token for a team of weight 1. Every weight up to 16 divides it.
pub(super) const COST: u64 = 720_720;

/// Microseconds between two tokens, 0 without a limit, and how many may be taken at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct TokenRate {
    pub(super) period: u64,
    pub(super) burst: u64,
}

/// The calls of one team that wait at this replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TeamDemand {
    /// The team's pseudonym.
    pub(super) team: String,
    pub(super) background: bool,
    pub(super) weight: u32,
    pub(super) calls: u32,
    /// The team's own limit.
    pub(super) limit: TokenRate,
}

/// A token that was granted, as it is given back if it is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refund {
    /// Its time on the store's clock, in microseconds.
    pub(super) at: u64,
    /// The pseudonym of the team that it was for.
    pub(super) team: String,
    pub(super) background: bool,
    pub(super) weight: u32,
    /// The team's own limit.
    pub(super) limit: TokenRate,
}

impl Refund {
    /// The token for the time `at` that was granted to `ask`.
    pub(super) fn of(ask: &TeamDemand, at: u64) -> Self {
        let TeamDemand { team, background, weight, limit, .. } = ask.clone();
        Self { at, team, background, weight, limit }
    }

    /// The same token where it is not known whether it was this team's: only the account gets it back.
    pub(super) fn of_unknown_team(self) -> Self {
        // The greatest weight has the least cost.
        Self { weight: u32::MAX, limit: TokenRate::default(), ..self }
    }
}

/// What a replica reports and asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct LedgerRequest {
    /// The rate that it may spend.
    pub(super) rate: TokenRate,
    /// A pause that it has learnt of, from now.
    pub(super) pause: Duration,
    /// For how long its circuit is open, from now.
    pub(super) open: Duration,
    /// The opening that its circuit takes part in: 0 if that began here and has no number yet.
    pub(super) opening: Option<u64>,
    /// The opening that a probe has ended.
    pub(super) ended: Option<u64>,
    /// The pseudonyms of the queries whose probes failed.
    pub(super) failed_probes: Vec<String>,
    /// Tokens at most; none of any team if 0.
    pub(super) most: u32,
    /// Until when an answer is waited for, on the store's clock in microseconds, if that is known.
    pub(super) latest: Option<u64>,
    /// How long an ask takes.
    pub(super) round_trip: Duration,
    /// The longest pause, and the longest time for which the circuit is open, by the configuration.
    pub(super) longest_pause: Duration,
    pub(super) longest_open: Duration,
    /// Tokens that were spent while the store was not reached, and are not paid for yet.
    pub(super) spent_standalone: u64,
    /// The calls of clients in its queue.
    pub(super) queue: u32,
    /// Tokens that were not used.
    pub(super) refunds: Vec<Refund>,
    /// Who waits, as far as calls could be sent.
    pub(super) teams: Vec<TeamDemand>,
}

/// A token that the store has granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GrantedToken {
    /// The position of its team in the request.
    pub(super) team: usize,
    /// It may be used after this time.
    pub(super) after: Duration,
    /// Its time on the store's clock, in microseconds.
    pub(super) at: u64,
}

/// What the store replies. All durations are from now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct LedgerReply {
    /// The lowest rate of all replicas.
    pub(super) rate: TokenRate,
    /// The tokens that are taken are paid for after this time.
    pub(super) owed: Duration,
    pub(super) pause: Duration,
    /// The rest of the time for which the circuit is open.
    pub(super) open: Duration,
    /// The opening of the circuit, until that is closed again.
    pub(super) opening: Option<u64>,
    /// Tokens granted to all replicas so far.
    pub(super) granted: u64,
    /// The calls of clients in the queues of other replicas.
    pub(super) elsewhere: u32,
    /// Ask again after this time.
    pub(super) wait: Duration,
    /// The time of the answer on the store's clock, in microseconds.
    pub(super) now: u64,
    /// For each team that was asked for: after this time its own limit has a token.
    pub(super) teams: Vec<Duration>,
    pub(super) tokens: Vec<GrantedToken>,
}

/// The common budget of an account.
pub(super) trait Ledger: Send + Sync + 'static {
    /// One atomic decision. Fails within `timeout`.
    fn ask(&self, request: &LedgerRequest) -> impl Future<Output = Result<LedgerReply, StoreError>> + Send;
    /// Tells whether it can be asked.
    fn watch_up(&self) -> watch::Receiver<bool>;
    /// This replica spends its own share for this reason, or no longer.
    fn set_standalone(&self, why: Option<&StoreError>);
    /// The longest time that one ask takes.
    fn timeout(&self) -> Duration;
    /// Replicas that live, of those last seen.
    fn replicas(&self) -> u32;
    /// Replicas that are configured.
    fn configured(&self) -> u32;
    /// The pseudonym of a name of this kind.
    fn pseudonym(&self, kind: &'static str, name: &[u8]) -> String;
}

/// The budget in the store.
pub(super) struct StoreLedger {
    store: SharedStore,
    account: Arc<Account>,
    keys: [String; 4],
    /// The part of the store that has it.
    part: Part,
}

impl StoreLedger {
    pub(super) fn new(store: SharedStore, account: Arc<Account>) -> Self {
        let key = |kind| store.key_names().in_account_slot(&account, kind);
        let keys = [key("budget"), key("limits"), key("waiting"), key("teams")];
        let part = Part::Budget(keys[0].as_str().into());
        Self { store, account, keys, part }
    }
}

impl Drop for StoreLedger {
    fn drop(&mut self) {
        // Nobody needs it any more.
        self.store.set_fault(self.part.clone(), None);
    }
}

impl Ledger for StoreLedger {
    async fn ask(&self, request: &LedgerRequest) -> Result<LedgerReply, StoreError> {
        let command = command(SCRIPT.text(), &self.keys, self.store.id(), request);
        let raw: Vec<i64> = match self.store.run_always("budget", &command).await {
            Ok(raw) => raw,
            Err(error) => return Err(self.store.explain(&self.keys[0], error).await),
        };
        read(&raw, request.teams.len()).ok_or_else(|| StoreError::Failed("an unexpected answer".to_owned()))
    }

    fn watch_up(&self) -> watch::Receiver<bool> {
        self.store.watch_up()
    }

    fn set_standalone(&self, why: Option<&StoreError>) {
        self.store.set_fault(self.part.clone(), why);
    }

    fn timeout(&self) -> Duration {
        self.store.settings().timeout
    }

    fn replicas(&self) -> u32 {
        self.store.replicas()
    }

    fn configured(&self) -> u32 {
        self.store.settings().replicas
    }

    fn pseudonym(&self, kind: &'static str, name: &[u8]) -> String {
        self.store.key_names().pseudonym(&self.account, kind, name)
    }
}

/// The call of the script.
pub(super) fn command(script: &str, keys: &[String; 4], replica: &str, request: &LedgerRequest) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(keys.len()).arg(keys).arg(replica);
    command.arg(request.rate.period).arg(request.rate.burst);
    command.arg(micros(request.pause)).arg(micros(request.open)).arg(request.most);
    for time in [AHEAD, ALIVE, GRACE, LONGEST, RETRY] {
        command.arg(micros(time));
    }
    command.arg(request.latest.unwrap_or(u64::MAX)).arg(micros(request.round_trip));
    command.arg(request.spent_standalone);
    command
        .arg(micros(request.longest_pause))
        .arg(micros(request.longest_open))
        .arg(request.opening.map_or(-1, |opening| i64::try_from(opening).unwrap_or(0)))
        .arg(request.ended.unwrap_or(0))
        .arg(request.failed_probes.join(" "))
        .arg(micros(PROBE))
        .arg(LEAST_QUERIES)
        .arg(request.queue)
        .arg(request.refunds.len());
    for Refund { at, team, background, weight, limit } in &request.refunds {
        command.arg(at).arg(team).arg(u8::from(*background)).arg(cost(*weight)).arg(limit.period);
    }
    for TeamDemand { team, background, weight, calls, limit } in &request.teams {
        command.arg(team).arg(u8::from(*background)).arg(cost(*weight)).arg(calls);
        command.arg(limit.period).arg(limit.burst);
    }
    command
}

/// The cost of a token for a team of this weight.
fn cost(weight: u32) -> u64 {
    COST / u64::from(weight).clamp(1, COST)
}

/// Reads the script's reply to a request about so many teams.
pub(super) fn read(raw: &[i64], teams: usize) -> Option<LedgerReply> {
    let (&[period, burst, owed, pause, open, opening, granted, elsewhere, wait, now], rest) =
        raw.split_first_chunk::<10>()?;
    let (waits, tokens) = rest.split_at_checked(teams)?;
    let token = |token: &[i64]| {
        let &[team, after, at] = token else { return None };
        let team = usize::try_from(team).ok()?.checked_sub(1).filter(|team| *team < teams)?;
        Some(GrantedToken { team, after: duration(after), at: u64::try_from(at).ok()? })
    };
    Some(LedgerReply {
        rate: TokenRate { period: u64::try_from(period).ok()?, burst: u64::try_from(burst).ok()?.max(1) },
        owed: duration(owed),
        pause: duration(pause),
        open: duration(open),
        opening: u64::try_from(opening).ok().filter(|opening| *opening > 0),
        granted: u64::try_from(granted).ok()?,
        elsewhere: u32::try_from(elsewhere).unwrap_or(u32::MAX),
        wait: duration(wait),
        now: u64::try_from(now).ok()?,
        teams: waits.iter().map(|wait| duration(*wait)).collect(),
        tokens: tokens.chunks(3).map(token).collect::<Option<_>>()?,
    })
}

/// Zero where it is past. At most a year, so that it can be added to any instant.
fn duration(micros: i64) -> Duration {
    const LONGEST: Duration = Duration::from_secs(366 * 86_400);
    Duration::from_micros(u64::try_from(micros).unwrap_or(0)).min(LONGEST)
}
