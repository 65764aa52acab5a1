"""Asks the server of a pool about its sessions, over a connection past the pool and the guard.

Depends on drivers; must not import the pool's hooks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import asyncpg

from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.server_sessions import KILL, read_sessions
from guardrails._dbapi.session_end import end_sessions
from guardrails._dbapi.session_question import LIMIT, Work
from guardrails._pool.checkout import Checkout
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.revoked_sessions import RevokedSession, RevokedSessions
from guardrails._pool.sessions import ServerView, SessionId

__all__ = ["know_sessions"]

R = TypeVar("R")

_DIALECT = "postgresql"


class ServerQuestion:
    """See Question. It runs in a thread with an event loop of its own, so the application's may be busy.

    Args:
        pool: The pool, whose arguments it connects with.
        driver: asyncpg.
    """

    kill = KILL[_DIALECT]

    def __init__(self, pool: Any, driver: Driver) -> None:
        self._pool = pool
        self._driver = driver
        own, password = pool._connect, pool._connect_kwargs.get("password")  # noqa: SLF001 - no public way
        # A connect() of the user's knows the server; a password() may use what belongs to another event loop.
        self._logs_in_alone = own is asyncpg.connection.connect and not callable(password)

    def __call__(self) -> tuple[SessionId, ServerView]:
        """See Question."""
        return self._ask(lambda asker, execute: (asker, read_sessions(_DIALECT, execute)))

    def end(self, sessions: Sequence[RevokedSession]) -> int:
        """See RevokedSessions."""
        return self._ask(partial(end_sessions, _DIALECT, sessions=sessions))

    def _ask(self, work: Work[R]) -> R:
        pool = self._pool
        if not self._logs_in_alone:
            raise LookupError("the pool's login is a function of the application")
        given = pool._connect_kwargs | {"timeout": LIMIT, "command_timeout": LIMIT, "statement_cache_size": 0}  # noqa: SLF001 - no public way
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            connection = runner.run(asyncpg.connect(*pool._connect_args, **given))  # noqa: SLF001
            try:
                asker = self._driver.session_of(connection)
                if asker is None:
                    raise LookupError("the driver does not know its session")
                return work(asker, lambda statement: runner.run(connection.fetch(statement)))
            finally:
                with suppress(Exception):
                    runner.run(_terminate(connection))


async def _terminate(connection: Any) -> None:
    connection.terminate()


def know_sessions(
    pool: Any, driver: Driver, registry: HolderRegistry, out: Mapping[Any, Checkout], *, asks: bool
) -> None:
    """Tells the registry the server's sessions of the connections.

    Args:
        pool: The pool.
        driver: asyncpg.
        registry: The holders of the connections.
        out: The checkouts by asyncpg's holders.
        asks: Whether the server is asked, too: which sessions they wait for, and whether it has ended those
            that were taken back.
    """

    def held() -> dict[Any, SessionId]:
        found = {}
        for holder, checkout in list(out.items()):
            with suppress(Exception):  # closed meanwhile
                session = driver.session_of(holder._con)  # noqa: SLF001 - no public way
                if session is not None:
                    found[checkout] = session
        return found

    registry.session_ids = held
    if asks:
        question = ServerQuestion(pool, driver)
        registry.watch_locks(question)
        registry.revoked_sessions = RevokedSessions(registry.guard.name, driver.session_of, question.end)
