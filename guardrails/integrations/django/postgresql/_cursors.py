"""psycopg's cursors whose work a given object runs. Must not import Django or a guard."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from psycopg import ServerCursor

from guardrails.errors import ConnectionRevokedError
from guardrails.integrations.django._database.cursors import Steps, guard_cursor

__all__ = ["guarded"]


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
        """See psycopg: a page at a time; a caller that stops in a page and continues gets its rest."""
        rows = _pages.setdefault(self, deque())
        while rows or self._turn_page(rows):
            yield rows.popleft()

    def _turn_page(self, rows: deque[Any]) -> bool:
        rows.extend(self.fetchmany(self.itersize))
        return bool(rows)


_pages: WeakKeyDictionary[Any, deque[Any]] = WeakKeyDictionary()


def guarded(cursor: Any, steps: Steps) -> Any:
    """Has a cursor's work run by ``steps``."""
    return guard_cursor(cursor, _GuardedServerCursor if isinstance(cursor, ServerCursor) else _Guarded, steps)
