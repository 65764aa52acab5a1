"""``guardrails shadow`` on a service that runs: the sums, their words, and what else may come."""

from __future__ import annotations

import json
import os
import socket

from click.testing import CliRunner

from guardrails import Guard
from guardrails.cli.shadow import shadow
from support.status_site import answering, served


def run(*words):
    """Runs the command; its exit code and what it printed."""
    done = CliRunner().invoke(shadow, [*map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


def overloaded(mode="shadow"):
    guard = Guard("db", max_concurrent_calls=2, max_wait_duration=0, timeout=None, mode=mode)
    calls = [guard.call() for _ in range(5)]
    for call in calls:
        call.__enter__()
    for call in reversed(calls):
        call.__exit__(None, None, None)
    return guard


def test_the_sums_are_said_in_ten_lines_at_most():
    with served(overloaded()) as url:
        code, output = run(url)
    assert code == 1
    assert "db: shadow; in shadow since " in output
    assert "would have refused 3 of 5 calls (60.0%)" in output
    assert "by reason: bulkhead_full 3" in output
    assert "by route:  (no route) 3" in output
    assert "would have stopped 0" in output
    assert "would have done no harm: max_concurrent_calls=5" in output
    assert len(output.splitlines()) <= 10


def page(**shadow):
    """A status page of one guard with these sums."""
    sums = {"since": 1.0, "judged": 100, "refused": 0, "stopped": 0, "routes": {}, "longest": []} | shadow
    return json.dumps(
        {"ready": True, "reasons": [], "guards": [{"name": "db", "mode": "shadow", "shadow": sums}]}
    )


def said(**shadow):
    with answering(200, page(**shadow).encode()) as url:
        return run(url)[1]


def test_no_setting_is_advised_from_a_time_in_which_a_circuit_would_have_opened():
    faulty = {"refused": 9, "stopped": 2, "highest": 14, "capacity": 15, "slowest": 39.4}
    output = said(**faulty, openings=3, opened_at=2.0)
    assert "a circuit would have opened 3 times, last at 1970-" in output
    assert "no harm" not in output
    assert "would have opened once, at " in said(**faulty, openings=1, opened_at=2.0)
    assert "would have done no harm: max_concurrent_calls=14, timeout=39.5" in said(**faulty)


def test_no_more_slots_than_the_pool_has_connections_are_advised():
    output = said(refused=9, highest=558, capacity=15)
    assert "558 concurrent calls, and the pool has 15 connections" in output
    assert "no harm" not in output


def test_a_timeout_is_no_advice_while_nothing_would_have_been_stopped():
    output = said(slowest=1.19, timeout=5)
    assert "the present settings would have done no harm; the longest call took 1.19 s of 5 s" in output
    assert "timeout=" not in output


def stopped_call(*, running=False):
    return {"took": 2.5, "timeout": 2.0, "running": running, "where": "a.py:1", "route": "GET /a"}


def test_a_timeout_alone_is_not_said_to_do_no_harm_while_calls_are_refused():
    output = said(refused=9, highest=40, capacity=15, stopped=1, longest=[stopped_call()])
    assert "would have stopped nothing: timeout=2.6\n  40 concurrent calls, and the pool has 15" in output
    assert "no harm" not in output


def test_no_timeout_is_advised_while_a_long_call_runs():
    """Also if it is not the longest: it may become that."""
    slower = stopped_call() | {"took": 3.0}
    output = said(stopped=2, longest=[slower, stopped_call(running=True)])
    assert "no timeout is advised while one of the longest calls runs" in output
    assert "timeout=" not in output
    output = said(stopped=1, longest=[stopped_call(running=True)], refused=9, highest=12, capacity=15)
    assert "would have done no harm" not in output
    assert "would have refused nothing: max_concurrent_calls=12" in output


def test_refusals_that_no_number_of_slots_would_have_spared_have_a_line():
    """As those of a compartment."""
    output = said(refused=5, routes={"GET /a": {"bulkhead_full": 5}})
    assert "the guard's own slots were enough: what refused is in the reasons and routes above" in output


def test_every_route_is_named_and_those_with_a_closed_circuit_come_first():
    routes = {f"GET /{number}": {"circuit_open": 10 + number} for number in range(4)}
    output = said(refused=99, routes=routes | {"GET /well": {"queue_timeout": 2}})
    assert "by route:  GET /well 2, GET /3 13, GET /2 12, GET /1 11, GET /0 10" in output


def test_json_has_the_same_figures():
    with served(overloaded()) as url:
        code, output = run("--json", url)
    page = json.loads(output)
    assert (page["pid"], page["host"]) == (os.getpid(), socket.gethostname())
    (guard,) = page["guards"]
    assert code == 1
    assert (guard["refused"], guard["judged"], guard["stopped"]) == (3, 5, 0)
    assert guard["routes"] == {"(no route)": {"bulkhead_full": 3}}
    assert guard["harmless"] == {"max_concurrent_calls": 5}


def test_a_guard_that_never_was_in_shadow_has_nothing_to_say():
    guard = Guard("db", max_concurrent_calls=2, mode="enforce")
    with served(guard) as url:
        code, output = run(url)
    assert code == 0
    first, second = output.splitlines()
    assert first.startswith(f"process {os.getpid()} on {socket.gethostname()}; other workers")
    assert second == "db: enforce; it was never in shadow."


def test_a_shadow_that_would_have_done_nothing_exits_with_0():
    guard = Guard("db", max_concurrent_calls=2, mode="shadow")
    guard.run(int)
    with served(guard) as url:
        code, output = run(url)
    assert code == 0
    assert "would have refused 0 of 1 calls" in output
    assert "the present settings would have done no harm" in output


def test_what_is_no_status_page_is_told_from_one():
    for status, body in ((404, b""), (200, b"[]"), (200, b'{"ready": 1, "reasons": [], "guards": [1]}')):
        with answering(status, body) as url:
            assert run(url)[0] == 2
    assert run("http://user:secret@db")[0] == 2
    assert "secret" not in run("http://user:secret@db")[1]
