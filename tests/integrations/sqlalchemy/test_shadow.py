"""An engine whose guard is in shadow: every statement runs as without a guard, and the guard counts."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import QueuePool, create_engine, event, text

from guardrails import BreakerPolicy, CallTimeoutError, Guard, deadline, protect, remaining
from guardrails._core.gate import Gate
from guardrails._runtime.scope import RequestScope, close, current, enter
from guardrails.events import StateChanged, WouldStop
from support.polling import poll

QUICK = {"max_wait_duration": 0.02, "timeout": 0.1, "mode": "shadow"}
ROOMY = {**QUICK, "max_wait_duration": 2, "max_waiting": 10, "breaker": None}


def test_a_statement_past_its_limit_runs_to_its_end_and_is_counted_at_its_limit(lab):
    told = []

    def listen(event):
        told.append(event)

    listen.events = (WouldStop,)
    guard = lab.protect(guard={**QUICK, "listeners": [listen]})
    guard.set_mode("off")
    lab.query("select 42")  # opens the connection
    guard.set_mode("shadow")
    with lab.meanwhile(lambda: lab.query("select pg_sleep(0.6), 42")) as answers:
        poll(lambda: lab.pause(0.01) or guard.snapshot().would_stop == 1, "it is counted")
        assert answers == []
    (event,) = told
    assert event.timeout == 0.1
    assert event.where[0].startswith("support/sql_lab.py")
    assert guard.snapshot().failed == 1
    assert lab.query("select 42") == 42
    poll(lambda: guard.snapshot().in_use == 0, "the slots are back")
    assert lab.pool.checkedout() == 0
    (longest,) = guard._gate.report.sums.report()["longest"]
    assert longest["timeout"] == 0.1
    assert longest["took"] >= 0.5


def test_the_timeout_of_a_statement_a_call_and_a_block_stop_nothing(lab):
    guard = lab.protect(guard={**QUICK, "timeout": 5})
    lab.query("select pg_sleep(0.15), 42", timeout=0.05)
    lab.call(guard, lambda: lab.query("select pg_sleep(0.15), 42"), timeout=0.05)
    with deadline(0.05):
        lab.query("select pg_sleep(0.15), 42")
    assert guard.snapshot().would_stop == 3
    assert guard.snapshot().rejected == {}


def test_more_callers_than_slots_wait_for_the_pool_alone(lab):
    guard = lab.protect(pool_size=2, max_overflow=0, guard=QUICK)
    answers = lab.all([lambda: lab.query("select pg_sleep(0.1), 42")] * 8)
    assert not [each for each in answers if isinstance(each, Exception)]
    seen = guard.snapshot()
    assert seen.rejected == {}
    assert sum(seen.would_reject.values()) >= 2
    poll(lambda: guard.snapshot().in_use == 0, "the slots are back")


def test_a_wait_for_the_pool_that_enforcing_would_spare_holds_no_slot_in_the_model(lab):
    """Two reports that enforcing would have stopped keep the pool, and other callers wait for them."""
    guard = lab.protect(pool_size=2, max_overflow=0, guard=ROOMY)
    reports = guard.compartment("reports", max_concurrent_calls=2)
    for _ in range(5):
        lab.query("select 42")  # so long does one usually take
    report = lambda: lab.call(reports, lambda: lab.query("select pg_sleep(1.5), 42"))
    with lab.meanwhile(report, count=2):
        poll(lambda: lab.pause(0.01) or guard.snapshot().would_stop == 2, "they would be stopped", 5)
        answers = lab.all([lambda: lab.query("select 42")] * 6)
    assert answers == [42] * 6
    poll(lambda: guard.snapshot().in_use == 0, "the slots are back", 3)
    assert dict(guard.snapshot().would_reject) == {}
    lab.query("select 42")
    assert guard.snapshot().would_stop == 2


HANGS = {**ROOMY, "timeout": 0.3}


def fill(lab, guard, seconds):
    """Two statements that enforcing would have stopped keep the whole pool for so long; a block."""
    statement = f"select pg_sleep({seconds}), 42"
    block = lab.meanwhile(lambda: lab.query(statement), count=2)
    return block, lambda: poll(lambda: lab.pause(0.01) or guard.snapshot().would_stop == 2, "both stopped", 5)


def test_a_wait_for_the_pool_counts_as_a_statement_that_hangs_while_its_like_hang(lab):
    """Enforcing, these callers have a connection each, and are stopped, too: two slots, one after another."""
    guard = lab.protect(pool_size=2, max_overflow=0, guard=HANGS)
    block, both_would_be_stopped = fill(lab, guard, 1.6)
    with block:
        both_would_be_stopped()
        answers = lab.all([lambda: lab.query("select 42")] * 2)
    assert answers == [42] * 2
    seen = guard.snapshot()
    assert (seen.would_stop, seen.failed, dict(seen.would_reject)) == (4, 4, {})
    longest = guard._gate.report.sums.report()["longest"]
    assert [each["running"] for each in longest] == [False] * 4
    poll(lambda: guard.snapshot().in_use == 0, "the slots are back", 3)
    assert lab.query("select 42") == 42
    assert (guard.snapshot().would_stop, guard.snapshot().failed) == (4, 4)


def test_probes_that_wait_for_a_pool_of_hanging_calls_keep_the_circuit_open(lab):
    policy = BreakerPolicy(
        minimum_number_of_calls=2, slow_call_duration_threshold=0.1, wait_duration_in_open_state=0.2
    )
    causes = []

    def listen(event):
        causes.append(event.cause)

    listen.events = (StateChanged,)
    options = {**HANGS, "breaker": policy, "listeners": [listen]}
    guard = lab.protect(pool_size=2, max_overflow=0, guard=options)
    block, both_would_be_stopped = fill(lab, guard, 2.5)
    with block:
        both_would_be_stopped()
        lab.pause(0.3)  # the open circuit lets probes in by now
        with lab.meanwhile(lambda: lab.query("select 42"), count=4):
            lab.until(lambda: "probes_failed" in causes, "the probes have failed")
    assert causes[:3] == ["slow_call_rate", "wait_over", "probes_failed"]
    poll(lambda: guard.snapshot().in_use == 0, "the slots are back", 3)


def test_an_open_circuit_lets_statements_through_and_recovers(lab):
    policy = BreakerPolicy(minimum_number_of_calls=2, wait_duration_in_open_state=1)
    guard = lab.protect(guard={**QUICK, "breaker": policy})
    for _ in range(3):
        lab.query("select pg_sleep(0.15), 42")
    assert guard.state == "open"
    assert lab.query("select 42") == 42
    assert guard.snapshot().would_reject["circuit_open"] >= 1

    def closed():
        assert lab.query("select 42") == 42
        return guard.state == "closed"

    poll(closed, "the probes close it")


def test_off_counts_nothing(lab):
    guard = lab.protect(guard={**QUICK, "mode": "off"})
    lab.query("select pg_sleep(0.15), 42")
    seen = guard.snapshot()
    assert (seen.would_stop, dict(seen.would_reject), seen.succeeded, seen.admitted) == (0, {}, 0, 0)
    guard.set_mode("enforce")
    with pytest.raises(CallTimeoutError):
        lab.query("select pg_sleep(5), 42")
    poll(lambda: guard.snapshot().in_use == 0, "the slots are back")


LIMIT = 0.3
SLOW = "select pg_sleep(0.7)"


def slowly(lab, connection):
    """A slow statement on the driver's connection, as a listener runs it."""
    cursor = connection.cursor()
    cursor.execute(lab.backend.say(SLOW))
    cursor.fetchall()
    cursor.close()


