-- A purse is a number, what was spent, beside the holds of `held:purse:…`. Its name has the run of this Redis in it:
-- what another run counted (from before a crash, or on the server that this one replaces) may be old, and is not used.
local PURSE_TTL_S = @PURSE_TTL_S@

local function purse_name(prefix, run, key) return prefix .. 'purse:' .. run .. ':' .. key end

-- What was spent, or nil when nobody has said how much.
local function spent_of(prefix, run, key)
  local spent = redis.call('GET', purse_name(prefix, run, key))
  return spent and tonumber(spent)
end

local function use_purse(prefix, run, key) redis.call('EXPIRE', purse_name(prefix, run, key), PURSE_TTL_S) end

local function charge(prefix, run, key, amount)
  local name = purse_name(prefix, run, key)
  if redis.call('EXISTS', name) == 1 then redis.call('INCRBY', name, amount) end
end

local function raise_spent(prefix, run, key, amount)
  local spent = spent_of(prefix, run, key)
  if not spent or spent < tonumber(amount) then
    redis.call('SET', purse_name(prefix, run, key), amount, 'EX', PURSE_TTL_S)
  end
end
