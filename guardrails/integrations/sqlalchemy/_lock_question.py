"""Asks the server of an engine for its sessions, over a connection past the pool and the guard.

Depends on second connections and drivers; must not import pools.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.util import greenlet_spawn

from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.server_sessions import KILL
from guardrails._dbapi.session_question import LIMIT, ask_for_sessions
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.sessions import ServerView, SessionId
from guardrails.integrations.sqlalchemy._second_connection import SecondConnection

__all__ = ["LockQuestion", "know_sessions"]

_CONNECT_LIMITS: dict[str, dict[str, Any]] = {
    "psycopg": {"connect_timeout": 2},  # the minimum of libpq
    "psycopg2": {"connect_timeout": 2},
    "asyncpg": {"timeout": LIMIT},
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
        async with asyncio.timeout(LIMIT):
            answer: tuple[SessionId, ServerView] = await greenlet_spawn(self._ask)
        return answer

    def _ask(self) -> tuple[SessionId, ServerView]:
        dialect = self._engine.dialect
        adapted = self._second.open_adapted(**_CONNECT_LIMITS[dialect.driver])
        own = dialect.get_driver_connection(adapted)
        return ask_for_sessions(dialect.name, self._driver, adapted, own, cut=not dialect.is_async)


def know_sessions(engine: Engine, driver: Driver, registry: HolderRegistry, *, ask_server: bool) -> None:
    """Tells the registry of a pool the server's sessions of the connections.

    Args:
        engine: The engine.
        driver: Its driver.
        registry: The holders of the pool's connections.
        ask_server: Whether the server is asked, too, which sessions they wait for.
    """
    out = registry.out

    def held() -> dict[Any, SessionId]:
        found = {}
        for record, checkout in list(out.items()):
            with suppress(Exception):  # closed meanwhile
                session = driver.session_of(record.driver_connection)
                if session is not None:
                    found[checkout] = session
        return found

    registry.session_ids = held
    if ask_server and engine.dialect.name in KILL and engine.dialect.driver in _CONNECT_LIMITS:
        registry.watch_locks(LockQuestion(engine, driver))
