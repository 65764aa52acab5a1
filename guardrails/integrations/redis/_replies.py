"""What an error of redis-py says about the server, and about the connection. Knows no guards."""

from __future__ import annotations

import redis

__all__ = ["leaves_clean", "server_failed"]

_FAULTS = frozenset(
    {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY"}
)
"""First words of error replies that mean the server cannot serve anybody now. Every other reply is an
answer about the command: the server is alive and well."""

_REFUSED_LOGIN = frozenset({"NOAUTH", "WRONGPASS"})


def server_failed(error: BaseException, *, connecting: bool = False) -> bool:
    """Whether an error is the server's fault.

    Args:
        error: What redis-py raised.
        connecting: Whether it kept us from connecting, which is a fault whatever the server said.
    """
    if isinstance(error, redis.WatchError) and error.__cause__ is not None:
        error = error.__cause__  # not "somebody wrote to it" but "the connection is lost"
    code = _code(error)
    if code in _FAULTS or connecting:
        return True
    if code in _REFUSED_LOGIN or isinstance(error, redis.MaxConnectionsError):
        return False
    return isinstance(error, redis.ConnectionError | redis.TimeoutError | redis.InvalidResponse | OSError)


def leaves_clean(error: BaseException) -> bool:
    """Whether every reply has been read when this error comes out of redis-py.

    Anything else may have left one on the wire, where the next caller would take it for his own.
    """
    return isinstance(error, redis.ResponseError | redis.DataError | redis.WatchError)


def _code(error: BaseException) -> str:
    status = getattr(error, "status_code", None)
    if status is None and isinstance(error, redis.ResponseError) and error.args:
        status = str(error.args[0]).split(" ", 1)[0]
    return str(status or "")
