//! Notes about query jobs, for all replicas.
//!
//! One key for each subject, whose name is a hash of generation, account, and submission or status. The value is `mark
//! · sealed(made · at · text)`. The mark is a keyed hash of the text. The store's scripts compare it, so that a replica
//! replaces and removes only the note that it means. A purge of the subject that is later than `made` ends a note, as
//! it ends a page. Times are on the shared clock.

use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};

use super::change_feed::{ChangeFeed, LONGEST as LONGEST_KEPT};
use super::retry_queue::RetryQueue;
use super::script::LuaScript;
use super::seal::Context;
use super::{SharedStore, StoreError, StoreTime, bounded_get};
use crate::cache::job_notes::{JobNotes, Note, NoteClaim, NoteSubject};
use crate::core::clock::Instant;

/// The digits of a mark.
const MARK: usize = 32;
/// The longest text that is noted, in bytes: the answer to a poll that failed is longer than a key.
const LONGEST_TEXT: usize = 8 * 1024;
/// The longest value that is read: times and seal take less than this more.
const LONGEST: usize = LONGEST_TEXT + 128;
/// Stands for every mark.
const ANY: &[u8] = b"*";

/// Puts a value, unless there is another one. One of another type is replaced.
///
/// Keys: the note. Arguments: the value, milliseconds to live, the mark of a value that is replaced (`*` for any), the
/// longest value that is read. Returns the other value, cut off there, or nothing.
static PUT: LuaScript = LuaScript::of(&[r"
local there = redis.pcall('GETRANGE', KEYS[1], 0, ARGV[4])
if type(there) == 'string' and there ~= '' and ARGV[3] ~= '*' and string.sub(there, 1, 32) ~= ARGV[3] then
  return there
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"]);

/// Removes a value with this mark.
///
/// Keys: the note. Arguments: the mark.
static REMOVE: LuaScript = LuaScript::of(&[r"
if redis.pcall('GETRANGE', KEYS[1], 0, 31) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"]);

/// The notes of all replicas. Clones share one store.
#[derive(Debug, Clone)]
pub(crate) struct StoredJobNotes {
    store: SharedStore,
    feed: ChangeFeed,
    retry_queue: RetryQueue,
}

/// A note on its way to the store.
#[derive(Debug, Clone)]
struct OutgoingNote {
    about: NoteSubject,
    note: Note,
    /// When it is of no more use.
    ends: Instant,
}

/// Whether a note replaces one that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overwrite {
    Never,
    /// If that has the same text.
    SameText,
    Always,
}

impl StoredJobNotes {
    /// Notes in this store. Purges in `feed` end them.
    pub(super) fn new(store: SharedStore, feed: ChangeFeed) -> Self {
        Self { retry_queue: RetryQueue::new(store.clone()), store, feed }
    }

    fn outgoing(&self, about: &NoteSubject, note: Note, kept: Duration) -> OutgoingNote {
        OutgoingNote { about: about.clone(), note, ends: self.store.clock().now() + kept.min(LONGEST_KEPT) }
    }

    /// The name of the key; `None` while nothing is shared.
    fn name(&self, about: &NoteSubject) -> Result<String, StoreError> {
        let generation = self.feed.generation().ok_or(StoreError::Down)?;
        Ok(generation.name(self.store.key_names(), &about.account, "job-note", &about.key))
    }

    fn mark(&self, about: &NoteSubject, text: &[u8]) -> String {
        self.store.key_names().pseudonym(&about.account, "job-note", &[about.key.as_bytes(), text].concat())
    }

    /// Puts a note. Returns the other one that is there instead, if it is of use.
    async fn put(&self, outgoing: &OutgoingNote, over: Overwrite) -> Result<Option<Note>, StoreError> {
        let OutgoingNote { about, note, ends } = outgoing;
        let name = self.name(about)?;
        let value = self.seal(&name, about, note)?;
        let mut over = match over {
            Overwrite::Never => Vec::new(),
            Overwrite::SameText => self.mark(about, &note.text).into_bytes(),
            Overwrite::Always => ANY.to_vec(),
        };
        let left = ends.saturating_duration_since(self.store.clock().now()).as_millis();
        let left = u64::try_from(left).unwrap_or(u64::MAX).max(1);
        for _ in 0..2 {
            let mut command = PUT.call(&[&name]);
            command.arg(&value).arg(left).arg(&over).arg(LONGEST);
            let there: Option<Vec<u8>> = self.store.run("job_note_put", &command).await?;
            let Some(there) = there else { return Ok(None) };
            if let Some(note) = self.open(about, &name, &there) {
                return Ok(Some(note));
            }
            // It is of no use: the note takes its place.
            over = there[..there.len().min(MARK)].to_vec();
        }
        Err(StoreError::Failed("job_note_put: it does not replace what is there".to_owned()))
    }

    async fn remove(&self, about: &NoteSubject, text: &[u8]) -> Result<(), StoreError> {
        let mut command = REMOVE.call(&[self.name(about)?]);
        command.arg(self.mark(about, text));
        self.store.run("job_note_remove", &command).await
    }

    async fn look(&self, about: &NoteSubject) -> Option<Note> {
        let name = self.name(about).ok()?;
        let there =
            self.store.run::<Option<Vec<u8>>>("job_note_find", &bounded_get::command(&name, LONGEST)).await.ok()??;
        self.open(about, &name, &there)
    }

    fn seal(&self, name: &str, about: &NoteSubject, note: &Note) -> Result<Vec<u8>, StoreError> {
        let failed = |why: &str| StoreError::Failed(format!("job_note_put: {why}"));
        if note.text.len() > LONGEST_TEXT {
            return Err(failed("it is too long"));
        }
        let [made, at] = [note.made, note.at].map(|moment| self.store.time_of(moment));
        let (StoreTime(made), StoreTime(at)) = made.zip(at).ok_or(StoreError::Down)?;
        let record = [&made.to_le_bytes(), &at.to_le_bytes(), &note.text[..]].concat();
        let mut value = self.mark(about, &note.text).into_bytes();
        let sealed = self.store.sealer().seal(&context(about, name, &value), &record);
        value.extend(sealed.map_err(|error| failed(&error.to_string()))?);
        Ok(value)
    }

    /// The note in a value; `None` if it cannot be opened, or if its subject was purged since it was made.
    fn open(&self, about: &NoteSubject, name: &str, value: &[u8]) -> Option<Note> {
        let opened = || {
            let (mark, sealed) = value.split_at_checked(MARK)?;
            let record = self.store.sealer().open(&context(about, name, mark), sealed)?;
            let (made, record) = record.split_first_chunk()?;
            let (at, text) = record.split_first_chunk()?;
            let [made_at, at] = [made, at].map(|time| StoreTime(u64::from_le_bytes(*time)));
            let [made, at] = [made_at, at].map(|time| self.store.moment_of(time));
            Some((made_at, Note { made: made?, at: at?, text: text.to_vec() }))
        };
        let Some((made, note)) = opened() else {
            self.store.unsealed();
            return None;
        };
        self.feed.admit_note(about, made).then_some(note)
    }
}

impl JobNotes for StoredJobNotes {
    fn find(&self, about: &NoteSubject) -> BoxFuture<'static, Option<Note>> {
        let (notes, about) = (self.clone(), about.clone());
        async move { notes.look(&about).await }.boxed()
    }

    fn claim(&self, about: &NoteSubject, note: Note, kept: Duration) -> BoxFuture<'static, NoteClaim> {
        let (notes, outgoing) = (self.clone(), self.outgoing(about, note, kept));
        let claiming = async move {
            match notes.put(&outgoing, Overwrite::Never).await {
                Ok(None) => NoteClaim::Own,
                Ok(Some(other)) => NoteClaim::Other(other),
                Err(StoreError::Down) => NoteClaim::Unsent,
                Err(_) => NoteClaim::Unknown,
            }
        };
        claiming.boxed()
    }

    fn replace(&self, about: &NoteSubject, note: Note, kept: Duration) -> BoxFuture<'static, bool> {
        let (notes, outgoing) = (self.clone(), self.outgoing(about, note, kept));
        async move { !matches!(notes.put(&outgoing, Overwrite::Always).await, Err(StoreError::Down)) }.boxed()
    }

    fn keep(&self, about: &NoteSubject, note: Note, kept: Duration) -> BoxFuture<'static, bool> {
        let (notes, outgoing) = (self.clone(), self.outgoing(about, note, kept));
        let keeping = async move {
            let put = notes.put(&outgoing, Overwrite::SameText).await;
            if put.is_err() {
                let retry_queue = notes.retry_queue.clone();
                retry_queue.add(outgoing.ends, move || {
                    let (notes, outgoing) = (notes.clone(), outgoing.clone());
                    async move { notes.put(&outgoing, Overwrite::SameText).await.map(drop) }
                });
            }
            // The note of another submission may be there instead.
            matches!(put, Ok(None))
        };
        keeping.boxed()
    }

    fn forget(&self, about: &NoteSubject, text: Vec<u8>, kept: Duration) -> BoxFuture<'static, ()> {
        let (notes, about) = (self.clone(), about.clone());
        let ends = self.store.clock().now() + kept.min(LONGEST_KEPT);
        let forgetting = async move {
            if notes.remove(&about, &text).await.is_err() {
                let retry_queue = notes.retry_queue.clone();
                retry_queue.add(ends, move || {
                    let (notes, about, text) = (notes.clone(), about.clone(), text.clone());
                    async move { notes.remove(&about, &text).await }
                });
            }
        };
        forgetting.boxed()
    }

    fn patience(&self) -> Duration {
        self.store.patience()
    }
}

fn context<'c>(about: &'c NoteSubject, name: &'c str, mark: &'c [u8]) -> Context<'c> {
    Context { kind: "job-note", account: &about.account.sid, key: name, bound: mark }
}

#[cfg(test)]
mod tests;
