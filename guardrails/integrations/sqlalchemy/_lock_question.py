"""Asks the server of an engine for its sessions, over a connection past the pool and the guard.

Depends on second connections and drivers; must not import pools.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.util import greenlet_spawn

from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.server_sessions import KILL, read_sessions
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.lock_monitor import LockMonitor
from guardrails._pool.sessions import ServerView, SessionId
from guardrails._runtime.housekeeper import run_later
from guardrails.integrations.sqlalchemy._second_connection import SecondConnection

__all__ = ["LockQuestion", "know_sessions"]

_LIMIT = 1.0
"""Seconds for the connection and the answer together."""

_CONNECT_LIMITS: dict[str, dict[str, Any]] = {
    "psycopg": {"connect_timeout": 2},  # the minimum of libpq
    "psycopg2": {"connect_timeout": 2},
    "asyncpg": {"timeout": _LIMIT},
    "pymysql": {"connect_timeout": 1, "read_timeout": 1, "write_timeout": 1},
    "aiomysql": {"connect_timeout": 1},
    "asyncmy": {"connect_timeout": 1},
}


class LockQuestion:
    """See Question.

    Args:
        engine: The engine.
        driver: Its driver.
    """

    def __init__(self, engine: Engine, driver: Driver) -> None:
        self._engine = engine
        self._driver = driver
        self._second = SecondConnection(engine)
        self.kill = KILL[engine.dialect.name]

    def __call__(self) -> tuple[SessionId, ServerView]:
        """See Question. For an asyncio driver it runs a loop of its own, so the application's may be busy."""
        if not self._engine.dialect.is_async:
            return self._ask()
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            return runner.run(self._ask_async())

    async def _ask_async(self) -> tuple[SessionId, ServerView]:
        async with asyncio.timeout(_LIMIT):
            answer: tuple[SessionId, ServerView] = await greenlet_spawn(self._ask)
        return answer

    def _ask(self) -> tuple[SessionId, ServerView]:
        """Asks; the connection is cut if that takes too long."""
        dialect = self._engine.dialect
        adapted = self._second.open_adapted(**_CONNECT_LIMITS[dialect.driver])
        own = dialect.get_driver_connection(adapted)
        try:
            if not dialect.is_async:
                run_later(partial(self._driver.kill, own), _LIMIT)
            asker = self._driver.session_of(own)
            view = read_sessions(dialect.name, partial(_rows, adapted))
            adapted.close()
        except BaseException:
            self._driver.kill(own)
            self._driver.retire(own)
            with suppress(Exception):
                closing = own.close()
                if asyncio.iscoroutine(closing):
                    closing.close()
            raise
        if asker is None:
            raise TypeError(f"{dialect.driver} does not know its session")
        return asker, view


def know_sessions(engine: Engine, driver: Driver, registry: HolderRegistry, *, ask_server: bool) -> None:
    """Tells the registry of a pool the server's sessions of the connections.

    Args:
        engine: The engine.
        driver: Its driver.
        registry: The holders of the pool's connections.
        ask_server: Whether the server is asked, too, which sessions they wait for.
    """
    out, guard = registry.out, registry.guard

    def held() -> dict[Any, SessionId]:
        found = {}
        for record, checkout in list(out.items()):
            with suppress(Exception):  # closed meanwhile
                session = driver.session_of(record.driver_connection)
                if session is not None:
                    found[checkout] = session
        return found

    def wanted() -> bool:
        return getattr(guard, "mode", "enforce") != "off"

    registry.session_ids = held
    if ask_server and engine.dialect.name in KILL and engine.dialect.driver in _CONNECT_LIMITS:
        question = LockQuestion(engine, driver)
        registry.locks = LockMonitor(guard.name, held, registry.place, question, wanted)


def _rows(adapted: Any, statement: str) -> Any:
    cursor = adapted.cursor()
    try:
        cursor.execute(statement)
        return cursor.fetchall()
    finally:
        cursor.close()
