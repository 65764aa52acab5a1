"""``guardrails shadow URL``: what the guards of a service would have done since they are in shadow.

Depends on the format of ``/status.json``; must not import guards.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from guardrails.cli._options import as_json
from guardrails.cli._status_page import NOT_A_PAGE, StatusPageError, process_of, read_page, status_address

__all__ = ["shadow", "words"]


@click.command(
    short_help="Says what guards in shadow would have done.",
    help="Says what the guards of a service would have refused and stopped since they are in shadow, and "
    "which settings would have done no harm. URL leads to the service's status pages.",
)
@click.argument("url")
@as_json
def shadow(url: str, *, as_json: bool) -> None:
    """Prints the sums. Exits with 0 if nothing would have been refused or stopped, else with 1."""
    address = status_address(url)
    try:
        page = read_page(address)
        sums = [_sums(guard) for guard in page["guards"]]
    except StatusPageError as error:
        click.echo(f"{address}: {error}", err=True)
        sys.exit(2)
    except (KeyError, TypeError, ValueError, AttributeError):
        click.echo(f"{address}: {NOT_A_PAGE}", err=True)
        sys.exit(2)
    if as_json:
        click.echo(json.dumps({"pid": page["pid"], "host": page["host"], "guards": sums}))
    else:
        process = process_of(page)
        if process:
            click.echo(f"{process}; other workers at this address have sums of their own")
        click.echo("\n".join(line for each in sums for line in _lines(each)) or "no guards on this page.")
    sys.exit(1 if any(each["refused"] or each["stopped"] for each in sums) else 0)


def words(guards: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the lines about guards that were in shadow, each as ``/status.json`` has it."""
    return [line for guard in guards for line in _lines(_sums(guard))]


def _sums(guard: Mapping[str, Any]) -> dict[str, Any]:
    """The sums of one guard, checked."""
    seen = guard.get("shadow") or {}
    routes = {
        _clean(route): {_clean(why): int(count) for why, count in counts.items()}
        for route, counts in seen.get("routes", {}).items()
    }
    reasons: Counter[str] = Counter()
    for counts in routes.values():
        reasons.update(counts)
    longest = [
        {
            "took": float(each["took"]),
            "timeout": float(each["timeout"]),
            "running": bool(each["running"]),
            "where": None if each["where"] is None else _clean(each["where"]),
            "route": None if each["route"] is None else _clean(each["route"]),
        }
        for each in seen.get("longest", [])
    ]
    return {
        "name": _clean(guard["name"]),
        "mode": _clean(guard["mode"]),
        "since": None if seen.get("since") is None else float(seen["since"]),
        "judged": int(seen.get("judged", 0)),
        "refused": int(seen.get("refused", 0)),
        "stopped": int(seen.get("stopped", 0)),
        "reasons": dict(reasons.most_common()),
        "openings": int(seen.get("openings", 0)),
        "opened_at": None if seen.get("opened_at") is None else float(seen["opened_at"]),
        "routes": routes,
        "longest": longest,
        "slowest": _slowest(seen, longest) or None,
        "timeout": None if seen.get("timeout") is None else float(seen["timeout"]),
        "highest": None if seen.get("highest") is None else int(seen["highest"]),
        "capacity": None if seen.get("capacity") is None else int(seen["capacity"]),
        "harmless": _harmless(seen, longest),
    }


def _slowest(seen: Mapping[str, Any], longest: list[dict[str, Any]]) -> float:
    """Seconds of the longest call; 0.0 if none was slow."""
    return float(max([float(seen.get("slowest") or 0.0), *(each["took"] for each in longest)]))


def _harmless(seen: Mapping[str, Any], longest: list[dict[str, Any]]) -> dict[str, float | int]:
    """The settings that would have refused and stopped nothing, as far as they are known and possible.

    None from a time in which a circuit opened: calls then queue up and last for as long as the fault does.
    """
    found: dict[str, float | int] = {}
    if seen.get("openings"):
        return found
    highest = int(seen.get("highest") or 0)
    if seen.get("refused") and 0 < highest <= int(seen.get("capacity") or highest):
        found["max_concurrent_calls"] = highest
    if seen.get("stopped") and not _still_runs(longest):
        found["timeout"] = math.ceil(_slowest(seen, longest) * 10 + 1) / 10
    return found


def _still_runs(longest: list[dict[str, Any]]) -> bool:
    """True if one of the longest calls still runs: its duration, and so its timeout, is not known yet."""
    return any(call["running"] for call in longest)


def _lines(each: dict[str, Any]) -> Iterator[str]:
    name = each["name"]
    if each["since"] is None:
        yield f"{name}: {each['mode']}; it was never in shadow."
        return
    yield f"{name}: {each['mode']}; in shadow since {_local(each['since'])}"
    share = each["refused"] / each["judged"] if each["judged"] else 0.0
    yield f"  would have refused {each['refused']} of {each['judged']} calls ({share:.1%})"
    if each["reasons"]:
        yield "    by reason: " + ", ".join(f"{why} {count}" for why, count in each["reasons"].items())
        # First the routes that work: that they would be refused is what one must know.
        routes = sorted(
            each["routes"].items(), key=lambda at: ("circuit_open" in at[1], -sum(at[1].values()))
        )
        yield "    by route:  " + ", ".join(f"{route} {sum(counts.values())}" for route, counts in routes)
    yield f"  would have stopped {each['stopped']}"
    for stop in each["longest"][:1]:
        took = f"{stop['took']:.2f} s{' so far' if stop['running'] else ''}"
        where = f" at {stop['where']}" if stop["where"] else ""
        route = f", {stop['route']}" if stop["route"] else ""
        yield f"    the longest took {took} with a limit of {stop['timeout']:g} s{where}{route}"
    yield from _advice(each)


def _advice(each: dict[str, Any]) -> Iterator[str]:
    """The last lines of a guard: what its settings should be, as far as that is known."""
    if each["openings"]:
        times = "once, at" if each["openings"] == 1 else f"{each['openings']} times, last at"
        at = _local(each["opened_at"])
        yield f"  a circuit would have opened {times} {at}: from an outage no setting is advised"
        return
    refusals_remain = each["refused"] and "max_concurrent_calls" not in each["harmless"]
    stops_remain = each["stopped"] and "timeout" not in each["harmless"]
    if each["harmless"]:
        settings = ", ".join(f"{setting}={value}" for setting, value in each["harmless"].items())
        effect = (
            "stopped nothing" if refusals_remain else "refused nothing" if stops_remain else "done no harm"
        )
        yield f"  would have {effect}: {settings}"
    if stops_remain:
        yield "  no timeout is advised while one of the longest calls runs: ask again when it has ended"
    if refusals_remain and each["highest"]:
        yield f"  {each['highest']} concurrent calls, and the pool has {each['capacity']} connections"
    elif refusals_remain:
        yield "  the guard's own slots were enough: what refused is in the reasons and routes above"
    if not each["refused"] and not each["stopped"]:
        took = ""
        if each["slowest"] and each["timeout"]:
            took = f"; the longest call took {each['slowest']:.2f} s of {each['timeout']:g} s"
        yield f"  the present settings would have done no harm{took}"


def _local(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _clean(text: object) -> str:
    return "".join(char if char.isprintable() else "?" for char in str(text))[:300]
