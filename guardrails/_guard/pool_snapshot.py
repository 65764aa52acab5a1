"""The figures of a guard's pool at one moment, as plain numbers. Must not import a pool."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate, pairwise
from math import nextafter

__all__ = ["BOUNDS", "EXPORTED_BOUNDS", "Distribution", "LeaseSnapshot", "PoolSnapshot", "RouteFigures"]

EXPORTED_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Seconds. OpenTelemetry's bounds for ``db.client.operation.duration``. Each of them is one of `BOUNDS`."""

BOUNDS = (
    *(round(first * 10.0**power, 7) for power in range(-5, 2) for first in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    100.0,
)
"""Upper bounds of the buckets in seconds. A percentile is off by a quarter at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """How long something took, by bucket.

    Attributes:
        counts: Number of durations in each bucket: up to each of `BOUNDS`, and above the last one.
        sum: The total of all durations in seconds.
    """

    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    sum: float = 0.0

    @property
    def count(self) -> int:
        """The number of durations."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """The average in seconds; None without a duration."""
        count = self.count
        return self.sum / count if count else None

    def quantile(self, share: float) -> float | None:
        """Returns an estimate of the seconds within which this share of the durations lies; None without any.

        Args:
            share: Above 0 and at most 1, such as 0.99.
        """
        wanted, below = share * self.count, 0
        for index, count in enumerate(self.counts):
            if count and below + count >= wanted:
                if index == len(BOUNDS):
                    return BOUNDS[-1]
                least = BOUNDS[index - 1] if index else 0.0
                return least + (BOUNDS[index] - least) * (wanted - below) / count
            below += count
        return None

    def buckets(self, bounds: Sequence[float] = EXPORTED_BOUNDS) -> list[int]:
        """Returns the numbers of durations in coarser buckets, and at the end those above the last bound.

        Args:
            bounds: Some of `BOUNDS`, in rising order.
        """
        ends = (0, *(bisect_right(BOUNDS, bound) for bound in bounds), len(self.counts))
        return [sum(self.counts[start:end]) for start, end in pairwise(ends)]

    def cumulative(self, bounds: Sequence[float] = EXPORTED_BOUNDS) -> list[int]:
        """Returns the number of durations up to each bound, and then of all, as Prometheus counts them."""
        return list(accumulate(self.buckets(bounds)))

    def values(self) -> Iterator[tuple[float, int]]:
        """Yields for each bucket one duration and how often to count it. The sum stays the same.

        For exporters that take single durations only.
        """
        edges = (0.0, *BOUNDS, 2 * BOUNDS[-1])
        ranges = [
            (low, high, count)
            for (low, high), count in zip(pairwise(edges), self.counts, strict=True)
            if count
        ]
        least = sum(low * count for low, _, count in ranges)
        most = sum(high * count for _, high, count in ranges)
        # Each duration is placed at the same fraction of its bucket, the one that gives the right sum.
        share = (self.sum - least) / (most - least) if most > least else 0.0
        for low, high, count in ranges:
            seconds = low + (high - low) * share
            above = max(seconds, nextafter(low, high))  # a bound belongs to the bucket below it
            yield (above if high > BOUNDS[-1] else min(above, high)), count

    def __sub__(self, earlier: Distribution) -> Distribution:
        """Returns the durations since an earlier moment."""
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return Distribution(counts=counts, sum=self.sum - earlier.sum)

    @classmethod
    def total(cls, parts: Iterable[Distribution]) -> Distribution:
        """Returns the durations of several distributions together."""
        every = list(parts)
        if not every:
            return cls()
        counts = tuple(map(sum, zip(*(each.counts for each in every), strict=True)))
        return cls(counts=counts, sum=sum(each.sum for each in every))

    def summary(self) -> dict[str, object]:
        """Returns the fields for a JSON page."""
        return {
            "count": self.count,
            "sum": self.sum,
            "p50": self.quantile(0.5),
            "p99": self.quantile(0.99),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFigures:
    """The checkouts of one compartment and one route.

    Attributes:
        compartment: The name of the compartment; None for the guard itself.
        route: The template of the route, under the middleware; else None. ``"other"`` for all
            beyond the first 128 pairs of compartment and route.
        wait: As in `PoolSnapshot`.
        hold: As in `PoolSnapshot`.
        use: As in `PoolSnapshot`.
    """

    compartment: str | None
    route: str | None
    wait: Distribution
    hold: Distribution
    use: Distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSnapshot:
    """A pool's part of a fleet's budget.

    Attributes:
        budget: The name of the budget.
        connections: Open connections that all workers may have together, as the store last said.
        workers: Number of workers known to the store.
        limit: Connections that this pool may have open now.
        safe_share: Connections that it keeps without contact to the store.
        wants: Connections that it could use.
        in_contact: False while the lease cannot be renewed.
    """

    budget: str
    connections: int
    workers: int
    limit: int
    safe_share: int
    wants: int
    in_contact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot:
    """The connections of one pool. A figure means the same for each kind of pool.

    Attributes:
        system: The kind of server, by OpenTelemetry's ``db.system.name``, such as ``"postgresql"``.
        open: Connections that are open: ``in_use + idle``. One that is being opened is not among them yet.
        in_use: Open connections that are checked out.
        idle: Open connections that wait in the pool.
        overflow: Open connections beyond those that the pool keeps when idle; 0 for a pool that keeps all.
        capacity: Connections that the guard lets out at the same time.
        pool_size: Connections that the pool keeps when idle; None for a pool that keeps none or any number.
        waiting: Callers that queue for a connection now.
        checkouts: Connections handed out. This and all that follows counts from the attaching of the guard.
        waits: Times that a caller had to queue for a connection.
        timeouts: Callers that queued and got none in time.
        exhausted: Callers that were refused because no connection was free, ``timeouts`` included.
        opened: Connections opened.
        closed: Connections closed.
        invalidated: Closed connections that had failed or whose work had been stopped.
        wait: Seconds from asking for a connection to having it, open and checked.
        hold: Seconds from having a connection to its return.
        use: Seconds of each statement or command.
        connect: Seconds of opening a connection.
        routes: The same times by compartment and route.
        lease: Its part of a fleet's budget; None without a fleet.
    """

    system: str
    open: int
    in_use: int
    idle: int
    overflow: int
    capacity: int
    pool_size: int | None
    waiting: int
    checkouts: int
    waits: int
    timeouts: int
    exhausted: int
    opened: int
    closed: int
    invalidated: int
    wait: Distribution
    hold: Distribution
    use: Distribution
    connect: Distribution
    routes: tuple[RouteFigures, ...]
    lease: LeaseSnapshot | None = None

    def summary(self) -> dict[str, object]:
        """Returns the fields for a JSON page."""
        shown: dict[str, object] = {}
        for field in fields(PoolSnapshot):
            value = getattr(self, field.name)
            if isinstance(value, Distribution):
                bounds = [*map(str, EXPORTED_BOUNDS), "+Inf"]
                buckets = dict(zip(bounds, value.cumulative(), strict=True))
                value = {**value.summary(), "buckets": buckets}
            elif isinstance(value, LeaseSnapshot):
                value = asdict(value)
            shown[field.name] = value
        shown["routes"] = [
            {"compartment": compartment, "route": route}
            | {
                kind: Distribution.total(getattr(each, kind) for each in those).summary()
                for kind in ("wait", "hold", "use")
            }
            for (compartment, route), those in _by_compartment(self.routes).items()
        ]
        return shown


def _by_compartment(
    routes: Sequence[RouteFigures],
) -> dict[tuple[str | None, str | None], list[RouteFigures]]:
    """Groups a route's calls from before its own compartment formed with those inside it.

    The metrics keep them apart, because a counter never falls.
    """
    formed = {each.route for each in routes if each.route is not None and each.compartment == each.route}
    found: dict[tuple[str | None, str | None], list[RouteFigures]] = {}
    for each in routes:
        is_early = each.compartment is None and each.route in formed
        found.setdefault((each.route if is_early else each.compartment, each.route), []).append(each)
    return found
