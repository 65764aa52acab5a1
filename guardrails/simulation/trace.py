"""A trace of calls: a file that says when each call came, how long it took and how it ended.

Depends on outcomes and errors; must not import guards.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import itertools
import math
import os
import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from guardrails._core.outcome import Outcome
from guardrails._util.checks import Faults, shown
from guardrails.errors import ConfigurationError

__all__ = ["COLUMNS", "OUTCOMES", "Trace", "read_trace"]

COLUMNS = ("moment", "route", "duration", "outcome")
"""The columns of a trace. More columns are ignored, and the order is free."""

OUTCOMES = {outcome.name.lower(): outcome for outcome in Outcome}
"""The values of the last column."""

_LONGEST = 1e6
"""Longest duration of a call in seconds."""

_LATEST = 1e11
_MOST_ROUTES = 10_000
_MOST_FAULTS = 5
"""Wrong rows that are named before reading ends."""

_EPOCH_FROM = 1e8
"""A moment from which on it is a time of the calendar; before, it is a number of seconds from some start."""


class Trace:
    """The calls of a trace in the order of their moments, kept in columns.

    Attributes:
        start: The first moment, in seconds since 1970 or since the start of whatever wrote it.
        moments: Seconds since ``start`` at which each call came.
        durations: Seconds for which each call held a connection.
        outcomes: The `Outcome` of each call.
        routes: The index of each call's route in ``names``.
        names: The routes.
    """

    def __init__(self, rows: Iterable[tuple[float, str, float, Outcome]]) -> None:
        moments, durations = array("d"), array("d")
        outcomes, routes = array("b"), array("i")
        known: dict[str, int] = {}
        for moment, route, duration, outcome in rows:
            moments.append(moment)
            durations.append(duration)
            outcomes.append(outcome)
            routes.append(known.setdefault(route, len(known)))
        if any(a > b for a, b in itertools.pairwise(moments)):
            order = sorted(range(len(moments)), key=moments.__getitem__)
            moments, durations = (array("d", map(col.__getitem__, order)) for col in (moments, durations))
            outcomes = array("b", map(outcomes.__getitem__, order))
            routes = array("i", map(routes.__getitem__, order))
        self.start = moments[0] if moments else 0.0
        self.moments: Sequence[float] = array("d", [moment - self.start for moment in moments])
        self.durations: Sequence[float] = durations
        self.outcomes: Sequence[int] = outcomes
        self.routes: Sequence[int] = routes
        self.names = list(known)

    def __len__(self) -> int:
        return len(self.moments)

    @property
    def seconds(self) -> float:
        """Seconds from the first call to the end of the last one."""
        ends = (a + b for a, b in zip(self.moments, self.durations, strict=True))
        return max(ends, default=0.0)

    def count(self) -> Counter[str]:
        """The number of calls by outcome."""
        counts = Counter(self.outcomes)
        return Counter({Outcome(value).name.lower(): count for value, count in counts.items()})

    def highest(self) -> int:
        """The largest number of calls under way at once."""
        ends = sorted(a + b for a, b in zip(self.moments, self.durations, strict=True))
        most = ended = 0
        for begun, moment in enumerate(self.moments, 1):
            while ended < begun - 1 and ends[ended] <= moment:
                ended += 1
            most = max(most, begun - ended)
        return most

    def when(self, seconds: float) -> str:
        """Words for a moment that is so many seconds after the start: UTC, or seconds."""
        if self.start >= _EPOCH_FROM:
            return datetime.fromtimestamp(self.start + seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
        return f"{self.start + seconds:.1f} s"


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Reads a trace.

    Args:
        path: A CSV file with the columns `COLUMNS`; packed with gzip if its name ends in ``.gz``. ``-`` is
            standard input.

    Raises:
        ConfigurationError: A row is wrong. It names the line, the column, the value and what is allowed.
        OSError: The file cannot be read.
    """
    with _opened(os.fspath(path)) as file:
        try:
            trace = Trace(_rows(file))
        except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ConfigurationError(f"trace: this is no CSV file in UTF-8 ({error})") from None
    if not len(trace):
        raise ConfigurationError("trace: there are no calls in it")
    return trace


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[str]]:
    if path == "-":
        yield sys.stdin
    elif path.endswith(".gz"):
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    else:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            yield file


