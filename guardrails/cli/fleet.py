"""``guardrails fleet URL``: the workers of a fleet, their leases, and the sums against the budget.

Depends on the stores of leases; must not import guards of its own.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from guardrails.cli import _fleet_orders, _reconcile
from guardrails.cli._findings import as_text
from guardrails.cli._options import as_json
from guardrails.fleet._lease import members
from guardrails.fleet._records import SILENT_AFTER, Record, read_epoch
from guardrails.fleet._rulings import CLOSED, OPEN, PROBE
from guardrails.fleet._steering import WHAT
from guardrails.fleet._stores import StoreError, StoreView
from guardrails.fleet._verdict import read_ruling

__all__ = ["fleet"]


@click.command(
    short_help="Lists the workers of a fleet and their leases, or steers all its guards.",
    help="Lists the workers that share a budget of connections: what each has, wants and may have, and the "
    "sums against the budget; and the circuits that they share. URL leads to the store, as in Fleet(URL). "
    "With TARGET, a budget or verdict, and ORDER the guards of all its workers obey within 1.5 s: "
    "enforce, shadow, off, force_open, disable, metrics_only, reset; auto ends the orders.",
)
@click.argument("url")
@click.argument("target", required=False)
@click.argument("order", required=False, type=click.Choice(WHAT))
@click.option("--by", metavar="WHO", help="Who gives the order; without it user@host.")
@click.option("--all", "shows_all", is_flag=True, help="All workers, not the largest 20.")
@click.option("--name", metavar="FLEET", help="Only the fleet of this name.")
@click.option(
    "--database-url",
    metavar="URL",
    help="The database server: compares the connections that it counts with those that the workers report.",
)
@_reconcile.options
@as_json
def fleet(
    url: str,
    *,
    target: str | None,
    order: str | None,
    by: str | None,
    shows_all: bool,
    name: str | None,
    database_url: str | None,
    as_json: bool,
    **whose: str | None,
) -> None:
    """Prints the workers. Exits with 0 if all is well, with 1 for findings and for a circuit that is open."""
    if target is not None or by is not None:
        _fleet_orders.give_order(url, target, order, by, name)
        return
    store = _reconcile.open_store(url)
    if database_url is None and any(whose.values()):
        raise click.UsageError("--budget, --role and --application need --database-url")
    try:
        view = store.read()
    except StoreError as error:
        click.echo(f"the store cannot be read: {error}", err=True)
        sys.exit(2)
    seen = _seen(view, name)
    differences = None
    if database_url is not None:
        differences = _reconcile.budget_against_server(store, database_url, fleet=name, **whose)
    if as_json:
        server = {} if differences is None else {"server": list(map(dataclasses.asdict, differences))}
        click.echo(json.dumps(seen | server))
    else:
        click.echo("\n".join(_text(seen, shows_all=shows_all)) or "no workers are known.")
        if differences is not None:
            click.echo(as_text("server", differences))
    has_findings = bool(differences) or any(each["findings"] for each in seen["budgets"])
    sys.exit(1 if has_findings or any(each["circuit"] != "closed" for each in seen["verdicts"]) else 0)


def _seen(view: StoreView, name: str | None) -> dict[str, list[dict[str, Any]]]:
    """Returns what there is of one fleet, or of all."""
    budgets, verdicts = (
        [
            each
            for names, fields in sorted(found.items())
            if name in {None, names[0]} and (each := read(*names, fields, view.now))["workers"]
        ]
        for found, read in ((view.budgets, _budget), (view.verdicts, _verdict))
    )
    orders = [each for each in _fleet_orders.orders_of(view) if name in {None, each["fleet"]}]
    return {"budgets": budgets, "verdicts": verdicts, "orders": orders}


def _text(seen: Mapping[str, Sequence[Mapping[str, Any]]], *, shows_all: bool) -> Iterator[str]:
    for each in seen["budgets"]:
        yield from _lines(each, shows_all=shows_all)
    yield from map(_circuit_line, seen["verdicts"])
    yield from map(_fleet_orders.line, seen["orders"])


_STATES = {CLOSED: "closed", OPEN: "open", PROBE: "half_open"}


def _verdict(fleet_name: str, name: str, fields: Mapping[str, str], now: int) -> dict[str, Any]:
    """Returns the circuit of one verdict and the sums over its workers."""
    seen = read_ruling(fields, now)
    return {
        "fleet": _fleet_orders.clean(fleet_name),
        "name": _fleet_orders.clean(name),
        "circuit": _STATES[seen.state],
        "left": seen.left / 1000,
        "workers": seen.workers,
        "troubled": seen.troubled,
        "calls": seen.calls,
        "failures": seen.failures,
        "slow": seen.slow,
    }


def _circuit_line(each: Mapping[str, Any]) -> str:
    left = "" if each["circuit"] == "closed" else f" for {each['left']:.1f} s more"
    counts = f"of {each['calls']} calls {each['failures']} failed and {each['slow']} were slow"
    where = f"at {each['troubled']} of {each['workers']} workers"
    return f"{each['fleet']} / {each['name']}: circuit {each['circuit']}{left}; {counts}, {where}"


def _budget(fleet_name: str, name: str, fields: Mapping[str, str], now: int) -> dict[str, Any]:
    """Returns one budget with its workers, its sums and what is wrong with it."""
    known = {worker: record for worker, record in members(fields, now).items() if not record.left}
    budgets = sorted({record.budget for record in known.values()})
    epoch = read_epoch(fields.get("@", ""))
    sums = {
        "has": sum(record.has for record in known.values()),
        "wants": sum(record.wants for record in known.values()),
        "grant": sum(record.grant for record in known.values()),
        "reserved": sum(record.reserved(now) for record in known.values()),
    }
    findings = []
    if budgets and sums["has"] > budgets[0]:
        findings.append(f"{sums['has']} connections are open, more than the budget of {budgets[0]}")
    if len(budgets) > 1:
        findings.append(f"the workers name different budgets: {', '.join(map(str, budgets))}")
    if budgets and sum(record.minimum for record in known.values()) > budgets[0]:
        findings.append("the floors of the workers together exceed the budget")
    silent = [worker for worker, record in known.items() if record.is_silent(now)]
    if silent:
        findings.append(f"not in contact for more than {SILENT_AFTER / 1000:g} s: {_names(silent)}")
    return {
        "fleet": _fleet_orders.clean(fleet_name),
        "name": _fleet_orders.clean(name),
        "connections": budgets[0] if budgets else None,
        "learning": epoch is not None and now < epoch[1],
        "workers": [_worker(worker, record, now) for worker, record in known.items()],
        "sums": sums,
        "findings": findings,
    }


def _worker(name: str, record: Record, now: int) -> dict[str, Any]:
    return {
        "worker": _fleet_orders.clean(name),
        "host": _fleet_orders.clean(record.host),
        "has": record.has,
        "wants": record.wants,
        "grant": record.grant,
        "safe_share": record.safe,
        "minimum": record.minimum,
        "reserved": record.reserved(now),
        "renewed": round((now - record.renewed) / 1000, 3),
        "state": "silent" if record.is_silent(now) else "in contact",
    }


_COLUMNS = ("worker", "host", "has", "wants", "grant", "reserved", "safe_share", "renewed", "state")


_MOST_ROWS, _MOST_NAMES = 20, 5
"""Workers in a table, and names in a finding."""


def _names(workers: Sequence[str]) -> str:
    more = len(workers) - _MOST_NAMES
    shown = ", ".join(map(_fleet_orders.clean, workers[:_MOST_NAMES] if more > 0 else workers))
    return f"{shown} and {more} others" if more > 0 else shown


def _shown(workers: Sequence[Mapping[str, Any]], *, shows_all: bool) -> Sequence[Mapping[str, Any]]:
    """Returns the largest workers, in the order of their names."""
    if shows_all or len(workers) <= _MOST_ROWS:
        return workers
    largest = sorted(workers, key=lambda worker: (worker["reserved"], worker["has"]), reverse=True)
    return sorted(largest[:_MOST_ROWS], key=lambda worker: str(worker["worker"]))


def _lines(budget: Mapping[str, Any], *, shows_all: bool) -> Iterator[str]:
    learning = ", learning" if budget["learning"] else ""
    yield f"{budget['fleet']} / {budget['name']}: {budget['connections']} connections{learning}"
    sums, workers = budget["sums"], _shown(budget["workers"], shows_all=shows_all)
    rows = [
        [column.replace("_", " ") for column in _COLUMNS],
        *([_cell(column, worker[column]) for column in _COLUMNS] for worker in workers),
        ["sum", "", *(str(sums[column]) for column in ("has", "wants", "grant", "reserved")), "", "", ""],
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        cells = (
            cell.ljust(width) if column < 2 or column == len(widths) - 1 else cell.rjust(width)  # noqa: PLR2004
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield ("  " + "  ".join(cells)).rstrip()
    if len(workers) < len(budget["workers"]):
        yield f"  the largest {len(workers)} of {len(budget['workers'])} workers; --all lists all"
    for finding in budget["findings"]:
        yield f"  ! {finding}"


def _cell(column: str, value: object) -> str:
    return f"{value:.1f} s ago" if column == "renewed" else str(value)
