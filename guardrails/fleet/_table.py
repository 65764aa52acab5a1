"""The members of one budget or verdict, and sums over them that follow each change. Pure.

Depends on nothing of ours. A member's state changes by time: it falls silent and is forgotten. A heap has the
next change of each member, so that a step costs the logarithm of their number at most.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, MutableMapping
from typing import Generic, Protocol, TypeVar

__all__ = ["NEVER", "Member", "MemberTable", "Sums", "count"]

NEVER = 10**15
"""The time of a change that does not come."""


class Member(Protocol):
    """What a store knows of one worker."""

    def state(self, now: int) -> int:
        """Returns its state; 0 if it is to be forgotten."""

    def changes_at(self, state: int) -> int:
        """Returns the time at which a state ends if nothing is heard of the member."""


M = TypeVar("M", bound=Member)
M_contra = TypeVar("M_contra", bound=Member, contravariant=True)


class Sums(Protocol[M_contra]):
    """Sums over members."""

    def add(self, member: M_contra, state: int, sign: int) -> None:
        """Adds a member in a state, or subtracts it if ``sign`` is -1."""


class MemberTable(Generic[M]):
    """Members by name.

    Args:
        sums: The sums over no member; they are changed with the members.
    """

    def __init__(self, sums: Sums[M]) -> None:
        self._sums = sums
        self._members: dict[str, tuple[M, int]] = {}
        self._changes: list[tuple[int, str]] = []
        self._next: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def get(self, name: str) -> M | None:
        """Returns a member; None if it is unknown."""
        found = self._members.get(name)
        return None if found is None else found[0]

    def find(self, name: str) -> tuple[M | None, int]:
        """Returns a member and its state; None and 0 if it is unknown."""
        return self._members.get(name, (None, 0))

    def items(self) -> Iterator[tuple[str, M]]:
        """Returns the members with their names."""
        return ((name, member) for name, (member, _) in self._members.items())

    def put(self, name: str, member: M, now: int) -> None:
        """Adds a member or replaces it; one that is to be forgotten is not kept."""
        self.remove(name)
        state = member.state(now)
        if state:
            self._keep(name, member, state)

    def reschedule(self, name: str) -> None:
        """Notes that a member that is known was changed so that its state may end earlier than before."""
        member, state = self._members[name]
        self._schedule(name, member.changes_at(state))

    def remove(self, name: str) -> None:
        """Removes a member; harmless if it is unknown."""
        found = self._members.pop(name, None)
        if found is not None:
            self._sums.add(*found, -1)

    def clear(self) -> None:
        """Removes all members."""
        for name in list(self._members):
            self.remove(name)
        self._changes.clear()
        self._next.clear()

    def next_change(self) -> int:
        """Returns a time before which no state changes by time."""
        return self._changes[0][0] if self._changes else NEVER

    def settle(self, now: int) -> bool:
        """Notes the changes that time has made; returns True if there were any."""
        has_changed = False
        while self._changes and self._changes[0][0] <= now:
            at, name = heapq.heappop(self._changes)
            if self._next.get(name) != at:
                continue
            del self._next[name]
            found = self._members.get(name)
            if found is None:
                continue
            member, state = found
            if member.state(now) == state:
                self._schedule(name, member.changes_at(state))
            else:
                self.put(name, member, now)
                has_changed = True
        return has_changed

    def _keep(self, name: str, member: M, state: int) -> None:
        self._members[name] = member, state
        self._sums.add(member, state, 1)
        self._schedule(name, member.changes_at(state))

    def _schedule(self, name: str, at: int) -> None:
        known = self._next.get(name, NEVER)
        if at < known:  # a later change is scheduled when the earlier time has come
            self._next[name] = at
            heapq.heappush(self._changes, (at, name))


def count(values: MutableMapping[int, int], value: int, change: int) -> None:
    """Changes how often a value occurs."""
    many = values.get(value, 0) + change
    if many:
        values[value] = many
    else:
        values.pop(value, None)
