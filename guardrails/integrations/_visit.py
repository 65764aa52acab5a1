"""A request on its way through an application that does its own routing. Knows no framework and no server."""

from __future__ import annotations

from guardrails._deadline import Clock, RequestScope, Scope, ranked

__all__ = ["Visit"]


class Visit(RequestScope):
    """One request, from the moment the middleware got it.

    Attributes:
        rank: How much it matters, if anybody has said; see `guardrails._criticality`.
    """

    __slots__ = ("rank",)

    def __init__(self, at: float | None, clock: Clock, outer: Scope | None, rank: int | None) -> None:
        super().__init__(at, clock, outer)
        self.rank = rank
        if rank is not None:
            ranked.add(rank)
