//! The sessions of browsers that have logged in.
//!
//! A session is a random id that the browser keeps in a cookie. The process keeps a hash of the id, and the token that was
//! used. A session ends when the admin plane gets another token, after twelve hours, at logout, and with the process.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use zeroize::Zeroizing;

use crate::core::clock::{Clock, Moment};

/// The cookie's name.
pub(super) const COOKIE: &str = "insights_gateway_session";

/// How long a session lasts.
const LASTS: Duration = Duration::from_secs(12 * 3600);

/// The most sessions at one time. A further login ends the oldest.
const MOST: usize = 64;

/// How many wrong tokens are refused without a delay.
const FREE: u32 = 2;

/// The delay of the first wrong token after those. It doubles with each further one.
const FIRST: Duration = Duration::from_millis(250);

/// The longest delay.
const LONGEST: Duration = Duration::from_secs(4);

/// How long a wrong token counts.
const FORGET: Duration = Duration::from_secs(60);

/// A hash of a session's id. It is no secret, because it gives no access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SessionId([u8; 32]);

/// The open sessions, and the times of recent wrong tokens.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    open: Mutex<HashMap<SessionId, Session>>,
    wrong: Mutex<Vec<Moment>>,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    begun: Moment,
    token: TokenInUse,
}

/// The token of the admin plane that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenInUse {
    /// Its SHA-256.
    pub(super) sha256: [u8; 32],
    /// How many tokens there were before it. A token that is configured again later does not revive its old sessions.
    pub(super) number: u64,
}

impl SessionId {
    /// The session that the request's cookie names. It may not exist.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut named = pairs.filter(|(name, _)| *name == COOKIE).map(|(_, id)| Self::hash(id));
        // Another service on this host may have set a second cookie. Then it is unknown which one is ours.
        let first = named.next()?;
        named.all(|other| other == first).then_some(first)
    }

    fn hash(id: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, id.as_bytes()).as_ref());
        Self(hash)
    }
}

impl Sessions {
    /// Opens a session for this token, and returns its id. `None` if the system has no random bytes.
    pub(super) fn begin(&self, token: TokenInUse, clock: Clock) -> Option<Zeroizing<String>> {
        let mut random = Zeroizing::new([0; 32]);
        rand::fill(random.as_mut_slice()).ok()?;
        let id = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(*random));
        let mut open = lock(&self.open);
        let now = clock.moment();
        open.retain(|_, session| now.since(session.begun) < LASTS && session.token == token);
        if open.len() >= MOST
            && let Some(oldest) = open.iter().min_by_key(|(_, session)| session.begun).map(|(id, _)| *id)
        {
            open.remove(&oldest);
        }
        open.insert(SessionId::hash(&id), Session { begun: now, token });
        Some(id)
    }

    /// Whether this session exists, is not over, and was opened with this token.
    pub(super) fn lasts(&self, id: SessionId, token: TokenInUse, clock: Clock) -> bool {
        let session = lock(&self.open).get(&id).copied();
        session.is_some_and(|session| clock.moment().since(session.begun) < LASTS && session.token == token)
    }

    /// Ends a session.
    pub(super) fn end(&self, id: SessionId) {
        lock(&self.open).remove(&id);
    }

    /// Records a wrong token, and returns how long to delay its refusal.
    pub(super) fn failed(&self, clock: Clock) -> Duration {
        let mut wrong = lock(&self.wrong);
        let now = clock.moment();
        wrong.retain(|at| now.since(*at) < FORGET);
        // More would not make the delay longer.
        if wrong.len() < 16 {
            wrong.push(now);
        }
        let failures = u32::try_from(wrong.len()).unwrap_or(u32::MAX);
        match failures.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            Some(doublings) => FIRST.saturating_mul(2u32.saturating_pow(doublings)).min(LONGEST),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each critical section is one complete change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const TOKEN: TokenInUse = TokenInUse { sha256: [1; 32], number: 0 };

    fn cookie(lines: &[&str]) -> HeaderMap {
        let pair = |line: &&str| (header::COOKIE, HeaderValue::from_str(line).unwrap());
        lines.iter().map(pair).collect()
    }

    fn begin(sessions: &Sessions, clock: Clock) -> SessionId {
        let id = sessions.begin(TOKEN, clock).unwrap();
        SessionId::of(&cookie(&[&format!("a=b; {COOKIE}={}; c=d", *id)])).unwrap()
    }

    #[test]
    fn a_session_ends_with_its_token_and_at_logout() {
        let (sessions, clock) = (Sessions::default(), Clock::new());
        let (one, other) = (begin(&sessions, clock), begin(&sessions, clock));
        assert!(sessions.lasts(one, TOKEN, clock) && sessions.lasts(other, TOKEN, clock));
        for other in [TokenInUse { sha256: [2; 32], ..TOKEN }, TokenInUse { number: 2, ..TOKEN }] {
            assert!(!sessions.lasts(one, other, clock), "another token is in use, or this one for the second time");
        }
        assert!(!sessions.lasts(SessionId::hash(""), TOKEN, clock));
        sessions.end(one);
        assert!(!sessions.lasts(one, TOKEN, clock) && sessions.lasts(other, TOKEN, clock));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_after_twelve_hours() {
        let (sessions, clock) = (Sessions::default(), Clock::simulated());
        let id = begin(&sessions, clock);
        tokio::time::advance(LASTS - Duration::from_secs(1)).await;
        assert!(sessions.lasts(id, TOKEN, clock));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!sessions.lasts(id, TOKEN, clock));
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_are_bounded_and_the_oldest_is_dropped() {
        let (sessions, clock) = (Sessions::default(), Clock::simulated());
        let first = begin(&sessions, clock);
        for _ in 0..MOST {
            tokio::time::advance(Duration::from_secs(1)).await;
            begin(&sessions, clock);
        }
        assert_eq!(lock(&sessions.open).len(), MOST);
        assert!(!sessions.lasts(first, TOKEN, clock));
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_tokens_are_delayed_from_the_third_on() {
        let (sessions, clock) = (Sessions::default(), Clock::simulated());
        let delays: Vec<_> = (0..8).map(|_| sessions.failed(clock).as_millis()).collect();
        assert_eq!(delays, [0, 0, 250, 500, 1000, 2000, 4000, 4000]);
        tokio::time::advance(FORGET).await;
        assert_eq!(sessions.failed(clock), Duration::ZERO);
    }

    #[test]
    fn two_different_cookies_name_no_session() {
        let named = |lines: &[&str]| SessionId::of(&cookie(lines));
        assert_eq!(named(&[&format!("{COOKIE}=a; {COOKIE}=b")]), None);
        assert_eq!(named(&[&format!("{COOKIE}=a"), &format!("{COOKIE}=b")]), None);
        assert_eq!(named(&["other=a"]), None);
        assert_eq!(named(&[&format!("{COOKIE}=a"), "x=y"]), Some(SessionId::hash("a")));
    }
}
