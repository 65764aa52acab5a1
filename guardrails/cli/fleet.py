"""``guardrails fleet URL``: the workers of a fleet, their leases, and the sums against the budget.

Depends on the stores of leases; must not import guards of its own.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from guardrails.cli import _reconcile
from guardrails.cli._findings import as_text
from guardrails.cli._options import as_json
from guardrails.fleet._lease import members
from guardrails.fleet._records import LEASE, Record, read_epoch
from guardrails.fleet._rulings import CLOSED, OPEN, PROBE
from guardrails.fleet._stores import StoreError
from guardrails.fleet._verdict import look

__all__ = ["fleet"]


@click.command(
    short_help="Lists the workers of a fleet and their leases.",
    help="Lists the workers that share a budget of connections: what each has, wants and may have, and the "
    "sums against the budget; and the circuits that they share. URL leads to the store, as in Fleet(URL).",
)
@click.argument("url")
@click.option("--name", metavar="FLEET", help="Only the fleet of this name.")
@click.option(
    "--database-url",
    metavar="URL",
    help="The database server: compares the connections that it counts with those that the workers report.",
)
@_reconcile.options
@as_json
def fleet(
    url: str, *, name: str | None, database_url: str | None, as_json: bool, **whose: str | None
) -> None:
    """Prints the workers. Exits with 0 if all is well, with 1 for findings and for a circuit that is open."""
    store = _reconcile.open_store(url)
    if database_url is None and any(whose.values()):
        raise click.UsageError("--budget, --role and --application need --database-url")
    try:
        view = store.read()
    except StoreError as error:
        click.echo(f"the store cannot be read: {error}", err=True)
        sys.exit(2)
    budgets = [
        _budget(*names, fields, view.now)
        for names, fields in sorted(view.budgets.items())
        if name is None or names[0] == name
    ]
    budgets = [each for each in budgets if each["workers"]]
    verdicts = [
        _verdict(*names, fields, view.now)
        for names, fields in sorted(view.verdicts.items())
        if name is None or names[0] == name
    ]
    verdicts = [each for each in verdicts if each["workers"]]
    differences = []
    if database_url is not None:
        differences = _reconcile.budget_against_server(store, database_url, fleet=name, **whose)
    if as_json:
        printed = {"budgets": budgets, "verdicts": verdicts}
        if database_url is not None:
            printed["server"] = [dataclasses.asdict(each) for each in differences]
        click.echo(json.dumps(printed))
    else:
        lines = [line for each in budgets for line in _lines(each)] + [
            _circuit_line(each) for each in verdicts
        ]
        click.echo("\n".join(lines) or "no workers are known.")
        if database_url is not None:
            click.echo(as_text("server", differences))
    has_findings = bool(differences) or any(each["findings"] for each in budgets)
    sys.exit(1 if has_findings or any(each["circuit"] != "closed" for each in verdicts) else 0)


_STATES = {CLOSED: "closed", OPEN: "open", PROBE: "half_open"}


def _verdict(fleet_name: str, name: str, fields: Mapping[str, str], now: int) -> dict[str, Any]:
    """Returns the circuit of one verdict and the sums over its workers."""
    seen = look(fields, now)
    return {
        "fleet": _clean(fleet_name),
        "name": _clean(name),
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
        findings.append(f"not in contact for more than {LEASE / 1000:g} s: {', '.join(map(_clean, silent))}")
    return {
        "fleet": _clean(fleet_name),
        "name": _clean(name),
        "connections": budgets[0] if budgets else None,
        "learning": epoch is not None and now < epoch[1],
        "workers": [_worker(worker, record, now) for worker, record in known.items()],
        "sums": sums,
        "findings": findings,
    }


def _worker(name: str, record: Record, now: int) -> dict[str, Any]:
    return {
        "worker": _clean(name),
        "host": _clean(record.host),
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


def _lines(budget: Mapping[str, Any]) -> Iterator[str]:
    learning = ", learning" if budget["learning"] else ""
    yield f"{budget['fleet']} / {budget['name']}: {budget['connections']} connections{learning}"
    sums = budget["sums"]
    rows = [
        [column.replace("_", " ") for column in _COLUMNS],
        *([_cell(column, worker[column]) for column in _COLUMNS] for worker in budget["workers"]),
        ["sum", "", *(str(sums[column]) for column in ("has", "wants", "grant", "reserved")), "", "", ""],
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        cells = (
            cell.ljust(width) if column < 2 or column == len(widths) - 1 else cell.rjust(width)  # noqa: PLR2004
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield ("  " + "  ".join(cells)).rstrip()
    for finding in budget["findings"]:
        yield f"  ! {finding}"


def _cell(column: str, value: object) -> str:
    return f"{value:.1f} s ago" if column == "renewed" else str(value)


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:120]
