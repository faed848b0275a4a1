//! The interface of the notes about query jobs that replicas share. They say what no stored response says.
//!
//! A note is short, and is kept for minutes at most. There are two kinds. A note about a **submission** has the
//! `Idempotency-Key` with which it was sent, as long as its end is unknown. A note about a **status** says how the last
//! poll failed.
//!
//! No request depends on a note. A note that cannot be read in time counts as absent.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::accounts::Account;
use crate::core::clock::Moment;
use crate::request::call::UpstreamCall;
use crate::request::key::Key;
use crate::twilio::endpoint::Operation;

/// What a note is about: a submission, or the status of a job. It has at most one note.
#[derive(Debug, Clone)]
pub(crate) struct NoteSubject {
    pub(crate) account: Arc<Account>,
    pub(crate) operation: Operation,
    pub(crate) key: Key,
}

impl NoteSubject {
    pub(crate) fn of(call: &UpstreamCall) -> Self {
        Self { account: Arc::clone(&call.team.account), operation: call.endpoint.operation, key: call.key }
    }
}

/// A note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    /// When it was made, or another one with the same text in whose place it is. A purge since then ends it.
    pub(crate) made: Moment,
    /// The moment that it tells. It can be in the future.
    pub(crate) at: Moment,
    pub(crate) text: Vec<u8>,
}

/// How a claim ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoteClaim {
    /// Other replicas find this note.
    Own,
    /// There is another note.
    Other(Note),
    /// Nobody knows whether others find this note.
    Unknown,
    /// They do not: the store is away.
    Unsent,
}

/// The notes of all replicas. A future must be polled to its end to do its work. Each takes one or two operations of
/// the store at most.
pub(crate) trait JobNotes: Debug + Send + Sync {
    /// What is noted.
    fn find(&self, about: &NoteSubject) -> BoxFuture<'static, Option<Note>>;

    /// Notes this for as long as it is to be `kept`, unless something else is noted.
    fn claim(&self, about: &NoteSubject, note: Note, kept: Duration) -> BoxFuture<'static, NoteClaim>;

    /// Notes this in place of whatever is noted. Returns whether others may find it.
    fn replace(&self, about: &NoteSubject, note: Note, kept: Duration) -> BoxFuture<'static, bool>;

    /// Notes this again, with another moment, unless something else is noted. If that fails, it is tried again in the
    /// background for as long as it is to be `kept`. Returns whether this note is there now.
    fn keep(&self, about: &NoteSubject, note: Note, kept: Duration) -> BoxFuture<'static, bool>;

    /// Removes the note with this text. If that fails, it is tried again in the background for as long as the note can
    /// be `kept`.
    fn forget(&self, about: &NoteSubject, text: Vec<u8>, kept: Duration) -> BoxFuture<'static, ()>;

    /// How long one request may wait for all of this, and for all else that spends from the same time.
    fn patience(&self) -> Duration;
}

/// Notes in the memory of a test.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct MemoryJobNotes(std::sync::Mutex<Fake>);

#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Fake {
    pub(crate) notes: std::collections::HashMap<Key, (Note, crate::core::clock::Instant)>,
    /// Nothing is reached.
    pub(crate) is_away: bool,
    /// Each operation takes this long.
    pub(crate) takes: Duration,
    /// Operations so far.
    pub(crate) operations: usize,
}

#[cfg(test)]
impl Fake {
    fn find(&mut self, about: &NoteSubject) -> Option<Note> {
        self.notes.retain(|_, (_, ends)| *ends > crate::core::clock::Instant::now());
        self.notes.get(&about.key).map(|(note, _)| note.clone())
    }

    fn put(&mut self, about: &NoteSubject, note: Note, kept: Duration) {
        self.notes.insert(about.key, (note, crate::core::clock::Instant::now() + kept));
    }
}

#[cfg(test)]
impl MemoryJobNotes {
    pub(crate) fn fake(&self) -> std::sync::MutexGuard<'_, Fake> {
        self.0.lock().unwrap()
    }

    /// The text of the only note.
    pub(crate) fn text(&self) -> Option<String> {
        let fake = self.fake();
        assert!(fake.notes.len() < 2, "{:?}", fake.notes);
        fake.notes.values().next().map(|(note, _)| String::from_utf8(note.text.clone()).unwrap())
    }

    /// Does it at once, and answers later.
    fn run<T: Send + 'static>(&self, away: T, work: impl FnOnce(&mut Fake) -> T) -> BoxFuture<'static, T> {
        let mut fake = self.fake();
        fake.operations += 1;
        let (takes, done) = (fake.takes, if fake.is_away { away } else { work(&mut fake) });
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            done
        })
    }
}

#[cfg(test)]
impl JobNotes for MemoryJobNotes {
    fn find(&self, about: &NoteSubject) -> BoxFuture<'static, Option<Note>> {
        self.run(None, |fake| fake.find(about))
    }

    fn claim(&self, about: &NoteSubject, note: Note, kept: Duration) -> BoxFuture<'static, NoteClaim> {
        self.run(NoteClaim::Unsent, |fake| match fake.find(about) {
            Some(other) => NoteClaim::Other(other),
            None => {
                fake.put(about, note, kept);
                NoteClaim::Own
            }
        })
    }

    fn replace(&self, about: &NoteSubject, note: Note, kept: Duration) -> BoxFuture<'static, bool> {
        self.run(false, |fake| {
            fake.put(about, note, kept);
            true
        })
    }

    fn keep(&self, about: &NoteSubject, note: Note, kept: Duration) -> BoxFuture<'static, bool> {
        self.run(false, |fake| {
            if fake.find(about).is_none_or(|there| there.text == note.text) {
                fake.put(about, note, kept);
            }
            true
        })
    }

    fn forget(&self, about: &NoteSubject, text: Vec<u8>, _: Duration) -> BoxFuture<'static, ()> {
        self.run((), |fake| {
            if fake.find(about).is_some_and(|there| there.text == text) {
                fake.notes.remove(&about.key);
            }
        })
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(1)
    }
}
