"""The results of replays as tables and as data. Depends on the simulation; must not read a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardrails.simulation.replay_sums import Replay, RouteSums
    from guardrails.simulation.trace import Trace

__all__ = ["columns", "replay_data", "replay_lines", "trace_data"]

_ROUTES = 20
"""Most routes in the table; ``--json`` has all."""

_OPENINGS = 10
"""Most openings of circuits that are listed for each policy; ``--json`` has all."""


def replay_lines(trace: Trace, replays: Sequence[Replay]) -> Iterator[str]:
    """Returns the tables, with one column for each policy."""
    yield _head(trace)
    yield ""
    yield from columns(_rows(trace, replays))
    yield ""
    yield from columns(_route_rows(replays))
    for each in replays:
        yield ""
        yield from _opening_lines(trace, each)


def columns(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lays rows out in columns, the first one to the left and the others to the right."""
    table = [list(row) for row in rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(table[0]))]
    for row in table:
        cells = [
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "  ".join(cells)).rstrip()


def _head(trace: Trace) -> str:
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in trace.count().most_common())
    return (
        f"trace: {len(trace)} calls of {len(trace.names)} routes in {trace.seconds:.0f} s from "
        f"{trace.when(0)}; {outcomes}; at most {trace.highest()} at once"
    )


def _rows(trace: Trace, replays: Sequence[Replay]) -> Iterator[list[str]]:
    totals = [each.total() for each in replays]
    reasons = sorted({reason for each in totals for reason in each.refused})
    yield ["", *(each.policy.label for each in replays)]
    yield ["admitted", *(_share(each.admitted, each.calls) for each in totals)]
    yield ["refused", *(_share(sum(each.refused.values()), each.calls) for each in totals)]
    for reason in reasons:
        yield [f"  {reason}", *(str(each.refused[reason]) for each in totals)]
    yield ["  of them good in the trace", *(str(each.refused_good) for each in totals)]
    yield ["  of them failed or slow in the trace", *(str(each.refused_bad) for each in totals)]
    yield ["stopped at the timeout", *(str(each.stopped) for each in totals)]
    yield ["wait for a slot, p50", *(_seconds(each.wait(0.5)) for each in totals)]
    yield ["wait for a slot, p99", *(_seconds(each.wait(0.99)) for each in totals)]
    yield ["most slots in use", *(str(each.most_in_use) for each in replays)]
    yield ["slots in use on average", *(f"{each.held / (trace.seconds or 1):.2f}" for each in replays)]
    yield ["circuits opened", *(str(len(each.openings)) for each in replays)]
    yield ["  seconds not closed, in sum", *(f"{_open_seconds(each):.1f}" for each in replays)]


def _open_seconds(replay: Replay) -> float:
    return sum(opening.seconds for opening in replay.openings)


def _route_rows(replays: Sequence[Replay]) -> Iterator[list[str]]:
    yield ["route", "calls", *(f"refused, {each.policy.label}" for each in replays)]
    names = sorted(replays[0].routes, key=lambda name: (-_refusals(replays, name), name))
    for name in names[:_ROUTES]:
        sums = [each.routes[name] for each in replays]
        refused = (_share(sum(each.refused.values()), each.calls) for each in sums)
        yield [_clean(name) or "(none)", str(sums[0].calls), *refused]
    if len(names) > _ROUTES:
        yield [f"{len(names) - _ROUTES} more", *[""] * (len(replays) + 1)]


def _refusals(replays: Sequence[Replay], name: str) -> int:
    return max(sum(each.routes[name].refused.values()) for each in replays)


def _opening_lines(trace: Trace, replay: Replay) -> Iterator[str]:
    openings = replay.openings
    yield f"{replay.policy.label}: " + ("circuits" if openings else "no circuit would have opened")
    for each in openings[:_OPENINGS]:
        until = (
            f"for {each.seconds:.1f} s" if each.ended else f"and not closed by the end, {each.seconds:.1f} s"
        )
        rounds = f"{each.rounds} round{'' if each.rounds == 1 else 's'} of probes"
        yield f"  {trace.when(each.at)}  {_clean(each.guard)} opened ({each.cause}) {until}, {rounds}"
    if len(openings) > _OPENINGS:
        yield f"  {len(openings) - _OPENINGS} more"


def trace_data(trace: Trace) -> dict[str, Any]:
    """Returns the sums of the trace itself, for JSON."""
    return {
        "calls": len(trace),
        "start": trace.start,
        "seconds": trace.seconds,
        "outcomes": dict(trace.count()),
        "most_at_once": trace.highest(),
    }


def replay_data(replay: Replay) -> dict[str, Any]:
    """Returns the results of one policy, for JSON."""
    return {
        "policy": replay.policy.label,
        **_sums_data(replay.total()),
        "most_in_use": replay.most_in_use,
        "slot_seconds": round(replay.held, 3),
        "openings": [opening._asdict() for opening in replay.openings],
        "routes": {name: _sums_data(sums) for name, sums in replay.routes.items()},
    }


def _sums_data(sums: RouteSums) -> dict[str, Any]:
    return {
        "calls": sums.calls,
        "admitted": sums.admitted,
        "stopped": sums.stopped,
        "refused": dict(sums.refused),
        "refused_good": sums.refused_good,
        "refused_bad": sums.refused_bad,
        "wait_p50": sums.wait(0.5),
        "wait_p99": sums.wait(0.99),
    }


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.2%})" if whole else "0"


def _seconds(value: float) -> str:
    return f"{value * 1000:.1f} ms"


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:60]
