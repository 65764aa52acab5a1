"""The names of HTTP requests and of compartments. Depends on nothing."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Self

__all__ = [
    "CompartmentName",
    "Identity",
    "fields_of",
    "identity_of",
    "known_method",
    "request_name",
    "with_braces",
]

_METHODS = {
    **{method: method for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY")},
    "HEAD": "GET",
}

_PARAMETER = re.compile(r"(?<!\?P)<(?:([^<>]*):)?(\w+)>")
"""A parameter of Flask's and Django's rules, but no named group of a regular expression."""

_NAME_FIRST = re.compile(r"<(\w+)(:[^<>]*)?>")

Identity = tuple[str, str | None]
"""The name of a guard, and that of its compartment; None for the guard itself."""


def known_method(method: str | None) -> str:
    """The method by which requests are told apart: ``GET`` for a HEAD, empty for an unknown one."""
    # A client may send any word as its method. The endpoint of a GET also answers a HEAD.
    return _METHODS.get(method or "", "")


def request_name(method: str | None, template: str) -> str:
    """The name that all requests of a route share, such as ``GET /orders/{id}``."""
    known = known_method(method)
    return f"{known} {template}" if known else template


@lru_cache(maxsize=1024)  # templates are few
def with_braces(template: str, *, name_first: bool = False) -> str:
    """A template in the form of Starlette's: ``/orders/{id:int}`` for ``/orders/<int:id>``.

    Args:
        template: The template. The named groups of a regular expression stay as they are.
        name_first: True for ``<id:int>``, as Bottle has it.
    """

    def parameter(found: re.Match[str]) -> str:
        kind, name = found[1], found[2]
        return f"{{{name}:{kind}}}" if kind and not name_first else f"{{{found[0][1:-1]}}}"

    return (_NAME_FIRST if name_first else _PARAMETER).sub(parameter, template)


class CompartmentName(str):
    """The name of a compartment, which compartments of other guards may have, too.

    It is a ``str``. Its ``repr``, which messages show, includes the name of the guard.

    Attributes:
        guard_name: The name of the guard; of a compartment in a compartment, that of the outermost guard.
    """

    __slots__ = ("guard_name",)

    guard_name: str

    def __new__(cls, name: str, guard_name: str = "") -> Self:
        """Makes the name of a compartment of a guard."""
        made = super().__new__(cls, name)
        made.guard_name = identity_of(guard_name)[0]
        return made

    def __repr__(self) -> str:
        return f"{super().__repr__()} of {self.guard_name!r}"


def identity_of(name: str) -> Identity:
    """The names of the guard and of the compartment for the name of either."""
    return (name.guard_name, str(name)) if isinstance(name, CompartmentName) else (name, None)


def fields_of(name: str) -> dict[str, object]:
    """The fields of a record about a guard or compartment, for handlers of the log that write fields."""
    guard, compartment = identity_of(name)
    return {"guard": guard, "compartment": compartment}
