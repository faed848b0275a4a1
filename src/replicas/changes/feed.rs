//! The two streams of changes in the store, and their generation.
//!
//! The store may contain anything. Damaged keys are deleted, and a new generation begins, as after a flush. Entries
//! that cannot be read or unsealed are counted. An unreadable purge may be a purge of any page, so it is treated as a
//! purge of all pages.

use std::time::Duration;

use redis::{Cmd, FromRedisValue, Value};

use super::generation::Generation;
use crate::cache::SavedCheckpoint;
use crate::replicas::clock::{self, AHEAD, READ_CLOCK};
use crate::replicas::purges::{Millis, Target};
use crate::replicas::seal::Context;
use crate::replicas::{SharedStore, StoreError, StoreTime};

/// No page stays in the store for longer, and purges are remembered for this long.
pub(in crate::replicas) const LONGEST: Duration = Duration::from_secs(31 * 24 * 3600);
/// Purges in the stream. If there are more within [`LONGEST`], a new generation begins.
const MOST_PURGES: usize = 16_384;
/// Replaced pages in the stream. Older ones are removed, and a replica that has not read them drops all pages in its
/// memory.
const MOST_REPLACED: usize = 4096;
/// Entries that are read at once.
const AT_ONCE: usize = 512;

/// Reads what is new, and begins a generation where there is none, or where the keys are damaged: a key has another
/// type, the generation or a number of entries cannot be read, or there are fewer purges than were added and not
/// trimmed.
///
/// Keys: the head, purges, replaced pages, the clock. Arguments: the time that the clock shows at least, a generation to
/// begin with, milliseconds to live, the last id of each stream, entries at most. Returns the time and that of the server
/// itself in microseconds, the generation, how many entries each stream has ever had, and the new ones of each.
const READ: &str = r"
local now, own = read_clock(KEYS[4], KEYS[1], ARGV[1])
-- What is longer than any change is damage, and does not cross.
local function range(key, after)
  local entries = redis.call('XRANGE', key, '(' .. after, '+', 'COUNT', ARGV[6])
  for _, entry in ipairs(entries) do
    local length = 16 * #entry[2]
    for _, word in ipairs(entry[2]) do length = length + #word end
    if length > 1024 then entry[2] = {} end
  end
  return entries
end
local function is_number(text) return #text < 16 and text:find('^%d+$') end
local function read_head()
  for n, kind in ipairs({'hash', 'stream', 'stream'}) do
    local found = redis.call('TYPE', KEYS[n]).ok
    if found ~= kind and (n == 1 or found ~= 'none') then return false end
  end
  local head = redis.call('HMGET', KEYS[1], 'generation', KEYS[2], KEYS[3], 'trimmed')
  for n = 2, 4 do head[n] = head[n] or '0' end
  if not head[1] or #head[1] ~= 32 or head[1]:find('[^0-9a-f]') then return false end
  if not (is_number(head[2]) and is_number(head[3]) and is_number(head[4])) then return false end
  return redis.call('XLEN', KEYS[2]) >= head[2] - head[4] and head
end
local head = read_head()
if not head then
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  redis.call('HSET', KEYS[1], 'generation', ARGV[2])
  head = {ARGV[2], '0', '0'}
end
if redis.call('PTTL', KEYS[1]) < ARGV[3] / 2 then
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[3]) end
end
return {
  {now, own},
  head[1],
  head[2],
  head[3],
  range(KEYS[2], ARGV[4]),
  range(KEYS[3], ARGV[5]),
}
";

