"""Asks Django's database for its sessions, over a connection past Django's and past the guard.

Depends on drivers; must not import the backend.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.server_sessions import KILL
from guardrails._dbapi.session_question import ask_for_sessions
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.sessions import ServerView, SessionId

__all__ = ["know_sessions"]

_CONNECT_LIMIT = 2
"""Seconds; the minimum of libpq."""


class LockQuestion:
    """See Question. It connects as one of the connections that are out.

    Args:
        driver: psycopg.
        registry: The holders of the connections.
    """

    kill = KILL["postgresql"]

    def __init__(self, driver: Driver, registry: HolderRegistry) -> None:
        self._driver = driver
        self._out = registry.out

    def __call__(self) -> tuple[SessionId, ServerView]:
        """See Question."""
        wrapper = next(each for each in map(_wrapper_of, list(self._out.values())) if each is not None)
        params = {**wrapper.get_connection_params(), "connect_timeout": _CONNECT_LIMIT}
        connection = wrapper.Database.connect(**params)
        return ask_for_sessions("postgresql", self._driver, connection, connection)


def know_sessions(driver: Driver, registry: HolderRegistry, *, ask_server: bool) -> None:
    """Tells the registry the server's sessions of the connections.

    Args:
        driver: psycopg.
        registry: The holders of the connections.
        ask_server: Whether the server is asked, too, which sessions they wait for.
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
    if ask_server:
        registry.watch_locks(LockQuestion(driver, registry))


def _wrapper_of(checkout: Any) -> Any:
    """Returns Django's wrapper of the connection; None if its thread has ended."""
    return checkout.wrapper()
