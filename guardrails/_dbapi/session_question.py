"""Asks a server for its sessions over a connection that was opened for that, and closes it.

Depends on drivers and the housekeeper; must not open a connection.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.server_sessions import read_sessions
from guardrails._pool.sessions import ServerView, SessionId
from guardrails._runtime.housekeeper import run_later

__all__ = ["LIMIT", "ask_for_sessions"]

LIMIT = 1.0
"""Seconds for the connection and the answer together."""


def ask_for_sessions(
    dialect: str, driver: Driver, connection: Any, own: Any, *, cut: bool = True
) -> tuple[SessionId, ServerView]:
    """Asks a server for its sessions and closes the connection.

    Args:
        dialect: SQLAlchemy's name of the dialect.
        driver: The driver.
        connection: A connection with the interface of the DBAPI; inside a greenlet for an asyncio driver.
        own: The driver's own connection.
        cut: Whether to cut the connection when time is up; False where the caller is cancelled then.
    """
    try:
        if cut:
            run_later(partial(driver.kill, own), LIMIT)
        asker = driver.session_of(own)
        view = read_sessions(dialect, partial(_rows, connection))
        connection.close()
    except BaseException:
        driver.kill(own)
        driver.retire(own)
        with suppress(Exception):
            closing = own.close()
            if asyncio.iscoroutine(closing):
                closing.close()
        raise
    if asker is None:
        raise LookupError("the driver does not know its session")
    return asker, view


def _rows(connection: Any, statement: str) -> Any:
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
        return cursor.fetchall()
    finally:
        cursor.close()
