"""The results of workers that judge a failing database, as lines and as data. Must not run them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardrails.simulation.verdict_run import VerdictRun

__all__ = ["verdict_data", "verdict_lines"]


def verdict_data(run: VerdictRun) -> dict[str, Any]:
    """Returns the results of one run, for JSON. Times are seconds after the database began to fail."""
    plan, opened, closed = run.plan, sorted(run.opened().values()), run.closed()
    rounds = run.rounds()
    return {
        "together": plan.together,
        "workers": plan.workers,
        "calls_per_second": plan.rate,
        "fails_for": plan.fails_until - plan.fails_from,
        "opened": len(opened),
        "first_open_after": round(opened[0] - plan.fails_from, 3) if opened else None,
        "last_open_after": round(opened[-1] - plan.fails_from, 3) if opened else None,
        "all_closed_after_recovery": None if closed is None else round(closed - plan.fails_until, 3),
        "probes": sum(rounds),
        "rounds": len(rounds),
        "most_probes_in_a_round": max(rounds, default=0) if plan.together else None,
        "failed_calls": run.admitted,
        "refused_calls": run.refused,
        "refused_after_recovery": run.refused_after,
    }


def verdict_lines(runs: Sequence[VerdictRun]) -> Iterator[str]:
    """Returns the results of a run with a fleet and of one without, for people."""
    for each in map(verdict_data, runs):
        if each["together"]:
            yield ""
            yield (
                f"the database fails for {each['fails_for']:g} s, for {each['workers']} workers with "
                f"{each['calls_per_second']:g} call a second each"
            )
        yield f"  {'judged together' if each['together'] else 'each for itself'}"
        yield f"    circuits that opened     {_opened(each)}"
        closed = each["all_closed_after_recovery"]
        after = "some were not" if closed is None else f"{closed:.1f} s after it worked again"
        yield f"    all closed               {after if each['opened'] else 'none was open'}"
        yield f"    calls that failed        {each['failed_calls']}, refused {each['refused_calls']}"
        yield f"    probes                   {each['probes']} in {each['rounds']} rounds"


def _opened(each: dict[str, Any]) -> str:
    if not each["opened"]:
        return f"none of {each['workers']}"
    first, last = each["first_open_after"], each["last_open_after"]
    return f"{each['opened']} of {each['workers']}, {first:.1f} to {last:.1f} s after it began to fail"
