"""A guard's lines in the log, with and without a configuration of logging."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
import time

import pytest

from guardrails import BreakerPolicy, CallTimeoutError, Guard, RejectedError
from guardrails._runtime import guard_log
from guardrails._runtime.scope import RequestScope, close, enter
from guardrails.testing.servers import PostgresServer
from support.paths import PROCESSES
from support.polling import wait_until


@pytest.fixture(scope="module")
def postgres():
    """A server of the module's own."""
    with PostgresServer.start() as server:
        yield server


def refuse(guard, count):
    for _ in range(count):
        with pytest.raises(RejectedError):
            guard.run(int)


def lines(caplog):
    return [message for message in caplog.messages if message.startswith("guard 'shop'")]


def test_refusals_are_logged_in_one_line_with_their_counts(caplog):
    """Those of compartments, too; the last line is written although no call follows."""
    guard = Guard("shop", max_concurrent_calls=2, timeout=None)
    part = guard.compartment("reports")
    guard.force_open()
    refuse(guard, 40)
    refuse(part, 2)
    assert lines(caplog) == [], "nothing is written before the second is over"
    wait_until(lambda: lines(caplog), 10)
    (line,) = lines(caplog)
    assert re.fullmatch(r"guard 'shop': in \d\.\d s 42 refused \(the circuit is open: 42\)", line)
    refuse(guard, 3)
    wait_until(lambda: len(lines(caplog)) == 2, 10)
    assert " 3 refused" in lines(caplog)[1]
    wait_until(lambda: not guard._gate.report.scheduled, 10)


def test_records_have_the_names_of_the_guard_and_its_compartment_as_fields(caplog):
    """For handlers that write fields, so that lines can be filtered."""
    guard = Guard("shop", max_concurrent_calls=2)
    inner = guard.compartment("reports").compartment("monthly")
    inner.force_open()
    guard.disable()
    guard.force_open()
    refuse(guard, 1)
    wait_until(lambda: not guard._gate.report.scheduled, 10)
    told = [(record.msg.partition(" ")[0], record.guard, record.compartment) for record in caplog.records]
    assert told == [
        ("circuit", "shop", "monthly"),
        ("circuit", "shop", None),
        ("circuit", "shop", None),
        ("guard", "shop", None),
    ]
    assert caplog.messages[0].startswith("circuit 'monthly' of 'shop': ")
    events = [(event["guard"], event["compartment"]) for event in guard._gate.report.recent]
    assert events == [("shop", "monthly"), ("shop", None), ("shop", None)]


def test_calls_stopped_at_their_deadline_are_logged(caplog):
    """In the same line."""
    guard = Guard("db", max_concurrent_calls=2, timeout=0.01, breaker=None)
    for _ in range(2):
        with pytest.raises(CallTimeoutError):
            asyncio.run(guard.run_async(asyncio.sleep, 30))
    wait_until(lambda: "2 stopped at the deadline" in caplog.text, 10)
    wait_until(lambda: not guard._gate.report.scheduled, 10)


LAST = ", the last with LookupError"


@pytest.mark.parametrize(
    ("policy", "durations", "words"),
    [
        (
            BreakerPolicy(minimum_number_of_calls=2),
            ["fail", "fail"],
            f"2 of 2 calls failed{LAST}",
        ),
        (
            BreakerPolicy(consecutive_failures=2),
            ["fail", "fail"],
            f"failures in a row: 2{LAST}",
        ),
        (
            BreakerPolicy(minimum_number_of_calls=2),
            [3, 3],
            "2 of 2 calls took longer than 1 s, or still do",
        ),
    ],
)
def test_the_log_gives_the_cause_and_length_of_an_open_period(
    make_guard, clock, caplog, policy, durations, words
):
    """A plain guard knows counts and durations."""
    guard = make_guard(breaker=policy)

    def call(what):
        if what == "fail":
            raise LookupError
        clock.advance(what)

    for what in durations:
        if what == "fail":
            with pytest.raises(LookupError):
                guard.run(call, what)
        else:
            guard.run(call, what)
    (line,) = [each for each in caplog.messages if "closed -> open" in each]
    assert re.match(r"circuit 'db': closed -> open \(\w+\): ", line)
    assert line.endswith(f": {words}; refusing for 2 s")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("part", ["", "compartment"])
