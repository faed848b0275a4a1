-- One replica and the common budget of an account.
--
-- The replica says what it may spend, what it has learnt, what it gives back, and which teams' calls wait there. The
-- script grants tokens to the teams whose turn it is. All times are integers in microseconds on the store's clock, below
-- 2^53, so that Lua's numbers hold them exactly.
--
-- Tokens come from a bucket (GCRA): `tat` is the time until which the tokens taken so far are paid for. A token is for the
-- time `at` >= now, and needs max(tat, at) + period <= at + burst * period. So over any time T no more than
-- burst + T / period are granted. A token may be granted up to `ahead` before its time: the replica waits for it. A
-- replica that is farther away gets its tokens earlier, because it cannot ask as often.
--
-- Between teams: start-time fair queueing, as in `src/budget/fair_queue.rs`. A token is for the team with the least start
-- tag of all that wait anywhere; calls of clients come before refreshes. If that team does not wait at the replica that
-- asks, the replica is told to ask again. A replica that is far away may have the tokens of a round trip out of turn:
-- otherwise each turn would cost a round trip. The start tags make up for it.
--
-- Between replicas where the same team waits: the one that has had no token for this team for longest is next. Otherwise
-- the one that asks a little earlier would have nearly all of them. If nobody takes a token for some milliseconds, any of
-- them gets it. Replicas that are far away take no turns, and nor do any at rates above 50 a second.
--
-- The circuit: `open` is 0 while it is closed. Once that time is past, the circuit is half open, until a replica says that a
-- probe succeeded. Meanwhile a token is a probe: while one is under way nobody gets another, or until `probed`, because the
-- replica may have died. Probes of several queries that fail open it again, wherever they were sent. Each opening is known
-- by the time at which it began.
--
-- KEYS (all in one hash slot; each expires)
--   1  hash  tat, paused, open, probed: times; period, burst: the lowest of all replicas, read at `read`; virtual: the
--            virtual time; granted: all tokens so far; base, log: see `refund`; opened: the last opening of the circuit;
--            failing: queries whose probes failed, each with the time until which that counts
--   2  hash  replica -> "until period burst": what each may spend
--   3  hash  replica -> "until queue" and, for each team that waits there, " team class calls period burst last"; `last`
--            is its last token there, as `granted` was then
--   4  hash  team:class -> its start tag; team -> the TAT of its own limit
-- ARGV
--   1  the replica
--   2  microseconds between two tokens; 0 is no limit      3  burst
--   4  a pause, from now                                   5  for how long the circuit is open, from now
--   6  tokens wanted at most                               7  ahead for a replica that is near: see above
--   8  after this silence a replica is gone                9  grace: a replica that comes so late does not wait any more
--  10  the longest time until a replica asks again        11  after this time another asks again whose turn it is not
--  12  the latest time at which the replica still waits for the reply: a store that froze runs the script late
--  13  how long a round trip takes: how far away the replica is
--  14  tokens that it spent while it did not reach this store, and that its part of the rate has not paid for
--  15  the longest pause                                  16  the longest time for which the circuit is open
--  17  the opening of the circuit that it takes part in, 0 if that began there, or -1
--  18  the opening that its probe has ended, or 0         19  queries whose probes failed there, with spaces between them
--  20  how long a probe keeps others from another         21  so many queries whose probes failed open the circuit again
--  22  the calls of clients in the replica's queue, of which only those count as waiting that could be sent
--  23  number n of tokens that are given back, then for each: its time, the hash and class of its team, its cost, and the
--      period of the team's own limit
--  24+5n, for each team: its hash, class (0 clients, 1 refreshes), cost of a token, calls that wait, period and burst of its
--      own limit (0 0: none)
-- Reply, integers
--   1 period   2 burst   3 time until `tat`, negative if it is past   4 rest of the pause
--   5 rest of the open circuit, negative if it is half open   6 the opening, 0 if it is closed
--   7 granted  8 calls of clients in other queues   9 ask again after this time   10 now
--   for each team: after this time its own limit has a token
--   for each token: the number of its team in ARGV, from 1; after this time it may be used; its time, to give it back

