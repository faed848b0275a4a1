//! The file: a redb database. redb is crash-safe, so whatever was committed is still there after a kill.
//!
//! The database has four tables: the pages, an index of the pages by the time when they were fetched, the checkpoint of
//! the changes of other replicas, and the version of the format. With the index the newest pages are read, and the
//! oldest are removed. A file without a version was not made by the gateway. Every function here blocks, so only the
//! tier's own thread calls them.

use std::any::Any;
use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{
    Builder, Database, Error, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError, WriteTransaction,
};

use super::view::SavedCheckpoint;
use crate::cache::purge::Purge;
use crate::cache::record::{self, Boot, ClockSnapshot, Nanos, RecordHead};
use crate::cache::stored::StoredResponse;
use crate::config;
use crate::core::clock::Clock;
use crate::request::key::Key;

/// Its name in the configured folder.
pub(super) const NAME: &str = "pages.redb";

type Hash = [u8; 32];

const FORMAT: TableDefinition<'_, &str, u64> = TableDefinition::new("format");
const PAGES: TableDefinition<'_, &Hash, &[u8]> = TableDefinition::new("pages");
/// Key: when a page was fetched, and its key. Value: the record's length, and when the page can no longer be served.
const TIMES: TableDefinition<'_, (Nanos, &Hash), (u64, Nanos)> = TableDefinition::new("times");
/// Under one key, the last checkpoint. The names are those of files that earlier versions wrote.
const CHECKPOINTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("notes");
const CHECKPOINT: &str = "note";

/// redb's own cache. Pages are read once, so it serves only the upper levels of the trees.
const REDB_CACHE: usize = 8 * 1024 * 1024;

/// Why there is no file to work with.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    /// Another process has it open.
    #[error("another process has it open; each gateway needs a cache.disk.path of its own")]
    Locked,
    /// It was written by another program or version, or is damaged.
    #[error("{0}")]
    Damaged(String),
    /// The folder or the disk refuses the operation.
    #[error("{0}")]
    Unusable(String),
}

impl From<Error> for DiskError {
    fn from(error: Error) -> Self {
        match error {
            Error::DatabaseAlreadyOpen | Error::LockProtocolMismatch => Self::Locked,
            Error::Corrupted(_)
            | Error::UpgradeRequired(_)
            | Error::TableTypeMismatch { .. }
            | Error::TypeDefinitionChanged { .. }
            | Error::TableIsMultimap(_)
            | Error::TableDoesNotExist(_) => Self::Damaged(error.to_string()),
            // redb uses these kinds for a file that it did not write, or that is shorter than it should be.
            Error::Io(ref io) if matches!(io.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Unusable(error.to_string()),
        }
    }
}

impl From<io::Error> for DiskError {
    fn from(error: io::Error) -> Self {
        Self::Unusable(error.to_string())
    }
}

/// Counts a panic in `work` as damage.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, DiskError>) -> Result<T, DiskError> {
    // Changes that were half made are dropped with the file, or abandoned with the batch.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(DiskError::Damaged(message(&*panic))))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic").to_owned()
}

/// A change to the pages in memory, which the disk repeats.
#[derive(Debug)]
pub(super) enum DiskChange {
    /// A page was kept.
    Keep(Key, Box<StoredResponse>),
    /// Pages were dropped, or could not be written here.
    Remove(Vec<Key>),
    /// Pages were purged, and the result sets that begin with these keys.
    Purge(Purge, HashSet<Key>),
    /// All changes before this one are in the file.
    Checkpoint(Vec<u8>),
}

/// What the file holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FileSize {
    pub(super) entries: u64,
    /// The bytes that count against the capacity.
    pub(super) bytes: u64,
}

impl FileSize {
    fn add(&mut self, length: u64) {
        self.entries += 1;
        self.bytes += footprint(length);
    }

    fn remove(&mut self, length: u64) {
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(footprint(length));
    }
}

