"""Tables of paths and templates, as settings name them. Must not import a framework or a guard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Generic, TypeVar

__all__ = ["ALLOWED", "PathTable", "is_path"]

T = TypeVar("T")

ALLOWED = (
    "a path such as '/orders', or a template such as '/orders/{id}': from '/' on, without wildcards or a "
    "query, each parameter a whole segment, and one of kind 'path' the last"
)

_PARAMETER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*(:[a-z]+)?\}\Z")


def is_path(value: object) -> bool:
    """True if a value can be a path of a table; `ALLOWED` describes the paths that can."""
    if not isinstance(value, str) or not value.startswith("/") or any(sign in value for sign in "*?#"):
        return False
    *above, last = value.split("/")
    return all(_is_segment(segment) and not segment.endswith(":path}") for segment in above) and _is_segment(
        last
    )


def _is_segment(segment: str) -> bool:
    return not set(segment) & {"{", "}"} or _PARAMETER.match(segment) is not None


class PathTable(Generic[T]):
    """Values by path.

    A *path* covers itself and all paths below it: ``/orders`` covers ``/orders`` and ``/orders/7``, not
    ``/orders-old``. A *template* covers the paths of its form: ``/orders/{id}`` covers ``/orders/7``,
    not ``/orders/7/lines``. The first template that matches wins, then the longest path.
    """

    def __init__(self, entries: Mapping[str, T]) -> None:
        templates = [path for path in entries if "{" in path]
        paths = sorted((path for path in entries if "{" not in path), key=len, reverse=True)
        # One regular expression for all entries, so that a look-up is one call.
        forms = [_form(path) for path in templates] + [_below(path) for path in paths]
        self._form = re.compile("|".join(f"({form})" for form in forms), re.DOTALL)
        self._values = tuple(entries[path] for path in templates + paths)

    def __bool__(self) -> bool:
        return bool(self._values)

    def find(self, path: str) -> T | None:
        """Returns the value for a path, or None."""
        if not self._values:
            return None
        match = self._form.match(path)
        # An entry has no groups of its own, so the index of the last group is that of the entry.
        return None if match is None else self._values[(match.lastindex or 1) - 1]


def _form(template: str) -> str:
    # A parameter ends with its segment, so the match does not backtrack: linear in the path.
    return "/".join(_segment(segment) for segment in template.split("/")) + r"\Z"


def _below(path: str) -> str:
    return re.escape(path.rstrip("/")) + r"(?=/|\Z)"


def _segment(segment: str) -> str:
    if _PARAMETER.match(segment) is None:
        return re.escape(segment)
    return ".+" if segment.endswith(":path}") else "[^/]+"
