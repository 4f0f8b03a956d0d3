-- Make a connection known as an owner, in the place of this process's earlier one, with all that it holds. What it
-- charged to purses lately is held as well where this Redis may not know of it: the run is another, or the earlier
-- owner is unknown. Answers 1 when that was so.
-- ARGV: prefix, now (0: this server's), ttl_us, owner, earlier owner or '', same run ('1' or '0'), how many holds,
-- then key, count of each hold, and then of each charge.
local prefix, now, ttl_us, owner, earlier = ARGV[1], now_us(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local owners, known = prefix .. 'owners', ARGV[6] == '1'
if earlier ~= '' and redis.call('HDEL', owners, earlier) == 0 then known = false end
-- Owners that died are few, and this is asked once for each connection.
local all = redis.call('HGETALL', owners)
for i = 1, #all, 2 do
  if tonumber(all[i + 1]) <= now then redis.call('HDEL', owners, all[i]) end
end
redis.call('HSET', owners, owner, string.format('%.0f', now + ttl_us))
local last = known and 7 + 2 * tonumber(ARGV[7]) or #ARGV
for at = 8, last, 2 do hold(prefix, ARGV[at], owner, tonumber(ARGV[at + 1])) end
return known and 0 or 1
