//! Follows the two streams of changes, and keeps its position in each.
//!
//! Entries that cannot be read or unsealed are counted. An unreadable purge may be a purge of any page, so it is
//! treated as a purge of all pages.

use redis::{FromRedisValue, Value};

use super::change::{Change, Stream};
use super::generation::Generation;
use super::scripts::{self, AT_ONCE, Id, open, read_id, renew};
use crate::cache::SavedCheckpoint;
use crate::replicas::clock::AHEAD;
use crate::replicas::purge_log::{Millis, PurgeTarget};
use crate::replicas::{SharedStore, StoreError, StoreTime};

/// Reads the two streams, and keeps its position in each.
#[derive(Debug, Default)]
pub(super) struct FeedReader {
    generation: Option<Generation>,
    /// The earlier generations. If one of them is found again, the store has returned to an older state.
    ended: Vec<Generation>,
    purged: StreamPosition,
    replaced: StreamPosition,
    /// The checkpoint of an earlier process, until the first generation is known.
    inherited: Checkpoint,
    /// It is not known yet what is on the disk: what is read is applied to memory alone.
    pub(super) awaits_disk: bool,
    /// Whether changes were lost since then.
    has_lost: bool,
    last_checkpoint: String,
    pub(super) batch: ChangeBatch,
}

/// Which changes the pages have that an earlier process left on the disk.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Checkpoint {
    #[default]
    NoPages,
    /// It is not known what the pages have missed.
    Missing,
    /// They have the changes of this generation, up to these entries.
    At(Generation, [(u64, Id); 2]),
}

/// The last entry that was read from one stream.
#[derive(Debug, Default)]
struct StreamPosition {
    /// How many entries the stream had ever had. `None` until all entries of the first reading are read: before that,
    /// this replica cannot have missed an entry that still matters.
    number: Option<u64>,
    id: Id,
    /// Until here an earlier process had applied all to the pages that it left.
    applied: Option<Id>,
}

impl StreamPosition {
    fn after((number, id): (u64, Id)) -> Self {
        Self { number: Some(number), applied: Some(id), ..Self::default() }
    }

    /// Whether the stream has lost its last entries.
    fn is_beyond(&self, number: u64) -> bool {
        self.number.is_some_and(|position| position > number)
    }

    /// Continues to the entry with this number. Returns whether there were others in between.
    fn advance(&mut self, number: u64) -> bool {
        let Some(position) = &mut self.number else { return false };
        let is_gap = number > *position + 1;
        *position = number.max(*position);
        is_gap
    }

    /// All that the stream has is read. Returns whether some of what it had is missing.
    fn end(&mut self, number: u64) -> bool {
        self.number.replace(number).is_some_and(|position| position < number)
    }
}

/// The changes that were read, and are not applied yet.
#[derive(Debug, Default)]
pub(super) struct ChangeBatch {
    /// Whether changes may be lost, so that nothing from before can be trusted.
    pub(super) is_lost: bool,
    /// The generation is another one, in which only these purges count.
    pub(super) is_new_generation: bool,
    /// Purges, this replica's own included, with their times.
    pub(super) purged: Vec<(PurgeTarget, Millis)>,
    /// What other replicas changed, and when they published it.
    pub(super) foreign: Vec<(Change, Millis)>,
}

/// An entry's fields with their names: its number, and what is sealed.
type Fields = (String, u64, String, Vec<u8>);

impl FeedReader {
    /// Generations that are remembered after they ended.
    const MOST_ENDED: usize = 16;
    /// The most replies of one reading: more than both streams together need.
    const REPLIES: usize = 128;

    pub(super) fn new(awaits_disk: bool) -> Self {
        Self { awaits_disk, ..Self::default() }
    }

    /// Reads all that is new into the batch. Returns the generation, and the store's time.
    ///
    /// # Errors
    ///
    /// If the store does not answer, or refuses.
    pub(super) async fn read(&mut self, store: &SharedStore) -> Result<(Generation, StoreTime), StoreError> {
        for _ in 0..Self::REPLIES {
            let ((time, _), generation, purged, replaced, purges, replacements) =
                scripts::read(store, [self.purged.id, self.replaced.id]).await?;
            let generation = Generation::read(&generation).ok_or_else(|| unreadable("a generation"))?;
            if self.generation != Some(generation) {
                match self.ended.contains(&generation) {
                    true => renew(store, generation).await?,
                    false => self.enter(generation),
                }
                continue;
            }
            if self.purged.is_beyond(purged) || self.replaced.is_beyond(replaced) {
                renew(store, generation).await?;
                continue;
            }
            let latest = time / 1000 + AHEAD.as_millis() as u64;
            let is_end = purges.len() < AT_ONCE && replacements.len() < AT_ONCE;
            let is_sound = self.take(store, &generation, Stream::Purged, purges, purged, latest)?
                && self.take(store, &generation, Stream::Replaced, replacements, replaced, latest)?;
            if !is_sound {
                renew(store, generation).await?;
                continue;
            }
            if is_end {
                self.batch.is_lost |= self.purged.end(purged) | self.replaced.end(replaced);
                self.has_lost |= self.batch.is_lost && self.awaits_disk;
                return Ok((generation, StoreTime(time)));
            }
        }
        Err(unreadable("an end"))
    }

