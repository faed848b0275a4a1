use redis::cmd;

use super::*;
use crate::accounts::AccountId;
use crate::cache::Purge;
use crate::config::Shared;
use crate::core::clock::Clock;
use crate::replicas::pages::tests::Replica;
use crate::replicas::retry_queue;
use crate::replicas::test_server::{TestServer, until};
use crate::request::key::Key;
use crate::twilio::endpoint::Operation;

const S: Duration = Duration::from_secs(1);
const TEXT: &str = "01900000-0000-7000-8000-000000000001";

/// A replica and its notes. It must live as long as they are used.
async fn start(server: &TestServer) -> (Replica, StoredJobNotes) {
    start_with(server.settings()).await
}

async fn start_with(settings: Shared) -> (Replica, StoredJobNotes) {
    let replica = Replica::with(settings, "main", Clock::new());
    replica.shares().await;
    let notes = StoredJobNotes::new(replica.shared.clone(), replica.pages.feed().clone());
    (replica, notes)
}

fn subject(replica: &Replica, operation: Operation, n: u8) -> NoteSubject {
    NoteSubject { account: std::sync::Arc::clone(&replica.account), operation, key: Key::from_bytes([n; 32]) }
}

fn note(replica: &Replica, text: &str) -> Note {
    let now = replica.clock.moment();
    Note { made: now, at: now, text: text.as_bytes().to_vec() }
}

async fn text(notes: &StoredJobNotes, about: &NoteSubject) -> Option<String> {
    notes.find(about).await.map(|note| String::from_utf8(note.text).unwrap())
}

fn is_other(claimed: NoteClaim, text: &str) -> bool {
    matches!(claimed, NoteClaim::Other(note) if note.text == text.as_bytes())
}

#[tokio::test]
async fn what_one_replica_notes_the_others_find_until_it_is_forgotten_or_over() {
    let Some(server) = TestServer::start() else { return };
    let ((a, one), (_b, two)) = (start(&server).await, start(&server).await);
    let about = subject(&a, Operation::JobSubmit, 1);
    assert_eq!(two.find(&about).await, None);
    let at = a.clock.moment().after(90 * S);
    assert_eq!(one.claim(&about, Note { at, ..note(&a, TEXT) }, 100 * S).await, NoteClaim::Own);
    let found = two.find(&about).await.unwrap();
    // Both are on one machine, and a moment is told on the store's clock.
    assert!(found.text == TEXT.as_bytes() && found.at.since(at).max(at.since(found.at)) < S, "{found:?}");
    assert!(is_other(two.claim(&about, note(&a, "other"), 100 * S).await, TEXT));
    assert_eq!(two.find(&subject(&a, Operation::JobSubmit, 2)).await, None);
    // Only the note that is meant is kept and forgotten.
    assert!(!two.keep(&about, note(&a, "other"), 100 * S).await);
    two.forget(&about, b"other".to_vec(), 100 * S).await;
    assert_eq!(text(&one, &about).await.as_deref(), Some(TEXT));
    assert!(two.keep(&about, note(&a, TEXT), 100 * S).await);
    assert!(two.find(&about).await.unwrap().at < at, "with another moment");
    one.forget(&about, TEXT.into(), 100 * S).await;
    assert_eq!(two.find(&about).await, None);
    assert!(one.keep(&about, note(&a, TEXT), 100 * S).await && two.find(&about).await.is_some());
    assert!(two.replace(&about, note(&a, "third"), 100 * S).await);
    assert_eq!(text(&one, &about).await.as_deref(), Some("third"));
    one.replace(&about, note(&a, "short"), Duration::from_millis(50)).await;
    let over = async { while two.find(&about).await.is_some() {} };
    tokio::time::timeout(10 * S, over).await.expect("it ends");
    let long = "x".repeat(LONGEST_TEXT + 1);
    assert_eq!(one.claim(&about, note(&a, &long), S).await, NoteClaim::Unknown, "too long");
    assert_eq!(two.find(&about).await, None);
}

#[tokio::test]
async fn a_note_shows_nothing_and_cannot_be_forged_or_moved() {
    let Some(server) = TestServer::start() else { return };
    let (a, notes) = start(&server).await;
    let [one, two] = [1, 2].map(|n| subject(&a, Operation::JobSubmit, n));
    notes.claim(&one, note(&a, TEXT), 100 * S).await;
    let [from, to] = [&one, &two].map(|about| notes.name(about).unwrap());
    let value: Vec<u8> = a.shared.run("test", cmd("GET").arg(&from)).await.unwrap();
    for secret in [TEXT.as_bytes(), a.account.sid.as_bytes(), a.account.name.as_bytes(), one.key.as_bytes()] {
        let shows = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
        assert!(!shows(&value) && !shows(from.as_bytes()), "{secret:?}");
    }
    assert!((1..=100_000).contains(&a.shared.run::<i64>("test", cmd("PTTL").arg(&from)).await.unwrap()));
    assert!(a.shared.run::<bool>("test", cmd("COPY").arg(&from).arg(&to)).await.unwrap());
    assert_eq!(notes.find(&two).await, None, "moved");
    let other_mark = [&b"0123456789abcdef0123456789abcdef"[..], &value[MARK..]].concat();
    for forged in [other_mark, value[..value.len() - 1].to_vec(), b"*".to_vec(), vec![7; 1 << 20]] {
        a.shared.run::<()>("test", cmd("SET").arg(&from).arg(&forged)).await.unwrap();
        assert_eq!(notes.find(&one).await, None);
        let before = server.sent();
        assert_eq!(notes.claim(&one, note(&a, TEXT), 100 * S).await, NoteClaim::Own, "it takes the place");
        assert!(server.sent() - before < 1 << 18, "what is too long does not cross");
        assert_eq!(text(&notes, &one).await.as_deref(), Some(TEXT));
    }
    assert!(a.metrics.shared_unsealed.get() >= 8);
    a.shared.run::<()>("test", cmd("DEL").arg(&from)).await.unwrap();
    a.shared.run::<i64>("test", cmd("LPUSH").arg(&from).arg("x")).await.unwrap();
    assert_eq!(notes.find(&one).await, None, "of another type");
    notes.forget(&one, TEXT.into(), S).await;
    assert_eq!(notes.claim(&one, note(&a, TEXT), 100 * S).await, NoteClaim::Own);
}