def _rows(file: IO[str]) -> Iterator[tuple[float, str, float, Outcome]]:
    reader = csv.reader(file)
    head = next(reader, [])
    places = _places(head)
    at_moment, at_route, at_duration, at_outcome = places
    needed, routes, wrong = max(places) + 1, set[str](), list[str]()
    for row in reader:
        try:
            moment, duration = float(row[at_moment]), float(row[at_duration])
            route, outcome = row[at_route], OUTCOMES[row[at_outcome]]
            fine = 0 <= duration <= _LONGEST and -_LATEST <= moment <= _LATEST
        except (ValueError, KeyError, IndexError):
            fine, moment, duration, route, outcome = False, 0.0, 0.0, "", Outcome.SUCCESS
        if not fine:
            if not row or row == head:  # two processes that began the file at the same time
                continue
            found = _read_slowly(row, places, needed, reader.line_num, wrong)
            if found is None:
                continue
            moment, route, duration, outcome = found
        if route not in routes:
            routes.add(route)
            if len(routes) > _MOST_ROUTES:
                raise ConfigurationError(
                    f"trace: there are more than {_MOST_ROUTES} routes; give the template of a route, "
                    "such as GET /orders/{id}, and not its path"
                )
        yield moment, route, duration, outcome
    if wrong:
        _raise(wrong)


def _places(head: Sequence[str]) -> tuple[int, int, int, int]:
    """The places of the columns in a row."""
    names = [name.strip().lower() for name in head]
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise ConfigurationError(
            f"trace line 1: the header must name the columns {', '.join(COLUMNS)}; "
            f"missing: {', '.join(missing)}, got {shown(','.join(head))}"
        )
    moment, route, duration, outcome = map(names.index, COLUMNS)
    return moment, route, duration, outcome


def _read_slowly(
    row: Sequence[str], places: Sequence[int], needed: int, line: int, wrong: list[str]
) -> tuple[float, str, float, Outcome] | None:
    """Reads a row that is not in the usual form; None if it is wrong, which is noted in ``wrong``."""
    faults = Faults(f"trace line {line}")
    if len(row) < needed:
        faults.add("row", f"{len(row)} values", f"at least {needed} values, as the header has")
    else:
        moment = _moment(row[places[0]])
        if moment is None:
            faults.add(
                "moment", row[places[0]], "a number of seconds, or a time such as 2026-11-30T02:14:07Z"
            )
        try:
            duration = float(row[places[2]])
        except ValueError:
            duration = math.nan
        if not 0 <= duration <= _LONGEST:
            faults.add("duration", row[places[2]], f"a number of seconds from 0 to {_LONGEST:g}")
        outcome = OUTCOMES.get(row[places[3]].strip().lower())
        if outcome is None:
            faults.add("outcome", row[places[3]], f"one of {', '.join(OUTCOMES)}")
        elif moment is not None and 0 <= duration <= _LONGEST:
            return moment, row[places[1]], duration, outcome
    try:
        faults.raise_if_any()
    except ConfigurationError as error:
        wrong.append(str(error))
    if len(wrong) > _MOST_FAULTS:
        _raise(wrong)
    return None


def _raise(wrong: Sequence[str]) -> None:
    more = "\nand more" if len(wrong) > _MOST_FAULTS else ""
    raise ConfigurationError("\n".join(wrong[:_MOST_FAULTS]) + more)


def _moment(text: str) -> float | None:
    try:
        moment = float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text.strip())
        except ValueError:
            return None
        moment = when.replace(tzinfo=when.tzinfo or UTC).timestamp()
    return moment if -_LATEST <= moment <= _LATEST else None