    /// Continues from the checkpoint of an earlier process. What its pages have missed is read again, even if memory
    /// has it. This process began at `start`, or later.
    pub(super) fn resume(&mut self, saved_checkpoint: &SavedCheckpoint, start: Millis) {
        self.awaits_disk = false;
        let inherited = match saved_checkpoint {
            SavedCheckpoint::NoPages => Checkpoint::NoPages,
            SavedCheckpoint::Missing => Checkpoint::Missing,
            SavedCheckpoint::Found(checkpoint) => read_checkpoint(checkpoint).unwrap_or(Checkpoint::Missing),
        };
        if self.generation.is_none() {
            self.inherited = inherited;
            return;
        }
        let (is_unknown, position): (_, [StreamPosition; 2]) = match inherited {
            Checkpoint::NoPages => (false, Default::default()),
            Checkpoint::At(of, last) if Some(of) == self.generation => (false, last.map(StreamPosition::after)),
            Checkpoint::Missing | Checkpoint::At(..) => (true, Default::default()),
        };
        // The pages that this process itself has sent to the disk lack what came since it began.
        let until = |applied: Option<Id>| Some(applied.map_or((start, 0), |last| last.min((start, 0))));
        [self.purged, self.replaced] =
            position.map(|position| StreamPosition { applied: until(position.applied), ..position });
        self.batch.is_lost |= self.has_lost || is_unknown;
        self.batch.foreign.clear();
    }

    /// The checkpoint for the next process. `None` if it is the same as before, or if the changes are not on the disk.
    pub(super) fn new_checkpoint(&mut self) -> Option<Vec<u8>> {
        if self.awaits_disk {
            return None;
        }
        let mut checkpoint = self.generation?.to_string();
        for StreamPosition { number, id, applied } in [&self.purged, &self.replaced] {
            let id = (*id).max(applied.unwrap_or_default());
            checkpoint += &format!(" {} {} {}", (*number)?, id.0, id.1);
        }
        if checkpoint == self.last_checkpoint {
            return None;
        }
        self.last_checkpoint.clone_from(&checkpoint);
        Some(checkpoint.into_bytes())
    }

    fn enter(&mut self, generation: Generation) {
        let (mut is_lost, mut position) =
            (self.generation.is_some(), [StreamPosition::default(), StreamPosition::default()]);
        match std::mem::take(&mut self.inherited) {
            Checkpoint::NoPages => {}
            Checkpoint::At(of, last) if of == generation => position = last.map(StreamPosition::after),
            Checkpoint::Missing | Checkpoint::At(..) => is_lost = true,
        }
        if let Some(ended) = self.generation.replace(generation) {
            self.ended.push(ended);
            if self.ended.len() > Self::MOST_ENDED {
                self.ended.remove(0);
            }
        }
        [self.purged, self.replaced] = position;
        self.batch =
            ChangeBatch { is_lost: is_lost || self.batch.is_lost, is_new_generation: true, ..ChangeBatch::default() };
    }

    /// Takes entries of a stream that has had `had` of them. Returns `false` if one is from after `latest`.
    fn take(
        &mut self,
        store: &SharedStore,
        generation: &Generation,
        stream: Stream,
        entries: Vec<Value>,
        had: u64,
        latest: Millis,
    ) -> Result<bool, StoreError> {
        let position = match stream {
            Stream::Purged => &mut self.purged,
            Stream::Replaced => &mut self.replaced,
        };
        for entry in entries {
            let (id, fields) = <(String, Value)>::from_redis_value(entry).map_err(|_| unreadable("an entry"))?;
            let id = read_id(&id).ok_or_else(|| unreadable("an id"))?;
            let (at, is_applied) = (id.0, position.applied.is_some_and(|last| id <= last));
            // Nothing that is published after it would have an earlier time.
            if at > latest {
                return Ok(false);
            }
            position.id = id;
            let fields = Fields::from_redis_value(fields).ok().filter(|(_, number, ..)| *number <= had);
            if let Some((_, number, ..)) = &fields
                && !is_applied
            {
                self.batch.is_lost |= position.advance(*number);
            }
            let opened = fields.and_then(|(.., sealed)| open(store, generation, stream, &sealed));
            if opened.is_none() {
                store.unsealed();
            }
            let (is_own, change) = match (opened, stream) {
                (Some(opened), _) => opened,
                (None, Stream::Purged) => (false, Change::Purged(PurgeTarget::Everything(None))),
                (None, Stream::Replaced) => continue,
            };
            if let Change::Purged(target) = change {
                self.batch.purged.push((target, at));
            }
            if !is_own && !is_applied {
                self.batch.foreign.push((change, at));
            }
        }
        Ok(true)
    }
}

fn unreadable(what: &str) -> StoreError {
    StoreError::Failed(format!("the changes in the store lack {what}"))
}

pub(super) fn read_checkpoint(checkpoint: &[u8]) -> Option<Checkpoint> {
    let mut parts = std::str::from_utf8(checkpoint).ok()?.split(' ');
    let generation = Generation::read(parts.next()?)?;
    let mut number = || parts.next()?.parse().ok();
    let mut last = || Some((number()?, (number()?, number()?)));
    let last = [last()?, last()?];
    parts.next().is_none().then_some(Checkpoint::At(generation, last))
}
