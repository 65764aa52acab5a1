"""redis-py's own tests, bare and guarded: the same outcome, but for what is listed here."""

from __future__ import annotations

import contextlib

import pytest

from guardrails.testing.servers import ValkeyServer
from support import upstream

SECONDS = upstream.chosen(600, 2400)

PINNED = [
    "test_background.py",
    "test_client.py",
    "test_connection.py",
    "test_connection_pool.py",
    "test_encoding.py",
    "test_lock.py",
    "test_max_connections_error.py",
    "test_monitor.py",
    "test_multiprocessing.py",
    "test_pipeline.py",
    "test_retry.py",
    "test_scripting.py",
    "test_asyncio/test_client.py",
    "test_asyncio/test_connection.py",
    "test_asyncio/test_connection_pool.py",
    "test_asyncio/test_encoding.py",
    "test_asyncio/test_lock.py",
    "test_asyncio/test_monitor.py",
    "test_asyncio/test_pipeline.py",
    "test_asyncio/test_retry.py",
    "test_asyncio/test_scripting.py",
]
WHOLE = [
    *PINNED,
    "maint_notifications",
    "test_commands.py",
    "test_himport.py",
    "test_keyspace_notifications.py",
    "test_pubsub.py",
    "test_sentinel.py",
    "test_asyncio/test_commands.py",
    "test_asyncio/test_keyspace_notifications.py",
    "test_asyncio/test_pubsub.py",
    "test_asyncio/test_sentinel.py",
]
KINDS = "not ssl and not onlycluster and not redismod and not replica and not cp_integration"
"""Without those that need a cluster, a replica, certificates or modules."""

MEANT = {
    "*::test_default_config_client_executes_commands_without_maint_notifications": (
        "it puts a mock that is no function in place of a connection's method; a guarded connection calls "
        "the method of its class, and the mock gets the connection as well"
    ),
}
"""The differences that are meant, each with its reason."""


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.timeout(SECONDS + 60)
def test_redis_pys_own_tests_end_as_they_do_without_a_guard(tmp_path, tmp_path_factory):
    """The bare and the guarded run have a server each, since the tests flush it."""
    cache = tmp_path_factory.getbasetemp()
    source = upstream.sdist("redis", cache)
    files = [f"tests/{name}" for name in upstream.chosen(PINNED, WHOLE)]
    plugins = ["-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "--timeout=60", "-m", KINDS]
    words = {}
    with contextlib.ExitStack() as stack:
        for kind in ("bare", "guarded"):
            server = stack.enter_context(
                ValkeyServer.start("--enable-debug-command", "yes", "--enable-module-command", "yes")
            )
            url = f"redis://localhost:{server.port}/0"
            words[kind] = [*plugins, f"--redis-url={url}", f"--redis-mod-url={url}", *files]
        ran = upstream.run_pytest(
            source,
            "guarded_redis",
            words,
            tmp_path,
            seconds=SECONDS,
            path=[upstream.packages(["pytest-asyncio"], cache)],
        )
    assert ran.passed > 500
    assert ran.guards > 300
    assert upstream.differences(ran.bare, ran.guarded, MEANT) == []
