"""The second connection to a server, over which a statement on the first one is cancelled.

Depends on SQLAlchemy's pool and dialect; must not import a driver.

The engine's own way of connecting opens it: its ``do_connect`` listeners, its ``creator``. The first
connection may have logged in with a password or a token that is no longer valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util import greenlet_spawn

__all__ = ["SecondConnection", "redirected"]

_settings: ContextVar[Mapping[str, Any] | None] = ContextVar("guardrails_second_connection", default=None)


def redirected(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of a connect that opens a second connection; None for any other connect.

    Args:
        arguments: The keyword arguments that the engine gives the dialect.
    """
    settings = _settings.get()
    return None if settings is None else {**arguments, **settings}


class SecondConnection:
    """Opens second connections for one engine. They pass neither its pool nor its guard.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def open(self, **settings: Any) -> Any:
        """Opens one and returns the driver's own connection.

        Args:
            **settings: Arguments that replace the engine's, such as the address of the server that runs the
                statement. A ``creator`` of the user's does not see them, so the caller checks where it is.

        Raises:
            Exception: The engine's way of connecting raised it.
        """
        pool = self._engine.pool
        connect = pool._should_wrap_creator(pool._creator)  # noqa: SLF001 - it has no public name
        token = _settings.set(settings)
        try:
            adapted = connect(_ConnectionRecord(pool, connect=False))
        finally:
            _settings.reset(token)
        return self._engine.dialect.get_driver_connection(adapted)

    async def open_async(self, **settings: Any) -> Any:
        """Opens one of an asynchronous driver; see `open`."""
        return await greenlet_spawn(self.open, **settings)
