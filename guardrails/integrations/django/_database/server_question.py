"""Asks Django's database about its sessions, over a connection past Django's and past the guard.

Depends on drivers; must not import the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.server_sessions import KILL, read_sessions
from guardrails._dbapi.session_end import end_sessions
from guardrails._dbapi.session_question import Work, ask_server
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.revoked_sessions import RevokedSession, RevokedSessions
from guardrails._pool.sessions import ServerView, SessionId

__all__ = ["Login", "know_sessions"]

R = TypeVar("R")


class Login:
    """Connects as a thread's connection did; equal for one database.

    It keeps no wrapper: one whose thread has ended must release its slot.

    Args:
        wrapper: Django's wrapper of that connection.
    """

    def __init__(self, wrapper: Any) -> None:
        self._alias: str = wrapper.alias
        kind: Callable[..., Any] = type(wrapper)
        self._new_wrapper = partial(kind, wrapper.settings_dict, wrapper.alias)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Login) and self._alias == other._alias

    def __hash__(self) -> int:
        return hash(self._alias)

    def open(self) -> Any:
        """Opens a connection. A subclass of the wrapper may fetch a password for it, which takes its time."""
        wrapper = self._new_wrapper()
        params = {**wrapper.get_connection_params(), **wrapper.question_limits}
        return wrapper.Database.connect(**params)


class ServerQuestion:
    """See Question. It connects as one of the connections that are out.

    Args:
        dialect: SQLAlchemy's name of the dialect.
        driver: The driver.
        registry: The holders of the connections.
    """

    def __init__(self, dialect: str, driver: Driver, registry: HolderRegistry) -> None:
        self.kill = KILL[dialect]
        self._dialect = dialect
        self._driver = driver
        self._out = registry.out

    def __call__(self) -> tuple[SessionId, ServerView]:
        """See Question."""
        wrapper = next(each for each in map(_wrapper_of, list(self._out.values())) if each is not None)
        return self._ask(
            Login(wrapper), lambda asker, execute: (asker, read_sessions(self._dialect, execute))
        )

    def end(self, sessions: Sequence[RevokedSession]) -> int:
        """See RevokedSessions."""
        return self._ask(sessions[-1].login, partial(end_sessions, self._dialect, sessions=sessions))

    def _ask(self, login: Login, work: Work[R]) -> R:
        connection = login.open()
        return ask_server(self._driver, connection, connection, work)


def know_sessions(dialect: str, driver: Driver, registry: HolderRegistry, *, asks: bool) -> None:
    """Tells the registry the server's sessions of the connections.

    Args:
        dialect: SQLAlchemy's name of the dialect.
        driver: The driver.
        registry: The holders of the connections.
        asks: Whether the server is asked, too: which sessions they wait for, and whether it has ended those
            that were taken back.
    """
    out = registry.out

    def held() -> dict[Any, SessionId]:
        found = {}
        for checkout in list(out.values()):
            with suppress(Exception):  # not open yet, or closed meanwhile
                session = driver.session_of(_wrapper_of(checkout).connection)
                if session is not None:
                    found[checkout] = session
        return found

    registry.session_ids = held
    if asks:
        question = ServerQuestion(dialect, driver, registry)
        registry.watch_locks(question)
        registry.revoked_sessions = RevokedSessions(registry.guard.name, driver.session_of, question.end)


def _wrapper_of(checkout: Any) -> Any:
    """Returns Django's wrapper of the connection; None if its thread has ended."""
    return checkout.wrapper()
