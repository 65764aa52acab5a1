"""What an SQLSTATE says about the server. Knows no driver."""

from __future__ import annotations

__all__ = ["server_failed"]

_FAULT_CLASSES = frozenset({"08", "53", "57", "58", "F0", "XX"})
"""Connection, resources, operator intervention, system, configuration file, internal error. Every
other class is an answer about the statement: the server is alive and well."""


def server_failed(sqlstate: object) -> bool | None:
    """Whether the state means a fault of the server; None without a state."""
    if not isinstance(sqlstate, str) or len(sqlstate) < 2:  # noqa: PLR2004 - the class is two letters
        return None
    return sqlstate[:2] in _FAULT_CLASSES
