"""What is counted while a simulated fleet runs. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

__all__ = ["Broken", "FleetSums", "Sample"]

_MOST_BROKEN = 20


class Broken(NamedTuple):
    """A moment at which the invariant did not hold.

    Attributes:
        at: Seconds from the start.
        open: Connections that were open.
        allowed: The budget, and what the protocol's exceptions allowed beyond it at that moment.
    """

    at: float
    open: int
    allowed: int


class Sample(NamedTuple):
    """The state of the fleet at one moment; rates are means since the last sample.

    Attributes:
        at: Seconds from the start.
        workers: Workers that live.
        open: Open connections.
        served: Calls under way.
        demand: Calls that would be under way without a limit.
        static: Calls that would be under way if the budget were divided once for all.
        commands: Commands a second at the store.
    """

    at: float
    workers: int
    open: float
    served: float
    demand: float
    static: float
    commands: float


class FleetSums:
    """Sums over time.

    Attributes:
        highest: The largest number of open connections.
        over: The most connections above the budget.
        broken: The first moments at which the invariant did not hold.
        breaks: The number of all such moments.
        commands: Commands at the store.
        starved: The longest time in seconds that a worker in contact was below its floor.
        waits: Seconds from a rise of a worker's demand until it had that, or an equal share, while the
            worker and the store were in contact.
        disturbed_waits: Likewise, while they were not.
        served: Calls under way; its integral over time is ``served_seconds``. Likewise the next two.
        demand: Calls that would be under way without a limit.
        static: Calls that would be under way if the budget were divided once for all.
    """

    def __init__(self, now: float) -> None:
        self.start = self._last = now
        self.highest = self.over = self.breaks = self.commands = 0
        self.broken: list[Broken] = []
        self.starved = 0.0
        self.waits, self.disturbed_waits = array("d"), array("d")
        self.served = self.demand = self.static = 0
        self.served_seconds = self.demand_seconds = self.static_seconds = 0.0
        self.samples: list[Sample] = []
        self._changes: list[int] = []  # of the number of commands, from each second to the next
        self._before = (now, 0.0, 0.0, 0.0, 0)

    def advance(self, now: float) -> None:
        """Adds the time since the last change to the integrals."""
        passed, self._last = now - self._last, now
        self.served_seconds += passed * self.served
        self.demand_seconds += passed * self.demand
        self.static_seconds += passed * self.static

    @property
    def busiest(self) -> int:
        """The most commands at the store in a second."""
        return max(accumulate(self._changes), default=0)

    def note_command(self, now: float) -> None:
        """Counts one command at the store."""
        self.commands += 1
        self._note_second(int(now), int(now))

    def note_commands(self, sends: Callable[[int], float], begin: int, many: int, delay: float) -> None:
        """Counts a worker's commands, one a period, which is about a second.

        Args:
            sends: Returns the moment of a command by its number.
            begin: The number of the first.
            many: How many.
            delay: Seconds until a command is at the store.
        """
        self.commands += many
        first, last = int(sends(begin) + delay), int(sends(begin + many - 1) + delay)
        if last - first == many - 1:  # so one in each second
            self._note_second(first, last)
            return
        for number in range(begin, begin + many):
            second = int(sends(number) + delay)
            self._note_second(second, second)

    def _note_second(self, first: int, last: int) -> None:
        """Adds one command to each of some seconds."""
        changes, start = self._changes, int(self.start)
        if last - start + 1 >= len(changes):
            changes.extend([0] * (last - start + 2 - len(changes)))
        changes[first - start] += 1
        changes[last - start + 1] -= 1

    def note_wait(self, seconds: float, *, calm: bool) -> None:
        """Notes how long a worker waited for its share."""
        (self.waits if calm else self.disturbed_waits).append(seconds)

    def note_broken(self, now: float, opened: int, allowed: int) -> None:
        """Notes that the invariant did not hold."""
        self.breaks += 1
        if len(self.broken) < _MOST_BROKEN:
            self.broken.append(Broken(now - self.start, opened, allowed))

    def sample(self, now: float, workers: int, opened: int) -> None:
        """Adds a sample."""
        self.advance(now)
        at, served, demand, static, commands = self._before
        passed = max(1e-9, now - at)
        self.samples.append(
            Sample(
                now - self.start,
                workers,
                opened,
                (self.served_seconds - served) / passed,
                (self.demand_seconds - demand) / passed,
                (self.static_seconds - static) / passed,
                (self.commands - commands) / passed,
            )
        )
        self._before = (now, self.served_seconds, self.demand_seconds, self.static_seconds, self.commands)
