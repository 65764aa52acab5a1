"""psycopg's cursors with their work run by somebody else. Must not import Django or know a guard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from psycopg import ServerCursor

from guardrails.errors import ConnectionRevokedError

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


class _Guarded:
    """Mixed into a cursor's own class, before it. The rows are at the client: only statements are work."""

    __slots__ = ()

    guardrails: Steps

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """See psycopg."""
        return self.guardrails.step(super().execute, args, kwargs)  # type: ignore[misc]  # of the other base

    def executemany(self, *args: Any, **kwargs: Any) -> Any:
        """See psycopg."""
        return self.guardrails.step(super().executemany, args, kwargs)  # type: ignore[misc]  # likewise

    def copy(self, *args: Any, **kwargs: Any) -> Any:
        """See psycopg. It needs a slot and has no deadline."""
        self.guardrails.admit()
        self.guardrails.hide_work()
        return super().copy(*args, **kwargs)  # type: ignore[misc]  # likewise

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        """See psycopg. It needs a slot and has no deadline."""
        self.guardrails.admit()
        self.guardrails.hide_work()
        return super().stream(*args, **kwargs)  # type: ignore[misc]  # likewise


class _GuardedServerCursor(_Guarded):
    """The rows are at the server, which works for each fetch."""

    __slots__ = ()

    itersize: int

    def fetchone(self) -> Any:
        """See psycopg."""
        return self.guardrails.step(super().fetchone, (), {})  # type: ignore[misc]  # of the other base

    def fetchmany(self, *args: Any, **kwargs: Any) -> Any:
        """See psycopg."""
        return self.guardrails.step(super().fetchmany, args, kwargs)  # type: ignore[misc]  # likewise

    def fetchall(self) -> Any:
        """See psycopg."""
        return self.guardrails.step(super().fetchall, (), {})  # type: ignore[misc]  # likewise

    def scroll(self, *args: Any, **kwargs: Any) -> Any:
        """See psycopg."""
        return self.guardrails.step(super().scroll, args, kwargs)  # type: ignore[misc]  # likewise

    def close(self) -> None:
        """See psycopg."""
        try:
            self.guardrails.step(super().close, (), {}, ending=True)  # type: ignore[misc]  # likewise
        except ConnectionRevokedError:
            super().close()  # type: ignore[misc]  # likewise; there is no server to tell

    def __iter__(self) -> Iterator[Any]:
        """See psycopg: a page at a time; who stops in the middle of a page and goes on gets its rest."""
        rows = _pages.setdefault(self, deque())
        while rows or self._turn_page(rows):
            yield rows.popleft()

    def _turn_page(self, rows: deque[Any]) -> bool:
        rows.extend(self.fetchmany(self.itersize))
        return bool(rows)


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
_pages: WeakKeyDictionary[Any, deque[Any]] = WeakKeyDictionary()


@cache
def _guarded(cls: type) -> type:
    bases: tuple[type, ...] = (_GuardedServerCursor if issubclass(cls, ServerCursor) else _Guarded, cls)
    if not cls.__dictoffset__:
        bases = (_Slotted, *bases)
    return type(cls.__name__, bases, {"__slots__": (), "__module__": cls.__module__})


def guard_cursor(cursor: Any, steps: Steps) -> Any:
    """Has a cursor's work run by ``steps``. It stays the same object, of a class derived from its own."""
    cls: Any = type(cursor)
    cursor.__class__ = _guarded(cls)
    cursor.guardrails = steps
    return cursor