def test_a_locked_table_gives_one_line_a_second_on_stderr_without_logging_set_up(postgres, part):
    """With the line of code, the cause and the duration; without SQL and addresses."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "locked_shop.py", part],
        cwd=PROCESSES,
        env=os.environ | {"SHOP_DATABASE": postgres.url("psycopg")},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    seconds = float(ended.stdout)
    written = ended.stderr.splitlines()
    assert all(line.startswith(("circuit ", "guard ", "pool ")) for line in written), ended.stderr
    assert len(written) <= seconds * 1.5 + 3
    name = "reports" if part else "postgres"
    # The whole guard's circuit follows where the compartment is all that is asked for.
    opened = [line for line in written if line.startswith(f"circuit '{name}': closed -> open")]
    slots = r"7 of 7" if part else r"10 of 10"
    assert len(opened) == 1
    assert re.search(
        rf"circuit '{name}': closed -> open .*{slots} slots in a statement for up to \d\.\d s, "
        r"locked_shop.py:\d+ in load; refusing for [\d.]+ s; ask the database: guardrails diagnose",
        opened[0],
    )
    assert any(
        re.search(r"guard 'postgres': in \d\.\d s \d+ refused .*locked_shop.py:\d+ in load", line)
        for line in written
    )
    for secret in ("orders where", "select", "127.0.0.1", str(postgres.port)):
        assert secret not in ended.stderr


def test_protect_logs_one_line_at_level_info(caplog):
    """Slots, timeout and circuit."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    from guardrails import protect  # noqa: PLC0415

    caplog.set_level(logging.INFO, "guardrails")
    engine = sqlalchemy.create_engine(
        "sqlite://", poolclass=sqlalchemy.QueuePool, pool_size=3, max_overflow=2
    )
    protect(engine, timeout=2).detach()
    (record,) = [each for each in caplog.records if "protects" in each.getMessage()]
    assert record.levelname == "INFO"
    assert record.getMessage() == (
        "guard 'sqlite' protects: 5 slots, timeout 2 s, "
        "the circuit opens at 50% failed or 50% slower than 1 s"
    )


def test_no_handler_switches_pythons_last_resort_off():
    """Else warnings would be lost under the defaults of uvicorn, gunicorn and Django."""
    code = "import logging, guardrails; guardrails.Guard; print(logging.getLogger('guardrails').handlers)"
    words = [sys.executable, "-c", code]
    ended = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "[]\n"


def test_a_line_is_written_at_once_if_no_thread_can_be_started(monkeypatch, make_guard, caplog):
    """As while the interpreter shuts down."""

    def no_thread(task, seconds):
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(guard_log, "run_later", no_thread)
    guard = make_guard("shop")
    guard.force_open()
    refuse(guard, 1)
    assert lines(caplog) == ["guard 'shop': in 0.0 s 1 refused (the circuit is open: 1)"]
    guard._gate.report.scheduled = False


def test_a_line_of_code_that_cannot_be_determined_is_left_out(make_guard, caplog):
    """The reason is a debug message."""
    caplog.set_level(logging.DEBUG, "guardrails")
    report = make_guard("shop")._gate.report

    def broken():
        raise LookupError

    report.line_of_code = broken
    assert report._caller() == ""
    assert "the caller could not be determined" in caplog.text
    report.line_of_code = lambda: "shop.py:1 in load"
    assert report._caller() == "such as shop.py:1 in load"


def test_a_line_has_the_routes_of_its_own_second_and_the_line_of_its_first_call(make_guard, caplog):
    guard = make_guard("shop")
    report, places = guard._gate.report, iter(["shop.py:1 in load", "shop.py:2 in save", None])
    report.line_of_code = lambda: next(places)
    guard.force_open()

    def of_route(name, count):
        scope = enter(RequestScope(None, time.monotonic, None))
        scope.name = name
        refuse(guard, count)
        close(scope)

    for number in range(8):
        of_route(f"GET /{number}", 8 - number)
    wait_until(lambda: lines(caplog), 10)
    of_route("POST /orders", 2)
    wait_until(lambda: len(lines(caplog)) == 2, 10)
    refuse(guard, 1)
    wait_until(lambda: len(lines(caplog)) == 3, 10)
    first, second, third = lines(caplog)
    routes = "GET /0 8, GET /1 7, GET /2 6, GET /3 5, GET /4 4, GET /5 3 and 2 more routes"
    assert first.endswith(
        f" 36 refused (the circuit is open: 36); by route: {routes}; such as shop.py:1 in load"
    )
    assert second.endswith("open: 2); by route: POST /orders 2; such as shop.py:2 in save")
    assert third.endswith(" 1 refused (the circuit is open: 1)")
    wait_until(lambda: not report.scheduled, 10)


def test_a_request_that_is_refused_at_the_edge_has_no_line_of_code(make_guard, caplog):
    guard = make_guard("shop")
    guard._gate.report.line_of_code = lambda: "server.py:1 in main"
    guard.force_open()
    guard._gate.report_refusal(guard._gate.preview(), at_edge=True)
    wait_until(lambda: lines(caplog), 10)
    assert "server.py" not in caplog.text
    wait_until(lambda: not guard._gate.report.scheduled, 10)


