"""How much a web request matters, by its route or by a trusted header. Knows no server and no guard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from guardrails._core.criticality import CLASSES
from guardrails._http.paths import ALLOWED, PathTable, is_path
from guardrails._runtime.scope import RankScope, current, enter
from guardrails._util.checks import Faults

__all__ = ["CriticalityRules"]

_RANKS = {name.encode(): rank for rank, name in enumerate(CLASSES)}


class CriticalityRules:
    """The two settings, checked.

    Args:
        faults: Where to note what is wrong with them.
        routes: A class for a path or a template.
        header: The name of the header that says a request's class, or None.

    Attributes:
        header: That name as ASGI has it.
    """

    def __init__(self, faults: Faults, routes: object, header: object) -> None:
        ranks: dict[str, int] = {}
        if not isinstance(routes, Mapping | None):
            faults.add("criticality", routes, "a dict of paths and classes, or None")
            routes = None
        for path, name in (routes or {}).items():
            if not is_path(path):
                faults.add("criticality", path, ALLOWED)
                continue
            faults.choice(f"criticality[{path!r:.80}]", name, CLASSES)
            ranks[path] = CLASSES.index(name) if name in CLASSES else 0
        if header is not None and not (isinstance(header, str) and header and header.isascii()):
            faults.add("criticality_header", header, "the name of a header, or None")
        self._routes = PathTable(ranks)
        self.header = header.lower().encode() if isinstance(header, str) and header.isascii() else None

    @classmethod
    def checked(
        cls, faults: Faults, clock: object, routes: object, header: object
    ) -> CriticalityRules | None:
        """Reads a middleware's settings; None where no request matters more than another.

        Raises:
            ConfigurationError: One or more of them are wrong; all are named at once.
        """
        faults.callable("clock", clock, none=False)
        importance = cls(faults, routes, header)
        faults.raise_if_any()
        return importance if importance.used else None

    @property
    def used(self) -> bool:
        """Whether any request can be told from another."""
        return bool(self._routes) or self.header is not None

    def rank(self, headers: Iterable[tuple[bytes, bytes]], path: str) -> int | None:
        """The rank of a request's class; None for one of which nobody says anything."""
        said = self._said(headers)
        return self._routes.find(path) if said is None else said

    def enter(self, headers: Iterable[tuple[bytes, bytes]], path: str) -> RankScope | None:
        """Opens a scope for a request that has a class; to be closed when it ends."""
        rank = self.rank(headers, path)
        return None if rank is None else enter(RankScope(rank, current()))

    def _said(self, headers: Iterable[tuple[bytes, bytes]]) -> int | None:
        if self.header is None:
            return None
        said = [value for name, value in headers if name == self.header]
        # Two of them, or a word of somebody's own, say nothing.
        return _RANKS.get(said[0]) if len(said) == 1 else None
