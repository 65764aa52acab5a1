"""The tools for users' own tests: names, an open circuit, a marker that finds leaks."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from guardrails import CircuitOpenError, testing
from guardrails.testing import open_circuit


def test_its_names_are_there():
    """Each is imported when it is asked for, and a misspelt one is not there."""
    assert testing.__all__ == sorted(testing.__all__)
    for name in testing.__all__:
        assert getattr(testing, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'FakeClok'"):
        testing.FakeClok  # noqa: B018


def test_an_open_circuit_refuses_and_is_closed_again(run, make_guard):
    """In the block it is as after a trip: it knows when to come again. After it nothing is remembered."""
    guard = make_guard()
    with open_circuit(guard) as same:
        assert same is guard
        with pytest.raises(CircuitOpenError) as refusal:
            run(guard, int)
        assert refusal.value.retry_after == 2.0
    assert guard.state == "closed"
    run(guard, int)


def test_an_open_circuit_recovers_as_after_a_trip(run, make_guard, clock):
    """Without a block it lets probes in when its time has come."""
    guard = make_guard()
    open_circuit(guard)
    assert guard.state == "open"
    clock.advance(2.0)
    for _ in range(3):
        run(guard, int)
    assert guard.state == "closed"


def test_an_open_compartment_is_not_the_whole(run, make_guard):
    """Its neighbours go on."""
    guard = make_guard()
    with open_circuit(guard.compartment("reports")):
        run(guard, int)


def test_only_guards_have_circuits():
    """Something else is refused by its type."""
    with pytest.raises(TypeError, match="takes a Guard, got str"):
        open_circuit("db")


def outcomes(tmp_path, source):
    """Runs a test file in a process of its own; what pytest prints."""
    (tmp_path / "test_it.py").write_text(textwrap.dedent(source))
    others = [
        "randomly",
        "cacheprovider",
        "hypothesispytest",
        "xdist",
        "xdist.looponfail",
        "anyio",
        "django",
        "faker",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", *(f"-pno:{name}" for name in others)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    return run.stdout


def test_the_marker_fails_a_test_that_leaves_a_call_behind(tmp_path):
    """By name and number; a test without it, and one that gives back, pass."""
    printed = outcomes(
        tmp_path,
        """
        import pytest
        from guardrails import Guard

        db = Guard("orders-db", max_concurrent_calls=5)
        calls = []

        def leak(count):
            for _ in range(count):
                calls.append(db.call())
                calls[-1].__enter__()

        @pytest.fixture
        def held():
            leak(1)
            yield
            calls.pop().__exit__(None, None, None)

        @pytest.mark.no_leaks
        def test_of_a_fixture_that_holds(held):
            db.run(int)

        @pytest.mark.no_leaks
        def test_tidy():
            with db.call():
                pass

        def test_unmarked():
            leak(1)

        @pytest.mark.no_leaks
        def test_leaking():
            leak(2)

        @pytest.mark.no_leaks
        def test_that_fails_by_itself():
            leak(1)
            assert 1 == 2
        """,
    )
    assert "2 failed, 3 passed" in printed
    assert "guard 'orders-db': 2 calls that have not ended" in printed
    assert printed.count("left something behind") == 2  # in the report and in the summary, of one test
    assert "assert 1 == 2" in printed


def test_the_marker_finds_a_connection_and_a_caller(tmp_path):
    """Checked out of a guarded pool, and still waiting for a slot."""
    printed = outcomes(
        tmp_path,
        """
        import threading, time
        import pytest
        import sqlalchemy
        from guardrails import protect

        engine = sqlalchemy.create_engine(
            "sqlite://", poolclass=sqlalchemy.QueuePool, pool_size=1, max_overflow=0,
            connect_args={"check_same_thread": False},
        )
        db = protect(engine, max_wait_duration=2.0)
        kept = []

        def ask():
            try:
                engine.connect().close()
            except Exception:
                pass

        @pytest.mark.no_leaks
        def test_leaking():
            kept.append(engine.connect())
            thread = threading.Thread(target=ask)
            thread.start()
            kept.append(thread)
            while not db.snapshot().waiting:
                time.sleep(0.001)

        def test_end():
            kept[0].close()
            kept[1].join()
        """,
    )
    assert "1 failed, 1 passed" in printed
    assert "a connection checked out" in printed
    assert "a caller still waiting" in printed


def test_the_plugin_imports_no_guard_for_others(tmp_path):
    """Where the package is installed and no test has a guard, only the plugin is imported."""
    printed = outcomes(
        tmp_path,
        """
        import sys
        import pytest

        @pytest.mark.no_leaks
        def test_it():
            assert "guardrails.testing.plugin" in sys.modules
            assert not {"guardrails._guard.locked_gate", "guardrails._guard.guard"} & set(sys.modules)
        """,
    )
    assert "1 passed" in printed
