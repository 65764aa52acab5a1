"""The results of a simulated fleet as lines and as data. Depends on the simulation; must not run it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardrails.simulation.fleet_run import FleetRun

__all__ = ["fleet_data", "fleet_lines"]

_EVENTS = 12
"""Most faults that are listed; ``--json`` has all."""


def fleet_data(run: FleetRun) -> dict[str, Any]:
    """Returns the results, for JSON."""
    plan, sums = run.plan, run.sums
    seconds = plan.hours * 3600
    return {
        "workers": plan.workers,
        "budget": plan.budget,
        "minimum": plan.minimum,
        "hours": plan.hours,
        "seed": plan.seed,
        "faults": list(plan.faults),
        "invariant_kept": not sums.breaks,
        "breaks": sums.breaks,
        "first_breaks": [each._asdict() for each in sums.broken],
        "most_open": sums.highest,
        "most_over_budget": sums.over,
        "share_after": _spread(sums.waits),
        "share_after_disturbed": _spread(sums.disturbed_waits),
        "longest_below_floor": round(sums.starved, 3),
        "commands_per_second": round(sums.commands / seconds, 1),
        "most_commands_in_a_second": sums.busiest,
        "commands_skipped": run.skipped,
        "served": _ratio(sums.served_seconds, sums.demand_seconds),
        "served_by_static_division": _ratio(sums.static_seconds, sums.demand_seconds),
        "events": [{"at": round(at, 3), "what": what} for at, what in run.events],
    }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _spread(values: Sequence[float]) -> dict[str, float | int | None]:
    ordered = sorted(values)

    def at(share: float) -> float | None:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None

    return {"times": len(ordered), "p50": at(0.5), "p99": at(0.99), "most": at(1.0)}


def fleet_lines(run: FleetRun) -> Iterator[str]:
    """Returns the results for people."""
    data, sums = fleet_data(run), run.sums
    faults = ", ".join(data["faults"]) or "no faults"
    yield (
        f"{data['workers']} workers, {data['budget']} connections, floor {data['minimum']}, "
        f"{data['hours']:g} h, seed {data['seed']}: {faults}"
    )
    yield ""
    if sums.breaks:
        yield f"  ! the budget was not kept at {sums.breaks} events"
        for each in sums.broken[:3]:
            yield f"    after {each.at:.3f} s: {each.open} open, {each.allowed} allowed"
    else:
        over = f"{data['most_over_budget']} more, which the protocol allows" if sums.over else "never more"
        yield f"  most open connections          {data['most_open']} of {data['budget']}: {over}"
    yield f"  a share after more demand      {_words(data['share_after'])}"
    yield f"  likewise, while out of reach   {_words(data['share_after_disturbed'])}"
    yield f"  longest below the floor        {data['longest_below_floor']:.1f} s (one lease is 3 s)"
    yield (
        f"  commands at the store          {data['commands_per_second']:g} a second, "
        f"at most {data['most_commands_in_a_second']}"
    )
    yield f"  calls served of those wanted   {_percent(data['served'])}"
    yield f"  with the budget divided once   {_percent(data['served_by_static_division'])}"
    if run.events:
        yield ""
        for at, what in run.events[:_EVENTS]:
            yield f"  {at:8.1f} s  {what}"
        if len(run.events) > _EVENTS:
            yield f"  {len(run.events) - _EVENTS} more"


def _words(spread: dict[str, Any]) -> str:
    if not spread["times"]:
        return "never needed"
    p50, p99, most = spread["p50"], spread["p99"], spread["most"]
    return f"p50 {p50:.1f} s, p99 {p99:.1f} s, most {most:.1f} s ({spread['times']} times)"


def _percent(share: float | None) -> str:
    return "no calls" if share is None else f"{share:.1%}"