@pytest.mark.parametrize(
    "moment",
    ["connect", "checkout", "begin", "before_cursor_execute", "after_cursor_execute", "reset", "checkin"],
)
def test_a_listener_past_its_limit_runs_on_and_is_counted_once(lab, moment):
    """Enforcing stops the listener, and with it what it was called for."""
    guard = lab.protect(pool_size=1, max_overflow=0, guard={**QUICK, "timeout": LIMIT})
    asking = []

    def listener(first, *rest):
        if asking:
            asking.clear()
            if moment == "begin":
                first.exec_driver_sql(lab.backend.say(SLOW))
            elif "cursor" in moment:
                rest[0].execute(lab.backend.say(SLOW))
            else:
                slowly(lab, first)

    if moment != "connect":
        lab.query("select 42")
    event.listen(getattr(lab.engine, "sync_engine", lab.engine), moment, listener)
    asking.append(True)
    if "cursor" in moment:  # its statement's rows are no longer there
        lab.run(lambda session: session.execute("select 42"))
    else:
        assert lab.query("select 42") == 42
    seen = guard.snapshot()
    assert (seen.would_stop, seen.failed, seen.rejected) == (1, 1, {})
    poll(lambda: guard.snapshot().in_use == 0, "the slots are back", 1)
    if moment in {"reset", "checkin"}:
        assert guard.snapshot().calls == 2, "the good statement before it is no call besides"
    assert lab.query("select 42") == 42
    assert (guard.snapshot().would_stop, lab.pool.checkedout()) == (1, 0)


