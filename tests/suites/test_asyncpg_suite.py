"""asyncpg's own tests with a guard under every pool end as they do without one."""

from __future__ import annotations

import contextlib
import shutil

import pytest

from guardrails.testing.servers import PostgresServer
from support import upstream

SECONDS = upstream.chosen(300, 900)
FILES = upstream.chosen(
    ["tests/test_pool.py", "tests/test_timeout.py", "tests/test_cancellation.py", "tests/test_listeners.py"],
    [
        f"tests/test_{name}.py"
        for name in (
            "adversity",
            "cache_invalidation",
            "cancellation",
            "copy",
            "cursor",
            "execute",
            "listeners",
            "logging",
            "pool",
            "prepare",
            "timeout",
            "transaction",
        )
    ],
)
LEFT_OUT = [
    "tests/test_pool.py::TestPool::test_pool_config_persistence",
    "tests/test_execute.py::TestExecuteMany::test_executemany_server_failure_during_writes",
    "tests/test_timeout.py::TestCloseTimeoutPendingCancel::test_close_has_one_timeout_budget",
]
"""Not run: the first leaves a future behind, which fails it or a later test, and how the others end depends
on the machine's speed; bare, too."""

MEANT: dict[str, str] = {}
"""The differences that are meant, each with its reason."""


@contextlib.contextmanager
def surroundings():
    """A server for one run, told to the tests by libpq's variables."""
    with PostgresServer.start(max_connections=100, settings={"max_prepared_transactions": "20"}) as server:
        yield {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "PGUSER": "postgres",
            "PGDATABASE": "postgres",
        }


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.timeout(SECONDS + 60)
def test_asyncpgs_own_tests_end_as_they_do_without_a_guard(tmp_path, tmp_path_factory):
    """The bare and the guarded run have a server each."""
    source = upstream.sdist("asyncpg", tmp_path_factory.getbasetemp())
    tests = tmp_path / "source"
    tests.mkdir()
    shutil.copytree(source / "tests", tests / "tests")  # without the library, which is not built there
    words = [*FILES, *(f"--deselect={each}" for each in LEFT_OUT)]
    with contextlib.ExitStack() as stack:
        environment = {kind: stack.enter_context(surroundings()) for kind in ("bare", "guarded")}
        ran = upstream.run_pytest(
            tests, "guarded_asyncpg", words, tmp_path, seconds=SECONDS, environment=environment
        )
    assert ran.passed > 60
    assert ran.guards > 40
    assert upstream.differences(ran.bare, ran.guarded, MEANT) == []
