use std::collections::BTreeMap;

use super::*;
use crate::cache::Purge;
use crate::replicas::StoreUse;

#[tokio::test]
async fn names_and_values_tell_nothing_and_all_keys_expire() {
    let Some(server) = TestServer::start() else { return };
    let replica = Replica::start(&server).await;
    replica.keep("a");
    let [first, second] = set_of(&replica, "first", "second");
    replica.keep_as(first, Kind::Forced);
    replica.keep_as(second, Kind::Any);
    replica.written().await;
    let purge = replica.store.clone();
    tokio::task::spawn_blocking(move || purge.purge(&Purge::Operation(Operation::Metadata))).await.unwrap();
    let keys: Vec<String> = replica.run(cmd("KEYS").arg("*")).await;
    let kinds = keys.iter().map(|key| key.split(':').nth(2).unwrap());
    let kinds = kinds.fold(BTreeMap::new(), |mut kinds, kind| {
        *kinds.entry(kind).or_insert(0) += 1;
        kinds
    });
    assert_eq!(kinds, BTreeMap::from([("page", 3), ("{changes}", 5)]), "{keys:?}");
    for name in &keys {
        let left: i64 = replica.run(cmd("PTTL").arg(name)).await;
        assert!(left > 0, "{name}: {left}");
        let dump: Vec<u8> = replica.run(cmd("DUMP").arg(name)).await;
        for secret in ["AC1", "upstream", "{\"page\"", "application/json"] {
            assert!(!name.contains(secret), "{name}");
            assert!(!dump.windows(secret.len()).any(|part| part == secret.as_bytes()), "{name}");
        }
        if name.contains(":page:") {
            assert!(left <= 60_000, "not beyond its windows: {left}");
        }
    }
}

#[tokio::test]
async fn of_two_pages_the_one_requested_later_stays() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let asked = one.clock.now() - 10 * S;
    other.keep("a");
    other.written().await;
    let slow = StoredResponse { representation: one.response("slow").representation, ..one.response("a") };
    one.keep_of(slow, Kind::Any, asked);
    one.written().await;
    assert_eq!(one.body("a").await, Some(example_body("a")), "also where the other one was made");
    let third = Replica::start(&server).await;
    assert_eq!(third.body("a").await, Some(example_body("a")));
}

/// As in a cluster, where a page is not on the server that has the shared clock.
#[tokio::test]
async fn a_page_is_kept_by_a_server_with_another_clock() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let puts = || one.operations("page_put", "ok");
    for set in [u64::saturating_sub, u64::saturating_add] {
        let begun = one.clock.now();
        loop {
            let (before, now) = (puts(), one.clock.moment());
            let (time, server) = (one.shared.time().unwrap(), one.shared.server_time().unwrap());
            one.shared.learn_time((time.0, set(server, 3_600_000_000)), now);
            one.keep("a");
            one.written().await;
            // The store may have told its clock again in between.
            if puts() == before + 2 {
                break;
            }
            assert!(one.clock.now() < begun + 10 * S, "{} puts", puts() - before);
        }
        let other = Replica::start(&server).await;
        assert!(other.body("a").await.is_some());
        let _: u64 = one.run(cmd("DEL").arg(one.page_keys().await)).await;
    }
}

#[tokio::test]
async fn a_page_that_was_replaced_while_the_store_was_away_does_not_come_back() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::with(server.settings_with_door("door"), "main", Clock::new());
    one.shares().await;
    let other = Replica::start(&server).await;
    for name in ["a", "b"] {
        one.keep(name);
    }
    one.written().await;
    server.close_door("door", &one.shared).await;
    assert!(one.load("c", &Arc::default()).is_none(), "nobody waits for it");
    let newer = |name| StoredResponse { representation: one.response("newer").representation, ..one.response(name) };
    one.keep_as(newer("a"), Kind::Forced);
    one.keep_as(newer("b"), Kind::Any);
    assert!(other.body("a").await.is_some(), "it cannot know");
    server.open_door("door");
    one.shares().await;
    until("what was forced is told", || other.in_memory("a").is_none()).await;
    until("all is removed", || one.pages.0.writer.is_idle()).await;
    for name in ["a", "b"] {
        assert_eq!(other.body(name).await, None, "{name}");
        assert_eq!(one.in_memory(name), Some(example_body("newer")));
    }
}

#[tokio::test]
async fn a_purge_that_waits_is_told_before_the_process_ends() {
    let Some(server) = TestServer::start() else { return };
    let (one, two) = (Replica::start(&server).await, Replica::start(&server).await);
    one.keep("a");
    one.written().await;
    assert!(two.body("a").await.is_some());
    one.pages.0.feed.outdate_store();
    one.pages.close().await;
    let late = Replica::start(&server).await;
    assert_eq!(late.body("a").await, None, "it has read the purge");
}

#[tokio::test]
async fn pages_that_the_store_refuses_are_not_sent_again_and_again() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let _: () = one.run(cmd("ACL").arg(&["SETUSER", "default", "resetkeys", "~*{changes}*"])).await;
    let refused = || ["page_put", "page_remove"].map(|operation| one.operations(operation, "error"));
    for name in ["a", "b", "c", "d"] {
        one.keep(name);
        one.written().await;
    }
    until("pages are not used", || one.shared.view().usage == StoreUse::Part).await;
    assert!(one.shared.view().cause.unwrap().ends_with("shared.prefix: NOPERM"));
    // Puts are tried, and then also removals.
    let tried = || one.operations("trial", "error");
    let before = tried();
    until("it is tried", || tried() >= before + 8).await;
    let [puts, removals] = refused();
    assert!(puts <= 4 && removals <= 16, "{:?}", refused());
    let before = tried();
    until("it is tried again", || tried() >= before + 4).await;
    assert_eq!(refused(), [puts, removals]);
    let _: () = one.run(cmd("ACL").arg(&["SETUSER", "default", "allkeys"])).await;
    until("pages are used", || one.shared.view().usage == StoreUse::All && one.pages.0.writer.is_idle()).await;
    one.keep("e");
    one.written().await;
    assert_eq!(other.body("e").await, Some(example_body("e")));
}

#[tokio::test]
async fn a_replaced_page_leaves_the_store_although_its_account_has_another_name_now() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    one.keep("a");
    one.written().await;
    let renamed = Account { name: "renamed".into(), ..Account::clone(&one.account) };
    let namesake = Account { sid: "AC2".to_owned(), ..Account::clone(&one.account) };
    one.pages.0.accounts.set(&[Arc::new(renamed), Arc::new(namesake)]);
    let (account, asked, made) = (one.account.id(), one.clock.now(), one.clock.moment());
    let unkept = UnstoredResponse { account, asked, made, begins: None, next: None, is_shared: true };
    one.store.supersede(key("a"), &unkept);
    until("the page is removed", || one.operations("page_remove", "ok") == 1).await;
    let other = Replica::start(&server).await;
    assert_eq!(other.body("a").await, None);
}
