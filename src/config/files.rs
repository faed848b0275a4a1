//! The files of a configuration: how they are read, and how their changes are noticed.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// Largest configuration file in bytes.
pub(super) const LARGEST_FILE: u64 = 1 << 20;

/// Largest file of certificates or keys in bytes. No other file of a configuration may be as large.
pub(super) const LARGEST_PEM: u64 = 4 << 20;

/// How long the writer of a pipe may pause.
const SILENCE: Duration = Duration::from_secs(10);

/// Differs when the files have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fingerprint([u8; 32]);

/// The files of a configuration, and a fingerprint of their content.
#[derive(Debug, Clone)]
pub struct Files {
    paths: Vec<PathBuf>,
    fingerprint: Fingerprint,
}

impl Default for Files {
    /// No files.
    fn default() -> Self {
        Self::now(Vec::new())
    }
}

impl Files {
    /// These files, with their current content.
    pub(super) fn now(paths: Vec<PathBuf>) -> Self {
        let fingerprint = fingerprint(&paths);
        Self { paths, fingerprint }
    }

    /// Their paths.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// A fingerprint of their content, taken no later than they were read.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The same files with their current content.
    #[must_use]
    pub fn again(self) -> Self {
        Self::now(self.paths)
    }

    /// A fingerprint of their current content. A file that cannot be read has one too.
    pub fn fingerprint_now(&self) -> Fingerprint {
        fingerprint(&self.paths)
    }
}

fn fingerprint(paths: &[PathBuf]) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        match read_regular(path, LARGEST_PEM) {
            Ok((content, about)) => hasher.update(blake3::hash(&content).as_bytes()).update(&about.len().to_le_bytes()),
            Err(error) => hasher.update(error.kind().to_string().as_bytes()),
        };
    }
    Fingerprint(hasher.finalize().into())
}

/// The error for a path that is not a regular file.
pub(super) fn is_no_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "this is not a file; name a regular file")
}

/// The content of a regular file, at most one byte more than `largest`, and its metadata. It is wiped when dropped, and
/// is in one place in memory: the buffer grows only if the file grows while it is read.
pub(super) fn read_regular(path: &Path, largest: u64) -> io::Result<(Zeroizing<Vec<u8>>, Metadata)> {
    let (file, about) = open(path)?;
    if !about.is_file() {
        return Err(is_no_file());
    }
    let length = about.len().min(largest);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1));
    file.take(largest.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes, about))
}

/// Opens a path without waiting for a writer, even if it is a pipe.
fn open(path: &Path) -> io::Result<(File, Metadata)> {
    // The flags fit into the system's own type.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let about = file.metadata()?;
    Ok((file, about))
}

/// Removes the permissions of other users from an existing file that the gateway owns, if all users can read it. The
/// group keeps its permissions, because the operator chooses who is in it.
pub fn keep_from_others(file: &File, path: &Path) {
    const OTHERS: u32 = 0o007;
    const OWNER_ALONE: u32 = 0o600;
    let is_open = file.metadata().is_ok_and(|about| about.permissions().mode() & OTHERS != 0);
    if !is_open {
        return;
    }
    let path = path.display();
    match file.set_permissions(Permissions::from_mode(OWNER_ALONE)) {
        Ok(()) => tracing::warn!(%path, "every user of this machine could use this file; now only its owner can"),
        Err(error) => tracing::warn!(%path, %error, "every user of this machine can use this file; chmod 600 it"),
    }
}

/// Whether `path` can be read only once.
pub(super) fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|about| !about.is_file() && !about.is_dir())
}

/// The configuration file, read once.
pub(super) struct ConfigFile {
    path: PathBuf,
    /// A read error is kept too, because it is a fault of the configuration.
    content: io::Result<Zeroizing<Vec<u8>>>,
    is_pipe: bool,
}

impl ConfigFile {
    /// Reads the file to its end. It may be a regular file or a pipe (`/dev/stdin`, `<(…)`, a FIFO). Reads at most one
    /// byte more than [`LARGEST_FILE`].
    pub(super) fn read(path: &Path) -> Self {
        let (content, is_pipe) = match open(path) {
            Err(error) => (Err(error), false),
            Ok((_, about)) if about.is_dir() => (Err(is_no_file()), false),
            Ok((_, about)) if about.is_file() => (read_regular(path, LARGEST_FILE).map(|(bytes, _)| bytes), false),
            Ok((file, _)) => (read_pipe(file), true),
        };
        Self { path: path.to_owned(), content, is_pipe }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn content(&self) -> Result<&[u8], &io::Error> {
        self.content.as_ref().map(|content| content.as_slice())
    }

    /// Whether it can be read again, so that changes can be noticed.
    pub(super) fn can_be_watched(&self) -> bool {
        !self.is_pipe
    }

    /// Whether its content has changed since.
    pub(super) fn has_changed(&self) -> bool {
        let same = |now: io::Result<(Zeroizing<Vec<u8>>, Metadata)>| match (&self.content, now) {
            (Ok(then), Ok((now, _))) => **then == *now,
            (Err(then), Err(now)) => then.kind() == now.kind(),
            _ => false,
        };
        !self.is_pipe && !same(read_regular(&self.path, LARGEST_FILE))
    }
}

/// Reads until the writer closes the pipe. Waits for a writer, but not for ever.
fn read_pipe(mut file: File) -> io::Result<Zeroizing<Vec<u8>>> {
    const CHUNK: usize = 64 << 10;
    let largest = usize::try_from(LARGEST_FILE).unwrap_or(usize::MAX);
    // Large enough that it never grows, so that no copy stays in memory without being wiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(largest + 1));
    let mut chunk = Zeroizing::new(vec![0; CHUNK]);
    let silence = Timespec::try_from(SILENCE).map_err(io::Error::other)?;
    while bytes.len() <= largest {
        match poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&silence)) {
            Ok(0) => {
                let message = format!("no data came through it for {} s", SILENCE.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let most = chunk.len().min(largest + 1 - bytes.len());
        match file.read(&mut chunk[..most]) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_file_that_is_too_large_is_watched_and_not_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let file = File::create(&path).unwrap();
        // No memory has as much, and the disk need not have it.
        file.set_len(1 << 42).unwrap();
        let files = Files::now(vec![path]);
        assert_eq!(files.fingerprint_now(), files.fingerprint());
        file.set_len(1 << 41).unwrap();
        assert_ne!(files.fingerprint_now(), files.fingerprint());
        file.set_len(1).unwrap();
        let small = files.again();
        file.write_all_at(b"x", 0).unwrap();
        assert_ne!(small.fingerprint_now(), small.fingerprint());
    }
}
