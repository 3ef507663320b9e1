-- Open the units of jobs whose next try has come. args: now (ms).
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'dearkd:retries', '-inf', args.now, 'LIMIT', 0, 100)) do
  end_wait(id)
  list(id)
end
