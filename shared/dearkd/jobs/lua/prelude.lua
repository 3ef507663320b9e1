-- Begins every transition: `args` is the JSON object that Python sends, and these are the words the steps are told in.
--
-- A job's work is cut into units, and they into groups: a unit can be claimed once all groups before its own are done.
-- A unit is open, claimed under a lease, or done. A claim carries a fencing token that grows: whoever holds an older
-- one is told so and publishes nothing.
--
-- Keys of a job: `{job}` (hash; `done_samples` counts those of the units that are done, `group` is that of the units
--   that are claimed, where there are any), and beside it
--   `:units` (sorted set of all, by place: group * 2^32 + number in it), `:open` (sorted set of units, by place),
--   `:claims` (hash unit -> token), `:holders` (hash unit -> process that claimed it), `:done` (hash unit -> payload),
--   `:deaths` (hash unit -> count), `:causes` (hash unit -> what ended its last holder), `:partial` (hash unit ->
--   progress), `:told` (set for a moment: see `report`), `:rows` (list of a run's metrics), `:waiting` (set of runs
--   blocked on it), `:events` (stream), `:log` (list of lines), `:deliveries` (hash number -> delivery to its webhook;
--   `deliveries` of the job counts them).
-- Keys of all: `dearkd:events` (stream of the events of all jobs), `dearkd:open:{kind}` (jobs of which a unit can be
--   claimed, by priority and turn), `dearkd:leases`
--   (unit -> expiry in ms), `dearkd:fence`, `dearkd:turn` (counters), `dearkd:unsettled` (jobs that ended, consequences
--   to come), `dearkd:retries` (jobs that wait for their next try, by the ms at which it comes),
--   `dearkd:jobs:{kind}[:{status}][@{owner}]` (indexes), `dearkd:deleting:{id}` (set while a resource goes,
--   and for a while after), `dearkd:starting-over:{id}` (set while what a job made is deleted, before it is retried),
--   `dearkd:measures` (hash of sums for `/metrics`: see `measures.py`), `dearkd:deliveries` (job#number -> when the
--   delivery is due, or its claim ends, in ms), `dearkd:slow:{host}` (set while deliveries to a slow receiver wait).
local args = cjson.decode(ARGV[1])
local GROUP = 2^32

local function key(id) return 'dearkd:job:' .. id end
local function field(id, name) return redis.call('HGET', key(id), name) end
local function ended(status) return status == 'succeeded' or status == 'failed' or status == 'canceled' end
local function group(place) return math.floor(tonumber(place) / GROUP) end
local function claims(id) return redis.call('HLEN', key(id) .. ':claims') end
-- What a worker must read to claim of a job: its record, and what workers have made of it so far.
local function needs_schema(id)
  return math.max(tonumber(field(id, 'schema_version') or 1), tonumber(field(id, 'needs_schema') or 1))
end
local function held(id, unit, token) return redis.call('HGET', key(id) .. ':claims', unit) == token end

-- A job stands in the indexes of all jobs, and in those of its owner; without one these are the same.
local function of(owner) return owner and owner ~= '' and '@' .. owner or '' end
local function enter(id, index)
  redis.call('ZADD', index, 0, id)
  redis.call('ZADD', index .. of(field(id, 'owner')), 0, id)
end
local function leave(id, index)
  redis.call('ZREM', index, id)
  redis.call('ZREM', index .. of(field(id, 'owner')), id)
end

-- `records.add_event` does the same.
local function add_event(id, type, data)
  redis.call('XADD', key(id) .. ':events', 'MAXLEN', '~', 2000, '*', 'type', type, 'at', args.at, 'data', data)
  redis.call('XADD', 'dearkd:events', 'MAXLEN', '~', 10000, '*', 'type', type, 'at', args.at, 'data', data, 'job', id)
end

-- The seconds that a job has run, without what it waited or was paused: `ran`, and since `running_since`, which is not
-- there while it waits.
local function count_time(k, runs)
  local clock = redis.call('TIME')
  local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
  if runs then redis.call('HSETNX', k, 'running_since', now) return end
  redis.call('HINCRBYFLOAT', k, 'ran', now - tonumber(redis.call('HGET', k, 'running_since') or now))
  redis.call('HDEL', k, 'running_since')
end

-- The time by Redis' clock: nobody's own is compared with another's, which may be wrong.
local function milliseconds()
  local clock = redis.call('TIME')
  return tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
end

-- If its webhook wants to hear of this status, a delivery is due, with the job as it is now; the spec hardly changes,
-- and is large. The latest hundred of a job are kept.
local function announce(id, status)
  local k, webhook, wanted = key(id), field(id, 'webhook'), false
  for _, event in ipairs(webhook and cjson.decode(webhook).events or {}) do wanted = wanted or event == status end
  if not wanted then return end
  local job, number = {}, redis.call('HINCRBY', k, 'deliveries', 1)
  for _, name in ipairs({'id', 'kind', 'status', 'attempt', 'progress', 'metrics', 'result', 'error', 'created_at',
                         'retry_at', 'started_at', 'finished_at'}) do
    job[name] = redis.call('HGET', k, name) or nil
  end
  redis.call('HSET', k .. ':deliveries', number, cjson.encode({event = status, at = args.at, job = job}))
  redis.call('ZADD', 'dearkd:deliveries', milliseconds(), id .. '#' .. number)
  redis.call('HDEL', k .. ':deliveries', number - 100)
  redis.call('ZREM', 'dearkd:deliveries', id .. '#' .. (number - 100))
