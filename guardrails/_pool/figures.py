"""Counts and times the checkouts of one pool. Depends on the guard; must not import a pool or a driver."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from guardrails._guard.guard import Guard, attachment_of
from guardrails._guard.pool_snapshot import Distribution, LeaseSnapshot, PoolSnapshot, RouteFigures
from guardrails._pool.checkout import HeldCheckout
from guardrails._pool.route_times import BATCH, LONGEST, Durations, RouteTimes, count_since
from guardrails._runtime.fork import ForkedLock

__all__ = ["MOST_ROUTES", "OTHER", "Connections", "PoolFigures"]

MOST_ROUTES = 128
"""Pairs of compartment and route whose times are kept apart. All others are counted together."""

OTHER = "other"
"""The route under which the times beyond `MOST_ROUTES` are counted."""

_count_lock = ForkedLock()
"""Held for the rare counts of a pool, such as connections opened."""


class Connections(NamedTuple):
    """The open connections of a pool now.

    Attributes:
        in_use: Those that are checked out.
        idle: Those that wait in the pool.
        pool_size: Number of connections that the pool keeps when idle; None for none or any number.
    """

    in_use: int
    idle: int
    pool_size: int | None = None


class PoolFigures:
    """The figures of one guarded pool.

    Args:
        guard: The pool's guard.
        system: See below.

    Attributes:
        clock: The guard's clock.
        connections: Counts the open connections of the pool; the pool's admission sets it.
        lease: Returns its part of a fleet's budget; None without a fleet.
        system: The kind of server, by OpenTelemetry's ``db.system.name``.
    """

    def __init__(self, guard: Guard, system: str) -> None:
        self._guard = guard
        self.system = system
        self._gate = guard.call_settings.gates[0]
        self.clock = self._gate.clock
        self.connections: Callable[[], Connections] = lambda: Connections(0, 0)
        self.lease: Callable[[], LeaseSnapshot] | None = None
        self._lock = ForkedLock()
        self._without_route: dict[Guard, RouteTimes] = {guard: self._times()}
        self._of_route: dict[tuple[Guard, str], RouteTimes] = {}
        self._connect = Durations(self._lock)
        self._opened = self._closed = self._invalidated = self._timeouts = 0

    def handed_out(self, checkout: HeldCheckout) -> None:
        """Counts a checkout whose caller gets its connection now; raises nothing, as `count_since`."""
        keeper, guard = checkout.request_ref, checkout.guard
        request = None if keeper is None else keeper()
        try:
            if request is None:
                times = self._without_route.get(guard)
            else:
                name = checkout.route_name = request.name or request.find_name()
                times = self._of_route.get((guard, name or ""))
            now = self.clock()
            seconds = now - checkout.asked + 0.0  # raises for a reading that is not a number
            if times is None:
                times = self._new_times(checkout)
            checkout.times, checkout.since = times, now
            pending = times.wait.pending
            pending.append(seconds if 0.0 <= seconds < LONGEST else 0.0)
            if len(pending) >= BATCH:
                times.wait.sort()
        except Exception:  # noqa: BLE001, S110 - likewise
            pass

    def expect_wait(self, checkout: HeldCheckout) -> bool:
        """Lets a checkout in shadow that waits for its pool leave the model after its usual time.

        Returns:
            True if it stays there: such calls hang, so enforcing it would have a connection and hang on it.
        """
        attachment = attachment_of(self._guard) if (core := self._gate.core).mode == "shadow" else None
        most = None if attachment is None else attachment.most
        if most is None or core.under_way <= most:
            return False
        request, guard = checkout.request, checkout.guard
        name = None if request is None else request.name or request.find_name() or ""
        times = self._without_route.get(guard) if name is None else self._of_route.get((guard, name))
        if times is not None and times.hangs:
            return True
        seconds = 0.0 if times is None else times.hold.recent()
        for gate, slot in checkout.slots if seconds else ():
            gate.step(gate.core.end_early, slot, seconds, checkout)
        return False

    def returned(self, checkout: HeldCheckout) -> None:
        """Counts the return of a connection, once."""
        times = checkout.times
        if times is not None:
            checkout.times = None
            count_since(checkout.since, self.clock, times.hold)
            if times.overtime:
                self._note_ending(times, checkout)

    def _note_ending(self, times: RouteTimes, checkout: HeldCheckout) -> None:
        limit = checkout.guard.timeout
        with suppress(Exception):  # the user's clock raised
            if limit is None or self.clock() - checkout.since < limit:
                times.ended_in_time()

    def connected(self, started: float) -> None:
        """Counts a connection whose opening began at ``started`` on the guard's clock."""
        with _count_lock:
            self._opened += 1
        count_since(started, self.clock, self._connect)

    def _times(self) -> RouteTimes:
        return RouteTimes(self.clock, self._lock)

    def _new_times(self, checkout: HeldCheckout) -> RouteTimes:
        """The times of a new pair of compartment and route; those of `OTHER` beyond the limit."""
        guard, route = checkout.guard, checkout.route_name
        with self._lock:
            if len(self._of_route) + len(self._without_route) >= MOST_ROUTES:
                return self._of_route.setdefault((self._guard, OTHER), self._times())
            if route is None:
                times = self._without_route.setdefault(guard, self._times())
                if checkout.request is not None:
                    self._of_route[guard, ""] = times
                return times
            return self._of_route.setdefault((guard, route), self._times())

    # --- the rare events ---------------------------------------------------------------------------

    def closed(self, *, invalidated: bool = False) -> None:
        """Counts a connection that was closed.

        Args:
            invalidated: True if it had failed, or its work was stopped.
        """
        with _count_lock:
            self._closed += 1
            self._invalidated += invalidated

    def invalidated(self) -> None:
        """Counts a connection that must not be used again; its closing is counted by itself."""
        with _count_lock:
            self._invalidated += 1

    def timed_out(self) -> None:
        """Counts a caller for whom the pool behind the guard had no connection in time."""
        with _count_lock:
            self._timeouts += 1

    # --- reading -----------------------------------------------------------------------------------

    def snapshot(self) -> PoolSnapshot:
        """Returns the figures of this moment."""
        gates = [gate.core for gate in self._gate.report.gates.living()]
        bulkheads = [core.bulkhead for core in gates]
        refused = sum(core.rejected.get(reason, 0) for core in gates for reason in ("bulkhead_full", "shed"))
        timeouts = self._timeouts + sum(slots.timeouts for slots in bulkheads)
        routes = self._routes()
        wait, hold, use = (
            Distribution.total(getattr(each, kind) for each in routes) for kind in ("wait", "hold", "use")
        )
        in_use, idle, pool_size = self.connections()
        return PoolSnapshot(
            system=self.system,
            open=in_use + idle,
            in_use=in_use,
            idle=idle,
            overflow=0 if pool_size is None else max(0, in_use + idle - pool_size),
            capacity=self._gate.core.bulkhead.limit,
            pool_size=pool_size,
            waiting=sum(len(slots.queue) for slots in bulkheads),
            checkouts=wait.count,
            waits=sum(slots.waits for slots in bulkheads),
            timeouts=timeouts,
            exhausted=timeouts + refused,
            opened=self._opened,
            closed=self._closed,
            invalidated=self._invalidated,
            wait=wait,
            hold=hold,
            use=use,
            connect=self._connect.read(),
            routes=tuple(routes),
            lease=None if self.lease is None else self.lease(),
        )

    def _routes(self) -> list[RouteFigures]:
        with self._lock:
            known: dict[int, tuple[Guard, str | None, RouteTimes]] = {
                id(times): (guard, None, times) for guard, times in self._without_route.items()
            }
            for (guard, route), times in self._of_route.items():
                known.setdefault(id(times), (guard, route, times))
        return [
            RouteFigures(
                compartment=None if guard is self._guard else guard.name,
                route=route,
                wait=times.wait.read(),
                hold=times.hold.read(),
                use=times.use.read(),
            )
            for guard, route, times in known.values()
        ]
