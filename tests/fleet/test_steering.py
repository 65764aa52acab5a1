"""Orders to a whole fleet: who obeys, what undoes them, and what a store that lost its data learns again."""

from __future__ import annotations

import random
import sqlite3
import time

import pytest
import redis
from sqlalchemy import create_engine, text

from guardrails import BreakerPolicy, Guard, protect
from guardrails.errors import CircuitOpenError, ConfigurationError
from guardrails.fleet import Fleet, _fleet
from guardrails.fleet._orders import KINDS, TOO_LATE, Order, Orders, OrdersRequest, merge
from guardrails.fleet._redis_store import SCRIPT, _words
from guardrails.fleet._steering import WHAT
from guardrails.fleet._stores import Ask
from guardrails.fleet._worker import FleetWorker
from support.polling import wait_until

NOW = 1_800_000_000_000


# --- the rule -----------------------------------------------------------------------------------------------


def order(what, at, by="ops@bastion"):
    return Order(what, at, by).write()


def test_the_later_order_counts_whichever_comes_first():
    fields = {}
    assert merge(fields, OrdersRequest("w", mode=order("shadow", 5)), NOW) == Orders(order("shadow", 5))
    assert merge(fields, OrdersRequest("w", mode=order("off", 4)), NOW) == Orders(order("shadow", 5))
    assert merge(fields, OrdersRequest("w", mode=order("off", 6)), NOW) == Orders(order("off", 6))
    assert fields == {"mode": order("off", 6)}


def test_mode_and_circuit_are_ordered_each_for_itself():
    fields = {}
    merge(fields, OrdersRequest("w", mode=order("shadow", 5)), NOW)
    found = merge(fields, OrdersRequest("w", circuit=order("force_open", 3)), NOW)
    assert found == Orders(order("shadow", 5), order("force_open", 3))


HOSTILE = [
    "",
    "2",
    "2 5 shadow",
    "2 5 dance ops",
    "2 5 force_open ops",
    "1 5 off ops",
    "2 5 off o ps",
    "x" * 300,
]


@pytest.mark.parametrize("text", [*HOSTILE, f"2 {NOW + TOO_LATE + 1} off ops"])
def test_a_text_that_is_no_order_is_treated_as_absent(text):
    assert merge({"mode": text}, OrdersRequest("w"), NOW) == Orders()
    fields = {}
    assert merge(fields, OrdersRequest("w", mode=text), NOW) == Orders()
    assert fields == {}


