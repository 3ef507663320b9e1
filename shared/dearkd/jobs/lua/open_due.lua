-- Open the units of jobs whose next try has come. No args.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'dearkd:retries', '-inf', milliseconds(), 'LIMIT', 0, 100)) do
  end_wait(id)
  list(id)
end
