"""The Lua scripts behind the store: each is one atomic step on a job's keys.

A job's work is cut into *units*: a synthesis job has one for each shard (`"0"`, `"1"`, …) and then `"finish"`, which
writes the manifest; a training run has the one unit `"run"`. A unit is open, claimed under a lease, or done. A claim
carries a fencing token that grows; whoever holds an older one is told so and publishes nothing.

A synthesis job that trains a student of its own (`student_every` is set) has the unit `"student"` too. It stands behind
every `student_every`-th shard and before the others, and is alone: claimed only while nothing else of the job is, and
while it is, nothing else of the job is claimed. So the others start when the student is there.

Keys of a job: `{job}` (hash; `done_samples` counts those of the units that are done), `{job}:open` (sorted set of
units), `{job}:claims` (hash unit → token), `{job}:holders` (hash unit → process that claimed it), `{job}:done` (hash
unit → payload), `{job}:deaths` (hash unit → count), `{job}:causes` (hash unit → what ended its last holder),
`{job}:partial` (hash unit → progress), `{job}:rows` (list of a run's metrics), `{job}:waiting` (set of runs blocked on
it), `{job}:events` (stream), `{job}:log` (list of lines).
Keys of all: `dearkd:open:{kind}` (jobs with open units, by priority and turn), `dearkd:leases` (unit → expiry in ms),
`dearkd:fence`, `dearkd:turn` (counters), `dearkd:unsettled` (jobs that ended, consequences to come),
`dearkd:jobs:{kind}[:{status}][@{owner}]` (indexes), `dearkd:deleting:{id}` (set while a resource goes, and for a
while after), `dearkd:starting-over:{id}` (set while what a job made is deleted, before it is retried).
"""

PARTS = ("open", "claims", "holders", "done", "deaths", "causes", "partial", "rows", "waiting", "events", "log")
"""What there is beside `{job}` itself."""

_COMMON = """
local function key(id) return 'dearkd:job:' .. id end
-- A job stands in the indexes of all jobs, and in those of its owner; without one these are the same.
local function of(owner) return owner and owner ~= '' and '@' .. owner or '' end
local function enter(id, index)
  redis.call('ZADD', index, 0, id)
  redis.call('ZADD', index .. of(redis.call('HGET', key(id), 'owner')), 0, id)
end
local function leave(id, index)
  redis.call('ZREM', index, id)
  redis.call('ZREM', index .. of(redis.call('HGET', key(id), 'owner')), id)
end
local function set_status(id, status, at)
  local k = key(id)
  local kind = redis.call('HGET', k, 'kind')
  local old = redis.call('HGET', k, 'status')
  leave(id, 'dearkd:jobs:' .. kind .. ':' .. old)
  enter(id, 'dearkd:jobs:' .. kind .. ':' .. status)
  redis.call('HSET', k, 'status', status)
  if status == 'running' then redis.call('HSETNX', k, 'started_at', at) end
  if status == 'succeeded' or status == 'failed' or status == 'canceled' then
    redis.call('HSET', k, 'finished_at', at)
    redis.call('ZREM', 'dearkd:open:' .. kind, id)
    for _, unit in ipairs(redis.call('HKEYS', k .. ':claims')) do
      redis.call('ZREM', 'dearkd:leases', id .. '#' .. unit)
    end
    redis.call('DEL', k .. ':claims', k .. ':holders', k .. ':causes', k .. ':partial')
    redis.call('SADD', 'dearkd:unsettled', id)
  end
  redis.call('XADD', k .. ':events', 'MAXLEN', '~', 2000, '*', 'type', 'status', 'at', at,
             'data', cjson.encode({status = status}))
end
-- The order of units, as `jobs.model.place_of` has it: those that the student is trained on, then the student (-0.5).
local function place(id, unit)
  if unit == 'finish' then return 1e15 end
  if unit == 'student' then return -0.5 end
  local number = tonumber(unit) or 0
  local every = tonumber(redis.call('HGET', key(id), 'student_every') or '')
  if every and number % every == 0 then return number - 1e12 end
  return number
end
local function list(id)
  local kind = redis.call('HGET', key(id), 'kind')
  redis.call('ZADD', 'dearkd:open:' .. kind, 'NX', tonumber(redis.call('HGET', key(id), 'rank')) * 2^40, id)
end
local function reopen(id, unit)
  redis.call('ZADD', key(id) .. ':open', place(id, unit), unit)
  list(id)
end
local function drop_claim(id, unit)
  redis.call('HDEL', key(id) .. ':claims', unit)
  redis.call('HDEL', key(id) .. ':holders', unit)
  redis.call('HDEL', key(id) .. ':partial', unit)
  redis.call('ZREM', 'dearkd:leases', id .. '#' .. unit)
end
local function held(id, unit, token)
  return redis.call('HGET', key(id) .. ':claims', unit) == token
end
"""

