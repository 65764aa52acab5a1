"""Finds the number of concurrent calls that serves most. Must not import slots, circuits or clocks.

It measures how many calls succeed in a second with each number of concurrent calls. Where more concurrent
calls are served more slowly in total, the limit goes down; where they are served faster, it goes up;
otherwise it stays.

By Little's law (concurrent calls = calls a second x duration) this is a gradient of the duration: the
throughput falls where the duration grows faster than the number. Netflix's concurrency-limits
(Gradient2Limit) compares the duration with that of the past, and failsafe-go's adaptive limiter moreover asks
whether throughput and concurrent calls are correlated. A limit that goes down whenever the duration grows
would cost throughput where more concurrent calls are served faster in total, although each of them takes
longer. So here the throughput itself decides.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, fields
from typing import Literal, Self

from guardrails._util.checks import Faults, unknown_option

__all__ = ["Adaptive", "AdaptiveLimit"]

WINDOW = 1.0
"""Minimum seconds between two decisions."""

ENOUGH = 20
"""Minimum number of successes in a window. A window with fewer lasts longer."""

LONGEST_WINDOW = 10.0
"""Seconds after which a window ends with fewer calls."""

_LEAST_LOAD = 0.5
"""Minimum number of concurrent calls on average. A window with fewer is ignored."""

MEMORY = 60.0
"""Seconds after which a measurement counts for a third (1 / e) of a new one: the limit follows changes."""

OTHER_WORK = 2.0
"""If the same number of concurrent calls has so many times more or fewer successes, the calls do other work,
or the server has changed: all measurements are forgotten."""

_FORGOTTEN = 0.01
"""Seconds of measurement, after fading, below which nothing is known."""

TIE = 0.03
"""A number whose throughput is larger by a smaller fraction is no better: the limit stays."""

PROBE_EVERY = 8
"""While all usable slots are in use, every so many windows the next smaller or larger number is tried."""

SATURATED = 0.5
"""Share of a window in which all usable slots must be in use before another number is tried: else fewer
callers came than the limit lets in, and another limit would change nothing."""

_STEP = 5
"""The numbers that are measured and tried differ by this part of a number, a fifth, and at least by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """A number of slots that follows the throughput: for ``max_concurrent_calls`` of a guard.

    Attributes:
        minimum: The smallest limit.
        maximum: The largest limit, and the first one. None is the pool's capacity, for `guardrails.protect`.
        mode: ``"shadow"`` computes the limit, shows it and does not apply it; ``"enforce"`` applies it.

    Raises:
        ConfigurationError: One or more fields are wrong; the message names each of them.
    """

    minimum: int = 1
    maximum: int | None = None
    mode: Literal["enforce", "shadow"] = "shadow"

    def __new__(cls, *_: object, **options: object) -> Self:
        for name in options:
            if name not in cls.__dataclass_fields__:
                raise unknown_option("Adaptive", name, (field.name for field in fields(cls)))
        return object.__new__(cls)

    def __post_init__(self) -> None:
        faults = Faults("Adaptive")
        faults.count("minimum", self.minimum)
        least = max(1, self.minimum) if type(self.minimum) is int else 1
        faults.count("maximum", self.maximum, least=least, none=True)
        faults.choice("mode", self.mode, ("enforce", "shadow"))
        faults.raise_if_any()


class _Level:
    """The successes and the seconds measured at one number of concurrent calls. Both sums fade with time."""

    __slots__ = ("seconds", "served")

    def __init__(self) -> None:
        self.seconds = self.served = 0.0

    @property
    def throughput(self) -> float:
        """Calls that succeed in a second."""
        return self.served / self.seconds

    @property
    def at_least(self) -> float:
        """The throughput less the error of so few calls, if they end as irregularly as random calls do."""
        return self.throughput * (1 - 1 / math.sqrt(self.served)) if self.served > 1 else 0.0


