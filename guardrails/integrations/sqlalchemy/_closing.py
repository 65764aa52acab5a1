"""Closes the connections of a dialect, so that one in an unknown state never returns to a foreign pool.

Depends on the runner; must not import a driver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guardrails._dbapi.runner import StatementRunner

__all__ = ["around_close", "around_terminate"]


def around_terminate(original: Callable[[Any], None], runner: StatementRunner) -> Callable[[Any], None]:
    """Wraps the dialect's method for a connection that must not be used again.

    Its ``close()`` may return it to a foreign pool. Its work may have been cancelled, and psycopg may have
    left it in pipeline mode or in a two-phase transaction: the next user would get no rows.
    """

    def terminate(connection: Any) -> None:
        runner.retire(connection)
        original(connection)

    return terminate


def around_close(original: Callable[[Any], None], runner: StatementRunner) -> Callable[[Any], None]:
    """Wraps the dialect's method for a connection that is no longer needed.

    A foreign pool that is interrupted while it takes the connection back would lose it.
    """

    def close(connection: Any) -> None:
        try:
            original(connection)
        except BaseException:
            runner.retire(connection)
            raise

    return close
