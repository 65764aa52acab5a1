"""Asks the server of an engine about its sessions, over a connection past the pool and the guard.

Depends on second connections and drivers; must not import pools.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.util import greenlet_spawn

from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.server_sessions import KILL, read_sessions
from guardrails._dbapi.session_end import end_sessions
from guardrails._dbapi.session_question import LIMIT, Work, ask_server
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.revoked_sessions import RevokedSession, RevokedSessions
from guardrails._pool.sessions import ServerView, SessionId
from guardrails.integrations.sqlalchemy._second_connection import SecondConnection

__all__ = ["ServerQuestion", "know_sessions"]

R = TypeVar("R")

_CONNECT_LIMITS: dict[str, dict[str, Any]] = {
    "psycopg": {"connect_timeout": 2},  # the minimum of libpq
    "psycopg2": {"connect_timeout": 2},
    "pg8000": {"timeout": LIMIT},
    "asyncpg": {"timeout": LIMIT},
    "pymysql": {"connect_timeout": 1, "read_timeout": 1, "write_timeout": 1},
    "mysqldb": {"connect_timeout": 1, "read_timeout": 1, "write_timeout": 1},
    "aiomysql": {"connect_timeout": 1},
    "asyncmy": {"connect_timeout": 1},
}


class ServerQuestion:
    """See Question.

    Args:
        engine: The engine.
        driver: Its driver.
    """

    def __init__(self, engine: Engine, driver: Driver) -> None:
        self._engine = engine
        self._driver = driver
        self._second = SecondConnection(engine)
        self._dialect = engine.dialect.name
        self.kill = KILL[self._dialect]

    def __call__(self) -> tuple[SessionId, ServerView]:
        """See Question."""
        return self._ask(lambda asker, execute: (asker, read_sessions(self._dialect, execute)))

    def end(self, sessions: Sequence[RevokedSession]) -> int:
        """See RevokedSessions."""
        return self._ask(partial(end_sessions, self._dialect, sessions=sessions))

    def _ask(self, work: Work[R]) -> R:
        """Asks. For an asyncio driver it runs a loop of its own, so the application's may be busy."""
        if not self._engine.dialect.is_async:
            return self._connect_and_ask(work)
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            return runner.run(self._ask_async(work))

    async def _ask_async(self, work: Work[R]) -> R:
        async with asyncio.timeout(LIMIT):
            answer: R = await greenlet_spawn(self._connect_and_ask, work)
        return answer

    def _connect_and_ask(self, work: Work[R]) -> R:
        dialect = self._engine.dialect
        adapted = self._second.open_adapted(**_CONNECT_LIMITS[dialect.driver])
        own = dialect.get_driver_connection(adapted)
        return ask_server(self._driver, adapted, own, work, cut=not dialect.is_async)


def know_sessions(engine: Engine, driver: Driver, registry: HolderRegistry, *, asks: bool) -> None:
    """Tells the registry of a pool the server's sessions of the connections.

    Args:
        engine: The engine.
        driver: Its driver.
        registry: The holders of the pool's connections.
        asks: Whether the server is asked, too: which sessions they wait for, and whether it has ended
            those that were taken back.
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
    if asks and engine.dialect.name in KILL and engine.dialect.driver in _CONNECT_LIMITS:
        question = ServerQuestion(engine, driver)
        registry.watch_locks(question)
        registry.revoked_sessions = RevokedSessions(registry.guard.name, driver.session_of, question.end)
