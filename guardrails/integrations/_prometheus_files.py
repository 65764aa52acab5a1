"""Writes the figures of guards to the files of prometheus-client's multiprocess mode.

Depends on prometheus-client's metrics; must not collect. Each process of a service writes its own files, and
a scrape of any of them reads all. A thread writes once a second; a guarded call writes nothing.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from guardrails._guard.guard import Guard
from guardrails._guard.metric_table import Metric, Value, read_guards
from guardrails._guard.pool_snapshot import Distribution
from guardrails._runtime.fork import ForkedLock, in_child
from guardrails._runtime.housekeeper import run_later
from guardrails._util.weak_registry import WeakRegistry

__all__ = ["INTERVAL", "keep_written", "write"]

INTERVAL = 1.0
"""Seconds between two writes."""

_GAUGE_MODES = {"sum": "livesum", "max": "livemax"}
"""Over the processes that live: the files of one that was killed are removed by ``mark_process_dead``."""


class _BulkHistogram(Histogram):
    """A histogram that takes many durations at once, of which only the buckets and the sum are known."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Adds durations, by the number of them in each bucket."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


class _Files:
    """The metrics of this process, each guard's once, however many collectors there are."""

    def __init__(self) -> None:
        self._guards: WeakRegistry[Guard] = WeakRegistry()
        self._metrics: dict[Metric, Any] = {}
        self._written: dict[tuple[str, tuple[str, ...]], Value] = {}
        self._lock = ForkedLock()
        self._scheduled = False

    def add(self, guards: Iterable[Guard], metrics: Iterable[Metric]) -> None:
        """Writes the metrics of these guards, too, from now on."""
        with self._lock:
            for guard in guards:
                self._guards.add(guard)
            for metric in metrics:
                if metric not in self._metrics:
                    self._metrics[metric] = _made(metric)
        self.write()
        self._schedule()

    def write(self) -> float:
        """Writes what has changed. Returns the seconds until the next write."""
        with self._lock:
            seen = read_guards(filter(_was_asked, self._guards.living()))
            for metric, made in self._metrics.items():
                for labels, value in metric.read(seen):
                    self._write(metric, made.labels(*labels), (metric.name, labels), value)
        return INTERVAL

    def _write(self, metric: Metric, series: Any, key: tuple[str, tuple[str, ...]], value: Value) -> None:
        before = self._written.get(key)
        if isinstance(value, Distribution):
            new = (
                value - before if isinstance(before, Distribution) and before.count <= value.count else value
            )
            if new.count or before is None:
                series.add(new.buckets(metric.bounds), new.sum)
        elif metric.kind == "gauge":
            series.set(value)
        else:
            last = before if isinstance(before, int | float) and before <= value else 0
            if value > last or before is None:
                series.inc(value - last)
        self._written[key] = value

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            run_later(self.write, INTERVAL)

    def restart(self) -> None:
        """Continues in a child process, with files of its own and without what the parent has counted."""
        if self._scheduled:
            self._scheduled = False
            seen = read_guards(self._guards.living())
            for metric in self._metrics:
                if metric.kind != "gauge":
                    for labels, value in metric.read(seen):
                        self._written[metric.name, labels] = value
            self._schedule()


def _was_asked(guard: Guard) -> bool:
    """True if the guard was asked in this process, which is not so in one that only starts workers."""
    core = guard.call_settings.gates[0].core
    return bool(core.admitted or core.rejected)


def _made(metric: Metric) -> Any:
    name, labels = metric.prometheus_name, metric.prometheus_labels
    if metric.kind == "counter":
        return Counter(name, metric.meaning, labels, registry=None)
    if metric.kind == "gauge":
        mode: Any = _GAUGE_MODES[metric.across]
        return Gauge(name, metric.meaning, labels, registry=None, multiprocess_mode=mode)
    return _BulkHistogram(name, metric.meaning, labels, registry=None, buckets=metric.bounds)


_files = _Files()
keep_written, write = _files.add, _files.write

in_child(_files.restart)
atexit.register(write)
