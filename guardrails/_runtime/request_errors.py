"""The errors of guards in one HTTP request. Depends on nothing."""

from __future__ import annotations

__all__ = ["RequestErrors"]


class RequestErrors:
    """The refusals and timeouts of guards in one HTTP request.

    Attributes:
        failing: The names of the guards whose last call was refused or stopped. A later call through the
            same guard removes them.
        fatal: The name of the guard whose refusal became the answer.
        unhandled: The unhandled exception that a framework has reported and answered with its own 500.
    """

    __slots__ = ("failing", "fatal", "unhandled")

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.fatal: str | None = None
        self.unhandled: BaseException | None = None
