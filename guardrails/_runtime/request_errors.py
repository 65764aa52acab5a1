"""The errors of guards in one HTTP request. Depends on names alone."""

from __future__ import annotations

from guardrails._util.names import Identity

__all__ = ["RequestErrors"]


class RequestErrors:
    """The refusals and timeouts of guards in one HTTP request.

    Attributes:
        failing: The guards and compartments whose last call was refused or stopped. A later call through the
            same one removes it.
        fatal: The guard or compartment whose refusal became the answer.
        unhandled: The unhandled exception that a framework has reported and answered with its own 500.
    """

    __slots__ = ("failing", "fatal", "unhandled")

    def __init__(self) -> None:
        self.failing: set[Identity] = set()
        self.fatal: Identity | None = None
        self.unhandled: BaseException | None = None