/// The bytes that a record of this length occupies. redb gives a long value its own run of 4 KiB pages, whose number is
/// a power of two. Short values share pages, which are rarely full.
fn footprint(length: u64) -> u64 {
    const INDEX: u64 = 128;
    const PAGE: u64 = 4096;
    let with_key = length + INDEX;
    INDEX + if with_key <= PAGE / 2 { with_key * 3 / 2 } else { with_key.next_power_of_two().max(PAGE) }
}

/// An open file.
pub(super) struct PageFile {
    database: Database,
    clock: Clock,
    boot: Boot,
    capacity: u64,
    size: FileSize,
}

impl PageFile {
    /// Opens the file in `folder`, or creates both, readable for this user alone.
    pub(super) fn open(folder: &Path, capacity: u64, clock: Clock, boot: Boot) -> Result<Self, DiskError> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = folder.join(NAME);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        config::keep_from_others(&file, &path);
        let backend = FileBackend::new(file).map_err(Error::from)?;
        let database = Builder::new()
            .set_cache_size(REDB_CACHE)
            // Without this redb trusts a file that was closed in order, and panics if it was changed since. After a
            // kill redb checks it anyway.
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(Error::from)?;
        let mut file = Self { database, clock, boot, capacity, size: FileSize::default() };
        file.claim()?;
        file.size = file.measure()?;
        Ok(file)
    }

    /// Marks an empty file as the gateway's own, and refuses one of another program.
    fn claim(&self) -> Result<(), DiskError> {
        let foreign = || DiskError::Damaged("it is a database of something else, or of another version".to_owned());
        let reading = self.database.begin_read().map_err(Error::from)?;
        match reading.open_table(FORMAT) {
            Ok(table) => {
                let version = table.get("version").map_err(Error::from)?.map(|version| version.value());
                return if version == Some(record::VERSION.into()) { Ok(()) } else { Err(foreign()) };
            }
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(Error::from(error).into()),
        }
        if reading.list_tables().map_err(Error::from)?.next().is_some() {
            return Err(foreign());
        }
        drop(reading);
        self.transact(|transaction| {
            transaction.open_table(FORMAT)?.insert("version", u64::from(record::VERSION))?;
            transaction.open_table(PAGES)?;
            transaction.open_table(TIMES)?;
            Ok(())
        })
    }

    fn measure(&self) -> Result<FileSize, DiskError> {
        let measured = || {
            let reading = self.database.begin_read()?;
            let mut size = FileSize::default();
            for row in reading.open_table(TIMES)?.iter()? {
                size.add(row?.1.value().0);
            }
            Ok::<_, Error>(size)
        };
        Ok(measured()?)
    }

    /// The last checkpoint.
    pub(super) fn saved_checkpoint(&self) -> Result<SavedCheckpoint, DiskError> {
        let read = || match self.database.begin_read()?.open_table(CHECKPOINTS) {
            Ok(table) => Ok::<_, Error>(table.get(CHECKPOINT)?.map(|checkpoint| checkpoint.value().to_vec())),
            // An earlier version saved none.
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        };
        Ok(match read()? {
            Some(checkpoint) => SavedCheckpoint::Found(checkpoint),
            None if self.size.entries > 0 => SavedCheckpoint::Missing,
            None => SavedCheckpoint::NoPages,
        })
    }

    fn clocks(&self) -> ClockSnapshot {
        ClockSnapshot::read(self.clock, self.boot)
    }

    pub(super) fn size(&self) -> FileSize {
        self.size
    }

    /// The keys of the newest usable pages that fit into `room` bytes with `overhead` each. The oldest come first:
    /// loaded in this order, they are the first to be evicted.
    pub(super) fn newest(&self, room: u64, overhead: u64) -> Result<Vec<Key>, DiskError> {
        let now = self.clocks().now();
        let select = || {
            let (mut keys, mut taken) = (Vec::new(), 0);
            for row in
                self.database.begin_read()?.open_table(TIMES)?.range((0, &[0; 32])..=(now, &[u8::MAX; 32]))?.rev()
            {
                let (index, about) = row?;
                let (length, expires) = about.value();
                if expires > now {
                    taken += length + overhead;
                    if taken > room {
                        break;
                    }
                    keys.push(Key::from_bytes(*index.value().1));
                }
            }
            keys.reverse();
            Ok::<_, Error>(keys)
        };
        Ok(select()?)
    }

    /// Reads the pages of `keys` that are intact, until `keep` has enough. Returns how many were damaged.
    pub(super) fn read(
        &self,
        keys: &[Key],
        mut keep: impl FnMut(Key, StoredResponse) -> bool,
    ) -> Result<u64, DiskError> {
        let clocks = self.clocks();
        let mut read = || {
            let table = self.database.begin_read()?.open_table(PAGES)?;
            let mut broken = 0;
            for key in keys {
                let Some(record) = table.get(key.as_bytes())? else { continue };
                let Some(stored) = record::decode(key, record.value(), &clocks) else {
                    broken += 1;
                    continue;
                };
                if !keep(*key, stored) {
                    break;
                }
            }
            Ok::<_, Error>(broken)
        };
        Ok(read()?)
    }

    /// Makes `changes` in their order, all or none, and removes old pages where the capacity is exceeded. Returns how
    /// many pages were written.
    pub(super) fn apply(&mut self, changes: &[DiskChange]) -> Result<u64, DiskError> {
        let (mut size, capacity, clocks) = (self.size, self.capacity, self.clocks());
        let mut written = 0;
        self.transact(|transaction| {
            let mut tables = Tables::open(transaction, &mut size)?;
            let mut record = Vec::new();
            for change in changes {
                match change {
                    DiskChange::Keep(key, stored) => {
                        let encoded = record::encode(key, stored, &clocks, &mut record);
                        if encoded.is_some() && footprint(record.len() as u64) <= capacity {
                            tables.insert(key, &record, record::expiry(stored, &clocks))?;
                            written += 1;
                        } else {
                            // The page that it replaces must not be found under this key again.
                            tables.remove_all(&[*key])?;
                        }
                    }
                    DiskChange::Remove(keys) => tables.remove_all(keys)?,
                    DiskChange::Purge(which, firsts) => tables.purge(which, firsts)?,
                    DiskChange::Checkpoint(checkpoint) => {
                        transaction.open_table(CHECKPOINTS)?.insert(CHECKPOINT, &checkpoint[..])?;
                    }
                }
            }
            tables.shrink_to(capacity)
        })?;
        self.size = size;
        Ok(written)
    }

    /// Removes pages that can no longer be served, pages with a time in the future, and pages beyond the capacity,
    /// which may be smaller than at the last start.
    pub(super) fn clean(&mut self) -> Result<(), DiskError> {
        let now = self.clocks().now();
        let find = || {
            let mut useless = Vec::new();
            for row in self.database.begin_read()?.open_table(TIMES)?.iter()? {
                let (index, about) = row?;
                let (fetched, key) = index.value();
                if about.value().1 <= now || fetched > now {
                    useless.push((fetched, *key));
                }
            }
            Ok::<_, Error>(useless)
        };
        let useless = find()?;
        if useless.is_empty() && self.size.bytes <= self.capacity {
            return Ok(());
        }
        let (mut size, capacity) = (self.size, self.capacity);
        self.transact(|transaction| {
            let mut tables = Tables::open(transaction, &mut size)?;
            useless.iter().try_for_each(|(fetched, key)| tables.remove(*fetched, key))?;
            tables.shrink_to(capacity)
        })?;
        self.size = size;
        Ok(())
    }

    fn transact(&self, work: impl FnOnce(&WriteTransaction) -> Result<(), Error>) -> Result<(), DiskError> {
        let done = || {
            let transaction = self.database.begin_write()?;
            work(&transaction)?;
            Ok::<_, Error>(transaction.commit()?)
        };
        Ok(done()?)
    }
}

