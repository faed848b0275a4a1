//! Files that are foreign, damaged, locked or cannot be written.

use super::*;

#[tokio::test]
async fn a_page_that_cannot_be_written_takes_the_older_one_with_it() {
    // Larger than the disk may be.
    let home = TempDir::new().unwrap();
    let first = Running::with(home.path(), 64 * MIB, MIB).await;
    first.keep(1);
    first.insert(1, stored(1, first.clock, vec![b'x'; 2 << 20]));
    let (second, _home) = after_a_kill(&first, home.path()).await;
    assert_eq!(second.body(1), None);
    // The queue for the disk is full.
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    first.keep(1);
    let shared = &first.store.disk_handle().unwrap().shared;
    let waiting = shared.waiting.swap(WAITING, Ordering::Relaxed);
    first.insert(1, stored(1, first.clock, "newer"));
    shared.waiting.store(waiting, Ordering::Relaxed);
    let (second, _home) = after_a_kill(&first, home.path()).await;
    assert_eq!((first.writes("dropped"), second.body(1)), (1, None));
    // The queue for removals is full as well.
    first.keep(2);
    first.store.purge(&Purge::Key(key(1000).to_string()));
    shared.removals.store(WAITING_REMOVALS, Ordering::Relaxed);
    shared.waiting.store(WAITING, Ordering::Relaxed);
    first.insert(2, stored(2, first.clock, "newer"));
    shared.removals.store(0, Ordering::Relaxed);
    shared.waiting.store(0, Ordering::Relaxed);
    first.close().await;
    assert_eq!(Running::start(home.path()).await.body(2), None);
}

#[tokio::test]
async fn a_new_file_gets_the_note_of_the_one_that_is_gone() {
    let home = TempDir::new().unwrap();
    let open = || file::PageFile::open(home.path(), MIB, Clock::new(), 0).unwrap();
    let store = Store::new(MIB, &Metrics::new());
    let mut worker = worker(home.path(), store.memory());
    let (sender, receiver) = mpsc::channel();
    worker.receiver = receiver;
    sender.send(Message::Checkpoint(b"note".to_vec())).unwrap();
    drop(sender);
    worker.work_with(&mut open()).unwrap();
    assert_eq!(open().saved_checkpoint().unwrap(), SavedCheckpoint::Found(b"note".to_vec()));
    worker.batch = vec![file::DiskChange::Purge(Purge::All, HashSet::new())];
    assert!(worker.abandon_batch(), "the file is removed");
    assert_eq!(open().saved_checkpoint().unwrap(), SavedCheckpoint::NoPages);
    worker.work_with(&mut open()).unwrap();
    assert_eq!(open().saved_checkpoint().unwrap(), SavedCheckpoint::Found(b"note".to_vec()));
}

#[tokio::test]
async fn pages_are_loaded_once_all_is_applied_that_they_have_missed_or_after_a_while() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    (1..=2).for_each(|n| first.keep(n));
    first.close().await;
    for is_applied in [true, false] {
        let (store, clock) = (Store::new(MIB, &Metrics::new()), Clock::new());
        let (mut worker, (sender, receiver)) = (worker(home.path(), store.memory()), mpsc::channel());
        let order = Arc::new(Mutex::new(OrderedSender { sender: None }));
        (worker.order, worker.receiver) = (Arc::downgrade(&order), receiver);
        let patience = if is_applied { DEADLINE } else { Duration::from_millis(50) };
        (worker.restored, worker.checkpoint_patience) = (false, patience);
        let begun = clock.now();
        let (saved_checkpoint, loaded) = (worker.saved_checkpoint.subscribe(), worker.loaded.subscribe());
        let mut file = file::PageFile::open(home.path(), MIB, clock, 0).unwrap();
        let work = thread::spawn(move || worker.work_with(&mut file).unwrap());
        saved_checkpoint.clone().wait_for(Option::is_some).await.unwrap();
        if is_applied {
            assert!(!*loaded.borrow() && store.page(&key(2)).is_none());
            let (done, purged) = mpsc::sync_channel(1);
            sender.send(Message::Purge(Purge::Key(key(1).to_string()), HashSet::new(), done)).unwrap();
            purged.recv_timeout(DEADLINE).unwrap().unwrap();
            sender.send(Message::Checkpoint(b"note".to_vec())).unwrap();
        }
        loaded.clone().wait_for(|loaded| *loaded).await.unwrap();
        assert_eq!([1, 2].map(|n| store.page(&key(n)).is_some()), [false, true]);
        assert!(is_applied || clock.now() - begun >= patience, "nobody tells what they have missed");
        drop(sender);
        work.join().unwrap();
    }
}

