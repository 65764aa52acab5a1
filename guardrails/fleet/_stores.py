"""What a store of leases can do, whichever it is. Depends on the records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from guardrails.fleet._orders import Orders, OrdersRequest
from guardrails.fleet._records import Reply, Request
from guardrails.fleet._rulings import Ruling, VerdictRequest

__all__ = ["Answer", "Ask", "NoStoreError", "Store", "StoreError", "StoreView"]


Answer = Reply | Ruling | Orders


class StoreError(Exception):
    """The store could not be used. The message holds no address and no password."""


class NoStoreError(StoreError):
    """There is no store yet: no worker has asked it."""


class Ask(NamedTuple):
    """One question to a store.

    Attributes:
        name: The name of the budget or of the verdict.
        request: The request.
        leaving: True to leave the fleet instead of renewing a lease.
    """

    name: str
    request: Request | VerdictRequest | OrdersRequest
    leaving: bool = False


class StoreView(NamedTuple):
    """The texts that a store has.

    Attributes:
        now: The store's time in milliseconds.
        budgets: The store's mapping for each fleet and budget, by their names.
        verdicts: Likewise for each verdict.
        orders: Likewise the orders to the guards of each name.
    """

    now: int
    budgets: dict[tuple[str, str], dict[str, str]]
    verdicts: dict[tuple[str, str], dict[str, str]]
    orders: dict[tuple[str, str], dict[str, str]]


class Store(Protocol):
    """Keeps the leases of one fleet. One thread uses it at a time."""

    def exchange(self, asks: Sequence[Ask]) -> list[Answer]:
        """Sends the questions in one call; returns an answer to each.

        Raises:
            StoreError: The store cannot be used now.
        """

    def read(self) -> StoreView:
        """Returns what the store has of every fleet, for people.

        Raises:
            StoreError: The store cannot be used now.
        """

    def close(self) -> None:
        """Closes the connection. The next call opens another."""
