use redis::cmd;
use tempfile::TempDir;

use super::*;
use crate::cache::Noted;
use crate::cache::flight::{Flown, Kind};
use crate::cache::stored::StoredResponse;
use crate::config::Servers;
use crate::replicas::pages::tests::{Replica, S, key, set_of};
use crate::replicas::seal::Context;
use crate::replicas::test_server::{TestServer, until};
use crate::request::query::ClientQuery;
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
        assert!(purge(&one, which.clone()).await, "{which:?}");
        until("memory", || other.in_memory("a").is_none() && renamed.in_memory("a").is_none()).await;
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
    // Two times in the same millisecond have no order.
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(purge(&one, Purge::All).await);
    other.keep_of(other.response("a"), Kind::Any, asked);
    other.written().await;
    third.shares().await;
    until("the third has read the purge", || third.pages.changes().knows(&Target::Everything(None))).await;
    assert_eq!(third.body("a").await, None);
    // A page that was requested after it, as far as is known of the store's clock.
    let begun = other.clock.now();
    while third.body("b").await.is_none() {
        assert!(other.clock.now() < begun + 10 * S);
        other.keep("b");
        other.written().await;
    }
}

/// Where another server took over, the shared clock is ahead of the server's by as much as that one is behind.
#[tokio::test]
async fn a_purge_holds_where_the_clock_of_the_server_went_back() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let clock = one.shared.names().common(crate::replicas::clock::KEY);
    let before = one.shared.time().unwrap();
    let _: u64 = one.run(cmd("HSET").arg(&clock).arg("ahead").arg(30_000_000)).await;
    let is_ahead = |replica: &Replica| replica.shared.time().unwrap().0 > before.0 + 29_000_000;
    until("the clock is ahead", || is_ahead(&one) && is_ahead(&other)).await;
    // The server knows that, or only the replicas do.
    for is_known in [true, false] {
        have_applied(&one, &other).await;
        one.keep("a");
        one.written().await;
        assert!(other.body("a").await.is_some());
        if !is_known {
            let _: u64 = one.run(cmd("DEL").arg(&clock)).await;
        }
        assert!(purge(&other, Purge::Key(key("a").to_string())).await);
        let third = Replica::start(&server).await;
        assert_eq!(third.body("a").await, None, "{is_known}");
        assert!(is_ahead(&third));
        assert_shared(&one, &other, "a clock that went back").await;
    }
}

#[tokio::test]
async fn a_purge_that_is_read_late_leaves_the_flights_alone_that_called_after_it() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let late = Replica::with(server.settings_with_door("door"), "main", Clock::new());
    late.shares().await;
    server.close_door("door", &late.shared).await;
    assert!(purge(&one, Purge::All).await);
    let flight = |name: &'static str| {
        let query = ClientQuery::example(Operation::Query, name, "");
        late.store.flights.claim_refresh((key(name), Kind::Any), Flown::of(&query, None)).unwrap().0
    };
    let [before, after, follows] = ["before", "after", "follows"].map(flight);
    // A minute, so that nothing depends on how well the store's clock is known.
    before.calls(late.clock.moment().before(60 * S));
    after.calls(late.clock.moment().after(60 * S));
    server.open_door("door");
    late.shares().await;
    assert!(before.is_outdated());
    assert!(!after.is_outdated());
    assert!(follows.is_outdated(), "it may wait for a flight from before the purge");
    assert!(late.store.flights.is_under_way(&key("after")), "others still join it");
    // One of its own is one of now.
    purge(&late, Purge::All).await;
    assert!(after.is_outdated());
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
async fn a_page_that_was_replaced_meanwhile_does_not_come_back_from_the_disk() {
    let Some(server) = TestServer::start() else { return };
    let (one, home) = (Replica::start(&server).await, TempDir::new().unwrap());
    let before = Replica::on_disk(home.path(), server.settings());
    before.shares().await;
    before.keep("a");
    before.written().await;
    before.store.close().await;
    let newer = StoredResponse { representation: one.response("newer").representation, ..one.response("a") };
    one.keep_as(newer, Kind::Forced);
    one.written().await;

    let again = Replica::on_disk(home.path(), server.settings());
    again.shares().await;
    until("loaded", || again.store.is_loaded()).await;
    have_applied(&again, &one).await;
    assert_eq!(again.body("a").await, one.in_memory("a"));
}