def test_more_routes_than_a_line_can_tell_apart_are_counted_together(make_guard):
    report = make_guard("shop")._gate.report
    for number in range(150):
        report.count_route(f"GET /{number}")
    report.count_route("GET /1")
    routes = report._count_routes()
    assert len(routes) == 101
    assert (routes["(other routes)"], routes["GET /1"]) == (50, 2)
    assert not report._count_routes()


def test_a_filter_that_raises_ends_neither_the_log_nor_the_housekeeper(make_guard, caplog, monkeypatch):
    """It raises for the report of its own error, too."""
    guard, failed = make_guard("shop"), []
    report = guard._gate.report
    logger = logging.getLogger("guardrails")

    def broken(record):
        if record.levelno >= logging.WARNING:
            failed.append(record.getMessage())
            raise ValueError(record)
        return True

    guard.force_open()
    monkeypatch.setattr(logger, "filters", [broken])
    report.count_route("GET /lost")
    refuse(guard, 2)
    wait_until(lambda: len(failed) == 2, 10)
    assert "2 refused" in failed[0]
    assert failed[1] == "a periodic task of a guard raised"
    wait_until(lambda: not report.scheduled, 10)
    monkeypatch.setattr(logger, "filters", [])
    report.count_route("GET /kept")
    refuse(guard, 3)
    wait_until(lambda: lines(caplog), 10)
    assert lines(caplog)[0].endswith(" 3 refused (the circuit is open: 3); by route: GET /kept 1")
    wait_until(lambda: not report.scheduled, 10)


def test_a_filter_that_raises_breaks_no_call_where_no_thread_can_be_started(make_guard, monkeypatch):
    def refused(*_):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    guard = make_guard("shop")
    guard.force_open()
    monkeypatch.setattr(guard_log, "run_later", refused)
    monkeypatch.setattr(logging.getLogger("guardrails"), "filters", [lambda _: 1 / 0])
    refuse(guard, 1)
    assert not guard._gate.report.scheduled


def test_no_more_routes_are_noted_than_a_line_may_have(make_guard, monkeypatch):
    monkeypatch.setattr(guard_log, "_MOST_NOTED", 3)
    report = make_guard("shop")._gate.report
    for _ in range(5):
        report.count_route("GET /1")
    assert report._count_routes() == {"GET /1": 3}


@pytest.mark.parametrize("hint", ["ask the database: guardrails diagnose", ""])
@pytest.mark.parametrize("known", [True, False])
def test_the_log_names_the_holders_of_an_opened_circuit_if_they_are_known(make_guard, caplog, known, hint):
    """With the command that asks, if there is one; an error of the lookup does not reach the call."""
    caplog.set_level(logging.DEBUG, "guardrails")
    guard = make_guard(breaker=BreakerPolicy(minimum_number_of_calls=1))
    asked = []

    def holders(*about):
        asked.append(about)
        if not known:
            raise LookupError
        return "3 of 100 slots in use by shop.py:1 in load"

    guard._gate.report.holders, guard._gate.report.hint = holders, hint
    with pytest.raises(ZeroDivisionError):
        guard.run(lambda: 1 / 0)
    (line,) = [each for each in caplog.messages if "closed -> open" in each]
    reason, wait = "1 of 1 calls failed, the last with ZeroDivisionError", "refusing for 2 s"
    parts = [reason, "3 of 100 slots in use by shop.py:1 in load", wait] if known else [reason, wait]
    if known and hint:
        parts.append(hint)
    assert line == f"circuit 'db': closed -> open (failure_rate): {'; '.join(parts)}"
    assert ("the holders of 'db' could not be determined" in caplog.text) is not known
    assert asked == [("db", 0, 100)]


def test_the_log_names_the_cause_of_an_opened_circuit_while_it_is_current(
    make_guard, clock, caplog, monkeypatch
):
    """Of failures half a minute ago no longer, and not of a circuit that was opened by hand."""
    now = [1000.0]
    monkeypatch.setattr(guard_log.time, "monotonic", lambda: now[0])
    guard = make_guard(breaker=BreakerPolicy(minimum_number_of_calls=1))
    report = guard._gate.report

    def opened_after(seconds):
        guard.reset()
        report.note_cause(guard_log.READ_ONLY)
        now[0] += seconds
        caplog.clear()
        with pytest.raises(ZeroDivisionError):
            guard.run(lambda: 1 / 0)
        (line,) = [each for each in caplog.messages if "closed -> open" in each]
        return "1 of 1 calls failed: the server is read-only; refusing for 2 s" in line

    assert opened_after(30)
    assert report.cause(is_open=False) == guard_log.READ_ONLY
    assert not opened_after(31)
    assert (report.cause(is_open=False), report.cause(is_open=True)) == (None, guard_log.READ_ONLY)
    guard.reset()
    assert report.cause(is_open=True) is None
    report.note_cause(guard_log.LOGIN_REFUSED)
    caplog.clear()
    guard.force_open()
    assert caplog.messages == ["circuit 'db': closed -> forced_open (manual)"]
