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
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Django with CONN_MAX_AGE: threads of one process, each of which keeps a connection.",
)
@click.option(
    "--aliases",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="With --threads: entries of DATABASES on this server, for each of which a thread keeps one.",
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
    threads: int | None,
    aliases: int,
    as_json: bool,
) -> None:
    """Runs the command."""
    if threads is None and aliases > 1:
        raise click.UsageError("--aliases counts the connections that threads keep: it needs --threads")
    try:
        fleet = Fleet(workers, max_connections, reserved, (threads or 0) * aliases)
        demand = Demand(rate / workers, hold, target_wait)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    pool = wanted(demand)
    fits = fleet.fits(pool)
    too_few = fleet.share is not None and 0 < fleet.share < pool.size
    most = room_for(demand, fleet.share) * workers if too_few and fleet.share else None
    print(_as_json(fleet, demand, pool, most) if as_json else _as_text(fleet, demand, pool, most))
    sys.exit(0 if fits else 1)


def _as_json(fleet: Fleet, demand: Demand, pool: Pool, most: float | None) -> str:
    answer = {
        "pool_size": pool.size,
        "busy_on_average": demand.load,
        "pool": dataclasses.asdict(pool),
        "kept_by_threads": fleet.kept,
        "connections_of_all_workers": fleet.open_at_most(pool) * fleet.workers,
        "connections_for_each_worker": fleet.share,
        "fits": fleet.fits(pool),
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
    if fleet.kept:
        lines += ["", f"Django keeps {fleet.kept} connections{of_each}, one for each thread and alias."]
    if fleet.share is not None:
        lines += ["", *_verdict(fleet, pool, most)]
    return "\n".join(lines)


def _verdict(fleet: Fleet, pool: Pool, most: float | None) -> list[str]:
    each = fleet.open_at_most(pool)
    total, limit = each * fleet.workers, fleet.max_connections
    sum_up = f"{fleet.workers} x {each} = {total} of {limit} connections, {fleet.reserved} reserved"
    if fleet.fits(pool):
        return [f"It fits: {sum_up}."]
    lines = [f"It does not fit: {sum_up}. Each process can have {fleet.share}."]
    if most is not None:
        lines.append(f"With these, {most:.0f} per second are served in time, all processes together.")
    if fleet.kept > pool.size:
        lines.append(
            "Run fewer threads, set CONN_MAX_AGE = 0 or OPTIONS['pool'], or put a pooler in between."
        )
    else:
        lines.append("Hold connections for less time, run fewer processes, or put a pooler in between.")
    return lines