/// Adds an entry, if the generation is still this one.
///
/// Keys: the head, the entry's stream, the other stream, the clock. Arguments: the time that the clock shows at least; the
/// time that it shows at most, by what this replica knows; the generation, the entry, milliseconds to live, entries at
/// most, milliseconds after which entries are of no more use, and the generation to begin instead where there are too many;
/// without one, the oldest entries go. Returns the entry's id; nothing if it was not added. Its time is no earlier than any
/// replica took it to be.
const APPEND: &str = r"
local now = read_clock(KEYS[4], KEYS[1], ARGV[1])
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[3] then return false end
local trimmed = redis.call('XTRIM', KEYS[2], 'MINID', math.max(0, math.floor(now / 1000) - ARGV[7]))
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[6]) then
  if ARGV[8] ~= '' then
    redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
    redis.call('HSET', KEYS[1], 'generation', ARGV[8])
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
    return false
  end
  redis.call('XTRIM', KEYS[2], 'MAXLEN', ARGV[6] - 1)
elseif ARGV[8] ~= '' and trimmed > 0 then
  redis.call('HINCRBY', KEYS[1], 'trimmed', trimmed)
end
local number = redis.call('HINCRBY', KEYS[1], KEYS[2], 1)
local id = string.format('%.0f-%.0f', math.floor(math.max(now, tonumber(ARGV[2])) / 1000), number)
local added = redis.pcall('XADD', KEYS[2], id, 'number', number, 'entry', ARGV[4])
-- The last one may be later, and then the next one is as late.
if type(added) == 'table' then added = redis.call('XADD', KEYS[2], '*', 'number', number, 'entry', ARGV[4]) end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[5]) end
return added
";

/// Begins another generation in place of this one.
///
/// Keys: the head, purges, replaced pages. Arguments: the generation that ends, the one that begins, milliseconds to live.
const RENEW: &str = r"
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('HSET', KEYS[1], 'generation', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
";

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Pages were purged.
    Purged(Target),
    /// A page was replaced by one that was requested then.
    Replaced { key: [u8; 32], asked: StoreTime },
}

impl Change {
    fn write(&self) -> Vec<u8> {
        match self {
            Self::Purged(target) => target.write(),
            Self::Replaced { key, asked } => [&key[..], &asked.0.to_le_bytes()].concat(),
        }
    }

    fn read(kind: Kind, bytes: &[u8]) -> Option<Self> {
        Some(match kind {
            Kind::Purged => Self::Purged(Target::read(bytes)?),
            Kind::Replaced => {
                let (key, asked) = bytes.split_first_chunk()?;
                Self::Replaced { key: *key, asked: StoreTime(u64::from_le_bytes(asked.try_into().ok()?)) }
            }
        })
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Purged(_) => Kind::Purged,
            Self::Replaced { .. } => Kind::Replaced,
        }
    }
}

/// The key of the generation, and of how many entries each stream has ever had. All keys are in one hash slot, so that one
/// script can use them in a cluster.
pub(in crate::replicas) const HEAD: &str = "{changes}";

/// The two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Purged,
    Replaced,
}

impl Kind {
    fn key(self) -> &'static str {
        match self {
            Self::Purged => "{changes}:purged",
            Self::Replaced => "{changes}:replaced",
        }
    }
}

/// Reads the streams, and knows how far it has come.
#[derive(Debug, Default)]
pub(super) struct Reader {
    generation: Option<Generation>,
    /// The earlier generations. If one of them is found again, the store has returned to an older state.
    left: Vec<Generation>,
    purged: Passed,
    replaced: Passed,
    /// What an earlier process has left, until the first generation is known.
    left_behind: LeftBehind,
    /// It is not known yet what is on the disk: what is read is applied to memory alone.
    pub(super) awaits_disk: bool,
    /// Whether changes were lost since then.
    has_lost: bool,
    last_checkpoint: String,
    /// What was read and is not applied yet.
    pub(super) news: News,
}

/// What an earlier process has left in memory or on the disk of this one.
#[derive(Debug, Default, PartialEq)]
pub(super) enum LeftBehind {
    #[default]
    Nothing,
    /// Pages for which it is not known what they missed.
    Pages,
    /// Pages to which the changes of this generation were applied, up to these entries.
    PagesAt(Generation, [(u64, Id); 2]),
}

/// An entry's id: its time, and a number.
type Id = (Millis, u64);

