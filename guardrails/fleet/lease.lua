-- The rules of guardrails/fleet/_lease.py and _verdict.py, for Redis and Valkey. Constants come before this text.
--
-- KEYS: a hash for each budget and verdict. ARGV: for each key WIDTH values, in the order of `_redis_store.py`.
-- Returns for each key the values of a `Reply` or a `Ruling`.

local EPOCH = '@'

local function number(text)
  return #text <= 15 and tonumber(text) or nil
end

local RECORD = '^1 ([0-9a-f]+) ([0-9]+) ([01])' .. string.rep(' ([0-9]+)', 9) .. ' [!-~]*$'

-- What the rule does not use is checked and not kept: this runs for each worker in each call.
local function read(text)
  if #text > 300 then return nil end
  local instance, seq, left, cap, safe, wants, minimum, most, budget, renewed, has, grant = string.match(text, RECORD)
  if not instance or #seq > 15 or #renewed > 15 or #cap > DIGITS or #safe > DIGITS or #wants > DIGITS
    or #minimum > DIGITS or #most > DIGITS or #budget > DIGITS or #has > DIGITS or #grant > DIGITS then
    return nil
  end
  return {
    instance = instance, seq = tonumber(seq), left = left == '1', cap = tonumber(cap), safe = tonumber(safe),
    wants = tonumber(wants), minimum = tonumber(minimum), most = tonumber(most), budget = tonumber(budget),
    renewed = tonumber(renewed),
  }
end

local function write(record)
  return string.format(
    '1 %s %.0f %d %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %s',
    record.instance, record.seq, record.left and 1 or 0, record.cap, record.safe, record.wants, record.minimum,
    record.most, record.budget, record.renewed, record.has, record.grant, record.host
  )
end

local function is_silent(record, now)
  return not record.left and now - record.renewed > LEASE
end

local function reserved(record, now)
  if record.left then return now - record.renewed <= LEAVING and record.cap or 0 end
  return is_silent(record, now) and math.max(record.cap, record.safe) or record.cap
end

local function clamp(level, low, high)
  return math.min(math.max(level, low), high)
end

local function share(budget, low, high, own)
  local least, most = 0, budget
  local function sum(level)
    local total = 0
    for i = 1, #low do
      local a, b = low[i], high[i]
      total = total + (level < a and a or level > b and b or level)
    end
    return total
  end
  while least < most do
    local level = math.floor((least + most + 1) / 2)
    if sum(level) <= budget then least = level else most = level - 1 end
  end
  local left, mine = budget - sum(least), clamp(least, low[own], high[own])
  for i = 1, own do
    if low[i] <= least and least < high[i] then
      left = left - 1
      if i == own and left >= 0 then return mine + 1 end
    end
  end
  return mine
end

local function target(budget, live, worker)
  local low, wanted, high, own = {}, {}, {}, 0
  local lows, wants, highs = 0, 0, 0
  for i, record in ipairs(live) do
    low[i] = math.min(record.minimum, record.most)
    wanted[i] = clamp(record.wants, low[i], record.most)
    high[i] = record.most
    lows, wants, highs = lows + low[i], wants + wanted[i], highs + high[i]
    if record.name == worker then own = i end
  end
  if lows >= budget then return low[own] end
  if wants >= budget then return share(budget, low, wanted, own) end
  budget = math.max(wants, budget - math.max(1, math.floor(budget / ROOM_FOR_NEW)))
  if highs <= budget then return high[own] end
  return share(budget, wanted, high, own)
end

local function note_contact(key, text, now)
  local last, till
  if text and #text <= 300 then
    last, till = string.match(text, '^1 ([0-9]+) ([0-9]+)$')
    last, till = last and number(last), till and number(till)
  end
  if not (last and till) or last > now + SKEW or now - last > LEASE then till = now + LEASE end
  till = math.min(till, now + LEASE)
  redis.call('HSET', key, EPOCH, string.format('1 %.0f %.0f', now, till))
  return now < till
end

local function fields_of(key)
  local kind = redis.call('TYPE', key).ok
  local size = redis.pcall('MEMORY', 'USAGE', key, 'SAMPLES', 0)
  local is_huge = type(size) == 'number' and size > MOST_BYTES
  if is_huge or kind ~= 'hash' and kind ~= 'none' then redis.call('UNLINK', key) end
  local flat, fields = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