CREATE = (
    _COMMON
    + """
-- Accept a job. ARGV: id, kind, now (text), how many jobs (of the owner, if there is one) may wait or 0, the synthesis
-- job that it waits for or '', owner or '', number of units, units ..., number of resources that it reads,
-- resources ..., then field, value pairs.
-- Returns {'ok', status} | {'full', jobs that wait} | {'deleting', resource} | {'dead', status of the awaited job}
-- | {'exists'}. A refusal has changed nothing.
local id, kind, limit, awaited, owner = ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local k = key(id)
if redis.call('EXISTS', k) == 1 then return {'exists'} end
if limit > 0 then
  local waiting = 0
  for _, other in ipairs({'synthesis', 'training'}) do
    for _, status in ipairs({'queued', 'blocked'}) do
      waiting = waiting + redis.call('ZCARD', 'dearkd:jobs:' .. other .. ':' .. status .. of(owner))
    end
  end
  if waiting >= limit then return {'full', tostring(waiting)} end
end
local status = 'queued'
if awaited ~= '' then
  local theirs = redis.call('HGET', key(awaited), 'status') or 'lost'
  if theirs == 'failed' or theirs == 'canceled' or theirs == 'lost' then return {'dead', theirs} end
  if theirs ~= 'succeeded' then status = 'blocked' end
end
local units, n = {}, 7
for _ = 1, tonumber(ARGV[7]) do n = n + 1; table.insert(units, ARGV[n]) end
n = n + 1
for _ = 1, tonumber(ARGV[n]) do
  n = n + 1
  if redis.call('EXISTS', 'dearkd:deleting:' .. ARGV[n]) == 1 then return {'deleting', ARGV[n]} end
end
redis.call('HSET', k, 'id', id, 'kind', kind, 'status', status, 'waits_for', awaited, 'owner', owner,
           unpack(ARGV, n + 1))
enter(id, 'dearkd:jobs:' .. kind)
set_status(id, status, ARGV[3])
if status == 'blocked' then
  redis.call('SADD', key(awaited) .. ':waiting', id)
else
  for _, unit in ipairs(units) do redis.call('ZADD', k .. ':open', place(id, unit), unit) end
  reopen(id, units[1])
end
return {'ok', status}
"""
)

