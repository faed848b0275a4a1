//! What may be done with a page of a given age: one pure function, with the time as an argument.
//!
//! ```text
//!   age   0 ────────── fresh ─────────── fresh + swr ────────── fresh + sie ──────────▶
//!         │   serve      │ serve, refresh     │ fetch; serve it      │ fetch; it is gone
//!         │              │ once behind it     │ only on an error     │
//! ```
//!
//! The two windows both start where freshness ends (RFC 5861), so either may be the longer. A page beyond both is never
//! served to any client. No function here makes a page fresh again: only a new page is fresh.

use std::time::Duration;

pub use crate::semantics::lifetimes::Lifetimes;
use crate::semantics::request_directives::CacheDirectives;

/// What to do with a request, given the stored page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Answer with the page: it is fresh, or no staler than the client accepts.
    Serve,
    /// Answer with the page, and start one refresh in the background.
    ServeAndRefresh,
    /// Ask upstream. If that fails, the page may be served instead.
    FetchOrServeStale,
    /// Ask upstream. There is no page that could be served instead.
    Fetch,
    /// The client forbids to ask upstream, and there is no page that it accepts.
    Refuse,
}

/// Decides. `page` is the stored page's lifetimes and age, or `None` without one.
pub fn decide(page: Option<(&Lifetimes, Duration)>, directives: &CacheDirectives) -> Decision {
    let acceptable = page.and_then(|(lifetimes, age)| accept(lifetimes, age, directives));
    match (acceptable, directives.only_if_cached) {
        // A refresh in the background would ask upstream, which the client forbids.
        (Some(_), true) => Decision::Serve,
        (Some(decision), false) => decision,
        (None, true) => Decision::Refuse,
        (None, false) => match page {
            Some((lifetimes, age)) if age <= lifetimes.servable_on_error() => Decision::FetchOrServeStale,
            _ => Decision::Fetch,
        },
    }
}

