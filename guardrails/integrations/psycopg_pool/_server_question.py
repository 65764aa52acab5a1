"""Asks the server of a pool about its sessions, over a connection past the pool and the guard.

Depends on drivers; must not import the pool's hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo

from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.drivers.psycopg_pool import PooledPsycopg
from guardrails._dbapi.server_sessions import KILL, read_sessions
from guardrails._dbapi.session_end import end_sessions
from guardrails._dbapi.session_question import Work, ask_server
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.revoked_sessions import RevokedSession, RevokedSessions
from guardrails._pool.sessions import ServerView, SessionId

__all__ = ["know_sessions"]

R = TypeVar("R")

_SYSTEM = "postgresql"

_CONNECT_LIMIT = 2
"""Seconds; the minimum of libpq."""


class ServerQuestion:
    """See Question. It connects as the pool does, with psycopg in the thread that asks.

    Args:
        pool: The pool.
        driver: psycopg.
    """

    kill = KILL[_SYSTEM]

    def __init__(self, pool: Any, driver: Driver) -> None:
        self._pool = pool
        self._driver = driver

    def __call__(self) -> tuple[SessionId, ServerView]:
        """See Question."""
        return self._ask(lambda asker, execute: (asker, read_sessions(_SYSTEM, execute)))

    def end(self, sessions: Sequence[RevokedSession]) -> int:
        """See RevokedSessions."""
        return self._ask(partial(end_sessions, _SYSTEM, sessions=sessions))

    def _ask(self, work: Work[R]) -> R:
        said, given = self._pool.conninfo, self._pool.kwargs or {}
        if callable(said) or callable(given):
            raise LookupError("the pool asks for its login each time")  # noqa: TRY004 - not about a type
        words = {key: value for key, value in given.items() if isinstance(value, str | int | None)}
        for ours in ("autocommit", "prepare_threshold"):
            words.pop(ours, None)
        connection = psycopg.connect(make_conninfo(said or "", **words | {"connect_timeout": _CONNECT_LIMIT}))
        return ask_server(self._driver, connection, connection, work)


def know_sessions(pool: Any, driver: Driver, registry: HolderRegistry, *, asks: bool) -> None:
    """Tells the registry the server's sessions of the connections.

    Args:
        pool: The pool.
        driver: psycopg.
        registry: The holders of the connections.
        asks: Whether the server is asked, too: which sessions they wait for, and whether it has ended those
            that were taken back.
    """

    def held() -> dict[Any, SessionId]:
        found = {}
        for checkout in list(registry.out.values()):
            with suppress(Exception):  # closed meanwhile
                session = driver.session_of(checkout.connection())
                if session is not None:
                    found[checkout] = session
        return found

    registry.session_ids = held
    if asks:
        question = ServerQuestion(pool, PooledPsycopg())
        registry.watch_locks(question)
        registry.revoked_sessions = RevokedSessions(registry.guard.name, driver.session_of, question.end)
