"""Opens second connections to a server, over which statements are cancelled.

Depends on SQLAlchemy's pool and dialect; must not import a driver. The engine's ``creator`` and its
``do_connect`` listeners open them, because the password or token of the first connection may have expired.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util import greenlet_spawn

__all__ = ["SecondConnection", "second_connection_arguments"]

_settings: ContextVar[Mapping[str, Any] | None] = ContextVar("guardrails_second_connection", default=None)


def second_connection_arguments(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the arguments of a connect that opens a second connection; None for any other connect.

    Args:
        arguments: The keyword arguments that the engine passes to the dialect.
    """
    settings = _settings.get()
    return None if settings is None else {**arguments, **settings}


class SecondConnection:
    """Opens second connections for one engine, past its pool and its guard."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def open(self, **settings: Any) -> Any:
        """Opens a connection and returns the driver's own object.

        Args:
            **settings: Arguments that replace the engine's, such as the address of the server that runs the
                statement. A user's ``creator`` ignores them, so the caller checks the connection's server.

        Raises:
            Exception: Any error of the engine's ``creator``, listeners or driver.
        """
        return self._engine.dialect.get_driver_connection(self.open_adapted(**settings))

    def open_adapted(self, **settings: Any) -> Any:
        """Opens a connection and returns what SQLAlchemy uses as a DBAPI connection; see `open`."""
        pool = self._engine.pool
        connect = pool._should_wrap_creator(pool._creator)  # noqa: SLF001 - it has no public name
        token = _settings.set(settings)
        try:
            return connect(_ConnectionRecord(pool, connect=False))
        finally:
            _settings.reset(token)

    async def open_async(self, **settings: Any) -> Any:
        """Opens a connection of an asynchronous driver; see `open`."""
        return await greenlet_spawn(self.open, **settings)