/// Whether the page may be served without waiting for upstream, and whether it needs a refresh.
fn accept(lifetimes: &Lifetimes, age: Duration, directives: &CacheDirectives) -> Option<Decision> {
    let too_old = directives.no_cache || directives.max_age.is_some_and(|max_age| age > max_age);
    if too_old {
        return None;
    }
    let needed = directives.min_fresh.unwrap_or(Duration::ZERO);
    if age.saturating_add(needed) <= lifetimes.fresh {
        return Some(Decision::Serve);
    }
    if directives.min_fresh.is_some() {
        return None;
    }
    let staleness = age - lifetimes.fresh;
    let tolerated = match directives.max_stale {
        // A client may accept any staleness, but no page is served beyond the configured windows.
        Some(max_stale) => max_stale.min(lifetimes.stale_while_revalidate.max(lifetimes.stale_if_error)),
        None => lifetimes.stale_while_revalidate,
    };
    (staleness <= tolerated).then_some(Decision::ServeAndRefresh)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    const LIFETIMES: Lifetimes = Lifetimes {
        fresh: Duration::from_secs(60),
        stale_while_revalidate: Duration::from_secs(300),
        stale_if_error: Duration::from_secs(3600),
    };

    fn at(age: u32, directives: CacheDirectives) -> Decision {
        decide(Some((&LIFETIMES, S * age)), &directives)
    }

    #[test]
    fn the_decision_follows_the_age_of_the_page() {
        let plain = CacheDirectives::default();
        assert_eq!(at(0, plain), Decision::Serve);
        assert_eq!(at(60, plain), Decision::Serve);
        assert_eq!(at(61, plain), Decision::ServeAndRefresh);
        assert_eq!(at(360, plain), Decision::ServeAndRefresh);
        assert_eq!(at(361, plain), Decision::FetchOrServeStale);
        assert_eq!(at(3660, plain), Decision::FetchOrServeStale);
        assert_eq!(at(3661, plain), Decision::Fetch);
        assert_eq!(decide(None, &plain), Decision::Fetch);
    }

    #[test]
    fn clients_narrow_what_they_accept() {
        let no_cache = CacheDirectives { no_cache: true, ..Default::default() };
        assert_eq!(at(1, no_cache), Decision::FetchOrServeStale);
        let max_age = CacheDirectives { max_age: Some(S * 10), ..Default::default() };
        assert_eq!((at(10, max_age), at(11, max_age)), (Decision::Serve, Decision::FetchOrServeStale));
        let min_fresh = CacheDirectives { min_fresh: Some(S * 20), ..Default::default() };
        assert_eq!((at(40, min_fresh), at(41, min_fresh)), (Decision::Serve, Decision::FetchOrServeStale));
        assert_eq!(at(70, min_fresh), Decision::FetchOrServeStale);
    }

    #[test]
    fn max_stale_reaches_the_longest_window_and_no_further() {
        let any = CacheDirectives { max_stale: Some(Duration::MAX), ..Default::default() };
        assert_eq!((at(3660, any), at(3661, any)), (Decision::ServeAndRefresh, Decision::Fetch));
        let little = CacheDirectives { max_stale: Some(S * 5), ..Default::default() };
        assert_eq!((at(65, little), at(66, little)), (Decision::ServeAndRefresh, Decision::FetchOrServeStale));
    }

    #[test]
    fn only_if_cached_never_asks() {
        let wish = CacheDirectives { only_if_cached: true, ..Default::default() };
        assert_eq!((at(1, wish), at(100, wish), at(400, wish)), (Decision::Serve, Decision::Serve, Decision::Refuse));
        assert_eq!(decide(None, &wish), Decision::Refuse);
    }

    #[test]
    fn ttl_counts_down_and_below() {
        assert_eq!([0, 60, 61, 100].map(|age| LIFETIMES.ttl(S * age)), [60, 0, -1, -40]);
        assert_eq!(LIFETIMES.ttl(S * 60 + Duration::from_millis(1)), -1);
    }

    fn directives() -> impl Strategy<Value = CacheDirectives> {
        let seconds = || prop::option::of((0u32..5000).prop_map(|n| S * n));
        (any::<bool>(), any::<bool>(), seconds(), seconds(), seconds()).prop_map(
            |(no_cache, only_if_cached, max_age, min_fresh, max_stale)| CacheDirectives {
                no_cache,
                no_store: false,
                only_if_cached,
                max_age,
                min_fresh,
                max_stale,
            },
        )
    }

    proptest! {
        /// A page that joins a result set later ends its windows together with the set.
        #[test]
        fn remaining_lifetimes_end_with_the_original_ones(fresh in 0u32..100, swr in 0u32..100, sie in 0u32..100, elapsed in 0u32..300, age in 0u32..300) {
            let whole = Lifetimes { fresh: S * fresh, stale_while_revalidate: S * swr, stale_if_error: S * sie };
            let plain = CacheDirectives::default();
            match whole.after(S * elapsed) {
                Some(left) => {
                    prop_assert_eq!(left.usable() + S * elapsed, whole.usable());
                    if elapsed <= fresh {
                        prop_assert_eq!(decide(Some((&left, S * age)), &plain), decide(Some((&whole, S * (age + elapsed))), &plain));
                    }
                }
                None => prop_assert!(S * elapsed >= whole.usable()),
            }
        }

        #[test]
        fn nothing_is_served_beyond_its_window(fresh in 0u32..1000, swr in 0u32..1000, sie in 0u32..1000, age in 0u32..5000, directives in directives()) {
            let lifetimes = Lifetimes { fresh: S * fresh, stale_while_revalidate: S * swr, stale_if_error: S * sie };
            let decision = decide(Some((&lifetimes, S * age)), &directives);
            if S * age > lifetimes.usable() {
                prop_assert!(matches!(decision, Decision::Fetch | Decision::Refuse));
            }
            if age > fresh && matches!(decision, Decision::Serve) {
                prop_assert!(directives.only_if_cached);
            }
            if directives.only_if_cached {
                prop_assert!(matches!(decision, Decision::Serve | Decision::Refuse));
            }
            if let (Some(max_age), Decision::Serve | Decision::ServeAndRefresh) = (directives.max_age, decision) {
                prop_assert!(S * age <= max_age);
            }
        }
    }
}