#[tokio::test]
async fn a_note_under_another_seal_is_none() {
    let Some(server) = TestServer::start() else { return };
    let (a, one) = start(&server).await;
    let other = Shared { seal: vec![zeroize::Zeroizing::new([8; 32])], ..server.settings() };
    let (_b, two) = start_with(other).await;
    let about = subject(&a, Operation::JobStatus, 1);
    one.replace(&about, note(&a, "failed"), 100 * S).await;
    assert_eq!(two.find(&about).await, None);
    assert_eq!(two.claim(&about, note(&a, TEXT), 100 * S).await, NoteClaim::Own);
    assert_eq!((one.find(&about).await, text(&two, &about).await.as_deref()), (None, Some(TEXT)));
}

#[tokio::test]
async fn a_purge_ends_the_notes_of_what_it_names_on_all_replicas() {
    let Some(server) = TestServer::start() else { return };
    let ((a, one), (b, two)) = (start(&server).await, start(&server).await);
    let about = subject(&a, Operation::JobSubmit, 1);
    for (which, is_purged) in [
        (Purge::All, true),
        (Purge::Account(AccountId::example()), true),
        (Purge::Operation(Operation::JobSubmit), true),
        (Purge::Key(about.key.to_string()), true),
        (Purge::Key(about.key.short().to_string()), true),
        (Purge::Operation(Operation::JobStatus), false),
        (Purge::Data(AccountId::example()), false),
        (Purge::Key(Key::from_bytes([2; 32]).to_string()), false),
    ] {
        let noted = note(&a, TEXT);
        one.replace(&about, noted.clone(), 100 * S).await;
        assert!(two.find(&about).await.is_some());
        let (store, purge) = (b.store.clone(), which.clone());
        let purged = tokio::task::spawn_blocking(move || store.purge(&purge)).await.unwrap();
        assert_eq!(purged.shared, Some(true));
        assert_eq!(two.find(&about).await.is_none(), is_purged, "{which:?} here, at once");
        let read = a.clock.moment();
        until("it is read", || a.pages.feed().is_applied(read)).await;
        assert_eq!(one.find(&about).await.is_none(), is_purged, "{which:?}");
        if is_purged {
            // One that had not read of the purge yet.
            one.keep(&about, noted, 100 * S).await;
            assert_eq!((one.find(&about).await, two.find(&about).await), (None, None), "{which:?}");
            // What is noted from now on counts, as soon as it is later by the store's clock.
            let claim = async { while one.claim(&about, note(&a, "new"), 100 * S).await != NoteClaim::Own {} };
            tokio::time::timeout(10 * S, claim).await.expect("it takes the place");
        }
    }
}

#[tokio::test]
async fn what_could_not_be_told_is_told_once_the_store_is_back() {
    let Some(mut server) = TestServer::start() else { return };
    let ((a, one), (b, two)) = (start(&server).await, start(&server).await);
    let [kept, forgotten, purged] = [1, 2, 3].map(|n| subject(&a, Operation::JobSubmit, n));
    server.kill();
    until("it is lost", || !a.shared.is_up() && !b.shared.is_up()).await;
    assert_eq!(one.claim(&kept, note(&a, TEXT), 100 * S).await, NoteClaim::Unsent);
    assert!(!one.replace(&kept, note(&a, TEXT), 100 * S).await);
    assert_eq!(one.find(&kept).await, None);
    assert!(!one.keep(&kept, note(&a, TEXT), 100 * S).await);
    assert!(!one.keep(&purged, note(&a, TEXT), 100 * S).await);
    one.forget(&forgotten, TEXT.into(), 100 * S).await;
    let (store, which) = (a.store.clone(), Purge::Key(purged.key.to_string()));
    tokio::task::spawn_blocking(move || store.purge(&which)).await.unwrap();
    assert_eq!(one.retry_queue.permits.available_permits(), retry_queue::CAPACITY - 3);
    server.run();
    b.shares().await;
    assert_eq!(two.claim(&forgotten, note(&b, TEXT), 100 * S).await, NoteClaim::Own);
    until("all is told", || one.retry_queue.permits.available_permits() == retry_queue::CAPACITY).await;
    assert_eq!(text(&two, &kept).await.as_deref(), Some(TEXT));
    assert_eq!(two.find(&forgotten).await, None);
    // The other replica reads the purge several times a second.
    let purge_is_read = async {
        while two.find(&purged).await.is_some() {
            tokio::time::sleep(S / 100).await;
        }
    };
    tokio::time::timeout(10 * S, purge_is_read).await.unwrap();
}
