"""Orders to all guards of one name in a fleet, and the rule by which a store keeps them. Pure.

Depends on nothing of ours. There are two orders at most: one about the mode, one about the circuit. The later
one of each counts, so workers that still know it write it back to a store that lost its data. ``lease.lua``
says the same to Redis.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import NamedTuple, Self

__all__ = ["AUTO", "KINDS", "ORDERS_KEPT", "TOO_LATE", "Order", "Orders", "OrdersRequest", "merge"]

AUTO = "auto"
"""Ends an order: the guard is again what it was before."""

KINDS = {
    "mode": ("enforce", "shadow", "off"),
    "circuit": ("force_open", "disable", "metrics_only", "reset"),
}
"""The orders of each kind. They are named after the methods and modes of a guard."""

ORDERS_KEPT = 7 * 86_400_000
"""Milliseconds for which a store keeps an order that no worker asks for."""

TOO_LATE = 86_400_000
"""An order that is so many milliseconds in the future is not ours."""

_TEXT = re.compile(r"2 ([0-9]{1,15}) ([a-z_]{1,20}) ([!-~]{1,100})")


@dataclass(frozen=True, slots=True)
class Order:
    """One order.

    Attributes:
        what: A value of `KINDS`, or `AUTO`.
        at: When it was given, in milliseconds since 1970; of two orders the later one counts.
        by: Who gave it.
    """

    what: str
    at: int
    by: str

    @classmethod
    def read(cls, kind: str, text: str, now: int) -> Self | None:
        """Reads an order of a kind; None if the text is none.

        Args:
            kind: A key of `KINDS`.
            text: The text.
            now: Milliseconds since 1970.
        """
        found = _TEXT.fullmatch(text)
        if found is None or found[2] not in {*KINDS[kind], AUTO} or int(found[1]) > now + TOO_LATE:
            return None
        return cls(found[2], int(found[1]), found[3])

    def write(self) -> str:
        """Returns its text."""
        return f"2 {self.at} {self.what} {self.by}"


class OrdersRequest(NamedTuple):
    """What a worker knows of the orders, or an order that is given.

    Attributes:
        worker: The worker's name.
        gives: True for an order that is given.
        mode: The text of the order about the mode, or nothing.
        circuit: The text of the order about the circuit, or nothing.
    """

    worker: str
    gives: bool = False
    mode: str = ""
    circuit: str = ""


@dataclass(frozen=True, slots=True)
class Orders:
    """The texts of the orders that count, or nothing."""

    mode: str = ""
    circuit: str = ""


def merge(fields: MutableMapping[str, str], asked: OrdersRequest, now: int) -> Orders:
    """Takes the orders that a worker knows, and returns those that count.

    Args:
        fields: The store's texts by kind; they are changed.
        asked: The request.
        now: Milliseconds since 1970.
    """
    found = {}
    for kind, text in (("mode", asked.mode), ("circuit", asked.circuit)):
        known, new = Order.read(kind, fields.get(kind, ""), now), Order.read(kind, text, now)
        if new is not None and (known is None or new.at > known.at):
            known = new
            fields[kind] = text
        found[kind] = "" if known is None else fields[kind]
    return Orders(**found)