end

-- While a job waits for its next try, it says when that comes, and why the last one failed.
local function end_wait(id)
  if redis.call('ZREM', 'dearkd:retries', id) == 1 then redis.call('HDEL', key(id), 'retry_at', 'error') end
end

local function drop_claims(id)
  local k = key(id)
  for _, unit in ipairs(redis.call('HKEYS', k .. ':claims')) do redis.call('ZREM', 'dearkd:leases', id .. '#' .. unit) end
  redis.call('DEL', k .. ':claims', k .. ':holders', k .. ':causes', k .. ':partial')
end

-- `told` is what the event says, where that is more than the status.
local function set_status(id, status, told)
  local k, kind, old = key(id), field(id, 'kind'), field(id, 'status')
  end_wait(id)
  if (old == 'running') ~= (status == 'running') then count_time(k, status == 'running') end
  if old then leave(id, 'dearkd:jobs:' .. kind .. ':' .. old) end
  enter(id, 'dearkd:jobs:' .. kind .. ':' .. status)
  redis.call('HSET', k, 'status', status)
  if status == 'running' then redis.call('HSETNX', k, 'started_at', args.at) end
  redis.call('HDEL', k, 'waiting_for') -- of a status before; where it is queued again, who looks at it says it again
  if ended(status) then
    redis.call('HSET', k, 'finished_at', args.at)
    redis.call('ZREM', 'dearkd:open:' .. kind, id)
    drop_claims(id)
    redis.call('SADD', 'dearkd:unsettled', id)
  end
  add_event(id, 'status', cjson.encode(told or {status = status}))
  announce(id, status)
end

-- Whether the first open unit may be claimed: what is claimed must be of its group. (An earlier one is then done.)
-- A job accepted by an earlier version has no `:units`: whoever claims of it records them first (see `plan`).
local function claimable(id)
  local k, status = key(id), field(id, 'status')
  if status ~= 'queued' and status ~= 'running' then return false end
  if redis.call('ZSCORE', 'dearkd:retries', id) then return false end
  if redis.call('EXISTS', k .. ':units') == 0 then return true end
  local first = redis.call('ZRANGE', k .. ':open', 0, 0, 'WITHSCORES')
  if #first == 0 or claims(id) == 0 then return #first > 0 end
  local now = field(id, 'group')
  if not now then -- claimed by a version that kept none
    local place = redis.call('ZSCORE', k .. ':units', redis.call('HKEYS', k .. ':claims')[1])
    now = place and group(place)
  end
  return now and group(first[2]) == tonumber(now)
end

-- Where its turn is over, a job goes behind the others of its priority; where it was not listed, before them.
local function list(id, turn)
  local index = 'dearkd:open:' .. field(id, 'kind')
  local first = tonumber(field(id, 'rank')) * 2^40
  if not claimable(id) then redis.call('ZREM', index, id)
  elseif turn then redis.call('ZADD', index, first + turn, id)
  else redis.call('ZADD', index, 'NX', first, id) end
end

-- One command for many items: a call costs more than what it does for one, and a job may have a hundred thousand units.
local function in_batches(command, k, items)
  for i = 1, #items, 1000 do redis.call(command, k, unpack(items, i, math.min(i + 999, #items))) end
end

local function record_units(id, groups)
  local places = {}
  for number, units in ipairs(groups) do
    for place, unit in ipairs(units) do
      places[#places + 1] = (number - 1) * GROUP + place
      places[#places + 1] = unit
    end
  end
  in_batches('ZADD', key(id) .. ':units', places)
end

-- Open every unit that is neither done nor claimed.
local function open_units(id)
  local k = key(id)
  redis.call('ZUNIONSTORE', k .. ':open', 1, k .. ':units')
  for _, part in ipairs({':done', ':claims'}) do in_batches('ZREM', k .. ':open', redis.call('HKEYS', k .. part)) end
  list(id)
end

local function drop_claim(id, unit)
  for _, part in ipairs({':claims', ':holders', ':partial'}) do redis.call('HDEL', key(id) .. part, unit) end
  redis.call('ZREM', 'dearkd:leases', id .. '#' .. unit)
end

-- What follows when a unit lost its holder without being done.
local function reopen(id, unit)
  local status, place = field(id, 'status'), redis.call('ZSCORE', key(id) .. ':units', unit)
  if place then redis.call('ZADD', key(id) .. ':open', place, unit) end
  list(id)
  if claims(id) > 0 then return end
  if status == 'canceling' then set_status(id, 'canceled') end
  if status == 'running' then set_status(id, 'queued') end
end