@pytest.mark.parametrize("seed", range(4))
def test_lua_and_python_keep_the_same_orders(valkey, seed):
    draw, fields, key = random.Random(seed), {}, f"guardrails:{{shop}}:order2:o{seed}"
    with redis.Redis(port=valkey.port, decode_responses=True) as client:
        run = client.register_script(SCRIPT.replace("redis.call('TIME')", "{ARGV[#ARGV - 1], ARGV[#ARGV]}"))
        for _ in range(100):
            texts = {
                kind: draw.choice(["", order(draw.choice(allowed), NOW + draw.randrange(20)), "2 5"])
                for kind, allowed in KINDS.items()
            }
            if draw.random() < 0.1 and fields:
                kind = draw.choice(list(fields))
                fields[kind] = draw.choice([*HOSTILE, f"2 {NOW + 2 * TOO_LATE} off ops", "x" * 300])
                client.hset(key, kind, fields[kind])
            asked = OrdersRequest("w", draw.random() < 0.5, **texts)
            values = run([key], [*_words(Ask("o", asked)), NOW // 1000, 0])[0]
            assert Orders(*values) == merge(fields, asked, NOW)
            assert client.hgetall(key) == fields
        assert client.pttl(key) > 3 * 86_400_000
        client.delete(key)


# --- guards -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "valkey"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/fleet.db"
    return request.getfixturevalue("valkey").url()


@pytest.fixture
def join(url):
    """Makes workers of one fleet in this process; each has a guard that follows the orders of ``db``."""
    made, name = [], f"steer-{time.monotonic_ns()}"

    def make(**options):
        worker = FleetWorker(name, _fleet.store_of(url, name), None)
        guard = Guard("db", max_concurrent_calls=5, **options)
        parts = _fleet.Verdict("db", worker).followers(guard)
        for part in parts:
            part.join()
        made.append((worker, parts))
        return guard

    make.fleet = Fleet(url, name=name)
    make.name = name
    yield make
    for worker, _ in made:
        worker.close()
    make.fleet.close()


def is_heard(guard, what):
    return what in {each["order"] for each in guard.snapshot().orders.values()}


def test_all_workers_obey_within_two_seconds_and_a_newcomer_too(join, caplog):
    guards = [join(), join(), join()]
    time.sleep(1.2)
    join.fleet.steer("db", "shadow", by="ops@bastion")
    began = time.monotonic()
    wait_until(lambda: {guard.mode for guard in guards} == {"shadow"})
    assert time.monotonic() - began < 1.5 + 2
    seen = guards[0].snapshot().orders["mode"]
    assert (seen["order"], seen["by"]) == ("shadow", "ops@bastion")
    newcomer = join()
    wait_until(lambda: newcomer.mode == "shadow")
    wait_until(lambda: caplog.text.count("ordered by") >= 4)
    lines = [line for line in caplog.messages if "ordered by" in line]
    assert len(lines) == 4
    assert f"guard 'db': shadow, ordered by ops@bastion for the whole fleet {join.name!r} at 20" in lines[0]


def test_auto_gives_back_the_mode_and_the_circuit_of_before(join, caplog):
    enforcing, watching = join(), join(mode="shadow")
    join.fleet.steer("db", "off")
    join.fleet.steer("db", "force_open")
    wait_until(lambda: {guard.mode for guard in (enforcing, watching)} == {"off"})
    wait_until(lambda: {guard.state for guard in (enforcing, watching)} == {"forced_open"})
    join.fleet.steer("db", "auto")
    wait_until(lambda: (enforcing.mode, watching.mode) == ("enforce", "shadow"))
    wait_until(lambda: {guard.state for guard in (enforcing, watching)} == {"closed"})
    ended = [line for line in caplog.messages if ": auto, ordered by" in line]
    assert len(ended) == 2, "one line for each guard"


@pytest.mark.parametrize(
    ("what", "state"),
    [("force_open", "forced_open"), ("disable", "disabled"), ("metrics_only", "metrics_only")],
)
def test_the_circuit_is_held_and_a_reset_closes_it(join, what, state):
    guard = join()
    join.fleet.steer("db", what)
    wait_until(lambda: guard.state == state)
    if what == "force_open":
        with pytest.raises(CircuitOpenError):
            guard.run(int)
    join.fleet.steer("db", "reset")
    wait_until(lambda: guard.state == "closed")


def test_a_reset_is_an_instant_that_a_newcomer_does_not_obey(join):
    guard = join()
    join.fleet.steer("db", "reset")
    wait_until(lambda: is_heard(guard, "reset"))
    newcomer = join()
    newcomer.force_open()
    wait_until(lambda: is_heard(newcomer, "reset"))
    assert newcomer.state == "forced_open"


def test_a_reset_closes_the_circuit_that_the_fleet_has_opened(join):
    policy = BreakerPolicy(minimum_number_of_calls=4, wait_duration_in_open_state=30)
    guards = [join(breaker=policy), join(breaker=policy)]

    def fail():
        raise ConnectionError

    for guard in guards:
        for _ in range(3):
            with pytest.raises(ConnectionError):
                guard.run(fail)
    wait_until(lambda: {guard.state for guard in guards} == {"open"})
    join.fleet.steer("db", "reset")
    wait_until(lambda: {guard.state for guard in guards} == {"closed"})
    time.sleep(1.5)
    assert {guard.state for guard in guards} == {"closed"}


def test_what_is_set_by_hand_stays_until_the_next_order(join):
    by_hand, other = join(), join()
    join.fleet.steer("db", "shadow")
    wait_until(lambda: (by_hand.mode, other.mode) == ("shadow", "shadow"))
    by_hand.set_mode("enforce")
    time.sleep(1.3)
    assert (by_hand.mode, by_hand.snapshot().orders["mode"]["order"]) == ("enforce", "shadow"), (
        "both are seen"
    )
    join.fleet.steer("db", "off")
    wait_until(lambda: (by_hand.mode, other.mode) == ("off", "off"))
    other.set_mode("enforce")
    join.fleet.steer("db", "auto")
    wait_until(lambda: is_heard(other, "auto") and is_heard(by_hand, "auto"))
    assert (by_hand.mode, other.mode) == ("enforce", "enforce")


def test_the_environments_off_is_above_an_order(join, monkeypatch):
    monkeypatch.setenv("GUARDRAILS_MODE", "off")
    guard = join()
    join.fleet.steer("db", "enforce")
    wait_until(lambda: is_heard(guard, "enforce"))
    assert guard.mode == "off"


def test_a_store_that_lost_its_data_learns_the_order_from_the_workers(join, url):
    guard = join()
    join.fleet.steer("db", "shadow", by="ops@bastion")
    wait_until(lambda: guard.mode == "shadow")
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///"), timeout=5) as file:
            file.execute("delete from guardrails_fleet_2")
        file.close()
    else:
        with redis.Redis.from_url(url) as client:
            client.flushall()
    newcomer = join()
    wait_until(lambda: newcomer.mode == "shadow")
    assert newcomer.snapshot().orders["mode"]["by"] == "ops@bastion"
    assert guard.mode == "shadow"


def test_an_engine_with_a_budget_obeys(url, tmp_path):
    fleet = Fleet(url, name=f"engine-{time.monotonic_ns()}")
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db", pool_size=5, max_overflow=0)
    guard = protect(engine, breaker=None, fleet=fleet.budget("db", connections=5))
    with engine.connect() as connection:
        connection.execute(text("select 1"))
    fleet.steer("db", "shadow")
    wait_until(lambda: guard.mode == "shadow")
    guard.detach()
    fleet.close()
    engine.dispose()


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"what": "dance"}, f"what must be one of {', '.join(WHAT)}, got 'dance'"),
        ({"what": None}, "what must be one of"),
        ({"name": "a b"}, "name must be a text of 1 to 100 visible ASCII"),
        ({"by": "a b"}, "by must be a text of 1 to 100 visible ASCII characters without spaces, or None"),
        ({"by": ""}, "by must be a text"),
    ],
)
def test_a_wrong_order_is_refused_with_field_value_and_range(tmp_path, values, words):
    fleet = Fleet(f"sqlite:///{tmp_path}/f.db", name="shop")
    settings = {"name": "db", "what": "shadow"} | values
    with pytest.raises(ConfigurationError, match=words.replace("(", r"\(")):
        fleet.steer(settings["name"], settings["what"], by=settings.get("by"))


def test_a_store_that_is_gone_is_an_error_without_its_address(tmp_path):
    fleet = Fleet("redis://:hunter2@127.0.0.1:1/0", name="shop")
    with pytest.raises(ConnectionError, match="fleet 'shop': its store cannot be used") as told:
        fleet.steer("db", "shadow")
    assert "hunter2" not in str(told.value)
