//! The scripts that read and write the two streams of changes in the store.
//!
//! The store may contain anything. Damaged keys are deleted, and a new generation begins, as after a flush.

use std::time::Duration;

use redis::{Cmd, Value};

use super::change::{Change, HEAD, Stream};
use super::generation::Generation;
use crate::replicas::clock::{self, READ_CLOCK};
use crate::replicas::purge_log::Millis;
use crate::replicas::script::LuaScript;
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
pub(super) const AT_ONCE: usize = 512;

/// Reads what is new, and begins a generation where there is none, or where the keys are damaged: a key has another
/// type, the generation or a number of entries cannot be read, or there are fewer purges than were added and not
/// trimmed.
///
/// Keys: the head, purges, replaced pages, the clock. Arguments: the time that the clock shows at least, a generation
/// to begin with, milliseconds to live, the last id of each stream, entries at most. Returns the time and that of the
/// server itself in microseconds, the generation, how many entries each stream has ever had, and the new ones of each.
static READ: LuaScript = LuaScript::of(&[
    READ_CLOCK,
    r"
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
",
]);

/// Adds an entry, if the generation is still this one.
///
/// Keys: the head, the entry's stream, the other stream, the clock. Arguments: the time that the clock shows at least;
/// the time that it shows at most, by what this replica knows; the generation, the entry, milliseconds to live, entries
/// at most, milliseconds after which entries are of no more use, and the generation to begin instead where there are
/// too many; without one, the oldest entries go. Returns the entry's id; nothing if it was not added. Its time is no
/// earlier than any replica took it to be.
static APPEND: LuaScript = LuaScript::of(&[
    READ_CLOCK,
    r"
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
",
]);

/// Begins another generation in place of this one.
///
/// Keys: the head, purges, replaced pages. Arguments: the generation that ends, the one that begins, milliseconds to
/// live.
static RENEW: LuaScript = LuaScript::of(&[r"
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('HSET', KEYS[1], 'generation', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"]);

/// An entry's id: its time, and a number.
pub(super) type Id = (Millis, u64);

/// What [`READ`] returns.
pub(super) type Reply = ((u64, u64), String, u64, u64, Vec<Value>, Vec<Value>);

/// Reads both streams after these entries, and begins a generation if there is none.
///
/// # Errors
///
/// If the store does not answer, or refuses.
pub(super) async fn read(store: &SharedStore, after: [Id; 2]) -> Result<Reply, StoreError> {
    let mut command = call(store, &READ, Stream::Purged, Stream::Replaced);
    command.arg(store.least_time()).arg(Generation::random().to_string()).arg(LONGEST.as_millis() as u64);
    for (time, number) in after {
        command.arg(format!("{time}-{number}"));
    }
    command.arg(AT_ONCE);
    let sent = store.clock().moment();
    let reply = store.run_always("changes_read", &command).await;
    let reply: Reply = match reply {
        Ok(reply) => reply,
        Err(error) => return Err(store.explain(&store.key_names().of_deployment(HEAD), error).await),
    };
    // What is shared in a generation has times of a clock that is known since it began.
    store.learn_time(reply.0, sent);
    Ok(reply)
}

/// Adds a change, for all replicas. Returns its time.
///
/// # Errors
///
/// If it was not added, as far as is known.
pub(super) async fn append(store: &SharedStore, generation: Generation, change: &Change) -> Result<Millis, StoreError> {
    let (stream, other) = match change.stream() {
        Stream::Purged => (Stream::Purged, Stream::Replaced),
        Stream::Replaced => (Stream::Replaced, Stream::Purged),
    };
    let entry = [store.id().as_bytes(), &change.write()].concat();
    let name = store.key_names().of_deployment(stream.key());
    let failed = |why: &str| StoreError::Failed(format!("a change cannot be published: {why}"));
    let entry =
        store.sealer().seal(&context(&name, &generation.0), &entry).map_err(|_| failed("it cannot be sealed"))?;
    let mut command = call(store, &APPEND, stream, other);
    let StoreTime(latest) = store.latest_time_of(store.clock().moment()).ok_or(StoreError::Down)?;
    command.arg(store.least_time()).arg(latest);
    let live = LONGEST.as_millis() as u64;
    command.arg(generation.to_string()).arg(entry).arg(live);
    match stream {
        Stream::Purged => command.arg(MOST_PURGES).arg(live).arg(Generation::random().to_string()),
        Stream::Replaced => command.arg(MOST_REPLACED).arg(live).arg(""),
    };
    let id: Option<String> = store.run_always("changes_append", &command).await?;
    id.as_deref().and_then(read_id).map(|(at, _)| at).ok_or_else(|| failed("another generation has begun"))
}

/// Begins another generation in place of this one.
///
/// # Errors
///
/// If the store does not answer, or refuses.
pub(super) async fn renew(store: &SharedStore, generation: Generation) -> Result<(), StoreError> {
    let mut command = call(store, &RENEW, Stream::Purged, Stream::Replaced);
    command.arg(generation.to_string()).arg(Generation::random().to_string()).arg(LONGEST.as_millis() as u64);
    store.run_always("changes_renew", &command).await
}

fn call(store: &SharedStore, script: &LuaScript, stream: Stream, other: Stream) -> Cmd {
    let names = store.key_names();
    script.call(&[HEAD, stream.key(), other.key(), clock::KEY].map(|key| names.of_deployment(key)))
}

pub(super) fn read_id(id: &str) -> Option<Id> {
    let (time, number) = id.split_once('-')?;
    Some((time.parse().ok()?, number.parse().ok()?))
}

/// Opens an entry. Returns whether this replica made the change, and the change.
pub(super) fn open(
    store: &SharedStore,
    generation: &Generation,
    stream: Stream,
    sealed: &[u8],
) -> Option<(bool, Change)> {
    let name = store.key_names().of_deployment(stream.key());
    let entry = store.sealer().open(&context(&name, &generation.0), sealed)?;
    let (maker, change) = entry.split_at_checked(store.id().len())?;
    Some((maker == store.id().as_bytes(), Change::read(stream, change)?))
}

fn context<'c>(name: &'c str, generation: &'c [u8]) -> Context<'c> {
    Context { kind: "change", account: "", key: name, bound: generation }
}