CLAIM = (
    _COMMON
    + """
-- ARGV: kind, now (text), now (ms), lease (ms), holder. Returns {id, unit, token} or nil.
local kind, at, now, lease = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
for _, id in ipairs(redis.call('ZRANGE', 'dearkd:open:' .. kind, 0, -1)) do
  local k = key(id)
  local status = redis.call('HGET', k, 'status')
  local claims = redis.call('HLEN', k .. ':claims')
  local room = tonumber(redis.call('HGET', k, 'parallelism') or '1') - claims
  local alone = redis.call('HEXISTS', k .. ':claims', 'student') == 1
    or (claims > 0 and redis.call('ZRANGE', k .. ':open', 0, 0)[1] == 'student')
  if alone or (status ~= 'queued' and status ~= 'running') then
    -- What waits for the student, or it for others, is listed again when one of the job's units ends.
    redis.call('ZREM', 'dearkd:open:' .. kind, id)
  elseif room > 0 then
    local popped = redis.call('ZPOPMIN', k .. ':open')
    if #popped == 0 then
      redis.call('ZREM', 'dearkd:open:' .. kind, id)
    else
      local unit = popped[1]
      -- Starts at the time, so that a Redis that was emptied gives no token that an old attempt may hold.
      redis.call('SET', 'dearkd:fence', string.format('%.0f', now * 1000), 'NX')
      local token = string.format('%.0f', redis.call('INCR', 'dearkd:fence'))
      redis.call('HSET', k .. ':claims', unit, token)
      redis.call('HSET', k .. ':holders', unit, ARGV[5])
      redis.call('ZADD', 'dearkd:leases', now + lease, id .. '#' .. unit)
      if status == 'queued' then set_status(id, 'running', at) end
      -- Its turn is over: the next job of the same priority goes first.
      local rank = tonumber(redis.call('HGET', k, 'rank'))
      if redis.call('ZCARD', k .. ':open') == 0 then
        redis.call('ZREM', 'dearkd:open:' .. kind, id)
      else
        redis.call('ZADD', 'dearkd:open:' .. kind, rank * 2^40 + redis.call('INCR', 'dearkd:turn'), id)
      end
      return {id, unit, token}
    end
  end
end
return nil
"""
)

BEAT = (
    _COMMON
    + """
-- ARGV: id, unit, token, now (ms), lease (ms). Returns the job's status, or 'lost'.
local id, unit = ARGV[1], ARGV[2]
if not held(id, unit, ARGV[3]) then return 'lost' end
redis.call('ZADD', 'dearkd:leases', tonumber(ARGV[4]) + tonumber(ARGV[5]), id .. '#' .. unit)
return redis.call('HGET', key(id), 'status')
"""
)

ADD_ROW = (
    _COMMON
    + """
-- ARGV: id, unit, token, row. Nothing happens if the claim is not the current one.
if held(ARGV[1], ARGV[2], ARGV[3]) then redis.call('RPUSH', key(ARGV[1]) .. ':rows', ARGV[4]) end
"""
)

DONE = (
    _COMMON
    + """
-- ARGV: id, unit, token, payload, number of units, now (text), samples of the unit.
-- Returns the job's status afterwards, or 'lost'.
local id, unit = ARGV[1], ARGV[2]
local k = key(id)
if not held(id, unit, ARGV[3]) then return 'lost' end
drop_claim(id, unit)
redis.call('HSET', k .. ':done', unit, ARGV[4])
redis.call('HINCRBY', k, 'done_samples', ARGV[7])
redis.call('DEL', k .. ':deaths', k .. ':causes')
if redis.call('HLEN', k .. ':done') >= tonumber(ARGV[5]) then reopen(id, 'finish') end
if redis.call('ZCARD', k .. ':open') > 0 then list(id) end
-- Canceled since the last beat: with this unit nobody is left who would notice.
if redis.call('HGET', k, 'status') == 'canceling' and redis.call('HLEN', k .. ':claims') == 0 then
  set_status(id, 'canceled', ARGV[6])
end
return redis.call('HGET', k, 'status')
"""
)

RELEASE = (
    _COMMON
    + """
-- Give a unit back. ARGV: id, unit, token, now (text). Returns the job's status afterwards, or 'lost'.
local id, unit = ARGV[1], ARGV[2]
local k = key(id)
if not held(id, unit, ARGV[3]) then return 'lost' end
drop_claim(id, unit)
local status = redis.call('HGET', k, 'status')
local claims = redis.call('HLEN', k .. ':claims')
if status == 'canceling' then
  redis.call('ZADD', k .. ':open', 0, unit)
  if claims == 0 then set_status(id, 'canceled', ARGV[4]) end
elseif status == 'running' then
  reopen(id, unit)
  if claims == 0 then set_status(id, 'queued', ARGV[4]) end
end
return redis.call('HGET', k, 'status')
"""
)

