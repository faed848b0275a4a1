//! Result sets on the disk: pages that a newer response ends do not come back.

use super::*;

/// A first page that begins a result set and names another page.
fn first_page(n: u32, next: u32, clock: Clock, body: &'static str) -> StoredResponse {
    let set = ResultSet::begin(key(n), clock.moment(), stored(n, clock, "").lifetimes);
    StoredResponse { result_set: Some(set), next: Some(key(next)), ..stored(n, clock, body) }
}

fn further_page(n: u32, result_set: Option<ResultSet>, clock: Clock, body: &'static str) -> StoredResponse {
    StoredResponse { operation: Operation::Page, result_set, ..stored(n, clock, body) }
}

#[tokio::test]
async fn pages_that_a_new_first_page_ends_do_not_come_back() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    let clock = first.clock;
    // Of no set, of the older set of the same query, and of another query's set.
    first.insert(2, further_page(2, None, clock, "old"));
    first.insert(1, first_page(1, 2, clock, "new"));
    let older = first_page(3, 4, clock, "old");
    first.insert(4, further_page(4, older.result_set, clock, "old"));
    first.insert(3, older);
    first.insert(3, first_page(3, 4, clock, "new"));
    let others = first_page(5, 6, clock, "other");
    let set = others.result_set;
    first.insert(5, others);
    first.insert(6, further_page(6, set, clock, "old"));
    first.insert(7, first_page(7, 6, clock, "new"));
    let (second, _home) = after_a_kill(&first, home.path()).await;
    assert_eq!([1, 3, 5, 7].map(|n| second.body(n)), ["new", "new", "other", "new"].map(|body| Some(body.to_owned())));
    assert_eq!([2, 4, 6].map(|n| second.body(n)), [None, None, None]);
}

#[tokio::test]
async fn a_page_that_memory_dropped_for_one_it_does_not_keep_stays_gone() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    let clock = first.clock;
    let kept = first_page(1, 2, clock, "old");
    let set = kept.result_set;
    first.insert(1, kept);
    first.insert(2, further_page(2, set, clock, "old"));
    let newer = first_page(1, 2, clock, "not to be kept");
    let unstored = UnstoredResponse {
        account: newer.account,
        asked: clock.now(),
        made: newer.made,
        begins: newer.result_set,
        next: newer.next,
        is_shared: true,
    };
    first.store.supersede(key(1), &unstored);
    let (second, _home) = after_a_kill(&first, home.path()).await;
    assert_eq!([1, 2].map(|n| second.body(n)), [None, None]);
}

#[tokio::test]
async fn a_further_page_that_arrives_after_its_set_has_changed_is_not_kept() {
    let (store, clock) = (Store::new(MIB, &Metrics::new()), Clock::new());
    let first = first_page(1, 2, clock, "new");
    let set = first.result_set;
    assert!(insert(&store, 1, clock, first));
    // It was of no set when it was asked for, or of another set.
    assert!(!insert(&store, 2, clock, further_page(2, None, clock, "old")));
    assert!(!insert(&store, 2, clock, further_page(2, first_page(1, 2, clock, "").result_set, clock, "old")));
    assert!(insert(&store, 2, clock, further_page(2, set, clock, "new")));
}

#[tokio::test]
async fn pages_that_contradict_each_other_are_not_loaded_together_in_any_order() {
    let clock = Clock::new();
    for first_comes_first in [true, false] {
        let store = Store::new(MIB, &Metrics::new());
        let memory = store.memory();
        let pages = [(1, first_page(1, 2, clock, "new")), (2, further_page(2, None, clock, "old"))];
        let sized = StoredResponse { place: key(2), ..further_page(3, None, clock, "old") };
        let mut pages: Vec<_> = pages.into_iter().chain([(3, sized)]).collect();
        if !first_comes_first {
            pages.reverse();
        }
        for (n, page) in pages {
            memory.restore(key(n), page, clock);
        }
        assert_eq!([1, 2, 3].map(|n| store.page(&key(n)).is_some()), [true, false, false], "{first_comes_first}");
    }
}
