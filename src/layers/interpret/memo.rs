//! Remembers what request bodies mean, so that a hit does not read and write JSON again.
//!
//! A dashboard sends the same bytes again and again. Their canonical form and key depend on nothing but the
//! bytes, the query string and the account, so they can be remembered for as long as one likes; what is
//! compared is the whole of these, never a hash alone. A fixed number of places, each for one small body: a new one
//! takes the place of whichever was there.

use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use foldhash::fast::RandomState;

use crate::model::key::Key;

/// What a request means.
#[derive(Debug)]
pub(super) struct Understood {
    pub(super) parameters: Arc<str>,
    pub(super) body: Bytes,
    pub(super) key: Key,
}

/// What a request says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said<'r> {
    /// The account's SID.
    pub(super) account: &'r str,
    /// The query string as it came.
    pub(super) query: &'r str,
    /// The body as it came.
    pub(super) body: &'r [u8],
}

#[derive(Debug)]
struct Remembered {
    /// Account, query string and body, one behind the other: one place in memory is one wait for it.
    said: Box<[u8]>,
    account: usize,
    query: usize,
    understood: Arc<Understood>,
}

impl Remembered {
    fn new(said: Said<'_>, understood: Arc<Understood>) -> Self {
        let all = [said.account.as_bytes(), said.query.as_bytes(), said.body].concat();
        Self { said: all.into(), account: said.account.len(), query: said.query.len(), understood }
    }

    fn is(&self, said: Said<'_>) -> bool {
        let (account, rest) = self.said.split_at(self.account);
        let (query, body) = rest.split_at(self.query);
        body == said.body && query == said.query.as_bytes() && account == said.account.as_bytes()
    }
}

type Place = Mutex<Option<Remembered>>;

/// The places. At most about 18 MiB when all of them hold the largest body; a dashboard's takes a third of that.
#[derive(Debug)]
pub(super) struct Memo {
    places: Box<[Place]>,
    // Keyed by chance, so that nobody can choose bodies that take each other's places.
    hasher: RandomState,
}

impl Memo {
    const PLACES: usize = 8192;
    /// Larger bodies are read anew: they are rare, and reading them is not what they cost.
    const LARGEST: usize = 1024;

    pub(super) fn new() -> Self {
        let places = std::iter::repeat_with(Place::default).take(Self::PLACES).collect();
        Self { places, hasher: RandomState::default() }
    }

    /// What `said` means, from memory or as `understand` has it.
    pub(super) fn of<E>(
        &self,
        said: Said<'_>,
        understand: impl FnOnce() -> Result<Understood, E>,
    ) -> Result<Arc<Understood>, E> {
        if said.body.len() + said.query.len() > Self::LARGEST {
            return understand().map(Arc::new);
        }
        let place = &self.places[self.place(said)];
        let lock = || place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remembered) = lock().as_ref().filter(|remembered| remembered.is(said)) {
            return Ok(Arc::clone(&remembered.understood));
        }
        let understood = Arc::new(understand()?);
        *lock() = Some(Remembered::new(said, Arc::clone(&understood)));
        Ok(understood)
    }

    fn place(&self, said: Said<'_>) -> usize {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(said.body);
        hasher.write(said.query.as_bytes());
        hasher.write(said.account.as_bytes());
        hasher.finish() as usize % Self::PLACES
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::model::operation::Operation;

    fn understood(said: Said<'_>) -> Understood {
        Understood {
            parameters: said.query.into(),
            body: Bytes::copy_from_slice(said.body),
            key: Key::new(said.account, Operation::Query, said.query, said.body),
        }
    }

    fn ask(memo: &Memo, said: Said<'_>) -> (Arc<Understood>, bool) {
        let mut asked = false;
        let meant = memo.of(said, || {
            asked = true;
            Ok::<_, Infallible>(understood(said))
        });
        let Ok(meant) = meant;
        (meant, asked)
    }

    #[test]
    fn the_same_request_is_understood_once() {
        let memo = Memo::new();
        let said = Said { account: "AC1", query: "pageSize=1", body: b"{}" };
        assert!(ask(&memo, said).1);
        assert!(!ask(&memo, said).1);
        for other in [Said { account: "AC2", ..said }, Said { query: "", ..said }, Said { body: b"{ }", ..said }] {
            let (meant, asked) = ask(&memo, other);
            assert!(asked);
            assert_eq!(meant.key, understood(other).key);
        }
    }

    #[test]
    fn more_requests_than_places_are_still_told_apart() {
        let memo = Memo::new();
        for _ in 0..2 {
            for n in 0..3 * Memo::PLACES {
                let body = n.to_string();
                let said = Said { account: "AC1", query: "", body: body.as_bytes() };
                assert_eq!(ask(&memo, said).0.body, body);
            }
        }
    }

    #[test]
    fn large_bodies_and_failures_are_not_remembered() {
        let memo = Memo::new();
        let large = vec![b' '; Memo::LARGEST + 1];
        let said = Said { account: "AC1", query: "", body: &large };
        assert!(ask(&memo, said).1 && ask(&memo, said).1);
        let said = Said { account: "AC1", query: "", body: b"[" };
        assert!(memo.of(said, || Err::<Understood, _>(())).is_err());
        assert!(ask(&memo, said).1);
    }
}
