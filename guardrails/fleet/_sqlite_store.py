"""Leases in a SQLite file, for the workers of one machine. Depends on the rule and the standard library.

Each call opens the file anew: a file that was deleted or replaced is one file for all workers again a second
later, and a forked child inherits no lock. The journal is SQLite's default, a rollback journal: the next
worker rolls back what a killed one had half written. A write-ahead log would gain nothing at a few writes a
second, and needs shared memory beside the file. ``synchronous`` is off: after a power failure no worker is
left whose connections would have to be known.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from guardrails.fleet._lease import leave, renew
from guardrails.fleet._orders import OrdersRequest, merge
from guardrails.fleet._records import GRANTED, Reply
from guardrails.fleet._rulings import VerdictRequest
from guardrails.fleet._stores import Answer, Ask, NoStoreError, StoreError, StoreView
from guardrails.fleet._verdict import close, judge

__all__ = ["SQLiteStore"]

_BUSY = 0.5
"""Seconds for which a worker waits for the file's lock."""

_VERDICT, _ORDER = "@v", "@o"
"""Begin the name of a verdict and of orders in the table; no name of a budget begins so."""

_TABLE = """create table if not exists guardrails_fleet_2 (
    fleet text, budget text, field text, value text, primary key (fleet, budget, field)) without rowid"""


class SQLiteStore:
    """Keeps leases in a SQLite file.

    The time is that since the machine's start, which all processes share and no process can set.

    Args:
        path: The file.
        fleet: The fleet's name.
    """

    def __init__(self, path: str, fleet: str) -> None:
        self._path = path
        self._fleet = fleet

    def exchange(self, asks: Sequence[Ask]) -> list[Answer]:
        """See Store."""
        try:
            with closing(self._open()) as file:
                file.execute("begin immediate")
                now = _now()
                replies = [self._answer(file, ask, now) for ask in asks]
                file.execute("commit")
                return replies
        except (sqlite3.Error, OSError) as error:
            raise StoreError(_reason(error)) from None

    def read(self) -> StoreView:
        """See Store. It does not create the file, because the reader may be another user than the service."""
        if not Path(self._path).exists():
            raise NoStoreError("there is no such file")
        try:
            with closing(self._open()) as file:
                rows = file.execute("select fleet, budget, field, value from guardrails_fleet_2").fetchall()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(_reason(error)) from None
        view = StoreView(_now(), {}, {}, {})
        for fleet, budget, field, value in rows:
            name = str(budget)
            found = {_VERDICT: view.verdicts, _ORDER: view.orders}.get(name[:2], view.budgets)
            mapping = found.setdefault((str(fleet), name if found is view.budgets else name[2:]), {})
            mapping[str(field)] = value if isinstance(value, str) else ""
        return view

    def close(self) -> None:
        """See Store. Nothing stays open."""

    def _open(self) -> sqlite3.Connection:
        file = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None)
        try:
            file.text_factory = lambda data: data.decode("utf-8", "replace")
            file.execute("pragma synchronous = off")
            file.execute(_TABLE)
        except BaseException:
            file.close()
            raise
        return file

    def _answer(self, file: sqlite3.Connection, ask: Ask, now: int) -> Answer:
        if isinstance(ask.request, OrdersRequest):
            return self._steer(file, ask.name, ask.request)
        name = f"{_VERDICT}{ask.name}" if isinstance(ask.request, VerdictRequest) else ask.name
        with self._texts(file, name) as fields:
            if isinstance(ask.request, VerdictRequest):
                return judge(fields, ask.request, now)
            if ask.leaving:
                leave(fields, ask.request, now)
                return Reply(GRANTED)
            return renew(fields, ask.request, now)

    def _steer(self, file: sqlite3.Connection, name: str, asked: OrdersRequest) -> Answer:
        with self._texts(file, f"{_ORDER}{name}") as fields:
            before = fields.get("circuit")
            orders = merge(fields, asked, time.time_ns() // 1_000_000)
        if asked.gives and orders.circuit not in {"", before} and " reset " in orders.circuit:
            with self._texts(file, f"{_VERDICT}{name}") as fields:
                close(fields)
        return orders

    @contextmanager
    def _texts(self, file: sqlite3.Connection, name: str) -> Iterator[dict[str, str]]:
        """Reads the texts of a name, and writes what is changed in them."""
        rows = file.execute(
            "select field, value from guardrails_fleet_2 where fleet = ? and budget = ?",
            (self._fleet, name),
        ).fetchall()
        before = {str(field): value if isinstance(value, str) else "" for field, value in rows}
        fields = dict(before)
        yield fields
        for field in before.keys() - fields.keys():
            file.execute(
                "delete from guardrails_fleet_2 where fleet = ? and budget = ? and field = ?",
                (self._fleet, name, field),
            )
        for field, value in fields.items():
            if before.get(field) != value:
                file.execute(
                    "insert or replace into guardrails_fleet_2 values (?, ?, ?, ?)",
                    (self._fleet, name, field, value),
                )


def _now() -> int:
    return time.monotonic_ns() // 1_000_000


def _reason(error: Exception) -> str:
    """Returns SQLite's words, which name no path."""
    return str(error) if isinstance(error, sqlite3.Error) else type(error).__name__
