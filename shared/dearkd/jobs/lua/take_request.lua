-- Count a request of a key in this minute. args: owner (the key).
-- Returns {how many there have been in it, seconds of it that are left}.
local now = math.floor(milliseconds() / 1000)
local count = 'dearkd:requests:' .. args.owner .. ':' .. string.format('%.0f', math.floor(now / 60))
local taken = redis.call('INCR', count)
redis.call('EXPIRE', count, 120)
return {taken, 60 - now % 60}
