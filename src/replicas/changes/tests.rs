use redis::cmd;

use super::*;
use crate::cache::flight::Kind;
use crate::cache::stored::StoredResponse;
use crate::replicas::pages::tests::{Replica, S, key, set_of};
use crate::replicas::test_server::{TestServer, until};
use crate::twilio::endpoint::Operation;

/// Purges as an operator does. Returns whether the others were told.
async fn purge(replica: &Replica, which: Purge) -> bool {
    let store = replica.store.clone();
    tokio::task::spawn_blocking(move || store.purge(&which)).await.unwrap().shared.unwrap()
}

#[tokio::test]
async fn a_purge_of_every_kind_holds_everywhere() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let renamed = Replica::with(server.settings(), "renamed", Clock::new());
    renamed.shares().await;
    let kinds = [
        Purge::All,
        Purge::Account("main".to_owned()),
        Purge::Data("main".to_owned()),
        Purge::Operation(Operation::Query),
        Purge::Key(key("a").to_string()),
        Purge::Key(key("a").short().to_string()),
    ];
    for which in kinds {
        other.keep("a");
        other.written().await;
        assert!(renamed.body("a").await.is_some(), "{which:?}");
        let begun = one.clock.now();
        assert!(purge(&one, which.clone()).await, "{which:?}");
        until("memory", || other.in_memory("a").is_none() && renamed.in_memory("a").is_none()).await;
        let took = one.clock.now() - begun;
        assert!(took < 2 * S, "{which:?} {took:?}");
        for replica in [&one, &other, &renamed] {
            assert_eq!(replica.body("a").await, None, "{which:?}: not from the store either");
        }
    }
    // What does not match stays.
    other.keep("a");
    other.written().await;
    purge(&one, Purge::Operation(Operation::Metadata)).await;
    purge(&one, Purge::Key(key("b").to_string())).await;
    assert!(renamed.body("a").await.is_some() && other.in_memory("a").is_some());
}

#[tokio::test]
async fn what_a_flight_brings_that_was_under_way_at_a_purge_is_not_served_by_others() {
    let Some(server) = TestServer::start() else { return };
    let (one, other, third) =
        (Replica::start(&server).await, Replica::start(&server).await, Replica::start(&server).await);
    let asked = other.clock.now();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(purge(&one, Purge::All).await);
    other.keep_of(other.response("a"), Kind::Any, asked);
    other.written().await;
    third.shares().await;
    until("the third has read the purge", || third.pages.changes().knows(&Target::Everything(None))).await;
    assert_eq!(third.body("a").await, None);
    // A page that was requested after it.
    tokio::time::sleep(Duration::from_millis(20)).await;
    other.keep("b");
    other.written().await;
    assert!(third.body("b").await.is_some());
}

#[tokio::test]
async fn the_purge_of_a_further_page_drops_its_whole_set() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let [first, second] = set_of(&other, "first", "second");
    other.keep_as(first, Kind::Any);
    other.keep_as(second, Kind::Any);
    other.written().await;
    // The first replica knows neither page.
    assert!(purge(&one, Purge::Key(key("second").short().to_string())).await);
    until("dropped", || other.in_memory("first").is_none()).await;
    until("told", || one.pages.changes().knows(&Target::Page(*key("first").as_bytes()))).await;
    let third = Replica::start(&server).await;
    assert_eq!(third.body("first").await, None);
    assert_eq!(third.body("second").await, None);
}

#[tokio::test]
async fn a_purge_while_the_store_is_away_is_told_later_and_before_all_else() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::with(server.settings_with_door("door"), "main", Clock::new());
    one.shares().await;
    let other = Replica::start(&server).await;
    other.keep("a");
    other.written().await;
    server.close_door("door", &one.shared).await;
    assert!(!purge(&one, Purge::Key(key("a").to_string())).await);
    assert!(other.in_memory("a").is_some());
    server.open_door("door");
    one.shares().await;
    assert!(!one.pages.changes().waits(), "told before anything is shared");
    assert_eq!(one.body("a").await, None);
    until("dropped", || other.in_memory("a").is_none()).await;
    assert_eq!(other.body("a").await, None);
}

