"""PostgreSQL's SQLSTATEs and backstop, for all of its drivers.

Depends on the base class of drivers; must not import a driver.
"""

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
"""Settings with which the server ends the statements of a lost client. It checks once a second if the socket
was closed, and a client that answers no TCP keepalive for a minute is lost. Statements of a connected client
are not ended, so no statement needs an exception, and a connection that outlives its guard may keep them."""

_REFUSALS = ("startup", "option", "parameter", *_LOST_CLIENT, _LIMIT)
"""Words in the error of a server or pooler that does not know a setting or does not allow it."""

_ELSEWHERE = ("conninfo", "dsn", "service")
"""Arguments in which libpq may receive ``options`` that are not visible here."""

_FAULTS = {
    "08": "connection",
    "53": "insufficient resources: memory, disk, connections",
    "57": "operator intervention: shutdown, crash, cancelled by an administrator or a server's limit",
    "58": "system: input and output",
    "F0": "configuration file",
    "XX": "internal, or corrupted data",
}
"""Classes of SQLSTATE that are the server's fault. Every other one is an answer of a healthy server about the
statement, a transaction or a privilege."""

_ANSWERS = {
    "53400": "a limit set for this session, such as temp_file_limit",
    "57P05": "the session was idle for longer than it may be",
}
"""States of those classes that are not the server's fault."""


def server_failed(sqlstate: object) -> bool | None:
    """True if the state means a fault of the server; None without a state."""
    if not isinstance(sqlstate, str) or len(sqlstate) < 2:  # noqa: PLR2004 - the class is two letters
        return None
    return sqlstate[:2] in _FAULTS and sqlstate not in _ANSWERS


class PostgresDriver(Plain):
    """Base class of PostgreSQL's drivers."""

    backstop_on_request = True  # nothing can lift it for one statement without a round trip

    def __init__(self) -> None:
        self._refused = 0

    def open(
        self,
        connect: Callable[..., Any],
        arguments: dict[str, Any],
        seconds: float,  # noqa: ARG002 - the caller limits its wait
        backstop: float | None,
    ) -> Any:
        """See Driver. The settings are in the start-up packet; one refused once is not sent again."""
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
        raise AssertionError  # the last offer is empty

    def allow(self, statement: str, seconds: float | None) -> str:  # noqa: ARG002 - there is no way
        """See Driver."""
        raise ConfigurationError(
            f"execution_options: guardrails_timeout must be at most the engine's backstop, got {seconds!r}"
        )

    def _note_refused(self, offers: int, *, limited: bool) -> None:
        """Stores the number of offers that were refused, and logs it."""
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
        """Adds settings to the arguments, in libpq's format; returns the same object if there are none.

        The user's own settings stay: those in ``options``, and all where they are not visible.
        """
        words = any(getattr(connect, "args", ()))  # a connection string
        if words or "PGSERVICE" in os.environ or not arguments.keys().isdisjoint(_ELSEWHERE):
            return arguments
        # The argument replaces the variable, so it must include the variable's content.
        given = arguments.get("options") or os.environ.get("PGOPTIONS", "")
        if not isinstance(given, str):
            return arguments
        ours = [f"-c {name}={value}" for name, value in offer.items() if name not in given]
        return {**arguments, "options": " ".join([given, *ours]).strip()} if ours else arguments


def _refuses(error: Exception) -> bool:
    """True if the connect may have failed only because of these settings."""
    said = str(error).lower()
    return any(word in said for word in _REFUSALS)


def _milliseconds(seconds: float) -> int:
    """Whole milliseconds, rounded up: 0 would be no limit at all."""
    return math.ceil(seconds * 1000)
