"""What the project wants its cost to be, beside what a run has measured. It asserts nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from core_bench.tables import Row, Table

Rows = Mapping[str, Row]


@dataclass(frozen=True, slots=True)
class Goal:
    """One wish.

    Attributes:
        what: With its unit.
        table: The question that answers it.
        figure: Finds the figure in that table's rows; a KeyError if a contender is missing.
        most: What it may be.
    """

    what: str
    table: str
    figure: Callable[[Rows], float]
    most: float


def _added(name: str) -> Callable[[Rows], float]:
    return lambda rows: rows[name]["over_bare"]


def _guard_in(peer: str) -> Callable[[Rows], float]:
    """What the guard adds in what a peer adds: the other way round than the column says it."""
    return lambda rows: 1 / rows[peer]["times_ours"]


def _growth(row: Row) -> float:
    """The last column in first columns."""
    first, *_, last = row.values()
    return last / first


_SYNC, _ASYNC = "calls/sync/closed/decorator", "calls/async/closed/decorator"
_REFUSED = "calls/sync/rejected/decorator"

GOALS = (
    Goal("the whole guard, sync (ns over the bare call)", _SYNC, _added("Guard"), 1000),
    Goal("the whole guard, async (ns over the bare call)", _ASYNC, _added("Guard"), 1300),
    Goal("the whole guard, refusing (ns over the bare call)", _REFUSED, _added("Guard"), 1000),
    Goal("the whole guard in interlock-cb's breakers, sync", _SYNC, _guard_in("interlock-cb"), 0.25),
    Goal("the whole guard in nopanic's breakers, sync", _SYNC, _guard_in("nopanic"), 1),
    Goal("CircuitBreaker alone (ns over the bare call)", _SYNC, _added("CircuitBreaker"), 600),
    Goal("Bulkhead alone (ns over the bare call)", _SYNC, _added("Bulkhead"), 500),
    Goal(
        "8 threads x 50 ms through one guard (ms)",
        "parallel/8 threads x 50 ms",
        lambda rows: rows["Guard"]["ms"],
        60,
    ),
    Goal(
        "the largest count window in smallest ones", "windows/calls", lambda rows: _growth(rows["Guard"]), 1.1
    ),
    Goal(
        "a call after an idle hour in calls after a second",
        "windows/after a pause",
        lambda rows: rows["Guard"]["1 h"] / rows["Guard"]["1 s"],
        1.1,
    ),
    Goal("a Guard (bytes)", "memory/weight", lambda rows: rows["Guard"]["instance"], 2048),
    Goal("kept by refusals (blocks)", "memory/rejections", lambda rows: rows["Guard"]["blocks kept"], 100),
)


def reached(tables: list[Table]) -> Table:
    """The goals that this run can say something about."""
    rows = {table.name: table.rows for table in tables}
    measured: dict[str, Row] = {}
    for goal in GOALS:
        try:
            figure = goal.figure(rows[goal.table])
        except KeyError:
            continue  # not asked, or that peer is not installed
        measured[goal.what] = {"measured": figure, "goal, at most": goal.most}
    return Table.of("goals", "", measured)
