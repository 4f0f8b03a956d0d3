-- A hold bucket is a hash of owner → count; an owner is one connection of one process, alive until its expiry in
-- the hash `owners`. What a dead owner held does not count.

-- What is held by living owners, and whether `me` is one of them.
local function held(prefix, key, me, now)
  local name = prefix .. 'held:' .. key
  local counts = redis.call('HGETALL', name)
  local owners = {me}
  for i = 1, #counts, 2 do owners[#owners + 1] = counts[i] end
  local expiries, total = redis.call('HMGET', prefix .. 'owners', unpack(owners)), 0
  for i = 2, #owners do
    if not expiries[i] then
      redis.call('HDEL', name, owners[i])
    elseif tonumber(expiries[i]) > now then
      total = total + tonumber(counts[2 * (i - 1)])
    end
  end
  return total, expiries[1] and tonumber(expiries[1]) > now
end

local function hold(prefix, key, me, amount)
  local name = prefix .. 'held:' .. key
  if redis.call('HINCRBY', name, me, amount) <= 0 then redis.call('HDEL', name, me) end
  -- Only so that the traces of processes that died long ago go; no call lasts a day without another beside it.
  redis.call('EXPIRE', name, 86400)
end

local function release(prefix, key, me, amount)
  local name = prefix .. 'held:' .. key
  local count = tonumber(redis.call('HGET', name, me) or 0)
  if count > amount then redis.call('HINCRBY', name, me, -amount) else redis.call('HDEL', name, me) end
end
