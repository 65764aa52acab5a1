"""``guardrails shadow`` on a service that runs: the sums, their words, and what else may come."""

from __future__ import annotations

import json

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


def test_json_has_the_same_figures():
    with served(overloaded()) as url:
        code, output = run("--json", url)
    (guard,) = json.loads(output)["guards"]
    assert code == 1
    assert (guard["refused"], guard["judged"], guard["stopped"]) == (3, 5, 0)
    assert guard["routes"] == {"(no route)": {"bulkhead_full": 3}}
    assert guard["harmless"] == {"max_concurrent_calls": 5}


def test_a_guard_that_never_was_in_shadow_has_nothing_to_say():
    guard = Guard("db", max_concurrent_calls=2, mode="enforce")
    with served(guard) as url:
        assert run(url) == (0, "db: enforce; it was never in shadow.\n")


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
