-- ARGV: prefix, owner, then for each bucket to correct key, window_s, mark, change.
local prefix, owner = ARGV[1], ARGV[2]
for at = 3, #ARGV, 4 do
  local key, window_s, mark, change = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if window_s == '0' then
    release(prefix, key, owner, -change)
  else
    local name, field = rate_key(prefix, window_s, key), mark % SLOTS
    local found = redis.call('HMGET', name, 'n', field)
    local newest, amount = tonumber(found[1]), tonumber(found[2] or 0)
    if newest and mark >= newest - SUB_WINDOWS and mark <= newest then
      change = math.max(change, -amount)
      redis.call('HSET', name, field, amount + change)
      redis.call('HINCRBY', name, 't', change)
    end
  end
end
return 1
