-- The rules of guardrails/fleet/_lease.py, _verdict.py and _orders.py, for Redis and Valkey. Constants come before this text.
--
-- KEYS: a hash for each budget and verdict. It holds `@` (the last contact, or the circuit), `=` (the sums over all
-- members) and for each shard of members the sums over them, by its number. A shard is a hash of its own with the
-- members' texts. ARGV: for each key WIDTH values, in the order of `_redis_store.py`.
-- Returns for each key the values of a `Reply`, a `Ruling` or `Orders`. The key of orders has a field for each kind.
--
-- A usual call reads and writes one member and changes the sums by the difference. A shard's sums are made anew from its
-- members, and the total from the shards, every REMAKE milliseconds and when time has changed a member's state. If a
-- sum then differs from the stored one, or is missing, data were lost or overwritten, and the store learns.

local EPOCH, TOTAL, FAR = '@', '=', 999999999999999
local LIVE, SILENT, LEFT, OUT = 1, 2, 3, 4

local function number(text)
  return #text <= 15 and tonumber(text) or nil
end

-- Sums: named numbers, and tables that say how often a value occurs. `change` is a time before which no member's state
-- changes by time; `made` is when they were last made from the members.

local function new_sum(kind)
  local sum = {change = FAR, made = 0}
  for _, name in ipairs(kind.numbers) do sum[name] = 0 end
  for _, name in ipairs(kind.tables) do sum[name] = {} end
  return sum
end

local function read_sum(kind, text)
  if not text or #text > LONGEST_SUM then return nil end
  local parts = {string.match(text, kind.pattern)}
  if #parts == 0 then return nil end
  local sum, at = {}, 0
  for _, names in ipairs({{'change', 'made'}, kind.numbers}) do
    for _, name in ipairs(names) do
      at = at + 1
      sum[name] = number(parts[at])
      if not sum[name] then return nil end
    end
  end
  for _, name in ipairs(kind.tables) do
    at = at + 1
    local values = {}
    for value, many in string.gmatch(parts[at], '(%d+):(%d+)') do
      value, many = number(value), number(many)
      if not (value and many) then return nil end
      values[value] = many
    end
    sum[name] = values
  end
  return sum
end

