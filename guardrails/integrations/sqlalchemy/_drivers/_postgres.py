"""What PostgreSQL's drivers share: the meaning of an SQLSTATE, and the backstop. Knows no driver."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from guardrails.errors import ConfigurationError
from guardrails.integrations.sqlalchemy._drivers._plain import Plain

__all__ = ["SETTING", "PostgresDriver", "milliseconds", "server_failed"]

_log = logging.getLogger("guardrails")

SETTING = "statement_timeout"

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
        self._refused = False

    def open(
        self,
        connect: Callable[..., Any],
        arguments: dict[str, Any],
        seconds: float,  # noqa: ARG002 - the caller stops waiting by itself
        backstop: float | None,
    ) -> Any:
        """See Driver. A pooler such as pgbouncer may refuse the setting; then there is no backstop."""
        limited = arguments if backstop is None or self._refused else self._limited(arguments, backstop)
        if limited is arguments:
            return connect(**arguments)
        try:
            return connect(**limited)
        except Exception as error:
            if "startup parameter" not in str(error):
                raise
        self._refused = True
        _log.warning("the backstop is off: what is between us and PostgreSQL refuses %s", SETTING)
        return connect(**arguments)

    def allow(self, statement: str, seconds: float | None) -> str:  # noqa: ARG002 - there is no way
        """See Driver."""
        raise ConfigurationError(
            f"execution_options: guardrails_timeout must be at most the engine's backstop, got {seconds!r}"
        )

    def _limited(self, arguments: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The arguments with the backstop in libpq's words; the user's own limit stays."""
        options = arguments.get("options") or ""
        if SETTING in options:
            return arguments
        return {**arguments, "options": f"{options} -c {SETTING}={milliseconds(seconds)}".strip()}


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, rounded up: 0 would be no limit at all."""
    return math.ceil(seconds * 1000)
