"""Ranks a web request by its route or by a trusted header. Must not import a server or a framework."""

from __future__ import annotations

from collections.abc import Iterable

from guardrails._core.criticality import CLASSES
from guardrails._http.paths import PathTable
from guardrails._http.settings import HTTPSettings
from guardrails._runtime.scope import RankScope, current, enter

__all__ = ["CriticalityRules"]

_RANKS = {name.encode(): rank for rank, name in enumerate(CLASSES)}


class CriticalityRules:
    """Ranks requests by path or template, and by a header that outranks the path.

    Attributes:
        header: The name of that header as ASGI has it, or None.
    """

    def __init__(self, settings: HTTPSettings) -> None:
        header = settings.criticality_header
        self._ranks = PathTable(settings.criticality)
        self.header = None if header is None else header.encode()

    @classmethod
    def of(cls, settings: HTTPSettings) -> CriticalityRules | None:
        """Returns the rules of a middleware; None if all requests have the same criticality."""
        used = settings.criticality or settings.criticality_header is not None
        return cls(settings) if used else None

    def rank(self, headers: Iterable[tuple[bytes, bytes]], path: str) -> int | None:
        """Returns the rank of a request's class; None if neither a header nor the path gives one."""
        rank = self._rank_in(headers)
        return self._ranks.find(path) if rank is None else rank

    def enter(self, headers: Iterable[tuple[bytes, bytes]], path: str) -> RankScope | None:
        """Opens a scope for a request that has a class; the caller closes it when the request ends."""
        rank = self.rank(headers, path)
        return None if rank is None else enter(RankScope(rank, current()))

    def _rank_in(self, headers: Iterable[tuple[bytes, bytes]]) -> int | None:
        if self.header is None:
            return None
        values = [value for name, value in headers if name == self.header]
        # A repeated header and an unknown class are ignored.
        return _RANKS.get(values[0]) if len(values) == 1 else None