local function whole(number) return string.format('%.0f', number) end
local function words(text)
  local found = {}
  for word in string.gmatch(text or '', '%S+') do found[#found + 1] = word end
  return found
end
-- What this script cannot have written counts as absent, so that damage neither stops an account nor speeds it up.
local function number(text)
  return text and #text <= 16 and string.find(text, '^%d+$') and tonumber(text) or nil
end
local function get(command, key, ...)
  local found = redis.pcall(command, key, ...)
  if type(found) ~= 'table' or not found.err then return found end
  if string.sub(found.err, 1, 9) ~= 'WRONGTYPE' then error(found.err, 0) end
  redis.call('DEL', key)
  return command == 'HGETALL' and {} or nil
end
local function pairs_of(key)
  local flat, found = get('HGETALL', key), {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local replica = ARGV[1]
local own_period, own_burst = tonumber(ARGV[2]), tonumber(ARGV[3])
local away = tonumber(ARGV[13])
local most, ahead, alive = tonumber(ARGV[6]), tonumber(ARGV[7]) + away, tonumber(ARGV[8])
local grace = tonumber(ARGV[9]) + away
local longest, retry, latest = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local longest_open, probe = tonumber(ARGV[16]), tonumber(ARGV[20])

-- Three years. No rate is so low, and a TAT that is later by that much can still be read.
local longest_period = 100000000000000

local state = pairs_of(KEYS[1])
local numbers = { 'tat', 'paused', 'open', 'opened', 'probed', 'period', 'burst', 'read', 'virtual', 'granted', 'base' }
for _, name in ipairs(numbers) do
  local value = number(state[name])
  if not value or name == 'period' and value > longest_period then
    state = {}
    break
  end
  state[name] = value
end
local function field(name) return state[name] or 0 end
local tat, period, burst = field('tat'), field('period'), field('burst')
local virtual, granted, base = field('virtual'), field('granted'), field('base')
local log, read = state.log or '', state.read
if #log > 64 * 17 or base > tat then base, log = tat, '' end
-- Nobody would use a token of an ask that is late. What it tells is as old as that.
local is_late, told = now > latest, math.min(now, latest)
if is_late then most = 0 end

-- Start tags only matter relative to one another. They begin anew before they become too long, once in weeks.
if virtual > 1000000000000000 then
  for name in pairs(pairs_of(KEYS[4])) do
    if string.find(name, ':', 1, true) then redis.call('HDEL', KEYS[4], name) end
  end
  virtual = 0
end

-- Another server may have taken over whose clock is behind. What is owed stays owed, and no pause grows.
local behind = math.max(field('read') - now, 0)
local paused = math.max(field('paused') - behind, told + tonumber(ARGV[4]))
-- Openings are numbered by the time, and stay so short that they can be read again.
local greatest = now + 1000000000000000
local open, opened, probed = field('open'), math.min(field('opened'), greatest), field('probed')
if open > 0 then open, opened, probed = math.max(1, open - behind), math.max(1, opened), probed - behind end
if behind > 0 then
  tat = math.max(0, tat - behind)
  base, log = tat, ''
  redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
end

paused = math.min(paused, now + tonumber(ARGV[15]))

local function is_half_open() return open > 0 and open <= now end
local failing = words(open > 0 and state.failing)
-- A later opening has a greater number, also where the clock has gone back.
local function open_until(until_then)
  opened, open, probed, failing = math.max(now, opened + 1), until_then, 0, {}
end

-- The probe may have been sent before the circuit was opened again.
if open > 0 and opened == tonumber(ARGV[18]) then open = 0 end
local opening, until_then = math.min(tonumber(ARGV[17]), greatest), told + tonumber(ARGV[5])
if opening > opened then
  -- The store has lost it.
  opened, open = opening, math.max(1, open, until_then)
elseif until_then > now and (opening == 0 or opening == opened and open > 0) then
  if open > now then open = math.max(open, until_then) else open_until(until_then) end
end
local queries = {}
if is_half_open() then
  for query in string.gmatch(ARGV[19], '%S+') do
    failing[#failing + 1] = query
    failing[#failing + 1] = whole(now + longest_open)
    probed = 0
  end
  local last = {}
  for i = 1, #failing, 2 do
    local counts_until = number(failing[i + 1])
    if counts_until and counts_until > now and counts_until <= now + longest_open then
      last[failing[i]] = failing[i + 1]
    end
  end
  for query, counts_until in pairs(last) do queries[#queries + 1] = query .. ' ' .. counts_until end
  if #queries >= tonumber(ARGV[21]) then
    open_until(now + longest_open)
    queries = {}
  end
end
open = math.min(open, now + longest_open)
probed = open > 0 and math.min(probed, now + 2 * longest + probe) or 0

-- The lowest rate and burst of the replicas that live. 0, no limit, is the least period.
local own = words(get('HGET', KEYS[2], replica))
local is_same = tonumber(own[2] or -1) == own_period and tonumber(own[3] or -1) == own_burst
redis.call('HSET', KEYS[2], replica, whole(now + alive) .. ' ' .. whole(own_period) .. ' ' .. whole(own_burst))
local is_too_fast = own_period > 0 and (period < own_period or burst > own_burst)
if not is_same or not read or behind > 0 or now >= read + 1000000 or is_too_fast then
  local least_period, least_burst = 0, nil
  for other, text in pairs(pairs_of(KEYS[2])) do
    local said = words(text)
    local until_then, their_period, their_burst = number(said[1]), number(said[2]), number(said[3])
    -- Later than any replica writes, also before the clock went back a little: it was forged, and would never end.
    local is_sound = until_then and their_period and their_burst and their_period <= longest_period
    if not is_sound or until_then < now or until_then > now + alive + 1000000 then
      redis.call('HDEL', KEYS[2], other)
    elseif their_period > 0 then
      least_period = math.max(least_period, their_period)
      least_burst = math.min(least_burst or their_burst, their_burst)
    end
  end
  least_burst = math.max(least_burst or 1, 1)
  if least_period ~= period then
    -- As many tokens are owed as before.
    if tat > now and period > 0 and least_period > 0 then
      local tokens = math.floor((tat - now) / period)
      local part = tat - now - tokens * period
      tat = now + tokens * least_period + math.ceil(part / period * least_period)
    end
    base, log = tat, ''
  end
  period, burst = least_period, least_burst
  read = now
end

-- The bucket has filled while a replica spent tokens alone. They empty it at most.
local spent_alone = tonumber(ARGV[14])
if spent_alone > 0 then
  local paid = math.max(tat, now)
  tat = math.max(paid, math.min(paid + spent_alone * period, now + burst * period))
  base, log = tat, ''
end

-- A token that was not used: as if it had never been taken. The latest tokens are in `log`, each with 16 digits and a
-- space, and `base` is the TAT before them. A token that is not there is not given back, so that never more comes back
-- than was taken.
local function entry_of(at) return string.format('%016.0f ', at) end
local function lower(name, by)
  local value = number(get('HGET', KEYS[4], name))
  if value then redis.call('HSET', KEYS[4], name, whole(math.max(0, value - tonumber(by)))) end
end
local queue, refunds = tonumber(ARGV[22]), tonumber(ARGV[23])
for i = 24, 23 + 5 * refunds, 5 do
  local at, team, class, cost, team_period = unpack(ARGV, i, i + 4)
  local from, to = string.find(log, entry_of(at), 1, true)
  if from then
    probed = 0
    lower(team .. ':' .. class, cost)
    lower(team, team_period)
    log, tat = string.sub(log, 1, from - 1) .. string.sub(log, to + 1), base
    for at in string.gmatch(log, '%d+') do tat = math.max(tat, tonumber(at)) + period end
  end
end

-- No token that is granted makes the TAT later than this. Where the burst has become less, the bucket is empty now.
local function sound(of_tat, of_period, of_burst) return math.min(of_tat, now + 2 * longest + of_period * of_burst) end
if sound(tat, period, burst) < tat then
  tat = sound(tat, period, burst)
  base, log = tat, ''
end

-- Who waits where. A team's refreshes queue apart from its clients' calls; its own limit is for both.
local asked, wanted, limits, elsewhere = {}, {}, {}, 0
local function want(team, class, team_period, team_burst)
  local limit = limits[team]
  if not limit then
    limit = { tat = number(get('HGET', KEYS[4], team)) or 0, period = 0, burst = 0 }
    limits[team] = limit
  end
  -- Where the configured limits differ, the lower one counts.
  if team_period > limit.period then limit.period, limit.burst = team_period, team_burst end
  local name = team .. ':' .. class
  local entry = wanted[name]
  if not entry then
    local start = number(get('HGET', KEYS[4], name)) or 0
    -- Nobody gets so many tokens out of turn, each of the greatest cost.
    if start > virtual + 100 * 720720 then start = virtual end
    start = math.max(start, virtual)
    entry = { name = name, team = team, class = class, here = 0, start = start, limit = limit }
    -- A replica that begins to wait is next after those that wait already.
    entry.last, entry.least = granted, granted
    wanted[name] = entry
  end
  return entry
end
for i = 24 + 5 * refunds, #ARGV, 6 do
  local entry = want(ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5]))
  entry.cost, entry.here, entry.number = tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]), #asked + 1
  entry.period, entry.burst = tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5])
  asked[#asked + 1] = entry
end
-- The budget may have begun anew since a token was the last one.
local function believed(token) return token <= granted and token or 0 end
for other, text in pairs(pairs_of(KEYS[3])) do
  local said = words(text)
  local until_then, their_queue = number(said[1]), number(said[2])
  local is_formed = until_then and their_queue and #said % 6 == 2
  for i = 3, #said, 6 do
    for word = i + 2, i + 5 do is_formed = is_formed and number(said[word]) end
  end
  if other == replica then
    for i = 3, is_formed and #said or 0, 6 do
      local entry = wanted[said[i] .. ':' .. said[i + 1]]
      if entry then entry.last = believed(tonumber(said[i + 5])) end
    end
  elseif not is_formed or until_then < now or until_then > now + longest + grace + 1000000 then
    redis.call('HDEL', KEYS[3], other)
  else
    elsewhere = elsewhere + their_queue
    for i = 3, #said, 6 do
      local entry = want(said[i], said[i + 1], tonumber(said[i + 3]), tonumber(said[i + 4]))
      entry.there, entry.least = true, math.min(entry.least, believed(tonumber(said[i + 5])))
    end
  end
end

for _, limit in pairs(limits) do limit.tat = sound(limit.tat, limit.period, limit.burst) end

local function next_at(of_tat, of_period, of_burst) return math.max(now, of_tat + of_period - of_period * of_burst) end

local function of_limit(limit) return next_at(limit.tat, limit.period, limit.burst) end

-- How many tokens a team that waits here may have out of turn.
local early = most
if period > 0 then early = math.min(early, math.floor(away / period)) end

local function place_of(entry)
  local start = math.max(entry.start, virtual)
  return entry.here > 0 and start - early * entry.cost or start
end

-- Whether it is the turn of `entry` rather than of `other`.
local function is_before(entry, other)
  if entry.class ~= other.class then return entry.class < other.class end
  local start, others = place_of(entry), place_of(other)
  if start ~= others then return start < others end
  return entry.name < other.name
end

-- Whether another replica is next with a token for this team. Tokens that come faster than replicas ask need no order.
local takes_turns = away <= tonumber(ARGV[7]) and period >= 2 * tonumber(ARGV[7])
local function is_next_there(entry)
  local since = math.max(tat + period - period * burst, paused, open, probed)
  return takes_turns and entry.there and entry.least < entry.last and now < since + math.min(2 * retry, period / 16)
end

local grants, wait = {}, is_late and retry or longest
while #grants < 3 * most do
  local first = math.max(next_at(tat, period, burst), paused, open, probed)
  local best, best_at, soonest, least
  for _, entry in pairs(wanted) do
    if entry.here > 0 or entry.there then
      local at = math.max(first, of_limit(entry.limit))
      if entry.here > 0 then soonest = math.min(soonest or at, at) end
      if at <= now + ahead then
        if not best or entry.class < best.class then least = entry.start end
        if not best or is_before(entry, best) then best, best_at = entry, at end
        if entry.class == best.class then least = math.min(least, entry.start) end
      end
    end
  end
  if not soonest then break end
  if not best then
    wait = math.min(longest, soonest - ahead - now)
    break
  end
  if best.here == 0 or is_next_there(best) then
    wait = retry
    break
  end
  best.here = best.here - 1
  best.start = math.max(best.start, virtual) + best.cost
  virtual = math.max(least, virtual)
  local limit = best.limit
  if limit.period > 0 then limit.tat = math.max(limit.tat, best_at) + limit.period end
  tat = math.max(tat, best_at) + period
  granted = granted + 1
  best.last = granted
  if open > 0 then probed = best_at + probe end
  log = log .. entry_of(best_at)
  if #log > 64 * 17 then
    base = math.max(base, tonumber(string.sub(log, 1, 16)) or 0) + period
    log = string.sub(log, 18)
  end
  for _, value in ipairs({ best.number, best_at - now, best_at }) do grants[#grants + 1] = value end
  wait = 0
end

local waiting, waits, ends = '', false, math.max(now, tat, paused, open)
for _, entry in ipairs(asked) do
  local limit = entry.limit
  ends = math.max(ends, limit.tat)
  redis.call('HSET', KEYS[4], entry.name, whole(entry.start), entry.team, whole(limit.tat))
  if entry.here > 0 and not is_late then
    waits = true
    local numbers = { entry.here, entry.period, entry.burst, entry.last }
    waiting = waiting .. ' ' .. entry.team .. ' ' .. entry.class
    for _, value in ipairs(numbers) do waiting = waiting .. ' ' .. whole(value) end
  end
end
if waits or queue > 0 and not is_late then
  -- Where no call could be sent now, the replica asks again when it has news, or as late as it may.
  local until_then = now + (waits and wait or longest) + grace
  waiting = whole(until_then) .. ' ' .. whole(queue) .. waiting
  redis.call('HSET', KEYS[3], replica, waiting)
else
  redis.call('HDEL', KEYS[3], replica)
end

-- No time where it is over: later, on a server whose clock is behind, it would seem to last.
local function lasting(until_then) return until_then > now and whole(until_then) or '0' end
redis.call('HSET', KEYS[1], 'tat', whole(tat), 'paused', lasting(paused), 'open', is_half_open() and '1' or lasting(open),
  'opened', whole(opened), 'probed', lasting(probed), 'failing', table.concat(queries, ' '), 'period', whole(period),
  'burst', whole(burst), 'read', whole(read), 'virtual', whole(virtual), 'granted', whole(granted), 'base', whole(base),
  'log', log)
local keep = math.ceil((ends - now + 60000000) / 1000)
redis.call('PEXPIRE', KEYS[1], whole(keep))
redis.call('PEXPIRE', KEYS[2], whole(alive * 2 / 1000))
redis.call('PEXPIRE', KEYS[3], whole((longest + grace + 1000000) / 1000))
-- Other teams may owe for longer than those that wait now.
if redis.call('PTTL', KEYS[4]) < keep then redis.call('PEXPIRE', KEYS[4], whole(keep)) end

local reply = { period, burst, tat - now, paused - now, open - now, open > 0 and opened or 0, granted, elsewhere, wait, now }
for _, entry in ipairs(asked) do reply[#reply + 1] = of_limit(entry.limit) - now end
for _, value in ipairs(grants) do reply[#reply + 1] = value end
return reply
