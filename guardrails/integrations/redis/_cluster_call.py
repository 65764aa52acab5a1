"""The time limit of one call of a cluster client, which may ask several nodes. Depends on guards only.

redis-py follows redirections, tries again and looks up the topology inside one call. Each of these is a piece
of work on one node, with a checkout of its own; together they get the time of one call.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from time import monotonic
from types import TracebackType
from typing import Self

from guardrails._guard.guard import Guard
from guardrails._pool.limits import time_allowed
from guardrails._runtime.scope import note_guard_error
from guardrails.errors import DeadlineSpentError

__all__ = ["ClusterCall", "Lookup", "current_call"]

_FAIR = 0.5
"""Least share of the time of a call that a node must have got for its lateness to be evidence."""


class ClusterCall:
    """One call of a guarded cluster client; a context manager.

    Args:
        guard: The cluster's guard.

    Attributes:
        at: Its deadline on `time.monotonic`; None is no deadline.
        seconds: The time that it was given; None is no limit.
        tries: Pieces of work that have begun.
        asking: Name of the node that the call is redirected to for one command; None without one.
    """

    __slots__ = ("_guard", "_token", "asking", "at", "seconds", "tries")

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.at: float | None = None
        self.seconds: float | None = None
        self.tries = 0
        self.asking: str | None = None
        if guard.call_settings.gates[-1].core.enforces:
            seconds, _ = time_allowed(guard)
            if seconds is not None and seconds > 0:  # otherwise the first node's guard refuses the call
                self.seconds, self.at = seconds, monotonic() + seconds

    def __enter__(self) -> Self:
        self._token: Token[ClusterCall | None] = current_call.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        current_call.reset(self._token)
        if isinstance(error, DeadlineSpentError) and self.tries and self.is_over():
            raise self.timeout_error() from error

    def left(self) -> float | None:
        """Seconds that the next piece of work may take; None is no limit."""
        return None if self.at is None else self.at - monotonic()

    def is_over(self, seconds: float = 0.0) -> bool:
        """True if the call ends within so many seconds."""
        return self.at is not None and self.at - monotonic() <= seconds

    def is_fair(self, seconds: float) -> bool:
        """True if lateness after so many seconds is evidence against the node that was asked last."""
        return self.seconds is None or seconds >= _FAIR * self.seconds

    def timeout_error(self) -> BaseException:
        """The error of a call whose time is over."""
        errors = self._guard.call_settings.gates[-1].errors
        return note_guard_error(errors.timeout(self._guard.name, self.seconds or 0.0))


class Lookup(ClusterCall):
    """The look-up of the topology. Each node gets half of the time left, so that a frozen one leaves some.

    Args:
        guard: The cluster's guard.
        seconds: The time for all nodes.
    """

    __slots__ = ()

    def __init__(self, guard: Guard, seconds: float) -> None:
        super().__init__(guard)
        self.seconds = seconds
        self.at = monotonic() + seconds

    def left(self) -> float | None:
        """See ClusterCall."""
        left = super().left()
        return None if left is None else left / 2

    def is_fair(self, seconds: float) -> bool:  # noqa: ARG002
        """See ClusterCall: a node that is slow to answer a look-up is not judged by it."""
        return False


current_call: ContextVar[ClusterCall | None] = ContextVar("guardrails_redis_cluster_call", default=None)
"""The call of a cluster client in which this code runs."""
