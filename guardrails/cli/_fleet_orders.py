"""The orders of a fleet, for ``guardrails fleet``: gives one, and words those that count.

Depends on the stores and the steering of fleets.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import closing

import click

from guardrails._util.checks import Faults
from guardrails.cli._reconcile import open_store
from guardrails.errors import ConfigurationError
from guardrails.fleet._fleet import store_of
from guardrails.fleet._orders import AUTO, KINDS, Order
from guardrails.fleet._steering import check_order, give, shown_order, who
from guardrails.fleet._stores import StoreError, StoreView

__all__ = ["clean", "give_order", "line", "orders_of"]


def clean(text: str) -> str:
    """Returns a text of a store without what a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in text)[:120]


def give_order(url: str, target: str | None, order: str | None, by: str | None, fleet: str | None) -> None:
    """Gives an order to all guards of a name, and says so.

    Raises:
        UsageError: Something is missing or wrong, or no fleet or several fleets have the name.
    """
    if target is None or order is None:
        raise click.UsageError("an order needs TARGET, the name of a budget or verdict, and ORDER")
    faults = Faults("fleet")
    check_order(faults, order, by)
    try:
        faults.raise_if_any()
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None
    try:
        view = open_store(url).read()
        with closing(store_of(url, _fleet_of(view, target, fleet))()) as store:
            give(store, target, order, by or who())
    except StoreError as error:
        click.echo(f"the store cannot be used: {error}", err=True)
        sys.exit(2)
    click.echo(f"ordered: {target} {order}, by {by or who()}; the workers obey within 1.5 s")


def _fleet_of(view: StoreView, target: str, fleet: str | None) -> str:
    known = {*view.budgets, *view.verdicts, *view.orders}
    found = sorted({each for each, name in known if name == target and fleet in {None, each}})
    if len(found) == 1:
        return found[0]
    if found:
        raise click.UsageError(
            f"several fleets have {target!a}: say which with --name: {', '.join(map(clean, found))}"
        )
    names = ", ".join(sorted({clean(name) for each, name in known if fleet in {None, each}})) or "none"
    raise click.UsageError(f"no fleet has a budget or verdict {target!a}; known: {names}")


def orders_of(view: StoreView) -> list[dict[str, str]]:
    """Returns the orders that count."""
    now = time.time_ns() // 1_000_000
    return [
        {"fleet": clean(fleet), "name": clean(name), "kind": kind, **shown_order(order)}
        for (fleet, name), fields in sorted(view.orders.items())
        for kind in KINDS
        if (order := Order.read(kind, fields.get(kind, ""), now)) is not None and order.what != AUTO
    ]


def line(order: Mapping[str, str]) -> str:
    """Returns one order in words."""
    return f"{order['fleet']} / {order['name']}: {order['order']}, ordered by {order['by']} at {order['at']}"
