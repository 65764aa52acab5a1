"""Every exported metric in one table: exporters, dashboards and alert rules are made from it.

Depends on the figures of guards; must not import a monitoring system. The metrics of pools have the names of
OpenTelemetry's semantic conventions (1.44), where these have one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from guardrails._guard.guard import Guard
from guardrails._guard.metrics import FIGURES, SETS, Figure, Set, reading, sendable
from guardrails._guard.pool_snapshot import EXPORTED_BOUNDS, Distribution, PoolSnapshot
from guardrails._guard.snapshot import GuardSnapshot

__all__ = ["CLASSIC", "METRICS", "Metric", "Readings", "Value", "read_guards"]

Value = float | Distribution
"""The value of a series; a `Distribution` for a histogram."""

_Series = tuple[tuple[str, ...], Value]

_UNITS = {"s": "seconds", "1": "ratio"}


class Readings(NamedTuple):
    """The figures of guards at one moment.

    Attributes:
        sets: The snapshots of the guards and of the compartments, by the values of their labels.
    """

    sets: Mapping[Set, Mapping[tuple[str, ...], GuardSnapshot]]

    def pools(self) -> Iterator[tuple[str, PoolSnapshot]]:
        """Yields the name and the pool of each guard that has one."""
        for (name,), seen in self.sets[SETS[0]].items():
            if seen.pool is not None:
                yield name, seen.pool


def read_guards(guards: Iterable[Guard]) -> Readings:
    """Reads the figures of guards and of their compartments, each once."""
    every = list(guards)
    return Readings({which: reading(which, every) for which in SETS})


Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """One metric.

    Attributes:
        name: Its name with dots, as OpenTelemetry has it.
        kind: ``"counter"`` only grows; ``"gauge"`` is a state; ``"histogram"`` counts durations.
        unit: ``"s"`` for seconds, ``"1"`` for a ratio, a word in braces or nothing for a number of things.
        meaning: Its help text.
        labels: The names of its labels, with dots where OpenTelemetry has them.
        read: Yields the series: the values of the labels, and the value.
        across: The value for all processes of a service together in Prometheus: their sum or their maximum.
        bounds: The bounds of a histogram in seconds.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    labels: tuple[str, ...]
    read: Callable[[Readings], Iterable[_Series]]
    across: Literal["sum", "max"] = "sum"
    bounds: tuple[float, ...] = EXPORTED_BOUNDS

    @property
    def prometheus_name(self) -> str:
        """Its name in Prometheus, without the ``_total`` of a counter."""
        return "_".join(filter(None, (self.name.replace(".", "_"), _UNITS.get(self.unit))))

    @property
    def prometheus_labels(self) -> tuple[str, ...]:
        """The names of its labels in Prometheus."""
        return tuple(label.replace(".", "_") for label in self.labels)


def _of_set(which: Set, figure: Figure) -> Metric:
    def read(seen: Readings) -> Iterator[_Series]:
        for labels, snapshot in seen.sets[which].items():
            for value, number in figure.read(snapshot).items():
                yield (labels if figure.label is None else (*labels, value)), number

    return Metric(
        ".".join(filter(None, ("guardrails", which.prefix, figure.name))),
        figure.kind,
        figure.unit,
        figure.meaning,
        which.labels if figure.label is None else (*which.labels, figure.label),
        read,
        "max" if figure.unit else "sum",
    )


POOL_NAME = "db.client.connection.pool.name"
"""The label of a pool's metrics: the name of its guard."""


def _of_pools(value: Callable[[PoolSnapshot], Value | None]) -> Callable[[Readings], Iterator[_Series]]:
    def read(seen: Readings) -> Iterator[_Series]:
        for name, pool in seen.pools():
            number = value(pool)
            if number is not None:
                yield (name,), number

    return read


def _states(seen: Readings) -> Iterator[_Series]:
    for name, pool in seen.pools():
        yield (name, "used"), pool.in_use
        yield (name, "idle"), pool.idle


def _statements(seen: Readings) -> Iterator[_Series]:
    for name, pool in seen.pools():
        yield (pool.system, name), pool.use


def _of_routes(value: Callable[[Distribution], float], time: str) -> Callable[[Readings], Iterator[_Series]]:
    def read(seen: Readings) -> Iterator[_Series]:
        for name, pool in seen.pools():
            # Compartments of different compartments may have the same name; two series must not.
            sums: Counter[tuple[str, ...]] = Counter()
            for each in pool.routes:
                labels = name, sendable(each.compartment or ""), sendable(each.route or "")
                sums[labels] += value(getattr(each, time))  # type: ignore[assignment] # floats are counted, too
            yield from sums.items()

    return read


def _pool(kind: Kind, name: str, unit: str, meaning: str, field: str) -> Metric:
    return Metric(name, kind, unit, meaning, (POOL_NAME,), _of_pools(lambda pool: getattr(pool, field)))


def _route(name: str, unit: str, meaning: str, time: str) -> Metric:
    value: Callable[[Distribution], float] = (lambda it: it.sum) if unit == "s" else (lambda it: it.count)
    labels = (POOL_NAME, "compartment", "route")
    return Metric(f"guardrails.pool_route_{name}", "counter", unit, meaning, labels, _of_routes(value, time))


