//! A budget with another source of tokens.

use std::sync::Mutex;

use super::*;

/// A scripted source of tokens. It behaves like one that shares a bucket with other processes.
#[derive(Debug, Default)]
struct Script {
    /// No token before this; a token that is asked for at that time may have been taken by another process.
    next: Option<Instant>,
    /// How often another process takes the token first. Each time the next token comes a second later.
    taken_by_others: u32,
    /// The teams that were granted tokens.
    granted: Vec<String>,
    refunds: u32,
}

#[derive(Debug, Clone, Default)]
struct ScriptedQuota(Arc<Mutex<Script>>);

impl QuotaSource for ScriptedQuota {
    fn set_limits(&mut self, _: &Limits, _: Instant) {}

    fn update(&mut self, _: Instant) {}

    fn ready(&self, now: Instant) -> Grant {
        let next = self.0.lock().unwrap().next;
        next.filter(|next| *next > now).map_or(Grant::Now, Grant::NotBefore)
    }

    fn take(&mut self, team: &Team, now: Instant) -> Grant {
        if self.ready(now) != Grant::Now {
            return self.ready(now);
        }
        let mut script = self.0.lock().unwrap();
        if script.taken_by_others > 0 {
            script.taken_by_others -= 1;
            script.next = Some(now + S);
            return Grant::NotBefore(now + S);
        }
        script.granted.push(team.name.to_string());
        Grant::Now
    }

    fn refund(&mut self) {
        self.0.lock().unwrap().refunds += 1;
    }

    fn nth_at(&self, _: u32, now: Instant) -> Instant {
        self.0.lock().unwrap().next.map_or(now, |next| next.max(now))
    }

    fn concurrency(&self, _: Instant) -> u32 {
        100
    }

    fn accepted(&mut self, _: &RateLimitHeaders, _: Instant) {}

    fn rate_limited(
        &mut self,
        asked: Option<Duration>,
        _: &RateLimitHeaders,
        _: Instant,
        _: u32,
        now: Instant,
    ) -> Option<Duration> {
        self.0.lock().unwrap().next = asked.map(|pause| now + pause);
        asked
    }

    fn status(&self, _: Instant) -> QuotaStatus {
        QuotaStatus { per_second: None, tokens: None, paused: Duration::ZERO }
    }
}

fn scripted() -> (AccountBudget, ScriptedQuota) {
    let quota = ScriptedQuota::default();
    let budget = AccountBudget::with_quota("main".into(), limits(1, 1, 1), Box::new(quota.clone()), Clock::new());
    (budget, quota)
}

#[tokio::test(start_paused = true)]
async fn tokens_that_others_take_first_are_waited_for_in_the_same_order() {
    let ((budget, quota), start) = (scripted(), Instant::now());
    *quota.0.lock().unwrap() = Script { next: Some(start + 10 * S), taken_by_others: 3, ..Script::default() };
    let teams = ["a", "a", "b"];
    let calls = teams.map(|team| spend(&budget, call_of(&Team::example(team), 3, 60 * S)));
    for call in calls {
        assert_eq!(call.await.unwrap(), Ok(start + 13 * S));
    }
    let script = quota.0.lock().unwrap();
    assert_eq!((script.granted.join(" "), script.refunds), ("a b a".to_owned(), 0), "each team in its turn");
}

#[tokio::test(start_paused = true)]
async fn a_source_is_told_of_unused_tokens_and_of_429s() {
    let ((budget, quota), start) = (scripted(), Instant::now());
    let (call, _waiter) = patient();
    drop(budget.acquire(&call).await.unwrap());
    assert_eq!(quota.0.lock().unwrap().refunds, 1);
    attempt(&budget, AttemptOutcome::RateLimited(Some(7 * S), RateLimitHeaders::default())).await.unwrap();
    assert_eq!(quota.0.lock().unwrap().refunds, 1, "a token that was used does not come back");
    assert_eq!(answered(&budget, &call).await, Ok(start + 7 * S));
    let (hasty, _waiter) = call_of(&Team::example("local"), 3, S);
    quota.0.lock().unwrap().next = Some(Instant::now() + 5 * S);
    assert_eq!(answered(&budget, &hasty).await, Err(Reason::Deadline), "by the source's estimate");
}