/// Starts again on the same disk, after `meanwhile`. Returns which of three pages are there: a purged one, one that nobody
/// purged, and the newest.
async fn after_a_restart(server: &TestServer, meanwhile: impl AsyncFnOnce(&Replica)) -> [bool; 3] {
    let (one, home) = (Replica::start(server).await, TempDir::new().unwrap());
    let before = Replica::on_disk(home.path(), server.settings());
    before.shares().await;
    for name in ["purged", "other"] {
        before.keep(name);
    }
    // It is read, and not to be applied again.
    assert!(purge(&one, Purge::Key(key("purged").to_string())).await);
    until("purged", || before.in_memory("purged").is_none()).await;
    assert!(purge(&one, Purge::Operation(Operation::Metadata)).await);
    have_applied(&before, &one).await;
    for name in ["purged", "newest"] {
        before.keep(name);
    }
    before.store.close().await;
    meanwhile(&one).await;
    let again = Replica::on_disk(home.path(), server.settings());
    again.shares().await;
    until("loaded", || again.store.is_loaded()).await;
    ["purged", "other", "newest"].map(|name| again.in_memory(name).is_some())
}

#[tokio::test]
async fn a_restart_applies_only_what_was_told_meanwhile() {
    let Some(server) = TestServer::start() else { return };
    assert_eq!(after_a_restart(&server, async |_| {}).await, [true; 3], "purged before they were fetched again");
    let told = after_a_restart(&server, async |one| {
        assert!(purge(one, Purge::Key(key("purged").to_string())).await);
    });
    assert_eq!(told.await, [false, true, true]);
    // Also if it is gone for a reason of its own.
    let missed = after_a_restart(&server, async |one| {
        for _ in 0..=MOST_MISSED {
            assert!(purge(one, Purge::Operation(Operation::Metadata)).await);
        }
    });
    assert_eq!(missed.await, [false; 3]);
}

#[tokio::test]
async fn a_purge_that_a_flush_has_lost_is_not_lost_for_a_replica_that_was_down() {
    let Some(server) = TestServer::start() else { return };
    let flushed = after_a_restart(&server, async |one| {
        assert!(purge(one, Purge::Key(key("purged").to_string())).await);
        let before = one.pages.changes().generation();
        let _: () = one.run(&mut cmd("FLUSHALL")).await;
        until("another generation", || one.pages.changes().generation().is_some_and(|now| Some(now) != before)).await;
    });
    assert_eq!(flushed.await, [false; 3]);
}

/// A disk with three pages that an earlier process left.
async fn left_on_disk(server: &TestServer, one: &Replica) -> TempDir {
    let home = TempDir::new().unwrap();
    let before = Replica::on_disk(home.path(), server.settings());
    before.shares().await;
    for name in ["purged", "replaced", "other"] {
        before.keep(name);
    }
    have_applied(&before, one).await;
    before.store.close().await;
    home
}