local function leave(key, asked, now)
  local text = fields_of(key)[asked.name]
  local own = text and read(text)
  if own and own.instance == asked.instance then
    asked.left, asked.cap, asked.safe = true, asked.has, 0
    redis.call('HSET', key, asked.name, write(asked))
  end
  return {GRANTED, 0, 0, 0, 0, 0, 0, 0}
end

local function renew(key, asked, now)
  local fields = fields_of(key)
  local learning = note_contact(key, fields[EPOCH], now)
  redis.call('PEXPIRE', key, 4 * FORGET_AFTER)
  local known = {}
  for name, text in pairs(fields) do
    if name ~= EPOCH then
      local record = read(text)
      local age = record and now - record.renewed
      if record and age >= -SKEW and age <= FORGET_AFTER then
        record.name = name
        known[name] = record
      else
        redis.call('HDEL', key, name)
      end
    end
  end
  local own = known[asked.name]
  if own and own.instance == asked.instance and asked.seq <= own.seq then return {STALE, 0, 0, 0, 0, 0, 0, 0} end
  if own and own.instance ~= asked.instance and not (asked.fresh or own.left) then
    return {TAKEN, 0, 0, 0, 0, 0, 0, 0}
  end
  known[asked.name] = asked

  local live, count, budget, largest, held, silent, leaving, safes = {}, 0, asked.budget, asked.budget, 0, 0, 0, 0
  for name, record in pairs(known) do
    local many = name ~= asked.name and reserved(record, now) or 0
    held = held + many
    if record.left then
      leaving = leaving + many
    else
      count = count + 1
      budget, largest = math.min(budget, record.budget), math.max(largest, record.budget)
      if name ~= asked.name then safes = safes + record.safe end
      if is_silent(record, now) then silent = silent + many else live[#live + 1] = record end
    end
  end
  local room, floor, grant = budget - held, math.min(asked.minimum, asked.most), asked.cap
  if not learning then
    table.sort(live, function(one, other) return one.name < other.name end)
    grant = math.min(target(budget - silent - leaving, live, asked.name), room)
  end
  if grant < floor then
    local lendable = learning and floor or room + silent
    grant = math.max(0, grant, math.min(floor, lendable), math.min(floor, asked.has))
  end
  local safe = math.min(math.floor(budget / count), budget - safes)
  safe = math.max(0, learning and math.min(safe, asked.safe) or safe)
  local borrowed = math.max(0, grant - math.max(0, room, asked.cap))
  asked.cap, asked.safe, asked.grant = math.max(asked.cap, grant), math.max(asked.safe, safe), grant
  redis.call('HSET', key, asked.name, write(asked))
  return {GRANTED, grant, safe, count, budget, largest, learning and 1 or 0, borrowed}
end

-- The rule of _verdict.py.

local function read_share(text)
  if #text > 300 then return nil end
  local found = {string.match(text, '^1 ([0-9a-f]+)' .. string.rep(' ([0-9]+)', 6) .. '$')}
  if #found == 0 then return nil end
  for i = 2, 7 do
    found[i] = number(found[i])
    if not found[i] then return nil end
  end
  return {
    instance = found[1], seq = found[2], renewed = found[3], generation = found[4], calls = found[5],
    failures = found[6], slow = found[7],
  }
end

local function read_circuit(text)
  if text and #text <= 300 then
    local state, generation, till, prober = string.match(text, '^1 ([012]) ([0-9]+) ([0-9]+) ([!-~]*)$')
    if state and number(generation) and number(till) then
      return {state = tonumber(state), generation = number(generation), till = number(till), prober = prober}
    end
  end
  return {state = CLOSED, generation = 0, till = 0, prober = ''}
end

local function sums(known, circuit, now)
  local found = {workers = 0, calls = 0, failures = 0, slow = 0, troubled = 0}
  for _, share in pairs(known) do
    if now - share.renewed <= LEASE then found.workers = found.workers + 1 end
    if now - share.renewed <= LEASE and share.generation == circuit.generation then
      found.calls, found.failures = found.calls + share.calls, found.failures + share.failures
      found.slow = found.slow + share.slow
      if share.failures + share.slow > 0 then found.troubled = found.troubled + 1 end
    end
  end
  return found
end

local function is_sick(asked, found)
  local reached = found.failures * 1000000 >= asked.failure_rate * found.calls
    or found.slow * 1000000 >= asked.slow_rate * found.calls
  local enough = found.troubled > 1 or (found.workers == 1 and found.troubled == 1)
  return found.calls >= math.max(1, asked.minimum) and reached and enough
end

local function turn(circuit, asked, now, known)
  local prober = known[circuit.prober]
  if circuit.state == CLOSED and is_sick(asked, sums(known, circuit, now)) then
    circuit.state, circuit.generation, circuit.till = OPEN, circuit.generation + 1, now + asked.wait
  elseif circuit.state == OPEN and now >= circuit.till then
    if asked.refused > 0 or now >= circuit.till + IDLE then
      circuit.state, circuit.till, circuit.prober = PROBE, now + asked.lease, asked.name
    end
  elseif circuit.state == PROBE and circuit.prober == asked.name then
    if asked.result == PASSED then
      circuit.state, circuit.generation, circuit.till, circuit.prober = CLOSED, circuit.generation + 1, 0, ''
    elseif asked.result == FAILED then
      circuit.state, circuit.till, circuit.prober = OPEN, now + asked.wait, ''
    end
  elseif circuit.state == PROBE and (now >= circuit.till or not prober or now - prober.renewed > LEASE) then
    circuit.till, circuit.prober = now + asked.lease, asked.name
  end
end

local function judge(key, asked, now)
  local fields, known = fields_of(key), {}
  local circuit = read_circuit(fields[EPOCH])
  if circuit.till > now + math.max(asked.wait, asked.lease) + SKEW then circuit.till = now end
  for name, text in pairs(fields) do
    if name ~= EPOCH then
      local share = read_share(text)
      local age = share and now - share.renewed
      if share and age >= -SKEW and age <= FORGET_AFTER then known[name] = share else redis.call('HDEL', key, name) end
    end
  end
  local own = known[asked.name]
  if not own or own.instance ~= asked.instance or asked.seq > own.seq then
    known[asked.name] = asked
    turn(circuit, asked, now, known)
    redis.call('HSET', key, asked.name, string.format(
      '1 %s %.0f %.0f %.0f %.0f %.0f %.0f', asked.instance, asked.seq, now, asked.generation, asked.calls,
      asked.failures, asked.slow
    ), EPOCH, string.format('1 %d %.0f %.0f %s', circuit.state, circuit.generation, circuit.till, circuit.prober))
    redis.call('PEXPIRE', key, 4 * FORGET_AFTER)
  end
  local found, state = sums(known, circuit, now), circuit.state
  if state == PROBE and circuit.prober ~= asked.name then state = OPEN end
  return {
    state, math.max(0, circuit.till - now), circuit.generation, found.workers, found.calls, found.failures,
    found.slow, found.troubled,
  }
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local replies = {}
for i, key in ipairs(KEYS) do
  local at = (i - 1) * WIDTH
  local kind = ARGV[at + 1]
  local function asked(n) return tonumber(ARGV[at + n]) end
  if kind == 'judge' then
    replies[i] = judge(key, {
      name = ARGV[at + 2], instance = ARGV[at + 3], seq = asked(4), generation = asked(5), result = asked(6),
      calls = asked(7), failures = asked(8), slow = asked(9), refused = asked(10), minimum = asked(11),
      failure_rate = asked(12), slow_rate = asked(13), wait = asked(14), lease = asked(15), renewed = now,
    }, now)
  else
    replies[i] = (kind == 'leave' and leave or renew)(key, {
      name = ARGV[at + 2], instance = ARGV[at + 3], seq = asked(4), fresh = ARGV[at + 5] == '1', has = asked(6),
      cap = asked(7), safe = asked(8), wants = asked(9), minimum = asked(10), most = asked(11), budget = asked(12),
      host = ARGV[at + 13], left = false, renewed = now, grant = 0,
    }, now)
  end
end
return replies
