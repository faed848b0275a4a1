use redis::cmd;

use super::*;
use crate::cache::flight::Kind;
use crate::cache::stored::StoredResponse;
use crate::replicas::pages::tests::{Replica, S, key};
use crate::replicas::test_server::{TestServer, until};
use crate::twilio::endpoint::Operation;

mod applied_tests;
mod damage_tests;
mod disk_tests;
mod outage_tests;

/// Purges as an operator does. Returns whether the others were told.
async fn purge(replica: &Replica, which: Purge) -> bool {
    let store = replica.store.clone();
    tokio::task::spawn_blocking(move || store.purge(&which)).await.unwrap().shared.unwrap()
}

/// Does something to the keys of the feed: the head, purges, replaced pages, the clock.
type Damage = &'static str;

/// Returns once both replicas share in one generation.
async fn share_again(one: &Replica, other: &Replica) -> Generation {
    let mut shared = None;
    until("both share", || {
        let now = [one, other].map(|replica| replica.pages.feed().generation());
        shared = now[0].filter(|_| now[0] == now[1]);
        shared.is_some()
    })
    .await;
    shared.unwrap()
}

/// Returns once both have applied all that was told until now.
async fn have_applied(one: &Replica, other: &Replica) {
    for replica in [one, other] {
        let now = replica.clock.moment();
        until("all is applied", || replica.pages.feed().is_applied(now)).await;
    }
}

/// Whether what one replica keeps is found by the other, and purged by it.
async fn assert_shared(one: &Replica, other: &Replica, what: Damage) {
    have_applied(one, other).await;
    let begun = one.clock.now();
    while other.body("shared").await.is_none() {
        assert!(one.clock.now() < begun + 10 * S, "{what}: the page is not shared");
        one.keep("shared");
        one.written().await;
    }
    while !purge(other, Purge::Key(key("shared").to_string())).await {
        assert!(one.clock.now() < begun + 20 * S, "{what}: purges are not told");
    }
    until("purged", || one.in_memory("shared").is_none()).await;
}
