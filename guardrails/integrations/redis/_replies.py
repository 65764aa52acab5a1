"""Classifies redis-py's errors: about the server, and about the connection. Must not import guards."""

from __future__ import annotations

import redis

__all__ = ["errors_in", "is_read_only", "leaves_connection_clean", "refuses_login", "server_failed"]

_SERVER_FAULTS = frozenset(
    {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY"}
)
"""First words of error replies that mean the server cannot serve any caller now. Every other error reply is
about the command: the server is healthy."""

_REFUSED_LOGIN = frozenset({"NOAUTH", "WRONGPASS"})

_READ_ONLY = "READONLY"


def server_failed(error: BaseException, *, connecting: bool = False) -> bool:
    """Returns True if an error is the server's fault.

    Args:
        error: The error of redis-py.
        connecting: Whether it was raised while connecting; then every error is the server's fault.
    """
    if isinstance(error, redis.WatchError) and error.__cause__ is not None:
        error = error.__cause__  # the connection was lost; no other client changed the key
    code = _code(error)
    if code in _SERVER_FAULTS or connecting:
        return True
    if code in _REFUSED_LOGIN or isinstance(error, redis.MaxConnectionsError):
        return False
    return isinstance(error, redis.ConnectionError | redis.TimeoutError | redis.InvalidResponse | OSError)


def errors_in(replies: object) -> list[Exception]:
    """Returns the errors in a list of replies; ``execute(raise_on_error=False)`` returns errors."""
    if type(replies) is not list or not any(issubclass(kind, Exception) for kind in set(map(type, replies))):
        return []  # there are few classes
    return [reply for reply in replies if isinstance(reply, Exception)]


def is_read_only(error: BaseException) -> bool:
    """Returns True if the server has refused a write because it is a replica.

    redis-py's connection to a Sentinel's master raises a ConnectionError instead, while it handles the reply.
    """
    return _code(error) == _READ_ONLY or (
        isinstance(error, redis.ConnectionError) and isinstance(error.__context__, redis.ReadOnlyError)
    )


def refuses_login(error: BaseException) -> bool:
    """Returns True if the error of a connect is about the user or the password."""
    return isinstance(error, redis.AuthenticationError) or _code(error) in _REFUSED_LOGIN


def leaves_connection_clean(error: BaseException) -> bool:
    """Returns True if redis-py has read every reply when it raises this error.

    After any other error a reply may be unread, and the next caller would take it for its own.
    """
    return isinstance(error, redis.ResponseError | redis.DataError | redis.WatchError)


def _code(error: BaseException) -> str:
    status = getattr(error, "status_code", None)
    if status is None and isinstance(error, redis.ResponseError) and error.args:
        status = str(error.args[0]).split(" ", 1)[0]
    return str(status or "")