BURY = (
    _COMMON
    + """
-- A process has ended. ARGV: holder (or the start of it, up to a slash), cause. Its leases are over, and why is kept.
local count = 0
for _, member in ipairs(redis.call('ZRANGE', 'dearkd:leases', 0, -1)) do
  local id, unit = string.match(member, '^(.*)#(.*)$')
  local holder = redis.call('HGET', key(id) .. ':holders', unit)
  if holder and (holder == ARGV[1] or string.sub(holder, 1, #ARGV[1] + 1) == ARGV[1] .. '/') then
    redis.call('HSET', key(id) .. ':causes', unit, ARGV[2])
    redis.call('ZADD', 'dearkd:leases', 0, member)
    count = count + 1
  end
end
return count
"""
)

EXPIRE = (
    _COMMON
    + """
-- A lease ran out. ARGV: id, unit, now (text), now (ms).
-- Returns {status, deaths, holder, cause or ''} or nil if it is alive after all.
local id, unit = ARGV[1], ARGV[2]
local k = key(id)
local expiry = redis.call('ZSCORE', 'dearkd:leases', id .. '#' .. unit)
if not expiry or tonumber(expiry) > tonumber(ARGV[4]) then return nil end
local holder = redis.call('HGET', k .. ':holders', unit) or ''
local cause = redis.call('HGET', k .. ':causes', unit) or ''
redis.call('HDEL', k .. ':causes', unit)
drop_claim(id, unit)
local status = redis.call('HGET', k, 'status')
if not status then return nil end
local claims = redis.call('HLEN', k .. ':claims')
if status == 'canceling' then
  if claims == 0 then set_status(id, 'canceled', ARGV[3]) end
elseif status == 'running' then
  reopen(id, unit)
  redis.call('HINCRBY', k, 'attempt', 1)
  if claims == 0 then set_status(id, 'queued', ARGV[3]) end
end
return {redis.call('HGET', k, 'status'), tostring(redis.call('HINCRBY', k .. ':deaths', unit, 1)), holder, cause}
"""
)

TRANSITION = (
    _COMMON
    + """
-- ARGV: id, target, now (text), allowed sources joined by ',', unit or '', token or '', then field, value pairs.
-- Returns {'ok', old} | {'missing'} | {'lost'} | {'refused', old}.
local id, target = ARGV[1], ARGV[2]
local k = key(id)
local old = redis.call('HGET', k, 'status')
if not old then return {'missing'} end
if ARGV[5] ~= '' and not held(id, ARGV[5], ARGV[6]) then return {'lost'} end
if not string.find(',' .. ARGV[4] .. ',', ',' .. old .. ',', 1, true) then return {'refused', old} end
for i = 7, #ARGV, 2 do redis.call('HSET', k, ARGV[i], ARGV[i + 1]) end
set_status(id, target, ARGV[3])
return {'ok', old}
"""
)

CANCEL = (
    _COMMON
    + """
-- ARGV: id, now (text). Returns the status that the job has afterwards, 'missing', or 'finished'.
local id = ARGV[1]
local k = key(id)
local status = redis.call('HGET', k, 'status')
if not status then return 'missing' end
if status == 'succeeded' or status == 'failed' or status == 'canceled' then return 'finished' end
if status == 'canceling' then return status end
if status == 'running' and redis.call('HLEN', k .. ':claims') > 0 then
  set_status(id, 'canceling', ARGV[2])
  return 'canceling'
end
set_status(id, 'canceled', ARGV[2])
return 'canceled'
"""
)