/// The thread's work, done without a thread: it gets no more messages.
fn worker(folder: &Path, memory: &Memory) -> Worker {
    let (metrics, clock) = (Metrics::new(), Clock::new());
    Worker {
        folder: folder.to_owned(),
        capacity: MIB,
        clock,
        boot: 0,
        memory: memory.clone(),
        room: MIB,
        order: Weak::new(),
        shared: Arc::new(Shared::new(metrics)),
        receiver: mpsc::channel().1,
        loaded: watch::channel(false).0,
        saved_checkpoint: watch::channel(None).0,
        restored: true,
        checkpoint_patience: Duration::ZERO,
        checkpoint: None,
        batch: Vec::new(),
        closing: None,
        purgers: Vec::new(),
        clear: false,
        unwritten: HashSet::new(),
        removals_only: RemovalsOnly::No,
        locked: false,
        last_warning: None,
    }
}

#[tokio::test]
async fn what_could_not_be_written_is_removed_when_the_file_is_opened_again() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    (1..=4).for_each(|n| first.keep(n));
    first.close().await;
    let mut worker = worker(home.path(), first.store.memory());
    let newer = || stored(1, first.clock, "newer");
    worker.batch = vec![file::DiskChange::Keep(key(1), Box::new(newer())), file::DiskChange::Remove(vec![key(2)])];
    worker.shared.waiting.store(1, Ordering::Relaxed);
    worker.shared.waiting_bytes.store(page_weight(&newer()), Ordering::Relaxed);
    assert!(!worker.abandon_batch(), "the file stays");
    let mut file = file::PageFile::open(home.path(), MIB, first.clock, 0).unwrap();
    worker.work_with(&mut file).unwrap();
    assert!(worker.unwritten.is_empty());
    let (begun, second) = (first.clock.now(), Duration::from_secs(1));
    worker.shared.fails("no space".to_owned(), begun);
    worker.shared.fails("no permission".to_owned(), begun + second);
    let fault = worker.shared.fault().clone();
    assert_eq!(fault, Some(DiskFault { since: begun, cause: "no permission".to_owned() }), "one episode");
    // While pages cannot be written, those that they replace are still removed.
    worker.removals_only = RemovalsOnly::Until(first.clock.now() + HOUR);
    worker.batch = vec![file::DiskChange::Keep(key(3), Box::new(newer()))];
    worker.shared.waiting.store(1, Ordering::Relaxed);
    worker.shared.waiting_bytes.store(page_weight(&newer()), Ordering::Relaxed);
    worker.write(&mut file).unwrap();
    assert!(worker.shared.fault().is_some(), "removals alone do not end it");
    worker.removals_only = RemovalsOnly::No;
    worker.batch = vec![file::DiskChange::Keep(key(5), Box::new(newer()))];
    worker.shared.waiting.store(1, Ordering::Relaxed);
    worker.shared.waiting_bytes.store(page_weight(&newer()), Ordering::Relaxed);
    worker.write(&mut file).unwrap();
    assert_eq!(*worker.shared.fault(), None, "a page was written");
    drop(file);
    let second = Running::start(home.path()).await;
    assert_eq!([1, 2, 3, 4].map(|n| second.body(n).is_some()), [false, false, false, true]);
    // Too many to remember: all pages are removed.
    worker.removals_only = RemovalsOnly::No;
    let keys = (0..70_000u32).map(key).collect();
    worker.batch = vec![file::DiskChange::Remove(keys)];
    worker.abandon_batch();
    assert!(worker.clear && worker.unwritten.is_empty());
}

