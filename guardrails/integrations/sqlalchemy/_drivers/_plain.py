"""What most drivers need no words for. Knows none of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

__all__ = ["Plain"]


class Plain(ABC):
    """The parts of Driver that do nothing special."""

    interrupts_task = False
    connects_anywhere = True
    backstop_spans_streams = False

    def open(
        self,
        connect: Callable[..., Any],
        arguments: dict[str, Any],
        seconds: float,  # noqa: ARG002 - the caller stops waiting by itself
        backstop: float | None,  # noqa: ARG002 - this server is given none
    ) -> Any:
        """See Driver."""
        return connect(**arguments)

    @abstractmethod
    def cancel(self, connection: Any, within: float) -> None:
        """See Driver."""

    def insist(self, connection: Any, within: float) -> None:
        """See Driver."""
        self.cancel(connection, within)

    def allow(self, statement: str, seconds: float | None) -> str:  # noqa: ARG002 - there is no backstop to lift
        """See Driver."""
        return statement

    def abandon(self, connection: Any) -> None:  # noqa: B027 - it need not be said again
        """See Driver. Cancelling the task is enough."""
