"""The names of HTTP requests and of automatic compartments. Depends on nothing."""

from __future__ import annotations

from typing import Self

__all__ = ["ServerName", "WorkloadName", "guard_name_of", "request_name"]

_METHODS = {
    **{method: method for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY")},
    "HEAD": "GET",
}


def request_name(method: str | None, template: str) -> str:
    """The name that all requests of a route share, such as ``GET /orders/{id}``."""
    # A client may send any word as its method. The endpoint of a GET also answers a HEAD.
    known = _METHODS.get(method or "")
    return template if known is None else f"{known} {template}"


class WorkloadName(str):
    """The name of an automatic compartment, which compartments of other guards may have, too.

    It is a ``str``. Its ``repr``, which messages show, includes the name of the guard.

    Attributes:
        guard_name: The name of the guard.
    """

    __slots__ = ("guard_name",)

    guard_name: str

    def __new__(cls, name: str, guard_name: str = "") -> Self:
        """Makes the name of a compartment of a guard."""
        made = super().__new__(cls, name)
        made.guard_name = guard_name
        return made

    def __repr__(self) -> str:
        return f"{super().__repr__()} of {self.guard_name!r}"


class ServerName(WorkloadName):
    """The name of the compartment of a server: its address, which must not reach a client of the service."""

    __slots__ = ()


def guard_name_of(name: str) -> str:
    """The guard's name for that of an automatic compartment; any other name unchanged."""
    return name.guard_name if isinstance(name, WorkloadName) else name
