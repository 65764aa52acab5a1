"""A guarded client answers every command as a bare one does: results, types and errors."""

from __future__ import annotations

import asyncio

import pytest
import redis
import redis.asyncio

from guardrails import protect

# A deprecated command is a command, too.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")

SCRIPT = """
set s hello | get s | getrange s 1 3 | setrange s 2 XY | append s ! | strlen s | getdel s | get s
set n 10 | incr n | incrby n 5 | decr n | decrby n 3 | incrbyfloat n 0.5 | get n | incr n
setnx s 1 | setnx s 2 | setex e 100 v | psetex p 100000 v | getex e | getset s new | mset_
mget a b c nothing
exists a b nothing | type a | type nothing | rename a z | renamenx z b | touch b c | unlink c
delete b nothing
expire s 100 | persist s | pexpire s 100000 | expireat s 9999999999 | expiretime s | copy s s2 | dbsize
lpush l 1 2 3 | rpush l 4 5 | lrange l 0 -1 | llen l | lindex l 1 | lset l 0 x | linsert_ | lrem l 1 x
ltrim l 0 3
lpop l | rpop l | lpop l 2 | lpushx l y | rpushx l y | lpos l y | lmove l l2 | rpoplpush l l2
lrange l2 0 -1
lpop nothing | llen s | lpush s 1 | blpop_ | brpop_
sadd t a b c | sadd u b c d | smembers_ | sismember t a | smismember t a z | scard t | sinter_
srem t a z | sadd s 1
smove t u b | srandmember_ | sunionstore_ | scard v | sdiffstore_ | sintercard_
zadd_ | zcard z | zscore z one | zscore z none | zrange z 0 -1 | zrangebyscore z 1 2 | zrank z two
zrevrank z two
zincrby z 5 one | zcount z 1 10 | zrem z one | zpopmin z | zpopmax z | zrange_ | zmscore_ | zrandmember z
bzpopmin z 1
hset h f v | hset h n 1 | hget h f | hget h none | hgetall h | hkeys h | hvals h | hlen h | hexists h f
hincrby h n 4
hincrbyfloat h n 0.5 | hmget h f n | hdel h f | hsetnx h f w | hstrlen h f | hincrby h f 1 | hget s f
pfadd_ | pfcount hll | setbit b 7 1 | getbit b 7 | bitcount b | bitpos b 1 | bitop_ | bitfield_
geoadd_ | geodist g x y | geohash g x y | geopos g x none | geosearch_
xadd_ | xlen x | xrange x | xrevrange x | xread_ | xgroup_create x grp 0 | xgroup_create x grp 0
xreadgroup_ | xack x grp 1-1
xpending x grp | xdel x 1-1 | xtrim x 0 | xinfo_stream x | xinfo_groups x
eval_ | evalsha 0123456789012345678901234567890123456789 0 | script_exists_ | echo hi | ping | type h
sort_
object encoding n | memory_usage s | config_get maxmemory | client_getname | client_setname me
nonsense | execute_GET | execute_wrong | set_none | publish nobody hello | pubsub_channels
pubsub_numsub nobody
"""