local function write_sum(kind, sum)
  local parts = {'2', string.format('%.0f', sum.change), string.format('%.0f', sum.made)}
  for _, name in ipairs(kind.numbers) do parts[#parts + 1] = string.format('%.0f', sum[name]) end
  for _, name in ipairs(kind.tables) do
    parts[#parts + 1] = '|'
    for value, many in pairs(sum[name]) do parts[#parts + 1] = string.format('%.0f:%.0f', value, many) end
  end
  return table.concat(parts, ' ')
end

local function count(values, value, change)
  local many = (values[value] or 0) + change
  values[value] = many ~= 0 and many or nil
end

local function merge(kind, sum, other, sign)
  for _, name in ipairs(kind.numbers) do sum[name] = sum[name] + sign * other[name] end
  for _, name in ipairs(kind.tables) do
    for value, many in pairs(other[name]) do count(sum[name], value, sign * many) end
  end
end

local function is_same(kind, one, other)
  for _, name in ipairs(kind.numbers) do
    if one[name] ~= other[name] then return false end
  end
  for _, name in ipairs(kind.tables) do
    for value, many in pairs(one[name]) do
      if other[name][value] ~= many then return false end
    end
    for value in pairs(other[name]) do
      if not one[name][value] then return false end
    end
  end
  return true
end

-- The hashes of one budget or verdict.

local function fetch(command, key, ...)
  local found = redis.pcall(command, key, ...)
  if type(found) == 'table' and found.err then
    redis.call('UNLINK', key) -- it is of another type
    return nil
  end
  return found
end

local function contents(key)
  local fields = fetch('HLEN', key)
  if not fields or fields == 0 then return {} end
  local size = redis.pcall('MEMORY', 'USAGE', key, 'SAMPLES', 0)
  if fields > MOST_FIELDS or type(size) == 'number' and size > MOST_BYTES then
    redis.call('UNLINK', key)
    return {}
  end
  return redis.call('HGETALL', key)
end

local function open(kind, key, shard, name)
  local head, tail = string.match(key, '^(guardrails:{[^{}]*}:%a+2)(:.*)$')
  local book = {kind = kind, key = key, shard = shard, name = name, is_lost = false, is_renewed = false}
  function book.key_of(number) return head .. '.' .. number .. tail end
  book.epoch, book.total_text, book.sum_text = unpack(fetch('HMGET', key, EPOCH, TOTAL, shard) or {})
  book.own_text = fetch('HGET', book.key_of(shard), name)
  return book
end

local function forget_all(book)
  redis.call('UNLINK', book.key)
  for number = 0, SHARDS - 1 do redis.call('UNLINK', book.key_of(number)) end
  book.total_text, book.sum_text, book.own_text = nil, nil, nil
end

local function store_sum(book, shard, sum)
  if sum.members == 0 then
    redis.call('HDEL', book.key, shard)
  else
    redis.call('HSET', book.key, shard, write_sum(book.kind, sum))
  end
end

-- Makes the sums of a shard anew. `text` is what was stored of them.
local function remake(book, shard, text, now)
  local kind, key, old = book.kind, book.key_of(shard), read_sum(book.kind, text)
  local flat, sum = contents(key), new_sum(book.kind)
  for i = 1, #flat, 2 do
    local record = kind.read(flat[i + 1])
    local state = record and kind.state(record, now) or 0
    if state > 0 then
      if shard == book.shard and flat[i] == book.name then book.own = record end
      kind.add(sum, record, state, 1)
      sum.change = math.min(sum.change, kind.changes_at(record, state))
    else
      redis.call('HDEL', key, flat[i])
    end
  end
  sum.made = now
  if old then
    if now < old.change and not is_same(kind, old, sum) then book.is_lost = true end
    if book.total then
      merge(kind, book.total, old, -1)
      merge(kind, book.total, sum, 1)
    end
  elseif text or sum.members > 0 then
    book.is_lost, book.total = true, nil
  end
  store_sum(book, shard, sum)
  return sum
end

-- Makes shards anew whose members time has changed: some in this call, the others in the next ones. Until then what
-- they say is reserved is too much rather than too little.
local function catch_up(book, now)
  local flat, change, left = contents(book.key), FAR, MOST_REMADE
  for i = 1, #flat, 2 do
    local next_change = string.match(flat[i + 1], '^2 (%d+) %d+ ')
    if string.match(flat[i], '^%d+$') and next_change then
      next_change = number(next_change) or 0
      if now >= next_change and left > 0 then
        local sum = remake(book, flat[i], flat[i + 1], now)
        left, next_change = left - sum.members - 1, sum.change
      end
      change = math.min(change, next_change)
    end
  end
  if book.total then book.total.change = change end
end

-- Makes the total anew from the sums of the shards.
local function rebuild(book, now)
  local kind, flat, total = book.kind, contents(book.key), new_sum(book.kind)
  for i = 1, #flat, 2 do
    local field, text = flat[i], flat[i + 1]
    local shard = string.match(field, '^%d+$') and tonumber(field)
    if shard and shard < SHARDS then
      local sum = read_sum(kind, text)
      if sum then
        merge(kind, total, sum, 1)
        total.change = math.min(total.change, sum.change)
      else
        remake(book, field, text, now)
        return rebuild(book, now)
      end
    elseif field ~= EPOCH and field ~= TOTAL then
      redis.call('HDEL', book.key, field)
    end
  end
  if book.total then
    if not is_same(kind, book.total, total) then book.is_lost = true end
  elseif book.total_text or total.members > 0 then
    book.is_lost = true
  end
  total.made = now
  book.total = total
end

-- Brings the sums to this time, and finds the member that asks. A call makes little anew.
local function settle(book, now)
  local kind = book.kind
  local own = book.own_text and kind.read(book.own_text)
  if own and kind.state(own, now) == 0 then own = nil end
  book.own, book.total = nil, read_sum(kind, book.total_text)
  local change, made = string.match(book.sum_text or '', '^2 (%d+) (%d+) ')
  change, made = change and number(change), made and number(made)
  if not (own and change and made) or now >= change or now - made > REMAKE or made > now then
    book.sum = remake(book, book.shard, book.sum_text, now)
    book.is_renewed = true
  else
    book.own = own
  end
  if book.total and now >= book.total.change then
    catch_up(book, now)
    book.is_renewed = true
  end
  local total = book.total
  if not total or total.made > now or now - total.made > REMAKE and not book.is_renewed then
    rebuild(book, now)
    book.is_renewed = true
  end
end

-- Replaces the member that asks.
local function put(book, record, now)
  local kind, own = book.kind, book.own
  local state = kind.state(record, now)
  if own and kind.weighs_the_same(own, kind.state(own, now), record, state) then return end
  book.sum = book.sum or read_sum(kind, book.sum_text)
  for _, sum in ipairs({book.total, book.sum}) do
    if own then kind.add(sum, own, kind.state(own, now), -1) end
    kind.add(sum, record, state, 1)
    sum.change = math.min(sum.change, kind.changes_at(record, state))
  end
  book.is_changed = true
end

-- Writes what has changed; `fields` are those of the budget's hash, and `text` is that of the member that asks.
local function finish(book, epoch, text)
  local words = {EPOCH, epoch}
  if book.is_changed or book.is_renewed then
    words[3], words[4] = TOTAL, write_sum(book.kind, book.total)
  end
  if book.is_changed then words[5], words[6] = book.shard, write_sum(book.kind, book.sum) end
  redis.call('HSET', book.key, unpack(words))
  if text then redis.call('HSET', book.key_of(book.shard), book.name, text) end
  if book.is_renewed then
    redis.call('PEXPIRE', book.key, 4 * FORGET_AFTER)
    redis.call('PEXPIRE', book.key_of(book.shard), 4 * FORGET_AFTER)
  end
end

-- The rule of _lease.py.

local RECORD = '^2 ([0-9a-f]+) ([0-9]+) ([01]) ([01])' .. string.rep(' ([0-9]+)', 9) .. ' [!-~]*$'

local function demand(record)
  local low = math.min(record.minimum, record.most)
  local wanted = math.max(record.wants, low)
  if wanted > EXACT then
    local step = 4
    while step * 32 <= wanted do step = step * 2 end
    wanted = math.ceil(wanted / step) * step
  end
  return low, math.min(wanted, record.most)
end

local LEASES = {
  numbers = {'members', 'live', 'silent', 'cap', 'risen', 'held_by_silent', 'held_by_left', 'safe', 'extra', 'filled'},
  tables = {'budgets', 'low', 'wanted', 'high'},
}

-- What the rule does not use is checked and not kept: this runs for each member of a shard.
function LEASES.read(text)
  if #text > 300 then return nil end
  local instance, seq, left, extra, cap, safe, wants, minimum, most, budget, renewed, has, grant =
    string.match(text, RECORD)
  if not instance or #seq > 15 or #renewed > 15 or #cap > DIGITS or #safe > DIGITS or #wants > DIGITS
    or #minimum > DIGITS or #most > DIGITS or #budget > DIGITS or #has > DIGITS or #grant > DIGITS then
    return nil
  end
  return {
    instance = instance, seq = tonumber(seq), left = left == '1', extra = tonumber(extra), cap = tonumber(cap),
    safe = tonumber(safe), wants = tonumber(wants), minimum = tonumber(minimum), most = tonumber(most),
    budget = tonumber(budget), renewed = tonumber(renewed),
  }
end

local function write(record)
  return string.format(
    '2 %s %.0f %d %d %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %s',
    record.instance, record.seq, record.left and 1 or 0, record.extra, record.cap, record.safe, record.wants,
    record.minimum, record.most, record.budget, record.renewed, record.has, record.grant, record.host
  )
end

function LEASES.state(record, now)
  local age = now - record.renewed
  if age < -SKEW or age > FORGET_AFTER then return 0 end
  if record.left then return age <= LEAVING and LEFT or OUT end
  return age <= SILENT_AFTER and LIVE or SILENT
end

function LEASES.changes_at(record, state)
  return record.renewed + 1 + (state == LIVE and SILENT_AFTER or state == LEFT and LEAVING or FORGET_AFTER)
end

function LEASES.add(sum, record, state, sign)
  sum.members = sum.members + sign
  if state == LEFT then
    sum.held_by_left = sum.held_by_left + sign * record.cap
  elseif state == SILENT then
    sum.silent = sum.silent + sign
    sum.held_by_silent = sum.held_by_silent + sign * math.max(record.cap, record.safe)
  elseif state == LIVE then
    sum.live = sum.live + sign
    sum.cap = sum.cap + sign * record.cap
    sum.risen = sum.risen + sign * math.max(record.cap, record.safe)
    sum.extra = sum.extra + sign * record.extra
    local low, wanted = demand(record)
    sum.filled = sum.filled + sign * math.min(record.cap, low)
    count(sum.low, low, sign)
    count(sum.wanted, wanted, sign)
    count(sum.high, record.most, sign)
  end
  if state == LIVE or state == SILENT then
    sum.safe = sum.safe + sign * record.safe
    count(sum.budgets, record.budget, sign)
  end
end

function LEASES.weighs_the_same(one, state, other, new_state)
  return state == LIVE and new_state == LIVE and one.cap == other.cap and one.safe == other.safe
    and one.extra == other.extra and one.wants == other.wants and one.minimum == other.minimum
    and one.most == other.most and one.budget == other.budget
end

local function total_of(values)
  local total = 0
  for value, many in pairs(values) do total = total + value * many end
  return total
end

local function flat_of(values)
  local flat, highest = {}, 0
  for value, many in pairs(values) do
    flat[#flat + 1], flat[#flat + 2] = value, many
    highest = math.max(highest, value)
  end
  return flat, highest
end

local function share(budget, low, high, least, most, taken)
  local base, flat_low = total_of(low), flat_of(low)
  local flat_high, above = flat_of(high)
  local below = 0
  local function divided(level)
    local total = base
    for i = 1, #flat_low, 2 do
      if flat_low[i] < level then total = total + flat_low[i + 1] * (level - flat_low[i]) end
    end
    for i = 1, #flat_high, 2 do
      if flat_high[i] < level then total = total - flat_high[i + 1] * (level - flat_high[i]) end
    end
    return total
  end
  above = math.min(above, budget)
  while below < above do
    local level = math.floor((below + above + 1) / 2)
    if divided(level) <= budget then below = level else above = level - 1 end
  end
  local extra = least <= below and below < most and taken < budget - divided(below) and 1 or 0
  return math.min(math.max(below, least), most) + extra, extra
end

local function target(budget, total, own)
  local low, wanted = demand(own)
  if total_of(total.low) >= budget then return low, 0 end
  local wants = total_of(total.wanted)
  if wants >= budget then return share(budget, total.low, total.wanted, low, wanted, total.extra) end
  budget = math.max(wants, budget - math.max(1, math.floor(budget / ROOM_FOR_NEW)))
  if total_of(total.high) <= budget then return own.most, 0 end
  return share(budget, total.wanted, total.high, wanted, own.most, total.extra)
end

-- Opens a budget's hashes, and notes that the store was asked. Returns them and the time that counts.
local function open_budget(key, shard, asked, now)
  local book, last, till = open(LEASES, key, shard, asked.name), nil, nil
  local text = book.epoch
  if text and #text <= 300 then
    last, till = string.match(text, '^2 ([0-9]+) ([0-9]+)$')
    last, till = last and number(last), till and number(till)
  end
  if last and till and last > now + SKEW then
    forget_all(book)
    last = nil
  end
  if not (last and till) or now - last > LEASE then till = now + LEASE end
  now = math.max(now, last or now)
  settle(book, now)
  if book.is_lost then till = now + LEASE end
  book.till = math.min(till, now + LEASE)
  asked.renewed = now
  return book, now
end

local function epoch_of(book, now)
  return string.format('2 %.0f %.0f', now, book.till)
end

local function leave(key, shard, asked, now)
  local book, text
  book, now = open_budget(key, shard, asked, now)
  if book.own and book.own.instance == asked.instance then
    asked.left, asked.cap, asked.safe = true, asked.has, 0
    put(book, asked, now)
    text = write(asked)
  end
  finish(book, epoch_of(book, now), text)
  return {GRANTED, 0, 0, 0, 0, 0, 0, 0}
end

local function renew(key, shard, asked, now)
  local book
  book, now = open_budget(key, shard, asked, now)
  local own, total, learning = book.own, book.total, now < book.till
  if own and own.instance == asked.instance and asked.seq <= own.seq then
    finish(book, epoch_of(book, now))
    return {STALE, 0, 0, 0, 0, 0, 0, 0}
  end
  if own and own.instance ~= asked.instance and not (asked.fresh or own.left) then
    finish(book, epoch_of(book, now))
    return {TAKEN, 0, 0, 0, 0, 0, 0, 0}
  end
  local cap, safe, grant, extra, kept_cap = asked.cap, asked.safe, asked.cap, 0, 0
  if own then
    local state = LEASES.state(own, now)
    kept_cap = (state == 0 or state == OUT) and 0 or math.min(cap, own.cap)
  end
  local is_stale = now >= total.change
  -- While the grant is computed the worker is in the sums with its demand and its budget alone.
  if own then LEASES.add(total, own, LEASES.state(own, now), -1) end
  asked.cap, asked.safe = 0, 0
  LEASES.add(total, asked, LIVE, 1)
  local budget, largest, workers = FAR, 0, total.live + total.silent
  for value in pairs(total.budgets) do budget, largest = math.min(budget, value), math.max(largest, value) end
  local silent, left = total.held_by_silent, total.held_by_left
  local room = budget - (is_stale and total.risen or total.cap) - silent - left
  local floor = math.min(asked.minimum, asked.most)
  local free = room - (total_of(total.low) - floor - total.filled)
  local for_floor = own and room or free
  if not learning then
    grant, extra = target(budget - silent - left, total, asked)
    grant = math.min(grant, math.max(room, kept_cap), math.max(cap, free, math.min(floor, for_floor)))
  end
  if grant < floor then
    local lendable = learning and floor or for_floor + silent
    grant = math.max(0, grant, math.min(floor, lendable), math.min(floor, asked.has))
  end
  local kept = math.min(math.floor(budget / workers), budget - total.safe)
  kept = math.max(0, learning and math.min(kept, safe) or kept)
  local borrowed = math.max(0, grant - math.max(0, room, cap))
  LEASES.add(total, asked, LIVE, -1)
  if own then LEASES.add(total, own, LEASES.state(own, now), 1) end
  asked.cap, asked.safe, asked.extra, asked.grant = math.max(cap, grant), math.max(safe, kept), extra, grant
  put(book, asked, now)
  finish(book, epoch_of(book, now), write(asked))
  return {GRANTED, grant, kept, workers, budget, largest, learning and 1 or 0, borrowed}
end

-- The rule of _verdict.py.

local VERDICTS = {numbers = {'members', 'live'}, tables = {'calls', 'failures', 'slow', 'troubled'}}

function VERDICTS.read(text)
  if #text > 300 then return nil end
  local found = {string.match(text, '^2 ([0-9a-f]+)' .. string.rep(' ([0-9]+)', 6) .. '$')}
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

function VERDICTS.state(share, now)
  local age = now - share.renewed
  return (age < -SKEW or age > FORGET_AFTER) and 0 or age <= LEASE and LIVE or SILENT
end

function VERDICTS.changes_at(share, state)
  return share.renewed + 1 + (state == LIVE and LEASE or FORGET_AFTER)
end

function VERDICTS.add(sum, share, state, sign)
  sum.members = sum.members + sign
  if state ~= LIVE then return end
  sum.live = sum.live + sign
  count(sum.calls, share.generation, sign * share.calls)
  count(sum.failures, share.generation, sign * share.failures)
  count(sum.slow, share.generation, sign * share.slow)
  if share.failures + share.slow > 0 then count(sum.troubled, share.generation, sign) end
end

function VERDICTS.weighs_the_same(one, state, other, new_state)
  return state == LIVE and new_state == LIVE and one.generation == other.generation and one.calls == other.calls
    and one.failures == other.failures and one.slow == other.slow
end

local function read_circuit(text)
  if text and #text <= 300 then
    local state, generation, till, seen, last, prober =
      string.match(text, '^2 ([012]) ([0-9]+) ([0-9]+) ([0-9]+) ([0-9]+) ([!-~]*)$')
    if state and number(generation) and number(till) and number(seen) and number(last) then
      return {
        state = tonumber(state), generation = number(generation), till = number(till), seen = number(seen),
        last = number(last), prober = prober,
      }
    end
  end
  return {state = CLOSED, generation = 0, till = 0, seen = 0, last = 0, prober = ''}
end

local function write_circuit(circuit)
  return string.format(
    '2 %d %.0f %.0f %.0f %.0f %s', circuit.state, circuit.generation, circuit.till, circuit.seen, circuit.last,
    circuit.prober
  )
end

local function counted(total, circuit)
  local found = {}
  for _, name in ipairs(VERDICTS.tables) do found[name] = total[name][circuit.generation] or 0 end
  return found
end

local function is_sick(asked, total, circuit)
  local found = counted(total, circuit)
  local reached = found.failures * 1000000 >= asked.failure_rate * found.calls
    or found.slow * 1000000 >= asked.slow_rate * found.calls
  local enough = found.troubled > 1 or (total.live == 1 and found.troubled == 1)
  return found.calls >= math.max(1, asked.minimum) and reached and enough
end

local function turn(circuit, asked, total, now)
  local is_probers, can_probe = circuit.prober == asked.name, asked.result ~= DECLINED
  local function give_round()
    circuit.state, circuit.till, circuit.prober, circuit.seen = PROBE, now + asked.lease, asked.name, now
  end
  if circuit.state == CLOSED then
    if is_sick(asked, total, circuit) then
      circuit.state, circuit.generation, circuit.till = OPEN, circuit.generation + 1, now + asked.wait
    end
  elseif circuit.state == OPEN then
    if can_probe and now >= circuit.till and (asked.refused > 0 or now >= circuit.till + IDLE) then give_round() end
  elseif is_probers and asked.result == PASSED then
    circuit.state, circuit.generation, circuit.till, circuit.prober = CLOSED, circuit.generation + 1, 0, ''
  elseif is_probers and asked.result == FAILED then
    circuit.state, circuit.till, circuit.prober = OPEN, now + asked.wait, ''
  elseif is_probers and can_probe then
    circuit.seen = now
  elseif is_probers then
    circuit.state, circuit.till, circuit.prober = OPEN, now, ''
  elseif can_probe and (now >= circuit.till or now - circuit.seen > LEASE) then
    give_round()
  end
end

local function judge(key, shard, asked, now)
  local book, text = open(VERDICTS, key, shard, asked.name), nil
  local circuit = read_circuit(book.epoch)
  if circuit.last > now + SKEW then
    forget_all(book)
    circuit.last = 0
  end
  now = math.max(now, circuit.last)
  circuit.last = now
  if circuit.till > now + math.max(asked.wait, asked.lease) + SKEW then circuit.till = now end
  settle(book, now)
  local own = book.own
  if not own or own.instance ~= asked.instance or asked.seq > own.seq then
    asked.renewed = now
    put(book, asked, now)
    turn(circuit, asked, book.total, now)
    text = string.format(
      '2 %s %.0f %.0f %.0f %.0f %.0f %.0f', asked.instance, asked.seq, now, asked.generation, asked.calls,
      asked.failures, asked.slow
    )
  end
  finish(book, write_circuit(circuit), text)
  local found, state = counted(book.total, circuit), circuit.state
  if state == PROBE and circuit.prober ~= asked.name then state = OPEN end
  return {
    state, math.max(0, circuit.till - now), circuit.generation, book.total.live, found.calls, found.failures,
    found.slow, found.troubled,
  }
end

-- The rule of _orders.py.

local function given_at(kind, text, now)
  if not text or #text > 200 then return nil end
  local at, what, by = string.match(text, '^2 ([0-9]+) ([a-z_]+) ([!-~]+)$')
  at = at and number(at)
  return at and at <= now + TOO_LATE and ORDERS[kind][what] and #by <= 100 and at or nil
end

-- A reset closes the fleet's circuit, too; the windows of before do not count.
local function close_circuit(key)
  local circuit = read_circuit(fetch('HGET', key, EPOCH))
  if circuit.state ~= CLOSED then
    circuit.state, circuit.generation, circuit.till, circuit.prober = CLOSED, circuit.generation + 1, 0, ''
    redis.call('HSET', key, EPOCH, write_circuit(circuit))
  end
end

local function steer(key, gives, orders, now)
  local kinds, replies = {'mode', 'circuit'}, {}
  local stored = fetch('HMGET', key, kinds[1], kinds[2]) or {}
  for i, kind in ipairs(kinds) do
    local known, new = given_at(kind, stored[i], now), given_at(kind, orders[i], now)
    replies[i] = known and stored[i] or ''
    if new and (not known or new > known) then
      redis.call('HSET', key, kind, orders[i])
      replies[i] = orders[i]
      if gives and string.match(orders[i], '^2 [0-9]+ reset ') then
        close_circuit((string.gsub(key, ':order2:', ':verdict2:', 1)))
      end
    end
  end
  if (replies[1] ~= '' or replies[2] ~= '') and redis.call('PTTL', key) < ORDERS_KEPT / 2 then
    redis.call('PEXPIRE', key, ORDERS_KEPT)
  end
  return replies
end

for _, kind in ipairs({LEASES, VERDICTS}) do
  kind.pattern = '^2' .. string.rep(' (%d+)', 2 + #kind.numbers) .. string.rep(' |([%d: ]*)', #kind.tables) .. '$'
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local replies = {}
for i, key in ipairs(KEYS) do
  local at = (i - 1) * WIDTH
  local kind, shard = ARGV[at + 1], ARGV[at + 2]
  local function asked(n) return tonumber(ARGV[at + n]) end
  if kind == 'steer' then
    replies[i] = steer(key, ARGV[at + 4] == '1', {ARGV[at + 5], ARGV[at + 6]}, now)
  elseif kind == 'judge' then
    replies[i] = judge(key, shard, {
      name = ARGV[at + 3], instance = ARGV[at + 4], seq = asked(5), generation = asked(6), result = asked(7),
      calls = asked(8), failures = asked(9), slow = asked(10), refused = asked(11), minimum = asked(12),
      failure_rate = asked(13), slow_rate = asked(14), wait = asked(15), lease = asked(16), renewed = now,
    }, now)
  else
    replies[i] = (kind == 'leave' and leave or renew)(key, shard, {
      name = ARGV[at + 3], instance = ARGV[at + 4], seq = asked(5), fresh = ARGV[at + 6] == '1', has = asked(7),
      cap = asked(8), safe = asked(9), wants = asked(10), minimum = asked(11), most = asked(12), budget = asked(13),
      host = ARGV[at + 14], left = false, extra = 0, renewed = now, grant = 0,
    }, now)
  end
end
return replies
