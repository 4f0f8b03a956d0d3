-- ARGV: prefix, owner, run, then for each bucket to correct key, window_s, mark (a purse: what it is charged), change.
local prefix, owner, run = ARGV[1], ARGV[2], ARGV[3]
for at = 4, #ARGV, 4 do
  local key, window_s, mark, change = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if window_s == '-1' then
    release(prefix, 'purse:' .. key, owner, -change)
    charge(prefix, run, key, ARGV[at + 2])
  elseif window_s == '0' then
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