#[tokio::test]
async fn changes_are_followed_and_told_before_the_disk_is_open_and_then_applied_to_it() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let home = left_on_disk(&server, &one).await;
    let held = redb::Database::open(home.path().join("pages.redb")).unwrap();
    let again = Replica::on_disk(home.path(), server.settings());
    again.shares().await;
    for name in ["early", "kept"] {
        again.keep(name);
    }
    for name in ["early", "purged"] {
        assert!(purge(&one, Purge::Key(key(name).to_string())).await);
    }
    one.keep_as(one.response("replaced"), Kind::Forced);
    one.written().await;
    until("memory follows", || again.in_memory("early").is_none()).await;
    let told = again.pages.changes().purge(&Purge::Operation(Operation::Metadata), &mut HashSet::new);
    assert!(tokio::task::spawn_blocking(told).await.unwrap(), "the others are told");
    have_applied(&again, &one).await;
    drop(held);
    // The file is tried again after ten seconds.
    let begun = again.clock.now();
    while again.in_memory("other").is_none() {
        assert!(again.clock.now() < begun + 30 * S, "{:?}", again.store.disk());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    have_applied(&again, &one).await;
    let gone = |replica: &Replica| ["early", "purged", "replaced"].map(|name| replica.in_memory(name).is_none());
    assert_eq!((gone(&again), again.in_memory("kept").is_some()), ([true; 3], true));
    // The note is in the file, and so is what came before it.
    again.store.close().await;
    let last = Replica::on_disk(home.path(), server.settings());
    last.shares().await;
    until("loaded", || last.store.is_loaded()).await;
    assert_eq!((gone(&last), last.in_memory("other").is_some()), ([true; 3], true));
}

#[tokio::test]
async fn what_the_disk_has_missed_is_read_again_and_once() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let mut first = Reader::new(false);
    let foreign = |reader: &mut Reader| std::mem::take(&mut reader.news.foreign).len();
    assert!(purge(&one, Purge::Operation(Operation::Metadata)).await);
    // As another replica reads it.
    let other = Replica::start(&server).await;
    let (generation, _) = first.read(&other.shared).await.unwrap();
    let note = Noted::Note(first.new_note().unwrap());
    let of_another = Noted::Note(format!("{} 1 2 3 4 5 6", Generation::random()).into_bytes());
    assert!(purge(&one, Purge::Operation(Operation::Query)).await);
    let now = Millis::MAX;
    // It began before the note, or after all that was told; since then it may have lost changes.
    for (noted, start, has_lost, missed, is_lost) in [
        (&note, now, false, 1, false),
        (&note, 0, false, 2, false),
        (&note, now, true, 1, true),
        (&Noted::NoPages, now, false, 0, false),
        (&Noted::NoPages, 0, false, 2, false),
        (&Noted::Unknown, now, false, 0, true),
        (&of_another, now, false, 0, true),
    ] {
        let mut reader = Reader::new(true);
        reader.read(&other.shared).await.unwrap();
        assert_eq!((foreign(&mut reader), reader.new_note()), (2, None), "for memory alone");
        reader.news.is_lost = has_lost;
        reader.read(&other.shared).await.unwrap();
        reader.news = News::default();
        reader.resume(noted, start);
        assert_eq!(reader.read(&other.shared).await.unwrap().0, generation);
        assert_eq!((foreign(&mut reader), reader.news.is_lost), (missed, is_lost), "{noted:?} {start}");
        assert!(reader.new_note().is_some());
        reader.read(&other.shared).await.unwrap();
        assert_eq!(foreign(&mut reader), 0);
    }
}

#[tokio::test]
async fn a_process_that_has_closed_its_disk_applies_nothing_more() {
    let Some(server) = TestServer::start() else { return };
    let (one, home) = (Replica::start(&server).await, TempDir::new().unwrap());
    let before = Replica::on_disk(home.path(), server.settings());
    before.shares().await;
    for name in ["purged", "other"] {
        before.keep(name);
    }
    have_applied(&before, &one).await;
    before.store.close().await;
    assert!(purge(&one, Purge::Key(key("purged").to_string())).await);
    let read = before.pages.changes().catch_up(&mut Reader::default()).await;
    assert!(read.is_err() && before.in_memory("purged").is_some());
    let again = Replica::on_disk(home.path(), server.settings());
    until("loaded", || again.in_memory("other").is_some()).await;
    assert!(again.in_memory("purged").is_none());
}

