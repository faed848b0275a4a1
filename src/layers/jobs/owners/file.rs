//! The file of grants: records of a fixed size, appended by a thread.
//!
//! Opening the file rewrites it without expired grants, and so does the thread when the file has become long. A write
//! that fails may leave a part of a record. It is cut off before the next write, because it would shift all later
//! records.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use futures_util::FutureExt;

use super::grants::{Grants, MOST};
use crate::config;
use crate::core::work_queue::Work;
use crate::request::grants::Scope;

/// The file's name. The number increases when the format changes.
pub(super) const NAME: &str = "job-owners-1";

/// Scope, key and seconds since 1970.
const LENGTH: usize = 32 + 32 + 8;

/// The file is rewritten when it has more records.
const LONGEST: u64 = 2 * MOST as u64;

/// Records that are written together.
const BATCH: usize = 1024;

/// A grant, as it is written.
pub(super) type Record = [u8; LENGTH];

pub(super) fn record(scope: &Scope, key: &[u8; 32], at: u64) -> Record {
    let mut record = [0; LENGTH];
    record[..32].copy_from_slice(scope);
    record[32..64].copy_from_slice(key);
    record[64..].copy_from_slice(&at.to_le_bytes());
    record
}

/// The open file.
pub(super) struct GrantFile {
    path: PathBuf,
    file: File,
    /// Its complete records.
    records: u64,
    /// Behind its complete records there may be a part of one.
    is_torn: bool,
    /// It is rewritten when it has more records.
    longest: u64,
}

impl GrantFile {
    /// Reads the file in `folder`, and rewrites it without expired grants. What is behind its complete records is
    /// dropped.
    pub(super) fn open(folder: &Path, now: u64) -> io::Result<(Grants, Self)> {
        let (path, mut grants) = (folder.join(NAME), Grants::default());
        let written = match fs::read(&path) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        for record in written.chunks_exact(LENGTH) {
            let (Some((scope, rest)), Some(at)) = (record.split_first_chunk::<32>(), record.last_chunk::<8>()) else {
                continue;
            };
            let Some(key) = rest.first_chunk::<32>() else { continue };
            grants.give(*scope, *key, u64::from_le_bytes(*at), now);
        }
        let records: Vec<_> = grants.all().map(|(scope, key, at)| record(scope, key, at)).collect();
        let file = replace(&path, &records)?;
        Ok((grants, Self { path, file, records: records.len() as u64, is_torn: false, longest: LONGEST }))
    }

    /// Appends records until nobody can leave any more. `all` has all grants that are kept. For a thread.
    pub(super) fn write(mut self, mut work: Work<Record>, all: impl Fn() -> Vec<Record>) {
        let mut failed = false;
        while let Some(first) = work.blocking_next() {
            let more = std::iter::from_fn(|| work.more().now_or_never().flatten());
            let batch: Vec<_> = std::iter::once(first).chain(more).take(BATCH).collect();
            match self.append(&batch).and_then(|()| self.shorten(&all)) {
                Ok(()) if std::mem::take(&mut failed) => tracing::info!("the owners of query jobs are written again"),
                Ok(()) => {}
                Err(error) if !std::mem::replace(&mut failed, true) => {
                    tracing::warn!(%error, "the owners of query jobs cannot be written: after a restart, policies have no access to some jobs");
                }
                Err(_) => {}
            }
        }
    }

    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        if self.is_torn {
            self.file.set_len(self.records * LENGTH as u64)?;
        }
        self.is_torn = true;
        self.file.write_all(records.as_flattened())?;
        self.is_torn = false;
        self.records += records.len() as u64;
        Ok(())
    }

    /// Rewrites the file with `all` grants if it has become too long. If that fails, it is tried again later.
    fn shorten(&mut self, all: impl Fn() -> Vec<Record>) -> io::Result<()> {
        if self.records <= self.longest {
            return Ok(());
        }
        self.longest = self.records + MOST as u64;
        // A process that was started later has replaced it, and now writes there.
        if fs::metadata(&self.path)?.ino() != self.file.metadata()?.ino() {
            return Err(io::Error::other("another process uses the file"));
        }
        let records = all();
        self.file = replace(&self.path, &records)?;
        (self.records, self.longest) = (records.len() as u64, LONGEST);
        Ok(())
    }
}

/// Puts a file with these records in place of the one at `path`, and opens it for more.
fn replace(path: &Path, records: &[Record]) -> io::Result<File> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    config::keep_from_others(&file, &new);
    file.write_all(records.as_flattened())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    OpenOptions::new().append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::work_queue::WorkQueue;

    const SCOPE: Scope = [1; 32];
    const NOW: u64 = 1_000_000;

    fn key(n: u64) -> [u8; 32] {
        *blake3::hash(&n.to_le_bytes()).as_bytes()
    }

    fn grant(n: u64) -> Record {
        record(&SCOPE, &key(n), NOW)
    }

    /// Which of the first four grants are in the file.
    fn read(folder: &Path) -> Vec<u64> {
        let (grants, _) = GrantFile::open(folder, NOW).unwrap();
        (0..4).filter(|n| grants.has(&SCOPE, &key(*n), NOW)).collect()
    }

    #[test]
    fn an_incomplete_record_at_the_end_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let (_, mut file) = GrantFile::open(folder.path(), NOW).unwrap();
        file.append(&[grant(0), grant(1)]).unwrap();
        file.file.set_len(2 * LENGTH as u64 - 1).unwrap();
        assert_eq!(read(folder.path()), [0]);
        assert_eq!(fs::metadata(folder.path().join(NAME)).unwrap().len(), LENGTH as u64);
    }

    #[test]
    fn a_write_that_fails_in_the_middle_shifts_no_later_record() {
        let folder = tempfile::tempdir().unwrap();
        let (_, mut file) = GrantFile::open(folder.path(), NOW).unwrap();
        file.append(&[grant(0)]).unwrap();
        // A disk that fills up writes a part, and then fails.
        file.file.write_all(&grant(1)[..LENGTH / 2]).unwrap();
        let writable = std::mem::replace(&mut file.file, File::open(&file.path).unwrap());
        for _ in 0..2 {
            file.append(&[grant(1)]).unwrap_err();
        }
        file.file = writable;
        file.append(&[grant(2), grant(3)]).unwrap();
        assert_eq!(read(folder.path()), [0, 2, 3]);
    }

    #[test]
    fn a_file_that_has_become_long_is_rewritten_with_what_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (_, mut file) = GrantFile::open(folder.path(), NOW).unwrap();
        file.longest = 3;
        let length = || fs::metadata(folder.path().join(NAME)).unwrap().len() / LENGTH as u64;
        let (queue, work) = WorkQueue::bounded(8);
        for n in [0, 1, 0, 1] {
            queue.offer(grant(n)).unwrap();
        }
        drop(queue);
        file.write(work, || vec![grant(0), grant(1)]);
        assert_eq!((length(), read(folder.path())), (2, vec![0, 1]));

        let (_, mut file) = GrantFile::open(folder.path(), NOW).unwrap();
        file.longest = 2;
        // Another process has it now: its file is not replaced.
        let (_, mut other) = GrantFile::open(folder.path(), NOW).unwrap();
        file.append(&[grant(2)]).unwrap();
        file.shorten(Vec::new).unwrap_err();
        other.append(&[grant(3)]).unwrap();
        assert_eq!(read(folder.path()), [0, 1, 3]);
    }
}
