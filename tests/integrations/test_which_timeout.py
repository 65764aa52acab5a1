"""Which timeout counts on real servers: engines of both flavours, Redis clients, and MariaDB's limits."""

from __future__ import annotations

import contextlib

import pytest

from guardrails import CallTimeoutError, deadline, guarded
from support.redis_lab import frozen

DEFAULT, SHORT, LONG = 0.3, 0.12, 0.6
NEXT = {LONG: DEFAULT, DEFAULT: SHORT, SHORT: 0}
"""The next shorter one: a statement that begins late is given less than its timeout, but more than that."""


def sleep(seconds):
    return f"select pg_sleep({seconds})"


def given(work):
    """The timeout a piece of work is stopped by, to a tenth of a second."""
    with pytest.raises(CallTimeoutError) as late:
        work()
    return late.value.timeout


CASES = {
    "nothing": (None, None, None, None, DEFAULT),
    "a longer call": (None, LONG, None, None, LONG),
    "a shorter call": (None, SHORT, None, None, SHORT),
    "a longer compartment": (LONG, None, None, None, LONG),
    "a longer call in a shorter compartment": (SHORT, LONG, None, None, LONG),
    "a longer option": (None, None, LONG, None, LONG),
    "a longer option in a shorter call": (None, SHORT, LONG, None, LONG),
    "a shorter option in a longer call": (LONG, LONG, SHORT, None, SHORT),
    "a longer call in a deadline": (None, LONG, None, SHORT, SHORT),
    "a longer option in a longer compartment in a deadline": (LONG, None, LONG, SHORT, SHORT),
}


@pytest.mark.parametrize("case", CASES)
def test_the_nearest_timeout_counts(lab, case):
    """Of an engine; a deadline bounds it from outside."""
    part, call, option, ambient, expected = CASES[case]
    guard = lab.protect(guard={"timeout": DEFAULT, "breaker": None})
    lab.connect()
    reports = guard.compartment("reports", timeout=part) if part else None

    def work():
        query = lambda: lab.query(sleep(5), option)
        in_call = query if call is None else lambda: lab.call(guard, query, call)
        in_part = in_call if reports is None else lambda: lab.call(reports, in_call)
        if ambient is None:
            return in_part()
        with deadline(ambient):
            return in_part()

    assert NEXT[expected] < given(work) <= expected + 0.001


def test_the_decorator_raises_the_timeout(lab):
    """And the statement is over in its own time, not cut at the guard's."""
    guard = lab.protect(guard={"timeout": DEFAULT})
    lab.connect()

    if hasattr(lab, "runner"):

        @guarded(guard, timeout=5)
        async def report():
            async with lab.engine.connect() as connection:
                await connection.exec_driver_sql(lab.backend.say(sleep(LONG)))

        lab.runner.run(report())
    else:

        @guarded(guard, timeout=5)
        def report():
            with lab.engine.connect() as connection:
                connection.exec_driver_sql(lab.backend.say(sleep(LONG)))

        report()
    assert guard.snapshot().failed == 0


def test_what_mariadb_is_told_follows_the_scope(maria_lab):
    """Its backstop of four timeouts would end the statement before the time that its call gives it."""
    guard = maria_lab.protect(guard={"timeout": 0.1})
    maria_lab.soon()
    failed = guard.snapshot().failed
    reports = guard.compartment("reports", timeout=5)
    maria_lab.call(guard, lambda: maria_lab.query(sleep(LONG)), 5)
    maria_lab.call(reports, lambda: maria_lab.query(sleep(LONG)))
    unbounded = guard.compartment("unbounded", timeout=None)
    maria_lab.call(unbounded, lambda: maria_lab.query(sleep(LONG)))
    assert guard.snapshot().failed == failed


@pytest.mark.parametrize(
    ("part", "call", "ambient", "expected"),
    [
        (None, None, None, DEFAULT),
        (None, LONG, None, LONG),
        (LONG, None, None, LONG),
        (LONG, SHORT, None, SHORT),
        (SHORT, LONG, None, LONG),
        (LONG, LONG, SHORT, SHORT),
    ],
)
def test_the_nearest_timeout_counts_for_a_redis_client(cache, valkey, part, call, ambient, expected):
    """Its socket timeouts follow."""
    guard = cache.protect(guard={"timeout": DEFAULT, "breaker": None})
    with guard.call(20):  # a busy machine may take longer than the timeout to connect
        assert cache.do(lambda client: client.set("key", "value"))
    layers = [] if part is None else [guard.compartment("part", timeout=part).call()]
    layers += [] if call is None else [guard.call(call)]
    layers = ([] if ambient is None else [deadline(ambient)]) + layers

    with frozen(valkey), contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer)
        assert NEXT[expected] < given(lambda: cache.do(lambda client: client.get("key"))) <= expected + 0.001