#[tokio::test]
async fn a_foreign_file_is_moved_aside() {
    for foreign in [&b"# Shopping list\n- milk\n"[..], &[0; 300_000], b"redb"] {
        let home = TempDir::new().unwrap();
        fs::write(home.path().join(file::NAME), foreign).unwrap();
        let running = Running::start(home.path()).await;
        assert!(running.view().enabled);
        let names = files(home.path());
        assert_eq!((names.len(), &*names[0]), (2, file::NAME));
        assert!(names[1].starts_with("pages.redb.corrupt-"), "{names:?}");
        assert_eq!(fs::read(home.path().join(&names[1])).unwrap(), foreign, "not touched");
        running.keep(1);
        running.close().await;
        assert_eq!(Running::start(home.path()).await.body(1), Some(body(1)));
    }
}

#[tokio::test]
async fn a_database_of_something_else_or_another_version_is_moved_aside() {
    let version = |version: u64| {
        move |database: &redb::Database| {
            let transaction = database.begin_write().unwrap();
            let table = redb::TableDefinition::<&str, u64>::new("format");
            transaction.open_table(table).unwrap().insert("version", version).unwrap();
            transaction.commit().unwrap();
        }
    };
    let other = |database: &redb::Database| {
        let transaction = database.begin_write().unwrap();
        let table = redb::TableDefinition::<u64, u64>::new("pages");
        transaction.open_table(table).unwrap().insert(1, 1).unwrap();
        transaction.commit().unwrap();
    };
    let makers: [&dyn Fn(&redb::Database); 3] = [&version(u64::from(record::VERSION) + 1), &version(0), &other];
    for make in makers {
        let home = TempDir::new().unwrap();
        make(&redb::Database::create(home.path().join(file::NAME)).unwrap());
        let running = Running::start(home.path()).await;
        assert!(running.view().enabled);
        assert_eq!(files(home.path()).len(), 2);
    }
}

#[tokio::test]
async fn damage_anywhere_costs_only_pages() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    (0..40).for_each(|n| first.keep(n));
    first.close().await;
    let whole = fs::read(home.path().join(file::NAME)).unwrap();
    for round in 0..30 {
        let home = TempDir::new().unwrap();
        let path = home.path().join(file::NAME);
        fs::write(&path, &whole).unwrap();
        let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let at = fastrand::u64(..whole.len() as u64);
        match round % 3 {
            0 => file.set_len(at).unwrap(),
            1 => {
                file.seek(SeekFrom::Start(at)).unwrap();
                file.write_all(&[fastrand::u8(..); 512]).unwrap();
            }
            _ => {
                let mut byte = [0];
                file.seek(SeekFrom::Start(at)).unwrap();
                file.read_exact(&mut byte).unwrap();
                file.seek(SeekFrom::Start(at)).unwrap();
                file.write_all(&[byte[0] ^ 1 << fastrand::u8(..8)]).unwrap();
            }
        }
        drop(file);
        let running = Running::start(home.path()).await;
        assert!(running.view().enabled, "round {round} at {at}");
        for n in 0..40 {
            assert!(running.body(n).is_none_or(|found| found == body(n)), "round {round} at {at}: a wrong page");
        }
        running.keep(100);
        running.close().await;
        assert_eq!(running.writes("written"), 1, "round {round} at {at}");
    }
}

#[tokio::test]
async fn a_locked_file_is_left_alone() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    first.keep(1);
    let second = Running::start(home.path()).await;
    assert!(!second.view().enabled);
    second.keep(2);
    assert_eq!(second.body(2), Some(body(2)), "in memory");
    second.until("no longer locked", |second| second.writes("failed") == 1).await;
    second.close().await;
    first.close().await;
    assert_eq!(files(home.path()), [file::NAME]);
    let third = Running::start(home.path()).await;
    assert_eq!((third.body(1), third.body(2)), (Some(body(1)), None));
}

#[tokio::test]
async fn without_a_folder_the_tier_is_off_and_the_store_works() {
    let home = TempDir::new().unwrap();
    let not_a_folder = home.path().join("file");
    fs::write(&not_a_folder, "").unwrap();
    let running = Running::start(&not_a_folder).await;
    assert!(!running.view().enabled);
    running.until("a fault", |running| running.view().fault.is_some()).await;
    let fault = running.view().fault.unwrap();
    assert!(fault.since <= running.clock.now() && fault.cause.contains("exists"), "{fault:?}");
    running.keep(1);
    assert_eq!(running.body(1), Some(body(1)));
    running.close().await;
    assert_eq!(fs::read(&not_a_folder).unwrap(), b"");
}
