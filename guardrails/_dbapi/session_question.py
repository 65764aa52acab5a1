"""Asks a server about its sessions over a connection that was opened for that, and closes it.

Depends on drivers and the housekeeper; must not open a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.server_sessions import Execute
from guardrails._pool.sessions import SessionId
from guardrails._runtime.housekeeper import run_later

__all__ = ["LIMIT", "Work", "ask_server"]

LIMIT = 1.0
"""Seconds for the connection and the answer together."""

R = TypeVar("R")

Work = Callable[[SessionId, Execute], R]
"""Asks, given the identity of the connection, as its driver knows it, and the way to run a statement."""


def ask_server(driver: Driver, connection: Any, own: Any, work: Work[R], *, cut: bool = True) -> R:
    """Asks a server and closes the connection.

    Args:
        driver: The driver.
        connection: A connection with the interface of the DBAPI; inside a greenlet for an asyncio driver.
        own: The driver's own connection.
        work: Asks.
        cut: Whether to cut the connection when time is up; False where the caller is cancelled then.
    """
    try:
        getattr(driver, "note", _nothing)(own)
        if cut:
            run_later(partial(driver.kill, own), LIMIT)
        answer = work(_identity(driver, own), partial(_rows, connection))
        connection.close()
    except BaseException:
        driver.kill(own)
        driver.retire(own)
        with suppress(Exception):
            closing = own.close()
            if asyncio.iscoroutine(closing):
                closing.close()
        raise
    return answer


def _nothing(_: Any) -> None:
    pass


def _identity(driver: Driver, own: Any) -> SessionId:
    known = driver.session_of(own)
    if known is None:
        raise LookupError("the driver does not know its session")
    return known


def _rows(connection: Any, statement: str) -> Any:
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
        return cursor.fetchall()
    finally:
        cursor.close()