_CONNECTION, _REQUEST = "{connection}", "{request}"

_POOLS = (
    Metric(
        "db.client.connection.count",
        "gauge",
        _CONNECTION,
        "Open connections: used are checked out, idle wait in the pool.",
        (POOL_NAME, "db.client.connection.state"),
        _states,
    ),
    _pool(
        "gauge",
        "db.client.connection.max",
        _CONNECTION,
        "Connections that the guard lets out at the same time.",
        "capacity",
    ),
    _pool(
        "gauge",
        "db.client.connection.idle.max",
        _CONNECTION,
        "Connections that the pool keeps when idle; absent without a limit.",
        "pool_size",
    ),
    _pool(
        "gauge",
        "db.client.connection.pending_requests",
        _REQUEST,
        "Callers that queue for a connection.",
        "waiting",
    ),
    _pool(
        "counter",
        "db.client.connection.timeouts",
        "{timeout}",
        "Callers that queued and got no connection in time.",
        "timeouts",
    ),
    _pool("histogram", "db.client.connection.create_time", "s", "Time of opening a connection.", "connect"),
    _pool(
        "histogram",
        "db.client.connection.wait_time",
        "s",
        "Time from asking for a connection to having it.",
        "wait",
    ),
    _pool(
        "histogram",
        "db.client.connection.use_time",
        "s",
        "Time from having a connection to its return.",
        "hold",
    ),
    Metric(
        "db.client.operation.duration",
        "histogram",
        "s",
        "Time of a statement or command.",
        ("db.system.name", POOL_NAME),
        _statements,
    ),
    _pool(
        "gauge",
        "guardrails.pool_overflow",
        _CONNECTION,
        "Open connections beyond the pool's size.",
        "overflow",
    ),
    _pool("counter", "guardrails.pool_checkouts", _CONNECTION, "Connections handed out.", "checkouts"),
    _pool(
        "counter", "guardrails.pool_waits", _REQUEST, "Times that a caller queued for a connection.", "waits"
    ),
    _pool(
        "counter",
        "guardrails.pool_exhausted",
        _REQUEST,
        "Callers refused because no connection was free, those that queued in vain included.",
        "exhausted",
    ),
    _pool("counter", "guardrails.pool_opened", _CONNECTION, "Connections opened.", "opened"),
    _pool("counter", "guardrails.pool_closed", _CONNECTION, "Connections closed.", "closed"),
    _pool(
        "counter",
        "guardrails.pool_invalidated",
        _CONNECTION,
        "Connections given up because they failed or their work was stopped.",
        "invalidated",
    ),
    _route("checkouts", "", "Connections handed out, by compartment and route.", "wait"),
    _route("wait", "s", "Time that callers waited for connections, by compartment and route.", "wait"),
    _route("hold", "s", "Time that connections were checked out, by compartment and route.", "hold"),
    _route("use", "s", "Time of statements and commands, by compartment and route.", "use"),
)


def _lease(
    name: str, meaning: str, field: str, *, unit: str = _CONNECTION, across: Literal["sum", "max"] = "sum"
) -> Metric:
    def read(seen: Readings) -> Iterator[_Series]:
        for guard, pool in seen.pools():
            if pool.lease is not None:
                yield (guard, pool.lease.budget), float(getattr(pool.lease, field))

    return Metric(f"guardrails.fleet_{name}", "gauge", unit, meaning, (POOL_NAME, "budget"), read, across)


_LEASES = (
    _lease("limit", "Connections that the pool may have open by its lease.", "limit"),
    _lease("safe_share", "Connections that the pool keeps without contact.", "safe_share"),
    _lease("wants", "Connections that the pool could use.", "wants"),
    _lease("in_contact", "Pools whose lease can be renewed.", "in_contact", unit="{pool}"),
    _lease("budget", "Connections that all workers may have open.", "connections", across="max"),
    _lease("workers", "Workers that the store knows.", "workers", unit="{worker}", across="max"),
)

METRICS: tuple[Metric, ...] = (
    *(_of_set(which, figure) for which in SETS for figure in FIGURES),
    *_POOLS,
    *_LEASES,
)
"""Every metric, those of pools and leases last."""


def _classic(kind: Kind, name: str, unit: str, meaning: str, field: str) -> Metric:
    return Metric(name, kind, unit, meaning, ("pool_name",), _of_pools(lambda pool: getattr(pool, field)))


CLASSIC: tuple[Metric, ...] = (
    _classic("gauge", "db_pool_open_connections", "", "Open connections.", "open"),
    _classic("gauge", "db_pool_in_use_connections", "", "Connections that are checked out.", "in_use"),
    _classic("gauge", "db_pool_idle_connections", "", "Connections that wait in the pool.", "idle"),
    _classic("counter", "db_pool_wait", "", "Times that a caller queued for a connection.", "waits"),
    _classic(
        "histogram", "db_pool_wait_duration", "s", "Time from asking for a connection to having it.", "wait"
    ),
    _classic(
        "histogram",
        "db_connection_hold_duration",
        "s",
        "Time from having a connection to its return.",
        "hold",
    ),
    _classic(
        "counter", "db_pool_exhausted", "", "Callers refused because no connection was free.", "exhausted"
    ),
)
"""The names that many services already chart, with the label ``pool_name``."""
