"""The defaults of Driver. Depends on logging only; must not import a driver."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from guardrails._pool.sessions import SessionId
from guardrails._runtime.fork import ForkedLock

__all__ = ["Plain"]

_log = logging.getLogger("guardrails")

_QUOTED = re.compile(r"""(["']).*?\1""")
"""Matches names of hosts, users and databases in a server's refusal."""


_count_lock = ForkedLock()
"""Held while a failure is counted: each cancel request is sent by a thread of its own."""


class Plain(ABC):
    """Base class of drivers, with the defaults of Driver."""

    interrupts_task = False
    connects_anywhere = True
    backstop_spans_streams = False
    second: Any = None
    failed_cancels = 0

    def cancel_failed(self, error: BaseException) -> None:
        """Counts a cancel request that did not reach the server, and logs the first one."""
        with _count_lock:
            self.failed_cancels += 1
            first = self.failed_cancels == 1
        if first:
            _log.warning(
                "a statement past its deadline could not be cancelled on the server, where it may run on: %s",
                _cause(error),
            )

    def open(
        self,
        connect: Callable[..., Any],
        arguments: dict[str, Any],
        seconds: float,  # noqa: ARG002 - the caller limits its wait
        backstop: float | None,  # noqa: ARG002 - this server has none
    ) -> Any:
        """See Driver."""
        return connect(**arguments)

    def cancel_target(self, connection: Any) -> Any:
        """See Driver. The connection itself, where one that is closed meanwhile can be asked."""
        return connection

    @abstractmethod
    def cancel(self, target: Any, within: float) -> None:
        """See Driver."""

    def cancel_again(self, target: Any, within: float) -> None:
        """See Driver."""
        self.cancel(target, within)

    def allow(self, statement: str, seconds: float | None) -> str:  # noqa: ARG002 - there is no backstop to lift
        """See Driver."""
        return statement

    def session_of(self, connection: Any) -> SessionId | None:  # noqa: ARG002 - there is no server
        """See Driver."""
        return None

    def retire(self, connection: Any) -> None:  # noqa: B027 - close() is enough
        """See Driver."""

    def abandon(self, connection: Any) -> None:  # noqa: B027 - see below
        """See Driver. Cancelling the task is enough."""

    def set_up(self, connection: Any) -> None:  # noqa: B027 - most drivers ask the server when it fails
        """See Driver."""

    def refuses_writes(self, error: BaseException, connection: Any) -> bool:  # noqa: ARG002
        """See Driver."""
        return False

    def refuses_login(self, error: BaseException) -> bool:  # noqa: ARG002
        """See Driver."""
        return False

    def has_no_room(self, error: BaseException) -> bool:  # noqa: ARG002
        """See Driver."""
        return False

    def endpoint(self, connection: Any) -> tuple[str | None, str | None]:  # noqa: ARG002
        """See Driver."""
        return None, None


def _cause(error: BaseException) -> str:
    """An error's class, with the server's refusal or number, and without any name or address."""
    name = type(error).__name__
    _, refused, reason = str(error).partition("FATAL:")
    if refused:
        return f"{name}: {_QUOTED.sub('...', reason.strip().splitlines()[0])}"
    number = error.args[0] if error.args else None
    return f"{name} {number}" if isinstance(number, int) else name
