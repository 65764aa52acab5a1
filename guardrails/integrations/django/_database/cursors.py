"""A driver's cursors whose work a given object runs. Must not import a driver or a guard."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["Steps", "guard_cursor"]


class Steps:
    """Runs the pieces of work of one connection's cursors; filled by the database wrapper."""

    def admit(self) -> None:
        """Called before work that is not run step by step."""
        raise NotImplementedError

    def hide_work(self) -> None:
        """Called before work that is not run step by step, after `admit`."""
        raise NotImplementedError

    def step(
        self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, ending: bool = False
    ) -> Any:
        """Runs one piece of work.

        Args:
            call: The cursor's own method.
            args: Its arguments.
            kwargs: Its keyword arguments.
            ending: Whether it only tidies up.
        """
        raise NotImplementedError


class _Slotted:
    """For a cursor of a class that takes no attributes."""

    __slots__ = ()

    @property
    def guardrails(self) -> Steps:
        """The runner of its work."""
        return _steps[self]

    @guardrails.setter
    def guardrails(self, steps: Steps) -> None:
        _steps[self] = steps


_steps: WeakKeyDictionary[Any, Steps] = WeakKeyDictionary()


@cache
def _guarded(cls: type, mixin: type) -> type:
    bases: tuple[type, ...] = (mixin, cls)
    if not cls.__dictoffset__:
        bases = (_Slotted, *bases)
    return type(cls.__name__, bases, {"__slots__": (), "__module__": cls.__module__})


def guard_cursor(cursor: Any, mixin: type, steps: Steps) -> Any:
    """Has a cursor's work run by ``steps``. It stays the same object, of a class derived from its own.

    Args:
        cursor: The driver's cursor.
        mixin: The methods that are work, without attributes of its own.
        steps: Runs them.
    """
    cls: Any = type(cursor)
    cursor.__class__ = _guarded(cls, mixin)
    cursor.guardrails = steps
    return cursor