/// The last entry that was read from one stream.
#[derive(Debug, Default)]
struct Passed {
    /// How many entries the stream had ever had. `None` until all entries of the first reading are read: before that,
    /// this replica cannot have missed an entry that still matters.
    number: Option<u64>,
    id: Id,
    /// Until here an earlier process had applied all to the pages that it left.
    applied: Option<Id>,
}

impl Passed {
    fn after((number, id): (u64, Id)) -> Self {
        Self { number: Some(number), applied: Some(id), ..Self::default() }
    }

    /// Whether the stream has lost its last entries.
    fn is_beyond(&self, number: u64) -> bool {
        self.number.is_some_and(|passed| passed > number)
    }

    /// Continues to the entry with this number. Returns whether there were others in between.
    fn advance(&mut self, number: u64) -> bool {
        let Some(passed) = &mut self.number else { return false };
        let is_gap = number > *passed + 1;
        *passed = number.max(*passed);
        is_gap
    }

    /// All that the stream has is read. Returns whether some of what it had is missing.
    fn end(&mut self, number: u64) -> bool {
        self.number.replace(number).is_some_and(|passed| passed < number)
    }
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Whether changes may be lost, so that nothing from before can be trusted.
    pub(super) is_lost: bool,
    /// The generation is another one, in which only these purges count.
    pub(super) is_new: bool,
    /// Purges, this replica's own included, with their times.
    pub(super) purged: Vec<(Target, Millis)>,
    /// What other replicas changed, and when they told it.
    pub(super) foreign: Vec<(Change, Millis)>,
}

/// An entry's fields with their names: its number, and what is sealed.
type Fields = (String, u64, String, Vec<u8>);
type Reply = ((u64, u64), String, u64, u64, Vec<Value>, Vec<Value>);

impl Reader {
    /// Generations that are remembered after they ended.
    const LEFT: usize = 16;
    /// The most replies of one reading: more than both streams together need.
    const REPLIES: usize = 128;

    pub(super) fn new(awaits_disk: bool) -> Self {
        Self { awaits_disk, ..Self::default() }
    }

