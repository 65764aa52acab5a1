"""Reads the DBAPI connection of a pool's connection, which SQLAlchemy calls a fairy.

Depends on SQLAlchemy's proxied connection; must not import its guarded class.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.pool.base import _ConnectionFairy

from guardrails._dbapi.revoked import RevokedConnection

__all__ = [
    "dbapi_connection_of",
    "get_dbapi_connection",
    "refuse_revoked",
    "revoked_connection_of",
    "set_dbapi_connection",
]

_member: Any = _ConnectionFairy.dbapi_connection
get_dbapi_connection, set_dbapi_connection = _member.__get__, _member.__set__


def dbapi_connection_of(connection: Any) -> Any:
    """Returns the DBAPI connection of a pool's connection, for hooked work: no deadline is put on it."""
    try:
        return get_dbapi_connection(connection)
    except TypeError:
        # Another proxy of SQLAlchemy's, or the DBAPI connection itself.
        return getattr(connection, "dbapi_connection", connection)


def revoked_connection_of(connection: Any) -> RevokedConnection | None:
    """Returns the stand-in of a pool's connection that was taken back; None for any other."""
    found = dbapi_connection_of(connection)
    return found if isinstance(found, RevokedConnection) else None


def refuse_revoked(connection: Any) -> None:
    """Raises the error of a pool's connection that was taken back, in place of work on it."""
    revoked = revoked_connection_of(connection)
    if revoked is not None:
        raise revoked.error()
