use tempfile::TempDir;

use super::*;
use crate::cache::SavedCheckpoint;
use crate::config::Servers;

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

/// Starts again on the same disk, after `meanwhile`. Returns which of three pages are there: a purged one, one that
/// nobody purged, and the newest.
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
        let before = one.pages.feed().generation();
        let _: () = one.run(&mut cmd("FLUSHALL")).await;
        until("another generation", || one.pages.feed().generation().is_some_and(|now| Some(now) != before)).await;
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
    let told = again.pages.feed().publish_purge(&Purge::Operation(Operation::Metadata), &mut HashSet::new);
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
    // The checkpoint is in the file, and so is what came before it.
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
    let mut first = FeedReader::new(false);
    let foreign = |reader: &mut FeedReader| std::mem::take(&mut reader.batch.foreign).len();
    assert!(purge(&one, Purge::Operation(Operation::Metadata)).await);
    // As another replica reads it.
    let other = Replica::start(&server).await;
    let (generation, _) = first.read(&other.shared).await.unwrap();
    let checkpoint = SavedCheckpoint::Found(first.new_checkpoint().unwrap());
    let of_another = SavedCheckpoint::Found(format!("{} 1 2 3 4 5 6", Generation::random()).into_bytes());
    assert!(purge(&one, Purge::Operation(Operation::Query)).await);
    let now = Millis::MAX;
    // It began before the checkpoint, or after all that was told; since then it may have lost changes.
    for (saved_checkpoint, start, has_lost, missed, is_lost) in [
        (&checkpoint, now, false, 1, false),
        (&checkpoint, 0, false, 2, false),
        (&checkpoint, now, true, 1, true),
        (&SavedCheckpoint::NoPages, now, false, 0, false),
        (&SavedCheckpoint::NoPages, 0, false, 2, false),
        (&SavedCheckpoint::Missing, now, false, 0, true),
        (&of_another, now, false, 0, true),
    ] {
        let mut reader = FeedReader::new(true);
        reader.read(&other.shared).await.unwrap();
        assert_eq!((foreign(&mut reader), reader.new_checkpoint()), (2, None), "for memory alone");
        reader.batch.is_lost = has_lost;
        reader.read(&other.shared).await.unwrap();
        reader.batch = ChangeBatch::default();
        reader.resume(saved_checkpoint, start);
        assert_eq!(reader.read(&other.shared).await.unwrap().0, generation);
        assert_eq!((foreign(&mut reader), reader.batch.is_lost), (missed, is_lost), "{saved_checkpoint:?} {start}");
        assert!(reader.new_checkpoint().is_some());
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
    let read = before.pages.feed().catch_up(&mut FeedReader::default()).await;
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
fn a_checkpoint_that_cannot_be_read_is_none() {
    let of = |checkpoint: &str| super::super::reader::read_checkpoint(checkpoint.as_bytes());
    let generation = Generation::random().to_string();
    assert!(of(&format!("{generation} 1 2 3 4 5 6")).is_some());
    for wrong in ["", "1 2 3 4 5 6", &generation] {
        assert_eq!(of(wrong), None, "{wrong}");
    }
    for numbers in ["1 2 3 4 5", "1 2 3 4 5 6 7", "1 2 3 4 5 -6", "1 2 3 4 5 99999999999999999999"] {
        assert_eq!(of(&format!("{generation} {numbers}")), None, "{numbers}");
    }
}
