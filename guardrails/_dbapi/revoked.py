"""Stands in for a connection that was taken back from its holder after ``max_idle_hold``.

Depends on PEP 249; must not import a driver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from guardrails.errors import ConnectionRevokedError

__all__ = ["RevokedConnection"]

_Error = Callable[[], ConnectionRevokedError]


class RevokedConnection:
    """A DBAPI connection on which all work fails. Its end is quiet, so that blocks unwind.

    Args:
        error: Makes the error.
    """

    def __init__(self, error: _Error) -> None:
        self.error = error

    def cursor(self, *_: object, **__: object) -> RevokedCursor:
        """See PEP 249. SQLAlchemy would hide an error that is raised here."""
        return RevokedCursor(self.error)

    def rollback(self) -> None:
        """See PEP 249."""

    def close(self) -> None:
        """See PEP 249."""

    def terminate(self) -> None:
        """See the asynchronous dialects of SQLAlchemy."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.error()


class RevokedCursor:
    """A cursor of such a connection."""

    arraysize = 1
    description = None
    rowcount = -1

    def __init__(self, error: _Error) -> None:
        self._error = error

    def close(self) -> None:
        """See PEP 249."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._fail

    def _fail(self, *_: object, **__: object) -> NoReturn:
        raise self._error()
