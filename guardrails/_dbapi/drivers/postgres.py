"""What PostgreSQL's drivers share: the meaning of an SQLSTATE, and the backstop. Knows no driver."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from guardrails._dbapi.drivers.plain import Plain
from guardrails.errors import ConfigurationError

__all__ = ["PostgresDriver", "server_failed"]

_log = logging.getLogger("guardrails")

_LIMIT = "statement_timeout"

_LOST_CLIENT = {
    "client_connection_check_interval": "1000",  # milliseconds; PostgreSQL 14 and later
    "tcp_keepalives_idle": "30",  # seconds; together with the next two a minute, where the default is hours
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
"""Settings with which the server ends the statements of a client that is gone: once a second it looks whether
the socket was closed, and who has not answered the network for a minute counts as gone. No statement of a
client that is there is ended, however long it takes, so nothing has to be lifted for one; and a connection
that outlives its guard may keep them."""

_REFUSALS = ("startup", "option", "parameter", *_LOST_CLIENT, _LIMIT)
"""Words of a server, or of a pooler in front of it, that does not know a setting or lets nobody choose it."""

_ELSEWHERE = ("conninfo", "dsn", "service")
"""Arguments in which libpq may be given ``options`` that are not seen here."""

_FAULTS = {
    "08": "connection",
    "53": "insufficient resources: memory, disk, connections",
    "57": "operator intervention: shutdown, crash, cancelled by an administrator or a server's limit",
    "58": "system: input and output",
    "F0": "configuration file",
    "XX": "internal, or corrupted data",
}
"""Classes of SQLSTATE that are the server's fault. Every other one is an answer about the statement, a
transaction or a right, which a server gives that is alive and well."""

_ANSWERS = {
    "53400": "a limit set for this session, such as temp_file_limit",
    "57P05": "the session was idle for longer than it may be",
}
"""States of those classes that say nothing against the server."""


def server_failed(sqlstate: object) -> bool | None:
    """Whether the state means a fault of the server; None without a state."""
    if not isinstance(sqlstate, str) or len(sqlstate) < 2:  # noqa: PLR2004 - the class is two letters
        return None
    return sqlstate[:2] in _FAULTS and sqlstate not in _ANSWERS


class PostgresDriver(Plain):
    """What is the same whatever the driver."""

    backstop_on_request = True  # nothing can lift it for one statement without a round trip

    def __init__(self) -> None:
        self._refused = 0

    def open(
        self,
        connect: Callable[..., Any],
        arguments: dict[str, Any],
        seconds: float,  # noqa: ARG002 - the caller stops waiting by itself
        backstop: float | None,
    ) -> Any:
        """See Driver. The settings go with the start-up packet; what is refused once is not sent again."""
        limit = {} if backstop is None else {_LIMIT: str(_milliseconds(backstop))}
        offers = [{**_LOST_CLIENT, **limit}, *([limit] if limit else []), {}]
        for refused, offer in enumerate(offers[self._refused :], self._refused):
            settings = self._with_settings(connect, arguments, offer)
            try:
                connection = connect(**settings)
            except Exception as error:
                if settings is arguments or not _refuses(error):
                    raise
            else:
                self._note_refused(refused, limited=bool(limit))
                return connection
        raise AssertionError  # the last offer is none

    def allow(self, statement: str, seconds: float | None) -> str:  # noqa: ARG002 - there is no way
        """See Driver."""
        raise ConfigurationError(
            f"execution_options: guardrails_timeout must be at most the engine's backstop, got {seconds!r}"
        )

    def _note_refused(self, offers: int, *, limited: bool) -> None:
        """Remembers that a connection could be opened only without settings that were offered before."""
        if offers <= self._refused:
            return
        self._refused = offers
        if limited and offers > 1:
            _log.warning("the backstop is off: what is between us and PostgreSQL refuses %s", _LIMIT)
        else:
            _log.info("PostgreSQL does not look after lost clients: settings for that are refused")

    def _with_settings(
        self, connect: Callable[..., Any], arguments: dict[str, Any], offer: Mapping[str, str]
    ) -> dict[str, Any]:
        """The arguments with settings in libpq's words; the same ones if there is nothing to add.

        The user's own stay: those in ``options``, and all where they cannot be seen.
        """
        words = any(getattr(connect, "args", ()))  # a connection string
        if words or "PGSERVICE" in os.environ or not arguments.keys().isdisjoint(_ELSEWHERE):
            return arguments
        # An argument replaces the variable, so what that says has to go with it.
        given = arguments.get("options") or os.environ.get("PGOPTIONS", "")
        if not isinstance(given, str):
            return arguments
        ours = [f"-c {name}={value}" for name, value in offer.items() if name not in given]
        return {**arguments, "options": " ".join([given, *ours]).strip()} if ours else arguments


def _refuses(error: Exception) -> bool:
    """True if connecting may have failed because of our settings alone."""
    said = str(error).lower()
    return any(word in said for word in _REFUSALS)


def _milliseconds(seconds: float) -> int:
    """Whole milliseconds, rounded up: 0 would be no limit at all."""
    return math.ceil(seconds * 1000)
