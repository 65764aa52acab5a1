"""A registry of living objects. Depends on nothing of ours."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

__all__ = ["WeakRegistry"]

T = TypeVar("T")


class WeakRegistry(Generic[T]):
    """A set of weak references that one thread may read while others add to it.

    Before CPython 3.14 `weakref.WeakSet` is read in a loop of Python's, and raises "Set changed size during
    iteration" when another thread adds an object in the middle. Here a reader copies first, in one step of
    the interpreter, which is one step on a free-threaded build, too.
    """

    __slots__ = ("_references",)

    def __init__(self) -> None:
        self._references: dict[weakref.ref[Any], None] = {}

    def add(self, thing: T) -> None:
        """Adds an object, which must be hashable."""
        # The callback is the dictionary's own method: no Python code runs in the collector.
        self._references[weakref.ref(thing, self._references.pop)] = None

    def discard(self, thing: T) -> None:
        """Removes an object; harmless if it is not there."""
        self._references.pop(weakref.ref(thing), None)

    def living(self) -> list[T]:
        """The objects that are alive, in the order in which they were added."""
        found = (reference() for reference in list(self._references))
        return [thing for thing in found if thing is not None]