    /// Reads all that is new into `news`. Returns the generation, and the store's time.
    ///
    /// # Errors
    ///
    /// If the store does not answer, or refuses.
    pub(super) async fn read(&mut self, store: &SharedStore) -> Result<(Generation, StoreTime), StoreError> {
        for _ in 0..Self::REPLIES {
            let ((time, _), generation, purged, replaced, purges, replacements) = self.reply(store).await?;
            let generation = Generation::read(&generation).ok_or_else(|| unreadable("a generation"))?;
            if self.generation != Some(generation) {
                match self.left.contains(&generation) {
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
            let is_sound = self.take(store, &generation, Kind::Purged, purges, purged, latest)?
                && self.take(store, &generation, Kind::Replaced, replacements, replaced, latest)?;
            if !is_sound {
                renew(store, generation).await?;
                continue;
            }
            if is_end {
                self.news.is_lost |= self.purged.end(purged) | self.replaced.end(replaced);
                self.has_lost |= self.news.is_lost && self.awaits_disk;
                return Ok((generation, StoreTime(time)));
            }
        }
        Err(unreadable("an end"))
    }

    async fn reply(&self, store: &SharedStore) -> Result<Reply, StoreError> {
        let mut command = script(store, READ, Kind::Purged, Kind::Replaced);
        command.arg(store.least_time()).arg(Generation::random().to_string()).arg(LONGEST.as_millis() as u64);
        for Passed { id: (time, number), .. } in [&self.purged, &self.replaced] {
            command.arg(format!("{time}-{number}"));
        }
        command.arg(AT_ONCE);
        let sent = store.clock().moment();
        let reply: Reply = store.run("changes_read", &command).await?;
        // What is shared in a generation has times of a clock that is known since it began.
        store.learn_time(reply.0, sent);
        Ok(reply)
    }

    /// Takes over what an earlier process has left on the disk. What its pages have missed is read again, as far as memory
    /// alone has it. This process began at `start`, or later.
    pub(super) fn resume(&mut self, saved_checkpoint: &SavedCheckpoint, start: Millis) {
        self.awaits_disk = false;
        let left = match saved_checkpoint {
            SavedCheckpoint::NoPages => LeftBehind::Nothing,
            SavedCheckpoint::Missing => LeftBehind::Pages,
            SavedCheckpoint::Found(checkpoint) => read_checkpoint(checkpoint).unwrap_or(LeftBehind::Pages),
        };
        if self.generation.is_none() {
            self.left_behind = left;
            return;
        }
        let (is_unknown, passed): (_, [Passed; 2]) = match left {
            LeftBehind::Nothing => (false, Default::default()),
            LeftBehind::PagesAt(of, last) if Some(of) == self.generation => (false, last.map(Passed::after)),
            LeftBehind::Pages | LeftBehind::PagesAt(..) => (true, Default::default()),
        };
        // The pages that this process itself has sent to the disk lack what came since it began.
        let until = |applied: Option<Id>| Some(applied.map_or((start, 0), |last| last.min((start, 0))));
        [self.purged, self.replaced] = passed.map(|passed| Passed { applied: until(passed.applied), ..passed });
        self.news.is_lost |= self.has_lost || is_unknown;
        self.news.foreign.clear();
    }

    /// How far all is read, for the process after this one. `None` if that is as before, or not applied to the disk.
    pub(super) fn new_checkpoint(&mut self) -> Option<Vec<u8>> {
        if self.awaits_disk {
            return None;
        }
        let mut checkpoint = self.generation?.to_string();
        for Passed { number, id, applied } in [&self.purged, &self.replaced] {
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
        let (mut is_lost, mut passed) = (self.generation.is_some(), [Passed::default(), Passed::default()]);
        match std::mem::take(&mut self.left_behind) {
            LeftBehind::Nothing => {}
            LeftBehind::PagesAt(of, last) if of == generation => passed = last.map(Passed::after),
            LeftBehind::Pages | LeftBehind::PagesAt(..) => is_lost = true,
        }
        if let Some(left) = self.generation.replace(generation) {
            self.left.push(left);
            if self.left.len() > Self::LEFT {
                self.left.remove(0);
            }
        }
        [self.purged, self.replaced] = passed;
        self.news = News { is_lost: is_lost || self.news.is_lost, is_new: true, ..News::default() };
    }

    /// Takes entries of a stream that has had `had` of them. Returns `false` if one is from after `latest`.
    fn take(
        &mut self,
        store: &SharedStore,
        generation: &Generation,
        kind: Kind,
        entries: Vec<Value>,
        had: u64,
        latest: Millis,
    ) -> Result<bool, StoreError> {
        let passed = match kind {
            Kind::Purged => &mut self.purged,
            Kind::Replaced => &mut self.replaced,
        };
        for entry in entries {
            let (id, fields) = <(String, Value)>::from_redis_value(entry).map_err(|_| unreadable("an entry"))?;
            let id = read_id(&id).ok_or_else(|| unreadable("an id"))?;
            let (at, is_applied) = (id.0, passed.applied.is_some_and(|last| id <= last));
            // Nothing that is told after it would have a time before.
            if at > latest {
                return Ok(false);
            }
            passed.id = id;
            let fields = Fields::from_redis_value(fields).ok().filter(|(_, number, ..)| *number <= had);
            if let Some((_, number, ..)) = &fields
                && !is_applied
            {
                self.news.is_lost |= passed.advance(*number);
            }
            let opened = fields.and_then(|(.., sealed)| open(store, generation, kind, &sealed));
            if opened.is_none() {
                store.unsealed();
            }
            let (is_own, change) = match (opened, kind) {
                (Some(opened), _) => opened,
                (None, Kind::Purged) => (false, Change::Purged(Target::Everything(None))),
                (None, Kind::Replaced) => continue,
            };
            if let Change::Purged(target) = change {
                self.news.purged.push((target, at));
            }
            if !is_own && !is_applied {
                self.news.foreign.push((change, at));
            }
        }
        Ok(true)
    }
}

fn unreadable(what: &str) -> StoreError {
    StoreError::Failed(format!("what the store tells of changes has not {what}"))
}

fn read_id(id: &str) -> Option<Id> {
    let (time, number) = id.split_once('-')?;
    Some((time.parse().ok()?, number.parse().ok()?))
}

pub(super) fn read_checkpoint(checkpoint: &[u8]) -> Option<LeftBehind> {
    let mut parts = std::str::from_utf8(checkpoint).ok()?.split(' ');
    let generation = Generation::read(parts.next()?)?;
    let mut number = || parts.next()?.parse().ok();
    let mut last = || Some((number()?, (number()?, number()?)));
    let last = [last()?, last()?];
    parts.next().is_none().then_some(LeftBehind::PagesAt(generation, last))
}

/// Adds a change, for all replicas. Returns its time.
///
/// # Errors
///
/// If it was not added, as far as is known.
pub(super) async fn append(store: &SharedStore, generation: Generation, change: &Change) -> Result<Millis, StoreError> {
    let (kind, other) = match change.kind() {
        Kind::Purged => (Kind::Purged, Kind::Replaced),
        Kind::Replaced => (Kind::Replaced, Kind::Purged),
    };
    let entry = [store.id().as_bytes(), &change.write()].concat();
    let name = store.key_names().of_deployment(kind.key());
    let failed = |why: &str| StoreError::Failed(format!("a change cannot be told: {why}"));
    let entry =
        store.sealer().seal(&context(&name, &generation.0), &entry).map_err(|_| failed("it cannot be sealed"))?;
    let mut command = script(store, APPEND, kind, other);
    let StoreTime(latest) = store.latest_time_of(store.clock().moment()).ok_or(StoreError::Down)?;
    command.arg(store.least_time()).arg(latest);
    let live = LONGEST.as_millis() as u64;
    command.arg(generation.to_string()).arg(entry).arg(live);
    match kind {
        Kind::Purged => command.arg(MOST_PURGES).arg(live).arg(Generation::random().to_string()),
        Kind::Replaced => command.arg(MOST_REPLACED).arg(live).arg(""),
    };
    let id: Option<String> = store.run("changes_append", &command).await?;
    id.as_deref().and_then(read_id).map(|(at, _)| at).ok_or_else(|| failed("another generation has begun"))
}

async fn renew(store: &SharedStore, generation: Generation) -> Result<(), StoreError> {
    let mut command = script(store, RENEW, Kind::Purged, Kind::Replaced);
    command.arg(generation.to_string()).arg(Generation::random().to_string()).arg(LONGEST.as_millis() as u64);
    store.run("changes_renew", &command).await
}

fn script(store: &SharedStore, script: &str, stream: Kind, other: Kind) -> Cmd {
    let names = store.key_names();
    let mut command = redis::cmd("EVAL");
    command.arg([READ_CLOCK, script].concat()).arg(4);
    for key in [HEAD, stream.key(), other.key(), clock::KEY] {
        command.arg(names.of_deployment(key));
    }
    command
}

/// Whether this replica made a change, and which one it is.
fn open(store: &SharedStore, generation: &Generation, kind: Kind, sealed: &[u8]) -> Option<(bool, Change)> {
    let name = store.key_names().of_deployment(kind.key());
    let entry = store.sealer().open(&context(&name, &generation.0), sealed)?;
    let (maker, change) = entry.split_at_checked(store.id().len())?;
    Some((maker == store.id().as_bytes(), Change::read(kind, change)?))
}

fn context<'c>(name: &'c str, generation: &'c [u8]) -> Context<'c> {
    Context { kind: "change", account: "", key: name, bound: generation }
}
