"""Compartments that form by themselves: who they are, and the doors that keep each to its share.

Knows keys and doors; what a key stands for (a function, a route) is for others to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guardrails._core.bulkhead import Bulkhead
from guardrails._core.gate import Gate, Refusal
from guardrails._core.shares import Shares
from guardrails._door import Door
from guardrails._fork import ForkedLock

__all__ = ["DEFAULT", "MOST", "OTHER", "Sharing", "SharingDoor"]

DEFAULT, OTHER = "default", "other"
"""The compartment of calls that nothing is known about, and the one of all beyond the first `MOST`."""

MOST = 64
"""Compartments that form by themselves. Each is a window of results and a row on every page."""


class Sharing:
    """What the compartments of one guard have in common.

    Args:
        total: The guard's slots.
        clock: Where the time comes from.

    Attributes:
        formed: The compartments that have formed, by key.
    """

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = ForkedLock()
        self._shares = Shares(total)
        self._elastic: dict[Bulkhead, SharingDoor] = {}
        self.formed: dict[str, Any] = {}

    def find(self, key: str, form: Callable[[str], Any]) -> Any:
        """The compartment of a key, formed if it is new; beyond `MOST` the one that all others share."""
        part = self.formed.get(key)
        if part is not None:
            return part
        with self._lock:
            if len(self.formed) >= MOST and key not in self.formed:
                key = OTHER
            if key not in self.formed:
                self.formed[key] = form(key)
            return self.formed[key]

    def door(self, name: str, gate: Gate, *, elastic: bool, **options: Any) -> SharingDoor:
        """A compartment's door.

        Args:
            name: The compartment's name.
            gate: Its gate.
            elastic: Whether its number of slots follows from who is active; else it is its own.
            **options: As for `Door`.
        """
        door = SharingDoor(name, gate, **options)
        door.sharing = self
        if elastic:
            self._elastic[gate.bulkhead] = door
        return door

    def ask(self, door: Door) -> None:
        """Notes that somebody is about to ask for a slot of a compartment."""
        with self._lock:
            changed = self._shares.ask(self._clock(), door.gate.bulkhead)
        self._apply(changed)

    def fix(self, door: Door) -> None:
        """Leaves a compartment the number of slots it was given by hand."""
        self._elastic.pop(door.gate.bulkhead, None)

    def resize(self, total: int) -> None:
        """Follows the guard's number of slots."""
        self._shares.total = total
        self._apply(tuple(self._elastic))

    def _apply(self, changed: tuple[Bulkhead, ...]) -> None:
        for bulkhead in changed:
            door = self._elastic.get(bulkhead)
            if door is not None:
                door.step(self._fit, door.gate)

    def _fit(self, now: float, gate: Gate) -> None:
        # Read under the compartment's own lock: of two threads that come here, the last sets what holds now.
        gate.resize(now, self._shares.limit(gate.bulkhead))


class SharingDoor(Door):
    """The door of a compartment whose neighbours are told before anybody passes it.

    Attributes:
        sharing: What it has in common with them.
    """

    __slots__ = ("sharing",)

    sharing: Sharing

    def enter(self, *, checkout: bool = False, budget: float | None = None) -> int:
        """See Door."""
        self.sharing.ask(self)
        return super().enter(checkout=checkout, budget=budget)

    async def enter_async(self, *, budget: float | None = None) -> int:
        """See Door."""
        self.sharing.ask(self)
        return await super().enter_async(budget=budget)

    def check_out(self, wait: Callable[[Any], Any] | None, *, budget: float | None = None) -> int:
        """See Door."""
        self.sharing.ask(self)
        return super().check_out(wait, budget=budget)

    async def check_out_async(self, *, budget: float | None = None) -> int:
        """See Door."""
        self.sharing.ask(self)
        return await super().check_out_async(budget=budget)

    def check_out_now(self) -> int:
        """See Door."""
        self.sharing.ask(self)
        return super().check_out_now()

    async def reserve(self, *, budget: float | None = None) -> int | Refusal:
        """See Door."""
        self.sharing.ask(self)
        return await super().reserve(budget=budget)
