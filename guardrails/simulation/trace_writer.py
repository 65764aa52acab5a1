"""Writes a trace from a running service. Depends on the format of traces; must not import guards."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

from guardrails._util.checks import Faults
from guardrails.errors import ConfigurationError
from guardrails.simulation.trace import COLUMNS, OUTCOMES

__all__ = ["TraceWriter"]


class TraceWriter:
    """Writes a trace from a running service, for ``guardrails simulate``.

    ::

        trace = TraceWriter("/var/tmp/orders.csv")

        with trace.call("GET /orders/{id}"):    # around what holds a connection
            ...

    Threads and asyncio tasks may share one. Rows are kept in memory and written once a second, with the call
    that ends then. If the file cannot be written, later calls are not recorded, `error` says why, and no call
    fails.

    Args:
        path: The file; it is created, or appended to if it is a trace already.

    Raises:
        OSError: The file cannot be opened.
        ConfigurationError: The file exists and is no trace.

    Attributes:
        error: Why nothing is recorded any more; None while all is well.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.error: OSError | None = None
        self._lock = threading.Lock()
        # A route may hold what is no text, such as bytes of a path. `close` closes the file.
        self._file: IO[str] | None = Path(path).open(  # noqa: SIM115
            "a+", encoding="utf-8", errors="backslashreplace", newline=""
        )
        self._file.seek(0)
        head = self._file.readline(1000)
        self._file.seek(0, io.SEEK_END)
        if not head:
            csv.writer(self._file).writerow(COLUMNS)
            self._file.flush()  # otherwise a process that starts meanwhile, or is forked, writes it again
        elif head.strip() != ",".join(COLUMNS):
            self._file.close()
            raise ConfigurationError(f"the first line of the file must be {','.join(COLUMNS)}")
        self._written = time.monotonic()
        self._rows: list[tuple[str, str, str, str]] = []

    def add(self, moment: float, route: str, duration: float, outcome: str = "success") -> None:
        """Adds one call.

        Args:
            moment: When it came, in seconds since 1970.
            route: Its workload: the template of its route, or the name of a function.
            duration: Seconds for which it held a connection.
            outcome: ``"success"``, ``"failure"`` (it is evidence against the dependency), ``"abandoned"``
                or ``"neutral"`` (it is no evidence).

        Raises:
            ConfigurationError: The outcome is none of these.
        """
        if outcome not in OUTCOMES:
            faults = Faults("trace")
            faults.add("outcome", outcome, f"one of {', '.join(OUTCOMES)}")
            faults.raise_if_any()
        with self._lock:
            if self._file is None:
                return
            self._rows.append((f"{moment:.6f}", route, f"{max(0.0, duration):.6f}", outcome))
            if time.monotonic() - self._written >= 1.0:
                self._flush()

    @contextlib.contextmanager
    def call(self, route: str) -> Iterator[None]:
        """Records the block as one call. An ``Exception`` is a failure; a cancellation is abandoned."""
        moment, start, outcome = time.time(), time.perf_counter(), "abandoned"
        try:
            yield
        except Exception:
            outcome = "failure"
            raise
        else:
            outcome = "success"
        finally:
            self.add(moment, route, time.perf_counter() - start, outcome)

    def close(self) -> None:
        """Writes what is in memory and closes the file. Harmless when called again."""
        with self._lock:
            self._flush()
            if self._file is not None:
                file, self._file = self._file, None
                try:
                    file.close()
                except OSError as error:
                    self.error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flush(self) -> None:
        rows, self._rows, self._written = self._rows, [], time.monotonic()
        if self._file is None:
            return
        try:
            csv.writer(self._file).writerows(rows)
            self._file.flush()
        except OSError as error:
            self.error = error
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                file.close()