#[tokio::test]
async fn pages_of_which_nobody_knows_what_they_missed_are_dropped() {
    let Some(server) = TestServer::start() else { return };
    let home = TempDir::new().unwrap();
    let mut settings = server.settings();
    settings.url.servers = Servers::Unix(home.path().join("none"));
    let alone = Replica::on_disk(home.path(), settings);
    alone.keep("a");
    alone.store.close().await;
    let again = Replica::on_disk(home.path(), server.settings());
    again.shares().await;
    until("loaded", || again.store.is_loaded()).await;
    assert_eq!(again.body("a").await, None);
}

#[test]
fn a_note_that_cannot_be_read_is_none() {
    let of = |note: &str| feed::read_note(note.as_bytes());
    let generation = Generation::random().to_string();
    assert!(of(&format!("{generation} 1 2 3 4 5 6")).is_some());
    for wrong in ["", "1 2 3 4 5 6", &generation] {
        assert_eq!(of(wrong), None, "{wrong}");
    }
    for numbers in ["1 2 3 4 5", "1 2 3 4 5 6 7", "1 2 3 4 5 -6", "1 2 3 4 5 99999999999999999999"] {
        assert_eq!(of(&format!("{generation} {numbers}")), None, "{numbers}");
    }
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

/// Does something to the keys of the feed: the head, purges, replaced pages, the clock.
type Damage = &'static str;

/// Runs this script on the keys of the feed.
async fn damage(replica: &Replica, what: Damage) {
    let names = ["{changes}", "{changes}:purged", "{changes}:replaced", "{changes}:clock"];
    let names = names.map(|kind| replica.shared.names().common(kind));
    let _: redis::Value = replica.run(cmd("EVAL").arg(what).arg(names.len()).arg(&names)).await;
}

/// Returns once both replicas share in one generation.
async fn share_again(one: &Replica, other: &Replica) -> Generation {
    let mut shared = None;
    until("both share", || {
        let now = [one, other].map(|replica| replica.pages.changes().generation());
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
        until("all is applied", || replica.pages.changes().is_applied(now)).await;
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

#[tokio::test]
async fn damaged_keys_are_deleted_and_what_was_purged_does_not_come_back() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    for what in [
        "redis.call('HSET', KEYS[4], 'ahead', '90000000000')",
        "redis.call('SET', KEYS[1], 'text')",
        "redis.call('SET', KEYS[2], 'text')",
        "redis.call('DEL', KEYS[3]) redis.call('SADD', KEYS[3], 'text')",
        "redis.call('HDEL', KEYS[1], 'generation')",
        "redis.call('HSET', KEYS[1], 'generation', 'text')",
        "redis.call('HSET', KEYS[1], 'generation', string.rep(string.char(255), 32))",
        "redis.call('HSET', KEYS[1], 'generation', string.rep('A', 32))",
        "redis.call('HSET', KEYS[1], KEYS[2], 'text')",
        "redis.call('HSET', KEYS[1], KEYS[2], '')",
        "redis.call('HSET', KEYS[1], KEYS[3], '-1')",
        "redis.call('HSET', KEYS[1], 'trimmed', 'text')",
        "redis.call('HINCRBY', KEYS[1], KEYS[2], 1000)",
        "redis.call('DEL', KEYS[2])",
        "redis.call('XADD', KEYS[2], '99999999999999-0', 'number', '1', 'entry', 'text')",
    ] {
        let before = share_again(&one, &other).await;
        one.keep("a");
        one.written().await;
        other.keep("b");
        assert!(purge(&one, Purge::Key(key("a").to_string())).await, "{what}");
        damage(&one, what).await;
        until(what, || {
            let now = [&one, &other].map(|replica| replica.pages.changes().generation());
            now.iter().all(|now| now.is_some_and(|now| now != before))
        })
        .await;
        assert_eq!(other.in_memory("b"), None, "{what}: it may have been purged");
        // Not even by a replica that has just started.
        let third = Replica::start(&server).await;
        for replica in [&one, &other, &third] {
            assert_eq!(replica.body("a").await, None, "{what}");
        }
        assert_shared(&one, &other, what).await;
    }
}

#[tokio::test]
async fn damaged_entries_are_skipped_one_by_one() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let generation = share_again(&one, &other).await;
    let unsealed = || other.metrics.shared_unsealed.get();
    for what in [
        "redis.call('XADD', KEYS[3], '*', 'text', 'text')",
        "redis.call('XADD', KEYS[3], '*', 'number', '1', 'entry', 'text')",
        "redis.call('XADD', KEYS[2], '*', 'text', 'text')",
        "redis.call('XADD', KEYS[2], '*', 'number', '-1', 'entry', '')",
        "redis.call('XADD', KEYS[2], '*', 'number', '99999999', 'entry', 'text')",
        "redis.call('XADD', KEYS[2], '*', 'a', 'b', 'c', 'd', 'e', 'f')",
    ] {
        other.keep("b");
        let before = unsealed();
        damage(&one, what).await;
        until(what, || unsealed() > before).await;
        have_applied(&one, &other).await;
        let is_purged = other.in_memory("b").is_none();
        assert_eq!(is_purged, what.contains("KEYS[2]"), "{what}: a purge that cannot be read is one of everything");
        assert_shared(&one, &other, what).await;
    }
    // One that a later version has sealed.
    for (kind, entry) in [("{changes}:replaced", &b"text"[..]), ("{changes}:purged", &[250])] {
        let before = unsealed();
        let name = one.shared.names().common(kind);
        let context = Context { kind: "change", account: "", key: &name, bound: &generation.0 };
        let sealed = one.shared.sealer().seal(&context, &[&[b'0'; 32], entry].concat()).unwrap();
        let _: String = one.run(cmd("XADD").arg(&name).arg("*").arg("number").arg(0).arg("entry").arg(sealed)).await;
        until("it is read", || unsealed() > before).await;
        assert_shared(&one, &other, "of a later version").await;
    }
    assert_eq!(share_again(&one, &other).await, generation);
}

#[tokio::test]
async fn an_entry_that_is_too_long_does_not_cross() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    share_again(&one, &other).await;
    let (before, unsealed) = (server.sent(), || other.metrics.shared_unsealed.get());
    for what in [
        "redis.call('XADD', KEYS[3], '*', 'number', '1', 'entry', string.rep('x', 4194304))",
        "redis.call('XADD', KEYS[2], '*', string.rep('x', 4194304), '')",
    ] {
        let known = unsealed();
        damage(&one, what).await;
        until(what, || unsealed() > known).await;
        assert_shared(&one, &other, what).await;
    }
    assert!(server.sent() - before < 4 << 20);
}

#[tokio::test]
async fn a_feed_that_cannot_be_read_is_a_fault_that_ends_by_itself() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let view = || one.shared.view();
    let _: () = one.run(cmd("ACL").arg("SETUSER").arg("default").arg("-xrange")).await;
    until("the fault is known", || view().cause.is_some()).await;
    assert!(view().is_reached && view().cause.unwrap().contains("changes_read"), "{:?}", view());
    assert!(one.shared.is_up() && one.pages.changes().generation().is_none());
    let _: () = one.run(cmd("ACL").arg("SETUSER").arg("default").arg("+xrange")).await;
    until("it is over", || view().cause.is_none()).await;
    one.shares().await;
}

#[test]
fn generations_are_written_as_digits() {
    let generation = Generation::random();
    assert_eq!(Generation::read(&generation.to_string()), Some(generation));
    for wrong in ["", "0", "+0000000000000000000000000000000", &"g".repeat(32)] {
        assert_eq!(Generation::read(wrong), None, "{wrong}");
    }
}