def test_work_on_the_driver_s_connection_past_a_deadline_runs_on_and_is_counted_once(lab):
    guard = lab.protect(guard={**QUICK, "timeout": None})

    def work(session):
        with deadline(LIMIT):
            slowly(lab, session.connection.connection.dbapi_connection)
            session.execute("select 42")

    lab.run(work)
    seen = guard.snapshot()
    assert (seen.would_stop, seen.failed, seen.rejected) == (1, 0, {})
    assert guard._gate.report.sums.report()["longest"][0]["took"] > 2 * LIMIT
    poll(lambda: guard.snapshot().in_use == 0, "the slots are back", 1)


def test_off_counts_no_listener(lab):
    guard = lab.protect(guard={**QUICK, "timeout": LIMIT, "mode": "off"})
    event.listen(
        getattr(lab.engine, "sync_engine", lab.engine), "checkout", lambda each, *_: slowly(lab, each)
    )
    lab.query("select 42")
    assert (guard.snapshot().would_stop, guard.snapshot().failed) == (0, 0)


@pytest.fixture
def file_engine(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
    yield engine
    engine.dispose()


def test_the_timeout_of_a_shadowed_guard_does_not_bound_a_guard_that_enforces(file_engine):
    db = protect(file_engine, name="db", timeout=5, compartments="none")
    outer = Guard("outer", max_concurrent_calls=5, timeout=0.0001, mode="shadow")
    with outer.call() as call, file_engine.connect() as connection:
        assert call.remaining() is remaining() is None
        assert connection.execute(text("select 42")).scalar_one() == 42
    inner = Guard("inner", max_concurrent_calls=5, timeout=5)
    with outer.call(), inner.call() as call:
        assert call.remaining() > 4
    with deadline(3), outer.call():
        assert 2 < remaining() <= 3
    db.detach()


class NamedRequest(RequestScope):
    """A request whose route is known."""

    __slots__ = ()

    def find_name(self):
        """See RequestScope."""
        self.name = "GET /orders"
        return self.name


@pytest.mark.parametrize("in_request", [False, True])
def test_the_usual_time_of_a_checkout_that_waits_for_the_pool_is_that_of_its_route(
    tmp_path, monkeypatch, in_request
):
    engine = create_engine(
        f"sqlite:///{tmp_path / 'shop.db'}", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=20
    )
    guard = protect(engine, mode="shadow", max_wait_duration=5, compartments="none")
    usual, end_early = [], Gate.end_early
    monkeypatch.setattr(
        Gate, "end_early", lambda *given: usual.append(given[3]) or end_early(*given), raising=True
    )

    def work(seconds):
        scope = enter(NamedRequest(None, time.monotonic, current())) if in_request else None
        with engine.connect() as connection:
            connection.execute(text("select 1"))
            time.sleep(seconds)
        if scope is not None:
            close(scope)

    for _ in range(3):
        work(0.02)
    threads = [threading.Thread(target=work, args=(0.2,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert usual
    assert all(seconds >= 0.02 for seconds in usual)
    assert guard.snapshot().in_use == 0
    engine.dispose()