SPECIAL = {
    "mset_": lambda c: c.mset({"a": 1, "b": 2, "c": 3}),
    "linsert_": lambda c: c.linsert("l", "BEFORE", "2", "between"),
    "smembers_": lambda c: c.smembers("t"),
    "sinter_": lambda c: c.sinter("t", "u"),
    "srandmember_": lambda c: c.srandmember("nothing"),
    "sunionstore_": lambda c: c.sunionstore("v", "t", "u"),
    "sdiffstore_": lambda c: c.sdiffstore("w", "t", "u"),
    "sintercard_": lambda c: c.sintercard(2, ["t", "u"]),
    "zadd_": lambda c: c.zadd("z", {"one": 1, "two": 2, "three": 3}),
    "zrange_": lambda c: c.zrange("z", 0, -1, withscores=True),
    "zmscore_": lambda c: c.zmscore("z", ["two", "none"]),
    "pfadd_": lambda c: c.pfadd("hll", "a", "b"),
    "bitop_": lambda c: c.bitop("NOT", "nb", "b"),
    "bitfield_": lambda c: c.bitfield("bf").incrby("i5", 0, 1).get("u4", 0).execute(),
    "geoadd_": lambda c: c.geoadd("g", [13.36, 38.11, "x", 15.08, 37.5, "y"]),
    "geosearch_": lambda c: c.geosearch("g", longitude=15, latitude=37, radius=200, unit="km", sort="ASC"),
    "blpop_": lambda c: c.blpop("l2", timeout=0.01),
    "brpop_": lambda c: c.brpop("l2", timeout=0.01),
    "xadd_": lambda c: c.xadd("x", {"f": "v"}, id="1-1"),
    "xread_": lambda c: c.xread({"x": "0"}, block=10),
    "xreadgroup_": lambda c: c.xreadgroup("grp", "me", {"x": ">"}),
    "eval_": lambda c: c.eval("return {1, 'two', redis.call('GET', KEYS[1])}", 1, "n"),
    "script_exists_": lambda c: c.script_exists("0123456789012345678901234567890123456789"),
    "sort_": lambda c: c.sort("nothing", alpha=True),
    "nonsense": lambda c: c.execute_command("NONSENSE", 1, 2),
    "execute_GET": lambda c: c.execute_command("get", "n"),
    "execute_wrong": lambda c: c.execute_command("GET"),
    "set_none": lambda c: c.set("k", None),
    "object": lambda c: c.object("encoding", "n"),
}

COMMANDS = [step.split() for line in SCRIPT.strip().splitlines() for step in line.split("|")]

OPTIONS = [{}, {"protocol": 2}, {"decode_responses": True}, {"protocol": 2, "decode_responses": True}]


def ask(client, name, *words):
    """One step of the script."""
    if name in SPECIAL:
        return SPECIAL[name](client)
    return getattr(client, name)(*[int(word) if word.lstrip("-").isdigit() else word for word in words])


def said(error):
    """What an error comes to for a caller."""
    return type(error), str(error)


def play(client):
    """The whole script with single commands, then as one pipeline, then as a transaction."""
    client.flushdb()
    answers = []
    for step in COMMANDS:
        try:
            answers.append(ask(client, *step))
        except Exception as error:
            answers.append(said(error))
    for transaction in (False, True):
        client.flushdb()
        pipe = client.pipeline(transaction=transaction)
        for step in COMMANDS:
            if step[0] not in {"set_none", "bitfield_", "nonsense", "execute_wrong", "script_exists_"}:
                ask(pipe, *step)
        replies = pipe.execute(raise_on_error=False)
        answers.extend(said(reply) if isinstance(reply, Exception) else reply for reply in replies)
    client.flushdb()
    return answers


async def play_async(client):
    """The same with single commands on an asyncio client."""
    await client.flushdb()
    answers = []
    for step in COMMANDS:
        try:
            answers.append(await ask(client, *step))
        except Exception as error:
            answers.append(said(error))
    await client.flushdb()
    return answers


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_guarded_client_gives_the_same_replies_as_a_bare_one(valkey, options):
    """Hundreds of commands, singly, in a pipeline and in a transaction."""
    bare = redis.Redis(port=valkey.port, db=3, **options)
    client = redis.Redis(port=valkey.port, db=3, **options)
    guard = protect(client, name="cache")
    expected = play(bare)
    assert len(expected) > 450
    assert play(client) == expected
    assert guard.snapshot().failed == guard.snapshot().in_use == 0
    bare.close()
    client.close()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_guarded_asyncio_client_gives_the_same_replies_as_a_bare_one(valkey, options):
    """The same commands on the asyncio client."""

    async def main():
        bare = redis.asyncio.Redis(port=valkey.port, db=4, **options)
        client = redis.asyncio.Redis(port=valkey.port, db=4, **options)
        guard = protect(client, name="cache")
        expected = await play_async(bare)
        assert await play_async(client) == expected
        assert guard.snapshot().failed == 0
        await bare.aclose()
        await client.aclose()

    asyncio.run(main())