class AdaptiveLimit:
    """The limit of one bulkhead.

    Attributes:
        limit: The number of concurrent calls that serves most, as far as is known.
        applied: The limit to apply now: ``limit``, or a number next to it that is tried.
        enforces: False if the limit is only computed.
        minimum: The smallest limit.
        decides_at: The time from which `decide` has something to do.
    """

    __slots__ = (
        "_area",
        "_busy",
        "_direction",
        "_last",
        "_learnt",
        "_levels",
        "_limit_at_resize",
        "_saturated_windows",
        "_served",
        "_since",
        "_sizes",
        "_slots",
        "applied",
        "decides_at",
        "enforces",
        "limit",
        "minimum",
    )

    def __init__(self, minimum: int, slots: int, *, enforces: bool) -> None:
        self.minimum = minimum
        self.enforces = enforces
        self.limit = self.applied = self._slots = self._limit_at_resize = slots
        self._learnt = math.inf  # without a maximum; infinity while nothing better than the maximum is known
        self._direction, self._saturated_windows = 1, 0
        self.resize(slots)
        self.decides_at = -math.inf  # so that the first `pass_time` begins a window

    def resize(self, slots: int) -> None:
        """Sets the largest limit. A limit that was the largest stays the largest.

        One that a smaller maximum has cut comes back with a larger one: the maximum of a fleet's worker moves
        all the time.
        """
        sizes = [slots]
        while sizes[-1] > 1:
            sizes.append(sizes[-1] - max(1, sizes[-1] // _STEP))
        self._sizes = sizes[::-1]
        if self.limit != self._limit_at_resize:  # it was decided since
            self._learnt = self.limit if self.limit < self._slots else math.inf
        self.limit = self.applied = self._limit_at_resize = int(min(slots, self._learnt))
        self._slots = slots
        self._levels: dict[int, _Level] = {}

    # --- measuring -----------------------------------------------------------------------------

    def restart(self, now: float, served: int) -> None:
        """Begins a new window without a decision. ``served`` calls have succeeded so far."""
        self._since = self._last = now
        self._served = served
        self._area = self._busy = 0.0
        self.decides_at = now + WINDOW

    def pass_time(self, now: float, running: int) -> None:
        """Notes that so many calls ran since the last time."""
        if self.decides_at == -math.inf:
            self.restart(now, 0)
        passed = now - self._last
        if passed > 0:
            self._area += running * passed
            if running >= self.applied:
                self._busy += passed
            self._last = now

    # --- deciding ------------------------------------------------------------------------------

    def decide(self, now: float, served: int, *, applies: bool, at_once: bool = False) -> None:
        """Computes the limit anew if the window has lasted long enough.

        Args:
            now: The time.
            served: The number of calls that have succeeded so far.
            applies: True if the limit is applied, so that another number may be tried.
            at_once: True to end the window now.
        """
        passed = now - self._since
        if passed <= 0 or (not at_once and served - self._served < ENOUGH and passed < LONGEST_WINDOW):
            return
        self._fade(math.exp(-passed / MEMORY))
        running, is_saturated = self._area / passed, self._busy >= SATURATED * passed
        seen = None
        if running >= _LEAST_LOAD and passed >= WINDOW / 2:
            seen = self._index(round(running))
            self._measure(seen, passed, served - self._served)
        before = self._index(self.limit)
        index = self._better(before)
        if applies and not at_once and index < before and index != seen:
            self.applied = self._size(index)  # for a window first: its measurements may be of other work
        else:
            self.limit = self.applied = self._size(index)
            if applies and is_saturated:
                self._try_next(index, index - before)
        self.restart(now, served)

    def _measure(self, index: int, seconds: float, served: int) -> None:
        level = self._levels.get(index)
        if level is not None:
            expected = level.throughput * seconds
            most, least = max(expected, served), min(expected, served)
            if most >= ENOUGH and most > OTHER_WORK * least:
                self._levels.clear()
        level = self._levels.setdefault(index, _Level())
        level.seconds += seconds
        level.served += served

    def _fade(self, factor: float) -> None:
        for index, level in list(self._levels.items()):
            level.seconds *= factor
            level.served *= factor
            if level.seconds < _FORGOTTEN:
                del self._levels[index]

    def _better(self, present: int) -> int:
        """The index of the number with the best throughput; ``present`` if no number is better than that one.

        A smaller number must be better beyond doubt. A larger number is tried as soon as it looks better: a
        window with it shows whether it is, and improves what is known of the present number.
        """
        levels = self._levels
        # If the limit was never reached, the largest number that was reached stands for it.
        known = max((index for index in levels if index <= present), default=None)
        if known is None:
            return present
        found, most = present, levels[known].throughput * (1 + TIE)
        for index, level in levels.items():
            if self._sizes[index] < self.minimum:
                continue
            served = level.throughput if index > present else level.at_least
            if served > most:
                found, most = index, served
        return found

    def _index(self, running: int) -> int:
        return min(bisect.bisect_left(self._sizes, running), len(self._sizes) - 1)

    def _size(self, index: int) -> int:
        size = self._sizes[min(max(0, index), len(self._sizes) - 1)]
        return min(self._slots, max(self.minimum, size))

    def _try_next(self, index: int, moved: int) -> None:
        """Applies the next smaller or larger number for a window, at once if the last try moved the limit."""
        if moved:
            self._direction = -1 if moved < 0 else 1
        elif self._saturated_windows % PROBE_EVERY == 0:
            self._direction = -self._direction
        if moved or self._saturated_windows % PROBE_EVERY == 0:
            if self._size(index + self._direction) == self.limit:
                self._direction = -self._direction
            self.applied = self._size(index + self._direction)
        self._saturated_windows += 1