#[tokio::test]
async fn a_replica_that_was_cut_off_applies_what_it_missed_before_it_shares() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let away = Replica::with(server.settings_with_door("door"), "main", Clock::new());
    away.shares().await;
    for name in ["a", "b"] {
        away.keep(name);
    }
    away.written().await;
    server.close_door("door", &away.shared).await;
    assert!(purge(&one, Purge::Key(key("a").to_string())).await);
    assert!(away.in_memory("a").is_some());
    server.open_door("door");
    away.shares().await;
    assert!(away.in_memory("a").is_none() && away.in_memory("b").is_some());
    assert_eq!(away.body("a").await, None);
}

#[tokio::test]
async fn who_cannot_read_all_that_was_missed_drops_everything() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let away = Replica::with(server.settings_with_door("door"), "main", Clock::new());
    away.shares().await;
    one.keep_as(one.response("x"), Kind::Forced);
    one.written().await;
    away.keep("a");
    assert!(purge(&one, Purge::Key(key("marker").to_string())).await);
    until("all is read", || away.pages.changes().knows(&Target::Page(*key("marker").as_bytes()))).await;
    server.close_door("door", &away.shared).await;
    for _ in 0..2 {
        one.keep_as(one.response("x"), Kind::Forced);
    }
    one.written().await;
    let replaced: Vec<String> = one.run(cmd("KEYS").arg("*:replaced")).await;
    let _: u64 = one.run(cmd("XTRIM").arg(&replaced[0]).arg("MAXLEN").arg(1)).await;
    server.open_door("door");
    away.shares().await;
    assert_eq!(away.in_memory("a"), None);
}

#[tokio::test]
async fn a_flush_and_an_older_state_bring_nothing_back() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    one.keep("a");
    one.written().await;
    let mut kept = Vec::new();
    let names: Vec<String> = one.run(cmd("KEYS").arg("*")).await;
    for name in names {
        let dump: Vec<u8> = one.run(cmd("DUMP").arg(&name)).await;
        kept.push((name, dump));
    }
    assert!(purge(&one, Purge::All).await);
    until("the purge is read", || other.pages.changes().knows(&Target::Everything(None))).await;
    assert_eq!(other.body("a").await, None);
    let before = other.pages.changes().generation();
    // The state from before the purge, in place of the present one.
    let mut script = cmd("EVAL");
    script.arg("redis.call('FLUSHALL') for i = 1, #ARGV, 2 do redis.call('RESTORE', ARGV[i], 60000, ARGV[i + 1]) end");
    script.arg(0);
    for (name, dump) in &kept {
        script.arg(name).arg(dump);
    }
    let _: redis::Value = one.run(&mut script).await;
    until("another generation", || {
        let now = [&one, &other].map(|replica| replica.pages.changes().generation());
        now[0].is_some() && now[0] == now[1] && now[0] != before
    })
    .await;
    for replica in [&one, &other] {
        assert_eq!(replica.body("a").await, None);
    }
    // Pages are shared again.
    one.keep("b");
    one.written().await;
    assert!(other.body("b").await.is_some());
    let _: () = one.run(&mut cmd("FLUSHALL")).await;
    until("memory is dropped", || other.in_memory("b").is_none()).await;
}

#[tokio::test]
async fn what_a_forced_refresh_brought_replaces_the_page_everywhere() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    one.keep("a");
    one.written().await;
    let old = other.body("a").await.unwrap();
    let newer = StoredResponse { representation: one.response("newer").representation, ..one.response("a") };
    one.keep_as(newer, Kind::Forced);
    one.written().await;
    until("the old one is dropped", || other.in_memory("a").is_none()).await;
    let new = other.body("a").await.unwrap();
    assert!(new != old && new == one.in_memory("a").unwrap());
}

#[tokio::test]
async fn purges_that_wait_are_bounded() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::with(server.settings_with_door("door"), "main", Clock::new());
    one.shares().await;
    server.close_door("door", &one.shared).await;
    for n in 0..=MOST_PENDING {
        let _told = one.pages.changes().purge(&Purge::Key(format!("{n:016x}")), &mut HashSet::new);
    }
    let pending: Vec<_> = one.pages.changes().state().pending.keys().copied().collect();
    assert!(pending.len() <= 2 && pending.contains(&Target::Everything(None)), "{pending:?}");
}

#[test]
fn generations_are_written_as_digits() {
    let generation = Generation::random();
    assert_eq!(Generation::read(&generation.to_string()), Some(generation));
    for wrong in ["", "0", "+0000000000000000000000000000000", &"g".repeat(32)] {
        assert_eq!(Generation::read(wrong), None, "{wrong}");
    }
}
