"""``guardrails size``: the size that a pool needs, and whether the server has as many connections.

Depends on `guardrails._pool.sizing` for the arithmetic; must not connect to a server.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys

import click

from guardrails._pool.sizing import RESERVED, Demand, Fleet, Pool, pools, room_for, wanted
from guardrails.cli._options import as_json, max_connections, workers
from guardrails.errors import ConfigurationError

__all__ = ["size"]

_AROUND = 2
"""Number of pool sizes shown on each side of the advised one."""


@click.command(
    short_help="Says how many connections a pool needs.",
    help="Says how many connections a pool needs for a load, and whether the server has them.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    required=True,
    metavar="PER_S",
    help="Checkouts per second, all processes together.",
)
@click.option(
    "--hold",
    type=float,
    required=True,
    metavar="SECONDS",
    help="Time for which a request holds its connection.",
)
@click.option(
    "--target-wait",
    type=float,
    default=0.05,
    show_default=True,
    metavar="SECONDS",
    help="Longest wait for a connection of 99 % of the requests.",
)
@workers
@max_connections
@click.option(
    "--reserved",
    type=int,
    default=RESERVED,
    show_default=True,
    metavar="N",
    help="Of these, connections kept for superusers, migrations and other services.",
)
@as_json
def size(
    *,
    rate: float,
    hold: float,
    target_wait: float,
    workers: int,
    max_connections: int | None,
    reserved: int,
    as_json: bool,
) -> None:
    """Runs the command."""
    try:
        fleet = Fleet(workers, max_connections, reserved)
        demand = Demand(rate / workers, hold, target_wait)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    pool = wanted(demand)
    fits = fleet.share is None or pool.size <= fleet.share
    most = None if fits or not fleet.share else room_for(demand, fleet.share) * workers
    print(_as_json(fleet, demand, pool, most) if as_json else _as_text(fleet, demand, pool, most))
    sys.exit(0 if fits else 1)


def _as_json(fleet: Fleet, demand: Demand, pool: Pool, most: float | None) -> str:
    answer = {
        "pool_size": pool.size,
        "busy_on_average": demand.load,
        "pool": dataclasses.asdict(pool),
        "connections_of_all_workers": pool.size * fleet.workers,
        "connections_for_each_worker": fleet.share,
        "fits": fleet.share is None or pool.size <= fleet.share,
        "rate_that_fits": most,
    }
    return json.dumps(answer, indent=2)


def _as_text(fleet: Fleet, demand: Demand, pool: Pool, most: float | None) -> str:
    of_each = " in each process" if fleet.workers > 1 else ""
    lines = [
        f"pool_size={pool.size}, max_overflow=0{of_each}: {demand.load:.1f} connections are busy on average.",
        "",
        "  pool   busy   find none free   99 % wait at most",
    ]
    smallest = max(1, pool.size - _AROUND)
    for each in itertools.islice(pools(demand, smallest), pool.size + _AROUND - smallest + 1):
        wait = "for ever" if math.isinf(each.wait) else f"{each.wait * 1000:.0f} ms"
        mark = "  <- this one" if each.size == pool.size else ""
        lines.append(f"  {each.size:4}  {each.busy:4.0%}   {each.waiting:14.1%}   {wait:>17}{mark}")
    if fleet.share is not None:
        lines += ["", *_verdict(fleet, pool, most)]
    return "\n".join(lines)


def _verdict(fleet: Fleet, pool: Pool, most: float | None) -> list[str]:
    total, limit = pool.size * fleet.workers, fleet.max_connections
    sum_up = f"{fleet.workers} x {pool.size} = {total} of {limit} connections, {fleet.reserved} reserved"
    if fleet.share is not None and pool.size <= fleet.share:
        return [f"It fits: {sum_up}."]
    lines = [f"It does not fit: {sum_up}. Each process can have {fleet.share}."]
    if most is not None:
        lines.append(f"With these, {most:.0f} per second are served in time, all processes together.")
    lines.append("Hold connections for less time, run fewer processes, or put a pooler in between.")
    return lines