struct Tables<'t> {
    pages: Table<'t, &'static Hash, &'static [u8]>,
    times: Table<'t, (Nanos, &'static Hash), (u64, Nanos)>,
    size: &'t mut FileSize,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction, size: &'t mut FileSize) -> Result<Self, Error> {
        Ok(Self { pages: transaction.open_table(PAGES)?, times: transaction.open_table(TIMES)?, size })
    }

    fn insert(&mut self, key: &Key, record: &[u8], expires: Nanos) -> Result<(), Error> {
        let key = key.as_bytes();
        let before = self.pages.insert(key, record)?.and_then(|old| fetched(old.value()));
        self.forget(key, before)?;
        if let Some(fetched) = fetched(record) {
            let length = record.len() as u64;
            self.times.insert((fetched, key), (length, expires))?;
            self.size.add(length);
        }
        Ok(())
    }

    /// Removes the page that was fetched at `then`, if it is still the one under `key`.
    fn remove(&mut self, then: Nanos, key: &Hash) -> Result<(), Error> {
        self.forget(key, Some(then))?;
        let replaced = self.pages.get(key)?.and_then(|record| fetched(record.value())).is_some_and(|at| at != then);
        if !replaced {
            self.pages.remove(key)?;
        }
        Ok(())
    }

    /// Removes the pages under `keys`.
    fn remove_all(&mut self, keys: &[Key]) -> Result<(), Error> {
        for key in keys {
            let key = key.as_bytes();
            let removed = self.pages.remove(key)?.and_then(|record| fetched(record.value()));
            self.forget(key, removed)?;
        }
        Ok(())
    }

    /// Removes a page from the index.
    fn forget(&mut self, key: &Hash, fetched: Option<Nanos>) -> Result<(), Error> {
        if let Some(fetched) = fetched
            && let Some(row) = self.times.remove((fetched, key))?
        {
            self.size.remove(row.value().0);
        }
        Ok(())
    }

    /// Removes the same pages as in memory: those that match, and the rest of their result sets. Memory and disk do not
    /// hold the same pages, so result sets that are found only here count too.
    fn purge(&mut self, which: &Purge, firsts: &HashSet<Key>) -> Result<(), Error> {
        let mut pages: Vec<(Hash, Nanos, Option<Hash>, bool)> = Vec::new();
        for row in self.pages.iter()? {
            let (key, record) = row?;
            let Some(RecordHead { fetched, operation, account, first }) = record::head(record.value()) else {
                continue;
            };
            let matches = which.matches(&Key::from_bytes(*key.value()), Some((account, operation)));
            pages.push((*key.value(), fetched, first, matches));
        }
        let matched = pages.iter().filter(|(.., matches)| *matches).filter_map(|(_, _, first, _)| *first);
        let sets: HashSet<Hash> = matched.chain(firsts.iter().map(|first| *first.as_bytes())).collect();
        for (key, fetched, first, matches) in &pages {
            if *matches || first.is_some_and(|first| sets.contains(&first)) {
                self.remove(*fetched, key)?;
            }
        }
        Ok(())
    }

    fn shrink_to(&mut self, capacity: u64) -> Result<(), Error> {
        while self.size.bytes > capacity {
            let oldest = self.times.first()?.map(|(index, _)| (index.value().0, *index.value().1));
            let Some((fetched, key)) = oldest else { break };
            self.remove(fetched, &key)?;
        }
        Ok(())
    }
}

fn fetched(record: &[u8]) -> Option<Nanos> {
    record::head(record).map(|head| head.fetched)
}

/// Removes the file, so that nothing of it is read at the next start. When this returns, the removal is on the disk.
pub(super) fn erase(folder: &Path) -> io::Result<()> {
    match std::fs::remove_file(folder.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // An earlier attempt may have removed it without a confirmation.
        _ => {}
    }
    match File::open(folder) {
        Ok(folder) => folder.sync_all(),
        // Without the folder there is no file.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Moves an unusable file to another name, so that an operator can look at it. Returns its new path.
pub(super) fn move_aside(folder: &Path, clocks: &ClockSnapshot) -> io::Result<PathBuf> {
    let seconds = clocks.now() / 1_000_000_000;
    let path = folder.join(NAME);
    // Never replace a file that was moved earlier.
    for suffix in std::iter::once(String::new()).chain((1..100).map(|n| format!("-{n}"))) {
        let aside = folder.join(format!("{NAME}.corrupt-{seconds}{suffix}"));
        if !aside.try_exists()? {
            std::fs::rename(&path, &aside)?;
            return Ok(aside);
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
